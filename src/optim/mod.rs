//! Optimizers, their schedules, and what happens to gradients before them.

pub mod gradients;
mod loss_scale;
mod optimizer;
mod schedule;

pub use loss_scale::LossScale;
pub use optimizer::{BETA1, BETA2, EPS, Moments, Optimizer, UpdateRule};
pub use schedule::Schedule;
