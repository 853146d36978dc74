//! One head's attention: what it is of, and where its gradients go.

use super::super::rows;
use super::{Finish, Into, Number, Rows};

/// A head of attention.
pub struct Head<'a, N> {
    /// S.
    pub queries: usize,
    /// M.
    pub keys: usize,
    /// D/H.
    pub width: usize,
    /// Queries, keys and values.
    pub of: [Rows<'a, N>; 3],
    /// What is added to the scores.
    pub bias: Option<Bias<'a>>,
    /// Dropout of the attention weights (S, M): multiplies some of them, from a position on.
    pub drop: Option<&'a Drop<'a>>,
}

/// Multiplies numbers, from a position on, by 0 or the inverse share that is kept.
pub type Drop<'a> = dyn Fn(&mut [f32], usize) + 'a;

/// A row of M numbers for each query, `step` numbers after the one before.
#[derive(Clone, Copy)]
#[allow(missing_docs, reason = "named above")]
pub struct Bias<'a> {
    pub values: &'a [f32],
    pub step: usize,
}

impl<N: Number> Head<'_, N> {
    /// What scores are multiplied by.
    pub(super) fn factor(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }

    /// Scores (…, M) of the queries from `first` on to attention weights before dropout.
    pub(super) fn softmax(&self, scores: &mut [f32], first: usize) {
        let Some(Bias { values, step }) = self.bias else {
            return rows::softmax(scores, self.keys, self.factor());
        };
        for (at, row) in scores.chunks_exact_mut(self.keys.max(1)).enumerate() {
            rows::biased_softmax(row, &values[(first + at) * step..][..self.keys], self.factor());
        }
    }

    /// Drops some of the numbers (…, M) of the queries from `first` on.
    pub(super) fn drop(&self, x: &mut [f32], first: usize) {
        if let Some(drop) = self.drop {
            drop(x, first * self.keys);
        }
    }
}

/// Where the gradients of queries, keys and values go.
#[allow(missing_docs, reason = "each variant's say what its fields are")]
pub enum HeadGradients<'a, N> {
    /// To the rows of `out`, which are `stride` apart, each from its column on.
    Operands { out: &'a mut [N], stride: usize, columns: [usize; 3] },
    /// Each to rows of its own.
    Floats([&'a mut [f32]; 3]),
}

impl<N> HeadGradients<'_, N> {
    /// One of them, `width` wide, from its row `first` on.
    pub(super) fn finish(&mut self, which: usize, width: usize, first: usize) -> Finish<'_, N> {
        match self {
            Self::Operands { out, stride, columns } => {
                let out = &mut out[first * *stride + columns[which]..];
                Finish::Operands { out, stride: *stride, bias: None }
            }
            Self::Floats(parts) => {
                let out = &mut parts[which][first * width..];
                Finish::Floats { out, stride: width, bias: None, into: Into::Set }
            }
        }
    }
}
