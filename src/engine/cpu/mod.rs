//! The CPU's engine: the backbones by fused blocks, the rest as Candle's graph.
//!
//! The blocks work on f32 slices, with hand-written backward passes and SIMD chosen at run time. Candle's own operations
//! train this network six times slower than PyTorch; `scripts/PERF.md` has the log.

mod gemm;
pub mod math;
mod memory;
pub mod rows;
pub mod vit;

use std::time::Instant;

use candle_core::{Device, Tensor, Var};

use super::batch::{Placed, frames, targets};
use super::graph::{self, Gradients};
use super::host::Host;
use super::memory::Plan;
use super::seam::{Engine, Evaluating, Outcome, Pending, Step, Times};
use crate::config::Experiment;
use crate::config::streams::{Stream, image_streams};
use crate::data::{Batch, Pixels};
use crate::error::Error;
use crate::model::decoder::gradient;
use crate::model::{DecoderKind, Encoded, Frames, Network, Score};
use crate::nn::parameters::with_slices;
use crate::nn::{Blueprint, Pass};
use crate::{Result, config};
use vit::{Backbone, Backward, Tape, Workspace};

/// The network on the CPU.
pub struct Cpu {
    host: Host,
    /// The image streams'.
    backbones: Vec<Backbone>,
    plan: Plan,
    buffers: Buffers,
    gradients: Gradients,
    outcome: Option<Outcome>,
    score: Option<Score>,
    times: Times,
}

/// What the backbones keep from step to step: memory that is mapped anew costs its clearing.
#[derive(Default)]
struct Buffers {
    tapes: Vec<Tape>,
    workspace: Workspace,
}

/// The backbones of a network of the configuration `c`.
///
/// # Errors
/// Where the blueprint is of another network.
pub fn backbones(c: &config::Model, blueprint: &Blueprint) -> Result<Vec<Backbone>> {
    let encoder = blueprint.root().pp("encoder");
    let names = image_streams().filter_map(Stream::backbone);
    names.map(|name| Backbone::new(&encoder.pp(name), &c.backbone, c.image_size)).collect()
}

