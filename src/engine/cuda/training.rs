//! The GPU's engine: the network there up to the loss of the stub decoder, any other decoder as Candle's graph on the host.

use std::rc::Rc;

use candle_core::{Device, Tensor, Var};

use super::layers::Keep;
use super::{
    Adam, Allocator, GpuDevice, GpuNetwork, GpuStream, GpuUpdateRule, HostBatch, NetworkSpec, StepMemory,
    StreamData,
};
use crate::config::streams::{STREAMS, StreamKind};
use crate::config::{Chunk, Decoding, EngineKind, Experiment};
use crate::data::{Batch, Pixels};
use crate::engine::batch::{Placed, frames, targets};
use crate::engine::chunks::Chunks;
use crate::engine::cpu::operations::FusedOperations;
use crate::engine::cpu::precision::F32;
use crate::engine::cpu::vit::UNIT;
use crate::engine::graph::lost;
use crate::engine::host::Host;
use crate::engine::memory::{self, ChunkSizes, Memory, Plan};
use crate::engine::seam::{End, Engine, Evaluating, Outcome, Pending, Step};
use crate::error::ErrorKind;
use crate::model::decoder::Fused;
use crate::model::{DecoderKind, Encoded, Hypothesis, Score};
use crate::nn::{ActivationDtype, Blueprint, Pass};
use crate::optim::{self, LossScale, Moments};
use crate::{Error, Result};

/// A network in training on a GPU.
pub struct Cuda {
    host: Host,
    stream: Rc<dyn GpuStream>,
    network: GpuNetwork,
    /// Whether the decoder and its loss are computed on the GPU.
    decoder_on_gpu: bool,
    /// Whether the host's copies of the decoder's parameters are those of the GPU.
    decoder_is_current: bool,
    plan: Plan,
    chunks: Chunks,
    scale: Option<LossScale>,
    /// Clips of a whole batch: the gradients of a batch's clips are added up, and would be so many times larger.
    batch_size: usize,
    /// How many clips and frames the batch in each slot has.
    sizes: [(usize, usize); 2],
    next: usize,
    /// The mean loss of the step whose update has begun, where the host knows it.
    loss: Option<f64>,
    /// What the host has of the evaluation that has begun.
    score: Option<Score>,
}

impl Cuda {
    /// At the start of an experiment, on `device`, with activations of `dtype`.
    ///
    /// # Errors
    /// Where the kernels do not compile, or the GPU's memory is full; kind `Config` where the experiment asks for fused
    /// blocks alone and there are none for its decoder.
    pub fn new(
        c: &Experiment,
        decoder: &dyn DecoderKind,
        blueprint: &Blueprint,
        (device, dtype): (&dyn GpuDevice, ActivationDtype),
    ) -> Result<Self> {
        let decoder_on_gpu = decoder.fused() != Fused::Nothing;
        if !decoder_on_gpu && c.run.engine == EngineKind::Fused {
            let what =
                format!("run.engine = \"fused\" has no blocks for the decoder {:?} on a GPU", decoder.name());
            return Err(Error::config(what).hint("run.engine = \"auto\" computes the decoder on the host"));
        }
        let host = Host::new(c, decoder, Rc::new(FusedOperations::<F32>::default()))?;
        let spec = NetworkSpec {
            blueprint,
            model: &c.model,
            streams: STREAMS,
            decoder: decoder.fused(),
            groups: host.optimizer.groups(),
            moments: optim::moments(&c.optimization),
        };
        let plan = plan(c, &spec, dtype, device.free_memory());
        let stream = device.open(dtype, &super::head_widths(&spec)?)?;
        let mut network = GpuNetwork::new(&Allocator::new(Rc::clone(&stream), dtype), &spec)?;
        network.write_parameters(&values(&host)?)?;
        let may_shrink = matches!(c.optimization.frames_per_chunk, Chunk::Auto);
        Ok(Self {
            stream,
            network,
            decoder_on_gpu,
            decoder_is_current: true,
            chunks: Chunks::new(plan.chunk).or_fewer(may_shrink),
            plan,
            scale: (dtype == ActivationDtype::F16).then(LossScale::default),
            batch_size: c.data.batch_size,
            sizes: [(0, 0); 2],
            next: 0,
            loss: None,
            score: None,
            host,
        })
    }

    /// What the gradient of each clip's loss is multiplied by.
    fn factor(&self) -> f64 {
        self.scale.map_or(1.0, |scale| scale.scale) / self.batch_size as f64
    }

    /// The slot that a batch was sent to, and how many images of a stream it has.
    fn sent(&mut self, batch: &mut Placed) -> Result<(usize, usize)> {
        self.send(batch)?;
        let slot = batch.slot.ok_or_else(|| Error::run("a batch without clips is not computed with"))?;
        Ok((slot, self.sizes[slot].0 * self.sizes[slot].1))
    }

