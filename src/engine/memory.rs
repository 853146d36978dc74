//! How much memory a training step takes before it takes it, and how many frames to a chunk that allows.

use std::num::Saturating;

use crate::config::streams::image_streams;
use crate::config::{Chunk, Experiment, MemoryBudget};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::limits::{self, size};
use crate::model::DecoderKind;
use crate::nn::Blueprint;
use crate::optim;

/// Batches that are in the host's memory at a time: the one that trains and those loaded ahead.
pub const BATCHES: usize = 3;

/// What the budget is by default, of what there is.
#[must_use]
pub fn usual_share(available: Option<usize>) -> Option<usize> {
    available.map(|bytes| bytes / 4 * 3)
}

/// Expected bytes of a run, by what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Parameters, gradients, sums of gradients over several batches, and moments.
    pub parameters: usize,
    /// What the backbones' forward pass leaves for their backward pass, and gradients on their way back.
    pub backbones: usize,
    /// The graph of what follows the backbones.
    pub head: usize,
    /// Images, as bytes.
    pub batches: usize,
}

/// What was chosen for a step, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Frames of a stream to a chunk; `None` = all at once, and nothing is computed twice.
    pub chunk: Option<usize>,
    /// What a step is expected to take with it.
    pub memory: Memory,
    /// The budget that `auto` had to meet, in bytes; `None` where the system does not tell what there is.
    pub budget: Option<usize>,
}

impl Memory {
    /// All together.
    #[must_use]
    pub fn total(&self) -> usize {
        let [parameters, backbones, head, batches] =
            [self.parameters, self.backbones, self.head, self.batches].map(Saturating);
        (parameters + backbones + head + batches).0
    }

    /// What holds how much.
    #[must_use]
    pub fn parts(&self) -> String {
        format!(
            "parameters and optimizer {}, backbones {}, head {}, batches {}",
            size(self.parameters as u64),
            size(self.backbones as u64),
            size(self.head as u64),
            size(self.batches as u64)
        )
    }

    /// The fields that size the largest part.
    fn lower(&self) -> &'static str {
        let parts = [
            (
                self.parameters,
                "model.backbone.embed_dim, model.backbone.depth, model.d_model, model.temporal_dim_feedforward or \
                 model.vocab_size",
            ),
            (
                self.backbones,
                "optimization.frames_per_chunk (auto takes as few as needed), model.image_size or data.batch_size",
            ),
            (
                self.head,
                "data.batch_size, model.sequence_length, model.temporal_layers or model.d_model; of a network that \
                 translates, shorten the longest text",
            ),
            (self.batches, "data.batch_size, data.val_batch_size, model.sequence_length or model.image_size"),
        ];
        parts.into_iter().max_by_key(|(bytes, _)| *bytes).map_or("", |(_, fields)| fields)
    }
}

/// Bytes of parameters, and of what those that train have besides: gradients, moments, and so many more `sums` of their
/// size.
#[must_use]
pub fn parameters(c: &Experiment, blueprint: &Blueprint, sums: usize) -> usize {
    let trainable = blueprint.trainable_elements().saturating_mul(1 + optim::moments(&c.optimization) + sums);
    blueprint.elements("").saturating_add(trainable).saturating_mul(4)
}

/// Bytes of the images of one batch, the larger of training's and validation's, or of their features.
#[must_use]
pub fn batch_bytes(c: &Experiment) -> usize {
    let clips = c.data.batch_size.max(c.data.val_batch_size.unwrap_or(c.data.batch_size));
    let has_features = c.data.features_dir.is_some() || c.data.feature_cache.is_some();
    let frame = if has_features {
        [c.model.backbone.embed_dim, 4, 1]
    } else {
        [c.model.image_size, c.model.image_size, 3]
    };
    let sizes = [clips, c.model.sequence_length].into_iter().chain(frame);
    sizes.into_iter().fold(image_streams().count(), usize::saturating_mul)
}

/// Bytes of the temporal encoder's activations, the decoder's and their gradients, as the graph's operations leave them.
#[must_use]
pub fn head(c: &Experiment, decoder: &dyn DecoderKind) -> usize {
    let (m, clips, frames) = (&c.model, c.data.batch_size, c.model.sequence_length);
    let product = |factors: &[usize]| factors.iter().fold(1, |product: usize, n| product.saturating_mul(*n));
    let widths = product(&[24, m.d_model]).saturating_add(product(&[6, m.temporal_dim_feedforward]));
    let tokens = product(&[clips, frames, widths]);
    let attention = product(&[clips, m.temporal_nhead, frames, frames, 8]);
    let layers = product(&[4, m.temporal_layers, tokens.saturating_add(attention)]);
    layers.saturating_add(decoder.loss_bytes(m, clips))
}

