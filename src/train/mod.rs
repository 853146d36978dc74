//! Training: the loop and what it is made of.

pub mod network;
pub mod optimizer;
pub mod schedule;

pub use network::Network;
pub use optimizer::Optimizer;
pub use schedule::Schedule;
