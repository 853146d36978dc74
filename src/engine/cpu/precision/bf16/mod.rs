//! Operands in bfloat16, sums in f32.

mod kernel;
mod pack;

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::super::math::{rough_gelu, vectorised};
use super::super::rows;
use super::{Finish, Head, HeadGradients, Into, Number, Precision, Rows, room};
use crate::nn::ActivationDtype;
use kernel::{COLUMNS, Kernel, Left, ROWS, Tile};
use pack::{Columns, Panels};

/// bfloat16 operands.
#[derive(Clone, Copy, Debug)]
pub struct Bf16 {
    kernel: Kernel,
}

impl Default for Bf16 {
    fn default() -> Self {
        Self { kernel: Kernel::native().unwrap_or(Kernel::Plain) }
    }
}

/// Rows of a left operand that a thread takes at a time.
const SHARE: usize = 8 * ROWS;

/// Queries whose attention weights stay in the first cache.
const QUERIES: usize = 4 * ROWS;

/// Pairs of a sum over a weight's rows that are added at a time: a panel of them stays in the second cache.
const SUMMED: usize = 512;

/// A thread's operands and weights of attention.
#[derive(Default)]
struct AttentionScratch {
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    weights: Vec<bf16>,
    d_weights: Vec<bf16>,
    keys_transposed: Panels,
    values_transposed: Panels,
    queries: Panels,
    keys: Panels,
    values: Panels,
    d_out: Panels,
    columns: Columns,
}

/// The operands of a weight's gradient.
#[derive(Default)]
struct GradientScratch {
    dy: Columns,
    x: Panels,
}

thread_local! {
    /// A left operand whose rows have an odd length, with a 0 after each.
    static EVEN: RefCell<Vec<bf16>> = RefCell::default();
    static ATTENTION: RefCell<AttentionScratch> = RefCell::default();
    static GRADIENT: RefCell<GradientScratch> = RefCell::default();
}

/// Where a tile stands among a product's sums, which have `n` columns.
#[derive(Clone, Copy)]
pub struct Place {
    row: usize,
    rows: usize,
    column: usize,
    columns: usize,
    n: usize,
}

impl Place {
    /// Its rows' sums, each with where they stand in rows that are `stride` apart.
    #[inline(always)]
    #[allow(clippy::inline_always)]
    fn each(self, tile: &Tile, stride: usize) -> impl Iterator<Item = (&[f32], Range<usize>)> {
        tile.chunks_exact(COLUMNS).take(self.rows).enumerate().map(move |(i, sums)| {
            let at = (self.row + i) * stride + self.column;
            (&sums[..self.columns], at..at + self.columns)
        })
    }
}

vectorised! {
    pub fn finish_tile(tile: &Tile, place: Place, finish: &mut Finish<bf16>) {
        let columns = place.column..place.column + place.columns;
        match finish {
            Finish::Floats { out, stride, bias, into } => {
                for (sums, at) in place.each(tile, *stride) {
                    let out = &mut out[at];
                    match into {
                        Into::Set => out.copy_from_slice(sums),
                        Into::Add => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                    }
                    if let Some(bias) = bias {
                        out.iter_mut().zip(&bias[columns.clone()]).for_each(|(out, bias)| *out += bias);
                    }
                }
            }
            Finish::Operands { out, stride, bias: None } => {
                for (sums, at) in place.each(tile, *stride) {
                    out[at].iter_mut().zip(sums).for_each(|(out, sum)| *out = bf16::of(*sum));
                }
            }
            Finish::Operands { out, stride, bias: Some(bias) } => {
                let bias = &bias[columns];
                for (sums, at) in place.each(tile, *stride) {
                    for ((out, sum), bias) in out[at].iter_mut().zip(sums).zip(bias) {
                        *out = bf16::of(sum + bias);
                    }
                }
            }
            Finish::Gelu { bias, hidden, activated } => {
                let bias = &bias[columns];
                for (sums, at) in place.each(tile, place.n) {
                    let kept = hidden[at.clone()].iter_mut().zip(&mut activated[at]);
                    for (((hidden, activated), sum), bias) in kept.zip(sums).zip(bias) {
                        let x = sum + bias;
                        *hidden = bf16::of(x);
                        *activated = bf16::of(rough_gelu(x).0);
                    }
                }
            }
            Finish::GeluBackward { mask: None, hidden, d_hidden } => {
                for (sums, at) in place.each(tile, place.n) {
                    let kept = hidden[at.clone()].iter_mut().zip(&mut d_hidden[at]);
                    for ((hidden, d_hidden), sum) in kept.zip(sums) {
                        let (activated, slope) = rough_gelu(hidden.float());
                        *d_hidden = bf16::of(sum * slope);
                        *hidden = bf16::of(activated);
                    }
                }
            }
            Finish::GeluBackward { mask: Some(mask), hidden, d_hidden } => {
                for (sums, at) in place.each(tile, place.n) {
                    let kept = hidden[at.clone()].iter_mut().zip(&mut d_hidden[at.clone()]);
                    for (((hidden, d_hidden), sum), mask) in kept.zip(sums).zip(&mask[at]) {
                        let (activated, slope) = rough_gelu(hidden.float());
                        *d_hidden = bf16::of(sum * mask * slope);
                        *hidden = bf16::of(activated * mask);
                    }
                }
            }
        }
    }
}

