//! Each row operation against plain arithmetic in f64, each backward pass against finite differences of that, at
//! widths that no vector divides.

use super::*;

const WIDTHS: [usize; 8] = [1, 2, 3, 15, 16, 17, 33, 197];
const ROWS: [usize; 3] = [1, 2, 5];

/// Numbers of about -2 to 2, other ones for each `kind`.
fn numbers(len: usize, kind: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 7 + kind * 31) as f32 * 0.77).sin() * 1.3 + ((i + kind) as f32 * 0.1).cos() * 0.7)
        .collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn assert_close(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs();
        assert!(error <= tolerance * expected.abs().max(1.0), "{what}: {found} at {i} is not {expected}");
    }
}

/// The gradient at `x` of the sum of `pull` times `f`, by central differences.
fn differences(x: &[f64], pull: &[f32], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let value = |x: &[f64]| -> f64 { f(x).iter().zip(pull).map(|(y, p)| y * f64::from(*p)).sum() };
    let mut moved = x.to_vec();
    (0..x.len())
        .map(|i| {
            moved[i] = x[i] + STEP;
            let above = value(&moved);
            moved[i] = x[i] - STEP;
            let below = value(&moved);
            moved[i] = x[i];
            (above - below) / (2.0 * STEP)
        })
        .collect()
}

/// With an eps that is not the usual one.
const EPS: f32 = 3e-4;

fn norm<'a>(weight: &'a [f32], bias: &'a [f32]) -> Norm<'a> {
    Norm { weight, bias, eps: EPS }
}

fn plain_layer_norm(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let width = weight.len();
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(width) {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let deviation = (variance + f64::from(EPS)).sqrt();
        out.extend(row.iter().zip(weight).zip(bias).map(|((x, w), b)| (x - mean) / deviation * w + b));
    }
    out
}

fn plain_softmax(x: &[f64], width: usize, factor: f64) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks_exact(width) {
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = row.iter().map(|x| ((x - largest) * factor).exp()).collect();
        let sum: f64 = powers.iter().sum();
        out.extend(powers.iter().map(|p| p / sum));
    }
    out
}

/// The exact GELU, its error function as Simpson's integral of the bell.
fn plain_gelu(x: f64) -> f64 {
    let bell = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let h = x / 400.0;
    let inner: f64 = (1..400).map(|i| f64::from(2 + 2 * (i % 2)) * bell(f64::from(i) * h)).sum();
    x * (0.5 + h / 3.0 * (bell(0.0) + inner + bell(x)))
}

fn each_size(check: impl Fn(usize, usize)) {
    for width in WIDTHS {
        for rows in ROWS {
            check(rows, width);
        }
    }
}

#[test]
fn layer_norm_and_its_gradients() {
    each_size(|rows, width| {
        let what = format!("{rows} x {width}");
        let (x, dy) = (numbers(rows * width, 1), numbers(rows * width, 2));
        let (weight, bias) = (numbers(width, 3), numbers(width, 4));
        let (x64, weight64, bias64) = (wide(&x), wide(&weight), wide(&bias));
        let expected = plain_layer_norm(&x64, &weight64, &bias64);
        let mut out = vec![f32::NAN; x.len()];
        layer_norm(&mut out, &x, norm(&weight, &bias));
        // The smallest rows nearly lose their variance, and with it some digits.
        assert_close(&out, &expected, 1e-5, &what);

        // Gradients are added to what is there.
        let (mut dx, mut d_weight, mut d_bias) = (numbers(x.len(), 5), numbers(width, 6), numbers(width, 7));
        let before = [wide(&dx), wide(&d_weight), wide(&d_bias)];
        layer_norm_backward(&mut dx, &x, &dy, norm(&weight, &bias), &mut d_weight, &mut d_bias);
        let of_x = differences(&x64, &dy, |x| plain_layer_norm(x, &weight64, &bias64));
        let of_weight = differences(&weight64, &dy, |w| plain_layer_norm(&x64, w, &bias64));
        let of_bias = differences(&bias64, &dy, |b| plain_layer_norm(&x64, &weight64, b));
        for ((found, before), gradient) in
            [dx, d_weight, d_bias].iter().zip(before).zip([of_x, of_weight, of_bias])
        {
            let expected: Vec<f64> = before.iter().zip(gradient).map(|(a, b)| a + b).collect();
            assert_close(found, &expected, 5e-5, &what);
        }
    });
}

