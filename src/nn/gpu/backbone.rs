//! The vision transformer: the launches of its forward and backward pass. The same network as
//! [`crate::model::VisionTransformer::forward`]; as on the CPU, only the class token leaves the last block.

use candle_core::Result;

use super::engine::Weights;
use super::kernels::{Attention, Embed, EmbedBackward, NormBackward, NormForward, Patches};
use super::machine::{Ptr, Room};
use super::ops::{Mask, Ops, Qkv, int};
use crate::nn::cpu::vit::{BlockDrops, Shape};
use crate::nn::images::{MEAN, STD};
use crate::nn::{Dropout, Pass};

/// One backbone.
pub struct Backbone {
    pub shape: Shape,
    /// The position of its first parameter.
    pub first: usize,
    pub positions: Dropout,
    pub blocks: Vec<BlockDrops>,
}

/// Images on the GPU.
#[derive(Clone, Copy, Debug)]
pub enum Pixels {
    /// Bytes (N, H, W, 3).
    Bytes(Ptr),
    /// Normalised f32 (N, 3, H, W).
    Normalised(Ptr),
}

/// What backward needs of forward: of each block, and of the last norm.
#[derive(Default)]
pub struct Tape {
    blocks: Vec<BlockTape>,
    xhat: Room,
    rstd: Room,
}

/// Rows of `S` tokens an image, or 1 in the last block for those marked Q. "Stored" numbers but for `rstd` and `lse`.
#[derive(Default)]
struct BlockTape {
    xhat1: Room,  // (N S, D): the first norm's, before weight and bias
    rstd1: Room,  // (N S)
    q: Room,      // (N S, 3 D): queries, keys, values; in the last block (N, D), queries alone
    kv: Room,     // in the last block (N S, 2 D)
    lse: Room,    // (N, H, Q)
    mixed: Room,  // (N Q, D): the heads' outputs
    xhat2: Room,  // (N Q, D)
    rstd2: Room,  // (N Q)
    hidden: Room, // (N Q, M): before bias and GELU
}

/// Memory that both passes use in passing.
#[derive(Default)]
pub struct Scratch {
    patches: Room, // (N P, 3 p p)
    x: Room,       // (N S, D), f32: the residual sum, or its gradient
    last: Room,    // (N, D), f32: the same of the class tokens after the last block's attention
    y: Room,       // (N S, D): a norm's output
    branch: Room,  // (N S, D): a branch's output, or its gradient
    hidden: Room,  // (N S, M): activated, or its gradient
    d_norm: Room,  // (N S, D)
    d_q: Room,     // (N S, 3 D), in the last block (N, D)
    d_kv: Room,    // in the last block (N S, 2 D)
    delta: Room,   // (N, H, Q), f32
    sums: Room,    // (S, D), f32
    block: BlockTape,
}

/// Parameters before the first block, and of each block: as in [`crate::nn::cpu::vit::Weights`].
const BEFORE_BLOCKS: usize = 4;
const A_BLOCK: usize = 12;
/// Places of a block's parameters.
const NORM1: usize = 0;
const IN_PROJ: usize = 2;
const OUT_PROJ: usize = 4;
const NORM2: usize = 6;
const FC1: usize = 8;
const FC2: usize = 10;

/// One pass over some images of a stream.
pub struct Images<'a> {
    pub pixels: Pixels,
    /// The first of them.
    pub start: usize,
    pub count: usize,
    /// Whose first row is the first image.
    pub pass: &'a Pass,
}

impl Backbone {
    fn block(&self, i: usize) -> usize {
        self.first + BEFORE_BLOCKS + A_BLOCK * i
    }

    fn final_norm(&self) -> usize {
        self.block(self.shape.depth)
    }

    fn is_last(&self, block: usize) -> bool {
        block + 1 == self.shape.depth
    }

    fn queries(&self, block: usize) -> usize {
        if self.is_last(block) { 1 } else { self.shape.tokens() }
    }

