//! A drawn dataset, a network that trains on it in an instant, and the program to run on them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use protobuf::Message;
use slt_run::checkpoint::{self, Checkpoint};
use slt_run::config::{self, Experiment, Layers, Model, Optimization, Setting};
use slt_run::demo::{Options, draw};
use slt_run::engine::{Engine, Placed};
use slt_run::model::Encoded;
use slt_run::nn::Pass;
use tempfile::TempDir;
use tensorboard_proto::event::{Event, Event_oneof_what};

/// The smallest network that has every part.
pub const TINY: &str = r#"[data]
face_dir = "data/face"
hand_left_dir = "data/hand_l"
hand_right_dir = "data/hand_r"
pose_dir = "data/pose"
metadata_csv = "data/subs.csv"
train_index = "data/index/train.csv"
val_index = "data/index/val.csv"
batch_size = 4

[model]
image_size = 16
sequence_length = 3
projector_dim = 8
d_model = 16
temporal_nhead = 2
temporal_layers = 1
temporal_dim_feedforward = 16
vocab_size = 100

[model.backbone]
patch_size = 8
embed_dim = 16
depth = 1
num_heads = 2

[optimization]
epochs = 2

[run]
work_dir = "run"
device = "cpu"
precision = "fp32"
"#;

/// The line of [`TINY`] that sets `name`, counted from 1.
pub fn line_of(name: &str) -> usize {
    1 + TINY.lines().position(|line| line.starts_with(&format!("{name} ="))).unwrap()
}

/// A working directory with `data/` and `tiny.toml`.
pub struct World {
    dir: TempDir,
}

/// What a command said.
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl World {
    /// Nothing in it.
    pub fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// 8 clips of 2 signs, 2 to 4 frames of 16 pixels.
    pub fn new() -> Self {
        let world = Self::empty();
        let options = Options { clips: 8, frames: 4, size: 16, signs: 2, seed: 5, translate: false };
        draw(&world.path("data"), &options, &|_, _| ()).unwrap();
        world.write("tiny.toml", TINY);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub fn read_bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// [`program`] in the working directory.
    pub fn command(&self, args: &[&str]) -> Command {
        program(self.dir.path(), args)
    }

    pub fn run(&self, args: &[&str]) -> Outcome {
        Outcome::of(&self.command(args).output().unwrap())
    }

    /// Runs what must go well.
    pub fn ok(&self, args: &[&str]) -> Outcome {
        let outcome = self.run(args);
        assert_eq!(outcome.code, 0, "{args:?}\n{}{}", outcome.stdout, outcome.stderr);
        outcome
    }

    /// Every file below the working directory, and every folder as `name/`.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        walk(self.dir.path(), self.dir.path(), &mut all);
        all
    }

    /// The id of a training clip and of the frames that its faces have.
    pub fn clip(&self) -> (String, Vec<PathBuf>) {
        let id = self.read("data/index/train.csv").lines().nth(1).unwrap().to_owned();
        let start = format!("{id}_f");
        let mut frames: Vec<PathBuf> = fs::read_dir(self.path("data/face"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&start))
            .collect();
        frames.sort();
        (id, frames)
    }

    /// The clips of the training split.
    pub fn clip_ids(&self) -> Vec<String> {
        self.read("data/index/train.csv").lines().skip(1).map(str::to_owned).collect()
    }

    /// A checkpoint of the working directory.
    pub fn checkpoint(&self, name: &str) -> Checkpoint<'static> {
        let path = self.path(name);
        Checkpoint::from_value(&path, checkpoint::load(&path).unwrap()).unwrap()
    }
}

/// `slt-run`, or what `SLT_RUN_BINARY` names, in `folder`, without the variables of the tests' own environment.
pub fn program(folder: &Path, args: &[&str]) -> Command {
    let built = || env!("CARGO_BIN_EXE_slt-run").into();
    let mut command = Command::new(std::env::var_os("SLT_RUN_BINARY").unwrap_or_else(built));
    command.current_dir(folder).args(args);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SLT_")) {
        command.env_remove(name);
    }
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "RAYON_NUM_THREADS"] {
        command.env_remove(name);
    }
    command
}

