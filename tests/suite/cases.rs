//! The network and its training against PyTorch's numbers: every case in `NUMERIC_CASES`, or those in `tests/data/cases` and
//! `tests/data/cases_translation`.
//!
//! A case is what `torch_peer.py cases` or `torch_translation_peer.py cases` writes: five training steps with all that is
//! needed to repeat them, and, of a network that translates, what its beam searches find. The tolerances are ten times how
//! far PyTorch in f32 is from itself in f64, or more.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use candle_core::{Device, Tensor};
use serde_json::Value;
use slt_run::checkpoint;
use slt_run::config::{
    self, Decoding, Experiment, LengthPenaltyRule, Optimization, OptimizerKind, SchedulerKind, TextDecoder,
};
use slt_run::data::{Batch, Pixels, Sizes};
use slt_run::engine::device::Compute;
use slt_run::engine::{self, Engine, Placed, Step};
use slt_run::model::{DecoderKind, decoder};
use slt_run::nn::{Parameters, Pass};
use slt_run::optim::Schedule;
use slt_run::train::state;

use crate::support;

pub const FIRST_LOGITS: f64 = 1e-5;
pub const GRADIENTS: f64 = 1e-4;
pub const LOSSES: f64 = 5e-5;
pub const FINAL_LOGITS: f64 = 1e-4;
pub const FINAL_PARAMETERS: f64 = 1e-3;
const SCORES: f64 = 1e-4;

#[test]
fn cases_repeat_pytorchs_training() {
    for case in all() {
        for compute in [Compute::Cpu, Compute::Graph(Device::Cpu)] {
            case.run(&compute);
        }
    }
}

/// The cases of `NUMERIC_CASES`, or of both folders below `tests/data` in the working directory, which cargo makes the
/// package's.
pub fn all() -> Vec<Case> {
    let usual = || vec!["tests/data/cases".into(), "tests/data/cases_translation".into()];
    let folders = std::env::var_os("NUMERIC_CASES").map_or_else(usual, |folder| vec![PathBuf::from(folder)]);
    let of = |folder: &PathBuf| -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut cases: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        cases.retain(|path| path.join("case.json").is_file());
        cases.sort();
        assert!(!cases.is_empty(), "{} holds no case", folder.display());
        cases
    };
    folders.iter().flat_map(of).map(|path| Case::open(&path)).collect()
}

/// What a peer wrote.
pub struct Case {
    pub path: PathBuf,
    pub json: Value,
    pub arrays: HashMap<String, (Vec<usize>, Vec<f32>)>,
    pub model: config::Model,
    pub optimization: Optimization,
}

impl Case {
    fn open(path: &Path) -> Self {
        let json: Value = serde_json::from_str(&fs::read_to_string(path.join("case.json")).unwrap()).unwrap();
        let (model, optimization) = (model(&json), optimization(&json));
        let arrays = read_npz(&path.join("arrays.npz"));
        Self { path: path.to_owned(), json, arrays, model, optimization }
    }

    /// The experiment that the case is of.
    pub fn experiment(&self) -> Experiment {
        support::experiment_of(self.model.clone(), self.optimization.clone(), &[])
    }

    /// The decoder that the case is of: of texts, it knows no more than how many tokens there are.
    pub fn decoder(&self) -> Rc<dyn DecoderKind> {
        let mut c = self.experiment();
        c.tokenizer.vocab_size = c.model.vocab_size;
        decoder::of_no_texts(&c)
    }

    pub fn batch(&self, step: usize) -> Placed {
        let part = |name: &str| &self.arrays[&format!("batch_{step}/{name}")];
        let (shape, targets) = part(if self.translates() { "tokens" } else { "target" });
        let length = targets.len() / shape[0];
        let sizes = Sizes::of(&self.model);
        let mut batch = Batch::new((0..shape[0]).collect(), sizes);
        let images = |name: &&str| Pixels::Normalised(part(name).1.clone());
        batch.images = ["face", "hand_l", "hand_r"].iter().map(images).collect();
        batch.pose.clone_from(&part("pose").1);
        batch.pad_mask = part("pad_mask").1.iter().map(|&valid| valid > 0.0).collect();
        let target = |numbers: &[f32]| numbers.iter().map(|&number| number as u32).collect();
        Placed::new(batch, targets.chunks(length).map(target).collect())
    }

    pub fn translates(&self) -> bool {
        self.model.decoder.kind == TextDecoder::Transformer
    }

