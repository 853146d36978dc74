//! The CPU's engine: the backbones by fused blocks, the rest as a graph of fused [`operations`].
//!
//! The blocks say what is multiplied, and a [`precision`] how: in f32, or with operands in bfloat16. Backward passes are
//! written by hand, and SIMD is chosen at run time. Candle's own operations
//! train this network six times slower than PyTorch; `scripts/PERF.md` has the log.

pub mod decode;
mod gemm;
pub mod math;
mod memory;
pub mod operations;
pub mod precision;
pub mod rows;
pub mod vit;

use std::rc::Rc;
use std::time::Instant;

use candle_core::{Device, Tensor, Var};

use super::batch::{features_on, frames};
use super::graph::{GraphEngine, State, Trained};
use super::host::Host;
use crate::config::Experiment;
use crate::config::streams::{Stream, image_streams};
use crate::data::{Batch, Pixels};
use crate::error::Error;
use crate::model::decoder::gradient;
use crate::model::{DecoderKind, Encoded, Frames, Network};
use crate::nn::parameters::with_slices;
use crate::nn::{ActivationDtype, Blueprint, Pass};
use crate::{Result, config};
use precision::Precision;
use vit::{Backbone, Backward, Kept, Tape, Workspace};

/// The network on the CPU.
pub struct Cpu<P: Precision> {
    precision: P,
    state: State,
    /// The image streams'.
    backbones: Vec<Backbone>,
    buffers: Buffers<P::Number>,
}

/// What the backbones keep from step to step: memory that is mapped anew costs its clearing.
#[derive(Default)]
struct Buffers<N> {
    tapes: Vec<Tape<N>>,
    workspace: Workspace<N>,
}

/// The backbones of a network of the configuration `c`.
///
/// There are none where it takes features.
///
/// # Errors
/// Where the blueprint is of another network.
pub fn backbones(c: &config::Model, blueprint: &Blueprint) -> Result<Vec<Backbone>> {
    let encoder = blueprint.root().pp("encoder");
    let names = image_streams().filter_map(Stream::backbone);
    let there = names.filter(|name| encoder.pp(name).parameters().next().is_some());
    there.map(|name| Backbone::new(&encoder.pp(name), &c.backbone, c.image_size)).collect()
}

