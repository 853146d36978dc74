//! The decoder stub: the mean of the valid frames, then one linear layer to the classes.

use candle_core::{Result, Tensor};

use crate::config;
use crate::nn::{Builder, Linear};

/// Mean over valid frames and a classifier (`lm_head`).
pub struct Decoder {
    lm_head: Linear,
}

impl Decoder {
    /// To `vocab_size` classes.
    pub fn new(b: &Builder, c: &config::Model) -> Result<Self> {
        Ok(Self { lm_head: Linear::new(&b.pp("lm_head"), c.d_model, c.vocab_size)? })
    }

    /// (B, T, D) and `valid` (B, T; 1 or 0) to the mean of the valid frames (B, D), 0 for a clip without one.
    pub fn mean(x: &Tensor, valid: &Tensor) -> Result<Tensor> {
        let count = valid.sum_keepdim(1)?.clamp(1f32, f32::MAX)?; // (B, 1)
        x.broadcast_mul(&valid.unsqueeze(2)?)?.sum(1)?.broadcast_div(&count)
    }

    /// Means (B, D) to logits (B, V).
    pub fn classify(&self, mean: &Tensor) -> Result<Tensor> {
        self.lm_head.forward(mean)
    }

    /// The classes' weight (V, D).
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        self.lm_head.tensors()[0]
    }
}
