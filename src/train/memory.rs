//! How much memory a training step takes before it takes it, and how many frames to a chunk that allows.

use std::fs;
use std::path::Path;

use crate::config::{Chunk, Experiment, MemoryBudget, OptimizerKind};
use crate::nn::cpu::vit::{Shape, UNIT};
use crate::nn::device::Compute;

/// Batches that are in memory at a time: the one that trains and those loaded ahead.
const BATCHES: usize = 3;
/// With recomputation, more frames to a chunk than this gain nothing: measured in `scripts/PERF.md`.
const LARGEST_USEFUL_CHUNK: usize = 4 * UNIT;

/// The same on a GPU, whose cores want more images at a time.
const LARGEST_USEFUL_CHUNK_ON_GPU: usize = 32 * UNIT;

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
    /// For a network of `parameters` numbers with backbones of `shape`, `chunk` frames at a time.
    #[must_use]
    pub fn expected(
        c: &Experiment,
        shape: &Shape,
        parameters: usize,
        chunk: Option<usize>,
        compute: &Compute,
    ) -> Self {
        let moments = if c.optimization.optimizer == OptimizerKind::Sgd { 0 } else { 2 };
        let (clips, frames) = (c.data.batch_size, c.model.sequence_length);
        let images = clips * frames;
        let bytes = 3 * images * shape.image * shape.image * 3;
        match compute {
            Compute::Cpu => {
                let sums = usize::from(c.optimization.accumulate > 1);
                let at_a_time = chunk.unwrap_or(images).min(images);
                let tapes = if at_a_time < images { at_a_time } else { 3 * images };
                Self {
                    parameters: parameters * 4 * (2 + moments + sums),
                    backbones: tapes * shape.tape_bytes() + at_a_time * shape.backward_bytes(),
                    head: head(c, clips, frames),
                    batches: BATCHES * bytes,
                }
            }
            #[cfg(any(feature = "cuda", test))]
            Compute::Gpu(_) => {
                use crate::nn::{ActivationDtype, gpu::StepMemory};
                let dtype = compute.activation_dtype(c);
                let copy = if dtype == ActivationDtype::F32 { 0 } else { dtype.bytes() };
                let StepMemory { backbones, head } = super::gpu::step_memory(c, clips, chunk, dtype);
                let parameters = parameters * (4 * (2 + moments) + copy);
                Self { parameters, backbones, head, batches: 2 * bytes }
            }
        }
    }

    /// All together.
    #[must_use]
    pub fn total(&self) -> usize {
        self.parameters + self.backbones + self.head + self.batches
    }
}

/// The temporal encoder's activations and their gradients, as the graph's operations leave them.
fn head(c: &Experiment, clips: usize, frames: usize) -> usize {
    let m = &c.model;
    let tokens = clips * frames * (24 * m.d_model + 6 * m.temporal_dim_feedforward);
    let attention = clips * m.temporal_nhead * frames * frames * 8;
    4 * m.temporal_layers * (tokens + attention) + 4 * 8 * clips * m.vocab_size
}

impl Plan {
    /// The configured chunk, or the one that fits the budget: all at once where that fits, else the most frames that
    /// do, up to where more gain nothing, in whole units so that results do not depend on the choice.
    #[must_use]
    pub fn new(c: &Experiment, shape: &Shape, parameters: usize, compute: &Compute) -> Self {
        let budget = match c.run.memory_budget {
            MemoryBudget::Bytes(bytes) => Some(bytes),
            MemoryBudget::Auto if compute.is_cpu() => available().map(|bytes| bytes / 4 * 3),
            MemoryBudget::Auto => compute.free_memory().map(|bytes| bytes / 10 * 9),
        };
        let expected = |chunk| Memory::expected(c, shape, parameters, chunk, compute);
        let fits = |chunk| budget.is_none_or(|budget| expected(chunk).total() <= budget);
        let chunk = match c.optimization.frames_per_chunk {
            Chunk::Frames(frames) => {
                Some(frames).filter(|&f| f < c.data.batch_size * c.model.sequence_length)
            }
            Chunk::Auto if fits(None) => None,
            Chunk::Auto => {
                let largest =
                    if compute.is_cpu() { LARGEST_USEFUL_CHUNK } else { LARGEST_USEFUL_CHUNK_ON_GPU };
                let units = (1..=largest / UNIT).rev().map(|units| units * UNIT);
                Some(units.into_iter().find(|&chunk| fits(Some(chunk))).unwrap_or(UNIT))
            }
        };
        Self { chunk, memory: expected(chunk), budget }
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
