//! Between a trainer and a checkpoint: what is saved, and what another run's file may start from.

use std::path::Path;

use candle_core::{Tensor, Var};

use crate::checkpoint::optimizer::{AdamMoments, AdamState, SgdState};
use crate::checkpoint::{
    Checkpoint, TensorData, Value, link_or_copy, load, match_parameters, model_state, save,
};
use crate::config::{OptimizerKind, SchedulerKind};
use crate::nn::Parameters;
use crate::nn::parameters::with_slices;
use crate::observe::run_folder::RunFolder;
use crate::train::optimizer::{BETA1, BETA2, EPS};
use crate::train::{Optimizer, Trainer};
use crate::{Error, Result};

/// Writes `last.pt` after an epoch whose validation loss was `val_loss`, and makes `best.pt` the same file where it
/// was the `best` so far.
pub fn save_epoch(trainer: &Trainer, val_loss: f64, best: bool, folder: &RunFolder) -> Result<()> {
    let parameters = trainer.network.parameters();
    let tensors: Vec<&Tensor> = parameters.iter().map(|(_, var)| var.as_tensor()).collect();
    with_slices(&tensors, |slices| {
        let named = parameters.iter().zip(slices);
        let model = named.map(|((name, var), slice)| (name.to_owned(), TensorData::f32(var.dims(), slice)));
        let checkpoint = Checkpoint {
            epoch: trainer.progress.epoch,
            model: model.collect(),
            optimizer_state: optimizer_state(trainer),
            val_loss,
            extra: extra(trainer),
        };
        save(&folder.last(), &checkpoint.into_value())
    })??;
    if best { link_or_copy(&folder.last(), &folder.best()) } else { Ok(()) }
}

/// What resuming needs beside weights and moments.
fn extra(trainer: &Trainer) -> Vec<(String, Value<'static>)> {
    let int = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    let schedule = Value::dict([
        ("last_epoch", int(trainer.schedule.steps())),
        ("lr", Value::Float(trainer.schedule.lr())),
    ]);
    vec![
        ("step".to_owned(), int(trainer.progress.step)),
        ("seed".to_owned(), int(trainer.seed())),
        ("best_val_loss".to_owned(), Value::Float(trainer.progress.best_val_loss)),
        ("scheduler_state".to_owned(), schedule),
        ("config".to_owned(), Value::Str(trainer.config().to_owned())),
    ]
}

/// The optimizer's `state_dict`.
fn optimizer_state(trainer: &Trainer) -> Value<'_> {
    let (optimizer, parameters) = (&trainer.optimizer, trainer.network.parameters());
    let scheduled = trainer.schedule.kind() != SchedulerKind::None;
    let initial_lr = scheduled.then(|| trainer.schedule.base_lr());
    let (lr, weight_decay) = (trainer.schedule.lr(), optimizer.weight_decay());
    match optimizer.kind() {
        OptimizerKind::Sgd => SgdState {
            lr,
            momentum: 0.0,
            weight_decay,
            initial_lr,
            momentum_buffers: vec![None; parameters.len()],
        }
        .into_value(),
        kind => AdamState {
            lr,
            betas: (BETA1, BETA2),
            eps: EPS,
            weight_decay,
            decoupled: kind == OptimizerKind::AdamW,
            initial_lr,
            moments: moments(optimizer, parameters),
        }
        .into_value(),
    }
}

fn moments<'a>(optimizer: &'a Optimizer, parameters: &Parameters) -> Vec<Option<AdamMoments<'a>>> {
    let each = optimizer.moments().iter().zip(parameters.iter());
    each.map(|(moments, (_, var))| {
        Some(AdamMoments {
            step: optimizer.steps(),
            exp_avg: TensorData::f32(var.dims(), &moments.exp_avg),
            exp_avg_sq: TensorData::f32(var.dims(), &moments.exp_avg_sq),
        })
    })
    .collect()
}

/// Sets all parameters to those of the checkpoint `path`, strictly.
///
/// # Errors
/// A data error that names the file, and every key that is missing, left over or misshapen.
pub fn init_from(path: &Path, parameters: &Parameters) -> Result<()> {
    let found = model_state(path, load(path)?)?;
    let matched = match_parameters(path, &parameters.shapes(), &found)?;
    for ((name, var), tensor) in parameters.iter().zip(matched) {
        let values = tensor.to_f32()?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let what = format!("{}: {name} is {} at element {at}", path.display(), values[at]);
            return Err(Error::data(what).hint("start from a checkpoint whose training was healthy"));
        }
        set(var, values)?;
    }
    Ok(())
}

fn set(var: &Var, values: Vec<f32>) -> Result<()> {
    Ok(var.set(&Tensor::from_vec(values, var.dims(), var.device())?)?)
}
