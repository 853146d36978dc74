//! The text decoder token by token, without a graph: the same as `crate::model::decoder::Transformer`'s own steps.
//!
//! Few rows meet all of the decoder's weights at each step, so that its time is that of reading them: each weight is read
//! once a step, for the hypotheses of all clips, and multiplied where it stands. Keys and values of tokens and frames are
//! kept where they were made; a hypothesis knows the rows of its own earlier tokens.

#![allow(clippy::inline_always)]

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::gemm::{Into, Matrix, parallel_product};
use super::math::{exp, max, sum, sum2, vectorised};
use super::rows::{self, Norm};
use crate::Result;
use crate::config;
use crate::model::search::{Logits, NextTokens, Row};
use crate::nn::Scope;
use crate::nn::embedding::sinusoids;
use crate::nn::norm::LAYER_NORM_EPS;

/// Where the decoder's parameters are among all, and its sizes.
#[derive(Debug)]
pub struct TextDecoder {
    embedding: usize,
    /// What the logits are products with, (V, D).
    output: usize,
    norm: Affine,
    layers: Vec<Layer>,
    width: usize,
    heads: usize,
}

/// The positions of a weight and its bias.
#[derive(Clone, Copy, Debug)]
struct Affine {
    weight: usize,
    bias: usize,
}

#[derive(Debug)]
struct Layer {
    self_attn: Attention,
    multihead_attn: Attention,
    linear1: Affine,
    linear2: Affine,
    norm1: Affine,
    norm2: Affine,
    norm3: Affine,
}

#[derive(Debug)]
struct Attention {
    in_proj: Affine,
    out_proj: Affine,
}

impl TextDecoder {
    /// The module `scope`, which is a text decoder of the configuration `c`.
    ///
    /// # Errors
    /// Where it is none.
    pub fn new(scope: &Scope, c: &config::Model) -> Result<Self> {
        let at = |scope: &Scope, name: &str| -> Result<usize> { Ok(scope.parameter(name)?.position) };
        let affine = |scope: &Scope| -> Result<Affine> {
            Ok(Affine { weight: at(scope, "weight")?, bias: at(scope, "bias")? })
        };
        let attention = |scope: &Scope| -> Result<Attention> {
            let in_proj = Affine { weight: at(scope, "in_proj_weight")?, bias: at(scope, "in_proj_bias")? };
            Ok(Attention { in_proj, out_proj: affine(&scope.pp("out_proj"))? })
        };
        let layer = |i: usize| -> Result<Layer> {
            let scope = scope.pp("layers").pp(i);
            Ok(Layer {
                self_attn: attention(&scope.pp("self_attn"))?,
                multihead_attn: attention(&scope.pp("multihead_attn"))?,
                linear1: affine(&scope.pp("linear1"))?,
                linear2: affine(&scope.pp("linear2"))?,
                norm1: affine(&scope.pp("norm1"))?,
                norm2: affine(&scope.pp("norm2"))?,
                norm3: affine(&scope.pp("norm3"))?,
            })
        };
        let embedding = at(&scope.pp("embedding"), "weight")?;
        let output = if c.decoder.tied { embedding } else { at(&scope.pp("lm_head"), "weight")? };
        let layers: Result<_> = (0..scope.pp("layers").children()).map(layer).collect();
        let (norm, width, heads) = (affine(&scope.pp("norm"))?, c.d_model, c.decoder.nhead);
        Ok(Self { embedding, output, norm, layers: layers?, width, heads })
    }
}

/// A search's view of the decoder: all that it keeps from step to step.
pub struct Steps<'w> {
    decoder: &'w TextDecoder,
    /// All parameters of the network.
    weights: &'w [&'w [f32]],
    /// Of each layer, keys and values of the frames: (B T, D) each.
    memory: Vec<[Vec<f32>; 2]>,
    /// (B, T): whether a frame is the clip's.
    valid: &'w [bool],
    /// T.
    frames: usize,
    /// Of each layer and each step so far, keys and values of the rows of that step: (R, D) each.
    kept: Vec<Vec<[Vec<f32>; 2]>>,
    /// Of each row, the row of each of its tokens in the step that it came in.
    lineage: Vec<Vec<usize>>,
    /// The clip of each row.
    clips: Vec<usize>,
}

