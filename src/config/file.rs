//! Experiment files: TOML with a line for every value, and `extends`.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, TableLike, TomlError, Value as Toml};

use super::fields::SECTIONS;
use super::merge::{Merge, field};
use super::suggest::{self, nearest};
use super::value::{from_toml, one_line, quoted, shorten};
use crate::error::Problem;
use crate::input;

/// An experiment file is a page; anything much larger is another kind of file.
const MOST_BYTES: u64 = 256 * 1024;
/// Files that extend one another without end are stopped at a circle, and those that fan out, here.
const MOST_FILES: usize = 100;
/// Nobody corrects more at a time; a file of nothing but unknown keys has tens of thousands.
const MOST_PROBLEMS: usize = 1000;

/// Puts the experiment file at `path`, and before it those that it extends, on top of `merge`.
pub(super) fn read(path: &Path, merge: &mut Merge) {
    Reader { merge, chain: Vec::new(), files: 0 }.file(path, None);
}

struct Reader<'a> {
    merge: &'a mut Merge,
    /// The files that are being read, each extended by the one before: real path, and as shown.
    chain: Vec<(PathBuf, String)>,
    files: usize,
}

impl Reader<'_> {
    /// Reads one file; `asked_by` is the line that extends it.
    fn file(&mut self, path: &Path, asked_by: Option<&str>) {
        // A list of files may be long, and each may have one: nothing is read that is not needed.
        if self.files > MOST_FILES || self.full() {
            return;
        }
        let shown = one_line(&path.display().to_string());
        let text = match text(path, &shown, asked_by) {
            Ok(text) => text,
            Err(problem) => return self.unreadable(problem),
        };
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if let Some(start) = self.chain.iter().position(|(other, _)| *other == real) {
            let mut names: Vec<_> = self.chain[start..].iter().map(|(_, name)| name.as_str()).collect();
            names.push(&shown);
            let what = format!("{}: extends goes in a circle", asked_by.unwrap_or(&shown));
            let problem = Problem::new(what).cause(names.join(" -> ")).hint("take one of these extends out");
            return self.unreadable(problem);
        }
        self.files += 1;
        if self.files > MOST_FILES {
            let what = format!("{}: more than {MOST_FILES} files are extended", asked_by.unwrap_or(&shown));
            return self.unreadable(Problem::new(what).hint("extend fewer files"));
        }
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let lines = Lines::new(text);
        match Document::parse(text) {
            Ok(document) => {
                if !self.merge.files.iter().any(|file| file == path) {
                    self.merge.files.push(path.to_owned());
                }
                self.chain.push((real, shown.clone()));
                self.root(path, &Page { shown: &shown, lines: &lines }, document.as_table());
                self.chain.pop();
            }
            Err(error) => self.unreadable(syntax(&shown, &lines, &error)),
        }
    }

    /// Whether so much is wrong that the rest need not be looked at; says so once.
    fn full(&mut self) -> bool {
        let found = self.merge.problems.len();
        if found == MOST_PROBLEMS {
            let file = self.chain.last().map_or("", |(_, shown)| shown);
            let what = format!("{file}: after {MOST_PROBLEMS} problems, the rest was not looked at");
            self.unreadable(Problem::new(what).hint("correct the first ones and run it again"));
        }
        found >= MOST_PROBLEMS
    }

    fn unreadable(&mut self, problem: Problem) {
        self.merge.unreadable = true;
        self.merge.problems.push(problem);
    }

    /// The top of a file: `extends` first, wherever it stands, then the sections.
    fn root(&mut self, path: &Path, page: &Page, root: &dyn TableLike) {
        if let Some(item) = root.get("extends") {
            let origin = page.origin(root, "extends");
            match bases(item) {
                Some(bases) => {
                    for base in bases {
                        self.file(&path.parent().unwrap_or(Path::new("")).join(base), Some(&origin));
                    }
                }
                None => self.merge.problems.push(
                    Problem::new(format!("{origin}: extends: expected a file's path, or a list of them"))
                        .hint("for example extends = [\"base.toml\"]"),
                ),
            }
        }
        for (name, item) in root.iter().filter(|(name, _)| *name != "extends") {
            if self.full() {
                return;
            }
            let origin = page.origin(root, name);
            match (SECTIONS.iter().any(|s| s.name == name), item.as_table_like()) {
                (true, Some(table)) => self.section(name, page, table),
                (true, None) => self.not_a_section(name, item, &origin),
                (false, Some(_)) => self.unknown_section(name, &origin),
                (false, None) if item.is_array_of_tables() => self.unknown_section(name, &origin),
                (false, None) if nearest(name, ["extends"]).is_some() => {
                    let what = format!("{origin}: unknown key {}", one_line(name));
                    self.merge.problems.push(Problem::new(what).hint("did you mean extends?"));
                }
                (false, None) => self.merge.unknown(name, &origin),
            }
        }
    }

    fn section(&mut self, section: &str, page: &Page, table: &dyn TableLike) {
        for (name, item) in table.iter() {
            if self.full() {
                return;
            }
            let key = format!("{section}.{name}");
            let origin = page.origin(table, name);
            if let Some(field) = field(&key) {
                self.merge.assign(field, from_toml(field, item), &origin);
            } else if SECTIONS.iter().any(|s| s.name == key) {
                match item.as_table_like() {
                    Some(table) => self.section(&key, page, table),
                    None => self.not_a_section(&key, item, &origin),
                }
            } else if name == "extends" {
                let what = format!("{origin}: extends stands inside [{section}]");
                let hint = "put it at the top of the file, before the first section";
                self.merge.problems.push(Problem::new(what).hint(hint));
            } else if item.is_table_like() {
                self.unknown_section(&key, &origin);
            } else {
                self.merge.unknown(&key, &origin);
            }
        }
    }

    fn unknown_section(&mut self, name: &str, origin: &str) {
        let what = format!("{origin}: unknown section [{}]", one_line(&shorten(name)));
        self.merge.problems.push(Problem::new(what).hint(suggest::for_section(name)));
    }

    fn not_a_section(&mut self, section: &str, item: &Item, origin: &str) {
        let what = format!("{origin}: {section}: expected a section, found {}", described(item));
        self.merge
            .problems
            .push(Problem::new(what).hint(format!("write [{section}] and its fields on the lines below it")));
    }
}

