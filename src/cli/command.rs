//! What a command line can ask for.

use std::path::PathBuf;

use crate::config::Layers;
use crate::evaluate::CheckpointChoice;
use crate::observe::reporter::Verbosity;

/// What the command line asks for.
#[derive(Clone, Debug)]
pub enum Command {
    /// `slt-run CONFIG…`, `slt-run train CONFIG…`, `slt-run resume CONFIG…`: train.
    Train(TrainArgs),
    /// `slt-run evaluate RUN`: translate a split and measure the translations.
    Evaluate(EvaluateArgs),
    /// `slt-run predict RUN`: translate clips.
    Predict(PredictArgs),
    /// `slt-run check CONFIG…`: look at everything before a run, write nothing.
    Check(CheckArgs),
    /// `slt-run cache CONFIG…`: fill the feature cache.
    Cache(CacheArgs),
    /// `slt-run config CONFIG…`: print the resolved experiment with the origin of each value.
    Config(ConfigArgs),
    /// `slt-run bench CONFIG…`: time training steps, validation or loading.
    Bench(BenchArgs),
    /// `slt-run demo [DIR]`: draw a small dataset and train on it.
    Demo(DemoArgs),
}

/// `slt-run CONFIG…`.
#[derive(Clone, Debug)]
pub struct TrainArgs {
    /// The experiment; the caller fills in the environment.
    pub layers: Layers,
    /// Move a run that is in the way aside.
    pub overwrite: bool,
    /// Go on from a checkpoint although the experiment has changed.
    pub allow_changes: bool,
    /// How much to say.
    pub verbosity: Verbosity,
}

/// What `slt-run evaluate` and `slt-run predict` are told of a trained network.
#[derive(Clone, Debug)]
pub struct TrainedArgs {
    /// A run's folder or a checkpoint.
    pub run: PathBuf,
    /// Which checkpoint of a run's folder.
    pub checkpoint: CheckpointChoice,
    /// What is not as in the checkpoint's experiment; the caller fills in the environment.
    pub layers: Layers,
    /// How much to say.
    pub verbosity: Verbosity,
}

/// `slt-run evaluate RUN`.
#[derive(Clone, Debug)]
pub struct EvaluateArgs {
    /// The network.
    pub trained: TrainedArgs,
    /// The clips.
    pub split: SplitChoice,
}

/// A split of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitChoice {
    /// `data.train_index`.
    Train,
    /// `data.val_index`.
    Val,
    /// `data.test_index`.
    Test,
    /// An index file of its own.
    Index(PathBuf),
}

/// `slt-run predict RUN`.
#[derive(Clone, Debug)]
pub struct PredictArgs {
    /// The network.
    pub trained: TrainedArgs,
    /// The clips.
    pub clips: ClipsChoice,
    /// The file to write instead of the terminal.
    pub csv: Option<PathBuf>,
}

/// Clips of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClipsChoice {
    /// Those of the validation split.
    Validation,
    /// Those of an index file.
    Index(PathBuf),
    /// These.
    Ids(Vec<String>),
}

/// `slt-run check CONFIG…`.
#[derive(Clone, Debug)]
pub struct CheckArgs {
    /// The experiment; the caller fills in the environment.
    pub layers: Layers,
    /// Open every image, not only the first of each clip and stream.
    pub all: bool,
    /// How much to say.
    pub verbosity: Verbosity,
}

/// `slt-run cache CONFIG…`.
#[derive(Clone, Debug)]
pub struct CacheArgs {
    /// The experiment; the caller fills in the environment.
    pub layers: Layers,
    /// How much to say.
    pub verbosity: Verbosity,
}

/// `slt-run config CONFIG…`.
#[derive(Clone, Debug)]
pub struct ConfigArgs {
    /// The experiment; the caller fills in the environment.
    pub layers: Layers,
    /// How much to say.
    pub verbosity: Verbosity,
}

/// `slt-run bench CONFIG…`.
#[derive(Clone, Debug)]
pub struct BenchArgs {
    /// The experiment; the caller fills in the environment and what has no use.
    pub layers: Layers,
    /// What to time.
    pub subject: Subject,
    /// How often to time it.
    pub steps: usize,
    /// Print one line of JSON instead of a table.
    pub json: bool,
    /// How much to say.
    pub verbosity: Verbosity,
}

/// What `slt-run bench` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A training step on data made in memory.
    Training,
    /// A training step of all that follows the backbones, on features made in memory.
    Features,
    /// A validation batch on data made in memory.
    Evaluation,
    /// The search for the texts of a validation batch, from encoded frames made in memory.
    Decoding,
    /// Loading the training clips of the experiment's dataset.
    Data,
}

/// `slt-run demo [DIR]`. What is not given is for the demo to choose.
#[derive(Clone, Debug)]
pub struct DemoArgs {
    /// Folder for the dataset, the experiment file and the run.
    pub dir: PathBuf,
    /// Clips to draw.
    pub clips: Option<usize>,
    /// Frames of a clip.
    pub frames: Option<usize>,
    /// Side of an image, in pixels.
    pub size: Option<usize>,
    /// Different signs.
    pub signs: Option<usize>,
    /// Seed of the drawing.
    pub seed: Option<u64>,
    /// Draw sentences to translate instead of single signs.
    pub translate: bool,
    /// Stop before training.
    pub data_only: bool,
    /// The run on it. Its layers go on top of the demo's experiment file; the caller fills in files and environment.
    pub run: TrainArgs,
}
