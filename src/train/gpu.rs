//! Training on a GPU: a [`GpuNetwork`] with the loop's rules around it, for chunks, scaled gradients and batches ahead.

use std::rc::Rc;

use candle_core::{CpuStorage, Storage, Tensor};

use crate::config::{Experiment, OptimizerKind};
use crate::error::Kind;
use crate::model::Classifier;
use crate::nn::gpu::{
    self, Allocator, DecoderPlacement, GpuDevice, GpuNetwork, GpuStream, HostBatch, NetworkSpec, STREAMS,
    StepMemory, StreamData,
};
use crate::nn::{ActivationDtype, Blueprint, Images, Parameters, Pass};
use crate::train::accelerator::{Accelerator, End, Outcome};
use crate::train::feed::TensorBatch;
use crate::train::loss_scale::LossScale;
use crate::train::network::Score;
use crate::train::optimizer::{BETA1, BETA2, EPS, Moments, Optimizer, Rule};
use crate::train::{Chunks, Network};
use crate::{Error, Result};

/// A network in training on a GPU.
pub struct Gpu {
    stream: Rc<dyn GpuStream>,
    on_gpu: GpuNetwork,
    chunks: Chunks,
    scale: Option<LossScale>,
    /// Clips of a whole batch: the gradients of a batch's clips are added up, and would be so many times larger.
    batch_size: usize,
    /// How many clips and frames the batch in each slot has.
    sizes: [(usize, usize); 2],
    next: usize,
}

impl Gpu {
    /// `network` on `device`, its activations of `dtype`.
    ///
    /// # Errors
    /// Where the kernels do not compile, or the GPU's memory is full.
    pub fn new(
        c: &Experiment,
        device: &dyn GpuDevice,
        dtype: ActivationDtype,
        network: &Network,
        chunks: Chunks,
    ) -> Result<Self> {
        let blueprint = Classifier::blueprint(&c.model)?;
        let spec = spec(c, &blueprint);
        let stream = device.open(dtype, &gpu::head_widths(&spec)?)?;
        let mut on_gpu = GpuNetwork::new(&Allocator::new(Rc::clone(&stream), dtype), &spec)?;
        on_gpu.write_parameters(&values(network.parameters())?)?;
        let scale = (dtype == ActivationDtype::F16).then(LossScale::default);
        Ok(Self { stream, on_gpu, chunks, scale, batch_size: c.data.batch_size, sizes: [(0, 0); 2], next: 0 })
    }

    /// What the gradient of each clip's loss is multiplied by.
    fn factor(&self) -> f64 {
        self.scale.map_or(1.0, |scale| scale.scale) / self.batch_size as f64
    }

    fn images(&self, slot: usize) -> usize {
        self.sizes[slot].0 * self.sizes[slot].1
    }
}

/// Where it fails, gives back what memory it can, for another try.
fn or_release<T>(on_gpu: &mut GpuNetwork, work: impl FnOnce(&mut GpuNetwork) -> Result<T>) -> Result<T> {
    let done = work(on_gpu);
    if done.is_err() {
        on_gpu.release_workspace();
    }
    done
}

/// What the network of an experiment is made of.
fn spec<'a>(c: &'a Experiment, blueprint: &'a Blueprint) -> NetworkSpec<'a> {
    NetworkSpec {
        blueprint,
        model: &c.model,
        streams: &STREAMS,
        decoder: DecoderPlacement::Gpu { label_smoothing: c.optimization.label_smoothing },
        moments: c.optimization.optimizer != OptimizerKind::Sgd,
    }
}

/// What a step of `clips` clips takes of a GPU's memory, with `chunk` images of a stream at a time. Where it cannot be told,
/// as much as there may be: sizes that are too large for any GPU.
#[must_use]
pub fn step_memory(c: &Experiment, clips: usize, chunk: Option<usize>, dtype: ActivationDtype) -> StepMemory {
    let of = |blueprint: &Blueprint| {
        gpu::step_memory(&spec(c, blueprint), dtype, clips, c.model.sequence_length, chunk)
    };
    let memory = Classifier::blueprint(&c.model).map_err(Error::from).and_then(|blueprint| of(&blueprint));
    memory.unwrap_or(StepMemory { backbones: usize::MAX / 4, head: usize::MAX / 4 })
}

