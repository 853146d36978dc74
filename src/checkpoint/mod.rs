//! Checkpoints in PyTorch's own zip format: written so that `torch.load(weights_only=True)` reads them, and
//! read without ever running what a file asks for.
//!
//! Bottom up: [`value`] holds plain values and tensors, `pickle_write` and `pickle_read` translate them to and
//! from the object stream, `zip_write` and `archive` hold the container, [`torch_file`] puts the two together,
//! [`atomic`] replaces files, and [`state`] and [`optimizer`] know the keys of a training checkpoint. [`weights`] reads
//! weights from whatever file they are in.

mod archive;
pub mod atomic;
mod globals;
pub mod optimizer;
mod pickle_read;
mod pickle_write;
pub mod safetensors;
pub mod state;
pub mod torch_file;
pub mod value;
pub mod weights;
mod zip_write;

pub use atomic::{link_or_copy, separate};
pub use optimizer::{AdamMoments, AdamState, Expected, GroupState, SgdState};
pub use state::{Checkpoint, match_parameters, model_state};
pub use torch_file::{load, save, save_in, write};
pub use value::{Dtype, TensorData, Value};
pub use weights::Weights;
