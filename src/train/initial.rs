//! The weights that a run begins with, where it does not draw them (`run.init_from`, `model.backbone.init`).

use std::path::Path;

use crate::checkpoint::{TensorData, Weights};
use crate::config::streams::image_streams;
use crate::config::{Experiment, Field, InitFrom, Role, changes};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::input;
use crate::model::decoder::TOKENIZER_SHA1;
use crate::model::{DecoderKind, pretrained};
use crate::nn::Parameters;
use crate::text::Tokenizer;
use crate::train::state::{set_parameters, set_some};

/// A checkpoint's weights, and which file they are of.
#[derive(Debug)]
pub struct Initial {
    from: InitFrom,
    /// Beside the weights, what slt-run writes: the experiment that they are of, and the SHA-1 of the tokenizer whose tokens
    /// they are for.
    weights: Weights,
}

impl Initial {
    /// Reads the checkpoint that `from` names.
    ///
    /// # Errors
    /// A data error where it cannot be read, or does not hold what `from`'s digest says; both digests are named then.
    pub fn load(from: &InitFrom) -> Result<Self> {
        let weights = Weights::read(&from.path)?;
        let from = pinned("run.init_from", "--init-from", from)?;
        Ok(Self { from, weights })
    }

    /// What the file holds beside weights.
    #[must_use]
    pub fn left_out(&self) -> &[String] {
        &self.weights.others
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
        set_parameters(&self.from.path, &self.weights.tensors, parameters)?;
        let Some(config) = self.weights.text("config") else { return Ok(()) };
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
        let (Some(was), Some(now)) =
            (self.weights.text(TOKENIZER_SHA1), decoder.tokenizer().map(Tokenizer::sha1))
        else {
            return Ok(());
        };
        if was == now {
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

/// What every backbone begins with (`model.backbone.init`).
#[derive(Debug)]
pub struct InitialBackbones {
    from: InitFrom,
    weights: Weights,
}

impl InitialBackbones {
    /// Reads the file that `from` names.
    ///
    /// # Errors
    /// As [`Initial::load`].
    pub fn load(from: &InitFrom) -> Result<Self> {
        let weights = Weights::read(&from.path)?;
        let from = pinned("model.backbone.init", "--set model.backbone.init=", from)?;
        Ok(Self { from, weights })
    }

    /// The file, with the digest of what it holds.
    #[must_use]
    pub fn from(&self) -> &InitFrom {
        &self.from
    }

    /// Sets the backbones of the network of the experiment `c`; what there is to say of the file.
    ///
    /// # Errors
    /// A data error that names the file and what of it does not fit.
    pub fn apply(&self, c: &Experiment, parameters: &Parameters) -> Result<Told> {
        let mut told = Told::default();
        let (path, b) = (&self.from.path, &c.model.backbone);
        for own in image_streams().filter_map(pretrained::own_name) {
            let found = pretrained::backbone(path, &self.weights, b, c.model.image_size, &own)?;
            let tensors: Vec<(String, TensorData)> = found
                .parameters
                .iter()
                .filter_map(|(name, values)| {
                    let name = format!("{own}.{name}");
                    let (_, var) = parameters.iter().find(|(other, _)| *other == name)?;
                    Some((name, TensorData::f32(var.dims(), values)))
                })
                .collect();
            set_some(path, &tensors, parameters, &format!("{own}."))?;
            told = Told { left_out: found.left_out, warnings: found.warnings };
        }
        Ok(told)
    }
}

/// What there is to say of a file of weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// What of it is not used.
    pub left_out: Vec<String>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// `from`, the value of the field `key`, with the digest of what its file holds now; `option` is how to take that.
///
/// # Errors
/// A data error where it cannot be read, or does not hold what `from`'s digest says; both digests are named then.
pub fn pinned(key: &str, option: &str, from: &InitFrom) -> Result<InitFrom> {
    let now = digest(&from.path)?;
    if let Some(was) = from.sha1.as_ref().filter(|&was| *was != now) {
        let path = from.path.display();
        let what = format!("{key} {path} is not the file it was: its SHA-1 was {was} and is {now}");
        let hint = format!("put the earlier file back, or begin with what it holds now: {option} {path}");
        return Err(Error::data(what).hint(hint));
    }
    Ok(InitFrom { path: from.path.clone(), sha1: Some(now) })
}

/// The SHA-1 of the file at `path`, in hexadecimal digits.
///
/// # Errors
/// A data error where it cannot be read.
pub fn digest(path: &Path) -> Result<String> {
    let sha1 = input::sha1(path).map_err(|error| Error::io(ErrorKind::Data, "cannot read", path, &error))?;
    Ok(input::hexadecimal(&sha1.0))
}
