//! Multi-head attention, to what asks or to something else.

use std::ops::Range;
use std::rc::Rc;

use candle_core::{DType, Device, Result, Tensor};

use super::operations::{Affine, Attention, Operations, Projected, attend_by_heads, split};
use super::{Builder, Dropout, Init, Linear, Pass};

/// `nn.MultiheadAttention` with `batch_first`: `in_proj_weight` (3D, D), `in_proj_bias` (3D), `out_proj`.
pub struct MultiheadAttention {
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: Linear,
    dropout: Dropout,
    heads: usize,
    operations: Rc<dyn Operations>,
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
            operations: b.operations(),
        })
    }

    /// (N, S, D) to (N, S, D). `bias` is added to the scores (N, H, S, S), to which it is broadcast: minus infinity hides
    /// a key.
    pub fn forward(&self, x: &Tensor, bias: Option<&Tensor>, pass: &Pass) -> Result<Tensor> {
        let qkv = self.project(x, 0..3)?;
        self.attend(Projected::Own(&qkv), bias, pass)
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
        let (queries, keys_values) = (self.project(x, 0..1)?, self.project(memory, 1..3)?);
        self.attend(Projected::Other { queries: &queries, keys_values: &keys_values }, bias, pass)
    }

    fn attend(&self, of: Projected, bias: Option<&Tensor>, pass: &Pass) -> Result<Tensor> {
        let attention = Attention { of, heads: self.heads, bias, dropout: &self.dropout };
        self.out_proj.forward(&self.operations.attend(&attention, pass)?)
    }

    /// The queries (N, H, S, D/H) of `x` (N, S, D).
    pub fn queries(&self, x: &Tensor) -> Result<Tensor> {
        let [queries] = split(&self.project(x, 0..1)?, self.heads)?;
        Ok(queries)
    }

    /// Keys and values (N, H, S, D/H) of `x` (N, S, D).
    pub fn keys_values(&self, x: &Tensor) -> Result<[Tensor; 2]> {
        split(&self.project(x, 1..3)?, self.heads)
    }

    /// What some thirds of the input projection make of `x` (N, S, D), side by side.
    fn project(&self, x: &Tensor, thirds: Range<usize>) -> Result<Tensor> {
        let width = self.in_proj_weight.dim(1)?;
        let outputs = thirds.start * width..thirds.end * width;
        let (weight, bias) = (&self.in_proj_weight, Some(&self.in_proj_bias));
        self.operations.affine(x, Affine { weight, bias, outputs })
    }

    /// What the queries (N, H, S, D/H) find among keys and values (N, H, M, D/H), without dropout: (N, S, D). `bias` as
    /// in [`Self::forward`].
    pub fn attend_by_heads(
        &self,
        queries: &Tensor,
        [keys, values]: [&Tensor; 2],
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        let found = attend_by_heads([queries, keys, values], bias, &self.dropout, &Pass::EVALUATION)?;
        self.out_proj.forward(&found)
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
