//! The whole vision transformer, forward and backward, images side by side.
//!
//! A group of a few images goes through a block on one thread, its activations in that core's cache and without
//! waiting for the others; only the gradients of the weights, sums over all images, are products that all threads
//! share. Groups depend on the number of images alone, so that results do not depend on the number of threads.
//! Only the class token leaves the last block: there, queries, attention and MLP are computed for it alone.

mod backward;
mod forward;
mod tape;

pub use backward::backward;
pub use forward::forward;
pub use tape::{Tape, Workspace};

use super::rows;
use crate::nn::{Dropout, dropout::Masks};
use tape::room;

/// Images that go through the network together on one thread.
const GROUP: usize = 2;

/// Images whose gradients of a weight are one product. It divides every chunk that is chosen, so that the order of
/// additions, and with it every bit of the result, is the same for all of them.
pub const UNIT: usize = 16;

/// The architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// Bytes that the backward pass needs for an image besides the tape.
    #[must_use]
    pub fn backward_bytes(&self) -> usize {
        4 * (self.tokens() * (5 * self.width + self.hidden) + self.patches() * self.pixels())
    }

    /// Bytes that a [`Tape`] keeps for an image.
    #[must_use]
    pub fn tape_bytes(&self) -> usize {
        let block = |i| self.tokens() * 4 * self.width + self.queries(i) * (self.width + self.hidden);
        4 * ((0..self.depth).map(block).sum::<usize>() + self.width)
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

/// The parameters, or their gradients, as slices in PyTorch's order: `cls_token`, `pos_embed`, `patch_embed.proj`'s
/// two, twelve a block, `norm`'s two.
pub struct Weights<'a> {
    all: Vec<&'a [f32]>,
}

/// Parameters before the first block.
const BEFORE_BLOCKS: usize = 4;
/// Parameters of a block, in order: norm1, attention's `in_proj` and `out_proj`, norm2, the MLP's two layers; each a
/// weight and a bias.
const A_BLOCK: usize = 12;

impl<'a> Weights<'a> {
    /// From the slices in PyTorch's order; `None` unless there are as many as `shape` has.
    #[must_use]
    pub fn new(shape: &Shape, all: Vec<&'a [f32]>) -> Option<Self> {
        (all.len() == BEFORE_BLOCKS + A_BLOCK * shape.depth + 2).then_some(Self { all })
    }

    fn pair(&self, at: usize) -> (&'a [f32], &'a [f32]) {
        (self.all[at], self.all[at + 1])
    }

    fn block(&self, i: usize) -> Block<'a> {
        let at = BEFORE_BLOCKS + A_BLOCK * i;
        Block {
            norm1: self.pair(at),
            in_proj: self.pair(at + 2),
            out_proj: self.pair(at + 4),
            norm2: self.pair(at + 6),
            fc1: self.pair(at + 8),
            fc2: self.pair(at + 10),
        }
    }
}

struct Block<'a> {
    norm1: (&'a [f32], &'a [f32]),
    in_proj: (&'a [f32], &'a [f32]),
    out_proj: (&'a [f32], &'a [f32]),
    norm2: (&'a [f32], &'a [f32]),
    fc1: (&'a [f32], &'a [f32]),
    fc2: (&'a [f32], &'a [f32]),
}

/// The places of the network that drop something.
#[derive(Clone, Debug)]
pub struct Drops {
    /// What this step's masks are drawn from.
    pub masks: Masks,
    /// The position of the first image in the whole step.
    pub first_row: usize,
    /// After the positions are added.
    pub positions: Dropout,
    /// Each block's.
    pub blocks: Vec<BlockDrops>,
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
    images: usize,
    drops: Option<&'a Drops>,
}

impl<'a> Group<'a> {
    fn new(index: usize, images: usize, drops: Option<&'a Drops>) -> Self {
        Self { start: index * GROUP, images, drops }
    }

    /// Multiplies `x`, `each` numbers an image, by the masks of `site`.
    fn drop(&self, site: impl Fn(&Drops) -> Dropout, x: &mut [f32], each: usize, mask: &mut Vec<f32>) {
        let Some(drops) = self.drops else { return };
        let dropout = site(drops);
        if !dropout.is_active() {
            return;
        }
        for (i, x) in x.chunks_exact_mut(each).enumerate() {
            let mask = room(mask, each);
            dropout.fill_row(mask, drops.masks, drops.first_row + self.start + i);
            rows::multiply(x, mask);
        }
    }

    /// Scales `x`, `each` numbers an image, by 0 or the inverse share that is kept, as `site` says for each image.
    fn drop_path(&self, site: impl Fn(&Drops) -> Dropout, x: &mut [f32], each: usize) {
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
