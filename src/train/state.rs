//! Between a state and a checkpoint: what is saved, and what another run's file may start from.

use std::path::Path;

use candle_core::{Tensor, Var};
use rayon::prelude::*;

use crate::checkpoint::{
    AdamMoments, AdamState, Checkpoint, GroupState, SgdState, TensorData, Value, link_or_copy, load,
    match_parameters, model_state, save_in, separate,
};
use crate::config::{BestMetric, Change, Edit, OptimizerKind};
use crate::data::Contents;
use crate::error::{ErrorKind, Problem};
use crate::nn::Parameters;
use crate::nn::parameters::with_slices;
use crate::observe::run_folder::{BEST, Best, LAST, RunFolder};
use crate::optim::gradients::GRAIN;
use crate::optim::{Group, Moments, Plateau};
use crate::train::TrainingState;
use crate::train::progress::Partial;
use crate::{Error, Result};

/// Writes `last.pt`: all that going on from here needs.
///
/// # Errors
/// Kind `Numbers` where a parameter or moment is not finite, so that what is on the disk stays healthy; kind `Run` where
/// the file cannot be written, or where the folder is another process's by now. The earlier `last.pt` is whole then.
pub fn save(state: &TrainingState, folder: &RunFolder) -> Result<()> {
    folder.still_held()?;
    let parameters = state.engine.host().parameters();
    let tensors: Vec<&Tensor> = parameters.iter().map(|(_, var)| var.as_tensor()).collect();
    with_slices(&tensors, |slices| {
        healthy(state, slices)?;
        let named = parameters.iter().zip(slices);
        let model = named.map(|((name, var), slice)| (name.to_owned(), TensorData::f32(var.dims(), slice)));
        let checkpoint = Checkpoint {
            epoch: state.progress.epoch,
            model: model.collect(),
            optimizer_state: optimizer_state(state),
            val_loss: state.progress.val_loss,
            extra: extra(state),
        };
        save_in(folder.handle(), LAST, &checkpoint.into_value())
    })??;
    folder.note_saved()
}

/// Makes `best.pt` what `last.pt` is, without writing it again: see [`crate::files::Folder::link_or_copy`].
///
/// # Errors
/// Kind `Run` where the disk fails; the earlier `best.pt` is whole then.
pub fn keep_as_best(folder: &RunFolder) -> Result<()> {
    folder.still_held()?;
    link_or_copy(folder.handle(), LAST, BEST)
}

/// Makes a file of its own of a `best.pt` that is one file with `last.pt`, so that whoever edits one of them in place
/// does not ruin the other.
///
/// # Errors
/// Kind `Run` where the disk fails: they are one file still.
pub fn separate_best(folder: &RunFolder) -> Result<()> {
    folder.still_held()?;
    folder.separate_epochs()?;
    let separated = separate(folder.handle(), LAST, BEST);
    // What fails after they are two files is of no account.
    if folder.handle().is_one_file(LAST, BEST) { separated } else { Ok(()) }
}

/// Makes up for a process that was killed between saving its best epoch and naming it `best.pt`, and for a `best.pt`
/// that is gone. What to say where its epoch cannot be had any more: the best of those that can takes its place.
///
/// # Errors
/// As [`keep_as_best`].
pub fn repair_best(state: &mut TrainingState, folder: &RunFolder) -> Result<Option<String>> {
    let progress = &mut state.progress;
    // What was saved inside an epoch has no validation loss that its weights could be known by.
    let is_between = progress.partial == Partial::default() && progress.val_loss.is_finite();
    let Some(best) = progress.best else { return Ok(None) };
    if is_between && best.epoch == progress.epoch {
        if !folder.handle().is_one_file(LAST, BEST) {
            keep_as_best(folder)?;
        }
        return Ok(None);
    }
    if folder.has_best() {
        return Ok(None);
    }
    let which = match best.epoch {
        0 => "the best epoch".to_owned(),
        epoch => format!("epoch {epoch}, the best"),
    };
    let gone = format!("{BEST} is gone, and with it {which} (val_loss={:.4})", best.val_loss);
    progress.forget_best();
    // Of the last epoch no more is known than its loss.
    if !is_between || state.best_metric != BestMetric::ValLoss {
        return Ok(Some(format!("{gone}: the next epoch takes its place, and better ones after it")));
    }
    let (now, val_loss) = (progress.epoch, progress.val_loss);
    progress.best = Some(Best { epoch: now, value: val_loss, val_loss, val_accuracy: None });
    keep_as_best(folder)?;
    Ok(Some(format!("{gone}: epoch {now}, the last one, takes its place, and better ones after it")))
}

