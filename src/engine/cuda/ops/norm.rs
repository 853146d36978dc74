//! Layer norms of sums, and sums of two.

use super::mask::{Mask, sample_rows};
use super::{Columns, NORM_BLOCKS, Ops, USUAL_SHARED, at_least, int, rows_of, times, vector};
use crate::engine::cuda::kernels;
use crate::engine::cuda::memory::{Activation, Matrix, Slice};
use crate::{Error, Result};

/// The layer norm of a sum: `sum = x + drop_path(dropout(branch + branch_bias)) + position`, `xhat` = the sum normalised,
/// `y = xhat * weight + bias`; without a weight, `y` = the sum. (R, D) each, but for what `None` leaves out.
#[derive(Clone, Default)]
#[allow(missing_docs, reason = "named in the formula")]
pub struct NormForward<'a> {
    /// R.
    pub rows: usize,
    /// D.
    pub width: usize,
    /// Rows that a dropout's mask is drawn for together.
    pub sample_rows: usize,
    /// Its rows may lie apart by a multiple of D.
    pub x: Option<&'a Matrix<f32>>,
    pub branch: Option<&'a Matrix<Activation>>,
    pub branch_bias: Option<&'a Slice<f32>>,
    pub dropout: Mask,
    pub drop_path: Mask,
    /// (P, D): row `i` is added to rows `i`, `i + P`, ….
    pub position: Option<&'a Matrix<f32>>,
    pub sum: Option<&'a Matrix<f32>>,
    pub weight: Option<&'a Slice<f32>>,
    pub bias: Option<&'a Slice<f32>>,
    /// What is added to the variance.
    pub eps: f32,
    pub y: Option<&'a Matrix<f32>>,
    /// `y` as an operand of products.
    pub y_operand: Option<&'a Matrix<Activation>>,
    pub xhat: Option<&'a Matrix<Activation>>,
    /// (R): one over the standard deviation.
    pub rstd: Option<&'a Slice<f32>>,
}

/// The gradient of [`NormForward`].
#[allow(missing_docs, reason = "named as in the forward pass")]
pub struct NormBackward<'a> {
    pub sample_rows: usize,
    /// The gradient of `y` is the sum of both.
    pub dy: Option<&'a Matrix<f32>>,
    pub dy_operand: Option<&'a Matrix<Activation>>,
    pub xhat: &'a Matrix<Activation>,
    pub rstd: &'a Slice<f32>,
    pub weight: &'a Slice<f32>,
    pub bias: &'a Slice<f32>,
    /// What reaches the sum beside the norm: for all rows, or the first of each so many.
    pub d_sum: Option<&'a Matrix<f32>>,
    /// The gradient of `x`.
    pub d_x: Option<&'a Matrix<f32>>,
    /// Gets `y`, computed again; it may be `xhat`.
    pub y: Option<&'a Matrix<Activation>>,
    pub d_branch: Option<&'a Matrix<Activation>>,
    pub dropout: Mask,
    pub drop_path: Mask,
    /// (D) each; sums over the rows are added.
    pub d_weight: &'a Slice<f32>,
    pub d_bias: &'a Slice<f32>,
    pub d_branch_bias: Option<&'a Slice<f32>>,
}

/// `out = dropout(f + t)`; sums of its columns are added to `column_sums`.
#[derive(Default)]
#[allow(missing_docs, reason = "named in the formula")]
pub struct Combine<'a> {
    pub f: Option<&'a Matrix<f32>>,
    pub t: Option<&'a Matrix<Activation>>,
    pub out: Option<&'a Matrix<Activation>>,
    pub column_sums: Option<&'a Slice<f32>>,
    pub dropout: Mask,
    pub sample_rows: usize,
}

