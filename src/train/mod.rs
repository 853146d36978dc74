//! Training: the loop and what it is made of.

pub mod accelerator;
pub mod chunks;
pub mod feed;
#[cfg(any(feature = "cuda", test))]
pub mod gpu;
pub mod gradients;
pub mod learner;
pub mod loss_scale;
pub mod memory;
pub mod network;
pub mod nonfinite;
pub mod optimizer;
pub mod progress;
pub mod resume;
pub mod schedule;
pub mod state;
pub mod stop;
pub mod trainer;

pub use chunks::Chunks;
pub use feed::Feed;
pub use learner::Learner;
pub use network::Network;
pub use optimizer::Optimizer;
pub use progress::Progress;
pub use schedule::Schedule;
pub use trainer::Trainer;
