//! The whole vision transformer, forward and backward, images side by side.
//!
//! A group of a few images goes through a block on one thread, its activations in that core's cache and without
//! waiting for the others; only the gradients of the weights, sums over all images, are products that all threads
//! share. Groups depend on the number of images alone, so that results do not depend on the number of threads.
//! Only the class token leaves the last block: there, queries, attention and MLP are computed for it alone.

use std::cell::RefCell;

use rayon::prelude::*;

use super::gemm::{Into, Matrix, parallel_product, product};
use super::rows;
use crate::nn::images::{MEAN, STD};
use crate::nn::{Dropout, dropout::Masks};

/// Images that go through the network together on one thread.
const GROUP: usize = 2;

/// Images whose gradients of a weight are one product. It divides every chunk that is chosen, so that the order of
/// additions, and with it every bit of the result, is the same for all of them.
pub const UNIT: usize = 16;

/// The architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Height and width of an image.
    pub image: usize,
    /// Height and width of a patch, which divides the image's.
    pub patch: usize,
    /// `D`.
    pub width: usize,
    /// `H`, which divides the width.
    pub heads: usize,
    /// The hidden width of a block's MLP.
    pub hidden: usize,
    /// Blocks; at least 1.
    pub depth: usize,
}

impl Shape {
    /// Patches an image.
    #[must_use]
    pub fn patches(&self) -> usize {
        (self.image / self.patch).pow(2)
    }

    /// `S`: the class token and the patches.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.patches() + 1
    }

    fn pixels(&self) -> usize {
        3 * self.patch * self.patch
    }

    /// How many tokens an image has that block `i` computes queries and outputs for.
    fn queries(&self, block: usize) -> usize {
        if block + 1 == self.depth { 1 } else { self.tokens() }
    }

    /// Bytes that the backward pass needs for an image besides the tape.
    #[must_use]
    pub fn backward_bytes(&self) -> usize {
        4 * (self.tokens() * (4 * self.width + self.hidden) + self.patches() * self.pixels())
    }

    /// Bytes that a [`Tape`] keeps for an image.
    #[must_use]
    pub fn tape_bytes(&self) -> usize {
        let block = |i| self.tokens() * 4 * self.width + self.queries(i) * (2 * self.width + self.hidden);
        4 * ((0..self.depth).map(block).sum::<usize>() + self.width)
    }
}

/// One stream's images.
#[derive(Clone, Copy)]
pub enum Pixels<'a> {
    /// RGB bytes (N, H, W, 3).
    Bytes(&'a [u8]),
    /// Normalised f32 (N, 3, H, W).
    Normalised(&'a [f32]),
}

/// The parameters, or their gradients, as slices in PyTorch's order: `cls_token`, `pos_embed`, `patch_embed.proj`'s
/// two, twelve a block, `norm`'s two.
pub struct Weights<'a> {
    all: Vec<&'a [f32]>,
}

/// Parameters before the first block.
const BEFORE_BLOCKS: usize = 4;
/// Parameters of a block, in order: norm1, attention's `in_proj` and `out_proj`, norm2, the MLP's two layers; each a
/// weight and a bias.
const A_BLOCK: usize = 12;

impl<'a> Weights<'a> {
    /// From the slices in PyTorch's order; `None` unless there are as many as `shape` has.
    #[must_use]
    pub fn new(shape: &Shape, all: Vec<&'a [f32]>) -> Option<Self> {
        (all.len() == BEFORE_BLOCKS + A_BLOCK * shape.depth + 2).then_some(Self { all })
    }

    fn pair(&self, at: usize) -> (&'a [f32], &'a [f32]) {
        (self.all[at], self.all[at + 1])
    }

    fn block(&self, i: usize) -> Block<'a> {
        let at = BEFORE_BLOCKS + A_BLOCK * i;
        Block {
            norm1: self.pair(at),
            in_proj: self.pair(at + 2),
            out_proj: self.pair(at + 4),
            norm2: self.pair(at + 6),
            fc1: self.pair(at + 8),
            fc2: self.pair(at + 10),
        }
    }
}

struct Block<'a> {
    norm1: (&'a [f32], &'a [f32]),
    in_proj: (&'a [f32], &'a [f32]),
    out_proj: (&'a [f32], &'a [f32]),
    norm2: (&'a [f32], &'a [f32]),
    fc1: (&'a [f32], &'a [f32]),
    fc2: (&'a [f32], &'a [f32]),
}

/// The places of the network that drop something.
#[derive(Clone, Debug)]
pub struct Drops {
    /// What this step's masks are drawn from.
    pub masks: Masks,
    /// The position of the first image in the whole step.
    pub first_row: usize,
    /// After the positions are added.
    pub positions: Dropout,
    /// Each block's.
    pub blocks: Vec<BlockDrops>,
}

