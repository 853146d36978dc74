//! The forward pass: patches, blocks, the class token's features.

use rayon::prelude::*;

use super::super::gemm::{Into, Matrix, product};
use super::super::rows;
use super::tape::{Part, SCRATCH, Scratch, Tape, room};
use super::{Affine, BlockParameters, Drops, GROUP, Group, Pixels, Shape, Trained, Weights};
use crate::nn::images::{MEAN, STD};

/// Images to the normalised class token's features (N, D); what backward needs is kept on `tape`, where there is one.
///
/// An image's features are the same whatever else goes through with it: every group is whole, the last image in it twice
/// where need be, because the library's sums may depend on how many rows there are.
#[must_use]
pub fn forward(
    shape: &Shape,
    weights: &Weights,
    pixels: Pixels,
    images: usize,
    drops: Option<&Drops>,
    tape: Option<&mut Tape>,
) -> Vec<f32> {
    let (d, whole) = (shape.width, images.next_multiple_of(GROUP));
    let rest = (images < whole).then(|| pixels.one(images - 1, shape.image * shape.image * 3).repeat(GROUP));
    let group = |g: usize| match &rest {
        Some(rest) if (g + 1) * GROUP > images => {
            (Group { first_pixels: 0, ..Group::new(g, GROUP, drops) }, rest.as_pixels())
        }
        _ => (Group::new(g, GROUP, drops), pixels),
    };
    let mut features = vec![0.0; images * d];
    let Some(tape) = tape.filter(|_| shape.trained != Trained::Nothing) else {
        features.par_chunks_mut(GROUP * d).enumerate().for_each(|(g, features)| {
            let (group, pixels) = group(g);
            let mut last = vec![0.0; GROUP * d];
            SCRATCH.with_borrow_mut(|scratch| {
                blocks_before(shape.depth, shape, weights, pixels, &group, &mut last, scratch);
            });
            rows::layer_norm(features, &last[..features.len()], shape.norm(&weights.norm));
        });
        return features;
    };
    tape.reserve(shape, whole);
    tape.images = images;
    let (first, last) = (shape.first_trained(), room(&mut tape.last, whole * d));
    let mut groups: Vec<Vec<Part>> = Vec::new();
    groups.resize_with(whole / GROUP, || Vec::with_capacity(shape.depth - first));
    for (i, block) in tape.blocks.iter_mut().enumerate().skip(first) {
        let parts = block.all(shape, i, whole).groups(shape, i);
        groups.iter_mut().zip(parts).for_each(|(group, part)| group.push(part));
    }
    groups.into_par_iter().zip(last.par_chunks_mut(GROUP * d)).enumerate().for_each(
        |(g, (mut parts, last))| {
            let (group, pixels) = group(g);
            SCRATCH.with_borrow_mut(|scratch| {
                let x = parts.first_mut().map_or(&mut *last, |part| &mut *part.x);
                blocks_before(first, shape, weights, pixels, &group, x, scratch);
                for i in first..shape.depth {
                    let (these, rest) = parts.split_at_mut(i - first + 1);
                    let out = rest.first_mut().map_or(&mut *last, |next| &mut *next.x);
                    let part = &mut these[i - first];
                    block_forward(shape, &weights.blocks[i], i, &group, part, out, scratch);
                }
            });
        },
    );
    rows::layer_norm(&mut features, &last[..images * d], shape.norm(&weights.norm));
    features
}

/// Images of their own.
enum Owned {
    Bytes(Vec<u8>),
    Normalised(Vec<f32>),
}

impl Owned {
    fn as_pixels(&self) -> Pixels<'_> {
        match self {
            Self::Bytes(bytes) => Pixels::Bytes(bytes),
            Self::Normalised(floats) => Pixels::Normalised(floats),
        }
    }
}

impl Pixels<'_> {
    /// The image at `at`, of `each` numbers.
    fn one(&self, at: usize, each: usize) -> Self {
        match self {
            Self::Bytes(bytes) => Pixels::Bytes(&bytes[at * each..][..each]),
            Self::Normalised(floats) => Pixels::Normalised(&floats[at * each..][..each]),
        }
    }

    fn repeat(&self, times: usize) -> Owned {
        match self {
            Self::Bytes(bytes) => Owned::Bytes(bytes.repeat(times)),
            Self::Normalised(floats) => Owned::Normalised(floats.repeat(times)),
        }
    }
}

