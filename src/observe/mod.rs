//! To come.

mod append;
pub mod metrics;
pub mod tensorboard;