    fn run(&self, compute: &Compute) {
        let name = format!("{} on {}", self.path.display(), compute.describe());
        let c = self.experiment();
        let mut engine = engine::with_decoder(&c, compute, self.decoder().as_ref()).unwrap();
        state::init_from(&self.path.join("init.pt"), engine.host().parameters()).unwrap();
        engine.push().unwrap();
        let mut schedule = Schedule::new(&self.optimization, engine.host().optimizer.groups());

        let found = support::logits(engine.as_mut(), &mut self.batch(0));
        check(&format!("{name}: first logits"), &found, &self.arrays["logits_0"].1, FIRST_LOGITS);

        let losses = numbers(&self.json["loss"]);
        // Those of a network that translates are without a scheduler.
        let rates = match self.json.get("lr_used") {
            Some(rates) => numbers(rates),
            None => vec![self.optimization.lr; losses.len()],
        };
        for (at, (expected, rate)) in losses.iter().zip(&rates).enumerate() {
            let (mut batch, mut step) = (self.batch(at), Step::of(1));
            engine.train(&mut batch, &Pass::training(0, at as u64), &mut step).unwrap();
            let at_step = at as u64;
            assert!((schedule.lr(at_step) - rate).abs() <= 1e-9 * rate, "{name}: rate of step {at}");
            let loss = step.loss().unwrap();
            let error = (loss - expected).abs() / expected.abs();
            assert!(error <= LOSSES, "{name}: loss {at} is {loss}, not {expected}");
            if at == 0 {
                let found = engine.gradients(&step).unwrap();
                let (key, worst) = self.gradients_off(engine.host().parameters(), &found);
                assert!(worst <= GRADIENTS, "{name}: the gradient of {key} is off by {worst:.2e}");
            }
            let pending = engine.update(step, &schedule.rates(at_step), None).unwrap();
            engine.outcome(pending).unwrap();
            // In the cases, an epoch is a step.
            schedule.end_epoch(at_step + 1, None);
        }

        let found = support::logits(engine.as_mut(), &mut self.batch(losses.len() - 1));
        check(&format!("{name}: last logits"), &found, &self.arrays["logits_final"].1, FINAL_LOGITS);
        engine.pull().unwrap();
        let (key, worst) = self.parameters_off(engine.host().parameters());
        assert!(worst <= FINAL_PARAMETERS, "{name}: {key} is off by {worst:.2e}");

        state::init_from(&self.path.join("final.pt"), engine.host().parameters()).unwrap();
        engine.push().unwrap();
        for search in self.json["searches"].as_array().into_iter().flatten() {
            self.search(&name, search, engine.as_mut());
        }
    }

    /// The same hypotheses in the same order, with the same scores.
    fn search(&self, name: &str, search: &Value, engine: &mut dyn Engine) {
        let count = |key: &str| search[key].as_u64().unwrap() as usize;
        let decoding = Decoding {
            beam_size: count("beam_size"),
            length_penalty: search["length_penalty"].as_f64().unwrap(),
            length_penalty_rule: match search["length_penalty_rule"].as_str().unwrap() {
                "gnmt" => LengthPenaltyRule::Gnmt,
                _ => LengthPenaltyRule::Length,
            },
            max_length: count("max_length"),
            min_length: count("min_length"),
            no_repeat_ngram: count("no_repeat_ngram"),
            n_best: count("beam_size"),
        };
        let found = engine.translate(&mut self.batch(count("of_batch")), &decoding).unwrap();
        let clips = search["clips"].as_array().unwrap();
        assert_eq!(found.len(), clips.len());
        for (clip, (found, expected)) in found.iter().zip(clips).enumerate() {
            let name = format!("{name}, {decoding:?}, clip {clip}");
            let expected = expected.as_array().unwrap();
            assert_eq!(found.len(), expected.len(), "{name}");
            for (found, expected) in found.iter().zip(expected) {
                let tokens: Vec<u32> =
                    numbers(&expected["tokens"]).iter().map(|&token| token as u32).collect();
                assert_eq!(found.tokens, tokens, "{name}");
                let score = expected["score"].as_f64().unwrap();
                assert!((found.score - score).abs() <= SCORES, "{name}: {} is not {score}", found.score);
            }
        }
    }

    /// The parameter whose gradient in the first step is off the most, and by how much.
    pub fn gradients_off(&self, parameters: &Parameters, gradients: &[Vec<f32>]) -> (String, f64) {
        assert_eq!(gradients.len(), parameters.len());
        worst(parameters.iter().zip(gradients).map(|((key, _), gradient)| {
            let expected = &self.arrays[&format!("grad_0/{key}")].1;
            (key, off(&without_key(key, gradient), &without_key(key, expected)))
        }))
    }

    /// The parameter that is off the most after the last step, and by how much.
    pub fn parameters_off(&self, parameters: &Parameters) -> (String, f64) {
        let path = self.path.join("final.pt");
        let expected = checkpoint::model_state(&path, checkpoint::load(&path).unwrap()).unwrap();
        assert_eq!(expected.len(), parameters.len());
        worst(parameters.iter().zip(&expected).map(|((key, var), (expected_key, expected))| {
            assert_eq!(key, expected_key);
            let expected = without_key(key, &expected.to_f32().unwrap());
            (key, off(&without_key(key, &values(var.as_tensor())), &expected))
        }))
    }
}

fn worst<'a>(all: impl Iterator<Item = (&'a str, f64)>) -> (String, f64) {
    let (key, off) = all.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    (key.to_owned(), off)
}

