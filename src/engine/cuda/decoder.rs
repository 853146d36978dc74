//! The stub decoder and its loss, forward and backward: the same as [`crate::model::decoder::Stub`] and
//! [`crate::nn::loss`].

use super::layers::{Context, Linear};
use super::memory::{Activation, Buffer, Matrix, Slice};
use super::ops::{CrossEntropy, Output, Write};
use super::parameters::Module;
use crate::{Error, Result};

/// The mean of the valid frames, then one linear layer to the classes.
pub struct StubDecoder {
    lm_head: Linear,
    smoothing: f64,
}

/// What both passes need, and the results.
#[derive(Default)]
pub struct StubDecoderBuffers {
    mean: Buffer<Activation>,     // (B, D)
    d_mean: Buffer<f32>,          // (B, D)
    logits: Buffer<f32>,          // (B, V)
    d_logits: Buffer<Activation>, // (B, V)
}

/// Each clip's results.
#[derive(Default)]
pub struct Losses {
    /// (B).
    pub losses: Buffer<f32>,
    /// (B): 1 where the class was right.
    pub correct: Buffer<i32>,
}

/// A batch's frames that are not padding, and its classes.
#[derive(Clone, Copy)]
pub struct Labels<'a> {
    /// (B, T): 1 = a frame of the clip.
    pub valid: &'a Slice<u8>,
    /// (B), each below V.
    pub targets: &'a Slice<u32>,
    /// What the gradient of each clip's loss is multiplied by, where there is to be one.
    pub scale: Option<f64>,
}

impl StubDecoder {
    /// The module's `lm_head`, with label smoothing for the loss.
    ///
    /// # Errors
    /// Where it has none.
    pub fn new(module: &Module, smoothing: f64) -> Result<Self> {
        Ok(Self { lm_head: Linear::new(&module.pp("lm_head"))?, smoothing })
    }

    /// V.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.lm_head.outputs()
    }

    /// D.
    #[must_use]
    pub fn width(&self) -> usize {
        self.lm_head.inputs()
    }

    /// Encoded frames (B T, D) to logits (B, V) and losses; with a scale, also the losses' gradient, for [`Self::backward`].
    ///
    /// # Errors
    /// Where the batch has no classes, or the GPU fails or its memory is full.
    pub fn forward(
        &self,
        cx: &Context,
        encoded: &Matrix<f32>,
        labels: Labels,
        b: &mut StubDecoderBuffers,
        out: &mut Losses,
    ) -> Result<Matrix<f32>> {
        let (allocator, clips) = (cx.ops.allocator(), cx.samples);
        if labels.targets.len() != clips {
            return Err(Error::run(format!("{clips} clips with {} classes", labels.targets.len())));
        }
        let losses = out.losses.resize_vector(allocator, clips)?;
        let correct = out.correct.resize_vector(allocator, clips)?;
        let mean = b.mean.resize(allocator, clips, self.width())?;
        cx.ops.pool(encoded, labels.valid, &mean)?;
        let logits = b.logits.resize(allocator, clips, self.classes())?;
        self.lm_head.forward(cx.ops, &mean, Output::F32(&logits))?;
        let d_logits = match labels.scale {
            Some(scale) => Some((b.d_logits.resize(allocator, clips, self.classes())?, scale)),
            None => None,
        };
        cx.ops.cross_entropy(&CrossEntropy {
            logits: &logits,
            bias: &self.lm_head.bias,
            targets: labels.targets,
            d_logits: d_logits.as_ref().map(|(d_logits, scale)| (d_logits, *scale)),
            losses: &losses,
            correct: &correct,
            smoothing: self.smoothing,
        })?;
        Ok(logits)
    }

    /// Adds the parameters' gradients, after [`Self::forward`] with a scale; that of the encoded frames goes to `d_encoded`.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn backward(
        &self,
        cx: &Context,
        labels: Labels,
        d_encoded: &Matrix<f32>,
        b: &mut StubDecoderBuffers,
    ) -> Result<()> {
        let (mean, d_logits) = (b.mean.matrix()?, b.d_logits.matrix()?);
        cx.ops.add_column_sums(&d_logits, &self.lm_head.d_bias)?;
        self.lm_head.backward_weight(cx.ops, &mean, &d_logits)?;
        let d_mean = b.d_mean.resize(cx.ops.allocator(), cx.samples, self.width())?;
        self.lm_head.backward_input(cx.ops, &d_logits, Output::F32(&d_mean), Write::Replace)?;
        cx.ops.pool_backward(&d_mean, labels.valid, d_encoded)
    }
}
