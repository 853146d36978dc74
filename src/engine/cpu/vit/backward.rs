//! The backward pass: from the features' gradient to every parameter's.

use rayon::prelude::*;

use super::super::gemm::{Into, Matrix, parallel_product, product};
use super::super::rows;
use super::forward::cut;
use super::tape::{Part, SCRATCH, Scratch, Tape, Workspace, room};
use super::{Affine, BlockParameters, Drops, GROUP, Gradients, Group, Pixels, Shape, Trained, UNIT, Weights};

/// What the backward pass works with besides the network.
pub struct Backward<'a> {
    /// The images that went through [`super::forward()`].
    pub pixels: Pixels<'a>,
    /// What that pass dropped.
    pub drops: Option<&'a Drops<'a>>,
    /// What that pass left; it is used up.
    pub tape: &'a mut Tape,
    /// Whether the tape's memory goes as the gradients' comes, block by block, so that they need none of their own.
    pub free: bool,
    /// Buffers that are kept from pass to pass.
    pub workspace: &'a mut Workspace,
}

/// The loss's gradients for all parameters from the lowest one on that trains, added to `gradients`; `d_features` (N, D) is that of the features which
/// [`super::forward()`] gave.
pub fn backward(
    shape: &Shape,
    weights: &Weights,
    with: Backward,
    d_features: &[f32],
    gradients: &mut Gradients,
) {
    let Backward { pixels, drops, tape, free, workspace } = with;
    let (d, s, images) = (shape.width, shape.tokens(), tape.images);
    let Workspace { d_out, d_hidden, d_mid, d_in, mixed, d_patches, patches } = workspace;
    let all = images * s * d;
    let (mut d_out, mut d_in) = (room(d_out, all), room(d_in, all));
    let (d_mid, mixed) = (room(d_mid, all), room(mixed, all));
    let d_hidden = room(d_hidden, images * s * shape.hidden);
    d_out[..images * d].fill(0.0);
    rows::layer_norm_backward(
        &mut d_out[..images * d],
        &mut tape.last,
        d_features,
        shape.norm(&weights.norm),
        room(&mut gradients.norm.weight, d),
        room(&mut gradients.norm.bias, d),
    );
    gradients.blocks.resize_with(shape.depth, BlockParameters::default);
    for i in (shape.first_trained()..shape.depth).rev() {
        let queries = images * shape.queries(i);
        let mut flow = Flow {
            d_out: &mut d_out[..queries * d],
            d_hidden: &mut d_hidden[..queries * shape.hidden],
            d_mid: &mut d_mid[..queries * d],
            d_in: &mut *d_in,
            mixed: &mut mixed[..queries * d],
        };
        let (w, block, these) = (&weights.blocks[i], &mut tape.blocks[i], &mut gradients.blocks[i]);
        block_backward(shape, w, i, drops, block.all(shape, i, images), &mut flow, these);
        weight_gradients(shape, i, &block.all(shape, i, images), &flow, these);
        std::mem::swap(&mut d_out, &mut d_in);
        if free {
            block.free(these.map(&mut |gradient| gradient.len()).into_values().sum());
        }
    }
    if shape.trained != Trained::All {
        return;
    }
    let spare = (room(d_patches, images * shape.patches() * d), patches);
    embed_backward(shape, pixels, drops, d_out, spare, gradients);
}

/// Gradients on their way through a block, over all images or one group's.
#[allow(clippy::struct_field_names)] // d as in the formulas
struct Flow<'a> {
    d_out: &'a mut [f32],    // (N Q, D): of the output; becomes that of the MLP's branch
    d_hidden: &'a mut [f32], // (N Q, M): of the MLP's hidden layer before GELU
    d_mid: &'a mut [f32],    // (N Q, D): after attention; becomes that of the attention's branch
    d_in: &'a mut [f32],     // (N S, D): of the input
    mixed: &'a mut [f32],    // (N Q, D): the heads' outputs, computed again
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

