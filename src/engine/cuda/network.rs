//! A network and its training on a GPU: parameters, batches, steps.

use super::backbone::{Backbone, BackboneSaved, BackboneScratch};
use super::decoder::{Labels, Losses, StubDecoder, StubDecoderBuffers};
use super::frames::{FrameEncoder, FrameEncoderBuffers};
use super::kernels::Verdict;
use super::layers::{Context, Keep};
use super::memory::{Allocator, Buffer, Matrix, Slice, Transfer};
use super::ops::{Adam, Ops, Pixels};
use super::parameters::ParameterBuffers;
use crate::config;
use crate::engine::trained::Trained;
use crate::model::decoder::Fused;
use crate::nn::{ActivationDtype, Blueprint, Pass};
use crate::optim::ParameterGroups;
use crate::{Error, Result};

/// More images than this at a time would be more blocks than a launch may have.
const MOST_IMAGES: usize = 32_768;

/// What a network on a GPU is made of.
#[derive(Clone, Copy, Debug)]
pub struct NetworkSpec<'a> {
    /// Its parameters and dropouts.
    pub blueprint: &'a Blueprint,
    /// The sizes that are in no parameter's shape.
    pub model: &'a config::Model,
    /// Its inputs.
    pub streams: &'a [config::Stream],
    /// What of its decoder is computed here, with its loss. Where that is nothing, the host does it: [`GpuNetwork::encode`],
    /// [`GpuNetwork::backward_from`] and [`GpuNetwork::add_gradient`]; its parameters are here all the same, for the update.
    pub decoder: Fused,
    /// Which parameters train, and together.
    pub groups: &'a ParameterGroups,
    /// How many moments the optimizer has.
    pub moments: usize,
}

/// A stream of a batch in the host's memory, B T frames.
#[derive(Clone, Copy, Debug)]
pub enum StreamData<'a> {
    /// RGB bytes (B T, H, W, 3).
    ImageBytes(&'a [u8]),
    /// Normalised images (B T, 3, H, W).
    Images(&'a [f32]),
    /// (B T, pose).
    Pose(&'a [f32]),
    /// What a backbone has made of images: (B T, D).
    Features(&'a [f32]),
}

/// A batch in the host's memory.
#[derive(Clone, Copy, Debug)]
pub struct HostBatch<'a> {
    /// In the streams' order.
    pub streams: &'a [StreamData<'a>],
    /// (B, T): 1 = a frame of the clip.
    pub valid: &'a [u8],
    /// (B): each clip's class; empty where the decoder is not on the GPU.
    pub targets: &'a [u32],
    /// B.
    pub clips: usize,
    /// T.
    pub frames: usize,
}

/// What a batch gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// The mean loss of its clips.
    pub loss: f64,
    /// How many clips' classes were right.
    pub correct: usize,
}

/// How parameters follow their gradients in one step.
#[derive(Clone, Copy, Debug)]
pub enum GpuUpdateRule {
    /// `AdamW` and Adam.
    Adam(Adam),
    /// SGD.
    Sgd {
        /// The learning rate.
        lr: f32,
        /// What of a parameter is added to its gradient.
        l2: f32,
        /// What of the step before is kept; of no account without moments.
        momentum: f32,
    },
}

/// What became of an update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateReport {
    /// The mean loss of the last batch's clips; `None` where the decoder is on the host.
    pub loss: Option<f64>,
    /// The norm of the whole gradient, before it is clipped.
    pub norm: f64,
    /// What gradients were multiplied by.
    pub factor: f32,
    /// Whether loss and norm are finite; else nothing was updated.
    pub finite: bool,
}

/// Bytes that steps and evaluations take beside parameters and batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepMemory {
    /// What the backbones save for their backward pass, and use in passing.
    pub backbones: usize,
    /// The same of all that follows.
    pub head: usize,
}

/// A batch in the GPU's memory.
#[derive(Default)]
struct Slot {
    streams: Vec<SlotStream>,
    valid: Buffer<u8>,
    targets: Buffer<u32>,
    clips: usize,
    frames: usize,
}

