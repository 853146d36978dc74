//! The configuration as a user meets it: command lines and files in, a resolved experiment and its snapshots out.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]
#![allow(clippy::float_cmp, reason = "values are read and written exactly")]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use rand::{Rng, RngExt};
use slt_run::cli::{self, Command};
use slt_run::config::{
    self, Device, EventFolder, Experiment, FIELDS, Field, Kind, Layers, OptimizerKind, Precision, Preset,
    Resolved, Rule, SchedulerKind,
};
use slt_run::random::{Purpose, stream};

/// The documented command line's required part.
const REQUIRED: &str = "--face-dir data/rois/face --hand-left-dir data/rois/hand_l --hand-right-dir data/rois/hand_r \
                        --pose-dir data/rois/pose --metadata-csv data/lsa_t/subs.csv \
                        --train-index data/lsa_t/index/train.csv --val-index data/lsa_t/index/val.csv \
                        --work-dir work_dirs/multistream_v9";

fn layers(line: &[&str]) -> Layers {
    let args = std::iter::once("slt-run").chain(line.iter().copied()).map(OsString::from);
    match cli::parse(args).unwrap() {
        Command::Train(args) => args.layers,
        other => panic!("{other:?}"),
    }
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// The required flags, then `line`, with `env`.
fn resolved(line: &[&str], env: &[(&str, &str)]) -> Resolved {
    let mut layers = layers(&[words(REQUIRED), line.to_vec()].concat());
    layers.env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
    config::resolve(&layers).unwrap_or_else(|error| panic!("{error}"))
}

fn from_text(text: &str) -> Experiment {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("snapshot.toml");
    fs::write(&file, text).unwrap();
    let layers = Layers { files: vec![file], ..Layers::default() };
    config::resolve(&layers).unwrap_or_else(|error| panic!("{error}\n{text}")).experiment
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_shipped_file_is_the_documented_command_line() {
    let line = format!("{REQUIRED} --epochs 40 --batch-size 4 --tensorboard auto");
    let flags = config::resolve(&layers(&words(&line))).unwrap().experiment;
    let file = root().join("configs/multistream_v9.toml");
    assert_eq!(config::resolve(&layers(&[file.to_str().unwrap()])).unwrap().experiment, flags);
    assert_eq!(flags.model.backbone.mlp_ratio, 4.0);
    assert_eq!((flags.run.device, flags.run.precision), (Device::Cuda(0), Precision::Amp));
    assert_eq!((flags.data.val_batch_size, flags.data.num_workers), (None, None));
    assert_eq!(flags.optimization.optimizer, OptimizerKind::AdamW);
    assert_eq!((flags.optimization.lr, flags.run.seed), (1e-3, 1234));
}

#[test]
fn later_layers_win() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("sub")).unwrap();
    fs::write(path("sub/deep.toml"), "[optimization]\nlr = 1\nepochs = 1\nweight_decay = 1\n").unwrap();
    fs::write(path("sub/other.toml"), "[optimization]\nepochs = 2\nweight_decay = 2\n").unwrap();
    fs::write(
        path("a.toml"),
        "model.backbone = { depth = 3, num_heads = 4 }\noptimization.weight_decay = 3\n\
         extends = [\"sub/deep.toml\", \"sub/other.toml\"]\n",
    )
    .unwrap();
    fs::write(path("b.toml"), "extends = \"sub/deep.toml\"\n[model.backbone]\nnum_heads = 3\n").unwrap();
    let (a, b) = (path("a.toml"), path("b.toml"));

    let one = resolved(&[&a], &[]);
    let o = &one.experiment.optimization;
    assert_eq!((o.lr, o.epochs, o.weight_decay), (1.0, 2, 3.0));
    assert_eq!(one.experiment.model.backbone.depth, 3);
    assert_eq!(one.origin("optimization.lr"), format!("{}:2", path("sub/deep.toml")));
    assert_eq!(one.origin("optimization.epochs"), format!("{}:2", path("sub/other.toml")));
    assert_eq!(one.origin("model.backbone.num_heads"), format!("{a}:1"));
    assert_eq!(one.origin("optimization.weight_decay"), format!("{a}:2"));
    assert_eq!(one.origin("model.d_model"), "default");

    // The second file extends the deep one again, which counts once: it is below the first, too.
    let two = resolved(&[&a, &b], &[("SLT_MODEL__BACKBONE__DEPTH", "6"), ("slt_run__Seed", "7")]);
    assert_eq!((two.experiment.optimization.epochs, two.experiment.model.backbone.num_heads), (2, 3));
    assert_eq!((two.experiment.model.backbone.depth, two.experiment.run.seed), (6, 7));
    assert_eq!(two.origin("model.backbone.depth"), "env SLT_MODEL__BACKBONE__DEPTH");

    let env = [("SLT_OPTIMIZATION__LR", "4"), ("SLT_OPTIMIZATION__EPOCHS", "4")];
    let three = resolved(&[&a, "--set", "optimization.lr=5", "--lr", "6"], &env);
    assert_eq!((three.experiment.optimization.lr, three.experiment.optimization.epochs), (6.0, 4));
    assert_eq!(three.origin("optimization.lr"), "--lr 6");
    let four = resolved(&[&a, "--lr", "6", "--set", "optimization.lr=5"], &env);
    assert_eq!(four.origin("optimization.lr"), "--set optimization.lr=5");
}

