//! The network as training sees it: a batch in, loss and gradients out.

use candle_core::{Device, Tensor};

use crate::Result;
use crate::config;
use crate::model::{Classifier, Inputs};
use crate::nn::{Parameters, Pass, loss};
use crate::train::optimizer::in_order;

/// A classifier with its loss, and its graph-free twin for evaluation.
pub struct Network {
    classifier: Classifier,
    evaluator: Classifier,
    label_smoothing: f64,
    device: Device,
}

/// What one batch gave in training.
pub struct Step {
    /// The mean loss over the batch.
    pub loss: f64,
    /// The loss's gradient for each parameter, in order.
    pub gradients: Vec<Tensor>,
}

/// What one batch gave in evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// The mean loss over the batch.
    pub loss: f64,
    /// How many clips' classes were right.
    pub correct: usize,
}

impl Network {
    /// With initial weights drawn from `seed`.
    pub fn new(model: &config::Model, label_smoothing: f64, device: &Device, seed: u64) -> Result<Self> {
        let classifier = Classifier::new(model, device, seed)?;
        let evaluator = classifier.without_graph(model, device)?;
        Ok(Self { classifier, evaluator, label_smoothing, device: device.clone() })
    }

    /// The parameters, in PyTorch's order.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        self.classifier.parameters()
    }

    /// Where it computes.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Forward and backward. `targets` (B) are class indices, u32.
    pub fn train(&self, inputs: &Inputs, targets: &Tensor, pass: &Pass) -> Result<Step> {
        let logits = self.classifier.forward(inputs, pass)?;
        let loss = loss::cross_entropy(&logits, targets, self.label_smoothing)?;
        let gradients = in_order(self.parameters(), &loss.backward()?)?;
        Ok(Step { loss: f64::from(loss.to_scalar::<f32>()?), gradients })
    }

    /// Logits (B, V), without dropout and without a graph.
    pub fn logits(&self, inputs: &Inputs) -> Result<Tensor> {
        Ok(self.evaluator.forward(inputs, &Pass::EVALUATION)?)
    }

    /// The training loss and the number of right classes, without dropout.
    pub fn evaluate(&self, inputs: &Inputs, targets: &Tensor) -> Result<Score> {
        let logits = self.logits(inputs)?;
        let loss = loss::cross_entropy(&logits, targets, self.label_smoothing)?.to_scalar::<f32>()?;
        // Counted on the host: a sum of Candle's u8 comparisons would wrap at 256.
        let right = logits.argmax(1)?.eq(targets)?.to_vec1::<u8>()?;
        Ok(Score { loss: f64::from(loss), correct: right.iter().filter(|&&hit| hit == 1).count() })
    }
}
