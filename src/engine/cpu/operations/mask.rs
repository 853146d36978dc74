//! Dropout's masks, drawn once for both passes.

use rayon::prelude::*;

use super::super::math::vectorised;
use crate::nn::{Dropout, Pass};

/// Numbers that a thread draws at a time.
const DRAWN: usize = 1 << 14;

/// What is kept: 1, or 0, a byte each.
pub(super) struct Mask {
    kept: Vec<u8>,
    scale: f32,
}

impl Mask {
    /// For `len` numbers in `rows` rows; none where nothing is dropped.
    pub(super) fn new(dropout: &Dropout, pass: &Pass, rows: usize, len: usize) -> Option<Self> {
        let masks = pass.masks.filter(|_| dropout.is_active())?;
        let width = len / rows.max(1);
        let mut kept = vec![0; len];
        kept.par_chunks_mut(width.max(1)).enumerate().for_each(|(row, kept)| {
            kept.par_chunks_mut(DRAWN).enumerate().for_each(|(part, kept)| {
                dropout.fill_kept(kept, masks, pass.first_row + row, part * DRAWN);
            });
        });
        Some(Self { kept, scale: dropout.scale() })
    }

    /// Multiplies `x`, the numbers from `first` on, by 0 or the inverse share that is kept.
    pub(super) fn apply(&self, x: &mut [f32], first: usize) {
        apply(x, &self.kept[first..], self.scale);
    }
}

vectorised! {
    pub fn apply(x: &mut [f32], kept: &[u8], scale: f32) {
        for (x, &kept) in x.iter_mut().zip(kept) {
            *x = if kept == 0 { 0.0 } else { *x * scale };
        }
    }
}
