//! Engines whose gradients end in the host's memory: what is theirs alone, and the engine that it makes.

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use super::batch::{Placed, frames, targets};
use super::host::Host;
use super::memory::Plan;
use super::seam::{End, Engine, Evaluating, Outcome, Pending, Step, Times};
use crate::Result;
use crate::config::Decoding;
use crate::data::{Batch, Pixels};
use crate::error::Error;
use crate::model::{Encoded, Frames, Hypothesis, Network, Score};
use crate::nn::{ActivationDtype, Pass};
use crate::optim::gradients::{self, Accumulator};

/// What such an engine keeps.
pub struct State {
    pub host: Host,
    pub plan: Plan,
    gradients: Gradients,
    outcome: Option<Outcome>,
    score: Option<Score>,
    times: Times,
}

impl State {
    pub fn new(host: Host, plan: Plan) -> Self {
        let (gradients, times) = (Gradients::default(), Times::default());
        Self { host, plan, gradients, outcome: None, score: None, times }
    }
}

/// What one batch gave in training.
pub struct Trained {
    /// The mean loss.
    pub loss: f64,
    /// How much was predicted.
    pub weight: usize,
    /// The mean loss's gradients, of the parameters that train, in their order.
    pub gradients: Vec<Tensor>,
    /// How long the forward pass took.
    pub forward: Duration,
}

/// What is an engine's own. Each of these is an [`Engine`].
pub trait GraphEngine {
    fn state(&self) -> &State;

    fn state_mut(&mut self) -> &mut State;

    /// Where the graph is computed.
    fn device(&self) -> &Device;

    /// The network without a graph, on the device.
    fn evaluator(&self) -> &Network;

    /// Forward and backward.
    fn forward_backward(&mut self, batch: &Batch, targets: &Tensor, pass: &Pass) -> Result<Trained>;

    /// The encoded frames of a batch without dropout, on the device, where its `inputs` are.
    fn encoded(&self, batch: &Batch, inputs: &Frames) -> Result<Tensor>;

    /// The features (N, D) of `count` frames of the image stream at `stream`, without dropout, on the device.
    fn features(&self, stream: usize, pixels: &Pixels, count: usize, image_size: usize) -> Result<Tensor>;

    /// Brings the host's parameters to where the device computes with them.
    fn follow_host(&mut self) -> Result<()>;

    /// As [`Engine::activation_dtype`].
    fn dtype(&self) -> ActivationDtype {
        ActivationDtype::F32
    }

    /// As [`Engine::product_rate`].
    fn measured_rate(&self) -> Option<f64> {
        None
    }
}

impl<E: GraphEngine> Engine for E {
    fn send(&mut self, _: &mut Placed) -> Result<()> {
        Ok(())
    }

    /// Nobody waits for the loader before its batch is needed.
    fn sends_ahead(&self) -> bool {
        false
    }

    fn activation_dtype(&self) -> ActivationDtype {
        self.dtype()
    }

    fn product_rate(&self) -> Option<f64> {
        self.measured_rate()
    }

    fn train(&mut self, batch: &mut Placed, pass: &Pass, step: &mut Step) -> Result<()> {
        let begun = Instant::now();
        let targets = targets(batch, self.device())?;
        let Trained { loss, weight, gradients, forward } =
            self.forward_backward(&batch.batch, &targets, pass)?;
        let state = self.state_mut();
        state.gradients.add(gradients, weight, step)?;
        (state.times.forward, state.times.backward) = (forward, begun.elapsed().saturating_sub(forward));
        step.add(batch.clips(), weight, Some(loss));
        Ok(())
    }

    fn update(&mut self, step: Step, rates: &[f64], max_norm: Option<f64>) -> Result<Pending> {
        let begun = Instant::now();
        let State { gradients, host, outcome, .. } = self.state_mut();
        *outcome = Some(gradients.update(host, &step, rates, max_norm)?);
        self.follow_host()?;
        self.state_mut().times.optimizer = begun.elapsed();
        Ok(Pending(()))
    }

    fn outcome(&mut self, _: Pending) -> Result<Outcome> {
        self.state_mut().outcome.take().ok_or_else(|| lost("outcome"))
    }

    fn evaluate(&mut self, batch: &mut Placed) -> Result<Evaluating> {
        let (inputs, targets) = (frames(&batch.batch, self.device())?, targets(batch, self.device())?);
        let frames = self.encoded(&batch.batch, &inputs)?;
        let encoded = Encoded { frames: &frames, pad_mask: &inputs.pad_mask };
        self.state_mut().score = Some(self.evaluator().decoder().score(encoded, &targets)?);
        batch.encoded = frames.device().is_cpu().then_some(frames);
        Ok(Evaluating(()))
    }

