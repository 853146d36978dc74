//! A testing aid: makes one operation on a run's files fail, or ends the process there, from outside the program.
//!
//! The environment variable `SLTRUN_FAULT` is `ACTION:N`, where N counts the operations of the process on the files
//! that a run writes, from 1; `ACTION:N+` is for that operation and all after it, and `ACTION:N,ACTION:M` for two or
//! more of them. Actions:
//!
//! | action | what happens at operation N |
//! |---|---|
//! | `EIO`, `EACCES`, `ENOSPC`, `EROFS` | it fails with this error, and nothing is done |
//! | `half` | a write puts half of its bytes down and fails with `ENOSPC`; others fail with it |
//! | `short` | a write puts half of its bytes down and says so; others succeed |
//! | `kill` | the process kills itself (SIGKILL) before it |
//! | `tear` | a write puts half of its bytes down, then the process kills itself; others are as with `kill` |
//!
//! `list:FILE` lets all of them pass and adds a line `N<tab>operation<tab>path` for each to FILE. Without the
//! variable an operation costs one look at a constant more than the system's call.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The variable. It does not begin with `SLT_` as the experiment's do.
const VARIABLE: &str = "SLTRUN_FAULT";

/// The errors that can be asked for, with their numbers on Linux and macOS.
const ERRORS: [(&str, i32); 4] = [("EIO", 5), ("EACCES", 13), ("ENOSPC", NO_SPACE), ("EROFS", 30)];
const NO_SPACE: i32 = 28;

/// What is to happen, and when.
#[derive(Debug)]
pub(super) struct FaultPlan {
    seen: AtomicU64,
    what: What,
}

#[derive(Debug)]
enum What {
    Strikes(Vec<Strike>),
    List(PathBuf),
    /// The variable says nothing that can be done: every operation fails and says so.
    Nonsense(String),
}

#[derive(Debug)]
struct Strike {
    at: u64,
    /// Also at every operation after it.
    onwards: bool,
    fault: Fault,
}

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Whether half of what is to be written goes down first.
    pub half: bool,
    pub then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    GoOn,
    /// It fails with this error of the system.
    Fail(i32),
    Die,
}

impl Then {
    /// Does it.
    pub fn happen(self) -> io::Result<()> {
        match self {
            Self::GoOn => Ok(()),
            Self::Fail(number) => Err(io::Error::from_raw_os_error(number)),
            Self::Die => {
                let pid = std::process::id().to_string();
                let _ = std::process::Command::new("kill").args(["-KILL", &pid]).status();
                // Where there is no such command. Nothing is cleaned up either.
                std::process::abort();
            }
        }
    }
}

/// What is about to happen to this operation, if anything is.
pub(super) fn next(operation: &str, path: &Path) -> io::Result<Option<Fault>> {
    static PLAN: OnceLock<Option<FaultPlan>> = OnceLock::new();
    #[cfg(test)]
    if let Some(plan) = tests::plan() {
        return plan.next(operation, path);
    }
    match PLAN.get_or_init(|| std::env::var(VARIABLE).ok().map(|text| FaultPlan::new(&text))) {
        None => Ok(None),
        Some(plan) => plan.next(operation, path),
    }
}

impl FaultPlan {
    fn new(text: &str) -> Self {
        let what = match text.split_once(':') {
            Some(("list", path)) => Some(What::List(path.into())),
            _ => text.split(',').map(Strike::new).collect::<Option<_>>().map(What::Strikes),
        };
        let nonsense = || What::Nonsense(format!("{VARIABLE} is {text:?}, not ACTION:N"));
        Self { seen: AtomicU64::new(0), what: what.unwrap_or_else(nonsense) }
    }