fn values(parameters: &Parameters) -> Result<Vec<Vec<f32>>> {
    parameters.iter().map(|(_, var)| Ok(var.flatten_all()?.to_vec1()?)).collect()
}

impl Accelerator for Gpu {
    fn send(&mut self, batch: &TensorBatch) -> Result<usize> {
        let slot = self.next;
        self.next = 1 - slot;
        self.sizes[slot] = batch.inputs.pad_mask.dims2()?;
        let (clips, frames) = self.sizes[slot];
        let images = batch.inputs.images.each_ref().map(|(Images::Bytes(x) | Images::Normalised(x))| x);
        let normalised = matches!(batch.inputs.images[0], Images::Normalised(_));
        let others = [&batch.inputs.pose, &batch.inputs.pad_mask, &batch.targets];
        let tensors: Vec<&Tensor> = images.into_iter().chain(others).collect();
        with_bytes(&tensors, |bytes| {
            let [images @ .., pose, valid, targets] = bytes else {
                return Err(Error::run("a batch has images, poses, a mask and targets"));
            };
            let image = |&bytes| {
                if normalised {
                    StreamData::Images(bytemuck::cast_slice(bytes))
                } else {
                    StreamData::ImageBytes(bytes)
                }
            };
            let pose = StreamData::Pose(bytemuck::cast_slice(pose));
            let streams: Vec<StreamData> = images.iter().map(image).chain([pose]).collect();
            let (streams, targets) = (streams.as_slice(), bytemuck::cast_slice(targets));
            let batch = HostBatch { streams, valid, targets, clips, frames };
            match self.on_gpu.send(slot, &batch) {
                // The step before may have filled the memory. The next one finds a chunk for what is left.
                Err(error) if error.kind == Kind::Memory => {
                    self.on_gpu.release_workspace();
                    self.on_gpu.send(slot, &batch)
                }
                sent => sent,
            }
        })?;
        Ok(slot)
    }

    fn forward_backward(&mut self, slot: usize, pass: &Pass, first: bool, wait: bool) -> Result<Option<f64>> {
        let (factor, images) = (self.factor(), self.images(slot));
        let Self { on_gpu, chunks, .. } = self;
        if first {
            chunks.run(images, |chunk| {
                on_gpu.zero_gradients()?;
                or_release(on_gpu, |on_gpu| on_gpu.forward_backward(slot, pass, chunk, factor))
            })?;
        } else {
            // Another try would count what the first has added twice.
            chunks
                .clone()
                .or_fewer(false)
                .run(images, |chunk| on_gpu.forward_backward(slot, pass, chunk, factor))?;
        }
        if wait { Ok(Some(on_gpu.scores()?.loss)) } else { Ok(None) }
    }

    fn update(&mut self, rule: Rule, clips: usize, most: Option<f64>, sound: bool) -> Result<()> {
        // What is not a number makes the whole gradient none, and nothing is updated.
        let share = if sound { 1.0 / (self.factor() * clips as f64) } else { f64::NAN };
        self.on_gpu.update(gpu_rule(rule), share, most)
    }

    fn outcome(&mut self) -> Result<Outcome> {
        let report = self.on_gpu.update_report()?;
        let loss = report.loss.unwrap_or_default();
        let loss_is_finite = loss.is_finite();
        let end = match (&mut self.scale, report.finite) {
            (None, true) => End::Updated,
            (Some(scale), true) => {
                scale.keep();
                End::Updated
            }
            (Some(scale), false) if loss_is_finite => {
                if scale.back_off() {
                    End::Rescaled(scale.scale)
                } else {
                    End::NotFinite
                }
            }
            (_, false) => End::NotFinite,
        };
        Ok(Outcome { loss, norm: report.norm, end })
    }