impl<P: Precision<Number: Kept>> Cpu<P> {
    /// At the start of an experiment.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn new(c: &Experiment, decoder: &dyn DecoderKind, blueprint: &Blueprint) -> Result<Self> {
        let backbones = backbones(&c.model, blueprint)?;
        let plan = memory::plan(c, decoder, blueprint, &backbones, size_of::<P::Number>());
        plan.refuse_more_than_there_is(c)?;
        let host = Host::new(c, decoder, Rc::new(operations::FusedOperations::<P>::default()))?;
        let (precision, state) = (P::default(), State::new(host, plan));
        Ok(Self { precision, state, backbones, buffers: Buffers::default() })
    }

    /// Each image stream's features (N, D) of a batch. Where all goes at once and there are `tapes`, what backward needs is
    /// kept on them.
    fn streams(
        &self,
        network: &Network,
        batch: &Batch,
        pass: &Pass,
        tapes: Option<&mut [Tape<P::Number>]>,
    ) -> Result<Vec<Tensor>> {
        let mut tapes = tapes.unwrap_or_default().iter_mut();
        let count = images(batch);
        let streams = batch.images.iter().enumerate();
        streams.map(|(at, pixels)| self.stream(network, at, pixels, count, pass, tapes.next())).collect()
    }

    /// The features (N, D) of `count` frames of the image stream at `at`.
    fn stream(
        &self,
        network: &Network,
        at: usize,
        pixels: &Pixels,
        count: usize,
        pass: &Pass,
        tape: Option<&mut Tape<P::Number>>,
    ) -> Result<Tensor> {
        if let Pixels::Features(features) = pixels {
            return features_on(features, count, &Device::Cpu);
        }
        let net =
            self.backbones.get(at).ok_or_else(|| Error::run("the network has no backbone for images"))?;
        let parameters = all_parameters(network);
        let features = with_slices(&parameters, |slices| {
            let weights = net.positions.map(|&position| slices[position]);
            let (pixels, drops) = (part(net, pixels, 0), net.drops(pass));
            vit::forward(&self.precision, &net.shape, &weights, pixels, count, drops.as_ref(), tape)
        })?;
        Ok(Tensor::from_vec(features, (count, net.shape.width), &Device::Cpu)?)
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
        let precision = &self.precision;
        let (net, images, pixels) = (&self.backbones[at], images(batch), &batch.images[at]);
        let d_features = d_features.flatten_all()?.to_vec1::<f32>()?;
        let parameters = all_parameters(&self.state.host.network);
        let mut gradients = vit::Gradients::default();
        with_slices(&parameters, |slices| {
            let weights = net.positions.map(|&position| slices[position]);
            for start in (0..images).step_by(chunk.unwrap_or(images)) {
                let count = chunk.unwrap_or(images).min(images - start);
                let pass = Pass { first_row: pass.first_row + start, ..*pass };
                let (pixels, drops) = (part(net, pixels, start), net.drops(&pass));
                let tape = &mut tapes[if chunk.is_some() { 0 } else { at }];
                if chunk.is_some() {
                    let _ = vit::forward(
                        precision,
                        &net.shape,
                        &weights,
                        pixels,
                        count,
                        drops.as_ref(),
                        Some(&mut *tape),
                    );
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
                vit::backward(precision, &net.shape, &weights, with, d_features, &mut gradients);
            }
        })?;
        let specs = self.state.host.network.blueprint().parameters();
        for (position, values) in net.positions.clone().into_values().zip(gradients.into_values()) {
            if specs[position].trains {
                all[position] = Some(Tensor::from_vec(values, parameters[position].dims(), &Device::Cpu)?);
            }
        }
        Ok(())
    }
}

impl<P: Precision<Number: Kept>> GraphEngine for Cpu<P> {
    fn state(&self) -> &State {
        &self.state
    }

    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn evaluator(&self) -> &Network {
        &self.state.host.evaluator
    }

    /// As a graph only from the backbones' features on. In chunks, their forward pass keeps nothing and is computed again
    /// for each chunk when the gradients come back.
    ///
    /// Memory is highest when the backbones' tapes are full. What can wait comes after them: the gradients of the decoder,
    /// and, where the tapes are used but once, the backbones' gradients, which take their place.
    fn forward_backward(&mut self, batch: &Batch, targets: &Tensor, pass: &Pass) -> Result<Trained> {
        let (begun, inputs) = (Instant::now(), frames(batch, &Device::Cpu)?);
        let images_pass = inputs.images_pass(pass)?;
        let chunk = self.state.plan.chunk.filter(|&chunk| chunk < images(batch));
        let streams = self.backbones.len();

        let mut tapes = std::mem::take(&mut self.buffers.tapes);
        tapes.resize_with(if chunk.is_some() { 1 } else { streams }, Tape::default);
        let kept = if chunk.is_none() { Some(tapes.as_mut_slice()) } else { None };
        let features = self.streams(&self.state.host.network, batch, &images_pass, kept);
        self.buffers.tapes = tapes;
        let mut leaves = Vec::with_capacity(batch.images.len());
        for (at, (features, pixels)) in features?.into_iter().zip(&batch.images).enumerate() {
            let trains = self
                .backbones
                .get(at)
                .is_some_and(|net| net.shape.trained != crate::engine::trained::Trained::Nothing);
            leaves.push(Leaf::new(features, trains && !matches!(pixels, Pixels::Features(_)))?);
        }
        let network = &self.state.host.network;
        let features: Vec<Tensor> = leaves.iter().map(Leaf::tensor).collect();
        let encoded = network.encode(&features, &inputs, pass)?;
        let decoded = network.decoder().train(
            Encoded { frames: &encoded, pad_mask: &inputs.pad_mask },
            targets,
            pass,
            &network.trainable_of("decoder"),
        )?;
        let forward = begun.elapsed();
        let store = network.operations().backward(&encoded, &decoded.d_frames)?;
        drop(encoded);

        let mut all = vec![None; network.parameters().len()];
        for (at, leaf) in leaves.iter().enumerate() {
            let Leaf::Variable(feature) = leaf else { continue };
            let d_features = gradient(&store, "a backbone's features", feature)?;
            self.backbone_backward(at, batch, &images_pass, &d_features, chunk, &mut all)?;
        }
        let network = &self.state.host.network;
        let trainable = self.state.host.optimizer.groups().trainable();
        let parameters: Vec<(&str, &Var)> = network.parameters().iter().collect();
        let decoder = &self.state.host.decoder;
        for &at in trainable.iter().filter(|at| !decoder.contains(at)) {
            if all[at].is_none() {
                let (name, var) = parameters[at];
                all[at] = Some(gradient(&store, name, var)?);
            }
        }
        if let (None, Some(tape)) = (chunk, self.buffers.tapes.last_mut()) {
            tape.free(size_of::<f32>() * network.blueprint().elements("decoder."));
        }
        for (&position, gradient) in decoder.iter().zip((decoded.gradients)()?) {
            all[position] = Some(gradient);
        }
        let gradients: Option<Vec<Tensor>> = trainable.iter().map(|&at| all[at].take()).collect();
        let gradients = gradients.ok_or_else(|| Error::run("the decoder has left out a gradient"))?;
        Ok(Trained { loss: decoded.loss, weight: decoded.weight, gradients, forward })
    }

