//! What the passes keep: the tape from forward to backward, and buffers that are used again.

use std::cell::RefCell;

use half::bf16;

use super::super::precision::{Number, room};
use super::{GROUP, Shape};

/// What the backward pass needs of the forward pass: each block's buffers, over all images. It grows to what a forward
/// pass needs and is used again for the next: memory that is mapped anew costs its clearing. The attention weights and
/// the heads' outputs are not on it: computing them again costs less than keeping them.
#[derive(Default)]
pub struct Tape<N> {
    pub(super) images: usize,
    pub(super) blocks: Vec<BlockTape<N>>,
    /// The class tokens that leave the last block (N, D).
    pub(super) last: Vec<f32>,
}

impl<N: Number> Tape<N> {
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

    /// Frees buffers of at least `bytes` together, or all: room for what comes when the tape is used up.
    pub fn free(&mut self, bytes: usize) {
        let mut left = bytes;
        for block in &mut self.blocks {
            left = left.saturating_sub(block.free(left));
        }
    }
}

/// Rows of `S` tokens an image, or 1 in the last block for those marked Q.
#[derive(Default)]
pub(super) struct BlockTape<N> {
    pub(super) x: Vec<f32>,    // (N S, D): the block's input
    pub(super) qkv: Vec<N>,    // (N S, 3 D)
    pub(super) mid: Vec<f32>,  // (N Q, D): after attention
    pub(super) hidden: Vec<N>, // (N Q, M): before GELU
}

/// One group's part of a [`BlockTape`].
pub(super) struct Part<'a, N> {
    pub(super) x: &'a mut [f32],
    pub(super) qkv: &'a mut [N],
    pub(super) mid: &'a mut [f32],
    pub(super) hidden: &'a mut [N],
}

impl<N: Number> BlockTape<N> {
    /// The buffers of `images` images.
    pub(super) fn all(&mut self, shape: &Shape, block: usize, images: usize) -> Part<'_, N> {
        let (d, rows, queries) = (shape.width, images * shape.tokens(), images * shape.queries(block));
        Part {
            x: room(&mut self.x, rows * d),
            qkv: room(&mut self.qkv, rows * 3 * d),
            mid: room(&mut self.mid, queries * d),
            hidden: room(&mut self.hidden, queries * shape.hidden),
        }
    }

    /// Frees buffers of at least `bytes` together, or all; how many they had.
    pub(super) fn free(&mut self, bytes: usize) -> usize {
        fn take<T>(buffer: &mut Vec<T>) -> usize {
            std::mem::take(buffer).capacity() * size_of::<T>()
        }
        let mut freed = 0;
        for floats in [&mut self.x, &mut self.mid] {
            freed += if freed < bytes { take(floats) } else { 0 };
        }
        for operands in [&mut self.hidden, &mut self.qkv] {
            freed += if freed < bytes { take(operands) } else { 0 };
        }
        freed
    }
}

impl<'a, N> Part<'a, N> {
    /// Each group's part.
    pub(super) fn groups(self, shape: &Shape, block: usize) -> Vec<Part<'a, N>> {
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
pub struct Workspace<N> {
    pub(super) d_last: Vec<f32>,
    pub(super) d_residual: Vec<f32>,
    pub(super) d_mlp: Vec<N>,
    pub(super) d_hidden: Vec<N>,
    pub(super) d_attention: Vec<N>,
    pub(super) mixed: Vec<N>,
    pub(super) normed: [Vec<N>; 2],
    pub(super) d_patches: Vec<N>,
    pub(super) patches: Vec<N>,
}

/// A thread's buffers, kept from group to group.
#[derive(Default)]
pub struct Scratch<N> {
    pub(super) tokens: Vec<N>,   // (G S, D)
    pub(super) mixed: Vec<N>,    // (G Q, D)
    pub(super) hidden: Vec<N>,   // (G S, M)
    pub(super) branch: Vec<f32>, // (G S, D)
    pub(super) heads: Vec<N>,    // (3, S, D/H)
    pub(super) patches: Vec<N>,  // (G P, 3 P P)
    pub(super) mask: Vec<f32>,
    /// Where no tape is kept: the current block's buffers, and the next one's input.
    pub(super) block: BlockTape<N>,
    pub(super) next: Vec<f32>, // (G S, D)
}

/// Numbers that each thread has buffers of.
pub trait Kept: Number {
    /// Lends this thread's.
    fn with_scratch(work: impl FnOnce(&mut Scratch<Self>));
}

macro_rules! kept {
    ($($number:ty)*) => {
        $(impl Kept for $number {
            fn with_scratch(work: impl FnOnce(&mut Scratch<Self>)) {
                thread_local! {
                    static SCRATCH: RefCell<Scratch<$number>> = RefCell::default();
                }
                SCRATCH.with_borrow_mut(work);
            }
        })*
    };
}

kept! { f32 bf16 }
