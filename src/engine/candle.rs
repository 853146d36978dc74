//! The plain Candle model on any Candle device: every operation in Candle's graph. The reference for all other engines.

use std::rc::Rc;
use std::time::Instant;

use candle_core::{Device, Tensor};

use super::batch::{frames, input, inputs as streams};
use super::graph::{GraphEngine, State, Trained};
use super::host::Host;
use super::memory::{self, BATCHES, Memory, Plan};
use crate::Result;
use crate::config::streams::image_streams;
use crate::config::{Chunk, Experiment};
use crate::data::{Batch, Pixels};
use crate::error::Error;
use crate::model::decoder::gradient;
use crate::model::{DecoderKind, Encoded, Frames, Network, StreamInput};
use crate::nn::operations::Graph;
use crate::nn::{Blueprint, Pass};

/// The network as one graph, on `device`.
pub struct Candle {
    state: State,
    /// The networks on a device that is not the host: with a graph and without. They follow the host's after each step.
    elsewhere: Option<[Network; 2]>,
    device: Device,
}

impl Candle {
    /// At the start of an experiment.
    ///
    /// # Errors
    /// Where the tensor library fails, or the experiment asks for chunks.
    pub fn new(
        c: &Experiment,
        decoder: &dyn DecoderKind,
        blueprint: &Blueprint,
        device: &Device,
    ) -> Result<Self> {
        if let Chunk::Frames(_) = c.optimization.frames_per_chunk {
            return Err(Error::config(
                "run.engine = \"candle\" computes all frames of a batch at once, and optimization.frames_per_chunk is set",
            )
            .hint("leave optimization.frames_per_chunk out, or let run.engine be \"auto\""));
        }
        let plan = plan(c, blueprint, decoder);
        plan.refuse_more_than_there_is(c)?;
        let host = Host::new(c, decoder, Rc::new(Graph))?;
        let elsewhere = if device.is_cpu() {
            None
        } else {
            let network = Network::new(c, decoder, device, Rc::new(Graph))?;
            let evaluator = network.without_graph(&c.model, decoder)?;
            Some([network, evaluator])
        };
        Ok(Self { state: State::new(host, plan), elsewhere, device: device.clone() })
    }

    fn network(&self) -> &Network {
        self.elsewhere.as_ref().map_or(&self.state.host.network, |[network, _]| network)
    }
}

impl GraphEngine for Candle {
    fn state(&self) -> &State {
        &self.state
    }

    fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn evaluator(&self) -> &Network {
        self.elsewhere.as_ref().map_or(&self.state.host.evaluator, |[_, evaluator]| evaluator)
    }

    fn forward_backward(&mut self, batch: &Batch, targets: &Tensor, pass: &Pass) -> Result<Trained> {
        let begun = Instant::now();
        let (network, inputs) = (self.network(), frames(batch, &self.device)?);
        let features = network.features(&streams(batch, &self.device)?, &inputs.images_pass(pass)?)?;
        let encoded = network.encode(&features, &inputs, pass)?;
        let encoded = Encoded { frames: &encoded, pad_mask: &inputs.pad_mask };
        let loss = network.decoder().loss(encoded, targets, pass)?;
        let mean = f64::from(loss.mean.to_scalar::<f32>()?);
        let forward = begun.elapsed();
        let store = network.operations().backward(&loss.mean, &loss.mean.ones_like()?)?;
        let trainable = network.trainable();
        let gradients: Result<Vec<Tensor>> = trainable
            .into_iter()
            .map(|(name, var)| Ok(gradient(&store, name, var)?.to_device(&Device::Cpu)?))
            .collect();
        Ok(Trained { loss: mean, weight: loss.weight, gradients: gradients?, forward })
    }

    fn encoded(&self, batch: &Batch, inputs: &Frames) -> Result<Tensor> {
        let network = self.evaluator();
        let features = network.features(&streams(batch, &self.device)?, &Pass::EVALUATION)?;
        Ok(network.encode(&features, inputs, &Pass::EVALUATION)?)
    }

    fn features(&self, stream: usize, pixels: &Pixels, count: usize, image_size: usize) -> Result<Tensor> {
        let input = input(pixels, count, image_size, &self.device)?;
        match input {
            StreamInput::Images(images) => {
                Ok(self.evaluator().backbone(stream)?.forward(&images, &Pass::EVALUATION)?)
            }
            StreamInput::Features(features) => Ok(features),
        }
    }

    fn follow_host(&mut self) -> Result<()> {
        let Some([network, _]) = &self.elsewhere else { return Ok(()) };
        for ((_, to), (_, from)) in network.parameters().iter().zip(self.state.host.parameters().iter()) {
            to.set(&from.to_device(&self.device)?)?;
        }
        Ok(())
    }
}

/// What a step takes as one graph, which keeps what each operation gave, and their gradients.
fn plan(c: &Experiment, blueprint: &Blueprint, decoder: &dyn DecoderKind) -> Plan {
    let b = &c.model.backbone;
    let tokens = (c.model.image_size / b.patch_size).saturating_pow(2).saturating_add(1);
    let attention = b.num_heads.saturating_mul(tokens).saturating_mul(8);
    let widths = b.embed_dim.saturating_mul(24).saturating_add(b.mlp_width().saturating_mul(6));
    let token = widths.saturating_add(attention).saturating_mul(4);
    let images = c.data.batch_size.saturating_mul(c.model.sequence_length);
    let images = images.saturating_mul(image_streams().count());
    let memory = Memory {
        parameters: memory::parameters(c, blueprint, usize::from(c.optimization.accumulate > 1)),
        backbones: [tokens, b.depth, images].into_iter().fold(token, usize::saturating_mul),
        head: memory::head(c, decoder),
        batches: BATCHES.saturating_mul(memory::batch_bytes(c)),
    };
    Plan::whole(c, memory::usual_share(memory::available()), memory)
}
