//! Weights, in whatever file they come: slt-run's checkpoints, other state dicts of PyTorch, safetensors.

use std::path::Path;

use super::safetensors::{Safetensors, short};
use super::state::model_state;
use super::torch_file::load;
use super::value::{TensorData, Value};
use crate::error::{Error, ErrorKind, Problem, Result};

/// The keys under which a file may have its state dict, the first that is there; DINO's has a teacher, which is the one to
/// take, and a student.
const STATE_DICTS: [&str; 6] = [OURS, "state_dict", "model_state_dict", "model", "teacher", "student"];

/// The key of slt-run's own checkpoints, of which each value must be a tensor.
const OURS: &str = "model_state";

/// What a wrapper for several GPUs puts before every name.
const WRAPPED: &str = "module.";

/// A file's tensors.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    /// By name, in the file's order.
    pub tensors: Vec<(String, TensorData<'static>)>,
    /// What else the file has, which is no weight: keys of a PyTorch file. Of slt-run's own checkpoints nothing is said.
    pub others: Vec<String>,
    /// Texts that slt-run has put beside the weights, by their keys.
    pub texts: Vec<(String, String)>,
}

impl Weights {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Kind `Data`, naming the file, where it is neither a PyTorch file with tensors nor a safetensors file.
    pub fn read(path: &Path) -> Result<Self> {
        let weights =
            if Safetensors::is_one(path).unwrap_or(false) { of_safetensors(path)? } else { of_torch(path)? };
        Ok(weights.unwrapped())
    }

    /// The text that slt-run has put beside the weights under `key`.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.texts.iter().find(|(name, _)| name == key).map(|(_, text)| text.as_str())
    }

    /// Without what a wrapper has put before all names.
    fn unwrapped(mut self) -> Self {
        if self.tensors.iter().all(|(name, _)| name.starts_with(WRAPPED)) {
            for (name, _) in &mut self.tensors {
                name.drain(..WRAPPED.len());
            }
        }
        self
    }
}

fn of_safetensors(path: &Path) -> Result<Weights> {
    const WHAT: &str = "the weights";
    const HINT: &str = "take another file of weights, or save this one anew";
    let mut file = Safetensors::open(path, WHAT, HINT)?;
    let all = file.read_all().map_err(|error| Error::io(ErrorKind::Data, "cannot read", path, &error))?;
    let mut weights = Weights::default();
    for (name, tensor) in all {
        let tensor = tensor.ok_or_else(|| {
            let problem = Problem::new(format!("cannot read {WHAT} {}", path.display()));
            let problem = problem.cause(format!("{} is of a type that PyTorch has not", short(&name)));
            Error::new(ErrorKind::Data, problem.hint(HINT))
        })?;
        weights.tensors.push((name, tensor));
    }
    Ok(weights)
}

fn of_torch(path: &Path) -> Result<Weights> {
    let value = load(path)?;
    let Value::Dict(items) = &value else { return of_checkpoint(path, value) };
    // What is called `model` may be a configuration, or a name.
    let has_tensor = |value: &Value| match value {
        Value::Dict(items) => items.iter().any(|(_, value)| matches!(value, Value::Tensor(_))),
        _ => false,
    };
    let is_one = |key: &&&str| value.get(key).is_some_and(|inner| **key == OURS || has_tensor(inner));
    let Some(key) = STATE_DICTS.iter().find(is_one) else {
        let are_tensors = items.iter().all(|(_, value)| matches!(value, Value::Tensor(_)));
        return if are_tensors && !items.is_empty() { bare(path, value) } else { of_checkpoint(path, value) };
    };
    if *key == OURS {
        return of_checkpoint(path, value);
    }
    let Value::Dict(items) = value else { return Ok(Weights::default()) };
    let (mut others, mut found) = (Vec::new(), Vec::new());
    for (name, value) in items {
        match name.as_str() {
            Some(name) if name == *key => {
                let Value::Dict(items) = value else { continue };
                for (name, value) in items {
                    match (name, value) {
                        (Value::Str(name), Value::Tensor(tensor)) => found.push((name, tensor)),
                        (Value::Str(name), _) => others.push(format!("{key}.{}", short(&name))),
                        (name, _) => others.push(format!("{} in {key}", name.describe())),
                    }
                }
            }
            Some(name) => others.push(short(name)),
            None => {}
        }
    }
    Ok(Weights { tensors: found, others, ..Weights::default() })
}

/// A dict of names and tensors, as `state_dict()` gives it.
fn bare(path: &Path, value: Value<'static>) -> Result<Weights> {
    let wrapped = Value::dict([(OURS, value)]);
    Ok(Weights { tensors: model_state(path, wrapped)?, ..Weights::default() })
}

