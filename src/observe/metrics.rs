//! `metrics.jsonl`: a line of JSON an epoch, for people with `jq` and pandas.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::append::AppendFile;
use crate::error::{Error, Kind, Result};
use crate::files::write_atomically;

/// What one epoch gave. JSON has no NaN or infinity: such a number is written as `null`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EpochMetrics {
    /// From 1.
    pub epoch: usize,
    /// Mean over the training clips.
    pub train_loss: f64,
    /// Mean over the validation clips.
    pub val_loss: f64,
    /// Share of the validation clips whose class has the highest logit, 0 to 1.
    pub val_accuracy: f64,
    /// The learning rate during the epoch.
    pub lr: f64,
    /// Mean over the training steps of the norm of all gradients together, before it is cut.
    pub grad_norm: f64,
    /// Training steps that were left out because their loss or gradient was not finite.
    pub skipped_steps: usize,
    /// The clips that the run has met so far of which a file could not be read.
    pub bad_clips: Vec<String>,
    /// Wall-clock time of the epoch, validation included; of a resumed one, of what was left of it.
    pub seconds: f64,
    /// Images through the backbones a second, in training.
    pub images_per_second: f64,
    /// How long training waited for batches.
    pub data_wait_seconds: f64,
}

/// The open file.
#[derive(Debug)]
pub struct MetricsLog {
    file: AppendFile,
    /// Lines that could not be written yet.
    pending: String,
    path: PathBuf,
}

impl MetricsLog {
    /// Opens `path` for adding lines, making it where it is missing.
    ///
    /// # Errors
    ///
    /// A run error that names the path.
    pub fn open(path: &Path) -> Result<Self> {
        let file =
            AppendFile::open(path, false).map_err(|e| Error::io(Kind::Run, "cannot open", path, &e))?;
        Ok(Self { file, pending: String::new(), path: path.to_owned() })
    }

    /// Adds a line in one write, so that a reader never sees half of one. A line that cannot be written is kept for
    /// the next call.
    ///
    /// # Errors
    ///
    /// A run error that names the path; the lines before are whole.
    pub fn add(&mut self, metrics: &EpochMetrics) -> Result<()> {
        let line = serde_json::to_string(metrics).map_err(io::Error::other);
        line.and_then(|line| {
            self.pending.extend([&line, "\n"]);
            self.file.add(self.pending.as_bytes())?;
            self.pending.clear();
            self.file.sync()
        })
        .map_err(|e| Error::io(Kind::Run, "cannot write", &self.path, &e))
    }
}

/// Removes from the file at `path` the lines of epochs after `epoch`, and what a killed process left of a line.
///
/// # Errors
///
/// A run error that names the path; the file is as it was.
pub fn rewind(path: &Path, epoch: usize) -> Result<()> {
    let failed = |error: &io::Error| Error::io(Kind::Run, "cannot take back lines of", path, error);
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|error| failed(&error))?,
    };
    let is_kept = |line: &&[u8]| {
        let line: Option<serde_json::Value> = serde_json::from_slice(line).ok();
        line.is_some_and(|line| line["epoch"].as_u64().is_some_and(|of| of <= epoch as u64))
    };
    let kept: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').filter(is_kept).collect();
    let mut kept = kept.concat();
    // Some editors leave the last newline out, and the next line must not join that one.
    if kept.last().is_some_and(|byte| *byte != b'\n') {
        kept.push(b'\n');
    }
    if kept == text { Ok(()) } else { write_atomically(path, &kept).map_err(|error| failed(&error)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let metrics = EpochMetrics {
            epoch: 1,
            train_loss: 2.5,
            val_loss: f64::NAN,
            val_accuracy: 0.75,
            lr: 3e-4,
            grad_norm: 1.25,
            skipped_steps: 0,
            bad_clips: vec!["x".to_owned()],
            seconds: 1.0,
            images_per_second: 100.0,
            data_wait_seconds: 0.0,
        };
        MetricsLog::open(&path).unwrap().add(&metrics).unwrap();
        MetricsLog::open(&path).unwrap().add(&EpochMetrics { epoch: 2, ..metrics }).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let first = "{\"epoch\":1,\"train_loss\":2.5,\"val_loss\":null,\"val_accuracy\":0.75,\"lr\":0.0003,\
                     \"grad_norm\":1.25,\"skipped_steps\":0,\"bad_clips\":[\"x\"],\"seconds\":1.0,\"images_per_second\":100.0,\"data_wait_seconds\":0.0}\n";
        assert!(text.starts_with(first), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn later_epochs_and_torn_lines_are_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"epoch\":1}\n{\"epoch\":2}\n{\"epoch\":3}\n{\"epoch\":2").unwrap();
        rewind(&path, 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"epoch\":1}\n{\"epoch\":2}\n");
        rewind(&path, 0).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
        rewind(&folder.path().join("none"), 2).unwrap();
    }

    #[test]
    fn a_whole_line_without_a_newline_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"epoch\":1}\n{\"epoch\":2}").unwrap();
        rewind(&path, 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"epoch\":1}\n{\"epoch\":2}\n");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = MetricsLog::open(&folder.path().join("gone/metrics.jsonl")).unwrap_err();
        assert!(error.to_string().contains("gone/metrics.jsonl"), "{error}");
    }
}
