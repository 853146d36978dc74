//! Dropout masks.

use std::cell::RefCell;

use super::{Ops, at_least, int, long};
use crate::Result;
use crate::engine::cuda::kernels;
use crate::engine::cuda::memory::{Buffer, DevicePtr, Slice};
use crate::nn::{Dropout, Pass};
use crate::random::Purpose;

/// A dropout's mask for one launch; none where it drops nothing.
#[derive(Clone, Default)]
pub struct Mask {
    words: Option<Slice<u16>>,
    /// What is kept counts so much.
    pub(super) scale: f32,
}

impl Mask {
    /// Words of 16 elements that a sample of `elements` has.
    fn sample_words(elements: usize) -> usize {
        elements.div_ceil(16)
    }

    /// For `samples` of `elements` each.
    pub(super) fn ptr(&self, samples: usize, elements: usize) -> Result<DevicePtr<u16>> {
        at_least(self.words.as_ref(), samples.saturating_mul(Self::sample_words(elements)))
    }

    /// For `rows` of `width`, `sample_rows` of them a sample.
    pub(super) fn for_rows(&self, rows: usize, width: usize, sample_rows: usize) -> Result<DevicePtr<u16>> {
        let sample_rows = sample_rows.max(1);
        self.ptr(rows.div_ceil(sample_rows), sample_rows.saturating_mul(width))
    }

    /// Whether it drops anything.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.words.is_some()
    }
}

/// Rows that share a mask, as a kernel divides by them.
pub(super) fn sample_rows(rows: usize) -> Result<i32> {
    int(rows.max(1))
}

impl Ops {
    /// The mask of `dropout` for `samples` of `elements` each. It is there until the next one is drawn.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn mask(
        &self,
        dropout: Option<Dropout>,
        pass: &Pass,
        samples: usize,
        elements: usize,
    ) -> Result<Mask> {
        self.draw(&self.masks, dropout, pass, samples, elements)
    }

    /// The mask of stochastic depth: one element a sample. It is there until the next one is drawn.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn path_mask(&self, drop_path: Option<Dropout>, pass: &Pass, samples: usize) -> Result<Mask> {
        self.draw(&self.path_masks, drop_path, pass, samples, 1)
    }

    fn draw(
        &self,
        buffer: &RefCell<Buffer<u16>>,
        dropout: Option<Dropout>,
        pass: &Pass,
        samples: usize,
        elements: usize,
    ) -> Result<Mask> {
        let (Some(dropout), Some(masks)) = (dropout.filter(Dropout::is_active), pass.masks) else {
            return Ok(Mask::default());
        };
        let words = samples.saturating_mul(Mask::sample_words(elements));
        let out = buffer.borrow_mut().resize_vector(&self.allocator, words)?;
        let args = kernels::Mask {
            out: out.ptr(),
            // The same bits: the kernel reads them as unsigned.
            seed: masks.seed.cast_signed(),
            step: masks.step.cast_signed(),
            site: dropout.site().cast_signed(),
            first_sample: long(pass.first_row)?,
            samples: long(samples)?,
            elements: long(elements)?,
            purpose: Purpose::Dropout as u32,
            threshold: dropout.threshold(),
        };
        self.launch_each("mask", 128, words, &args)?;
        Ok(Mask { words: Some(out), scale: dropout.scale() })
    }
}
