//! The matrices of a block as right operands of products.

use super::{BlockParameters, Shape};

/// A block's.
pub(super) struct Matrices<W> {
    pub(super) in_proj: InProj<W>,
    pub(super) out_proj: W,
    pub(super) fc1: W,
    pub(super) fc2: W,
}

/// The projection to queries, keys and values.
pub(super) enum InProj<W> {
    /// For the same tokens.
    Whole(W),
    /// Where fewer tokens ask than are asked.
    Apart { q: W, kv: W },
}

impl<'w, W> Matrices<W> {
    /// Those of block `index`; `prepare` makes a right operand of a weight (outputs, inputs): itself in the backward pass,
    /// its transpose in the forward pass.
    pub(super) fn new(
        prepare: impl Fn(&'w [f32], (usize, usize)) -> W,
        shape: &Shape,
        index: usize,
        w: &BlockParameters<&'w [f32]>,
    ) -> Self {
        let (d, m) = (shape.width, shape.hidden);
        let of = |weight: &'w [f32], outputs, inputs| prepare(weight, (outputs, inputs));
        let in_proj = w.in_proj.weight;
        Self {
            in_proj: if shape.queries(index) == shape.tokens() {
                InProj::Whole(of(in_proj, 3 * d, d))
            } else {
                let (q, kv) = in_proj.split_at(d * d);
                InProj::Apart { q: of(q, d, d), kv: of(kv, 2 * d, d) }
            },
            out_proj: of(w.out_proj.weight, d, d),
            fc1: of(w.fc1.weight, m, d),
            fc2: of(w.fc2.weight, d, m),
        }
    }
}
