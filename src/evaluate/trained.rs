//! A trained network, from its checkpoint alone.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::checkpoint::{Checkpoint, TensorData, Value, load};
use crate::config::{self, Experiment, Layers, Resolved, Setting};
use crate::engine::device::Compute;
use crate::engine::{self, Engine, memory};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::model::DecoderKind;
use crate::model::decoder::{self, Texts};
use crate::observe::run_folder::{BEST, LAST};
use crate::train::initial;
use crate::train::state::set_parameters;

/// A checkpoint of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckpointChoice {
    /// `best.pt`.
    Best,
    /// `last.pt`.
    Last,
    /// This file.
    File(PathBuf),
}

/// Where a trained network is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// The folder beside which its evaluations go: the run's, or the checkpoint's own.
    pub folder: PathBuf,
    /// Whether the folder is a run's with an experiment file.
    pub is_run: bool,
}

impl Place {
    /// Finds the checkpoint of `run`, which is a run's folder or a checkpoint itself.
    ///
    /// # Errors
    /// Of kind `Config` where there is none.
    pub fn find(run: &Path, choice: &CheckpointChoice) -> Result<Self> {
        if !run.is_dir() {
            if !run.exists() {
                let problem = Problem::new(format!("there is no run and no checkpoint {}", run.display()));
                return Err(Error::new(
                    ErrorKind::Config,
                    problem.hint("give a run's folder, or a checkpoint's path"),
                ));
            }
            let folder = crate::files::folder_of(run).to_owned();
            return Ok(Self { checkpoint: run.to_owned(), folder, is_run: false });
        }
        let is_run = run.join("run.json").exists() && run.join("config.toml").exists();
        let found = |checkpoint| Ok(Self { checkpoint, folder: run.to_owned(), is_run });
        let name = match choice {
            CheckpointChoice::File(file) => return found(file.clone()),
            CheckpointChoice::Best => BEST,
            CheckpointChoice::Last => LAST,
        };
        let path = run.join(name);
        if path.exists() {
            return found(path);
        }
        let there = [BEST, LAST].into_iter().find(|other| run.join(other).exists());
        let problem = Problem::new(match (there, is_run) {
            (Some(_), _) => format!("the run in {} has no {name}", run.display()),
            (None, true) => format!("the run in {} has no checkpoint yet", run.display()),
            (None, false) => format!("{} holds no run and no {name}", run.display()),
        });
        Err(Error::new(
            ErrorKind::Config,
            match there {
                Some(LAST) => problem.hint("--checkpoint last takes last.pt"),
                Some(_) => problem.hint("--checkpoint best takes best.pt"),
                None if is_run => problem.hint("one is written at the end of its first epoch"),
                None => problem.hint("give a run's folder, or a checkpoint's path"),
            },
        ))
    }
}

