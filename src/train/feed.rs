//! What the training loop eats: the batches of every epoch in order, loaded ahead, on the device.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use candle_core::{Device, Tensor};

use crate::config;
use crate::data::{Batch, Dataset, Loader, Phase, Request, training_order};
use crate::model::Inputs;
use crate::nn::Images;
use crate::{Error, Result};

/// The batches of a run from one epoch to its last, training and validation in turn, so that loading ahead does not
/// stop where an epoch ends.
pub struct Feed {
    loader: Loader,
    device: Device,
    steps: usize,
    validation_steps: usize,
    frames: usize,
}

/// One batch on the device.
pub struct Meal {
    /// The network's inputs.
    pub inputs: Inputs,
    /// Class indices (B), u32.
    pub targets: Tensor,
    /// How many clips it has.
    pub clips: usize,
}

impl Feed {
    /// Over `epochs` (counted from 1) of `dataset`.
    pub fn new(
        dataset: &Arc<Dataset>,
        c: &config::Data,
        seed: u64,
        epochs: RangeInclusive<usize>,
        device: &Device,
        frames: usize,
    ) -> Self {
        let (batch, val_batch) = (c.batch_size, c.val_batch_size.unwrap_or(c.batch_size));
        let (train, val) = (dataset.train.clone(), dataset.val.clone());
        let (steps, validation_steps) = (train.len().div_ceil(batch), val.len().div_ceil(val_batch));
        let requests = epochs.flat_map(move |epoch| {
            let training = requests(Phase::Train, epoch, &training_order(seed, epoch, &train), batch);
            let validation = requests(Phase::Validation, epoch, &val, val_batch);
            training.into_iter().chain(validation)
        });
        let workers = c.num_workers.unwrap_or_else(default_workers);
        let loader = Loader::new(Arc::clone(dataset), workers, requests);
        Self { loader, device: device.clone(), steps, validation_steps, frames }
    }

    /// Training batches an epoch.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Validation batches an epoch.
    #[must_use]
    pub fn validation_steps(&self) -> usize {
        self.validation_steps
    }

    /// The next batch, which is of `phase` and `epoch`: the loop asks for them in the order of the plan.
    pub fn next(&mut self, phase: Phase, epoch: usize) -> Result<Meal> {
        let (request, batch) = self
            .loader
            .next()
            .ok_or_else(|| Error::run("the loader has no batch where the loop expects one"))??;
        if request.phase != phase || request.epoch != epoch {
            return Err(Error::run("the loader's batches are out of step with the loop"));
        }
        on_device(batch, self.frames, &self.device)
    }

    /// How long [`Self::next`] has waited for data since the last call.
    pub fn take_wait(&mut self) -> Duration {
        self.loader.take_wait()
    }
}

/// The cores at hand, at most 8.
#[must_use]
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8)
}

fn requests(phase: Phase, epoch: usize, order: &[usize], batch: usize) -> Vec<Request> {
    order.chunks(batch).map(|clips| Request { phase, epoch, clips: clips.to_vec() }).collect()
}

/// Moves a batch of `frames` frames a clip to the device; images stay bytes.
pub fn on_device(batch: Batch, frames: usize, device: &Device) -> Result<Meal> {
    let clips = batch.targets.len();
    let images = clips * frames;
    let size = (batch.images[0].len() / (3 * images.max(1))).isqrt();
    let tensor = |bytes: Vec<u8>| Tensor::from_vec(bytes, (images, size, size, 3), device).map(Images::Bytes);
    let [face, left, right] = batch.images;
    let width = batch.pose.len() / images.max(1);
    let mask: Vec<u8> = batch.pad_mask.iter().map(|&valid| u8::from(valid)).collect();
    Ok(Meal {
        inputs: Inputs {
            images: [tensor(face)?, tensor(left)?, tensor(right)?],
            pose: Tensor::from_vec(batch.pose, (clips, frames, width), device)?,
            pad_mask: Tensor::from_vec(mask, (clips, frames), device)?,
        },
        targets: Tensor::from_vec(batch.targets, clips, device)?,
        clips,
    })
}
