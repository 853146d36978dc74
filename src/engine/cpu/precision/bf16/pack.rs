//! Operands as tiles read them: pairs of neighbours of a sum, panel by panel. What is missing counts as 0.

use half::bf16;
use rayon::prelude::*;

use super::super::super::math::vectorised;
use super::super::{Number, Rows, room};
use super::kernel::{COLUMNS, LANES, Pair, ROWS, pair};

/// A right operand (k, n): panels of [`COLUMNS`] columns, the last one of a multiple of [`LANES`], each (pairs, columns).
#[derive(Clone, Debug, Default)]
pub struct Panels {
    data: Vec<Pair>,
    /// (k, n).
    size: (usize, usize),
}

/// The columns of a panel whose first is `first` of `n`.
fn width(first: usize, n: usize) -> usize {
    (n - first).min(COLUMNS).next_multiple_of(LANES)
}

impl Panels {
    /// (k, n).
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Pairs of a sum.
    pub fn pairs(&self) -> usize {
        self.size.0.div_ceil(2)
    }

    /// Each panel with its first column and how many it holds room for.
    pub fn each(&self) -> impl Iterator<Item = (usize, usize, &[Pair])> {
        let (pairs, n) = (self.pairs(), self.size.1);
        (0..n).step_by(COLUMNS).map(move |first| {
            let width = width(first, n);
            (first, width, &self.data[first * pairs..][..width * pairs])
        })
    }

    /// Makes room for (k, n) and lends each panel with its first column.
    fn begin(&mut self, (k, n): (usize, usize)) -> Vec<(usize, &mut [Pair])> {
        self.size = (k, n);
        let pairs = k.div_ceil(2);
        let last = n.saturating_sub(1) / COLUMNS * COLUMNS;
        let len = if n == 0 { 0 } else { (last + width(last, n)) * pairs };
        let data = room(&mut self.data, len);
        data.chunks_mut((COLUMNS * pairs).max(1)).enumerate().map(|(i, data)| (i * COLUMNS, data)).collect()
    }

    /// Becomes the rows of `x`, (k, n).
    pub fn pack<N: Number>(&mut self, x: Rows<N>, (k, n): (usize, usize)) {
        for (first, panel) in self.begin((k, n)) {
            pack_panel(panel, x, first, (k, n));
        }
    }

    /// As [`Self::pack`], by all threads.
    pub fn parallel_pack<N: Number>(&mut self, x: Rows<N>, (k, n): (usize, usize)) {
        self.begin((k, n)).into_par_iter().for_each(|(first, panel)| pack_panel(panel, x, first, (k, n)));
    }

    /// Becomes the transpose of the rows of `x`, which are (n, k).
    pub fn pack_transposed<N: Number>(&mut self, x: Rows<N>, (n, k): (usize, usize)) {
        for (first, panel) in self.begin((k, n)) {
            transpose_panel(panel, x, first, (n, k));
        }
    }

    /// As [`Self::pack_transposed`], by all threads.
    pub fn parallel_pack_transposed<N: Number>(&mut self, x: Rows<N>, (n, k): (usize, usize)) {
        self.begin((k, n))
            .into_par_iter()
            .for_each(|(first, panel)| transpose_panel(panel, x, first, (n, k)));
    }
}

fn pack_panel<N: Number>(panel: &mut [Pair], x: Rows<N>, first: usize, (k, n): (usize, usize)) {
    let (width, count) = (width(first, n), (n - first).min(COLUMNS));
    for (p, out) in panel.chunks_exact_mut(width).enumerate() {
        let row = |at: usize| if at < k { &x.row(at, n)[first..first + count] } else { &[] };
        interleave(out, row(2 * p), row(2 * p + 1));
    }
}

vectorised! {
    /// Pairs of the numbers of two rows; the second may be missing.
    pub fn interleave<N: Number>(out: &mut [Pair], low: &[N], high: &[N]) {
        let (there, missing) = out.split_at_mut(low.len());
        missing.fill(0);
        if high.is_empty() {
            for (out, low) in there.iter_mut().zip(low) {
                *out = pair(bf16::of(low.float()), bf16::ZERO);
            }
            return;
        }
        for ((out, low), high) in there.iter_mut().zip(low).zip(high) {
            *out = pair(bf16::of(low.float()), bf16::of(high.float()));
        }
    }
}