    fn evaluate(&mut self, slot: usize) -> Result<()> {
        let images = self.images(slot);
        let Self { on_gpu, chunks, .. } = self;
        chunks.run(images, |chunk| or_release(on_gpu, |on_gpu| on_gpu.evaluate(slot, chunk)))
    }

    fn score(&mut self) -> Result<Score> {
        let scores = self.on_gpu.scores()?;
        Ok(Score { loss: scores.loss, correct: scores.correct })
    }

    fn logits(&mut self, slot: usize) -> Result<Vec<f32>> {
        let images = self.images(slot);
        let Self { on_gpu, chunks, .. } = self;
        chunks.run(images, |chunk| or_release(on_gpu, |on_gpu| on_gpu.logits(slot, chunk)))
    }

    fn gradients(&self) -> Result<Vec<Vec<f32>>> {
        let mut all = self.on_gpu.read_gradients()?;
        let factor = (1.0 / self.factor()) as f32;
        all.iter_mut().flatten().for_each(|gradient| *gradient *= factor);
        Ok(all)
    }

    fn chunk(&self) -> Option<usize> {
        self.chunks.get()
    }

    fn restore_chunk(&mut self, chunk: Option<usize>) {
        self.chunks.restore(chunk);
    }

    fn stored(&self) -> ActivationDtype {
        self.on_gpu.dtype()
    }

    fn peak_memory(&self) -> usize {
        self.stream.peak_memory()
    }

    fn loss_scale(&self) -> Option<LossScale> {
        self.scale
    }

    fn restore_loss_scale(&mut self, scale: LossScale) {
        if let Some(now) = &mut self.scale {
            *now = scale;
        }
    }

    fn write(&mut self, parameters: &Parameters, optimizer: &Optimizer) -> Result<()> {
        self.on_gpu.write_parameters(&values(parameters)?)?;
        let moments = optimizer.moments().iter().map(|m| (m.exp_avg.as_slice(), m.exp_avg_sq.as_slice()));
        self.on_gpu.write_moments(moments)
    }

    fn read(&mut self, parameters: &Parameters, optimizer: &mut Optimizer) -> Result<()> {
        for ((_, var), values) in parameters.iter().zip(self.on_gpu.read_parameters()?) {
            var.set(&Tensor::from_vec(values, var.dims(), var.device())?)?;
        }
        if let Some([first, second]) = self.on_gpu.read_moments()? {
            let pairs = first.into_iter().zip(second);
            let moments = pairs.map(|(exp_avg, exp_avg_sq)| Moments { exp_avg, exp_avg_sq }).collect();
            optimizer.restore(optimizer.steps(), moments);
        }
        Ok(())
    }
}

fn gpu_rule(rule: Rule) -> gpu::Rule {
    match rule {
        Rule::Adam { decay, l2, step_size, root_correction } => gpu::Rule::Adam(gpu::Adam {
            decay,
            l2,
            step_size,
            root_correction,
            rest1: (1.0 - BETA1) as f32,
            beta2: BETA2 as f32,
            rest2: (1.0 - BETA2) as f32,
            eps: EPS as f32,
        }),
        Rule::Sgd { lr, l2 } => gpu::Rule::Sgd { lr, l2 },
    }
}

/// Lends the numbers of contiguous tensors on the host to `work`, as bytes.
fn with_bytes<R>(tensors: &[&Tensor], work: impl FnOnce(&[&[u8]]) -> Result<R>) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut all = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        let Some((start, end)) = layout.contiguous_offsets() else {
            return Err(Error::run("a batch's tensors are not contiguous"));
        };
        all.push(match &**storage {
            Storage::Cpu(CpuStorage::U8(values)) => &values[start..end],
            Storage::Cpu(CpuStorage::U32(values)) => bytemuck::cast_slice(&values[start..end]),
            Storage::Cpu(CpuStorage::F32(values)) => bytemuck::cast_slice(&values[start..end]),
            _ => return Err(Error::run("a batch's tensors are not bytes, u32 or f32 on the host")),
        });
    }
    work(&all)
}

#[cfg(test)]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tests;