fn described(item: &Item) -> String {
    match item.as_value() {
        Some(Toml::String(text)) => format!("the string {}", quoted(text.value())),
        Some(Toml::Array(_)) => "an array".into(),
        Some(value) => format!("the {} {}", value.type_name(), value.to_string().trim()),
        None => format!("an {}", item.type_name()),
    }
}

/// The files that `extends` names, or `None` where it is neither a string nor a list of strings.
fn bases(item: &Item) -> Option<Vec<&str>> {
    match item.as_value()? {
        Toml::String(path) => Some(vec![path.value().as_str()]),
        Toml::Array(paths) => paths.iter().map(Toml::as_str).collect(),
        _ => None,
    }
}

/// The file's text, or why there is none.
fn text(path: &Path, shown: &str, asked_by: Option<&str>) -> Result<String, Problem> {
    let what = match asked_by {
        Some(line) => format!("{line}: extends: cannot read {shown}"),
        None => format!("cannot read the experiment file {shown}"),
    };
    let fail = |error: &std::io::Error| {
        let problem = Problem::new(&what).io(error);
        if path.is_dir() {
            let inside = path.join("config.toml");
            let hint = if inside.exists() {
                format!("it is a folder; give {}", inside.display())
            } else {
                "it is a folder; give a file".to_owned()
            };
            return problem.hint(hint);
        }
        // A misspelt command reads like a file's name.
        let command = path.to_str().and_then(|word| nearest(word, ["check", "config", "demo"]));
        problem.hint(match (asked_by, command) {
            (Some(_), _) => "paths in extends are relative to the file that they stand in".to_owned(),
            (None, Some(command)) => format!("did you mean the command {command}?"),
            (None, None) => {
                "give the path of a TOML file; it is relative to the working directory".to_owned()
            }
        })
    };
    let mut bytes = Vec::new();
    open(path, asked_by.is_none())
        .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| fail(&error))?;
    if bytes.len() as u64 > MOST_BYTES {
        let cause = format!("it is larger than {} KiB", MOST_BYTES / 1024);
        return Err(Problem::new(what).cause(cause).hint("give an experiment file in TOML"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes().iter().take(valid).filter(|b| **b == b'\n').count();
        Problem::new(&what)
            .cause(format!("line {line} is not UTF-8 text"))
            .hint("save the file in the encoding UTF-8")
    })
}

/// Opens an experiment file: a regular one, or what a shell opened for a person's own command line, as in
/// `slt-run <(sed … base.toml)`.
fn open(path: &Path, by_hand: bool) -> io::Result<File> {
    let opened_by_shell = path == Path::new("/dev/stdin") || path.starts_with("/dev/fd");
    if by_hand && opened_by_shell { File::open(path) } else { input::open(path).map(|(file, _)| file) }
}

/// A file's name and lines, for the origins of its values.
struct Page<'a> {
    shown: &'a str,
    lines: &'a Lines<'a>,
}

impl Page<'_> {
    /// File and line of a key, such as `configs/a.toml:12`.
    fn origin(&self, table: &dyn TableLike, name: &str) -> String {
        let key = table.get_key_value(name);
        let span = key.and_then(|(key, item)| key.span().or_else(|| item.span()));
        match span {
            Some(Range { start, .. }) => format!("{}:{}", self.shown, self.lines.number(start)),
            None => self.shown.to_owned(),
        }
    }
}

/// Where the lines of a text begin.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// The line, from 1, that holds the byte at `at`.
    fn number(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at).max(1)
    }

    /// The text of line `number` before and after the byte at `at`, without its line break.
    fn split(&self, number: usize, at: usize) -> (&'a str, &'a str) {
        let start = self.starts.get(number - 1).copied().unwrap_or(0);
        let end = self
            .text
            .get(start..)
            .and_then(|rest| rest.find(['\n', '\r']))
            .map_or(self.text.len(), |n| start + n);
        let line = self.text.get(start..end).unwrap_or_default();
        line.split_at_checked(at.saturating_sub(start)).unwrap_or((line, ""))
    }
}

/// A TOML syntax error: path, line and column, and the line with a mark below the place.
fn syntax(shown: &str, lines: &Lines, error: &TomlError) -> Problem {
    let at = error.span().map_or(0, |span| span.start);
    let number = lines.number(at);
    let (before, after) = lines.split(number, at);
    let column = before.chars().count() + 1;
    // A window of the line, so that a long one does not drown the mark.
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    let before: String = before.chars().skip(column.saturating_sub(60)).map(visible).collect();
    let after: String = after.chars().take(60).map(visible).collect();
    let margin = " ".repeat(number.to_string().len());
    let mark = " ".repeat(before.chars().count());
    let message = one_line(&error.message().replace('\n', ", "));
    Problem::new(format!(
        "{shown}:{number}:{column}: not valid TOML: {message}\n  {number} | {before}{after}\n  {margin} | {mark}^"
    ))
}
