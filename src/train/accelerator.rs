//! What a GPU does for training: the seam between the loop and [`crate::train::gpu`], which is there only in builds with
//! CUDA.

use crate::Result;
use crate::nn::{ActivationDtype, Parameters, Pass};
use crate::train::feed::TensorBatch;
use crate::train::loss_scale::LossScale;
use crate::train::network::Score;
use crate::train::optimizer::{Optimizer, Rule};

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The mean loss over the clips of its last batch.
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

/// A network in training on a GPU.
pub trait Accelerator {
    /// Begins to bring a batch to the GPU, while it computes with the one before; where it will be there.
    ///
    /// # Errors
    /// Where the GPU's memory is full, or it fails.
    fn send(&mut self, batch: &TensorBatch) -> Result<usize>;

    /// Adds the gradients of the batch in `slot` to those of a step, of which it is the `first` batch or a later one. With
    /// `wait`, the batch's mean loss.
    ///
    /// # Errors
    /// Where the GPU's memory is full, or it fails.
    fn forward_backward(&mut self, slot: usize, pass: &Pass, first: bool, wait: bool) -> Result<Option<f64>>;

    /// Begins to update the parameters by the gradients of `clips` clips, cut to a norm of `most`, unless the losses that
    /// are known were not `sound`.
    ///
    /// # Errors
    /// Where the GPU fails.
    fn update(&mut self, rule: Rule, clips: usize, most: Option<f64>, sound: bool) -> Result<()>;

    /// What became of the step: waits for it.
    ///
    /// # Errors
    /// Where the GPU fails.
    fn outcome(&mut self) -> Result<Outcome>;

    /// Begins to compute the logits of the batch in `slot`, without dropout.
    ///
    /// # Errors
    /// Where the GPU's memory is full, or it fails.
    fn evaluate(&mut self, slot: usize) -> Result<()>;

    /// What [`Self::evaluate`] gave: waits for it.
    ///
    /// # Errors
    /// Where the GPU fails.
    fn score(&mut self) -> Result<Score>;

    /// The logits (B, V) of the batch in `slot`, without dropout: waits for them.
    ///
    /// # Errors
    /// Where the GPU's memory is full, or it fails.
    fn logits(&mut self, slot: usize) -> Result<Vec<f32>>;

    /// The gradients of the step so far, for the sum of the clips' losses.
    ///
    /// # Errors
    /// Where the GPU fails.
    fn gradients(&self) -> Result<Vec<Vec<f32>>>;

    /// Images of a stream at a time, as things stand; `None` = all.
    fn chunk(&self) -> Option<usize>;

    /// Goes on with the chunk that a run had, where this one was chosen and not asked for: another one's sums would have
    /// another order.
    fn restore_chunk(&mut self, chunk: Option<usize>);

    /// What activations are stored in.
    fn stored(&self) -> ActivationDtype;

    /// The most of the GPU's memory that was in use so far, in bytes.
    fn peak_memory(&self) -> usize;

    /// The scale of gradients, for float16.
    fn loss_scale(&self) -> Option<LossScale>;

    /// Goes on with a scale that was saved.
    fn restore_loss_scale(&mut self, scale: LossScale);

    /// Sets the GPU's parameters and moments to the host's.
    ///
    /// # Errors
    /// Where the GPU fails.
    fn write(&mut self, parameters: &Parameters, optimizer: &Optimizer) -> Result<()>;

    /// Sets the host's parameters and moments to the GPU's.
    ///
    /// # Errors
    /// Where the GPU fails.
    fn read(&mut self, parameters: &Parameters, optimizer: &mut Optimizer) -> Result<()>;
}