vectorised! {
    /// Rows of `width` numbers to rows of an even length, in the order of operands; what is missing is 0.
    pub fn round_rows(out: &mut [bf16], x: &[f32], width: usize) {
        for (out, x) in out.chunks_exact_mut(width.next_multiple_of(2)).zip(x.chunks_exact(width)) {
            for (out, x) in out.iter_mut().zip(x) {
                *out = bf16::of(*x);
            }
            if let Some(missing) = out.get_mut(width) {
                *missing = bf16::ZERO;
            }
        }
    }
}

impl Bf16 {
    /// The same on any processor, and slow: what tests compare with.
    #[must_use]
    #[cfg(test)]
    pub fn plain() -> Self {
        Self { kernel: Kernel::Plain }
    }

    /// Whether this processor multiplies bfloat16 faster than f32.
    #[must_use]
    pub fn is_native() -> bool {
        Kernel::native().is_some()
    }

    /// `count` rows of `x`, which has all numbers of a whole number of pairs, times `right`, finished as rows `first` on.
    fn tiles(self, (first, count): (usize, usize), x: Rows<bf16>, right: &Panels, finish: &mut Finish<bf16>) {
        let (pairs, n) = (right.pairs(), right.size().1);
        let mut tile: Tile = [0.0; ROWS * COLUMNS];
        for (column, width, panel) in right.each() {
            for row in (0..count).step_by(ROWS) {
                // The last rows are those at the end again.
                let left = Left::Rows(std::array::from_fn(|i| x.row((row + i).min(count - 1), 2 * pairs)));
                self.kernel.tile(pairs, left, panel, width, &mut tile);
                let (rows, columns) = ((count - row).min(ROWS), (n - column).min(COLUMNS));
                finish_tile(&tile, Place { row: first + row, rows, column, columns, n }, finish);
            }
        }
    }

    /// The transpose of `left`, of which there are `rows`, times `right`.
    fn packed(self, rows: usize, left: &Columns, right: &Panels, mut finish: Finish<bf16>) {
        self.sums((0..rows, 0..right.pairs()), left, right, &mut finish);
    }

    /// The sums over some pairs of some rows of the transpose of `left` times `right`.
    fn sums(
        self,
        (rows, pairs): (Range<usize>, Range<usize>),
        left: &Columns,
        right: &Panels,
        finish: &mut Finish<bf16>,
    ) {
        let (mut tile, n): (Tile, _) = ([0.0; ROWS * COLUMNS], right.size().1);
        for (column, width, panel) in right.each() {
            let panel = &panel[pairs.start * width..];
            for row in rows.clone().step_by(ROWS) {
                let left = Left::Packed(&left.panel(row)[pairs.start * ROWS..]);
                self.kernel.tile(pairs.len(), left, panel, width, &mut tile);
                let (count, columns) = ((rows.end - row).min(ROWS), (n - column).min(COLUMNS));
                let place = Place { row: row - rows.start, rows: count, column, columns, n };
                finish_tile(&tile, place, finish);
            }
        }
    }

    /// As [`Precision::product`], finished as rows `first` on.
    fn product_from(
        self,
        first: usize,
        rows: usize,
        x: Rows<bf16>,
        right: &Panels,
        mut finish: Finish<bf16>,
    ) {
        let k = right.size().0;
        if k.is_multiple_of(2) {
            return self.tiles((first, rows), x, right, &mut finish);
        }
        EVEN.with_borrow_mut(|even| {
            let even = room(even, rows * (k + 1));
            for (row, out) in even.chunks_exact_mut(k + 1).enumerate() {
                out[..k].copy_from_slice(x.row(row, k));
                out[k] = bf16::ZERO;
            }
            self.tiles((first, rows), Rows::new(even, k + 1), right, &mut finish);
        });
    }
}

impl Precision for Bf16 {
    type Number = bf16;
    const DTYPE: ActivationDtype = ActivationDtype::Bf16;
    type Prepared<'w> = Panels;

