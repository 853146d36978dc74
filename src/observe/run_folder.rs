//! The folder of a run: who may write into it, the configuration that it keeps, and where the run came from.

mod git;
mod lock;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::config::{Change, Experiment, changes};
use crate::error::{Error, Kind, Problem, Result};
use crate::files::{self, folder_of, write_atomically};
use lock::{Owner, Refused, RunLock};

const LAST: &str = "last.pt";
const BEST: &str = "best.pt";
const METRICS: &str = "metrics.jsonl";
const DIFF: &str = "git.diff";
const RUN_JSON: &str = "run.json";
/// The key of `run.json` that lists the TensorBoard files.
const EVENT_FILES: &str = "event_files";
/// The key of `run.json` that says where the folder was when it was written.
const WORK_DIR: &str = "work_dir";

/// The files that a run leaves; any of them makes a folder a run's.
const RUN_FILES: [&str; 7] = [LAST, BEST, METRICS, "config.toml", "config.json", RUN_JSON, DIFF];

/// What proves that a folder can be written; it never stays.
const PROBE: &str = ".slt-run.probe";

/// A folder that this process alone may write into, for as long as this value lives.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// It and those of its parents that were not there before, the outermost first.
    made: Vec<PathBuf>,
    lock: RunLock,
}

/// Where a run came from, for `run.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunInfo {
    /// The program and its arguments.
    pub command_line: Vec<String>,
    /// When the run started.
    pub started: SystemTime,
    /// The device it runs on, as a person reads it.
    pub device: String,
    /// How many threads compute.
    pub threads: usize,
    /// The experiment file, whose folder is asked for its git commit; `None` where there is no file.
    pub experiment: Option<PathBuf>,
    /// The TensorBoard file of this start.
    pub event_file: Option<PathBuf>,
    /// Where it goes on from, unless it is the run's first start.
    pub resumed: Option<Resumed>,
}

/// Where a run goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Epochs that are done.
    pub epoch: usize,
    /// Training steps that are done.
    pub step: u64,
    /// What is another than before.
    pub changes: Vec<Change>,
}

impl RunFolder {
    /// Makes `work_dir` this run's: creates it, and its parents, where it is not there yet, and locks it.
    ///
    /// A folder that holds a run is refused, unless `overwrite`: then that run's files, and TensorBoard folders
    /// beside them, move to `<work_dir>.<YYYYMMDD-HHMMSS>` (`now`, UTC; `-2`, … where that is taken), which is
    /// returned. Files that are no run's stay where they are and never stand in the way.
    ///
    /// # Errors
    /// Kind `Config` where another process has the folder, where it holds a run or cannot be one, kind `Run` where the
    /// disk fails. Each leaves everything as it was.
    pub fn claim(work_dir: &Path, overwrite: bool, now: SystemTime) -> Result<(Self, Option<PathBuf>)> {
        let look = || run_entries(work_dir).map_err(|error| unusable(work_dir, &error));
        let there = look()?;
        if !overwrite && let Some(first) = there.run.first() {
            // Before anything is written: a folder that is refused is left alone.
            return Err(match lock::look(work_dir) {
                Err(Refused::Held(owner)) => in_use(work_dir, owner.as_ref()),
                _ => holds_a_run(work_dir, &there.run, first),
            });
        }
        let folder = Self::take(work_dir)?;
        // Now nobody else changes it.
        let aside = look().and_then(|there| folder.make_room(&there, overwrite, now));
        if aside.is_err() {
            folder.give_back();
        }
        aside.map(|aside| (folder, aside))
    }

    /// Takes a folder for going on in it: locks it, and removes what a killed process was about to write.
    ///
    /// Whether there is a checkpoint to go on from is for the caller to look, now that nobody else changes it. A folder
    /// whose run never saved one is as good as new, and so is one that is not there, which is made.
    ///
    /// # Errors
    /// Kind `Config` where another process has the folder, where it cannot be written, or where it has a `best.pt` but
    /// no `last.pt`; kind `Run` where the disk fails. Each leaves everything as it was.
    pub fn reopen(work_dir: &Path) -> Result<Self> {
        let folder = Self::take(work_dir)?;
        let usable = match (folder.last().exists(), folder.best().exists()) {
            (false, true) => Err(no_last(work_dir)),
            _ => folder.try_writing(),
        };
        if usable.is_err() {
            folder.give_back();
        }
        usable.map(|()| folder)
    }