/// Which chunks may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct ChunkSizes {
    /// All but the last resort are multiples of it.
    pub unit: usize,
    /// Frames to a chunk that more would gain nothing over.
    pub largest: usize,
}

impl Plan {
    /// All at once, without a choice.
    #[must_use]
    pub fn whole(c: &Experiment, free: Option<usize>, memory: Memory) -> Self {
        Self { chunk: None, memory, budget: budget(c, free) }
    }

    /// The configured chunk; or all at once where that fits the budget, else the most frames that do, up to `largest`,
    /// where more gain nothing, in whole units of `unit` so that results do not depend on the choice. `expected` is what a
    /// chunk takes, `free` what there is.
    #[must_use]
    pub fn choose(
        c: &Experiment,
        free: Option<usize>,
        ChunkSizes { unit, largest }: ChunkSizes,
        expected: impl Fn(Option<usize>) -> Memory,
    ) -> Self {
        let budget = budget(c, free);
        let fits = |chunk| budget.is_none_or(|budget| expected(chunk).total() <= budget);
        let chunk = match c.optimization.frames_per_chunk {
            Chunk::Frames(frames) => {
                Some(frames).filter(|&f| f < c.data.batch_size.saturating_mul(c.model.sequence_length))
            }
            Chunk::Auto if fits(None) => None,
            Chunk::Auto => {
                let mut units = (1..=largest / unit).rev().map(|units| units * unit);
                Some(units.find(|&chunk| fits(Some(chunk))).unwrap_or(unit))
            }
        };
        Self { chunk, memory: expected(chunk), budget }
    }

    /// Refuses what a run cannot have, before it takes any of it: more than a limit of this process allows, and, unless
    /// `run.memory_budget` says how much there is, more than the machine has.
    ///
    /// # Errors
    /// Kind `Run`, with what to lower.
    pub fn refuse_more_than_there_is(&self, c: &Experiment) -> Result<()> {
        let trusted = c.run.memory_budget != MemoryBudget::Auto;
        match limits::memory_left() {
            Some(left) if self.memory.total() > left.bytes && (left.by.refuses() || !trusted) => {
                let has = format!("{} has {} left", left.by, size(left.bytes as u64));
                Err(self.too_much(&has))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a step that is expected to take more than the budget.
    ///
    /// # Errors
    /// Kind `Run`, with what to lower.
    pub fn refuse_more_than_the_budget(&self) -> Result<()> {
        match self.budget {
            Some(budget) if self.memory.total() > budget => {
                Err(self.too_much(&format!("the budget (run.memory_budget) is {}", size(budget as u64))))
            }
            _ => Ok(()),
        }
    }

    fn too_much(&self, there_is: &str) -> Error {
        let expected = size(self.memory.total() as u64);
        let problem =
            Problem::new(format!("a training step is expected to take {expected} of memory: {there_is}"))
                .cause(self.memory.parts());
        Error::new(
            ErrorKind::Run,
            problem.hint(format!("lower {}, or give it more memory", self.memory.lower())),
        )
    }
}

/// The configured budget, or what there is.
fn budget(c: &Experiment, there: Option<usize>) -> Option<usize> {
    match c.run.memory_budget {
        MemoryBudget::Bytes(bytes) => Some(bytes),
        MemoryBudget::Auto => there,
    }
}

/// `c` with batches of no more clips than a dataset has for them: more are never in memory.
#[must_use]
pub fn with_batches_of(c: &Experiment, train: usize, val: usize) -> Experiment {
    let mut c = c.clone();
    let val_batch_size = c.data.val_batch_size.unwrap_or(c.data.batch_size);
    c.data.batch_size = c.data.batch_size.min(train.max(1));
    c.data.val_batch_size = Some(val_batch_size.min(val.max(1)));
    c
}

/// The memory that the system could give this process now, limits of its control group and of its own respected, in
/// bytes.
#[must_use]
pub fn available() -> Option<usize> {
    limits::memory_left().map(|left| left.bytes)
}

/// The most memory that this process has had resident so far, in bytes, where the system tells (Linux's `VmHWM`).
#[must_use]
pub fn peak_resident() -> Option<usize> {
    limits::field("/proc/self/status", "VmHWM:")
}
