//! The image backbone: a pre-norm vision transformer with a class token (ViT-S/16 by default).

use std::rc::Rc;

use candle_core::{Result, Tensor};

use super::trace::{Trace, unseen};
use crate::config;
use crate::nn::{
    Activation, Builder, Dropout, Images, Init, LayerNorm, Linear, MultiheadAttention, Operations, Pass,
    operations::Affine,
};

/// The vision transformer: images to the normalised class token's features.
pub struct VisionTransformer {
    cls_token: Tensor, // (1, 1, D)
    pos_embed: Tensor, // (1, S, D), S = patches + 1
    patch_embed: PatchEmbed,
    pos_drop: Dropout,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

/// A convolution of stride P, computed as one matrix product over patches.
struct PatchEmbed {
    weight: Tensor, // (D, 3, P, P)
    bias: Tensor,   // (D)
    patch: usize,
    operations: Rc<dyn Operations>,
}

/// A pre-norm transformer block: attention and MLP, each with a residual connection.
struct Block {
    norm1: LayerNorm,
    attn: MultiheadAttention,
    norm2: LayerNorm,
    mlp: Mlp,
    drop_path: [Dropout; 2],
}

/// Linear, exact GELU, dropout, linear, dropout.
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    dropout: [Dropout; 2],
    operations: Rc<dyn Operations>,
}

/// A backbone's norm.
fn norm(b: &Builder, name: &str, c: &config::Backbone) -> Result<LayerNorm> {
    LayerNorm::with_eps(&b.pp(name), c.embed_dim, c.layer_norm_eps as f32)
}

const TRUNCATED: Init = Init::TruncatedNormal(0.02);

impl VisionTransformer {
    /// For square images of `image_size`.
    pub fn new(b: &Builder, c: &config::Backbone, image_size: usize) -> Result<Self> {
        let (width, patches) = (c.embed_dim, (image_size / c.patch_size).pow(2));
        let cls_token = b.parameter("cls_token", &[1, 1, width], TRUNCATED)?;
        let pos_embed = b.parameter("pos_embed", &[1, patches + 1, width], TRUNCATED)?;
        let patch_embed = PatchEmbed::new(&b.pp("patch_embed").pp("proj"), width, c.patch_size)?;
        let blocks: Result<_> = (0..c.depth).map(|i| Block::new(&b.pp("blocks").pp(i), c)).collect();
        Ok(Self {
            cls_token,
            pos_embed,
            patch_embed,
            pos_drop: b.dropout("pos_drop", c.dropout),
            blocks: blocks?,
            norm: norm(b, "norm", c)?,
        })
    }

    /// N images to (N, D), as a graph of operations on any device.
    pub fn forward(&self, images: &Images, pass: &Pass) -> Result<Tensor> {
        self.forward_traced(images, pass, &mut unseen)
    }

    /// As [`Self::forward`]; `trace` sees what each part gives.
    pub(super) fn forward_traced(&self, images: &Images, pass: &Pass, trace: Trace) -> Result<Tensor> {
        let patches = self.patch_embed.forward(images)?;
        trace("patch_embed", &patches)?;
        let (n, _, d) = patches.dims3()?;
        let class = self.cls_token.broadcast_as((n, 1, d))?;
        let tokens = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.pos_embed)?;
        let mut x = self.pos_drop.forward(&tokens, pass)?;
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, pass)?;
            trace(&format!("blocks.{i}"), &x)?;
        }
        // Only the class token is used, so only it is normalised.
        let features = self.norm.forward(&x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?)?;
        trace("norm", &features)?;
        Ok(features)
    }
}

impl PatchEmbed {
    fn new(b: &Builder, width: usize, patch: usize) -> Result<Self> {
        let init = Init::FanIn(3 * patch * patch);
        Ok(Self {
            operations: b.operations(),
            weight: b.parameter("weight", &[width, 3, patch, patch], init)?,
            bias: b.parameter("bias", &[width], init)?,
            patch,
        })
    }

    fn forward(&self, images: &Images) -> Result<Tensor> {
        let weight = self.weight.flatten_from(1)?;
        self.operations.affine(&images.patches(self.patch)?, Affine::whole(&weight, Some(&self.bias))?)
    }
}

impl Block {
    fn new(b: &Builder, c: &config::Backbone) -> Result<Self> {
        Ok(Self {
            norm1: norm(b, "norm1", c)?,
            attn: MultiheadAttention::new(
                &b.pp("attn"),
                c.embed_dim,
                c.num_heads,
                c.attention_dropout,
                TRUNCATED,
            )?,
            norm2: norm(b, "norm2", c)?,
            mlp: Mlp::new(&b.pp("mlp"), c)?,
            drop_path: [
                b.dropout("drop_path1", c.stochastic_depth),
                b.dropout("drop_path2", c.stochastic_depth),
            ],
        })
    }

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let y = self.attn.forward(&self.norm1.forward(x)?, None, pass)?;
        let x = (x + self.drop_path[0].forward_rows(&y, pass)?)?;
        let y = self.mlp.forward(&self.norm2.forward(&x)?, pass)?;
        &x + self.drop_path[1].forward_rows(&y, pass)?
    }
}

impl Mlp {
    fn new(b: &Builder, c: &config::Backbone) -> Result<Self> {
        let hidden = c.mlp_width();
        Ok(Self {
            fc1: Linear::with_init(&b.pp(0), c.embed_dim, hidden, TRUNCATED, Init::Zeros)?,
            fc2: Linear::with_init(&b.pp(3), hidden, c.embed_dim, TRUNCATED, Init::Zeros)?,
            dropout: [b.dropout("2", c.dropout), b.dropout("4", c.dropout)],
            operations: b.operations(),
        })
    }

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let hidden = self.fc1.forward(x)?;
        let hidden = self.operations.activate(&hidden, Activation::Gelu, &self.dropout[0], pass)?;
        self.dropout[1].forward(&self.fc2.forward(&hidden)?, pass)
    }
}