    fn encoded(&self, batch: &Batch, inputs: &Frames) -> Result<Tensor> {
        let (network, pass) = (self.evaluator(), Pass::EVALUATION);
        let features = self.streams(network, batch, &pass, None)?;
        Ok(network.encode(&features, inputs, &pass)?)
    }

    fn features(&self, stream: usize, pixels: &Pixels, count: usize, _: usize) -> Result<Tensor> {
        self.stream(self.evaluator(), stream, pixels, count, &Pass::EVALUATION, None)
    }

    fn dtype(&self) -> ActivationDtype {
        P::DTYPE
    }

    fn measured_rate(&self) -> Option<f64> {
        Some(precision::product_rate(self.precision))
    }

    /// The host's parameters are those that are computed with.
    fn follow_host(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A backbone's features (N, D) as the rest of the network reads them.
enum Leaf {
    /// Their gradient is asked for.
    Variable(Var),
    /// Nothing of the backbone trains.
    Constant(Tensor),
}

impl Leaf {
    fn new(features: Tensor, trains: bool) -> Result<Self> {
        Ok(if trains { Self::Variable(Var::from_tensor(&features)?) } else { Self::Constant(features) })
    }

    fn tensor(&self) -> Tensor {
        match self {
            Self::Variable(var) => var.as_tensor().clone(),
            Self::Constant(features) => features.clone(),
        }
    }
}

/// Images of a stream.
fn images(batch: &Batch) -> usize {
    batch.clips.len() * batch.sizes.frames
}

fn all_parameters(network: &Network) -> Vec<&Tensor> {
    network.parameters().iter().map(|(_, var)| var.as_tensor()).collect()
}

/// The images of a backbone's stream from `start` on; none of features.
fn part<'a>(net: &Backbone, pixels: &'a Pixels, start: usize) -> vit::Pixels<'a> {
    let first = start * 3 * net.shape.image * net.shape.image;
    match pixels {
        Pixels::Bytes(bytes) => vit::Pixels::Bytes(&bytes[first..]),
        Pixels::Normalised(floats) => vit::Pixels::Normalised(&floats[first..]),
        Pixels::Features(_) => vit::Pixels::Bytes(&[]),
    }
}

#[cfg(test)]
mod tests;
