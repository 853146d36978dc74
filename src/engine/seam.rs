//! The seam: what training asks of whatever computes the network.

use std::time::Duration;

use super::batch::Placed;
use super::host::Host;
use super::memory::Plan;
use crate::Result;
use crate::config::Decoding;
use crate::data::Pixels;
use crate::model::{Hypothesis, Score};
use crate::nn::{ActivationDtype, Pass};
use crate::optim::LossScale;

/// A training step that has begun: what of it is known so far. [`Engine::update`] ends it.
#[must_use = "a step that has begun ends with `Engine::update`"]
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    batches: usize,
    done: usize,
    clips: usize,
    weight: usize,
    /// The sum of the losses that are known, each times its batch's weight; `None` where one is not known yet.
    loss: Option<f64>,
}

impl Step {
    /// Of so many batches.
    pub fn of(batches: usize) -> Self {
        Self { batches, done: 0, clips: 0, weight: 0, loss: Some(0.0) }
    }

    /// Gives it up: the next step begins with none of its gradients.
    pub fn give_up(self) {}

    /// Whether it has no batch yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.done == 0
    }

    /// Whether it is of one batch.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.batches == 1
    }

    /// Clips so far: the place of the next one in the step.
    #[must_use]
    pub fn clips(&self) -> usize {
        self.clips
    }

    /// How much was predicted so far.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// The mean loss so far, where it is known.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        self.loss.map(|sum| sum / self.weight as f64)
    }

    /// Notes a batch: its clips, what they weigh, and its mean loss where it is known already.
    pub(super) fn add(&mut self, clips: usize, weight: usize, loss: Option<f64>) {
        self.done += 1;
        self.clips += clips;
        self.weight += weight;
        self.loss = self.loss.zip(loss).map(|(sum, loss)| sum + loss * weight as f64);
    }
}

/// An update that has begun: [`Engine::outcome`] tells what became of it.
#[must_use = "what became of a step is told by `Engine::outcome`"]
#[derive(Debug)]
pub struct Pending(pub(super) ());

/// An evaluation that has begun: [`Engine::score`] tells what it gave.
#[must_use = "what an evaluation gave is told by `Engine::score`"]
#[derive(Debug)]
pub struct Evaluating(pub(super) ());

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The mean loss of its last batch, or of the whole step.
    pub loss: f64,
    /// The norm of its gradient, before it is cut.
    pub norm: f64,
    /// Whether the parameters were updated, and why not.
    pub end: End,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// The parameters were updated.
    Updated,
    /// They were not: the loss or the norm is not finite.
    NotFinite,
    /// They were not: the gradient's scale was too large for float16, and is this from now on.
    Rescaled(f64),
}

/// How long the parts of the last batch took, where they are done one after another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The forward pass, to the loss.
    pub forward: Duration,
    /// The backward pass.
    pub backward: Duration,
    /// Norm and update.
    pub optimizer: Duration,
}

/// A network in training.
///
/// # Errors
/// All methods fail with kind `Memory` where memory is full, and with kind `Run` where a device or the tensor library
/// fails.
pub trait Engine {
    /// Begins to bring a batch to where it is computed with, unless it is there: while the batch before is at work,
    /// where that can be.
    ///
    /// # Errors
    /// As all methods.
    fn send(&mut self, batch: &mut Placed) -> Result<()>;

    /// Whether there is something to win by sending a batch before it is needed.
    fn sends_ahead(&self) -> bool;

    /// Forward and backward: adds the gradients of a batch, which has clips, to those of `step`. The rows of `pass` are
    /// clips, the first is the step's next.
    ///
    /// # Errors
    /// As all methods.
    fn train(&mut self, batch: &mut Placed, pass: &Pass, step: &mut Step) -> Result<()>;

    /// Begins to update the parameters by the mean gradient of `step`, cut to a norm of `max_norm`, unless a number is not
    /// finite. `rates` are the learning rates of the parameters' groups.
    ///
    /// # Errors
    /// As all methods.
    fn update(&mut self, step: Step, rates: &[f64], max_norm: Option<f64>) -> Result<Pending>;

