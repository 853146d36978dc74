//! Operations over the rows of a matrix, each with its backward pass.

#![allow(clippy::inline_always)]

use super::math::{self, exp, max, normal, sum2, sum3, vectorised};
use super::precision::Number;

vectorised! {
    /// Adds `bias` to each row of `x`; rows are as long as the bias.
    pub fn add_bias(x: &mut [f32], bias: &[f32]) {
        for row in x.chunks_exact_mut(bias.len()) {
            for (x, b) in row.iter_mut().zip(bias) {
                *x += b;
            }
        }
    }
}

vectorised! {
    /// `out = a + b`, where `b` may carry a bias for each row.
    pub fn add(out: &mut [f32], a: &[f32], b: &[f32], bias: &[f32]) {
        let width = bias.len();
        for ((out, a), b) in out.chunks_exact_mut(width).zip(a.chunks_exact(width)).zip(b.chunks_exact(width))
        {
            for (((out, a), b), bias) in out.iter_mut().zip(a).zip(b).zip(bias) {
                *out = a + (b + bias);
            }
        }
    }
}

vectorised! {
    /// `out = a + b`.
    pub fn sum(out: &mut [f32], a: &[f32], b: &[f32]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a + b;
        }
    }
}

vectorised! {
    /// Adds the sum over the rows of `x` to `out`: a bias's gradient.
    pub fn add_column_sums<N: Number>(out: &mut [f32], x: &[N]) {
        for row in x.chunks_exact(out.len()) {
            for (out, x) in out.iter_mut().zip(row) {
                *out += x.float();
            }
        }
    }
}

vectorised! {
    /// Multiplies `x` by `mask`, element by element.
    pub fn multiply<N: Number>(x: &mut [N], mask: &[f32]) {
        for (x, m) in x.iter_mut().zip(mask) {
            *x = N::of(x.float() * m);
        }
    }
}

vectorised! {
    /// `x` as it is kept.
    pub fn round<N: Number>(out: &mut [N], x: &[f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = N::of(*x);
        }
    }
}

vectorised! {
    /// `x` times a number.
    pub fn scale<N: Number>(x: &mut [N], factor: f32) {
        for x in x {
            *x = N::of(x.float() * factor);
        }
    }
}

/// A `LayerNorm`'s numbers.
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "named as in the state_dict")]
pub struct Norm<'a> {
    pub weight: &'a [f32],
    pub bias: &'a [f32],
    pub eps: f32,
}

/// The mean and the inverse standard deviation of a row, in the two passes that keep it exact.
#[inline(always)]
fn statistics(x: &[f32], eps: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = math::sum(x, |x| x) / count;
    let variance = math::sum(x, |x| (x - mean) * (x - mean)) / count;
    (mean, 1.0 / (variance + eps).sqrt())
}

vectorised! {
    /// `LayerNorm` of each row of `x` into `out`.
    pub fn layer_norm<N: Number>(out: &mut [N], x: &[f32], norm: Norm) {
        let Norm { weight, bias, eps } = norm;
        let width = weight.len();
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (mean, inverse) = statistics(x, eps);
            for (((out, x), w), b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
                *out = N::of(((x - mean) * inverse).mul_add(*w, *b));
            }
        }
    }
}

vectorised! {
    /// `LayerNorm`'s backward: adds the gradient of its input to `dx`, and those of weight and bias to `d_weight` and
    /// `d_bias`; `dy` is the gradient of its output.
    pub fn layer_norm_backward(
        dx: &mut [f32],
        x: &[f32],
        dy: &[f32],
        norm: Norm,
        d_weight: &mut [f32],
        d_bias: &mut [f32],
    ) {
        let Norm { weight, eps, .. } = norm;
        let width = weight.len();
        let count = width as f32;
        let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(width));
        for ((dx, x), dy) in rows {
            let (mean, inverse) = statistics(x, eps);
            let normalised = |x: f32| (x - mean) * inverse;
            for (((x, dy), dw), db) in x.iter().zip(dy).zip(&mut *d_weight).zip(&mut *d_bias) {
                *dw += dy * normalised(*x);
                *db += dy;
            }
            let mean_dy = sum2(dy, weight, |dy, w| dy * w) / count;
            let mean_dyx = sum3(x, dy, weight, |x, dy, w| normalised(x) * dy * w) / count;
            for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                *dx += inverse * (dy * w - mean_dy - normalised(*x) * mean_dyx);
            }
        }
    }
}