/// Leaves out the key third of an `in_proj_bias`: its true gradient is zero, and Adam moves it by rounding noise.
fn without_key(name: &str, values: &[f32]) -> Vec<f32> {
    if !name.ends_with("in_proj_bias") {
        return values.to_vec();
    }
    let third = values.len() / 3;
    [&values[..third], &values[2 * third..]].concat()
}

/// Checks [`off`].
pub fn check(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let off = off(found, expected);
    assert!(off <= tolerance, "{what}: off by {off:.2e}");
}

/// The norm of the difference over the norm.
pub fn off(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let norm = expected.iter().map(|&x| square(f64::from(x))).sum::<f64>().sqrt();
    let pairs = found.iter().zip(expected);
    let difference = pairs.map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum::<f64>().sqrt();
    // What is not a number is off.
    if difference.is_finite() { difference / norm.max(1e-30) } else { f64::INFINITY }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn model(case: &Value) -> config::Model {
    let count = |json: &Value, key: &str| json[key].as_u64().unwrap() as usize;
    let (json, decoder) = (&case["model"], &case["decoder"]);
    let backbone = &json["backbone"];
    config::Model {
        image_size: count(backbone, "image_size"),
        sequence_length: count(json, "sequence_length"),
        projector_dim: count(json, "projector_dim"),
        d_model: count(json, "d_model"),
        pose_landmarks: count(json, "pose_landmarks"),
        temporal_nhead: count(json, "temporal_nhead"),
        temporal_layers: count(json, "temporal_layers"),
        temporal_dim_feedforward: count(json, "temporal_dim_feedforward"),
        temporal_dropout: json["temporal_dropout"].as_f64().unwrap(),
        vocab_size: count(json, "vocab_size"),
        backbone: config::Backbone {
            patch_size: count(backbone, "patch_size"),
            embed_dim: count(backbone, "embed_dim"),
            depth: count(backbone, "depth"),
            num_heads: count(backbone, "num_heads"),
            mlp_ratio: backbone["mlp_ratio"].as_f64().unwrap(),
            ..config::Backbone::default()
        },
        decoder: if decoder.is_null() {
            config::Decoder::default()
        } else {
            config::Decoder {
                kind: TextDecoder::Transformer,
                layers: count(decoder, "layers"),
                nhead: count(decoder, "nhead"),
                dim_feedforward: count(decoder, "dim_feedforward"),
                dropout: decoder["dropout"].as_f64().unwrap(),
                tied: decoder["tied"].as_bool().unwrap(),
            }
        },
        ..config::Model::default()
    }
}

fn optimization(json: &Value) -> Optimization {
    Optimization {
        epochs: 1,
        optimizer: match json["optimizer"].as_str().unwrap() {
            "adamw" => OptimizerKind::AdamW,
            "adam" => OptimizerKind::Adam,
            _ => OptimizerKind::Sgd,
        },
        lr: json["lr"].as_f64().unwrap(),
        weight_decay: json["weight_decay"].as_f64().unwrap(),
        scheduler: match json["scheduler"].as_str() {
            Some("steplr") => SchedulerKind::StepLr,
            Some("cosine") => SchedulerKind::Cosine,
            _ => SchedulerKind::None,
        },
        scheduler_step_size: json["scheduler_step_size"].as_u64().unwrap_or(1) as usize,
        scheduler_gamma: json["scheduler_gamma"].as_f64().unwrap_or(1.0),
        scheduler_tmax: json["scheduler_tmax"].as_u64().unwrap_or(1) as usize,
        label_smoothing: json["label_smoothing"].as_f64().unwrap(),
        ..Optimization::default()
    }
}

/// Every array of an npz, as f32.
pub fn read_npz(path: &Path) -> HashMap<String, (Vec<usize>, Vec<f32>)> {
    let mut zip = zip::ZipArchive::new(File::open(path).unwrap()).unwrap();
    let mut arrays = HashMap::new();
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).unwrap();
        let name = entry.name().unwrap().trim_end_matches(".npy").to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let npy = npyz::NpyFile::new(bytes.as_slice()).unwrap();
        let shape: Vec<usize> = npy.shape().iter().map(|&n| n as usize).collect();
        assert!(npy.order() == npyz::Order::C || shape.len() < 2, "{name} is in Fortran order");
        let npyz::DType::Plain(dtype) = npy.dtype() else { panic!("{name} is a structure") };
        let values = match (dtype.type_char(), dtype.num_bytes()) {
            (npyz::TypeChar::Float, Some(4)) => npy.into_vec::<f32>().unwrap(),
            (npyz::TypeChar::Float, Some(2)) => {
                npy.into_vec::<half::f16>().unwrap().into_iter().map(half::f16::to_f32).collect()
            }
            (npyz::TypeChar::Int, Some(8)) => {
                npy.into_vec::<i64>().unwrap().into_iter().map(|v| v as f32).collect()
            }
            (npyz::TypeChar::Bool, _) => {
                npy.into_vec::<bool>().unwrap().into_iter().map(|v| f32::from(u8::from(v))).collect()
            }
            other => panic!("{name} has dtype {other:?}"),
        };
        arrays.insert(name, (shape, values));
    }
    arrays
}