/// Refuses to save numbers that no training can go on from.
fn healthy(state: &TrainingState, parameters: &[&[f32]]) -> Result<()> {
    let names = || state.engine.host().parameters().iter().map(|(name, _)| name);
    let moments =
        state.engine.host().optimizer.moments().iter().flat_map(|m| [m.first.as_slice(), &m.second]);
    let bad = |values: &[f32]| values.par_chunks(GRAIN).any(|part| part.iter().any(|v| !v.is_finite()));
    let sick = names().zip(parameters).find(|(_, values)| bad(values)).map(|(name, _)| name.to_owned());
    let sick = sick.or_else(|| {
        let moments_of = names().flat_map(|name| [name, name]);
        let found = moments_of.zip(moments).find(|(_, values)| bad(values));
        found.map(|(name, _)| format!("a moment of {name}"))
    });
    let Some(name) = sick else { return Ok(()) };
    let what = format!("{name} is not finite after step {}", state.progress.step);
    let problem = Problem::new(what).cause("nothing was saved: the last checkpoint is the one before");
    let hint = "lower optimization.lr or set optimization.grad_clip, and go on from the last checkpoint";
    Err(Error::new(ErrorKind::Numbers, problem.hint(hint)))
}

/// What resuming needs beside weights and moments.
fn extra(state: &TrainingState) -> Vec<(String, Value<'static>)> {
    let mut schedule = vec![
        ("last_epoch", Value::whole(state.schedule.steps())),
        ("lr", Value::Float(state.schedule.lr(state.progress.step))),
    ];
    if let Some(Plateau { best, bad_epochs, reductions }) = state.schedule.plateau() {
        schedule.extend(best.map(|best| ("best", Value::Float(best))));
        schedule.push(("num_bad_epochs", Value::whole(bad_epochs)));
        schedule.push(("reductions", Value::whole(reductions)));
    }
    let mut all = state.progress.to_values();
    let bad_clips = state.bad_clips.ids().iter().map(|(id, why)| (id.clone(), Value::Str(why.clone())));
    all.extend([
        ("bad_clips".to_owned(), Value::dict(bad_clips)),
        ("optimizer_steps".to_owned(), Value::whole(state.engine.host().optimizer.steps())),
        ("seed".to_owned(), Value::whole(state.seed)),
        ("scheduler_state".to_owned(), Value::dict(schedule)),
        ("dataset".to_owned(), Value::Str(state.dataset.clone())),
        ("files".to_owned(), Value::Str(state.files.clone())),
        ("contents".to_owned(), contents_value(&state.contents)),
        ("config".to_owned(), Value::Str(state.config())),
    ]);
    all.extend(state.decoder.saved().into_iter().map(|(key, text)| (key.to_owned(), Value::Str(text))));
    if !state.edits.is_empty() {
        all.push(("edits".to_owned(), Value::List(state.edits.iter().map(edit_value).collect())));
    }
    let chunk = state.engine.chunk_to_save();
    all.extend(chunk.map(|chunk| ("frames_per_chunk".to_owned(), Value::whole(chunk as u64))));
    // As PyTorch users save their GradScaler's.
    all.extend(state.engine.loss_scale().map(|scale| ("scaler_state".to_owned(), scale.to_value())));
    all
}

fn contents_value(contents: &Contents) -> Value<'static> {
    Value::dict([("clips", Value::Str(contents.digests())), ("bytes", Value::whole(contents.bytes))])
}

/// What a checkpoint says of the data's files; `None` where it is from before they were looked at.
#[must_use]
pub fn contents_from(value: &Value) -> Option<Contents> {
    let bytes = u64::try_from(value.get("bytes")?.as_int()?).ok()?;
    Contents::from_digests(value.get("clips")?.as_str()?, bytes)
}

fn edit_value(edit: &Edit) -> Value<'static> {
    let Edit { step, epoch, change: Change { key, from, to } } = edit.clone();
    let numbers = [("step", Value::whole(step)), ("epoch", Value::whole(epoch as u64))];
    let texts = [("key", key), ("from", from), ("to", to)].map(|(name, text)| (name, Value::Str(text)));
    Value::dict(numbers.into_iter().chain(texts))
}