impl<'w> Steps<'w> {
    /// For clips of which `encoded` are the frames, (B T, D), and `valid` says which of them are a clip's, (B, T).
    #[must_use]
    pub fn new(
        decoder: &'w TextDecoder,
        weights: &'w [&'w [f32]],
        encoded: &[f32],
        valid: &'w [bool],
        clips: usize,
    ) -> Self {
        let width = decoder.width;
        let rows = encoded.len() / width;
        let part = |at: Affine, third: usize| {
            let weight = &weights[at.weight][third * width * width..(third + 1) * width * width];
            let mut out = vec![0.0; rows * width];
            let (x, weight) = (Matrix::rows(encoded, width), Matrix::rows(weight, width).t());
            parallel_product((rows, width, width), x, weight, &mut out, width, Into::Set);
            rows::add_bias(&mut out, &weights[at.bias][third * width..(third + 1) * width]);
            out
        };
        let memory =
            decoder.layers.iter().map(|layer| [1, 2].map(|third| part(layer.multihead_attn.in_proj, third)));
        Self {
            decoder,
            weights,
            memory: memory.collect(),
            valid,
            frames: rows / clips.max(1),
            kept: decoder.layers.iter().map(|_| Vec::new()).collect(),
            lineage: vec![Vec::new(); clips],
            clips: (0..clips).collect(),
        }
    }

    /// `x` (R, in) by a weight's rows `from..from + outputs`, with their bias: (R, outputs).
    fn affine(&self, x: &[f32], at: Affine, from: usize, outputs: usize) -> Vec<f32> {
        let inputs = x.len() / self.clips.len();
        let mut out = product(x, &self.weights[at.weight][from * inputs..(from + outputs) * inputs], inputs);
        rows::add_bias(&mut out, &self.weights[at.bias][from..from + outputs]);
        out
    }

    fn layer_norm(&self, x: &[f32], at: Affine) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        let (weight, bias) = (self.weights[at.weight], self.weights[at.bias]);
        rows::layer_norm(&mut out, x, Norm { weight, bias, eps: LAYER_NORM_EPS });
        out
    }

    /// `x`, (R, D), and what attention to the tokens so far adds to it.
    fn attend_to_tokens(&mut self, at: usize, x: &mut [f32]) {
        let (layer, width, heads) = (&self.decoder.layers[at], self.decoder.width, self.decoder.heads);
        let y = self.layer_norm(x, layer.norm1);
        let in_proj = layer.self_attn.in_proj;
        let all = self.affine(&y, in_proj, 0, 3 * width);
        let part = |third: usize| -> Vec<f32> {
            let rows = all.chunks_exact(3 * width);
            rows.flat_map(|row| row[third * width..(third + 1) * width].iter().copied()).collect()
        };
        let [queries, keys, values] = [0, 1, 2].map(part);
        self.kept[at].push([keys, values]);
        let kept = &self.kept[at];
        let mut mixed = vec![0.0; x.len()];
        let rows = mixed.par_chunks_mut(width).zip(queries.par_chunks(width)).zip(&self.lineage);
        rows.for_each(|((out, query), lineage)| {
            let of = |which: usize| -> Vec<&[f32]> {
                let tokens = kept.iter().zip(lineage);
                tokens.map(|(step, &row)| &step[which][row * width..(row + 1) * width]).collect()
            };
            let (keys, values) = (of(0), of(1));
            attend(out, query, &keys, &values, &vec![true; keys.len()], heads);
        });
        self.add_projected(x, &mixed, layer.self_attn.out_proj);
    }

    /// `x`, (R, D), and what attention to the clips' frames adds to it.
    fn attend_to_frames(&self, at: usize, x: &mut [f32]) {
        let (layer, width, heads) = (&self.decoder.layers[at], self.decoder.width, self.decoder.heads);
        let y = self.layer_norm(x, layer.norm2);
        let queries = self.affine(&y, layer.multihead_attn.in_proj, 0, width);
        let mut mixed = vec![0.0; x.len()];
        let rows = mixed.par_chunks_mut(width).zip(queries.par_chunks(width)).zip(&self.clips);
        rows.for_each(|((out, query), &clip)| {
            let (first, last) = (clip * self.frames, (clip + 1) * self.frames);
            let [keys, values] = [0, 1].map(|which| -> Vec<&[f32]> {
                self.memory[at][which][first * width..last * width].chunks_exact(width).collect()
            });
            attend(out, query, &keys, &values, &self.valid[first..last], heads);
        });
        self.add_projected(x, &mixed, layer.multihead_attn.out_proj);
    }

    fn feed_forward(&self, at: usize, x: &mut [f32]) {
        let layer = &self.decoder.layers[at];
        let y = self.layer_norm(x, layer.norm3);
        let mut hidden = self.affine(&y, layer.linear1, 0, self.weights[layer.linear1.bias].len());
        for x in &mut hidden {
            *x = x.max(0.0);
        }
        self.add_projected(x, &hidden, layer.linear2);
    }

    fn add_projected(&self, x: &mut [f32], y: &[f32], at: Affine) {
        let y = self.affine(y, at, 0, self.decoder.width);
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }
}

