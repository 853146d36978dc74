//! What a training checkpoint holds, as plain data: `epoch`, `model_state`, `optimizer_state`, `val_loss` and more.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::value::{Dtype, TensorData, Value};
use crate::error::{Error, ErrorKind, Problem, Result};

/// The version of the keys beside the four that PyTorch users know. Raised when an older reader would misread them.
///
/// 2: `position`, `best_epoch`, `dataset` and what else a run resumes from inside an epoch. 1: between epochs only.
pub const FORMAT_VERSION: i64 = 2;

const MODEL: &str = "model_state";
const KNOWN: [&str; 5] = ["epoch", MODEL, "optimizer_state", "val_loss", "format_version"];

/// What to do about a file that is no checkpoint.
const OTHER: &str =
    "take a file that slt-run saved, or torch.save({\"model_state\": model.state_dict()}, path)";

/// How many keys of a kind a message names before it only counts the rest.
const NAMED: usize = 10;

/// A training run after an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint<'a> {
    /// How many epochs are behind.
    pub epoch: usize,
    /// The parameters under their PyTorch names.
    pub model: Vec<(String, TensorData<'a>)>,
    /// As `optimizer.state_dict()` gives it: see [`super::optimizer`].
    pub optimizer_state: Value<'a>,
    /// The validation loss of that epoch.
    pub val_loss: f64,
    /// Whatever else resuming needs. The keys must differ from those above and from `format_version`.
    pub extra: Vec<(String, Value<'a>)>,
}

impl<'a> Checkpoint<'a> {
    /// The dict to save. `model_state` becomes a plain dict, which `load_state_dict` takes like an `OrderedDict`.
    #[must_use]
    pub fn into_value(self) -> Value<'a> {
        let model = Value::dict(self.model.into_iter().map(|(name, tensor)| (name, tensor.into())));
        let fixed = [
            ("epoch".to_owned(), Value::Int(i64::try_from(self.epoch).unwrap_or(i64::MAX))),
            (MODEL.to_owned(), model),
            ("optimizer_state".to_owned(), self.optimizer_state),
            ("val_loss".to_owned(), Value::Float(self.val_loss)),
            ("format_version".to_owned(), Value::Int(FORMAT_VERSION)),
        ];
        Value::dict(fixed.into_iter().chain(self.extra))
    }

    /// Takes a checkpoint apart that slt-run or a PyTorch script saved; `path` is for the messages.
    ///
    /// # Errors
    ///
    /// A data error that lists every missing or unusable key, or says that a newer slt-run wrote the file.
    pub fn from_value(path: &Path, value: Value<'a>) -> Result<Self> {
        check_version(path, &value)?;
        let mut problems = Vec::new();
        let mut need = |key: &str, what: &str, found: bool| {
            if !found {
                let has = value.get(key).map_or_else(|| "nothing".to_owned(), Value::describe);
                let what = format!("{}: `{key}` should be {what}, not {has}", path.display());
                problems.push(Problem::new(what).hint(OTHER));
            }
        };
        let epoch = value.get("epoch").and_then(Value::as_int).and_then(|n| usize::try_from(n).ok());
        need("epoch", "a count", epoch.is_some());
        let val_loss = value.get("val_loss").and_then(Value::as_number);
        need("val_loss", "a number", val_loss.is_some());
        let has_optimizer = matches!(value.get("optimizer_state"), Some(Value::Dict(_)));
        need("optimizer_state", "a dict", has_optimizer);
        Error::all(ErrorKind::Data, problems)?;

        let (model, mut rest) = split_model(path, value)?;
        let optimizer_state = take(&mut rest, "optimizer_state").unwrap_or(Value::None);
        rest.retain(|(key, _)| !KNOWN.contains(&key.as_str()));
        Ok(Self {
            epoch: epoch.unwrap_or(0),
            model,
            optimizer_state,
            val_loss: val_loss.unwrap_or(f64::NAN),
            extra: rest,
        })
    }
}

/// The parameters in a checkpoint, whatever else is in it: all that starting from another run's weights needs.
///
/// # Errors
///
/// A data error that names `path` and what `model_state` is instead of a dict of tensors.
pub fn model_state<'a>(path: &Path, value: Value<'a>) -> Result<Vec<(String, TensorData<'a>)>> {
    check_version(path, &value)?;
    Ok(split_model(path, value)?.0)
}

