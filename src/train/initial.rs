//! The weights that a run begins with, where it does not draw them (`run.init_from`).

use std::path::Path;

use crate::checkpoint::{TensorData, Value, load, model_state};
use crate::config::{Experiment, InitFrom, Role, changes};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::input;
use crate::nn::Parameters;
use crate::train::state::set_parameters;

/// A checkpoint's weights, and which file they are of.
#[derive(Debug)]
pub struct Initial {
    from: InitFrom,
    model: Vec<(String, TensorData<'static>)>,
    /// The experiment that the checkpoint is of, where slt-run wrote it.
    config: Option<String>,
}

impl Initial {
    /// Reads the checkpoint that `from` names.
    ///
    /// # Errors
    /// A data error where it cannot be read, or does not hold what `from`'s digest says; both digests are named then.
    pub fn load(from: &InitFrom) -> Result<Self> {
        let value = load(&from.path)?;
        let config = value.get("config").and_then(Value::as_str).map(str::to_owned);
        let model = model_state(&from.path, value)?;
        let now = digest(&from.path)?;
        if let Some(was) = from.sha1.as_ref().filter(|&was| *was != now) {
            let path = from.path.display();
            return Err(Error::data(format!(
                "run.init_from {path} is not the file it was: its SHA-1 was {was} and is {now}"
            ))
            .hint(format!(
                "put the earlier file back, or begin with what it holds now: --init-from {path}"
            )));
        }
        Ok(Self { from: InitFrom { path: from.path.clone(), sha1: Some(now) }, model, config })
    }

    /// The file, with the digest of what it holds.
    #[must_use]
    pub fn from(&self) -> &InitFrom {
        &self.from
    }

    /// Sets all parameters of a network of the experiment `c`, strictly.
    ///
    /// # Errors
    /// A data error that names the file, and every key that is missing, left over or misshapen; or, where the shapes are
    /// the same, what made it another network.
    pub fn apply(&self, c: &Experiment, parameters: &Parameters) -> Result<()> {
        set_parameters(&self.from.path, &self.model, parameters)?;
        let Some(config) = &self.config else { return Ok(()) };
        // What cannot be read tells nothing about the weights, which are sound.
        let problems: Vec<Problem> = changes(config, c, |field| field.role == Role::Network)
            .unwrap_or_default()
            .into_iter()
            .map(|change| {
                let (key, path) = (change.key, self.from.path.display());
                let what = format!(
                    "{path} is of a network with {key} = {}; this one has {}",
                    change.from, change.to
                );
                Problem::new(what)
                    .hint(format!("the same weights are another function then: set {key} = {}", change.from))
            })
            .collect();
        Error::all(ErrorKind::Data, problems)
    }
}

/// The SHA-1 of the file at `path`, in hexadecimal digits.
///
/// # Errors
/// A data error where it cannot be read.
pub fn digest(path: &Path) -> Result<String> {
    let sha1 = input::sha1(path).map_err(|error| Error::io(ErrorKind::Data, "cannot read", path, &error))?;
    Ok(input::hexadecimal(&sha1.0))
}
