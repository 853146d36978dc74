//! The multi-stream encoder: backbones, projectors, fusion and the temporal encoder.

use candle_core::{Result, Tensor};

use super::frames::Frames;
use super::fusion::Fusion;
use super::projector::Projector;
use super::temporal::{Positional, Temporal};
use super::trace::Trace;
use super::vit::VisionTransformer;
use crate::config;
use crate::config::streams::{STREAMS, Stream, StreamKind, image_streams};
use crate::nn::{Builder, Pass};

/// All streams to one vector a frame.
pub struct Encoder {
    /// The image streams'.
    backbones: Vec<VisionTransformer>,
    /// Each stream's.
    projectors: Vec<Projector>,
    fusion: Fusion,
    positional: Positional,
    temporal: Temporal,
}

impl Encoder {
    /// A backbone for each image stream, unless features come in the place of images, and all that follows them.
    pub fn new(b: &Builder, c: &config::Model, with_backbones: bool) -> Result<Self> {
        let names = image_streams().filter_map(Stream::backbone).filter(|_| with_backbones);
        let backbone = |name| VisionTransformer::new(&b.pp(name), &c.backbone, c.image_size);
        let backbones: Result<_> = names.map(backbone).collect();
        let backbones = backbones?;
        let projector = |stream: &Stream| {
            let inputs = match stream.kind {
                StreamKind::Images { .. } => c.backbone.embed_dim,
                StreamKind::Pose => 3 * c.pose_landmarks,
            };
            Projector::new(&b.pp(stream.projector), inputs, c.projector_dim, c.projector_dropout)
        };
        let projectors: Result<_> = STREAMS.iter().map(projector).collect();
        Ok(Self {
            backbones,
            projectors: projectors?,
            fusion: Fusion::new(
                &b.pp("fusion"),
                STREAMS.len() * c.projector_dim,
                c.d_model,
                c.fusion_dropout,
            )?,
            positional: Positional::new(&b.pp("positional"), c.sequence_length, c.d_model)?,
            temporal: Temporal::new(&b.pp("temporal"), c)?,
        })
    }

    /// The backbones of the image streams.
    #[must_use]
    pub fn backbones(&self) -> &[VisionTransformer] {
        &self.backbones
    }

    /// The backbones' features (N, D) each, and the batch's poses, to (B, T, D). `trace` sees what each part gives.
    pub fn forward(&self, features: &[Tensor], inputs: &Frames, pass: &Pass, trace: Trace) -> Result<Tensor> {
        let (batch, frames) = inputs.pad_mask.dims2()?;
        let (mut features, mut poses) = (features.iter(), inputs.poses.iter());
        let mut projected = Vec::with_capacity(STREAMS.len());
        for (stream, projector) in STREAMS.iter().zip(&self.projectors) {
            let x = match stream.kind {
                StreamKind::Images { .. } => features.next(),
                StreamKind::Pose => poses.next(),
            };
            let Some(x) = x else { candle_core::bail!("the batch has no {}", stream.name) };
            let x = projector.forward(&x.reshape((batch, frames, ()))?, pass)?;
            trace(stream.projector, &x)?;
            projected.push(x);
        }
        let fused = self.fusion.forward(&projected, pass)?;
        trace("fusion", &fused)?;
        let placed = self.positional.forward(&fused)?;
        let mut trace = |name: &str, output: &Tensor| trace(&format!("temporal.{name}"), output);
        self.temporal.forward(&placed, &inputs.key_bias()?, pass, &mut trace)
    }
}
