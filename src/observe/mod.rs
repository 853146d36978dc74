//! What a run leaves behind and shows while it goes: progress and lines, the run's folder, metrics, TensorBoard.

mod append;
pub mod metrics;
pub mod reporter;
pub mod run_folder;
pub mod tensorboard;

use std::collections::BTreeSet;
use std::path::Path;

use metrics::{EpochMetrics, MetricsLog, TranslationFigures};
use reporter::Reporter;
use run_folder::{METRICS, RunFolder};
use tensorboard::TensorBoard;

use crate::Result;
use crate::data::SkippedClip;

const NO_METRICS: &str = "the run goes on without metrics.jsonl";
const NO_TENSORBOARD: &str = "the run goes on without TensorBoard";
const UNTIL: &str = "until it can be written";

/// Everyone who is told how training goes. None of them can stop it: a log that cannot be written costs a warning.
pub struct Observer<'a> {
    reporter: &'a Reporter,
    metrics: Option<MetricsLog>,
    tensorboard: Option<TensorBoard>,
    /// Whether the last write to each failed: one warning is enough for a disk that is full.
    metrics_failed: bool,
    tensorboard_failed: bool,
}

impl<'a> Observer<'a> {
    /// Opens the metrics of the run in `folder` and, where `tensorboard` names a folder, an event file in it. Warns of
    /// other runs' curves there.
    pub fn open(reporter: &'a Reporter, folder: &RunFolder, tensorboard: Option<&Path>) -> Self {
        let metrics = kept(reporter, NO_METRICS, MetricsLog::open(folder.handle(), METRICS));
        let run = run_folder::real_path(folder.path());
        let tensorboard = tensorboard.and_then(|events| {
            let others = tensorboard::others_in(events, &folder.event_files(|_| ()), &run);
            if !others.is_empty() {
                reporter.warn(&shared_curves(events, &others));
            }
            kept(reporter, NO_TENSORBOARD, TensorBoard::create(events, &run))
        });
        Self { reporter, metrics, tensorboard, metrics_failed: false, tensorboard_failed: false }
    }

    /// The event file of this start, where there is one.
    #[must_use]
    pub fn event_file(&self) -> Option<&Path> {
        self.tensorboard.as_ref().map(TensorBoard::path)
    }

    /// Training begins: `epochs` in all, from `first_epoch`, of `steps` steps.
    pub fn start(&self, epochs: usize, first_epoch: usize, steps: usize) {
        self.reporter.start(epochs, first_epoch, steps);
    }

    /// An epoch (from 1) of `steps` steps begins.
    pub fn begin_epoch(&self, epoch: usize, steps: usize) {
        self.reporter.begin_epoch(epoch, steps);
    }

    /// Step `step` of the epoch, `step_of_run` of all (both from 1), is done.
    pub fn step(&mut self, step: usize, step_of_run: u64, loss: f64, grad_norm: f64, lr: f64, images: usize) {
        self.reporter.step(step, loss, lr, images);
        self.scalars(&[("loss/step", loss), ("grad_norm/step", grad_norm)], step_of_run);
    }

    /// A clip cannot be loaded, and the run goes on without it.
    pub fn bad_clip(&self, clip: &SkippedClip) {
        self.reporter.warn(&format!("{}; the run goes on without the clip {}", clip.problem, clip.id));
    }

    /// The GPU's memory was full, and the run goes on with `frames` of a stream at a time.
    pub fn smaller_chunk(&self, frames: usize) {
        self.reporter.warn(&smaller_chunk(frames));
    }

    /// A step was left out; `why` is a line.
    pub fn left_out(&self, why: &str) {
        self.reporter.warn(&format!("{why}: the step is left out"));
    }

    /// A step's gradient was too large for float16: what it is multiplied by from now on.
    pub fn rescaled(&self, step: u64, scale: f64) {
        self.reporter.verbose(&format!("step {step} is left out: the scale of gradients is {scale} now"));
    }

    /// Validation of `steps` batches begins.
    pub fn begin_validation(&self, steps: usize) {
        self.reporter.begin_validation(steps);
    }

    /// A validation batch is done.
    pub fn validation_step(&self) {
        self.reporter.validation_step();
    }

    /// Everything so far is to outlive a power cut.
    pub fn flush(&mut self) {
        self.tensorboard_does(TensorBoard::flush);
    }

    /// An epoch of `epochs` is done and saved; `best` where it is the best so far.
    pub fn end_epoch(&self, m: &EpochMetrics, epochs: usize, best: bool) {
        self.reporter.end_epoch(&reporter::epoch_line(m, epochs, best));
    }

