//! What products take and give: f32, or bfloat16 with sums in f32.
//!
//! Whatever is no operand of a product stays f32 in either: weights, norms, softmax, residual sums, gradients of weights.

mod bf16;
mod head;
mod single;

use std::borrow::Cow;
use std::time::Instant;

use half::bf16 as Half;

pub use super::gemm::Into;
use crate::nn::ActivationDtype;
pub use bf16::Bf16;
pub use head::{Bias, Head, HeadGradients};
pub use single::F32;

/// What an operand of a product is made of.
#[allow(clippy::inline_always)] // in loops that are to become SIMD code
pub trait Number: Copy + Default + Send + Sync + 'static {
    /// The nearest to `x`, the even one of two.
    fn of(x: f32) -> Self;

    /// As f32, exactly.
    fn float(self) -> f32;
}

#[allow(clippy::inline_always)]
impl Number for f32 {
    #[inline(always)]
    fn of(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn float(self) -> f32 {
        self
    }
}

#[allow(clippy::inline_always)]
impl Number for Half {
    /// Without branches, which `half`'s own has.
    #[inline(always)]
    fn of(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        // Rounding could make infinity of what is no number.
        let bits = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
        Self::from_bits((bits >> 16) as u16)
    }

    #[inline(always)]
    fn float(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// Rows of numbers inside a slice, each `stride` numbers after the one before.
#[derive(Clone, Copy)]
pub struct Rows<'a, N> {
    data: &'a [N],
    stride: usize,
}

impl<'a, N> Rows<'a, N> {
    /// The first at the beginning of `data`.
    pub fn new(data: &'a [N], stride: usize) -> Self {
        Self { data, stride }
    }

    /// From row `row` on.
    #[must_use]
    pub fn from(self, row: usize) -> Self {
        Self { data: &self.data[(row * self.stride).min(self.data.len())..], ..self }
    }

    /// The first `len` numbers of row `row`.
    fn row(&self, row: usize, len: usize) -> &'a [N] {
        &self.data[row * self.stride..][..len]
    }
}

/// What becomes of a product's sums, (rows, outputs).
#[allow(missing_docs, reason = "each variant's say what its fields are")]
pub enum Finish<'a, N> {
    /// They are kept, plus the bias, in rows of `out` that are `stride` apart.
    Floats { out: &'a mut [f32], stride: usize, bias: Option<&'a [f32]>, into: Into },
    /// As [`Self::Floats`], as operands.
    Operands { out: &'a mut [N], stride: usize, bias: Option<&'a [f32]> },
    /// The sums plus the bias are kept in `hidden`, their GELU in `activated`.
    Gelu { bias: &'a [f32], hidden: &'a mut [N], activated: &'a mut [N] },
    /// They are the gradient of what [`Self::Gelu`] activated, after it was multiplied by `mask`: that of `hidden` is kept
    /// in `d_hidden`, and `hidden` becomes what was activated, masked.
    GeluBackward { mask: Option<&'a [f32]>, hidden: &'a mut [N], d_hidden: &'a mut [N] },
}

/// How products are computed. No method's result depends on how many threads there are.
pub trait Precision: Copy + Default + Send + Sync + 'static {
    /// What operands are kept in between products.
    type Number: Number;

    /// That, by its name.
    const DTYPE: ActivationDtype;

    /// A right operand (k, n) as products take it.
    type Prepared<'w>: Send + Sync;

    /// `x` as an operand.
    fn operand(self, x: &[f32]) -> Cow<'_, [Self::Number]>;

    /// The rows of `w`, (k, n), as a right operand. All threads prepare it.
    fn prepare(self, w: &[f32], size: (usize, usize)) -> Self::Prepared<'_>;

    /// The transpose of the rows of `w`, (n, k), as a right operand (k, n). All threads prepare it.
    fn prepare_transposed(self, w: &[f32], size: (usize, usize)) -> Self::Prepared<'_>;

    /// `rows` rows of `x` times `right`. One thread computes it.
    fn product(
        self,
        rows: usize,
        x: Rows<Self::Number>,
        right: &Self::Prepared<'_>,
        finish: Finish<Self::Number>,
    );

    /// As [`Self::product`], by all threads, into rows of `out` that stand side by side.
    fn parallel_product(
        self,
        rows: usize,
        x: Rows<Self::Number>,
        right: &Self::Prepared<'_>,
        out: &mut [f32],
        into: Into,
    );

    /// `dy^T x` over their `count` rows to the `(outputs, inputs)` of `out`: the gradient of a weight. All threads compute
    /// it.
    fn weight_gradient(
        self,
        size: (usize, usize, usize),
        dy: Rows<Self::Number>,
        x: Rows<Self::Number>,
        out: &mut [f32],
        into: Into,
    );

    /// What the queries of a head find, (S, D/H). One thread computes it.
    fn attend(self, head: &Head<Self::Number>, out: Finish<Self::Number>);

    /// The gradients of a head's queries, keys and values, where `d_out` is that of what the queries find; that is computed
    /// again to `out`, where it is asked for. One thread computes it.
    fn attend_backward(
        self,
        head: &Head<Self::Number>,
        d_out: Rows<Self::Number>,
        out: Option<Finish<Self::Number>>,
        gradients: HeadGradients<Self::Number>,
    );
}

/// The multiply-adds a second that all threads reach in large products: the best of a few.
pub fn product_rate<P: Precision>(precision: P) -> f64 {
    const SIZE: usize = 1536;
    const TIMES: usize = 8;
    let numbers: Vec<f32> = (0..SIZE * SIZE).map(|i| (i % 61) as f32 / 61.0 - 0.5).collect();
    let (x, right) = (precision.operand(&numbers), precision.prepare(&numbers, (SIZE, SIZE)));
    let mut out = vec![0.0; SIZE * SIZE];
    let mut seconds = |_| {
        let begun = Instant::now();
        precision.parallel_product(SIZE, Rows::new(&x, SIZE), &right, &mut out, Into::Set);
        begun.elapsed().as_secs_f64()
    };
    let fastest = (0..TIMES).map(&mut seconds).fold(f64::INFINITY, f64::min);
    (SIZE as f64).powi(3) / fastest
}

/// The first `len` numbers of a buffer that grows to hold them.
pub fn room<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

#[cfg(test)]
mod tests;
