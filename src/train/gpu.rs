//! Training on a GPU: an [`Engine`] with the loop's rules around it, for chunks, scaled gradients and batches ahead.

use std::rc::Rc;

use candle_core::{CpuStorage, Storage, Tensor};

use crate::Result;
use crate::config::{Experiment, OptimizerKind};
use crate::nn::device::is_out_of_memory;
use crate::nn::gpu::{self, Card, Engine, HostBatch, Machine};
use crate::nn::{Images, Parameters, Pass, Stored};
use crate::train::accelerator::{Accelerator, End, Outcome};
use crate::train::feed::TensorBatch;
use crate::train::loss_scale::LossScale;
use crate::train::network::Score;
use crate::train::optimizer::{BETA1, BETA2, EPS, Moments, Optimizer, Rule};
use crate::train::{Chunks, Network};

/// A network in training on a GPU.
pub struct Gpu {
    machine: Rc<dyn Machine>,
    engine: Engine,
    chunks: Chunks,
    scale: Option<LossScale>,
    /// Clips of a whole batch: the gradients of a batch's clips are added up, and would be so many times larger.
    batch_size: usize,
    /// How many clips and frames the batch in each slot has.
    sizes: [(usize, usize); 2],
    next: usize,
}

impl Gpu {
    /// `network` on `card`, its activations in `stored`.
    ///
    /// # Errors
    /// Where the kernels do not compile, or the GPU's memory is full.
    pub fn new(
        c: &Experiment,
        card: &dyn Card,
        stored: Stored,
        network: &Network,
        chunks: Chunks,
    ) -> Result<Self> {
        let machine = card.machine(stored, &Engine::heads(&c.model))?;
        let moments = c.optimization.optimizer != OptimizerKind::Sgd;
        let smoothing = c.optimization.label_smoothing;
        let engine = Engine::new(&machine, stored, network.classifier(), &c.model, smoothing, moments)?;
        let scale = (stored == Stored::F16).then(LossScale::default);
        Ok(Self {
            machine,
            engine,
            chunks,
            scale,
            batch_size: c.data.batch_size,
            sizes: [(0, 0); 2],
            next: 0,
        })
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
fn or_shed<T>(
    engine: &mut Engine,
    work: impl FnOnce(&mut Engine) -> candle_core::Result<T>,
) -> candle_core::Result<T> {
    let done = work(engine);
    if done.is_err() {
        engine.shed();
    }
    done
}

impl Accelerator for Gpu {
    fn send(&mut self, batch: &TensorBatch) -> Result<usize> {
        let slot = self.next;
        self.next = 1 - slot;
        self.sizes[slot] = batch.inputs.pad_mask.dims2()?;
        let (clips, frames) = self.sizes[slot];
        let images = batch.inputs.images.each_ref().map(|(Images::Bytes(x) | Images::Normalised(x))| x);
        let normalised = matches!(batch.inputs.images[0], Images::Normalised(_));
        let [face, left, right] = images;
        let tensors = [face, left, right, &batch.inputs.pose, &batch.inputs.pad_mask, &batch.targets];
        with_bytes(&tensors, |bytes| {
            let &[face, left, right, pose, valid, targets] = bytes else {
                candle_core::bail!("a batch has six tensors")
            };
            let images = [face, left, right];
            let batch = HostBatch { images, normalised, pose, valid, targets, clips, frames };
            match self.engine.send(slot, &batch) {
                // The step before may have filled the memory. The next one finds a chunk for what is left.
                Err(error) if is_out_of_memory(&error) => {
                    self.engine.shed();
                    self.engine.send(slot, &batch)
                }
                sent => sent,
            }
        })?;
        Ok(slot)
    }

    fn forward_backward(&mut self, slot: usize, pass: &Pass, first: bool, wait: bool) -> Result<Option<f64>> {
        let (factor, images) = (self.factor(), self.images(slot));
        let Self { engine, chunks, .. } = self;
        if first {
            chunks.run(images, |chunk| {
                engine.begin()?;
                or_shed(engine, |engine| engine.forward_backward(slot, pass, chunk, factor))
            })?;
        } else {
            // Another try would count what the first has added twice.
            chunks
                .clone()
                .or_fewer(false)
                .run(images, |chunk| engine.forward_backward(slot, pass, chunk, factor))?;
        }
        if wait { Ok(Some(engine.scores()?.loss)) } else { Ok(None) }
    }

    fn update(&mut self, rule: Rule, clips: usize, most: Option<f64>, sound: bool) -> Result<()> {
        // What is not a number makes the whole gradient none, and nothing is updated.
        let share = if sound { 1.0 / (self.factor() * clips as f64) } else { f64::NAN };
        Ok(self.engine.update(on_gpu(rule), share, most)?)
    }

    fn outcome(&mut self) -> Result<Outcome> {
        let verdict = self.engine.verdict()?;
        let loss_is_finite = verdict.loss.is_finite();
        let end = match (&mut self.scale, verdict.sound != 0) {
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
        Ok(Outcome { loss: verdict.loss, norm: verdict.norm, end })
    }

    fn evaluate(&mut self, slot: usize) -> Result<()> {
        let images = self.images(slot);
        let Self { engine, chunks, .. } = self;
        chunks.run(images, |chunk| or_shed(engine, |engine| engine.evaluate(slot, chunk)))
    }

    fn score(&mut self) -> Result<Score> {
        let scores = self.engine.scores()?;
        Ok(Score { loss: scores.loss, correct: scores.correct })
    }

    fn logits(&mut self, slot: usize) -> Result<Vec<f32>> {
        let images = self.images(slot);
        let Self { engine, chunks, .. } = self;
        chunks.run(images, |chunk| or_shed(engine, |engine| engine.logits(slot, chunk)))
    }

    fn gradients(&self) -> Result<Vec<Vec<f32>>> {
        let mut all = self.engine.read_gradients()?;
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

    fn stored(&self) -> Stored {
        self.engine.stored()
    }

    fn peak_memory(&self) -> usize {
        self.machine.peak_memory()
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
        let values: candle_core::Result<Vec<Vec<f32>>> =
            parameters.iter().map(|(_, var)| var.flatten_all()?.to_vec1()).collect();
        self.engine.write_parameters(&values?)?;
        let moments = optimizer.moments().iter().map(|m| (m.exp_avg.as_slice(), m.exp_avg_sq.as_slice()));
        Ok(self.engine.write_moments(moments)?)
    }

    fn read(&mut self, parameters: &Parameters, optimizer: &mut Optimizer) -> Result<()> {
        for ((_, var), values) in parameters.iter().zip(self.engine.read_parameters()?) {
            var.set(&Tensor::from_vec(values, var.dims(), var.device())?)?;
        }
        if let Some([first, second]) = self.engine.read_moments()? {
            let pairs = first.into_iter().zip(second);
            let moments = pairs.map(|(exp_avg, exp_avg_sq)| Moments { exp_avg, exp_avg_sq }).collect();
            optimizer.restore(optimizer.steps(), moments);
        }
        Ok(())
    }
}

fn on_gpu(rule: Rule) -> gpu::Rule {
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
fn with_bytes<R>(
    tensors: &[&Tensor],
    work: impl FnOnce(&[&[u8]]) -> candle_core::Result<R>,
) -> candle_core::Result<R> {
    let guards: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut all = Vec::with_capacity(guards.len());
    for (storage, layout) in &guards {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a batch's tensors are contiguous")
        };
        all.push(match &**storage {
            Storage::Cpu(CpuStorage::U8(values)) => &values[start..end],
            Storage::Cpu(CpuStorage::U32(values)) => bytemuck::cast_slice(&values[start..end]),
            Storage::Cpu(CpuStorage::F32(values)) => bytemuck::cast_slice(&values[start..end]),
            _ => candle_core::bail!("a batch's tensors are bytes, u32 or f32 on the host"),
        });
    }
    work(&all)
}

#[cfg(test)]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tests;
