//! All that follows the backbones: projectors, fusion, temporal encoder, decoder and loss, forward and backward. The same
//! network as [`crate::model::Classifier::head`].

use candle_core::Result;

use super::backbone::{sized, sized_back};
use super::engine::Weights;
use super::kernels::{Attention, CrossEntropy, NormBackward, NormForward, Pool, PoolBackward};
use super::machine::{Ptr, Room};
use super::ops::{Mask, Ops, Qkv, int};
use crate::model::{HeadDrops, LayerDrops};
use crate::nn::Pass;

/// The sizes of what follows the backbones.
#[derive(Clone, Copy, Debug)]
pub struct HeadShape {
    /// The width of a backbone's features.
    pub features: usize,
    /// The numbers of a frame's pose.
    pub pose: usize,
    /// The width of a projected stream.
    pub projector: usize,
    /// `D`.
    pub width: usize,
    /// Heads of the temporal encoder.
    pub heads: usize,
    /// Its layers.
    pub layers: usize,
    /// The hidden width of its layers.
    pub hidden: usize,
    /// Classes.
    pub classes: usize,
}

/// Streams: face, left hand, right hand, pose.
const STREAMS: usize = 4;
/// Places of a projector's parameters: a norm and two linear layers.
const NORM: usize = 0;
const PROJECTOR_FC1: usize = 2;
const PROJECTOR_FC2: usize = 4;
const A_PROJECTOR: usize = 6;
/// Places after the projectors: fusion's norm and projection, positions.
const FUSION_NORM: usize = STREAMS * A_PROJECTOR;
const FUSION_PROJ: usize = FUSION_NORM + 2;
const POSITIONS: usize = FUSION_PROJ + 2;
const LAYERS: usize = POSITIONS + 1;
/// Places of a temporal layer's parameters.
const IN_PROJ: usize = 0;
const OUT_PROJ: usize = 2;
const LINEAR1: usize = 4;
const LINEAR2: usize = 6;
const NORM1: usize = 8;
const NORM2: usize = 10;
const A_LAYER: usize = 12;

/// What follows the backbones.
pub struct Head {
    pub shape: HeadShape,
    /// The position of its first parameter.
    pub first: usize,
    pub drops: HeadDrops,
    pub smoothing: f64,
}

/// One batch's frames.
#[derive(Clone, Copy)]
pub struct Frames<'a> {
    pub clips: usize,
    /// Of each clip.
    pub length: usize,
    /// Each backbone's features (B T, F), f32.
    pub features: [Ptr; 3],
    /// (B T, pose), f32.
    pub pose: Ptr,
    /// (B, T), bytes: 1 = a frame of the clip.
    pub valid: Ptr,
    /// (B), u32.
    pub targets: Ptr,
    pub pass: &'a Pass,
}

/// Where the loss goes, and how it comes back.
#[derive(Clone, Copy)]
pub struct Losses {
    /// Each clip's loss, f32.
    pub loss: Ptr,
    /// 1 for each clip whose class was right, i32.
    pub right: Ptr,
    /// What the gradient of each clip's loss is multiplied by, where there is to be one.
    pub scale: Option<f64>,
}

#[derive(Default)]
struct Projected {
    xhat: Room,   // (R, inputs)
    rstd: Room,   // (R)
    hidden: Room, // (R, P)
}

#[derive(Default)]
struct Layer {
    x: Room,      // (R, D): its input, stored
    qkv: Room,    // (R, 3 D)
    lse: Room,    // (B, H, T)
    mixed: Room,  // (R, D)
    xhat1: Room,  // (R, D)
    rstd1: Room,  // (R)
    hidden: Room, // (R, M)
    xhat2: Room,  // (R, D)
    rstd2: Room,  // (R)
}

/// What forward leaves for backward, and memory that both use in passing. `R` = B T rows.
#[derive(Default)]
pub struct Buffers {
    projected: [Projected; STREAMS],
    joined: Room,      // (R, 4 P): the projected streams side by side, or their gradient
    joined_bias: Room, // (4 P), f32
    fused_xhat: Room,  // (R, 4 P)
    fused_rstd: Room,  // (R)
    layers: Vec<Layer>,
    x: Room,        // (R, D), f32: the residual sum, or its gradient
    y: Room,        // (R, widest): a norm's output
    branch: Room,   // (R, D)
    hidden: Room,   // (R, widest hidden)
    d_norm: Room,   // (R, widest)
    d_qkv: Room,    // (R, 3 D)
    delta: Room,    // (B, H, T)
    mean: Room,     // (B, D)
    d_mean: Room,   // (B, D), f32
    logits: Room,   // (B, V), f32
    d_logits: Room, // (B, V)
}

