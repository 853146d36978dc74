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
