//! The dropouts of what follows the backbones, for those who compute it without the modules.

use crate::nn::Dropout;

/// Where projectors, fusion and temporal encoder drop something.
#[derive(Clone, Debug)]
pub struct HeadDrops {
    /// After the GELU of face's, left hand's, right hand's and pose's projector.
    pub projectors: [Dropout; 4],
    /// After fusion's norm.
    pub fusion: Dropout,
    /// Each temporal layer's.
    pub layers: Vec<LayerDrops>,
}

/// Where a temporal layer drops something.
#[derive(Clone, Copy, Debug)]
pub struct LayerDrops {
    /// Attention weights.
    pub attention: Dropout,
    /// After attention, inside the feed-forward part, after it.
    pub others: [Dropout; 3],
}