impl Outcome {
    pub fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let outcome = Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        };
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        outcome
    }

    /// Standard error contains every one of `parts`.
    pub fn says(&self, parts: &[&str]) -> &Self {
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in\n{}", self.stderr);
        }
        self
    }
}

fn walk(root: &Path, dir: &Path, all: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            all.insert(format!("{name}/"), Vec::new());
            walk(root, &path, all);
        } else {
            all.insert(name, fs::read(&path).unwrap());
        }
    }
}

/// An npz file with one array of `descr` (quotes included) and `shape`.
pub fn npz(name: &str, descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let dict = format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
    writer.write_all(b"\x93NUMPY\x01\x00").unwrap();
    writer.write_all(&(dict.len() as u16).to_le_bytes()).unwrap();
    writer.write_all(dict.as_bytes()).unwrap();
    writer.write_all(data).unwrap();
    writer.finish().unwrap().into_inner()
}

/// The scalars of a TensorBoard event file: tag, step, value.
pub fn event_scalars(file: &Path) -> Vec<(String, i64, f32)> {
    let bytes = fs::read(file).unwrap();
    let (mut rest, mut found) = (bytes.as_slice(), Vec::new());
    let mut events = 0;
    // A record: length (u64), its checksum (u32), the event, its checksum.
    while let Some((length, after)) = rest.split_first_chunk::<8>() {
        let length = u64::from_le_bytes(*length) as usize;
        let event = Event::parse_from_bytes(&after[4..4 + length]).unwrap();
        rest = &after[4 + length + 4..];
        events += 1;
        match &event.what {
            Some(Event_oneof_what::file_version(version)) => {
                assert_eq!((events, version.as_str()), (1, "brain.Event:2"));
            }
            Some(Event_oneof_what::summary(summary)) => {
                let values = summary.get_value().iter();
                found.extend(values.map(|value| (value.tag.clone(), event.step, value.get_simple_value())));
            }
            other => panic!("{other:?}"),
        }
    }
    found
}

/// The default experiment with other values for some fields.
pub fn experiment(settings: &[(&str, &str)]) -> Experiment {
    let required = [
        "face_dir",
        "hand_left_dir",
        "hand_right_dir",
        "pose_dir",
        "metadata_csv",
        "train_index",
        "val_index",
    ];
    let required = required.map(|name| (format!("data.{name}"), "x"));
    let all = required.iter().map(|(key, value)| (key.as_str(), *value)).chain([("run.work_dir", "x")]);
    let settings = all
        .chain(settings.iter().copied())
        .map(|(key, value)| Setting { key: key.into(), value: value.into(), origin: "test".into() })
        .collect();
    config::resolve(&Layers { settings, ..Layers::default() }).unwrap().experiment
}

/// An experiment of these sections, on the CPU; `settings` go over the rest.
pub fn experiment_of(model: Model, optimization: Optimization, settings: &[(&str, &str)]) -> Experiment {
    let on_cpu = [("run.device", "cpu"), ("run.precision", "fp32")];
    Experiment { model, optimization, ..experiment(&[&on_cpu, settings].concat()) }
}

/// The decoder's logits of a batch, without dropout.
pub fn logits(engine: &mut dyn Engine, batch: &mut Placed) -> Vec<f32> {
    let frames = engine.encode(batch).unwrap();
    let (clips, length) = (batch.clips(), batch.batch.sizes.frames);
    let valid: Vec<u8> = batch.batch.pad_mask.iter().map(|&valid| u8::from(valid)).collect();
    let pad_mask = Tensor::from_vec(valid, (clips, length), &Device::Cpu).unwrap();
    // All of one length here.
    let targets = Tensor::from_vec(batch.targets.concat(), (clips, ()), &Device::Cpu).unwrap();
    engine.pull().unwrap();
    let encoded = Encoded { frames: &frames, pad_mask: &pad_mask };
    let decoder = engine.host().evaluator.decoder();
    decoder.logits(encoded, &targets, &Pass::EVALUATION).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}
