//! Texts, without tensors: when two are the same, the tokens that they are made of, and the figures that translations are
//! measured by.

pub mod metrics;
mod normalize;
pub mod tokenizer;

pub use normalize::normalize;
pub use tokenizer::Tokenizer;
