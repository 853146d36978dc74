//! Every section and field of the experiment: what it is, its type, its default and which values can work.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use super::auto::{Chunk, MemoryBudget};
use super::define::{Field, FieldType, Kind, Preset, Role, Rule, Section, choices, sections};
use super::groups::{Freeze, ParameterGroup};
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
    /// The section `[tokenizer]`.
    pub tokenizer: Tokenizer,
    /// The section `[decoding]`.
    pub decoding: Decoding,
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
        /// CSV with the `video_id`s of the test split. Training never looks at it.
        test_index: Option<PathBuf> = unset ("there is none"); Data,
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
        /// Folder that keeps the features of frozen backbones, so that each frame goes through them once;
        /// `model.backbone.freeze` must be `all`.
        feature_cache: Option<PathBuf> = unset ("off") ; Place,
        /// What `feature_cache` stores numbers as.
        feature_dtype: FeatureDtype = float16; Place,
        /// Folder of features that were made elsewhere, `<video_id>.safetensors` with a tensor (frames, width) for each
        /// image stream. No images are read then, and there are no backbones.
        features_dir: Option<PathBuf> = unset ("images are read"); Data,
        /// Folder for TensorBoard's event files; `auto` is the folder `tensorboard` in `run.work_dir`.
        tensorboard: Option<EventFolder> = unset ("off"); Place,
    }

    /// The network, but for the backbones and the text decoder.
    Model in "model" with backbone: Backbone, decoder: Decoder {
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
        /// Classes that the decoder `stub` tells apart: texts are hashed to that many.
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
        /// What is added to the variance in each `LayerNorm`: 1e-6 in timm's and DINO's networks.
        layer_norm_eps: f64 = 1e-5 => Rule::AboveZero; Network,
        /// File of weights that each backbone begins with: timm's or DINO's (`.safetensors`, `.pth`) or a network of
        /// slt-run. A run's own `config.toml` adds the file's SHA-1, as with `run.init_from`.
        init: Option<InitFrom> = unset ("weights are drawn from `run.seed`"),
        /// What of each backbone does not train: nothing, all of it, or patch embedding, class token, positions and so many
        /// first blocks. It gets no gradient and drops nothing.
        freeze: Freeze = none,
    }

    /// What makes a text of the encoded frames. All but `kind` is for `transformer` alone; its width is `model.d_model`.
    Decoder in "model.decoder" {
        /// `stub`: one class a clip, of those that texts are hashed to. `transformer`: a pre-norm transformer decoder that
        /// writes the text token by token.
        kind: TextDecoder = stub; Network,
        /// Layers.
        layers: usize = 3 => Rule::Positive; Network,
        /// Attention heads; a divisor of `model.d_model`.
        nhead: usize = 8 => Rule::Positive; Network,
        /// Width of the feed-forward part of a layer.
        dim_feedforward: usize = 2048 => Rule::Positive; Network,
        /// Dropout in the decoder.
        dropout: f64 = 0.1 => Rule::BelowOne,
        /// Whether the logits are by the embedding's weight; otherwise `lm_head` has one of its own.
        tied: bool = true; Network,
    }

    /// The tokens that texts are made of, for the decoder `transformer`.
    Tokenizer in "tokenizer" {
        /// `unigram`, `bpe`: pieces of words. `word`: words, split at white space. `char`: characters.
        kind: TokenizerKind = unigram; Network,
        /// The most tokens, `<pad>`, `<bos>`, `<eos>` and `<unk>` among them.
        vocab_size: usize = 8000 => Rule::Positive; Network,
        /// How often a token must occur in the training texts.
        min_frequency: usize = 1 => Rule::Positive; Network,
        /// Whether capitals become small letters. References of figures keep theirs.
        lowercase: bool = false; Network,
        /// A Hugging Face `tokenizer.json` to take; the other fields of this section do nothing then.
        file: Option<PathBuf> = unset ("one is trained on the texts of the training split"); Data,
    }

    /// How texts are searched for. Training depends on none of it.
    Decoding in "decoding" {
        /// Hypotheses that are followed side by side; 1 is greedy.
        beam_size: usize = 5 => Rule::UpTo(1000); Evaluation,
        /// The exponent `a` of the length penalty that a hypothesis's summed log-probability is divided by; 0 for none.
        length_penalty: f64 = 1.0; Evaluation,
        /// The length penalty of `n` tokens, `<eos>` counted. `gnmt`: `((5 + n) / 6)^a`; `length`: `n^a`.
        length_penalty_rule: LengthPenaltyRule = gnmt; Evaluation,
        /// The most tokens of a hypothesis, `<eos>` counted.
        max_length: usize = 128 => Rule::Positive; Evaluation,
        /// The fewest tokens of a hypothesis before `<eos>`.
        min_length: usize = 0; Evaluation,
        /// Length of the sequences of tokens of which a hypothesis has none twice; 0 for no such rule.
        no_repeat_ngram: usize = 0; Evaluation,
        /// Hypotheses of each clip that are written, the best first; at most `beam_size`.
        n_best: usize = 1 => Rule::UpTo(1000); Evaluation,
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
        /// `adam`, `adamw`: the decay of the first and of the second moment.
        betas: [f64; 2] = [0.9, 0.999] => Rule::BelowOne,
        /// `adam`, `adamw`: what is added to the root of the second moment.
        eps: f64 = 1e-8 => Rule::NotNegative,
        /// `sgd`: how much of the step before is kept.
        momentum: f64 = 0.0 => Rule::BelowOne,
        /// Parameters that train otherwise than the rest: `match`, a glob over their names, with `lr` or `lr_factor`,
        /// `weight_decay`, or `freeze`. The first group that matches a parameter counts.
        groups: Vec<ParameterGroup> = [],
        /// Training steps over which the learning rate rises from 0 to its first value, before any scheduler.
        warmup_steps: usize = 0,
        /// How the learning rate changes; it steps once an epoch.
        scheduler: SchedulerKind = none,
        /// `steplr`: epochs between two steps.
        scheduler_step_size: usize = 5 => Rule::Positive,
        /// `steplr`, `plateau`: factor of each step.
        scheduler_gamma: f64 = 0.5 => Rule::AboveZero,
        /// `cosine`: epochs from the highest learning rate to 0; it rises again after them.
        scheduler_tmax: usize = 10 => Rule::Positive,
        /// `plateau`: epochs without a better `best_metric` that are borne before a step.
        scheduler_patience: usize = 10,
        /// `plateau`: by what share `best_metric` must be better than the best so far to count as better.
        scheduler_threshold: f64 = 1e-4 => Rule::NotNegative,
        /// `plateau`: the lowest learning rate.
        min_lr: f64 = 0.0 => Rule::NotNegative,
        /// Share of the target's probability that is spread over all classes or tokens.
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
        /// What `best.pt` is the best by: the lowest `val_loss` or `val_wer`, the highest `val_accuracy`, `val_bleu` or
        /// `val_chrf`. The last three need `run.evaluate_every`.
        best_metric: BestMetric = val_loss,
        /// Epochs without a better `best_metric` after which the run ends as finished.
        early_stopping: Option<usize> = unset ("off") => Rule::Positive,
        /// Epochs whose checkpoints are kept, the last ones: where it is more than 1, as `epoch_N.pt` beside `last.pt`.
        keep_checkpoints: usize = 1 => Rule::Positive; Place,
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
        /// `amp`: mixed precision on a GPU with f32 master weights; a CPU computes in f32. `bf16`: products of bfloat16
        /// numbers with sums, master weights and all else in f32, on a GPU or a CPU with AVX512-BF16. `fp32`: f32 everywhere.
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
        /// Epochs from one translation of the validation split to the next while the run trains; its BLEU, chrF and WER are
        /// in the metrics of these epochs.
        evaluate_every: Option<usize> = unset ("never while it trains") => Rule::Positive; Evaluation,
    }
}

