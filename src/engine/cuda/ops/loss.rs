//! Pooling, logits and loss of the stub.

use super::{Ops, at_least, int, rows_of, times};
use crate::Result;
use crate::engine::cuda::kernels;
use crate::engine::cuda::memory::{Activation, Matrix, Slice};

/// Labels, loss and its gradient of a batch's logits.
pub struct CrossEntropy<'a> {
    /// (B, V); the bias is added.
    pub logits: &'a Matrix<f32>,
    /// (V).
    pub bias: &'a Slice<f32>,
    /// (B), each below V.
    pub targets: &'a Slice<u32>,
    /// (B, V), with the loss's scale.
    pub d_logits: Option<(&'a Matrix<Activation>, f64)>,
    /// (B).
    pub losses: &'a Slice<f32>,
    /// (B): 1 where the class was right.
    pub correct: &'a Slice<i32>,
    /// Label smoothing.
    pub smoothing: f64,
}

impl Ops {
    /// The mean over each clip's frames: `x` (B T, D), those that are `valid` (B T), to `mean` (B, D).
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn pool(&self, x: &Matrix<f32>, valid: &Slice<u8>, mean: &Matrix<Activation>) -> Result<()> {
        let (clips, width) = (mean.rows(), mean.cols());
        let args = kernels::Pool {
            x: rows_of(Some(x), x.rows(), width)?,
            valid: at_least(Some(valid), x.rows())?,
            mean: rows_of(Some(mean), clips, width)?,
            clips: int(clips)?,
            frames: int(times(x.rows(), clips)?)?,
            width: int(width)?,
        };
        self.launch_each("pool", 256, clips * width, &args)
    }

    /// The gradient of [`Self::pool`].
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn pool_backward(&self, d_mean: &Matrix<f32>, valid: &Slice<u8>, d_x: &Matrix<f32>) -> Result<()> {
        let (clips, width) = (d_mean.rows(), d_mean.cols());
        let args = kernels::PoolBackward {
            d_mean: rows_of(Some(d_mean), clips, width)?,
            valid: at_least(Some(valid), d_x.rows())?,
            d_x: rows_of(Some(d_x), d_x.rows(), width)?,
            clips: int(clips)?,
            frames: int(times(d_x.rows(), clips)?)?,
            width: int(width)?,
        };
        self.launch_each("pool_backward", 256, d_x.rows() * width, &args)
    }

    /// The loss of each clip, and its gradient. A target that is no class counts as the first one: callers refuse it.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn cross_entropy(&self, a: &CrossEntropy) -> Result<()> {
        let (clips, classes) = (a.logits.rows(), a.logits.cols());
        let args = kernels::CrossEntropy {
            logits: rows_of(Some(a.logits), clips, classes)?,
            bias: at_least(Some(a.bias), classes)?,
            targets: at_least(Some(a.targets), clips)?,
            d_logits: rows_of(a.d_logits.map(|(d_logits, _)| d_logits), clips, classes)?,
            loss: at_least(Some(a.losses), clips)?,
            right: at_least(Some(a.correct), clips)?,
            classes: int(classes)?,
            smoothing: a.smoothing as f32,
            scale: a.d_logits.map_or(0.0, |(_, scale)| scale as f32),
        };
        self.launch("cross_entropy", [clips, 1, 1], 256, 64, &args)
    }
}
