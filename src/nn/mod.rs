//! Differentiable building blocks: the one seam between the network and what computes it.
//!
//! Legend for shapes, here and in [`crate::model`]: `B` clips, `T` frames a clip, `N` images (`B * T`), `S` tokens an
//! image or frames a clip, `D` width, `H` heads, `P` pixels a patch side, `V` classes.

pub mod attention;
pub mod blueprint;
pub mod cpu;
pub mod device;
pub mod dropout;
mod dtype;
#[cfg(any(feature = "cuda", test))]
pub mod gpu;
pub mod images;
pub mod init;
pub mod linear;
pub mod loss;
pub mod norm;
pub mod oom;
pub mod parameters;
pub mod threads;

pub use attention::MultiheadAttention;
pub use blueprint::{Blueprint, ParameterId, ParameterSpec, Scope};
pub use dropout::{Dropout, Pass};
pub use dtype::ActivationDtype;
pub use images::Images;
pub use init::Init;
pub use linear::Linear;
pub use norm::LayerNorm;
pub use parameters::{Builder, Parameters};
