//! Files of weights to begin with: `.safetensors`, and what other programs save with PyTorch, to a backbone's parameters.

use std::path::Path;

use slt_run::checkpoint::Weights;
use slt_run::model::pretrained;
use slt_run::{Error, config};

use crate::engine::Target;
use crate::random::Random;
use crate::{files, safetensors, zips};

pub fn target() -> Target {
    let seeds = [".safetensors", ".pth"].into_iter().flat_map(|end| files("pretrained", end));
    Target {
        name: "weights",
        file: "fuzzed.weights",
        seeds: seeds.chain([small()]).collect(),
        mutate,
        read,
        memory: (300, 2 << 20),
        cures: true,
    }
}

/// A file that more kinds of damage leave something of than a network's.
fn small() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt"},"cls_token":{"dtype":"F32","shape":[1,1,2],"data_offsets":[0,8]},
        "a.b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]},"n":{"dtype":"I64","shape":[],"data_offsets":[12,20]}}"#;
    safetensors::with_header(header.as_bytes(), &[0x3f; 20])
}

/// The network that the files are of.
fn backbone() -> config::Backbone {
    config::Backbone {
        patch_size: 8,
        embed_dim: 24,
        depth: 2,
        num_heads: 3,
        layer_norm_eps: 1e-6,
        ..config::Backbone::default()
    }
}

fn read(path: &Path) -> Result<String, Error> {
    let weights = Weights::read(path)?;
    for (_, tensor) in &weights.tensors {
        assert_eq!(tensor.numel().unwrap() * tensor.dtype.size(), tensor.data.len());
    }
    let said = if weights.others.is_empty() { "" } else { "with others" };
    match pretrained::backbone(path, &weights, &backbone(), 32, "encoder.face_backbone") {
        Ok(found) => {
            let parameters = &found.parameters;
            assert!(parameters.iter().all(|(_, values)| values.iter().all(|x| x.is_finite())));
            Ok(format!("{} parameters {said} {:?}", parameters.len(), found.left_out))
        }
        // Of several problems the last one says what to do.
        Err(error) => {
            let text = error.to_string();
            assert!(
                error.exit_code() == 3 && text.contains("fuzzed.weights") && text.contains("hint: "),
                "{text}"
            );
            assert!(text.len() <= 4000 * error.problems.len(), "{text}");
            Ok(text)
        }
    }
}

fn mutate(random: &mut Random, bytes: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    if bytes.starts_with(b"PK") {
        return zips::mutate(random, bytes, others, |random, part, others| {
            random.damage(&mut part.data, others);
        });
    }
    const PIECES: [(&str, &str); 18] = [
        ("\"F32\"", "\"F64\""),
        ("\"F32\"", "\"I8\""),
        ("\"F32\"", "\"F8_E4M3\""),
        ("\"F32\"", "\"F4\""),
        ("\"F16\"", "\"U64\""),
        ("\"shape\":[", "\"shape\":[0,"),
        ("\"shape\":[", "\"shape\":[18446744073709551615,"),
        ("\"shape\":[", "\"shape\":[1,"),
        ("\"data_offsets\":[", "\"data_offsets\":[-"),
        ("\"data_offsets\":[", "\"data_offsets\":[9"),
        ("blocks.0", "blocks.1"),
        ("blocks.1", "blocks.99999999999"),
        ("head.", "module."),
        ("head.weight", "reg_token"),
        ("\"head.bias\"", "\"x.cls_token\""),
        ("pos_embed", "pos_\\u0065mbed"),
        ("\"dtype\"", "\"shape\":[],\"dtype\""),
        ("norm1", "\\ud83d\u{7f}"),
    ];
    safetensors::mutate(random, bytes, others, &PIECES)
}
