//! The whole network, and what it takes.

use candle_core::{DType, Device, Result, Tensor};

use super::decoder::Decoder;
use super::drops::HeadDrops;
use super::encoder::{BACKBONES, Encoder};
use super::trace::{Activation, Activations, Trace, unseen};
use super::vit::VisionTransformer;
use crate::config;
use crate::nn::{Blueprint, Builder, Images, Parameters, Pass};

/// A batch on the device that computes.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Face, left hand, right hand: `N = B * T` images each.
    pub images: [Images; 3],
    /// (B, T, 3 landmarks), f32.
    pub pose: Tensor,
    /// (B, T), u8: 1 = a frame of the clip, 0 = padding.
    pub pad_mask: Tensor,
}

impl Inputs {
    /// The pass of the images of clips that `pass` is for: its rows are images where those are clips.
    pub fn images_pass(&self, pass: &Pass) -> Result<Pass> {
        Ok(Pass { first_row: pass.first_row * self.pad_mask.dim(1)?, ..*pass })
    }

    /// What attention adds to the scores of each key: 0, or minus infinity at padding. (B, 1, 1, T)
    pub fn key_bias(&self) -> Result<Tensor> {
        let (batch, frames) = self.pad_mask.dims2()?;
        let zeros = self.pad_mask.zeros_like()?.to_dtype(DType::F32)?;
        let hidden = Tensor::full(f32::NEG_INFINITY, (batch, frames), self.pad_mask.device())?;
        self.pad_mask.where_cond(&zeros, &hidden)?.reshape((batch, 1, 1, frames))
    }
}

/// The multi-stream sign language classifier.
pub struct Classifier {
    encoder: Encoder,
    decoder: Decoder,
    parameters: Parameters,
}

impl Classifier {
    /// With initial weights drawn from `seed`.
    pub fn new(c: &config::Model, device: &Device, seed: u64) -> Result<Self> {
        Self::build(&Builder::new(device, seed), c)
    }

    /// A copy over the same parameters, which follows their updates, for validation and inference: no graph is
    /// kept.
    pub fn without_graph(&self, c: &config::Model) -> Result<Self> {
        Self::build(&Builder::without_graph(&self.parameters), c)
    }

    /// What a network of this configuration is made of, without making it.
    pub fn blueprint(c: &config::Model) -> Result<Blueprint> {
        let b = Builder::recording();
        Self::build(&b, c)?;
        Ok(b.blueprint())
    }

    fn build(b: &Builder, c: &config::Model) -> Result<Self> {
        let encoder = Encoder::new(&b.pp("encoder"), c)?;
        let decoder = Decoder::new(&b.pp("decoder"), c)?;
        Ok(Self { encoder, decoder, parameters: b.parameters() })
    }

    /// A batch to logits (B, V), as one graph of operations.
    /// `pass.first_row` counts clips.
    pub fn forward(&self, inputs: &Inputs, pass: &Pass) -> Result<Tensor> {
        let images_pass = inputs.images_pass(pass)?;
        let backbones = self.backbones().iter().zip(&inputs.images);
        let features: Result<Vec<Tensor>> =
            backbones.map(|(net, images)| net.forward(images, &images_pass)).collect();
        self.head(&features?, inputs, pass)
    }

    /// How large the modules' outputs are for a batch, without dropout, in the order of the forward pass. The images
    /// go through a few at a time.
    pub fn activations(&self, inputs: &Inputs) -> Result<Vec<Activation>> {
        const AT_A_TIME: usize = 16;
        let mut seen = Activations::default();
        let mut features = Vec::new();
        for ((net, name), images) in self.backbones().iter().zip(BACKBONES).zip(&inputs.images) {
            let mut trace = |part: &str, x: &Tensor| seen.see(&format!("encoder.{name}.{part}"), x);
            let mut parts = Vec::new();
            for start in (0..images.count()?).step_by(AT_A_TIME) {
                let some = images.narrow(start, AT_A_TIME.min(images.count()? - start))?;
                parts.push(net.forward_traced(&some, &Pass::EVALUATION, &mut trace)?);
            }
            features.push(Tensor::cat(&parts, 0)?);
        }
        let mean =
            self.mean_traced(&features, inputs, &Pass::EVALUATION, &mut |name, x| seen.see(name, x))?;
        seen.see("decoder.lm_head", &self.decoder.classify(&mean)?)?;
        Ok(seen.into_inner())
    }

    /// The backbones of face, left hand and right hand: the first of the parameters, in this order.
    #[must_use]
    pub fn backbones(&self) -> &[VisionTransformer; 3] {
        self.encoder.backbones()
    }

    /// The dropouts of all that follows the backbones.
    #[must_use]
    pub fn head_drops(&self) -> HeadDrops {
        self.encoder.drops()
    }

    /// All that follows the backbones: their features (N, D) each, to logits (B, V).
    pub fn head(&self, features: &[Tensor], inputs: &Inputs, pass: &Pass) -> Result<Tensor> {
        self.decoder.classify(&self.mean(features, inputs, pass)?)
    }

    /// The backbones' features (N, D) each, to one vector a clip: (B, D).
    pub fn mean(&self, features: &[Tensor], inputs: &Inputs, pass: &Pass) -> Result<Tensor> {
        self.mean_traced(features, inputs, pass, &mut unseen)
    }

    fn mean_traced(&self, features: &[Tensor], inputs: &Inputs, pass: &Pass, trace: Trace) -> Result<Tensor> {
        let mut part = |name: &str, x: &Tensor| trace(&format!("encoder.{name}"), x);
        let encoded = self.encoder.forward(features, inputs, pass, &mut part)?;
        Decoder::mean(&encoded, &inputs.pad_mask.to_dtype(DType::F32)?)
    }

    /// What makes logits of these vectors; its two parameters are the last.
    #[must_use]
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The parameters, in PyTorch's order.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}
