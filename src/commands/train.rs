//! `slt-run CONFIG…`: builds everything a run needs, checks all of it, then claims the folder and trains.

use std::ffi::OsString;
use std::ops::Range;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::text::{about, amount};
use super::{origins, resolve, select_device};
use crate::cli::TrainArgs;
use crate::config::{Change, Edit, Experiment, FIELDS, OnBadClip, Override, Resolved, Resume, with_edits};
use crate::data::{Contents, Dataset, Depth, Verified};
use crate::engine::device::Compute;
use crate::engine::threads;
use crate::error::{Kind, Problem, count};
use crate::limits::allocator::{Until, at_the_end};
use crate::model::{DecoderKind, decoder};
use crate::observe::reporter::Reporter;
use crate::observe::run_folder::{Ending, Resumed, RunFolder, RunInfo};
use crate::observe::{self, Observer};
use crate::train::feed::default_workers;
use crate::train::resume::{Changes, Saved, is_of_files};
use crate::train::stop::{Signal, Stop};
use crate::train::trainer::{Ended, Surroundings};
use crate::train::{Feed, Initial, Progress, Trainer, state};
use crate::{Error, Result};

pub fn train(args: TrainArgs, arguments: &[OsString], reporter: &Reporter) -> Result<Ended> {
    // A run's folder is no experiment file of anybody's repository.
    let experiment_file = args.layers.files.last().filter(|file| !file.is_dir()).cloned();
    let resolved = resolve(args.layers, reporter)?;
    let (overwrite, allow_changes) = (args.overwrite, args.allow_changes);
    run(&resolved, &Call { experiment_file, overwrite, allow_changes, arguments }, reporter)
}

/// What a run is told beside the experiment itself.
pub struct Call<'a> {
    /// The file whose repository `run.json` describes.
    pub experiment_file: Option<PathBuf>,
    /// Whether to move a run that is in the way aside.
    pub overwrite: bool,
    /// Whether to go on although the experiment has changed.
    pub allow_changes: bool,
    /// The command line.
    pub arguments: &'a [OsString],
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
        reporter.info(&nothing_left(housed.trainer.epochs(), &housed.trainer));
        return Ok(Ended::Finished);
    }
    housed.begin(call, started, reporter)?.train(&stop, begun, reporter)
}

/// All that a run needs, known to be sound; nothing has been written.
struct Sound {
    resolved: Resolved,
    device: Compute,
    threads: usize,
    dataset: Arc<Dataset>,
    decoder: Rc<dyn DecoderKind>,
    trainer: Trainer,
    /// The run to go on with, where there is one.
    earlier: Option<Earlier>,
    /// The weights that a new run begins with, where they are not random.
    initial: Option<Initial>,
}

impl Sound {
    fn open(resolved: &Resolved, call: &Call, reporter: &Reporter) -> Result<Self> {
        // What the run begins with is known by its digest from here on.
        let mut resolved = resolved.clone();
        let mut earlier = Earlier::find(&mut resolved, call)?;
        let goes_on = earlier.as_ref().is_some_and(|earlier| earlier.saved.is_some());
        let initial = if goes_on { None } else { begin_from(&mut resolved.experiment, reporter)? };
        let c = &resolved.experiment;
        let device = select_device(&resolved, reporter);
        let threads = threads::start(threads::available(c.run.threads)?)?;
        let (dataset, decoder) = open_dataset(&resolved, reporter)?;
        if let Some(earlier) = &mut earlier {
            earlier.refuse_other_data(&dataset, &resolved, call, reporter)?;
        }
        let contents = look_at_clips(&dataset, &resolved, earlier.is_some(), reporter)?;
        if let Some(earlier) = &mut earlier {
            earlier.refuse_other_contents(&dataset, &contents, &resolved, call, reporter)?;
        }
        let trainer = Trainer::new(c, &device, &dataset, contents, decoder.as_ref())?;
        Ok(Self { resolved, device, threads, dataset, decoder, trainer, earlier, initial })
    }