    /// Makes the folder where it is missing, and locks it.
    fn take(work_dir: &Path) -> Result<Self> {
        let mut tries_left = 3;
        loop {
            let made = make_folder(work_dir).map_err(|error| unusable(work_dir, &error))?;
            let error = match RunLock::acquire(work_dir) {
                Ok(lock) => return Ok(Self { path: work_dir.to_owned(), made, lock }),
                Err(Refused::Held(owner)) => in_use(work_dir, owner.as_ref()),
                // A run that was given up took the folder away in between.
                Err(Refused::Failed(error)) if error.kind() == io::ErrorKind::NotFound && tries_left > 0 => {
                    tries_left -= 1;
                    continue;
                }
                Err(Refused::Failed(error)) => unusable(work_dir, &error),
            };
            remove_folders(&made);
            return Err(error);
        }
    }

    /// Refuses the run that is `there`, or moves it aside.
    fn make_room(&self, there: &Entries, overwrite: bool, now: SystemTime) -> Result<Option<PathBuf>> {
        let work_dir = &self.path;
        if !overwrite && let Some(first) = there.run.first() {
            return Err(holds_a_run(work_dir, &there.run, first));
        }
        self.try_writing()?;
        if there.run.is_empty() {
            return Ok(None);
        }
        let names: Vec<&String> = there.run.iter().chain(&there.tensorboard).collect();
        let aside = move_aside(work_dir, &names, now).map_err(|error| {
            Error::io(Kind::Run, "cannot move aside the run in", work_dir, &error)
                .hint("move it by hand, or choose another run.work_dir")
        })?;
        Ok(Some(aside))
    }

    /// Finds out now, rather than after the first epoch, whether files can be written. First goes what a killed process
    /// was about to write: it may be what fills the disk.
    fn try_writing(&self) -> Result<()> {
        for name in RUN_FILES.into_iter().chain([PROBE]) {
            // What cannot be removed is named when the file is written.
            let _ = files::remove_file(&self.path.join(format!("{name}.tmp")));
        }
        let probe = self.path.join(PROBE);
        // A file system without room for one block accepts the name and fails here.
        let written = write_atomically(&probe, &[0; 4096]).and_then(|()| files::remove_file(&probe));
        written.map_err(|error| unusable(&self.path, &error))
    }

    /// Removes the lock and the folders that were made for the run, as far as they are empty.
    fn give_back(&self) {
        self.lock.remove_file();
        remove_folders(&self.made);
    }

    /// Writes `config.toml` and `config.json`: the resolved configuration, twice.
    ///
    /// # Errors
    /// Kind `Run` where a file cannot be written.
    pub fn write_config(&self, toml: &str, json: &Value) -> Result<()> {
        self.write("config.toml", toml.as_bytes())?;
        self.write_json("config.json", json)
    }

