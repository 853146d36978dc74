//! The projector: one stream's features to the width that fusion takes.

use std::rc::Rc;

use candle_core::{Result, Tensor};

use crate::nn::{Activation, Builder, Dropout, LayerNorm, Linear, Operations, Pass};

/// LayerNorm, linear, exact GELU, dropout, linear.
pub struct Projector {
    norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    dropout: Dropout,
    operations: Rc<dyn Operations>,
}

impl Projector {
    /// From `inputs` to `outputs` features.
    pub fn new(b: &Builder, inputs: usize, outputs: usize, dropout: f64) -> Result<Self> {
        let layers = b.pp("layers");
        Ok(Self {
            norm: LayerNorm::new(&layers.pp(0), inputs)?,
            fc1: Linear::new(&layers.pp(1), inputs, outputs)?,
            fc2: Linear::new(&layers.pp(4), outputs, outputs)?,
            dropout: layers.dropout("3", dropout),
            operations: b.operations(),
        })
    }

    /// (B, T, inputs) to (B, T, outputs).
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let hidden = self.fc1.forward(&self.norm.forward(x)?)?;
        self.fc2.forward(&self.operations.activate(&hidden, Activation::Gelu, &self.dropout, pass)?)
    }
}
