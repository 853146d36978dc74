//! The whole network, and what it takes.

use std::rc::Rc;

use candle_core::{Device, Result as CandleResult, Tensor, Var};

use super::decoder::{Decoder, DecoderKind, Encoded};
use super::encoder::Encoder;
use super::frames::Frames;
use super::trace::{ModuleOutput, ModuleOutputs, Trace, unseen};
use super::vit::VisionTransformer;
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
    /// With initial weights drawn from `seed`.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn new(c: &config::Model, decoder: &dyn DecoderKind, device: &Device, seed: u64) -> Result<Self> {
        Ok(Self::build(&Builder::new(device, seed), c, decoder)?)
    }

    /// A copy over the same parameters, which follows their updates, for validation and inference: no graph is
    /// kept.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn without_graph(&self, c: &config::Model, decoder: &dyn DecoderKind) -> Result<Self> {
        Ok(Self::build(&Builder::without_graph(&self.parameters), c, decoder)?)
    }

    /// What a network of this configuration is made of, without making it.
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

    /// Names, shapes and dropouts of its parts.
    #[must_use]
    pub fn blueprint(&self) -> &Rc<Blueprint> {
        &self.blueprint
    }

    /// Name and variable of each parameter below `module`, in order.
    #[must_use]
    pub fn parameters_of(&self, module: &str) -> Vec<(&str, &Var)> {
        let scope = self.blueprint.root().pp(module);
        let all: Vec<(&str, &Var)> = self.parameters.iter().collect();
        scope.parameters().filter_map(|position| all.get(position).copied()).collect()
    }
}