    fn next(&self, operation: &str, path: &Path) -> io::Result<Option<Fault>> {
        let number = 1 + self.seen.fetch_add(1, Ordering::Relaxed);
        match &self.what {
            What::Strikes(strikes) => {
                let now = |s: &&Strike| number == s.at || s.onwards && number > s.at;
                Ok(strikes.iter().find(now).map(|strike| strike.fault))
            }
            What::List(list) => {
                let mut list = OpenOptions::new().create(true).append(true).open(list)?;
                writeln!(list, "{number}\t{operation}\t{}", path.display()).map(|()| None)
            }
            What::Nonsense(message) => Err(io::Error::new(io::ErrorKind::InvalidInput, message.clone())),
        }
    }
}

impl Strike {
    /// From `ACTION:N` or `ACTION:N+`.
    fn new(text: &str) -> Option<Self> {
        let (action, at) = text.split_once(':')?;
        let (half, then) = match action {
            "half" => (true, Then::Fail(NO_SPACE)),
            "short" => (true, Then::GoOn),
            "kill" => (false, Then::Die),
            "tear" => (true, Then::Die),
            name => (false, Then::Fail(ERRORS.iter().find(|(known, _)| *known == name)?.1)),
        };
        let (at, onwards) = at.strip_suffix('+').map_or((at, false), |at| (at, true));
        let at = at.parse().ok().filter(|&at| at > 0)?;
        Some(Self { at, onwards, fault: Fault { half, then } })
    }
}

#[cfg(test)]
pub(in crate::files) mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    thread_local! {
        static LOCAL: RefCell<Option<Rc<FaultPlan>>> = const { RefCell::new(None) };
    }

    pub fn plan() -> Option<Rc<FaultPlan>> {
        LOCAL.with_borrow(Clone::clone)
    }

    /// Runs `work` under the plan that `text` describes, on this thread alone; also gives the number of operations.
    pub fn under<T>(text: &str, work: impl FnOnce() -> T) -> (T, u64) {
        let plan = Rc::new(FaultPlan::new(text));
        LOCAL.set(Some(Rc::clone(&plan)));
        let result = work();
        LOCAL.set(None);
        (result, plan.seen.load(Ordering::Relaxed))
    }

    #[test]
    fn plans_are_read() {
        let fault = |text: &str, number: u64| {
            let plan = FaultPlan::new(text);
            plan.seen.store(number - 1, Ordering::Relaxed);
            plan.next("write", Path::new("x")).unwrap()
        };
        let full = Fault { half: false, then: Then::Fail(28) };
        assert_eq!(fault("ENOSPC:3", 3), Some(full));
        assert_eq!((fault("ENOSPC:3", 2), fault("ENOSPC:3", 4)), (None, None));
        assert_eq!((fault("ENOSPC:3+", 2), fault("ENOSPC:3+", 4)), (None, Some(full)));
        assert_eq!(fault("half:1", 1), Some(Fault { half: true, ..full }));
        assert_eq!(fault("short:1", 1), Some(Fault { half: true, then: Then::GoOn }));
        assert_eq!(fault("kill:1", 1), Some(Fault { half: false, then: Then::Die }));
        assert_eq!(fault("tear:1", 1), Some(Fault { half: true, then: Then::Die }));
        assert_eq!(fault("EIO:1,ENOSPC:3", 3), Some(full));
        assert_eq!(fault("EIO:1,ENOSPC:3", 2), None);
        for nonsense in ["", "kill", "kill:", "kill:0", "kill:x", "ENOWHERE:1", "EIO:1,"] {
            let error = FaultPlan::new(nonsense).next("write", Path::new("x")).unwrap_err();
            assert!(error.to_string().contains("SLTRUN_FAULT"), "{error}");
        }
    }

    #[test]
    fn operations_are_listed() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list");
        let plan = FaultPlan::new(&format!("list:{}", list.display()));
        plan.next("create", Path::new("a b")).unwrap();
        plan.next("sync", Path::new("c")).unwrap();
        assert_eq!(std::fs::read_to_string(list).unwrap(), "1\tcreate\ta b\n2\tsync\tc\n");
    }
}
