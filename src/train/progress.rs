//! Where a run stands: all of it is in a checkpoint, beside weights and moments.

use std::path::Path;

use crate::checkpoint::Value;
use crate::observe::run_folder::Best;
use crate::{Error, Result};

/// More epochs than any run has, and few enough to count up to.
const MOST_EPOCHS: usize = 10_000_000;

/// Where a run stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Epochs that are done.
    pub epoch: usize,
    /// Training steps that are done, over all epochs; those that were left out count.
    pub step: u64,
    /// The validation loss of the last epoch that is done; infinite before the first.
    pub val_loss: f64,
    /// The lowest validation loss of any epoch; infinite before the first.
    pub best_val_loss: f64,
    /// The epoch that it is of (from 1); 0 before the first, or where an older checkpoint does not tell.
    pub best_epoch: usize,
    /// Its validation accuracy; `None` before the first, or where an older checkpoint does not tell.
    pub best_val_accuracy: Option<f64>,
    /// Steps in a row, up to the last one, that were left out because their numbers were not finite.
    pub nonfinite_in_a_row: usize,
    /// The epoch that has begun.
    pub partial: Partial,
}

/// What an epoch has so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Partial {
    /// Training batches that are done.
    pub batches: usize,
    /// Mean of the training loss.
    pub loss: Mean,
    /// Mean of the gradient's norm over the steps.
    pub grad_norm: Mean,
    /// Steps that were left out because their numbers were not finite.
    pub skipped_steps: usize,
}

/// A weighted mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mean {
    /// The sum of weight times value.
    pub sum: f64,
    /// The sum of the weights.
    pub weight: usize,
}

impl Mean {
    /// Adds `value`, which stands for `weight` clips or steps.
    pub fn add(&mut self, value: f64, weight: usize) {
        self.sum += value * weight as f64;
        self.weight += weight;
    }

    /// The mean; NaN of nothing.
    #[must_use]
    pub fn get(&self) -> f64 {
        self.sum / self.weight as f64
    }

    fn value(self) -> Value<'static> {
        Value::dict([("sum", Value::Float(self.sum)), ("weight", Value::whole(self.weight as u64))])
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            epoch: 0,
            step: 0,
            val_loss: f64::INFINITY,
            best_val_loss: f64::INFINITY,
            best_epoch: 0,
            best_val_accuracy: None,
            nonfinite_in_a_row: 0,
            partial: Partial::default(),
        }
    }
}

impl Progress {
    /// The best epoch so far, where one is known.
    #[must_use]
    pub fn best(&self) -> Option<Best> {
        let is_known = self.best_epoch > 0 && self.best_val_loss.is_finite();
        is_known.then_some(Best {
            epoch: self.best_epoch,
            val_loss: self.best_val_loss,
            val_accuracy: self.best_val_accuracy,
        })
    }

    /// As if no epoch had been the best: the next one is.
    pub fn forget_best(&mut self) {
        (self.best_val_loss, self.best_epoch, self.best_val_accuracy) = (f64::INFINITY, 0, None);
    }

    /// The keys that a checkpoint has for it, beside `epoch` and `val_loss`.
    #[must_use]
    pub fn to_values(&self) -> Vec<(String, Value<'static>)> {
        let partial = Value::dict([
            ("batches", Value::whole(self.partial.batches as u64)),
            ("loss", self.partial.loss.value()),
            ("grad_norm", self.partial.grad_norm.value()),
            ("skipped_steps", Value::whole(self.partial.skipped_steps as u64)),
        ]);
        let accuracy = self.best_val_accuracy.map(Value::Float);
        let accuracy = accuracy.map(|accuracy| ("best_val_accuracy".to_owned(), accuracy));
        let mut values = vec![
            ("step".to_owned(), Value::whole(self.step)),
            ("best_val_loss".to_owned(), Value::Float(self.best_val_loss)),
            ("best_epoch".to_owned(), Value::whole(self.best_epoch as u64)),
        ];
        values.extend(accuracy);
        values.extend([
            ("nonfinite_in_a_row".to_owned(), Value::whole(self.nonfinite_in_a_row as u64)),
            ("position".to_owned(), partial),
        ]);
        values
    }