/// The first `count` blocks for one group, keeping nothing: `out` becomes the input of the next block (G S, D), or the
/// class tokens that leave the last one (G, D).
fn blocks_before(
    count: usize,
    shape: &Shape,
    weights: &Weights,
    pixels: Pixels,
    group: &Group,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    if count == 0 {
        return embed(shape, weights, pixels, group, out, scratch);
    }
    let rows = group.images * shape.tokens() * shape.width;
    // Out of the scratch, which the blocks need, too.
    let (mut block, mut next) = (std::mem::take(&mut scratch.block), std::mem::take(&mut scratch.next));
    embed(shape, weights, pixels, group, block.all(shape, 0, group.images).x, scratch);
    for i in 0..count {
        let mut part = block.all(shape, i, group.images);
        let out = if i + 1 == count { &mut *out } else { room(&mut next, rows) };
        block_forward(shape, &weights.blocks[i], i, group, &mut part, out, scratch);
        std::mem::swap(&mut block.x, &mut next);
    }
    (scratch.block, scratch.next) = (block, next);
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
    let (cls, pos) = (weights.cls_token, weights.pos_embed);
    let Affine { weight, bias } = weights.patch_embed;
    let patches = room(&mut scratch.patches, group.images * p * pixels_each);
    cut(shape, pixels, group.first_pixels, patches);
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
        class.copy_from_slice(cls);
        rows::add_bias(class, &pos[..d]);
        rows::add(rest, embedded, &pos[d..], bias);
    }
    group.drop(|drops| drops.positions, x, (p + 1) * d, &mut scratch.mask);
}

/// Cuts images from `start` on into normalised patches (images P, 3 P P), each in the layout of a convolution's weight.
pub(super) fn cut(shape: &Shape, pixels: Pixels, start: usize, patches: &mut [f32]) {
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
    w: &BlockParameters<&[f32]>,
    index: usize,
    group: &Group,
    part: &mut Part,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let (d, m, queries) = (shape.width, shape.hidden, shape.queries(index));
    let rows = group.images * queries;
    let Scratch { tokens, mixed, hidden, scores, mask, .. } = scratch;

    let y = room(tokens, part.x.len());
    rows::layer_norm(y, part.x, shape.norm(&w.norm1));
    project_qkv(shape, w, queries, y, part.qkv);
    let mixed = room(mixed, rows * d);
    attend(shape, index, group, part.qkv, mixed, scores, mask);

    let y = room(tokens, rows * d);
    let size = (rows, d, d);
    product(size, Matrix::rows(mixed, d), Matrix::rows(w.out_proj.weight, d).t(), y, d, Into::Set);
    rows::add_bias(y, w.out_proj.bias);
    group.drop_path(|drops| drops.blocks[index].path[0], y, queries * d);
    add_residual(part.mid, part.x, y, d, queries, shape.tokens());

    rows::layer_norm(y, part.mid, shape.norm(&w.norm2));
    product((rows, d, m), Matrix::rows(y, d), Matrix::rows(w.fc1.weight, d).t(), part.hidden, m, Into::Set);
    let activated = room(hidden, rows * m);
    rows::bias_gelu(activated, part.hidden, w.fc1.bias);
    group.drop(|drops| drops.blocks[index].mlp[0], activated, queries * m, mask);
    product((rows, m, d), Matrix::rows(activated, m), Matrix::rows(w.fc2.weight, m).t(), y, d, Into::Set);
    rows::add_bias(y, w.fc2.bias);
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
fn project_qkv(shape: &Shape, w: &BlockParameters<&[f32]>, queries: usize, y: &[f32], qkv: &mut [f32]) {
    let (d, s) = (shape.width, shape.tokens());
    let Affine { weight, bias } = w.in_proj;
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

/// Attention of each image and head: `qkv` to the heads' outputs, `mixed` (G Q, D).
fn attend(
    shape: &Shape,
    index: usize,
    group: &Group,
    qkv: &[f32],
    mixed: &mut [f32],
    scores: &mut Vec<f32>,
    mask: &mut Vec<f32>,
) {
    let (d, s, head, queries) =
        (shape.width, shape.tokens(), shape.width / shape.heads, shape.queries(index));
    let factor = 1.0 / (head as f32).sqrt();
    let scores = room(scores, queries * s);
    let images = qkv.chunks_exact(s * 3 * d).zip(mixed.chunks_exact_mut(queries * d));
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
