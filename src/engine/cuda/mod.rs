//! The network on a GPU: own kernels and matrix products, forward and backward, without a graph.
//!
//! From below: [`stream`] is what a GPU does, [`memory`] its memory as typed buffers, [`kernels`] the kernels' sources and
//! arguments, [`ops`] launches of them on buffers, [`layers`] the network's layers, `backbone`, `frames` and `decoder` the
//! parts that are made of these, [`GpuNetwork`] the whole, and [`Cuda`] the engine. Parameters, their sizes and dropouts are
//! found in the network's [`crate::nn::Blueprint`] by name.
//!
//! A stream is `driver`, on a card; or, in tests, the `emulator`, where a C compiler makes the same kernels for the CPU; or
//! `dry_run`, which counts memory. Beside the emulator there is a pretended CUDA in `tests/fake_cuda`: the emulator sees
//! stray writes, missing barriers and every launch, in every build; the other one sees what `driver` calls, and fails on
//! demand.
#![deny(unsafe_code)]

mod backbone;
mod decoder;
#[cfg(feature = "cuda")]
pub mod driver;
mod dry_run;
#[cfg(test)]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) mod emulator;
mod frames;
pub mod kernels;
pub mod layers;
#[cfg(feature = "cuda")]
mod libraries;
pub mod memory;
mod network;
pub mod ops;
pub mod parameters;
pub mod stream;
#[cfg(test)]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tests;
mod training;
#[cfg(test)]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod training_tests;

pub use dry_run::{head_widths, step_memory};
pub use memory::Allocator;
pub use network::{
    GpuNetwork, GpuUpdateRule, HostBatch, NetworkSpec, Scores, StepMemory, StreamData, UpdateReport,
};
pub use ops::Adam;
pub use stream::{GpuDevice, GpuStream};
pub use training::Cuda;
