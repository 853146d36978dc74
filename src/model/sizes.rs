//! Networks that no machine can hold: their parameters' sizes are those of the blueprint.

use serde_json::Value;

use crate::Result;
use crate::config::{Experiment, FIELDS, MOST_BYTES};
use crate::error::{Error, ErrorKind, Problem};
use crate::nn::Blueprint;

/// Refuses a network with a parameter that no machine can hold, or with too much of them together.
///
/// # Errors
/// Of the largest parameter, with the fields that have the size of one of its dimensions.
pub fn refuse_impossible(c: &Experiment, blueprint: &Blueprint) -> Result<()> {
    let too_large = |elements: usize| (elements as u128).saturating_mul(4) > MOST_BYTES;
    let all = blueprint.elements("");
    let Some(largest) = blueprint.parameters().iter().max_by_key(|parameter| parameter.elements()) else {
        return Ok(());
    };
    let mut fields = fields_of(c, &largest.shape);
    let what = if too_large(largest.elements()) {
        format!("the network's {} would take {}", largest.name, gib(largest.elements()))
    } else if too_large(all) {
        fields.extend(["model.backbone.depth", "model.temporal_layers"].map(str::to_owned));
        format!("the network's parameters would take {}", gib(all))
    } else {
        return Ok(());
    };
    let what = if fields.is_empty() { what } else { format!("{what}: {}", fields.join(", ")) };
    let problem = Problem::new(what).hint("lower one of its sizes; no machine can hold that much");
    Err(Error::new(ErrorKind::Config, problem))
}

fn gib(elements: usize) -> String {
    format!("{:.1e} GiB", elements as f64 * 4.0 / f64::from(1_u32 << 30))
}

/// The fields of the model that have the value of one of `sizes`, with their values.
fn fields_of(c: &Experiment, sizes: &[usize]) -> Vec<String> {
    let json = c.to_json();
    let fields = FIELDS.iter().filter_map(|field| {
        let value = field.key.split('.').try_fold(&json, |json: &Value, name| json.get(name))?.as_u64()?;
        let is_size = sizes.iter().any(|&size| size as u64 == value);
        (field.section.starts_with("model") && is_size).then(|| format!("{} = {value}", field.key))
    });
    fields.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::model::{Network, decoder};

    fn refused(settings: &[(&str, &str)]) -> String {
        let c = config::for_tests(settings);
        let blueprint = Network::blueprint_of(&c.model, decoder::of(&c, &[]).as_ref()).expect("a blueprint");
        refuse_impossible(&c, &blueprint).err().map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn what_no_machine_can_hold_is_refused_with_its_fields() {
        assert_eq!(refused(&[]), "");
        assert_eq!(refused(&[("model.d_model", "1000000")]), "");
        let text = refused(&[("model.d_model", "1000000000"), ("model.temporal_nhead", "1")]);
        let parts =
            ["self_attn.in_proj_weight would take 1.1e10 GiB: model.d_model = 1000000000\n", "no machine"];
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        let text = refused(&[("model.vocab_size", "1000000000000")]);
        assert!(
            text.contains("decoder.lm_head.weight") && text.contains("model.vocab_size = 10000"),
            "{text}"
        );
        assert!(refused(&[("model.backbone.mlp_ratio", "1e300")]).contains("mlp."));
        // Each is possible, and all of them together are not.
        let many = [("model.backbone.embed_dim", "2000000"), ("model.backbone.depth", "100")];
        let text = refused(&[&many[..], &[("model.backbone.num_heads", "1")]].concat());
        assert!(text.contains("the network's parameters would take") && text.contains("depth"), "{text}");
    }
}
