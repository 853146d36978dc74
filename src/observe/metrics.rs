//! `metrics.jsonl`: a line of JSON an epoch, for people with `jq` and pandas.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::append::AppendFile;
use crate::error::{Error, ErrorKind, Result};
use crate::files::Folder;
use crate::input;

/// What one epoch gave. JSON has no NaN or infinity: such a number is written as `null`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EpochMetrics {
    /// From 1.
    pub epoch: usize,
    /// Mean over the training clips.
    pub train_loss: f64,
    /// Mean over the validation clips.
    pub val_loss: f64,
    /// Share of what was to be predicted of the validation clips that has the highest logit, 0 to 1: classes of the stub,
    /// tokens of the text decoder, which is told those before.
    pub val_accuracy: f64,
    /// The figures of the validation clips' translations, in the epochs that translate them.
    #[serde(flatten)]
    pub translation: Option<TranslationFigures>,
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

/// Figures of translations while a run trains, each from 0 to 100, but for `val_wer`, which may be more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TranslationFigures {
    /// Corpus BLEU-4, tokenized as `13a`.
    pub val_bleu: f64,
    /// Corpus chrF2.
    pub val_chrf: f64,
    /// Word error rate; the lower the better.
    pub val_wer: f64,
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
    /// Opens `name` in `folder` for adding lines, making it where it is missing.
    ///
    /// # Errors
    ///
    /// A run error that names the path.
    pub fn open(folder: &Folder, name: &str) -> Result<Self> {
        let path = folder.path().join(name);
        let file = AppendFile::open(folder, name, false)
            .map_err(|e| Error::io(ErrorKind::Run, "cannot open", &path, &e))?;
        Ok(Self { file, pending: String::new(), path })
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
        .map_err(|e| Error::io(ErrorKind::Run, "cannot write", &self.path, &e))
    }
}

/// More than the metrics of any run take.
const MOST_BYTES: u64 = 1 << 30;

/// Removes from the file `name` in `folder` the lines of epochs after `epoch`, and what a killed process left of a
/// line. Lines that a run has not written stay.
///
/// # Errors
///
/// A run error that names the path; the file is as it was.
pub fn rewind(folder: &Folder, name: &str, epoch: usize) -> Result<()> {
    let failed = |error: &io::Error| {
        Error::io(ErrorKind::Run, "cannot take back lines of", &folder.path().join(name), error)
    };
    let text = match folder.read(name, MOST_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|error| failed(&error))?,
    };
    let is_kept = |line: &&[u8]| match epoch_of(line) {
        Some(of) => of <= epoch as u64,
        None => !is_torn(line),
    };
    let kept: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').filter(is_kept).collect();
    let mut kept = kept.concat();
    // Some editors leave the last newline out, and the next line must not join that one.
    if kept.last().is_some_and(|byte| *byte != b'\n') {
        kept.push(b'\n');
    }
    if kept == text { Ok(()) } else { folder.write_atomically(name, &kept).map_err(|error| failed(&error)) }
}

/// How many epochs the file at `path` tells of.
#[must_use]
pub fn epochs(path: &Path) -> usize {
    let text = input::read(path, MOST_BYTES).unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter(|line| epoch_of(line).is_some()).count()
}

/// The epoch of a line that a run has written; `None` for any other.
fn epoch_of(line: &[u8]) -> Option<u64> {
    let line: serde_json::Value = serde_json::from_slice(line).ok()?;
    // A person's line may well speak of an epoch, too.
    line.get("train_loss").and(line.get("val_loss")).and(line["epoch"].as_u64())
}

/// Whether this is how a line of a run begins, but not a whole one: a process was killed while it wrote.
fn is_torn(line: &[u8]) -> bool {
    const BEGINNING: &[u8] = b"{\"epoch\":";
    let begins = line.starts_with(BEGINNING) || BEGINNING.starts_with(line);
    !line.ends_with(b"\n") && begins && serde_json::from_slice::<serde_json::Value>(line).is_err()
}

