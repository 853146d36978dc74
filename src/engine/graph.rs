//! What the engines that end in the host's memory share: gradients on their way to the optimizer.

use candle_core::Tensor;

use super::host::Host;
use super::seam::{End, Outcome, Step};
use crate::Result;
use crate::error::Error;
use crate::optim::gradients::{self, Accumulator};

/// The gradients of a step, in the parameters' order.
#[derive(Default)]
pub(super) struct Gradients {
    /// Of a step of one batch.
    single: Vec<Tensor>,
    /// The sums of a step of several.
    sums: Accumulator,
}

impl Gradients {
    /// Adds those of the mean loss of a batch, which weighs `weight`, to those of `step`, which does not count it yet.
    pub fn add(&mut self, gradients: Vec<Tensor>, weight: usize, step: &Step) -> Result<()> {
        if step.is_empty() {
            // What a step that failed has left.
            self.sums.clear()?;
        }
        if step.is_single() {
            self.single = gradients;
            return Ok(());
        }
        self.sums.add(&gradients, weight)
    }

    /// The optimizer's step by the mean gradient, unless a number is not finite.
    pub fn update(
        &mut self,
        host: &mut Host,
        step: &Step,
        lr: f64,
        max_norm: Option<f64>,
    ) -> Result<Outcome> {
        let (sums, weight) = self.sums.sums();
        let (gradients, share) =
            if weight > 0 { (sums, 1.0 / weight as f64) } else { (self.single.as_slice(), 1.0) };
        let (loss, norm) = (step.loss().unwrap_or(f64::NAN), gradients::norm(gradients)? * share);
        let finite = loss.is_finite() && norm.is_finite();
        if finite {
            let factor = max_norm.map_or(1.0, |max_norm| gradients::clip_factor(norm, max_norm));
            host.optimizer.step(host.network.parameters(), gradients, lr, share * factor)?;
        }
        self.single.clear();
        self.sums.clear()?;
        Ok(Outcome { loss, norm, end: if finite { End::Updated } else { End::NotFinite } })
    }

    /// Of the mean of the losses of `step` so far.
    pub fn mean(&self, step: &Step) -> Result<Vec<Vec<f32>>> {
        let (sums, weight) = self.sums.sums();
        let (gradients, share) =
            if step.is_single() { (self.single.as_slice(), 1.0) } else { (sums, 1.0 / weight as f32) };
        let values = |gradient: &Tensor| -> Result<Vec<f32>> {
            let values = gradient.flatten_all()?.to_vec1::<f32>()?;
            Ok(values.into_iter().map(|value| value * share).collect())
        };
        gradients.iter().map(values).collect()
    }
}

/// A value of this engine was asked for with another one's token.
pub(super) fn lost(what: &str) -> Error {
    Error::run(format!("this engine has no {what} to tell: it is another one's"))
}
