//! `nn.MultiheadAttention` that attends to its own input.

use super::linear::Linear;
use super::{Context, Keep};
use crate::Result;
use crate::engine::cuda::memory::{Activation, Buffer, Matrix, Slice};
use crate::engine::cuda::ops::{Attention, AttentionBackward, Mask, Output, Qkv, Write};
use crate::engine::cuda::parameters::Module;
use crate::nn::Dropout;

/// Which of a sample's rows ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queries {
    /// Each of them.
    All,
    /// The first: nobody reads the other rows' outputs.
    ClassToken,
}

/// Multi-head self-attention. The output's bias is added by the kernel that takes it.
pub struct SelfAttention {
    in_proj: Linear,
    /// The parts of `in_proj`.
    query: Linear,
    key_value: Linear,
    out_proj: Linear,
    dropout: Dropout,
    heads: usize,
    queries: Queries,
}

/// What its backward pass needs of its forward pass. Q = rows of a sample that ask.
#[derive(Default)]
pub struct AttentionSaved {
    /// (N S, 3 D): queries, keys, values; or (N, D): the class tokens' queries.
    q: Buffer<Activation>,
    /// In that case (N S, 2 D): keys, values.
    kv: Buffer<Activation>,
    /// (N, H, Q): logarithms of the softmax's sums.
    lse: Buffer<f32>,
    /// (N Q, D): the heads' outputs.
    mixed: Buffer<Activation>,
}

/// What its backward pass uses in passing.
#[derive(Default)]
pub struct AttentionScratch {
    /// As [`AttentionSaved::q`].
    d_q: Buffer<Activation>,
    /// As [`AttentionSaved::kv`].
    d_kv: Buffer<Activation>,
    /// (N, H, Q).
    delta: Buffer<f32>,
}

/// What it attends to.
#[derive(Clone, Copy)]
pub struct AttentionInput<'a> {
    /// (N S, D).
    pub x: &'a Matrix<Activation>,
    /// (N, S): 1 = a key that may be seen; `None` = all.
    pub valid: Option<&'a Slice<u8>>,
}

/// Gradients of its backward pass.
#[derive(Clone, Copy)]
pub struct AttentionGradients<'a> {
    /// (N Q, D): of the output.
    pub d_out: &'a Matrix<Activation>,
    /// (N S, D): gets that of the input.
    pub d_x: &'a Matrix<Activation>,
    /// As in the forward pass.
    pub valid: Option<&'a Slice<u8>>,
}

/// Queries, keys and values, or their gradients, as `in_proj` gives them.
pub enum Projected {
    /// (N S, 3 D).
    Joined(Matrix<Activation>),
    /// (N, D) and (N S, 2 D).
    Apart(Matrix<Activation>, Matrix<Activation>),
}

impl SelfAttention {
    /// The module's `in_proj_weight`, `in_proj_bias`, `out_proj` and `dropout`.
    ///
    /// # Errors
    /// Where it has none.
    pub fn new(module: &Module, heads: usize, queries: Queries) -> Result<Self> {
        let (weight, bias) = (module.parameter("in_proj_weight")?, module.parameter("in_proj_bias")?);
        let in_proj = Linear::from_parameters(&weight, &bias)?;
        let (width, outputs) = (in_proj.inputs(), in_proj.outputs());
        Ok(Self {
            query: in_proj.outputs_in(0..width)?,
            key_value: in_proj.outputs_in(width..outputs)?,
            in_proj,
            out_proj: Linear::new(&module.pp("out_proj"))?,
            dropout: module.dropout("dropout")?,
            heads,
            queries,
        })
    }

    /// The layer whose bias the output lacks.
    #[must_use]
    pub fn last(&self) -> &Linear {
        &self.out_proj
    }

    /// Which rows ask.
    #[must_use]
    pub fn queries(&self) -> Queries {
        self.queries
    }

    /// The numbers of a head.
    #[must_use]
    pub fn head_width(&self) -> usize {
        self.in_proj.inputs() / self.heads
    }

