//! The whole network, and what it takes.

use std::rc::Rc;

use candle_core::{Device, Result as CandleResult, Tensor, Var};

use super::decoder::{Decoder, DecoderKind, Encoded};
use super::encoder::Encoder;
use super::frames::Frames;
use super::frozen::frozen;
use super::trace::{ModuleOutput, ModuleOutputs, Trace, unseen};
use super::vit::VisionTransformer;
use crate::config::Experiment;
use crate::config::streams::{Stream, image_streams};
use crate::nn::{Blueprint, Builder, Images, Parameters, Pass};
use crate::{Result, config};

/// The multi-stream network: an encoder, and the decoder that reads what it gives.
pub struct Network {
    encoder: Encoder,
    decoder: Box<dyn Decoder>,
    parameters: Parameters,
    blueprint: Rc<Blueprint>,
}

impl Network {
    /// That of an experiment, with initial weights drawn from its seed. What is frozen is none of the graph's variables.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn new(c: &Experiment, decoder: &dyn DecoderKind, device: &Device) -> Result<Self> {
        let frozen = frozen(c, &*Self::blueprint_of(&c.model, decoder)?);
        Ok(Self::build(&Builder::new(device, c.run.seed).with_frozen(frozen), &c.model, decoder)?)
    }

    /// A copy over the same parameters, which follows their updates, for validation and inference: no graph is
    /// kept.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn without_graph(&self, c: &config::Model, decoder: &dyn DecoderKind) -> Result<Self> {
        Ok(Self::build(&Builder::without_graph(&self.parameters), c, decoder)?)
    }

    /// What the network of an experiment is made of, without making it.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn plan(c: &Experiment, decoder: &dyn DecoderKind) -> CandleResult<Rc<Blueprint>> {
        let frozen = frozen(c, &*Self::blueprint_of(&c.model, decoder)?);
        Ok(Self::build(&Builder::recording().with_frozen(frozen), &c.model, decoder)?.blueprint)
    }

    /// What a network of this configuration is made of, where all of it trains.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn blueprint_of(c: &config::Model, decoder: &dyn DecoderKind) -> CandleResult<Rc<Blueprint>> {
        Ok(Self::build(&Builder::recording(), c, decoder)?.blueprint)
    }

    fn build(b: &Builder, c: &config::Model, decoder: &dyn DecoderKind) -> CandleResult<Self> {
        let encoder = Encoder::new(&b.pp("encoder"), c)?;
        let decoder = decoder.build(&b.pp("decoder"), c)?;
        Ok(Self { encoder, decoder, parameters: b.parameters(), blueprint: Rc::new(b.blueprint()) })
    }

    /// Each image stream's images, `N = B T` of them, to its backbone's features (N, D), as a graph of operations.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn features(&self, images: &[Images], pass: &Pass) -> CandleResult<Vec<Tensor>> {
        self.backbones().iter().zip(images).map(|(net, images)| net.forward(images, pass)).collect()
    }

    /// The backbones' features (N, D) each, and the rest of the batch, to the encoded frames (B, T, D).
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn encode(&self, features: &[Tensor], frames: &Frames, pass: &Pass) -> CandleResult<Tensor> {
        self.encoder.forward(features, frames, pass, &mut unseen)
    }

    /// What reads the encoded frames.
    #[must_use]
    pub fn decoder(&self) -> &dyn Decoder {
        self.decoder.as_ref()
    }

    /// How large the modules' outputs are for a batch, without dropout, in the order of the forward pass. The images
    /// go through a few at a time.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn activations(
        &self,
        images: &[Images],
        frames: &Frames,
        targets: &Tensor,
    ) -> Result<Vec<ModuleOutput>> {
        const AT_A_TIME: usize = 16;
        let mut seen = ModuleOutputs::default();
        let mut features = Vec::new();
        let names = image_streams().filter_map(Stream::backbone);
        for ((net, name), images) in self.backbones().iter().zip(names).zip(images) {
            let mut trace = |part: &str, x: &Tensor| seen.see(&format!("encoder.{name}.{part}"), x);
            let mut parts = Vec::new();
            for start in (0..images.count()?).step_by(AT_A_TIME) {
                let some = images.narrow(start, AT_A_TIME.min(images.count()? - start))?;
                parts.push(net.forward_traced(&some, &Pass::EVALUATION, &mut trace)?);
            }
            features.push(Tensor::cat(&parts, 0)?);
        }
        let pass = Pass::EVALUATION;
        let mut part = |name: &str, x: &Tensor| seen.see(&format!("encoder.{name}"), x);
        let encoded = self.encoder.forward(&features, frames, &pass, &mut part as Trace)?;
        let encoded = Encoded { frames: &encoded, pad_mask: &frames.pad_mask };
        let logits = self.decoder.logits(encoded, targets, &pass)?;
        seen.see(&format!("decoder.{}", self.decoder.head()), &logits)?;
        Ok(seen.into_inner())
    }

    /// The backbones of the image streams.
    #[must_use]
    pub fn backbones(&self) -> &[VisionTransformer] {
        self.encoder.backbones()
    }

    /// The parameters, in PyTorch's order.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Name and variable of each parameter that trains, in order.
    #[must_use]
    pub fn trainable(&self) -> Vec<(&str, &Var)> {
        let specs = self.blueprint.parameters().iter();
        self.parameters.iter().zip(specs).filter(|(_, spec)| spec.trains).map(|(entry, _)| entry).collect()
    }

    /// Names, shapes and dropouts of its parts.
    #[must_use]
    pub fn blueprint(&self) -> &Rc<Blueprint> {
        &self.blueprint
    }

    /// Name and variable of each parameter below `module` that trains, in order.
    #[must_use]
    pub fn trainable_of(&self, module: &str) -> Vec<(&str, &Var)> {
        let scope = self.blueprint.root().pp(module);
        let all: Vec<(&str, &Var)> = self.parameters.iter().collect();
        scope.trainable().filter_map(|position| all.get(position).copied()).collect()
    }
}
