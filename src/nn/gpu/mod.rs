//! The network on a GPU: own kernels and matrix products, forward and backward, without a graph.
//!
//! [`kernels`] has the kernels' sources and arguments, [`Machine`] what a GPU does, [`ops`] the network's operations as
//! launches, `backbone` and `head` their order, and [`Engine`] a training step. A machine is either `cuda`, a card, or,
//! in tests, the `emulator`, where a C compiler makes the same kernels for the CPU: all but the calls into CUDA's
//! libraries is tested without a card.

mod backbone;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod emulator;
mod engine;
mod head;
pub mod kernels;
#[cfg(feature = "cuda")]
mod libraries;
mod machine;
pub mod ops;
#[cfg(test)]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tests;

pub use engine::{Adam, Engine, HostBatch, Rule, Scores, Verdict};
pub use machine::{Buffer, Card, Gemm, Machine, Ptr, Room, Upload};
