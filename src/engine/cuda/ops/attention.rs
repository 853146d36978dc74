//! Multi-head attention.

use super::{Mask, Ops, at_least, int, long, rows_of, times};
use crate::engine::cuda::kernels;
use crate::engine::cuda::memory::{Activation, Matrix, Slice};
use crate::{Error, Result};

/// Queries (N Q, D), keys and values (N K, D), or their gradients. Their rows may lie apart.
#[derive(Clone)]
#[allow(missing_docs, reason = "named as in attention")]
pub struct Qkv {
    pub q: Matrix<Activation>,
    pub k: Matrix<Activation>,
    pub v: Matrix<Activation>,
}

/// Multi-head attention.
pub struct Attention<'a> {
    /// Before their biases.
    pub qkv: &'a Qkv,
    /// (3 D): of queries, keys and values.
    pub bias: &'a Slice<f32>,
    /// (N, K): 1 = a key that may be seen; `None` = all.
    pub valid: Option<&'a Slice<u8>>,
    /// N.
    pub samples: usize,
    /// How many heads.
    pub heads: usize,
    /// For the weights, (N, H, K, K).
    pub dropout: Mask,
}

/// The gradient of [`Attention`].
#[allow(missing_docs, reason = "named as in attention")]
pub struct AttentionBackward<'a> {
    /// (N Q, D): what the forward pass gave.
    pub mixed: &'a Matrix<Activation>,
    /// (N H Q): the same.
    pub lse: &'a Slice<f32>,
    pub d_mixed: &'a Matrix<Activation>,
    /// (N H Q): in passing.
    pub delta: &'a Slice<f32>,
    /// Gets the gradients.
    pub d_qkv: &'a Qkv,
}

/// Sizes of an attention.
struct AttentionSize {
    /// D.
    width: usize,
    /// Of one head.
    head: usize,
    /// Of each sample.
    queries: usize,
    /// Of each sample.
    keys: usize,
}

impl AttentionSize {
    /// How many sums of exponentials there are: one a query and head.
    fn sums(&self, a: &Attention) -> usize {
        a.samples * a.heads * self.queries
    }
}

impl Ops {
    /// Attention: the heads' outputs to `mixed` (N Q, D), and to `lse` (N H Q) what the gradient needs.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn attention(
        &self,
        a: &Attention,
        mixed: &Matrix<Activation>,
        lse: Option<&Slice<f32>>,
    ) -> Result<()> {
        let (args, size) = Self::attention_args(a)?;
        let args = kernels::Attention {
            mixed: rows_of(Some(mixed), a.qkv.q.rows(), size.width)?,
            lse: at_least(lse, size.sums(a))?,
            ..args
        };
        let blocks = [size.queries.div_ceil(64), a.heads, a.samples];
        let kernel = format!("attention_forward_{}", size.head);
        self.launch(&kernel, blocks, 128, self.attention_shared(size.head), &args)
    }

    /// The gradient of [`Self::attention`].
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn attention_backward(&self, a: &Attention, b: &AttentionBackward) -> Result<()> {
        let (args, size) = Self::attention_args(a)?;
        let same = |x: &Matrix<Activation>, d: &Matrix<Activation>| {
            (x.rows(), x.cols(), x.stride()) == (d.rows(), d.cols(), d.stride())
        };
        let Qkv { q, k, v } = a.qkv;
        if !(same(q, &b.d_qkv.q) && same(k, &b.d_qkv.k) && same(v, &b.d_qkv.v)) {
            return Err(Error::run("attention's gradients lie otherwise than queries, keys and values"));
        }
        let args = kernels::Attention {
            mixed: rows_of(Some(b.mixed), q.rows(), size.width)?,
            lse: at_least(Some(b.lse), size.sums(a))?,
            d_mixed: rows_of(Some(b.d_mixed), q.rows(), size.width)?,
            delta: at_least(Some(b.delta), size.sums(a))?,
            d_q: b.d_qkv.q.ptr(),
            d_k: b.d_qkv.k.ptr(),
            d_v: b.d_qkv.v.ptr(),
            ..args
        };
        let shared = self.attention_shared(size.head);
        let blocks = |rows: usize| [rows.div_ceil(64), a.heads, a.samples];
        let kernel = |of: &str| format!("attention_backward_{of}_{}", size.head);
        self.launch(&kernel("q"), blocks(size.queries), 128, shared, &args)?;
        self.launch(&kernel("kv"), blocks(size.keys), 128, shared + 2 * 4 * 32, &args)
    }

    /// What is the same in attention's forward and backward pass.
    fn attention_args(a: &Attention) -> Result<(kernels::Attention, AttentionSize)> {
        let Qkv { q, k, v } = a.qkv;
        let width = q.cols();
        let size = AttentionSize {
            width,
            head: times(width, a.heads)?,
            queries: times(q.rows(), a.samples)?,
            keys: times(k.rows(), a.samples)?,
        };
        if (k.rows(), k.cols(), k.stride()) != (v.rows(), v.cols(), v.stride()) || k.cols() != width {
            return Err(Error::run("attention's keys and values lie differently"));
        }
        let bias = |part: usize| Ok::<_, Error>(a.bias.slice(part * width..(part + 1) * width)?.ptr());
        let args = kernels::Attention {
            q: q.ptr(),
            k: k.ptr(),
            v: v.ptr(),
            q_bias: bias(0)?,
            k_bias: bias(1)?,
            v_bias: bias(2)?,
            valid: at_least(a.valid, k.rows())?,
            drop: a.dropout.ptr(a.samples, a.heads * size.keys * size.keys)?,
            drop_scale: a.dropout.scale,
            q_sample: long(size.queries * q.stride())?,
            kv_sample: long(size.keys * k.stride())?,
            queries: int(size.queries)?,
            keys: int(size.keys)?,
            heads: int(a.heads)?,
            width: int(width)?,
            q_row: int(q.stride())?,
            kv_row: int(k.stride())?,
            scale: 1.0 / (size.head as f32).sqrt(),
            ..kernels::Attention::default()
        };
        Ok((args, size))
    }

    /// Two tiles of 64 rows, as `attention.cu` lays them out.
    fn attention_shared(&self, head: usize) -> usize {
        2 * 64 * (head.next_multiple_of(16) + 8) * self.dtype().bytes()
    }
}
