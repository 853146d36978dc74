//! The folder of a run: who may write into it, the configuration that it keeps, and where the run came from.

mod aside;
mod contents;
mod epochs;
mod git;
mod lock;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::config::{Change, Experiment, Override, changes};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::files::{self, Folder, folder_of};
use contents::FolderContents;
use lock::{Owner, Refused, RunLock};

/// The checkpoint of the last epoch.
pub const LAST: &str = "last.pt";
/// The checkpoint of the best epoch.
pub const BEST: &str = "best.pt";
pub(super) const METRICS: &str = "metrics.jsonl";
const CONFIG: &str = "config.toml";
const DIFF: &str = "git.diff";
/// The tokenizer of a run that translates.
pub const TOKENIZER: &str = "tokenizer.json";
/// The folder of what a run was evaluated by.
pub const EVALUATION: &str = "evaluation";
const RUN_JSON: &str = "run.json";
/// The key of `run.json` that lists the TensorBoard files.
const EVENT_FILES: &str = "event_files";
/// The key of `run.json` that says where the folder was when it was written.
const WORK_DIR: &str = "work_dir";
/// The key of `run.json` that says whether the run has ever had a checkpoint.
const SAVED: &str = "saved";
/// The key of `run.json` that says how the run ended; `null` while it runs, and where it was killed.
const ENDED: &str = "ended";
/// The key of `run.json` that tells the best epoch.
const BEST_EPOCH: &str = "best";

/// The files that a run leaves, `run.json` first: it makes the others a run's.
const RUN_FILES: [&str; 8] = [RUN_JSON, LAST, BEST, METRICS, CONFIG, "config.json", TOKENIZER, DIFF];

/// What proves that a folder can be written; it never stays.
const PROBE: &str = ".slt-run.probe";

/// More than any experiment takes.
const MOST_CONFIG_BYTES: u64 = 1 << 20;

/// A folder that this process alone may write into, for as long as this value lives.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// The folder itself: all writing goes through it, wherever it is by then.
    folder: Folder,
    /// It and those of its parents that were not there before, the outermost first.
    made: Vec<PathBuf>,
    lock: RunLock,
    /// What `run.json` says; `null` before there is one.
    record: Mutex<Value>,
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
    /// The experiment file, whose folder is asked for its git commit; without one it is the working directory.
    pub experiment: Option<PathBuf>,
    /// All files that the experiment was read from.
    pub files: Vec<PathBuf>,
    /// The values that do not come from these files, nor are the defaults.
    pub overrides: Vec<Override>,
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
    /// Where the data are now, which are the same.
    pub moved: Vec<Change>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ending {
    /// `finished`, `stopped by SIGTERM`, or the error.
    pub how: String,
    /// When.
    pub at: SystemTime,
    /// Epochs that are done.
    pub epoch: usize,
    /// Training steps that are done.
    pub step: u64,
    /// The best epoch so far.
    pub best: Option<Best>,
}

/// The best epoch, by the experiment's `optimization.best_metric`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    /// From 1; 0 where an older checkpoint does not tell.
    pub epoch: usize,
    /// What it is the best by.
    pub value: f64,
    /// Its validation loss.
    pub val_loss: f64,
    /// Its validation accuracy, 0 to 1; `None` where an older checkpoint does not tell.
    pub val_accuracy: Option<f64>,
}