/// A block's places that drop something.
#[derive(Clone, Copy, Debug)]
pub struct BlockDrops {
    /// Attention weights.
    pub attention: Dropout,
    /// After GELU and after the second linear layer.
    pub mlp: [Dropout; 2],
    /// The attention's and the MLP's branch as a whole.
    pub path: [Dropout; 2],
}

/// What the backward pass needs of the forward pass: each block's buffers, over all images. It grows to what a forward
/// pass needs and is used again for the next: memory that is mapped anew costs its clearing.
#[derive(Default)]
pub struct Tape {
    images: usize,
    blocks: Vec<BlockTape>,
    /// The class tokens that leave the last block (N, D).
    last: Vec<f32>,
}

/// Rows of `S` tokens an image, or 1 in the last block for those marked Q.
#[derive(Default)]
struct BlockTape {
    x: Vec<f32>,      // (N S, D): the block's input
    qkv: Vec<f32>,    // (N S, 3 D)
    mixed: Vec<f32>,  // (N Q, D): the heads' outputs
    mid: Vec<f32>,    // (N Q, D): after attention
    hidden: Vec<f32>, // (N Q, M): before GELU
}

/// One group's part of a [`BlockTape`].
struct Part<'a> {
    x: &'a mut [f32],
    qkv: &'a mut [f32],
    mixed: &'a mut [f32],
    mid: &'a mut [f32],
    hidden: &'a mut [f32],
}

impl BlockTape {
    /// The buffers of `images` images.
    fn all(&mut self, shape: &Shape, block: usize, images: usize) -> Part<'_> {
        let (d, rows, queries) = (shape.width, images * shape.tokens(), images * shape.queries(block));
        Part {
            x: room(&mut self.x, rows * d),
            qkv: room(&mut self.qkv, rows * 3 * d),
            mixed: room(&mut self.mixed, queries * d),
            mid: room(&mut self.mid, queries * d),
            hidden: room(&mut self.hidden, queries * shape.hidden),
        }
    }
}

impl<'a> Part<'a> {
    /// Each group's part.
    fn groups(self, shape: &Shape, block: usize) -> Vec<Part<'a>> {
        let (d, rows, queries) = (shape.width, GROUP * shape.tokens(), GROUP * shape.queries(block));
        let x = self.x.chunks_mut(rows * d);
        let qkv = self.qkv.chunks_mut(rows * 3 * d);
        let mixed = self.mixed.chunks_mut(queries * d);
        let mid = self.mid.chunks_mut(queries * d);
        let hidden = self.hidden.chunks_mut(queries * shape.hidden);
        x.zip(qkv)
            .zip(mixed)
            .zip(mid)
            .zip(hidden)
            .map(|((((x, qkv), mixed), mid), hidden)| Part { x, qkv, mixed, mid, hidden })
            .collect()
    }
}

/// Buffers of the backward pass, kept from one to the next.
#[derive(Default)]
pub struct Workspace {
    d_out: Vec<f32>,
    d_hidden: Vec<f32>,
    d_mid: Vec<f32>,
    d_in: Vec<f32>,
    d_patches: Vec<f32>,
    patches: Vec<f32>,
}

/// A thread's buffers, kept from group to group.
#[derive(Default)]
struct Scratch {
    tokens: Vec<f32>,  // (G S, D)
    hidden: Vec<f32>,  // (G S, M)
    scores: Vec<f32>,  // (S, S)
    dscores: Vec<f32>, // (S, S)
    heads: Vec<f32>,   // (3, S, D/H)
    patches: Vec<f32>, // (G P, 3 P P)
    mask: Vec<f32>,
    /// Where no tape is kept: the current block's buffers, and the next one's input.
    block: BlockTape,
    next: Vec<f32>, // (G S, D)
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The first `len` numbers of a buffer that grows to hold them.
fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Images to the normalised class token's features (N, D); what backward needs is kept on `tape`, where there is one.
#[must_use]
pub fn forward(
    shape: &Shape,
    weights: &Weights,
    pixels: Pixels,
    images: usize,
    drops: Option<&Drops>,
    tape: Option<&mut Tape>,
) -> Vec<f32> {
    let d = shape.width;
    let mut features = vec![0.0; images * d];
    if let Some(tape) = tape {
        tape.images = images;
        tape.blocks.resize_with(shape.depth, BlockTape::default);
        let last = room(&mut tape.last, images * d);
        let mut groups: Vec<Vec<Part>> = Vec::new();
        for (i, block) in tape.blocks.iter_mut().enumerate() {
            for (g, part) in block.all(shape, i, images).groups(shape, i).into_iter().enumerate() {
                if i == 0 {
                    groups.push(Vec::with_capacity(shape.depth));
                }
                groups[g].push(part);
            }
        }
        groups.into_par_iter().zip(last.par_chunks_mut(GROUP * d)).enumerate().for_each(
            |(g, (mut parts, last))| {
                let group = Group::new(g, last.len() / d, drops);
                SCRATCH.with_borrow_mut(|scratch| {
                    embed(shape, weights, pixels, &group, parts[0].x, scratch);
                    for i in 0..shape.depth {
                        let (these, rest) = parts.split_at_mut(i + 1);
                        let out = rest.first_mut().map_or(&mut *last, |next| &mut *next.x);
                        block_forward(shape, &weights.block(i), i, &group, &mut these[i], out, scratch);
                    }
                });
            },
        );
        let (weight, bias) = weights.pair(weights.all.len() - 2);
        rows::layer_norm(&mut features, last, weight, bias);
        return features;
    }
    features.par_chunks_mut(GROUP * d).enumerate().for_each(|(g, features)| {
        let group = Group::new(g, features.len() / d, drops);
        SCRATCH.with_borrow_mut(|scratch| {
            let last = forward_group(shape, weights, pixels, &group, scratch);
            let (weight, bias) = weights.pair(weights.all.len() - 2);
            rows::layer_norm(features, &last, weight, bias);
        });
    });
    features
}

/// A group's images and the masks that fall on them.
struct Group<'a> {
    /// Its first image.
    start: usize,
    images: usize,
    drops: Option<&'a Drops>,
}

