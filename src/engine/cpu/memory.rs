//! What a step takes on the CPU, and the chunk that it is computed in.

use super::vit::{Backbone, UNIT};
use crate::config::Experiment;
use crate::engine::memory::{self, BATCHES, ChunkSizes, Memory, Plan};
use crate::model::DecoderKind;
use crate::nn::Blueprint;

/// With recomputation, more frames to a chunk than this gain nothing: measured in `scripts/PERF.md`.
const LARGEST_USEFUL_CHUNK: usize = 4 * UNIT;

/// The configured chunk, or the one that fits the budget, where an operand has `number` bytes.
pub fn plan(
    c: &Experiment,
    decoder: &dyn DecoderKind,
    blueprint: &Blueprint,
    backbones: &[Backbone],
    number: usize,
) -> Plan {
    let free = memory::usual_share(memory::available());
    let sizes = ChunkSizes { unit: UNIT, largest: LARGEST_USEFUL_CHUNK };
    Plan::choose(c, free, sizes, |chunk| expected(c, decoder, blueprint, backbones, number, chunk))
}

/// With `chunk` of the backbones' frames at a time.
fn expected(
    c: &Experiment,
    decoder: &dyn DecoderKind,
    blueprint: &Blueprint,
    backbones: &[Backbone],
    number: usize,
    chunk: Option<usize>,
) -> Memory {
    let images = c.data.batch_size.saturating_mul(c.model.sequence_length);
    let sums = usize::from(c.optimization.accumulate > 1);
    let at_a_time = chunk.unwrap_or(images).min(images);
    let tapes = backbones.iter().map(|net| net.shape.tape_bytes(number).saturating_mul(at_a_time));
    let tapes =
        if at_a_time == images { tapes.fold(0, usize::saturating_add) } else { tapes.max().unwrap_or(0) };
    let backward = backbones.iter().map(|net| net.shape.backward_bytes(number).saturating_mul(at_a_time));
    Memory {
        parameters: memory::parameters(c, blueprint, sums),
        backbones: tapes.saturating_add(backward.max().unwrap_or(0)),
        head: memory::head(c, decoder),
        batches: BATCHES.saturating_mul(memory::batch_bytes(c)),
    }
}
