//! The affine map `x W^T + b`.

use candle_core::{Result, Tensor};

use super::{Builder, Init};

/// `nn.Linear`: `weight` (out, in) and `bias` (out).
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
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
        Self { weight: self.weight.detach(), bias: self.bias.detach() }
    }

    /// (…, in) to (…, out).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        affine(x, &self.weight, &self.bias)
    }
}

/// `x W^T + b` for `x` (…, in), `weight` (out, in), `bias` (out), as one matrix product.
pub fn affine(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    product(x, weight)?.broadcast_add(bias)
}

/// `x W^T` for `x` (…, in), `weight` (out, in), as one matrix product.
pub fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    let inputs = shape.pop().unwrap_or(1);
    shape.push(weight.dim(0)?);
    x.reshape(((), inputs))?.matmul(&weight.t()?)?.reshape(shape)
}
