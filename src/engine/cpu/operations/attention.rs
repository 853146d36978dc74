//! Attention from the input projections to the heads' outputs. The attention weights are computed again in the backward
//! pass, which costs less than keeping them.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::super::gemm::{Into, Matrix, product};
use super::super::rows;
use super::mask::Mask;
use super::{ROWS, with_numbers};
use crate::nn::Pass;
use crate::nn::operations::{Attention, Projected};
use crate::nn::parameters::cpu_floats;

/// Where one of queries, keys and values stands: from `first` on in rows of `stride` numbers.
#[derive(Clone, Copy)]
struct Columns<'a> {
    data: &'a [f32],
    stride: usize,
    first: usize,
}

struct Attend {
    clips: usize,
    heads: usize,
    /// A head's width.
    head: usize,
    queries: usize,
    keys: usize,
    bias: Option<Bias>,
    mask: Option<Mask>,
}

/// What is added to the scores, and how far on it is for the next clip and the next query.
struct Bias {
    values: Vec<f32>,
    clip: usize,
    query: usize,
}

impl Bias {
    /// Of a tensor (N or 1, 1, S or 1, M).
    fn new(bias: &Tensor) -> Result<Self> {
        let (clips, heads, queries, keys) = bias.dims4()?;
        if heads != 1 {
            candle_core::bail!("a bias for each head");
        }
        let step = |count: usize, step: usize| if count == 1 { 0 } else { step };
        let values = bias.flatten_all()?.to_vec1::<f32>()?;
        Ok(Self { values, clip: step(clips, queries * keys), query: step(queries, keys) })
    }

    fn row(&self, clip: usize, query: usize, keys: usize) -> &[f32] {
        &self.values[clip * self.clip + query * self.query..][..keys]
    }
}

pub(super) fn attend(attention: &Attention, pass: &Pass) -> Result<Tensor> {
    let Attention { of, heads, bias, dropout } = attention;
    let ((clips, queries, width), keys) = match of {
        Projected::Own(qkv) => {
            let (clips, length, width) = qkv.dims3()?;
            ((clips, length, width / 3), length)
        }
        Projected::Other { queries, keys_values } => (queries.dims3()?, keys_values.dim(1)?),
    };
    let op = Attend {
        clips,
        heads: *heads,
        head: width / (*heads).max(1),
        queries,
        keys,
        bias: bias.map(Bias::new).transpose()?,
        mask: Mask::new(dropout, pass, clips, clips * heads * queries * keys),
    };
    match of {
        Projected::Own(qkv) => qkv.contiguous()?.apply_op1(op),
        Projected::Other { queries, keys_values } => {
            queries.contiguous()?.apply_op2(&keys_values.contiguous()?, op)
        }
    }
}

impl Attend {
    fn width(&self) -> usize {
        self.heads * self.head
    }

