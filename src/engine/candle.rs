//! The plain Candle model on any Candle device: every operation in Candle's graph. The reference for all other engines.

use std::time::Instant;

use candle_core::{Device, Tensor};

use super::batch::{Placed, frames, images, targets};
use super::graph::{self, Gradients};
use super::host::Host;
use super::memory::{self, BATCHES, Memory, Plan};
use super::seam::{Engine, Evaluating, Outcome, Pending, Step, Times};
use crate::Result;
use crate::config::streams::image_streams;
use crate::config::{Chunk, Experiment};
use crate::data::Batch;
use crate::error::Error;
use crate::model::decoder::gradient;
use crate::model::{DecoderKind, Encoded, Frames, Network, Score};
use crate::nn::{Blueprint, Pass};

/// The network as one graph, on `device`.
pub struct Candle {
    host: Host,
    /// The networks on a device that is not the host: with a graph and without. They follow the host's after each step.
    elsewhere: Option<[Network; 2]>,
    device: Device,
    plan: Plan,
    gradients: Gradients,
    outcome: Option<Outcome>,
    score: Option<Score>,
    times: Times,
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
        let plan = plan(c, blueprint);
        plan.refuse_more_than_there_is(c)?;
        let host = Host::new(c, decoder)?;
        let elsewhere = if device.is_cpu() {
            None
        } else {
            let network = Network::new(&c.model, decoder, device, c.run.seed)?;
            let evaluator = network.without_graph(&c.model, decoder)?;
            Some([network, evaluator])
        };
        let (gradients, times) = (Gradients::default(), Times::default());
        let device = device.clone();
        Ok(Self { host, elsewhere, device, plan, gradients, outcome: None, score: None, times })
    }

    fn network(&self) -> &Network {
        self.elsewhere.as_ref().map_or(&self.host.network, |[network, _]| network)
    }

    fn evaluator(&self) -> &Network {
        self.elsewhere.as_ref().map_or(&self.host.evaluator, |[_, evaluator]| evaluator)
    }
}

impl Engine for Candle {
    fn send(&mut self, _: &mut Placed) -> Result<()> {
        Ok(())
    }

    fn sends_ahead(&self) -> bool {
        false
    }

    fn train(&mut self, batch: &mut Placed, pass: &Pass, step: &mut Step) -> Result<()> {
        let begun = Instant::now();
        let (batch, device) = (&batch.batch, &self.device);
        let (inputs, targets) = (frames(batch, device)?, targets(batch, device)?);
        let network = self.network();
        let features = network.features(&images(batch, device)?, &inputs.images_pass(pass)?)?;
        let encoded = network.encode(&features, &inputs, pass)?;
        let encoded = Encoded { frames: &encoded, pad_mask: &inputs.pad_mask };
        let loss = network.decoder().loss(encoded, &targets, pass)?;
        let mean = f64::from(loss.mean.to_scalar::<f32>()?);
        let forward = begun.elapsed();
        let store = loss.mean.backward()?;
        let gradients: Result<Vec<Tensor>> = network
            .parameters()
            .iter()
            .map(|(name, var)| Ok(gradient(&store, name, var)?.to_device(&Device::Cpu)?))
            .collect();
        let gradients = gradients?;
        self.gradients.add(gradients, loss.weight, step)?;
        (self.times.forward, self.times.backward) = (forward, begun.elapsed().saturating_sub(forward));
        step.add(batch.clips.len(), loss.weight, Some(mean));
        Ok(())
    }

    fn update(&mut self, step: Step, lr: f64, max_norm: Option<f64>) -> Result<Pending> {
        let begun = Instant::now();
        self.outcome = Some(self.gradients.update(&mut self.host, &step, lr, max_norm)?);
        self.push()?;
        self.times.optimizer = begun.elapsed();
        Ok(Pending(()))
    }

    fn outcome(&mut self, _: Pending) -> Result<Outcome> {
        self.outcome.take().ok_or_else(|| graph::lost("outcome"))
    }

    fn evaluate(&mut self, batch: &mut Placed) -> Result<Evaluating> {
        let (batch, device) = (&batch.batch, &self.device);
        let (inputs, targets) = (frames(batch, device)?, targets(batch, device)?);
        let encoded = self.encoded(batch, &inputs)?;
        let encoded = Encoded { frames: &encoded, pad_mask: &inputs.pad_mask };
        self.score = Some(self.evaluator().decoder().score(encoded, &targets)?);
        Ok(Evaluating(()))
    }

    fn score(&mut self, _: Evaluating) -> Result<Score> {
        self.score.take().ok_or_else(|| graph::lost("score"))
    }

    fn encode(&mut self, batch: &mut Placed) -> Result<Tensor> {
        let inputs = frames(&batch.batch, &self.device)?;
        Ok(self.encoded(&batch.batch, &inputs)?.to_device(&Device::Cpu)?)
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

    /// The host's parameters are those that are updated.
    fn pull(&mut self) -> Result<()> {
        Ok(())
    }

    fn push(&mut self) -> Result<()> {
        let Some([network, _]) = &self.elsewhere else { return Ok(()) };
        for ((_, to), (_, from)) in network.parameters().iter().zip(self.host.parameters().iter()) {
            to.set(&from.to_device(&self.device)?)?;
        }
        Ok(())
    }

    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn times(&self) -> Option<Times> {
        Some(self.times)
    }
}

impl Candle {
    /// The encoded frames on the device, of a batch whose `inputs` are there.
    fn encoded(&self, batch: &Batch, inputs: &Frames) -> Result<Tensor> {
        let network = self.evaluator();
        let features = network.features(&images(batch, &self.device)?, &Pass::EVALUATION)?;
        Ok(network.encode(&features, inputs, &Pass::EVALUATION)?)
    }
}

/// What a step takes as one graph, which keeps what each operation gave, and their gradients.
fn plan(c: &Experiment, blueprint: &Blueprint) -> Plan {
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
        head: memory::head(c),
        batches: BATCHES.saturating_mul(memory::batch_bytes(c)),
    };
    Plan::whole(c, memory::usual_share(memory::available()), memory)
}
