//! Networks that no machine can hold: their parameters' sizes are those of the blueprint.

use super::{DecoderKind, Network};
use crate::Result;
use crate::config::{self, Experiment, FIELDS, MOST_BYTES, TextDecoder};
use crate::error::{Error, ErrorKind, Problem};
use crate::nn::{Blueprint, ParameterSpec};

/// Refuses a network with a parameter that no machine can hold, or with too much of them together.
///
/// # Errors
/// Of the largest parameter, with the fields that size it.
pub fn refuse_impossible(c: &Experiment, decoder: &dyn DecoderKind, blueprint: &Blueprint) -> Result<()> {
    let all: f64 = blueprint.parameters().iter().map(bytes).sum();
    let (mut largest, mut most) = (None, 0.0);
    for parameter in blueprint.parameters() {
        if bytes(parameter) > most {
            (largest, most) = (Some(parameter), bytes(parameter));
        }
    }
    let Some(largest) = largest.filter(|_| all > MOST_BYTES as f64) else { return Ok(()) };
    let mut fields = fields_of(&c.model, decoder, largest);
    let what = if most > MOST_BYTES as f64 {
        format!("the network's {} would take {}", largest.name, gib(most))
    } else {
        fields.push(format!("model.backbone.depth = {}", c.model.backbone.depth));
        fields.push(format!("model.temporal_layers = {}", c.model.temporal_layers));
        if c.model.decoder.kind != TextDecoder::Stub {
            fields.push(format!("model.decoder.layers = {}", c.model.decoder.layers));
        }
        format!("the network's parameters would take {}", gib(all))
    };
    let problem = Problem::new(format!("{what}: {}", fields.join(", ")));
    Err(Error::new(ErrorKind::Config, problem.hint("lower one of these; no machine can hold that much")))
}

/// A float: what is refused may be more than 64 bits count.
fn bytes(parameter: &ParameterSpec) -> f64 {
    parameter.shape.iter().map(|&n| n as f64).product::<f64>() * 4.0
}

fn gib(bytes: f64) -> String {
    format!("{:.1e} GiB", bytes / f64::from(1_u32 << 30))
}

/// The fields that `parameter` has its shape from, with their values: those that give it another one when they are small.
fn fields_of(c: &config::Model, decoder: &dyn DecoderKind, parameter: &ParameterSpec) -> Vec<String> {
    const SMALL: u64 = 7;
    let json = Experiment { model: c.clone(), ..Experiment::default() }.to_json();
    let decides = |key: &str| {
        let mut json = json.clone();
        *json.pointer_mut(&format!("/{}", key.replace('.', "/")))? = SMALL.into();
        // As many layers as there must be for one of each kind.
        json["model"]["backbone"]["depth"] = 1.into();
        json["model"]["temporal_layers"] = c.temporal_layers.min(1).into();
        json["model"]["decoder"]["layers"] = 1.into();
        let small: config::Model = serde_json::from_value(json["model"].take()).ok()?;
        let blueprint = Network::blueprint_of(&small, decoder).ok()?;
        let found = blueprint.parameters().iter().find(|other| other.name == parameter.name)?;
        Some(found.shape != parameter.shape)
    };
    let of_model = FIELDS.iter().filter(|field| field.section.starts_with("model"));
    let deciding = of_model.filter(|field| decides(field.key) == Some(true));
    let value = |key: &str| json.pointer(&format!("/{}", key.replace('.', "/"))).map(ToString::to_string);
    deciding.map(|field| format!("{} = {}", field.key, value(field.key).unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::decoder;

    fn refused(settings: &[(&str, &str)]) -> String {
        let c = config::for_tests(settings);
        let kind = decoder::of_no_texts(&c);
        let blueprint = Network::blueprint_of(&c.model, kind.as_ref()).expect("a blueprint");
        refuse_impossible(&c, kind.as_ref(), &blueprint)
            .err()
            .map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn what_no_machine_can_hold_is_refused_with_its_fields() {
        assert_eq!(refused(&[]), "");
        assert_eq!(refused(&[("model.d_model", "1000000")]), "");
        for (settings, name, fields) in [
            (
                &[("model.d_model", "1000000000")][..],
                "encoder.temporal.encoder.layers.0.self_attn.in_proj_weight",
                "model.d_model = 1000000000",
            ),
            (
                &[("model.vocab_size", "1000000000000")],
                "decoder.lm_head.weight",
                "model.d_model = 512, model.vocab_size = 1000000000000",
            ),
            (
                &[("model.backbone.mlp_ratio", "1e300")],
                "encoder.face_backbone.blocks.0.mlp.0.weight",
                "model.backbone.embed_dim = 384, model.backbone.mlp_ratio = 1e+300",
            ),
            (
                &[("model.backbone.embed_dim", "12000000")],
                "encoder.face_backbone.blocks.0.mlp.0.weight",
                "model.backbone.embed_dim = 12000000, model.backbone.mlp_ratio = 4.0",
            ),
        ] {
            let text = refused(settings);
            assert!(text.starts_with(&format!("error: the network's {name} would take ")), "{text}");
            assert!(text.contains(&format!(" GiB: {fields}\n")), "{text}");
        }
        assert!(refused(&[("model.d_model", "1000000000")]).contains("1.1e10 GiB"));
        // Each is possible, and all of them together are not.
        let many = [("model.backbone.embed_dim", "2000004"), ("model.backbone.depth", "100")];
        let text = refused(&many);
        assert!(
            text.contains("the network's parameters would take") && text.contains("depth = 100"),
            "{text}"
        );
    }
}
