//! `slt-run CONFIG…`: builds everything a run needs, checks all of it, then claims the folder and trains.

use std::ffi::OsString;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::cache::with_cache;
use super::earlier::{Earlier, go_on};
use super::prepare::{Call, Opened, Start, look_at_clips, open_dataset};
use super::said::{
    epochs_in, finished, go_on_from, nothing_left, say_overrides, stopped, summary, where_it_stands,
};
use super::{origins, resolve, select_device};
use crate::cli::TrainArgs;
use crate::config::{Change, Edit, Experiment, Resolved, with_edits};
use crate::data::Dataset;
use crate::engine::device::Compute;
use crate::engine::threads;
use crate::error::{ErrorKind, Problem};
use crate::limits::allocator::{Until, at_the_end};
use crate::model::{DecoderKind, TextReport};
use crate::observe::reporter::Reporter;
use crate::observe::run_folder::{Ending, Resumed, RunFolder, RunInfo};
use crate::observe::{self, Observer};
use crate::train::resume::Changes;
use crate::train::stop::{Signal, Stop};
use crate::train::trainer::{Ended, Surroundings};
use crate::train::{Feed, Progress, Trainer, TrainingState, state};
use crate::{Error, Result};

pub fn train(args: TrainArgs, arguments: &[OsString], reporter: &Reporter) -> Result<Ended> {
    // A run's folder is no experiment file of anybody's repository.
    let experiment_file = args.layers.files.last().filter(|file| !file.is_dir()).cloned();
    let resolved = resolve(args.layers, reporter)?;
    let (overwrite, allow_changes) = (args.overwrite, args.allow_changes);
    run(&resolved, &Call { experiment_file, overwrite, allow_changes, arguments }, reporter)
}

/// Trains a resolved experiment. Nothing is written before all that it needs is known to be sound.
pub fn run(resolved: &Resolved, call: &Call, reporter: &Reporter) -> Result<Ended> {
    run_from_start(resolved, call, reporter).map_err(|error| origins::in_error(error, resolved))
}

fn run_from_start(resolved: &Resolved, call: &Call, reporter: &Reporter) -> Result<Ended> {
    let (started, begun) = (SystemTime::now(), Instant::now());
    let stop = Stop::on_signals()?;
    resolved.to_toml_with_origins().lines().for_each(|line| reporter.verbose(line));
    let sound = Sound::open(resolved, call, reporter)?;
    // Nothing has been written so far; what is written from now on is put in order before the process ends.
    stop.let_steps_end();
    let housed = sound.take_folder(call, started, reporter)?;
    if housed.is_over() {
        separate_best(&housed.folder, reporter);
        reporter.info(&nothing_left(&housed.trainer.state));
        return Ok(Ended::Finished);
    }
    match housed.with_cache(&stop, reporter)? {
        Ok(housed) => housed.begin(call, started, reporter)?.train(&stop, begun, reporter),
        Err(signal) => Ok(Ended::Stopped(signal)),
    }
}

/// All that a run needs, known to be sound; nothing has been written.
struct Sound {
    resolved: Resolved,
    device: Compute,
    threads: usize,
    dataset: Arc<Dataset>,
    decoder: Rc<dyn DecoderKind>,
    texts: TextReport,
    trainer: Trainer,
    /// The run to go on with, where there is one.
    earlier: Option<Earlier>,
    /// The weights that a new run begins with, where they are not random.
    initial: Start,
}

impl Sound {
    fn open(resolved: &Resolved, call: &Call, reporter: &Reporter) -> Result<Self> {
        // What the run begins with is known by its digest from here on.
        let mut resolved = resolved.clone();
        let mut earlier = Earlier::find(&mut resolved, call)?;
        let goes_on = earlier.as_ref().is_some_and(|earlier| earlier.saved.is_some());
        let initial =
            if goes_on { Start::default() } else { Start::read(&mut resolved.experiment, reporter)? };
        let c = &resolved.experiment;
        let device = select_device(&resolved, reporter);
        let threads = threads::start(threads::available(c.run.threads)?)?;
        let saved = earlier.as_ref().and_then(|earlier| earlier.saved.as_ref());
        let Opened { dataset, decoder, texts } = open_dataset(&resolved, saved, reporter)?;
        if let Some(earlier) = &mut earlier {
            earlier.refuse_other_data(&dataset, &resolved, call, reporter)?;
            earlier.refuse_other_tokenizer(&resolved, decoder.as_ref())?;
        }
        let contents = look_at_clips(&dataset, &resolved, earlier.is_some(), reporter)?;
        if let Some(earlier) = &mut earlier {
            earlier.refuse_other_contents(&dataset, &contents, &resolved, call, reporter)?;
        }
        let trainer = Trainer::new(c, &device, &dataset, contents, &decoder)?;
        Ok(Self { resolved, device, threads, dataset, decoder, texts, trainer, earlier, initial })
    }

