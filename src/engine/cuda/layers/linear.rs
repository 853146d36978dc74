//! `nn.Linear` without its bias: the kernel that takes its output adds that.

use std::ops::Range;

use crate::engine::cuda::memory::{Activation, Matrix, Slice};
use crate::engine::cuda::ops::{Factor, Ops, Output, Write};
use crate::engine::cuda::parameters::{Module, Parameter};
use crate::{Error, Result};

/// `x W^T`, and the bias for who adds it.
#[derive(Clone)]
pub struct Linear {
    /// (outputs, inputs).
    weight: Matrix<Activation>,
    d_weight: Matrix<f32>,
    /// (outputs).
    pub bias: Slice<f32>,
    /// Its gradient.
    pub d_bias: Slice<f32>,
}

impl Linear {
    /// The module's `weight` and `bias`.
    ///
    /// # Errors
    /// Where it has none.
    pub fn new(module: &Module) -> Result<Self> {
        Self::from_parameters(&module.parameter("weight")?, &module.parameter("bias")?)
    }

    /// A weight (outputs, …), whose other dimensions are the inputs, and a bias (outputs).
    ///
    /// # Errors
    /// Where they do not fit each other.
    pub fn from_parameters(weight: &Parameter, bias: &Parameter) -> Result<Self> {
        let &[outputs, ref inputs @ ..] = weight.shape.as_slice() else {
            return Err(Error::run("a weight without dimensions"));
        };
        let inputs = inputs.iter().product();
        if bias.shape != [outputs] {
            return Err(Error::run(format!("a bias of {:?} for {outputs} outputs", bias.shape)));
        }
        Ok(Self {
            weight: Matrix::new(&weight.operand, outputs, inputs)?,
            d_weight: Matrix::new(&weight.gradient, outputs, inputs)?,
            bias: bias.value.clone(),
            d_bias: bias.gradient.clone(),
        })
    }

    /// The part that gives some of the outputs.
    ///
    /// # Errors
    /// Where there are fewer.
    pub fn outputs_in(&self, range: Range<usize>) -> Result<Self> {
        Ok(Self {
            weight: self.weight.row_range(range.clone())?,
            d_weight: self.d_weight.row_range(range.clone())?,
            bias: self.bias.slice(range.clone())?,
            d_bias: self.d_bias.slice(range)?,
        })
    }

    /// How wide its input is.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.weight.cols()
    }

    /// How wide its output is.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.weight.rows()
    }

    /// `x` (R, inputs) to `out` (R, outputs), without the bias.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn forward(&self, ops: &Ops, x: &Matrix<Activation>, out: Output) -> Result<()> {
        ops.matmul(Factor::Plain(x), Factor::Transposed(&self.weight), out, Write::Replace)
    }

    /// The gradient of the input, from that of the output.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn backward_input(
        &self,
        ops: &Ops,
        d_out: &Matrix<Activation>,
        d_x: Output,
        write: Write,
    ) -> Result<()> {
        ops.matmul(Factor::Plain(d_out), Factor::Plain(&self.weight), d_x, write)
    }

    /// Adds the gradient of the weight, from the input and the output's gradient.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn backward_weight(
        &self,
        ops: &Ops,
        x: &Matrix<Activation>,
        d_out: &Matrix<Activation>,
    ) -> Result<()> {
        let d_weight = Output::F32(&self.d_weight);
        ops.matmul(Factor::Transposed(d_out), Factor::Plain(x), d_weight, Write::Accumulate)
    }
}