/// A trained network and the experiment that it is of.
#[derive(Debug)]
pub struct Trained {
    /// The checkpoint.
    pub checkpoint: PathBuf,
    /// The SHA-1 of the checkpoint, in hexadecimal digits.
    pub sha1: String,
    /// Epochs that it was trained for.
    pub epoch: usize,
    model: Vec<(String, TensorData<'static>)>,
    extra: Vec<(String, Value<'static>)>,
}

/// The sections that make a network what it is; a checkpoint's are never changed.
const OF_NETWORK: [&str; 3] = ["model", "tokenizer", "optimization"];

fn is_of_network(key: &str) -> bool {
    key.split('.').next().is_some_and(|section| OF_NETWORK.contains(&section))
}

impl Trained {
    /// Reads a checkpoint.
    ///
    /// # Errors
    /// Of kind `Data`, with the file, where it is no checkpoint.
    pub fn load(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::from_value(path, load(path)?)?;
        let sha1 = initial::digest(path)?;
        let Checkpoint { epoch, model, extra, .. } = checkpoint;
        Ok(Self { checkpoint: path.to_owned(), sha1, epoch, model, extra })
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.extra.iter().find(|(name, _)| name == key).and_then(|(_, value)| value.as_str())
    }

    /// The experiment that it is of, with what `asked` puts on top: paths, decoding and the device. The network is as in
    /// the checkpoint; of the environment, what would be the network's is left out. A run's folder says where its data are
    /// now.
    ///
    /// # Errors
    /// Of kind `Config` where `asked` would change the network, or something does not fit; of kind `Data` where the
    /// checkpoint does not say what it is of.
    pub fn resolve(&self, place: &Place, asked: &Layers) -> Result<Resolved> {
        let foreign = asked.settings.iter().filter(|setting| is_of_network(&setting.key));
        let problems = foreign.map(|Setting { key, origin, .. }| {
            Problem::new(format!("{origin}: {key} is as in the checkpoint")).hint(format!(
                "a trained network is not changed: leave it out, or train another one with {key}"
            ))
        });
        Error::all(ErrorKind::Config, problems.collect())?;
        let path = self.checkpoint.display().to_string();
        let config = self.text("config").ok_or_else(|| {
            Error::data(format!("{path} does not say which experiment it is of")).hint(
                "only a checkpoint that slt-run wrote does: begin a run with it (--init-from), which leaves one",
            )
        })?;
        let mut presets = config::saved_settings(config, &path)
            .map_err(|why| Error::data(format!("{path}: `config` cannot be read")).cause(why))?;
        let of_network: Vec<Setting> =
            presets.iter().filter(|setting| is_of_network(&setting.key)).cloned().collect();
        let key = "run.work_dir".to_owned();
        presets.push(Setting { key, value: place.folder.display().to_string(), origin: path });
        let is_free = |(name, _): &&(std::ffi::OsString, std::ffi::OsString)| {
            let section = name.to_str().and_then(|name| name.strip_prefix("SLT_")?.split("__").next());
            section.is_none_or(|section| !is_of_network(&section.to_ascii_lowercase()))
        };
        config::resolve(&Layers {
            files: place.is_run.then(|| place.folder.clone()).into_iter().collect(),
            presets,
            env: asked.env.iter().filter(is_free).cloned().collect(),
            settings: asked.settings.iter().chain(&of_network).cloned().collect(),
            warnings: asked.warnings.clone(),
        })
    }

    /// What texts are to it, `measured` among them; `train_texts` gives the training split's texts where the checkpoint has none of its own, which
    /// is so of a stub's from before they were kept.
    ///
    /// # Errors
    /// Of kind `Data` where the checkpoint's own cannot be read, or there are neither.
    pub fn decoder(
        &self,
        c: &Experiment,
        measured: &[&str],
        train_texts: impl FnOnce() -> Result<Vec<String>>,
    ) -> Result<Rc<dyn DecoderKind>> {
        let measured = Texts { validation: measured, ..Texts::default() };
        let of_file = |error: Error| error.context(format!("{} cannot be used", self.checkpoint.display()));
        if let Some(decoder) = decoder::saved(c, measured, |key| self.text(key)).map_err(of_file)? {
            return Ok(decoder);
        }
        let texts = train_texts().map_err(|error| {
            error.context(format!(
                "{} has no texts of its own, and those of its training split cannot be read",
                self.checkpoint.display()
            ))
        })?;
        let train: Vec<&str> = texts.iter().map(String::as_str).collect();
        decoder::of(c, Texts { train: &train, ..measured })
    }

    /// An engine with its weights. It has no moments: nothing trains.
    ///
    /// # Errors
    /// Of kind `Data` where the weights do not fit the experiment; as [`engine::with_decoder`].
    pub fn engine(
        &self,
        c: &Experiment,
        compute: &Compute,
        decoder: &dyn DecoderKind,
        clips: usize,
    ) -> Result<Box<dyn Engine>> {
        let mut sized = memory::with_batches_of(c, clips, clips);
        sized.data.batch_size = sized.data.val_batch_size.unwrap_or(1);
        sized.optimization.optimizer = config::OptimizerKind::Sgd;
        sized.optimization.accumulate = 1;
        let mut engine = engine::with_decoder(&sized, compute, decoder)?;
        set_parameters(&self.checkpoint, &self.model, engine.host().parameters())?;
        engine.push()?;
        Ok(engine)
    }
}
