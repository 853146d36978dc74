//! A network with its optimizer, on the CPU or a GPU: batches in, updates out.

use std::time::{Duration, Instant};

use candle_core::Tensor;

use crate::Result;
use crate::config::{Chunk, Experiment};
use crate::nn::device::Compute;
use crate::nn::{ActivationDtype, Pass};
use crate::train::accelerator::{Accelerator, End, Outcome};
use crate::train::feed::TensorBatch;
use crate::train::gradients::{self, Accumulator};
use crate::train::loss_scale::LossScale;
use crate::train::memory::Plan;
use crate::train::network::Score;
use crate::train::{Network, Optimizer};

/// A network in training. Where it is on a GPU, `network` and `optimizer` are its copies on the host: they follow at
/// [`Self::to_host`], and it follows them at [`Self::to_gpu`].
pub struct Learner {
    /// The network and its loss.
    pub network: Network,
    /// Its optimizer.
    pub optimizer: Optimizer,
    /// How much of a batch it takes at a time.
    pub plan: Plan,
    gpu: Option<Box<dyn Accelerator>>,
    accumulator: Accumulator,
    /// The gradients of a step of one batch; those of several are in the accumulator.
    gradients: Vec<Tensor>,
    outcome: Option<Outcome>,
    score: Option<Score>,
    times: Times,
}

/// How long the parts of the last batch took, on the CPU; on a GPU they run into each other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The forward pass, to the loss.
    pub forward: Duration,
    /// The backward pass.
    pub backward: Duration,
    /// Norm and update.
    pub optimizer: Duration,
}

/// A batch's place in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whether the step begins with it.
    pub first: bool,
    /// Whether it is the only one.
    pub alone: bool,
}

impl Learner {
    /// At the start of an experiment, with initial weights from its seed.
    ///
    /// # Errors
    /// Where the tensor library or the GPU fails.
    pub fn new(c: &Experiment, compute: &Compute) -> Result<Self> {
        let cpu = candle_core::Device::Cpu;
        let network = Network::new(&c.model, c.optimization.label_smoothing, &cpu, c.run.seed)?;
        let plan = Plan::new(c, &network.backbone_shape(), network.parameters().elements(""), compute);
        let network = network.in_chunks(plan.chunk);
        let optimizer = Optimizer::new(&c.optimization, network.parameters());
        let may_shrink = matches!(c.optimization.frames_per_chunk, Chunk::Auto);
        let gpu = accelerator(c, compute, &network, &plan, may_shrink)?;
        Ok(Self {
            network,
            optimizer,
            plan,
            gpu,
            accumulator: Accumulator::default(),
            gradients: Vec::new(),
            outcome: None,
            score: None,
            times: Times::default(),
        })
    }

    /// Brings a batch to where it is computed with, unless it is there. On a GPU, while the batch before is at work.
    ///
    /// # Errors
    /// Where the GPU's memory is full, or it fails.
    pub fn send(&mut self, batch: &mut TensorBatch) -> Result<()> {
        if let (Some(gpu), None, false) = (&mut self.gpu, batch.slot, batch.clips.is_empty()) {
            batch.slot = Some(gpu.send(batch)?);
        }
        Ok(())
    }

    /// Whether there is something to win by sending a batch before it is needed.
    #[must_use]
    pub fn looks_ahead(&self) -> bool {
        self.gpu.is_some()
    }

    /// Adds the gradients of a batch to those of the step. Its mean loss, unless the batch is alone and on a GPU: then
    /// nothing waits for it before [`Self::outcome`].
    ///
    /// # Errors
    /// Where memory is full, or the GPU fails.
    pub fn forward_backward(
        &mut self,
        batch: &mut TensorBatch,
        pass: &Pass,
        place: Place,
    ) -> Result<Option<f64>> {
        self.send(batch)?;
        if let (Some(gpu), Some(slot)) = (&mut self.gpu, batch.slot) {
            return gpu.forward_backward(slot, pass, place.first, !place.alone);
        }
        let step = self.network.train(&batch.inputs, &batch.targets, pass)?;
        (self.times.forward, self.times.backward) = (step.forward, step.backward);
        if place.alone {
            self.gradients = step.gradients;
        } else {
            self.accumulator.add(&step.gradients, batch.clips.len())?;
        }
        Ok(Some(step.loss))
    }