impl NextTokens for Steps<'_> {
    fn step(&mut self, next: &[Row]) -> Result<Logits> {
        let width = self.decoder.width;
        let place = self.lineage.first().map_or(0, Vec::len);
        let with = |(row, next): (usize, &Row)| [self.lineage[next.parent].as_slice(), &[row]].concat();
        self.lineage = next.iter().enumerate().map(with).collect();
        self.clips = next.iter().map(|next| self.clips[next.parent]).collect();
        let (scale, sinusoids) = ((width as f64).sqrt() as f32, sinusoids(place, width));
        let embedding = self.weights[self.decoder.embedding];
        let mut x = Vec::with_capacity(next.len() * width);
        for Row { token, .. } in next {
            let vector = &embedding[*token as usize * width..(*token as usize + 1) * width];
            x.extend(vector.iter().zip(&sinusoids).map(|(x, sinusoid)| x * scale + sinusoid));
        }
        for at in 0..self.decoder.layers.len() {
            self.attend_to_tokens(at, &mut x);
            self.attend_to_frames(at, &mut x);
            self.feed_forward(at, &mut x);
        }
        let values =
            product(&self.layer_norm(&x, self.decoder.norm), self.weights[self.decoder.output], width);
        let mut log_sums = vec![0.0; next.len()];
        let vocabulary = values.len() / next.len().max(1);
        log_sums
            .par_chunks_mut(1)
            .zip(values.par_chunks(vocabulary))
            .for_each(|(sum, row)| self::log_sums(sum, row));
        Ok(Logits { values, log_sums })
    }
}

/// Rows of a weight that a thread takes at a time: some ten microseconds of work.
const OUTPUTS: usize = 128;

/// `x w^T` for few rows `x` (R, in) and many of `w` (out, in): (R, out).
fn product(x: &[f32], w: &[f32], inputs: usize) -> Vec<f32> {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    let mut transposed = vec![0.0; rows * outputs];
    let parts = transposed.par_chunks_mut(OUTPUTS * rows).zip(w.par_chunks(OUTPUTS * inputs));
    parts.for_each(|(out, w)| products(out, w, x, inputs, rows));
    if rows == 1 {
        return transposed;
    }
    let mut out = vec![0.0; rows * outputs];
    let transpose = |(row, out): (usize, &mut [f32])| {
        for (out, value) in out.iter_mut().zip(transposed[row..].iter().step_by(rows)) {
            *out = *value;
        }
    };
    // Less is not worth a thread's waking.
    if rows * outputs < 1 << 15 {
        out.chunks_exact_mut(outputs).enumerate().for_each(transpose);
    } else {
        out.par_chunks_exact_mut(outputs).enumerate().for_each(transpose);
    }
    out
}

/// The products of each row of `w` with each of the `rows` rows of `x`, one row of `w` after another in `out`.
fn products(out: &mut [f32], w: &[f32], x: &[f32], inputs: usize, rows: usize) {
    struct Products<'a> {
        out: &'a mut [f32],
        w: &'a [f32],
        x: &'a [f32],
        inputs: usize,
        rows: usize,
    }
    impl WithSimd for Products<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            // As many sums as there are registers for.
            if size_of::<S::f32s>() >= 64 {
                self.by::<S, 4>(simd);
            } else {
                self.by::<S, 2>(simd);
            }
        }
    }
    impl Products<'_> {
        /// `M` rows of `w` at a time.
        #[inline(always)]
        fn by<S: Simd, const M: usize>(self, simd: S) {
            let Self { out, w, x, inputs, rows } = self;
            for (out, w) in out.chunks_mut(M * rows).zip(w.chunks(M * inputs)) {
                // In the place of rows beyond the last, the last is computed again.
                let last = w.len() / inputs - 1;
                let w: [&[f32]; M] = std::array::from_fn(|m| {
                    let m = m.min(last);
                    &w[m * inputs..(m + 1) * inputs]
                });
                let mut row = 0;
                while row < rows {
                    let x = &x[row * inputs..];
                    row += match rows - row {
                        6 | 8 | 11.. => tile::<S, M, 6>(simd, out, w, x, [row, rows]),
                        5 | 7 | 9 | 10 => tile::<S, M, 5>(simd, out, w, x, [row, rows]),
                        4 => tile::<S, M, 4>(simd, out, w, x, [row, rows]),
                        3 => tile::<S, M, 3>(simd, out, w, x, [row, rows]),
                        2 => tile::<S, M, 2>(simd, out, w, x, [row, rows]),
                        _ => tile::<S, M, 1>(simd, out, w, x, [row, rows]),
                    };
                }
            }
        }
    }
    Arch::new().dispatch(Products { out, w, x, inputs, rows });
}

