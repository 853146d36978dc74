//! The backward pass: from the features' gradient to every parameter's.

use rayon::prelude::*;

use super::super::precision::{Finish, Head, HeadGradients, Into, Precision, Rows, room};
use super::super::rows;
use super::forward::{cut, drop_by};
use super::matrices::{InProj, Matrices};
use super::tape::{Kept, Part, Scratch, Tape, Workspace};
use super::{Affine, BlockParameters, Drops, GROUP, Gradients, Group, Pixels, Shape, Trained, UNIT, Weights};

/// What the backward pass works with besides the network.
pub struct Backward<'a, N> {
    /// The images that went through [`super::forward()`].
    pub pixels: Pixels<'a>,
    /// What that pass dropped.
    pub drops: Option<&'a Drops<'a>>,
    /// What that pass left; it is used up.
    pub tape: &'a mut Tape<N>,
    /// Whether the tape's memory goes as the gradients' comes, block by block, so that they need none of their own.
    pub free: bool,
    /// Buffers that are kept from pass to pass.
    pub workspace: &'a mut Workspace<N>,
}

/// The loss's gradients for all parameters from the lowest one on that trains, added to `gradients`; `d_features` (N, D)
/// is that of the features which [`super::forward()`] gave.
pub fn backward<P: Precision<Number: Kept>>(
    precision: &P,
    shape: &Shape,
    weights: &Weights,
    with: Backward<P::Number>,
    d_features: &[f32],
    gradients: &mut Gradients,
) {
    let Backward { pixels, drops, tape, free, workspace } = with;
    let (d, s, images) = (shape.width, shape.tokens(), tape.images);
    let Workspace { d_last, d_residual, d_mlp, d_hidden, d_attention, mixed, normed, d_patches, patches } =
        workspace;
    let all = images * s * d;
    let (d_last, d_residual) = (room(d_last, images * d), room(d_residual, all));
    let (d_mlp, d_attention, mixed) = (room(d_mlp, all), room(d_attention, all), room(mixed, all));
    let [normed1, normed2] = normed;
    let (normed1, normed2) = (room(normed1, all), room(normed2, all));
    let d_hidden = room(d_hidden, images * s * shape.hidden);
    d_last.fill(0.0);
    rows::layer_norm_backward(
        d_last,
        &tape.last[..images * d],
        d_features,
        shape.norm(&weights.norm),
        room(&mut gradients.norm.weight, d),
        room(&mut gradients.norm.bias, d),
    );
    gradients.blocks.resize_with(shape.depth, BlockParameters::default);
    let first = shape.first_trained();
    for i in (first..shape.depth).rev() {
        let queries = images * shape.queries(i);
        // The class tokens' gradients become those of all tokens in the last block.
        let (d_residual, d_in) = if i + 1 == shape.depth {
            (&mut *d_last, Some(&mut *d_residual))
        } else {
            (&mut *d_residual, None)
        };
        let mut flow = Flow {
            d_residual,
            d_in,
            d_mlp: &mut d_mlp[..queries * d],
            d_hidden: &mut d_hidden[..queries * shape.hidden],
            d_attention: &mut d_attention[..queries * d],
            mixed: &mut mixed[..queries * d],
            normed1: &mut *normed1,
            normed2: &mut normed2[..queries * d],
        };
        let block = &mut tape.blocks[i];
        let these = &mut gradients.blocks[i];
        let net = Block {
            precision,
            shape,
            index: i,
            w: &weights.blocks[i],
            matrices: Matrices::new(|w, size| precision.prepare(w, size), shape, i, &weights.blocks[i]),
        };
        block_backward(&net, drops, block.all(shape, i, images), &mut flow, these);
        weight_gradients(&net, &block.all(shape, i, images), &flow, these);
        if free {
            block.free(these.map(&mut |gradient| size_of_val(gradient.as_slice())).into_values().sum());
        }
    }
    if shape.trained == Trained::All {
        let spare = (room(d_patches, images * shape.patches() * d), patches);
        embed_backward(precision, shape, pixels, drops, d_residual, spare, gradients);
    }
}

