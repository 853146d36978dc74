//! Going on from `last.pt`: what it holds, what has changed since, and putting a state where it was.

mod moments;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::checkpoint::{Checkpoint, Value, load};
use crate::config::{Change, Edit, Experiment, FIELDS, Field, InitFrom, Role, changes, saved_value};
use crate::data::{Contents, Dataset};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::model::DecoderKind;
use crate::model::decoder::{self, Texts};
use crate::optim::{LossScale, Plateau};
use crate::train::initial;
use crate::train::progress::Partial;
use crate::train::state::{contents_from, edit_from, set_parameters};
use crate::train::{Progress, TrainingState};
use moments::SavedOptimizer;

/// A checkpoint that a run can go on from.
#[derive(Debug)]
pub struct Saved {
    path: PathBuf,
    checkpoint: Checkpoint<'static>,
    progress: Progress,
}

/// What is another than it was when the checkpoint was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What leaves the experiment the same one: how many epochs, on what device, in what chunks.
    pub harmless: Vec<Change>,
    /// What makes it another experiment.
    pub others: Vec<Change>,
    /// Where the data are now; that they are the same is for [`Saved::dataset_change`] and its like to say.
    pub moved: Vec<Change>,
}

/// The name under which another dataset is reported as a change.
const DATASET: &str = "the data (ids and texts of both splits)";

/// The name under which other files of the same clips are reported as a change.
const FILES: &str = "the set of frames and poses";

/// The name under which other contents of these files are reported as a change; which clips have them follows.
const CONTENTS: &str = "the content of the frames and poses";

/// Where the initial weights are named in the experiment: all, or the backbones'.
const STARTS: [&str; 2] = ["run.init_from", "model.backbone.init"];

/// What decides which clips the batches of an epoch have: with another one, so many batches are other clips.
const ORDER: [&str; 3] = ["data.batch_size", "run.seed", DATASET];

/// Where the experiment says what the best epoch is the best by.
const BEST_METRIC: &str = "optimization.best_metric";

/// Where the optimizer is named in the experiment.
const OPTIMIZER: &str = "optimization.optimizer";

impl Saved {
    /// Reads the checkpoint at `path`.
    ///
    /// # Errors
    /// A data error that names the file and what is missing or unusable in it.
    pub fn load(path: &Path) -> Result<Self> {
        let value = load(path).map_err(|error| match path.with_file_name("best.pt") {
            best if best.exists() => error.hint(format!(
                "{} may be whole: copy it to {} to go on from its epoch",
                best.display(),
                path.display()
            )),
            _ => error,
        })?;
        let checkpoint = Checkpoint::from_value(path, value)?;
        let progress = Progress::from_values(path, checkpoint.epoch, checkpoint.val_loss, &checkpoint.extra)?;
        Ok(Self { path: path.to_owned(), checkpoint, progress })
    }

    /// The checkpoint.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What texts are to the network, where the checkpoint says so.
    ///
    /// # Errors
    /// A data error that names the file, where what it says cannot be read.
    pub fn decoder(&self, c: &Experiment, texts: Texts) -> Result<Option<Rc<dyn DecoderKind>>> {
        decoder::saved(c, texts, |key| self.text(key))
            .map_err(|error| error.context(format!("{} cannot be gone on with", self.path.display())))
    }

    /// Where the run stood.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// What differs in `c` from the experiment that the checkpoint is of.
    ///
    /// # Errors
    /// A data error where the checkpoint does not say what it is of.
    pub fn changes(&self, c: &Experiment) -> Result<Changes> {
        let config = self.config()?;
        let all = changes(config, c, Field::decides_numbers).map_err(|why| {
            Error::data(format!("{}: `config` cannot be read", self.path.display())).cause(why)
        })?;
        self.possible(config)?;
        let mut sorted = Changes::default();
        for change in all {
            let of_its_kind = match change.key.as_str() {
                "optimization.epochs" if c.optimization.epochs >= self.begun() => &mut sorted.harmless,
                "optimization.early_stopping" => &mut sorted.harmless,
                key if matches!(role(key), Some(Role::Computing | Role::Evaluation)) => &mut sorted.harmless,
                key if STARTS.contains(&key) && self.has_same_start(key, config, c) => &mut sorted.harmless,
                key if role(key) == Some(Role::Data) && (self.knows_data() || change.is_one_place()) => {
                    &mut sorted.moved
                }
                _ => &mut sorted.others,
            };
            of_its_kind.push(change);
        }
        Ok(sorted)
    }