impl RunFolder {
    /// Makes `work_dir` this run's: creates it, and its parents, where it is not there yet, and locks it.
    ///
    /// A folder that holds a run is refused, unless `overwrite`: then that run's files, its TensorBoard files below the
    /// folder among them, move to `<work_dir>.<YYYYMMDD-HHMMSS>` (`now`, UTC; `-2`, … where that is taken), which is
    /// returned. Files that are no run's stay where they are; those of a run's names are refused.
    ///
    /// # Errors
    /// Kind `Config` where another process has the folder, where it holds a run or cannot be one, kind `Run` where the
    /// disk fails. Each leaves everything as it was.
    pub fn claim(work_dir: &Path, overwrite: bool, now: SystemTime) -> Result<(Self, Option<PathBuf>)> {
        // Before anything is written: a folder that is refused is left alone.
        may_claim(work_dir, &contents(work_dir)?, overwrite)?;
        let folder = Self::take(work_dir)?;
        // Now nobody else changes it.
        let aside = contents(work_dir).and_then(|there| folder.make_room(&there, overwrite, now));
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
    /// Kind `Config` where another process has the folder, where it cannot be written, where it has files that no run
    /// has written, or where its run has had a `last.pt` and has none now; kind `Run` where the disk fails. Each leaves
    /// everything as it was.
    pub fn reopen(work_dir: &Path) -> Result<Self> {
        may_reopen(work_dir, &contents(work_dir)?)?;
        let mut folder = Self::take(work_dir)?;
        let usable = contents(work_dir).and_then(|there| {
            may_reopen(work_dir, &there)?;
            folder.try_writing(there.run())?;
            folder.record = Mutex::new(there.run().cloned().unwrap_or_default());
            Ok(())
        });
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
            let folder = Folder::open(work_dir);
            let locked = folder.map_err(Refused::Failed).and_then(|folder| {
                let lock = RunLock::acquire(&folder)?;
                // Another one may have come in its place; and a run that was given up takes its folder away.
                let gone = || Refused::Failed(io::ErrorKind::NotFound.into());
                folder.is_at(work_dir).then_some((folder, lock)).ok_or_else(gone)
            });
            let error = match locked {
                Ok((folder, lock)) => {
                    let record = Mutex::default();
                    return Ok(Self { path: work_dir.to_owned(), folder, made, lock, record });
                }
                Err(Refused::Held(owner)) => in_use(work_dir, owner.as_ref()),
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
    fn make_room(&self, there: &FolderContents, overwrite: bool, now: SystemTime) -> Result<Option<PathBuf>> {
        let work_dir = &self.path;
        may_claim(work_dir, there, overwrite)?;
        self.try_writing(there.run())?;
        let Some(run) = there.run() else { return Ok(None) };
        let mut entries: Vec<PathBuf> = there.names.iter().map(PathBuf::from).collect();
        let later_diffs = diffs(run).filter(|name| !entries.contains(&PathBuf::from(name)));
        let later_diffs: Vec<PathBuf> =
            later_diffs.filter(|name| self.folder.has(name)).map(PathBuf::from).collect();
        entries.extend(later_diffs);
        entries.extend(work_dir.join(EVALUATION).is_dir().then(|| PathBuf::from(EVALUATION)));
        let here = real_path(work_dir);
        let events = event_files(run, &here).ours;
        // What the event files lie beside stays: it may be another run's.
        let inside =
            events.iter().filter(|file| file.is_file()).filter_map(|file| file.strip_prefix(&here).ok());
        entries.extend(inside.map(Path::to_owned));
        let aside = aside::move_aside(work_dir, &entries, now).map_err(|error| {
            Error::io(ErrorKind::Run, "cannot move aside the run in", work_dir, &error)
                .hint("move it by hand, or choose another run.work_dir")
        })?;
        Ok(Some(aside))
    }

    /// Finds out now, rather than after the first epoch, whether files can be written. First goes what a killed process
    /// was about to write: it may be what fills the disk.
    fn try_writing(&self, run: Option<&Value>) -> Result<()> {
        for name in RUN_FILES.into_iter().chain([PROBE]) {
            // What cannot be removed is named when the file is written.
            let _ = self.folder.remove_leftover_of(name);
        }
        // Version 0.1.0 did not note whether it had saved, and gave its leftovers names that anybody might.
        if run.is_some_and(|run| run[SAVED].is_null()) {
            for name in [LAST, BEST].map(|name| format!("{name}.tmp")) {
                let _ = self.folder.remove_file(name);
            }
        }
        // A file system without room for one block accepts the name and fails here.
        let written = self.folder.write_atomically(PROBE, &[0; 4096]);
        let written = written.and_then(|()| self.folder.remove_file(PROBE));
        written.map_err(|error| unusable(&self.path, &error))
    }

    /// Removes the lock and the folders that were made for the run, as far as they are empty.
    fn give_back(&self) {
        self.lock.remove_file();
        if self.folder.is_at(&self.path) {
            remove_folders(&self.made);
        }
    }

    /// Makes sure that the folder is still this process's.
    ///
    /// # Errors
    /// Kind `Run` where another process has taken its lock, whose file somebody must have removed or replaced.
    pub fn still_held(&self) -> Result<()> {
        match self.lock.ensure() {
            Err(Refused::Held(owner)) => Err(taken_over(&self.path, owner.as_ref())),
            _ => Ok(()),
        }
    }

    /// Makes sure that the run's path still leads to its folder. What was written before this is in the folder itself,
    /// wherever that is.
    ///
    /// # Errors
    /// Kind `Run` where it leads to another one or nowhere.
    pub fn still_there(&self) -> Result<()> {
        if self.folder.is_at(&self.path) {
            return Ok(());
        }
        let (path, here) = (self.path.display(), self.folder.here());
        let what =
            format!("run.work_dir {path} is not this run's folder any more: it was renamed or replaced");
        let error = Error::run(what);
        if here == self.path {
            return Err(error.hint("what the run has saved is in its own folder, wherever that is now"));
        }
        let here = here.display();
        Err(error.hint(format!("the run is saved in {here}: go on with --work-dir {here} --resume")))
    }

    /// Writes `config.toml` and `config.json`: the resolved configuration, twice.
    ///
    /// # Errors
    /// Kind `Run` where a file cannot be written.
    pub fn write_config(&self, toml: &str, json: &Value) -> Result<()> {
        self.write("config.toml", toml.as_bytes())?;
        self.write_json("config.json", json)
    }

    /// Writes `tokenizer.json`, unless it is there and the same.
    ///
    /// # Errors
    /// Kind `Run` where it cannot be written.
    pub fn write_tokenizer(&self, json: &str) -> Result<()> {
        let is_there =
            self.folder.read(TOKENIZER, json.len() as u64).is_ok_and(|there| there == json.as_bytes());
        if is_there { Ok(()) } else { self.write(TOKENIZER, json.as_bytes()) }
    }

    /// Writes `run.json`: where the run came from; beside it `git.diff` where the repository of the experiment file, or
    /// of the working directory where there is none, has changes since its commit, experiment files that git does not
    /// know among them. Git that is absent, slow or not in use there gives `null`. A resumed run adds itself to what is
    /// there; changes that are new by then go to `git-2.diff`, and so on.
    ///
    /// This comes first of all that a run writes: it makes the folder the run's.
    ///
    /// # Errors
    /// Kind `Run` where a file cannot be written.
    pub fn write_run_json(&self, info: &RunInfo) -> Result<()> {
        let repository = info.experiment.as_deref().map_or(Path::new("."), folder_of);
        let state = git::state(repository, &info.files);
        let mut start = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "command_line": info.command_line,
            "started": timestamp(info.started),
            "device": info.device,
            "threads": info.threads,
            "host": host_name(),
            "overrides": info.overrides.iter().map(override_json).collect::<Value>(),
            "working_directory": std::env::current_dir().ok().map(|dir| dir.to_string_lossy().into_owned()),
            "git": state.as_ref().map(git_json),
        });
        let earlier = self.record().clone();
        let diff = state.and_then(|state| state.diff).filter(|diff| !diff.is_empty());
        let kept = diff.map(|diff| self.place_for_diff(&earlier, diff));
        if let Some((name, _)) = &kept {
            start["git"]["diff"] = name.as_str().into();
        }
        let mut files = event_files(&earlier, &real_path(&self.path)).ours;
        let mut whole = match &info.resumed {
            Some(resumed) if earlier.is_object() => {
                let mut whole = earlier;
                start["after"] = whole[ENDED].take();
                add_resumption(&mut whole, start, resumed);
                whole
            }
            _ => {
                files.clear();
                start[BEST_EPOCH] = Value::Null;
                start
            }
        };
        whole[ENDED] = Value::Null;
        whole[SAVED] = (whole[SAVED] == true || self.has_last()).into();
        whole[WORK_DIR] = real_path(&self.path).to_string_lossy().into();
        whole[EVENT_FILES] = files.iter().map(|file| file.to_string_lossy()).collect();
        self.write_record(whole)?;
        match kept {
            Some((name, Some(diff))) => self.write(&name, &diff),
            _ => Ok(()),
        }
    }

    /// The name under which a diff is kept, and the diff itself where it is not there yet.
    fn place_for_diff(&self, earlier: &Value, diff: Vec<u8>) -> (String, Option<Vec<u8>>) {
        let is_kept = |name: &&str| self.folder.read(name, diff.len() as u64).is_ok_and(|kept| kept == diff);
        if let Some(name) = diffs(earlier).find(is_kept) {
            return (name.to_owned(), None);
        }
        let numbered = (2..).map(|number| format!("git-{number}.diff"));
        let free = std::iter::once(DIFF.to_owned()).chain(numbered).find(|name| !self.folder.has(name));
        (free.unwrap_or_else(|| DIFF.to_owned()), Some(diff))
    }

    /// Notes the TensorBoard file of this start in `run.json`.
    ///
    /// # Errors
    /// Kind `Run` where it cannot be written.
    pub fn note_event_file(&self, file: &Path) -> Result<()> {
        let mut whole = self.record().clone();
        if let Some(files) = whole[EVENT_FILES].as_array_mut() {
            files.push(real_path(file).to_string_lossy().into());
        }
        self.write_record(whole)
    }

    /// Notes in `run.json` that the run has a checkpoint, the first time.
    ///
    /// # Errors
    /// Kind `Run` where it cannot be written.
    pub fn note_saved(&self) -> Result<()> {
        let mut whole = self.record().clone();
        if !whole.is_object() || whole[SAVED] == true {
            return Ok(());
        }
        whole[SAVED] = true.into();
        self.write_record(whole)
    }

    /// Notes in `run.json` how the run ended.
    ///
    /// # Errors
    /// Kind `Run` where it cannot be written, or where the folder is another process's by now.
    pub fn note_end(&self, end: &Ending) -> Result<()> {
        self.still_held()?;
        let mut whole = self.record().clone();
        whole[ENDED] = json!({
            "how": end.how,
            "at": timestamp(end.at),
            "epoch": end.epoch,
            "step": end.step,
        });
        whole[BEST_EPOCH] = end.best.map_or(Value::Null, |best| {
            json!({
                "epoch": best.epoch,
                "value": best.value,
                "val_loss": best.val_loss,
                "val_accuracy": best.val_accuracy,
            })
        });
        self.write_record(whole)
    }

    fn record(&self) -> MutexGuard<'_, Value> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_record(&self, whole: Value) -> Result<()> {
        self.write_json(RUN_JSON, &whole)?;
        *self.record() = whole;
        Ok(())
    }