/// A stream of it.
#[derive(Default)]
struct SlotStream {
    bytes: Buffer<u8>,
    numbers: Buffer<f32>,
    kind: SlotKind,
}

/// What a stream of a batch is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum SlotKind {
    /// RGB bytes, of images.
    Bytes,
    /// Normalised images.
    Images,
    /// Features, or poses.
    #[default]
    Features,
}

/// One of the network's inputs.
struct StreamLayers {
    /// `None`: its numbers are the features.
    backbone: Option<Backbone>,
    /// How wide the features are.
    width: usize,
}

impl StreamLayers {
    /// Its backbone, where the batch has images for it, and some of it trains.
    fn trained(&self, data: &SlotStream) -> Option<&Backbone> {
        self.backbone.as_ref().filter(|net| data.kind != SlotKind::Features && net.trains())
    }
}

/// A network on a GPU.
pub struct GpuNetwork {
    ops: Ops,
    parameters: ParameterBuffers,
    verdict: Slice<Verdict>,
    streams: Vec<StreamLayers>,
    frame_encoder: FrameEncoder,
    /// `None`: on the host.
    decoder: Option<StubDecoder>,
    slots: [Slot; 2],
    losses: Losses,
    workspace: Workspace,
}

/// What can be given back and taken again.
#[derive(Default)]
struct Workspace {
    /// The slot and the chunk of the batch that a backward pass may follow for.
    kept: Option<(usize, Option<usize>)>,
    /// One for each backbone, or one for all where images go through them in chunks.
    saved: Vec<BackboneSaved>,
    scratch: BackboneScratch,
    frame_encoder: FrameEncoderBuffers,
    decoder: StubDecoderBuffers,
    /// Each stream's.
    features: Vec<Buffer<f32>>,
    d_features: Vec<Buffer<f32>>,
    /// Numbers from the host on their way to a gradient.
    staging: Buffer<f32>,
}

impl GpuNetwork {
    /// With parameters, and moments if there are any, of zero: [`Self::write_parameters`]. The stream of `allocator` has the
    /// kernels for its dtype and the network's heads: [`super::head_widths`].
    ///
    /// # Errors
    /// Where `spec` names what its blueprint has not, or leaves out what it has; or the GPU's memory is full.
    pub fn new(allocator: &Allocator, spec: &NetworkSpec) -> Result<Self> {
        let scope = spec.blueprint.root().pp("encoder");
        let scopes = spec.streams.iter().filter_map(config::Stream::backbone).map(|name| scope.pp(name));
        let unreached: Vec<usize> = scopes.flat_map(|scope| Trained::of(&scope).unreached(&scope)).collect();
        let parameters =
            ParameterBuffers::new(allocator, spec.blueprint, spec.groups, &unreached, spec.moments)?;
        let root = parameters.root(spec.blueprint);
        let encoder = root.pp("encoder");
        let projectors = spec.streams.iter().map(|stream| stream.projector);
        let frame_encoder = FrameEncoder::new(&encoder, projectors, spec.model)?;
        let mut streams = Vec::new();
        for (stream, width) in spec.streams.iter().zip(frame_encoder.inputs()) {
            let new = |name| Backbone::new(&encoder.pp(name), &scope.pp(name), spec.model);
            // Where features come in the place of images, there is none.
            let name = stream.backbone().filter(|name| scope.pp(name).parameters().next().is_some());
            let backbone = name.map(new).transpose()?;
            if backbone.as_ref().is_some_and(|backbone| backbone.width() != width) {
                return Err(Error::run(format!("{} takes other features", stream.projector)));
            }
            streams.push(StreamLayers { backbone, width });
        }
        let decoder = match spec.decoder {
            Fused::Stub { label_smoothing } => Some(StubDecoder::new(&root.pp("decoder"), label_smoothing)?),
            Fused::Nothing => None,
        };
        let on_host = |name: &str| decoder.is_none() && name.starts_with("decoder.");
        let names = spec.blueprint.parameters();
        let left =
            parameters.unclaimed().into_iter().filter_map(|i| names.get(i)).find(|p| !on_host(&p.name));
        if let Some(left) = left {
            return Err(Error::run(format!("nothing on the GPU computes with {}", left.name)));
        }
        let ops = Ops::new(allocator.clone());
        ops.prepare_check(parameters.trained_gradients()?.len())?;
        Ok(Self {
            ops,
            verdict: allocator.zeros(1)?,
            parameters,
            streams,
            frame_encoder,
            decoder,
            slots: Default::default(),
            losses: Losses::default(),
            workspace: Workspace::default(),
        })
    }

