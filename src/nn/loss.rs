//! The loss: cross-entropy with label smoothing.

use candle_core::{D, Result, Tensor};

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
            for (found, expected) in gradient.iter().zip(numbers(&case["grad"])) {
                assert!((found - expected).abs() <= 1e-6, "{found} is not {expected}");
            }
        }
        Ok(())
    }
}