impl Head {
    fn lm_head(&self) -> usize {
        self.layer(self.shape.layers)
    }

    fn layer(&self, i: usize) -> usize {
        self.first + LAYERS + A_LAYER * i
    }

    /// How many parameters it has.
    #[must_use]
    pub fn parameters(shape: &HeadShape) -> usize {
        LAYERS + A_LAYER * shape.layers + 2
    }

    /// The widths of rows that go through a norm.
    fn widest(&self) -> usize {
        let HeadShape { features, pose, projector, width, .. } = self.shape;
        [features, pose, STREAMS * projector, width].into_iter().max().unwrap_or(0)
    }

    fn inputs(&self, stream: usize) -> usize {
        if stream < 3 { self.shape.features } else { self.shape.pose }
    }

    /// Bytes of a batch, where a stored number takes `bytes`.
    #[must_use]
    pub fn bytes(shape: &HeadShape, clips: usize, frames: usize, bytes: usize) -> usize {
        let (rows, d, m) = (clips * frames, shape.width, shape.hidden);
        let layer = bytes * (7 * d + m) + 4 * (2 + shape.heads);
        let projected = bytes * (3 * shape.features + shape.pose + 8 * shape.projector);
        let passing = 4 * d + bytes * (8 * d + m + 8 * shape.projector);
        rows * (shape.layers * layer + projected + passing) + clips * shape.classes * (4 + bytes)
    }

    /// Frames to the logits (B, V), f32, whose address it gives, and the losses.
    pub fn forward(
        &self,
        ops: &Ops,
        w: &Weights,
        b: &mut Buffers,
        f: &Frames,
        losses: &Losses,
    ) -> Result<Ptr> {
        let (rows, d) = (f.clips * f.length, self.shape.width);
        let HeadShape { projector, hidden, .. } = self.shape;
        let y = ops.stored_room(&mut b.y, rows * self.widest())?;
        let activated = ops.stored_room(&mut b.hidden, rows * hidden.max(projector))?;
        let branch = ops.stored_room(&mut b.branch, rows * d)?;
        let x = ops.f32_room(&mut b.x, rows * d)?;
        self.project(ops, w, b, f, [y, activated])?;
        self.fuse(ops, w, b, f, [y, branch, x])?;
        for i in 0..self.shape.layers {
            self.layer_forward(ops, w, b, f, i, [x, y, branch, activated])?;
        }
        self.classify(ops, w, b, f, x, losses)
    }

    /// Each stream's features to its columns of `b.joined`, without the last bias.
    fn project(
        &self,
        ops: &Ops,
        w: &Weights,
        b: &mut Buffers,
        f: &Frames,
        [y, activated]: [Ptr; 2],
    ) -> Result<()> {
        let (rows, p) = (f.clips * f.length, self.shape.projector);
        let joined = ops.stored_room(&mut b.joined, rows * STREAMS * p)?;
        let joined_bias = ops.f32_room(&mut b.joined_bias, STREAMS * p)?;
        for (stream, of) in b.projected.iter_mut().enumerate() {
            let (at, inputs) = (self.first + A_PROJECTOR * stream, self.inputs(stream));
            let a = NormForward {
                x: f.features.get(stream).copied().unwrap_or(f.pose),
                weight: w.f32(at + NORM),
                shift: w.f32(at + NORM + 1),
                y_t: y,
                xhat: ops.stored_room(&mut of.xhat, rows * inputs)?,
                rstd: ops.f32_room(&mut of.rstd, rows)?,
                ..NormForward::default()
            };
            ops.norm(sized(a, rows, inputs, 1), Mask::default(), Mask::default())?;
            let before = ops.stored_room(&mut of.hidden, rows * p)?;
            ops.linear(rows, (y, inputs), (w.stored(at + PROJECTOR_FC1), inputs, p), (before, p), false)?;
            let mask = ops.mask(self.drops.projectors[stream], f.pass, f.clips, f.length * p)?;
            let bias = w.f32(at + PROJECTOR_FC1 + 1);
            ops.activate([before, bias, activated], (rows, p), f.length, false, mask)?;
            let out = (ops.stored_at(joined, stream * p), STREAMS * p);
            ops.linear(rows, (activated, p), (w.stored(at + PROJECTOR_FC2), p, p), out, false)?;
            let to = joined_bias + (4 * stream * p) as Ptr;
            ops.machine().copy(w.f32(at + PROJECTOR_FC2 + 1), to, 4 * p)?;
        }
        Ok(())
    }

