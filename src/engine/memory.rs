//! How much memory a training step takes before it takes it, and how many frames to a chunk that allows.

use std::fs;
use std::path::Path;

use crate::config::streams::image_streams;
use crate::config::{Chunk, Experiment, MemoryBudget, OptimizerKind};
use crate::nn::Blueprint;

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
        let parts = [self.parameters, self.backbones, self.head, self.batches];
        parts.into_iter().fold(0, usize::saturating_add)
    }
}

/// Bytes of parameters, gradients, moments, and so many more `sums` of their size.
#[must_use]
pub fn parameters(c: &Experiment, blueprint: &Blueprint, sums: usize) -> usize {
    let moments = if c.optimization.optimizer == OptimizerKind::Sgd { 0 } else { 2 };
    blueprint.elements("").saturating_mul(4 * (2 + moments + sums))
}

/// Bytes of the images of one batch.
#[must_use]
pub fn batch_bytes(c: &Experiment) -> usize {
    let image = c.model.image_size.saturating_mul(c.model.image_size).saturating_mul(3);
    let images = c.data.batch_size.saturating_mul(c.model.sequence_length);
    images.saturating_mul(image).saturating_mul(image_streams().count())
}

/// Bytes of the temporal encoder's activations and their gradients, as the graph's operations leave them.
#[must_use]
pub fn head(c: &Experiment) -> usize {
    let (m, clips, frames) = (&c.model, c.data.batch_size, c.model.sequence_length);
    let product = |factors: &[usize]| factors.iter().fold(1, |product: usize, n| product.saturating_mul(*n));
    let widths = product(&[24, m.d_model]).saturating_add(product(&[6, m.temporal_dim_feedforward]));
    let tokens = product(&[clips, frames, widths]);
    let attention = product(&[clips, m.temporal_nhead, frames, frames, 8]);
    let layers = product(&[4, m.temporal_layers, tokens.saturating_add(attention)]);
    layers.saturating_add(product(&[4, 8, clips, m.vocab_size]))
}

/// Which chunks may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
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
        Sizes { unit, largest }: Sizes,
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
}

/// The configured budget, or what there is.
fn budget(c: &Experiment, there: Option<usize>) -> Option<usize> {
    match c.run.memory_budget {
        MemoryBudget::Bytes(bytes) => Some(bytes),
        MemoryBudget::Auto => there,
    }
}

/// The memory that the system could give this process now, cgroup limits respected, in bytes.
#[must_use]
pub fn available() -> Option<usize> {
    let machine = field("/proc/meminfo", "MemAvailable:");
    let left = |limit: &str, used: &str| Some(number(limit)?.saturating_sub(number(used)?));
    let group = left("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current").or_else(|| {
        left("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes")
    });
    [machine, group].into_iter().flatten().min()
}

/// The most memory that this process has had resident so far, in bytes, where the system tells (Linux's `VmHWM`).
#[must_use]
pub fn peak_resident() -> Option<usize> {
    field("/proc/self/status", "VmHWM:")
}

/// A file that holds one number; cgroups write `max` where there is no limit.
fn number(path: impl AsRef<Path>) -> Option<usize> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A line of a file under `/proc` that counts kilobytes, in bytes.
fn field(path: &str, name: &str) -> Option<usize> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}
