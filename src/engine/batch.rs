//! A batch on its way to where it is computed with.

use candle_core::{Device, Tensor};

use crate::Result;
use crate::data::Batch;
use crate::model::Frames;
use crate::nn::Images;

/// A batch in the host's memory, and where it is on a device, once it has been sent there.
pub struct Placed {
    /// The batch.
    pub batch: Batch,
    /// Its place on the device.
    #[cfg_attr(
        not(any(feature = "cuda", test)),
        allow(dead_code, reason = "engines without a device have one place")
    )]
    pub(super) slot: Option<usize>,
}

impl From<Batch> for Placed {
    fn from(batch: Batch) -> Self {
        Self { batch, slot: None }
    }
}

impl Placed {
    /// How many clips it has. None where all of them had to be skipped: there is nothing to compute then.
    #[must_use]
    pub fn clips(&self) -> usize {
        self.batch.clips.len()
    }
}

/// What the encoder takes of `batch` besides the images, as tensors on `device`.
pub(super) fn frames(batch: &Batch, device: &Device) -> Result<Frames> {
    let (clips, frames) = (batch.clips.len(), batch.sizes.frames);
    let mask: Vec<u8> = batch.pad_mask.iter().map(|&valid| u8::from(valid)).collect();
    Ok(Frames {
        poses: vec![Tensor::from_slice(&batch.pose, (clips, frames, batch.sizes.pose), device)?],
        pad_mask: Tensor::from_vec(mask, (clips, frames), device)?,
    })
}

/// The targets of `batch` (B, 1), u32, on `device`.
pub(super) fn targets(batch: &Batch, device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_slice(&batch.targets, (batch.clips.len(), 1), device)?)
}

/// The images of each stream of `batch`, as tensors on `device`.
pub(super) fn images(batch: &Batch, device: &Device) -> Result<Vec<Images>> {
    let (count, size) = (batch.clips.len() * batch.sizes.frames, batch.sizes.image_size);
    let images: candle_core::Result<_> =
        batch.images.iter().map(|pixels| Images::new(pixels, count, size, device)).collect();
    Ok(images?)
}
