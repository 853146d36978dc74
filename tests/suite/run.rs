//! Whole runs: what they leave behind, what they repeat, and what they start from.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde_json::Value as Json;
use slt_run::checkpoint::{Value, load, model_state};
use slt_run::config::{self, Experiment, Layers};
use slt_run::data::{Batch, Sizes};
use slt_run::engine::{self, Engine, Placed, Step, device::Compute};
use slt_run::nn::Pass;

use crate::support::{Outcome, TINY, World, event_scalars, experiment};

/// Dropout everywhere, so that its masks are part of what must repeat.
const DROPOUT: &str = "[model]\nprojector_dropout = 0.2\nfusion_dropout = 0.1\n\
                       [model.backbone]\ndropout = 0.1\nattention_dropout = 0.1\nstochastic_depth = 0.2\n\
                       [optimization]\nepochs = 3\nscheduler = \"cosine\"\nscheduler_tmax = 3\n";

fn metrics(world: &World, name: &str) -> Vec<Json> {
    world.read(name).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn resolve(file: PathBuf) -> Experiment {
    config::resolve(&Layers { files: vec![file], ..Layers::default() }).unwrap().experiment
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_run_leaves_what_is_documented() {
    let world = World::new();
    let outcome = world.ok(&["tiny.toml", "--seed", "7"]);
    assert_eq!(outcome.stdout, "");
    assert_eq!(
        names(&world.path("run")),
        ["best.pt", "config.json", "config.toml", "last.pt", "metrics.jsonl", "run.json"]
    );
    let experiment = resolve(world.path("run/config.toml"));
    assert_eq!((experiment.run.seed, experiment.optimization.epochs), (7, 2));
    let json: Json = serde_json::from_str(&world.read("run/config.json")).unwrap();
    assert_eq!(json, experiment.to_json());

    let run: Json = serde_json::from_str(&world.read("run/run.json")).unwrap();
    assert_eq!(run["version"], env!("CARGO_PKG_VERSION"));
    let line: Vec<_> =
        run["command_line"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(line[1..], ["tiny.toml", "--seed", "7"]);
    assert!(run["started"].as_str().unwrap().ends_with('Z') && run["host"].is_string());
    assert_eq!((&run["device"], &run["git"]), (&"cpu".into(), &Json::Null));
    assert!(run["threads"].as_u64().unwrap() > 0);

    let lines = metrics(&world, "run/metrics.jsonl");
    assert_eq!(lines.len(), 2);
    let keys = [
        "epoch",
        "train_loss",
        "val_loss",
        "val_accuracy",
        "lr",
        "grad_norm",
        "skipped_steps",
        "bad_clips",
        "seconds",
        "images_per_second",
        "data_wait_seconds",
    ];
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line.as_object().unwrap().keys().collect::<Vec<_>>(), keys);
        assert_eq!((line["epoch"].as_u64(), line["lr"].as_f64()), (Some(i as u64 + 1), Some(1e-3)));
        assert!(
            keys[1..]
                .iter()
                .filter(|key| **key != "bad_clips")
                .all(|key| line[key].as_f64().is_some_and(|n| n.is_finite() && n >= 0.0)),
            "{line}"
        );
        let losses = format!(
            "Epoch {}/2 - train_loss={:.4} - val_loss={:.4}",
            i + 1,
            line["train_loss"].as_f64().unwrap(),
            line["val_loss"].as_f64().unwrap()
        );
        outcome.says(&[&losses]);
    }

    let (last, best) = (world.checkpoint("run/last.pt"), world.checkpoint("run/best.pt"));
    let losses: Vec<f64> = lines.iter().map(|line| line["val_loss"].as_f64().unwrap()).collect();
    let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!((last.epoch, last.val_loss), (2, losses[1]));
    assert_eq!((best.val_loss, best.val_loss), (lowest, losses[best.epoch - 1]));
    let kept = last.extra.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>();
    let expected = [
        "step",
        "best_val_loss",
        "best_epoch",
        "best_val_accuracy",
        "best_value",
        "nonfinite_in_a_row",
        "position",
        "bad_clips",
        "optimizer_steps",
        "seed",
        "scheduler_state",
        "dataset",
        "files",
        "contents",
        "config",
        "class_texts",
    ];
    assert_eq!(kept, expected);
    // 6 training clips in batches of 4: the short last batch is kept.
    assert_eq!(last.extra[0].1, Value::Int(4));
}

#[test]
fn git_is_in_run_json() {
    let world = World::new();
    let git = |line: &str| {
        let mut command = std::process::Command::new("git");
        command.current_dir(world.path("")).args(["-c", "user.name=a", "-c", "user.email=a@b"]);
        let output = command.args(line.split(' ')).output().unwrap();
        assert!(output.status.success(), "{line}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    fs::create_dir(world.path("configs")).unwrap();
    world.write("configs/a.toml", TINY);
    git("init -b main");
    git("add configs");
    git("commit -m x");
    let info = |name: &str| serde_json::from_str::<Json>(&world.read(name)).unwrap()["git"].clone();
    world.ok(&["configs/a.toml", "--epochs", "1"]);
    let clean = info("run/run.json");
    assert_eq!(
        (clean["commit"].as_str(), clean["branch"].as_str()),
        (Some(git("rev-parse HEAD").as_str()), Some("main"))
    );
    assert_eq!((clean["dirty"].as_bool(), world.path("run/git.diff").exists()), (Some(false), false));
    world.write("configs/a.toml", TINY.replace("epochs = 2", "epochs = 1"));
    world.ok(&["configs/a.toml", "--work-dir", "two"]);
    assert_eq!(info("two/run.json")["dirty"].as_bool(), Some(true));
    assert!(world.read("two/git.diff").contains("+epochs = 1"));
}

#[test]
fn a_second_run_is_refused_and_moved_aside_on_demand() {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs", "1"]);
    world.write("run/notes.txt", "mine");
    let before = world.files();
    let refused = world.run(&["tiny.toml"]);
    assert_eq!(refused.code, 2);
    refused.says(&[
        "run.work_dir run holds a run already: last.pt, best.pt",
        "hint: choose another run.work_dir (from tiny.toml:",
        "--overwrite",
    ]);
    assert!(world.files() == before);

    let outcome = world.ok(&["tiny.toml", "--overwrite"]);
    let aside = names(&world.path("")).into_iter().find(|name| name.starts_with("run.20")).unwrap();
    outcome.says(&["the run that was in run is now in ", &aside]);
    for name in ["last.pt", "best.pt", "config.toml", "config.json", "run.json", "metrics.jsonl"] {
        assert_eq!(world.files()[&format!("{aside}/{name}")], before[&format!("run/{name}")], "{name}");
    }
    assert_eq!(world.read("run/notes.txt"), "mine");
    assert_eq!(world.checkpoint("run/last.pt").epoch, 2);
}

#[test]
fn checkpoints_repeat_to_the_bit() {
    let world = World::new();
    world.write("drop.toml", DROPOUT);
    world.ok(&["tiny.toml", "drop.toml", "--num-workers", "0"]);
    for (folder, workers) in [("one", "1"), ("three", "3")] {
        world.ok(&[
            "tiny.toml",
            "drop.toml",
            "--num-workers",
            workers,
            "--work-dir",
            folder,
            "--tensorboard",
            "tb",
        ]);
    }
    // A run's own snapshot repeats it.
    let mut again = world.command(&["run/config.toml", "--work-dir", "again"]);
    // Nor does the number of threads change anything.
    assert_eq!(Outcome::of(&again.env("RAYON_NUM_THREADS", "3").output().unwrap()).code, 0);
    let files = world.files();
    for folder in ["one", "three", "again"] {
        for name in ["last.pt", "best.pt"] {
            assert!(files[&format!("run/{name}")] == files[&format!("{folder}/{name}")], "{folder}/{name}");
        }
    }
    world.ok(&["tiny.toml", "drop.toml", "--work-dir", "other", "--seed", "5"]);
    assert!(world.files()["other/last.pt"] != files["run/last.pt"]);
    // What the checkpoint keeps of the experiment is all that decides its numbers.
    let last = world.checkpoint("run/last.pt");
    let (_, kept) = last.extra.iter().find(|(key, _)| key == "config").unwrap();
    let kept: toml::Table = kept.as_str().unwrap().parse().unwrap();
    assert_eq!(kept["model"]["backbone"]["stochastic_depth"].as_float(), Some(0.2));
    assert!(kept["run"].get("work_dir").is_none() && kept["data"].get("num_workers").is_none());
}

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cases").join(name)
}

/// An experiment file for a numeric case's network, with a learning rate of 0.
fn like_case(world: &World, name: &str) {
    let json: Json =
        serde_json::from_str(&fs::read_to_string(case(name).join("case.json")).unwrap()).unwrap();
    let (model, mut text) = (&json["model"], "[model]\n".to_owned());
    for key in [
        "sequence_length",
        "projector_dim",
        "d_model",
        "temporal_nhead",
        "temporal_layers",
        "temporal_dim_feedforward",
        "vocab_size",
    ] {
        text += &format!("{key} = {}\n", model[key]);
    }
    text += &format!("image_size = {}\n[model.backbone]\n", model["backbone"]["image_size"]);
    for key in ["patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"] {
        text += &format!("{key} = {}\n", model["backbone"][key]);
    }
    world.write("case.toml", text + "[optimization]\nlr = 0\noptimizer = \"sgd\"\nepochs = 1\n");
}

/// `init.pt` with keys beside `model_state` that PyTorch scripts leave: a NumPy scalar and a string.
fn with_numpy_scalar(from: &Path, to: &Path) {
    let mut zip = zip::ZipArchive::new(fs::File::open(from).unwrap()).unwrap();
    let mut writer = zip::ZipWriter::new(fs::File::create(to).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).unwrap();
        let (name, mut bytes) = (entry.name().unwrap().into_owned(), Vec::new());
        entry.read_to_end(&mut bytes).unwrap();
        if name.ends_with("/data.pkl") {
            assert!(bytes.ends_with(b"u."), "the outermost dict ends the pickle");
            bytes.truncate(bytes.len() - 2);
            // numpy.float64(1.0) as protocol 2 has it: scalar(dtype('f8'), its bytes as latin-1).
            bytes.extend(
                b"X\x05\0\0\0scorecnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\0\0\0f8\x89\x88\x87R",
            );
            bytes.extend(b"(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbc_codecs\nencode\n");
            bytes.extend(b"X\x09\0\0\0\0\0\0\0\0\0\xc3\xb0?X\x06\0\0\0latin1\x86R");
            bytes.extend(b"\x86RX\x04\0\0\0noteX\x02\0\0\0hiu.");
        }
        writer.start_file(name, stored).unwrap();
        writer.write_all(&bytes).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn a_run_starts_from_pytorchs_weights() {
    for name in ["0_adamw_none", "1_adam_steplr"] {
        let world = World::new();
        like_case(&world, name);
        let init = case(name).join("init.pt");
        with_numpy_scalar(&init, &world.path("odd.pt"));
        let expected = model_state(&init, load(&init).unwrap()).unwrap();
        for (from, folder) in [
            (init.to_str().unwrap(), "a"),
            ("odd.pt", "b"),
            (case(name).join("final.pt").to_str().unwrap(), "c"),
        ] {
            world.ok(&["tiny.toml", "case.toml", "--init-from", from, "--work-dir", folder]);
        }
        for folder in ["a", "b"] {
            // A learning rate of 0 leaves every weight as it came.
            assert_eq!(world.checkpoint(&format!("{folder}/last.pt")).model, expected, "{name} {folder}");
        }
        assert_ne!(world.checkpoint("c/last.pt").model, expected);
        // And a run goes on from a run's own checkpoint.
        world.ok(&["tiny.toml", "case.toml", "--init-from", "a/best.pt", "--work-dir", "d"]);
        assert_eq!(world.checkpoint("d/last.pt").model, expected);
    }
}

#[test]
fn weights_that_do_not_fit_are_refused_with_every_key() {
    let world = World::new();
    like_case(&world, "0_adamw_none");
    let init = case("0_adamw_none").join("init.pt");
    let checkpoints = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/checkpoints");
    let before = world.files();
    let refused = |from: &Path, settings: &[&str], parts: &[&str]| {
        let mut args = vec!["tiny.toml", "case.toml", "--init-from", from.to_str().unwrap()];
        settings.iter().for_each(|setting| args.extend(["--set", setting]));
        let outcome = world.run(&args);
        assert_eq!(outcome.code, 3, "{}", outcome.stderr);
        outcome.says(parts).says(&[from.file_name().unwrap().to_str().unwrap()]);
        assert!(world.files() == before);
    };
    refused(
        &init,
        &["model.backbone.depth=3", "model.temporal_layers=1", "model.vocab_size=30"],
        &[
            "lacks parameters of the model (36)",
            "encoder.face_backbone.blocks.2.norm1.weight [20]",
            "has parameters that the model lacks (12)",
            "has parameters of another shape (2)",
            "[31, 32] in the file, [30, 32] in the model",
            "hint: the weights must come from a model with the same [model] section",
        ],
    );
    refused(&checkpoints.join("legacy.pt"), &[], &["error: "]);
    refused(&checkpoints.join("evil.pt"), &[], &["error: "]);
    refused(&checkpoints.join("script.pt"), &[], &["error: "]);
    refused(&checkpoints.join("none.pt"), &[], &["No such file"]);
    refused(&checkpoints.join("make.py"), &[], &["error: "]);
    assert!(!world.path("ran_code").exists());
}

#[test]
fn every_optimizer_with_every_scheduler() {
    let world = World::new();
    let schedules: [(&str, [f64; 3]); 3] =
        [("none", [0.01; 3]), ("steplr", [0.01, 0.005, 0.0025]), ("cosine", [0.01, 0.005, 0.0])];
    for optimizer in ["adamw", "adam", "sgd"] {
        for (scheduler, rates) in schedules {
            let folder = format!("{optimizer}-{scheduler}");
            let line = format!(
                "tiny.toml --work-dir {folder} --epochs 3 --lr 0.01 --weight-decay 0.01 --optimizer {optimizer} \
                 --scheduler {scheduler} --scheduler-step-size 1 --scheduler-tmax 2"
            );
            world.ok(&line.split_whitespace().collect::<Vec<_>>());
            let lines = metrics(&world, &format!("{folder}/metrics.jsonl"));
            for (line, rate) in lines.iter().zip(rates) {
                assert!((line["lr"].as_f64().unwrap() - rate).abs() < 1e-9, "{folder}: {line}");
            }
            assert!(lines[2]["train_loss"].as_f64() < lines[0]["train_loss"].as_f64(), "{folder}: {lines:?}");
            let state = world.checkpoint(&format!("{folder}/last.pt")).optimizer_state;
            let Some(Value::List(groups)) = state.get("param_groups") else { panic!("{folder}") };
            assert_eq!(groups[0].get("initial_lr").is_some(), scheduler != "none", "{folder}");
            assert_eq!(groups[0].get("betas").is_some(), optimizer != "sgd", "{folder}");
        }
    }
}

/// One step on random inputs: every gradient is finite and not zero, and every parameter moves.
fn every_parameter_learns(c: &Experiment, clips: usize) {
    let mut engine = engine::new(c, &Compute::Cpu).unwrap();
    let sizes = Sizes::of(&c.model);
    let mut batch = Batch::new((0..clips).collect(), sizes);
    for (stream, pixels) in batch.images.iter_mut().enumerate() {
        let bytes = pixels.bytes_mut().iter_mut().enumerate();
        bytes.for_each(|(i, byte)| *byte = ((i * (2 * stream + 31)) % 251) as u8);
    }
    batch.pose.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 * 0.7).sin());
    let mut batch = Placed::new(batch, (0..clips as u32).map(|class| vec![class]).collect());
    let mut step = Step::of(1);
    engine.train(&mut batch, &Pass::training(1, 0), &mut step).unwrap();
    assert!(step.loss().unwrap().is_finite());
    // Sums tell whether a parameter moved without a second copy of all of them.
    let print = |tensor: &Tensor| {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bits = values.iter().map(|x| u64::from(x.to_bits()));
        bits.fold(0_u64, |sum, bits| sum.wrapping_mul(31).wrapping_add(bits))
    };
    let prints = |engine: &dyn Engine| -> Vec<u64> {
        engine.host().parameters().iter().map(|(_, var)| print(var.as_tensor())).collect()
    };
    let before = prints(engine.as_ref());
    let gradients = engine.gradients(&step).unwrap();
    for ((name, _), values) in engine.host().parameters().iter().zip(&gradients) {
        assert!(values.iter().all(|x| x.is_finite()), "{name}");
        assert!(values.iter().any(|&x| x != 0.0), "{name} has no gradient");
    }
    let pending = engine.update(step, &[c.optimization.lr], None).unwrap();
    engine.outcome(pending).unwrap();
    let after = prints(engine.as_ref());
    for ((name, _), (before, after)) in engine.host().parameters().iter().zip(before.iter().zip(&after)) {
        assert_ne!(before, after, "{name} did not move");
    }
}

#[test]
fn every_parameter_of_a_small_network_learns() {
    for optimizer in ["adamw", "adam", "sgd"] {
        let small = [
            ("model.image_size", "16"),
            ("model.sequence_length", "3"),
            ("model.projector_dim", "8"),
            ("model.d_model", "16"),
            ("model.temporal_nhead", "2"),
            ("model.temporal_dim_feedforward", "24"),
            ("model.vocab_size", "10"),
            ("model.backbone.patch_size", "8"),
            ("model.backbone.embed_dim", "12"),
            ("model.backbone.num_heads", "3"),
            ("model.backbone.depth", "2"),
            ("model.temporal_layers", "2"),
            ("optimization.optimizer", optimizer),
            ("optimization.lr", "0.1"),
        ];
        every_parameter_learns(&experiment(&small), 2);
    }
}

#[test]
fn every_parameter_of_the_default_network_learns() {
    let c = experiment(&[("model.image_size", "32"), ("model.sequence_length", "2")]);
    assert_eq!((c.model.backbone.depth, c.model.vocab_size), (12, 32000));
    every_parameter_learns(&c, 2);
}

/// The scalars of the one event file in `folder`: tag, step, value.
fn scalars(folder: &Path) -> Vec<(String, i64, f32)> {
    let files = names(folder);
    assert!(files.len() == 1 && files[0].starts_with("events.out.tfevents."), "{files:?}");
    event_scalars(&folder.join(&files[0]))
}

#[test]
fn tensorboard_has_every_scalar_at_its_step() {
    let world = World::new();
    world.ok(&[
        "tiny.toml",
        "--tensorboard",
        "logs/a",
        "--scheduler",
        "steplr",
        "--scheduler-step-size",
        "1",
    ]);
    let found = scalars(&world.path("logs/a"));
    let steps = |tag: &str| found.iter().filter(|s| s.0 == tag).map(|s| (s.1, s.2)).collect::<Vec<_>>();
    let lines = metrics(&world, "run/metrics.jsonl");
    for (tag, key) in [
        ("loss/train", "train_loss"),
        ("loss/val", "val_loss"),
        ("accuracy/val", "val_accuracy"),
        ("lr", "lr"),
        ("grad_norm", "grad_norm"),
    ] {
        let expected: Vec<_> =
            lines.iter().zip(1..).map(|(line, epoch)| (epoch, line[key].as_f64().unwrap() as f32)).collect();
        assert_eq!(steps(tag), expected, "{tag}");
    }
    for tag in ["loss/step", "grad_norm/step"] {
        assert_eq!(steps(tag).iter().map(|s| s.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
    }
    assert_eq!(found.len(), 5 * 2 + 2 * 4);
}

#[test]
fn a_tensorboard_folder_that_cannot_be_written_costs_a_warning() {
    let world = World::new();
    world.write("file", "x");
    for (i, folder) in ["file/tb", "/proc/tb"].into_iter().enumerate() {
        let run = format!("run{i}");
        let outcome = world.ok(&["tiny.toml", "--epochs", "1", "--work-dir", &run, "--tensorboard", folder]);
        outcome.says(&["warning: ", folder, "the run goes on without TensorBoard"]);
        assert_eq!(outcome.stderr.matches("warning: ").count(), 1, "{}", outcome.stderr);
        assert!(world.path(&run).join("last.pt").exists());
    }
}

#[test]
fn clips_of_every_length_with_parts_missing() {
    let world = World::new();
    // Clips of 2 to 4 frames against sequences of 1 and 9; drawn datasets lack some hands anyway.
    for (folder, frames) in [("short", "1"), ("long", "9")] {
        world.ok(&["tiny.toml", "--epochs", "1", "--sequence-length", frames, "--work-dir", folder]);
    }
    for entry in names(&world.path("data/pose")) {
        fs::remove_file(world.path("data/pose").join(entry)).unwrap();
    }
    for entry in names(&world.path("data/hand_l")) {
        fs::remove_file(world.path("data/hand_l").join(entry)).unwrap();
    }
    let outcome = world.ok(&["tiny.toml", "--epochs", "1"]);
    outcome.says(&[
        "warning: no clip has a pose in data/pose (data.pose_dir, from tiny.toml:",
        "warning: no clip has a frame in data/hand_l (data.hand_left_dir, from tiny.toml:",
    ]);
    let (id, frames) = world.clip();
    frames.iter().for_each(|frame| fs::remove_file(frame).unwrap());
    let hands = names(&world.path("data/hand_r"));
    for name in hands.iter().filter(|name| name.starts_with(&id)) {
        fs::remove_file(world.path("data/hand_r").join(name)).unwrap();
    }
    let args = ["tiny.toml", "--epochs", "1", "--work-dir", "gone"];
    let outcome = world.run(&args);
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    outcome.says(&[
        "1 of 8 clips has no image in any stream: more than the share that data.max_empty_clips = 0.01 allows",
        &format!("without any image: {id}"),
        "a larger data.max_empty_clips (the default) makes",
    ]);
    assert!(!world.path("gone").exists());
    world.ok(&[&args[..], &["--max-empty-clips=0.2"]].concat()).says(&[
        "warning: 1 of 8 clips has no image in any stream: it is black images to the network: ",
        &id,
    ]);
}

#[test]
fn ids_without_metadata_and_repeated_ids_are_counted() {
    let world = World::new();
    let index = world.read("data/index/train.csv");
    let (id, _) = world.clip();
    world.write("data/index/train.csv", format!("{index}{id}\nnobody\n"));
    let outcome = world.ok(&["tiny.toml", "--epochs", "1"]);
    outcome.says(&[
        "repeats 1 id, kept once",
        "1 of 7 ids of data/index/train.csv",
        "left out: nobody",
        "6 clips to train on",
    ]);
}
