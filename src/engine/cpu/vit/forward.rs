//! The forward pass: patches, blocks, the class token's features.

use rayon::prelude::*;

use super::super::precision::{Finish, Head, Into, Number, Precision, Rows, room};
use super::super::rows;
use super::matrices::{InProj, Matrices};
use super::tape::{Kept, Part, Scratch, Tape};
use super::{Drops, GROUP, Group, Pixels, Shape, Trained, Weights};
use crate::nn::images::{MEAN, STD};

/// What a group's forward pass reads.
struct Forward<'a, P: Precision> {
    precision: &'a P,
    shape: &'a Shape,
    weights: &'a Weights<'a>,
    patch_embed: P::Prepared<'a>,
    blocks: Vec<Matrices<P::Prepared<'a>>>,
}

/// Images to the normalised class token's features (N, D); what backward needs is kept on `tape`, where there is one.
///
/// An image's features are the same whatever else goes through with it: every group is whole, the last image in it twice
/// where need be, because the library's sums may depend on how many rows there are.
#[must_use]
pub fn forward<P: Precision<Number: Kept>>(
    precision: &P,
    shape: &Shape,
    weights: &Weights,
    pixels: Pixels,
    images: usize,
    drops: Option<&Drops>,
    tape: Option<&mut Tape<P::Number>>,
) -> Vec<f32> {
    let (d, whole) = (shape.width, images.next_multiple_of(GROUP));
    let rest = (images < whole).then(|| pixels.one(images - 1, shape.image * shape.image * 3).repeat(GROUP));
    let group = |g: usize| match &rest {
        Some(rest) if (g + 1) * GROUP > images => {
            (Group { first_pixels: 0, ..Group::new(g, GROUP, drops) }, rest.as_pixels())
        }
        _ => (Group::new(g, GROUP, drops), pixels),
    };
    let blocks = weights.blocks.iter().enumerate();
    let prepare = |w, size| precision.prepare_transposed(w, size);
    let net = Forward {
        precision,
        shape,
        weights,
        patch_embed: precision.prepare_transposed(weights.patch_embed.weight, (d, shape.pixels())),
        blocks: blocks.map(|(i, w)| Matrices::new(prepare, shape, i, w)).collect(),
    };
    let mut features = vec![0.0; images * d];
    let Some(tape) = tape.filter(|_| shape.trained != Trained::Nothing) else {
        features.par_chunks_mut(GROUP * d).enumerate().for_each(|(g, features)| {
            let (group, pixels) = group(g);
            let mut last = vec![0.0; GROUP * d];
            P::Number::with_scratch(|scratch| {
                blocks_before(shape.depth, &net, pixels, &group, &mut last, scratch);
            });
            rows::layer_norm(features, &last[..features.len()], shape.norm(&weights.norm));
        });
        return features;
    };
    tape.reserve(shape, whole);
    tape.images = images;
    let (first, last) = (shape.first_trained(), room(&mut tape.last, whole * d));
    let mut groups: Vec<Vec<Part<P::Number>>> = Vec::new();
    groups.resize_with(whole / GROUP, || Vec::with_capacity(shape.depth - first));
    for (i, block) in tape.blocks.iter_mut().enumerate().skip(first) {
        let parts = block.all(shape, i, whole).groups(shape, i);
        groups.iter_mut().zip(parts).for_each(|(group, part)| group.push(part));
    }
    groups.into_par_iter().zip(last.par_chunks_mut(GROUP * d)).enumerate().for_each(
        |(g, (mut parts, last))| {
            let (group, pixels) = group(g);
            P::Number::with_scratch(|scratch| {
                let x = parts.first_mut().map_or(&mut *last, |part| &mut *part.x);
                blocks_before(first, &net, pixels, &group, x, scratch);
                for i in first..shape.depth {
                    let (these, rest) = parts.split_at_mut(i - first + 1);
                    let out = rest.first_mut().map_or(&mut *last, |next| &mut *next.x);
                    block_forward(&net, i, &group, &mut these[i - first], out, scratch);
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
fn blocks_before<P: Precision>(
    count: usize,
    net: &Forward<P>,
    pixels: Pixels,
    group: &Group,
    out: &mut [f32],
    scratch: &mut Scratch<P::Number>,
) {
    if count == 0 {
        return embed(net, pixels, group, out, scratch);
    }
    let shape = net.shape;
    let rows = group.images * shape.tokens() * shape.width;
    // Out of the scratch, which the blocks need, too.
    let (mut block, mut next) = (std::mem::take(&mut scratch.block), std::mem::take(&mut scratch.next));
    embed(net, pixels, group, block.all(shape, 0, group.images).x, scratch);
    for i in 0..count {
        let mut part = block.all(shape, i, group.images);
        let out = if i + 1 == count { &mut *out } else { room(&mut next, rows) };
        block_forward(net, i, group, &mut part, out, scratch);
        std::mem::swap(&mut block.x, &mut next);
    }
    (scratch.block, scratch.next) = (block, next);
}

/// Patches, class token and positions to a group's tokens (G S, D).
fn embed<P: Precision>(
    net: &Forward<P>,
    pixels: Pixels,
    group: &Group,
    x: &mut [f32],
    scratch: &mut Scratch<P::Number>,
) {
    let Forward { precision, shape, weights, patch_embed, .. } = net;
    let (d, p, pixels_each) = (shape.width, shape.patches(), shape.pixels());
    let (cls, pos) = (weights.cls_token, weights.pos_embed);
    let patches = room(&mut scratch.patches, group.images * p * pixels_each);
    cut(shape, pixels, group.first_pixels, patches);
    let embedded = room(&mut scratch.branch, group.images * p * d);
    let finish = Finish::Floats { out: embedded, stride: d, bias: None, into: Into::Set };
    precision.product(group.images * p, Rows::new(patches, pixels_each), patch_embed, finish);
    for (x, embedded) in x.chunks_exact_mut((p + 1) * d).zip(embedded.chunks_exact(p * d)) {
        let (class, rest) = x.split_at_mut(d);
        class.copy_from_slice(cls);
        rows::add_bias(class, &pos[..d]);
        rows::add(rest, embedded, &pos[d..], weights.patch_embed.bias);
    }
    group.drop(|drops| drops.positions, x, (p + 1) * d, &mut scratch.mask);
}

/// Cuts images from `start` on into normalised patches (images P, 3 P P), each in the layout of a convolution's weight.
pub(super) fn cut<N: Number>(shape: &Shape, pixels: Pixels, start: usize, patches: &mut [N]) {
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
                            out.iter_mut().zip(&all[at..at + patch]).for_each(|(out, x)| *out = N::of(*x));
                        }
                        Pixels::Bytes(all) => {
                            let (factor, shift) = (1.0 / (255.0 * STD[c]), -MEAN[c] / STD[c]);
                            let from = ((start + i) * plane + at) * 3;
                            let row = &all[from..from + 3 * patch];
                            for (out, rgb) in out.iter_mut().zip(row.chunks_exact(3)) {
                                *out = N::of(f32::from(rgb[c]) * factor + shift);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// One block for one group: `part.x` to `out` (G Q, D), with what backward needs left in `part`.
fn block_forward<P: Precision>(
    net: &Forward<P>,
    index: usize,
    group: &Group,
    part: &mut Part<P::Number>,
    out: &mut [f32],
    scratch: &mut Scratch<P::Number>,
) {
    let Forward { precision, shape, weights, blocks, .. } = net;
    let (w, matrices) = (&weights.blocks[index], &blocks[index]);
    let (d, m, queries) = (shape.width, shape.hidden, shape.queries(index));
    let rows = group.images * queries;
    let Scratch { tokens, mixed, hidden, branch, mask, .. } = scratch;

    let y = room(tokens, part.x.len());
    rows::layer_norm(y, part.x, shape.norm(&w.norm1));
    project_qkv(net, index, y, part.qkv);
    let mixed = room(mixed, rows * d);
    attend(net, index, group, part.qkv, mixed, mask);

    let branch = room(branch, rows * d);
    let finish = Finish::Floats { out: branch, stride: d, bias: Some(w.out_proj.bias), into: Into::Set };
    precision.product(rows, Rows::new(mixed, d), &matrices.out_proj, finish);
    group.drop_path(|drops| drops.blocks[index].path[0], branch, queries * d);
    add_residual(part.mid, part.x, branch, d, queries, shape.tokens());

    let y = room(tokens, rows * d);
    rows::layer_norm(y, part.mid, shape.norm(&w.norm2));
    let activated = room(hidden, rows * m);
    let finish = Finish::Gelu { bias: w.fc1.bias, hidden: part.hidden, activated };
    precision.product(rows, Rows::new(y, d), &matrices.fc1, finish);
    group.drop(|drops| drops.blocks[index].mlp[0], activated, queries * m, mask);
    let finish = Finish::Floats { out: branch, stride: d, bias: Some(w.fc2.bias), into: Into::Set };
    precision.product(rows, Rows::new(activated, m), &matrices.fc2, finish);
    group.drop(|drops| drops.blocks[index].mlp[1], branch, queries * d, mask);
    group.drop_path(|drops| drops.blocks[index].path[1], branch, queries * d);
    add_residual(out, part.mid, branch, d, queries, queries);
}

/// `out = x + y` over the first `queries` of each image's tokens; `x` has `tokens` of them an image.
fn add_residual(out: &mut [f32], x: &[f32], y: &[f32], d: usize, queries: usize, tokens: usize) {
    let images =
        out.chunks_exact_mut(queries * d).zip(x.chunks_exact(tokens * d)).zip(y.chunks_exact(queries * d));
    for ((out, x), y) in images {
        rows::sum(out, x, y);
    }
}

/// `qkv = y W^T + b`; queries for as many tokens of each image as the block has.
fn project_qkv<P: Precision>(net: &Forward<P>, index: usize, y: &[P::Number], qkv: &mut [P::Number]) {
    let Forward { precision, shape, weights, blocks, .. } = net;
    let (d, s, bias) = (shape.width, shape.tokens(), weights.blocks[index].in_proj.bias);
    let rows = y.len() / d;
    match &blocks[index].in_proj {
        InProj::Whole(all) => {
            let finish = Finish::Operands { out: qkv, stride: 3 * d, bias: Some(bias) };
            precision.product(rows, Rows::new(y, d), all, finish);
        }
        InProj::Apart { q, kv } => {
            let finish = Finish::Operands { out: &mut qkv[d..], stride: 3 * d, bias: Some(&bias[d..]) };
            precision.product(rows, Rows::new(y, d), kv, finish);
            let finish = Finish::Operands { out: qkv, stride: s * 3 * d, bias: Some(&bias[..d]) };
            precision.product(rows / s, Rows::new(y, s * d), q, finish);
        }
    }
}

/// Attention of each image and head: `qkv` to the heads' outputs, `mixed` (G Q, D).
fn attend<P: Precision>(
    net: &Forward<P>,
    index: usize,
    group: &Group,
    qkv: &[P::Number],
    mixed: &mut [P::Number],
    mask: &mut Vec<f32>,
) {
    let (precision, shape) = (net.precision, net.shape);
    let (d, s, queries) = (shape.width, shape.tokens(), shape.queries(index));
    let width = d / shape.heads;
    let images = qkv.chunks_exact(s * 3 * d).zip(mixed.chunks_exact_mut(queries * d));
    for (i, (qkv, mixed)) in images.enumerate() {
        let mask = group.attention_mask(index, i, shape.heads * s * s, mask);
        for h in 0..shape.heads {
            let of = [0, 1, 2].map(|which| Rows::new(&qkv[which * d + h * width..], 3 * d));
            let drop = mask.map(|mask| drop_by(&mask[h * s * s..]));
            let drop = drop.as_ref().map(|drop| drop as _);
            let out = Finish::Operands { out: &mut mixed[h * width..], stride: d, bias: None };
            precision.attend(&Head { queries, keys: s, width, of, bias: None, drop }, out);
        }
    }
}

/// Dropout of a head's attention weights by its mask (S, S).
pub(super) fn drop_by(mask: &[f32]) -> impl Fn(&mut [f32], usize) {
    |x, first| rows::multiply(x, &mask[first..])
}
