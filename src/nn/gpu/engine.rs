//! A network and its training on a GPU: parameters, batches, steps.

use std::rc::Rc;

use candle_core::{Error, Result};

use super::backbone::{Backbone, Images, Pixels, Scratch, Tape};
use super::head::{Buffers, Frames, Head, HeadShape, Losses};
use super::kernels::{self, Judge};
use super::machine::{Buffer, Machine, Ptr, Room, Upload};
use super::ops::Ops;
use crate::config;
use crate::model::Classifier;
use crate::nn::Pass;
use crate::nn::Stored;
use crate::nn::cpu::vit::Shape;

/// More images than this at a time would be more blocks than a launch may have.
const MOST_IMAGES: usize = 32_768;

/// Where parameters and gradients are: all of them one after another, in PyTorch's order.
pub struct Weights {
    masters: Ptr,
    stored: Ptr,
    gradients: Ptr,
    offsets: Vec<usize>,
    stored_bytes: usize,
}

impl Weights {
    /// Parameter `i`, f32.
    pub fn f32(&self, i: usize) -> Ptr {
        self.masters + (4 * self.offsets[i]) as Ptr
    }

    /// Parameter `i` as products take it.
    pub fn stored(&self, i: usize) -> Ptr {
        self.stored + (self.stored_bytes * self.offsets[i]) as Ptr
    }

    /// The gradient of parameter `i`, f32.
    pub fn gradient(&self, i: usize) -> Ptr {
        self.gradients + (4 * self.offsets[i]) as Ptr
    }
}

/// What is known of a step once it is done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct Verdict {
    /// The mean loss of the last batch's clips.
    pub loss: f64,
    /// The norm of the whole gradient, before it is clipped.
    pub norm: f64,
    /// What gradients were multiplied by.
    pub factor: f32,
    /// 1 where loss and norm are finite; else nothing was updated.
    pub sound: i32,
}

/// Adam's numbers of one step, as [`kernels::Adam`] takes them.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "named as in the optimizer")]
pub struct Adam {
    pub decay: f32,
    pub l2: f32,
    pub step_size: f32,
    pub root_correction: f32,
    pub rest1: f32,
    pub beta2: f32,
    pub rest2: f32,
    pub eps: f32,
}

/// How parameters follow their gradients in one step.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// `AdamW` and Adam.
    Adam(Adam),
    /// SGD.
    Sgd {
        /// The learning rate.
        lr: f32,
        /// What of a parameter is added to its gradient.
        l2: f32,
    },
}

/// What a batch gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// The mean loss of its clips.
    pub loss: f64,
    /// How many clips' classes were right.
    pub correct: usize,
}

/// A batch in the host's memory.
#[derive(Clone, Copy, Debug)]
pub struct HostBatch<'a> {
    /// Face, left hand, right hand: RGB bytes (B T, H, W, 3), or normalised f32 (B T, 3, H, W) as bytes.
    pub images: [&'a [u8]; 3],
    /// Whether the images are f32.
    pub normalised: bool,
    /// (B, T, pose), f32 as bytes.
    pub pose: &'a [u8],
    /// (B, T): 1 = a frame of the clip.
    pub valid: &'a [u8],
    /// (B), u32 as bytes; empty where classes are not known.
    pub targets: &'a [u8],
    /// B.
    pub clips: usize,
    /// T.
    pub frames: usize,
}

/// A batch in the GPU's memory.
#[derive(Default)]
struct Slot {
    images: [Room; 3],
    pose: Room,
    valid: Room,
    targets: Room,
    clips: usize,
    frames: usize,
    normalised: bool,
}

/// A network on a GPU.
pub struct Engine {
    ops: Ops,
    weights: Weights,
    sizes: Vec<usize>,
    /// All numbers of the parameters, with what lies between them.
    span: usize,
    masters: Buffer,
    stored: Option<Buffer>,
    gradients: Buffer,
    moments: Option<[Buffer; 2]>,
    verdict: Buffer,
    backbones: [Backbone; 3],
    head: Head,
    slots: [Slot; 2],
    losses: Room,
    rights: Room,
    clips: usize,
    memory: Memory,
}