/// The part of a block's backward that groups do alone. The tape's `x`, `mid` and `hidden` become the inputs of the
/// products whose weights' gradients are still to be computed, and `qkv` becomes its own gradient.
fn block_backward(
    shape: &Shape,
    w: &BlockParameters<&[f32]>,
    index: usize,
    drops: Option<&Drops>,
    block: Part,
    flow: &mut Flow,
    gradients: &mut BlockParameters<Vec<f32>>,
) {
    let (d, s, queries) = (shape.width, shape.tokens(), shape.queries(index));
    let each = GROUP * queries;
    let parts: Vec<(Part, Flow)> = block
        .groups(shape, index)
        .into_iter()
        .zip(flow.d_out.chunks_mut(each * d))
        .zip(flow.d_hidden.chunks_mut(each * shape.hidden))
        .zip(flow.d_mid.chunks_mut(each * d))
        .zip(flow.d_in.chunks_mut(GROUP * s * d))
        .zip(flow.mixed.chunks_mut(each * d))
        .map(|(((((part, d_out), d_hidden), d_mid), d_in), mixed)| {
            (part, Flow { d_out, d_hidden, d_mid, d_in, mixed })
        })
        .collect();
    let sums: Vec<Small> = parts
        .into_par_iter()
        .enumerate()
        .map(|(g, (mut part, mut flow))| {
            let group = Group::new(g, flow.d_in.len() / (s * d), drops);
            let mut small = Small::new(shape);
            SCRATCH.with_borrow_mut(|scratch| {
                mlp_backward(shape, w, index, &group, &mut part, &mut flow, &mut small, scratch);
                attention_backward(shape, w, index, &group, &mut part, &mut flow, &mut small, scratch);
            });
            small
        })
        .collect();
    // In the groups' order, so that the sum does not depend on which thread was first.
    for small in sums {
        small.add_to(gradients);
    }
}

#[allow(clippy::too_many_arguments)]
fn mlp_backward(
    shape: &Shape,
    w: &BlockParameters<&[f32]>,
    index: usize,
    group: &Group,
    part: &mut Part,
    flow: &mut Flow,
    small: &mut Small,
    scratch: &mut Scratch,
) {
    let (d, m, queries) = (shape.width, shape.hidden, shape.queries(index));
    let rows = group.images * queries;
    let mask = &mut scratch.mask;

    flow.d_mid.copy_from_slice(flow.d_out);
    group.drop_path(|drops| drops.blocks[index].path[1], flow.d_out, queries * d);
    group.drop(|drops| drops.blocks[index].mlp[1], flow.d_out, queries * d, mask);
    rows::add_column_sums(&mut small.fc2_bias, flow.d_out);

    product(
        (rows, d, m),
        Matrix::rows(flow.d_out, d),
        Matrix::rows(w.fc2.weight, m),
        flow.d_hidden,
        m,
        Into::Set,
    );
    group.drop(|drops| drops.blocks[index].mlp[0], flow.d_hidden, queries * m, mask);
    rows::gelu_backward(flow.d_hidden, part.hidden);
    group.drop(|drops| drops.blocks[index].mlp[0], part.hidden, queries * m, mask);
    rows::add_column_sums(&mut small.fc1_bias, flow.d_hidden);

    let dy = room(&mut scratch.tokens, rows * d);
    product((rows, m, d), Matrix::rows(flow.d_hidden, m), Matrix::rows(w.fc1.weight, d), dy, d, Into::Set);
    let Affine { weight: d_weight, bias: d_bias } = &mut small.norm2;
    rows::layer_norm_backward(flow.d_mid, part.mid, dy, shape.norm(&w.norm2), d_weight, d_bias);
}

