//! Experiment files: TOML with a line for every value, and `extends`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml_edit::{Document, Item, TableLike, TomlError, Value as Toml};

use super::define::{Field, Kind, Role};
use super::fields::{FIELDS, SECTIONS};
use super::merge::{Merge, field};
use super::snapshot;
use super::suggest::{self, nearest};
use super::value::{self, from_text, from_toml, one_line, quoted, shorten};
use crate::error::Problem;
use crate::input;

/// An experiment file is a page; anything much larger is another kind of file.
const MOST_BYTES: u64 = 256 * 1024;
/// Files that extend one another without end are stopped at a circle, and those that fan out, here.
const MOST_FILES: usize = 100;
/// Nobody corrects more at a time; a file of nothing but unknown keys has tens of thousands.
const MOST_PROBLEMS: usize = 1000;
/// What the first word of a command line may be instead of a file.
const COMMANDS: [&str; 10] =
    ["train", "resume", "evaluate", "predict", "check", "cache", "config", "bench", "demo", "help"];

/// Puts the experiment files at `paths`, and before each those that it extends, on top of `merge`. A file counts once, at
/// its first place: a base that two files share must not undo what the first of them says. A run's folder stands for the
/// experiment that is in it.
pub(super) fn read(paths: &[PathBuf], merge: &mut Merge) {
    let mut reader = Reader { merge, chain: Vec::new(), read: BTreeSet::new(), files: 0 };
    for path in paths {
        reader.files = 0;
        let (experiment, run) = (path.join("config.toml"), path.join("run.json"));
        if path.is_dir() && experiment.exists() && run.exists() {
            reader.file(&experiment, None);
            in_its_folder(path, &run, reader.merge);
        } else {
            reader.file(path, None);
        }
    }
}

/// The run that `config.toml` is of, where its folder is now: that may have been moved. Its data may be relative to
/// where the run was started; what is there from here as well is taken from here.
fn in_its_folder(folder: &Path, run: &Path, merge: &mut Merge) {
    let origin = one_line(&folder.display().to_string());
    // Without a slash at its end.
    let folder: PathBuf = folder.components().collect();
    let put = |merge: &mut Merge, field: &'static Field, path: &Path| {
        if let Some(text) = path.to_str() {
            return merge.assign(field, from_text(field, text), &origin);
        }
        let what = format!("{origin}: {}: the path is not UTF-8 text", field.key);
        merge.refuse(field, Problem::new(what).hint("rename the folder"));
    };
    if let Some(field) = field("run.work_dir") {
        put(merge, field, &folder);
    }
    let Some(started_in) = started_in(run) else { return };
    for field in FIELDS.iter().filter(|field| field.kind.is_path() && field.role == Role::Data) {
        let Some((value, _)) = merge.get(field) else { continue };
        let Some(path) = value.as_str().map(Path::new) else { continue };
        let there = started_in.join(path);
        if path.is_relative() && !path.exists() && there.exists() {
            put(merge, field, &there);
        }
    }
}

/// The working directory of a run's last start, where `run.json` says it.
fn started_in(run: &Path) -> Option<PathBuf> {
    let json: serde_json::Value = serde_json::from_slice(&input::read(run, 16 << 20).ok()?).ok()?;
    let last = json["resumed"].as_array().and_then(|resumed| resumed.last()).unwrap_or(&json);
    last["working_directory"].as_str().map(PathBuf::from)
}

/// Who wants a file.
#[derive(Clone, Copy)]
struct Asked<'a> {
    /// The line that extends it, such as `configs/a.toml:1`.
    line: &'a str,
    /// The file as that line has it.
    base: &'a Path,
}

struct Reader<'a> {
    merge: &'a mut Merge,
    /// The files that are being read, each extended by the one before: real path, and as shown.
    chain: Vec<(PathBuf, String)>,
    /// The real paths of all files so far.
    read: BTreeSet<PathBuf>,
    /// How many of them one file of the command line, and what it extends, has been.
    files: usize,
}

