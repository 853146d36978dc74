//! The vision transformer, forward and backward. The same network as [`crate::model::VisionTransformer::forward`]; as on the
//! CPU, only the class token leaves the last block.

use super::layers::{
    Block, BlockBuffers, BlockSaved, BlockScratch, Context, EmbedScratch, LayerNorm, NormGradients,
    NormOutputs, NormSaved, PatchEmbed, Queries, Residual,
};
use super::memory::{Activation, Buffer, Matrix};
use super::ops::Pixels;
use super::parameters::Module;
use crate::config;
use crate::engine::trained::Trained;
use crate::nn::Scope;
use crate::{Error, Result};

/// A backbone: images to features.
pub struct Backbone {
    embed: PatchEmbed,
    blocks: Vec<Block>,
    norm: LayerNorm,
    trained: Trained,
}

/// What its backward pass needs of its forward pass.
#[derive(Default)]
pub struct BackboneSaved {
    blocks: Vec<BlockSaved>,
    norm: NormSaved,
}

/// Memory that both passes use in passing.
#[derive(Default)]
pub struct BackboneScratch {
    embed: EmbedScratch,
    block: BlockScratch,
    /// (N S, D): the residual sum, or its gradient.
    x: Buffer<f32>,
    /// (N, D): the same for class tokens after the last block's attention.
    class_tokens: Buffer<f32>,
    /// (N S, D): a norm's output.
    y: Buffer<Activation>,
    /// (N S, D): a norm's output's gradient.
    d_y: Buffer<Activation>,
    /// (N S, D): a branch's output, or its gradient.
    branch: Buffer<Activation>,
}

impl Backbone {
    /// The module's parts, with the sizes that are in no shape from `c`; `scope` says what of it trains.
    ///
    /// # Errors
    /// Where it has none.
    pub fn new(module: &Module, scope: &Scope, c: &config::Model) -> Result<Self> {
        let blocks = module.pp("blocks");
        let depth = blocks.children();
        let queries = |i| if i + 1 == depth { Queries::ClassToken } else { Queries::All };
        let new = |i| Block::new(&blocks.pp(i), &c.backbone, queries(i));
        Ok(Self {
            embed: PatchEmbed::new(module, c.image_size)?,
            blocks: (0..depth).map(new).collect::<Result<_>>()?,
            norm: LayerNorm::with_eps(&module.pp("norm"), c.backbone.layer_norm_eps as f32)?,
            trained: Trained::of(scope),
        })
    }

    /// Whether any of it trains.
    #[must_use]
    pub fn trains(&self) -> bool {
        self.trained != Trained::Nothing
    }

    /// D: the width of its features.
    #[must_use]
    pub fn width(&self) -> usize {
        self.norm.width()
    }

    /// Numbers of an image.
    #[must_use]
    pub fn image_numbers(&self) -> usize {
        self.embed.image_numbers()
    }

    /// The numbers of a head, in each block.
    pub fn head_widths(&self) -> impl Iterator<Item = usize> {
        self.blocks.iter().map(Block::head_width)
    }

    fn last(&self) -> Result<&Block> {
        self.blocks.last().ok_or_else(|| Error::run("a backbone has no block"))
    }

    /// Buffers for `cx.samples` images, whose norms' outputs, or their gradients, go to `y`.
    fn buffers(
        &self,
        cx: &Context,
        x: &mut Buffer<f32>,
        class_tokens: &mut Buffer<f32>,
        y: &mut Buffer<Activation>,
        branch: &mut Buffer<Activation>,
    ) -> Result<BlockBuffers> {
        let (allocator, width) = (cx.ops.allocator(), self.width());
        let rows = cx.samples * self.embed.tokens();
        Ok(BlockBuffers {
            x: x.resize(allocator, rows, width)?,
            class_tokens: class_tokens.resize(allocator, cx.samples, width)?,
            y: y.resize(allocator, rows, width)?,
            branch: branch.resize(allocator, rows, width)?,
        })
    }

