//! The network's layers on a GPU: each has its parameters' buffers, its dropouts, and a forward and a backward pass.
//!
//! What a layer's backward pass needs of its forward pass is in a `Saved` of its own, and not in the layer: the backbones
//! share one where images go through them in chunks.

mod attention;
mod block;
mod fusion;
mod linear;
mod mlp;
mod norm;
mod patch_embed;
mod projector;
mod temporal;

pub use attention::{
    AttentionGradients, AttentionInput, AttentionSaved, AttentionScratch, Queries, SelfAttention,
};
pub use block::{Block, BlockBuffers, BlockSaved, BlockScratch};
pub use fusion::{Fusion, Positional};
pub use linear::Linear;
pub use mlp::{Mlp, MlpSaved};
pub use norm::{BranchEnd, LayerNorm, NormGradients, NormOutputs, NormSaved, Residual};
pub use patch_embed::{EmbedScratch, PatchEmbed};
pub use projector::{JoinedColumns, Projector, ProjectorSaved, ProjectorScratch};
pub use temporal::{FrameBuffers, FrameScratch, TemporalLayer, TemporalSaved};

use super::memory::Allocator;
use super::ops::{Mask, Ops};
use crate::Result;
use crate::nn::{Dropout, Pass};

/// What becomes of what a forward pass computes on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is kept for the backward pass.
    ForBackward,
    /// It serves this pass alone: there is no other.
    Nothing,
}

/// What every layer computes with. A "sample" is what has a dropout mask of its own: an image's tokens, a clip's frames.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The GPU's operations.
    pub ops: &'a Ops,
    /// Whose first row is the first sample.
    pub pass: &'a Pass,
    /// How many samples; each has as many rows.
    pub samples: usize,
}

impl Context<'_> {
    fn allocator(&self) -> &Allocator {
        self.ops.allocator()
    }

    /// Of `rows` rows, those of a sample.
    fn sample_rows(&self, rows: usize) -> usize {
        rows / self.samples.max(1)
    }

    /// The mask of `dropout` for `rows` rows of `width`.
    fn mask(&self, dropout: Option<Dropout>, rows: usize, width: usize) -> Result<Mask> {
        self.ops.mask(dropout, self.pass, self.samples, self.sample_rows(rows) * width)
    }
}
