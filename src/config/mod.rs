//! The experiment's configuration.

use std::path::PathBuf;

/// A whole experiment, resolved and checked: nothing after this handles an impossible value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Experiment {
    pub data: Data,
    pub model: Model,
    pub optimization: Optimization,
    pub run: Run,
}

#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Data {
    pub face_dir: PathBuf,
    pub hand_left_dir: PathBuf,
    pub hand_right_dir: PathBuf,
    pub pose_dir: PathBuf,
    pub metadata_csv: PathBuf,
    pub train_index: PathBuf,
    pub val_index: PathBuf,
    pub batch_size: usize,
    pub val_batch_size: Option<usize>,
    pub num_workers: Option<usize>,
    pub tensorboard: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Model {
    pub image_size: usize,
    pub sequence_length: usize,
    pub projector_dim: usize,
    pub d_model: usize,
    pub pose_landmarks: usize,
    pub projector_dropout: f64,
    pub fusion_dropout: f64,
    pub temporal_nhead: usize,
    pub temporal_layers: usize,
    pub temporal_dim_feedforward: usize,
    pub temporal_dropout: f64,
    pub vocab_size: usize,
    pub backbone: Backbone,
}

#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Backbone {
    pub patch_size: usize,
    pub embed_dim: usize,
    pub depth: usize,
    pub num_heads: usize,
    pub mlp_ratio: f64,
    pub dropout: f64,
    pub attention_dropout: f64,
    pub stochastic_depth: f64,
}

#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Optimization {
    pub epochs: usize,
    pub optimizer: OptimizerKind,
    pub lr: f64,
    pub weight_decay: f64,
    pub scheduler: SchedulerKind,
    pub scheduler_step_size: usize,
    pub scheduler_gamma: f64,
    pub scheduler_tmax: usize,
    pub label_smoothing: f64,
}

#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Run {
    pub work_dir: PathBuf,
    pub device: Device,
    pub precision: Precision,
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum OptimizerKind {
    AdamW,
    Adam,
    Sgd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SchedulerKind {
    None,
    StepLr,
    Cosine,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Device {
    Cpu,
    Cuda(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Precision {
    Amp,
    Fp32,
}

impl Backbone {
    /// The hidden width of a block's MLP: `int(embed_dim * mlp_ratio)`.
    #[must_use]
    pub fn mlp_width(&self) -> usize {
        (self.embed_dim as f64 * self.mlp_ratio) as usize
    }
}