#[test]
fn layer_norm_of_equal_numbers_is_its_bias() {
    let (x, weight, bias) = (vec![3.5; 17], numbers(17, 1), numbers(17, 2));
    let mut out = vec![0.0; 17];
    layer_norm(&mut out, &x, norm(&weight, &bias));
    assert_close(&out, &wide(&bias), 1e-6, "output");
    let (mut dx, mut dw, mut db) = (vec![0.0; 17], vec![0.0; 17], vec![0.0; 17]);
    layer_norm_backward(&mut dx, &x, &numbers(17, 3), norm(&weight, &bias), &mut dw, &mut db);
    assert!(dx.iter().chain(&dw).all(|x| x.is_finite()));
}

#[test]
fn gelu_and_its_gradient() {
    each_size(|rows, width| {
        let what = format!("{rows} x {width}");
        let bias = numbers(width, 1);
        let mut x: Vec<f32> = numbers(rows * width, 2).iter().map(|x| 2.5 * x).collect();
        let shifted: Vec<f32> = x.iter().enumerate().map(|(i, x)| x + bias[i % width]).collect();
        let plain = |x: &[f64]| -> Vec<f64> { x.iter().map(|&x| plain_gelu(x)).collect() };
        let expected = plain(&wide(&shifted));
        let mut out = vec![f32::NAN; x.len()];
        bias_gelu(&mut out, &mut x, &bias);
        assert_close(&out, &expected, 1e-6, &what);
        assert_close(&x, &wide(&shifted), 0.0, &what);

        let pull = numbers(x.len(), 3);
        let mut dy = pull.clone();
        gelu_backward(&mut dy, &mut x);
        // Each number by itself: a central difference of one.
        let slope = |x: f64| differences(&[x], &[1.0], |x| vec![plain_gelu(x[0])])[0];
        let gradient: Vec<f64> = wide(&shifted).iter().zip(wide(&pull)).map(|(&x, p)| p * slope(x)).collect();
        assert_close(&dy, &gradient, 1e-5, &what);
        assert_close(&x, &expected, 1e-6, &what);
    });
}

#[test]
fn softmax_and_its_gradient() {
    each_size(|rows, width| {
        for factor in [1.0, 0.125, 7.0] {
            let what = format!("{rows} x {width}, factor {factor}");
            let scores = numbers(rows * width, 1);
            let plain = |x: &[f64]| plain_softmax(x, width, f64::from(factor));
            let mut p = scores.clone();
            softmax(&mut p, width, factor);
            assert_close(&p, &plain(&wide(&scores)), 1e-6, &what);
            let pull = numbers(p.len(), 2);
            let mut dp = pull.clone();
            softmax_backward(&mut dp, &p, width, factor);
            assert_close(&dp, &differences(&wide(&scores), &pull, plain), 2e-6, &what);
        }
    });
}

#[test]
fn softmax_takes_any_scores() {
    let mut p = vec![1e30, -1e30, 0.0];
    softmax(&mut p, 3, 1.0);
    assert!(p[0] > 0.999_999 && p[1] < 1e-30 && p[2] < 1e-30, "{p:?}");
    let mut equal = vec![-1e30; 5];
    softmax(&mut equal, 5, 3.0);
    assert_close(&equal, &[0.2; 5], 1e-6, "equal scores");
}

#[test]
fn biases_residuals_and_masks() {
    each_size(|rows, width| {
        let what = format!("{rows} x {width}");
        let (a, b, bias) = (numbers(rows * width, 1), numbers(rows * width, 2), numbers(width, 3));
        let (a64, b64, bias64) = (wide(&a), wide(&b), wide(&bias));
        let of = |f: &dyn Fn(usize) -> f64| -> Vec<f64> { (0..a.len()).map(f).collect() };

        let mut x = a.clone();
        add_bias(&mut x, &bias);
        assert_close(&x, &of(&|i| a64[i] + bias64[i % width]), 1e-6, &what);
        let mut out = vec![f32::NAN; a.len()];
        add(&mut out, &a, &b, &bias);
        assert_close(&out, &of(&|i| a64[i] + b64[i] + bias64[i % width]), 1e-6, &what);
        let mut x = a.clone();
        multiply(&mut x, &b);
        assert_close(&x, &of(&|i| a64[i] * b64[i]), 1e-6, &what);
        let mut x = a.clone();
        scale(&mut x, 0.3);
        assert_close(&x, &of(&|i| a64[i] * f64::from(0.3_f32)), 1e-6, &what);

        // A bias's gradient, added to what is there.
        let mut sums = bias.clone();
        add_column_sums(&mut sums, &a);
        let expected: Vec<f64> =
            (0..width).map(|c| bias64[c] + a64.iter().skip(c).step_by(width).sum::<f64>()).collect();
        assert_close(&sums, &expected, 1e-6, &what);
    });
}
