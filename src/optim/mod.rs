//! Optimizers, their schedules, and what happens to gradients before them.

pub mod gradients;
mod groups;
mod loss_scale;
mod optimizer;
mod schedule;

pub use groups::{Group, ParameterGroups};
pub use loss_scale::LossScale;
pub use optimizer::{Moments, Optimizer, UpdateRule, moments};
pub use schedule::{Plateau, Schedule};
