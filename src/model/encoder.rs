//! The multi-stream encoder: backbones, projectors, fusion and the temporal encoder.

use candle_core::{Result, Tensor};

use super::classifier::Inputs;
use super::drops::HeadDrops;
use super::fusion::Fusion;
use super::projector::Projector;
use super::temporal::{Positional, Temporal};
use super::trace::Trace;
use super::vit::VisionTransformer;
use crate::config;
use crate::nn::{Builder, Pass};

/// The backbones' names: face, left hand, right hand.
pub(super) const BACKBONES: [&str; 3] = ["face_backbone", "hand_backbone_left", "hand_backbone_right"];
/// Their projectors' names.
const PROJECTORS: [&str; 3] = ["face_projector", "hand_left_projector", "hand_right_projector"];

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
        let backbones = [backbone(BACKBONES[0])?, backbone(BACKBONES[1])?, backbone(BACKBONES[2])?];
        let projector =
            |name, inputs| Projector::new(&b.pp(name), inputs, c.projector_dim, c.projector_dropout);
        let width = c.backbone.embed_dim;
        Ok(Self {
            backbones,
            projectors: [
                projector(PROJECTORS[0], width)?,
                projector(PROJECTORS[1], width)?,
                projector(PROJECTORS[2], width)?,
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

    /// Where what follows the backbones drops something.
    #[must_use]
    pub fn drops(&self) -> HeadDrops {
        let [face, left, right] = self.projectors.each_ref().map(Projector::dropout);
        HeadDrops {
            projectors: [face, left, right, self.pose_projector.dropout()],
            fusion: self.fusion.dropout(),
            layers: self.temporal.drops(),
        }
    }

    /// The backbones' features (N, D) each, and the batch's poses, to (B, T, D). `trace` sees what each part gives.
    pub fn forward(&self, features: &[Tensor], inputs: &Inputs, pass: &Pass, trace: Trace) -> Result<Tensor> {
        let (batch, frames) = inputs.pad_mask.dims2()?;
        let mut streams = Vec::with_capacity(4);
        for ((projector, name), x) in self.projectors.iter().zip(PROJECTORS).zip(features) {
            let projected = projector.forward(&x.reshape((batch, frames, ()))?, pass)?;
            trace(name, &projected)?;
            streams.push(projected);
        }
        let pose = self.pose_projector.forward(&inputs.pose, pass)?;
        trace("pose_projector", &pose)?;
        streams.push(pose);
        let fused = self.fusion.forward(&streams, pass)?;
        trace("fusion", &fused)?;
        let placed = self.positional.forward(&fused)?;
        let mut trace = |name: &str, output: &Tensor| trace(&format!("temporal.{name}"), output);
        self.temporal.forward(&placed, &inputs.key_bias()?, pass, &mut trace)
    }
}
