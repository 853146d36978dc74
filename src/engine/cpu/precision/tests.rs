//! Products of either precision, and of either kernel, against sums in f64, at sizes that no tile divides.

use super::*;

/// Numbers in -2..2 that bfloat16 holds exactly.
fn exact(len: usize, kind: usize) -> Vec<f32> {
    (0..len).map(|i| (((i * 13 + kind * 5) as f32 * 0.37).sin() * 128.0).round() / 64.0).collect()
}

fn kept<P: Precision>(x: &[f32]) -> Vec<P::Number> {
    x.iter().map(|x| P::Number::of(*x)).collect()
}

fn floats<N: Number>(x: &[N]) -> Vec<f32> {
    x.iter().map(|x| x.float()).collect()
}

/// `(m, k) (k, n)` of rows that are `gap` longer than they need be on the left.
fn sums(a: &[f32], b: &[f32], (m, k, n): (usize, usize, usize), gap: usize) -> Vec<f64> {
    let term = |i: usize, j: usize, l: usize| f64::from(a[i * (k + gap) + l]) * f64::from(b[l * n + j]);
    (0..m * n).map(|at| (0..k).map(|l| term(at / n, at % n, l)).sum()).collect()
}

fn transpose(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|at| x[at % rows * columns + at / rows]).collect()
}

fn assert_close(found: &[f32], expected: impl IntoIterator<Item = f64>, tolerance: f64, what: &str) {
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= tolerance * expected.abs().max(1.0), "{what}: {found} at {at} is not {expected}");
    }
}

const SIZES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (2, 3, 5),
    (5, 8, 17),
    (6, 2, 64),
    (7, 5, 65),
    (13, 64, 33),
    (49, 31, 130),
    (100, 257, 48),
    (1, 1040, 3),
];

/// Half a unit in the last place of bfloat16, and what the sums may be off by.
const HALF: f64 = 1.0 / 256.0;

fn products<P: Precision>(precision: P, what: &str, rounding: f64) {
    for (m, k, n) in SIZES {
        for gap in [0, 3] {
            let (a, b, bias) = (exact(m * (k + gap), 1), exact(k * n, 2), exact(n, 3));
            let expected = sums(&a, &b, (m, k, n), gap);
            let biased: Vec<f64> =
                expected.iter().enumerate().map(|(at, sum)| sum + f64::from(bias[at % n])).collect();
            let close = 1e-6 * (k + 1) as f64;
            let x = kept::<P>(&a);
            let x = Rows::new(&x, k + gap);
            for right in
                [precision.prepare(&b, (k, n)), precision.prepare_transposed(&transpose(&b, k, n), (n, k))]
            {
                let what = format!("{what} {m} {k} {n} {gap}");
                let stride = n + 2;
                let mut out = vec![9.0; m * stride];
                let bias = Some(bias.as_slice());
                precision.product(
                    m,
                    x,
                    &right,
                    Finish::Floats { out: &mut out, stride, bias, into: Into::Set },
                );
                let rows = |out: &[f32]| -> Vec<f32> {
                    out.chunks(stride).flat_map(|row| &row[..n]).copied().collect()
                };
                assert_close(&rows(&out), biased.iter().copied(), close, &what);
                precision.product(
                    m,
                    x,
                    &right,
                    Finish::Floats { out: &mut out, stride, bias, into: Into::Add },
                );
                assert_close(&rows(&out), biased.iter().map(|sum| 2.0 * sum), close, &what);
                assert!(
                    out.chunks(stride).all(|row| row[n..].iter().all(|x| x.to_bits() == 9_f32.to_bits()))
                );

                let mut operands = vec![P::Number::default(); m * n];
                precision.product(m, x, &right, Finish::Operands { out: &mut operands, stride: n, bias });
                assert_close(&floats(&operands), biased.iter().copied(), close + rounding, &what);

                let mut side_by_side = vec![1.0; m * n];
                precision.parallel_product(m, x, &right, &mut side_by_side, Into::Add);
                assert_close(&side_by_side, expected.iter().map(|sum| sum + 1.0), close, &what);
            }
        }
    }
}

fn weight_gradients<P: Precision>(precision: P, what: &str) {
    for (outputs, count, inputs) in SIZES {
        let (dy, x) = (exact(count * (outputs + 1), 1), exact(count * inputs, 2));
        let narrow: Vec<f32> = dy.chunks(outputs + 1).flat_map(|row| &row[..outputs]).copied().collect();
        let expected = sums(&transpose(&narrow, count, outputs), &x, (outputs, count, inputs), 0);
        let (dy, x) = (kept::<P>(&dy), kept::<P>(&x));
        let (dy, x) = (Rows::new(&dy, outputs + 1), Rows::new(&x, inputs));
        let mut out = vec![f32::NAN; outputs * inputs];
        let (size, close) = ((outputs, count, inputs), 1e-6 * (count + 1) as f64);
        precision.weight_gradient(size, dy, x, &mut out, Into::Set);
        assert_close(&out, expected.iter().copied(), close, what);
        precision.weight_gradient(size, dy, x, &mut out, Into::Add);
        assert_close(&out, expected.iter().map(|sum| 2.0 * sum), close, what);
    }
}

