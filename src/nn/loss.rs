//! The loss: cross-entropy with label smoothing.

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

/// `nn.CrossEntropyLoss(label_smoothing=smoothing)`, the mean over the batch, of `logits` (B, V) against class
/// indices `targets` (B, u32): the smoothed target is `1 - smoothing` on the class plus `smoothing / V` on all.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, smoothing: f64) -> Result<Tensor> {
    let log_probabilities = candle_nn::ops::log_softmax(logits, D::Minus1)?;
    let of_class = log_probabilities.gather(&targets.unsqueeze(1)?, 1)?.mean_all()?;
    if smoothing == 0.0 {
        return of_class.neg();
    }
    let of_all = log_probabilities.mean_all()?;
    (of_class * (smoothing - 1.0))? - (of_all * smoothing)?
}

/// [`cross_entropy`] and its gradient for `logits` (B, V), without a graph: each row is gone through three times, where the
/// graph makes a tensor of each operation.
pub fn cross_entropy_and_gradient(
    logits: &Tensor,
    targets: &Tensor,
    smoothing: f64,
) -> Result<(f64, Tensor)> {
    let (rows, classes) = logits.dims2()?;
    let mut values = logits.flatten_all()?.to_vec1::<f32>()?;
    let targets = targets.to_vec1::<u32>()?;
    let share = (1.0 / rows.max(1) as f64) as f32;
    let on_all = (smoothing / classes.max(1) as f64) as f32;
    let row = |(row, target): (&mut [f32], &u32)| {
        let largest = row.iter().fold(f32::NEG_INFINITY, |largest, &x| largest.max(x));
        let of_all: f64 = row.iter().map(|&x| f64::from(x - largest)).sum::<f64>() / row.len() as f64;
        let own = row.get(*target as usize).map_or(f64::NAN, |&x| f64::from(x - largest));
        for x in &mut *row {
            *x = (*x - largest).exp();
        }
        let sum: f64 = row.iter().map(|&x| f64::from(x)).sum();
        let inverse = (1.0 / sum) as f32;
        for x in &mut *row {
            *x = (*x * inverse - on_all) * share;
        }
        if let Some(x) = row.get_mut(*target as usize) {
            *x -= (1.0 - smoothing) as f32 * share;
        }
        sum.ln() - (1.0 - smoothing) * own - smoothing * of_all
    };
    let losses: Vec<f64> = values.par_chunks_mut(classes.max(1)).zip(&targets).map(row).collect();
    let gradient = Tensor::from_vec(values, (rows, classes), logits.device())?;
    Ok((losses.iter().sum::<f64>() / rows as f64, gradient))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use serde_json::Value;

    fn numbers(value: &Value) -> Vec<f32> {
        let list = value.as_array().expect("a list");
        list.iter().flat_map(|v| v.as_f64().map_or_else(|| numbers(v), |v| vec![v as f32])).collect()
    }

    #[test]
    fn loss_and_gradient_are_pytorchs() -> Result<()> {
        let text = include_str!("../../tests/data/label_smoothing.json");
        let cases: Vec<Value> = serde_json::from_str(text).expect("the file is JSON");
        assert!(!cases.is_empty());
        for case in &cases {
            let targets: Vec<u32> = numbers(&case["target"]).iter().map(|&t| t as u32).collect();
            let logits = numbers(&case["logits"]);
            let shape = (targets.len(), logits.len() / targets.len());
            let logits = Var::from_tensor(&Tensor::from_vec(logits, shape, &Device::Cpu)?)?;
            let targets = Tensor::from_vec(targets, shape.0, &Device::Cpu)?;
            let smoothing = case["label_smoothing"].as_f64().expect("a number");
            let loss = cross_entropy(&logits, &targets, smoothing)?;
            let expected = case["loss"].as_f64().expect("a number");
            let found = f64::from(loss.to_scalar::<f32>()?);
            assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} is not {expected}");
            let gradient =
                loss.backward()?.get(&logits).expect("a gradient").flatten_all()?.to_vec1::<f32>()?;
            let (loss, direct) = cross_entropy_and_gradient(&logits, &targets, smoothing)?;
            assert!((loss - expected).abs() <= 1e-6 * expected.abs(), "{loss} is not {expected}");
            let direct = direct.flatten_all()?.to_vec1::<f32>()?;
            let expected = numbers(&case["grad"]);
            assert_eq!((gradient.len(), direct.len()), (expected.len(), expected.len()));
            for (found, expected) in gradient.iter().chain(&direct).zip(expected.iter().chain(&expected)) {
                assert!((found - expected).abs() <= 1e-6, "{found} is not {expected}");
            }
        }
        Ok(())
    }
}
