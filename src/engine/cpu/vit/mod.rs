//! The whole vision transformer, forward and backward, images side by side.
//!
//! A group of a few images goes through a block on one thread, its activations in that core's cache and without
//! waiting for the others; only the gradients of the weights, sums over all images, are products that all threads
//! share. Groups depend on the number of images alone, so that results do not depend on the number of threads.
//! Only the class token leaves the last block: there, queries, attention and MLP are computed for it alone.

mod backward;
mod forward;
mod matrices;
mod tape;

pub use backward::{Backward, backward};
pub use forward::forward;
pub use tape::{Kept, Tape, Workspace};

use std::num::Saturating;

use super::precision::{Number, room};
use super::rows::{self, Norm};
use crate::engine::trained::Trained;
use crate::model::work;
use crate::nn::{Dropout, ParameterId, Pass, Scope, dropout::Masks};
use crate::{Result, config};

/// Images that go through the network together on one thread.
const GROUP: usize = 2;

/// Images whose gradients of a weight are one product. It divides every chunk that is chosen, so that the order of
/// additions, and with it every bit of the result, is the same for all of them.
pub const UNIT: usize = 16;

/// The architecture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Height and width of an image.
    pub image: usize,
    /// Height and width of a patch, which divides the image's.
    pub patch: usize,
    /// `D`.
    pub width: usize,
    /// `H`, which divides the width.
    pub heads: usize,
    /// The hidden width of a block's MLP.
    pub hidden: usize,
    /// Blocks; at least 1.
    pub depth: usize,
    /// What is added to the variance in each `LayerNorm`.
    pub eps: f32,
    /// What of it trains.
    pub trained: Trained,
}

impl Shape {
    /// Patches an image.
    #[must_use]
    pub fn patches(&self) -> usize {
        (self.image / self.patch).pow(2)
    }

    /// `S`: the class token and the patches.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.patches() + 1
    }

    fn pixels(&self) -> usize {
        3 * self.patch * self.patch
    }

    /// How many tokens an image has that block `i` computes queries and outputs for.
    fn queries(&self, block: usize) -> usize {
        if block + 1 == self.depth { 1 } else { self.tokens() }
    }

    /// One of its norms, of these numbers.
    fn norm<'a>(&self, of: &Affine<&'a [f32]>) -> Norm<'a> {
        Norm { weight: of.weight, bias: of.bias, eps: self.eps }
    }

    /// The first block that the backward pass goes through, or how many blocks there are, where it goes through none.
    fn first_trained(&self) -> usize {
        self.trained.first_block(self.depth)
    }

    /// The multiply-adds of an image's forward pass, and how many of them have a backward pass.
    #[must_use]
    pub fn work(&self) -> [f64; 2] {
        let (d, s) = (self.width, self.tokens());
        let block = |index: usize| {
            let queries = self.queries(index);
            work::of_maps(s, 2 * d * d)
                + work::of_maps(queries, 2 * d * d + 2 * d * self.hidden)
                + work::of_attention(queries, s, d)
        };
        let embed = work::of_maps(self.patches(), self.pixels() * d);
        let blocks = |from: usize| (from..self.depth).map(block).sum::<f64>();
        // Pixels have no gradient: half of the embedding's backward pass is left out.
        let trained =
            if self.trained == Trained::All { embed * 0.5 } else { 0.0 } + blocks(self.first_trained());
        [embed + blocks(0), trained]
    }

    /// Bytes that the backward pass needs for an image besides the tape, where an operand has `number`; as many as fit,
    /// where there are more.
    #[must_use]
    pub fn backward_bytes(&self, number: usize) -> usize {
        if self.trained == Trained::Nothing {
            return 0;
        }
        let [tokens, patches, pixels] = [self.tokens(), self.patches(), self.pixels()].map(Saturating);
        let [width, hidden, number] = [self.width, self.hidden, number].map(Saturating);
        let operands = tokens * (Saturating(5) * width + hidden) + patches * (pixels + width);
        (Saturating(4) * (tokens + Saturating(1)) * width + number * operands).0
    }

    /// Bytes that a [`Tape`] keeps for an image, where an operand has `number`; as many as fit, where there are more.
    #[must_use]
    pub fn tape_bytes(&self, number: usize) -> usize {
        let [tokens, width, hidden, number] =
            [self.tokens(), self.width, self.hidden, number].map(Saturating);
        if self.trained == Trained::Nothing {
            return 0;
        }
        let floats = |queries: Saturating<usize>| Saturating(4) * width * (tokens + queries);
        let operands =
            |queries: Saturating<usize>| number * (tokens * Saturating(3) * width + queries * hidden);
        let block = |i| floats(Saturating(self.queries(i))) + operands(Saturating(self.queries(i)));
        // All blocks but the last are alike.
        let (first, last) = (self.first_trained(), self.depth.saturating_sub(1));
        let blocks =
            if first > last { Saturating(0) } else { Saturating(last - first) * block(0) + block(last) };
        (blocks + Saturating(4) * width).0
    }
}

