//! Elementary functions as plain arithmetic, so that a loop over them becomes SIMD code.
//!
//! Each is `inline(always)` and branch-free: inside `vectorised!` the compiler turns a loop of them into the widest
//! vectors that the processor has.

#![allow(clippy::inline_always)]

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

/// Compiles a function's body once for each instruction set and calls the best that this processor has.
///
/// The body is `inline(always)` in each version, so that what it calls must be, too, to become vector code.
macro_rules! vectorised {
    ($(#[$doc:meta])* pub fn $name:ident$(<$of:ident: $bound:ident>)?($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$doc])*
        #[allow(unsafe_code, clippy::inline_always)]
        pub fn $name$(<$of: $bound>)?($($arg: $type),*) {
            #[inline(always)]
            fn body$(<$of: $bound>)?($($arg: $type),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                fn avx512$(<$of: $bound>)?($($arg: $type),*) {
                    body($($arg),*);
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2$(<$of: $bound>)?($($arg: $type),*) {
                    body($($arg),*);
                }
                use std::arch::is_x86_feature_detected as has;
                let fma = has!("avx2") && has!("fma");
                if fma && has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") {
                    // SAFETY: the processor has what the function is compiled for, as just checked.
                    return unsafe { avx512($($arg),*) };
                }
                if fma {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*);
        }
    };
}
pub(super) use vectorised;

/// `e^x` within 2 ulp for `x` in -87..88; smaller arguments give `e^-87` (1.6e-38), larger ones `e^88`.
///
/// Cody and Waite's reduction to `|r| <= ln 2 / 2` and Taylor's series to the seventh power.
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the rounded quotient in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let rounded = x.mul_add(LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, c);
    }
    f32::from_bits(p.to_bits().wrapping_add(rounded.to_bits() << 23))
}

/// The standard normal distribution at `x`: its integral up to there, and its density.
///
/// `erfc(z) = e^(-z^2) t P(t)` with `t = 1 / (1 + 0.3275911 z)`, the form of Abramowitz and Stegun 7.1.26; `P` is of
/// the ninth degree here, fitted to a relative error of 4e-9.
#[inline(always)]
#[must_use]
pub fn normal(x: f32) -> (f32, f32) {
    const INVERSE_ROOT_2PI: f32 = 0.398_942_3;
    let bell = exp(-0.5 * x * x);
    let t = 1.0 / (x.abs() * FRAC_1_SQRT_2).mul_add(0.327_591_1, 1.0);
    let mut p = 0.057_197_04_f32;
    for c in [
        -0.320_029_85,
        0.634_381,
        -0.569_748_16,
        0.509_757_8,
        -0.055_089_95,
        0.207_664_89,
        0.165_246_56,
        0.185_844_45,
        0.184_776_26,
    ] {
        p = t.mul_add(p, c);
    }
    let tail = 0.5 * bell * t * p;
    (if x < 0.0 { tail } else { 1.0 - tail }, bell * INVERSE_ROOT_2PI)
}

/// GELU of `x` and its slope there, within 2e-5 and 2e-4 for `x` in -8..8: enough for what is kept in bfloat16.
///
/// The normal distribution's integral and density as polynomials of the tenth degree in `x^2` up to `x = 5`, fitted to
/// errors of 3.4e-6 and 2.5e-5 by weighted least squares at Chebyshev's polynomials. Half the work of [`normal`].
#[inline(always)]
#[must_use]
pub fn rough_gelu(x: f32) -> (f32, f32) {
    const END: f32 = 5.0;
    const INTEGRAL: [f32; 11] = [
        0.002_894_790_4,
        -0.006_793_941,
        0.005_827_342_6,
        -0.007_384_033_4,
        0.016_323_734,
        -0.024_779_044,
        0.031_549_662,
        -0.040_198_51,
        0.051_503_69,
        -0.070_307_2,
        0.141_364_13,
    ];
    const DENSITY: [f32; 11] = [
        0.048_634_13,
        -0.078_824_51,
        0.003_333_067_3,
        -0.002_257_599_3,
        0.088_946_64,
        -0.086_697_92,
        0.042_060_26,
        -0.026_609_667,
        0.015_739_275,
        -0.005_055_636_6,
        0.000_758_479,
    ];
    // Comparisons that let what is no number through.
    let near = if x > END { END } else { x };
    let near = if near < -END { -END } else { near };
    let t = (near * near).mul_add(2.0 / (END * END), -1.0);
    let of = |polynomial: [f32; 11]| {
        let mut sum = polynomial[0];
        for c in &polynomial[1..] {
            sum = t.mul_add(sum, *c);
        }
        sum
    };
    let integral = near.mul_add(of(INTEGRAL), 0.5);
    (x * integral, near.mul_add(of(DENSITY), integral))
}