/// A block on the way back.
struct Block<'a, P: Precision> {
    precision: &'a P,
    shape: &'a Shape,
    index: usize,
    w: &'a BlockParameters<&'a [f32]>,
    matrices: Matrices<P::Prepared<'a>>,
}

/// Gradients on their way through a block, and what the gradients of its weights need; over all images or one group's.
struct Flow<'a, N> {
    /// (N Q, D): of the output; becomes that after attention, and that of the input, where there is no `d_in`.
    d_residual: &'a mut [f32],
    /// (N S, D): of the input, where it has more tokens than the output.
    d_in: Option<&'a mut [f32]>,
    d_mlp: &'a mut [N],       // (N Q, D): of the MLP's branch
    d_hidden: &'a mut [N],    // (N Q, M): of the MLP's hidden layer before GELU
    d_attention: &'a mut [N], // (N Q, D): of the attention's branch
    mixed: &'a mut [N],       // (N Q, D): the heads' outputs, computed again
    normed1: &'a mut [N],     // (N S, D): what the attention reads, computed again
    normed2: &'a mut [N],     // (N Q, D): what the MLP reads, computed again
}

impl<N> Flow<'_, N> {
    /// Each group's part, of a group's `tokens` and `queries`.
    fn groups(&mut self, tokens: usize, queries: usize, d: usize, m: usize) -> Vec<Flow<'_, N>> {
        let d_in = self.d_in.as_deref_mut();
        let mut d_in = d_in.map(|d_in| d_in.chunks_mut(tokens * d));
        self.d_residual
            .chunks_mut(queries * d)
            .zip(self.d_mlp.chunks_mut(queries * d))
            .zip(self.d_hidden.chunks_mut(queries * m))
            .zip(self.d_attention.chunks_mut(queries * d))
            .zip(self.mixed.chunks_mut(queries * d))
            .zip(self.normed1.chunks_mut(tokens * d))
            .zip(self.normed2.chunks_mut(queries * d))
            .map(|((((((d_residual, d_mlp), d_hidden), d_attention), mixed), normed1), normed2)| Flow {
                d_residual,
                d_in: d_in.as_mut().and_then(Iterator::next),
                d_mlp,
                d_hidden,
                d_attention,
                mixed,
                normed1,
                normed2,
            })
            .collect()
    }
}

/// A group's gradients of a block's small parameters: those of `LayerNorm`s and biases.
struct Small {
    norm1: Affine<Vec<f32>>,
    in_proj_bias: Vec<f32>,
    out_proj_bias: Vec<f32>,
    norm2: Affine<Vec<f32>>,
    fc1_bias: Vec<f32>,
    fc2_bias: Vec<f32>,
}

impl Small {
    /// Zeros.
    fn new(shape: &Shape) -> Self {
        let zeros = |len: usize| vec![0.0; len];
        let norm = || Affine { weight: zeros(shape.width), bias: zeros(shape.width) };
        Self {
            norm1: norm(),
            in_proj_bias: zeros(3 * shape.width),
            out_proj_bias: zeros(shape.width),
            norm2: norm(),
            fc1_bias: zeros(shape.hidden),
            fc2_bias: zeros(shape.width),
        }
    }

    /// Adds them to the whole block's.
    fn add_to(&self, block: &mut BlockParameters<Vec<f32>>) {
        let add = |sum: &mut Vec<f32>, values: &[f32]| rows::add_bias(room(sum, values.len()), values);
        add(&mut block.norm1.weight, &self.norm1.weight);
        add(&mut block.norm1.bias, &self.norm1.bias);
        add(&mut block.in_proj.bias, &self.in_proj_bias);
        add(&mut block.out_proj.bias, &self.out_proj_bias);
        add(&mut block.norm2.weight, &self.norm2.weight);
        add(&mut block.norm2.bias, &self.norm2.bias);
        add(&mut block.fc1.bias, &self.fc1_bias);
        add(&mut block.fc2.bias, &self.fc2_bias);
    }
}

