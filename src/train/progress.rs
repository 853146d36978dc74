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
    /// The best epoch so far; none before the first.
    pub best: Option<Best>,
    /// Epochs that were done when `best` was last forgotten: it is the best of those after them.
    pub compared_since: usize,
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
            best: None,
            compared_since: 0,
            nonfinite_in_a_row: 0,
            partial: Partial::default(),
        }
    }
}

impl Progress {
    /// The best epoch so far, where it is known which one that is.
    #[must_use]
    pub fn known_best(&self) -> Option<Best> {
        self.best.filter(|best| best.epoch > 0)
    }

    /// Epochs since the best one, or since there was one to be compared with.
    #[must_use]
    pub fn epochs_without_better(&self) -> usize {
        self.epoch - self.best.map_or(0, |best| best.epoch).max(self.compared_since).min(self.epoch)
    }

    /// Forgets the best epoch: the next one is the best so far.
    pub fn forget_best(&mut self) {
        (self.best, self.compared_since) = (None, self.epoch);
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
        let (best, of_best) = (self.best, |key: &str, value| (key.to_owned(), Value::Float(value)));
        let mut values = vec![
            ("step".to_owned(), Value::whole(self.step)),
            of_best("best_val_loss", best.map_or(f64::INFINITY, |best| best.val_loss)),
            ("best_epoch".to_owned(), Value::whole(best.map_or(0, |best| best.epoch) as u64)),
        ];
        values.extend(best.and_then(|best| best.val_accuracy).map(|it| of_best("best_val_accuracy", it)));
        values.extend(best.map(|best| of_best("best_value", best.value)));
        if self.compared_since > 0 {
            values.push(("best_since".to_owned(), Value::whole(self.compared_since as u64)));
        }
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
        let number = |key| find(key).map(|value| keys.number(key, Some(value))).transpose();
        let best_val_loss = keys.number("best_val_loss", find("best_val_loss"))?;
        let best = Best {
            epoch: or_zero("best_epoch")?,
            // Before there was a choice, the lowest loss was the best.
            value: number("best_value")?.unwrap_or(best_val_loss),
            val_loss: best_val_loss,
            val_accuracy: number("best_val_accuracy")?,
        };
        let progress = Self {
            epoch,
            step: keys.count("step", find("step"))? as u64,
            val_loss,
            compared_since: or_zero("best_since")?,
            best: (best.epoch > 0 || best_val_loss != f64::INFINITY).then_some(best),
            nonfinite_in_a_row: or_zero("nonfinite_in_a_row")?,
            partial,
        };
        progress.possible(&keys).map(|()| progress)
    }

    /// Refuses what no run can have come to, before anything counts up to it.
    fn possible(&self, keys: &Keys) -> Result<()> {
        let Self { epoch, step, best, .. } = *self;
        let impossible = |what: String| Err(keys.impossible(&what));
        if epoch > MOST_EPOCHS || epoch as u64 > step {
            return impossible(format!("{epoch} epochs in {step} steps"));
        }
        if let Some(best) = best.filter(|best| best.epoch > epoch) {
            return impossible(format!("the best epoch is {}, and {epoch} are done", best.epoch));
        }
        if best.is_some_and(|best| best.val_loss.is_nan() || best.value.is_nan()) {
            return impossible("the best epoch's loss or figure is NaN".to_owned());
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
            best: Some(Best { epoch: 2, value: 31.5, val_loss: 0.125, val_accuracy: Some(0.75) }),
            compared_since: 1,
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
        let best = Best { epoch: 0, value: 0.125, val_loss: 0.125, val_accuracy: None };
        assert_eq!((read.step, read.best, read.known_best()), (77, Some(best), None));
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
        assert!(read(3, &nan).contains("the best epoch's loss or figure is NaN"));
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