/// A checkpoint as slt-run writes it.
fn of_checkpoint(path: &Path, value: Value<'static>) -> Result<Weights> {
    let (mut texts, mut others) = (Vec::new(), Vec::new());
    let is_ours = value.get("format_version").is_some();
    if let Value::Dict(items) = &value {
        for (key, value) in items {
            let Some(key) = key.as_str().filter(|key| *key != OURS) else { continue };
            others.extend((!is_ours).then(|| short(key)));
            texts.extend(value.as_str().map(|text| (key.to_owned(), text.to_owned())));
        }
    }
    Ok(Weights { tensors: model_state(path, value)?, others, texts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::save;
    use ::safetensors::tensor::{Dtype as Stored, TensorView};

    fn tensor(value: f32) -> Value<'static> {
        Value::Tensor(TensorData {
            dtype: super::super::Dtype::F32,
            shape: vec![1],
            data: value.to_le_bytes().to_vec().into(),
        })
    }

    fn names(value: &Value<'static>) -> Result<(Vec<String>, Vec<String>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.pth");
        save(&path, value).unwrap();
        let weights = Weights::read(&path)?;
        Ok((weights.tensors.into_iter().map(|(name, _)| name).collect(), weights.others))
    }

    #[test]
    fn state_dicts_are_found_wherever_they_are() {
        let state = |prefix: &str| {
            Value::dict([(format!("{prefix}a"), tensor(1.0)), (format!("{prefix}b"), tensor(2.0))])
        };
        let bare = names(&state("")).unwrap();
        assert_eq!(bare, (vec!["a".into(), "b".into()], Vec::<String>::new()));
        assert_eq!(names(&state("module.")).unwrap(), bare);
        for key in ["model_state", "state_dict", "model", "teacher"] {
            let value =
                Value::dict([("epoch", Value::Int(3)), (key, state("module.")), ("student", state("x."))]);
            let (found, others) = names(&value).unwrap();
            assert_eq!(
                (found, others),
                (bare.0.clone(), vec!["epoch".to_owned(), "student".to_owned()]),
                "{key}"
            );
        }
        // A prefix of some is a name.
        let mixed = Value::dict([("module.a", tensor(1.0)), ("b", tensor(2.0))]);
        assert_eq!(names(&mixed).unwrap().0, ["module.a", "b"]);
        for (value, says) in [
            (
                Value::dict([("a", tensor(1.0)), ("n", Value::Int(1))]),
                "`model_state` should be a dict of tensors",
            ),
            (Value::dict([("state_dict", Value::dict([("a", Value::Int(1))]))]), "not nothing"),
            (Value::dict([("model_state", Value::dict([("a", Value::Int(1))]))]), "has an int under `a`"),
            (Value::Int(1), "not a checkpoint's dict"),
        ] {
            let error = names(&value).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn what_is_no_weight_is_named_and_slt_run_s_own_is_not() {
        let state = || Value::dict([("a", tensor(1.0)), ("version", Value::Int(2))]);
        let value = Value::dict([("model", "vit".into()), ("state_dict", state())]);
        let (found, others) = names(&value).unwrap();
        assert_eq!(
            (found, others),
            (vec!["a".to_owned()], vec!["model".into(), "state_dict.version".into()])
        );
        let own = [("model_state", Value::dict([("a", tensor(1.0))])), ("format_version", Value::Int(1))];
        assert_eq!(names(&Value::dict(own)).unwrap(), (vec!["a".to_owned()], vec![]));
    }

    #[test]
    fn safetensors_are_known_by_what_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.pt");
        let bytes = [1.0_f32, 2.5].map(f32::to_le_bytes).concat();
        let view = |dtype| {
            TensorView::new(dtype, vec![2], &bytes[..if dtype == Stored::F32 { 8 } else { 4 }]).unwrap()
        };
        let file = ::safetensors::serialize(
            [("module.b", view(Stored::F32)), ("module.a", view(Stored::F16))],
            None,
        );
        std::fs::write(&path, file.unwrap()).unwrap();
        let weights = Weights::read(&path).unwrap();
        let found: Vec<_> =
            weights.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape.clone())).collect();
        assert_eq!(found.len(), 2);
        let b = weights.tensors.iter().find(|(name, _)| name == "b").unwrap();
        assert_eq!(b.1.to_f32().unwrap(), [1.0, 2.5]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 2]).unwrap();
        let error = Weights::read(&path).unwrap_err().to_string();
        assert!(error.contains("cut off") && error.contains("w.pt"), "{error}");
    }
}