    /// Sets the host's copies of the decoder's parameters.
    fn pull_decoder(&mut self) -> Result<()> {
        if self.decoder_is_current {
            return Ok(());
        }
        let all: Vec<&Var> = self.host.parameters().iter().map(|(_, var)| var).collect();
        for &position in &self.host.decoder {
            set(all[position], self.network.read_parameter(position)?)?;
        }
        self.decoder_is_current = true;
        Ok(())
    }

    /// One try of a batch's forward and backward pass, with the decoder on the host: its mean loss and weight.
    fn train_decoder_on_host(
        &mut self,
        slot: usize,
        batch: &Placed,
        pass: &Pass,
        chunk: Option<usize>,
    ) -> Result<(f64, usize)> {
        self.network.encode(slot, pass, chunk, Keep::ForBackward)?;
        let encoded = self.encoded(&batch.batch)?;
        let decoder = &self.host.network;
        let decoded = decoder.decoder().train(
            Encoded { frames: &encoded, pad_mask: &frames(&batch.batch, &Device::Cpu)?.pad_mask },
            &targets(batch, &Device::Cpu)?,
            pass,
            &decoder.trainable_of("decoder"),
        )?;
        // Gradients add up over what was predicted: the mean's counts as often as that was much.
        let factor = self.factor() * decoded.weight as f64;
        self.network.backward_from(slot, pass, chunk, &scaled(&decoded.d_frames, factor)?)?;
        for (&position, gradient) in self.host.decoder.iter().zip((decoded.gradients)()?) {
            self.network.add_gradient(position, &scaled(&gradient, factor)?)?;
        }
        Ok((decoded.loss, decoded.weight))
    }

    /// The frames that were encoded last: (B, T, D).
    fn encoded(&self, batch: &Batch) -> Result<Tensor> {
        let values = self.network.read_encoded()?;
        Ok(Tensor::from_vec(values, (batch.clips.len(), batch.sizes.frames, ()), &Device::Cpu)?)
    }

    fn encode_batch(&mut self, batch: &mut Placed) -> Result<Tensor> {
        let (slot, images) = self.sent(batch)?;
        let Self { network, chunks, .. } = self;
        chunks.run(images, |chunk| {
            or_release(network, |network| network.encode(slot, &Pass::EVALUATION, chunk, Keep::Nothing))
        })?;
        self.encoded(&batch.batch)
    }
}

impl Engine for Cuda {
    fn send(&mut self, batch: &mut Placed) -> Result<()> {
        if batch.slot.is_some() || batch.clips() == 0 {
            return Ok(());
        }
        let slot = self.next;
        self.next = 1 - slot;
        let of = &batch.batch;
        self.sizes[slot] = (of.clips.len(), of.sizes.frames);
        let valid: Vec<u8> = of.pad_mask.iter().map(|&valid| u8::from(valid)).collect();
        // The stub's: a class each.
        let targets: Vec<u32> = if self.decoder_on_gpu { batch.targets.concat() } else { Vec::new() };
        let (clips, frames) = self.sizes[slot];
        let host = HostBatch { streams: &streams(of)?, valid: &valid, targets: &targets, clips, frames };
        match self.network.send(slot, &host) {
            // The step before may have filled the memory. The next one finds a chunk for what is left.
            Err(error) if error.kind == ErrorKind::Memory => {
                self.network.release_workspace();
                self.network.send(slot, &host)?;
            }
            sent => sent?,
        }
        batch.slot = Some(slot);
        Ok(())
    }

    fn sends_ahead(&self) -> bool {
        true
    }

    /// Nothing waits for a step of one batch whose loss is computed on the GPU: it is known with the outcome.
    fn train(&mut self, batch: &mut Placed, pass: &Pass, step: &mut Step) -> Result<()> {
        let (slot, images) = self.sent(batch)?;
        let factor = self.factor();
        // Another try of a later batch would count what the first has added twice.
        let chunks = if step.is_empty() { self.chunks.clone() } else { self.chunks.clone().or_fewer(false) };
        let first = step.is_empty();
        if self.decoder_on_gpu {
            let network = &mut self.network;
            chunks.run(images, |chunk| {
                if first {
                    network.zero_gradients()?;
                }
                or_release(network, |network| network.forward_backward(slot, pass, chunk, factor))
            })?;
            let loss = if step.is_single() { None } else { Some(self.network.scores()?.loss) };
            step.add(batch.clips(), batch.clips(), loss);
        } else {
            self.pull_decoder()?;
            let (loss, weight) = chunks.run(images, |chunk| {
                if first {
                    self.network.zero_gradients()?;
                }
                let done = self.train_decoder_on_host(slot, batch, pass, chunk);
                done.inspect_err(|_| self.network.release_workspace())
            })?;
            step.add(batch.clips(), weight, Some(loss));
        }
        self.chunks.restore(chunks.get());
        Ok(())
    }