    /// `images`, `cx.samples` of them, to features (N, D). With `saved`, for a backward pass.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn forward(
        &self,
        cx: &Context,
        images: &Pixels,
        features: &Matrix<f32>,
        scratch: &mut BackboneScratch,
        mut saved: Option<&mut BackboneSaved>,
    ) -> Result<()> {
        let BackboneScratch { embed, block: in_block, x, class_tokens, y, branch, .. } = scratch;
        let buffers = self.buffers(cx, x, class_tokens, y, branch)?;
        let BlockBuffers { x, y, .. } = &buffers;
        self.embed.forward(cx, images, &self.patches(cx, &buffers.branch)?, x, embed)?;
        if let Some(saved) = &mut saved {
            saved.blocks.resize_with(self.blocks.len(), BlockSaved::default);
        }

        // The input's norm; each later one comes with the residual sum before it.
        let mut input = Residual { x: Some(x), ..Residual::default() };
        let mut sum = None;
        let first = self.trained.first_block(self.blocks.len());
        for (i, block) in self.blocks.iter().enumerate() {
            let saved = saved.as_deref_mut().filter(|_| i >= first);
            let mut saved = saved.and_then(|saved| saved.blocks.get_mut(i));
            let out = NormOutputs { sum, y_operand: Some(y), ..NormOutputs::default() };
            block.norm1.forward(cx, input, out, saved.as_deref_mut().map(|saved| &mut saved.norm1))?;
            block.forward(cx, &buffers, in_block, saved)?;
            input = Residual { x: Some(block.sum(&buffers)), branch: Some((&buffers.branch, &block.end)) };
            sum = Some(x);
        }
        let branch = self.last()?.branch(&buffers)?;
        let input = Residual { branch: input.branch.map(|(_, end)| (&branch, end)), ..input };
        let out = NormOutputs { y: Some(features), ..NormOutputs::default() };
        self.norm.forward(cx, input, out, saved.map(|saved| &mut saved.norm))
    }

    /// The rows of a buffer of all tokens that hold the patches alone.
    fn patches(&self, cx: &Context, tokens: &Matrix<Activation>) -> Result<Matrix<Activation>> {
        tokens.first_rows(cx.samples * (self.embed.tokens() - 1))
    }

    /// Adds the gradients of the parameters from the lowest one on that trains, from that of the features, `d_features` (N, D). What [`Self::forward`] saved of the
    /// same images is used up.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn backward(
        &self,
        cx: &Context,
        images: &Pixels,
        d_features: &Matrix<f32>,
        scratch: &mut BackboneScratch,
        saved: &mut BackboneSaved,
    ) -> Result<()> {
        let BackboneScratch { embed, block: in_block, x, class_tokens, d_y, branch: in_branch, .. } = scratch;
        let buffers = self.buffers(cx, x, class_tokens, d_y, in_branch)?;
        let (last, first) = (self.last()?, self.trained.first_block(self.blocks.len()));
        let branch = last.branch(&buffers)?;
        let gradients = NormGradients {
            dy: Some(d_features),
            d_x: Some(last.sum(&buffers)),
            d_branch: (first < self.blocks.len()).then_some((&branch, &last.end)),
            ..NormGradients::default()
        };
        self.norm.backward(cx, &saved.norm, gradients)?;

        for (i, (block, saved)) in self.blocks.iter().zip(&mut saved.blocks).enumerate().skip(first).rev() {
            let below =
                i.checked_sub(1).filter(|&below| below >= first).and_then(|below| self.blocks.get(below));
            block.backward(cx, &buffers, in_block, saved, below.map(|below| &below.end))?;
        }
        if self.trained != Trained::All {
            return Ok(());
        }
        let d_patches = self.patches(cx, &buffers.y)?;
        self.embed.backward(cx, images, &buffers.x, &d_patches, embed)
    }
}