vectorised! {
    /// GELU of `x + bias` into `out`; `x` becomes `x + bias`, which the backward pass needs.
    pub fn bias_gelu(out: &mut [f32], x: &mut [f32], bias: &[f32]) {
        let width = bias.len();
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact_mut(width)) {
            for ((out, x), b) in out.iter_mut().zip(x).zip(bias) {
                *x += b;
                *out = *x * normal(*x).0;
            }
        }
    }
}

vectorised! {
    /// GELU's backward: `dy`, the gradient of its output, becomes that of its input `x`, and `x` its output.
    pub fn gelu_backward(dy: &mut [f32], x: &mut [f32]) {
        for (dy, x) in dy.iter_mut().zip(x) {
            let (integral, density) = normal(*x);
            *dy *= x.mul_add(density, integral);
            *x *= integral;
        }
    }
}

vectorised! {
    /// GELU of `x` into `out`.
    pub fn gelu(out: &mut [f32], x: &[f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = *x * normal(*x).0;
        }
    }
}

vectorised! {
    /// `dy`, the gradient of GELU's output, becomes that of its input `x`.
    pub fn multiply_by_gelu_slope(dy: &mut [f32], x: &[f32]) {
        for (dy, x) in dy.iter_mut().zip(x) {
            let (integral, density) = normal(*x);
            *dy *= x.mul_add(density, integral);
        }
    }
}

vectorised! {
    /// What is positive of `x` into `out`; what is no number stays none.
    pub fn relu(out: &mut [f32], x: &[f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = if *x <= 0.0 { 0.0 } else { *x };
        }
    }
}

vectorised! {
    /// `dy`, the gradient of [`relu`]'s output, becomes that of its input `x`.
    pub fn multiply_by_relu_slope(dy: &mut [f32], x: &[f32]) {
        for (dy, x) in dy.iter_mut().zip(x) {
            *dy = if *x <= 0.0 { 0.0 } else { *dy };
        }
    }
}

vectorised! {
    /// Softmax of `factor` times the row `x` plus `bias`, in place: exactly 0 where the bias is minus infinity.
    pub fn biased_softmax(x: &mut [f32], bias: &[f32], factor: f32) {
        for (x, bias) in x.iter_mut().zip(bias) {
            *x = x.mul_add(factor, *bias);
        }
        let largest = max(x);
        for (x, bias) in x.iter_mut().zip(bias) {
            let weight = exp(*x - largest);
            *x = if *bias == f32::NEG_INFINITY { 0.0 } else { weight };
        }
        let inverse = 1.0 / math::sum(x, |x| x);
        for x in x {
            *x *= inverse;
        }
    }
}

vectorised! {
    /// Softmax of `factor` (which is positive) times each row of `x`, in place, `width` numbers a row.
    pub fn softmax(x: &mut [f32], width: usize, factor: f32) {
        for row in x.chunks_exact_mut(width) {
            let largest = max(row);
            for x in &mut *row {
                *x = exp((*x - largest) * factor);
            }
            let inverse = 1.0 / math::sum(row, |x| x);
            for x in row {
                *x *= inverse;
            }
        }
    }
}

vectorised! {
    /// [`softmax`]'s backward: `dp`, the gradient of its output `p`, becomes that of its input.
    pub fn softmax_backward(dp: &mut [f32], p: &[f32], width: usize, factor: f32) {
        for (dp, p) in dp.chunks_exact_mut(width).zip(p.chunks_exact(width)) {
            let mean = sum2(dp, p, |dp, p| dp * p);
            for (dp, p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - mean) * factor;
            }
        }
    }
}

#[cfg(test)]
mod tests;
