//! How much memory a training step takes before it takes it, and how many frames to a chunk that allows.

use std::fs;
use std::path::Path;

use candle_core::Device;

use crate::config::{Chunk, Experiment, MemoryBudget, OptimizerKind};
use crate::nn::cpu::vit::{Shape, UNIT};
use crate::nn::device;

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
    /// For a network of `parameters` numbers with backbones of `shape`, `chunk` frames at a time, fused on the CPU or as
    /// a `graph` of Candle's operations.
    #[must_use]
    pub fn expected(
        c: &Experiment,
        shape: &Shape,
        parameters: usize,
        chunk: Option<usize>,
        graph: bool,
    ) -> Self {
        let moments = if c.optimization.optimizer == OptimizerKind::Sgd { 0 } else { 2 };
        let sums = usize::from(c.optimization.accumulate > 1);
        let (clips, frames) = (c.data.batch_size, c.model.sequence_length);
        let images = clips * frames;
        let at_a_time = chunk.unwrap_or(images).min(images);
        let tapes = if at_a_time < images { at_a_time } else { 3 * images };
        let (tape, backward) = if graph {
            // A gradient beside what it is the gradient of: one block's at a time.
            (graph_bytes(shape), graph_bytes(shape) / shape.depth)
        } else {
            (shape.tape_bytes(), shape.backward_bytes())
        };
        Self {
            parameters: parameters * 4 * (2 + moments + sums),
            backbones: tapes * tape + at_a_time * backward,
            head: head(c, clips, frames),
            batches: BATCHES * 3 * images * shape.image * shape.image * 3,
        }
    }

    /// All together.
    #[must_use]
    pub fn total(&self) -> usize {
        self.parameters + self.backbones + self.head + self.batches
    }
}

/// Bytes that a backbone's graph keeps for an image, all dropouts on: counted from the operations of
/// [`crate::model::VisionTransformer::forward`].
fn graph_bytes(shape: &Shape) -> usize {
    let tokens = shape.tokens();
    let block = tokens * (35 * shape.width + 5 * shape.hidden) + 6 * shape.heads * tokens * tokens;
    let patches = 3 * shape.image * shape.image + tokens * shape.width;
    4 * (shape.depth * block + 4 * patches)
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
    pub fn new(c: &Experiment, shape: &Shape, parameters: usize, device: &Device) -> Self {
        let graph = !device.is_cpu();
        let budget = match c.run.memory_budget {
            MemoryBudget::Bytes(bytes) => Some(bytes),
            MemoryBudget::Auto if graph => device::free_memory(device).map(|bytes| bytes / 10 * 9),
            MemoryBudget::Auto => available().map(|bytes| bytes / 4 * 3),
        };
        let expected = |chunk| Memory::expected(c, shape, parameters, chunk, graph);
        let fits = |chunk| budget.is_none_or(|budget| expected(chunk).total() <= budget);
        let chunk = match c.optimization.frames_per_chunk {
            Chunk::Frames(frames) => {
                Some(frames).filter(|&f| f < c.data.batch_size * c.model.sequence_length)
            }
            Chunk::Auto if fits(None) => None,
            Chunk::Auto => {
                let largest = if graph { LARGEST_USEFUL_CHUNK_ON_GPU } else { LARGEST_USEFUL_CHUNK };
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