    /// Bytes that a tape keeps for an image, and that the passes use beside it, where a stored number takes `bytes`.
    pub fn bytes_an_image(shape: &Shape, bytes: usize) -> (usize, usize) {
        let (s, d, m, h) = (shape.tokens(), shape.width, shape.hidden, shape.heads);
        let block =
            |queries: usize| bytes * (s * 4 * d + queries * (2 * d + m)) + 4 * (s + queries * (h + 1));
        let patches = 3 * shape.patch * shape.patch * (s - 1);
        let scratch = bytes * (patches + s * (6 * d + m)) + 4 * s * (d + h);
        ((shape.depth - 1) * block(s) + block(1), scratch + block(s))
    }

    /// Images to features (N, D), f32; a `tape` takes what [`Self::backward`] needs.
    pub fn forward(
        &self,
        ops: &Ops,
        w: &Weights,
        images: &Images,
        mut tape: Option<&mut Tape>,
        scratch: &mut Scratch,
        features: Ptr,
    ) -> Result<()> {
        let (n, d, s) = (images.count, self.shape.width, self.shape.tokens());
        if let Some(tape) = &mut tape {
            tape.blocks.resize_with(self.shape.depth, BlockTape::default);
        }
        let x = ops.f32_room(&mut scratch.x, n * s * d)?;
        let y = ops.stored_room(&mut scratch.y, n * s * d)?;
        let branch = ops.stored_room(&mut scratch.branch, n * s * d)?;
        self.embed(ops, w, images, scratch, x)?;

        // The input's norm; each later one comes with the residual sum before it.
        let mut first = NormForward { x, ..NormForward::default() };
        for i in 0..self.shape.depth {
            let (block, queries, drops) = (self.block(i), self.queries(i), &self.blocks[i]);
            let rows = n * queries;
            let kept = tape.as_deref_mut().map(|tape| &mut tape.blocks[i]);
            let keeps = kept.is_some();
            let now = kept.unwrap_or(&mut scratch.block);
            if i == 0 {
                first = self.keep_norm1(ops, now, first, n, keeps)?;
                let a = NormForward { y_t: y, weight: w.f32(block), shift: w.f32(block + 1), ..first };
                ops.norm(sized(a, n * s, d, s), Mask::default(), Mask::default())?;
            }
            let qkv = self.project(ops, w, i, n, y, now)?;
            let mixed = ops.stored_room(&mut now.mixed, rows * d)?;
            let lse = if keeps { ops.f32_room(&mut now.lse, rows * self.shape.heads)? } else { 0 };
            let mask = ops.mask(drops.attention, images.pass, n, self.shape.heads * s * s)?;
            let a = Attention { mixed, lse, ..self.attention(w, i, qkv, mask) };
            ops.attention(&a, n, d / self.shape.heads)?;
            ops.linear(rows, (mixed, d), (w.stored(block + OUT_PROJ), d, d), (branch, d), false)?;

            let path = ops.path(drops.path[0], images.pass, n)?;
            let after = if self.is_last(i) { ops.f32_room(&mut scratch.last, rows * d)? } else { x };
            let a = NormForward {
                x,
                x_step: int(s / queries),
                branch,
                bias: w.f32(block + OUT_PROJ + 1),
                sum: after,
                weight: w.f32(block + NORM2),
                shift: w.f32(block + NORM2 + 1),
                y_t: y,
                xhat: if keeps { ops.stored_room(&mut now.xhat2, rows * d)? } else { 0 },
                rstd: if keeps { ops.f32_room(&mut now.rstd2, rows)? } else { 0 },
                ..NormForward::default()
            };
            ops.norm(sized(a, rows, d, queries), Mask::default(), path)?;

            let m = self.shape.hidden;
            let hidden = ops.stored_room(&mut now.hidden, rows * m)?;
            ops.linear(rows, (y, d), (w.stored(block + FC1), d, m), (hidden, m), false)?;
            let activated = ops.stored_room(&mut scratch.hidden, rows * m)?;
            let mask = ops.mask(drops.mlp[0], images.pass, n, queries * m)?;
            ops.activate([hidden, w.f32(block + FC1 + 1), activated], (rows, m), queries, false, mask)?;
            ops.linear(rows, (activated, m), (w.stored(block + FC2), m, d), (branch, d), false)?;

            let mask = ops.mask(drops.mlp[1], images.pass, n, queries * d)?;
            let path = ops.path(drops.path[1], images.pass, n)?;
            let sum =
                NormForward { x: after, branch, bias: w.f32(block + FC2 + 1), ..NormForward::default() };
            let a = if self.is_last(i) {
                let norm = self.final_norm();
                let (xhat, rstd) = match &mut tape {
                    Some(tape) => (ops.stored_room(&mut tape.xhat, n * d)?, ops.f32_room(&mut tape.rstd, n)?),
                    None => (0, 0),
                };
                NormForward { weight: w.f32(norm), shift: w.f32(norm + 1), y: features, xhat, rstd, ..sum }
            } else {
                let norm = self.block(i + 1) + NORM1;
                let next = match &mut tape {
                    Some(tape) => &mut tape.blocks[i + 1],
                    None => &mut scratch.block,
                };
                let a = NormForward { sum: x, y_t: y, ..sum };
                let a = self.keep_norm1(ops, next, a, n, keeps)?;
                NormForward { weight: w.f32(norm), shift: w.f32(norm + 1), ..a }
            };
            ops.norm(sized(a, rows, d, queries), mask, path)?;
        }
        Ok(())
    }

