//! What the encoder takes of a batch besides the images.

use candle_core::{Result, Tensor};

use crate::nn::attention::key_bias;
use crate::nn::{Images, Pass};

/// What an image stream of a batch gives, N = B T frames of it, on the device that computes.
pub enum StreamInput {
    /// Images, for a backbone.
    Images(Images),
    /// What a backbone has made of them: (N, D).
    Features(Tensor),
}

/// What the encoder takes of a batch besides the images, on the device that computes.
#[derive(Clone, Debug)]
pub struct Frames {
    /// Each pose stream's: (B, T, 3 landmarks), f32.
    pub poses: Vec<Tensor>,
    /// (B, T), u8: 1 = a frame of the clip, 0 = padding.
    pub pad_mask: Tensor,
}

impl Frames {
    /// The pass of the images of clips that `pass` is for: its rows are images where those are clips.
    pub fn images_pass(&self, pass: &Pass) -> Result<Pass> {
        Ok(Pass { first_row: pass.first_row * self.pad_mask.dim(1)?, ..*pass })
    }

    /// What attention adds to the scores of each key: 0, or minus infinity at padding. (B, 1, 1, T)
    pub fn key_bias(&self) -> Result<Tensor> {
        key_bias(&self.pad_mask)
    }
}