fn check_version(path: &Path, value: &Value) -> Result<()> {
    match value.get("format_version").map(Value::as_int) {
        None | Some(Some(0..=FORMAT_VERSION)) => Ok(()),
        Some(Some(newer)) if newer > FORMAT_VERSION => Err(Error::data(format!(
            "{} has checkpoint format {newer}; this slt-run knows up to {FORMAT_VERSION}",
            path.display()
        ))
        .hint("use the slt-run that wrote it, or a newer one")),
        Some(_) => {
            Err(Error::data(format!("{}: `format_version` should be a count", path.display())).hint(OTHER))
        }
    }
}

type Keyed<'a, T> = Vec<(String, T)>;

/// The model's tensors, and the other string keys.
fn split_model<'a>(
    path: &Path,
    value: Value<'a>,
) -> Result<(Keyed<'a, TensorData<'a>>, Keyed<'a, Value<'a>>)> {
    let Value::Dict(items) = value else {
        return Err(Error::data(format!(
            "{} holds {}, not a checkpoint's dict",
            path.display(),
            value.describe()
        ))
        .hint(OTHER));
    };
    let keyed = items.into_iter().filter_map(|(key, value)| match key {
        Value::Str(key) => Some((key, value)),
        _ => None,
    });
    let mut rest: Vec<_> = keyed.collect();
    let all_tensors = !rest.is_empty() && rest.iter().all(|(_, value)| matches!(value, Value::Tensor(_)));
    let model = match take(&mut rest, MODEL) {
        Some(Value::Dict(model)) => model,
        other => {
            let has = other.map_or_else(|| "nothing".to_owned(), |value| value.describe());
            let error =
                Error::data(format!("{}: `{MODEL}` should be a dict of tensors, not {has}", path.display()));
            let bare = "it seems to be a bare state_dict: save it as torch.save({\"model_state\": state_dict}, path)";
            return Err(error.hint(if all_tensors { bare } else { OTHER }));
        }
    };
    let mut tensors = Vec::with_capacity(model.len());
    for (key, value) in model {
        match (key, value) {
            (Value::Str(name), Value::Tensor(tensor)) => tensors.push((name, tensor)),
            (key, value) => {
                let name = key.as_str().map_or_else(|| key.describe(), shown);
                let what = format!("{}: `{MODEL}` has {} under `{name}`", path.display(), value.describe());
                return Err(Error::data(what).hint("it should map parameter names to tensors"));
            }
        }
    }
    Ok((tensors, rest))
}

fn take<'a>(items: &mut Vec<(String, Value<'a>)>, key: &str) -> Option<Value<'a>> {
    let index = items.iter().position(|(k, _)| k == key)?;
    Some(items.remove(index).1)
}

/// Finds the tensor of each parameter in `expected` (names and shapes), strictly: nothing may be missing, left over,
/// of another shape or of a type other than floating point.
///
/// # Errors
///
/// A data error with one problem for each of these four that occurs, naming the first ten keys and counting the rest.
pub fn match_parameters<'t, 'a>(
    path: &Path,
    expected: &[(String, Vec<usize>)],
    found: &'t [(String, TensorData<'a>)],
) -> Result<Vec<&'t TensorData<'a>>> {
    let by_name: HashMap<&str, &TensorData> =
        found.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let names: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    let (mut matched, mut missing, mut misshapen, mut mistyped) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (name, shape) in expected {
        match by_name.get(name.as_str()) {
            None => missing.push(format!("{name} {shape:?}")),
            Some(tensor) if tensor.shape != *shape => {
                misshapen.push(format!("{name}: {:?} in the file, {shape:?} in the model", tensor.shape));
            }
            Some(tensor) if !is_float(tensor.dtype) => mistyped.push(format!("{name}: {}", tensor.dtype)),
            Some(&tensor) => matched.push(tensor),
        }
    }
    let unexpected: Vec<_> = found
        .iter()
        .filter(|(name, _)| !names.contains(name.as_str()))
        .map(|(name, tensor)| format!("{name} {:?}", tensor.shape))
        .collect();

    let mut problems = Vec::new();
    for (what, keys) in [
        ("lacks parameters of the model", missing),
        ("has parameters that the model lacks", unexpected),
        ("has parameters of another shape", misshapen),
        ("has parameters that are not floating-point numbers", mistyped),
    ] {
        if !keys.is_empty() {
            problems.push(Problem::new(format!(
                "{} {what} ({}): {}",
                path.display(),
                keys.len(),
                first(&keys)
            )));
        }
    }
    if let Some(last) = problems.last_mut() {
        last.hint = Some("the weights must come from a model with the same [model] section".to_owned());
    }
    Error::all(ErrorKind::Data, problems).map(|()| matched)
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16)
}

/// `key` without control characters and at a length that fits a message.
fn shown(key: &str) -> String {
    key.escape_debug().take(200).collect()
}