/// What can be given back and taken again.
#[derive(Default)]
struct Memory {
    tapes: Vec<Tape>,
    scratch: Scratch,
    head: Buffers,
    features: [Room; 3],
    d_features: [Room; 3],
}

/// Parameters begin at multiples of this many numbers.
const ALIGNED: usize = 64;

impl Engine {
    /// With the parameters and dropouts of `classifier`, which lie in the host's memory, and moments of zero if there
    /// are to be any. `machine` has the kernels for `stored` and the classifier's heads: [`Self::heads`].
    pub fn new(
        machine: &Rc<dyn Machine>,
        stored: Stored,
        classifier: &Classifier,
        c: &config::Model,
        smoothing: f64,
        moments: bool,
    ) -> Result<Self> {
        let mut offsets = Vec::new();
        let (mut span, mut sizes) = (0, Vec::new());
        for (_, var) in classifier.parameters().iter() {
            offsets.push(span);
            sizes.push(var.elem_count());
            span += var.elem_count().next_multiple_of(ALIGNED);
        }
        let masters = Buffer::zeros(machine, 4 * span)?;
        let gradients = Buffer::zeros(machine, 4 * span)?;
        let copy = match stored {
            Stored::F32 => None,
            _ => Some(Buffer::zeros(machine, stored.bytes() * span)?),
        };
        let weights = Weights {
            masters: masters.at(),
            stored: copy.as_ref().map_or(masters.at(), Buffer::at),
            gradients: gradients.at(),
            offsets,
            stored_bytes: stored.bytes(),
        };
        let mut first = 0;
        let backbones = classifier.backbones().each_ref().map(|net| {
            let shape = net.shape();
            let backbone =
                Backbone { shape, first, positions: net.position_dropout(), blocks: net.block_drops() };
            first += net.parameter_count();
            backbone
        });
        let head = Head {
            shape: head_shape(c, &backbones[0].shape),
            first,
            drops: classifier.head_drops(),
            smoothing,
        };
        if first + Head::parameters(&head.shape) != sizes.len() {
            return Err(Error::Msg("the network has other parameters than its parts on the GPU".into()));
        }
        let zeros = || Buffer::zeros(machine, 4 * span);
        let mut engine = Self {
            ops: Ops::new(Rc::clone(machine), stored),
            weights,
            sizes,
            span,
            masters,
            stored: copy,
            gradients,
            moments: if moments { Some([zeros()?, zeros()?]) } else { None },
            verdict: Buffer::zeros(machine, size_of::<Verdict>())?,
            backbones,
            head,
            slots: Default::default(),
            losses: Room::default(),
            rights: Room::default(),
            clips: 0,
            memory: Memory::default(),
        };
        let initial: Result<Vec<Vec<f32>>> =
            classifier.parameters().iter().map(|(_, var)| var.flatten_all()?.to_vec1()).collect();
        engine.write_parameters(&initial?)?;
        Ok(engine)
    }

    /// The widths of the heads that a network of `c` has: which kernels it needs.
    #[must_use]
    pub fn heads(c: &config::Model) -> Vec<usize> {
        vec![c.backbone.embed_dim / c.backbone.num_heads, c.d_model / c.temporal_nhead]
    }

    /// Bytes that a step takes on the GPU with `chunk` images of a stream at a time: the backbones', and the head's.
    #[must_use]
    pub fn step_bytes(
        c: &config::Model,
        shape: &Shape,
        clips: usize,
        chunk: Option<usize>,
        stored: Stored,
    ) -> (usize, usize) {
        let images = clips * c.sequence_length;
        let at_a_time = chunk.unwrap_or(images).min(images);
        let (tape, passing) = Backbone::bytes_an_image(shape, stored.bytes());
        let tapes = if at_a_time < images { at_a_time } else { 3 * images };
        let features = 2 * 3 * images * shape.width * 4;
        let head = Head::bytes(&head_shape(c, shape), clips, c.sequence_length, stored.bytes());
        (tapes * tape + at_a_time * passing, head + features)
    }

    /// How activations are stored.
    #[must_use]
    pub fn stored(&self) -> Stored {
        self.ops.stored()
    }

    fn machine(&self) -> &Rc<dyn Machine> {
        self.ops.machine()
    }