    /// What became of the step: waits for it.
    ///
    /// # Errors
    /// As all methods.
    fn outcome(&mut self, pending: Pending) -> Result<Outcome>;

    /// Begins to compute loss and right predictions of a batch, which has clips, without dropout.
    ///
    /// # Errors
    /// As all methods.
    fn evaluate(&mut self, batch: &mut Placed) -> Result<Evaluating>;

    /// What the evaluation gave: waits for it.
    ///
    /// # Errors
    /// As all methods.
    fn score(&mut self, evaluating: Evaluating) -> Result<Score>;

    /// What a decoder reads of a batch, without dropout: the encoded frames (B, T, D), f32, on the host. They are not
    /// computed again where evaluating the batch has left them.
    ///
    /// # Errors
    /// As all methods.
    fn encode(&mut self, batch: &mut Placed) -> Result<candle_core::Tensor>;

    /// The features (N, D) that the backbone of the image stream at `stream` makes of `count` images of `image_size`, without
    /// dropout, on the host.
    ///
    /// # Errors
    /// As all methods.
    fn features(
        &mut self,
        stream: usize,
        pixels: &Pixels,
        count: usize,
        image_size: usize,
    ) -> Result<Vec<f32>>;

    /// The best predictions of each clip of a batch, without dropout: `n_best` at most, the best first. A batch that was
    /// evaluated is not encoded again.
    ///
    /// # Errors
    /// As all methods, and kind `Numbers` where the decoder gives what is not a number.
    fn translate(&mut self, batch: &mut Placed, c: &Decoding) -> Result<Vec<Vec<Hypothesis>>>;

    /// The gradients of `step` so far, of the parameters that train, in their order: of the mean of its losses. For
    /// tests.
    ///
    /// # Errors
    /// As all methods.
    fn gradients(&self, step: &Step) -> Result<Vec<Vec<f32>>>;

    /// Network and optimizer in the host's memory. Where the engine computes elsewhere, they follow at [`Self::pull`], and
    /// it follows them at [`Self::push`].
    fn host(&self) -> &Host;

    /// As [`Self::host`].
    fn host_mut(&mut self) -> &mut Host;

    /// Sets the host's parameters and moments to the engine's.
    ///
    /// # Errors
    /// As all methods.
    fn pull(&mut self) -> Result<()>;

    /// Sets the engine's parameters and moments to the host's.
    ///
    /// # Errors
    /// As all methods.
    fn push(&mut self) -> Result<()>;

    /// How much of a batch it takes at a time, and the memory that this was chosen by.
    fn plan(&self) -> &Plan;

    /// Frames of a stream that go through its backbone at a time, as things stand; `None` = all.
    fn chunk(&self) -> Option<usize> {
        self.plan().chunk
    }

    /// The chunk, where it decides in which order sums are taken; 0 = all at once.
    fn chunk_to_save(&self) -> Option<usize> {
        None
    }

    /// Goes on with a chunk that was saved; of no consequence where it decides nothing.
    fn restore_chunk(&mut self, _saved: usize) {}

    /// The dtype of activations.
    fn activation_dtype(&self) -> ActivationDtype {
        ActivationDtype::F32
    }

    /// The multiply-adds a second that large products reach here, in the dtype of activations: measured, in a moment. None
    /// where that is not known.
    fn product_rate(&self) -> Option<f64> {
        None
    }

    /// The most of a GPU's memory that was in use so far, in bytes.
    fn peak_gpu_memory(&self) -> Option<usize> {
        None
    }

    /// How long the parts of the last batch took, where that can be told.
    fn times(&self) -> Option<Times> {
        None
    }

    /// The scale of gradients, for float16.
    fn loss_scale(&self) -> Option<LossScale> {
        None
    }

    /// Goes on with a scale of gradients that was saved; of no consequence where gradients are not scaled.
    fn restore_loss_scale(&mut self, _scale: LossScale) {}
}