    /// The TensorBoard files of all starts of this run. In a folder that was moved or copied, those inside it are its
    /// own; those elsewhere may be the original's and are left out, of which `warn` is told.
    #[must_use]
    pub fn event_files(&self, warn: impl Fn(&str)) -> Vec<PathBuf> {
        let EventFiles { ours, was, others } = event_files(&self.record(), &real_path(&self.path));
        if others > 0 {
            let (now, was) = (self.path.display(), was.display());
            warn(&format!(
                "{now} was {was} before: event files elsewhere are left as they are; TensorBoard's curves may have some \
                 points twice"
            ));
        }
        ours
    }

    /// What is another in `c` than in the `config.toml` that is here, of all that decides no number.
    #[must_use]
    pub fn place_changes(&self, c: &Experiment) -> Vec<Change> {
        let old = self.folder.read(CONFIG, MOST_CONFIG_BYTES).unwrap_or_default();
        let old = String::from_utf8(old).unwrap_or_default();
        if old.is_empty() {
            return Vec::new();
        }
        changes(&old, c, |field| !field.decides_numbers()).unwrap_or_default()
    }

    /// Whether `work_dir` holds a run: whether its `run.json` says so.
    ///
    /// # Errors
    /// Kind `Config` or `Run` where it cannot be looked into.
    pub fn holds_run(work_dir: &Path) -> Result<bool> {
        Ok(contents(work_dir)?.run().is_some())
    }