    /// Claims a folder for a new run, or puts the trainer where an earlier one stood; says what is about to be trained.
    fn take_folder(mut self, call: &Call, started: SystemTime, reporter: &Reporter) -> Result<Housed> {
        let c = &self.resolved.experiment;
        let (steps, is_resumed) =
            (self.dataset.train.len().div_ceil(c.data.batch_size), self.earlier.is_some());
        let (folder, changes) = match self.earlier {
            Some(Earlier { folder, saved: Some(saved), changes }) => {
                go_on(saved, &mut self.trainer.state, steps, &changes, &self.resolved, reporter)?;
                if let Some(warning) = state::repair_best(&mut self.trainer.state, &folder)? {
                    reporter.warn(&warning);
                }
                (folder, changes)
            }
            earlier => {
                let state = &self.trainer.state;
                let parameters = state.engine.host().parameters();
                self.initial.apply(c, state.decoder.as_ref(), parameters, reporter)?;
                let folder = match earlier {
                    Some(earlier) => earlier.folder,
                    None => claim(c, call, started, reporter)?,
                };
                (folder, Changes::default())
            }
        };
        say_overrides(&self.resolved, reporter);
        let device = self.device.name();
        reporter.info(&summary(
            c,
            &self.dataset,
            &self.texts.brief,
            &self.trainer.state,
            &device,
            self.threads,
        ));
        let Self { resolved, threads, dataset, decoder, trainer, .. } = self;
        let folder = Arc::new(folder);
        Ok(Housed {
            resolved,
            device,
            threads,
            dataset,
            decoder,
            trainer,
            folder,
            changes,
            steps,
            is_resumed,
        })
    }
}

/// A run that has its folder, and stands where it is to go on.
struct Housed {
    resolved: Resolved,
    device: String,
    threads: usize,
    dataset: Arc<Dataset>,
    decoder: Rc<dyn DecoderKind>,
    trainer: Trainer,
    folder: Arc<RunFolder>,
    changes: Changes,
    /// Batches an epoch.
    steps: usize,
    is_resumed: bool,
}

impl Housed {
    fn is_over(&self) -> bool {
        self.trainer.state.is_over()
    }

    /// As it is, with features in the place of images where the experiment has a cache of them. A run that ends before
    /// they are all there leaves nothing but them.
    fn with_cache(mut self, stop: &Stop, reporter: &Reporter) -> Result<Result<Self, Signal>> {
        let (engine, dataset) = (self.trainer.state.engine.as_mut(), Arc::clone(&self.dataset));
        let cached = with_cache(engine, &self.resolved.experiment, dataset, stop, reporter);
        match cached.inspect_err(|_| self.folder.abandon())? {
            Ok(dataset) => Ok(Ok(Self { dataset, ..self })),
            Err(signal) => {
                self.folder.abandon();
                Ok(Err(signal))
            }
        }
    }

    /// Writes what tells of the start, and opens logs and data.
    fn begin<'r>(self, call: &Call, started: SystemTime, reporter: &'r Reporter) -> Result<Begun<'r>> {
        let Self { resolved, device, threads, dataset, decoder, trainer, folder, changes, .. } = self;
        let (c, progress) = (&resolved.experiment, &trainer.state.progress);
        let place_changes = folder.place_changes(c);
        if self.is_resumed {
            observe::rewind(reporter, &folder, progress.epoch, progress.step);
        }
        let resumed = self.is_resumed.then(|| Resumed {
            epoch: progress.epoch,
            step: progress.step,
            changes: [changes.others, changes.harmless, place_changes].concat(),
            moved: changes.moved,
        });
        let start = RunInfo {
            command_line: call.arguments.iter().map(|text| text.to_string_lossy().into_owned()).collect(),
            started,
            device,
            threads,
            experiment: call.experiment_file.clone(),
            files: resolved.files.clone(),
            overrides: resolved.overrides.clone(),
            resumed,
        };
        let observer = write_start(&folder, &start, &resolved, &trainer.state, reporter)?;
        let words = at_the_end(last_words(Arc::clone(&folder), &observer));
        if *progress != Progress::default() {
            reporter.info(&where_it_stands(&trainer.state, self.steps, &folder));
        }
        let epochs = progress.epoch..trainer.state.epochs;
        let earlier_seconds = observe::metrics::seconds(&folder.metrics(), epochs.start);
        let done = progress.partial.batches;
        let feed = Feed::new(&dataset, decoder.as_ref(), &c.data, c.run.seed, epochs.clone(), done);
        Ok(Begun { trainer, feed, observer, folder, epochs, earlier_seconds, _words: words })
    }
}

/// A run whose folder tells of it.
struct Begun<'r> {
    feed: Feed,
    /// What is done and said where memory runs out.
    _words: Until,
    observer: Observer<'r>,
    folder: Arc<RunFolder>,
    trainer: Trainer,
    /// Those that are left, counted from 0.
    epochs: Range<usize>,
    /// How long the epochs before took.
    earlier_seconds: Option<f64>,
}