/// The part of a block's backward that groups do alone. The tape's `hidden` becomes what was activated, and `qkv` its own
/// gradient.
fn block_backward<P: Precision<Number: Kept>>(
    net: &Block<P>,
    drops: Option<&Drops>,
    block: Part<P::Number>,
    flow: &mut Flow<P::Number>,
    gradients: &mut BlockParameters<Vec<f32>>,
) {
    let (shape, queries) = (net.shape, net.shape.queries(net.index));
    let (d, s) = (shape.width, shape.tokens());
    let flows = flow.groups(GROUP * s, GROUP * queries, d, shape.hidden);
    let parts: Vec<_> = block.groups(shape, net.index).into_iter().zip(flows).collect();
    let sums: Vec<Small> = parts
        .into_par_iter()
        .enumerate()
        .map(|(g, (mut part, mut flow))| {
            let group = Group::new(g, part.x.len() / (s * d), drops);
            let mut small = Small::new(shape);
            P::Number::with_scratch(|scratch| {
                mlp_backward(net, &group, &mut part, &mut flow, &mut small, scratch);
                attention_backward(net, &group, &mut part, &mut flow, &mut small, scratch);
            });
            small
        })
        .collect();
    // In the groups' order, so that the sum does not depend on which thread was first.
    for small in sums {
        small.add_to(gradients);
    }
}

fn mlp_backward<P: Precision>(
    net: &Block<P>,
    group: &Group,
    part: &mut Part<P::Number>,
    flow: &mut Flow<P::Number>,
    small: &mut Small,
    scratch: &mut Scratch<P::Number>,
) {
    let Block { precision, shape, index, w, matrices } = net;
    let (d, m, queries) = (shape.width, shape.hidden, shape.queries(*index));
    let rows = group.images * queries;
    let Scratch { branch, mask, .. } = scratch;

    rows::round(flow.d_mlp, flow.d_residual);
    group.drop_path(|drops| drops.blocks[*index].path[1], flow.d_mlp, queries * d);
    group.drop(|drops| drops.blocks[*index].mlp[1], flow.d_mlp, queries * d, mask);
    rows::add_column_sums(&mut small.fc2_bias, flow.d_mlp);

    let mask = group.mask(|drops| drops.blocks[*index].mlp[0], queries * m, mask);
    let finish = Finish::GeluBackward { mask, hidden: part.hidden, d_hidden: flow.d_hidden };
    precision.product(rows, Rows::new(flow.d_mlp, d), &matrices.fc2, finish);
    rows::add_column_sums(&mut small.fc1_bias, flow.d_hidden);

    let dy = room(branch, rows * d);
    let finish = Finish::Floats { out: dy, stride: d, bias: None, into: Into::Set };
    precision.product(rows, Rows::new(flow.d_hidden, m), &matrices.fc1, finish);
    let (norm, Affine { weight, bias }) = (shape.norm(&w.norm2), &mut small.norm2);
    rows::layer_norm_backward(flow.d_residual, part.mid, dy, norm, weight, bias);
    rows::layer_norm(flow.normed2, part.mid, norm);
}

