//! Files of features: what a cache holds, and what other tools write into `data.features_dir`.

use std::path::Path;

use slt_run::config::FeatureDtype;
use slt_run::config::streams::image_streams;
use slt_run::data::features::{FeatureFile, encode};
use slt_run::{Error, ErrorKind};

use crate::engine::Target;
use crate::random::Random;
use crate::safetensors;

pub fn target() -> Target {
    let made = |rows: usize, dtype| {
        let values = |stream| (0..rows * WIDTH).map(|at| (stream * 7 + at) as f32 / 8.0 - 1.0).collect();
        encode(&(0..image_streams().count()).map(values).collect::<Vec<_>>(), WIDTH, dtype, "of 5 frames")
            .unwrap()
    };
    Target {
        name: "features",
        file: "fuzzed.safetensors",
        seeds: vec![
            made(5, FeatureDtype::Float16),
            made(5, FeatureDtype::Float32),
            made(0, FeatureDtype::Float32),
            of_other_types(),
        ],
        mutate,
        read,
        memory: (300, 2 << 20),
        cures: true,
    }
}

const WIDTH: usize = 4;

/// As other tools may write it: more tensors than are needed, and doubles and bfloat16.
fn of_other_types() -> Vec<u8> {
    let header = r#"{"pose":{"dtype":"I64","shape":[],"data_offsets":[0,8]},
        "hand_left":{"dtype":"F64","shape":[2,2],"data_offsets":[8,40]},
        "face":{"dtype":"BF16","shape":[2,2],"data_offsets":[40,48]},
        "hand_right":{"dtype":"F32","shape":[2,2],"data_offsets":[48,64]}}"#;
    safetensors::with_header(header.as_bytes(), &[0x3f; 64])
}

fn read(path: &Path) -> Result<String, Error> {
    let mut file = FeatureFile::open(path)?;
    let (rows, width) = (file.rows(), file.width());
    // What a clip of so many frames asks for, and one row more than there is.
    let wanted: Vec<usize> = (0..rows.min(20)).chain([rows.saturating_sub(1), rows]).collect();
    let mut out = vec![0.0; wanted.len() * width.min(1000)];
    let mut said = format!("{rows} rows {width} wide, stamped {}", file.stamp().is_some());
    for stream in 0..image_streams().count() {
        let found = file.read(stream, &wanted[..wanted.len() - 1], &mut out);
        if width <= 1000 && rows > 0 {
            match found {
                Ok(()) => assert!(out.iter().all(|x| x.is_finite())),
                Err(error) => said += &refused(&error),
            }
        }
        let error = file.read(stream, &wanted[wanted.len() - 1..], &mut vec![0.0; width.min(1000)]);
        if width <= 1000 {
            said += &refused(&error.unwrap_err());
        }
    }
    let sample = file.sample()?;
    assert!(rows == 0 || !sample.is_empty());
    Ok(said)
}

/// An error that names the file and the cure, in a few words.
fn refused(error: &Error) -> String {
    let text = error.to_string();
    assert!(
        error.kind == ErrorKind::Data && text.contains("fuzzed.safetensors") && text.contains("hint: "),
        "{text}"
    );
    assert!(text.len() < 2000, "{text}");
    text
}

fn mutate(random: &mut Random, bytes: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    const PIECES: [(&str, &str); 13] = [
        ("\"F32\"", "\"F64\""),
        ("\"F32\"", "\"F16\""),
        ("\"F16\"", "\"BF16\""),
        ("\"F16\"", "\"I16\""),
        ("\"F16\"", "\"F4\""),
        ("\"shape\":[5,4]", "\"shape\":[4,5]"),
        ("\"shape\":[", "\"shape\":[0,"),
        ("\"shape\":[", "\"shape\":[18446744073709551615,"),
        ("\"shape\":[0,4]", "\"shape\":[0,18446744073709551615]"),
        ("\"data_offsets\":[", "\"data_offsets\":[9"),
        ("hand_left", "hand_right"),
        ("face", "fac\\u0065"),
        ("\"frames\"", "\"format\""),
    ];
    safetensors::mutate(random, bytes, others, &PIECES)
}
