//! The affine map `x W^T + b`.

use std::rc::Rc;

use candle_core::{Result, Tensor};

use super::operations::{Affine, Operations};
use super::{Builder, Init};

/// `nn.Linear`: `weight` (out, in) and `bias` (out).
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
    operations: Rc<dyn Operations>,
}

impl Linear {
    /// With PyTorch's default initialisation.
    pub fn new(b: &Builder, inputs: usize, outputs: usize) -> Result<Self> {
        Self::with_init(b, inputs, outputs, Init::FanIn(inputs), Init::FanIn(inputs))
    }

    /// With an initialisation of its own.
    pub fn with_init(b: &Builder, inputs: usize, outputs: usize, weight: Init, bias: Init) -> Result<Self> {
        Ok(Self {
            weight: b.parameter("weight", &[outputs, inputs], weight)?,
            bias: b.parameter("bias", &[outputs], bias)?,
            operations: b.operations(),
        })
    }

    /// (out, in).
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// It with the same numbers as constants: what it computes keeps no graph of them.
    #[must_use]
    pub fn detached(&self) -> Self {
        let operations = Rc::clone(&self.operations);
        Self { weight: self.weight.detach(), bias: self.bias.detach(), operations }
    }

    /// (…, in) to (…, out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.operations.affine(x, Affine::whole(&self.weight, Some(&self.bias))?)
    }
}
