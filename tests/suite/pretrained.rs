//! Backbones that begin with other people's weights: against timm's features, and files that do not fit.

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde_json::Value;
use slt_run::checkpoint::Value as Saved;
use slt_run::config::Experiment;
use slt_run::data::Pixels;
use slt_run::engine;
use slt_run::engine::device::Compute;
use slt_run::train::initial::InitialBackbones;

use crate::cases::read_npz;
use crate::support::{self, World};

/// What a network of timm may be off by, relative to its features' norm.
const FEATURES: f64 = 1e-4;

/// A case of `scripts/torch_pretrained.py`.
struct Case {
    path: PathBuf,
    json: Value,
}

impl Case {
    fn all() -> Vec<Self> {
        let usual = || "tests/data/pretrained".into();
        let folder = std::env::var_os("PRETRAINED_CASES").map_or_else(usual, PathBuf::from);
        let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        assert!(!paths.is_empty());
        let case = |path: PathBuf| Self {
            json: serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap(),
            path,
        };
        paths.into_iter().map(case).collect()
    }

    fn weights(&self) -> PathBuf {
        self.path.with_file_name(self.json["file"].as_str().unwrap())
    }

    fn experiment(&self) -> Experiment {
        let text = |value: &Value| value.to_string();
        let fields = self.json["backbone"].as_object().unwrap();
        let mut settings: Vec<(String, String)> =
            fields.iter().map(|(name, value)| (format!("model.backbone.{name}"), text(value))).collect();
        settings.push(("model.image_size".into(), text(&self.json["image_size"])));
        settings.push(("model.backbone.freeze".into(), "all".into()));
        let small = [
            ("model.sequence_length", "1"),
            ("data.batch_size", "1"),
            ("model.d_model", "16"),
            ("model.temporal_layers", "1"),
        ];
        settings.extend(small.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        support::experiment(&settings)
    }
}

#[test]
fn features_are_timms() {
    for case in Case::all() {
        let (c, arrays) = (case.experiment(), read_npz(&case.path.with_extension("npz")));
        let (shape, pixels) = &arrays["pixels"];
        let expected = &arrays["features"].1;
        for compute in [Compute::Cpu, Compute::Graph(Device::Cpu)] {
            let mut engine = engine::new(&c, &compute).unwrap();
            let backbones =
                InitialBackbones::load(&case.weights().into_os_string().into_string().unwrap().into())
                    .unwrap();
            let told = backbones.apply(&c, engine.host().parameters()).unwrap();
            assert!(told.warnings.is_empty() && told.left_out.len() <= 2, "{told:?}");
            engine.push().unwrap();
            for stream in 0..3 {
                let found =
                    engine.features(stream, &Pixels::Normalised(pixels.clone()), shape[0], shape[3]).unwrap();
                assert_eq!(found.len(), expected.len());
                let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
                let off = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
                let off = off / norm(&mut expected.iter().map(|x| f64::from(*x)));
                if stream == 0 && std::env::var_os("PRETRAINED_CASES").is_some() {
                    eprintln!("{}: {off:.1e} on {}", case.path.display(), compute.describe());
                }
                assert!(off < FEATURES, "{}: off by {off:.2e}", case.path.display());
            }
        }
    }
}

fn copy(world: &World, name: &str) {
    fs::copy(Path::new("tests/data/pretrained").join(name), world.path(name)).unwrap();
}

/// `tiny.toml`, of the sizes of the cases' networks.
const SIZES: [&str; 6] = [
    "tiny.toml",
    "--set=model.backbone.embed_dim=24",
    "--set=model.backbone.depth=2",
    "--set=model.backbone.num_heads=3",
    "--set=model.backbone.layer_norm_eps=1e-6",
    "--epochs=2",
];

#[test]
fn a_run_begins_with_the_weights_of_a_file_and_knows_them() {
    let world = World::new();
    copy(&world, "plain_24.pth");
    let args =
        [&SIZES[..], &["--set=model.backbone.init=plain_24.pth", "--set=model.backbone.freeze=all"]].concat();
    world.ok(&args).says(&["the backbones begin as that of plain_24.pth (SHA-1 "]);
    let last = world.checkpoint("run/last.pt");
    let of = |name: &str| last.model.iter().find(|(other, _)| other == name).unwrap().1.to_f32().unwrap();
    let face = of("encoder.face_backbone.blocks.1.mlp.3.weight");
    assert!(face.iter().any(|&x| x != 0.0));
    assert_eq!(of("encoder.hand_backbone_left.blocks.1.mlp.3.weight"), face);
    assert!(world.read("run/config.toml").contains("init = \"plain_24.pth@sha1:"));
    // A resume knows the file, and does not need it.
    let whole = world.read_bytes("run/last.pt");
    world.ok(&[&args[..], &["--work-dir=parts", "--epochs=1"]].concat());
    fs::rename(world.path("plain_24.pth"), world.path("moved.pth")).unwrap();
    world.ok(&[&args[..], &["--work-dir=parts", "--resume"]].concat());
    assert!(world.read_bytes("parts/last.pt") == whole);
    world.ok(&["evaluate", "run", "--quiet"]);
    // Another file is another experiment, and a changed one is not the one of the snapshot.
    copy(&world, "plain_56.pth");
    let other = [&SIZES[..], &["--set=model.backbone.freeze=all", "--epochs=3", "--resume"]].concat();
    let refused = world.run(&[&other[..], &["--set=model.backbone.init=plain_56.pth"]].concat());
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    refused.says(&["model.backbone.init was"]);
    fs::copy(world.path("plain_56.pth"), world.path("plain_24.pth")).unwrap();
    let changed = world.run(&["run/config.toml", "--work-dir=again"]);
    assert_eq!(changed.code, 3, "{}", changed.stderr);
    changed.says(&["model.backbone.init plain_24.pth is not the file it was"]);
}

#[test]
fn a_network_of_our_own_gives_each_stream_its_backbone() {
    let world = World::new();
    world.ok(&["tiny.toml", "--lr=0.05"]);
    world
        .ok(&[
            "tiny.toml",
            "--set=model.backbone.init=run/last.pt",
            "--lr=0",
            "--epochs=1",
            "--work-dir=next",
            "--seed=9",
        ])
        .says(&["the backbones begin as that of run/last.pt", "this is not used: "]);
    let (first, next) = (world.checkpoint("run/last.pt"), world.checkpoint("next/last.pt"));
    for ((name, a), (_, b)) in first.model.iter().zip(&next.model) {
        // Biases and norms of the rest begin alike.
        if name.contains("backbone") {
            assert!(a.data == b.data, "{name}");
        }
    }
    let weight = |model: &[(String, slt_run::checkpoint::TensorData)]| {
        model.iter().find(|(name, _)| name == "encoder.fusion.proj.weight").unwrap().1.data.to_vec()
    };
    assert!(weight(&first.model) != weight(&next.model));
}

#[test]
fn files_that_do_not_fit_are_refused_with_every_misfit_once() {
    let world = World::new();
    copy(&world, "plain_32.safetensors");
    copy(&world, "layer_scale_63.safetensors");
    fs::write(world.path("cut.safetensors"), &fs::read(world.path("plain_32.safetensors")).unwrap()[..5000])
        .unwrap();
    fs::write(world.path("text.pth"), "no weights").unwrap();
    for (file, more, code, says) in [
        (
            "plain_32.safetensors",
            &[][..],
            3,
            &[
                "its width is 24, and model.backbone.embed_dim is 16",
                "its depth is 2, and model.backbone.depth is 1",
                "hint: set model.backbone.embed_dim = 24, model.backbone.depth = 2",
            ][..],
        ),
        (
            "layer_scale_63.safetensors",
            &SIZES[1..],
            3,
            &["its patch size is 7, and model.backbone.patch_size is 8"],
        ),
        (
            "plain_32.safetensors",
            &[
                "--set=model.backbone.embed_dim=24",
                "--set=model.backbone.depth=2",
                "--set=model.backbone.num_heads=3",
                "--set=model.backbone.mlp_ratio=2",
            ],
            3,
            &["its MLPs are 96 wide", "hint: set model.backbone.mlp_ratio = 4.0"],
        ),
        ("cut.safetensors", &[], 3, &["cut.safetensors", "cut off"]),
        ("text.pth", &[], 3, &["text.pth", "hint: "]),
        ("nowhere.pth", &[], 3, &["nowhere.pth"]),
    ] {
        let init = format!("--set=model.backbone.init={file}");
        let args = [&["tiny.toml", &init][..], more].concat();
        for args in [args.clone(), [&["check"], &args[..]].concat()] {
            let outcome = world.run(&args);
            assert_eq!(outcome.code, code, "{file}: {}", outcome.stderr);
            outcome.says(says);
            assert!(outcome.stderr.lines().count() < 12, "{}", outcome.stderr);
            assert!(!world.path("run/last.pt").exists());
        }
    }
    // timm's eps is said where the experiment has another.
    let args = [&SIZES[..4], &["--set=model.backbone.init=plain_32.safetensors", "--epochs=1"]].concat();
    world.ok(&args).says(&["LayerNorm has an eps of 1e-6, and model.backbone.layer_norm_eps is 1e-5"]);
    let both = world.run(&["tiny.toml", "--set=model.backbone.init=a.pth", "--init-from=b.pt"]);
    assert_eq!(both.code, 2);
    both.says(&["has weights for the backbones, too", "hint: "]);
}

#[test]
fn a_run_begins_with_weights_in_any_of_their_files() {
    use safetensors::tensor::{Dtype, TensorView};
    let world = World::new();
    world.ok(&["tiny.toml", "--lr=0.05"]);
    let model = world.checkpoint("run/last.pt").model;
    let views: Vec<(String, TensorView)> = model
        .iter()
        .map(|(name, tensor)| {
            (
                format!("module.{name}"),
                TensorView::new(Dtype::F32, tensor.shape.clone(), &tensor.data).unwrap(),
            )
        })
        .collect();
    world.write("w.safetensors", safetensors::serialize(views, None).unwrap());
    let tensors =
        || Saved::dict(model.iter().map(|(name, tensor)| (name.clone(), Saved::Tensor(tensor.clone()))));
    slt_run::checkpoint::save(&world.path("bare.pt"), &tensors()).unwrap();
    let keyed = Saved::dict([("state_dict", tensors()), ("epoch", Saved::Int(4)), ("lr", Saved::Float(0.1))]);
    slt_run::checkpoint::save(&world.path("keyed.pt"), &keyed).unwrap();
    for file in ["w.safetensors", "bare.pt", "keyed.pt"] {
        let init = format!("--init-from={file}");
        let outcome =
            world.ok(&["tiny.toml", &init, "--lr=0", "--epochs=1", "--work-dir=next", "--overwrite"]);
        for ((name, a), (_, b)) in model.iter().zip(&world.checkpoint("next/last.pt").model) {
            assert!(a.data == b.data, "{file}: {name}");
        }
        assert_eq!(outcome.stderr.contains("of keyed.pt, this is not used: epoch, lr"), file == "keyed.pt");
    }
    // Strictly: one tensor less, and one more.
    let short =
        Saved::dict(model.iter().skip(1).map(|(name, tensor)| (name.clone(), Saved::Tensor(tensor.clone()))));
    slt_run::checkpoint::save(&world.path("short.pt"), &short).unwrap();
    let refused = world.run(&["tiny.toml", "--init-from=short.pt", "--work-dir=other"]);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    refused.says(&["lacks parameters of the model (1)", &model[0].0]);
}
