//! What modules compute with: the operations that are worth computing in more than one way.

use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{D, Result, Tensor};

use super::{Dropout, Pass};

/// The map `x W^T + b`, or some of its outputs.
pub struct Affine<'t> {
    /// (out, in).
    pub weight: &'t Tensor,
    /// (out); none where nothing is added.
    pub bias: Option<&'t Tensor>,
    /// The outputs that are computed.
    pub outputs: Range<usize>,
}

impl<'t> Affine<'t> {
    /// With all outputs.
    ///
    /// # Errors
    /// Where the weight has no dimension.
    pub fn whole(weight: &'t Tensor, bias: Option<&'t Tensor>) -> Result<Self> {
        Ok(Self { weight, bias, outputs: 0..weight.dim(0)? })
    }
}

/// A function of each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The exact one, by the error function.
    Gelu,
    /// What is positive.
    Relu,
}

/// What attention is computed of, as the input projections give it.
pub enum Projected<'t> {
    /// Queries, keys and values of one sequence, side by side: (N, S, 3D).
    Own(&'t Tensor),
    /// Those of two.
    Other {
        /// (N, S, D).
        queries: &'t Tensor,
        /// Side by side: (N, M, 2D).
        keys_values: &'t Tensor,
    },
}

/// The attention of a number of heads.
pub struct Attention<'t> {
    /// Queries, keys and values.
    pub of: Projected<'t>,
    /// How many heads; they divide D.
    pub heads: usize,
    /// Added to the scores (N, H, S, M), to which it is broadcast and which has one for all heads: minus infinity hides a
    /// key.
    pub bias: Option<&'t Tensor>,
    /// On the attention weights.
    pub dropout: &'t Dropout,
}

/// What modules compute with. [`Graph`] is the reference; an engine may have others, faster ones with the same results
/// but for rounding.
pub trait Operations {
    /// `x` (…, in) to (…, outputs).
    ///
    /// # Errors
    /// All methods fail where the tensor library fails.
    fn affine(&self, x: &Tensor, map: Affine) -> Result<Tensor>;

    /// The gradients of `x` (N, in) and of the map's weight, number by number, where `dy` (N, outputs) is that of what
    /// [`Self::affine`] gives; without a graph.
    ///
    /// # Errors
    /// As all methods.
    fn affine_gradients(&self, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<(Tensor, Vec<f32>)>;

    /// Each row (…, D) normalised, times `weight` (D), plus `bias` (D).
    ///
    /// # Errors
    /// As all methods.
    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor>;

    /// The activation of `x`, then dropout.
    ///
    /// # Errors
    /// As all methods.
    fn activate(&self, x: &Tensor, f: Activation, dropout: &Dropout, pass: &Pass) -> Result<Tensor>;

    /// `x` plus its branch (of the same shape) after dropout.
    ///
    /// # Errors
    /// As all methods.
    fn residual(&self, x: &Tensor, branch: &Tensor, dropout: &Dropout, pass: &Pass) -> Result<Tensor>;

    /// What the queries find, (N, S, D), the heads side by side.
    ///
    /// # Errors
    /// As all methods.
    fn attend(&self, attention: &Attention, pass: &Pass) -> Result<Tensor>;

    /// The gradients of a loss whose gradient for `output` is `gradient`, of the same shape.
    ///
    /// # Errors
    /// As all methods.
    fn backward(&self, output: &Tensor, gradient: &Tensor) -> Result<GradStore>;
}

/// Candle's operations, on any device.
pub struct Graph;

impl Operations for Graph {
    fn affine(&self, x: &Tensor, Affine { weight, bias, outputs }: Affine) -> Result<Tensor> {
        let all = outputs.len() == weight.dim(0)?;
        let some = |t: &Tensor| if all { Ok(t.clone()) } else { t.narrow(0, outputs.start, outputs.len()) };
        let mut shape = x.dims().to_vec();
        let inputs = shape.pop().unwrap_or(1);
        shape.push(outputs.len());
        let y = x.reshape(((), inputs))?.matmul(&some(weight)?.t()?)?.reshape(shape)?;
        match bias {
            Some(bias) => y.broadcast_add(&some(bias)?),
            None => Ok(y),
        }
    }

    fn affine_gradients(&self, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<(Tensor, Vec<f32>)> {
        Ok((dy.matmul(weight)?, dy.t()?.matmul(x)?.flatten_all()?.to_vec1()?))
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
        // Candle's fused version has no backward and would silently cut the graph.
        candle_nn::ops::layer_norm_slow(x, weight, bias, eps)
    }

    fn activate(&self, x: &Tensor, f: Activation, dropout: &Dropout, pass: &Pass) -> Result<Tensor> {
        let y = match f {
            Activation::Gelu => x.gelu_erf()?,
            Activation::Relu => x.relu()?,
        };
        dropout.forward(&y, pass)
    }

    fn residual(&self, x: &Tensor, branch: &Tensor, dropout: &Dropout, pass: &Pass) -> Result<Tensor> {
        x + dropout.forward(branch, pass)?
    }

    fn attend(&self, attention: &Attention, pass: &Pass) -> Result<Tensor> {
        let &Attention { ref of, heads, bias, dropout } = attention;
        let [q, k, v] = match of {
            Projected::Own(qkv) => split(qkv, heads)?,
            Projected::Other { queries, keys_values } => {
                let [q] = split(queries, heads)?;
                let [k, v] = split(keys_values, heads)?;
                [q, k, v]
            }
        };
        attend_by_heads([&q, &k, &v], bias, dropout, pass)
    }

    fn backward(&self, output: &Tensor, gradient: &Tensor) -> Result<GradStore> {
        // The sum's gradient for the output is the gradient.
        (output * gradient)?.sum_all()?.backward()
    }
}

/// `P` tensors side by side, (N, S, P D), by heads: (N, H, S, D/H) each.
pub(super) fn split<const P: usize>(x: &Tensor, heads: usize) -> Result<[Tensor; P]> {
    let (n, s, width) = x.dims3()?;
    let parts = x.reshape((n, s, P, heads, width / P.max(1) / heads.max(1)))?.permute((2, 0, 3, 1, 4))?;
    let parts: Result<Vec<Tensor>> = (0..P).map(|at| parts.get(at)?.contiguous()).collect();
    parts?.try_into().map_err(|_| candle_core::Error::Msg("a tensor has other parts".into()))
}

/// What the queries (N, H, S, D/H) find among keys and values (N, H, M, D/H): (N, S, D). `bias` as in [`Attention`].
pub(super) fn attend_by_heads(
    [queries, keys, values]: [&Tensor; 3],
    bias: Option<&Tensor>,
    dropout: &Dropout,
    pass: &Pass,
) -> Result<Tensor> {
    let (n, heads, s, head) = queries.dims4()?;
    let queries = (queries * (1.0 / (head as f64).sqrt()))?;
    let mut scores = queries.matmul(&keys.transpose(2, 3)?.contiguous()?)?; // (N, H, S, M)
    if let Some(bias) = bias {
        scores = scores.broadcast_add(bias)?;
    }
    let weights = dropout.forward(&candle_nn::ops::softmax(&scores, D::Minus1)?, pass)?;
    weights.matmul(values)?.transpose(1, 2)?.reshape((n, s, heads * head))
}
