//! The gradients that training uses, of all parameters, at sizes that no vector or tile divides: against the same
//! network as plain Candle operations, and against finite differences of the loss.

use candle_core::{DType, Device, Tensor};
use slt_run::Result;
use slt_run::config::{Backbone, Model};
use slt_run::model::{Classifier, Inputs};
use slt_run::nn::{Images, Parameters, Pass, loss};
use slt_run::train::Network;

const SEED: u64 = 11;
const SMOOTHING: f64 = 0.1;

/// The sizes of a network and its batch.
#[derive(Clone, Copy)]
struct Case {
    clips: usize,
    frames: usize,
    image: usize,
    patch: usize,
    /// Of the backbones: heads, and each head's width.
    heads: (usize, usize),
    depth: usize,
    /// Of the temporal encoder: heads, each head's width, the hidden layer's width.
    temporal: (usize, usize, usize),
    projector: usize,
    classes: usize,
    dropout: f64,
    /// Whether the images come as bytes.
    bytes: bool,
}

/// One clip of one frame of one patch, one class token beside it, and widths of 1 where there can be.
const SMALLEST: Case = Case {
    clips: 1,
    frames: 1,
    image: 4,
    patch: 4,
    heads: (1, 3),
    depth: 1,
    temporal: (1, 3, 1),
    projector: 1,
    classes: 2,
    dropout: 0.0,
    bytes: true,
};

const CASES: [Case; 4] = [
    SMALLEST,
    // Five images, so that a group and a vector are left in part.
    Case {
        clips: 5,
        image: 8,
        heads: (1, 17),
        depth: 2,
        temporal: (1, 17, 33),
        projector: 5,
        classes: 17,
        bytes: false,
        ..SMALLEST
    },
    // Padding, several heads, dropout at each place.
    Case {
        clips: 2,
        frames: 3,
        image: 12,
        heads: (3, 11),
        depth: 2,
        temporal: (3, 7, 17),
        projector: 9,
        classes: 33,
        dropout: 0.2,
        ..SMALLEST
    },
    // More images than the weights' gradients take at a time.
    Case { clips: 3, frames: 7, heads: (2, 8), temporal: (2, 8, 16), projector: 16, classes: 65, ..SMALLEST },
];

impl Case {
    fn model(&self) -> Model {
        Model {
            image_size: self.image,
            sequence_length: self.frames,
            projector_dim: self.projector,
            d_model: self.temporal.0 * self.temporal.1,
            pose_landmarks: 1,
            projector_dropout: self.dropout,
            fusion_dropout: self.dropout,
            temporal_nhead: self.temporal.0,
            temporal_layers: 2,
            temporal_dim_feedforward: self.temporal.2,
            temporal_dropout: self.dropout,
            vocab_size: self.classes,
            backbone: Backbone {
                patch_size: self.patch,
                embed_dim: self.heads.0 * self.heads.1,
                depth: self.depth,
                num_heads: self.heads.0,
                mlp_ratio: 1.7,
                dropout: self.dropout,
                attention_dropout: self.dropout,
                stochastic_depth: self.dropout,
            },
        }
    }

    fn batch(&self) -> candle_core::Result<(Inputs, Tensor)> {
        let (cpu, rows) = (&Device::Cpu, self.clips * self.frames);
        let images = |stream: usize| {
            let count = rows * self.image * self.image * 3;
            let bytes: Vec<u8> = (0..count).map(|i| ((i + stream) * (i + 7) % 251) as u8).collect();
            let bytes = Tensor::from_vec(bytes, (rows, self.image, self.image, 3), cpu)?;
            if self.bytes {
                return Ok(Images::Bytes(bytes));
            }
            let floats = bytes.to_dtype(DType::F32)?.permute((0, 3, 1, 2))?.contiguous()?;
            Ok(Images::Normalised(floats.affine(1.0 / 64.0, -2.0)?))
        };
        let images: candle_core::Result<Vec<_>> = (0..3).map(images).collect();
        // Every second clip ends a frame early.
        let valid = |i: usize| u8::from(self.frames == 1 || i % (2 * self.frames) + 1 != self.frames);
        let mask: Vec<u8> = (0..rows).map(valid).collect();
        let targets: Vec<u32> = (0..self.clips).map(|i| (i * 5 + 1) as u32 % self.classes as u32).collect();
        let inputs = Inputs {
            images: images?.try_into().expect("three streams"),
            pose: Tensor::arange(0f32, (rows * 3) as f32, cpu)?.sin()?.reshape((
                self.clips,
                self.frames,
                3,
            ))?,
            pad_mask: Tensor::from_vec(mask, (self.clips, self.frames), cpu)?,
        };
        Ok((inputs, Tensor::from_vec(targets, self.clips, cpu)?))
    }

    fn network(&self, chunk: Option<usize>) -> Result<Network> {
        let network = Network::new(&self.model(), SMOOTHING, &Device::Cpu, SEED)?.in_chunks(chunk);
        shift(network.parameters())?;
        Ok(network)
    }
}

