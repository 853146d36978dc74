//! How much a network multiplies in a forward pass, as multiply-adds: what a benchmark holds its time against.

use crate::config::Model;
use crate::config::streams::{Stream, image_streams};
use crate::nn::Blueprint;

/// The multiply-adds of `rows` rows that go through maps of so many weights.
#[must_use]
pub fn of_maps(rows: usize, weights: usize) -> f64 {
    rows as f64 * weights as f64
}

/// Those of scores of `queries` and `keys`, and of sums over values, of all heads, which are `width` wide together.
#[must_use]
pub fn of_attention(queries: usize, keys: usize, width: usize) -> f64 {
    2.0 * queries as f64 * keys as f64 * width as f64
}

/// What stands between the backbones and the decoder, of `clips` whole clips: projectors, fusion, temporal encoder.
#[must_use]
pub fn encoder(c: &Model, blueprint: &Blueprint, clips: usize) -> f64 {
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
    of_maps(clips * frames, weights.map(crate::nn::ParameterSpec::elements).sum())
        + of_attention(frames, frames, c.d_model) * layers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::model::{Network, decoder};

    /// By hand.
    #[test]
    fn products_are_counted() {
        let c = config::for_tests(&[("model.sequence_length", "7"), ("model.temporal_layers", "3")]);
        let (d, hidden) = (c.model.d_model, c.model.temporal_dim_feedforward);
        let blueprint = Network::plan(&c, decoder::of_no_texts(&c).as_ref()).unwrap();
        let found = encoder(&c.model, &blueprint, 2);
        let layer = 4 * d * d + 2 * d * hidden;
        let others: usize = blueprint
            .parameters()
            .iter()
            .filter(|spec| spec.name.contains("projector") || spec.name.contains("fusion"))
            .filter(|spec| spec.shape.len() == 2)
            .map(crate::nn::ParameterSpec::elements)
            .sum();
        let expected = 2 * 7 * (3 * layer + others) + 2 * 3 * 2 * 7 * 7 * d;
        assert!((found - expected as f64).abs() < 0.5, "{found}, not {expected}");
        assert!(others > 3 * c.model.backbone.embed_dim * c.model.projector_dim);
    }
}
