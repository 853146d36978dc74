//! The network's building blocks as Candle operations, and what describes it without its numbers.
//!
//! Legend for shapes, here and in [`crate::model`]: `B` clips, `T` frames a clip, `N` images (`B * T`), `S` tokens an
//! image or frames a clip, `D` width, `H` heads, `P` pixels a patch side, `V` classes.

pub mod attention;
pub mod blueprint;
pub mod dropout;
mod dtype;
pub mod embedding;
mod frozen;
pub mod images;
pub mod init;
pub mod linear;
pub mod loss;
pub mod norm;
pub mod operations;
pub mod parameters;

pub use attention::MultiheadAttention;
pub use blueprint::{Blueprint, ParameterId, ParameterSpec, Scope};
pub use dropout::{Dropout, Pass};
pub use dtype::ActivationDtype;
pub use embedding::Embedding;
pub use frozen::Frozen;
pub use images::Images;
pub use init::Init;
pub use linear::Linear;
pub use norm::LayerNorm;
pub use operations::{Activation, Operations};
pub use parameters::{Builder, Parameters};

/// A failure inside Candle is never the user's doing: shapes and types were checked before.
impl From<candle_core::Error> for crate::Error {
    fn from(error: candle_core::Error) -> Self {
        if matches!(error, candle_core::Error::Cuda(_)) {
            let hint = "nvidia-smi and the system's log show whether the card is well, and whether its memory is full";
            return Self::run("the GPU failed").cause(error).hint(hint);
        }
        Self::run("the tensor library failed").cause(error)
    }
}