    /// With room for what the first norm of a block leaves for its backward pass.
    fn keep_norm1(
        &self,
        ops: &Ops,
        tape: &mut BlockTape,
        a: NormForward,
        images: usize,
        keeps: bool,
    ) -> Result<NormForward> {
        if !keeps {
            return Ok(a);
        }
        let rows = images * self.shape.tokens();
        let xhat = ops.stored_room(&mut tape.xhat1, rows * self.shape.width)?;
        Ok(NormForward { xhat, rstd: ops.f32_room(&mut tape.rstd1, rows)?, ..a })
    }

    /// Images to tokens `x` (N, S, D), f32.
    fn embed(&self, ops: &Ops, w: &Weights, images: &Images, scratch: &mut Scratch, x: Ptr) -> Result<()> {
        let (n, d, s) = (images.count, self.shape.width, self.shape.tokens());
        let (p, pixels) = (s - 1, 3 * self.shape.patch * self.shape.patch);
        let patches = self.patches(ops, images, scratch)?;
        let embedded = ops.stored_room(&mut scratch.branch, n * s * d)?;
        ops.linear(n * p, (patches, pixels), (w.stored(self.first + 2), pixels, d), (embedded, d), false)?;
        let a = Embed {
            patches: embedded,
            bias: w.f32(self.first + 3),
            class_token: w.f32(self.first),
            position: w.f32(self.first + 1),
            x,
            images: int(n),
            tokens: int(s),
            width: int(d),
            ..Embed::default()
        };
        ops.embed(a, ops.mask(self.positions, images.pass, n, s * d)?)
    }

    /// Patches (N P, 3 p p).
    fn patches(&self, ops: &Ops, images: &Images, scratch: &mut Scratch) -> Result<Ptr> {
        let Shape { image, patch, .. } = self.shape;
        let out = ops.stored_room(&mut scratch.patches, images.count * (image / patch * patch).pow(2) * 3)?;
        let first = (images.start * image * image * 3) as Ptr;
        let (bytes, normalised) = match images.pixels {
            Pixels::Bytes(at) => (at + first, 0),
            Pixels::Normalised(at) => (0, at + 4 * first),
        };
        ops.patches(&Patches {
            bytes,
            normalised,
            out,
            images: int(images.count),
            size: int(image),
            patch: int(patch),
            factor: STD.map(|std| 1.0 / (255.0 * std)),
            offset: std::array::from_fn(|c| -MEAN[c] / STD[c]),
        })?;
        Ok(out)
    }