impl<'a> Group<'a> {
    fn new(index: usize, images: usize, drops: Option<&'a Drops>) -> Self {
        Self { start: index * GROUP, images, drops }
    }

    /// Multiplies `x`, `each` numbers an image, by the masks of `site`.
    fn drop(&self, site: impl Fn(&Drops) -> Dropout, x: &mut [f32], each: usize, mask: &mut Vec<f32>) {
        let Some(drops) = self.drops else { return };
        let dropout = site(drops);
        if !dropout.is_active() {
            return;
        }
        for (i, x) in x.chunks_exact_mut(each).enumerate() {
            let mask = room(mask, each);
            dropout.fill_row(mask, drops.masks, drops.first_row + self.start + i);
            rows::multiply(x, mask);
        }
    }

    /// Scales `x`, `each` numbers an image, by 0 or the inverse share that is kept, as `site` says for each image.
    fn drop_path(&self, site: impl Fn(&Drops) -> Dropout, x: &mut [f32], each: usize) {
        let Some(drops) = self.drops else { return };
        let dropout = site(drops);
        if !dropout.is_active() {
            return;
        }
        for (i, x) in x.chunks_exact_mut(each).enumerate() {
            let mut factor = [0.0];
            dropout.fill_row(&mut factor, drops.masks, drops.first_row + self.start + i);
            rows::scale(x, factor[0]);
        }
    }

    /// The mask of image `i`'s attention weights (H, S, S), if any are dropped.
    fn attention_mask<'m>(
        &self,
        block: usize,
        image: usize,
        len: usize,
        mask: &'m mut Vec<f32>,
    ) -> Option<&'m [f32]> {
        let drops = self.drops?;
        let dropout = drops.blocks[block].attention;
        if !dropout.is_active() {
            return None;
        }
        let mask = room(mask, len);
        dropout.fill_row(mask, drops.masks, drops.first_row + self.start + image);
        Some(mask)
    }
}

/// All blocks for one group, keeping nothing; the class tokens that leave the last one.
fn forward_group(
    shape: &Shape,
    weights: &Weights,
    pixels: Pixels,
    group: &Group,
    scratch: &mut Scratch,
) -> Vec<f32> {
    let (d, rows) = (shape.width, group.images * shape.tokens());
    let mut block = std::mem::take(&mut scratch.block);
    let mut next = std::mem::take(&mut scratch.next);
    let mut last = vec![0.0; group.images * d];
    embed(shape, weights, pixels, group, block.all(shape, 0, group.images).x, scratch);
    for i in 0..shape.depth {
        let mut part = block.all(shape, i, group.images);
        let out = if i + 1 == shape.depth { &mut last } else { room(&mut next, rows * d) };
        block_forward(shape, &weights.block(i), i, group, &mut part, out, scratch);
        std::mem::swap(&mut block.x, &mut next);
    }
    (scratch.block, scratch.next) = (block, next);
    last
}