/// An edit as a checkpoint has it; `None` for anything else.
#[must_use]
pub fn edit_from(value: &Value) -> Option<Edit> {
    let text = |name: &str| value.get(name)?.as_str().map(str::to_owned);
    let change = Change { key: text("key")?, from: text("from")?, to: text("to")? };
    let number = |name: &str| value.get(name)?.as_int();
    Some(Edit {
        step: u64::try_from(number("step")?).ok()?,
        epoch: usize::try_from(number("epoch")?).ok()?,
        change,
    })
}

/// The optimizer's `state_dict`. A group without parameters is none to PyTorch.
fn optimizer_state(state: &TrainingState) -> Value<'_> {
    let (optimizer, schedule) = (&state.engine.host().optimizer, &state.schedule);
    let groups = optimizer.groups();
    let rates = schedule.rates(state.progress.step);
    let all = groups.groups().iter().zip(rates).zip(schedule.base_rates());
    let group = |((group, lr), base): ((&Group, f64), f64)| GroupState {
        lr,
        weight_decay: group.weight_decay,
        initial_lr: (!schedule.is_constant()).then_some(base),
        parameters: group.members.len(),
    };
    let states = all.map(group).filter(|group| group.parameters > 0).collect();
    let order = groups.order();
    match optimizer.kind() {
        OptimizerKind::Sgd => SgdState {
            groups: states,
            momentum: optimizer.momentum(),
            momentum_buffers: order.map(|at| buffer(state, at)).collect(),
        }
        .into_value(),
        kind => AdamState {
            groups: states,
            betas: optimizer.betas().into(),
            eps: optimizer.eps(),
            decoupled: kind == OptimizerKind::AdamW,
            moments: order.map(|at| moments(state, at)).collect(),
        }
        .into_value(),
    }
}

/// Adam's moments of the parameter at `position`, if it trains.
fn moments(state: &TrainingState, position: usize) -> Option<AdamMoments<'_>> {
    let exp_avg_sq = tensor(state, position, |moments| &moments.second)?;
    let exp_avg = tensor(state, position, |moments| &moments.first)?;
    Some(AdamMoments { step: state.engine.host().optimizer.steps(), exp_avg, exp_avg_sq })
}

/// SGD's momentum of the parameter at `position`, once there is some.
fn buffer(state: &TrainingState, position: usize) -> Option<TensorData<'_>> {
    if state.engine.host().optimizer.steps() == 0 {
        None
    } else {
        tensor(state, position, |moments| &moments.first)
    }
}

/// A moment of the parameter at `position`, in its shape; none where it is empty.
fn tensor(
    state: &TrainingState,
    position: usize,
    of: impl Fn(&Moments) -> &Vec<f32>,
) -> Option<TensorData<'_>> {
    let host = state.engine.host();
    let values = host.optimizer.moments().get(position).map(of)?;
    let spec = host.network.blueprint().parameters().get(position)?;
    (spec.trains && values.len() == spec.elements()).then(|| TensorData::f32(spec.shape.as_slice(), values))
}

/// Sets all parameters to those of the checkpoint `path`, strictly.
///
/// # Errors
/// A data error that names the file, and every key that is missing, left over or misshapen.
pub fn init_from(path: &Path, parameters: &Parameters) -> Result<()> {
    set_parameters(path, &model_state(path, load(path)?)?, parameters)
}

/// Sets all parameters to `found`, strictly; `path` is for the messages.
///
/// # Errors
/// As [`init_from`].
pub fn set_parameters(path: &Path, found: &[(String, TensorData)], parameters: &Parameters) -> Result<()> {
    set_some(path, found, parameters, "")
}

/// As [`set_parameters`], of those whose names begin with `prefix`.
///
/// # Errors
/// As there.
pub fn set_some(
    path: &Path,
    found: &[(String, TensorData)],
    parameters: &Parameters,
    prefix: &str,
) -> Result<()> {
    let ours = || parameters.iter().filter(|(name, _)| name.starts_with(prefix));
    let shapes: Vec<_> = ours().map(|(name, var)| (name.to_owned(), var.dims().to_vec())).collect();
    let matched = match_parameters(path, &shapes, found)?;
    for ((name, var), tensor) in ours().zip(matched) {
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