    /// Queries, keys and values of `y` (N S, D), without their biases.
    fn project(
        &self,
        ops: &Ops,
        w: &Weights,
        block: usize,
        n: usize,
        y: Ptr,
        tape: &mut BlockTape,
    ) -> Result<Qkv> {
        let (d, s) = (self.shape.width, self.shape.tokens());
        let weight = w.stored(self.block(block) + IN_PROJ);
        if !self.is_last(block) {
            let q = ops.stored_room(&mut tape.q, n * s * 3 * d)?;
            ops.linear(n * s, (y, d), (weight, d, 3 * d), (q, 3 * d), false)?;
            return Ok(self.whole(ops, q));
        }
        let q = ops.stored_room(&mut tape.q, n * d)?;
        let kv = ops.stored_room(&mut tape.kv, n * s * 2 * d)?;
        ops.linear(n, (y, s * d), (weight, d, d), (q, d), false)?;
        ops.linear(n * s, (y, d), (ops.stored_at(weight, d * d), d, 2 * d), (kv, 2 * d), false)?;
        Ok(self.class_only(ops, q, kv))
    }

    fn whole(&self, ops: &Ops, q: Ptr) -> Qkv {
        Qkv::joined(ops, q, self.shape.width, self.shape.tokens())
    }

    fn class_only(&self, ops: &Ops, q: Ptr, kv: Ptr) -> Qkv {
        let d = self.shape.width;
        let keys = self.shape.tokens();
        Qkv { q, k: kv, v: ops.stored_at(kv, d), q_row: d, kv_row: 2 * d, queries: 1, keys }
    }

    fn attention(&self, w: &Weights, block: usize, qkv: Qkv, mask: Mask) -> Attention {
        let bias = w.f32(self.block(block) + IN_PROJ + 1);
        qkv.attention(bias, self.shape.width, self.shape.heads, mask)
    }

    /// Adds the gradients of the parameters to `w`'s, from that of the features, `d_features` (N, D), f32. The tape, made
    /// by [`Self::forward`] of the same images, is used up.
    pub fn backward(
        &self,
        ops: &Ops,
        w: &Weights,
        images: &Images,
        tape: &mut Tape,
        scratch: &mut Scratch,
        d_features: Ptr,
    ) -> Result<()> {
        let (n, d, s, m) = (images.count, self.shape.width, self.shape.tokens(), self.shape.hidden);
        let (pass, last) = (images.pass, self.shape.depth - 1);
        let d_x = ops.f32_room(&mut scratch.x, n * s * d)?;
        let d_last = ops.f32_room(&mut scratch.last, n * d)?;
        let d_branch = ops.stored_room(&mut scratch.branch, n * s * d)?;
        let d_norm = ops.stored_room(&mut scratch.d_norm, n * s * d)?;

        let norm = self.final_norm();
        let mask = ops.mask(self.blocks[last].mlp[1], pass, n, d)?;
        let path = ops.path(self.blocks[last].path[1], pass, n)?;
        let a = NormBackward {
            dy: d_features,
            xhat: tape.xhat.at(),
            rstd: tape.rstd.at(),
            weight: w.f32(norm),
            shift: w.f32(norm + 1),
            d_x: d_last,
            d_branch,
            ..NormBackward::default()
        };
        let sums = [w.gradient(norm), w.gradient(norm + 1), w.gradient(self.block(last) + FC2 + 1)];
        ops.norm_backward(sized_back(a, n, d, 1), mask, path, sums)?;

        for i in (0..=last).rev() {
            let (block, queries, drops) = (self.block(i), self.queries(i), &self.blocks[i]);
            let (rows, now) = (n * queries, &mut tape.blocks[i]);
            let d_sum = if self.is_last(i) { d_last } else { d_x };

            let (hidden, d_hidden) = (now.hidden.at(), ops.stored_room(&mut scratch.hidden, rows * m)?);
            ops.linear_input(
                rows,
                (d_branch, d),
                (w.stored(block + FC2), m, d),
                (d_hidden, m),
                (false, false),
            )?;
            let mask = ops.mask(drops.mlp[0], pass, n, queries * m)?;
            let buffers = [hidden, w.f32(block + FC1 + 1), d_hidden, w.gradient(block + FC1 + 1)];
            ops.activate_backward(buffers, (rows, m), queries, false, mask)?;
            ops.linear_weight(rows, (hidden, m), (d_branch, d), (w.gradient(block + FC2), m, d))?;
            ops.linear_input(
                rows,
                (d_hidden, m),
                (w.stored(block + FC1), d, m),
                (d_norm, d),
                (false, false),
            )?;
            let xhat2 = now.xhat2.at();
            let path = ops.path(drops.path[0], pass, n)?;
            let a = NormBackward {
                dy_t: d_norm,
                xhat: xhat2,
                rstd: now.rstd2.at(),
                weight: w.f32(block + NORM2),
                shift: w.f32(block + NORM2 + 1),
                d_in: d_sum,
                d_x: d_sum,
                y: xhat2,
                d_branch,
                ..NormBackward::default()
            };
            let bias = w.gradient(block + OUT_PROJ + 1);
            let sums = [w.gradient(block + NORM2), w.gradient(block + NORM2 + 1), bias];
            ops.norm_backward(sized_back(a, rows, d, queries), Mask::default(), path, sums)?;
            ops.linear_weight(rows, (xhat2, d), (d_hidden, m), (w.gradient(block + FC1), d, m))?;

            let (mixed, d_mixed) = (now.mixed.at(), d_norm);
            ops.linear_input(
                rows,
                (d_branch, d),
                (w.stored(block + OUT_PROJ), d, d),
                (d_mixed, d),
                (false, false),
            )?;
            ops.linear_weight(rows, (mixed, d), (d_branch, d), (w.gradient(block + OUT_PROJ), d, d))?;
            let gradients = self.attention_backward(ops, w, i, images, now, scratch, d_mixed)?;

            self.project_backward(ops, w, i, n, gradients, d_norm)?;
            let xhat1 = now.xhat1.at();
            let (mask, path) = match i.checked_sub(1).map(|below| &self.blocks[below]) {
                Some(below) => (ops.mask(below.mlp[1], pass, n, s * d)?, ops.path(below.path[1], pass, n)?),
                None => (Mask::default(), Mask::default()),
            };
            let a = NormBackward {
                dy_t: d_norm,
                xhat: xhat1,
                rstd: now.rstd1.at(),
                weight: w.f32(block + NORM1),
                shift: w.f32(block + NORM1 + 1),
                d_in: d_sum,
                in_step: int(s / queries),
                d_x,
                y: xhat1,
                d_branch: if i > 0 { d_branch } else { 0 },
                ..NormBackward::default()
            };
            let below = if i > 0 { w.gradient(self.block(i - 1) + FC2 + 1) } else { 0 };
            let sums = [w.gradient(block + NORM1), w.gradient(block + NORM1 + 1), below];
            ops.norm_backward(sized_back(a, n * s, d, s), mask, path, sums)?;
            self.project_weights(ops, w, i, n, gradients, xhat1)?;
        }
        self.embed_backward(ops, w, images, scratch, d_x, d_norm)
    }