    /// What a run would be refused for that starts in `work_dir`, or goes on there where it holds a run; but for another
    /// process that has it. Writes nothing.
    ///
    /// # Errors
    /// As [`Self::reopen`].
    pub fn look(work_dir: &Path) -> Result<()> {
        may_reopen(work_dir, &contents(work_dir)?)
    }

    /// Takes back what this run has written, and the folders made for it, unless there is or was a checkpoint. A run
    /// that its data stops before its first epoch is over leaves nothing then that would stand in the next one's way.
    pub fn abandon(&self) {
        let record = self.record().clone();
        if self.has_last() || record[SAVED] == true || self.still_held().is_err() {
            return;
        }
        // What makes the others a run's goes last.
        for name in diffs(&record).chain(RUN_FILES.into_iter().rev()) {
            // What cannot be removed is named when the next run claims the folder.
            let _ = self.folder.remove_file(name);
        }
        self.give_back();
    }

    /// Whether `last.pt` is there.
    #[must_use]
    pub fn has_last(&self) -> bool {
        self.folder.has(LAST)
    }

    /// Whether `best.pt` is there.
    #[must_use]
    pub fn has_best(&self) -> bool {
        self.folder.has(BEST)
    }

    /// The folder itself, for whoever writes into it.
    #[must_use]
    pub fn handle(&self) -> &Folder {
        &self.folder
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checkpoint of the last epoch.
    #[must_use]
    pub fn last(&self) -> PathBuf {
        self.folder.here().join(LAST)
    }

    /// The checkpoint of the best epoch.
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
        let failed = |error: io::Error| {
            Error::io(ErrorKind::Run, "cannot write", &self.path.join(name), &error).hint(cure(&error))
        };
        self.folder.write_atomically(name, bytes).map_err(failed)
    }
}