    /// The joined streams to the first layer's input, with positions: `x`, f32, and stored.
    fn fuse(
        &self,
        ops: &Ops,
        w: &Weights,
        b: &mut Buffers,
        f: &Frames,
        [y, branch, x]: [Ptr; 3],
    ) -> Result<()> {
        let (rows, d, width) = (f.clips * f.length, self.shape.width, STREAMS * self.shape.projector);
        let (norm, proj) = (self.first + FUSION_NORM, self.first + FUSION_PROJ);
        let a = NormForward {
            branch: b.joined.at(),
            bias: b.joined_bias.at(),
            weight: w.f32(norm),
            shift: w.f32(norm + 1),
            y_t: y,
            xhat: ops.stored_room(&mut b.fused_xhat, rows * width)?,
            rstd: ops.f32_room(&mut b.fused_rstd, rows)?,
            ..NormForward::default()
        };
        ops.norm(sized(a, rows, width, 1), Mask::default(), Mask::default())?;
        self.drop_fused(ops, f, y)?;
        ops.linear(rows, (y, width), (w.stored(proj), width, d), (branch, d), false)?;
        b.layers.resize_with(self.shape.layers, Layer::default);
        let a = NormForward {
            branch,
            bias: w.f32(proj + 1),
            position: w.f32(self.first + POSITIONS),
            period: int(f.length),
            y: x,
            y_t: match b.layers.first_mut() {
                Some(layer) => ops.stored_room(&mut layer.x, rows * d)?,
                None => 0,
            },
            ..NormForward::default()
        };
        ops.norm(sized(a, rows, d, 1), Mask::default(), Mask::default())
    }

    /// Temporal layer `i`, from `x` to `x`, f32, and to the next one's stored input.
    fn layer_forward(
        &self,
        ops: &Ops,
        w: &Weights,
        b: &mut Buffers,
        f: &Frames,
        i: usize,
        [x, y, branch, activated]: [Ptr; 4],
    ) -> Result<()> {
        let HeadShape { width: d, heads, hidden: m, .. } = self.shape;
        let (rows, at, drops) = (f.clips * f.length, self.layer(i), &self.drops.layers[i]);
        let next = match b.layers.get_mut(i + 1) {
            Some(next) => ops.stored_room(&mut next.x, rows * d)?,
            None => 0,
        };
        let layer = &mut b.layers[i];
        let qkv = ops.stored_room(&mut layer.qkv, rows * 3 * d)?;
        ops.linear(rows, (layer.x.at(), d), (w.stored(at + IN_PROJ), d, 3 * d), (qkv, 3 * d), false)?;
        let mixed = ops.stored_room(&mut layer.mixed, rows * d)?;
        let lse = ops.f32_room(&mut layer.lse, rows * heads)?;
        let mask = self.attention_mask(ops, drops, f)?;
        let a = Attention { mixed, lse, ..self.attention(ops, w, at, f, qkv, mask) };
        ops.attention(&a, f.clips, d / heads)?;
        ops.linear(rows, (mixed, d), (w.stored(at + OUT_PROJ), d, d), (branch, d), false)?;
        let a = NormForward {
            x,
            branch,
            bias: w.f32(at + OUT_PROJ + 1),
            weight: w.f32(at + NORM1),
            shift: w.f32(at + NORM1 + 1),
            y: x,
            y_t: y,
            xhat: ops.stored_room(&mut layer.xhat1, rows * d)?,
            rstd: ops.f32_room(&mut layer.rstd1, rows)?,
            ..NormForward::default()
        };
        let mask = ops.mask(drops.others[0], f.pass, f.clips, f.length * d)?;
        ops.norm(sized(a, rows, d, f.length), mask, Mask::default())?;

        let before = ops.stored_room(&mut layer.hidden, rows * m)?;
        ops.linear(rows, (y, d), (w.stored(at + LINEAR1), d, m), (before, m), false)?;
        let mask = ops.mask(drops.others[1], f.pass, f.clips, f.length * m)?;
        ops.activate([before, w.f32(at + LINEAR1 + 1), activated], (rows, m), f.length, true, mask)?;
        ops.linear(rows, (activated, m), (w.stored(at + LINEAR2), m, d), (branch, d), false)?;
        let a = NormForward {
            bias: w.f32(at + LINEAR2 + 1),
            weight: w.f32(at + NORM2),
            shift: w.f32(at + NORM2 + 1),
            y_t: next,
            xhat: ops.stored_room(&mut layer.xhat2, rows * d)?,
            rstd: ops.f32_room(&mut layer.rstd2, rows)?,
            ..a
        };
        let mask = ops.mask(drops.others[2], f.pass, f.clips, f.length * d)?;
        ops.norm(sized(a, rows, d, f.length), mask, Mask::default())?;
        Ok(())
    }