    /// The gradients of queries, keys and values, and where they are.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        ops: &Ops,
        w: &Weights,
        block: usize,
        images: &Images,
        tape: &BlockTape,
        scratch: &mut Scratch,
        d_mixed: Ptr,
    ) -> Result<Qkv> {
        let (n, d, s, heads) = (images.count, self.shape.width, self.shape.tokens(), self.shape.heads);
        let (qkv, gradients) = if self.is_last(block) {
            let d_q = ops.stored_room(&mut scratch.d_q, n * d)?;
            let d_kv = ops.stored_room(&mut scratch.d_kv, n * s * 2 * d)?;
            (self.class_only(ops, tape.q.at(), tape.kv.at()), self.class_only(ops, d_q, d_kv))
        } else {
            let d_qkv = ops.stored_room(&mut scratch.d_q, n * s * 3 * d)?;
            (self.whole(ops, tape.q.at()), self.whole(ops, d_qkv))
        };
        let mask = ops.mask(self.blocks[block].attention, images.pass, n, heads * s * s)?;
        let a = Attention {
            mixed: tape.mixed.at(),
            lse: tape.lse.at(),
            d_mixed,
            delta: ops.f32_room(&mut scratch.delta, n * heads * qkv.queries)?,
            d_q: gradients.q,
            d_k: gradients.k,
            d_v: gradients.v,
            ..self.attention(w, block, qkv, mask)
        };
        ops.attention_backward(&a, n, d / heads)?;
        Ok(gradients)
    }

    /// The projection's gradient for its input, `d_norm` (N S, D), and for its bias.
    fn project_backward(
        &self,
        ops: &Ops,
        w: &Weights,
        block: usize,
        n: usize,
        gradients: Qkv,
        d_norm: Ptr,
    ) -> Result<()> {
        let (d, s, at) = (self.shape.width, self.shape.tokens(), self.block(block) + IN_PROJ);
        let (weight, bias) = (w.stored(at), w.gradient(at + 1));
        if !self.is_last(block) {
            ops.combine([0, gradients.q, 0, bias], (n * s, 3 * d), 1, Mask::default())?;
            let d_out = (gradients.q, 3 * d);
            return ops.linear_input(n * s, d_out, (weight, d, 3 * d), (d_norm, d), (false, false));
        }
        ops.combine([0, gradients.q, 0, bias], (n, d), 1, Mask::default())?;
        ops.combine([0, gradients.k, 0, bias + 4 * d as Ptr], (n * s, 2 * d), 1, Mask::default())?;
        let (d_kv, kv_weight) = ((gradients.k, 2 * d), (ops.stored_at(weight, d * d), d, 2 * d));
        ops.linear_input(n * s, d_kv, kv_weight, (d_norm, d), (false, false))?;
        ops.linear_input(n, (gradients.q, d), (weight, d, d), (d_norm, s * d), (false, true))
    }

    /// The projection's gradient for its weight; `y` (N S, D) was its input.
    fn project_weights(
        &self,
        ops: &Ops,
        w: &Weights,
        block: usize,
        n: usize,
        gradients: Qkv,
        y: Ptr,
    ) -> Result<()> {
        let (d, s) = (self.shape.width, self.shape.tokens());
        let gradient = w.gradient(self.block(block) + IN_PROJ);
        if !self.is_last(block) {
            return ops.linear_weight(n * s, (y, d), (gradients.q, 3 * d), (gradient, d, 3 * d));
        }
        ops.linear_weight(n, (y, s * d), (gradients.q, d), (gradient, d, d))?;
        let kv = gradient + (4 * d * d) as Ptr;
        ops.linear_weight(n * s, (y, d), (gradients.k, 2 * d), (kv, d, 2 * d))
    }

    fn embed_backward(
        &self,
        ops: &Ops,
        w: &Weights,
        images: &Images,
        scratch: &mut Scratch,
        d_x: Ptr,
        d_patches: Ptr,
    ) -> Result<()> {
        let (n, d, s) = (images.count, self.shape.width, self.shape.tokens());
        let (p, pixels) = (s - 1, 3 * self.shape.patch * self.shape.patch);
        let sums = ops.f32_room(&mut scratch.sums, s * d)?;
        let a = EmbedBackward {
            d_x,
            d_patches,
            sums,
            images: int(n),
            tokens: int(s),
            width: int(d),
            ..EmbedBackward::default()
        };
        ops.embed_backward(a, ops.mask(self.positions, images.pass, n, s * d)?)?;
        ops.reduce(sums, 1, d, [w.gradient(self.first), 0, 0], 1)?;
        ops.reduce(sums, 1, s * d, [w.gradient(self.first + 1), 0, 0], 1)?;
        ops.reduce(sums + 4 * d as Ptr, p, d, [w.gradient(self.first + 3), 0, 0], 1)?;
        let patches = self.patches(ops, images, scratch)?;
        ops.linear_weight(n * p, (patches, pixels), (d_patches, d), (w.gradient(self.first + 2), pixels, d))
    }
}

/// With its sizes: `rows` of `width`, so many of them a sample.
pub fn sized(a: NormForward, rows: usize, width: usize, rows_a_sample: usize) -> NormForward {
    NormForward { rows: int(rows), width: int(width), rows_a_sample: int(rows_a_sample), ..a }
}

/// With its sizes: `rows` of `width`, so many of them a sample.
pub fn sized_back(a: NormBackward, rows: usize, width: usize, rows_a_sample: usize) -> NormBackward {
    NormBackward { rows: int(rows), width: int(width), rows_a_sample: int(rows_a_sample), ..a }
}
