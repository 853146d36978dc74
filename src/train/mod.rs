//! Training: the loop and what it is made of.

pub mod feed;
pub mod memory;
pub mod network;
pub mod optimizer;
pub mod schedule;
pub mod state;
pub mod trainer;

pub use feed::Feed;
pub use network::Network;
pub use optimizer::Optimizer;
pub use schedule::Schedule;
pub use trainer::Trainer;