    /// The experiment that it is of.
    fn config(&self) -> Result<&str> {
        self.text("config").ok_or_else(|| {
            Error::data(format!("{} does not say which experiment it is of", self.path.display()))
                .hint("--init-from takes the weights of any checkpoint")
        })
    }

    /// How many epochs have at least begun.
    fn begun(&self) -> usize {
        self.progress.epoch + usize::from(self.progress.partial.batches > 0)
    }

    /// Refuses more epochs than its own experiment has.
    fn possible(&self, config: &str) -> Result<()> {
        let epochs = saved_value(config, "optimization.epochs").and_then(|text| text.parse::<usize>().ok());
        let Some(epochs) = epochs.filter(|&epochs| epochs < self.begun()) else { return Ok(()) };
        let (path, begun) = (self.path.display(), self.begun());
        let what = format!("{path} is in epoch {begun} of an experiment that has {epochs}");
        Err(Error::data(what).hint("the file was damaged or forged: take another checkpoint"))
    }

    /// Whether it tells the data by what they are. Earlier checkpoints know them by their paths.
    fn knows_data(&self) -> bool {
        self.contents().is_some() && ["dataset", "files"].iter().all(|key| self.text(key).is_some())
    }

    fn contents(&self) -> Option<Contents> {
        contents_from(self.extra("contents")?)
    }

    /// What the run began with by the field `key`, where it says so.
    fn start(&self, key: &str) -> Option<InitFrom> {
        let literal = saved_value(self.text("config")?, key)?;
        let text = literal.parse::<toml_edit::Value>().ok()?.as_str()?.to_owned();
        (!text.is_empty()).then(|| text.into())
    }

    /// Adds to the files that `c` begins with the digests of what they hold. One that has gone is taken for what it was: its
    /// weights have gone into this checkpoint. Where that does not know what it was, nobody does.
    pub fn settle_starts(&self, c: &mut Experiment) {
        for (key, now) in STARTS.into_iter().zip([&mut c.run.init_from, &mut c.model.backbone.init]) {
            let Some(now) = now else { continue };
            let is_old = self.text("config").is_none_or(|config| saved_value(config, key).is_none());
            let earlier = self.start(key).filter(|earlier| earlier.path == now.path);
            let is_unknown = is_old || earlier.as_ref().is_some_and(|earlier| earlier.sha1.is_none());
            if now.sha1.is_none() && !is_unknown {
                let from_earlier = || earlier.and_then(|earlier| earlier.sha1);
                now.sha1 = initial::digest(&now.path).ok().or_else(from_earlier);
            }
        }
    }

    /// Whether `c` names by the field `key` the file that the run began with, which may be in another place now. The runs of
    /// before this was a field do not say what they began with.
    fn has_same_start(&self, key: &str, config: &str, c: &Experiment) -> bool {
        let now = if key == STARTS[0] { &c.run.init_from } else { &c.model.backbone.init };
        match (self.start(key), now) {
            // Before there was `model.backbone.init`, nothing began with it.
            _ if saved_value(config, key).is_none() => key == STARTS[0] || now.is_none(),
            (Some(InitFrom { sha1: Some(was), .. }), Some(InitFrom { sha1: Some(is), .. })) => was == *is,
            (Some(was), Some(is)) => was.path == is.path,
            _ => false,
        }
    }

    /// The change of the data, where they have other ids or texts now.
    #[must_use]
    pub fn dataset_change(&self, dataset: &Dataset) -> Option<Change> {
        self.change("dataset", DATASET, dataset.fingerprint())
    }

    /// The change of the clips' files, where some have come or gone: a file that vanished while the run trained must
    /// not come back as zeros. A checkpoint before this was noted has none.
    #[must_use]
    pub fn files_change(&self, dataset: &Dataset) -> Option<Change> {
        self.change("files", FILES, dataset.files_fingerprint())
    }

