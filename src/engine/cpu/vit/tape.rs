//! What the passes keep: the tape from forward to backward, and buffers that are used again.

use std::cell::RefCell;

use super::{GROUP, Shape};

/// What the backward pass needs of the forward pass: each block's buffers, over all images. It grows to what a forward
/// pass needs and is used again for the next: memory that is mapped anew costs its clearing. The attention weights and
/// the heads' outputs are not on it: computing them again costs less than keeping them.
#[derive(Default)]
pub struct Tape {
    pub(super) images: usize,
    pub(super) blocks: Vec<BlockTape>,
    /// The class tokens that leave the last block (N, D).
    pub(super) last: Vec<f32>,
}

impl Tape {
    /// Makes room for `images` images. Buffers of one kind are made one after another, so that those that are freed
    /// together leave one large place and not many small ones.
    pub(super) fn reserve(&mut self, shape: &Shape, images: usize) {
        self.images = images;
        self.blocks.resize_with(shape.depth, BlockTape::default);
        let (d, rows, first) = (shape.width, images * shape.tokens(), shape.first_trained());
        let queries = |block: usize| images * shape.queries(block);
        let blocks = &mut self.blocks[first..];
        for block in &mut *blocks {
            room(&mut block.x, rows * d);
        }
        for (i, block) in blocks.iter_mut().enumerate() {
            room(&mut block.mid, queries(first + i) * d);
        }
        for (i, block) in blocks.iter_mut().enumerate() {
            room(&mut block.hidden, queries(first + i) * shape.hidden);
        }
        for block in &mut *blocks {
            room(&mut block.qkv, rows * 3 * d);
        }
    }

    /// Frees buffers that hold at least `numbers` together, or all: room for what comes when the tape is used up.
    pub fn free(&mut self, numbers: usize) {
        let mut left = numbers;
        for block in &mut self.blocks {
            left = left.saturating_sub(block.free(left));
        }
    }
}

/// Rows of `S` tokens an image, or 1 in the last block for those marked Q.
#[derive(Default)]
pub(super) struct BlockTape {
    pub(super) x: Vec<f32>,      // (N S, D): the block's input
    pub(super) qkv: Vec<f32>,    // (N S, 3 D)
    pub(super) mid: Vec<f32>,    // (N Q, D): after attention
    pub(super) hidden: Vec<f32>, // (N Q, M): before GELU
}

/// One group's part of a [`BlockTape`].
pub(super) struct Part<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) qkv: &'a mut [f32],
    pub(super) mid: &'a mut [f32],
    pub(super) hidden: &'a mut [f32],
}

impl BlockTape {
    /// The buffers of `images` images.
    pub(super) fn all(&mut self, shape: &Shape, block: usize, images: usize) -> Part<'_> {
        let (d, rows, queries) = (shape.width, images * shape.tokens(), images * shape.queries(block));
        Part {
            x: room(&mut self.x, rows * d),
            qkv: room(&mut self.qkv, rows * 3 * d),
            mid: room(&mut self.mid, queries * d),
            hidden: room(&mut self.hidden, queries * shape.hidden),
        }
    }

    /// Frees buffers that hold at least `numbers` together, or all; how many they held.
    pub(super) fn free(&mut self, numbers: usize) -> usize {
        let mut freed = 0;
        for buffer in [&mut self.x, &mut self.mid, &mut self.hidden, &mut self.qkv] {
            if freed < numbers {
                freed += std::mem::take(buffer).capacity();
            }
        }
        freed
    }
}

impl<'a> Part<'a> {
    /// Each group's part.
    pub(super) fn groups(self, shape: &Shape, block: usize) -> Vec<Part<'a>> {
        let (d, rows, queries) = (shape.width, GROUP * shape.tokens(), GROUP * shape.queries(block));
        let x = self.x.chunks_mut(rows * d);
        let qkv = self.qkv.chunks_mut(rows * 3 * d);
        let mid = self.mid.chunks_mut(queries * d);
        let hidden = self.hidden.chunks_mut(queries * shape.hidden);
        x.zip(qkv)
            .zip(mid)
            .zip(hidden)
            .map(|(((x, qkv), mid), hidden)| Part { x, qkv, mid, hidden })
            .collect()
    }
}

/// Buffers of the backward pass, kept from one to the next.
#[derive(Default)]
pub struct Workspace {
    pub(super) d_out: Vec<f32>,
    pub(super) d_hidden: Vec<f32>,
    pub(super) d_mid: Vec<f32>,
    pub(super) d_in: Vec<f32>,
    pub(super) mixed: Vec<f32>,
    pub(super) d_patches: Vec<f32>,
    pub(super) patches: Vec<f32>,
}

/// A thread's buffers, kept from group to group.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) tokens: Vec<f32>,  // (G S, D)
    pub(super) mixed: Vec<f32>,   // (G Q, D)
    pub(super) hidden: Vec<f32>,  // (G S, M)
    pub(super) scores: Vec<f32>,  // (S, S)
    pub(super) dscores: Vec<f32>, // (S, S)
    pub(super) heads: Vec<f32>,   // (3, S, D/H)
    pub(super) patches: Vec<f32>, // (G P, 3 P P)
    pub(super) mask: Vec<f32>,
    /// Where no tape is kept: the current block's buffers, and the next one's input.
    pub(super) block: BlockTape,
    pub(super) next: Vec<f32>, // (G S, D)
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The first `len` numbers of a buffer that grows to hold them.
pub(super) fn room(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