/// Moves every parameter away from where it starts, so that biases of 0 and weights of 1 matter.
fn shift(parameters: &Parameters) -> candle_core::Result<()> {
    for (at, (_, var)) in parameters.iter().enumerate() {
        let numbers = Tensor::arange(0f32, var.elem_count() as f32, &Device::Cpu)?;
        let shift = (numbers.affine(1.7, at as f64)?.sin()? * 0.2)?;
        var.set(&(var.as_tensor() + shift.reshape(var.dims())?)?)?;
    }
    Ok(())
}

fn flat(tensor: &Tensor) -> candle_core::Result<Vec<f64>> {
    tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1()
}

fn norm(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn gradients_are_those_of_the_plain_graph() -> Result<()> {
    for (at, case) in CASES.into_iter().enumerate() {
        let (inputs, targets) = case.batch()?;
        let pass = Pass::training(3, 9);
        let classifier = Classifier::new(&case.model(), &Device::Cpu, SEED)?;
        shift(classifier.parameters())?;
        let plain = loss::cross_entropy(&classifier.forward(&inputs, &pass)?, &targets, SMOOTHING)?;
        let store = plain.backward()?;
        let plain = f64::from(plain.to_scalar::<f32>()?);
        let expected: candle_core::Result<Vec<Vec<f64>>> = classifier
            .parameters()
            .iter()
            .map(|(_, var)| flat(store.get(var).expect("a gradient")))
            .collect();
        let expected = expected?;
        let whole = norm(expected.iter().flatten().copied());
        for chunk in [None, Some(1), Some(2)] {
            let network = case.network(chunk)?;
            // Twice: the second step finds the first one's buffers.
            network.train(&inputs, &targets, &Pass::training(3, 8))?;
            let step = network.train(&inputs, &targets, &pass)?;
            assert!((step.loss / plain - 1.0).abs() < 1e-5, "case {at}: loss {} and {plain}", step.loss);
            assert_eq!(step.gradients.len(), expected.len());
            for (((name, var), found), expected) in
                network.parameters().iter().zip(&step.gradients).zip(&expected)
            {
                assert_eq!(found.dims(), var.dims(), "{name}");
                let error = norm(flat(found)?.iter().zip(expected).map(|(a, b)| a - b));
                let allowed = 3e-5 * norm(expected.iter().copied()) + 1e-6 * whole;
                assert!(error <= allowed, "case {at}, chunk {chunk:?}, {name}: {error} > {allowed}");
            }
        }
    }
    Ok(())
}

/// Each parameter moves a little along its gradient: the loss has to change as fast as the gradient is long.
#[test]
fn gradients_are_those_of_finite_differences() -> Result<()> {
    for (at, case) in [SMALLEST, Case { depth: 1, ..CASES[2] }].into_iter().enumerate() {
        let (inputs, targets) = case.batch()?;
        let pass = Pass::training(3, 9);
        let network = case.network(None)?;
        let step = network.train(&inputs, &targets, &pass)?;
        for ((name, var), gradient) in network.parameters().iter().zip(&step.gradients) {
            let length = norm(flat(gradient)?.into_iter());
            let here = var.as_tensor().copy()?;
            // Far enough for f32's digits, near enough to meet few of ReLU's kinks.
            let far = (1e-3 / length.max(1e-9)).clamp(2e-4, 1e-2);
            let loss_at = |distance: f64| -> Result<f64> {
                var.set(&(&here + (gradient * (distance / length.max(1e-9)))?)?)?;
                Ok(network.train(&inputs, &targets, &pass)?.loss)
            };
            let change = |far: f64| -> Result<f64> { Ok(loss_at(far)? - loss_at(-far)?) };
            // Richardson's rule takes the loss's third derivative out.
            let change = (8.0 * change(far / 2.0)? - change(far)?) / 3.0;
            var.set(&here)?;
            let expected = 2.0 * far * length;
            let allowed = 0.02 * expected + 4e-6 * step.loss;
            assert!(
                (change - expected).abs() <= allowed,
                "case {at}, {name}: the loss changes by {change}, not {expected}"
            );
        }
    }
    Ok(())
}

/// Validation's forward pass is the plain network's without dropout.
#[test]
fn evaluation_is_the_plain_graphs() -> Result<()> {
    for (at, case) in CASES.into_iter().enumerate() {
        let (inputs, targets) = case.batch()?;
        let network = case.network(None)?;
        let classifier = Classifier::new(&case.model(), &Device::Cpu, SEED)?;
        shift(classifier.parameters())?;
        let plain = classifier.forward(&inputs, &Pass::EVALUATION)?;
        let expected = flat(&plain)?;
        let error = norm(flat(&network.logits(&inputs)?)?.iter().zip(&expected).map(|(a, b)| a - b));
        assert!(error <= 1e-5 * norm(expected.iter().copied()), "case {at}: {error}");
        let score = network.evaluate(&inputs, &targets)?;
        let plain = f64::from(loss::cross_entropy(&plain, &targets, SMOOTHING)?.to_scalar::<f32>()?);
        assert!((score.loss / plain - 1.0).abs() < 1e-5, "case {at}: {} and {plain}", score.loss);
    }
    Ok(())
}
