//! Old checkpoints: a file of every format version is kept and stays readable; a newer one is refused.

use std::fs;
use std::path::{Path, PathBuf};

use slt_run::checkpoint::state::FORMAT_VERSION;
use slt_run::checkpoint::{Checkpoint, Value, load, model_state, save};

use crate::support::World;

/// Every version with its file in `tests/data/checkpoints`. A new one is written by
///
/// ```text
/// cargo test --release --test suite -- --ignored write_the_file_of_this_version
/// ```
const VERSIONS: [(i64, &str); 2] = [(1, "version_1.pt"), (2, "version_2.pt")];

/// The network of all these files, to be put on top of the tests' own experiment. It never changes.
const NETWORK: &str = "[model]\nimage_size = 8\nsequence_length = 2\nprojector_dim = 4\nd_model = 4\npose_landmarks = 13\n\
    temporal_nhead = 1\ntemporal_layers = 1\ntemporal_dim_feedforward = 4\nvocab_size = 10\n\
    [model.backbone]\npatch_size = 8\nembed_dim = 4\ndepth = 1\nnum_heads = 1\nmlp_ratio = 1.0\n\
    [optimization]\noptimizer = \"adamw\"\nscheduler = \"steplr\"\n";
const PARAMETERS: usize = 97;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints").join(name)
}

fn world() -> World {
    let world = World::new();
    world.write("network.toml", NETWORK);
    world
}

#[test]
fn every_version_has_a_file() {
    let versions: Vec<i64> = VERSIONS.iter().map(|(version, _)| *version).collect();
    let all: Vec<i64> = (1..=FORMAT_VERSION).collect();
    assert_eq!(versions, all, "run the ignored test write_the_file_of_this_version and add its file here");
}

#[test]
fn old_files_are_read() {
    for (version, name) in VERSIONS {
        let value = load(&file(name)).unwrap();
        assert_eq!(value.get("format_version"), Some(&Value::Int(version)), "{name}");
        let checkpoint = Checkpoint::from_value(&file(name), value).unwrap();
        assert_eq!((checkpoint.epoch, checkpoint.model.len()), (1, PARAMETERS), "{name}");
        assert!(checkpoint.val_loss.is_finite());
        let state = checkpoint.optimizer_state.get("state");
        assert!(matches!(state, Some(Value::Dict(moments)) if moments.len() == PARAMETERS), "{name}");
    }
}

#[test]
fn old_files_start_a_run() {
    let world = world();
    for (_, name) in VERSIONS {
        // At a learning rate of 0, what comes out is what went in.
        let path = file(name);
        let args = ["tiny.toml", "network.toml", "--epochs", "1", "--lr", "0", "--overwrite", "--init-from"];
        world.ok(&[&args[..], &[path.to_str().unwrap()]].concat());
        let old = model_state(&path, load(&path).unwrap()).unwrap();
        assert!(world.checkpoint("run/last.pt").model == old, "{name}");
    }
}

#[test]
fn old_files_are_gone_on_with() {
    for (_, name) in VERSIONS {
        let world = world();
        let args = ["tiny.toml", "network.toml", "--epochs"];
        world.ok(&[&args[..], &["1"]].concat());
        fs::copy(file(name), world.path("run/last.pt")).unwrap();
        world.ok(&[&args[..], &["3", "--resume"]].concat());
        let last = world.checkpoint("run/last.pt");
        let step = last.extra.iter().find(|(key, _)| key == "step").unwrap().1.as_int();
        assert_eq!((last.epoch, step), (3, Some(6)), "{name}");
        assert_eq!(world.read("run/metrics.jsonl").lines().count(), 3, "{name}");
    }
}

#[test]
fn newer_files_are_refused() {
    let world = world();
    let newest = file(VERSIONS[VERSIONS.len() - 1].1);
    let Value::Dict(mut items) = load(&newest).unwrap() else { panic!("{} is a dict", newest.display()) };
    let number = items.iter_mut().find(|(key, _)| key.as_str() == Some("format_version")).unwrap();
    number.1 = Value::Int(FORMAT_VERSION + 1);
    save(&world.path("newer.pt"), &Value::Dict(items)).unwrap();
    let outcome = world.run(&["tiny.toml", "network.toml", "--init-from", "newer.pt"]);
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    let (newer, known) = (FORMAT_VERSION + 1, FORMAT_VERSION);
    outcome.says(&[
        &format!("newer.pt has checkpoint format {newer}; this slt-run knows up to {known}"),
        "hint: use the slt-run that wrote it, or a newer one",
    ]);
    assert!(!world.path("run").exists());
}

#[test]
#[ignore = "writes into tests/data, once for each version"]
fn write_the_file_of_this_version() {
    let path = file(&format!("version_{FORMAT_VERSION}.pt"));
    assert!(!path.exists(), "{} is there: the file of a version never changes", path.display());
    let world = world();
    world.ok(&["tiny.toml", "network.toml", "--epochs", "1"]);
    fs::copy(world.path("run/last.pt"), path).unwrap();
}
