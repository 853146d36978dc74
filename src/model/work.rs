//! How much a network multiplies: what a benchmark holds its time against.

use crate::config::Model;
use crate::config::streams::{Stream, image_streams};
use crate::nn::Blueprint;

/// Multiply-adds of the matrix products of a forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Of weights and activations.
    pub maps: f64,
    /// Of activations alone, in attention.
    pub attention: f64,
}

impl Work {
    /// Both.
    #[must_use]
    pub fn all(self) -> f64 {
        self.maps + self.attention
    }

    /// Maps of (outputs, inputs) that `rows` rows go through.
    #[must_use]
    pub fn of_maps(rows: usize, weights: usize) -> Self {
        Self { maps: rows as f64 * weights as f64, attention: 0.0 }
    }

    /// The scores of `queries` and `keys`, and the sums over values, of all heads, which are `width` wide together.
    #[must_use]
    pub fn of_attention(queries: usize, keys: usize, width: usize) -> Self {
        Self { maps: 0.0, attention: 2.0 * queries as f64 * keys as f64 * width as f64 }
    }
}

impl std::ops::Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { maps: self.maps + other.maps, attention: self.attention + other.attention }
    }
}

impl std::ops::Mul<f64> for Work {
    type Output = Self;

    fn mul(self, times: f64) -> Self {
        Self { maps: self.maps * times, attention: self.attention * times }
    }
}

/// What stands between the backbones and the decoder, of `clips` whole clips: projectors, fusion, temporal encoder.
#[must_use]
pub fn encoder(c: &Model, blueprint: &Blueprint, clips: usize) -> Work {
    let backbones: Vec<String> =
        image_streams().filter_map(Stream::backbone).map(|name| format!("encoder.{name}.")).collect();
    let is_map = |name: &str| {
        name.starts_with("encoder.")
            && name.ends_with("weight")
            && !name.contains("embedding")
            && !backbones.iter().any(|backbone| name.starts_with(backbone))
    };
    let weights = blueprint.parameters().iter().filter(|spec| spec.shape.len() == 2 && is_map(&spec.name));
    let frames = c.sequence_length;
    let layers = c.temporal_layers as f64 * clips as f64;
    Work::of_maps(clips * frames, weights.map(crate::nn::ParameterSpec::elements).sum())
        + Work::of_attention(frames, frames, c.d_model) * layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::model::{Network, decoder};

    /// By hand, at sizes that are all different.
    #[test]
    fn products_are_counted() {
        let c = config::for_tests(&[
            ("model.sequence_length", "7"),
            ("model.image_size", "16"),
            ("model.projector_dim", "12"),
            ("model.d_model", "16"),
            ("model.pose_landmarks", "5"),
            ("model.temporal_nhead", "2"),
            ("model.temporal_layers", "3"),
            ("model.temporal_dim_feedforward", "24"),
            ("model.vocab_size", "31"),
            ("model.backbone.patch_size", "4"),
            ("model.backbone.embed_dim", "20"),
            ("model.backbone.depth", "2"),
            ("model.backbone.num_heads", "2"),
        ]);
        let blueprint = Network::plan(&c, decoder::of_no_texts(&c).as_ref()).unwrap();
        let found = encoder(&c.model, &blueprint, 2);
        let layer = 4 * 16 * 16 + 2 * 16 * 24;
        let others: usize = blueprint
            .parameters()
            .iter()
            .filter(|spec| spec.name.contains("projector") || spec.name.contains("fusion"))
            .filter(|spec| spec.shape.len() == 2)
            .map(crate::nn::ParameterSpec::elements)
            .sum();
        let [maps, attention] = [2 * 7 * (3 * layer + others), 2 * 3 * 2 * 7 * 7 * 16];
        assert!((found.maps - maps as f64).abs() < 0.5, "{found:?}, not {maps}");
        assert!((found.attention - attention as f64).abs() < 0.5, "{found:?}, not {attention}");
        assert!(others > 3 * 20 * 12);
    }
}
