//! Going on from `last.pt`: what it holds, what has changed since, and putting a trainer where it was.

use std::path::{Path, PathBuf};

use crate::checkpoint::optimizer::{AdamState, SgdState};
use crate::checkpoint::{Checkpoint, TensorData, Value, load};
use crate::config::{Change, Experiment, Field, OptimizerKind, changes};
use crate::data::Dataset;
use crate::error::{Error, Kind, Problem, Result};
use crate::optim::LossScale;
use crate::optim::Moments;
use crate::train::progress::Partial;
use crate::train::state::set_parameters;
use crate::train::{Progress, Trainer};

/// A checkpoint that a run can go on from.
#[derive(Debug)]
pub struct Saved {
    path: PathBuf,
    checkpoint: Checkpoint<'static>,
    progress: Progress,
}

/// What is another than it was when the checkpoint was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What leaves the experiment the same one: how many epochs, on what device, in what chunks.
    pub harmless: Vec<Change>,
    /// What makes it another experiment.
    pub others: Vec<Change>,
}

/// The name under which another dataset is reported as a change.
const DATASET: &str = "the data (ids and texts of both splits)";

/// The name under which other files of the same clips are reported as a change.
const FILES: &str = "the set of frames and poses";

/// What decides which clips the batches of an epoch have: with another one, so many batches are other clips.
const ORDER: [&str; 3] = ["data.batch_size", "run.seed", DATASET];

/// Where the optimizer is named in the experiment.
const OPTIMIZER: &str = "optimization.optimizer";

impl Saved {
    /// Reads the checkpoint at `path`.
    ///
    /// # Errors
    /// A data error that names the file and what is missing or unusable in it.
    pub fn load(path: &Path) -> Result<Self> {
        let value = load(path).map_err(|error| match path.with_file_name("best.pt") {
            best if best.exists() => error.hint(format!(
                "{} may be whole: copy it to {} to go on from its epoch",
                best.display(),
                path.display()
            )),
            _ => error,
        })?;
        let checkpoint = Checkpoint::from_value(path, value)?;
        let progress = Progress::from_values(path, checkpoint.epoch, checkpoint.val_loss, &checkpoint.extra)?;
        Ok(Self { path: path.to_owned(), checkpoint, progress })
    }

    /// Where the run stood.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What differs in `c` from the experiment that the checkpoint is of.
    ///
    /// # Errors
    /// A data error where the checkpoint does not say what it is of.
    pub fn changes(&self, c: &Experiment) -> Result<Changes> {
        let config = self.text("config").ok_or_else(|| {
            Error::data(format!("{} does not say which experiment it is of", self.path.display()))
                .hint("--init-from takes the weights of any checkpoint")
        })?;
        let all = changes(config, c, Field::decides_numbers).map_err(|why| {
            Error::data(format!("{}: `config` cannot be read", self.path.display())).cause(why)
        })?;
        let begun = self.progress.epoch + usize::from(self.progress.partial.batches > 0);
        let enough = c.optimization.epochs >= begun;
        let (harmless, others) = all.into_iter().partition(|change| match change.key.as_str() {
            "optimization.epochs" => enough,
            "optimization.frames_per_chunk" | "optimization.skip_nonfinite_steps" | "run.device" => true,
            _ => false,
        });
        Ok(Changes { harmless, others })
    }

    /// The change of the data, where they have other ids or texts now.
    #[must_use]
    pub fn dataset_change(&self, dataset: &Dataset) -> Option<Change> {
        self.change("dataset", DATASET, dataset.fingerprint())
    }

    /// The change of the clips' files, where some have come or gone: a file that vanished while the run trained must
    /// not come back as zeros. A checkpoint before this was noted has none.
    #[must_use]
    pub fn files_change(&self, dataset: &Dataset) -> Option<Change> {
        self.change("files", FILES, dataset.files_fingerprint())
    }

    fn change(&self, saved: &str, name: &str, to: String) -> Option<Change> {
        let from = self.text(saved).filter(|&from| from != to)?.to_owned();
        Some(Change { key: name.to_owned(), from, to })
    }

