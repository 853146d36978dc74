//! The multi-stream network, part by part as its figure shows it: three backbones and their projectors, fusion,
//! temporal encoder, decoder. Field paths are the checkpoint's keys; shapes use the legend of [`crate::nn`].

mod classifier;
mod decoder;
mod drops;
mod encoder;
mod fused;
mod fusion;
mod projector;
mod temporal;
mod trace;
mod vit;

pub use classifier::{Classifier, Inputs};
pub use drops::{HeadDrops, LayerDrops};
pub use trace::Activation;
pub use vit::VisionTransformer;
