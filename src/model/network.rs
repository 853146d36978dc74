//! The whole network, and what it takes.

use std::rc::Rc;

use candle_core::{Device, Result as CandleResult, Tensor, Var};

use super::decoder::{Decoder, DecoderKind, Encoded};
use super::encoder::Encoder;
use super::frames::{Frames, StreamInput};
use super::frozen::frozen;
use super::trace::{ModuleOutput, ModuleOutputs, Trace, unseen};
use super::vit::VisionTransformer;
use crate::config::Experiment;
use crate::config::streams::{Stream, image_streams};
use crate::nn::{Blueprint, Builder, Frozen, Operations, Parameters, Pass};
use crate::{Result, config};

/// The multi-stream network: an encoder, and the decoder that reads what it gives.
pub struct Network {
    encoder: Encoder,
    decoder: Box<dyn Decoder>,
    parameters: Parameters,
    blueprint: Rc<Blueprint>,
    operations: Rc<dyn Operations>,
}

impl Network {
    /// That of an experiment, with initial weights drawn from its seed, computed with `operations`. What is frozen is none of the graph's variables.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn new(
        c: &Experiment,
        decoder: &dyn DecoderKind,
        device: &Device,
        operations: Rc<dyn Operations>,
    ) -> Result<Self> {
        let builder = Builder::new(device, c.run.seed).with_frozen(Self::frozen(c, decoder)?);
        let builder = builder.with_operations(operations);
        Ok(Self::build(&builder, &c.model, has_backbones(c), decoder)?)
    }

    /// A copy over the same parameters, which follows their updates, for validation and inference: no graph is
    /// kept.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn without_graph(&self, c: &config::Model, decoder: &dyn DecoderKind) -> Result<Self> {
        let with_backbones = !self.encoder.backbones().is_empty();
        let builder = Builder::without_graph(&self.parameters).with_operations(Rc::clone(&self.operations));
        Ok(Self::build(&builder, c, with_backbones, decoder)?)
    }

    /// What the network of an experiment is made of, without making it.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn plan(c: &Experiment, decoder: &dyn DecoderKind) -> CandleResult<Rc<Blueprint>> {
        let builder = Builder::recording().with_frozen(Self::frozen(c, decoder)?);
        Ok(Self::build(&builder, &c.model, has_backbones(c), decoder)?.blueprint)
    }

    /// What a network of this configuration is made of, where all of it trains.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn blueprint_of(c: &config::Model, decoder: &dyn DecoderKind) -> CandleResult<Rc<Blueprint>> {
        Ok(Self::build(&Builder::recording(), c, true, decoder)?.blueprint)
    }

    fn frozen(c: &Experiment, decoder: &dyn DecoderKind) -> CandleResult<Frozen> {
        Ok(frozen(c, &Self::build(&Builder::recording(), &c.model, has_backbones(c), decoder)?.blueprint))
    }

    fn build(
        b: &Builder,
        c: &config::Model,
        with_backbones: bool,
        decoder: &dyn DecoderKind,
    ) -> CandleResult<Self> {
        let encoder = Encoder::new(&b.pp("encoder"), c, with_backbones)?;
        let decoder = decoder.build(&b.pp("decoder"), c)?;
        Ok(Self {
            encoder,
            decoder,
            parameters: b.parameters(),
            blueprint: Rc::new(b.blueprint()),
            operations: b.operations(),
        })
    }

    /// Each image stream's images, `N = B T` of them, to its backbone's features (N, D), as a graph of operations.
    ///
    /// # Errors
    /// Where the tensor library fails, or there is no backbone for images.
    pub fn features(&self, streams: &[StreamInput], pass: &Pass) -> CandleResult<Vec<Tensor>> {
        let features = |(at, stream): (usize, &StreamInput)| match stream {
            StreamInput::Features(features) => Ok(features.clone()),
            StreamInput::Images(images) => self.backbone(at)?.forward(images, pass),
        };
        streams.iter().enumerate().map(features).collect()
    }

    /// The backbone of the image stream at `at`.
    ///
    /// # Errors
    /// Where the network has none.
    pub fn backbone(&self, at: usize) -> CandleResult<&VisionTransformer> {
        let none = || candle_core::Error::Msg("the network has no backbone for images".into());
        self.encoder.backbones().get(at).ok_or_else(none)
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
        streams: &[StreamInput],
        frames: &Frames,
        targets: &Tensor,
    ) -> Result<Vec<ModuleOutput>> {
        const AT_A_TIME: usize = 16;
        let mut seen = ModuleOutputs::default();
        let mut features = Vec::new();
        let names = image_streams().filter_map(Stream::backbone);
        for (at, (name, stream)) in names.zip(streams).enumerate() {
            let StreamInput::Images(images) = stream else {
                features.extend(self.features(std::slice::from_ref(stream), &Pass::EVALUATION)?);
                continue;
            };
            let net = self.backbone(at)?;
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

    /// What it computes with.
    #[must_use]
    pub fn operations(&self) -> &dyn Operations {
        self.operations.as_ref()
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

/// Whether the network of an experiment has backbones: features that were made elsewhere need none.
fn has_backbones(c: &Experiment) -> bool {
    c.data.features_dir.is_none()
}
