//! The multi-stream network, part by part as its figure shows it: a backbone for each image stream, projectors, fusion,
//! temporal encoder, decoder. Field paths are the checkpoint's keys; shapes use the legend of [`crate::nn`].
//!
//! Names, shapes, initial values and order of all parameters come from the constructors here, and from nowhere else.

pub mod decoder;
mod encoder;
mod frames;
mod frozen;
mod fusion;
mod network;
pub mod pretrained;
mod projector;
pub mod search;
pub mod sizes;
mod temporal;
mod trace;
mod vit;
pub mod work;

pub use decoder::{Decoder, DecoderKind, DecoderStep, Encoded, Loss, Score, TextReport};
pub use frames::{Frames, StreamInput};
pub use network::Network;
pub use search::Hypothesis;
pub use trace::ModuleOutput;
pub use vit::VisionTransformer;
