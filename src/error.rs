//! Errors as values up to `main`: what failed and where, the causes below it, and the cure.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::limits::Limit;

/// The result of anything in slt-run that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of thing went wrong; it decides the process's exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The experiment's configuration or the command line: exit code 2.
    Config,
    /// The dataset, or a checkpoint that was given as input: exit code 3.
    Data,
    /// The numbers: a loss or gradient that is not finite: exit code 4.
    Numbers,
    /// Memory, of the machine or of a GPU, that is full: exit code 1. Some of those who see it try again with less.
    Memory,
    /// Anything else, such as a full disk or a device's failure: exit code 1.
    Run,
}

/// One thing that is wrong, as a person reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What failed, naming the path, key or row. A sentence without a full stop, in lower case.
    pub what: String,
    /// Why, from the nearest cause to the deepest.
    pub causes: Vec<String>,
    /// What to do about it, if there is something to say.
    pub hint: Option<String>,
    /// The limit of this process that is the cause, where one is: then it is nobody else's fault.
    pub limit: Option<Limit>,
    /// The path where nothing is, if that is what failed: whoever knows the experiment says where else it was looked for.
    pub missing: Option<PathBuf>,
}

/// One or more problems of one kind. There is always at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Decides the exit code.
    pub kind: ErrorKind,
    /// Everything that was found wrong, in the order in which it was found.
    pub problems: Vec<Problem>,
}

impl Problem {
    /// A problem without a cause or a hint.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), causes: Vec::new(), hint: None, limit: None, missing: None }
    }

    /// Adds the next deeper cause.
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    /// Adds why the file operation on `path` failed. Where that is a limit of this process, it is named, with the hint
    /// that fits.
    #[must_use]
    pub fn io(mut self, path: &Path, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            self.missing = Some(path.to_owned());
        }
        self.limit = Limit::of(error);
        match self.limit {
            None => self.cause(error),
            Some(limit) => {
                self.hint = Some(limit.hint().to_owned());
                self.cause(format!("{error}: {}", limit.what()))
            }
        }
    }

    /// What failed and its causes, from the outermost to the deepest.
    pub fn chain(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.what).chain(&self.causes).map(String::as_str)
    }

    /// What failed and its causes, after colons.
    #[must_use]
    pub fn line(&self) -> String {
        self.chain().collect::<Vec<_>>().join(": ")
    }

    /// Says what to do; of a limit that is the cause, that is said already.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if self.limit.is_none() {
            self.hint = Some(hint.into());
        }
        self
    }
}

impl Error {
    /// An error of one problem.
    #[must_use]
    pub fn new(kind: ErrorKind, problem: Problem) -> Self {
        Self::of(kind, vec![problem])
    }

    /// An error of these problems; of the first limit of this process alone, where one is the cause of any: whatever
    /// else was found then, none of it is the user's or the data's fault.
    #[must_use]
    pub fn of(kind: ErrorKind, problems: Vec<Problem>) -> Self {
        let Some(problem) = problems.iter().find(|problem| problem.limit.is_some()) else {
            return Self { kind, problems };
        };
        let mut problem = problem.clone();
        if let (ErrorKind::Data, Some(limit)) = (kind, problem.limit) {
            // Which clip was about to be read is chance.
            (problem.what, problem.causes) = (limit.what(), Vec::new());
        }
        Self { kind: ErrorKind::Run, problems: vec![problem] }
    }

    /// Whether a limit of this process is the cause.
    #[must_use]
    pub fn is_limit(&self) -> bool {
        self.problems.iter().any(|problem| problem.limit.is_some())
    }

    /// A configuration error (exit code 2).
    pub fn config(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Config, Problem::new(what))
    }

    /// A data error (exit code 3).
    pub fn data(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, Problem::new(what))
    }

    /// Memory that is full (exit code 1).
    pub fn memory(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Memory, Problem::new(what))
    }

    /// Another failure (exit code 1).
    pub fn run(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Run, Problem::new(what))
    }

    /// A failed file operation: `what` ("cannot write", …) on `path`.
    #[must_use]
    pub fn io(kind: ErrorKind, what: &str, path: &Path, cause: &io::Error) -> Self {
        Self::new(kind, Problem::new(format!("{what} {}", path.display())).io(path, cause))
    }

    /// All of `problems` as one error, or `Ok` where there are none.
    pub fn all(kind: ErrorKind, problems: Vec<Problem>) -> Result<()> {
        if problems.is_empty() { Ok(()) } else { Err(Self::of(kind, problems)) }
    }

    /// Adds a deeper cause to the last problem.
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        if let Some(problem) = self.problems.last_mut() {
            problem.causes.push(cause.to_string());
        }
        self
    }

    /// Says what to do about the last problem, as [`Problem::hint`] does.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let last = self.problems.pop().map(|problem| problem.hint(hint));
        self.problems.extend(last);
        self
    }

    /// Puts `what` before each problem, which becomes its first cause.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        for problem in &mut self.problems {
            let below = std::mem::replace(&mut problem.what, what.to_string());
            problem.causes.insert(0, below);
        }
        self
    }

    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::Memory | ErrorKind::Run => 1,
            ErrorKind::Config => 2,
            ErrorKind::Data => 3,
            ErrorKind::Numbers => 4,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.what)?;
        for cause in &self.causes {
            write!(f, "\n  caused by: {}", cause.replace('\n', "\n    "))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {}", hint.replace('\n', "\n    "))?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// `1 clip`, `2 clips`, `3 classes`, for a message.
#[must_use]
pub fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ if noun.ends_with('s') => format!("{number} {noun}es"),
        _ => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn numbers_go_before_their_nouns() {
        assert_eq!(
            [(1, "clip"), (2, "clip"), (0, "class")].map(|(n, noun)| count(n, noun)),
            ["1 clip", "2 clips", "0 classes"]
        );
    }

    #[test]
    fn a_limit_of_the_process_is_the_only_problem_and_no_file_is_to_blame() {
        let unreadable = |number: i32| {
            Problem::new("cannot read clip_7.jpg")
                .io(Path::new("clip_7.jpg"), &io::Error::from_raw_os_error(number))
                .hint("replace the file")
        };
        let error =
            Error::all(ErrorKind::Data, vec![unreadable(2), unreadable(24), unreadable(24)]).unwrap_err();
        assert_eq!((error.kind, error.problems.len(), error.is_limit()), (ErrorKind::Run, 1, true));
        let text = error.to_string();
        assert!(text.contains("ulimit -n") && text.contains("hint: raise it"), "{text}");
        assert!(!text.contains("clip_7") && !text.contains("replace"), "{text}");

        let error = Error::new(ErrorKind::Data, unreadable(2));
        assert_eq!((error.kind, error.is_limit()), (ErrorKind::Data, false));
        assert!(error.to_string().contains("clip_7.jpg"));
        // What is written keeps its name.
        let error =
            Error::io(ErrorKind::Run, "cannot write", Path::new("a.json"), &io::Error::from_raw_os_error(24));
        assert!(error.to_string().contains("cannot write a.json") && error.to_string().contains("ulimit -n"));
    }
}
