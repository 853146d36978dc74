//! The gradients that training uses, of all parameters, at sizes that no vector or tile divides: against the same
//! network as plain Candle operations, and against finite differences of the loss.

use candle_core::{Device, Tensor};
use slt_run::Result;
use slt_run::config::{Backbone, Chunk, Decoder, Experiment, Freeze, Glob, Model, ParameterGroup};
use slt_run::data::{Batch, Pixels, Sizes};
use slt_run::engine::device::Compute;
use slt_run::engine::{self, Engine, Placed, Step};
use slt_run::nn::{Parameters, Pass};

use crate::support;

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
                layer_norm_eps: 1e-4, // another one than the other norms'
                dropout: self.dropout,
                attention_dropout: self.dropout,
                stochastic_depth: self.dropout,
                ..Backbone::default()
            },
            decoder: Decoder::default(),
        }
    }

    fn batch(&self) -> Placed {
        let sizes = Sizes { frames: self.frames, image_size: self.image, pose: 3, features: None };
        let (rows, plane) = (self.clips * self.frames, self.image * self.image);
        let mut batch = Batch::new((0..self.clips).collect(), sizes);
        for (stream, pixels) in batch.images.iter_mut().enumerate() {
            let bytes = pixels.bytes_mut();
            bytes.iter_mut().enumerate().for_each(|(i, x)| *x = ((i + stream) * (i + 7) % 251) as u8);
            if !self.bytes {
                let float = |i: usize| {
                    let (image, channel, at) = (i / (3 * plane), i / plane % 3, i % plane);
                    f32::from(bytes[(image * plane + at) * 3 + channel]) / 64.0 - 2.0
                };
                *pixels = Pixels::Normalised((0..rows * 3 * plane).map(float).collect());
            }
        }
        batch.pose.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32).sin());
        // Every second clip ends a frame early.
        let valid = |i: usize| self.frames == 1 || i % (2 * self.frames) + 1 != self.frames;
        batch.pad_mask = (0..rows).map(valid).collect();
        Placed::new(batch, (0..self.clips).map(|i| vec![(i * 5 + 1) as u32 % self.classes as u32]).collect())
    }

    fn experiment(&self, chunk: Option<usize>) -> Experiment {
        let mut c = support::experiment_of(
            self.model(),
            support::experiment(&[]).optimization,
            &[("run.seed", "11")],
        );
        c.data.batch_size = self.clips;
        c.optimization.frames_per_chunk = chunk.map_or(Chunk::Auto, Chunk::Frames);
        c
    }

    /// The network on the CPU's engine or, without one, as a plain graph.
    fn engine(&self, compute: &Compute, chunk: Option<usize>) -> Result<Box<dyn Engine>> {
        let mut engine = engine::new(&self.experiment(chunk), compute)?;
        shift(engine.host().parameters())?;
        engine.push()?;
        Ok(engine)
    }
}

const GRAPH: Compute = Compute::Graph(Device::Cpu);

/// Loss and gradients of a step of one batch.
fn step(engine: &mut dyn Engine, batch: &mut Placed, pass: &Pass) -> Result<(f64, Vec<Vec<f32>>)> {
    let mut step = Step::of(1);
    engine.train(batch, pass, &mut step)?;
    let gradients = engine.gradients(&step)?;
    Ok((step.loss().unwrap_or(f64::NAN), gradients))
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

/// The norm of the difference of `a` and `b`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    norm(a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)))
}

fn norm(numbers: impl Iterator<Item = f64>) -> f64 {
    numbers.map(|x| x * x).sum::<f64>().sqrt()
}

fn length(numbers: &[f32]) -> f64 {
    norm(numbers.iter().map(|&x| f64::from(x)))
}

