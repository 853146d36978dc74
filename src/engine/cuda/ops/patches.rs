//! Images to tokens.

use super::{Mask, Ops, at_least, int, rows_of, times};
use crate::Result;
use crate::engine::cuda::kernels;
use crate::engine::cuda::memory::{Activation, Matrix, Slice};
use crate::nn::images::{MEAN, STD};

/// Images on the GPU.
#[derive(Clone)]
pub enum Pixels {
    /// Bytes (N, H, W, 3).
    Bytes(Slice<u8>),
    /// Normalised (N, 3, H, W).
    Normalised(Slice<f32>),
}

impl Pixels {
    /// Numbers `range`.
    ///
    /// # Errors
    /// Where there are fewer.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Result<Self> {
        Ok(match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.slice(range)?),
            Self::Normalised(numbers) => Self::Normalised(numbers.slice(range)?),
        })
    }
}

/// Images of one size, cut into patches.
#[derive(Clone, Copy, Debug)]
pub struct PatchGrid {
    /// Height and width of an image.
    pub image: usize,
    /// Height and width of a patch, which divides the image's.
    pub patch: usize,
}

impl PatchGrid {
    /// Patches of an image.
    #[must_use]
    pub fn patches(self) -> usize {
        (self.image / self.patch).pow(2)
    }

    /// Numbers of a patch.
    #[must_use]
    pub fn patch_numbers(self) -> usize {
        3 * self.patch * self.patch
    }

    /// Numbers of an image.
    #[must_use]
    pub fn image_numbers(self) -> usize {
        3 * self.image * self.image
    }
}

/// Patches to tokens (N, S, D): a class token before the embedded patches, and positions.
pub struct Embed<'a> {
    /// (N P, D): embedded, before their bias.
    pub patches: &'a Matrix<Activation>,
    /// (D).
    pub bias: &'a Slice<f32>,
    /// (D).
    pub class_token: &'a Slice<f32>,
    /// (S D).
    pub position: &'a Slice<f32>,
    /// For each image's tokens.
    pub dropout: Mask,
    /// (N S, D).
    pub x: &'a Matrix<f32>,
}

impl Ops {
    /// Images to patches (N P, 3 p p).
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn patches(&self, pixels: &Pixels, grid: PatchGrid, out: &Matrix<Activation>) -> Result<()> {
        let images = times(out.rows(), grid.patches())?;
        let numbers = images.saturating_mul(grid.image_numbers());
        let (bytes, normalised) = match pixels {
            Pixels::Bytes(bytes) => (Some(bytes), None),
            Pixels::Normalised(numbers) => (None, Some(numbers)),
        };
        let args = kernels::Patches {
            bytes: at_least(bytes, numbers)?,
            normalised: at_least(normalised, numbers)?,
            out: rows_of(Some(out), out.rows(), grid.patch_numbers())?,
            images: int(images)?,
            size: int(grid.image)?,
            patch: int(grid.patch)?,
            factor: STD.map(|std| 1.0 / (255.0 * std)),
            offset: std::array::from_fn(|c| -MEAN[c] / STD[c]),
        };
        self.launch("patches", [out.rows(), 1, 1], 256, 0, &args)
    }

    /// Patches to tokens.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn embed(&self, a: &Embed) -> Result<()> {
        let (rows, width) = (a.x.rows(), a.x.cols());
        let tokens = times(a.position.len(), width)?;
        let images = times(rows, tokens)?;
        let args = kernels::Embed {
            patches: rows_of(Some(a.patches), images * (tokens - 1), width)?,
            bias: at_least(Some(a.bias), width)?,
            class_token: at_least(Some(a.class_token), width)?,
            position: a.position.ptr(),
            drop: a.dropout.ptr(images, tokens * width)?,
            x: rows_of(Some(a.x), rows, width)?,
            images: int(images)?,
            tokens: int(tokens)?,
            width: int(width)?,
            drop_scale: a.dropout.scale,
        };
        self.launch("embed", [rows, 1, 1], 128, 0, &args)
    }

    /// The gradient of [`Self::embed`]: that of the tokens, `d_x` (N S, D), to that of the embedded patches (N P, D), and to
    /// its sums over images, `sums` (S, D).
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn embed_backward(
        &self,
        d_x: &Matrix<f32>,
        dropout: &Mask,
        d_patches: &Matrix<Activation>,
        sums: &Matrix<f32>,
    ) -> Result<()> {
        let (tokens, width) = (sums.rows(), sums.cols());
        let images = times(d_x.rows(), tokens)?;
        let args = kernels::EmbedBackward {
            d_x: rows_of(Some(d_x), d_x.rows(), width)?,
            drop: dropout.ptr(images, tokens * width)?,
            d_patches: rows_of(Some(d_patches), images * (tokens - 1), width)?,
            sums: rows_of(Some(sums), tokens, width)?,
            images: int(images)?,
            tokens: int(tokens)?,
            width: int(width)?,
            drop_scale: dropout.scale,
        };
        self.launch_each("embed_backward", 256, tokens * width, &args)
    }
}