/// Patches, class token and positions to a group's tokens (G S, D).
fn embed(
    shape: &Shape,
    weights: &Weights,
    pixels: Pixels,
    group: &Group,
    x: &mut [f32],
    scratch: &mut Scratch,
) {
    let (d, p, pixels_each) = (shape.width, shape.patches(), shape.pixels());
    let (cls, pos) = weights.pair(0);
    let (weight, bias) = weights.pair(2);
    let patches = room(&mut scratch.patches, group.images * p * pixels_each);
    cut(shape, pixels, group.start, patches);
    let embedded = room(&mut scratch.tokens, group.images * p * d);
    let size = (group.images * p, pixels_each, d);
    product(
        size,
        Matrix::rows(patches, pixels_each),
        Matrix::rows(weight, pixels_each).t(),
        embedded,
        d,
        Into::Set,
    );
    for (x, embedded) in x.chunks_exact_mut((p + 1) * d).zip(embedded.chunks_exact(p * d)) {
        let (class, rest) = x.split_at_mut(d);
        rows::add(class, cls, &pos[..d], &vec![0.0; d]);
        rows::add(rest, embedded, &pos[d..], bias);
    }
    group.drop(|drops| drops.positions, x, (p + 1) * d, &mut scratch.mask);
}

/// Cuts images from `start` on into normalised patches (images P, 3 P P), each in the layout of a convolution's weight.
fn cut(shape: &Shape, pixels: Pixels, start: usize, patches: &mut [f32]) {
    let (size, patch) = (shape.image, shape.patch);
    let (across, plane) = (size / patch, size * size);
    for (i, image) in patches.chunks_exact_mut(shape.patches() * shape.pixels()).enumerate() {
        for (t, out) in image.chunks_exact_mut(shape.pixels()).enumerate() {
            let corner = (t / across * size + t % across) * patch;
            for (c, out) in out.chunks_exact_mut(patch * patch).enumerate() {
                for (r, out) in out.chunks_exact_mut(patch).enumerate() {
                    let at = corner + r * size;
                    match pixels {
                        Pixels::Normalised(all) => {
                            let at = ((start + i) * 3 + c) * plane + at;
                            out.copy_from_slice(&all[at..at + patch]);
                        }
                        Pixels::Bytes(all) => {
                            let (factor, shift) = (1.0 / (255.0 * STD[c]), -MEAN[c] / STD[c]);
                            let from = ((start + i) * plane + at) * 3;
                            let row = &all[from..from + 3 * patch];
                            for (out, rgb) in out.iter_mut().zip(row.chunks_exact(3)) {
                                *out = f32::from(rgb[c]) * factor + shift;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// One block for one group: `part.x` to `out` (G Q, D), with what backward needs left in `part`.
fn block_forward(
    shape: &Shape,
    w: &Block,
    index: usize,
    group: &Group,
    part: &mut Part,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let (d, m, queries) = (shape.width, shape.hidden, shape.queries(index));
    let rows = group.images * queries;
    let Scratch { tokens, hidden, scores, mask, .. } = scratch;

    let y = room(tokens, part.x.len());
    rows::layer_norm(y, part.x, w.norm1.0, w.norm1.1);
    project_qkv(shape, w, queries, y, part.qkv);
    attend(shape, index, group, part, scores, mask);

    let y = room(tokens, rows * d);
    let size = (rows, d, d);
    product(size, Matrix::rows(part.mixed, d), Matrix::rows(w.out_proj.0, d).t(), y, d, Into::Set);
    rows::add_bias(y, w.out_proj.1);
    group.drop_path(|drops| drops.blocks[index].path[0], y, queries * d);
    add_residual(part.mid, part.x, y, d, queries, shape.tokens());

    rows::layer_norm(y, part.mid, w.norm2.0, w.norm2.1);
    product((rows, d, m), Matrix::rows(y, d), Matrix::rows(w.fc1.0, d).t(), part.hidden, m, Into::Set);
    let activated = room(hidden, rows * m);
    rows::bias_gelu(activated, part.hidden, w.fc1.1);
    group.drop(|drops| drops.blocks[index].mlp[0], activated, queries * m, mask);
    product((rows, m, d), Matrix::rows(activated, m), Matrix::rows(w.fc2.0, m).t(), y, d, Into::Set);
    rows::add_bias(y, w.fc2.1);
    group.drop(|drops| drops.blocks[index].mlp[1], y, queries * d, mask);
    group.drop_path(|drops| drops.blocks[index].path[1], y, queries * d);
    add_residual(out, part.mid, y, d, queries, queries);
}

/// `out = x + y` over the first `queries` of each image's tokens; `x` has `tokens` of them an image.
fn add_residual(out: &mut [f32], x: &[f32], y: &[f32], d: usize, queries: usize, tokens: usize) {
    let images =
        out.chunks_exact_mut(queries * d).zip(x.chunks_exact(tokens * d)).zip(y.chunks_exact(queries * d));
    for ((out, x), y) in images {
        out.copy_from_slice(&x[..queries * d]);
        rows::add_bias(out, y);
    }
}

/// `qkv = y W^T + b`; queries for the first `queries` of each image's tokens only.
fn project_qkv(shape: &Shape, w: &Block, queries: usize, y: &[f32], qkv: &mut [f32]) {
    let (d, s) = (shape.width, shape.tokens());
    let (weight, bias) = w.in_proj;
    let rows = y.len() / d;
    if queries == s {
        product((rows, d, 3 * d), Matrix::rows(y, d), Matrix::rows(weight, d).t(), qkv, 3 * d, Into::Set);
        rows::add_bias(qkv, bias);
        return;
    }
    let (q_weight, kv_weight) = weight.split_at(d * d);
    product(
        (rows, d, 2 * d),
        Matrix::rows(y, d),
        Matrix::rows(kv_weight, d).t(),
        &mut qkv[d..],
        3 * d,
        Into::Set,
    );
    let class = Matrix::rows(y, s * d);
    product((rows / s, d, d), class, Matrix::rows(q_weight, d).t(), qkv, s * 3 * d, Into::Set);
    for image in qkv.chunks_exact_mut(s * 3 * d) {
        rows::add_bias(&mut image[..d], &bias[..d]);
        for row in image.chunks_exact_mut(3 * d) {
            rows::add_bias(&mut row[d..], &bias[d..]);
        }
    }
}

/// Attention of each image and head: `part.qkv` to `part.mixed`.
fn attend(
    shape: &Shape,
    index: usize,
    group: &Group,
    part: &mut Part,
    scores: &mut Vec<f32>,
    mask: &mut Vec<f32>,
) {
    let (d, s, head, queries) =
        (shape.width, shape.tokens(), shape.width / shape.heads, shape.queries(index));
    let factor = 1.0 / (head as f32).sqrt();
    let scores = room(scores, queries * s);
    let images = part.qkv.chunks_exact(s * 3 * d).zip(part.mixed.chunks_exact_mut(queries * d));
    for (i, (qkv, mixed)) in images.enumerate() {
        let mask = group.attention_mask(index, i, shape.heads * s * s, mask);
        for h in 0..shape.heads {
            let slot = |which: usize| Matrix::rows(&qkv[which * d + h * head..], 3 * d);
            product((queries, head, s), slot(0), slot(1).t(), scores, s, Into::Set);
            rows::softmax(scores, s, factor);
            if let Some(mask) = mask {
                rows::multiply(scores, &mask[h * s * s..][..queries * s]);
            }
            product(
                (queries, s, head),
                Matrix::rows(scores, s),
                slot(2),
                &mut mixed[h * head..],
                d,
                Into::Set,
            );
        }
    }
}

/// The loss's gradients for all parameters, in PyTorch's order, added to `gradients`; `d_features` (N, D) is that of
/// the features which [`forward`] gave with this `tape`, which is used up.
pub fn backward(
    shape: &Shape,
    weights: &Weights,
    pixels: Pixels,
    drops: Option<&Drops>,
    tape: &mut Tape,
    workspace: &mut Workspace,
    d_features: &[f32],
    gradients: &mut [&mut [f32]],
) {
    let (d, s, images) = (shape.width, shape.tokens(), tape.images);
    let Workspace { d_out, d_hidden, d_mid, d_in, d_patches, patches } = workspace;
    let all = images * s * d;
    let (mut d_out, mut d_in) = (room(d_out, all), room(d_in, all));
    let (d_mid, d_hidden) = (room(d_mid, all), room(d_hidden, images * s * shape.hidden));
    d_out[..images * d].fill(0.0);
    let norm = weights.all.len() - 2;
    let (before, after) = gradients.split_at_mut(norm);
    if let [d_weight, d_bias] = after {
        let (weight, bias) = weights.pair(norm);
        rows::layer_norm_backward(
            &mut d_out[..images * d],
            &mut tape.last,
            d_features,
            weight,
            bias,
            d_weight,
            d_bias,
        );
    }
    for i in (0..shape.depth).rev() {
        let queries = images * shape.queries(i);
        let mut flow = Flow {
            d_out: &mut d_out[..queries * d],
            d_hidden: &mut d_hidden[..queries * shape.hidden],
            d_mid: &mut d_mid[..queries * d],
            d_in: &mut *d_in,
        };
        let (_, rest) = before.split_at_mut(BEFORE_BLOCKS + A_BLOCK * i);
        let (these, _) = rest.split_at_mut(A_BLOCK);
        let block = &mut tape.blocks[i];
        block_backward(shape, &weights.block(i), i, drops, block.all(shape, i, images), &mut flow, these);
        weight_gradients(shape, i, &block.all(shape, i, images), &flow, these);
        std::mem::swap(&mut d_out, &mut d_in);
    }
    let spare = (room(d_patches, images * shape.patches() * d), patches);
    embed_backward(shape, pixels, drops, d_out, spare, &mut before[..BEFORE_BLOCKS]);
}

/// Gradients on their way through a block, over all images.
struct Flow<'a> {
    d_out: &'a mut [f32],    // (N Q, D): of the output; becomes that of the MLP's branch
    d_hidden: &'a mut [f32], // (N Q, M): of the MLP's hidden layer before GELU
    d_mid: &'a mut [f32],    // (N Q, D): after attention; becomes that of the attention's branch
    d_in: &'a mut [f32],     // (N S, D): of the input
}

/// A group's part of a [`Flow`].
struct FlowPart<'a> {
    d_out: &'a mut [f32],
    d_hidden: &'a mut [f32],
    d_mid: &'a mut [f32],
    d_in: &'a mut [f32],
}

/// A group's gradients of a block's small parameters: those of `LayerNorm`s and biases, in the block's order with the
/// matrices left out.
struct Small {
    all: Vec<Vec<f32>>,
}

/// The positions of the small parameters in a block.
const SMALL: [usize; 8] = [0, 1, 3, 5, 6, 7, 9, 11];

impl Small {
    fn new(gradients: &[&mut [f32]]) -> Self {
        Self { all: SMALL.iter().map(|&i| vec![0.0; gradients[i].len()]).collect() }
    }
}

/// The part of a block's backward that groups do alone. The tape's `x`, `mid` and `hidden` become the inputs of the
/// products whose weights' gradients are still to be computed, and `qkv` becomes its own gradient.
fn block_backward(
    shape: &Shape,
    w: &Block,
    index: usize,
    drops: Option<&Drops>,
    block: Part,
    flow: &mut Flow,
    gradients: &mut [&mut [f32]],
) {
    let (d, s, queries) = (shape.width, shape.tokens(), shape.queries(index));
    let each = GROUP * queries;
    let parts: Vec<(Part, FlowPart)> = block
        .groups(shape, index)
        .into_iter()
        .zip(flow.d_out.chunks_mut(each * d))
        .zip(flow.d_hidden.chunks_mut(each * shape.hidden))
        .zip(flow.d_mid.chunks_mut(each * d))
        .zip(flow.d_in.chunks_mut(GROUP * s * d))
        .map(|((((part, d_out), d_hidden), d_mid), d_in)| (part, FlowPart { d_out, d_hidden, d_mid, d_in }))
        .collect();
    let template = &*gradients;
    let sums: Vec<Small> = parts
        .into_par_iter()
        .enumerate()
        .map(|(g, (mut part, mut flow))| {
            let group = Group::new(g, flow.d_in.len() / (s * d), drops);
            let mut small = Small::new(template);
            SCRATCH.with_borrow_mut(|scratch| {
                mlp_backward(shape, w, index, &group, &mut part, &mut flow, &mut small, scratch);
                attention_backward(shape, w, index, &group, &mut part, &mut flow, &mut small, scratch);
            });
            small
        })
        .collect();
    // In the groups' order, so that the sum does not depend on which thread was first.
    for small in sums {
        for (&i, values) in SMALL.iter().zip(&small.all) {
            rows::add_bias(gradients[i], values);
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn mlp_backward(
    shape: &Shape,
    w: &Block,
    index: usize,
    group: &Group,
    part: &mut Part,
    flow: &mut FlowPart,
    small: &mut Small,
    scratch: &mut Scratch,
) {
    let (d, m, queries) = (shape.width, shape.hidden, shape.queries(index));
    let rows = group.images * queries;
    let mask = &mut scratch.mask;
    let [_, _, _, _, d_norm_weight, d_norm_bias, d_bias1, d_bias2] = small.all.as_mut_slice() else { return };

    flow.d_mid.copy_from_slice(flow.d_out);
    group.drop_path(|drops| drops.blocks[index].path[1], flow.d_out, queries * d);
    group.drop(|drops| drops.blocks[index].mlp[1], flow.d_out, queries * d, mask);
    rows::add_column_sums(d_bias2, flow.d_out);

    product((rows, d, m), Matrix::rows(flow.d_out, d), Matrix::rows(w.fc2.0, m), flow.d_hidden, m, Into::Set);
    group.drop(|drops| drops.blocks[index].mlp[0], flow.d_hidden, queries * m, mask);
    rows::gelu_backward(flow.d_hidden, part.hidden);
    group.drop(|drops| drops.blocks[index].mlp[0], part.hidden, queries * m, mask);
    rows::add_column_sums(d_bias1, flow.d_hidden);

    let dy = room(&mut scratch.tokens, rows * d);
    product((rows, m, d), Matrix::rows(flow.d_hidden, m), Matrix::rows(w.fc1.0, d), dy, d, Into::Set);
    let (weight, bias) = w.norm2;
    rows::layer_norm_backward(flow.d_mid, part.mid, dy, weight, bias, d_norm_weight, d_norm_bias);
}

#[allow(clippy::too_many_arguments)]
fn attention_backward(
    shape: &Shape,
    w: &Block,
    index: usize,
    group: &Group,
    part: &mut Part,
    flow: &mut FlowPart,
    small: &mut Small,
    scratch: &mut Scratch,
) {
    let (d, s, queries) = (shape.width, shape.tokens(), shape.queries(index));
    let rows = group.images * queries;
    let [d_norm_weight, d_norm_bias, d_qkv_bias, d_out_bias, ..] = small.all.as_mut_slice() else { return };

    for (d_in, d_mid) in flow.d_in.chunks_exact_mut(s * d).zip(flow.d_mid.chunks_exact(queries * d)) {
        let (first, rest) = d_in.split_at_mut(queries * d);
        first.copy_from_slice(d_mid);
        rest.fill(0.0);
    }
    group.drop_path(|drops| drops.blocks[index].path[0], flow.d_mid, queries * d);
    rows::add_column_sums(d_out_bias, flow.d_mid);

    let mut d_mixed = std::mem::take(&mut scratch.hidden);
    let mixed = room(&mut d_mixed, rows * d);
    product((rows, d, d), Matrix::rows(flow.d_mid, d), Matrix::rows(w.out_proj.0, d), mixed, d, Into::Set);
    attend_backward(shape, index, group, part.qkv, mixed, scratch);
    scratch.hidden = d_mixed;

    let dy = room(&mut scratch.tokens, part.x.len());
    let weight = w.in_proj.0;
    let all = group.images * s;
    if queries == s {
        rows::add_column_sums(d_qkv_bias, part.qkv);
        product((all, 3 * d, d), Matrix::rows(part.qkv, 3 * d), Matrix::rows(weight, d), dy, d, Into::Set);
    } else {
        let (q_weight, kv_weight) = weight.split_at(d * d);
        for image in part.qkv.chunks_exact(s * 3 * d) {
            rows::add_column_sums(&mut d_qkv_bias[..d], &image[..d]);
            for row in image.chunks_exact(3 * d) {
                rows::add_column_sums(&mut d_qkv_bias[d..], &row[d..]);
            }
        }
        let kv = Matrix::rows(&part.qkv[d..], 3 * d);
        product((all, 2 * d, d), kv, Matrix::rows(kv_weight, d), dy, d, Into::Set);
        let q = Matrix::rows(part.qkv, s * 3 * d);
        product((group.images, d, d), q, Matrix::rows(q_weight, d), dy, s * d, Into::Add);
    }
    let (weight, bias) = w.norm1;
    rows::layer_norm_backward(flow.d_in, part.x, dy, weight, bias, d_norm_weight, d_norm_bias);
}

/// Attention's backward for each image and head: `d_mixed` (G Q, D) is the gradient of the heads' outputs, and `qkv`
/// becomes its own gradient. The attention weights are computed again, which costs less than keeping them.
fn attend_backward(
    shape: &Shape,
    index: usize,
    group: &Group,
    qkv: &mut [f32],
    d_mixed: &[f32],
    scratch: &mut Scratch,
) {
    let (d, s, head, queries) =
        (shape.width, shape.tokens(), shape.width / shape.heads, shape.queries(index));
    let factor = 1.0 / (head as f32).sqrt();
    let Scratch { scores, dscores, heads, mask, .. } = scratch;
    let (p, dp) = (room(scores, queries * s), room(dscores, queries * s));
    let own = room(heads, 3 * s * head);
    for (i, (qkv, d_mixed)) in
        qkv.chunks_exact_mut(s * 3 * d).zip(d_mixed.chunks_exact(queries * d)).enumerate()
    {
        let mask = group.attention_mask(index, i, shape.heads * s * s, mask);
        for h in 0..shape.heads {
            for (which, own) in own.chunks_exact_mut(s * head).enumerate() {
                for (own, row) in own.chunks_exact_mut(head).zip(qkv.chunks_exact(3 * d)) {
                    own.copy_from_slice(&row[which * d + h * head..][..head]);
                }
            }
            let slot = |which: usize| Matrix::rows(&own[which * s * head..], head);
            let d_head = Matrix::rows(&d_mixed[h * head..], d);
            product((queries, head, s), slot(0), slot(1).t(), p, s, Into::Set);
            rows::softmax(p, s, factor);
            product((queries, head, s), d_head, slot(2).t(), dp, s, Into::Set);
            if let Some(mask) = mask {
                let mask = &mask[h * s * s..][..queries * s];
                rows::multiply(dp, mask);
                rows::softmax_backward(dp, p, s, factor);
                rows::multiply(p, mask);
            } else {
                rows::softmax_backward(dp, p, s, factor);
            }
            let at = |which: usize| which * d + h * head;
            product((s, queries, head), Matrix::rows(p, s).t(), d_head, &mut qkv[at(2)..], 3 * d, Into::Set);
            product((queries, s, head), Matrix::rows(dp, s), slot(1), &mut qkv[at(0)..], 3 * d, Into::Set);
            product(
                (s, queries, head),
                Matrix::rows(dp, s).t(),
                slot(0),
                &mut qkv[at(1)..],
                3 * d,
                Into::Set,
            );
        }
    }
}

/// The rows of `x`, `width` wide, from row `first` on.
fn rows_from(x: &[f32], first: usize, width: usize) -> Matrix<'_> {
    Matrix::rows(&x[first * width..], width)
}

/// The gradients of a block's four matrices, each a product over the tokens of all images, a unit at a time.
fn weight_gradients(shape: &Shape, index: usize, block: &Part, flow: &Flow, gradients: &mut [&mut [f32]]) {
    let (d, m, s, queries) = (shape.width, shape.hidden, shape.tokens(), shape.queries(index));
    let [_, _, in_proj, _, out_proj, _, _, _, fc1, _, fc2, _] = gradients else { return };
    let images = block.x.len() / (s * d);
    for start in (0..images).step_by(UNIT) {
        let count = UNIT.min(images - start);
        let (first, rows) = (start * queries, count * queries);
        // Row `first` on of a matrix that is `width` wide.
        let of = |x, width| rows_from(x, first, width);
        let (d_out, d_hidden, d_mid) =
            (of(flow.d_out, d).t(), of(flow.d_hidden, m).t(), of(flow.d_mid, d).t());
        parallel_product((d, rows, m), d_out, of(block.hidden, m), fc2, m, Into::Add);
        parallel_product((m, rows, d), d_hidden, of(block.mid, d), fc1, d, Into::Add);
        parallel_product((d, rows, d), d_mid, of(block.mixed, d), out_proj, d, Into::Add);
        let (x, d_qkv, all) = (&block.x[start * s * d..], &block.qkv[start * s * 3 * d..], count * s);
        if queries == s {
            let d_qkv = Matrix::rows(d_qkv, 3 * d).t();
            parallel_product((3 * d, all, d), d_qkv, Matrix::rows(x, d), in_proj, d, Into::Add);
        } else {
            let (q, kv) = in_proj.split_at_mut(d * d);
            let d_kv = Matrix::rows(&d_qkv[d..], 3 * d).t();
            parallel_product((2 * d, all, d), d_kv, Matrix::rows(x, d), kv, d, Into::Add);
            let d_q = Matrix::rows(d_qkv, s * 3 * d).t();
            parallel_product((d, count, d), d_q, Matrix::rows(x, s * d), q, d, Into::Add);
        }
    }
}

/// The gradients of class token, positions and patch embedding from those of all images' first tokens `d_x` (N S, D).
fn embed_backward(
    shape: &Shape,
    pixels: Pixels,
    drops: Option<&Drops>,
    d_x: &mut [f32],
    (d_patches, patches): (&mut [f32], &mut Vec<f32>),
    gradients: &mut [&mut [f32]],
) {
    let (d, p, s, pixels_each) = (shape.width, shape.patches(), shape.tokens(), shape.pixels());
    let [cls, pos, weight, bias] = gradients else { return };
    d_x.par_chunks_mut(GROUP * s * d).enumerate().for_each(|(g, d_x)| {
        let group = Group::new(g, d_x.len() / (s * d), drops);
        SCRATCH.with_borrow_mut(|scratch| {
            group.drop(|drops| drops.positions, d_x, s * d, &mut scratch.mask);
        });
    });
    let images = d_x.len() / (s * d);
    for (d_x, d_patches) in d_x.chunks_exact(s * d).zip(d_patches.chunks_exact_mut(p * d)) {
        rows::add_bias(pos, d_x);
        rows::add_bias(cls, &d_x[..d]);
        d_patches.copy_from_slice(&d_x[d..]);
    }
    rows::add_column_sums(bias, d_patches);
    let patches = room(patches, images * p * pixels_each);
    patches
        .par_chunks_mut(GROUP * p * pixels_each)
        .enumerate()
        .for_each(|(g, patches)| cut(shape, pixels, g * GROUP, patches));
    for start in (0..images).step_by(UNIT) {
        let (first, rows) = (start * p, UNIT.min(images - start) * p);
        let d_patches = rows_from(d_patches, first, d).t();
        let patches = rows_from(patches, first, pixels_each);
        parallel_product((d, rows, pixels_each), d_patches, patches, weight, pixels_each, Into::Add);
    }
}