    fn score(&mut self, _: Evaluating) -> Result<Score> {
        self.state_mut().score.take().ok_or_else(|| lost("score"))
    }

    fn encode(&mut self, batch: &mut Placed) -> Result<Tensor> {
        if let Some(frames) = &batch.encoded {
            return Ok(frames.clone());
        }
        let inputs = frames(&batch.batch, self.device())?;
        Ok(self.encoded(&batch.batch, &inputs)?.to_device(&Device::Cpu)?)
    }

    fn features(
        &mut self,
        stream: usize,
        pixels: &Pixels,
        count: usize,
        image_size: usize,
    ) -> Result<Vec<f32>> {
        let features = GraphEngine::features(self, stream, pixels, count, image_size)?;
        Ok(features.flatten_all()?.to_vec1()?)
    }

    fn translate(&mut self, batch: &mut Placed, c: &Decoding) -> Result<Vec<Vec<Hypothesis>>> {
        let frames = self.encode(batch)?;
        self.host().translate(&frames, batch, c)
    }

    fn gradients(&self, step: &Step) -> Result<Vec<Vec<f32>>> {
        self.state().gradients.mean(step)
    }

    fn host(&self) -> &Host {
        &self.state().host
    }

    fn host_mut(&mut self) -> &mut Host {
        &mut self.state_mut().host
    }

    /// The host's parameters are those that are updated.
    fn pull(&mut self) -> Result<()> {
        Ok(())
    }

    fn push(&mut self) -> Result<()> {
        self.follow_host()
    }

    fn plan(&self) -> &Plan {
        &self.state().plan
    }

    fn times(&self) -> Option<Times> {
        Some(self.state().times)
    }
}

/// The gradients of a step, of the parameters that train, in their order.
#[derive(Default)]
pub(super) struct Gradients {
    /// Of a step of one batch.
    single: Vec<Tensor>,
    /// The sums of a step of several.
    sums: Accumulator,
}

impl Gradients {
    /// Adds those of the mean loss of a batch, which weighs `weight`, to those of `step`, which does not count it yet.
    pub fn add(&mut self, gradients: Vec<Tensor>, weight: usize, step: &Step) -> Result<()> {
        if step.is_empty() {
            // What a step that failed has left.
            self.sums.clear()?;
        }
        if step.is_single() {
            self.single = gradients;
            return Ok(());
        }
        self.sums.add(&gradients, weight)
    }

    /// The optimizer's step by the mean gradient, unless a number is not finite.
    pub fn update(
        &mut self,
        host: &mut Host,
        step: &Step,
        rates: &[f64],
        max_norm: Option<f64>,
    ) -> Result<Outcome> {
        let (sums, weight) = self.sums.sums();
        let (gradients, share) =
            if weight > 0 { (sums, 1.0 / weight as f64) } else { (self.single.as_slice(), 1.0) };
        let (loss, norm) = (step.loss().unwrap_or(f64::NAN), gradients::norm(gradients)? * share);
        let finite = loss.is_finite() && norm.is_finite();
        if finite {
            let factor = max_norm.map_or(1.0, |max_norm| gradients::clip_factor(norm, max_norm));
            host.optimizer.step(host.network.parameters(), gradients, rates, share * factor)?;
        }
        self.single.clear();
        self.sums.clear()?;
        Ok(Outcome { loss, norm, end: if finite { End::Updated } else { End::NotFinite } })
    }

    /// Of the mean of the losses of `step` so far.
    pub fn mean(&self, step: &Step) -> Result<Vec<Vec<f32>>> {
        let (sums, weight) = self.sums.sums();
        let (gradients, share) =
            if step.is_single() { (self.single.as_slice(), 1.0) } else { (sums, 1.0 / weight as f32) };
        let values = |gradient: &Tensor| -> Result<Vec<f32>> {
            let values = gradient.flatten_all()?.to_vec1::<f32>()?;
            Ok(values.into_iter().map(|value| value * share).collect())
        };
        gradients.iter().map(values).collect()
    }
}

/// A value of this engine was asked for with another one's token.
pub(super) fn lost(what: &str) -> Error {
    Error::run(format!("this engine has no {what} to tell: it is another one's"))
}