    /// Sets all parameters, given in order.
    pub fn write_parameters(&mut self, values: &[Vec<f32>]) -> Result<()> {
        self.write_all(self.masters.at(), values.iter().map(Vec::as_slice))?;
        match &self.stored {
            Some(stored) => self.ops.cast(self.masters.at(), stored.at(), self.span),
            None => Ok(()),
        }
    }

    /// All parameters, in order.
    pub fn read_parameters(&self) -> Result<Vec<Vec<f32>>> {
        self.read_all(self.masters.at())
    }

    /// The gradients of all parameters, in order, as the last step had them: not yet divided by its clips and its scale.
    pub fn read_gradients(&self) -> Result<Vec<Vec<f32>>> {
        self.read_all(self.gradients.at())
    }

    /// Sets both moments of all parameters, given in order.
    pub fn write_moments<'a>(
        &mut self,
        moments: impl Iterator<Item = (&'a [f32], &'a [f32])> + Clone,
    ) -> Result<()> {
        let Some([m, v]) = &self.moments else { return Ok(()) };
        self.write_all(m.at(), moments.clone().map(|(m, _)| m))?;
        self.write_all(v.at(), moments.map(|(_, v)| v))
    }

    /// Both moments of all parameters, in order; none for an optimizer without.
    pub fn read_moments(&self) -> Result<Option<[Vec<Vec<f32>>; 2]>> {
        match &self.moments {
            Some([m, v]) => Ok(Some([self.read_all(m.at())?, self.read_all(v.at())?])),
            None => Ok(None),
        }
    }

    fn write_all<'a>(&self, at: Ptr, values: impl Iterator<Item = &'a [f32]>) -> Result<()> {
        for ((values, &offset), &size) in values.zip(&self.weights.offsets).zip(&self.sizes) {
            if values.len() != size {
                return Err(Error::Msg(format!("{} numbers for a parameter of {size}", values.len())));
            }
            self.machine().write(at + (4 * offset) as Ptr, bytemuck::cast_slice(values))?;
        }
        Ok(())
    }

    fn read_all(&self, at: Ptr) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(self.sizes.len());
        for (&offset, &size) in self.weights.offsets.iter().zip(&self.sizes) {
            let mut values = vec![0f32; size];
            self.machine().read(at + (4 * offset) as Ptr, bytemuck::cast_slice_mut(&mut values))?;
            all.push(values);
        }
        Ok(all)
    }

    /// Begins to bring a batch to `slot` (0 or 1), where no batch may be that is still computed with.
    pub fn send(&mut self, slot: usize, batch: &HostBatch) -> Result<()> {
        let machine = Rc::clone(self.ops.machine());
        let to = &mut self.slots[slot];
        (to.clips, to.frames, to.normalised) = (batch.clips, batch.frames, batch.normalised);
        let mut uploads = Vec::new();
        let mut add = |room: &mut Room, bytes| -> Result<()> {
            uploads.push(Upload { to: room.of(&machine, <[u8]>::len(bytes).max(1))?, bytes });
            Ok(())
        };
        for (room, bytes) in to.images.iter_mut().zip(batch.images) {
            add(room, bytes)?;
        }
        add(&mut to.pose, batch.pose)?;
        add(&mut to.valid, batch.valid)?;
        add(&mut to.targets, batch.targets)?;
        machine.send(slot, &uploads)
    }

    /// Sets all gradients to zero.
    pub fn begin(&mut self) -> Result<()> {
        self.machine().zero(self.gradients.at(), self.gradients.bytes())
    }

    /// Gives memory back that only a step needs: before another try with smaller chunks.
    pub fn shed(&mut self) {
        self.memory = Memory::default();
    }

    /// Adds the gradients of the sum of the clips' losses, times `scale`, for the batch in `slot`, with `chunk` images of
    /// a stream at a time (`None` = all). `pass.first_row` counts clips. Nothing waits for it.
    pub fn forward_backward(
        &mut self,
        slot: usize,
        pass: &Pass,
        chunk: Option<usize>,
        scale: f64,
    ) -> Result<()> {
        self.machine().receive(slot)?;
        let images = self.slots[slot].clips * self.slots[slot].frames;
        let chunk = chunk.or((images > MOST_IMAGES).then_some(MOST_IMAGES)).filter(|&chunk| chunk < images);
        self.memory.tapes.resize_with(if chunk.is_some() { 1 } else { 3 }, Tape::default);
        self.features(slot, pass, chunk, true)?;
        self.head_forward(slot, pass, Some(scale))?;
        let frames = self.frames(slot, pass);
        let Self { ops, weights, backbones, head, memory, .. } = self;
        let mut d_features = [0; 3];
        for ((at, room), net) in d_features.iter_mut().zip(&mut memory.d_features).zip(backbones.iter()) {
            *at = ops.f32_room(room, images * net.shape.width)?;
        }
        head.backward(ops, weights, &mut memory.head, &frames, d_features)?;

        let Memory { tapes, scratch, features, .. } = memory;
        for (stream, net) in backbones.iter().enumerate() {
            let width = net.shape.width;
            for (start, count) in parts(images, chunk) {
                let pass = of_images(pass, &self.slots[slot], start);
                let part = Images { pixels: self.slots[slot].pixels(stream), start, count, pass: &pass };
                let tape = &mut tapes[if chunk.is_some() { 0 } else { stream }];
                let at = (4 * start * width) as Ptr;
                if chunk.is_some() {
                    net.forward(ops, weights, &part, Some(tape), scratch, features[stream].at() + at)?;
                }
                net.backward(ops, weights, &part, tape, scratch, d_features[stream] + at)?;
            }
        }
        Ok(())
    }

    /// The backbones' features of the batch in `slot`; with `tapes`, what backward needs is kept where all goes at once.
    fn features(&mut self, slot: usize, pass: &Pass, chunk: Option<usize>, tapes: bool) -> Result<()> {
        let Self { ops, weights, backbones, memory, slots, .. } = self;
        let slot = &slots[slot];
        let images = slot.clips * slot.frames;
        for (stream, net) in backbones.iter().enumerate() {
            let width = net.shape.width;
            let out = ops.f32_room(&mut memory.features[stream], images * width)?;
            for (start, count) in parts(images, chunk) {
                let pass = of_images(pass, slot, start);
                let part = Images { pixels: slot.pixels(stream), start, count, pass: &pass };
                let tape = if tapes && chunk.is_none() { memory.tapes.get_mut(stream) } else { None };
                let out = out + (4 * start * width) as Ptr;
                net.forward(ops, weights, &part, tape, &mut memory.scratch, out)?;
            }
        }
        Ok(())
    }

    /// The logits of the batch in `slot`, and the losses, with their gradient where there is a `scale`.
    fn head_forward(&mut self, slot: usize, pass: &Pass, scale: Option<f64>) -> Result<Ptr> {
        self.clips = self.slots[slot].clips;
        let frames = self.frames(slot, pass);
        let Self { ops, weights, head, memory, losses, rights, clips, .. } = self;
        let losses = Losses {
            loss: losses.of(ops.machine(), 4 * *clips)?,
            right: rights.of(ops.machine(), 4 * *clips)?,
            scale,
        };
        head.forward(ops, weights, &mut memory.head, &frames, &losses)
    }

    /// The batch in `slot` as the head sees it.
    fn frames<'a>(&self, slot: usize, pass: &'a Pass) -> Frames<'a> {
        let of = &self.slots[slot];
        Frames {
            clips: of.clips,
            length: of.frames,
            features: self.memory.features.each_ref().map(Room::at),
            pose: of.pose.at(),
            valid: of.valid.at(),
            targets: of.targets.at(),
            pass,
        }
    }

    /// What the batch gave that was computed last: waits for it.
    pub fn scores(&self) -> Result<Scores> {
        let (mut losses, mut rights) = (vec![0f32; self.clips], vec![0i32; self.clips]);
        self.machine().read(self.losses.at(), bytemuck::cast_slice_mut(&mut losses))?;
        self.machine().read(self.rights.at(), bytemuck::cast_slice_mut(&mut rights))?;
        let loss = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / self.clips.max(1) as f64;
        Ok(Scores { loss, correct: rights.iter().filter(|&&right| right != 0).count() })
    }

    /// Updates the parameters by gradients times `share`, cut to a norm of `most`, unless a number is not finite. Nothing
    /// waits for it: [`Self::verdict`].
    pub fn update(&mut self, rule: Rule, share: f64, most: Option<f64>) -> Result<()> {
        let verdict = self.verdict.at();
        let judge = Judge {
            loss: self.losses.at(),
            clips: super::ops::int(self.clips),
            verdict,
            share,
            most: most.unwrap_or(0.0),
            ..Judge::default()
        };
        self.ops.judge(self.gradients.at(), self.span, judge)?;
        let (parameter, gradient) = (self.masters.at(), self.gradients.at());
        let stored = self.stored.as_ref().map_or(0, Buffer::at);
        let count = super::ops::long(self.span);
        match (rule, &self.moments) {
            (Rule::Sgd { lr, l2 }, _) => {
                self.ops.sgd(&kernels::Sgd { parameter, gradient, stored, verdict, count, lr, l2 })
            }
            (
                Rule::Adam(Adam { decay, l2, step_size, root_correction, rest1, beta2, rest2, eps }),
                Some([m, v]),
            ) => {
                let (m, v) = (m.at(), v.at());
                self.ops.adam(&kernels::Adam {
                    parameter,
                    gradient,
                    m,
                    v,
                    stored,
                    verdict,
                    count,
                    decay,
                    l2,
                    step_size,
                    root_correction,
                    rest1,
                    beta2,
                    rest2,
                    eps,
                })
            }
            (Rule::Adam(_), None) => Err(Error::Msg("Adam needs moments".into())),
        }
    }

    /// What became of the last [`Self::update`]: waits for it.
    pub fn verdict(&self) -> Result<Verdict> {
        let mut bytes = [0; size_of::<Verdict>()];
        self.machine().read(self.verdict.at(), &mut bytes)?;
        let f64_at = |at: usize| f64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let four = |at: usize| std::array::from_fn(|i| bytes[at + i]);
        Ok(Verdict {
            loss: f64_at(0),
            norm: f64_at(8),
            factor: f32::from_le_bytes(four(16)),
            sound: i32::from_le_bytes(four(20)),
        })
    }

    /// Begins to compute the batch in `slot`, without dropout: [`Self::scores`].
    pub fn evaluate(&mut self, slot: usize, chunk: Option<usize>) -> Result<()> {
        self.forward(slot, chunk).map(|_| ())
    }

    /// The logits (B, V) of the batch in `slot`, without dropout: waits for them.
    pub fn logits(&mut self, slot: usize, chunk: Option<usize>) -> Result<Vec<f32>> {
        let at = self.forward(slot, chunk)?;
        let mut logits = vec![0f32; self.clips * self.head.shape.classes];
        self.machine().read(at, bytemuck::cast_slice_mut(&mut logits))?;
        Ok(logits)
    }

    fn forward(&mut self, slot: usize, chunk: Option<usize>) -> Result<Ptr> {
        self.machine().receive(slot)?;
        let chunk = Some(chunk.unwrap_or(MOST_IMAGES).min(MOST_IMAGES));
        self.features(slot, &Pass::EVALUATION, chunk, false)?;
        self.head_forward(slot, &Pass::EVALUATION, None)
    }
}

impl Slot {
    fn pixels(&self, stream: usize) -> Pixels {
        let at = self.images[stream].at();
        if self.normalised { Pixels::Normalised(at) } else { Pixels::Bytes(at) }
    }
}

/// The pass of the images from `start` on.
fn of_images(pass: &Pass, slot: &Slot, start: usize) -> Pass {
    Pass { first_row: pass.first_row * slot.frames + start, ..*pass }
}

/// Start and length of each part of `all`.
fn parts(all: usize, chunk: Option<usize>) -> impl Iterator<Item = (usize, usize)> {
    let size = chunk.unwrap_or(all).max(1);
    (0..all).step_by(size).map(move |start| (start, size.min(all - start)))
}

fn head_shape(c: &config::Model, backbone: &Shape) -> HeadShape {
    HeadShape {
        features: backbone.width,
        pose: 3 * c.pose_landmarks,
        projector: c.projector_dim,
        width: c.d_model,
        heads: c.temporal_nhead,
        layers: c.temporal_layers,
        hidden: c.temporal_dim_feedforward,
        classes: c.vocab_size,
    }
}
