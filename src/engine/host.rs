//! A network and its optimizer in the host's memory.

use candle_core::Device;

use super::batch::{Placed, frames, images, targets};
use crate::Result;
use crate::config::Experiment;
use crate::model::{DecoderKind, ModuleOutput, Network};
use crate::nn::Parameters;
use crate::optim::Optimizer;

/// What training changes, and the modules over it.
pub struct Host {
    /// With a graph, for training.
    pub network: Network,
    /// Over the same parameters, without a graph, for evaluation.
    pub evaluator: Network,
    /// The optimizer, with its moments.
    pub optimizer: Optimizer,
    /// Where the decoder's parameters are among all.
    pub(super) decoder: Vec<usize>,
}

impl Host {
    /// At the start of an experiment.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn new(c: &Experiment, decoder: &dyn DecoderKind) -> Result<Self> {
        let network = Network::new(&c.model, decoder, &Device::Cpu, c.run.seed)?;
        let evaluator = network.without_graph(&c.model, decoder)?;
        let optimizer = Optimizer::new(&c.optimization, network.parameters());
        let decoder = network.blueprint().root().pp("decoder").parameters().collect();
        Ok(Self { network, evaluator, optimizer, decoder })
    }

    /// How large the modules' outputs are for a batch, without dropout.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn activations(&self, batch: &Placed) -> Result<Vec<ModuleOutput>> {
        let (targets, batch, device) = (targets(batch, &Device::Cpu)?, &batch.batch, &Device::Cpu);
        let (images, frames) = (images(batch, device)?, frames(batch, device)?);
        self.evaluator.activations(&images, &frames, &targets)
    }

    /// The parameters, in PyTorch's order.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        self.network.parameters()
    }
}