    /// Writes `run.json`: where the run came from; beside it `git.diff` where the experiment file's repository
    /// has changes since its commit. Git that is absent, slow or not in use there gives `null`. A resumed run adds
    /// itself to what is there.
    ///
    /// # Errors
    /// Kind `Run` where a file cannot be written.
    pub fn write_run_json(&self, info: &RunInfo) -> Result<()> {
        let state = info.experiment.as_deref().and_then(|file| git::state(folder_of(file)));
        let started =
            jiff::Timestamp::try_from(info.started).map_or(Value::Null, |time| json!(format!("{time:.0}")));
        let start = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "command_line": info.command_line,
            "started": started,
            "device": info.device,
            "threads": info.threads,
            "host": host_name(),
            "git": state.as_ref().map(git_json),
        });
        let mut files = self.event_files(|_| ());
        let earlier = info.resumed.as_ref().and_then(|resumed| Some((resumed, self.run_json()?)));
        let mut whole = if let Some((resumed, mut whole)) = earlier {
            add_resumption(&mut whole, start, resumed);
            whole
        } else {
            let diff = state.as_ref().and_then(|state| state.diff.as_ref());
            if let Some(diff) = diff.filter(|diff| !diff.is_empty()) {
                self.write(DIFF, diff)?;
            }
            files.clear();
            start
        };
        files.extend(info.event_file.as_deref().map(real_path));
        whole[WORK_DIR] = real_path(&self.path).to_string_lossy().into();
        whole[EVENT_FILES] = files.iter().map(|file| file.to_string_lossy()).collect();
        self.write_json(RUN_JSON, &whole)
    }

    /// The TensorBoard files of all starts of this run. In a folder that was moved or copied, those inside it are its
    /// own; those elsewhere may be the original's and are left out. `warn` is told of that, and of a `run.json` that
    /// cannot be read.
    #[must_use]
    pub fn event_files(&self, warn: impl Fn(&str)) -> Vec<PathBuf> {
        const DOUBLES: &str = "TensorBoard's curves may have some points twice";
        let whole = self.run_json().unwrap_or_default();
        let path = self.path.join(RUN_JSON);
        if whole.is_null() && path.exists() {
            warn(&format!("{} cannot be read; {DOUBLES}", path.display()));
        }
        let here = real_path(&self.path);
        let was = whole[WORK_DIR].as_str().map_or_else(|| here.clone(), PathBuf::from);
        let is_event_file =
            |file: &PathBuf| file.file_name().and_then(|name| name.to_str()).is_some_and(is_event_file);
        let listed = whole[EVENT_FILES].as_array().into_iter().flatten().filter_map(Value::as_str);
        let listed: Vec<PathBuf> = listed.map(PathBuf::from).filter(is_event_file).collect();
        if was == here {
            return listed;
        }
        let inside = |file: &PathBuf| file.strip_prefix(&was).ok().map(|inside| here.join(inside));
        let ours: Vec<PathBuf> = listed.iter().filter_map(inside).collect();
        if ours.len() < listed.len() {
            let (now, was) = (self.path.display(), was.display());
            warn(&format!("{now} was {was} before: event files elsewhere are left as they are; {DOUBLES}"));
        }
        ours
    }

    /// What is another in `c` than in the `config.toml` that is here, of all that decides no number.
    #[must_use]
    pub fn place_changes(&self, c: &Experiment) -> Vec<Change> {
        let old = fs::read_to_string(self.path.join("config.toml")).unwrap_or_default();
        if old.is_empty() {
            return Vec::new();
        }
        changes(&old, c, |field| !field.decides_numbers()).unwrap_or_default()
    }

    fn run_json(&self) -> Option<Value> {
        let text = fs::read_to_string(self.path.join(RUN_JSON)).ok()?;
        serde_json::from_str(&text).ok().filter(Value::is_object)
    }

    /// Whether `work_dir` holds a run.
    ///
    /// # Errors
    /// Kind `Config` or `Run` where it cannot be looked into.
    pub fn holds_run(work_dir: &Path) -> Result<bool> {
        match run_entries(work_dir) {
            Ok(there) => Ok(!there.run.is_empty()),
            Err(error) => Err(unusable(work_dir, &error)),
        }
    }

    /// Takes back what this run has written, and the folders made for it, unless there is a checkpoint. A run that
    /// its data stops before its first epoch is over leaves nothing then that would stand in the next one's way.
    pub fn abandon(&self) {
        if self.last().exists() {
            return;
        }
        for name in RUN_FILES {
            // What cannot be removed is named when the next run claims the folder.
            let _ = files::remove_file(&self.path.join(name));
        }
        self.give_back();
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checkpoint of the last epoch.
    #[must_use]
    pub fn last(&self) -> PathBuf {
        self.path.join(LAST)
    }

    /// The checkpoint of the epoch with the lowest validation loss.
    #[must_use]
    pub fn best(&self) -> PathBuf {
        self.path.join(BEST)
    }

    /// The metrics, a line an epoch.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    fn write_json(&self, name: &str, json: &Value) -> Result<()> {
        self.write(name, format!("{json:#}\n").as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.path.join(name);
        write_atomically(&path, bytes)
            .map_err(|error| Error::io(Kind::Run, "cannot write", &path, &error).hint(cure(&error)))
    }
}