fn attention_backward<P: Precision>(
    net: &Block<P>,
    group: &Group,
    part: &mut Part<P::Number>,
    flow: &mut Flow<P::Number>,
    small: &mut Small,
    scratch: &mut Scratch<P::Number>,
) {
    let Block { precision, shape, index, w, matrices } = net;
    let (d, s, queries) = (shape.width, shape.tokens(), shape.queries(*index));
    let (rows, all) = (group.images * queries, group.images * s);

    rows::round(flow.d_attention, flow.d_residual);
    group.drop_path(|drops| drops.blocks[*index].path[0], flow.d_attention, queries * d);
    rows::add_column_sums(&mut small.out_proj_bias, flow.d_attention);

    let mut buffer = std::mem::take(&mut scratch.mixed);
    let d_mixed = room(&mut buffer, rows * d);
    let finish = Finish::Operands { out: &mut *d_mixed, stride: d, bias: None };
    precision.product(rows, Rows::new(flow.d_attention, d), &matrices.out_proj, finish);
    attend_backward(net, group, part.qkv, d_mixed, flow.mixed, scratch);
    scratch.mixed = buffer;

    let (qkv, d_bias) = (&*part.qkv, small.in_proj_bias.as_mut_slice());
    let dy = room(&mut scratch.branch, all * d);
    let mut add = |rows, x, matrix, stride, into| {
        precision.product(rows, x, matrix, Finish::Floats { out: &mut *dy, stride, bias: None, into });
    };
    match &matrices.in_proj {
        InProj::Whole(matrix) => {
            rows::add_column_sums(d_bias, qkv);
            add(all, Rows::new(qkv, 3 * d), matrix, d, Into::Set);
        }
        InProj::Apart { q, kv } => {
            for image in qkv.chunks_exact(s * 3 * d) {
                rows::add_column_sums(&mut d_bias[..d], &image[..d]);
                for row in image.chunks_exact(3 * d) {
                    rows::add_column_sums(&mut d_bias[d..], &row[d..]);
                }
            }
            add(all, Rows::new(&qkv[d..], 3 * d), kv, d, Into::Set);
            add(group.images, Rows::new(qkv, s * 3 * d), q, s * d, Into::Add);
        }
    }
    let (norm, Affine { weight, bias }) = (shape.norm(&w.norm1), &mut small.norm1);
    let d_in = match &mut flow.d_in {
        None => &mut *flow.d_residual,
        Some(d_in) => {
            let images = d_in.chunks_exact_mut(s * d).zip(flow.d_residual.chunks_exact(queries * d));
            for (d_in, d_residual) in images {
                let (first, rest) = d_in.split_at_mut(queries * d);
                first.copy_from_slice(d_residual);
                rest.fill(0.0);
            }
            d_in
        }
    };
    rows::layer_norm_backward(d_in, part.x, dy, norm, weight, bias);
    rows::layer_norm(flow.normed1, part.x, norm);
}

/// Attention's backward for each image and head: `d_mixed` (G Q, D) is the gradient of the heads' outputs, and `qkv`
/// becomes its own gradient.
fn attend_backward<P: Precision>(
    net: &Block<P>,
    group: &Group,
    qkv: &mut [P::Number],
    d_mixed: &[P::Number],
    mixed: &mut [P::Number],
    scratch: &mut Scratch<P::Number>,
) {
    let Block { precision, shape, index, .. } = net;
    let (d, s, queries) = (shape.width, shape.tokens(), shape.queries(*index));
    let width = d / shape.heads;
    let Scratch { heads, mask, .. } = scratch;
    let own = room(heads, 3 * s * width);
    let images = qkv
        .chunks_exact_mut(s * 3 * d)
        .zip(d_mixed.chunks_exact(queries * d))
        .zip(mixed.chunks_exact_mut(queries * d));
    for (i, ((qkv, d_mixed), mixed)) in images.enumerate() {
        let mask = group.attention_mask(*index, i, shape.heads * s * s, mask);
        for h in 0..shape.heads {
            for (which, own) in own.chunks_exact_mut(s * width).enumerate() {
                for (own, row) in own.chunks_exact_mut(width).zip(qkv.chunks_exact(3 * d)) {
                    own.copy_from_slice(&row[which * d + h * width..][..width]);
                }
            }
            let of = [0, 1, 2].map(|which| Rows::new(&own[which * s * width..], width));
            let drop = mask.map(|mask| drop_by(&mask[h * s * s..]));
            let drop = drop.as_ref().map(|drop| drop as _);
            let head = Head { queries, keys: s, width, of, bias: None, drop };
            let out = Finish::Operands { out: &mut mixed[h * width..], stride: d, bias: None };
            let columns = [0, 1, 2].map(|which| which * d + h * width);
            let gradients = HeadGradients::Operands { out: &mut *qkv, stride: 3 * d, columns };
            precision.attend_backward(&head, Rows::new(&d_mixed[h * width..], d), Some(out), gradients);
        }
    }
}

