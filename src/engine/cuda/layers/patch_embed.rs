//! Images to tokens: patches through a linear layer, the class token before them, and positions.

use super::{Context, Linear};
use crate::engine::cuda::memory::{Activation, Buffer, Matrix};
use crate::engine::cuda::ops::{Embed, Output, PatchGrid, Pixels};
use crate::engine::cuda::parameters::{Module, Parameter};
use crate::nn::Dropout;
use crate::{Error, Result};

/// The beginning of the vision transformer.
pub struct PatchEmbed {
    class_token: Parameter,
    position: Parameter,
    proj: Linear,
    dropout: Dropout,
    grid: PatchGrid,
}

/// Memory that both passes use in passing.
#[derive(Default)]
pub struct EmbedScratch {
    /// (N P, 3 p p).
    patches: Buffer<Activation>,
    /// (S, D).
    sums: Buffer<f32>,
}

impl PatchEmbed {
    /// The module's `cls_token`, `pos_embed`, `patch_embed.proj` and `pos_drop`, for square images of `image` pixels.
    ///
    /// # Errors
    /// Where it has none, or they are for other images.
    pub fn new(module: &Module, image: usize) -> Result<Self> {
        let (class_token, position) = (module.parameter("cls_token")?, module.parameter("pos_embed")?);
        let proj = module.pp("patch_embed").pp("proj");
        let weight = proj.parameter("weight")?;
        let grid = PatchGrid { image, patch: weight.shape.last().copied().unwrap_or(0).max(1) };
        let embed = Self {
            proj: Linear::from_parameters(&weight, &proj.parameter("bias")?)?,
            class_token,
            position,
            dropout: module.dropout("pos_drop")?,
            grid,
        };
        let (tokens, width) = (embed.tokens(), embed.width());
        if embed.position.value.len() != tokens * width || embed.proj.inputs() != grid.patch_numbers() {
            return Err(Error::run(format!("{} is not for images of {image}", module.path())));
        }
        Ok(embed)
    }

    /// S: the class token and the patches.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.grid.patches() + 1
    }

    /// D.
    #[must_use]
    pub fn width(&self) -> usize {
        self.proj.outputs()
    }

    /// Numbers of an image.
    #[must_use]
    pub fn image_numbers(&self) -> usize {
        self.grid.image_numbers()
    }

    /// Images to tokens `x` (N S, D); `embedded` (N P, D) is used in passing.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn forward(
        &self,
        cx: &Context,
        images: &Pixels,
        embedded: &Matrix<Activation>,
        x: &Matrix<f32>,
        scratch: &mut EmbedScratch,
    ) -> Result<()> {
        let patches = self.patches(cx, images, scratch)?;
        self.proj.forward(cx.ops, &patches, Output::Activation(embedded))?;
        cx.ops.embed(&Embed {
            patches: embedded,
            bias: &self.proj.bias,
            class_token: &self.class_token.value,
            position: &self.position.value,
            dropout: cx.mask(Some(self.dropout), x.rows(), x.cols())?,
            x,
        })
    }

    fn patches(
        &self,
        cx: &Context,
        images: &Pixels,
        scratch: &mut EmbedScratch,
    ) -> Result<Matrix<Activation>> {
        let rows = cx.samples * self.grid.patches();
        let patches = scratch.patches.resize(cx.allocator(), rows, self.grid.patch_numbers())?;
        cx.ops.patches(images, self.grid, &patches)?;
        Ok(patches)
    }

    /// Adds the parameters' gradients, from that of the tokens, `d_x`; `d_embedded` (N P, D) is used in passing.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn backward(
        &self,
        cx: &Context,
        images: &Pixels,
        d_x: &Matrix<f32>,
        d_embedded: &Matrix<Activation>,
        scratch: &mut EmbedScratch,
    ) -> Result<()> {
        let (tokens, width) = (self.tokens(), self.width());
        let sums = scratch.sums.resize(cx.allocator(), tokens, width)?;
        let mask = cx.mask(Some(self.dropout), d_x.rows(), width)?;
        cx.ops.embed_backward(d_x, &mask, d_embedded, &sums)?;
        cx.ops.reduce(&sums.first_rows(1)?, &[Some(&self.class_token.gradient)])?;
        cx.ops.add(&sums.flat()?, &self.position.gradient)?;
        cx.ops.reduce(&sums.row_range(1..tokens)?, &[Some(&self.proj.d_bias)])?;
        let patches = self.patches(cx, images, scratch)?;
        self.proj.backward_weight(cx.ops, &patches, d_embedded)
    }
}