#[test]
fn gradients_are_those_of_the_plain_graph() -> Result<()> {
    for (at, case) in CASES.into_iter().enumerate() {
        let (mut batch, pass) = (case.batch(), Pass::training(3, 9));
        let (plain, expected) = step(case.engine(&GRAPH, None)?.as_mut(), &mut batch, &pass)?;
        let whole = norm(expected.iter().flatten().map(|&x| f64::from(x)));
        for chunk in [None, Some(1), Some(2)] {
            let mut engine = case.engine(&Compute::Cpu, chunk)?;
            // Twice: the second step finds the first one's buffers.
            step(engine.as_mut(), &mut batch, &Pass::training(3, 8))?;
            let (loss, found) = step(engine.as_mut(), &mut batch, &pass)?;
            assert!((loss / plain - 1.0).abs() < 1e-5, "case {at}: loss {loss} and {plain}");
            assert_eq!(found.len(), expected.len());
            let parameters = engine.host().parameters();
            for (((name, var), found), expected) in parameters.iter().zip(&found).zip(&expected) {
                assert_eq!(found.len(), var.elem_count(), "{name}");
                let error = distance(found, expected);
                let allowed = 3e-5 * length(expected) + 1e-6 * whole;
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
        let (mut batch, pass) = (case.batch(), Pass::training(3, 9));
        let mut engine = case.engine(&Compute::Cpu, None)?;
        let (loss, gradients) = step(engine.as_mut(), &mut batch, &pass)?;
        let vars: Vec<(String, candle_core::Var)> =
            engine.host().parameters().iter().map(|(name, var)| (name.to_owned(), var.clone())).collect();
        for ((name, var), gradient) in vars.iter().zip(&gradients) {
            let length = length(gradient);
            let gradient = Tensor::from_slice(gradient, var.dims(), &Device::Cpu)?;
            let here = var.as_tensor().copy()?;
            // Far enough for f32's digits, near enough to meet few of ReLU's kinks.
            let far = (1e-3 / length.max(1e-9)).clamp(2e-4, 1e-2);
            let mut loss_at = |distance: f64| -> Result<f64> {
                var.set(&(&here + (&gradient * (distance / length.max(1e-9)))?)?)?;
                Ok(step(engine.as_mut(), &mut batch, &pass)?.0)
            };
            let mut change = |far: f64| -> Result<f64> { Ok(loss_at(far)? - loss_at(-far)?) };
            // Richardson's rule takes the loss's third derivative out.
            let change = (8.0 * change(far / 2.0)? - change(far)?) / 3.0;
            var.set(&here)?;
            let expected = 2.0 * far * length;
            let allowed = 0.02 * expected + 4e-6 * loss;
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
        let mut batch = case.batch();
        let (mut plain, mut fused) = (case.engine(&GRAPH, None)?, case.engine(&Compute::Cpu, None)?);
        let expected = support::logits(plain.as_mut(), &mut batch);
        let error = distance(&support::logits(fused.as_mut(), &mut batch), &expected);
        assert!(error <= 1e-5 * length(&expected), "case {at}: {error}");
        let evaluating = plain.evaluate(&mut batch)?;
        let expected = plain.score(evaluating)?;
        let evaluating = fused.evaluate(&mut batch)?;
        let score = fused.score(evaluating)?;
        assert!(
            (score.loss / expected.loss - 1.0).abs() < 1e-5,
            "case {at}: {} and {expected:?}",
            score.loss
        );
        assert_eq!((score.weight, score.correct), (expected.weight, expected.correct), "case {at}");
    }
    Ok(())
}

/// What trains has the gradients that it has where everything trains, to the bit on the CPU; on the plain graph, those of
/// the plain graph.
#[test]
fn what_is_frozen_takes_nothing_from_the_gradients_of_the_rest() -> Result<()> {
    // Dropout would be off in what is frozen.
    for (at, case) in CASES.into_iter().map(|case| Case { depth: 3, dropout: 0.0, ..case }).enumerate() {
        for compute in [Compute::Cpu, GRAPH] {
            let (mut batch, pass) = (case.batch(), Pass::training(3, 9));
            let chunks: &[Option<usize>] =
                if matches!(compute, Compute::Cpu) { &[None, Some(2)] } else { &[None] };
            for &chunk in chunks {
                let (loss, all) = step(case.engine(&compute, chunk)?.as_mut(), &mut batch, &pass)?;
                for (freeze, trains) in [
                    ("0", &["blocks.0", "blocks.1", "blocks.2", "norm"][..]),
                    ("1", &["blocks.1", "blocks.2", "norm"]),
                    ("3", &["norm"]),
                    ("all", &[]),
                ] {
                    let mut c = case.experiment(chunk);
                    c.model.backbone.freeze = Freeze::from_text(freeze).unwrap();
                    let mut engine = engine::new(&c, &compute)?;
                    shift(engine.host().parameters())?;
                    engine.push()?;
                    let (of_frozen, found) = step(engine.as_mut(), &mut batch, &pass)?;
                    assert_eq!(of_frozen.to_bits(), loss.to_bits(), "case {at}, freeze {freeze}");
                    let parameters = engine.host().parameters().iter().zip(&all);
                    let expected = parameters.filter(|((name, _), _)| {
                        name.split_once("backbone").is_none_or(|(_, rest)| {
                            let (_, part) = rest.split_once('.').unwrap();
                            trains.iter().any(|trained| part.starts_with(trained))
                        })
                    });
                    let expected: Vec<_> = expected.collect();
                    assert_eq!(found.len(), expected.len(), "freeze {freeze}");
                    for (found, ((name, _), expected)) in found.iter().zip(expected) {
                        assert!(found == expected, "case {at}, freeze {freeze}, chunk {chunk:?}: {name}");
                    }
                }
            }
        }
    }
    Ok(())
}

/// Single parameters of a group are left out wherever they are, and the rest has the same gradients.
#[test]
fn single_parameters_can_be_frozen() -> Result<()> {
    let case = Case { dropout: 0.0, ..CASES[2] };
    let (mut batch, pass) = (case.batch(), Pass::training(3, 9));
    for compute in [Compute::Cpu, GRAPH] {
        let (_, all) = step(case.engine(&compute, None)?.as_mut(), &mut batch, &pass)?;
        for pattern in
            ["*.bias", "*blocks.1.*", "decoder.*", "decoder.lm_head.bias", "encoder.*", "*pos_embed"]
        {
            let mut c = case.experiment(None);
            let pattern = Glob::new(pattern).unwrap();
            let group =
                ParameterGroup { pattern, lr: None, lr_factor: None, weight_decay: None, freeze: true };
            c.optimization.groups = vec![group.clone()];
            let mut engine = engine::new(&c, &compute)?;
            shift(engine.host().parameters())?;
            engine.push()?;
            let (_, found) = step(engine.as_mut(), &mut batch, &pass)?;
            let names = engine.host().parameters().iter().map(|(name, _)| name);
            let rest: Vec<_> = names.zip(&all).filter(|(name, _)| !group.pattern.matches(name)).collect();
            assert!(rest.len() < all.len());
            assert_eq!(found.len(), rest.len(), "{}", group.pattern);
            for (found, (name, expected)) in found.iter().zip(rest) {
                assert!(found == expected, "{}: {name}", group.pattern);
            }
        }
    }
    Ok(())
}