    /// Reads it from a checkpoint's `extra` keys. Format 1 has no `position`: it was written between epochs only.
    ///
    /// # Errors
    /// A data error that names `path` and the key that is missing or no number.
    pub fn from_values(
        path: &Path,
        epoch: usize,
        val_loss: f64,
        extra: &[(String, Value<'static>)],
    ) -> Result<Self> {
        let find = |key: &str| extra.iter().find(|(name, _)| name == key).map(|(_, value)| value);
        let keys = Keys { path };
        let partial = match find("position") {
            None => Partial::default(),
            Some(position) => Partial {
                batches: keys.count("position.batches", position.get("batches"))?,
                loss: keys.mean("position.loss", position.get("loss"))?,
                grad_norm: keys.mean("position.grad_norm", position.get("grad_norm"))?,
                skipped_steps: keys.count("position.skipped_steps", position.get("skipped_steps"))?,
            },
        };
        let or_zero = |key| find(key).map_or(Ok(0), |value| keys.count(key, Some(value)));
        let progress = Self {
            epoch,
            step: keys.count("step", find("step"))? as u64,
            val_loss,
            best_val_loss: keys.number("best_val_loss", find("best_val_loss"))?,
            best_epoch: or_zero("best_epoch")?,
            best_val_accuracy: find("best_val_accuracy")
                .map(|value| keys.number("best_val_accuracy", Some(value)))
                .transpose()?,
            nonfinite_in_a_row: or_zero("nonfinite_in_a_row")?,
            partial,
        };
        progress.possible(&keys).map(|()| progress)
    }

    /// Refuses what no run can have come to, before anything counts up to it.
    fn possible(&self, keys: &Keys) -> Result<()> {
        let Self { epoch, step, best_epoch, .. } = *self;
        let impossible = |what: String| Err(keys.impossible(&what));
        if epoch > MOST_EPOCHS || epoch as u64 > step {
            return impossible(format!("{epoch} epochs in {step} steps"));
        }
        if best_epoch > epoch {
            return impossible(format!("the best epoch is {best_epoch}, and {epoch} are done"));
        }
        if self.best_val_loss.is_nan() {
            return impossible("the lowest validation loss is NaN".to_owned());
        }
        Ok(())
    }
}

/// Reads numbers, naming their file and key where they are none.
struct Keys<'p> {
    path: &'p Path,
}

impl Keys<'_> {
    fn count(&self, key: &str, value: Option<&Value>) -> Result<usize> {
        let count = value.and_then(Value::as_int).and_then(|n| usize::try_from(n).ok());
        count.ok_or_else(|| self.wrong(key, "a count", value))
    }

    fn number(&self, key: &str, value: Option<&Value>) -> Result<f64> {
        value.and_then(Value::as_number).ok_or_else(|| self.wrong(key, "a number", value))
    }

    fn mean(&self, key: &str, value: Option<&Value>) -> Result<Mean> {
        let part = |name: &str| value.and_then(|value| value.get(name));
        Ok(Mean {
            sum: self.number(&format!("{key}.sum"), part("sum"))?,
            weight: self.count(&format!("{key}.weight"), part("weight"))?,
        })
    }

    fn impossible(&self, what: &str) -> Error {
        Error::data(format!("{} cannot be where a run stands: {what}", self.path.display()))
            .hint("the file was damaged or forged: take another checkpoint")
    }

    fn wrong(&self, key: &str, what: &str, value: Option<&Value>) -> Error {
        let has = value.map_or_else(|| "nothing".to_owned(), Value::describe);
        Error::data(format!("{}: `{key}` should be {what}, not {has}", self.path.display())).hint(
            "a run resumes from a checkpoint that slt-run wrote; --init-from takes the weights of any other",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress() -> Progress {
        Progress {
            epoch: 3,
            step: 77,
            val_loss: 0.25,
            best_val_loss: 0.125,
            best_epoch: 2,
            best_val_accuracy: Some(0.75),
            nonfinite_in_a_row: 1,
            partial: Partial {
                batches: 9,
                loss: Mean { sum: 1.0 / 3.0, weight: 17 },
                grad_norm: Mean { sum: 2.5, weight: 8 },
                skipped_steps: 1,
            },
        }
    }

    #[test]
    fn it_survives_a_checkpoint() {
        let read = Progress::from_values(Path::new("last.pt"), 3, 0.25, &progress().to_values());
        assert_eq!(read.unwrap(), progress());
    }

    #[test]
    fn format_1_stands_between_epochs() {
        let mut values = progress().to_values();
        values.retain(|(key, _)| key == "step" || key == "best_val_loss");
        let read = Progress::from_values(Path::new("last.pt"), 3, 0.25, &values).unwrap();
        assert_eq!((read.step, read.best_val_loss, read.best_epoch), (77, 0.125, 0));
        assert_eq!(read.partial, Partial::default());
    }

    #[test]
    fn where_no_run_can_stand_is_refused() {
        let values = progress().to_values();
        let read = |epoch: usize, values: &[(String, Value<'static>)]| {
            Progress::from_values(Path::new("last.pt"), epoch, 0.25, values).unwrap_err().to_string()
        };
        let text = read(78, &values);
        assert!(text.contains("last.pt cannot be where a run stands: 78 epochs in 77 steps"), "{text}");
        assert!(read(1, &values).contains("the best epoch is 2, and 1 are done"));
        let mut endless = values.clone();
        endless[0].1 = Value::Int(i64::MAX);
        assert!(read(i64::MAX as usize, &endless).contains("epochs in"));
        let mut nan = values;
        nan[1].1 = Value::Float(f64::NAN);
        assert!(read(3, &nan).contains("the lowest validation loss is NaN"));
    }

    #[test]
    fn what_is_no_number_is_named() {
        let mut values = progress().to_values();
        values.retain(|(key, _)| key != "step");
        let error = Progress::from_values(Path::new("last.pt"), 3, 0.25, &values).unwrap_err();
        assert!(error.to_string().contains("last.pt: `step` should be a count, not nothing"), "{error}");
        let mut values = progress().to_values();
        values.last_mut().unwrap().1 = Value::dict([("batches", Value::Int(-1))]);
        let error = Progress::from_values(Path::new("last.pt"), 3, 0.25, &values).unwrap_err();
        assert!(error.to_string().contains("`position.batches` should be a count"), "{error}");
    }
}
