//! Norms of gradients, and the optimizer's step.

use super::{BLOCKS, Ops, at_least, int, long};
use crate::engine::cuda::kernels;
use crate::engine::cuda::memory::{Activation, Slice};
use crate::{Error, Result};

/// What the update does, and what of it is the same for all rules.
pub struct Update<'a> {
    /// Some parameters.
    pub parameters: Slice<f32>,
    /// Their gradients.
    pub gradients: Slice<f32>,
    /// Their moments: as many as the rule has.
    pub moments: Vec<Slice<f32>>,
    /// Their copies that products take, where they are others.
    pub operands: Option<Slice<Activation>>,
    /// What [`Ops::check_step`] left.
    pub verdict: &'a Slice<kernels::Verdict>,
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

impl Ops {
    /// Takes the memory that [`Self::check_step`] needs for so many gradients, before a step fills the rest: an update that
    /// lacks it could not be done again in smaller chunks.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn prepare_check(&self, gradients: usize) -> Result<()> {
        self.partial_squares.borrow_mut().resize_vector(&self.allocator, parts(gradients)).map(|_| ())
    }

    /// The norm of `gradients`, times `factor`, what they are multiplied by to have no norm above `max_norm`, the mean of
    /// `losses`, and whether all of it is finite, to `verdict`.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn check_step(
        &self,
        gradients: &Slice<f32>,
        losses: Option<&Slice<f32>>,
        factor: f64,
        max_norm: Option<f64>,
        verdict: &Slice<kernels::Verdict>,
    ) -> Result<()> {
        let count = gradients.len();
        let blocks = parts(count);
        let partial = self.partial_squares.borrow_mut().resize_vector(&self.allocator, blocks)?;
        let squares = kernels::Squares { x: gradients.ptr(), partial: partial.ptr(), count: long(count)? };
        self.launch("squares", [blocks, 1, 1], 256, 8 * 256, &squares)?;
        let args = kernels::Judge {
            partial: partial.ptr(),
            loss: at_least(losses, 0)?,
            verdict: at_least(Some(verdict), 1)?,
            share: factor,
            most: max_norm.unwrap_or(0.0),
            parts: int(blocks)?,
            clips: int(losses.map_or(0, Slice::len))?,
        };
        self.launch("judge", [1, 1, 1], 256, 8 * 256, &args)
    }

    /// Adam's and `AdamW`'s update of these parameters.
    ///
    /// # Errors
    /// Where sizes do not fit each other or there are no two moments, or the GPU fails.
    pub fn adam(&self, a: &Update, rule: Adam) -> Result<()> {
        let Adam { decay, l2, step_size, root_correction, rest1, beta2, rest2, eps } = rule;
        let count = a.parameters.len();
        let [m, v] = a.moments.as_slice() else { return Err(Error::run("Adam needs two moments")) };
        let args = kernels::Adam {
            parameter: a.parameters.ptr(),
            gradient: at_least(Some(&a.gradients), count)?,
            m: at_least(Some(m), count)?,
            v: at_least(Some(v), count)?,
            stored: at_least(a.operands.as_ref(), count)?,
            verdict: at_least(Some(a.verdict), 1)?,
            count: long(count)?,
            decay,
            l2,
            step_size,
            root_correction,
            rest1,
            beta2,
            rest2,
            eps,
        };
        self.launch_each("adam", 256, count, &args)
    }

    /// SGD's update of these parameters, with a momentum where they have a moment.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn sgd(&self, a: &Update, lr: f32, l2: f32, momentum: f32) -> Result<()> {
        let count = a.parameters.len();
        let args = kernels::Sgd {
            parameter: a.parameters.ptr(),
            gradient: at_least(Some(&a.gradients), count)?,
            stored: at_least(a.operands.as_ref(), count)?,
            verdict: at_least(Some(a.verdict), 1)?,
            m: at_least(a.moments.first(), count)?,
            count: long(count)?,
            lr,
            l2,
            momentum,
        };
        self.launch_each("sgd", 256, count, &args)
    }

    /// f32 to the activations' dtype.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn cast(&self, x: &Slice<f32>, out: &Slice<Activation>) -> Result<()> {
        let args = kernels::Cast { x: x.ptr(), out: at_least(Some(out), x.len())?, count: long(x.len())? };
        self.launch_each("cast", 256, x.len(), &args)
    }
}

/// Blocks that so many gradients are squared in, each of which leaves a sum.
fn parts(gradients: usize) -> usize {
    gradients.div_ceil(256 * 8).clamp(1, BLOCKS)
}
