//! The network as training sees it: a batch in, loss and gradients out.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};

use crate::config;
use crate::model::{Activation, Classifier, Inputs};
use crate::nn::cpu::vit::{Shape, Tape, Workspace};
use crate::nn::{Parameters, Pass, loss};
use crate::{Error, Result};

/// A classifier with its loss, and its graph-free twin for evaluation.
pub struct Network {
    classifier: Classifier,
    evaluator: Classifier,
    label_smoothing: f64,
    device: Device,
    /// Frames of a stream that go through its backbone at a time; `None` = all, without computing anything twice.
    chunk: Option<usize>,
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
        let evaluator = classifier.without_graph(model)?;
        let (device, buffers) = (device.clone(), RefCell::default());
        Ok(Self { classifier, evaluator, label_smoothing, device, chunk: None, buffers })
    }

    /// Lets `chunk` frames of a stream go through its backbone at a time, if not all (`None`): less memory, for a second
    /// forward pass. Losses and gradients are the same but for rounding.
    #[must_use]
    pub fn in_chunks(mut self, chunk: Option<usize>) -> Self {
        self.chunk = chunk;
        self
    }

    /// Frames of a stream that go through its backbone at a time, if not all.
    #[must_use]
    pub fn chunk(&self) -> Option<usize> {
        self.chunk
    }

    /// The network itself.
    #[must_use]
    pub fn classifier(&self) -> &Classifier {
        &self.classifier
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

    /// Forward and backward. `targets` (B) are class indices, u32; `pass.first_row` counts clips.
    ///
    /// As a graph only from the backbones' features to one vector a clip; the backbones themselves are fused. In chunks,
    /// their forward pass keeps nothing and is computed again for each chunk when the gradients come back.
    ///
    /// Memory is highest when the backbones' tapes are full. What can wait comes after them: the gradient of the
    /// classes' weight, and, where the tapes are used but once, the backbones' gradients, which take their place.
    pub fn train(&self, inputs: &Inputs, targets: &Tensor, pass: &Pass) -> Result<Step> {
        let begun = Instant::now();
        let backbones = || self.classifier.backbones().iter().zip(&inputs.images);
        let images_pass = inputs.images_pass(pass)?;
        let images = inputs.images[0].count()?;
        let chunk = self.chunk.filter(|&chunk| chunk < images);
        let mut buffers = self.buffers.borrow_mut();
        let Buffers { tapes, workspace } = &mut *buffers;
        tapes.resize_with(if chunk.is_some() { 1 } else { 3 }, Tape::default);

        let mut features = Vec::new();
        for (i, (net, images)) in backbones().enumerate() {
            let tape = if chunk.is_none() { tapes.get_mut(i) } else { None };
            features.push(Var::from_tensor(&net.fused_forward(images, &images_pass, tape)?)?);
        }
        let leaves: Vec<Tensor> = features.iter().map(|var| var.as_tensor().clone()).collect();
        let mean = self.classifier.mean(&leaves, inputs, pass)?;
        let (vectors, decoder) = (mean.detach(), self.evaluator.decoder());
        let logits = Var::from_tensor(&decoder.classify(&vectors)?)?;
        let loss = loss::cross_entropy(&logits, targets, self.label_smoothing)?;
        let forward = begun.elapsed();
        let d_logits = gradient(&loss.backward()?, "the logits", &logits)?;
        let d_mean = d_logits.matmul(decoder.weight())?;
        // The sum's gradient for `mean` is `d_mean`.
        let store = (mean * d_mean)?.sum_all()?.backward()?;

        let mut parameters = self.parameters().iter();
        let mut gradients = Vec::with_capacity(self.parameters().len());
        for (i, ((net, all), feature)) in backbones().zip(&features).enumerate() {
            let vars: Vec<&Var> =
                parameters.by_ref().take(net.parameter_count()).map(|(_, var)| var).collect();
            let mut sums = vec![Vec::new(); vars.len()];
            let d_features = gradient(&store, "a backbone's features", feature)?;
            let size = chunk.unwrap_or(images);
            for start in (0..images).step_by(size) {
                let count = size.min(images - start);
                let part = all.narrow(start, count)?;
                let pass = Pass { first_row: images_pass.first_row + start, ..images_pass };
                let tape = &mut tapes[if chunk.is_some() { 0 } else { i }];
                if chunk.is_some() {
                    net.fused_forward(&part, &pass, Some(tape))?;
                }
                let d_features = d_features.narrow(0, start, count)?;
                let free = chunk.is_none();
                net.fused_backward(&part, &pass, tape, free, workspace, &d_features, &mut sums)?;
            }
            for (var, sum) in vars.into_iter().zip(sums) {
                gradients.push(Tensor::from_vec(sum, var.dims(), &self.device)?);
            }
        }
        let between = self.parameters().len().saturating_sub(gradients.len() + 2);
        gradients.extend(gradients_of(parameters.take(between), &store)?);
        if let (None, Some(tape)) = (chunk, tapes.last_mut()) {
            tape.free(decoder.weight().elem_count());
        }
        gradients.extend([d_logits.t()?.matmul(&vectors)?, d_logits.sum(0)?]);
        let loss = f64::from(loss.to_scalar::<f32>()?);
        Ok(Step { loss, gradients, forward, backward: begun.elapsed().saturating_sub(forward) })
    }

    /// Logits (B, V), without dropout and without a graph.
    pub fn logits(&self, inputs: &Inputs) -> Result<Tensor> {
        let backbones = self.evaluator.backbones().iter().zip(&inputs.images);
        let features: candle_core::Result<Vec<Tensor>> =
            backbones.map(|(net, images)| net.fused_forward(images, &Pass::EVALUATION, None)).collect();
        Ok(self.evaluator.head(&features?, inputs, &Pass::EVALUATION)?)
    }

    /// How large the modules' outputs are for a batch, without dropout.
    pub fn activations(&self, inputs: &Inputs) -> Result<Vec<Activation>> {
        Ok(self.evaluator.activations(inputs)?)
    }

    /// The training loss and the number of right classes, without dropout.
    pub fn evaluate(&self, inputs: &Inputs, targets: &Tensor) -> Result<Score> {
        let logits = self.logits(inputs)?;
        let loss = loss::cross_entropy(&logits, targets, self.label_smoothing)?.to_scalar::<f32>()?;
        // Counted on the host: a sum of Candle's u8 comparisons would wrap at 256.
        let right = logits.argmax(1)?.eq(targets)?.to_vec1::<u8>()?;
        Ok(Score { loss: f64::from(loss), correct: right.into_iter().map(usize::from).sum() })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Images;
    use candle_core::DType;
    use std::slice::from_ref;

    fn model(frames: usize) -> config::Model {
        config::Model {
            image_size: 16,
            sequence_length: frames,
            projector_dim: 12,
            d_model: 16,
            pose_landmarks: 5,
            projector_dropout: 0.1,
            fusion_dropout: 0.1,
            temporal_nhead: 2,
            temporal_layers: 1,
            temporal_dim_feedforward: 24,
            temporal_dropout: 0.1,
            vocab_size: 31,
            backbone: config::Backbone {
                patch_size: 4,
                embed_dim: 20,
                depth: 2,
                num_heads: 2,
                mlp_ratio: 2.0,
                dropout: 0.2,
                attention_dropout: 0.2,
                stochastic_depth: 0.2,
            },
        }
    }

    fn batch(frames: usize) -> candle_core::Result<(Inputs, Tensor)> {
        let cpu = &Device::Cpu;
        let images = || {
            let bytes: Vec<u8> = (0..2 * frames * 16 * 16 * 3).map(|i| (i * i % 251) as u8).collect();
            Tensor::from_vec(bytes, (2 * frames, 16, 16, 3), cpu).map(Images::Bytes)
        };
        let inputs = Inputs {
            images: [images()?, images()?, images()?],
            pose: Tensor::arange(0f32, (2 * frames * 15) as f32, cpu)?.sin()?.reshape((2, frames, 15))?,
            pad_mask: Tensor::ones((2, frames), DType::U8, cpu)?,
        };
        Ok((inputs, Tensor::new(&[3u32, 7], cpu)?))
    }

    fn step(chunk: Option<usize>, frames: usize) -> Result<(f64, Vec<Vec<f32>>)> {
        let network = Network::new(&model(frames), 0.1, &Device::Cpu, 3)?.in_chunks(chunk);
        let (inputs, targets) = batch(frames)?;
        // Twice, so that buffers from one step serve the next.
        network.train(&inputs, &targets, &Pass::training(1, 4))?;
        let step = network.train(&inputs, &targets, &Pass::training(1, 5))?;
        let gradients: candle_core::Result<_> =
            step.gradients.iter().map(|g| g.flatten_all()?.to_vec1::<f32>()).collect();
        Ok((step.loss, gradients?))
    }

    fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
        let pairs = a.iter().flatten().zip(b.iter().flatten());
        let (mut difference, mut norm) = (0.0, 0.0);
        for (&a, &b) in pairs {
            difference += f64::from(a - b).powi(2);
            norm += f64::from(b).powi(2);
        }
        (difference / norm).sqrt()
    }

    #[test]
    fn chunks_change_nothing() -> Result<()> {
        let (loss, gradients) = step(None, 20)?; // 40 images a stream
        for chunk in [16, 32] {
            assert_eq!((loss, &gradients), (step(Some(chunk), 20)?.0, &step(Some(chunk), 20)?.1), "{chunk}");
        }
        for chunk in [1, 7, 39] {
            let (other, others) = step(Some(chunk), 20)?;
            assert!((other / loss - 1.0).abs() < 1e-5 && distance(&others, &gradients) < 1e-5, "{chunk}");
        }
        Ok(())
    }

    /// The network as one graph of plain operations against the fused ones, with dropout.
    #[test]
    fn the_graph_gives_the_same() -> Result<()> {
        let network = Network::new(&model(6), 0.1, &Device::Cpu, 3)?;
        let (inputs, targets) = batch(6)?;
        let pass = Pass { first_row: 2, ..Pass::training(1, 5) };
        let fused = network.train(&inputs, &targets, &pass)?;
        let logits = network.classifier().forward(&inputs, &pass)?;
        let loss = loss::cross_entropy(&logits, &targets, 0.1)?;
        let store = loss.backward()?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        assert!((fused.loss / loss - 1.0).abs() < 1e-5, "{} {loss}", fused.loss);
        for ((name, var), found) in network.parameters().iter().zip(&fused.gradients) {
            let expected = gradient(&store, name, var)?.flatten_all()?.to_vec1::<f32>()?;
            let found = found.flatten_all()?.to_vec1::<f32>()?;
            assert!(distance(from_ref(&found), from_ref(&expected)) < 1e-4, "{name}");
        }
        Ok(())
    }

    #[test]
    fn threads_change_nothing() -> Result<()> {
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool starts");
            pool.install(|| step(None, 9))
        };
        let one = with(1)?;
        for threads in [2, 3, 5] {
            assert_eq!(with(threads)?, one, "{threads} threads");
        }
        Ok(())
    }
}