#[test]
fn a_float_is_a_float_in_every_layer() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    let file = file.to_str().unwrap();
    for (text, number) in [("1e-4", 1e-4), ("1", 1.0), ("0.25", 0.25), ("3E-5", 3e-5)] {
        fs::write(file, format!("[optimization]\nlr = {text}\n")).unwrap();
        for found in [
            resolved(&[file], &[]),
            resolved(&[], &[("SLT_OPTIMIZATION__LR", text)]),
            resolved(&["--lr", text], &[]),
            resolved(&["--set", &format!("optimization.lr={text}")], &[]),
        ] {
            assert_eq!(found.experiment.optimization.lr.to_bits(), f64::to_bits(number), "{text}");
        }
    }
}

#[test]
fn text_that_looks_like_a_number_stays_a_path() {
    let found =
        resolved(&["--work-dir", "1e-4", "--set", "data.face_dir=123"], &[("SLT_DATA__TENSORBOARD", "true")]);
    assert_eq!(found.experiment.run.work_dir, PathBuf::from("1e-4"));
    assert_eq!(found.experiment.data.face_dir, PathBuf::from("123"));
    assert_eq!(found.experiment.data.tensorboard, Some(EventFolder::Folder("true".into())));
}

#[test]
fn an_empty_string_unsets_in_every_layer() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (set, unset) = (path("set.toml"), path("unset.toml"));
    fs::write(&set, "[data]\nval_batch_size = 2\nnum_workers = 0\ntensorboard = \"tb\"\n").unwrap();
    fs::write(&unset, "[data]\nval_batch_size = \"\"\nnum_workers = \"\"\ntensorboard = \"\"\n").unwrap();
    let given = resolved(&[&set], &[]).experiment.data;
    assert_eq!((given.val_batch_size, given.num_workers), (Some(2), Some(0)));
    let env =
        [("SLT_DATA__VAL_BATCH_SIZE", ""), ("SLT_DATA__NUM_WORKERS", ""), ("SLT_DATA__TENSORBOARD", "")];
    for found in [
        resolved(&[&set, &unset], &[]),
        resolved(&[&set], &env),
        resolved(&[&set, "--val-batch-size", "", "--num-workers=", "--set", "data.tensorboard="], &[]),
    ] {
        let data = found.experiment.data;
        assert_eq!((data.val_batch_size, data.num_workers, data.tensorboard), (None, None, None));
    }
    // And a value on top of an unset one sets it again.
    assert_eq!(resolved(&[&unset, "--num-workers", "3"], &env[..1]).experiment.data.num_workers, Some(3));
}

#[test]
fn words_in_any_case() {
    let line = "--optimizer AdamW --scheduler StepLR --precision FP32 --device CUDA:3";
    let found = resolved(&words(line), &[]).experiment;
    assert_eq!(found.optimization.optimizer, OptimizerKind::AdamW);
    assert_eq!(found.optimization.scheduler, SchedulerKind::StepLr);
    assert_eq!((found.run.precision, found.run.device), (Precision::Fp32, Device::Cuda(3)));
    for (text, device) in [("cpu", Device::Cpu), ("cuda", Device::Cuda(0)), ("cuda:0", Device::Cuda(0))] {
        assert_eq!(resolved(&["--device", text], &[]).experiment.run.device, device);
    }
    for text in ["cuda:", "cuda:-1", "cuda:+1", "cuda:x", "cuda:99999999999", "cuda0", "mps"] {
        assert_eq!(Device::from_text(text), None, "{text}");
    }
}

