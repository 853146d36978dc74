//! The multi-stream encoder: backbones, projectors, fusion and the temporal encoder.

use candle_core::{Result, Tensor};

use super::classifier::Inputs;
use super::fusion::Fusion;
use super::projector::Projector;
use super::temporal::{Positional, Temporal};
use super::vit::VisionTransformer;
use crate::config;
use crate::nn::{Builder, Pass};

/// Face, left hand, right hand and pose to one vector a frame.
pub struct Encoder {
    backbones: [VisionTransformer; 3],
    projectors: [Projector; 3],
    pose_projector: Projector,
    fusion: Fusion,
    positional: Positional,
    temporal: Temporal,
}

impl Encoder {
    /// Three separate backbones and all that follows them.
    pub fn new(b: &Builder, c: &config::Model) -> Result<Self> {
        let backbone = |name| VisionTransformer::new(&b.pp(name), &c.backbone, c.image_size);
        let backbones =
            [backbone("face_backbone")?, backbone("hand_backbone_left")?, backbone("hand_backbone_right")?];
        let projector =
            |name, inputs| Projector::new(&b.pp(name), inputs, c.projector_dim, c.projector_dropout);
        let width = c.backbone.embed_dim;
        Ok(Self {
            backbones,
            projectors: [
                projector("face_projector", width)?,
                projector("hand_left_projector", width)?,
                projector("hand_right_projector", width)?,
            ],
            pose_projector: projector("pose_projector", 3 * c.pose_landmarks)?,
            fusion: Fusion::new(&b.pp("fusion"), 4 * c.projector_dim, c.d_model, c.fusion_dropout)?,
            positional: Positional::new(&b.pp("positional"), c.sequence_length, c.d_model)?,
            temporal: Temporal::new(&b.pp("temporal"), c)?,
        })
    }

    /// The backbones of face, left hand and right hand.
    #[must_use]
    pub fn backbones(&self) -> &[VisionTransformer; 3] {
        &self.backbones
    }

    /// The backbones' features (N, D) each, and the batch's poses, to (B, T, D).
    pub fn forward(&self, features: &[Tensor], inputs: &Inputs, pass: &Pass) -> Result<Tensor> {
        let (batch, frames) = inputs.pad_mask.dims2()?;
        let mut streams = Vec::with_capacity(4);
        for (projector, x) in self.projectors.iter().zip(features) {
            streams.push(projector.forward(&x.reshape((batch, frames, ()))?, pass)?);
        }
        streams.push(self.pose_projector.forward(&inputs.pose, pass)?);
        let fused = self.positional.forward(&self.fusion.forward(&streams, pass)?)?;
        self.temporal.forward(&fused, &inputs.key_bias()?, pass)
    }
}
