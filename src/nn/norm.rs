//! Layer normalisation.

use std::rc::Rc;

use candle_core::{Result, Tensor};

use super::operations::Operations;
use super::{Builder, Init};

/// The eps of every `LayerNorm` of the network, but for the backbones' where the experiment says otherwise.
pub const LAYER_NORM_EPS: f32 = 1e-5;

/// `nn.LayerNorm` over the last dimension: `weight` (D), `bias` (D).
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
    operations: Rc<dyn Operations>,
}

impl LayerNorm {
    /// Ones and zeros at first; with the usual eps.
    pub fn new(b: &Builder, width: usize) -> Result<Self> {
        Self::with_eps(b, width, LAYER_NORM_EPS)
    }

    /// Ones and zeros at first.
    pub fn with_eps(b: &Builder, width: usize, eps: f32) -> Result<Self> {
        Ok(Self {
            eps,
            operations: b.operations(),
            weight: b.parameter("weight", &[width], Init::Ones)?,
            bias: b.parameter("bias", &[width], Init::Zeros)?,
        })
    }

    /// (…, D) to (…, D).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.operations.layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}
