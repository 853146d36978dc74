//! Products against sums in f64, at sizes that no tile divides.

use super::*;

const SIZES: [usize; 7] = [1, 2, 3, 8, 17, 33, 65];

fn numbers(len: usize, kind: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 13 + kind * 5) as f32 * 0.37).sin()).collect()
}

/// How a product is called.
type Product = fn((usize, usize, usize), Matrix, Matrix, &mut [f32], usize, Into);

/// One product with operands as they are or transposed, in rows that are `gap` numbers longer than their matrices.
fn check(run: Product, (m, k, n): (usize, usize, usize), [a_t, b_t]: [bool; 2], gap: usize, into: Into) {
    let lay = |rows: usize, columns: usize, transposed: bool, kind: usize| {
        let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
        (numbers(rows * (columns + gap), kind), columns + gap)
    };
    let ((a, a_stride), (b, b_stride)) = (lay(m, k, a_t, 1), lay(k, n, b_t, 2));
    let at = |x: &[f32], stride: usize, transposed: bool, i: usize, j: usize| {
        f64::from(if transposed { x[j * stride + i] } else { x[i * stride + j] })
    };
    let matrix = |x, stride, transposed| {
        let rows = Matrix::rows(x, stride);
        if transposed { rows.t() } else { rows }
    };
    let stride = n + gap;
    let before = match into {
        Into::Set => vec![f32::NAN; m * stride],
        Into::Add => numbers(m * stride, 3),
    };
    let mut out = before.clone();
    run((m, k, n), matrix(&a, a_stride, a_t), matrix(&b, b_stride, b_t), &mut out, stride, into);
    for i in 0..m {
        for j in 0..stride {
            let found = out[i * stride + j];
            if j >= n {
                assert_eq!(
                    found.to_bits(),
                    before[i * stride + j].to_bits(),
                    "({m}, {k}, {n}): between rows"
                );
                continue;
            }
            let terms = (0..k).map(|l| at(&a, a_stride, a_t, i, l) * at(&b, b_stride, b_t, l, j));
            let start = if into == Into::Add { f64::from(before[i * stride + j]) } else { 0.0 };
            let expected = start + terms.sum::<f64>();
            let error = (f64::from(found) - expected).abs();
            assert!(
                error < 1e-6 * (k + 1) as f64,
                "({m}, {k}, {n}) {a_t} {b_t} at ({i}, {j}): {found}, not {expected}"
            );
        }
    }
}

#[test]
fn products_are_sums() {
    for run in [product as Product, parallel_product] {
        for m in SIZES {
            for k in SIZES {
                for n in SIZES {
                    let transposed = [[false, false], [false, true], [true, false], [true, true]];
                    check(run, (m, k, n), transposed[(m + k + n) % 4], (m * n) % 3, Into::Set);
                    check(run, (m, k, n), transposed[(m + k) % 4], (k * n) % 2, Into::Add);
                }
            }
        }
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            check(run, (197, 64, 197), transposed, 5, Into::Set);
            check(run, (100, 300, 30), transposed, 0, Into::Add);
        }
    }
}

#[test]
fn empty_products() {
    let a = Matrix::rows(&[], 1);
    let mut out = [5.0; 6];
    product((0, 3, 2), a, Matrix::rows(&[1.0; 6], 2), &mut out, 2, Into::Set);
    product((2, 3, 0), Matrix::rows(&[1.0; 6], 3), a, &mut out, 2, Into::Set);
    product((3, 0, 2), a, a, &mut out, 2, Into::Add);
    assert_eq!(out.map(f32::to_bits), [5.0_f32; 6].map(f32::to_bits));
    product((3, 0, 2), a, a, &mut out, 2, Into::Set);
    assert_eq!(out.map(f32::to_bits), [0.0_f32; 6].map(f32::to_bits));
}

#[test]
#[should_panic(expected = "an operand is too short")]
fn a_short_operand_is_refused() {
    product((2, 3, 2), Matrix::rows(&[1.0; 5], 3), Matrix::rows(&[1.0; 6], 2), &mut [0.0; 4], 2, Into::Set);
}

#[test]
#[should_panic(expected = "the destination is too short")]
fn a_short_destination_is_refused() {
    product((2, 3, 2), Matrix::rows(&[1.0; 6], 3), Matrix::rows(&[1.0; 6], 2), &mut [0.0; 3], 2, Into::Set);
}