/// The sum of `f` over `a`, in 16 lanes: the order of additions is fixed, and it vectorises.
#[inline(always)]
pub fn sum(a: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let chunks = a.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    fold(lanes)
}

/// The sum of `f` over pairs of `a` and `b`, in 16 lanes.
#[inline(always)]
pub fn sum2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let (a_rest, b_rest) = (a16.remainder(), b16.remainder());
    for (a, b) in a16.zip(b16) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f(x, y);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += f(x, y);
    }
    fold(lanes)
}

/// The sum of `f` over triples of `a`, `b` and `c`, in 16 lanes.
#[inline(always)]
pub fn sum3(a: &[f32], b: &[f32], c: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (a16, b16, c16) = (a.chunks_exact(16), b.chunks_exact(16), c.chunks_exact(16));
    let rest = a16.remainder().iter().zip(b16.remainder()).zip(c16.remainder());
    for ((a, b), c) in a16.zip(b16).zip(c16) {
        for (((lane, &x), &y), &z) in lanes.iter_mut().zip(a).zip(b).zip(c) {
            *lane += f(x, y, z);
        }
    }
    for (lane, ((&x, &y), &z)) in lanes.iter_mut().zip(rest) {
        *lane += f(x, y, z);
    }
    fold(lanes)
}

/// The largest of `a`, minus infinity where it is empty.
#[inline(always)]
#[must_use]
pub fn max(a: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = a.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane = if x > *lane { x } else { *lane };
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn fold(lanes: [f32; 16]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `erfc` in f64: its series below 2, its continued fraction above.
    fn erfc(z: f64) -> f64 {
        if z < 2.0 {
            let mut term = z;
            let mut sum = z;
            for n in 1..60 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return 1.0 - sum * 2.0 / std::f64::consts::PI.sqrt();
        }
        let fraction = (1..=200).rev().fold(0.0, |f, k| f64::from(k) / 2.0 / (z + f));
        (-z * z).exp() / std::f64::consts::PI.sqrt() / (z + fraction)
    }

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -8600..8800 {
            let x = i as f32 / 100.0;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 2.4e-7, "exp({x}) = {found}, not {expected}");
        }
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(-1e30) > 0.0);
    }

    #[test]
    fn normal_is_the_error_functions() {
        for i in -900..900 {
            let x = i as f32 / 100.0;
            let tail = 0.5 * erfc(f64::from(x.abs()) / std::f64::consts::SQRT_2);
            let expected = if x < 0.0 { tail } else { 1.0 - tail };
            let (found, density) = normal(x);
            let error = (f64::from(found) / expected - 1.0).abs();
            // The argument of the bell is rounded to f32 before exp: 40 * 6e-8 at the far end.
            assert!(error < 4e-6, "normal({x}) = {found}, not {expected}");
            assert!((f64::from(found) - expected).abs() < 2e-7);
            let bell = (-0.5 * f64::from(x).powi(2)).exp() / (2.0 * std::f64::consts::PI).sqrt();
            assert!((f64::from(density) - bell).abs() < 1e-7);
        }
    }

    #[test]
    fn rough_gelu_is_near_gelu() {
        for i in -8000..8000 {
            let x = i as f32 / 1000.0;
            let (integral, density) = normal(x);
            let (gelu, slope) = rough_gelu(x);
            assert!((gelu - x * integral).abs() < 3e-5, "gelu({x}) is {}, not {gelu}", x * integral);
            let expected = x.mul_add(density, integral);
            assert!((slope - expected).abs() < 2e-4, "gelu's slope at {x} is {expected}, not {slope}");
        }
        assert!(rough_gelu(f32::NAN).0.is_nan() && rough_gelu(f32::NAN).1.is_nan());
    }

    #[test]
    fn sums_take_every_element() {
        for n in [0, 1, 15, 16, 17, 197] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert!((sum(&a, |x| x) - (n * n.max(1) - n) as f32 / 2.0).abs() < 1e-3);
            assert!((sum2(&a, &a, |x, _| x) - sum(&a, |x| x)).abs() < 1e-6);
            assert!(n == 0 || (max(&a) - (n - 1) as f32).abs() < 1e-6);
        }
    }
}