impl Begun<'_> {
    /// Trains to the end, or to what ends it, and leaves the folder in order.
    fn train(mut self, stop: &Stop, begun: Instant, reporter: &Reporter) -> Result<Ended> {
        let Self { trainer, feed, observer, folder, epochs, earlier_seconds, .. } = &mut self;
        let trained = trainer.run(&mut Surroundings { feed, observer, folder, stop });
        if ended_early(&trained) && !folder.has_last() {
            observer.discard();
            folder.abandon();
        } else {
            end(&trained, &trainer.state, folder, reporter)?;
        }
        let ended = trained.map_err(|error| with_checkpoint(error, folder))?;
        match ended {
            Ended::Stopped(signal) => reporter.warn(&stopped(signal, &trainer.state, folder)),
            Ended::Finished => {
                let time = epochs_in(epochs.end, epochs.start, *earlier_seconds, begun.elapsed());
                reporter.info(&finished(&time, &trainer.state, folder));
            }
        }
        Ok(ended)
    }
}

/// Writes what tells of a start, `run.json` first: it makes the folder the run's. Opens its logs.
fn write_start<'r>(
    folder: &RunFolder,
    start: &RunInfo,
    resolved: &Resolved,
    TrainingState { decoder, edits, .. }: &TrainingState,
    reporter: &'r Reporter,
) -> Result<Observer<'r>> {
    // A start that fails leaves nothing behind, unless there is a checkpoint.
    let abandon = |_: &Error| folder.abandon();
    folder.write_run_json(start).inspect_err(abandon)?;
    let (toml, json) = (with_edits(&resolved.to_toml(), edits), json_with_edits(resolved.to_json(), edits));
    folder.write_config(&toml, &json).inspect_err(abandon)?;
    if let Some(tokenizer) = decoder.tokenizer() {
        folder.write_tokenizer(tokenizer.json()).inspect_err(abandon)?;
    }
    let c = &resolved.experiment;
    let tensorboard = c.data.tensorboard.as_ref().map(|folder| folder.path(&c.run.work_dir));
    let mut observer = Observer::open(reporter, folder, tensorboard.as_deref());
    if let Some(Err(error)) = observer.event_file().map(|file| folder.note_event_file(file)) {
        if !folder.has_last() {
            observer.discard();
        }
        abandon(&error);
        return Err(error);
    }
    Ok(observer)
}

/// Puts the run's folder in order, whatever ended the run; its own failure counts where nothing else has failed.
fn end(
    trained: &Result<Ended>,
    state: &TrainingState,
    folder: &RunFolder,
    reporter: &Reporter,
) -> Result<()> {
    separate_best(folder, reporter);
    let how = match trained {
        Ok(Ended::Finished) => "finished".to_owned(),
        Ok(Ended::Stopped(signal)) => format!("stopped by {}", signal.name()),
        Err(error) => error.problems.iter().map(Problem::line).collect::<Vec<_>>().join("; "),
    };
    let (epoch, step) = (state.progress.epoch, state.progress.step);
    let best = state.progress.known_best();
    let noted = folder.note_end(&Ending { how, at: SystemTime::now(), epoch, step, best });
    if trained.is_err() { Ok(()) } else { noted }
}

/// A run that has ended leaves two checkpoints that can be edited apart.
fn separate_best(folder: &RunFolder, reporter: &Reporter) {
    if let Err(error) = state::separate_best(folder) {
        for problem in &error.problems {
            reporter.warn(&format!(
                "{}; last.pt and best.pt are one file: copy one of them before it is written into",
                problem.line()
            ));
        }
    }
}

/// A folder for a run that starts.
fn claim(c: &Experiment, call: &Call, started: SystemTime, reporter: &Reporter) -> Result<RunFolder> {
    let (folder, aside) = RunFolder::claim(&c.run.work_dir, call.overwrite, started)?;
    if let Some(aside) = aside {
        let (now, aside) = (folder.path().display(), aside.display());
        reporter.info(&format!("the run that was in {now} is now in {aside}"));
    }
    Ok(folder)
}

/// `config.json` of a run that was changed while it trained says so, too.
fn json_with_edits(mut json: serde_json::Value, edits: &[Edit]) -> serde_json::Value {
    if !edits.is_empty() {
        let edit = |Edit { step, epoch, change: Change { key, from, to } }: &Edit| serde_json::json!({ "step": step, "epoch": epoch, "key": key, "from": from, "to": to });
        json["edits"] = edits.iter().map(edit).collect();
    }
    json
}

/// Whether a signal, the data or a limit of this process ended the run: without a checkpoint, what there is of it is
/// worth nothing.
fn ended_early(trained: &Result<Ended>) -> bool {
    match trained {
        Ok(ended) => *ended != Ended::Finished,
        Err(error) => error.kind == ErrorKind::Data || error.is_limit(),
    }
}

/// What is done and said where memory runs out in the midst of training: a run without a checkpoint leaves nothing.
fn last_words(
    folder: Arc<RunFolder>,
    observer: &Observer,
) -> impl FnOnce() -> Option<String> + Send + 'static {
    let discard = observer.discarding();
    move || {
        if folder.has_last() {
            return Some(go_on_from(&folder));
        }
        discard();
        folder.abandon();
        None
    }
}

/// Says where the last good checkpoint is, below an error that ends a run.
fn with_checkpoint(error: Error, folder: &RunFolder) -> Error {
    if folder.has_last() { error.cause(go_on_from(folder)) } else { error }
}