/// What `work_dir` holds.
fn contents(work_dir: &Path) -> Result<FolderContents> {
    FolderContents::of(work_dir).map_err(|error| unusable(work_dir, &error))
}

fn may_claim(work_dir: &Path, there: &FolderContents, overwrite: bool) -> Result<()> {
    there.refuse_what_is_not_a_run_s(work_dir, overwrite)?;
    if overwrite || there.run().is_none() {
        return Ok(());
    }
    Err(match Folder::open(work_dir).map_err(Refused::Failed).and_then(|folder| lock::look(&folder)) {
        Err(Refused::Held(owner)) => in_use(work_dir, owner.as_ref()),
        _ => holds_a_run(work_dir, &there.names),
    })
}

fn may_reopen(work_dir: &Path, there: &FolderContents) -> Result<()> {
    there.refuse_what_is_not_a_run_s(work_dir, false)?;
    there.refuse_lost_checkpoints(work_dir)
}

/// The TensorBoard files that a `run.json` lists.
struct EventFiles {
    ours: Vec<PathBuf>,
    /// Where the folder was when it was written.
    was: PathBuf,
    /// How many were left out, in a folder that has moved since.
    others: usize,
}

fn event_files(record: &Value, here: &Path) -> EventFiles {
    let was = record[WORK_DIR].as_str().map_or_else(|| here.to_owned(), PathBuf::from);
    let is_event_file =
        |file: &PathBuf| file.file_name().and_then(|name| name.to_str()).is_some_and(is_event_file);
    let listed = record[EVENT_FILES].as_array().into_iter().flatten().filter_map(Value::as_str);
    let listed: Vec<PathBuf> = listed.map(PathBuf::from).filter(is_event_file).collect();
    if was == here {
        return EventFiles { ours: listed, was, others: 0 };
    }
    let inside = |file: &PathBuf| file.strip_prefix(&was).ok().map(|inside| here.join(inside));
    let ours: Vec<PathBuf> = listed.iter().filter_map(inside).collect();
    EventFiles { others: listed.len() - ours.len(), ours, was }
}