/// GELU after a product, and its gradient, against the same of f32.
fn activations<P: Precision>(precision: P, what: &str, rounding: f64) {
    for (m, k, n) in [(1, 3, 1), (7, 8, 65), (19, 5, 130)] {
        // Small sums, of which GELU is no line.
        let (a, b, bias) = (exact(m * k, 1), exact(k * n, 2), exact(n, 3));
        let a: Vec<f32> = a.iter().map(|a| a / 4.0).collect();
        let right = precision.prepare(&b, (k, n));
        let x = kept::<P>(&a);
        let zeros = || vec![P::Number::default(); m * n];
        let (mut hidden, mut activated) = (zeros(), zeros());
        let finish = Finish::Gelu { bias: &bias, hidden: &mut hidden, activated: &mut activated };
        precision.product(m, Rows::new(&x, k), &right, finish);
        let mut sum: Vec<f32> = sums(&a, &b, (m, k, n), 0).iter().map(|sum| *sum as f32).collect();
        let d_sum = sum.clone();
        let mut expected = vec![0.0; m * n];
        crate::engine::cpu::rows::bias_gelu(&mut expected, &mut sum, &bias);
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
        assert_close(&floats(&hidden), wide(&sum), 1e-5 + rounding, what);
        assert_close(&floats(&activated), wide(&expected), 1e-5 + 2.0 * rounding, what);

        let mask: Vec<f32> = (0..m * n).map(|i| if i % 3 == 0 { 0.0 } else { 1.25 }).collect();
        for mask in [None, Some(mask.as_slice())] {
            let (mut hidden, mut d_hidden) = (kept::<P>(&sum), zeros());
            let finish = Finish::GeluBackward { mask, hidden: &mut hidden, d_hidden: &mut d_hidden };
            precision.product(m, Rows::new(&x, k), &right, finish);
            let of_mask = |at: usize| mask.map_or(1.0, |mask| mask[at]);
            let mut dy: Vec<f32> = d_sum.iter().enumerate().map(|(at, d)| d * of_mask(at)).collect();
            let mut x = sum.clone();
            crate::engine::cpu::rows::gelu_backward(&mut dy, &mut x);
            let x: Vec<f64> = x.iter().enumerate().map(|(at, x)| f64::from(*x * of_mask(at))).collect();
            assert_close(&floats(&d_hidden), wide(&dy), 1e-5 + 4.0 * rounding, what);
            assert_close(&floats(&hidden), x, 1e-5 + 4.0 * rounding, what);
        }
    }
}

/// The attention of a head and its gradients, in f32: what it finds, and the gradients of queries, keys and values.
fn attention<P: Precision>(precision: P, (s, m, width): (usize, usize, usize), drops: bool) -> [Vec<f32>; 6] {
    let numbers = |len: usize, kind: usize| kept::<P>(&exact(len, kind));
    let gap = 2;
    let of = [numbers(s * (width + gap), 1), numbers(m * (width + gap), 2), numbers(m * (width + gap), 3)];
    let d_out = numbers(s * width, 4);
    let bias: Vec<f32> = (0..s * m)
        .map(|i| if m > 1 && i % m == (i / m + 1) % m { f32::NEG_INFINITY } else { (i as f32).sin() })
        .collect();
    let drop = |x: &mut [f32], first: usize| {
        for (at, x) in x.iter_mut().enumerate() {
            *x *= if (first + at).is_multiple_of(4) { 0.0 } else { 1.25 };
        }
    };
    let head = Head {
        queries: s,
        keys: m,
        width,
        of: [&of[0], &of[1], &of[2]].map(|of| Rows::new(of, width + gap)),
        bias: drops.then_some(Bias { values: &bias, step: m }),
        drop: if drops { Some(&drop) } else { None },
    };
    let mut out = vec![0.0; s * width];
    precision.attend(&head, Finish::Floats { out: &mut out, stride: width, bias: None, into: Into::Set });
    let mut again = vec![P::Number::default(); s * width];
    let [mut dq, mut dk, mut dv] = [s, m, m].map(|rows| vec![0.0; rows * width]);
    let finish = Finish::Operands { out: &mut again, stride: width, bias: None };
    let gradients = HeadGradients::Floats([&mut dq, &mut dk, &mut dv]);
    precision.attend_backward(&head, Rows::new(&d_out, width), Some(finish), gradients);
    let mut together = vec![P::Number::default(); s.max(m) * 3 * width];
    let gradients =
        HeadGradients::Operands { out: &mut together, stride: 3 * width, columns: [0, width, 2 * width] };
    precision.attend_backward(&head, Rows::new(&d_out, width), None, gradients);
    let part = |which: usize, rows: usize| -> Vec<f32> {
        let row = |row: usize| floats(&together[(row * 3 + which) * width..][..width]);
        (0..rows).flat_map(row).collect()
    };
    let operands = [part(0, s), part(1, m), part(2, m)].concat();
    [out, floats(&again), dq, dk, dv, operands]
}

