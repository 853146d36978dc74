//! The streams of a frame side by side to one vector, and its place in the clip.

use super::norm::{BranchEnd, LayerNorm, NormGradients, NormOutputs, NormSaved, Residual};
use super::{Context, Linear};
use crate::Result;
use crate::engine::cuda::memory::{Activation, Matrix, Slice};
use crate::engine::cuda::ops::{Combine, NormForward, Output, Write};
use crate::engine::cuda::parameters::{Module, Parameter};
use crate::nn::Dropout;

/// Layer norm, dropout, linear, for streams that lie side by side. [`Positional`] adds the last bias.
pub struct Fusion {
    norm: LayerNorm,
    /// The streams' last biases side by side, then their gradients.
    joined: BranchEnd,
    dropout: Dropout,
    proj: Linear,
}

impl Fusion {
    /// The module's `norm`, `proj` and `dropout`.
    ///
    /// # Errors
    /// Where it has none.
    pub fn new(module: &Module) -> Result<Self> {
        let norm = LayerNorm::new(&module.pp("norm"))?;
        let bias: Slice<f32> = module.allocator().zeros(norm.width())?;
        Ok(Self {
            norm,
            joined: BranchEnd { d_bias: bias.clone(), bias, dropout: None, drop_path: None },
            dropout: module.dropout("dropout")?,
            proj: Linear::new(&module.pp("proj"))?,
        })
    }

    /// How wide the streams are side by side.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.norm.width()
    }

    /// The layer whose bias the output lacks.
    #[must_use]
    pub fn last(&self) -> &Linear {
        &self.proj
    }

    /// What is to be added to the streams side by side: their biases; after [`Self::backward`], those biases' gradients.
    #[must_use]
    pub fn bias(&self) -> &Slice<f32> {
        &self.joined.bias
    }

    /// `joined` (R, inputs) to `out` (R, D). `y` (R, inputs) is used in passing.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn forward(
        &self,
        cx: &Context,
        joined: &Matrix<Activation>,
        y: &Matrix<Activation>,
        out: &Matrix<Activation>,
        saved: &mut NormSaved,
    ) -> Result<()> {
        let input = Residual { branch: Some((joined, &self.joined)), ..Residual::default() };
        let normed = NormOutputs { y_operand: Some(y), ..NormOutputs::default() };
        self.norm.forward(cx, input, normed, Some(saved))?;
        self.drop(cx, y)?;
        self.proj.forward(cx.ops, y, Output::Activation(out))
    }

    /// The gradient of `joined`, to its place, and of its bias, from that of the output. `d_y` (R, inputs) is used in
    /// passing.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn backward(
        &self,
        cx: &Context,
        d_out: &Matrix<Activation>,
        d_y: &Matrix<Activation>,
        joined: &Matrix<Activation>,
        saved: &NormSaved,
    ) -> Result<()> {
        self.proj.backward_input(cx.ops, d_out, Output::Activation(d_y), Write::Replace)?;
        self.drop(cx, d_y)?;
        self.joined.d_bias.zero()?;
        let d_branch = Some((joined, &self.joined));
        let gradients = NormGradients { dy_operand: Some(d_y), d_branch, ..NormGradients::default() };
        let y = self.norm.backward_with_output(cx, saved, gradients)?;
        self.drop(cx, &y)?;
        self.proj.backward_weight(cx.ops, &y, d_out)
    }

    /// Drops some of what the norm gave, or of its gradient, in place.
    fn drop(&self, cx: &Context, y: &Matrix<Activation>) -> Result<()> {
        let mask = cx.mask(Some(self.dropout), y.rows(), y.cols())?;
        cx.ops.drop_in_place(y, mask, cx.sample_rows(y.rows()))
    }
}

/// A learned vector for each frame's place, added to its features.
pub struct Positional {
    embedding: Parameter,
    before: BranchEnd,
}

impl Positional {
    /// The module's `embedding`, for features that end with the bias of `last`.
    ///
    /// # Errors
    /// Where it has none.
    pub fn new(module: &Module, last: &Linear) -> Result<Self> {
        let embedding = module.pp("embedding").parameter("weight")?;
        Ok(Self { embedding, before: BranchEnd::new(last, None, None) })
    }

    /// `branch` (B T, D), with its bias and positions, to `x`, and as an operand to `x_operand`.
    ///
    /// # Errors
    /// Where there are fewer places than frames, or the GPU fails.
    pub fn forward(
        &self,
        cx: &Context,
        branch: &Matrix<Activation>,
        x: &Matrix<f32>,
        x_operand: Option<&Matrix<Activation>>,
    ) -> Result<()> {
        let (rows, width) = (x.rows(), x.cols());
        let places = Matrix::new(&self.embedding.value, cx.sample_rows(rows), width)?;
        cx.ops.norm(&NormForward {
            rows,
            width,
            sample_rows: cx.sample_rows(rows),
            branch: Some(branch),
            branch_bias: Some(&self.before.bias),
            position: Some(&places),
            y: Some(x),
            y_operand: x_operand,
            ..NormForward::default()
        })
    }

    /// The gradient of `branch`, from that of the output, the sum of `d_x` and `d_operand`.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn backward(
        &self,
        cx: &Context,
        d_x: &Matrix<f32>,
        d_operand: Option<&Matrix<Activation>>,
        d_branch: &Matrix<Activation>,
    ) -> Result<()> {
        // A place's vector was added to its frame of every clip.
        let clip = cx.sample_rows(d_x.rows()) * d_x.cols();
        let a_clip_a_row = d_operand.map(|d| d.reshape(cx.samples, clip)).transpose()?;
        cx.ops.combine(&Combine {
            f: Some(&d_x.reshape(cx.samples, clip)?),
            t: a_clip_a_row.as_ref(),
            column_sums: Some(&self.embedding.gradient),
            ..Combine::default()
        })?;
        cx.ops.combine(&Combine {
            f: Some(d_x),
            t: d_operand,
            out: Some(d_branch),
            column_sums: Some(&self.before.d_bias),
            ..Combine::default()
        })
    }
}
