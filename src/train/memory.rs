//! How much memory a training step takes, before it takes it.

use crate::config::Experiment;
use crate::config::OptimizerKind;
use crate::nn::cpu::vit::Shape;

/// Batches that are in memory at a time: the one that trains and those loaded ahead.
const BATCHES: usize = 3;

/// Expected bytes of a run on the CPU, by what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Parameters, gradients and moments.
    pub parameters: usize,
    /// What the backbones' forward pass leaves for their backward pass.
    pub activations: usize,
    /// Gradients on their way back through one backbone.
    pub backward: usize,
    /// Images, as bytes.
    pub batches: usize,
}

impl Memory {
    /// For a network of `parameters` numbers.
    #[must_use]
    pub fn expected(c: &Experiment, shape: &Shape, parameters: usize) -> Self {
        let moments = if c.optimization.optimizer == OptimizerKind::Sgd { 0 } else { 2 };
        let images = c.data.batch_size * c.model.sequence_length;
        let flow = shape.tokens() * (3 * shape.width + shape.hidden) * 4;
        Self {
            parameters: parameters * 4 * (2 + moments),
            activations: 3 * images * shape.tape_bytes(),
            backward: images * flow,
            batches: BATCHES * 3 * images * shape.image * shape.image * 3,
        }
    }

    /// All together.
    #[must_use]
    pub fn total(&self) -> usize {
        self.parameters + self.activations + self.backward + self.batches
    }
}

/// The most memory that this process has had resident so far, in bytes, where the system tells (Linux's `VmHWM`).
#[must_use]
pub fn peak_resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}