    /// The clips, by their positions, whose files hold something else than they did, and the change that they are. A
    /// checkpoint before this was noted has none.
    #[must_use]
    pub fn contents_change(&self, dataset: &Dataset, now: &Contents) -> Option<(Vec<usize>, Change)> {
        let earlier = self.contents()?;
        let others = now.others(&earlier);
        let key = format!("{CONTENTS} ({})", dataset.named(&others));
        let change = Change { key, from: earlier.summary(), to: now.summary() };
        (!others.is_empty()).then_some((others, change))
    }

    /// What the run was changed by so far, and now is by `changes`.
    ///
    /// # Errors
    /// A data error where the checkpoint's own list cannot be read: what it said would be lost.
    fn edits(&self, changes: &Changes) -> Result<Vec<Edit>> {
        let earlier = match self.extra("edits") {
            None => Some(Vec::new()),
            Some(Value::List(edits)) => edits.iter().map(edit_from).collect(),
            Some(_) => None,
        };
        let mut edits = earlier.ok_or_else(|| {
            let what = format!("{}: `edits` should list what the run was changed by", self.path.display());
            Error::data(what).hint("the file was damaged or forged: take another checkpoint")
        })?;
        let (step, epoch) = (self.progress.step, self.progress.epoch);
        let files = changes.harmless.iter().filter(|change| is_of_files(&change.key));
        let new = changes.others.iter().chain(files);
        edits.extend(new.map(|change| Edit { step, epoch, change: change.clone() }));
        Ok(edits)
    }

    fn change(&self, saved: &str, name: &str, to: String) -> Option<Change> {
        let from = self.text(saved).filter(|&from| from != to)?.to_owned();
        Some(Change { key: name.to_owned(), from, to })
    }

    /// Puts `state`, which is at the start of the experiment `c`, where the run stood; what to say of the optimizer. `changes` are those that were allowed: a new optimizer
    /// starts without the moments of the old one, and where batches have other clips now, the epoch that had begun begins
    /// anew.
    ///
    /// # Errors
    /// A data error where weights or moments do not fit the model, or where there are more batches behind than an epoch
    /// of `steps` has.
    pub fn restore(
        mut self,
        c: &Experiment,
        state: &mut TrainingState,
        steps: usize,
        changes: &Changes,
    ) -> Result<Option<String>> {
        if changes.others.iter().any(|change| ORDER.contains(&change.key.as_str())) {
            self.progress.partial = Partial::default();
        }
        // What was the best by another figure is not known to be the best by this one.
        if changes.others.iter().any(|change| change.key == BEST_METRIC) {
            self.progress.forget_best();
        }
        if self.progress.partial.batches > steps {
            let what = format!(
                "{} has {} batches of epoch {} behind it; an epoch has {steps}",
                self.path.display(),
                self.progress.partial.batches,
                self.progress.epoch + 1,
            );
            return Err(Error::data(what).hint("it is of other data or another batch size"));
        }
        set_parameters(&self.path, &self.checkpoint.model, state.engine.host().parameters())
            .map_err(|error| misfit(error, !changes.others.is_empty()))?;
        changes.refuse_network(&self.path)?;
        state.edits = self.edits(changes)?;
        let is_same = !changes.others.iter().any(|change| change.key == OPTIMIZER);
        let notice = if is_same { self.restore_optimizer(c, state)? } else { None };
        self.restore_schedule(state, changes);
        if let Some(Value::Dict(clips)) = self.extra("bad_clips") {
            let text = |value: &Value| value.as_str().map(str::to_owned);
            state.bad_clips.restore(clips.iter().filter_map(|(id, why)| Some((text(id)?, text(why)?))));
        }
        let chunk = self.extra("frames_per_chunk").and_then(Value::as_int);
        if let Some(chunk) = chunk.and_then(|chunk| usize::try_from(chunk).ok()) {
            state.engine.restore_chunk(chunk);
        }
        if let Some(scale) = self.extra("scaler_state") {
            state.engine.restore_loss_scale(LossScale::from_value(&self.path, scale)?);
        }
        state.progress = self.progress;
        Ok(notice)
    }