    /// The last layer's `x` to logits and losses.
    fn classify(
        &self,
        ops: &Ops,
        w: &Weights,
        b: &mut Buffers,
        f: &Frames,
        x: Ptr,
        losses: &Losses,
    ) -> Result<Ptr> {
        let (d, at, v) = (self.shape.width, self.lm_head(), self.shape.classes);
        let mean = ops.stored_room(&mut b.mean, f.clips * d)?;
        let (clips, frames, width) = (int(f.clips), int(f.length), int(d));
        ops.pool(&Pool { x, valid: f.valid, mean, clips, frames, width })?;
        let logits = ops.f32_room(&mut b.logits, f.clips * v)?;
        ops.linear(f.clips, (mean, d), (w.stored(at), d, v), (logits, v), true)?;
        let d_logits = match losses.scale {
            Some(_) => ops.stored_room(&mut b.d_logits, f.clips * v)?,
            None => 0,
        };
        let a = CrossEntropy {
            logits,
            bias: w.f32(at + 1),
            targets: f.targets,
            d_logits,
            loss: losses.loss,
            right: losses.right,
            classes: int(v),
            smoothing: self.smoothing as f32,
            scale: losses.scale.unwrap_or(0.0) as f32,
        };
        ops.cross_entropy(&a, f.clips)?;
        Ok(logits)
    }

    /// Drops some of what fusion's norm gave, or of its gradient, in place.
    fn drop_fused(&self, ops: &Ops, f: &Frames, y: Ptr) -> Result<()> {
        let width = STREAMS * self.shape.projector;
        let mask = ops.mask(self.drops.fusion, f.pass, f.clips, f.length * width)?;
        if mask.words == 0 {
            return Ok(());
        }
        ops.combine([0, y, y, 0], (f.clips * f.length, width), f.length, mask)
    }

    fn attention_mask(&self, ops: &Ops, drops: &LayerDrops, f: &Frames) -> Result<Mask> {
        ops.mask(drops.attention, f.pass, f.clips, self.shape.heads * f.length * f.length)
    }

    fn attention(&self, ops: &Ops, w: &Weights, layer: usize, f: &Frames, qkv: Ptr, mask: Mask) -> Attention {
        let HeadShape { width, heads, .. } = self.shape;
        let qkv = Qkv::joined(ops, qkv, width, f.length);
        Attention { valid: f.valid, ..qkv.attention(w.f32(layer + IN_PROJ + 1), width, heads, mask) }
    }

