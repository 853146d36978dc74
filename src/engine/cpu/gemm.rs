//! Matrix products of row-major f32 slices.

use gemm::Parallelism;

/// A matrix inside a slice: element `(i, j)` stands at `i * row + j * column`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `stride` numbers.
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Self { data, row: stride, column: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { data: self.data, row: self.column, column: self.row }
    }
}

/// How a product meets what its destination holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// Overwrites it.
    Set,
    /// Is added to it.
    Add,
}

/// `(m, k) (k, n)` into the rows of `out`, which are `stride` numbers apart. One thread computes it.
pub fn product(
    (m, k, n): (usize, usize, usize),
    a: Matrix,
    b: Matrix,
    out: &mut [f32],
    stride: usize,
    into: Into,
) {
    run((m, k, n), a, b, out, stride, into, Parallelism::None);
}

/// As [`product`], by all threads. The result does not depend on how many there are: they share out rows and
/// columns, never a sum.
pub fn parallel_product(
    (m, k, n): (usize, usize, usize),
    a: Matrix,
    b: Matrix,
    out: &mut [f32],
    stride: usize,
    into: Into,
) {
    run((m, k, n), a, b, out, stride, into, Parallelism::Rayon(rayon::current_num_threads()));
}

#[allow(unsafe_code)]
fn run(
    (m, k, n): (usize, usize, usize),
    a: Matrix,
    b: Matrix,
    out: &mut [f32],
    stride: usize,
    into: Into,
    parallelism: Parallelism,
) {
    if m == 0 || n == 0 {
        return;
    }
    let last = |rows: usize, columns: usize, x: Matrix| {
        if rows == 0 || columns == 0 { 0 } else { (rows - 1) * x.row + (columns - 1) * x.column + 1 }
    };
    assert!(last(m, k, a) <= a.data.len() && last(k, n, b) <= b.data.len(), "an operand is too short");
    assert!((m - 1) * stride + n <= out.len() && n <= stride, "the destination is too short");
    // A slice is shorter than isize::MAX bytes.
    let signed = |stride: usize| isize::try_from(stride).unwrap_or(isize::MAX);
    // SAFETY: every element that the strides reach lies inside its slice, as asserted above; `out` is borrowed
    // exclusively, its rows do not overlap, and so it shares no memory with `a` and `b`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            signed(stride),
            into == Into::Add,
            a.data.as_ptr(),
            signed(a.column),
            signed(a.row),
            b.data.as_ptr(),
            signed(b.column),
            signed(b.row),
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests;