    /// The widths of the heads of all attentions: which kernels they need.
    pub(super) fn head_widths(&self) -> Vec<usize> {
        let backbones = self.streams.iter().filter_map(|stream| stream.backbone.as_ref());
        backbones.flat_map(Backbone::head_widths).chain(self.frame_encoder.head_widths()).collect()
    }

    /// The activations' dtype.
    #[must_use]
    pub fn dtype(&self) -> ActivationDtype {
        self.ops.dtype()
    }

    /// Sets all parameters, given in order.
    ///
    /// # Errors
    /// Where they have other numbers, or the GPU fails.
    pub fn write_parameters(&mut self, values: &[Vec<f32>]) -> Result<()> {
        self.parameters.write_all(&self.ops, values)
    }

    /// All parameters, in order: waits for them.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn read_parameters(&self) -> Result<Vec<Vec<f32>>> {
        self.parameters.read_all()
    }

    /// Sets the parameter at `position`.
    ///
    /// # Errors
    /// Where it has other numbers, or the GPU fails.
    pub fn write_parameter(&mut self, position: usize, values: &[f32]) -> Result<()> {
        self.parameters.write(&self.ops, position, values)
    }

    /// The parameter at `position`: waits for it.
    ///
    /// # Errors
    /// Where there is none, or the GPU fails.
    pub fn read_parameter(&self, position: usize) -> Result<Vec<f32>> {
        self.parameters.read(position)
    }

    /// The gradients of the parameters that train, in order, as the last step had them: not yet divided by its clips and its scale.
    /// Waits for them.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn read_gradients(&self) -> Result<Vec<Vec<f32>>> {
        self.parameters.read_gradients()
    }

    /// Adds `values` to the gradient of the parameter at `position`: one that the host has computed.
    ///
    /// # Errors
    /// Where it has other numbers, or the GPU fails.
    pub fn add_gradient(&mut self, position: usize, values: &[f32]) -> Result<()> {
        let gradient = self.parameters.gradient(position)?;
        let staging = self.workspace.staging.resize_vector(self.ops.allocator(), gradient.len())?;
        staging.write(values)?;
        self.ops.add(&staging, &gradient)
    }

    /// Sets the moments of all parameters, given in order.
    ///
    /// # Errors
    /// Where they have other numbers, or the GPU fails.
    pub fn write_moments<'m>(
        &mut self,
        moments: impl Iterator<Item = (&'m [f32], &'m [f32])> + Clone,
    ) -> Result<()> {
        self.parameters.write_moments(moments)
    }

    /// The moments of all parameters, in order; none for an optimizer without. Waits for them.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn read_moments(&self) -> Result<Vec<Vec<Vec<f32>>>> {
        self.parameters.read_moments()
    }

    /// Begins to bring a batch to `slot` (0 or 1), where no batch may be that is still computed with.
    ///
    /// # Errors
    /// Where the batch is none of this network's, or the GPU's memory is full, or it fails.
    pub fn send(&mut self, slot: usize, batch: &HostBatch) -> Result<()> {
        self.check_batch(batch)?;
        let allocator = self.ops.allocator();
        let to = self.slots.get_mut(slot).ok_or_else(|| no_slot(slot))?;
        self.workspace.kept = self.workspace.kept.filter(|(kept, _)| *kept != slot);
        // Where this fails, there is none.
        (to.clips, to.frames) = (0, 0);
        to.streams.resize_with(batch.streams.len(), SlotStream::default);
        let mut transfers = Vec::new();
        for (stream, &data) in to.streams.iter_mut().zip(batch.streams) {
            stream.kind = match data {
                StreamData::ImageBytes(_) => SlotKind::Bytes,
                StreamData::Images(_) => SlotKind::Images,
                StreamData::Pose(_) | StreamData::Features(_) => SlotKind::Features,
            };
            transfers.push(match data {
                StreamData::ImageBytes(bytes) => {
                    Transfer::new(&stream.bytes.resize_vector(allocator, bytes.len())?, bytes)?
                }
                StreamData::Images(numbers) | StreamData::Pose(numbers) | StreamData::Features(numbers) => {
                    Transfer::new(&stream.numbers.resize_vector(allocator, numbers.len())?, numbers)?
                }
            });
        }
        let (valid, targets) = (batch.valid, batch.targets);
        transfers.push(Transfer::new(&to.valid.resize_vector(allocator, valid.len())?, valid)?);
        transfers.push(Transfer::new(&to.targets.resize_vector(allocator, targets.len())?, targets)?);
        allocator.send(slot, &transfers)?;
        (to.clips, to.frames) = (batch.clips, batch.frames);
        Ok(())
    }

    /// That kernels will find what they read.
    fn check_batch(&self, batch: &HostBatch) -> Result<()> {
        let images = batch.clips.saturating_mul(batch.frames);
        if batch.streams.len() != self.streams.len() || batch.valid.len() != images || images == 0 {
            return Err(Error::run("a batch's streams or its frames are not the network's"));
        }
        for (stream, data) in self.streams.iter().zip(batch.streams) {
            let fits = match (&stream.backbone, data) {
                (Some(net), StreamData::ImageBytes(bytes)) => bytes.len() == images * net.image_numbers(),
                (Some(net), StreamData::Images(numbers)) => numbers.len() == images * net.image_numbers(),
                (_, StreamData::Features(numbers)) | (None, StreamData::Pose(numbers)) => {
                    numbers.len() == images * stream.width
                }
                _ => false,
            };
            if !fits {
                return Err(Error::run("a stream of a batch is not as the network takes it"));
            }
        }
        let Some(decoder) = &self.decoder else { return Ok(()) };
        let is_class = |&target: &u32| (target as usize) < decoder.classes();
        if batch.targets.len() == batch.clips && batch.targets.iter().all(is_class) {
            return Ok(());
        }
        Err(Error::run("a batch has no class for each clip"))
    }

    /// Sets all gradients to zero.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn zero_gradients(&mut self) -> Result<()> {
        self.parameters.zero_gradients()
    }

    /// Gives memory back that only a step needs: before another try with smaller chunks.
    pub fn release_workspace(&mut self) {
        self.workspace = Workspace::default();
    }

    fn slot(&self, slot: usize) -> Result<&Slot> {
        self.slots.get(slot).filter(|slot| slot.clips > 0).ok_or_else(|| no_slot(slot))
    }

    /// Adds the gradients of the sum of the clips' losses, times `scale`, for the batch in `slot`, with `chunk` images of a
    /// stream at a time (`None` = all). `pass.first_row` counts clips. Nothing waits for it.
    ///
    /// # Errors
    /// Where the decoder is on the host, or the GPU fails or its memory is full.
    pub fn forward_backward(
        &mut self,
        slot: usize,
        pass: &Pass,
        chunk: Option<usize>,
        scale: f64,
    ) -> Result<()> {
        self.encode(slot, pass, chunk, Keep::ForBackward)?;
        self.decode(slot, pass, Some(scale))?;
        self.decoder_backward(slot, pass, scale)?;
        self.encoder_backward(slot, pass, chunk)
    }

    /// Begins to encode the batch in `slot`, with `chunk` images of a stream at a time (`None` = all): [`Self::read_encoded`].
    /// Where it is kept for it, [`Self::backward_from`] may follow.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn encode(&mut self, slot: usize, pass: &Pass, chunk: Option<usize>, keep: Keep) -> Result<()> {
        self.ops.stream().receive(slot)?;
        let chunk = chunk_of(chunk, self.slot(slot)?.images());
        self.workspace.kept = (keep == Keep::ForBackward).then_some((slot, chunk));
        if keep == Keep::ForBackward {
            let trained = self.streams.iter().zip(&self.slots[slot].streams);
            let trained = trained.filter(|(stream, data)| stream.trained(data).is_some()).count();
            let all = if chunk.is_some() { trained.min(1) } else { trained };
            self.workspace.saved.resize_with(all, BackboneSaved::default);
        }
        let features = self.features(slot, pass, chunk, keep)?;
        let Self { ops, frame_encoder, workspace, slots, .. } = self;
        let cx = Context { ops, pass, samples: slots[slot].clips };
        let valid = slots[slot].valid.vector()?;
        frame_encoder.forward(&cx, &features, &valid, &mut workspace.frame_encoder).map(|_| ())
    }

    /// The encoded frames (B, T, D) that [`Self::encode`] gave last: waits for them.
    ///
    /// # Errors
    /// Where there are none, or the GPU fails.
    pub fn read_encoded(&self) -> Result<Vec<f32>> {
        self.workspace.frame_encoder.encoded()?.flat()?.to_vec()
    }

    /// Adds the gradients of the encoder's parameters, from that of the encoded frames (B, T, D), `d_encoded`, which the caller
    /// has scaled: after [`Self::encode`] for it of the same batch in the same chunks.
    ///
    /// # Errors
    /// Where that was not so, or the GPU fails or its memory is full.
    pub fn backward_from(
        &mut self,
        slot: usize,
        pass: &Pass,
        chunk: Option<usize>,
        d_encoded: &[f32],
    ) -> Result<()> {
        if self.workspace.kept != Some((slot, chunk_of(chunk, self.slot(slot)?.images()))) {
            return Err(nothing_was_kept());
        }
        self.workspace.frame_encoder.encoded()?.flat()?.write(d_encoded)?;
        self.encoder_backward(slot, pass, chunk)
    }

    /// Each stream's features (B T, …) of the batch in `slot`. What the backbones' backward pass needs is kept for it
    /// where all images go at once.
    fn features(
        &mut self,
        slot: usize,
        pass: &Pass,
        chunk: Option<usize>,
        keep: Keep,
    ) -> Result<Vec<Matrix<f32>>> {
        let Self { ops, streams, workspace, slots, .. } = self;
        let Workspace { saved, scratch, features, .. } = workspace;
        let slot = &slots[slot];
        features.resize_with(streams.len(), Buffer::default);
        let mut saved = saved.iter_mut();
        let mut all = Vec::new();
        for ((stream, data), buffer) in streams.iter().zip(&slot.streams).zip(features) {
            let Some(net) = stream.backbone.as_ref().filter(|_| data.kind != SlotKind::Features) else {
                all.push(Matrix::new(&data.numbers.vector()?, slot.images(), stream.width)?);
                continue;
            };
            let features = buffer.resize(ops.allocator(), slot.images(), stream.width)?;
            let is_kept = keep == Keep::ForBackward && chunk.is_none() && stream.trained(data).is_some();
            let mut saved = if is_kept { saved.next() } else { None };
            for part in slot.parts(chunk) {
                let pass = part.pass(pass, slot);
                let cx = Context { ops, pass: &pass, samples: part.count };
                let (pixels, features) = (part.pixels(data, net)?, part.rows(&features)?);
                net.forward(&cx, &pixels, &features, scratch, saved.as_deref_mut())?;
            }
            all.push(features);
        }
        Ok(all)
    }

    /// The backward pass of the encoder, whose output's gradient is where that output was.
    fn encoder_backward(&mut self, slot: usize, pass: &Pass, chunk: Option<usize>) -> Result<()> {
        let chunk = chunk_of(chunk, self.slot(slot)?.images());
        self.workspace.kept = None;
        let Self { ops, streams, frame_encoder, workspace, slots, .. } = self;
        let slot = &slots[slot];
        let Workspace { saved, scratch, features, d_features, frame_encoder: buffers, .. } = workspace;
        d_features.resize_with(streams.len(), Buffer::default);
        let mut gradients = Vec::new();
        for ((stream, data), buffer) in streams.iter().zip(&slot.streams).zip(d_features) {
            gradients.push(match stream.trained(data) {
                Some(_) => Some(buffer.resize(ops.allocator(), slot.images(), stream.width)?),
                None => None,
            });
        }
        let cx = Context { ops, pass, samples: slot.clips };
        frame_encoder.backward(&cx, &slot.valid.vector()?, &gradients, buffers)?;

        let mut next = 0;
        for (i, (stream, d_features)) in streams.iter().zip(&gradients).enumerate() {
            let (Some(net), Some(d_features)) = (&stream.backbone, d_features) else { continue };
            let saved = saved.get_mut(next).ok_or_else(nothing_was_kept)?;
            next += usize::from(chunk.is_none());
            for part in slot.parts(chunk) {
                let pass = part.pass(pass, slot);
                let cx = Context { ops, pass: &pass, samples: part.count };
                let pixels = part.pixels(&slot.streams[i], net)?;
                if chunk.is_some() {
                    let features = part.rows(&features[i].matrix()?)?;
                    net.forward(&cx, &pixels, &features, scratch, Some(saved))?;
                }
                net.backward(&cx, &pixels, &part.rows(d_features)?, scratch, saved)?;
            }
        }
        Ok(())
    }

    /// The logits of the encoded frames, and the losses, with their gradient where there is a `scale`.
    fn decode(&mut self, slot: usize, pass: &Pass, scale: Option<f64>) -> Result<Matrix<f32>> {
        let Self { ops, decoder, workspace, slots, losses, .. } = self;
        let (slot, decoder) = (&slots[slot], decoder.as_ref().ok_or_else(decoder_is_elsewhere)?);
        let cx = Context { ops, pass, samples: slot.clips };
        let encoded = workspace.frame_encoder.encoded()?;
        let (valid, targets) = (slot.valid.vector()?, slot.targets.vector()?);
        let labels = Labels { valid: &valid, targets: &targets, scale };
        decoder.forward(&cx, &encoded, labels, &mut workspace.decoder, losses)
    }

    fn decoder_backward(&mut self, slot: usize, pass: &Pass, scale: f64) -> Result<()> {
        let Self { ops, decoder, workspace, slots, .. } = self;
        let (slot, decoder) = (&slots[slot], decoder.as_ref().ok_or_else(decoder_is_elsewhere)?);
        let cx = Context { ops, pass, samples: slot.clips };
        let (valid, targets) = (slot.valid.vector()?, slot.targets.vector()?);
        let labels = Labels { valid: &valid, targets: &targets, scale: Some(scale) };
        let d_encoded = workspace.frame_encoder.encoded()?;
        decoder.backward(&cx, labels, &d_encoded, &mut workspace.decoder)
    }

    /// What the batch gave that was computed last: waits for it.
    ///
    /// # Errors
    /// Where there was none, or the GPU fails.
    pub fn scores(&self) -> Result<Scores> {
        let losses = self.losses.losses.vector()?.to_vec()?;
        let correct = self.losses.correct.vector()?.to_vec()?;
        let loss = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len().max(1) as f64;
        Ok(Scores { loss, correct: correct.iter().filter(|&&correct| correct != 0).count() })
    }

    /// The features (N, D) that the backbone of the stream at `stream` makes of `images` images, `chunk` of them at a time,
    /// without dropout: waits for them.
    ///
    /// # Errors
    /// Where the network has no such backbone, or the images are none of its; or the GPU fails or its memory is full.
    pub fn stream_features(
        &mut self,
        stream: usize,
        data: StreamData,
        images: usize,
        chunk: Option<usize>,
    ) -> Result<Vec<f32>> {
        let Self { ops, streams, workspace, .. } = self;
        workspace.kept = None;
        let layers = streams.get(stream).and_then(|layers| Some((layers.backbone.as_ref()?, layers.width)));
        let (net, width) = layers.ok_or_else(|| Error::run(format!("stream {stream} has no backbone")))?;
        let (allocator, numbers) = (ops.allocator(), images * net.image_numbers());
        let mut to = SlotStream::default();
        match data {
            StreamData::ImageBytes(bytes) if bytes.len() == numbers => {
                to.kind = SlotKind::Bytes;
                to.bytes.resize_vector(allocator, numbers)?.write(bytes)?;
            }
            StreamData::Images(floats) if floats.len() == numbers => {
                to.kind = SlotKind::Images;
                to.numbers.resize_vector(allocator, numbers)?.write(floats)?;
            }
            _ => return Err(Error::run("these are no images of the backbone's size")),
        }
        let slot = Slot { clips: images, frames: 1, ..Slot::default() };
        workspace.features.resize_with(streams.len(), Buffer::default);
        let buffer = workspace.features.get_mut(stream).ok_or_else(|| no_slot(stream))?;
        let features = buffer.resize(allocator, images, width)?;
        for part in slot.parts(chunk_of(chunk, images)) {
            let cx = Context { ops, pass: &Pass::EVALUATION, samples: part.count };
            let (pixels, features) = (part.pixels(&to, net)?, part.rows(&features)?);
            net.forward(&cx, &pixels, &features, &mut workspace.scratch, None)?;
        }
        features.flat()?.to_vec()
    }

    /// Updates the parameters of each group by its rule and by gradients times `factor`, clipped to `max_norm`, unless a number is not finite. Nothing waits
    /// for it: [`Self::update_report`].
    ///
    /// # Errors
    /// Where Adam has no moments, or the GPU fails.
    pub fn update(&mut self, rules: &[GpuUpdateRule], factor: f64, max_norm: Option<f64>) -> Result<()> {
        let losses = match &self.decoder {
            Some(_) => Some(self.losses.losses.vector()?),
            None => None,
        };
        let gradients = self.parameters.trained_gradients()?;
        self.ops.check_step(&gradients, losses.as_ref(), factor, max_norm, &self.verdict)?;
        let updates = self.parameters.updates(&self.verdict)?;
        for (update, rule) in updates.iter().zip(rules) {
            let Some(update) = update else { continue };
            match *rule {
                GpuUpdateRule::Sgd { lr, l2, momentum } => self.ops.sgd(update, lr, l2, momentum)?,
                GpuUpdateRule::Adam(adam) => self.ops.adam(update, adam)?,
            }
        }
        Ok(())
    }

    /// What became of the last [`Self::update`]: waits for it.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn update_report(&self) -> Result<UpdateReport> {
        let verdict = self.verdict.to_vec()?.first().copied().unwrap_or_default();
        let Verdict { loss, norm, factor, sound } = verdict;
        let loss = self.decoder.is_some().then_some(loss);
        Ok(UpdateReport { loss, norm, factor, finite: sound != 0 })
    }

    /// Begins to compute the batch in `slot`, without dropout: [`Self::scores`].
    ///
    /// # Errors
    /// Where the decoder is on the host, or the GPU fails or its memory is full.
    pub fn evaluate(&mut self, slot: usize, chunk: Option<usize>) -> Result<()> {
        self.forward(slot, chunk).map(|_| ())
    }

    /// The logits (B, V) of the batch in `slot`, without dropout: waits for them.
    ///
    /// # Errors
    /// Where the decoder is on the host, or the GPU fails or its memory is full.
    pub fn logits(&mut self, slot: usize, chunk: Option<usize>) -> Result<Vec<f32>> {
        self.forward(slot, chunk)?.flat()?.to_vec()
    }

    fn forward(&mut self, slot: usize, chunk: Option<usize>) -> Result<Matrix<f32>> {
        self.encode(slot, &Pass::EVALUATION, chunk, Keep::Nothing)?;
        self.decode(slot, &Pass::EVALUATION, None)
    }

    /// What steps and evaluations of `clips` clips of `frames` frames, with `chunk` images of a stream at a time, take beside
    /// parameters and batches. `used` tells how much of the stream's memory is in use.
    pub(super) fn step_memory(
        &mut self,
        clips: usize,
        frames: usize,
        chunk: Option<usize>,
        used: impl Fn() -> usize,
    ) -> Result<StepMemory> {
        self.reserve_slot(clips, frames)?;
        let before = used();
        let pass = Pass::training(0, 0);
        if self.decoder.is_some() {
            self.forward_backward(0, &pass, chunk, 1.0)?;
        } else {
            self.encode(0, &pass, chunk, Keep::ForBackward)?;
            self.encoder_backward(0, &pass, chunk)?;
        }
        // An evaluation, between steps, keeps what it computes where no step keeps it.
        self.encode(0, &Pass::EVALUATION, chunk, Keep::Nothing)?;
        let all = used() - before;
        (self.workspace.saved, self.workspace.scratch) = Default::default();
        let head = used() - before;
        Ok(StepMemory { backbones: all - head, head })
    }

    /// Memory for a batch of bytes in slot 0.
    fn reserve_slot(&mut self, clips: usize, frames: usize) -> Result<()> {
        let (allocator, images) = (self.ops.allocator(), clips.saturating_mul(frames));
        let [slot, _] = &mut self.slots;
        (slot.clips, slot.frames) = (clips, frames);
        slot.streams.clear();
        for stream in &self.streams {
            let kind = if stream.backbone.is_some() { SlotKind::Bytes } else { SlotKind::Features };
            let mut to = SlotStream { kind, ..SlotStream::default() };
            match &stream.backbone {
                Some(net) => drop(to.bytes.resize(allocator, images, net.image_numbers())?),
                None => drop(to.numbers.resize(allocator, images, stream.width)?),
            }
            slot.streams.push(to);
        }
        slot.valid.resize_vector(allocator, images)?;
        slot.targets.resize_vector(allocator, clips)?;
        Ok(())
    }
}

