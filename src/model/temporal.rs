//! The temporal encoder: learned positions, then PyTorch's post-norm `ReLU` transformer encoder over frames.

use std::rc::Rc;

use candle_core::{Result, Tensor};

use super::trace::Trace;
use crate::config;
use crate::nn::{
    Activation, Builder, Dropout, Init, LayerNorm, Linear, MultiheadAttention, Operations, Pass,
};

/// A learned vector for each frame's place, added to its features.
pub struct Positional {
    weight: Tensor, // (sequence_length, D)
}

/// `nn.TransformerEncoder` of `nn.TransformerEncoderLayer`s (post-norm, `ReLU`).
pub struct Temporal {
    layers: Vec<Layer>,
}

struct Layer {
    self_attn: MultiheadAttention,
    linear1: Linear,
    linear2: Linear,
    norm1: LayerNorm,
    norm2: LayerNorm,
    /// After attention, inside the feed-forward part, after it.
    dropout: [Dropout; 3],
    operations: Rc<dyn Operations>,
}

impl Positional {
    /// For clips of up to `frames` frames.
    pub fn new(b: &Builder, frames: usize, width: usize) -> Result<Self> {
        Ok(Self { weight: b.pp("embedding").parameter("weight", &[frames, width], Init::Normal(1.0))? })
    }

    /// (B, T, D) to (B, T, D).
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.broadcast_add(&self.weight.narrow(0, 0, x.dim(1)?)?)
    }
}

impl Temporal {
    /// As many layers as the configuration says.
    pub fn new(b: &Builder, c: &config::Model) -> Result<Self> {
        let layers = b.pp("encoder").pp("layers");
        let layers: Result<_> = (0..c.temporal_layers).map(|i| Layer::new(&layers.pp(i), c)).collect();
        Ok(Self { layers: layers? })
    }

    /// (B, T, D) to (B, T, D); `key_bias` (B, 1, 1, T) is minus infinity at frames that are padding.
    /// `trace` sees what each layer gives.
    pub fn forward(&self, x: &Tensor, key_bias: &Tensor, pass: &Pass, trace: Trace) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, key_bias, pass)?;
            trace(&format!("encoder.layers.{i}"), &x)?;
        }
        Ok(x)
    }
}

impl Layer {
    fn new(b: &Builder, c: &config::Model) -> Result<Self> {
        let (width, hidden, p) = (c.d_model, c.temporal_dim_feedforward, c.temporal_dropout);
        Ok(Self {
            self_attn: MultiheadAttention::new(
                &b.pp("self_attn"),
                width,
                c.temporal_nhead,
                p,
                Init::FanIn(width),
            )?,
            linear1: Linear::new(&b.pp("linear1"), width, hidden)?,
            linear2: Linear::new(&b.pp("linear2"), hidden, width)?,
            norm1: LayerNorm::new(&b.pp("norm1"), width)?,
            norm2: LayerNorm::new(&b.pp("norm2"), width)?,
            dropout: [b.dropout("dropout1", p), b.dropout("dropout", p), b.dropout("dropout2", p)],
            operations: b.operations(),
        })
    }

    fn forward(&self, x: &Tensor, key_bias: &Tensor, pass: &Pass) -> Result<Tensor> {
        let ([after_attention, inside, after], operations) = (&self.dropout, &self.operations);
        let attended = self.self_attn.forward(x, Some(key_bias), pass)?;
        let x = self.norm1.forward(&operations.residual(x, &attended, after_attention, pass)?)?;
        let hidden = operations.activate(&self.linear1.forward(&x)?, Activation::Relu, inside, pass)?;
        let y = self.linear2.forward(&hidden)?;
        self.norm2.forward(&operations.residual(&x, &y, after, pass)?)
    }
}
