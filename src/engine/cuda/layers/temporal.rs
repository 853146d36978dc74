//! A layer of the temporal encoder: `nn.TransformerEncoderLayer`, post-norm, with `ReLU`.

use super::attention::{
    AttentionGradients, AttentionInput, AttentionSaved, AttentionScratch, Queries, SelfAttention,
};
use super::mlp::{Mlp, MlpSaved};
use super::norm::{BranchEnd, LayerNorm, NormGradients, NormOutputs, NormSaved, Residual};
use super::{Context, Keep, Linear};
use crate::Result;
use crate::engine::cuda::memory::{Activation, Buffer, Matrix, Slice};
use crate::engine::cuda::ops::Nonlinearity;
use crate::engine::cuda::parameters::Module;

/// Attention between a clip's frames, and an MLP, each followed by a norm of the residual sum.
pub struct TemporalLayer {
    attention: SelfAttention,
    attention_end: BranchEnd,
    norm1: LayerNorm,
    mlp: Mlp,
    mlp_end: BranchEnd,
    norm2: LayerNorm,
}

/// What its backward pass needs of its forward pass. R = B T.
#[derive(Default)]
pub struct TemporalSaved {
    /// (R, D): its input, as an operand.
    pub input: Buffer<Activation>,
    attention: AttentionSaved,
    norm1: NormSaved,
    mlp: MlpSaved,
    norm2: NormSaved,
}

/// Memory that all layers use, one after another, in their forward pass; and in their backward pass for gradients.
pub struct FrameBuffers {
    /// (R, D): the residual sum.
    pub x: Matrix<f32>,
    /// (R, D): a norm's output.
    pub y: Matrix<Activation>,
    /// (R, D): a branch's output, before its end.
    pub branch: Matrix<Activation>,
    /// (B, T): 1 = a frame of the clip.
    pub valid: Slice<u8>,
}

/// Memory that the parts of a layer use in passing.
#[derive(Default)]
pub struct FrameScratch {
    /// (R, M).
    pub hidden: Buffer<Activation>,
    attention: AttentionScratch,
}

impl TemporalLayer {
    /// The module's `self_attn`, `linear1`, `linear2`, `norm1`, `norm2` and dropouts.
    ///
    /// # Errors
    /// Where it has none.
    pub fn new(module: &Module, heads: usize) -> Result<Self> {
        let attention = SelfAttention::new(&module.pp("self_attn"), heads, Queries::All)?;
        let mlp = Mlp {
            fc1: Linear::new(&module.pp("linear1"))?,
            nonlinearity: Nonlinearity::Relu,
            dropout: module.dropout("dropout")?,
            fc2: Linear::new(&module.pp("linear2"))?,
        };
        Ok(Self {
            attention_end: BranchEnd::new(attention.last(), Some(module.dropout("dropout1")?), None),
            attention,
            norm1: LayerNorm::new(&module.pp("norm1"))?,
            mlp_end: BranchEnd::new(&mlp.fc2, Some(module.dropout("dropout2")?), None),
            mlp,
            norm2: LayerNorm::new(&module.pp("norm2"))?,
        })
    }

    /// The numbers of a head.
    #[must_use]
    pub fn head_width(&self) -> usize {
        self.attention.head_width()
    }

    /// How wide it is inside.
    #[must_use]
    pub fn hidden(&self) -> usize {
        self.mlp.hidden()
    }

    /// From `x`, whose operand was saved as its input, to `x`; and its operand to `next`.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn forward(
        &self,
        cx: &Context,
        buffers: &FrameBuffers,
        next: Option<&Matrix<Activation>>,
        scratch: &mut FrameScratch,
        saved: &mut TemporalSaved,
    ) -> Result<()> {
        let FrameBuffers { x, y, branch, valid } = buffers;
        let input = AttentionInput { x: &saved.input.matrix()?, valid: Some(valid) };
        self.attention.forward(cx, input, branch, &mut saved.attention, Keep::ForBackward)?;
        let sum = Residual { x: Some(x), branch: Some((branch, &self.attention_end)) };
        let out = NormOutputs { y: Some(x), y_operand: Some(y), ..NormOutputs::default() };
        self.norm1.forward(cx, sum, out, Some(&mut saved.norm1))?;

        self.mlp.forward(cx, y, branch, &mut scratch.hidden, &mut saved.mlp)?;
        let sum = Residual { x: Some(x), branch: Some((branch, &self.mlp_end)) };
        let out = NormOutputs { y: Some(x), y_operand: next, ..NormOutputs::default() };
        self.norm2.forward(cx, sum, out, Some(&mut saved.norm2))
    }

    /// From the gradient of its output, in `x`, with that of the layer `above`, in `y`, where there is one, to that of its input, in
    /// `x` and `y`.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn backward(
        &self,
        cx: &Context,
        buffers: &FrameBuffers,
        above: Option<&Matrix<Activation>>,
        scratch: &mut FrameScratch,
        saved: &TemporalSaved,
    ) -> Result<()> {
        let FrameBuffers { x: d_x, y: d_y, branch, valid } = buffers;
        let gradients = NormGradients {
            dy: Some(d_x),
            dy_operand: above,
            d_x: Some(d_x),
            d_branch: Some((branch, &self.mlp_end)),
            ..NormGradients::default()
        };
        self.norm2.backward(cx, &saved.norm2, gradients)?;
        let d_hidden = self.mlp.backward(cx, &saved.mlp, branch, d_y, &mut scratch.hidden)?;

        let gradients = NormGradients {
            dy: Some(d_x),
            dy_operand: Some(d_y),
            d_x: Some(d_x),
            d_branch: Some((branch, &self.attention_end)),
            ..NormGradients::default()
        };
        let y = self.norm1.backward_with_output(cx, &saved.norm1, gradients)?;
        self.mlp.backward_input_weight(cx, &y, &d_hidden)?;
        let of = AttentionGradients { d_out: branch, d_x: d_y, valid: Some(valid) };
        let d_qkv = self.attention.backward(cx, &saved.attention, of, &mut scratch.attention)?;
        self.attention.backward_input_weight(cx, &saved.input.matrix()?, &d_qkv)
    }
}