/// The names of the diffs that the starts in a `run.json` have left, but for those that can be no diff's.
fn diffs(record: &Value) -> impl Iterator<Item = &str> {
    let later = record["resumed"].as_array().into_iter().flatten();
    let named = std::iter::once(record).chain(later).filter_map(|start| start["git"]["diff"].as_str());
    let is_diff = |name: &&str| {
        let number = name.strip_prefix("git-").and_then(|rest| rest.strip_suffix(".diff"));
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    std::iter::once(DIFF).chain(named.filter(is_diff))
}

fn timestamp(time: SystemTime) -> Value {
    jiff::Timestamp::try_from(time).map_or(Value::Null, |time| json!(format!("{time:.0}")))
}

fn override_json(value: &Override) -> Value {
    json!({ "key": value.key, "value": value.value, "origin": value.origin })
}

/// A path without links, so that it is the same from everywhere.
pub(super) fn real_path(path: &Path) -> PathBuf {
    fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// The name of this machine, if it has one.
#[must_use]
pub fn host_name() -> Option<String> {
    Some(gethostname::gethostname().to_string_lossy().into_owned()).filter(|name| !name.is_empty())
}

/// Adds a later start to what `run.json` says of the first.
fn add_resumption(whole: &mut Value, mut start: Value, resumed: &Resumed) {
    let change = |c: &Change| json!({ "key": c.key, "from": c.from, "to": c.to });
    let moved = |c: &Change| json!({ "key": c.key, "from": c.from, "to": c.to, "moved": true });
    start["epoch"] = resumed.epoch.into();
    start["step"] = resumed.step.into();
    let changes = resumed.changes.iter().map(change);
    start["changes"] = changes.chain(resumed.moved.iter().map(moved)).collect();
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

/// Whether TensorBoard takes a file of this name for events.
fn is_event_file(name: &str) -> bool {
    name.starts_with("events.out.tfevents.")
}

fn holds_a_run(work_dir: &Path, names: &[String]) -> Error {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let checkpoints = names.iter().filter(|name| [LAST, BEST].contains(name));
    let shown: Vec<&str> =
        checkpoints.chain(names.iter().filter(|name| ![LAST, BEST].contains(name))).copied().collect();
    let first = shown.first().copied().unwrap_or(RUN_JSON);
    let when = fs::metadata(work_dir.join(first)).and_then(|file| file.modified()).ok();
    let when = when.and_then(|time| jiff::Timestamp::try_from(time).ok());
    let when = when.map(|time| format!(" of {}", time.strftime("%Y-%m-%d %H:%M UTC"))).unwrap_or_default();
    Error::config(format!(
        "run.work_dir {} holds a run already: {}{when}",
        work_dir.display(),
        shown.join(", ")
    ))
    .hint(
        "choose another run.work_dir, go on with this one (--resume), or give --overwrite, which moves it aside under a dated \
         name",
    )
}

/// The lock was lost while the run went on: nothing more is written.
fn taken_over(work_dir: &Path, owner: Option<&Owner>) -> Error {
    let by = owner.map_or_else(
        || "another process".to_owned(),
        |Owner { pid, host, .. }| format!("process {pid} on {host}"),
    );
    Error::run(format!(
        "run.work_dir {} is {by}'s now: its lock is not this run's any more",
        work_dir.display()
    ))
    .cause("nothing was written over there since")
    .hint(format!("never remove {} while a run lasts", lock::LOCK))
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

/// A `work_dir` that no run can use. What the user can put right with another path is a matter of configuration.
fn unusable(work_dir: &Path, error: &io::Error) -> Error {
    use io::ErrorKind as E;
    let kind = match error.kind() {
        E::StorageFull | E::QuotaExceeded | E::Other | E::Interrupted => ErrorKind::Run,
        _ => ErrorKind::Config,
    };
    let what = match error.kind() {
        E::NotADirectory | E::AlreadyExists if work_dir.exists() => "is a file, not a folder",
        E::NotADirectory => "lies below a file",
        _ => "cannot be written",
    };
    let what = format!("run.work_dir {} {what}", work_dir.display());
    Error::new(kind, Problem::new(what).io(work_dir, error).hint(cure(error)))
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
