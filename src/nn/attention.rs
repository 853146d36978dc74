//! Multi-head attention, to what asks or to something else.

use candle_core::{D, DType, Device, Result, Tensor};

use super::linear::affine;
use super::{Builder, Dropout, Init, Linear, Pass};

/// `nn.MultiheadAttention` with `batch_first`: `in_proj_weight` (3D, D), `in_proj_bias` (3D), `out_proj`.
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

    /// (N, S, D) to (N, S, D). `bias` is added to the scores (N, H, S, S), to which it is broadcast: minus infinity hides
    /// a key.
    pub fn forward(&self, x: &Tensor, bias: Option<&Tensor>, pass: &Pass) -> Result<Tensor> {
        let (n, s, d) = x.dims3()?;
        let qkv = affine(x, &self.in_proj_weight, &self.in_proj_bias)?
            .reshape((n, s, 3, self.heads, d / self.heads))?
            .permute((2, 0, 3, 1, 4))?; // (3, N, H, S, D/H)
        let part = |at: usize| qkv.get(at)?.contiguous();
        self.attend(&part(0)?, &part(1)?, &part(2)?, bias, pass)
    }

    /// Attention of `x` (N, S, D) to `memory` (N, M, D), to (N, S, D). `bias` as in [`Self::forward`], for scores
    /// (N, H, S, M).
    pub fn forward_to(
        &self,
        x: &Tensor,
        memory: &Tensor,
        bias: Option<&Tensor>,
        pass: &Pass,
    ) -> Result<Tensor> {
        let [keys, values] = self.keys_values(memory)?;
        self.attend(&self.queries(x)?, &keys, &values, bias, pass)
    }

    /// The queries (N, H, S, D/H) of `x` (N, S, D).
    pub fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.part(x, 0)
    }

    /// Keys and values (N, H, S, D/H) of `x` (N, S, D).
    pub fn keys_values(&self, x: &Tensor) -> Result<[Tensor; 2]> {
        Ok([self.part(x, 1)?, self.part(x, 2)?])
    }

    /// What the third `at` of the input projection makes of `x` (N, S, D), by heads: (N, H, S, D/H).
    fn part(&self, x: &Tensor, at: usize) -> Result<Tensor> {
        let (n, s, d) = x.dims3()?;
        let (weight, bias) = (&self.in_proj_weight, &self.in_proj_bias);
        affine(x, &weight.narrow(0, at * d, d)?, &bias.narrow(0, at * d, d)?)?
            .reshape((n, s, self.heads, d / self.heads))?
            .transpose(1, 2)?
            .contiguous()
    }

    /// What the queries (N, H, S, D/H) find among keys and values (N, H, M, D/H): (N, S, D). `bias` as in
    /// [`Self::forward`].
    pub fn attend(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        bias: Option<&Tensor>,
        pass: &Pass,
    ) -> Result<Tensor> {
        let (n, heads, s, head) = queries.dims4()?;
        let queries = (queries * (1.0 / (head as f64).sqrt()))?;
        let mut scores = queries.matmul(&keys.transpose(2, 3)?.contiguous()?)?; // (N, H, S, M)
        if let Some(bias) = bias {
            scores = scores.broadcast_add(bias)?;
        }
        let weights = self.dropout.forward(&candle_nn::ops::softmax(&scores, D::Minus1)?, pass)?;
        let mixed = weights.matmul(values)?.transpose(1, 2)?.reshape((n, s, heads * head))?;
        self.out_proj.forward(&mixed)
    }
}

/// What attention adds to the scores of each key, of a mask (B, S), u8: 0, or minus infinity where the mask is 0.
/// (B, 1, 1, S)
pub fn key_bias(mask: &Tensor) -> Result<Tensor> {
    let (batch, keys) = mask.dims2()?;
    let zeros = mask.zeros_like()?.to_dtype(DType::F32)?;
    let hidden = Tensor::full(f32::NEG_INFINITY, (batch, keys), mask.device())?;
    mask.where_cond(&zeros, &hidden)?.reshape((batch, 1, 1, keys))
}

/// What attention adds to the scores of a text's tokens among one another, so that none sees a later one: 0 or minus
/// infinity. (1, 1, L, L)
pub fn causal_bias(length: usize, device: &Device) -> Result<Tensor> {
    let bias = |row: usize, column: usize| if column > row { f32::NEG_INFINITY } else { 0.0 };
    let values = (0..length).flat_map(|row| (0..length).map(move |column| bias(row, column)));
    Tensor::from_iter(values, device)?.reshape((1, 1, length, length))
}