    fn update(&mut self, step: Step, rates: &[f64], max_norm: Option<f64>) -> Result<Pending> {
        self.loss = step.loss();
        let finite = self.loss.is_none_or(f64::is_finite);
        // What is not a number makes the whole gradient none, and nothing is updated.
        let share = if finite { 1.0 / (self.factor() * step.weight() as f64) } else { f64::NAN };
        let rules: Vec<GpuUpdateRule> = self.host.optimizer.next_rules(rates).into_iter().map(rule).collect();
        self.network.update(&rules, share, max_norm)?;
        self.decoder_is_current = false;
        Ok(Pending(()))
    }

    fn outcome(&mut self, _: Pending) -> Result<Outcome> {
        let report = self.network.update_report()?;
        let loss = report.loss.or(self.loss).unwrap_or(f64::NAN);
        let end = match (&mut self.scale, report.finite) {
            (None, true) => End::Updated,
            (Some(scale), true) => {
                scale.keep();
                End::Updated
            }
            (Some(scale), false) if loss.is_finite() => {
                if scale.back_off() {
                    End::Rescaled(scale.scale)
                } else {
                    End::NotFinite
                }
            }
            (_, false) => End::NotFinite,
        };
        if end == End::Updated {
            self.host.optimizer.count_step();
        }
        Ok(Outcome { loss, norm: report.norm, end })
    }

    fn evaluate(&mut self, batch: &mut Placed) -> Result<Evaluating> {
        if self.decoder_on_gpu {
            let (slot, images) = self.sent(batch)?;
            let Self { network, chunks, .. } = self;
            chunks.run(images, |chunk| or_release(network, |network| network.evaluate(slot, chunk)))?;
            self.score = Some(Score { loss: f64::NAN, weight: batch.clips(), correct: 0 });
            return Ok(Evaluating(()));
        }
        self.pull_decoder()?;
        let encoded = self.encode_batch(batch)?;
        let pad_mask = &frames(&batch.batch, &Device::Cpu)?.pad_mask;
        let decoder = self.host.evaluator.decoder();
        let of = Encoded { frames: &encoded, pad_mask };
        self.score = Some(decoder.score(of, &targets(batch, &Device::Cpu)?)?);
        batch.encoded = Some(encoded);
        Ok(Evaluating(()))
    }

    fn score(&mut self, _: Evaluating) -> Result<Score> {
        let known = self.score.take().ok_or_else(|| lost("score"))?;
        if !self.decoder_on_gpu {
            return Ok(known);
        }
        let scores = self.network.scores()?;
        Ok(Score { loss: scores.loss, correct: scores.correct, ..known })
    }

    fn encode(&mut self, batch: &mut Placed) -> Result<Tensor> {
        batch.encoded.clone().map_or_else(|| self.encode_batch(batch), Ok)
    }

    fn features(&mut self, stream: usize, pixels: &Pixels, count: usize, _: usize) -> Result<Vec<f32>> {
        let data = images_of(pixels);
        let Self { network, chunks, .. } = self;
        chunks.run(count, |chunk| {
            or_release(network, |network| network.stream_features(stream, data, count, chunk))
        })
    }

    fn translate(&mut self, batch: &mut Placed, c: &Decoding) -> Result<Vec<Vec<Hypothesis>>> {
        self.pull_decoder()?;
        let frames = self.encode(batch)?;
        self.host.translate(&frames, batch, c)
    }

    fn gradients(&self, step: &Step) -> Result<Vec<Vec<f32>>> {
        let mut all = self.network.read_gradients()?;
        let share = (1.0 / (self.factor() * step.weight() as f64)) as f32;
        all.iter_mut().flatten().for_each(|gradient| *gradient *= share);
        Ok(all)
    }

    fn host(&self) -> &Host {
        &self.host
    }

    fn host_mut(&mut self) -> &mut Host {
        &mut self.host
    }

    fn pull(&mut self) -> Result<()> {
        for ((_, var), values) in self.host.parameters().iter().zip(self.network.read_parameters()?) {
            set(var, values)?;
        }
        self.decoder_is_current = true;
        let mut moments = self.network.read_moments()?.into_iter();
        if let Some(first) = moments.next() {
            let second = moments.next().unwrap_or_else(|| vec![Vec::new(); first.len()]);
            let pairs = first.into_iter().zip(second);
            let moments = pairs.map(|(first, second)| Moments { first, second }).collect();
            let optimizer = &mut self.host.optimizer;
            optimizer.restore(optimizer.steps(), moments);
        }
        Ok(())
    }