/// One stream's images.
#[derive(Clone, Copy)]
pub enum Pixels<'a> {
    /// RGB bytes (N, H, W, 3).
    Bytes(&'a [u8]),
    /// Normalised f32 (N, 3, H, W).
    Normalised(&'a [f32]),
}

/// A value for each of the parameters, under their names: a position, a slice, a gradient.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "named as in the state_dict")]
pub struct VitParameters<T> {
    pub cls_token: T,           // (D)
    pub pos_embed: T,           // (S, D)
    pub patch_embed: Affine<T>, // (D, 3 P P)
    pub blocks: Vec<BlockParameters<T>>,
    pub norm: Affine<T>,
}

/// A norm's or a linear layer's two.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "named as in the state_dict")]
pub struct Affine<T> {
    pub weight: T,
    pub bias: T,
}

/// A block's.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "named as in the state_dict")]
pub struct BlockParameters<T> {
    pub norm1: Affine<T>,
    pub in_proj: Affine<T>,  // (3 D, D)
    pub out_proj: Affine<T>, // (D, D)
    pub norm2: Affine<T>,
    pub fc1: Affine<T>, // (M, D)
    pub fc2: Affine<T>, // (D, M)
}

impl<T> VitParameters<T> {
    /// Another value for each.
    pub fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> VitParameters<U> {
        VitParameters {
            cls_token: f(&self.cls_token),
            pos_embed: f(&self.pos_embed),
            patch_embed: self.patch_embed.map(&mut f),
            blocks: self.blocks.iter().map(|block| block.map(&mut f)).collect(),
            norm: self.norm.map(&mut f),
        }
    }

    /// All of them.
    pub fn into_values(self) -> impl Iterator<Item = T> {
        let Self { cls_token, pos_embed, patch_embed, blocks, norm } = self;
        let blocks = blocks.into_iter().flat_map(BlockParameters::into_values);
        let first = [cls_token, pos_embed].into_iter().chain(patch_embed.into_values());
        first.chain(blocks).chain(norm.into_values())
    }
}

impl<T> Affine<T> {
    fn map<U>(&self, f: &mut impl FnMut(&T) -> U) -> Affine<U> {
        Affine { weight: f(&self.weight), bias: f(&self.bias) }
    }

    fn into_values(self) -> [T; 2] {
        [self.weight, self.bias]
    }
}

impl<T> BlockParameters<T> {
    fn map<U>(&self, f: &mut impl FnMut(&T) -> U) -> BlockParameters<U> {
        BlockParameters {
            norm1: self.norm1.map(f),
            in_proj: self.in_proj.map(f),
            out_proj: self.out_proj.map(f),
            norm2: self.norm2.map(f),
            fc1: self.fc1.map(f),
            fc2: self.fc2.map(f),
        }
    }

    fn into_values(self) -> impl Iterator<Item = T> {
        let Self { norm1, in_proj, out_proj, norm2, fc1, fc2 } = self;
        [norm1, in_proj, out_proj, norm2, fc1, fc2].into_iter().flat_map(Affine::into_values)
    }
}

/// The parameters' numbers.
pub type Weights<'a> = VitParameters<&'a [f32]>;

/// The loss's gradients for them; one that is empty counts as zeros.
pub type Gradients = VitParameters<Vec<f32>>;

/// A backbone of a network: where its parameters are, and what it drops.
#[derive(Clone, Debug)]
pub struct Backbone {
    /// Its sizes.
    pub shape: Shape,
    /// The position of each parameter among the network's.
    pub positions: VitParameters<usize>,
    /// The dropout after the positions are added.
    pub pos_drop: Dropout,
    /// Each block's dropouts.
    pub block_drops: Vec<BlockDrops>,
}

impl Backbone {
    /// The vision transformer `scope` for square images of `image_size`; its `patch_size` and `num_heads` show in no
    /// parameter's shape.
    ///
    /// # Errors
    /// Where `scope` is no such network.
    pub fn new(scope: &Scope, c: &config::Backbone, image_size: usize) -> Result<Self> {
        let pair = |scope: &Scope, prefix: &str| -> Result<Affine<ParameterId>> {
            let of = |name: &str| scope.parameter(&format!("{prefix}{name}"));
            Ok(Affine { weight: of("weight")?, bias: of("bias")? })
        };
        let block = |scope: &Scope| -> Result<BlockParameters<ParameterId>> {
            let attn = scope.pp("attn");
            Ok(BlockParameters {
                norm1: pair(&scope.pp("norm1"), "")?,
                in_proj: pair(&attn, "in_proj_")?,
                out_proj: pair(&attn.pp("out_proj"), "")?,
                norm2: pair(&scope.pp("norm2"), "")?,
                fc1: pair(&scope.pp("mlp").pp(0), "")?,
                fc2: pair(&scope.pp("mlp").pp(3), "")?,
            })
        };
        let drops = |scope: &Scope| -> Result<BlockDrops> {
            Ok(BlockDrops {
                attention: scope.pp("attn").dropout("dropout")?,
                mlp: [scope.pp("mlp").dropout("2")?, scope.pp("mlp").dropout("4")?],
                path: [scope.dropout("drop_path1")?, scope.dropout("drop_path2")?],
            })
        };
        let blocks = scope.pp("blocks");
        let blocks: Vec<Scope> = (0..blocks.children()).map(|i| blocks.pp(i)).collect();
        let parameters = VitParameters {
            cls_token: scope.parameter("cls_token")?,
            pos_embed: scope.parameter("pos_embed")?,
            patch_embed: pair(&scope.pp("patch_embed").pp("proj"), "")?,
            blocks: blocks.iter().map(block).collect::<Result<_>>()?,
            norm: pair(&scope.pp("norm"), "")?,
        };
        let rows = |id: &ParameterId| id.shape.first().copied().unwrap_or(0);
        let trained = Trained::of(scope);
        Ok(Self {
            shape: Shape {
                image: image_size,
                patch: c.patch_size,
                width: rows(&parameters.norm.weight),
                heads: c.num_heads,
                hidden: parameters.blocks.first().map_or(0, |block| rows(&block.fc1.weight)),
                depth: blocks.len(),
                eps: c.layer_norm_eps as f32,
                trained,
            },
            positions: parameters.map(|id| id.position),
            pos_drop: scope.dropout("pos_drop")?,
            block_drops: blocks.iter().map(drops).collect::<Result<_>>()?,
        })
    }

    /// What of this network `pass` drops; `None` where it drops nothing. The pass's rows are images.
    #[must_use]
    pub fn drops(&self, pass: &Pass) -> Option<Drops<'_>> {
        let any = |drops: &BlockDrops| {
            drops.attention.is_active() || drops.mlp[0].is_active() || drops.path[0].is_active()
        };
        let active = self.pos_drop.is_active() || self.block_drops.iter().any(any);
        let masks = pass.masks.filter(|_| active)?;
        let first_row = pass.first_row;
        Some(Drops { masks, first_row, positions: self.pos_drop, blocks: &self.block_drops })
    }
}