    /// Begins to update the parameters by the gradients of the step's `clips` clips, unless a number is not finite.
    /// `loss` is their mean loss, where it is known.
    ///
    /// # Errors
    /// Where the tensor library or the GPU fails.
    pub fn update(&mut self, lr: f64, grad_clip: Option<f64>, clips: usize, loss: Option<f64>) -> Result<()> {
        if let Some(gpu) = &mut self.gpu {
            let sound = loss.is_none_or(f64::is_finite);
            return gpu.update(self.optimizer.next_rule(lr), clips, grad_clip, sound);
        }
        let begun = Instant::now();
        let (sums, added) = self.accumulator.sums();
        let (gradients, share) =
            if added > 0 { (sums, 1.0 / added as f64) } else { (self.gradients.as_slice(), 1.0) };
        let (loss, norm) = (loss.unwrap_or(f64::NAN), gradients::norm(gradients)? * share);
        let sound = loss.is_finite() && norm.is_finite();
        if sound {
            let factor = grad_clip.map_or(1.0, |most| gradients::clip_factor(norm, most));
            self.optimizer.step(self.network.parameters(), gradients, lr, share * factor)?;
        }
        self.gradients.clear();
        self.accumulator.clear()?;
        self.times.optimizer = begun.elapsed();
        self.outcome = Some(Outcome { loss, norm, end: if sound { End::Updated } else { End::NotFinite } });
        Ok(())
    }

    /// What became of the step.
    ///
    /// # Errors
    /// Where the GPU fails, or there was no [`Self::update`].
    pub fn outcome(&mut self) -> Result<Outcome> {
        if let Some(gpu) = &mut self.gpu {
            let outcome = gpu.outcome()?;
            if outcome.end == End::Updated {
                self.optimizer.count_step();
            }
            return Ok(outcome);
        }
        self.outcome.take().ok_or_else(|| crate::Error::run("a step has no outcome before its update"))
    }

    /// Begins to compute a batch's loss and number of right classes, without dropout.
    ///
    /// # Errors
    /// Where memory is full, or the GPU fails.
    pub fn evaluate(&mut self, batch: &mut TensorBatch) -> Result<()> {
        self.send(batch)?;
        if let (Some(gpu), Some(slot)) = (&mut self.gpu, batch.slot) {
            return gpu.evaluate(slot);
        }
        self.score = Some(self.network.evaluate(&batch.inputs, &batch.targets)?);
        Ok(())
    }

    /// What [`Self::evaluate`] gave.
    ///
    /// # Errors
    /// Where the GPU fails, or there was no [`Self::evaluate`].
    pub fn score(&mut self) -> Result<Score> {
        match &mut self.gpu {
            Some(gpu) => gpu.score(),
            None => self.score.take().ok_or_else(|| crate::Error::run("there is no batch to score")),
        }
    }

    /// The logits (B, V) of a batch, without dropout.
    ///
    /// # Errors
    /// Where memory is full, or the GPU fails.
    pub fn logits(&mut self, batch: &mut TensorBatch) -> Result<Vec<f32>> {
        self.send(batch)?;
        match (&mut self.gpu, batch.slot) {
            (Some(gpu), Some(slot)) => gpu.logits(slot),
            _ => Ok(self.network.logits(&batch.inputs)?.flatten_all()?.to_vec1()?),
        }
    }