fn no_slot(slot: usize) -> Error {
    Error::run(format!("there is no batch in slot {slot}"))
}

fn nothing_was_kept() -> Error {
    Error::run("nothing was kept for a backward pass")
}

fn decoder_is_elsewhere() -> Error {
    Error::run("the decoder is on the host")
}

/// Images of a stream at a time, of `images`; `None` = all.
fn chunk_of(chunk: Option<usize>, images: usize) -> Option<usize> {
    Some(chunk.unwrap_or(MOST_IMAGES).clamp(1, MOST_IMAGES)).filter(|&chunk| chunk < images)
}

/// Images of a stream that go through its backbone together.
#[derive(Clone, Copy)]
struct Part {
    start: usize,
    count: usize,
}

impl Slot {
    /// B T.
    fn images(&self) -> usize {
        self.clips * self.frames
    }

    /// The images, `chunk` at a time.
    fn parts(&self, chunk: Option<usize>) -> impl Iterator<Item = Part> {
        let all = self.images();
        let size = chunk.unwrap_or(all).max(1);
        (0..all).step_by(size).map(move |start| Part { start, count: size.min(all - start) })
    }
}

impl Part {
    /// The pass of these images, of one that counts clips.
    fn pass(self, pass: &Pass, slot: &Slot) -> Pass {
        Pass { first_row: pass.first_row * slot.frames + self.start, ..*pass }
    }

    fn pixels(self, data: &SlotStream, net: &Backbone) -> Result<Pixels> {
        let pixels = if data.kind == SlotKind::Bytes {
            Pixels::Bytes(data.bytes.vector()?)
        } else {
            Pixels::Normalised(data.numbers.vector()?)
        };
        let size = net.image_numbers();
        pixels.slice(self.start * size..(self.start + self.count) * size)
    }

    /// Their rows of a matrix with a row an image.
    fn rows(self, all: &Matrix<f32>) -> Result<Matrix<f32>> {
        all.row_range(self.start..self.start + self.count)
    }
}
