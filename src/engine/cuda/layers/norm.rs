//! `nn.LayerNorm`, with the residual connection before it: one kernel computes both.

use super::Context;
use super::linear::Linear;
use crate::Result;
use crate::engine::cuda::memory::{Activation, Buffer, Matrix, Slice};
use crate::engine::cuda::ops::{NormBackward, NormForward};
use crate::engine::cuda::parameters::{Module, Parameter};
use crate::nn::Dropout;
use crate::nn::norm::LAYER_NORM_EPS;

/// A layer norm.
pub struct LayerNorm {
    weight: Parameter,
    bias: Parameter,
    eps: f32,
}

/// What its backward pass needs of its forward pass.
#[derive(Default)]
pub struct NormSaved {
    /// (R, D): the input, normalised, before weight and bias.
    xhat: Buffer<Activation>,
    /// (R): one over the input's standard deviation.
    rstd: Buffer<f32>,
}

/// The end of a residual branch, which the norm's kernel computes on its way: the bias of the branch's last linear layer, its
/// dropout and stochastic depth.
#[derive(Clone)]
pub struct BranchEnd {
    /// (D).
    pub bias: Slice<f32>,
    /// The bias's gradient.
    pub d_bias: Slice<f32>,
    /// The dropout after it.
    pub dropout: Option<Dropout>,
    /// Stochastic depth: whole samples that the branch is left out of.
    pub drop_path: Option<Dropout>,
}

/// What is normalised: `x + drop_path(dropout(branch + bias))`, or one of both alone.
#[derive(Clone, Copy, Default)]
pub struct Residual<'a> {
    /// (R, D); its rows may lie apart.
    pub x: Option<&'a Matrix<f32>>,
    /// (R, D), and how it ends.
    pub branch: Option<(&'a Matrix<Activation>, &'a BranchEnd)>,
}

/// Where a norm's results go, (R, D) each.
#[derive(Clone, Copy, Default)]
pub struct NormOutputs<'a> {
    /// The residual sum; it may be its `x`.
    pub sum: Option<&'a Matrix<f32>>,
    /// The norm of it.
    pub y: Option<&'a Matrix<f32>>,
    /// The same as an operand of products.
    pub y_operand: Option<&'a Matrix<Activation>>,
}

/// Gradients that a norm's backward pass takes and gives, (R, D) each.
#[derive(Clone, Copy, Default)]
pub struct NormGradients<'a> {
    /// Of the norm's output, with `dy_operand` added.
    pub dy: Option<&'a Matrix<f32>>,
    /// See `dy`.
    pub dy_operand: Option<&'a Matrix<Activation>>,
    /// Of the residual sum, where others used it too: of all rows, or of the first of each so many.
    pub d_sum: Option<&'a Matrix<f32>>,
    /// Gets that of `x`; it may be `dy` or `d_sum`.
    pub d_x: Option<&'a Matrix<f32>>,
    /// Gets that of the branch before its end.
    pub d_branch: Option<(&'a Matrix<Activation>, &'a BranchEnd)>,
}

impl Residual<'_> {
    /// R.
    fn rows(&self) -> usize {
        self.x.map(Matrix::rows).or_else(|| self.branch.map(|(branch, _)| branch.rows())).unwrap_or(0)
    }
}

impl BranchEnd {
    /// The end of a branch whose last layer is `last`.
    #[must_use]
    pub fn new(last: &Linear, dropout: Option<Dropout>, drop_path: Option<Dropout>) -> Self {
        Self { bias: last.bias.clone(), d_bias: last.d_bias.clone(), dropout, drop_path }
    }
}

impl LayerNorm {
    /// The module's `weight` and `bias`, with the usual eps.
    ///
    /// # Errors
    /// Where it has none.
    pub fn new(module: &Module) -> Result<Self> {
        Self::with_eps(module, LAYER_NORM_EPS)
    }

    /// The module's `weight` and `bias`.
    ///
    /// # Errors
    /// Where it has none.
    pub fn with_eps(module: &Module, eps: f32) -> Result<Self> {
        Ok(Self { weight: module.parameter("weight")?, bias: module.parameter("bias")?, eps })
    }

    /// D.
    #[must_use]
    pub fn width(&self) -> usize {
        self.weight.value.len()
    }

    /// The norm of a sum; with `saved`, for a backward pass.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails or its memory is full.
    pub fn forward(
        &self,
        cx: &Context,
        input: Residual,
        out: NormOutputs,
        saved: Option<&mut NormSaved>,
    ) -> Result<()> {
        let (rows, width) = (input.rows(), self.width());
        let kept = match saved {
            Some(saved) => Some((
                saved.xhat.resize(cx.allocator(), rows, width)?,
                saved.rstd.resize_vector(cx.allocator(), rows)?,
            )),
            None => None,
        };
        let (branch, end) = input.branch.unzip();
        cx.ops.norm(&NormForward {
            rows,
            width,
            sample_rows: cx.sample_rows(rows),
            x: input.x,
            branch,
            branch_bias: end.map(|end| &end.bias),
            dropout: cx.mask(end.and_then(|end| end.dropout), rows, width)?,
            drop_path: cx.ops.path_mask(end.and_then(|end| end.drop_path), cx.pass, cx.samples)?,
            sum: out.sum,
            weight: Some(&self.weight.value),
            bias: Some(&self.bias.value),
            eps: self.eps,
            y: out.y,
            y_operand: out.y_operand,
            xhat: kept.as_ref().map(|(xhat, _)| xhat),
            rstd: kept.as_ref().map(|(_, rstd)| rstd),
            ..NormForward::default()
        })
    }

    /// The gradients of the sum that was normalised; those of the parameters are added to theirs.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails or its memory is full.
    pub fn backward(&self, cx: &Context, saved: &NormSaved, gradients: NormGradients) -> Result<()> {
        self.backward_into(cx, saved, gradients, None)
    }

    /// As [`Self::backward`], and the norm's output, which is computed again, as an operand of products. It takes the place of
    /// what was saved.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails or its memory is full.
    pub fn backward_with_output(
        &self,
        cx: &Context,
        saved: &NormSaved,
        gradients: NormGradients,
    ) -> Result<Matrix<Activation>> {
        let y = saved.xhat.matrix()?;
        self.backward_into(cx, saved, gradients, Some(&y))?;
        Ok(y)
    }

    fn backward_into(
        &self,
        cx: &Context,
        saved: &NormSaved,
        gradients: NormGradients,
        y: Option<&Matrix<Activation>>,
    ) -> Result<()> {
        let (xhat, rstd) = (saved.xhat.matrix()?, saved.rstd.vector()?);
        let (rows, width) = (xhat.rows(), xhat.cols());
        let (d_branch, end) = gradients.d_branch.unzip();
        cx.ops.norm_backward(&NormBackward {
            sample_rows: cx.sample_rows(rows),
            dy: gradients.dy,
            dy_operand: gradients.dy_operand,
            xhat: &xhat,
            rstd: &rstd,
            weight: &self.weight.value,
            bias: &self.bias.value,
            d_sum: gradients.d_sum,
            d_x: gradients.d_x,
            y,
            d_branch,
            dropout: cx.mask(end.and_then(|end| end.dropout), rows, width)?,
            drop_path: cx.ops.path_mask(end.and_then(|end| end.drop_path), cx.pass, cx.samples)?,
            d_weight: &self.weight.gradient,
            d_bias: &self.bias.gradient,
            d_branch_bias: end.map(|end| &end.d_bias),
        })
    }
}