#[test]
fn variables_of_others_get_a_warning() {
    let env = [("SLT_OPTIMIZATION_LR", "1"), ("SLT_DATA", "1"), ("SLT_", ""), ("SLTX", "1"), ("HOME", "/")];
    let found = resolved(&["--no-pin-memory"], &env);
    assert_eq!(
        found.warnings,
        [
            "--no-pin-memory has no effect: there is no pinned memory to switch off",
            "the environment variable SLT_ sets no field; the nearest that does is SLT_RUN__SEED",
            "the environment variable SLT_DATA sets no field; the nearest that does is SLT_DATA__FACE_DIR",
            "the environment variable SLT_OPTIMIZATION_LR sets no field; the nearest that does is SLT_OPTIMIZATION__LR",
        ]
    );
}

const SNAPSHOT_WITH_ORIGINS: &str = r#"# Every value of the experiment. Relative paths are relative to the working directory.

[data]
face_dir = "data/rois/face"                 # --face-dir data/rois/face
hand_left_dir = "data/rois/hand_l"          # --hand-left-dir data/rois/hand_l
hand_right_dir = "data/rois/hand_r"         # --hand-right-dir data/rois/hand_r
pose_dir = "data/rois/pose"                 # --pose-dir data/rois/pose
metadata_csv = "data/lsa_t/subs.csv"        # --metadata-csv data/lsa_t/subs.csv
train_index = "data/lsa_t/index/train.csv"  # --train-index data/lsa_t/index/train.csv
val_index = "data/lsa_t/index/val.csv"      # --val-index data/lsa_t/index/val.csv
test_index = ""                             # default (unset: there is none)
batch_size = 4                              # default
val_batch_size = ""                         # default (unset: as `batch_size`)
num_workers = ""                            # default (unset: the cores at hand, at most 8)
on_bad_clip = "error"                       # default
max_empty_clips = 0.01                      # default
feature_cache = ""                          # default (unset: off)
feature_dtype = "float16"                   # default
features_dir = ""                           # default (unset: images are read)
tensorboard = ""                            # a.toml:3 (unset: off)

[model]
image_size = 224                 # default
sequence_length = 128            # default
projector_dim = 256              # default
d_model = 512                    # default
pose_landmarks = 13              # default
projector_dropout = 0.0          # default
fusion_dropout = 0.0             # default
temporal_nhead = 8               # default
temporal_layers = 6              # default
temporal_dim_feedforward = 2048  # default
temporal_dropout = 0.1           # default
vocab_size = 32000               # default

[model.backbone]
patch_size = 16          # default
embed_dim = 384          # default
depth = 12               # default
num_heads = 6            # default
mlp_ratio = 2.0          # a.toml:5
dropout = 0.0            # default
attention_dropout = 0.0  # default
stochastic_depth = 0.0   # default
layer_norm_eps = 1e-5    # default
init = ""                # default (unset: weights are drawn from `run.seed`)
freeze = "none"          # default

[model.decoder]
kind = "stub"           # default
layers = 3              # default
nhead = 8               # default
dim_feedforward = 2048  # default
dropout = 0.1           # default
tied = true             # default

[tokenizer]
kind = "unigram"   # default
vocab_size = 8000  # default
min_frequency = 1  # default
lowercase = false  # default
file = ""          # default (unset: one is trained on the texts of the training split)

[decoding]
beam_size = 5                 # default
length_penalty = 1.0          # default
length_penalty_rule = "gnmt"  # default
max_length = 128              # default
min_length = 0                # default
no_repeat_ngram = 0           # default
n_best = 1                    # default

[optimization]
epochs = 40                   # default
optimizer = "adamw"           # default
lr = 0.0003                   # env SLT_OPTIMIZATION__LR
weight_decay = 0.0            # default
betas = [0.9, 0.999]          # default
eps = 1e-8                    # default
momentum = 0.0                # default
groups = []                   # default
warmup_steps = 0              # default
scheduler = "none"            # default
scheduler_step_size = 5       # default
scheduler_gamma = 0.5         # default
scheduler_tmax = 10           # default
scheduler_patience = 10       # default
scheduler_threshold = 0.0001  # default
min_lr = 0.0                  # default
label_smoothing = 0.1         # default
frames_per_chunk = "auto"     # default
accumulate = 1                # default
grad_clip = ""                # default (unset: off)
skip_nonfinite_steps = 0      # default
amp_dtype = "auto"            # default
best_metric = "val_loss"      # default
early_stopping = ""           # default (unset: off)
keep_checkpoints = 1          # default

