//! The network as training sees it: a batch in, loss and gradients out.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};

use crate::config;
use crate::model::{Classifier, Inputs};
use crate::nn::cpu::vit::{Shape, Tape, Workspace};
use crate::nn::{Parameters, Pass, loss};
use crate::{Error, Result};

/// A classifier with its loss, and its graph-free twin for evaluation.
pub struct Network {
    classifier: Classifier,
    evaluator: Classifier,
    label_smoothing: f64,
    device: Device,
    buffers: RefCell<Buffers>,
}

/// What the fused backbones keep from step to step: memory that is mapped anew costs its clearing.
#[derive(Default)]
struct Buffers {
    tapes: Vec<Tape>,
    workspace: Workspace,
}

/// What one batch gave in training.
pub struct Step {
    /// The mean loss over the batch.
    pub loss: f64,
    /// The loss's gradient for each parameter, in order.
    pub gradients: Vec<Tensor>,
    /// How long the forward pass took, to the loss.
    pub forward: Duration,
    /// How long the backward pass took.
    pub backward: Duration,
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
        let (device, buffers) = (device.clone(), RefCell::default());
        Ok(Self { classifier, evaluator, label_smoothing, device, buffers })
    }

    /// The parameters, in PyTorch's order.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        self.classifier.parameters()
    }

    /// The sizes of each of its three backbones.
    #[must_use]
    pub fn backbone_shape(&self) -> Shape {
        self.classifier.backbones()[0].shape()
    }

    /// Where it computes.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Forward and backward. `targets` (B) are class indices, u32.
    pub fn train(&self, inputs: &Inputs, targets: &Tensor, pass: &Pass) -> Result<Step> {
        if self.device.is_cpu() {
            return self.train_fused(inputs, targets, pass);
        }
        let begun = Instant::now();
        let logits = self.classifier.forward(inputs, pass)?;
        let loss = loss::cross_entropy(&logits, targets, self.label_smoothing)?;
        let forward = begun.elapsed();
        let gradients = gradients_of(self.parameters().iter(), &loss.backward()?)?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        Ok(Step { loss, gradients, forward, backward: begun.elapsed().saturating_sub(forward) })
    }

    /// As a graph only from the backbones' features on; the backbones themselves are fused.
    fn train_fused(&self, inputs: &Inputs, targets: &Tensor, pass: &Pass) -> Result<Step> {
        let begun = Instant::now();
        let backbones = self.classifier.backbones();
        let mut buffers = self.buffers.borrow_mut();
        let Buffers { tapes, workspace } = &mut *buffers;
        let images = inputs.images[0].count()?;
        if tapes.first().is_none_or(|tape| tape.images() != images) {
            tapes.clear();
            tapes.extend(backbones.iter().map(|net| Tape::new(&net.shape(), images)));
        }
        let mut features = Vec::new();
        for ((net, images), tape) in backbones.iter().zip(&inputs.images).zip(&mut *tapes) {
            features.push(Var::from_tensor(&net.fused_forward(images, pass, Some(tape))?)?);
        }
        let leaves: Vec<Tensor> = features.iter().map(|var| var.as_tensor().clone()).collect();
        let logits = self.classifier.head(&leaves, inputs, pass)?;
        let loss = loss::cross_entropy(&logits, targets, self.label_smoothing)?;
        let forward = begun.elapsed();
        let store = loss.backward()?;

        let mut parameters = self.parameters().iter();
        let mut gradients = Vec::with_capacity(self.parameters().len());
        for (((net, images), feature), tape) in backbones.iter().zip(&inputs.images).zip(&features).zip(tapes)
        {
            let vars: Vec<&Var> =
                parameters.by_ref().take(net.parameter_count()).map(|(_, var)| var).collect();
            let mut sums: Vec<Vec<f32>> = vars.iter().map(|var| vec![0.0; var.elem_count()]).collect();
            let d_features = gradient(&store, "a backbone's features", feature)?;
            net.fused_backward(images, pass, tape, workspace, &d_features, &mut sums)?;
            for (var, sum) in vars.into_iter().zip(sums) {
                gradients.push(Tensor::from_vec(sum, var.dims(), &self.device)?);
            }
        }
        gradients.extend(gradients_of(parameters, &store)?);
        let loss = f64::from(loss.to_scalar::<f32>()?);
        Ok(Step { loss, gradients, forward, backward: begun.elapsed().saturating_sub(forward) })
    }

    /// Logits (B, V), without dropout and without a graph.
    pub fn logits(&self, inputs: &Inputs) -> Result<Tensor> {
        if !self.device.is_cpu() {
            return Ok(self.evaluator.forward(inputs, &Pass::EVALUATION)?);
        }
        let backbones = self.evaluator.backbones().iter().zip(&inputs.images);
        let features: candle_core::Result<Vec<Tensor>> =
            backbones.map(|(net, images)| net.fused_forward(images, &Pass::EVALUATION, None)).collect();
        Ok(self.evaluator.head(&features?, inputs, &Pass::EVALUATION)?)
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

/// The gradients of `parameters`, in order, out of a backward pass.
fn gradients_of<'a>(
    parameters: impl Iterator<Item = (&'a str, &'a Var)>,
    store: &GradStore,
) -> Result<Vec<Tensor>> {
    parameters.map(|(name, var)| gradient(store, name, var)).collect()
}

fn gradient(store: &GradStore, name: &str, var: &Var) -> Result<Tensor> {
    // Detached: a stored gradient can carry a graph of its own.
    store.get(var).map(Tensor::detach).ok_or_else(|| Error::run(format!("{name} got no gradient")))
}
