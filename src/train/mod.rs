//! Training: the loop and what it is made of.

pub mod optimizer;
pub mod schedule;

pub use optimizer::Optimizer;
pub use schedule::Schedule;
