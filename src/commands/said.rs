//! What a run says of itself, from its first line to its last.

use std::time::Duration;

use super::text::{about, amount};
use crate::config::{BestMetric, Experiment, Override, Resolved};
use crate::data::Dataset;
use crate::error::count;
use crate::observe::reporter::Reporter;
use crate::observe::run_folder::RunFolder;
use crate::train::TrainingState;
use crate::train::stop::Signal;

pub(super) fn summary(
    c: &Experiment,
    dataset: &Dataset,
    texts: &str,
    state: &TrainingState,
    device: &str,
    threads: usize,
) -> String {
    format!(
        "{} to train on and {} to validate on, {texts}; {} parameters on {device}, {}; the run goes to {}",
        count(dataset.train.len(), "clip"),
        dataset.val.len(),
        amount(state.engine.host().parameters().elements("")),
        count(threads, "thread"),
        c.run.work_dir.display(),
    )
}

/// What the last line of a run says.
pub(super) fn finished(time: &str, state: &TrainingState, folder: &RunFolder) -> String {
    let best = best_epoch(state, ": the best is");
    let early = stopped_early(state).map(|why| format!("; {why}")).unwrap_or_default();
    format!("trained {time}{best}{early}; the run is in {}", folder.path().display())
}

/// Why the run ends before its last epoch, where it does by itself.
pub(super) fn stopped_early(state: &TrainingState) -> Option<String> {
    let epochs = state.is_stopped_early().filter(|_| state.progress.epoch < state.epochs)?;
    let (metric, epochs) = (state.best_metric, count(epochs, "epoch"));
    Some(format!("stopped early: {epochs} without a better {metric} (optimization.early_stopping)"))
}

pub(super) fn stopped(signal: Signal, state: &TrainingState, folder: &RunFolder) -> String {
    let (name, progress) = (signal.name(), &state.progress);
    if !folder.has_last() {
        return format!("stopped by {name} before the first step: there is nothing to save");
    }
    format!(
        "stopped by {name} after step {} (epoch {}): saved in {}; the same command with --resume goes on from there{}",
        progress.step,
        progress.epoch + usize::from(progress.partial.batches > 0),
        folder.last().display(),
        best_epoch(state, "; the best so far is"),
    )
}

pub(super) fn nothing_left(state: &TrainingState) -> String {
    let best = best_epoch(state, "; the best is");
    if let Some(why) = stopped_early(state) {
        return format!("{why}: there is nothing to go on with{best}");
    }
    let all = match state.epochs {
        1 => "the only epoch is".to_owned(),
        epochs => format!("all {epochs} epochs are"),
    };
    format!("{all} done already: there is nothing to go on with{best}")
}

pub(super) fn where_it_stands(state: &TrainingState, steps: usize, folder: &RunFolder) -> String {
    let (progress, last) = (&state.progress, folder.last());
    let within = match progress.partial.batches {
        0 => String::new(),
        batches => format!(" and {batches} of {steps} batches of the next"),
    };
    format!("going on from {}, after {}{within}", last.display(), count(progress.epoch, "epoch"))
}

/// How many epochs took how long: those after the first `from` in `time`, and all of them where there were earlier ones, of
/// which the metrics have the seconds.
pub(super) fn epochs_in(epochs: usize, from: usize, earlier_seconds: Option<f64>, time: Duration) -> String {
    let (here, first) = (about(time), from + 1);
    let part = match first {
        1 => return format!("{} in {here}", count(epochs, "epoch")),
        _ if first == epochs => format!("epoch {first} in {here}"),
        _ => format!("epochs {first} to {epochs} in {here}"),
    };
    match earlier_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(earlier) => format!("{part}, all {epochs} in {}", about(earlier.saturating_add(time))),
        None => part,
    }
}

/// `start` and the best epoch so far; nothing where there is none.
pub(super) fn best_epoch(state: &TrainingState, start: &str) -> String {
    let Some(best) = state.progress.known_best() else { return String::new() };
    let accuracy = best.val_accuracy.map(|accuracy| format!(" - val_accuracy={accuracy:.4}"));
    let metric = match state.best_metric {
        BestMetric::ValLoss | BestMetric::ValAccuracy => String::new(),
        metric => format!(" - {metric}={:.2}", best.value),
    };
    format!(
        "{start} epoch {} - val_loss={:.4}{}{metric}",
        best.epoch,
        best.val_loss,
        accuracy.unwrap_or_default()
    )
}

pub(super) fn go_on_from(folder: &RunFolder) -> String {
    format!("the last checkpoint is {}; --resume goes on from it", folder.last().display())
}

/// Says which values are not the experiment files'. Where there are no files, the command line is the experiment.
pub(super) fn say_overrides(resolved: &Resolved, reporter: &Reporter) {
    if resolved.files.is_empty() {
        return;
    }
    for Override { key, value, origin } in &resolved.overrides {
        reporter.info(&format!("override: {key} = {value} ({origin})"));
    }
}