    /// The input to `out` (N Q, D), without the last bias. What is saved serves a backward pass, or only
    /// this one.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn forward(
        &self,
        cx: &Context,
        input: AttentionInput,
        out: &Matrix<Activation>,
        saved: &mut AttentionSaved,
        keep: Keep,
    ) -> Result<()> {
        let AttentionInput { x, valid } = input;
        let projected = self.project(cx, x, &mut saved.q, &mut saved.kv)?;
        let qkv = projected.parts()?;
        let rows = qkv.q.rows();
        let mixed = saved.mixed.resize(cx.allocator(), rows, x.cols())?;
        let lse = if keep == Keep::ForBackward {
            Some(saved.lse.resize_vector(cx.allocator(), rows * self.heads)?)
        } else {
            None
        };
        let mask = self.mask(cx, &qkv)?;
        cx.ops.attention(&self.attention(cx, &qkv, valid, mask), &mixed, lse.as_ref())?;
        self.out_proj.forward(cx.ops, &mixed, Output::Activation(out))
    }

    fn project(
        &self,
        cx: &Context,
        x: &Matrix<Activation>,
        q: &mut Buffer<Activation>,
        kv: &mut Buffer<Activation>,
    ) -> Result<Projected> {
        let projected = self.room(cx, x.rows(), q, kv)?;
        match &projected {
            Projected::Joined(qkv) => self.in_proj.forward(cx.ops, x, Output::Activation(qkv))?,
            Projected::Apart(q, kv) => {
                let class_tokens = x.every(cx.sample_rows(x.rows()))?;
                self.query.forward(cx.ops, &class_tokens, Output::Activation(q))?;
                self.key_value.forward(cx.ops, x, Output::Activation(kv))?;
            }
        }
        Ok(projected)
    }

    /// Memory for queries, keys and values of `rows` rows, or for their gradients.
    fn room(
        &self,
        cx: &Context,
        rows: usize,
        q: &mut Buffer<Activation>,
        kv: &mut Buffer<Activation>,
    ) -> Result<Projected> {
        let allocator = cx.allocator();
        Ok(match self.queries {
            Queries::All => Projected::Joined(q.resize(allocator, rows, self.in_proj.outputs())?),
            Queries::ClassToken => Projected::Apart(
                q.resize(allocator, cx.samples, self.query.outputs())?,
                kv.resize(allocator, rows, self.key_value.outputs())?,
            ),
        })
    }

    fn mask(&self, cx: &Context, qkv: &Qkv) -> Result<Mask> {
        let keys = cx.sample_rows(qkv.k.rows());
        cx.ops.mask(Some(self.dropout), cx.pass, cx.samples, self.heads * keys * keys)
    }

    fn attention<'a>(
        &'a self,
        cx: &Context,
        qkv: &'a Qkv,
        valid: Option<&'a Slice<u8>>,
        dropout: Mask,
    ) -> Attention<'a> {
        let (samples, heads) = (cx.samples, self.heads);
        Attention { qkv, bias: &self.in_proj.bias, valid, samples, heads, dropout }
    }

    /// The gradient of the input; and those of queries, keys and values, for [`Self::backward_input_weight`]. The gradient of
    /// the last bias is its adder's.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn backward(
        &self,
        cx: &Context,
        saved: &AttentionSaved,
        of: AttentionGradients,
        scratch: &mut AttentionScratch,
    ) -> Result<Projected> {
        let AttentionGradients { d_out, d_x, valid } = of;
        let mixed = saved.mixed.matrix()?;
        // In the memory of `d_x`, which is written when this has been read.
        let d_mixed = d_x.first_rows(mixed.rows())?;
        self.out_proj.backward_input(cx.ops, d_out, Output::Activation(&d_mixed), Write::Replace)?;
        self.out_proj.backward_weight(cx.ops, &mixed, d_out)?;

        let gradients = self.room(cx, d_x.rows(), &mut scratch.d_q, &mut scratch.d_kv)?;
        let projected = match self.queries {
            Queries::All => Projected::Joined(saved.q.matrix()?),
            Queries::ClassToken => Projected::Apart(saved.q.matrix()?, saved.kv.matrix()?),
        };
        let (qkv, d_qkv) = (projected.parts()?, gradients.parts()?);
        let mask = self.mask(cx, &qkv)?;
        let delta = scratch.delta.resize_vector(cx.allocator(), mixed.rows() * self.heads)?;
        let (lse, delta, d_qkv, d_mixed) = (&saved.lse.vector()?, &delta, &d_qkv, &d_mixed);
        let backward = AttentionBackward { mixed: &mixed, lse, d_mixed, delta, d_qkv };
        cx.ops.attention_backward(&self.attention(cx, &qkv, valid, mask), &backward)?;
        self.project_backward(cx, &gradients, d_x)?;
        Ok(gradients)
    }

    /// The projection's gradient for its input and its bias.
    fn project_backward(&self, cx: &Context, gradients: &Projected, d_x: &Matrix<Activation>) -> Result<()> {
        let out = Output::Activation(d_x);
        match gradients {
            Projected::Joined(d_qkv) => {
                cx.ops.add_column_sums(d_qkv, &self.in_proj.d_bias)?;
                self.in_proj.backward_input(cx.ops, d_qkv, out, Write::Replace)
            }
            Projected::Apart(d_q, d_kv) => {
                cx.ops.add_column_sums(d_q, &self.query.d_bias)?;
                cx.ops.add_column_sums(d_kv, &self.key_value.d_bias)?;
                self.key_value.backward_input(cx.ops, d_kv, out, Write::Replace)?;
                let class_tokens = d_x.every(cx.sample_rows(d_x.rows()))?;
                self.query.backward_input(cx.ops, d_q, Output::Activation(&class_tokens), Write::Accumulate)
            }
        }
    }

    /// Adds the gradient of the projection's weight, from its input `x` (N S, D).
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn backward_input_weight(
        &self,
        cx: &Context,
        x: &Matrix<Activation>,
        gradients: &Projected,
    ) -> Result<()> {
        match gradients {
            Projected::Joined(d_qkv) => self.in_proj.backward_weight(cx.ops, x, d_qkv),
            Projected::Apart(d_q, d_kv) => {
                let class_tokens = x.every(cx.sample_rows(x.rows()))?;
                self.query.backward_weight(cx.ops, &class_tokens, d_q)?;
                self.key_value.backward_weight(cx.ops, x, d_kv)
            }
        }
    }
}

impl Projected {
    fn parts(&self) -> Result<Qkv> {
        match self {
            Self::Joined(qkv) => {
                let width = qkv.cols() / 3;
                let part = |i: usize| qkv.columns(i * width..(i + 1) * width);
                Ok(Qkv { q: part(0)?, k: part(1)?, v: part(2)? })
            }
            Self::Apart(q, kv) => {
                let width = q.cols();
                Ok(Qkv { q: q.clone(), k: kv.columns(0..width)?, v: kv.columns(width..2 * width)? })
            }
        }
    }
}
