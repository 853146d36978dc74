//! The weights that a run begins with, where it does not draw them (`run.init_from`).

use std::path::Path;

use crate::checkpoint::{TensorData, Value, load, model_state};
use crate::config::{Experiment, Field, InitFrom, Role, changes};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::input;
use crate::model::DecoderKind;
use crate::model::decoder::TOKENIZER_SHA1;
use crate::nn::Parameters;
use crate::text::Tokenizer;
use crate::train::state::set_parameters;

/// A checkpoint's weights, and which file they are of.
#[derive(Debug)]
pub struct Initial {
    from: InitFrom,
    model: Vec<(String, TensorData<'static>)>,
    /// The experiment that the checkpoint is of, where slt-run wrote it.
    config: Option<String>,
    /// The SHA-1 of the tokenizer whose tokens its weights are for, where slt-run wrote it.
    tokenizer: Option<String>,
}

impl Initial {
    /// Reads the checkpoint that `from` names.
    ///
    /// # Errors
    /// A data error where it cannot be read, or does not hold what `from`'s digest says; both digests are named then.
    pub fn load(from: &InitFrom) -> Result<Self> {
        let value = load(&from.path)?;
        let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let (config, tokenizer) = (text("config"), text(TOKENIZER_SHA1));
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
        Ok(Self { from: InitFrom { path: from.path.clone(), sha1: Some(now) }, model, config, tokenizer })
    }

    /// The file, with the digest of what it holds.
    #[must_use]
    pub fn from(&self) -> &InitFrom {
        &self.from
    }

    /// Sets all parameters of the network of the experiment `c`, strictly.
    ///
    /// # Errors
    /// A data error that names the file, and every key that is missing, left over or misshapen; or, where the shapes are
    /// the same, what made it another network; or the tokenizer, where its tokens are others.
    pub fn apply(&self, c: &Experiment, decoder: &dyn DecoderKind, parameters: &Parameters) -> Result<()> {
        self.refuse_other_tokens(decoder)?;
        set_parameters(&self.from.path, &self.model, parameters)?;
        let Some(config) = &self.config else { return Ok(()) };
        // What the tokens are was compared already. What cannot be read tells nothing about the weights, which are sound.
        let is_of_network = |field: &Field| field.role == Role::Network && field.section != "tokenizer";
        let problems: Vec<Problem> = changes(config, c, is_of_network)
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

    /// The same rows of an embedding for other tokens would be no beginning.
    fn refuse_other_tokens(&self, decoder: &dyn DecoderKind) -> Result<()> {
        let (Some(was), Some(now)) = (&self.tokenizer, decoder.tokenizer().map(Tokenizer::sha1)) else {
            return Ok(());
        };
        if *was == now {
            return Ok(());
        }
        let path = self.from.path.display();
        let what = format!(
            "{path} is of a network with another tokenizer (SHA-1 {was}) than this one's (SHA-1 {now})"
        );
        Err(Error::data(what)
            .hint("set tokenizer.file to the tokenizer.json of the run that the checkpoint is of"))
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
