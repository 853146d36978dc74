//! Matrix products.

use super::Ops;
use crate::engine::cuda::memory::{Activation, Matrix};
use crate::engine::cuda::stream::{Gemm, Operand};
use crate::{Error, Result};

/// A result of a product.
#[derive(Clone, Copy)]
pub enum Output<'a> {
    /// In the activations' dtype.
    Activation(&'a Matrix<Activation>),
    /// In f32.
    F32(&'a Matrix<f32>),
}

/// Whether a product replaces what its result holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It does.
    Replace,
    /// It is added.
    Accumulate,
}

/// A factor of a product.
#[derive(Clone, Copy)]
pub enum Factor<'a> {
    /// As it lies in memory.
    Plain(&'a Matrix<Activation>),
    /// The transpose of what lies in memory.
    Transposed(&'a Matrix<Activation>),
}

impl Factor<'_> {
    /// Rows and columns as a factor, and where it lies.
    fn parts(self) -> (usize, usize, Operand) {
        let (matrix, transposed) = match self {
            Self::Plain(matrix) => (matrix, false),
            Self::Transposed(matrix) => (matrix, true),
        };
        let operand = Operand { address: matrix.address(), ld: matrix.stride(), transposed };
        let (rows, cols) = (matrix.rows(), matrix.cols());
        if transposed { (cols, rows, operand) } else { (rows, cols, operand) }
    }
}

impl Ops {
    /// A matrix product of `a` (M, K) and `b` (K, N).
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the library fails.
    #[allow(unsafe_code, reason = "the factors fit each other and their buffers")]
    pub fn matmul(&self, a: Factor, b: Factor, out: Output, write: Write) -> Result<()> {
        let ((m, k, a), (rows, n, b)) = (a.parts(), b.parts());
        let (to, c, ldc, c_is_f32) = match out {
            Output::Activation(c) => ((c.rows(), c.cols()), c.address(), c.stride(), false),
            Output::F32(c) => ((c.rows(), c.cols()), c.address(), c.stride(), true),
        };
        if k != rows || to != (m, n) {
            return Err(Error::run(format!(
                "a product of {m} x {k} and {rows} x {n} is not {} x {}",
                to.0, to.1
            )));
        }
        if m == 0 || n == 0 || k == 0 {
            return Ok(());
        }
        // SAFETY: matrices lie within their buffers.
        unsafe {
            self.stream().gemm(&Gemm {
                m,
                n,
                k,
                a,
                b,
                c,
                ldc,
                c_is_f32,
                accumulate: write == Write::Accumulate,
            })
        }
    }
}
