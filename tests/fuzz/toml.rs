//! Experiment files, and the same values from the environment and the command line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use slt_run::Error;
use slt_run::config::{FIELDS, Layers, Setting, resolve};

use crate::engine::Target;
use crate::random::Random;

pub fn target() -> Target {
    Target {
        name: "toml",
        file: "fuzzed.toml",
        seeds: vec![GOOD.into()],
        mutate: |random, bytes, others| {
            let others = if random.one_in(8) { &[all_fields()][..] } else { others };
            mutate(random, bytes, others)
        },
        read,
        memory: (2000, 4 << 20),
        cures: false,
    }
}

/// Every field once, with a value of a kind that few have.
fn all_fields() -> Vec<u8> {
    FIELDS.iter().map(|field| format!("{} = 1\n", field.key)).collect::<String>().into_bytes()
}

const GOOD: &str = "extends = []\n[data]\nface_dir = \"f\"\nhand_left_dir = \"l\"\nhand_right_dir = 'r'\npose_dir = \"p\"\n\
    metadata_csv = \"\"\"m\"\"\"\ntrain_index = \"t\"\nval_index = \"v\"\nbatch_size = 4\n\n[model]\nimage_size = 32\n\
    projector_dropout = 1e-1\nbackbone = { patch_size = 8, depth = 0x2, mlp_ratio = 2.0 }\n[optimization]\n\
    optimizer = \"adamw\"\nlr = 1e-3\nframes_per_chunk = \"auto\"\n[run]\nwork_dir = \"w\"\ndevice = \"cpu\"\nseed = 1\n";

fn read(path: &Path) -> Result<String, Error> {
    let text = std::fs::read(path).unwrap();
    let resolved = resolve(&Layers { files: vec![path.into()], ..Layers::default() });
    // The same bytes as values of the other layers, whatever they give: they must only not panic.
    let value = OsString::from_vec(text.iter().copied().filter(|byte| *byte != 0).take(100_000).collect());
    let key = FIELDS[text.len() % FIELDS.len()].key;
    let name = format!("SLT_{}", key.replace('.', "__").to_ascii_uppercase());
    let lossy = String::from_utf8_lossy(&text);
    let settings = lossy.lines().take(5).map(|line| {
        let (key, value) = line.split_once('=').unwrap_or((key, line));
        Setting { key: key.trim().into(), value: value.into(), origin: line.into() }
    });
    let layers = Layers {
        env: vec![(name.into(), value.clone()), (value, "1".into())],
        settings: settings.collect(),
        ..Layers::default()
    };
    let _ = resolve(&layers);
    let resolved = resolved.map_err(named)?;
    // What was read can be written and read again.
    let again = path.with_file_name("again.toml");
    std::fs::write(&again, resolved.to_toml()).unwrap();
    let same = resolve(&Layers { files: vec![again], ..Layers::default() }).unwrap();
    assert_eq!(same.to_toml(), resolved.to_toml());
    Ok(format!("an experiment {}", resolved.warnings.join(" ")))
}

/// A problem of a merged experiment names the file where one value of it is to blame, and only then.
fn named(mut error: Error) -> Error {
    for problem in &mut error.problems {
        if problem.what.contains("required field") || problem.what.contains("has no value") {
            problem.what += " fuzzed.toml";
        }
    }
    error
}

fn mutate(random: &mut Random, bytes: &[u8], others: &[Vec<u8>]) -> Vec<u8> {
    const VALUES: [&str; 22] = [
        "0",
        "-1",
        "1e400",
        "nan",
        "-inf",
        "0x7fffffffffffffff",
        "99999999999999999999",
        "9223372036854775807",
        "true",
        "\"\"",
        "\"auto\"",
        "\"8GiB\"",
        "\"cuda:4294967296\"",
        "1979-05-27T07:32:00Z",
        "[]",
        "{}",
        "[1, [2, {a = 3}]]",
        "'''\n'''",
        "\"\\u0000\"",
        "\"\\uD800\"",
        "\"../../x\"",
        "1_000",
    ];
    let mut lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    if lines.is_empty() {
        return all_fields();
    }
    let at = random.below(lines.len());
    let many = random.count(3000);
    match random.below(12) {
        0 => drop(lines.remove(at)),
        1 => lines.insert(at, lines[random.below(lines.len())].clone()),
        2 | 3 => {
            let key = FIELDS[random.below(FIELDS.len())].key;
            lines.insert(at, format!("{key} = {}\n", random.pick(&VALUES)).into());
        }
        4 | 5 => {
            let line = String::from_utf8_lossy(&lines[at]).into_owned();
            if let Some((key, _)) = line.split_once('=') {
                lines[at] = format!("{key}= {}\n", random.pick(&VALUES)).into();
            }
        }
        // Depth, in every way that TOML has.
        6 => {
            let (open, close) = [("[", "]"), ("{a=", "}"), ("[{a=[", "]}]")][random.below(3)];
            lines.insert(at, format!("a = {}1{}\n", open.repeat(many), close.repeat(many)).into());
        }
        7 => {
            let path = "a.".repeat(many);
            let line = [format!("{path}b = 1\n"), format!("[{path}b]\n"), format!("[[{path}b]]\n")];
            lines.insert(at, line[random.below(3)].clone().into());
        }
        8 => {
            // Many keys that nobody knows.
            let many = if random.one_in(8) { many } else { many % 8 };
            let keys = (0..many).map(|n| format!("k{n} = 1\n").into_bytes());
            lines.extend(keys);
        }
        9 => {
            let files = ["fuzzed.toml", "none.toml", ".", "/dev/zero", "\\u0000", "again.toml"];
            let list = format!("\"{}\", ", random.pick(&files)).repeat(1 + random.count(300));
            lines.insert(0, format!("extends = [{list}]\n").into());
        }
        10 => {
            let word =
                random.pick(&["a", "\"", "'", "\\", "=", "[", "#", ".", "é", "\u{202e}", "0"]).repeat(many);
            let line = &mut lines[at];
            let place = random.below(line.len());
            line.splice(place..place, word.into_bytes());
        }
        _ => {
            let mut bytes = bytes.to_vec();
            random.damage(&mut bytes, others);
            return bytes;
        }
    }
    lines.concat()
}