    fn push(&mut self) -> Result<()> {
        self.network.write_parameters(&values(&self.host)?)?;
        self.decoder_is_current = true;
        let moments = self.host.optimizer.moments().iter();
        self.network.write_moments(moments.map(|m| (m.first.as_slice(), m.second.as_slice())))
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn chunk(&self) -> Option<usize> {
        self.chunks.get()
    }

    fn chunk_to_save(&self) -> Option<usize> {
        Some(self.chunks.get().unwrap_or(0))
    }

    fn restore_chunk(&mut self, saved: usize) {
        self.chunks.restore((saved > 0).then_some(saved));
        self.plan.chunk = self.chunks.get();
    }

    fn activation_dtype(&self) -> ActivationDtype {
        self.network.dtype()
    }

    fn peak_gpu_memory(&self) -> Option<usize> {
        Some(self.stream.peak_memory())
    }

    fn loss_scale(&self) -> Option<LossScale> {
        self.scale
    }

    fn restore_loss_scale(&mut self, scale: LossScale) {
        if let Some(now) = &mut self.scale {
            *now = scale;
        }
    }
}

/// With recomputation, more frames to a chunk than this gain nothing: a GPU's cores want many images at a time.
const LARGEST_USEFUL_CHUNK: usize = 32 * UNIT;

/// What a step takes on a GPU with `free` bytes, and the chunk that it is computed in.
fn plan(c: &Experiment, spec: &NetworkSpec, dtype: ActivationDtype, free: Option<usize>) -> Plan {
    let copy = if dtype == ActivationDtype::F32 { 0 } else { dtype.bytes() };
    let copies = spec.blueprint.elements("").saturating_mul(copy);
    let sizes = ChunkSizes { unit: UNIT, largest: LARGEST_USEFUL_CHUNK };
    Plan::choose(c, free.map(|bytes| bytes / 10 * 9), sizes, |chunk| {
        let step = super::step_memory(spec, dtype, c.data.batch_size, c.model.sequence_length, chunk);
        // What does not fit a kernel's arguments fits no GPU.
        let StepMemory { backbones, head } =
            step.unwrap_or(StepMemory { backbones: usize::MAX, head: usize::MAX });
        Memory {
            parameters: memory::parameters(c, spec.blueprint, 0).saturating_add(copies),
            backbones,
            head,
            batches: memory::batch_bytes(c).saturating_mul(2),
        }
    })
}

/// Where it fails, gives back what memory it can, for another try.
fn or_release<T>(network: &mut GpuNetwork, work: impl FnOnce(&mut GpuNetwork) -> Result<T>) -> Result<T> {
    let done = work(network);
    if done.is_err() {
        network.release_workspace();
    }
    done
}

/// A batch's streams, in the network's order.
fn streams(batch: &Batch) -> Result<Vec<StreamData<'_>>> {
    let (mut images, mut poses) = (batch.images.iter(), [batch.pose.as_slice()].into_iter());
    let stream = |stream: &crate::config::Stream| {
        let data = match stream.kind {
            StreamKind::Images { .. } => images.next().map(images_of),
            StreamKind::Pose => poses.next().map(StreamData::Pose),
        };
        data.ok_or_else(|| Error::run(format!("the batch has no {}", stream.name)))
    };
    STREAMS.iter().map(stream).collect()
}

fn images_of(pixels: &Pixels) -> StreamData<'_> {
    match pixels {
        Pixels::Bytes(bytes) => StreamData::ImageBytes(bytes),
        Pixels::Normalised(floats) => StreamData::Images(floats),
        Pixels::Features(features) => StreamData::Features(features),
    }
}

fn values(host: &Host) -> Result<Vec<Vec<f32>>> {
    host.parameters().iter().map(|(_, var)| Ok(var.flatten_all()?.to_vec1()?)).collect()
}

fn set(var: &Var, values: Vec<f32>) -> Result<()> {
    Ok(var.set(&Tensor::from_vec(values, var.dims(), var.device())?)?)
}

fn scaled(tensor: &Tensor, factor: f64) -> Result<Vec<f32>> {
    Ok((tensor * factor)?.flatten_all()?.to_vec1()?)
}

fn rule(rule: optim::UpdateRule) -> GpuUpdateRule {
    match rule {
        optim::UpdateRule::Adam { decay, l2, step_size, root_correction, rest1, beta2, rest2, eps } => {
            let rule = Adam { decay, l2, step_size, root_correction, rest1, beta2, rest2, eps };
            GpuUpdateRule::Adam(rule)
        }
        optim::UpdateRule::Sgd { lr, l2, momentum } => GpuUpdateRule::Sgd { lr, l2, momentum },
    }
}
