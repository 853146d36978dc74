//! Every section and field of the experiment: what it is, its type, its default and which values can work.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use super::auto::{Chunk, MemoryBudget};
use super::define::{Field, FieldType, Kind, Preset, Role, Rule, Section, choices, sections};
use super::interval::CheckpointEvery;
use super::places::{EventFolder, InitFrom};

/// The most threads that anything is given.
pub const MOST_THREADS: u64 = 1024;

/// A whole experiment. One that was resolved is checked, too: nothing after that handles an impossible value.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// The section `[data]`.
    pub data: Data,
    /// The section `[model]`.
    pub model: Model,
    /// The section `[optimization]`.
    pub optimization: Optimization,
    /// The section `[run]`.
    pub run: Run,
}

sections! {
    /// The dataset and how it is read.
    Data in "data" {
        /// Folder of the face crops, `<video_id>_f<digits>.jpg`.
        face_dir: PathBuf = required; Data,
        /// Folder of the left hand's crops.
        hand_left_dir: PathBuf = required; Data,
        /// Folder of the right hand's crops.
        hand_right_dir: PathBuf = required; Data,
        /// Folder of the poses, `<video_id>.npz` with the key `pose`.
        pose_dir: PathBuf = required; Data,
        /// CSV with the columns `video_id` and `texto`.
        metadata_csv: PathBuf = required; Data,
        /// CSV with the `video_id`s of the training split.
        train_index: PathBuf = required; Data,
        /// CSV with the `video_id`s of the validation split.
        val_index: PathBuf = required; Data,
        /// Clips in a training batch.
        batch_size: usize = 4 => Rule::Positive,
        /// Clips in a validation batch.
        val_batch_size: Option<usize> = unset ("as `batch_size`") => Rule::Positive,
        /// Threads that load data; 0 loads in the training thread. Results never depend on it.
        num_workers: Option<usize> = unset ("the cores at hand, at most 8") => Rule::AtMost(MOST_THREADS); Place,
        /// What a clip costs that cannot be loaded during training: the run, or itself, where no more than 1 % of them are
        /// so.
        on_bad_clip: OnBadClip = error; Place,
        /// Share of the clips that may have no image in any stream, and are black ones to the network; a run with more
        /// of them does not start.
        max_empty_clips: f64 = 0.01 => Rule::Share; Place,
        /// Folder for TensorBoard's event files; `auto` is the folder `tensorboard` in `run.work_dir`.
        tensorboard: Option<EventFolder> = unset ("off"); Place,
    }

    /// The network, but for the backbones.
    Model in "model" with backbone: Backbone {
        /// Side of the square input images, in pixels; a multiple of `backbone.patch_size`.
        image_size: usize = 224 => Rule::Positive; Network,
        /// Frames sampled from each clip.
        sequence_length: usize = 128 => Rule::Positive; Network,
        /// Width of each stream's projected features.
        projector_dim: usize = 256 => Rule::Positive; Network,
        /// Width of the fused features and of the temporal transformer; a multiple of `temporal_nhead`.
        d_model: usize = 512 => Rule::Positive; Network,
        /// Landmarks of a pose, 3 numbers each.
        pose_landmarks: usize = 13 => Rule::Positive; Network,
        /// Dropout in the projectors.
        projector_dropout: f64 = 0.0 => Rule::BelowOne,
        /// Dropout before the fusion's linear layer.
        fusion_dropout: f64 = 0.0 => Rule::BelowOne,
        /// Attention heads of the temporal transformer.
        temporal_nhead: usize = 8 => Rule::Positive; Network,
        /// Layers of the temporal transformer.
        temporal_layers: usize = 6 => Rule::Positive; Network,
        /// Width of the feed-forward part of a temporal layer.
        temporal_dim_feedforward: usize = 2048 => Rule::Positive; Network,
        /// Dropout in the temporal transformer.
        temporal_dropout: f64 = 0.1 => Rule::BelowOne,
        /// Classes that the decoder tells apart: texts are hashed to that many.
        vocab_size: usize = 32000 => Rule::Positive; Network,
    }

    /// The vision transformer that each image stream has one of; the defaults are ViT-S/16.
    Backbone in "model.backbone" {
        /// Side of the square patches, in pixels.
        patch_size: usize = 16 => Rule::Positive; Network,
        /// Width of the patch embeddings; a multiple of `num_heads`.
        embed_dim: usize = 384 => Rule::Positive; Network,
        /// Transformer blocks.
        depth: usize = 12 => Rule::Positive; Network,
        /// Attention heads of a block.
        num_heads: usize = 6 => Rule::Positive; Network,
        /// Width of a block's hidden layer, as a multiple of `embed_dim`.
        mlp_ratio: f64 = 4.0 => Rule::AboveZero,
        /// Dropout after the positions and in the blocks' MLPs.
        dropout: f64 = 0.0 => Rule::BelowOne,
        /// Dropout of the attention weights.
        attention_dropout: f64 = 0.0 => Rule::BelowOne,
        /// Rate at which a block's attention or MLP branch is skipped in training, for each image by itself.
        stochastic_depth: f64 = 0.0 => Rule::BelowOne,
    }

    /// How the network is trained.
    Optimization in "optimization" {
        /// Passes over the training split.
        epochs: usize = 40 => Rule::Positive,
        /// The optimizer, with PyTorch's defaults for what is not set here.
        optimizer: OptimizerKind = adamw,
        /// Learning rate.
        lr: f64 = 1e-3 => Rule::NotNegative,
        /// Weight decay: decoupled in `adamw`, added to the gradient in `adam` and `sgd`.
        weight_decay: f64 = 0.0 => Rule::NotNegative,
        /// How the learning rate changes; it steps once an epoch.
        scheduler: SchedulerKind = none,
        /// `steplr`: epochs between two steps.
        scheduler_step_size: usize = 5 => Rule::Positive,
        /// `steplr`: factor of each step.
        scheduler_gamma: f64 = 0.5 => Rule::AboveZero,
        /// `cosine`: epochs from the highest learning rate to 0; it rises again after them.
        scheduler_tmax: usize = 10 => Rule::Positive,
        /// Share of the target's probability that is spread over all classes.
        label_smoothing: f64 = 0.1 => Rule::Share,
        /// Frames of a stream that go through its backbone at a time. Fewer take less memory and a second forward
        /// pass; `auto` is all of them where the memory budget allows, and fewer once a GPU's memory was full.
        frames_per_chunk: Chunk = auto; Computing,
        /// Batches of which the gradients make one step, as one batch of that many times the clips would.
        accumulate: usize = 1 => Rule::Positive,
        /// Largest norm of all gradients together, as `torch.nn.utils.clip_grad_norm_` cuts it.
        grad_clip: Option<f64> = unset ("off") => Rule::AboveZero,
        /// Steps in a row that may be left out because their loss or gradient is not a finite number; one more stops
        /// the run.
        skip_nonfinite_steps: usize = 0; Computing,
        /// What `run.precision = "amp"` stores activations in on a GPU; `auto` is bfloat16 where the GPU has it, else
        /// float16 with gradients scaled.
        amp_dtype: AmpDtype = auto,
    }

    /// Where and on what the experiment runs.
    Run in "run" {
        /// Folder for checkpoints, metrics and the resolved configuration.
        work_dir: PathBuf = required; Place,
        /// What to compute on. `cuda` falls back to the CPU, with a warning, where no GPU can be used.
        device: Device = cuda; Computing,
        /// What computes the network. `fused`: blocks of our own for the device. `candle`: plain Candle operations, the
        /// reference that the others are tested against. `auto`: `fused` for as much of the network as it covers.
        engine: EngineKind = auto; Computing,
        /// `amp`: mixed precision on a GPU with f32 master weights; a CPU computes in f32 either way.
        precision: Precision = amp,
        /// Seed of everything random: initial weights, order, sampling and dropout.
        seed: u64 = 1234,
        /// Threads that compute; 0 as unset. Results do not depend on it.
        threads: Option<usize> = unset ("`RAYON_NUM_THREADS`, or the cores at hand") => Rule::AtMost(MOST_THREADS); Place,
        /// Memory that `frames_per_chunk = "auto"` plans for; `auto` is three quarters of what the machine and its
        /// limits leave, or nine tenths of what a GPU has free.
        memory_budget: MemoryBudget = auto; Place,
        /// Whether to go on from the work folder's `last.pt`; the flag alone means `auto`.
        resume: Resume = never; Place,
        /// Checkpoint whose weights the run begins with. A run's own `config.toml` adds the file's SHA-1
        /// (`path@sha1:…`), and a file that holds something else is refused then.
        init_from: Option<InitFrom> = unset ("weights are drawn from `seed`"),
        /// How often `last.pt` is written beside the end of each epoch.
        checkpoint_every: CheckpointEvery = epoch; Place,
    }
}

