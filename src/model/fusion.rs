//! Fusion: the four streams of a frame to one vector.

use candle_core::{D, Result, Tensor};

use crate::nn::{Builder, Dropout, LayerNorm, Linear, Pass};

/// Concatenation, LayerNorm, dropout, linear.
pub struct Fusion {
    norm: LayerNorm,
    proj: Linear,
    dropout: Dropout,
}

impl Fusion {
    /// From `inputs` features of all streams together to `outputs`.
    pub fn new(b: &Builder, inputs: usize, outputs: usize, dropout: f64) -> Result<Self> {
        Ok(Self {
            norm: LayerNorm::new(&b.pp("norm"), inputs)?,
            proj: Linear::new(&b.pp("proj"), inputs, outputs)?,
            dropout: b.dropout("dropout", dropout),
        })
    }

    /// Streams of (B, T, …) to (B, T, D).
    pub fn forward(&self, streams: &[Tensor], pass: &Pass) -> Result<Tensor> {
        let x = self.norm.forward(&Tensor::cat(streams, D::Minus1)?)?;
        self.proj.forward(&self.dropout.forward(&x, pass)?)
    }
}