fn distance(found: &[f32], expected: &[f32]) -> f32 {
    let square = |x: f32| x * x;
    let error: f32 = found.iter().zip(expected).map(|(found, expected)| square(found - expected)).sum();
    (error / expected.iter().copied().map(square).sum::<f32>().max(1e-12)).sqrt()
}

#[test]
fn products_are_sums() {
    products(F32, "f32", 0.0);
    products(Bf16::plain(), "plain", HALF);
    products(Bf16::default(), "native", HALF);
}

#[test]
fn gradients_of_weights_are_sums() {
    weight_gradients(F32, "f32");
    weight_gradients(Bf16::plain(), "plain");
    weight_gradients(Bf16::default(), "native");
}

#[test]
fn activations_after_products() {
    activations(F32, "f32", 0.0);
    activations(Bf16::plain(), "plain", HALF);
    activations(Bf16::default(), "native", HALF);
}

#[test]
fn attention_is_that_of_f32() {
    for size in [(1, 1, 1), (2, 3, 5), (7, 7, 8), (1, 33, 16), (50, 27, 7), (26, 70, 64)] {
        for drops in [false, true] {
            let expected = attention(F32, size, drops);
            for (precision, what) in [(Bf16::plain(), "plain"), (Bf16::default(), "native")] {
                let found = attention(precision, size, drops);
                for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    let error = distance(found, expected);
                    assert!(error < 2e-2, "{what} {size:?} {drops} {at}: {error}");
                }
            }
        }
    }
}

#[test]
fn kernels_differ_by_rounding_alone() {
    let (m, k, n) = (50, 301, 70);
    let x = kept::<Bf16>(&(0..m * k).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>());
    let w: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.3).cos()).collect();
    let run = |precision: Bf16| {
        let mut out = vec![0.0; m * n];
        let right = precision.prepare(&w, (k, n));
        let finish = Finish::Floats { out: &mut out, stride: n, bias: None, into: Into::Set };
        precision.product(m, Rows::new(&x, k), &right, finish);
        out
    };
    let (plain, native) = (run(Bf16::plain()), run(Bf16::default()));
    assert!(distance(&native, &plain) < 1e-6);
}

#[test]
fn threads_decide_no_bit() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let precision = Bf16::default();
            let (m, k, n) = (203, 67, 130);
            let (a, w) = (exact(m * k, 1), exact(k * n, 2));
            let x = precision.operand(&a);
            let mut y = vec![0.0; m * n];
            let right = precision.prepare(&w, (k, n));
            precision.parallel_product(m, Rows::new(&x, k), &right, &mut y, Into::Set);
            let mut d_w = vec![0.0; n * k];
            let dy = precision.operand(&y);
            precision.weight_gradient((n, m, k), Rows::new(&dy, n), Rows::new(&x, k), &mut d_w, Into::Set);
            y.iter().chain(&d_w).map(|x| x.to_bits()).collect::<Vec<u32>>()
        })
    };
    let alone = run(1);
    for threads in [2, 3, 7] {
        assert!(run(threads) == alone, "{threads} threads");
    }
}

#[test]
fn rounding_is_to_the_nearest_even() {
    let odd =
        [0.0, -0.0, 1.0, 1.003_906_3, 1.011_718_8, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, 1e-40, 3e38];
    for x in odd.into_iter().chain((0..10_000).map(|i| ((i * i) as f32 * 0.37).sin() * 1e3)) {
        assert_eq!(Half::of(x).to_bits(), Half::from_f32(x).to_bits(), "{x}");
    }
    // With all low bits, rounding would carry into the exponent.
    for bits in [0x7f80_0001, 0x7fff_ffff, 0xffff_ffff, 0x7fc0_0000] {
        assert!(Half::of(f32::from_bits(bits)).is_nan(), "{bits:x}");
    }
}