/// A path without links, so that it is the same from everywhere.
fn real_path(path: &Path) -> PathBuf {
    fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// The name of this machine, if it has one.
#[must_use]
pub fn host_name() -> Option<String> {
    let kernel = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let asked = || {
        let soon = Instant::now() + Duration::from_secs(1);
        git::output(Command::new("hostname"), 1024, soon)
            .map(|(name, _)| String::from_utf8_lossy(&name).into_owned())
    };
    kernel.or_else(asked).map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// Adds a later start to what `run.json` says of the first.
fn add_resumption(whole: &mut Value, mut start: Value, resumed: &Resumed) {
    let change = |c: &Change| json!({ "key": c.key, "from": c.from, "to": c.to });
    start["epoch"] = resumed.epoch.into();
    start["step"] = resumed.step.into();
    start["changes"] = resumed.changes.iter().map(change).collect();
    match &mut whole["resumed"] {
        Value::Array(earlier) => earlier.push(start),
        other => *other = json!([start]),
    }
}

fn git_json(state: &git::GitState) -> Value {
    let dirty = state.diff.as_ref().map(|diff| !diff.is_empty());
    let mut json = json!({ "commit": state.commit, "branch": state.branch, "dirty": dirty });
    let note = match (dirty, state.truncated) {
        (None, _) => Some("git took too long to list the changes".to_owned()),
        (_, true) => Some(format!("{DIFF} is cut off at {} MiB", git::DIFF_CAP >> 20)),
        _ => None,
    };
    if let Some(note) = note {
        json["note"] = note.into();
    }
    json
}

/// What a folder holds of a run.
#[derive(Debug, Default)]
struct Entries {
    /// Names out of [`RUN_FILES`], in their order.
    run: Vec<String>,
    /// Folders with nothing but TensorBoard's event files, and such files.
    tensorboard: Vec<String>,
}

fn run_entries(work_dir: &Path) -> io::Result<Entries> {
    let listing = match fs::read_dir(work_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Entries::default()),
        listing => listing?,
    };
    let mut names = BTreeSet::new();
    for entry in listing {
        // No name of ours is anything but UTF-8.
        names.extend(entry?.file_name().into_string());
    }
    let run = RUN_FILES.into_iter().filter(|name| names.contains(*name)).map(str::to_owned).collect();
    let tensorboard =
        names.into_iter().filter(|name| is_event_file(name) || is_event_folder(&work_dir.join(name)));
    Ok(Entries { run, tensorboard: tensorboard.collect() })
}

fn is_event_file(name: &str) -> bool {
    name.starts_with("events.out.tfevents.")
}

fn is_event_folder(path: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(path).map(Iterator::peekable) else { return false };
    entries.peek().is_some()
        && entries.all(|entry| entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(is_event_file)))
}

fn holds_a_run(work_dir: &Path, names: &[String], first: &str) -> Error {
    let when = fs::metadata(work_dir.join(first)).and_then(|file| file.modified()).ok();
    let when = when.and_then(|time| jiff::Timestamp::try_from(time).ok());
    let when = when.map(|time| format!(" of {}", time.strftime("%Y-%m-%d %H:%M UTC"))).unwrap_or_default();
    Error::config(format!(
        "run.work_dir {} holds a run already: {}{when}",
        work_dir.display(),
        names.join(", ")
    ))
    .hint(
        "choose another run.work_dir, go on with this one (--resume), or give --overwrite, which moves it aside under a dated \
         name",
    )
}

/// A run that has its best checkpoint only: starting anew would replace it in the first epoch.
fn no_last(work_dir: &Path) -> Error {
    Error::config(format!("run.work_dir {} has a {BEST} but no {LAST} to go on from", work_dir.display())).hint(
        "put last.pt back, copy best.pt to last.pt to go on from its epoch, choose another run.work_dir, or give \
         --overwrite, which moves the run aside under a dated name",
    )
}