    /// Adds the gradients of the parameters to `w`'s, after [`Self::forward`] of the same frames; those of the features
    /// go to `d_features` (B T, F) each, f32.
    pub fn backward(
        &self,
        ops: &Ops,
        w: &Weights,
        b: &mut Buffers,
        f: &Frames,
        d_features: [Ptr; 3],
    ) -> Result<()> {
        let HeadShape { width: d, projector: p, classes: v, .. } = self.shape;
        let rows = f.clips * f.length;
        let (at, d_logits, mean) = (self.lm_head(), b.d_logits.at(), b.mean.at());
        ops.combine([0, d_logits, 0, w.gradient(at + 1)], (f.clips, v), 1, Mask::default())?;
        ops.linear_weight(f.clips, (mean, d), (d_logits, v), (w.gradient(at), d, v))?;
        let d_mean = ops.f32_room(&mut b.d_mean, f.clips * d)?;
        ops.linear_input(f.clips, (d_logits, v), (w.stored(at), d, v), (d_mean, d), (true, false))?;
        let d_x = b.x.at();
        let (clips, frames, width) = (int(f.clips), int(f.length), int(d));
        ops.pool_backward(&PoolBackward { d_mean, valid: f.valid, d_x, clips, frames, width })?;

        // The gradient of a layer's output is `d_x` + `d_norm`, where a layer above it has left one there.
        let d_norm = ops.stored_room(&mut b.d_norm, rows * self.widest())?;
        let branch = b.branch.at();
        for i in (0..self.shape.layers).rev() {
            let above = if i + 1 < self.shape.layers { d_norm } else { 0 };
            self.layer_backward(ops, w, b, f, i, [d_x, above, d_norm])?;
        }

        let (norm, proj) = (self.first + FUSION_NORM, self.first + FUSION_PROJ);
        let below = if self.shape.layers > 0 { d_norm } else { 0 };
        // A place's vector was added to its frame of every clip.
        let positions = w.gradient(self.first + POSITIONS);
        ops.combine([d_x, below, 0, positions], (f.clips, f.length * d), 1, Mask::default())?;
        ops.combine([d_x, below, branch, w.gradient(proj + 1)], (rows, d), 1, Mask::default())?;
        let width = STREAMS * p;
        ops.linear_input(rows, (branch, d), (w.stored(proj), width, d), (d_norm, width), (false, false))?;
        self.drop_fused(ops, f, d_norm)?;
        let (y, joined, joined_bias) = (b.fused_xhat.at(), b.joined.at(), b.joined_bias.at());
        ops.machine().zero(joined_bias, 4 * width)?;
        let a = NormBackward {
            dy_t: d_norm,
            xhat: y,
            rstd: b.fused_rstd.at(),
            weight: w.f32(norm),
            shift: w.f32(norm + 1),
            y,
            d_branch: joined,
            ..NormBackward::default()
        };
        let sums = [w.gradient(norm), w.gradient(norm + 1), joined_bias];
        ops.norm_backward(sized_back(a, rows, width, 1), Mask::default(), Mask::default(), sums)?;
        self.drop_fused(ops, f, y)?;
        ops.linear_weight(rows, (y, width), (branch, d), (w.gradient(proj), width, d))?;

        for (stream, of) in b.projected.iter_mut().enumerate() {
            let (at, inputs) = (self.first + A_PROJECTOR * stream, self.inputs(stream));
            let d_out = (ops.stored_at(joined, stream * p), width);
            let d_bias = joined_bias + (4 * stream * p) as Ptr;
            ops.reduce(d_bias, 1, p, [w.gradient(at + PROJECTOR_FC2 + 1), 0, 0], 1)?;
            let (hidden, d_hidden) = (of.hidden.at(), b.hidden.at());
            ops.linear_input(
                rows,
                d_out,
                (w.stored(at + PROJECTOR_FC2), p, p),
                (d_hidden, p),
                (false, false),
            )?;
            let mask = ops.mask(self.drops.projectors[stream], f.pass, f.clips, f.length * p)?;
            let bias = at + PROJECTOR_FC1 + 1;
            let buffers = [hidden, w.f32(bias), d_hidden, w.gradient(bias)];
            ops.activate_backward(buffers, (rows, p), f.length, false, mask)?;
            ops.linear_weight(rows, (hidden, p), d_out, (w.gradient(at + PROJECTOR_FC2), p, p))?;
            let weight = (w.stored(at + PROJECTOR_FC1), inputs, p);
            ops.linear_input(rows, (d_hidden, p), weight, (d_norm, inputs), (false, false))?;
            let xhat = of.xhat.at();
            let a = NormBackward {
                dy_t: d_norm,
                xhat,
                rstd: of.rstd.at(),
                weight: w.f32(at + NORM),
                shift: w.f32(at + NORM + 1),
                d_x: d_features.get(stream).copied().unwrap_or(0),
                y: xhat,
                ..NormBackward::default()
            };
            let sums = [w.gradient(at + NORM), w.gradient(at + NORM + 1), 0];
            ops.norm_backward(sized_back(a, rows, inputs, 1), Mask::default(), Mask::default(), sums)?;
            let gradient = (w.gradient(at + PROJECTOR_FC1), inputs, p);
            ops.linear_weight(rows, (xhat, inputs), (d_hidden, p), gradient)?;
        }
        Ok(())
    }