    /// The rate of every epoch follows from the first one's and from what the scheduler has seen. There is none after the
    /// last.
    fn restore_schedule(&self, state: &mut TrainingState, changes: &Changes) {
        let saved = self.extra("scheduler_state");
        let number = |key: &str| saved?.get(key)?.as_int().and_then(|n| u64::try_from(n).ok());
        // A checkpoint of before there was a warm-up was stepped after every epoch.
        let epochs = self.progress.epoch.min(state.epochs) as u64;
        let steps = number("last_epoch").map_or(epochs, |steps| steps.min(epochs));
        let is_comparable = changes.others.iter().all(|change| change.key != BEST_METRIC);
        let best = saved.and_then(|saved| saved.get("best")?.as_number());
        let plateau = Plateau {
            best: best.filter(|_| is_comparable),
            bad_epochs: number("num_bad_epochs").filter(|_| is_comparable).unwrap_or(0),
            reductions: number("reductions").unwrap_or(0),
        };
        state.schedule.restore(steps, plateau);
    }

    fn restore_optimizer(&self, c: &Experiment, state: &mut TrainingState) -> Result<Option<String>> {
        let saved = SavedOptimizer {
            path: &self.path,
            state: &self.checkpoint.optimizer_state,
            steps: self.extra("optimizer_steps").and_then(Value::as_int).and_then(|n| u64::try_from(n).ok()),
            done: self.progress.step,
            config: self.config()?,
        };
        let TrainingState { engine, decoder, .. } = state;
        let host = engine.host_mut();
        saved.restore(c, decoder.as_ref(), &Rc::clone(host.network.blueprint()), &mut host.optimizer)
    }

    fn extra(&self, key: &str) -> Option<&Value<'static>> {
        self.checkpoint.extra.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.extra(key).and_then(Value::as_str)
    }
}

impl Changes {
    /// Refuses what makes it another experiment. `origin` tells where a field's value comes from.
    ///
    /// # Errors
    /// A configuration error that names each change with both values.
    pub fn refuse(&self, path: &Path, origin: impl Fn(&str) -> Option<String>) -> Result<()> {
        let mut problems: Vec<Problem> = self
            .others
            .iter()
            .map(|change| {
                let origin = origin(&change.key).map(|at| format!(" ({at})")).unwrap_or_default();
                let Change { key, from, to } = change;
                Problem::new(format!("{key} was {from} in {} and is {to}{origin} now", path.display()))
            })
            .collect();
        if let Some(last) = problems.last_mut() {
            let cure = if self.others.iter().any(|change| role(&change.key) == Some(Role::Network)) {
                format!("to go on with the same experiment, give it the earlier values; {OTHER_MODEL}")
            } else {
                "to go on with the same experiment, give it the earlier values; to go on with the new ones, add \
                 --allow-changes; for a new run, choose another run.work_dir"
                    .to_owned()
            };
            last.hint = Some(cure);
        }
        Error::all(ErrorKind::Config, problems)
    }

    /// Refuses what makes it another network although the parameters have the same shapes, whatever is allowed.
    fn refuse_network(&self, path: &Path) -> Result<()> {
        let others = self.others.iter().filter(|change| role(&change.key) == Some(Role::Network));
        let problems = others.map(|Change { key, from, to }| {
            let what = format!("{key} was {from} in {} and is {to} now: another network", path.display());
            Problem::new(what).hint(OTHER_MODEL)
        });
        Error::all(ErrorKind::Config, problems.collect())
    }
}

/// What to do about another model.
const OTHER_MODEL: &str = "no flag resumes with another model: choose another run.work_dir for it";

/// Whether a change is one of the clips' files.
#[must_use]
pub fn is_of_files(key: &str) -> bool {
    key == FILES || key.starts_with(CONTENTS)
}

fn role(key: &str) -> Option<Role> {
    FIELDS.iter().find(|field| field.key == key).map(|field| field.role)
}

/// Weights that do not fit; where changes were allowed, it has to be said that this is none of them.
fn misfit(error: Error, allowed: bool) -> Error {
    if allowed { error.hint(OTHER_MODEL) } else { error }
}