fn in_use(work_dir: &Path, owner: Option<&Owner>) -> Error {
    let by = owner.map_or_else(
        || "another process writes to it".to_owned(),
        |Owner { pid, host, started, .. }| {
            format!("process {pid} on {host} has been writing to it since {started}")
        },
    );
    let stop = owner.map(|owner| format!(" (kill {} on {})", owner.pid, owner.host)).unwrap_or_default();
    Error::config(format!("run.work_dir {} is in use: {by}", work_dir.display()))
        .hint(format!("wait until that process ends, stop it{stop}, or choose another run.work_dir"))
}

/// Creates `path` and its parents; returns the folders that were not there, the outermost first.
fn make_folder(path: &Path) -> io::Result<Vec<PathBuf>> {
    let missing: Vec<&Path> =
        path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    let mut made = Vec::new();
    for folder in missing.into_iter().rev() {
        match files::create_dir(folder) {
            Ok(()) => made.push(folder.to_owned()),
            // Another process was faster, or the path goes through `..`.
            Err(_) if folder.is_dir() => {}
            Err(error) => {
                remove_folders(&made);
                return Err(error);
            }
        }
    }
    if path.is_dir() { Ok(made) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

/// Removes folders of [`make_folder`] that nobody has put anything into.
fn remove_folders(made: &[PathBuf]) {
    for folder in made.iter().rev() {
        let _ = files::remove_dir(folder);
    }
}

/// Moves the entries `names` of `work_dir` into a new folder beside it, all or none of them.
fn move_aside(work_dir: &Path, names: &[&String], now: SystemTime) -> io::Result<PathBuf> {
    // Beside what a link points to, so that the old run stays on its disk; inside a folder that has no
    // side of its own, such as a mount point: a move to another file system would be a copy.
    let target = fs::canonicalize(work_dir)?;
    let outside = fresh_folder(&target, now).and_then(|aside| move_entries(&target, &aside, names));
    outside.or_else(|_| move_entries(&target, &fresh_folder(&target.join("run"), now)?, names))
}

/// Creates `<path>.<date and time>`, numbered where that is taken.
fn fresh_folder(path: &Path, now: SystemTime) -> io::Result<PathBuf> {
    let now = jiff::Timestamp::try_from(now).map_err(io::Error::other)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    for attempt in 1.. {
        let mut dated = name.to_owned();
        dated.push(format!(".{}", now.strftime("%Y%m%d-%H%M%S")));
        if attempt > 1 {
            dated.push(format!("-{attempt}"));
        }
        let folder = path.with_file_name(dated);
        match files::create_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| folder),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Moves entries from one folder to another one that is new, and back again if one cannot be moved.
fn move_entries(from: &Path, to: &Path, names: &[&String]) -> io::Result<PathBuf> {
    for (done, name) in names.iter().enumerate() {
        if let Err(error) = files::rename(&from.join(name), &to.join(name)) {
            for name in names.iter().take(done) {
                files::rename(&to.join(name), &from.join(name))?;
            }
            let _ = files::remove_dir(to);
            return Err(error);
        }
    }
    Ok(to.to_owned())
}

/// A `work_dir` that no run can use. What the user can put right with another path is a matter of configuration.
fn unusable(work_dir: &Path, error: &io::Error) -> Error {
    use io::ErrorKind as E;
    let kind = match error.kind() {
        E::StorageFull | E::QuotaExceeded | E::Other | E::Interrupted => Kind::Run,
        _ => Kind::Config,
    };
    let what = match error.kind() {
        E::NotADirectory | E::AlreadyExists if work_dir.exists() => "is a file, not a folder",
        E::NotADirectory => "lies below a file",
        _ => "cannot be written",
    };
    let what = format!("run.work_dir {} {what}", work_dir.display());
    Error::new(kind, Problem::new(what).io(error).hint(cure(error)))
}

/// What to do when writing into a run's folder fails.
fn cure(error: &io::Error) -> &'static str {
    use io::ErrorKind as E;
    match error.kind() {
        E::StorageFull | E::QuotaExceeded => {
            "make room on that disk, or choose a run.work_dir on another one"
        }
        E::PermissionDenied => "change the folder's permissions, or choose another run.work_dir",
        _ => "choose another run.work_dir",
    }
}