    /// Writes an epoch's line and points.
    pub fn record_epoch(&mut self, m: &EpochMetrics) {
        let added = self.metrics.as_mut().map(|log| log.add(m));
        tell(self.reporter, added, NO_METRICS, &mut self.metrics_failed);
        let scalars = [
            ("loss/train", m.train_loss),
            ("loss/val", m.val_loss),
            ("accuracy/val", m.val_accuracy),
            ("lr", m.lr),
            ("grad_norm", m.grad_norm),
        ];
        self.scalars(&scalars, m.epoch as u64);
        if let Some(TranslationFigures { val_bleu, val_chrf, val_wer }) = m.translation {
            let figures = [("bleu/val", val_bleu), ("chrf/val", val_chrf), ("wer/val", val_wer)];
            self.scalars(&figures, m.epoch as u64);
        }
        self.tensorboard_does(TensorBoard::flush);
    }

    /// Some translations of an epoch: what was signed, and what the network makes of it.
    pub fn sentences(&mut self, epoch: usize, sentences: &[[String; 2]]) {
        let cell = |text: &String| text.replace('|', "\\|").replace(['\n', '\r'], " ");
        let row = |[reference, hypothesis]: &[String; 2]| {
            format!("| {} | {} |\n", cell(reference), cell(hypothesis))
        };
        let table: String = sentences.iter().map(row).collect();
        let markdown = format!("| reference | hypothesis |\n|---|---|\n{table}");
        let step = i64::try_from(epoch).unwrap_or(i64::MAX);
        self.tensorboard_does(|events| events.add_text("translations/val", &markdown, step));
    }

    /// Training ended before it was worth anything: TensorBoard's events go.
    pub fn discard(&mut self) {
        self.tensorboard.take().into_iter().for_each(TensorBoard::discard);
        self.metrics = None;
    }

    /// What [`Self::discard`] does with the files, for whoever has to do it without this value.
    pub fn discarding(&self) -> impl FnOnce() + Send + 'static {
        let tensorboard = self.tensorboard.as_ref().map(TensorBoard::discarding);
        move || tensorboard.into_iter().for_each(|discard| discard())
    }

    /// Training ended.
    pub fn finish(&mut self) {
        self.tensorboard_does(TensorBoard::flush);
        self.reporter.finish();
    }

    fn scalars(&mut self, scalars: &[(&str, f64)], step: u64) {
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        self.tensorboard_does(|events| {
            scalars.iter().try_for_each(|(tag, value)| events.add_scalar(tag, *value as f32, step))
        });
    }

    fn tensorboard_does(&mut self, work: impl FnOnce(&mut TensorBoard) -> Result<()>) {
        let done = self.tensorboard.as_mut().map(work);
        tell(self.reporter, done, NO_TENSORBOARD, &mut self.tensorboard_failed);
    }
}

/// Takes back what the curves of a run have ahead of the checkpoint that it goes on from, so that they have neither
/// gaps nor doubles. Whoever cannot be taken back is warned about; training goes on.
pub fn rewind(reporter: &Reporter, folder: &RunFolder, epoch: usize, step: u64) {
    const DOUBLES: &str = "some of its points may be there twice";
    kept(reporter, DOUBLES, metrics::rewind(folder.handle(), METRICS, epoch));
    for file in &folder.event_files(|warning| reporter.warn(warning)) {
        kept(reporter, DOUBLES, tensorboard::rewind(file, epoch, step));
    }
}

/// What to say where the curves of a run land beside those of `others`.
fn shared_curves(folder: &Path, others: &BTreeSet<String>) -> String {
    const SHOWN: usize = 3;
    let names = others.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let more = match others.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{} has the curves of {names}{more}: TensorBoard shows them and this run's as one (data.tensorboard)",
        folder.display()
    )
}

/// What to say where a GPU's memory turned out to be too small for the planned chunk.
#[must_use]
pub fn smaller_chunk(frames: usize) -> String {
    format!(
        "the GPU's memory was full: from here on, a stream's frames go through its backbone {frames} at a time; \
         optimization.frames_per_chunk = {frames} begins with that"
    )
}

/// Warns about the first of several failures in a row.
fn tell(reporter: &Reporter, done: Option<Result<()>>, consequence: &str, failed: &mut bool) {
    match done {
        Some(Err(error)) if !*failed => {
            warn(reporter, &format!("{consequence} {UNTIL}"), &error);
            *failed = true;
        }
        Some(Ok(())) => *failed = false,
        _ => {}
    }
}

fn kept<T>(reporter: &Reporter, consequence: &str, result: Result<T>) -> Option<T> {
    result.map_err(|error| warn(reporter, consequence, &error)).ok()
}

fn warn(reporter: &Reporter, consequence: &str, error: &crate::Error) {
    for problem in &error.problems {
        reporter.warn(&format!("{}; {consequence}", problem.line()));
    }
}