impl Reader<'_> {
    /// Reads one file; `asked_by` is what extends it.
    fn file(&mut self, path: &Path, asked_by: Option<Asked>) {
        // A list of files may be long, and each may have one: nothing is read that is not needed.
        if self.files > MOST_FILES || self.full() {
            return;
        }
        let shown = one_line(&path.display().to_string());
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if let Some(start) = self.chain.iter().position(|(other, _)| *other == real) {
            let mut names: Vec<_> = self.chain[start..].iter().map(|(_, name)| name.as_str()).collect();
            names.push(&shown);
            let what = format!("{}: extends goes in a circle", asked_by.map_or(&*shown, |asked| asked.line));
            let problem = Problem::new(what).cause(names.join(" -> ")).hint("take one of these extends out");
            return self.unreadable(problem);
        }
        if !self.read.insert(real.clone()) {
            if asked_by.is_none() {
                self.merge.warnings.push(format!(
                    "{shown} was read already: a file counts once, at its first place, so it wins over nothing that \
                     came after that"
                ));
            }
            return;
        }
        self.files += 1;
        if self.files > MOST_FILES {
            return self.too_many(asked_by.map_or(&*shown, |asked| asked.line));
        }
        let text = match text(path, &shown, asked_by) {
            Ok(text) => text,
            Err(problem) => return self.unreadable(problem),
        };
        self.merge.folders.push(path.parent().unwrap_or(Path::new("")).to_owned());
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        if text.starts_with(snapshot::HEADER) {
            self.merge.snapshots.insert(shown.clone());
        }
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

    /// Reads what the file at `path` extends.
    fn base(&mut self, path: &Path, base: &str, origin: &str) {
        match input::expand_home(Path::new(base)) {
            Ok(base) => {
                let asked = Asked { line: origin, base: &base };
                self.file(&path.parent().unwrap_or(Path::new("")).join(&base), Some(asked));
            }
            Err(why) => {
                self.unreadable(Problem::new(format!("{origin}: extends: {}", why.what)).hint(why.hint));
            }
        }
    }

    fn too_many(&mut self, place: &str) {
        let what = format!("{place}: more than {MOST_FILES} files are extended");
        self.unreadable(Problem::new(what).hint("extend fewer files"));
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
                Some(bases) if bases.len() > MOST_FILES => self.too_many(&origin),
                Some(bases) => {
                    for base in bases {
                        self.base(path, base, &origin);
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
fn text(path: &Path, shown: &str, asked_by: Option<Asked>) -> Result<String, Problem> {
    let what = match asked_by {
        Some(Asked { line, .. }) => format!("{line}: extends: cannot read {shown}"),
        None => format!("cannot read the experiment file {shown}"),
    };
    let fail = |error: &std::io::Error| {
        // The hint below says where it was looked for.
        let problem = Problem { missing: None, ..Problem::new(&what).io(path, error) };
        if path.is_dir() {
            let inside = path.join("config.toml");
            let hint = if inside.exists() {
                format!("it is a folder; give {}", inside.display())
            } else {
                "it is a folder; give a file".to_owned()
            };
            return problem.hint(hint);
        }
        let missing = error.kind() == io::ErrorKind::NotFound;
        problem.hint(match asked_by {
            Some(asked) => base_not_readable(asked.base, missing),
            None => not_readable(path, missing),
        })
    };
    let mut bytes = Vec::new();
    open(path, asked_by.is_none())
        .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| fail(&error))?;
    if bytes.len() as u64 > MOST_BYTES {
        let cause = format!("it is larger than {} KiB", MOST_BYTES / 1024);
        return Err(Problem::new(what)
            .cause(cause)
            .hint(no_experiment(path, "give an experiment file in TOML")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes().iter().take(valid).filter(|b| **b == b'\n').count();
        Problem::new(&what)
            .cause(format!("line {line} is not UTF-8 text"))
            .hint(no_experiment(path, "save the file in the encoding UTF-8"))
    })
}

/// What to do about a file that is no TOML: `hint`, unless it is a checkpoint by its name.
fn no_experiment<'a>(path: &Path, hint: &'a str) -> &'a str {
    let ending = path.extension().and_then(|ending| ending.to_str());
    if ending.is_some_and(|ending| ["pt", "pth", "ckpt"].contains(&ending)) {
        "a checkpoint is no experiment: --init-from takes its weights, and --resume, without a file, goes on with the \
         run in run.work_dir"
    } else {
        hint
    }
}

/// What to do about a base that cannot be opened.
fn base_not_readable(base: &Path, missing: bool) -> String {
    let hint = "paths in extends are relative to the file that they stand in";
    match std::env::current_dir() {
        Ok(here) if missing && base.is_relative() => {
            let there = if here.join(base).exists() { "where it is" } else { "where it is not, either" };
            format!("{hint}, not to the working directory, {}, {there}", here.display())
        }
        _ => hint.to_owned(),
    }
}

/// What to do about a file of the command line that cannot be opened.
fn not_readable(path: &Path, missing: bool) -> String {
    // A misspelt command, or an assignment without its flag, reads like a file's name.
    let word = path.to_str().filter(|_| missing).unwrap_or_default();
    if let Some((key, _)) = word.split_once('=')
        && let Some(field) = suggest::meant(key.trim_start_matches('-'))
    {
        let value = &word[key.len() + 1..];
        return format!("did you mean --set {}={}?", field.key, shorten(value));
    }
    if let Some(command) = nearest(word, COMMANDS) {
        return format!("did you mean the command {command}?");
    }
    let hint = if word.contains(['.', '/']) || word.is_empty() {
        "give the path of a TOML file".to_owned()
    } else {
        format!("give the path of a TOML file, or a command: {}", COMMANDS.join(", "))
    };
    match input::whereabouts(path, &[]).filter(|_| missing) {
        Some(where_it_is) => format!("{hint}; {where_it_is}"),
        None => hint,
    }
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
    let problem = Problem::new(format!(
        "{shown}:{number}:{column}: not valid TOML: {message}\n  {number} | {before}{after}\n  {margin} | {mark}^"
    ));
    let (start, rest) = lines.split(number, at);
    match for_bare_word(&format!("{start}{rest}")) {
        Some(hint) => problem.hint(hint),
        None => problem,
    }
}

/// What to write instead of a line such as `scheduler = None` or `device = cuda`; `None` for any other line.
fn for_bare_word(line: &str) -> Option<String> {
    let (name, value) = line.split_once('=')?;
    let name = name.trim().rsplit('.').next()?;
    let word = value.split('#').next()?.trim();
    let of_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '~' | ':');
    if word.is_empty() || !word.chars().all(of_word) || name.contains(['"', '\'']) {
        return None;
    }
    let field = FIELDS.iter().find(|field| field.name == name);
    let in_quotes = || format!("put it in quotes: {} = \"{}\"", shorten(name), shorten(word));
    match (field, word.to_ascii_lowercase().as_str()) {
        (Some(field), "none" | "null" | "nil" | "true" | "false" | "yes" | "no" | "on" | "off") => {
            Some(value::instead_of(field, word))
        }
        (None, "true" | "false") => Some("TOML writes true and false in lower case".to_owned()),
        (None, "none" | "null" | "nil") => Some("TOML has no such value: leave the line out".to_owned()),
        (Some(field), _) if !matches!(field.kind, Kind::Whole | Kind::Number | Kind::Switch) => {
            Some(in_quotes())
        }
        (None, _) if word.starts_with(char::is_alphabetic) => Some(in_quotes()),
        _ => None,
    }
}