/// The places of the network that drop something.
#[derive(Clone, Debug)]
pub struct Drops<'a> {
    /// What this step's masks are drawn from.
    pub masks: Masks,
    /// The position of the first image in the whole step.
    pub first_row: usize,
    /// After the positions are added.
    pub positions: Dropout,
    /// Each block's.
    pub blocks: &'a [BlockDrops],
}

/// A block's places that drop something.
#[derive(Clone, Copy, Debug)]
pub struct BlockDrops {
    /// Attention weights.
    pub attention: Dropout,
    /// After GELU and after the second linear layer.
    pub mlp: [Dropout; 2],
    /// The attention's and the MLP's branch as a whole.
    pub path: [Dropout; 2],
}

/// A group's images and the masks that fall on them.
struct Group<'a> {
    /// Its first image.
    start: usize,
    /// Where that is among the pixels that the group is cut from.
    first_pixels: usize,
    images: usize,
    drops: Option<&'a Drops<'a>>,
}

impl<'a> Group<'a> {
    fn new(index: usize, images: usize, drops: Option<&'a Drops<'a>>) -> Self {
        let start = index * GROUP;
        Self { start, first_pixels: start, images, drops }
    }

    /// The masks of `site` for all its images, `each` numbers an image; none where nothing is dropped.
    fn mask<'m>(
        &self,
        site: impl Fn(&Drops) -> Dropout,
        each: usize,
        mask: &'m mut Vec<f32>,
    ) -> Option<&'m [f32]> {
        let drops = self.drops?;
        let dropout = site(drops);
        if !dropout.is_active() {
            return None;
        }
        let mask = room(mask, self.images * each);
        for (i, mask) in mask.chunks_exact_mut(each).enumerate() {
            dropout.fill_row(mask, drops.masks, drops.first_row + self.start + i);
        }
        Some(mask)
    }

    /// Multiplies `x`, `each` numbers an image, by the masks of `site`.
    fn drop<N: Number>(
        &self,
        site: impl Fn(&Drops) -> Dropout,
        x: &mut [N],
        each: usize,
        mask: &mut Vec<f32>,
    ) {
        if let Some(mask) = self.mask(site, each, mask) {
            rows::multiply(x, mask);
        }
    }

    /// Scales `x`, `each` numbers an image, by 0 or the inverse share that is kept, as `site` says for each image.
    fn drop_path<N: Number>(&self, site: impl Fn(&Drops) -> Dropout, x: &mut [N], each: usize) {
        let Some(drops) = self.drops else { return };
        let dropout = site(drops);
        if !dropout.is_active() {
            return;
        }
        for (i, x) in x.chunks_exact_mut(each).enumerate() {
            let mut factor = [0.0];
            dropout.fill_row(&mut factor, drops.masks, drops.first_row + self.start + i);
            rows::scale(x, factor[0]);
        }
    }

    /// The mask of image `i`'s attention weights (H, S, S), if any are dropped.
    fn attention_mask<'m>(
        &self,
        block: usize,
        image: usize,
        len: usize,
        mask: &'m mut Vec<f32>,
    ) -> Option<&'m [f32]> {
        let drops = self.drops?;
        let dropout = drops.blocks[block].attention;
        if !dropout.is_active() {
            return None;
        }
        let mask = room(mask, len);
        dropout.fill_row(mask, drops.masks, drops.first_row + self.start + image);
        Some(mask)
    }
}