    fn operand(self, x: &[f32]) -> Cow<'_, [bf16]> {
        const AT_A_TIME: usize = 1 << 14;
        let mut out = vec![bf16::ZERO; x.len()];
        let parts = out.par_chunks_mut(AT_A_TIME).zip(x.par_chunks(AT_A_TIME));
        parts.for_each(|(out, x)| rows::round(out, x));
        Cow::Owned(out)
    }

    fn prepare(self, w: &[f32], size: (usize, usize)) -> Panels {
        let mut panels = Panels::default();
        panels.parallel_pack(Rows::new(w, size.1), size);
        panels
    }

    fn prepare_transposed(self, w: &[f32], size: (usize, usize)) -> Panels {
        let mut panels = Panels::default();
        panels.parallel_pack_transposed(Rows::new(w, size.1), size);
        panels
    }

    fn product(self, rows: usize, x: Rows<bf16>, right: &Panels, finish: Finish<bf16>) {
        self.product_from(0, rows, x, right, finish);
    }

    fn parallel_product(self, rows: usize, x: Rows<bf16>, right: &Panels, out: &mut [f32], into: Into) {
        let n = right.size().1;
        // Whatever a thread's share is, a sum is the same.
        let share = rows.div_ceil(rayon::current_num_threads()).next_multiple_of(ROWS).min(4 * SHARE);
        out[..rows * n].par_chunks_mut((share * n).max(1)).enumerate().for_each(|(i, out)| {
            let rows = out.len() / n;
            self.product(rows, x.from(i * share), right, Finish::Floats { out, stride: n, bias: None, into });
        });
    }

    fn weight_gradient(
        self,
        (outputs, count, inputs): (usize, usize, usize),
        dy: Rows<bf16>,
        x: Rows<bf16>,
        out: &mut [f32],
        into: Into,
    ) {
        // Not lent: a thread that waits for others may begin another gradient.
        let mut scratch = GRADIENT.take();
        scratch.dy.parallel_pack(dy, (count, outputs));
        scratch.x.parallel_pack(x, (count, inputs));
        let GradientScratch { dy, x } = &scratch;
        out[..outputs * inputs].par_chunks_mut((SHARE * inputs).max(1)).enumerate().for_each(|(i, out)| {
            let rows = i * SHARE..i * SHARE + out.len() / inputs;
            let mut into = into;
            for begin in (0..x.pairs().max(1)).step_by(SUMMED) {
                let pairs = begin..x.pairs().min(begin + SUMMED);
                let mut finish = Finish::Floats { out: &mut *out, stride: inputs, bias: None, into };
                self.sums((rows.clone(), pairs), dy, x, &mut finish);
                into = Into::Add;
            }
        });
        GRADIENT.set(scratch);
    }

    fn attend(self, head: &Head<bf16>, mut out: Finish<bf16>) {
        let ([q, k, v], m, width) = (head.of, head.keys, head.width);
        ATTENTION.with_borrow_mut(|scratch| {
            let AttentionScratch { scores, weights, keys_transposed, values, .. } = scratch;
            keys_transposed.pack_transposed(k, (m, width));
            values.pack(v, (m, width));
            let even = m.next_multiple_of(2);
            for first in (0..head.queries).step_by(QUERIES) {
                let count = QUERIES.min(head.queries - first);
                let (p, weights) = (room(scores, count * m), room(weights, count * even));
                self.product(count, q.from(first), keys_transposed, floats(p, m));
                head.softmax(p, first);
                head.drop(p, first);
                round_rows(weights, p, m);
                self.tiles((first, count), Rows::new(weights, even), values, &mut out);
            }
        });
    }

    fn attend_backward(
        self,
        head: &Head<bf16>,
        d_out: Rows<bf16>,
        mut out: Option<Finish<bf16>>,
        mut gradients: HeadGradients<bf16>,
    ) {
        let ([q, k, v], s, m, width) = (head.of, head.queries, head.keys, head.width);
        ATTENTION.with_borrow_mut(|scratch| {
            scratch.keys_transposed.pack_transposed(k, (m, width));
            scratch.values_transposed.pack_transposed(v, (m, width));
            scratch.keys.pack(k, (m, width));
            if out.is_some() {
                scratch.values.pack(v, (m, width));
            }
            let even = m.next_multiple_of(2);
            let weights = room(&mut scratch.weights, s * even);
            let d_weights = room(&mut scratch.d_weights, s * even);
            for first in (0..s).step_by(QUERIES) {
                let count = QUERIES.min(s - first);
                let p = room(&mut scratch.scores, count * m);
                let dp = room(&mut scratch.d_scores, count * m);
                self.product(count, q.from(first), &scratch.keys_transposed, floats(p, m));
                head.softmax(p, first);
                self.product(count, d_out.from(first), &scratch.values_transposed, floats(dp, m));
                head.drop(dp, first);
                rows::softmax_backward(dp, p, m, head.factor());
                head.drop(p, first);
                let weights = &mut weights[first * even..][..count * even];
                let d_weights = &mut d_weights[first * even..][..count * even];
                round_rows(weights, p, m);
                round_rows(d_weights, dp, m);
                if let Some(out) = &mut out {
                    self.tiles((first, count), Rows::new(weights, even), &scratch.values, out);
                }
                let mut dq = gradients.finish(0, width, first);
                self.tiles((0, count), Rows::new(d_weights, even), &scratch.keys, &mut dq);
            }
            // Sums over queries.
            scratch.d_out.pack(d_out, (s, width));
            scratch.columns.pack(Rows::new(weights, even), (s, m));
            self.packed(m, &scratch.columns, &scratch.d_out, gradients.finish(2, width, 0));
            scratch.queries.pack(q, (s, width));
            scratch.columns.pack(Rows::new(d_weights, even), (s, m));
            self.packed(m, &scratch.columns, &scratch.queries, gradients.finish(1, width, 0));
        });
    }
}

fn floats(out: &mut [f32], stride: usize) -> Finish<'_, bf16> {
    Finish::Floats { out, stride, bias: None, into: Into::Set }
}
