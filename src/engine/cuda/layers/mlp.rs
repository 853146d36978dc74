//! Two linear layers with a nonlinearity and a dropout between them.

use super::Context;
use super::linear::Linear;
use crate::Result;
use crate::engine::cuda::memory::{Activation, Buffer, Matrix};
use crate::engine::cuda::ops::{Activate, Nonlinearity, Output, Write};
use crate::nn::Dropout;

/// A perceptron of two layers. The last bias is added by the kernel that takes the output.
pub struct Mlp {
    /// To M hidden numbers.
    pub fc1: Linear,
    /// What follows it.
    pub nonlinearity: Nonlinearity,
    /// The dropout of the hidden numbers.
    pub dropout: Dropout,
    /// From M hidden numbers.
    pub fc2: Linear,
}

/// What its backward pass needs of its forward pass.
#[derive(Default)]
pub struct MlpSaved {
    /// (R, M): before bias and nonlinearity.
    hidden: Buffer<Activation>,
}

impl Mlp {
    /// M.
    #[must_use]
    pub fn hidden(&self) -> usize {
        self.fc1.outputs()
    }

    /// `x` (R, inputs) to `out` (R, outputs), without the last bias; `activated` is used in passing.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn forward(
        &self,
        cx: &Context,
        x: &Matrix<Activation>,
        out: &Matrix<Activation>,
        activated: &mut Buffer<Activation>,
        saved: &mut MlpSaved,
    ) -> Result<()> {
        let (rows, width) = (x.rows(), self.hidden());
        let hidden = saved.hidden.resize(cx.allocator(), rows, width)?;
        self.fc1.forward(cx.ops, x, Output::Activation(&hidden))?;
        let activated = activated.resize(cx.allocator(), rows, width)?;
        cx.ops.activate(&self.activation(cx, &hidden)?, &activated)?;
        self.fc2.forward(cx.ops, &activated, Output::Activation(out))
    }

    /// The gradient of `x`, from that of the output; and that of the hidden numbers, in `d_hidden`, for
    /// [`Self::backward_input_weight`]. What was saved is used up. The gradient of the last bias is its adder's.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn backward(
        &self,
        cx: &Context,
        saved: &MlpSaved,
        d_out: &Matrix<Activation>,
        d_x: &Matrix<Activation>,
        d_hidden: &mut Buffer<Activation>,
    ) -> Result<Matrix<Activation>> {
        let hidden = saved.hidden.matrix()?;
        let d_hidden = d_hidden.resize(cx.allocator(), hidden.rows(), hidden.cols())?;
        self.fc2.backward_input(cx.ops, d_out, Output::Activation(&d_hidden), Write::Replace)?;
        cx.ops.activate_backward(&self.activation(cx, &hidden)?, &d_hidden, &self.fc1.d_bias)?;
        // They are activated now.
        self.fc2.backward_weight(cx.ops, &hidden, d_out)?;
        self.fc1.backward_input(cx.ops, &d_hidden, Output::Activation(d_x), Write::Replace)?;
        Ok(d_hidden)
    }

    /// Adds the gradient of the first weight, from `x`, which the norm before this gives in its backward pass.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn backward_input_weight(
        &self,
        cx: &Context,
        x: &Matrix<Activation>,
        d_hidden: &Matrix<Activation>,
    ) -> Result<()> {
        self.fc1.backward_weight(cx.ops, x, d_hidden)
    }

    fn activation<'a>(&'a self, cx: &Context, hidden: &'a Matrix<Activation>) -> Result<Activate<'a>> {
        Ok(Activate {
            hidden,
            bias: &self.fc1.bias,
            nonlinearity: self.nonlinearity,
            dropout: cx.mask(Some(self.dropout), hidden.rows(), hidden.cols())?,
            sample_rows: cx.sample_rows(hidden.rows()),
        })
    }
}