/// The first few of `keys`, a line each, and how many more there are.
fn first(keys: &[String]) -> String {
    let mut lines: Vec<_> = keys.iter().take(NAMED).map(|key| shown(key)).collect();
    if keys.len() > NAMED {
        lines.push(format!("and {} more", keys.len() - NAMED));
    }
    format!("\n    {}", lines.join("\n    "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: [f32; 2] = [1.0, 2.0];

    fn path() -> &'static Path {
        Path::new("runs/last.pt")
    }

    fn checkpoint() -> Checkpoint<'static> {
        Checkpoint {
            epoch: 3,
            model: vec![("a.weight".into(), TensorData::f32([2], &ONE))],
            optimizer_state: Value::dict([("state", Value::Dict(vec![]))]),
            val_loss: 0.5,
            extra: vec![("seed".into(), Value::Int(7))],
        }
    }

    #[test]
    fn a_checkpoint_survives_the_dict() {
        let value = checkpoint().into_value();
        assert_eq!(value.get("format_version"), Some(&Value::Int(FORMAT_VERSION)));
        assert_eq!(Checkpoint::from_value(path(), value).unwrap(), checkpoint());
    }

    #[test]
    fn all_bad_keys_are_reported() {
        let value = Value::dict([("epoch", Value::from("three")), ("model_state", Value::Dict(vec![]))]);
        let error = Checkpoint::from_value(path(), value).unwrap_err();
        let text = error.to_string();
        assert_eq!((error.problems.len(), error.exit_code()), (3, 3), "{text}");
        assert!(text.contains("runs/last.pt: `epoch` should be a count, not a string"), "{text}");
        assert!(text.contains("`optimizer_state` should be a dict, not nothing"), "{text}");
    }

    #[test]
    fn a_newer_format_is_refused() {
        let newer = Checkpoint { extra: vec![], ..checkpoint() }.into_value();
        let Value::Dict(mut items) = newer else { unreachable!() };
        items.last_mut().unwrap().1 = Value::Int(FORMAT_VERSION + 1);
        let error = Checkpoint::from_value(path(), Value::Dict(items)).unwrap_err();
        assert!(error.to_string().contains("has checkpoint format 3; this slt-run knows up to 2"), "{error}");
    }

    #[test]
    fn weights_alone_are_enough_to_start_from() {
        let tensors = Value::dict([("a.weight", Value::from(TensorData::f32([2], &ONE)))]);
        let value = Value::dict([("model_state", tensors.clone()), ("args", Value::Opaque("x".into()))]);
        assert_eq!(model_state(path(), value).unwrap(), checkpoint().model);
        let bare = model_state(path(), tensors).unwrap_err();
        assert!(bare.to_string().contains("bare state_dict"), "{bare}");
        let list = model_state(path(), Value::List(vec![])).unwrap_err();
        assert!(list.to_string().contains("holds a list"), "{list}");
    }

    #[test]
    fn every_misfit_is_reported_at_once() {
        let mut expected: Vec<_> = (0..12).map(|i| (format!("gone.{i}"), vec![1])).collect();
        expected.extend([("a".to_owned(), vec![2]), ("b".to_owned(), vec![2, 1]), ("c".to_owned(), vec![1])]);
        let ints = TensorData { dtype: Dtype::I32, shape: vec![1], data: vec![0; 4].into() };
        let found = [
            ("c".to_owned(), ints),
            ("b".to_owned(), TensorData::f32([1, 2], &ONE)),
            ("a".to_owned(), TensorData::f32([2], &ONE)),
            ("extra".to_owned(), TensorData::scalar(0.0)),
        ];
        let error = match_parameters(path(), &expected, &found).unwrap_err();
        assert_eq!((error.kind, error.problems.len()), (ErrorKind::Data, 4));
        let text = error.to_string();
        for line in [
            "runs/last.pt lacks parameters of the model (12): \n    gone.0 [1]\n",
            "    gone.9 [1]\n    and 2 more\n",
            "has parameters that the model lacks (1): \n    extra []\n",
            "b: [1, 2] in the file, [2, 1] in the model",
            "c: i32",
        ] {
            assert!(text.contains(line), "{line:?} in\n{text}");
        }
        assert!(!text.contains("gone.10"));
    }

    #[test]
    fn tensors_come_in_the_model_s_order() {
        let found = [("b".to_owned(), TensorData::scalar(2.0)), ("a".to_owned(), TensorData::f32([2], &ONE))];
        let expected = [("a".to_owned(), vec![2]), ("b".to_owned(), vec![])];
        let matched = match_parameters(path(), &expected, &found).unwrap();
        assert_eq!(matched, [&found[1].1, &found[0].1]);
    }
}
