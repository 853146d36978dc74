//! A block of the vision transformer.

use super::attention::{
    AttentionGradients, AttentionInput, AttentionSaved, AttentionScratch, Queries, SelfAttention,
};
use super::mlp::{Mlp, MlpSaved};
use super::norm::{BranchEnd, LayerNorm, NormGradients, NormOutputs, NormSaved, Residual};
use super::{Context, Keep, Linear};
use crate::engine::cuda::memory::{Activation, Buffer, Matrix};
use crate::engine::cuda::ops::Nonlinearity;
use crate::engine::cuda::parameters::Module;
use crate::{Result, config};

/// A pre-norm transformer block. Its first norm comes with the residual sum before it, so `backbone` calls
/// it, between two blocks.
pub struct Block {
    /// The norm before attention.
    pub norm1: LayerNorm,
    attention: SelfAttention,
    attention_end: BranchEnd,
    norm2: LayerNorm,
    mlp: Mlp,
    /// How the block's second branch, the MLP's, ends.
    pub end: BranchEnd,
}

/// What its backward pass needs of its forward pass.
#[derive(Default)]
pub struct BlockSaved {
    /// Of the norm before attention.
    pub norm1: NormSaved,
    attention: AttentionSaved,
    norm2: NormSaved,
    mlp: MlpSaved,
}

/// Memory that all blocks use, one after another, in their forward pass; and in their backward pass for gradients.
pub struct BlockBuffers {
    /// (N S, D): the residual sum.
    pub x: Matrix<f32>,
    /// (N, D): the same for class tokens, where only those go on.
    pub class_tokens: Matrix<f32>,
    /// (N S, D): a norm's output.
    pub y: Matrix<Activation>,
    /// (N S, D): a branch's output, before its end.
    pub branch: Matrix<Activation>,
}

/// Memory that the layers in a block use in passing.
#[derive(Default)]
pub struct BlockScratch {
    hidden: Buffer<Activation>,
    attention: AttentionScratch,
    /// For a forward pass without a backward pass.
    spare: BlockSaved,
}

impl Block {
    /// The module's `norm1`, `attn`, `norm2`, `mlp`, `drop_path1` and `drop_path2`.
    ///
    /// # Errors
    /// Where it has none.
    pub fn new(module: &Module, c: &config::Backbone, queries: Queries) -> Result<Self> {
        let eps = c.layer_norm_eps as f32;
        let attention = SelfAttention::new(&module.pp("attn"), c.num_heads, queries)?;
        let mlp = module.pp("mlp");
        let last_dropout = mlp.dropout("4")?;
        let mlp = Mlp {
            fc1: Linear::new(&mlp.pp(0))?,
            nonlinearity: Nonlinearity::Gelu,
            dropout: mlp.dropout("2")?,
            fc2: Linear::new(&mlp.pp(3))?,
        };
        Ok(Self {
            norm1: LayerNorm::with_eps(&module.pp("norm1"), eps)?,
            attention_end: BranchEnd::new(attention.last(), None, Some(module.dropout("drop_path1")?)),
            attention,
            norm2: LayerNorm::with_eps(&module.pp("norm2"), eps)?,
            end: BranchEnd::new(&mlp.fc2, Some(last_dropout), Some(module.dropout("drop_path2")?)),
            mlp,
        })
    }

    /// The numbers of a head.
    #[must_use]
    pub fn head_width(&self) -> usize {
        self.attention.head_width()
    }

    /// The residual sum of the rows that go on.
    #[must_use]
    pub fn sum<'a>(&self, buffers: &'a BlockBuffers) -> &'a Matrix<f32> {
        match self.attention.queries() {
            Queries::All => &buffers.x,
            Queries::ClassToken => &buffers.class_tokens,
        }
    }

    /// The branch of the rows that go on.
    ///
    /// # Errors
    /// Where it has fewer.
    pub fn branch(&self, buffers: &BlockBuffers) -> Result<Matrix<Activation>> {
        buffers.branch.first_rows(self.sum(buffers).rows())
    }

    /// From its first norm's output, in `y`, and the residual sum to the MLP's branch and the residual sum before it. With
    /// `saved`, for a backward pass.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn forward(
        &self,
        cx: &Context,
        buffers: &BlockBuffers,
        scratch: &mut BlockScratch,
        saved: Option<&mut BlockSaved>,
    ) -> Result<()> {
        let BlockScratch { hidden, spare, .. } = scratch;
        let keep = if saved.is_some() { Keep::ForBackward } else { Keep::Nothing };
        let saved = saved.unwrap_or(spare);
        let (sum, branch) = (self.sum(buffers), self.branch(buffers)?);
        let input = AttentionInput { x: &buffers.y, valid: None };
        self.attention.forward(cx, input, &branch, &mut saved.attention, keep)?;

        let before = buffers.x.every(buffers.x.rows() / sum.rows().max(1))?;
        let input = Residual { x: Some(&before), branch: Some((&branch, &self.attention_end)) };
        let y = buffers.y.first_rows(sum.rows())?;
        let out = NormOutputs { sum: Some(sum), y_operand: Some(&y), ..NormOutputs::default() };
        self.norm2.forward(cx, input, out, (keep == Keep::ForBackward).then_some(&mut saved.norm2))?;
        self.mlp.forward(cx, &y, &branch, hidden, &mut saved.mlp)
    }

    /// From the gradients of what [`Self::forward`] gave to those of the residual sum before the block, and of the branch that
    /// ends there, the one of the block `below`.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn backward(
        &self,
        cx: &Context,
        buffers: &BlockBuffers,
        scratch: &mut BlockScratch,
        saved: &mut BlockSaved,
        below: Option<&BranchEnd>,
    ) -> Result<()> {
        let (d_sum, d_branch) = (self.sum(buffers), self.branch(buffers)?);
        let d_y = buffers.y.first_rows(d_sum.rows())?;
        let d_hidden = self.mlp.backward(cx, &saved.mlp, &d_branch, &d_y, &mut scratch.hidden)?;
        let gradients = NormGradients {
            dy_operand: Some(&d_y),
            d_sum: Some(d_sum),
            d_x: Some(d_sum),
            d_branch: Some((&d_branch, &self.attention_end)),
            ..NormGradients::default()
        };
        let y = self.norm2.backward_with_output(cx, &saved.norm2, gradients)?;
        self.mlp.backward_input_weight(cx, &y, &d_hidden)?;

        let of = AttentionGradients { d_out: &d_branch, d_x: &buffers.y, valid: None };
        let d_qkv = self.attention.backward(cx, &saved.attention, of, &mut scratch.attention)?;
        let gradients = NormGradients {
            dy_operand: Some(&buffers.y),
            d_sum: Some(d_sum),
            d_x: Some(&buffers.x),
            d_branch: below.map(|end| (&buffers.branch, end)),
            ..NormGradients::default()
        };
        let y = self.norm1.backward_with_output(cx, &saved.norm1, gradients)?;
        self.attention.backward_input_weight(cx, &y, &d_qkv)
    }
}
