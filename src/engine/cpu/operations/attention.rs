//! Attention from the input projections to the heads' outputs. The attention weights are computed again in the backward
//! pass, which costs less than keeping them.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::super::precision::{Bias, Finish, Head, HeadGradients, Into, Precision, Rows};
use super::mask::Mask;
use super::{ROWS, with_numbers};
use crate::nn::Pass;
use crate::nn::operations::{Attention, Projected};
use crate::nn::parameters::cpu_floats;

/// Where one of queries, keys and values stands: from `first` on in rows of `stride` numbers.
#[derive(Clone, Copy)]
struct Columns<'a, N> {
    data: &'a [N],
    stride: usize,
    first: usize,
}

struct Attend<P> {
    precision: P,
    clips: usize,
    heads: usize,
    /// A head's width.
    head: usize,
    queries: usize,
    keys: usize,
    bias: Option<Added>,
    mask: Option<Mask>,
}

/// What is added to the scores, and how far on it is for the next clip and the next query.
struct Added {
    values: Vec<f32>,
    clip: usize,
    query: usize,
}

impl Added {
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

    fn of(&self, clip: usize) -> Bias<'_> {
        Bias { values: &self.values[clip * self.clip..], step: self.query }
    }
}

pub(super) fn attend<P: Precision>(precision: P, attention: &Attention, pass: &Pass) -> Result<Tensor> {
    let Attention { of, heads, bias, dropout } = attention;
    let ((clips, queries, width), keys) = match of {
        Projected::Own(qkv) => {
            let (clips, length, width) = qkv.dims3()?;
            ((clips, length, width / 3), length)
        }
        Projected::Other { queries, keys_values } => (queries.dims3()?, keys_values.dim(1)?),
    };
    let op = Attend {
        precision,
        clips,
        heads: *heads,
        head: width / (*heads).max(1),
        queries,
        keys,
        bias: bias.map(Added::new).transpose()?,
        mask: Mask::new(dropout, pass, clips, clips * heads * queries * keys),
    };
    match of {
        Projected::Own(qkv) => qkv.contiguous()?.apply_op1(op),
        Projected::Other { queries, keys_values } => {
            queries.contiguous()?.apply_op2(&keys_values.contiguous()?, op)
        }
    }
}

impl<P: Precision> Attend<P> {
    fn width(&self) -> usize {
        self.heads * self.head
    }

    fn own<'a, N>(&self, qkv: &'a [N]) -> [Columns<'a, N>; 3] {
        let width = self.width();
        [0, 1, 2].map(|at| Columns { data: qkv, stride: 3 * width, first: at * width })
    }

    fn other<'a, N>(&self, queries: &'a [N], keys_values: &'a [N]) -> [Columns<'a, N>; 3] {
        let width = self.width();
        let of = |at: usize| Columns { data: keys_values, stride: 2 * width, first: at * width };
        [Columns { data: queries, stride: width, first: 0 }, of(0), of(1)]
    }

    /// Head `at` of all clips' among `length` rows a clip.
    fn part<'a, N>(&self, of: &Columns<'a, N>, length: usize, at: usize) -> Rows<'a, N> {
        let (clip, head) = (at / self.heads, at % self.heads);
        Rows::new(&of.data[clip * length * of.stride + of.first + head * self.head..], of.stride)
    }

    /// Lends head `at` of all clips'.
    fn with_head<R>(
        &self,
        at: usize,
        [q, k, v]: &[Columns<P::Number>; 3],
        work: impl FnOnce(&Head<P::Number>) -> R,
    ) -> R {
        let (queries, keys) = (self.queries, self.keys);
        let of = [self.part(q, queries, at), self.part(k, keys, at), self.part(v, keys, at)];
        let masked = at * queries * keys;
        let drop = self.mask.as_ref().map(|mask| move |x: &mut [f32], first| mask.apply(x, masked + first));
        let drop = drop.as_ref().map(|drop| drop as _);
        let bias = self.bias.as_ref().map(|bias| bias.of(at / self.heads));
        work(&Head { queries, keys, width: self.head, of, bias, drop })
    }

    fn forward(&self, of: &[Columns<P::Number>; 3]) -> (CpuStorage, Shape) {
        let (s, each) = (self.queries, self.queries * self.head);
        let mut by_heads = vec![0.0; self.clips * self.heads * each];
        by_heads.par_chunks_mut(each.max(1)).enumerate().for_each(|(at, out)| {
            let finish = Finish::Floats { out, stride: self.head, bias: None, into: Into::Set };
            self.with_head(at, of, |head| self.precision.attend(head, finish));
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
    fn backward(&self, of: &[Columns<P::Number>; 3], dy: &[f32]) -> [Vec<f32>; 3] {
        let (s, m, head) = (self.queries, self.keys, self.head);
        let zeros = |rows: usize| vec![0.0; self.clips * self.heads * rows * head];
        let [mut dq, mut dk, mut dv] = [zeros(s), zeros(m), zeros(m)];
        let dy = self.precision.operand(dy);
        let dy = Columns { data: &dy, stride: self.width(), first: 0 };
        let keys = dk.par_chunks_mut((m * head).max(1)).zip(dv.par_chunks_mut((m * head).max(1)));
        dq.par_chunks_mut((s * head).max(1)).zip(keys).enumerate().for_each(|(at, (dq, (dk, dv)))| {
            let gradients = HeadGradients::Floats([dq, dk, dv]);
            let d_out = self.part(&dy, s, at);
            self.with_head(at, of, |head| self.precision.attend_backward(head, d_out, None, gradients));
        });
        [dq, dk, dv]
    }
}

impl<P: Precision> CustomOp1 for Attend<P> {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = self.precision.operand(cpu_floats(qkv, layout)?);
        Ok(self.forward(&self.own(&qkv)))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let parts =
            with_numbers([qkv, dy], |[qkv, dy]| self.backward(&self.own(&self.precision.operand(qkv)), dy))?;
        let (width, mut d_qkv) = (self.width(), vec![0.0; qkv.elem_count()]);
        for (at, part) in parts.iter().enumerate() {
            self.side_by_side(&mut d_qkv, (3 * width, at * width), part, self.queries);
        }
        Ok(Some(Tensor::from_vec(d_qkv, qkv.dims(), qkv.device())?))
    }
}

impl<P: Precision> CustomOp2 for Attend<P> {
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
        let (queries, keys_values) = (self.precision.operand(queries), self.precision.operand(keys_values));
        Ok(self.forward(&self.other(&queries, &keys_values)))
    }

    fn bwd(
        &self,
        queries: &Tensor,
        keys_values: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = with_numbers([queries, keys_values, dy], |[queries, keys_values, dy]| {
            let (queries, keys_values) =
                (self.precision.operand(queries), self.precision.operand(keys_values));
            self.backward(&self.other(&queries, &keys_values), dy)
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