/// The gradients of a block's four matrices, each a product over the tokens of all images, a unit at a time.
fn weight_gradients<P: Precision>(
    net: &Block<P>,
    block: &Part<P::Number>,
    flow: &Flow<P::Number>,
    gradients: &mut BlockParameters<Vec<f32>>,
) {
    let Block { precision, shape, index, .. } = net;
    let (d, m, s, queries) = (shape.width, shape.hidden, shape.tokens(), shape.queries(*index));
    // To read what is all zeros would map its memory twice.
    let first = if gradients.in_proj.weight.is_empty() { Into::Set } else { Into::Add };
    let in_proj = room(&mut gradients.in_proj.weight, 3 * d * d);
    let out_proj = room(&mut gradients.out_proj.weight, d * d);
    let fc1 = room(&mut gradients.fc1.weight, m * d);
    let fc2 = room(&mut gradients.fc2.weight, d * m);
    let images = block.x.len() / (s * d);
    for start in (0..images).step_by(UNIT) {
        let into = if start == 0 { first } else { Into::Add };
        let add = |size, dy, x, out: &mut [f32]| precision.weight_gradient(size, dy, x, out, into);
        let count = UNIT.min(images - start);
        let (rows, all) = (count * queries, count * s);
        // From the unit's first row on, of a matrix that is `width` wide.
        let of = |x, width| Rows::new(x, width).from(start * queries);
        add((d, rows, m), of(flow.d_mlp, d), of(block.hidden, m), fc2);
        add((m, rows, d), of(flow.d_hidden, m), of(flow.normed2, d), fc1);
        add((d, rows, d), of(flow.d_attention, d), of(flow.mixed, d), out_proj);
        let (x, d_qkv) = (&flow.normed1[start * s * d..], &block.qkv[start * s * 3 * d..]);
        if queries == s {
            add((3 * d, all, d), Rows::new(d_qkv, 3 * d), Rows::new(x, d), in_proj);
        } else {
            let (q, kv) = in_proj.split_at_mut(d * d);
            add((2 * d, all, d), Rows::new(&d_qkv[d..], 3 * d), Rows::new(x, d), kv);
            add((d, count, d), Rows::new(d_qkv, s * 3 * d), Rows::new(x, s * d), q);
        }
    }
}

/// The gradients of class token, positions and patch embedding from those of all images' first tokens `d_x` (N S, D).
fn embed_backward<P: Precision<Number: Kept>>(
    precision: &P,
    shape: &Shape,
    pixels: Pixels,
    drops: Option<&Drops>,
    d_x: &mut [f32],
    (d_patches, patches): (&mut [P::Number], &mut Vec<P::Number>),
    gradients: &mut Gradients,
) {
    let (d, p, s, pixels_each) = (shape.width, shape.patches(), shape.tokens(), shape.pixels());
    let cls = room(&mut gradients.cls_token, d);
    let pos = room(&mut gradients.pos_embed, s * d);
    let first = if gradients.patch_embed.weight.is_empty() { Into::Set } else { Into::Add };
    let weight = room(&mut gradients.patch_embed.weight, d * pixels_each);
    let bias = room(&mut gradients.patch_embed.bias, d);
    d_x.par_chunks_mut(GROUP * s * d).enumerate().for_each(|(g, d_x)| {
        let group = Group::new(g, d_x.len() / (s * d), drops);
        P::Number::with_scratch(|scratch| {
            group.drop(|drops| drops.positions, d_x, s * d, &mut scratch.mask);
        });
    });
    let images = d_x.len() / (s * d);
    for (d_x, d_patches) in d_x.chunks_exact(s * d).zip(d_patches.chunks_exact_mut(p * d)) {
        rows::add_bias(pos, d_x);
        rows::add_bias(cls, &d_x[..d]);
        rows::round(d_patches, &d_x[d..]);
    }
    rows::add_column_sums(bias, d_patches);
    let patches = room(patches, images * p * pixels_each);
    patches
        .par_chunks_mut(GROUP * p * pixels_each)
        .enumerate()
        .for_each(|(g, patches)| cut(shape, pixels, g * GROUP, patches));
    for start in (0..images).step_by(UNIT) {
        let into = if start == 0 { first } else { Into::Add };
        let (at, rows) = (start * p, UNIT.min(images - start) * p);
        let (d_patches, patches) = (Rows::new(&*d_patches, d), Rows::new(&*patches, pixels_each));
        let size = (d, rows, pixels_each);
        precision.weight_gradient(size, d_patches.from(at), patches.from(at), weight, into);
    }
}