    /// Puts `trainer`, which is at its start, where the run stood. `changes` are those that were allowed: a new optimizer
    /// starts without the moments of the old one, and where batches have other clips now, the epoch that had begun begins
    /// anew.
    ///
    /// # Errors
    /// A data error where weights or moments do not fit the model, or where there are more batches behind than an epoch
    /// of `steps` has.
    pub fn restore(mut self, trainer: &mut Trainer, steps: usize, changes: &Changes) -> Result<()> {
        if changes.others.iter().any(|change| ORDER.contains(&change.key.as_str())) {
            self.progress.partial = Partial::default();
        }
        if self.progress.partial.batches > steps {
            let what = format!(
                "{} has {} batches of epoch {} behind it; an epoch has {steps}",
                self.path.display(),
                self.progress.partial.batches,
                self.progress.epoch + 1,
            );
            return Err(Error::data(what).hint("it is of other data or another batch size"));
        }
        set_parameters(&self.path, &self.checkpoint.model, trainer.engine.host().parameters())
            .map_err(|error| misfit(error, !changes.others.is_empty()))?;
        if !changes.others.iter().any(|change| change.key == OPTIMIZER) {
            self.restore_optimizer(trainer)?;
        }
        // The rate of every epoch follows from the first one's, to the bit. There is none after the last.
        for _ in 0..self.progress.epoch.min(trainer.epochs()) {
            trainer.schedule.step();
        }
        if let Some(Value::Dict(clips)) = self.extra("bad_clips") {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            trainer.bad_clips.restore(clips.iter().filter_map(|(id, why)| Some((text(id)?, text(why)?))));
        }
        let chunk = self.extra("frames_per_chunk").and_then(Value::as_int);
        if let Some(chunk) = chunk.and_then(|chunk| usize::try_from(chunk).ok()) {
            trainer.engine.restore_chunk(chunk);
        }
        if let Some(scale) = self.extra("scaler_state") {
            trainer.engine.restore_loss_scale(LossScale::from_value(&self.path, scale)?);
        }
        trainer.progress = self.progress;
        Ok(())
    }

    fn restore_optimizer(&self, trainer: &mut Trainer) -> Result<()> {
        let expected = trainer.engine.host().parameters().shapes();
        let state = &self.checkpoint.optimizer_state;
        let (mut steps, mut all) = (0, Vec::with_capacity(expected.len()));
        match trainer.engine.host().optimizer.kind() {
            OptimizerKind::Sgd => {
                SgdState::from_value(&self.path, state, &expected)?;
                all.resize_with(expected.len(), Moments::default);
            }
            kind => {
                let decoupled = kind == OptimizerKind::AdamW;
                let state = AdamState::from_value(&self.path, state, &expected, decoupled)?;
                for (moments, (name, shape)) in state.moments.iter().zip(&expected) {
                    let zeros = || vec![0.0; shape.iter().product()];
                    let read = |tensor: &TensorData| finite(&self.path, name, tensor);
                    all.push(match moments {
                        None => Moments { exp_avg: zeros(), exp_avg_sq: zeros() },
                        Some(moments) => {
                            steps = moments.step.max(steps);
                            Moments {
                                exp_avg: read(&moments.exp_avg)?,
                                exp_avg_sq: read(&moments.exp_avg_sq)?,
                            }
                        }
                    });
                }
            }
        }
        // PyTorch keeps the count as an f32, which is exact up to 2^24 steps only.
        let exact = self.extra("optimizer_steps").and_then(Value::as_int);
        let steps = exact.and_then(|n| u64::try_from(n).ok()).unwrap_or(steps.max(self.progress.step));
        trainer.engine.host_mut().optimizer.restore(steps, all);
        Ok(())
    }

    fn extra(&self, key: &str) -> Option<&Value<'static>> {
        self.checkpoint.extra.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.extra(key).and_then(Value::as_str)
    }
}

impl Changes {
    /// Refuses what makes it another experiment. `origin` tells where a field's value comes from.
    ///
    /// # Errors
    /// A configuration error that names each change with both values.
    pub fn refuse(&self, path: &Path, origin: impl Fn(&str) -> Option<String>) -> Result<()> {
        let mut problems: Vec<Problem> = self
            .others
            .iter()
            .map(|change| {
                let origin = origin(&change.key).map(|at| format!(" ({at})")).unwrap_or_default();
                let Change { key, from, to } = change;
                Problem::new(format!("{key} was {from} in {} and is {to}{origin} now", path.display()))
            })
            .collect();
        if let Some(last) = problems.last_mut() {
            last.hint = Some(
                "to go on with the same experiment, give it the earlier values; to go on with the new ones, add \
                 --allow-changes; for a new run, choose another run.work_dir"
                    .to_owned(),
            );
        }
        Error::all(Kind::Config, problems)
    }
}

/// Weights that do not fit; where changes were allowed, it has to be said that this is none of them.
fn misfit(error: Error, allowed: bool) -> Error {
    let cure = "no flag resumes with another model: choose another run.work_dir for it";
    if allowed { error.hint(cure) } else { error }
}

fn finite(path: &Path, name: &str, tensor: &TensorData) -> Result<Vec<f32>> {
    let values = tensor.to_f32()?;
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(values),
        Some(value) => {
            let what = format!("{}: `optimizer_state` of {name} holds {value}", path.display());
            Err(Error::data(what).hint("go on from a checkpoint whose training was healthy"))
        }
    }
}
