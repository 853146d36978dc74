//! Multi-head self-attention.

use candle_core::{D, Result, Tensor};

use super::linear::affine;
use super::{Builder, Dropout, Init, Linear, Pass};

/// `nn.MultiheadAttention` with `batch_first`, attending to its own input: `in_proj_weight` (3D, D),
/// `in_proj_bias` (3D), `out_proj`.
pub struct MultiheadAttention {
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: Linear,
    dropout: Dropout,
    heads: usize,
}

impl MultiheadAttention {
    /// `width` divides by `heads`; `dropout` is on the attention weights; `out_proj` starts from
    /// `out_weight`, and both biases from 0.
    pub fn new(b: &Builder, width: usize, heads: usize, dropout: f64, out_weight: Init) -> Result<Self> {
        let xavier = Init::XavierUniform { fan_in: width, fan_out: 3 * width };
        Ok(Self {
            in_proj_weight: b.parameter("in_proj_weight", &[3 * width, width], xavier)?,
            in_proj_bias: b.parameter("in_proj_bias", &[3 * width], Init::Zeros)?,
            out_proj: Linear::with_init(&b.pp("out_proj"), width, width, out_weight, Init::Zeros)?,
            dropout: b.dropout("dropout", dropout),
            heads,
        })
    }

    /// (N, S, D) to (N, S, D). `key_bias` (N, 1, 1, S) is added to the scores: minus infinity hides a key.
    pub fn forward(&self, x: &Tensor, key_bias: Option<&Tensor>, pass: &Pass) -> Result<Tensor> {
        let (n, s, d) = x.dims3()?;
        let head = d / self.heads;
        let qkv = affine(x, &self.in_proj_weight, &self.in_proj_bias)?
            .reshape((n, s, 3, self.heads, head))?
            .permute((2, 0, 3, 1, 4))?; // (3, N, H, S, D/H)
        let q = (qkv.get(0)?.contiguous()? * (1.0 / (head as f64).sqrt()))?;
        let k = qkv.get(1)?.contiguous()?;
        let v = qkv.get(2)?.contiguous()?;
        let mut scores = q.matmul(&k.transpose(2, 3)?.contiguous()?)?; // (N, H, S, S)
        if let Some(bias) = key_bias {
            scores = scores.broadcast_add(bias)?;
        }
        let weights = self.dropout.forward(&candle_nn::ops::softmax(&scores, D::Minus1)?, pass)?;
        let mixed = weights.matmul(&v)?.transpose(1, 2)?.reshape((n, s, d))?;
        self.out_proj.forward(&mixed)
    }
}