impl Ops {
    /// A residual sum and its layer norm.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn norm(&self, a: &NormForward) -> Result<()> {
        let (rows, width) = (a.rows, a.width);
        let x_step = a.x.map_or(Ok(1), |x| times(x.stride(), width.max(1)))?;
        if a.x.is_some_and(|x| (x.rows(), x.cols()) != (rows, width)) {
            return Err(Error::run(format!("a norm takes {rows} x {width} numbers")));
        }
        let period = a.position.map_or(1, Matrix::rows);
        let args = kernels::NormForward {
            x: a.x.map(Matrix::ptr).unwrap_or_default(),
            branch: rows_of(a.branch, rows, width)?,
            bias: at_least(a.branch_bias, width)?,
            position: rows_of(a.position, period, width)?,
            drop: a.dropout.for_rows(rows, width, a.sample_rows)?,
            path: a.drop_path.ptr(rows.div_ceil(a.sample_rows.max(1)), 1)?,
            sum: rows_of(a.sum, rows, width)?,
            weight: at_least(a.weight, width)?,
            shift: at_least(a.bias, width)?,
            y: rows_of(a.y, rows, width)?,
            y_t: rows_of(a.y_operand, rows, width)?,
            xhat: rows_of(a.xhat, rows, width)?,
            rstd: at_least(a.rstd, rows)?,
            rows: int(rows)?,
            width: int(width)?,
            x_step: int(x_step)?,
            rows_a_sample: sample_rows(a.sample_rows)?,
            period: int(period.max(1))?,
            drop_scale: a.dropout.scale,
            path_scale: a.drop_path.scale,
            eps: a.eps,
        };
        self.launch_rows("norm_forward", vector(width), [rows.div_ceil(4), 1, 1], 16 * width, &args)
    }

    /// The gradient of [`Self::norm`].
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn norm_backward(&self, a: &NormBackward) -> Result<()> {
        let (rows, width) = (a.xhat.rows(), a.xhat.cols());
        let block_rows = rows.div_ceil(NORM_BLOCKS).max(4);
        let blocks = rows.div_ceil(block_rows);
        let partial = self.partial.borrow_mut().resize(&self.allocator, blocks, 3 * width)?;
        let in_step = a.d_sum.map_or(Ok(1), |d_sum| times(rows, d_sum.rows()))?;
        let args = kernels::NormBackward {
            dy: rows_of(a.dy, rows, width)?,
            dy_t: rows_of(a.dy_operand, rows, width)?,
            xhat: rows_of(Some(a.xhat), rows, width)?,
            rstd: at_least(Some(a.rstd), rows)?,
            weight: at_least(Some(a.weight), width)?,
            shift: at_least(Some(a.bias), width)?,
            d_in: rows_of(a.d_sum, rows / in_step, width)?,
            d_x: rows_of(a.d_x, rows, width)?,
            y: rows_of(a.y, rows, width)?,
            d_branch: rows_of(a.d_branch, rows, width)?,
            drop: a.dropout.for_rows(rows, width, a.sample_rows)?,
            path: a.drop_path.ptr(rows.div_ceil(a.sample_rows.max(1)), 1)?,
            partial: partial.ptr(),
            rows: int(rows)?,
            width: int(width)?,
            in_step: int(in_step)?,
            rows_a_sample: sample_rows(a.sample_rows)?,
            rows_a_block: int(block_rows)?,
            drop_scale: a.dropout.scale,
            path_scale: a.drop_path.scale,
        };
        // Four rows of f32 for each warp: of wide rows, a GPU's shared memory holds fewer.
        let warps = [4, 2, 1].into_iter().find(|warps| 16 * warps * width <= USUAL_SHARED).unwrap_or(1);
        let kernel = format!("norm_backward_{}", vector(width));
        self.launch(&kernel, [blocks, 1, 1], 32 * warps, 16 * warps * width, &args)?;
        self.reduce(&partial, &[Some(a.d_weight), Some(a.d_bias), a.d_branch_bias])
    }

    /// A sum, its dropout and the sums of its columns.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn combine(&self, a: &Combine) -> Result<()> {
        let sizes = a.f.map(|f| (f.rows(), f.cols())).or_else(|| a.t.map(|t| (t.rows(), t.cols())));
        let (rows, width) = sizes.unwrap_or_default();
        let columns = Columns::new(rows, width);
        let partial = match a.column_sums {
            Some(_) => Some(self.partial.borrow_mut().resize(&self.allocator, columns.parts(), width)?),
            None => None,
        };
        let args = kernels::Combine {
            f: rows_of(a.f, rows, width)?,
            t: rows_of(a.t, rows, width)?,
            out: rows_of(a.out, rows, width)?,
            drop: a.dropout.for_rows(rows, width, a.sample_rows)?,
            partial: partial.as_ref().map(Matrix::ptr).unwrap_or_default(),
            rows: int(rows)?,
            width: int(width)?,
            rows_a_sample: sample_rows(a.sample_rows)?,
            rows_a_block: int(columns.block_rows)?,
            drop_scale: a.dropout.scale,
        };
        self.launch_rows("combine", columns.vector, columns.blocks, 0, &args)?;
        match partial {
            Some(partial) => self.reduce(&partial, &[a.column_sums]),
            None => Ok(()),
        }
    }

    /// Adds the sums of the columns of `x` to `sums`.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn add_column_sums(&self, x: &Matrix<Activation>, sums: &Slice<f32>) -> Result<()> {
        self.combine(&Combine { t: Some(x), column_sums: Some(sums), ..Combine::default() })
    }

    /// Some of `x` dropped, in place.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn drop_in_place(&self, x: &Matrix<Activation>, dropout: Mask, sample_rows: usize) -> Result<()> {
        if !dropout.is_active() {
            return Ok(());
        }
        self.combine(&Combine { t: Some(x), out: Some(x), dropout, sample_rows, ..Combine::default() })
    }
}