[run]
work_dir = "work_dirs/multistream_v9"  # --work-dir work_dirs/multistream_v9
device = "cuda"                        # default
engine = "auto"                        # default
precision = "amp"                      # default
seed = 7                               # --seed 7
threads = ""                           # default (unset: `RAYON_NUM_THREADS`, or the cores at hand)
memory_budget = "auto"                 # default
resume = "never"                       # default
init_from = ""                         # default (unset: weights are drawn from `seed`)
checkpoint_every = "epoch"             # default
evaluate_every = ""                    # default (unset: never while it trains)
"#;

#[test]
fn a_snapshot_with_origins_reads_like_this() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    fs::write(&file, "[data]\n\ntensorboard = \"\"\n[model.backbone]\nmlp_ratio = 2\n").unwrap();
    let found = resolved(&[file.to_str().unwrap(), "--seed", "7"], &[("SLT_OPTIMIZATION__LR", "3e-4")]);
    let text = found.to_toml_with_origins().replace(&format!("{}/", dir.path().display()), "");
    assert_eq!(text, SNAPSHOT_WITH_ORIGINS);
    assert_eq!(from_text(&text), found.experiment);
}

#[test]
fn json_is_what_python_reads() {
    let json = resolved(&["--lr", "1e-5", "--num-workers", "2"], &[]).to_json();
    assert_eq!(json["model"]["backbone"]["embed_dim"], 384);
    assert_eq!(json["model"]["image_size"], 224);
    assert_eq!(json["optimization"]["lr"], 1e-5);
    assert_eq!(json["optimization"]["optimizer"], "adamw");
    assert_eq!(json["data"]["num_workers"], 2);
    assert!(json["data"]["tensorboard"].is_null());
    let sections: Vec<_> = json.as_object().unwrap().keys().collect();
    assert_eq!(sections, ["data", "model", "tokenizer", "decoding", "optimization", "run"]);
    let nested: Vec<_> = json["model"].as_object().unwrap().keys().rev().take(2).collect();
    assert_eq!(nested, ["decoder", "backbone"]);
}

#[test]
fn every_shipped_file_survives_its_snapshot() {
    let mut count = 0;
    for entry in fs::read_dir(root().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let found = config::resolve(&layers(&[path.to_str().unwrap()])).unwrap();
        assert_eq!(from_text(&found.to_toml()), found.experiment, "{}", path.display());
        assert_eq!(from_text(&found.to_toml_with_origins()), found.experiment, "{}", path.display());
        count += 1;
    }
    assert!(count > 0);
}