    /// One layer: the gradient of its output is `d_x` + `above` (0: none); that of its input is left in `d_x` and `d_norm`.
    fn layer_backward(
        &self,
        ops: &Ops,
        w: &Weights,
        b: &mut Buffers,
        f: &Frames,
        i: usize,
        [d_x, above, d_norm]: [Ptr; 3],
    ) -> Result<()> {
        let HeadShape { width: d, heads, hidden: m, .. } = self.shape;
        let (rows, at, drops) = (f.clips * f.length, self.layer(i), &self.drops.layers[i]);
        let (layer, branch, d_hidden) = (&mut b.layers[i], b.branch.at(), b.hidden.at());
        let mask = ops.mask(drops.others[2], f.pass, f.clips, f.length * d)?;
        let a = NormBackward {
            dy: d_x,
            dy_t: above,
            xhat: layer.xhat2.at(),
            rstd: layer.rstd2.at(),
            weight: w.f32(at + NORM2),
            shift: w.f32(at + NORM2 + 1),
            d_x,
            d_branch: branch,
            ..NormBackward::default()
        };
        let sums = [w.gradient(at + NORM2), w.gradient(at + NORM2 + 1), w.gradient(at + LINEAR2 + 1)];
        ops.norm_backward(sized_back(a, rows, d, f.length), mask, Mask::default(), sums)?;

        let hidden = layer.hidden.at();
        ops.linear_input(rows, (branch, d), (w.stored(at + LINEAR2), m, d), (d_hidden, m), (false, false))?;
        let mask = ops.mask(drops.others[1], f.pass, f.clips, f.length * m)?;
        let buffers = [hidden, w.f32(at + LINEAR1 + 1), d_hidden, w.gradient(at + LINEAR1 + 1)];
        ops.activate_backward(buffers, (rows, m), f.length, true, mask)?;
        ops.linear_weight(rows, (hidden, m), (branch, d), (w.gradient(at + LINEAR2), m, d))?;
        ops.linear_input(rows, (d_hidden, m), (w.stored(at + LINEAR1), d, m), (d_norm, d), (false, false))?;

        let mask = ops.mask(drops.others[0], f.pass, f.clips, f.length * d)?;
        let y = layer.xhat1.at();
        let a = NormBackward {
            dy: d_x,
            dy_t: d_norm,
            xhat: y,
            rstd: layer.rstd1.at(),
            weight: w.f32(at + NORM1),
            shift: w.f32(at + NORM1 + 1),
            d_x,
            y,
            d_branch: branch,
            ..NormBackward::default()
        };
        let sums = [w.gradient(at + NORM1), w.gradient(at + NORM1 + 1), w.gradient(at + OUT_PROJ + 1)];
        ops.norm_backward(sized_back(a, rows, d, f.length), mask, Mask::default(), sums)?;
        ops.linear_weight(rows, (y, d), (d_hidden, m), (w.gradient(at + LINEAR1), d, m))?;

        let (mixed, d_mixed) = (layer.mixed.at(), d_norm);
        ops.linear_input(rows, (branch, d), (w.stored(at + OUT_PROJ), d, d), (d_mixed, d), (false, false))?;
        ops.linear_weight(rows, (mixed, d), (branch, d), (w.gradient(at + OUT_PROJ), d, d))?;
        let d_qkv = ops.stored_room(&mut b.d_qkv, rows * 3 * d)?;
        let mask = self.attention_mask(ops, drops, f)?;
        let a = Attention {
            mixed,
            lse: layer.lse.at(),
            d_mixed,
            delta: ops.f32_room(&mut b.delta, rows * heads)?,
            d_q: d_qkv,
            d_k: ops.stored_at(d_qkv, d),
            d_v: ops.stored_at(d_qkv, 2 * d),
            ..self.attention(ops, w, at, f, layer.qkv.at(), mask)
        };
        ops.attention_backward(&a, f.clips, d / heads)?;
        let bias = w.gradient(at + IN_PROJ + 1);
        ops.combine([0, d_qkv, 0, bias], (rows, 3 * d), 1, Mask::default())?;
        let d_out = (d_qkv, 3 * d);
        ops.linear_weight(rows, (layer.x.at(), d), d_out, (w.gradient(at + IN_PROJ), d, 3 * d))?;
        ops.linear_input(rows, d_out, (w.stored(at + IN_PROJ), d, 3 * d), (d_norm, d), (false, false))
    }
}
