//! What lies between an MLP's products.

use super::mask::{Mask, sample_rows};
use super::{Columns, Ops, at_least, int, rows_of};
use crate::Result;
use crate::engine::cuda::kernels;
use crate::engine::cuda::memory::{Activation, Matrix, Slice};

/// What follows an MLP's first product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonlinearity {
    /// By the error function.
    Gelu,
    /// `max(0, x)`.
    Relu,
}

/// A bias, a nonlinearity and a dropout, for rows of an MLP's hidden numbers.
pub struct Activate<'a> {
    /// (R, M): before the bias.
    pub hidden: &'a Matrix<Activation>,
    /// (M).
    pub bias: &'a Slice<f32>,
    /// Which one.
    pub nonlinearity: Nonlinearity,
    /// The dropout's mask.
    pub dropout: Mask,
    /// Rows that it is drawn for together.
    pub sample_rows: usize,
}

impl Ops {
    /// `out = dropout(nonlinearity(hidden + bias))`.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn activate(&self, a: &Activate, out: &Matrix<Activation>) -> Result<()> {
        let (rows, width) = (a.hidden.rows(), a.hidden.cols());
        let columns = Columns::new(rows, width);
        let args = kernels::Activate {
            hidden: rows_of(Some(a.hidden), rows, width)?,
            bias: at_least(Some(a.bias), width)?,
            out: rows_of(Some(out), rows, width)?,
            drop: a.dropout.for_rows(rows, width, a.sample_rows)?,
            rows: int(rows)?,
            width: int(width)?,
            rows_a_sample: sample_rows(a.sample_rows)?,
            rows_a_block: int(columns.block_rows)?,
            relu: (a.nonlinearity == Nonlinearity::Relu).into(),
            drop_scale: a.dropout.scale,
        };
        self.launch_rows("activate", columns.vector, columns.blocks, 0, &args)
    }

    /// The gradient of [`Self::activate`], in place: `d`, that of the output, becomes that of `hidden`, and `hidden` the
    /// output. The bias's is added to `d_bias`.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn activate_backward(&self, a: &Activate, d: &Matrix<Activation>, d_bias: &Slice<f32>) -> Result<()> {
        let (rows, width) = (a.hidden.rows(), a.hidden.cols());
        let columns = Columns::new(rows, width);
        let partial = self.partial.borrow_mut().resize(&self.allocator, columns.parts(), width)?;
        let args = kernels::ActivateBackward {
            hidden: rows_of(Some(a.hidden), rows, width)?,
            d: rows_of(Some(d), rows, width)?,
            bias: at_least(Some(a.bias), width)?,
            drop: a.dropout.for_rows(rows, width, a.sample_rows)?,
            partial: partial.ptr(),
            rows: int(rows)?,
            width: int(width)?,
            rows_a_sample: sample_rows(a.sample_rows)?,
            rows_a_block: int(columns.block_rows)?,
            relu: (a.nonlinearity == Nonlinearity::Relu).into(),
            drop_scale: a.dropout.scale,
        };
        self.launch_rows("activate_backward", columns.vector, columns.blocks, 0, &args)?;
        self.reduce(&partial, &[Some(d_bias)])
    }
}