#[allow(clippy::too_many_arguments)]
fn attention_backward(
    shape: &Shape,
    w: &BlockParameters<&[f32]>,
    index: usize,
    group: &Group,
    part: &mut Part,
    flow: &mut Flow,
    small: &mut Small,
    scratch: &mut Scratch,
) {
    let (d, s, queries) = (shape.width, shape.tokens(), shape.queries(index));
    let rows = group.images * queries;
    let d_qkv_bias = small.in_proj_bias.as_mut_slice();

    for (d_in, d_mid) in flow.d_in.chunks_exact_mut(s * d).zip(flow.d_mid.chunks_exact(queries * d)) {
        let (first, rest) = d_in.split_at_mut(queries * d);
        first.copy_from_slice(d_mid);
        rest.fill(0.0);
    }
    group.drop_path(|drops| drops.blocks[index].path[0], flow.d_mid, queries * d);
    rows::add_column_sums(&mut small.out_proj_bias, flow.d_mid);

    let mut buffer = std::mem::take(&mut scratch.mixed);
    let d_mixed = room(&mut buffer, rows * d);
    product(
        (rows, d, d),
        Matrix::rows(flow.d_mid, d),
        Matrix::rows(w.out_proj.weight, d),
        d_mixed,
        d,
        Into::Set,
    );
    attend_backward(shape, index, group, part.qkv, d_mixed, flow.mixed, scratch);
    scratch.mixed = buffer;

    let dy = room(&mut scratch.tokens, part.x.len());
    let weight = w.in_proj.weight;
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
    let Affine { weight: d_weight, bias: d_bias } = &mut small.norm1;
    rows::layer_norm_backward(flow.d_in, part.x, dy, shape.norm(&w.norm1), d_weight, d_bias);
}

/// Attention's backward for each image and head: `d_mixed` (G Q, D) is the gradient of the heads' outputs, and `qkv`
/// becomes its own gradient. The attention weights and the outputs, `mixed`, are computed again, which costs less than
/// keeping them.
fn attend_backward(
    shape: &Shape,
    index: usize,
    group: &Group,
    qkv: &mut [f32],
    d_mixed: &[f32],
    mixed: &mut [f32],
    scratch: &mut Scratch,
) {
    let (d, s, head, queries) =
        (shape.width, shape.tokens(), shape.width / shape.heads, shape.queries(index));
    let factor = 1.0 / (head as f32).sqrt();
    let Scratch { scores, dscores, heads, mask, .. } = scratch;
    let (p, dp) = (room(scores, queries * s), room(dscores, queries * s));
    let own = room(heads, 3 * s * head);
    let images = qkv
        .chunks_exact_mut(s * 3 * d)
        .zip(d_mixed.chunks_exact(queries * d))
        .zip(mixed.chunks_exact_mut(queries * d));
    for (i, ((qkv, d_mixed), mixed)) in images.enumerate() {
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
            let out = &mut mixed[h * head..];
            product((queries, s, head), Matrix::rows(p, s), slot(2), out, d, Into::Set);
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
fn weight_gradients(
    shape: &Shape,
    index: usize,
    block: &Part,
    flow: &Flow,
    gradients: &mut BlockParameters<Vec<f32>>,
) {
    let (d, m, s, queries) = (shape.width, shape.hidden, shape.tokens(), shape.queries(index));
    let in_proj = room(&mut gradients.in_proj.weight, 3 * d * d);
    let out_proj = room(&mut gradients.out_proj.weight, d * d);
    let fc1 = room(&mut gradients.fc1.weight, m * d);
    let fc2 = room(&mut gradients.fc2.weight, d * m);
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
        parallel_product((d, rows, d), d_mid, of(flow.mixed, d), out_proj, d, Into::Add);
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
    gradients: &mut Gradients,
) {
    let (d, p, s, pixels_each) = (shape.width, shape.patches(), shape.tokens(), shape.pixels());
    let cls = room(&mut gradients.cls_token, d);
    let pos = room(&mut gradients.pos_embed, s * d);
    let weight = room(&mut gradients.patch_embed.weight, d * pixels_each);
    let bias = room(&mut gradients.patch_embed.bias, d);
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
