//! A network and its optimizer in the host's memory.

use std::rc::Rc;

use candle_core::{Device, Tensor};

use super::batch::{Placed, frames, inputs, targets};
use super::cpu::decode::{Steps, TextDecoder};
use crate::Result;
use crate::config::{Decoding, EngineKind, Experiment, TextDecoder as TextDecoderKind};
use crate::model::decoder::SPECIALS;
use crate::model::search::search;
use crate::model::{DecoderKind, Encoded, Hypothesis, ModuleOutput, Network};
use crate::nn::parameters::with_slices;
use crate::nn::{Operations, Parameters};
use crate::optim::{Optimizer, ParameterGroups};

/// What training changes, and the modules over it.
pub struct Host {
    /// With a graph, for training.
    pub network: Network,
    /// Over the same parameters, without a graph, for evaluation.
    pub evaluator: Network,
    /// The optimizer, with its moments.
    pub optimizer: Optimizer,
    /// Where the decoder's parameters that train are among all.
    pub(super) decoder: Vec<usize>,
    /// The text decoder by blocks of our own, unless it is computed as a graph or there is none.
    text_decoder: Option<TextDecoder>,
}

impl Host {
    /// At the start of an experiment; its modules compute with `operations`.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn new(c: &Experiment, decoder: &dyn DecoderKind, operations: Rc<dyn Operations>) -> Result<Self> {
        let is_fused =
            c.run.engine != EngineKind::Candle && c.model.decoder.kind == TextDecoderKind::Transformer;
        let network = Network::new(c, decoder, &Device::Cpu, operations)?;
        let evaluator = network.without_graph(&c.model, decoder)?;
        let groups = ParameterGroups::new(&c.optimization, network.blueprint())?;
        let optimizer = Optimizer::new(&c.optimization, groups, network.parameters());
        let scope = network.blueprint().root().pp("decoder");
        let text_decoder = is_fused.then(|| TextDecoder::new(&scope, &c.model)).transpose()?;
        let decoder = scope.trainable().collect();
        Ok(Self { network, evaluator, optimizer, decoder, text_decoder })
    }

    /// How large the modules' outputs are for a batch, without dropout.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn activations(&self, batch: &Placed) -> Result<Vec<ModuleOutput>> {
        let (targets, batch, device) = (targets(batch, &Device::Cpu)?, &batch.batch, &Device::Cpu);
        let (streams, frames) = (inputs(batch, device)?, frames(batch, device)?);
        self.evaluator.activations(&streams, &frames, &targets)
    }

    /// The best predictions of each clip of a batch, from its encoded frames (B, T, D).
    ///
    /// # Errors
    /// Where the tensor library fails, or of kind `Numbers` where a logit is not a number.
    pub fn translate(&self, encoded: &Tensor, batch: &Placed, c: &Decoding) -> Result<Vec<Vec<Hypothesis>>> {
        let Some(decoder) = &self.text_decoder else {
            let pad_mask = frames(&batch.batch, &Device::Cpu)?.pad_mask;
            return self.evaluator.decoder().translate(Encoded { frames: encoded, pad_mask: &pad_mask }, c);
        };
        let clips = encoded.dim(0)?;
        let encoded = encoded.flatten_all()?.to_vec1::<f32>()?;
        let parameters: Vec<&Tensor> = self.parameters().iter().map(|(_, var)| var.as_tensor()).collect();
        with_slices(&parameters, |weights| {
            let mut steps = Steps::new(decoder, weights, &encoded, &batch.batch.pad_mask, clips);
            search(&mut steps, clips, SPECIALS, c)
        })?
    }

    /// Of each clip of a batch, how many classes are more probable than its own, where the decoder has classes.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn ranks(&self, encoded: &Tensor, batch: &Placed) -> Result<Option<Vec<usize>>> {
        let pad_mask = frames(&batch.batch, &Device::Cpu)?.pad_mask;
        let encoded = Encoded { frames: encoded, pad_mask: &pad_mask };
        self.evaluator.decoder().ranks(encoded, &targets(batch, &Device::Cpu)?)
    }

    /// The parameters, in PyTorch's order.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        self.network.parameters()
    }
}
