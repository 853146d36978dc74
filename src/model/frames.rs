//! What the encoder takes of a batch besides the images.

use candle_core::{DType, Result, Tensor};

use crate::nn::Pass;

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
        let (batch, frames) = self.pad_mask.dims2()?;
        let zeros = self.pad_mask.zeros_like()?.to_dtype(DType::F32)?;
        let hidden = Tensor::full(f32::NEG_INFINITY, (batch, frames), self.pad_mask.device())?;
        self.pad_mask.where_cond(&zeros, &hidden)?.reshape((batch, 1, 1, frames))
    }
}