    fn own<'a>(&self, qkv: &'a [f32]) -> [Columns<'a>; 3] {
        let width = self.width();
        [0, 1, 2].map(|at| Columns { data: qkv, stride: 3 * width, first: at * width })
    }

    fn other<'a>(&self, queries: &'a [f32], keys_values: &'a [f32]) -> [Columns<'a>; 3] {
        let width = self.width();
        let of = |at: usize| Columns { data: keys_values, stride: 2 * width, first: at * width };
        [Columns { data: queries, stride: width, first: 0 }, of(0), of(1)]
    }

    /// A clip's head among `length` rows a clip.
    fn part<'a>(&self, of: Columns<'a>, length: usize, clip: usize, head: usize) -> Matrix<'a> {
        Matrix::rows(&of.data[clip * length * of.stride + of.first + head * self.head..], of.stride)
    }

    /// The attention weights of a clip's head, before dropout.
    fn weights(&self, [q, k]: [Matrix; 2], clip: usize) -> Vec<f32> {
        let mut p = vec![0.0; self.queries * self.keys];
        product((self.queries, self.head, self.keys), q, k.t(), &mut p, self.keys, Into::Set);
        let factor = 1.0 / (self.head as f32).sqrt();
        match &self.bias {
            None => rows::softmax(&mut p, self.keys, factor),
            Some(bias) => {
                for (query, row) in p.chunks_exact_mut(self.keys.max(1)).enumerate() {
                    rows::biased_softmax(row, bias.row(clip, query, self.keys), factor);
                }
            }
        }
        p
    }

    /// Where a head's part of the mask begins.
    fn masked(&self, clip: usize, head: usize) -> usize {
        (clip * self.heads + head) * self.queries * self.keys
    }

    fn forward(&self, [q, k, v]: [Columns; 3]) -> (CpuStorage, Shape) {
        let (s, each) = (self.queries, self.queries * self.head);
        let mut by_heads = vec![0.0; self.clips * self.heads * each];
        by_heads.par_chunks_mut(each.max(1)).enumerate().for_each(|(at, out)| {
            let (clip, head) = (at / self.heads, at % self.heads);
            let of = |columns, length| self.part(columns, length, clip, head);
            let mut p = self.weights([of(q, s), of(k, self.keys)], clip);
            if let Some(mask) = &self.mask {
                mask.apply(&mut p, self.masked(clip, head));
            }
            let p = Matrix::rows(&p, self.keys);
            product((s, self.keys, self.head), p, of(v, self.keys), out, self.head, Into::Set);
        });
        let mut y = vec![0.0; by_heads.len()];
        self.side_by_side(&mut y, (self.width(), 0), &by_heads, s);
        (CpuStorage::F32(y), (self.clips, s, self.width()).into())
    }

    /// Heads (N, H, `length`, D/H) into the rows (N `length`) of `to`, which are `stride` long, from column `first` on.
    fn side_by_side(&self, to: &mut [f32], (stride, first): (usize, usize), by_heads: &[f32], length: usize) {
        to.par_chunks_mut(ROWS * stride.max(1)).enumerate().for_each(|(block, to)| {
            for (at, to) in to.chunks_exact_mut(stride).enumerate() {
                let row = block * ROWS + at;
                let (clip, row) = (row / length, row % length);
                for (head, to) in to[first..first + self.width()].chunks_exact_mut(self.head).enumerate() {
                    let from = ((clip * self.heads + head) * length + row) * self.head;
                    to.copy_from_slice(&by_heads[from..from + self.head]);
                }
            }
        });
    }

    /// The gradients by heads: of queries, keys and values.
    fn backward(&self, [q, k, v]: [Columns; 3], dy: &[f32]) -> [Vec<f32>; 3] {
        let (s, m, head) = (self.queries, self.keys, self.head);
        let zeros = |rows: usize| vec![0.0; self.clips * self.heads * rows * head];
        let [mut dq, mut dk, mut dv] = [zeros(s), zeros(m), zeros(m)];
        let dy = Columns { data: dy, stride: self.width(), first: 0 };
        let factor = 1.0 / (head as f32).sqrt();
        let keys = dk.par_chunks_mut((m * head).max(1)).zip(dv.par_chunks_mut((m * head).max(1)));
        dq.par_chunks_mut((s * head).max(1)).zip(keys).enumerate().for_each(|(at, (dq, (dk, dv)))| {
            let (clip, h) = (at / self.heads, at % self.heads);
            let of = |columns, length| self.part(columns, length, clip, h);
            let (q, k, v, dy) = (of(q, s), of(k, m), of(v, m), of(dy, s));
            let mut p = self.weights([q, k], clip);
            let mut dp = vec![0.0; s * m];
            product((s, head, m), dy, v.t(), &mut dp, m, Into::Set);
            if let Some(mask) = &self.mask {
                mask.apply(&mut dp, self.masked(clip, h));
            }
            rows::softmax_backward(&mut dp, &p, m, factor);
            if let Some(mask) = &self.mask {
                mask.apply(&mut p, self.masked(clip, h));
            }
            let (p, dp) = (Matrix::rows(&p, m), Matrix::rows(&dp, m));
            product((m, s, head), p.t(), dy, dv, head, Into::Set);
            product((s, m, head), dp, k, dq, head, Into::Set);
            product((m, s, head), dp.t(), q, dk, head, Into::Set);
        });
        [dq, dk, dv]
    }
}

impl CustomOp1 for Attend {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(self.forward(self.own(cpu_floats(qkv, layout)?)))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let parts = with_numbers([qkv, dy], |[qkv, dy]| self.backward(self.own(qkv), dy))?;
        let (width, mut d_qkv) = (self.width(), vec![0.0; qkv.elem_count()]);
        for (at, part) in parts.iter().enumerate() {
            self.side_by_side(&mut d_qkv, (3 * width, at * width), part, self.queries);
        }
        Ok(Some(Tensor::from_vec(d_qkv, qkv.dims(), qkv.device())?))
    }
}

impl CustomOp2 for Attend {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(
        &self,
        queries: &CpuStorage,
        queries_layout: &Layout,
        keys_values: &CpuStorage,
        keys_values_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (queries, keys_values) =
            (cpu_floats(queries, queries_layout)?, cpu_floats(keys_values, keys_values_layout)?);
        Ok(self.forward(self.other(queries, keys_values)))
    }

    fn bwd(
        &self,
        queries: &Tensor,
        keys_values: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = with_numbers([queries, keys_values, dy], |[queries, keys_values, dy]| {
            self.backward(self.other(queries, keys_values), dy)
        })?;
        let width = self.width();
        let (mut d_queries, mut d_kv) = (vec![0.0; dq.len()], vec![0.0; keys_values.elem_count()]);
        self.side_by_side(&mut d_queries, (width, 0), &dq, self.queries);
        self.side_by_side(&mut d_kv, (2 * width, 0), &dk, self.keys);
        self.side_by_side(&mut d_kv, (2 * width, width), &dv, self.keys);
        Ok((
            Some(Tensor::from_vec(d_queries, queries.dims(), queries.device())?),
            Some(Tensor::from_vec(d_kv, keys_values.dims(), keys_values.device())?),
        ))
    }
}
