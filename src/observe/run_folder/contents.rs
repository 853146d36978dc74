//! What a folder holds before a run writes to it: whether it is a run's, and whether its files are what they should be.
//!
//! A folder is a run's only where `run.json` says so. Whatever else has one of a run's names is somebody's, and a run
//! does not start there: it would write over it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;

use super::epochs::epoch_of;
use super::lock::LOCK;
use super::{BEST, LAST, METRICS, RUN_FILES, RUN_JSON};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::input;
use crate::observe::metrics;

/// More than the longest life of a run makes of `run.json`.
const MOST_BYTES: u64 = 64 << 20;

/// What a folder holds of a run, by its names.
#[derive(Debug, Default)]
pub(super) struct FolderContents {
    /// Names out of [`RUN_FILES`], in their order, and those of epochs' checkpoints.
    pub names: Vec<String>,
    /// `run.json`.
    pub record: Record,
}

/// What `run.json` is.
#[derive(Debug, Default)]
pub(super) enum Record {
    #[default]
    Missing,
    /// A run's.
    Run(Value),
    /// Not a run's, or it cannot be read; why.
    Foreign(String),
}

impl Record {
    /// Reads the file at `path`.
    fn read(path: &Path) -> Self {
        let text = match input::read(path, MOST_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::Missing,
            Err(error) => return Self::Foreign(error.to_string()),
            Ok(text) => text,
        };
        match serde_json::from_slice::<Value>(&text) {
            Err(error) => Self::Foreign(error.to_string()),
            Ok(record) if record["version"].is_string() && record["command_line"].is_array() => {
                Self::Run(record)
            }
            Ok(_) => Self::Foreign("it has no `version` and `command_line`".to_owned()),
        }
    }
}

impl FolderContents {
    pub fn of(work_dir: &Path) -> io::Result<Self> {
        let listing = match fs::read_dir(work_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            listing => listing?,
        };
        let mut found = BTreeSet::new();
        for entry in listing {
            // No name of ours is anything but UTF-8.
            found.extend(entry?.file_name().into_string());
        }
        let own = RUN_FILES.into_iter().filter(|name| found.contains(*name)).map(str::to_owned);
        let names = own.chain(found.iter().filter(|name| epoch_of(name).is_some()).cloned()).collect();
        Ok(Self { names, record: Record::read(&work_dir.join(RUN_JSON)) })
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|other| other == name)
    }

    /// What its `run.json` says, where it is a run's.
    pub fn run(&self) -> Option<&Value> {
        match &self.record {
            Record::Run(record) => Some(record),
            _ => None,
        }
    }

    /// Refuses files of a run's names that no run has written, and such names that are not of regular files. Links to
    /// regular files are as good; those that lead nowhere may be moved with their run where `moving`.
    ///
    /// # Errors
    /// Kind `Config`, naming them and what to do.
    pub fn refuse_what_is_not_a_run_s(&self, work_dir: &Path, moving: bool) -> Result<()> {
        let odd = RUN_FILES.into_iter().chain([LOCK]);
        let odd: Vec<Problem> = odd.filter_map(|name| odd_file(work_dir, name, moving)).collect();
        Error::all(ErrorKind::Config, odd)?;
        if self.run().is_some() || self.names.is_empty() {
            return Ok(());
        }
        let (folder, names) = (work_dir.display(), self.names.join(", "));
        let mut problem = Problem::new(match &self.names[..] {
            [name] => format!("run.work_dir {folder} has a {name} that no run has written"),
            _ => format!("run.work_dir {folder} has files of a run's names that no run has written: {names}"),
        });
        problem = problem.cause(match &self.record {
            Record::Foreign(why) => {
                format!("{RUN_JSON}, which would say whose they are, is not a run's: {why}")
            }
            _ => format!("there is no {RUN_JSON}, which would say that they are a run's"),
        });
        let hint = format!(
            "choose another run.work_dir, or move them elsewhere: a run would write over them. If they are a run's whose \
             {RUN_JSON} was lost, put {{\"version\": \"{}\", \"command_line\": []}} in its place",
            env!("CARGO_PKG_VERSION")
        );
        Err(Error::new(ErrorKind::Config, problem.hint(hint)))
    }

    /// Refuses to go on with a run whose checkpoints have been there and are gone: to start it anew would cost its
    /// metrics and curves.
    ///
    /// # Errors
    /// Kind `Config`, with the ways on.
    pub fn refuse_lost_checkpoints(&self, work_dir: &Path) -> Result<()> {
        let Some(record) = self.run() else { return Ok(()) };
        if self.has(LAST) {
            return Ok(());
        }
        if self.has(BEST) {
            return Err(no_last(work_dir));
        }
        let epochs = metrics::epochs(&work_dir.join(METRICS));
        // Before this was noted, the metrics are the only witness. A run writes an epoch's line first, so that one line
        // may well be there without a checkpoint; but a start too few costs less than a run.
        if !record["saved"].as_bool().unwrap_or(epochs > 0) {
            return Ok(());
        }
        let problem =
            Problem::new(format!("run.work_dir {} holds a run whose checkpoints are gone", work_dir.display()))
                .cause(format!("there is no {LAST} and no {BEST}; {METRICS} tells of {epochs} epochs"))
                .hint(
                    "put last.pt back (is the disk mounted that it is on?), choose another run.work_dir, or give \
                     --overwrite, which moves what is left of the run aside under a dated name and starts anew",
                );
        Err(Error::new(ErrorKind::Config, problem))
    }
}

/// A run that has its best checkpoint only: starting anew would replace it in the first epoch.
fn no_last(work_dir: &Path) -> Error {
    Error::config(format!("run.work_dir {} has a {BEST} but no {LAST} to go on from", work_dir.display())).hint(
        "put last.pt back, copy best.pt to last.pt to go on from its epoch, choose another run.work_dir, or give \
         --overwrite, which moves the run aside under a dated name",
    )
}

/// What is wrong with the file `name` where it is there and not a regular one.
fn odd_file(work_dir: &Path, name: &str, moving: bool) -> Option<Problem> {
    let path = work_dir.join(name);
    let itself = fs::symlink_metadata(&path).ok()?;
    let shown = format!("run.work_dir {}: {name}", work_dir.display());
    if !itself.is_symlink() {
        let what = input::kind(&itself)?;
        let problem = Problem::new(format!("{shown} is {what}, not a regular file"));
        return Some(problem.hint("move it elsewhere, or choose another run.work_dir"));
    }
    let target = fs::read_link(&path).unwrap_or_default();
    let to = target.display();
    if name == LOCK {
        let problem = Problem::new(format!("{shown} is a link to {to}, not a regular file"));
        return Some(problem.hint("remove the link, or choose another run.work_dir"));
    }
    match fs::metadata(&path) {
        Ok(there) => input::kind(&there).map(|what| {
            Problem::new(format!("{shown} is a link to {what}, not to a regular file"))
                .hint("remove the link, or choose another run.work_dir")
        }),
        Err(_) if moving => None,
        Err(error) => Some(
            Problem::new(format!("{shown} is a link that leads nowhere: {to}")).cause(error).hint(
                "mount the disk that it leads to, or put the file in its place; --overwrite moves the run, links and all, \
                 aside under a dated name and starts anew; or choose another run.work_dir",
            ),
        ),
    }
}
