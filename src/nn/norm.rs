//! Layer normalisation.

use candle_core::{Result, Tensor};

use super::{Builder, Init};

/// The eps of every `LayerNorm` of the network.
pub const LAYER_NORM_EPS: f32 = 1e-5;

/// `nn.LayerNorm` over the last dimension, eps 1e-5: `weight` (D), `bias` (D).
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    /// Ones and zeros at first.
    pub fn new(b: &Builder, width: usize) -> Result<Self> {
        Ok(Self {
            weight: b.parameter("weight", &[width], Init::Ones)?,
            bias: b.parameter("bias", &[width], Init::Zeros)?,
        })
    }

    /// (…, D) to (…, D).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // Candle's fused version has no backward and would silently cut the graph.
        candle_nn::ops::layer_norm_slow(x, &self.weight, &self.bias, LAYER_NORM_EPS)
    }
}