choices! {
    /// What makes a text of the encoded frames.
    TextDecoder {
        /// The documented stub: one class a clip.
        Stub = "stub",
        /// A transformer decoder over tokens.
        Transformer = "transformer",
    }
}

choices! {
    /// What the tokens of texts are.
    TokenizerKind {
        /// Pieces of words that make the training texts most probable.
        Unigram = "unigram",
        /// Pieces of words by byte-pair encoding, over characters.
        Bpe = "bpe",
        /// Words, split at white space.
        Word = "word",
        /// Characters.
        Char = "char",
    }
}

choices! {
    /// What a hypothesis's summed log-probability is divided by, for `n` tokens and the exponent `a`.
    LengthPenaltyRule {
        /// `((5 + n) / 6)^a`, as in Google's neural machine translation system (Wu et al. 2016).
        Gnmt = "gnmt",
        /// `n^a`.
        Length = "length",
    }
}

choices! {
    /// What the best epoch is the best by.
    BestMetric {
        /// The lowest validation loss.
        ValLoss = "val_loss",
        /// The highest share of right predictions.
        ValAccuracy = "val_accuracy",
        /// The highest BLEU of the validation split's translations.
        ValBleu = "val_bleu",
        /// Their highest chrF.
        ValChrf = "val_chrf",
        /// Their lowest word error rate.
        ValWer = "val_wer",
    }
}

impl BestMetric {
    /// Whether more of it is better.
    #[must_use]
    pub fn higher_is_better(self) -> bool {
        matches!(self, Self::ValAccuracy | Self::ValBleu | Self::ValChrf)
    }
}

choices! {
    /// What cached features are stored as.
    FeatureDtype {
        /// Half precision: half the disk, and losses within 0.01.
        Float16 = "float16",
        /// Single precision: as without a cache, to the bit.
        Float32 = "float32",
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
        /// Gradient descent, with `momentum`.
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
        /// `ReduceLROnPlateau`: times `scheduler_gamma` where `best_metric` gets no better.
        Plateau = "plateau",
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
        /// Products of bfloat16 numbers, on GPUs and CPUs that have them; f32 on others.
        Bf16 = "bf16",
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
