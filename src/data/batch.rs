//! What the trainer asks for and what it gets: requests, samples, batches.

use super::bad_clips::SkippedClip;
use crate::config;
use crate::config::streams::image_streams;
use crate::random::{Purpose, stream};
use rand::seq::SliceRandom;
use std::ops::Range;

/// Which pass over the data a batch belongs to; it decides how a clip is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The first frame is drawn anew in each epoch.
    Train,
    /// The first frame is the clip's first.
    Validation,
}

/// One batch to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it is for.
    pub phase: Phase,
    /// The epoch, counted from 0.
    pub epoch: usize,
    /// Positions in `Dataset::clips`, in the order that they have in the batch.
    pub clips: Vec<usize>,
}

/// The training clips in the order of `epoch` (counted from 0): a shuffle that depends on the seed and the epoch only.
#[must_use]
pub fn training_order(seed: u64, epoch: usize, train: &[usize]) -> Vec<usize> {
    let mut order = train.to_vec();
    order.shuffle(&mut stream(seed, Purpose::Order, [epoch as u64, 0]));
    order
}

/// All batches of `epochs`, in order: each epoch's training batches, then its validation batches. The last batch of
/// each is short where the clips do not divide.
pub fn requests(
    seed: u64,
    [train, val]: [Vec<usize>; 2],
    [batch_size, val_batch_size]: [usize; 2],
    epochs: Range<usize>,
) -> impl Iterator<Item = Request> + Send + 'static {
    epochs.flat_map(move |epoch| {
        let order = training_order(seed, epoch, &train);
        let batches = |clips: &[usize], size: usize, phase| -> Vec<Request> {
            let chunks = clips.chunks(size.max(1));
            chunks.map(|clips| Request { phase, epoch, clips: clips.to_vec() }).collect()
        };
        let mut all = batches(&order, batch_size, Phase::Train);
        all.extend(batches(&val, val_batch_size, Phase::Validation));
        all
    })
}

/// The sizes of one clip in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// `T`, frames.
    pub frames: usize,
    /// `H` = `W`, pixels a side.
    pub image_size: usize,
    /// `P`, pose values a frame: three a landmark.
    pub pose: usize,
    /// `D`, where the image streams come as features and not as images.
    pub features: Option<usize>,
}

impl Sizes {
    /// Those of a network's input, of images.
    #[must_use]
    pub fn of(c: &config::Model) -> Self {
        let (frames, image_size, pose) = (c.sequence_length, c.image_size, 3 * c.pose_landmarks);
        Self { frames, image_size, pose, features: None }
    }

    /// Room for `frames` frames of an image stream.
    #[must_use]
    pub fn stream(&self, frames: usize) -> Pixels {
        match self.features {
            Some(width) => Pixels::Features(vec![0.0; frames * width]),
            None => Pixels::Bytes(vec![0; frames * self.image_bytes()]),
        }
    }

    /// The bytes of one image.
    #[must_use]
    pub fn image_bytes(&self) -> usize {
        self.image_size * self.image_size * 3
    }
}

/// One clip, decoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Of each image stream: `(T, H, W, 3)` RGB bytes, a missing image zeros; or features `(T, D)`.
    pub images: Vec<Pixels>,
    /// `(T, P)`.
    pub pose: Vec<f32>,
}

impl Sample {
    /// A sample in which everything is missing.
    #[must_use]
    pub fn new(sizes: Sizes) -> Self {
        Self {
            images: image_streams().map(|_| sizes.stream(sizes.frames)).collect(),
            pose: vec![0.0; sizes.frames * sizes.pose],
        }
    }
}

/// The images of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Pixels {
    /// RGB, as the decoder gives them: `(…, H, W, 3)`.
    Bytes(Vec<u8>),
    /// Scaled and normalised: `(…, 3, H, W)`. No file is read so: the numeric cases of other implementations are.
    Normalised(Vec<f32>),
    /// What the backbone makes of them: `(…, D)`.
    Features(Vec<f32>),
}

impl Pixels {
    /// The bytes; none where there are floats.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Normalised(_) | Self::Features(_) => &[],
        }
    }

    /// The bytes to write to; none where there are floats.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Normalised(_) | Self::Features(_) => &mut [],
        }
    }

    /// The features to write to, where it is features.
    pub fn features_mut(&mut self) -> Option<&mut [f32]> {
        match self {
            Self::Features(features) => Some(features),
            Self::Bytes(_) | Self::Normalised(_) => None,
        }
    }

    /// Copies `one` to the `position`-th place of its length, where it is of the same kind.
    fn put(&mut self, position: usize, one: &Self) {
        match (self, one) {
            (Self::Bytes(all), Self::Bytes(one)) => copy_to(all, position, one),
            (Self::Features(all), Self::Features(one)) | (Self::Normalised(all), Self::Normalised(one)) => {
                copy_to(all, position, one);
            }
            _ => {}
        }
    }
}