    /// Claims a folder for a new run, or puts the trainer where an earlier one stood; says what is about to be trained.
    fn take_folder(mut self, call: &Call, started: SystemTime, reporter: &Reporter) -> Result<Housed> {
        let c = &self.resolved.experiment;
        let (steps, is_resumed) =
            (self.dataset.train.len().div_ceil(c.data.batch_size), self.earlier.is_some());
        let (folder, changes) = match self.earlier {
            Some(Earlier { folder, saved: Some(saved), changes }) => {
                go_on(saved, &mut self.trainer, steps, &changes, &self.resolved, reporter)?;
                if let Some(warning) = state::repair_best(&mut self.trainer, &folder)? {
                    reporter.warn(&warning);
                }
                (folder, changes)
            }
            earlier => {
                if let Some(initial) = self.initial {
                    initial.apply(c, self.trainer.engine.host().parameters())?;
                }
                let folder = match earlier {
                    Some(earlier) => earlier.folder,
                    None => claim(c, call, started, reporter)?,
                };
                (folder, Changes::default())
            }
        };
        say_overrides(&self.resolved, reporter);
        let texts = self.decoder.report(&self.dataset.texts()).brief;
        let device = self.device.name();
        reporter.info(&summary(c, &self.dataset, &texts, &self.trainer, &device, self.threads));
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
        self.trainer.progress.epoch >= self.trainer.epochs()
    }

    /// Writes what tells of the start, and opens logs and data.
    fn begin<'r>(self, call: &Call, started: SystemTime, reporter: &'r Reporter) -> Result<Begun<'r>> {
        let Self { resolved, device, threads, dataset, decoder, trainer, folder, changes, .. } = self;
        let (c, progress) = (&resolved.experiment, &trainer.progress);
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
        let observer = write_start(&folder, &start, &resolved, &trainer.edits, reporter)?;
        let words = at_the_end(last_words(Arc::clone(&folder), &observer));
        if *progress != Progress::default() {
            reporter.info(&where_it_stands(&trainer, self.steps, &folder));
        }
        let epochs = progress.epoch..trainer.epochs();
        let earlier_seconds = observe::metrics::seconds(&folder.metrics(), epochs.start);
        let done = progress.partial.batches;
        let feed = Feed::new(&dataset, decoder.as_ref(), &c.data, c.run.seed, epochs.clone(), done);
        Ok(Begun { trainer, feed, observer, folder, epochs, earlier_seconds, _words: words })
    }
}