vectorised! {
    /// The pairs of a row; the last number's second may be missing.
    pub fn pairs<N: Number>(out: &mut [Pair], row: &[N]) {
        let whole = row.chunks_exact(2);
        if let (Some(out), &[last]) = (out.last_mut(), whole.remainder()) {
            *out = pair(bf16::of(last.float()), bf16::ZERO);
        }
        for (out, row) in out.iter_mut().zip(whole) {
            *out = pair(bf16::of(row[0].float()), bf16::of(row[1].float()));
        }
    }
}

/// Pairs of a row that are transposed at a time: 16 rows of them fill the lines of the first cache that they go to.
const AT_A_TIME: usize = 128;

fn transpose_panel<N: Number>(panel: &mut [Pair], x: Rows<N>, first: usize, (n, k): (usize, usize)) {
    let (width, count) = (width(first, n), (n - first).min(COLUMNS));
    if count < width {
        panel.fill(0);
    }
    let mut buffer = [[0; AT_A_TIME]; LANES];
    for (part, panel) in panel.chunks_mut(AT_A_TIME * width).enumerate() {
        let (begin, len) = (part * 2 * AT_A_TIME, panel.len() / width);
        for column in (0..count).step_by(LANES) {
            let columns = LANES.min(count - column);
            for (i, buffer) in buffer.iter_mut().take(columns).enumerate() {
                let row = x.row(first + column + i, k);
                pairs(&mut buffer[..len], &row[begin..k.min(begin + 2 * AT_A_TIME)]);
            }
            for (p, out) in panel.chunks_exact_mut(width).enumerate() {
                for (out, buffer) in out[column..column + columns].iter_mut().zip(&buffer) {
                    *out = buffer[p];
                }
            }
        }
    }
}

/// A left operand's transpose (k, m): panels of [`ROWS`] columns, each (pairs, [`ROWS`]) and a few pairs more.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    data: Vec<Pair>,
    pairs: usize,
}

/// Pairs that are copied at a time, more than [`ROWS`]: what is too much is overwritten by the next.
const COPIED: usize = 8;

/// Columns whose panels a thread packs together.
const TOGETHER: usize = 8 * ROWS;

impl Columns {
    fn stride(pairs: usize) -> usize {
        pairs * ROWS + (COPIED - ROWS)
    }

    /// The panel that begins with column `first`.
    pub fn panel(&self, first: usize) -> &[Pair] {
        let stride = Self::stride(self.pairs);
        &self.data[first / ROWS * stride..][..stride]
    }

    /// Makes room for (k, m); lends it with a panel's pairs.
    fn begin(&mut self, (k, m): (usize, usize)) -> (&mut [Pair], usize) {
        self.pairs = k.div_ceil(2);
        let stride = Self::stride(self.pairs);
        (room(&mut self.data, m.div_ceil(ROWS) * stride), stride)
    }

    /// Becomes the rows of `x`, (k, m).
    pub fn pack<N: Number>(&mut self, x: Rows<N>, size: (usize, usize)) {
        let (data, stride) = self.begin(size);
        for (i, panels) in data.chunks_mut(TOGETHER / ROWS * stride).enumerate() {
            pack_columns(panels, stride, x, i * TOGETHER, size);
        }
    }

    /// As [`Self::pack`], by all threads.
    pub fn parallel_pack<N: Number>(&mut self, x: Rows<N>, size: (usize, usize)) {
        let (data, stride) = self.begin(size);
        let parts = data.par_chunks_mut(TOGETHER / ROWS * stride).enumerate();
        parts.for_each(|(i, panels)| pack_columns(panels, stride, x, i * TOGETHER, size));
    }
}

/// Columns from `first` on, as many as `panels` has room for, panels of `stride` pairs.
fn pack_columns<N: Number>(
    panels: &mut [Pair],
    stride: usize,
    x: Rows<N>,
    first: usize,
    (k, m): (usize, usize),
) {
    let count = (m - first).min(TOGETHER);
    let mut buffer = [0; TOGETHER + COPIED];
    for p in 0..k.div_ceil(2) {
        let row = |at: usize| if at < k { &x.row(at, m)[first..first + count] } else { &[] };
        interleave(&mut buffer[..TOGETHER], row(2 * p), row(2 * p + 1));
        for (i, panel) in panels.chunks_exact_mut(stride).enumerate() {
            panel[p * ROWS..][..COPIED].copy_from_slice(&buffer[i * ROWS..][..COPIED]);
        }
    }
}