choices! {
    /// What to do about a clip whose files vanish or break after the start of a run.
    OnBadClip {
        /// The run saves and stops, naming the file.
        Error = "error",
        /// Its batches do without it; it is counted and listed.
        Skip = "skip",
    }
}

choices! {
    /// An optimizer, as PyTorch defines it.
    OptimizerKind {
        /// Adam with decoupled weight decay.
        AdamW = "adamw",
        /// Adam, with the weight decay in the gradient.
        Adam = "adam",
        /// Gradient descent without momentum.
        Sgd = "sgd",
    }
}

choices! {
    /// A learning rate schedule, as PyTorch defines it.
    SchedulerKind {
        /// The learning rate stays.
        None = "none",
        /// `StepLR`: times `scheduler_gamma` every `scheduler_step_size` epochs.
        StepLr = "steplr",
        /// `CosineAnnealingLR` with `T_max` = `scheduler_tmax` and a lowest rate of 0.
        Cosine = "cosine",
    }
}

choices! {
    /// Whether a run goes on from the checkpoint in its folder.
    Resume {
        /// It starts anew, and never over another run.
        Never = "never",
        /// Where the folder holds a run it goes on from there; elsewhere it starts.
        Auto = "auto",
    }
}

choices! {
    /// What computes the network.
    EngineKind {
        /// Fused blocks where there are any, Candle's graph for the rest.
        Auto = "auto",
        /// Candle's graph alone.
        Candle = "candle",
        /// Fused blocks; what they cannot compute is refused.
        Fused = "fused",
    }
}

choices! {
    /// What the network computes in.
    Precision {
        /// Mixed precision on CUDA; f32 on a CPU.
        Amp = "amp",
        /// f32 everywhere.
        Fp32 = "fp32",
    }
}

choices! {
    /// What mixed precision stores activations in.
    AmpDtype {
        /// bfloat16 where the GPU has it, else float16.
        Auto = "auto",
        /// bfloat16.
        Bfloat16 = "bfloat16",
        /// float16, with gradients scaled.
        Float16 = "float16",
    }
}

/// What to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Device {
    /// The CPU.
    Cpu,
    /// The CUDA device of this number; `cuda` alone is number 0.
    Cuda(usize),
}

impl Device {
    /// Reads `cpu`, `cuda` or `cuda:N`, in any case; `None` for anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        match text.as_str() {
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:")?;
                let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
                // CUDA counts devices in an int.
                let number = number.parse::<i32>().ok().filter(|_| digits)?;
                usize::try_from(number).ok().map(Self::Cuda)
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::from_text(&text).ok_or_else(|| format!("unknown device {text:?}"))
    }
}

impl FieldType for Device {
    const KIND: Kind = Kind::Device;
    fn json(&self) -> serde_json::Value {
        self.to_string().into()
    }
}