impl Cpu {
    /// At the start of an experiment.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn new(c: &Experiment, decoder: &dyn DecoderKind, blueprint: &Blueprint) -> Result<Self> {
        let backbones = backbones(&c.model, blueprint)?;
        let plan = memory::plan(c, blueprint, &backbones);
        plan.refuse_more_than_there_is(c)?;
        let host = Host::new(c, decoder)?;
        Ok(Self {
            host,
            backbones,
            plan,
            buffers: Buffers::default(),
            gradients: Gradients::default(),
            outcome: None,
            score: None,
            times: Times::default(),
        })
    }

    /// Each backbone's features (N, D) of a batch. Where all goes at once and there are `tapes`, what backward needs is
    /// kept on them.
    fn features(
        &self,
        network: &Network,
        batch: &Batch,
        pass: &Pass,
        tapes: Option<&mut [Tape]>,
    ) -> Result<Vec<Tensor>> {
        let mut tapes = tapes.unwrap_or_default().iter_mut();
        let count = images(batch);
        let parameters = all_parameters(network);
        with_slices(&parameters, |slices| {
            let of = self.backbones.iter().zip(&batch.images).map(|(net, pixels)| {
                let weights = net.positions.map(|&position| slices[position]);
                let (pixels, drops) = (part(batch, pixels, 0), net.drops(pass));
                let features =
                    vit::forward(&net.shape, &weights, pixels, count, drops.as_ref(), tapes.next());
                Ok(Tensor::from_vec(features, (count, net.shape.width), &Device::Cpu)?)
            });
            of.collect()
        })?
    }

    /// Adds the gradients of stream `at`'s backbone to `all`; `d_features` (N, D) is that of its features.
    fn backbone_backward(
        &mut self,
        at: usize,
        batch: &Batch,
        pass: &Pass,
        d_features: &Tensor,
        chunk: Option<usize>,
        all: &mut [Option<Tensor>],
    ) -> Result<()> {
        let Buffers { tapes, workspace } = &mut self.buffers;
        let (net, images, pixels) = (&self.backbones[at], images(batch), &batch.images[at]);
        let d_features = d_features.flatten_all()?.to_vec1::<f32>()?;
        let parameters = all_parameters(&self.host.network);
        let mut gradients = vit::Gradients::default();
        with_slices(&parameters, |slices| {
            let weights = net.positions.map(|&position| slices[position]);
            for start in (0..images).step_by(chunk.unwrap_or(images)) {
                let count = chunk.unwrap_or(images).min(images - start);
                let pass = Pass { first_row: pass.first_row + start, ..*pass };
                let (pixels, drops) = (part(batch, pixels, start), net.drops(&pass));
                let tape = &mut tapes[if chunk.is_some() { 0 } else { at }];
                if chunk.is_some() {
                    let _ =
                        vit::forward(&net.shape, &weights, pixels, count, drops.as_ref(), Some(&mut *tape));
                }
                let with = Backward {
                    pixels,
                    drops: drops.as_ref(),
                    tape,
                    free: chunk.is_none(),
                    workspace: &mut *workspace,
                };
                let width = net.shape.width;
                let d_features = &d_features[start * width..(start + count) * width];
                vit::backward(&net.shape, &weights, with, d_features, &mut gradients);
            }
        })?;
        for (position, values) in net.positions.clone().into_values().zip(gradients.into_values()) {
            let shape = parameters[position].dims();
            all[position] = Some(Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        Ok(())
    }

    fn encoded(&self, batch: &Batch, frames: &Frames) -> Result<Tensor> {
        let pass = Pass::EVALUATION;
        let features = self.features(&self.host.evaluator, batch, &pass, None)?;
        Ok(self.host.evaluator.encode(&features, frames, &pass)?)
    }
}

impl Engine for Cpu {
    fn send(&mut self, _: &mut Placed) -> Result<()> {
        Ok(())
    }

    /// Nobody waits for the loader before its batch is needed.
    fn sends_ahead(&self) -> bool {
        false
    }

    /// As a graph only from the backbones' features on. In chunks, their forward pass keeps nothing and is computed again
    /// for each chunk when the gradients come back.
    ///
    /// Memory is highest when the backbones' tapes are full. What can wait comes after them: the gradients of the decoder,
    /// and, where the tapes are used but once, the backbones' gradients, which take their place.
    fn train(&mut self, batch: &mut Placed, pass: &Pass, step: &mut Step) -> Result<()> {
        let (begun, batch) = (Instant::now(), &batch.batch);
        let (inputs, targets) = (frames(batch, &Device::Cpu)?, targets(batch, &Device::Cpu)?);
        let images_pass = inputs.images_pass(pass)?;
        let chunk = self.plan.chunk.filter(|&chunk| chunk < images(batch));
        let streams = self.backbones.len();

        let mut tapes = std::mem::take(&mut self.buffers.tapes);
        tapes.resize_with(if chunk.is_some() { 1 } else { streams }, Tape::default);
        let kept = if chunk.is_none() { Some(tapes.as_mut_slice()) } else { None };
        let features = self.features(&self.host.network, batch, &images_pass, kept);
        self.buffers.tapes = tapes;
        let features: candle_core::Result<Vec<Var>> = features?.iter().map(Var::from_tensor).collect();
        let features = features?;
        let leaves: Vec<Tensor> = features.iter().map(|var| var.as_tensor().clone()).collect();
        let network = &self.host.network;
        let encoded = network.encode(&leaves, &inputs, pass)?;
        let decoded = network.decoder().train(
            Encoded { frames: &encoded, pad_mask: &inputs.pad_mask },
            &targets,
            pass,
            &network.parameters_of("decoder"),
        )?;
        let forward = begun.elapsed();
        // The sum's gradient for the encoded frames is `d_frames`.
        let store = (encoded * decoded.d_frames)?.sum_all()?.backward()?;

        let mut all = vec![None; network.parameters().len()];
        for (at, feature) in features.iter().enumerate() {
            let d_features = gradient(&store, "a backbone's features", feature)?;
            self.backbone_backward(at, batch, &images_pass, &d_features, chunk, &mut all)?;
        }
        let network = &self.host.network;
        let decoder: Vec<usize> = network.blueprint().root().pp("decoder").parameters().collect();
        let rest = all.iter_mut().zip(network.parameters().iter()).enumerate();
        for (_, (slot, (name, var))) in rest.filter(|(at, (slot, _))| slot.is_none() && !decoder.contains(at))
        {
            *slot = Some(gradient(&store, name, var)?);
        }
        if let (None, Some(tape)) = (chunk, self.buffers.tapes.last_mut()) {
            tape.free(network.blueprint().elements("decoder."));
        }
        for (position, gradient) in decoder.into_iter().zip((decoded.gradients)()?) {
            all[position] = Some(gradient);
        }
        let gradients: Option<Vec<Tensor>> = all.into_iter().collect();
        let gradients = gradients.ok_or_else(|| Error::run("the decoder has left out a gradient"))?;
        self.gradients.add(gradients, decoded.weight, step)?;
        (self.times.forward, self.times.backward) = (forward, begun.elapsed().saturating_sub(forward));
        step.add(batch.clips.len(), decoded.weight, Some(decoded.loss));
        Ok(())
    }

    fn update(&mut self, step: Step, lr: f64, max_norm: Option<f64>) -> Result<Pending> {
        let begun = Instant::now();
        self.outcome = Some(self.gradients.update(&mut self.host, &step, lr, max_norm)?);
        self.times.optimizer = begun.elapsed();
        Ok(Pending(()))
    }

    fn outcome(&mut self, _: Pending) -> Result<Outcome> {
        self.outcome.take().ok_or_else(|| graph::lost("outcome"))
    }

    fn evaluate(&mut self, batch: &mut Placed) -> Result<Evaluating> {
        let batch = &batch.batch;
        let (inputs, targets) = (frames(batch, &Device::Cpu)?, targets(batch, &Device::Cpu)?);
        let encoded = self.encoded(batch, &inputs)?;
        let encoded = Encoded { frames: &encoded, pad_mask: &inputs.pad_mask };
        self.score = Some(self.host.evaluator.decoder().score(encoded, &targets)?);
        Ok(Evaluating(()))
    }

    fn score(&mut self, _: Evaluating) -> Result<Score> {
        self.score.take().ok_or_else(|| graph::lost("score"))
    }

    fn encode(&mut self, batch: &mut Placed) -> Result<Tensor> {
        self.encoded(&batch.batch, &frames(&batch.batch, &Device::Cpu)?)
    }

    fn gradients(&self, step: &Step) -> Result<Vec<Vec<f32>>> {
        self.gradients.mean(step)
    }

    fn host(&self) -> &Host {
        &self.host
    }

    fn host_mut(&mut self) -> &mut Host {
        &mut self.host
    }

    /// The host's parameters are those that are computed with.
    fn pull(&mut self) -> Result<()> {
        Ok(())
    }

    fn push(&mut self) -> Result<()> {
        Ok(())
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn times(&self) -> Option<Times> {
        Some(self.times)
    }
}

/// Images of a stream.
fn images(batch: &Batch) -> usize {
    batch.clips.len() * batch.sizes.frames
}

fn all_parameters(network: &Network) -> Vec<&Tensor> {
    network.parameters().iter().map(|(_, var)| var.as_tensor()).collect()
}

/// A stream's images from `start` on.
fn part<'a>(batch: &Batch, pixels: &'a Pixels, start: usize) -> vit::Pixels<'a> {
    let first = start * batch.sizes.image_bytes();
    match pixels {
        Pixels::Bytes(bytes) => vit::Pixels::Bytes(&bytes[first..]),
        Pixels::Normalised(floats) => vit::Pixels::Normalised(&floats[first..]),
    }
}

#[cfg(test)]
mod tests;