/// Several clips, decoded, one after another in each field.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Positions in `Dataset::clips`: `(B)`.
    pub clips: Vec<usize>,
    /// Of each image stream: `(B, T, H, W, 3)` RGB bytes, a missing image zeros; or features `(B, T, D)`.
    pub images: Vec<Pixels>,
    /// `(B, T, P)`.
    pub pose: Vec<f32>,
    /// `(B, T)`, all true: a clip is stretched to `T` by repetition.
    pub pad_mask: Vec<bool>,
    /// Clips of the request that are left out, in its order: with `data.on_bad_clip = "skip"`, those that could not be
    /// loaded. A batch may be left without any.
    pub skipped: Vec<SkippedClip>,
    /// `T`, `H` and `P`.
    pub sizes: Sizes,
}

impl Batch {
    /// A batch of `clips` with room for their samples.
    #[must_use]
    pub fn new(clips: Vec<usize>, sizes: Sizes) -> Self {
        let frames = clips.len() * sizes.frames;
        Self {
            clips,
            images: image_streams().map(|_| sizes.stream(frames)).collect(),
            pose: vec![0.0; frames * sizes.pose],
            pad_mask: vec![true; frames],
            skipped: Vec::new(),
            sizes,
        }
    }

    /// Puts `sample`, which has the batch's sizes, at `position`.
    pub(super) fn put(&mut self, position: usize, sample: &Sample) {
        for (all, one) in self.images.iter_mut().zip(&sample.images) {
            all.put(position, one);
        }
        copy_to(&mut self.pose, position, &sample.pose);
    }

    /// Leaves out the clips that are not marked in `keep`, which has a mark for each.
    pub(super) fn retain(&mut self, keep: &[bool]) {
        keep_parts(&mut self.clips, keep);
        for pixels in &mut self.images {
            match pixels {
                Pixels::Bytes(bytes) => keep_parts(bytes, keep),
                Pixels::Normalised(floats) | Pixels::Features(floats) => keep_parts(floats, keep),
            }
        }
        keep_parts(&mut self.pose, keep);
        keep_parts(&mut self.pad_mask, keep);
    }
}

/// Copies `one` to the `position`-th place of its length in `all`.
fn copy_to<T: Copy>(all: &mut [T], position: usize, one: &[T]) {
    if let Some(place) = all.get_mut(position * one.len()..(position + 1) * one.len()) {
        place.copy_from_slice(one);
    }
}

/// Moves those of `all`'s equal parts together that are marked in `keep`, which has a mark for each.
fn keep_parts<T: Copy>(all: &mut Vec<T>, keep: &[bool]) {
    let each = all.len() / keep.len().max(1);
    let mut kept = 0;
    for (at, _) in keep.iter().enumerate().filter(|(_, keep)| **keep) {
        all.copy_within(at * each..(at + 1) * each, kept * each);
        kept += 1;
    }
    all.truncate(kept * each);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_depends_on_seed_and_epoch_and_keeps_every_clip() {
        let train: Vec<usize> = (10..60).collect();
        let order = training_order(1, 0, &train);
        assert_eq!(order, training_order(1, 0, &train));
        assert_ne!(order, training_order(1, 1, &train));
        assert_ne!(order, training_order(2, 0, &train));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted == train && order != train);
    }

    #[test]
    fn requests_run_across_phases_and_epochs() {
        let all: Vec<Request> = requests(1, [vec![0, 1, 2], vec![3, 4]], [2, 5], 4..6).collect();
        let shape: Vec<_> = all.iter().map(|r| (r.phase, r.epoch, r.clips.len())).collect();
        let epoch = |e| [(Phase::Train, e, 2), (Phase::Train, e, 1), (Phase::Validation, e, 2)];
        assert_eq!(shape, [epoch(4), epoch(5)].concat());
        assert_eq!([&all[0].clips[..], &all[1].clips].concat(), training_order(1, 4, &[0, 1, 2]));
        assert_eq!(all[2].clips, [3, 4]);
    }

    #[test]
    fn samples_stand_one_after_another() {
        let sizes = Sizes { frames: 2, image_size: 1, pose: 3, features: None };
        let mut batch = Batch::new(vec![7, 8], sizes);
        let mut sample = Sample::new(sizes);
        sample.images[1].bytes_mut().fill(9);
        sample.pose.fill(0.5);
        batch.put(1, &sample);
        assert_eq!(batch.images[1].bytes(), [0, 0, 0, 0, 0, 0, 9, 9, 9, 9, 9, 9]);
        assert_eq!((batch.pose[5], batch.pose[6]), (0.0, 0.5));
        assert_eq!(batch.pad_mask, [true; 4]);
    }
}