/// A value for `field` as the command line would give it, any that its rule allows.
fn draw(field: &Field, random: &mut impl Rng) -> String {
    match (field.kind, field.rule) {
        _ if field.optional && random.random_range(0..3) == 0 => String::new(),
        (Kind::AutoOrPath, _) if random.random_range(0..3) == 0 => "auto".into(),
        (Kind::Path | Kind::AutoOrPath, _) => {
            let characters: Vec<char> = "ab/._ -#=\"'\\ñ日\t\n\u{7f}\u{1b}1e,[]{}$%".chars().collect();
            (0..random.random_range(1..12))
                .map(|_| characters[random.random_range(0..characters.len())])
                .collect()
        }
        // What other fields must allow.
        _ if ["decoding.n_best", "decoding.min_length"].contains(&field.key) => "1".into(),
        _ if field.key == "optimization.best_metric" => {
            ["val_loss", "val_accuracy"][random.random_range(0..2)].into()
        }
        _ if field.key == "optimization.scheduler" => {
            ["none", "steplr", "cosine"][random.random_range(0..3)].into()
        }
        _ if ["optimization.betas", "optimization.eps", "optimization.momentum"].contains(&field.key) => {
            let Preset::Text(default) = field.default else { panic!("{} has a default", field.key) };
            default.into()
        }
        (Kind::Freeze, _) => ["none", "all", "0", "1"][random.random_range(0..4)].into(),
        (Kind::Pair, _) => format!("[{:?}, {:?}]", random.random::<f64>(), random.random::<f64>()),
        (Kind::Groups, _) => {
            let number = random.random::<f64>();
            format!("[{{ match = 'a\"*', lr = {number:?} }}, {{ match = \"[!x]?\", freeze = true }}]")
        }
        (Kind::Switch, _) => ["true", "false"][random.random_range(0..2)].into(),
        (Kind::Choice(names), _) => names[random.random_range(0..names.len())].into(),
        (Kind::Device, _) => ["cpu", "cuda", "cuda:7"][random.random_range(0..3)].into(),
        (Kind::AutoOrCount, _) => ["auto", "1", "16"][random.random_range(0..3)].into(),
        (Kind::Interval, _) => ["epoch", "500 steps", "90 minutes"][random.random_range(0..3)].into(),
        (Kind::AutoOrBytes, _) => ["auto", "8GiB", "1000001B"][random.random_range(0..3)].into(),
        (Kind::Whole, Rule::Any) => random.random_range(0..=i64::MAX).to_string(),
        (Kind::Whole, _) if field.key.starts_with("optimization") => {
            random.random_range(1..=i64::MAX).to_string()
        }
        (Kind::Whole, _) => (1_u32 << random.random_range(0..6)).to_string(),
        (Kind::Number, Rule::Share | Rule::BelowOne) => format!("{:?}", random.random::<f64>()),
        (Kind::Number, _) if field.name == "mlp_ratio" => format!("{:?}", 1.0 + random.random::<f64>()),
        // Any finite positive double, by its bits.
        (Kind::Number, _) => format!("{:e}", f64::from_bits(random.random_range(1..0x7ff0_0000_0000_0000))),
    }
}

/// What stands in the JSON text for a float reads back as the same float, as Python's reader does it.
fn assert_same_floats(json: &serde_json::Value, experiment: &Experiment) {
    let (o, b) = (&experiment.optimization, &experiment.model.backbone);
    for (section, name, number) in [
        (&json["optimization"], "lr", o.lr),
        (&json["optimization"], "weight_decay", o.weight_decay),
        (&json["optimization"], "scheduler_gamma", o.scheduler_gamma),
        (&json["optimization"], "label_smoothing", o.label_smoothing),
        (&json["model"]["backbone"], "mlp_ratio", b.mlp_ratio),
        (&json["model"]["backbone"], "dropout", b.dropout),
    ] {
        let text = serde_json::to_string(&section[name]).unwrap();
        assert_eq!(text.parse::<f64>().unwrap().to_bits(), number.to_bits(), "{name} {text}");
    }
}

#[test]
fn random_experiments_survive_their_snapshots() {
    let mut random = stream(1, Purpose::Demo, [0, 0]);
    let mut tried = 0;
    for _ in 0..2000 {
        let settings = FIELDS
            .iter()
            .map(|field| {
                let value = draw(field, &mut random);
                config::Setting {
                    key: field.key.into(),
                    origin: format!("--set {}={value}", field.key),
                    value,
                }
            })
            .collect();
        // Most draws do not divide or contradict each other; they are refused, which is another test's matter.
        let Ok(found) = config::resolve(&Layers { settings, ..Layers::default() }) else { continue };
        assert_eq!(from_text(&found.to_toml()), found.experiment);
        assert_eq!(from_text(&found.to_toml_with_origins()), found.experiment);
        assert_same_floats(&found.to_json(), &found.experiment);
        tried += 1;
    }
    assert!(tried > 60, "{tried}");
}

#[test]
fn the_reference_has_a_row_for_every_field() {
    let table = config::reference_table();
    for row in [
        "### `[model.backbone]`\n",
        "| `hand_left_dir` | Folder of the left hand's crops. | path | required | `--hand-left-dir` |\n",
        "| `batch_size` | Clips in a training batch. | whole number, at least 1 | `4` | `--batch-size` |\n",
        "| `tensorboard` | Folder for TensorBoard's event files; `auto` is the folder `tensorboard` in `run.work_dir`. | `auto` or a path | unset: off | `--tensorboard` |\n",
        "| `depth` | Transformer blocks. | whole number, at least 1 | `12` | `--set model.backbone.depth=` |\n",
        "| `lr` | Learning rate. | number, at least 0 | `1e-3` | `--lr` |\n",
    ] {
        assert!(table.contains(row), "{row}{table}");
    }
    let rows = table.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, FIELDS.len());
}