/// Asks for the memory at `from`, which may be anywhere, before it is needed.
#[inline(always)]
fn prefetch(from: *const f32) {
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: it is a hint, which reads nothing and faults nowhere; every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// `M` rows of a weight by `N` rows of `x`, from `row` on of `rows`; gives `N`.
#[inline(always)]
fn tile<S: Simd, const M: usize, const N: usize>(
    simd: S,
    out: &mut [f32],
    w: [&[f32]; M],
    x: &[f32],
    [row, rows]: [usize; 2],
) -> usize {
    let inputs = w[0].len();
    let xs: [(&[S::f32s], &[f32]); N] =
        std::array::from_fn(|n| S::as_simd_f32s(&x[n * inputs..(n + 1) * inputs]));
    let ws: [(&[S::f32s], &[f32]); M] = std::array::from_fn(|m| S::as_simd_f32s(w[m]));
    let mut sums = [[simd.splat_f32s(0.0); N]; M];
    let width = size_of::<S::f32s>() / size_of::<f32>();
    for at in 0..ws[0].0.len() {
        if row == 0 {
            // The rows that come next are on their way while these are worked on: their weights are in no cache.
            for w in w {
                prefetch(w.as_ptr().wrapping_add(M * inputs + at * width));
            }
        }
        let w: [S::f32s; M] = std::array::from_fn(|m| ws[m].0[at]);
        for n in 0..N {
            let x = xs[n].0[at];
            for m in 0..M {
                sums[m][n] = simd.mul_add_f32s(w[m], x, sums[m][n]);
            }
        }
    }
    for m in 0..M {
        for n in 0..N {
            let rest: f32 = ws[m].1.iter().zip(xs[n].1).map(|(w, x)| w * x).sum();
            if let Some(out) = out.get_mut(m * rows + row + n) {
                *out = simd.reduce_sum_f32s(sums[m][n]) + rest;
            }
        }
    }
    N
}

vectorised! {
    /// The logarithm of the sum of the exponentials of each row of `x`, of as many rows as `out` has.
    pub fn log_sums(out: &mut [f64], x: &[f32]) {
        let width = x.len() / out.len();
        for (out, row) in out.iter_mut().zip(x.chunks_exact(width)) {
            let largest = max(row);
            *out = f64::from(largest) + f64::from(sum(row, |x| exp(x - largest))).ln();
        }
    }
}

vectorised! {
    /// What a query (D) finds among keys and values (D each), by heads, into `out` (D); keys that are not `valid` are
    /// hidden.
    pub fn attend(
        out: &mut [f32],
        query: &[f32],
        keys: &[&[f32]],
        values: &[&[f32]],
        valid: &[bool],
        heads: usize,
    ) {
        let width = query.len() / heads;
        let factor = 1.0 / (width as f32).sqrt();
        let mut scores = vec![0.0_f32; keys.len()];
        for head in 0..heads {
            let range = head * width..(head + 1) * width;
            let query = &query[range.clone()];
            for ((score, key), valid) in scores.iter_mut().zip(keys).zip(valid) {
                let product = sum2(query, &key[range.clone()], |q, k| q * k) * factor;
                *score = if *valid { product } else { f32::NEG_INFINITY };
            }
            let largest = max(&scores);
            for (score, valid) in scores.iter_mut().zip(valid) {
                *score = if *valid { exp(*score - largest) } else { 0.0 };
            }
            let inverse = 1.0 / sum(&scores, |x| x);
            let out = &mut out[range.clone()];
            out.fill(0.0);
            for (score, value) in scores.iter().zip(values) {
                let share = score * inverse;
                for (out, v) in out.iter_mut().zip(&value[range.clone()]) {
                    *out = share.mul_add(*v, *out);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_right_for_every_number_of_rows() {
        let number = |i: usize| ((i * 7919 % 1000) as f32 - 500.0) / 500.0;
        for (rows, inputs, outputs) in [(1, 16, 3), (4, 33, 129), (5, 20, 7), (13, 48, 256), (40, 512, 300)] {
            let x: Vec<f32> = (0..rows * inputs).map(number).collect();
            let w: Vec<f32> = (0..outputs * inputs).map(|i| number(i + 31)).collect();
            let found = product(&x, &w, inputs);
            assert_eq!(found.len(), rows * outputs);
            for (at, found) in found.iter().enumerate() {
                let (row, output) = (at / outputs, at % outputs);
                let pairs = x[row * inputs..].iter().zip(&w[output * inputs..]).take(inputs);
                let expected: f64 = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                assert!(
                    (f64::from(*found) - expected).abs() < 1e-4,
                    "{rows} {inputs} {outputs} {at}: {found}, {expected}"
                );
            }
        }
    }
}