/// A run whose folder tells of it.
struct Begun<'r> {
    trainer: Trainer,
    feed: Feed,
    observer: Observer<'r>,
    folder: Arc<RunFolder>,
    /// Those that are left, counted from 0.
    epochs: Range<usize>,
    /// How long the epochs before took.
    earlier_seconds: Option<f64>,
    /// What is done and said where memory runs out.
    _words: Until,
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
            end(&trained, trainer, folder, reporter)?;
        }
        let ended = trained.map_err(|error| with_checkpoint(error, folder))?;
        match ended {
            Ended::Stopped(signal) => reporter.warn(&stopped(signal, trainer, folder)),
            Ended::Finished => {
                let time = epochs_in(epochs.end, epochs.start, *earlier_seconds, begun.elapsed());
                reporter.info(&finished(&time, trainer, folder));
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
    edits: &[Edit],
    reporter: &'r Reporter,
) -> Result<Observer<'r>> {
    // A start that fails leaves nothing behind, unless there is a checkpoint.
    let abandon = |_: &Error| folder.abandon();
    folder.write_run_json(start).inspect_err(abandon)?;
    let (toml, json) = (with_edits(&resolved.to_toml(), edits), json_with_edits(resolved.to_json(), edits));
    folder.write_config(&toml, &json).inspect_err(abandon)?;
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

/// What the last line of a run says.
fn finished(time: &str, trainer: &Trainer, folder: &RunFolder) -> String {
    format!(
        "trained {time}{}; the run is in {}",
        best_epoch(trainer, ": the best is"),
        folder.path().display(),
    )
}

/// Puts the run's folder in order, whatever ended the run; its own failure counts where nothing else has failed.
fn end(trained: &Result<Ended>, trainer: &Trainer, folder: &RunFolder, reporter: &Reporter) -> Result<()> {
    separate_best(folder, reporter);
    let how = match trained {
        Ok(Ended::Finished) => "finished".to_owned(),
        Ok(Ended::Stopped(signal)) => format!("stopped by {}", signal.name()),
        Err(error) => error.problems.iter().map(Problem::line).collect::<Vec<_>>().join("; "),
    };
    let (epoch, step) = (trainer.progress.epoch, trainer.progress.step);
    let best = trainer.progress.best();
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

/// Says which values are not the experiment files'. Where there are no files, the command line is the experiment.
fn say_overrides(resolved: &Resolved, reporter: &Reporter) {
    if resolved.files.is_empty() {
        return;
    }
    for Override { key, value, origin } in &resolved.overrides {
        reporter.info(&format!("override: {key} = {value} ({origin})"));
    }
}

/// `start` and the best epoch so far; nothing where there is none.
fn best_epoch(trainer: &Trainer, start: &str) -> String {
    let Some(best) = trainer.progress.best() else { return String::new() };
    let accuracy = best.val_accuracy.map(|accuracy| format!(" - val_accuracy={accuracy:.4}"));
    format!("{start} epoch {} - val_loss={:.4}{}", best.epoch, best.val_loss, accuracy.unwrap_or_default())
}

/// A run in the work folder that is to be gone on with.
struct Earlier {
    folder: RunFolder,
    /// Its checkpoint; without one it begins at its start.
    saved: Option<Saved>,
    changes: Changes,
}

impl Earlier {
    /// Looks for one, where the experiment asks for it, and refuses another experiment's.
    fn find(resolved: &mut Resolved, call: &Call) -> Result<Option<Self>> {
        let c = &mut resolved.experiment;
        if c.run.resume == Resume::Never || call.overwrite || !RunFolder::holds_run(&c.run.work_dir)? {
            return Ok(None);
        }
        let folder = RunFolder::reopen(&c.run.work_dir)?;
        let mut earlier = Self { folder, saved: None, changes: Changes::default() };
        if earlier.folder.has_last() {
            let saved = Saved::load(&earlier.folder.last())?;
            if let Some(init_from) = &mut c.run.init_from {
                saved.settle_init_from(init_from);
            }
            earlier.changes = saved.changes(c)?;
            earlier.saved = Some(saved);
        }
        earlier.refuse(resolved, call)?;
        Ok(Some(earlier))
    }

    fn refuse(&self, resolved: &Resolved, call: &Call) -> Result<()> {
        if call.allow_changes {
            return Ok(());
        }
        let is_field = |key: &str| FIELDS.iter().any(|field| field.key == key);
        self.changes.refuse(&self.folder.last(), |key| is_field(key).then(|| resolved.origin(key).to_owned()))
    }

    /// Refuses data that are not the run's: other ids or texts, or another set of files.
    fn refuse_other_data(
        &mut self,
        dataset: &Dataset,
        resolved: &Resolved,
        call: &Call,
        reporter: &Reporter,
    ) -> Result<()> {
        let Some(saved) = &self.saved else { return Ok(()) };
        match (saved.dataset_change(dataset), saved.files_change(dataset)) {
            (Some(change), _) => self.other_data(change),
            (None, Some(change)) => self.other_files(change, resolved, reporter),
            (None, None) => {}
        }
        self.refuse(resolved, call)
    }

    /// Refuses the same files with something else in them, and says where the run's own data are now.
    fn refuse_other_contents(
        &mut self,
        dataset: &Dataset,
        contents: &Contents,
        resolved: &Resolved,
        call: &Call,
        reporter: &Reporter,
    ) -> Result<()> {
        let Some(saved) = &self.saved else { return Ok(()) };
        if let Some((clips, change)) = saved.contents_change(dataset, contents) {
            // A file that has broken is told from another one.
            if resolved.experiment.data.on_bad_clip == OnBadClip::Error {
                Error::all(Kind::Data, dataset.broken(&clips))?;
            }
            self.other_files(change, resolved, reporter);
            self.refuse(resolved, call)?;
        }
        if !self.changes.moved.is_empty() {
            let keys: Vec<&str> = self.changes.moved.iter().map(|change| change.key.as_str()).collect();
            reporter.info(&format!("the data have moved and are the same ({})", keys.join(", ")));
        }
        Ok(())
    }

    /// A run that goes on without what breaks goes on without what has gone. Files in other folders than before are not
    /// broken: they are others.
    fn other_files(&mut self, change: Change, resolved: &Resolved, reporter: &Reporter) {
        if resolved.experiment.data.on_bad_clip == OnBadClip::Skip && self.changes.moved.is_empty() {
            // One warning is enough for a file that has gone: it is missed among the names and in the contents.
            if !self.changes.harmless.iter().any(|other| is_of_files(&other.key)) {
                let Change { key, from, to } = &change;
                reporter.warn(&format!("{key} was {from} and is {to} now; the run goes on with it"));
            }
            self.changes.harmless.push(change);
        } else {
            self.other_data(change);
        }
    }

    /// Other data, and with them the paths that lead to them.
    fn other_data(&mut self, change: Change) {
        self.changes.others.push(change);
        self.changes.others.append(&mut self.changes.moved);
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

/// Puts the trainer where the run stood, and says what is not as the command or the checkpoint has it.
fn go_on(
    saved: Saved,
    trainer: &mut Trainer,
    steps: usize,
    changes: &Changes,
    resolved: &Resolved,
    reporter: &Reporter,
) -> Result<()> {
    let was_inside = saved.progress().partial.batches > 0;
    saved.restore(trainer, steps, changes)?;
    if was_inside && trainer.progress.partial.batches == 0 {
        let epoch = trainer.progress.epoch + 1;
        reporter.info(&format!("epoch {epoch} begins anew: its batches have other clips now"));
    }
    if let Some(init_from) = &resolved.experiment.run.init_from {
        let path = init_from.path.display();
        reporter.info(&format!(
            "--init-from {path} is not looked at for weights: the run has its own to go on with"
        ));
    }
    Ok(())
}

/// Reads the weights that a run begins with, and says which; `c` has their digest then.
pub fn begin_from(c: &mut Experiment, reporter: &Reporter) -> Result<Option<Initial>> {
    let Some(from) = &mut c.run.init_from else { return Ok(None) };
    let initial = Initial::load(from)?;
    *from = initial.from().clone();
    let (path, digest) = (from.path.display(), from.sha1.as_deref().unwrap_or_default());
    reporter.info(&format!("the weights begin as those of {path} (SHA-1 {digest})"));
    Ok(Some(initial))
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
        Err(error) => error.kind == Kind::Data || error.is_limit(),
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

fn go_on_from(folder: &RunFolder) -> String {
    format!("the last checkpoint is {}; --resume goes on from it", folder.last().display())
}

/// How many epochs took how long: those after the first `from` in `time`, and all of them where there were earlier ones, of
/// which the metrics have the seconds.
fn epochs_in(epochs: usize, from: usize, earlier_seconds: Option<f64>, time: Duration) -> String {
    let (here, first) = (about(time), from + 1);
    let part = match first {
        1 => return format!("{} in {here}", count(epochs, "epoch")),
        _ if first == epochs => format!("epoch {first} in {here}"),
        _ => format!("epochs {first} to {epochs} in {here}"),
    };
    match earlier_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(earlier) => format!("{part}, all {epochs} in {}", about(earlier.saturating_add(time))),
        None => part,
    }
}

fn nothing_left(epochs: usize, trainer: &Trainer) -> String {
    let all = match epochs {
        1 => "the only epoch is".to_owned(),
        epochs => format!("all {epochs} epochs are"),
    };
    let best = best_epoch(trainer, "; the best is");
    format!("{all} done already: there is nothing to go on with{best}")
}

fn where_it_stands(trainer: &Trainer, steps: usize, folder: &RunFolder) -> String {
    let (progress, last) = (&trainer.progress, folder.last());
    let within = match progress.partial.batches {
        0 => String::new(),
        batches => format!(" and {batches} of {steps} batches of the next"),
    };
    format!("going on from {}, after {}{within}", last.display(), count(progress.epoch, "epoch"))
}

fn stopped(signal: Signal, trainer: &Trainer, folder: &RunFolder) -> String {
    let (name, progress) = (signal.name(), &trainer.progress);
    if !folder.has_last() {
        return format!("stopped by {name} before the first step: there is nothing to save");
    }
    format!(
        "stopped by {name} after step {} (epoch {}): saved in {}; the same command with --resume goes on from there{}",
        progress.step,
        progress.epoch + usize::from(progress.partial.batches > 0),
        folder.last().display(),
        best_epoch(trainer, "; the best so far is"),
    )
}

/// Says where the last good checkpoint is, below an error that ends a run.
fn with_checkpoint(error: Error, folder: &RunFolder) -> Error {
    if folder.has_last() { error.cause(go_on_from(folder)) } else { error }
}

/// Opens the dataset, with the decoder of its texts, and passes on the warnings of both.
pub fn open_dataset(resolved: &Resolved, reporter: &Reporter) -> Result<(Arc<Dataset>, Rc<dyn DecoderKind>)> {
    let c = &resolved.experiment;
    let dataset = Dataset::open(&c.data, &c.model, c.run.seed)?;
    let decoder = decoder::of(c, &dataset.train_texts());
    for warning in dataset.warnings().iter().chain(&decoder.report(&dataset.texts()).warning) {
        reporter.warn(&origins::in_line(warning, resolved));
    }
    Ok((Arc::new(dataset), decoder))
}

/// Looks into each clip's files, which costs a hundredth of an epoch and may save one. What is in them, as a resume will
/// look for it.
fn look_at_clips(
    dataset: &Dataset,
    resolved: &Resolved,
    goes_on: bool,
    reporter: &Reporter,
) -> Result<Contents> {
    let c = &resolved.experiment;
    let mut found = look_into_files(dataset, resolved, Depth::FirstImages, reporter);
    if goes_on && c.data.on_bad_clip == OnBadClip::Skip {
        // What broke while the run trained must not keep it from going on, as long as there is something to go on with:
        // it is counted when its turn comes.
        let lost = found.lost_splits(dataset);
        if lost.is_empty() {
            found.problems.drain(..).for_each(|problem| reporter.warn(&problem.line()));
        }
        found.problems.extend(lost);
    }
    Error::all(Kind::Data, found.problems)?;
    let threads = c.data.num_workers.unwrap_or_else(default_workers).max(1);
    let contents = dataset.contents(threads, &|done, all| reporter.stage("measuring the files", done, all));
    reporter.finish();
    Ok(contents)
}

/// Opens every pose and as many images as `depth` says, on the loader's threads, and passes on what is odd about them.
pub fn look_into_files(
    dataset: &Dataset,
    resolved: &Resolved,
    depth: Depth,
    reporter: &Reporter,
) -> Verified {
    let threads = resolved.experiment.data.num_workers.unwrap_or_else(default_workers).max(1);
    let progress = |done, all| reporter.stage("looking into the files", done, all);
    let found = dataset.verify(threads, depth, &progress);
    reporter.finish();
    for warning in &found.warnings {
        reporter.warn(&origins::in_line(warning, resolved));
    }
    found
}

fn summary(
    c: &Experiment,
    dataset: &Dataset,
    texts: &str,
    trainer: &Trainer,
    device: &str,
    threads: usize,
) -> String {
    format!(
        "{} to train on and {} to validate on, {texts}; {} parameters on {device}, {}; the run goes to {}",
        count(dataset.train.len(), "clip"),
        dataset.val.len(),
        amount(trainer.engine.host().parameters().elements("")),
        count(threads, "thread"),
        c.run.work_dir.display(),
    )
}