    /// The gradients of a step of one batch, in the parameters' order, for the mean of its clips' losses; between
    /// [`Self::forward_backward`] and [`Self::update`]. `clips` is how many it has.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn gradients(&self, clips: usize) -> Result<Vec<Vec<f32>>> {
        if let Some(gpu) = &self.gpu {
            let mut all = gpu.gradients()?;
            all.iter_mut().flatten().for_each(|gradient| *gradient /= clips as f32);
            return Ok(all);
        }
        let values = |gradient: &Tensor| Ok(gradient.flatten_all()?.to_vec1()?);
        self.gradients.iter().map(values).collect()
    }

    /// Frames of a stream that go through its backbone at a time, as things stand.
    #[must_use]
    pub fn chunk(&self) -> Option<usize> {
        self.gpu.as_ref().map_or_else(|| self.network.chunk(), |gpu| gpu.chunk())
    }

    /// The chunk on a GPU, where it decides in which order sums are taken; 0 = all at once.
    #[must_use]
    pub fn chunk_to_save(&self) -> Option<usize> {
        self.gpu.as_ref().map(|gpu| gpu.chunk().unwrap_or(0))
    }

    /// Goes on with a chunk that was saved on a GPU; of no consequence elsewhere.
    pub fn restore_chunk(&mut self, saved: usize) {
        if let Some(gpu) = &mut self.gpu {
            gpu.restore_chunk((saved > 0).then_some(saved));
            self.plan.chunk = gpu.chunk();
        }
    }

    /// What activations are stored in.
    #[must_use]
    pub fn stored(&self) -> ActivationDtype {
        self.gpu.as_ref().map_or(ActivationDtype::F32, |gpu| gpu.stored())
    }

    /// The most of a GPU's memory that was in use so far, in bytes.
    #[must_use]
    pub fn peak_gpu_memory(&self) -> Option<usize> {
        self.gpu.as_ref().map(|gpu| gpu.peak_memory())
    }

    /// How long the parts of the last batch took, where that can be told.
    #[must_use]
    pub fn times(&self) -> Option<Times> {
        self.gpu.is_none().then_some(self.times)
    }

    /// The scale of gradients, for float16.
    #[must_use]
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.gpu.as_ref().and_then(|gpu| gpu.loss_scale())
    }

    /// Goes on with a scale of gradients that was saved; of no consequence where gradients are not scaled.
    pub fn restore_loss_scale(&mut self, scale: LossScale) {
        if let Some(gpu) = &mut self.gpu {
            gpu.restore_loss_scale(scale);
        }
    }

    /// Sets a GPU's parameters and moments to `network`'s and `optimizer`'s.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn to_gpu(&mut self) -> Result<()> {
        match &mut self.gpu {
            Some(gpu) => gpu.write(self.network.parameters(), &self.optimizer),
            None => Ok(()),
        }
    }

    /// Sets `network`'s and `optimizer`'s parameters and moments to the GPU's.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn to_host(&mut self) -> Result<()> {
        match &mut self.gpu {
            Some(gpu) => gpu.read(self.network.parameters(), &mut self.optimizer),
            None => Ok(()),
        }
    }
}

#[cfg(any(feature = "cuda", test))]
fn accelerator(
    c: &Experiment,
    compute: &Compute,
    network: &Network,
    plan: &Plan,
    may_shrink: bool,
) -> Result<Option<Box<dyn Accelerator>>> {
    let Compute::Gpu(card) = compute else { return Ok(None) };
    let chunks = crate::train::Chunks::new(plan.chunk).or_fewer(may_shrink);
    let gpu = crate::train::gpu::Gpu::new(c, card.as_ref(), compute.activation_dtype(c), network, chunks)?;
    Ok(Some(Box::new(gpu)))
}

#[cfg(not(any(feature = "cuda", test)))]
#[allow(clippy::unnecessary_wraps, reason = "builds with CUDA may fail here")]
fn accelerator(
    _: &Experiment,
    _: &Compute,
    _: &Network,
    _: &Plan,
    _: bool,
) -> Result<Option<Box<dyn Accelerator>>> {
    Ok(None)
}
