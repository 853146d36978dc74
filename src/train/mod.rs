//! Training: the loop and what it is made of.

pub mod chunks;
pub mod feed;
pub mod gradients;
mod graph;
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
pub use network::Network;
pub use optimizer::Optimizer;
pub use progress::Progress;
pub use schedule::Schedule;
pub use trainer::Trainer;