/// The wall-clock seconds of the first `epochs` epochs that the file at `path` tells of, as far as it does; a resumed
/// epoch's are those of what was left of it. `None` where one of them is missing.
#[must_use]
pub fn seconds(path: &Path, epochs: usize) -> Option<f64> {
    let text = input::read(path, MOST_BYTES).ok()?;
    let of_line = |line: &[u8]| {
        let line: serde_json::Value = serde_json::from_slice(line).ok()?;
        Some((usize::try_from(line["epoch"].as_u64()?).ok()?, line["seconds"].as_f64()?))
    };
    let all: BTreeMap<usize, f64> = text.split(|byte| *byte == b'\n').filter_map(of_line).collect();
    (1..=epochs).map(|epoch| all.get(&epoch).copied()).sum()
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
            translation: None,
            lr: 3e-4,
            grad_norm: 1.25,
            skipped_steps: 0,
            bad_clips: vec!["x".to_owned()],
            seconds: 1.0,
            images_per_second: 100.0,
            data_wait_seconds: 0.0,
        };
        MetricsLog::open(&Folder::open(folder.path()).unwrap(), "metrics.jsonl")
            .unwrap()
            .add(&metrics)
            .unwrap();
        MetricsLog::open(&Folder::open(folder.path()).unwrap(), "metrics.jsonl")
            .unwrap()
            .add(&EpochMetrics {
                epoch: 2,
                translation: Some(TranslationFigures { val_bleu: 12.5, val_chrf: 25.0, val_wer: 50.0 }),
                ..metrics
            })
            .unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let first = "{\"epoch\":1,\"train_loss\":2.5,\"val_loss\":null,\"val_accuracy\":0.75,\"lr\":0.0003,\
                     \"grad_norm\":1.25,\"skipped_steps\":0,\"bad_clips\":[\"x\"],\"seconds\":1.0,\"images_per_second\":100.0,\"data_wait_seconds\":0.0}\n";
        assert!(text.starts_with(first), "{text}");
        let second = text.lines().nth(1).unwrap();
        let figures = "\"val_accuracy\":0.75,\"val_bleu\":12.5,\"val_chrf\":25.0,\"val_wer\":50.0,\"lr\"";
        assert!(text.lines().count() == 2 && second.contains(figures), "{second}");
    }

    /// A run's lines of these epochs.
    fn lines(epochs: &[u64]) -> String {
        let line = |of: &u64| format!("{{\"epoch\":{of},\"train_loss\":2.5,\"val_loss\":null}}\n");
        epochs.iter().map(line).collect::<Vec<_>>().concat()
    }

    fn rewound(text: &str, epoch: usize) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, text).unwrap();
        rewind(&Folder::open(folder.path()).unwrap(), "metrics.jsonl", epoch).unwrap();
        std::fs::read_to_string(&path).unwrap()
    }

    #[test]
    fn later_epochs_and_torn_lines_are_taken_back() {
        for torn in ["", "{", "{\"epo", "{\"epoch\":2", "{\"epoch\":4,\"train_loss\":1.0"] {
            assert_eq!(rewound(&(lines(&[1, 2, 3]) + torn), 2), lines(&[1, 2]), "{torn}");
        }
        assert_eq!(rewound(&lines(&[1, 2]), 0), "");
        let folder = tempfile::tempdir().unwrap();
        rewind(&Folder::open(folder.path()).unwrap(), "none", 2).unwrap();
        assert_eq!(epochs(&folder.path().join("none")), 0);
    }

    #[test]
    fn a_whole_line_without_a_newline_stays() {
        let text = lines(&[1, 2]);
        assert_eq!(rewound(text.trim_end(), 2), text);
    }

    #[test]
    fn what_a_person_added_stays() {
        let notes = ["# a warmer room", "{\"epoch\":3,\"note\":\"odd\"}", "", "{\"note\":1}", "epoch 9"];
        let [a, b, c, d, e] = notes;
        let text = format!("{a}\n{}{b}\n{c}\n{}{d}\n{e}", lines(&[1]), lines(&[2, 3]));
        assert_eq!(rewound(&text, 1), format!("{a}\n{}{b}\n{c}\n{d}\n{e}\n", lines(&[1])));
        assert_eq!(rewound("a {", 1), "a {\n");
    }

    #[test]
    fn seconds_of_the_first_epochs_are_added_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let text =
            "{\"epoch\":1,\"seconds\":1.5}\nnote\n{\"epoch\":2,\"seconds\":2}\n{\"epoch\":4,\"seconds\":9}\n";
        std::fs::write(&path, text).unwrap();
        assert_eq!(
            [0, 1, 2, 3].map(|epochs| seconds(&path, epochs)),
            [Some(0.0), Some(1.5), Some(3.5), None]
        );
        assert_eq!(seconds(&folder.path().join("none"), 1), None);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        std::fs::create_dir(&gone).unwrap();
        let open = Folder::open(&gone).unwrap();
        std::fs::remove_dir(&gone).unwrap();
        let error = MetricsLog::open(&open, "metrics.jsonl").unwrap_err();
        assert!(error.to_string().contains("gone/metrics.jsonl"), "{error}");
    }
}
