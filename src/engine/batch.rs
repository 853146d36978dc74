//! A batch on its way to where it is computed with.

use candle_core::{Device, Tensor};

use crate::Result;
use crate::data::{Batch, Pixels};
use crate::model::{Frames, StreamInput};
use crate::nn::Images;

/// A batch in the host's memory with its clips' targets, and where it is on a device, once it has been sent there.
pub struct Placed {
    /// The batch.
    pub batch: Batch,
    /// What is to be predicted of each clip: (B), of L numbers each.
    pub targets: Vec<Vec<u32>>,
    /// Its place on the device.
    #[cfg_attr(
        not(any(feature = "cuda", test)),
        allow(dead_code, reason = "engines without a device have one place")
    )]
    pub(super) slot: Option<usize>,
    /// Its encoded frames (B, T, D) on the host, where it was evaluated and they were there.
    pub(super) encoded: Option<Tensor>,
}

impl Placed {
    /// A batch, and the target of each of its clips.
    #[must_use]
    pub fn new(batch: Batch, targets: Vec<Vec<u32>>) -> Self {
        Self { batch, targets, slot: None, encoded: None }
    }

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

/// The targets of `batch` (B, L), u32, on `device`: shorter ones than the longest end in zeros.
pub(super) fn targets(batch: &Placed, device: &Device) -> Result<Tensor> {
    let length = batch.targets.iter().map(Vec::len).max().unwrap_or(0);
    let padded = batch
        .targets
        .iter()
        .flat_map(|target| target.iter().copied().chain(std::iter::repeat(0)).take(length));
    Ok(Tensor::from_iter(padded, device)?.reshape((batch.targets.len(), length))?)
}

/// What each image stream of `batch` gives, on `device`.
pub(super) fn inputs(batch: &Batch, device: &Device) -> Result<Vec<StreamInput>> {
    let count = batch.clips.len() * batch.sizes.frames;
    batch.images.iter().map(|pixels| input(pixels, count, batch.sizes.image_size, device)).collect()
}

/// `count` frames of an image stream, of images of `image_size`, on `device`.
pub(super) fn input(
    pixels: &Pixels,
    count: usize,
    image_size: usize,
    device: &Device,
) -> Result<StreamInput> {
    Ok(match pixels {
        Pixels::Bytes(bytes) => StreamInput::Images(Images::of_bytes(bytes, count, image_size, device)?),
        Pixels::Normalised(floats) => {
            StreamInput::Images(Images::normalised(floats, count, image_size, device)?)
        }
        Pixels::Features(features) => StreamInput::Features(features_on(features, count, device)?),
    })
}

/// Features (N, D) on `device`.
pub(super) fn features_on(features: &[f32], count: usize, device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_slice(features, (count, features.len() / count.max(1)), device)?)
}
