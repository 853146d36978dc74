//! To come.

mod append;
pub mod metrics;
pub mod tensorboard;
//! What a run leaves behind and shows while it goes: progress and lines, the run's folder, metrics.

pub mod reporter;
pub mod run_folder;
