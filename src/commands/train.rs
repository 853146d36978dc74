//! `slt-run CONFIG…`: builds everything a run needs, checks all of it, then claims the folder and trains.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::text::{about, amount, count};
use super::{origins, resolve};
use crate::cli::TrainArgs;
use crate::config::{Experiment, Resolved};
use crate::data::Dataset;
use crate::error::{Kind, Problem};
use crate::nn::{device, threads};
use crate::observe::Observer;
use crate::observe::reporter::Reporter;
use crate::observe::run_folder::{RunFolder, RunInfo};
use crate::train::feed::default_workers;
use crate::train::{Feed, Trainer, state};
use crate::{Error, Result};

pub fn train(args: TrainArgs, arguments: &[OsString], reporter: &Reporter) -> Result<()> {
    let experiment_file = args.layers.files.last().cloned();
    let resolved = resolve(args.layers, reporter)?;
    let (init_from, overwrite) = (args.init_from.as_deref(), args.overwrite);
    run(&resolved, Call { experiment_file, init_from, overwrite, arguments }, reporter)
}

/// What a run is told beside the experiment itself.
pub struct Call<'a> {
    /// The file whose repository `run.json` describes.
    pub experiment_file: Option<PathBuf>,
    /// A checkpoint to take the initial weights from.
    pub init_from: Option<&'a Path>,
    /// Whether to move a run that is in the way aside.
    pub overwrite: bool,
    /// The command line.
    pub arguments: &'a [OsString],
}

/// Trains a resolved experiment. Nothing is written before all that it needs is known to be sound.
pub fn run(resolved: &Resolved, call: Call, reporter: &Reporter) -> Result<()> {
    run_from_start(resolved, call, reporter).map_err(|error| origins::in_error(error, resolved))
}

fn run_from_start(resolved: &Resolved, call: Call, reporter: &Reporter) -> Result<()> {
    let (started, begun) = (SystemTime::now(), Instant::now());
    let c = &resolved.experiment;
    resolved.to_toml_with_origins().lines().for_each(|line| reporter.verbose(line));
    let device = device::select(&c.run, |warning| reporter.warn(warning))?;
    let threads = threads::start(threads::available(c.run.threads));
    let dataset = open_dataset(resolved, reporter)?;
    // A look into each clip's files costs a hundredth of an epoch, and may save one.
    Error::all(Kind::Data, look_into_files(&dataset, c, reporter))?;
    let mut trainer = Trainer::new(c, &device)?;
    if let Some(path) = call.init_from {
        state::init_from(path, trainer.network.parameters())?;
    }

    let (folder, aside) = RunFolder::claim(&c.run.work_dir, call.overwrite, started)?;
    if let Some(aside) = aside {
        reporter.info(&format!(
            "the run that was in {} is now in {}",
            folder.path().display(),
            aside.display()
        ));
    }
    folder.write_config(&resolved.to_toml(), &resolved.to_json())?;
    folder.write_run_json(&RunInfo {
        command_line: call.arguments.iter().map(|text| text.to_string_lossy().into_owned()).collect(),
        started,
        device: device::describe(&device),
        threads,
        experiment: call.experiment_file,
    })?;
    reporter.info(&summary(c, &dataset, &trainer, &device::describe(&device), threads));

    let mut feed = Feed::new(&dataset, &c.data, c.run.seed, 0..c.optimization.epochs, &device);
    let mut observer = Observer::open(reporter, &folder.metrics(), c.data.tensorboard.as_deref());
    let trained = trainer.run(&mut feed, &mut observer, &folder);
    if trained.as_ref().is_err_and(|error| error.kind == Kind::Data) && !folder.last().exists() {
        observer.discard();
        folder.abandon();
    }
    trained?;
    let best = match trainer.progress.best_val_loss {
        loss if loss.is_finite() => format!("the lowest validation loss is {loss:.4}"),
        _ => "no validation loss was a finite number, so there is no best.pt".to_owned(),
    };
    reporter.info(&format!(
        "trained {} in {}: {best}; the run is in {}",
        count(c.optimization.epochs, "epoch"),
        about(begun.elapsed()),
        folder.path().display(),
    ));
    Ok(())
}

/// Opens the dataset and passes its warnings on.
pub fn open_dataset(resolved: &Resolved, reporter: &Reporter) -> Result<Arc<Dataset>> {
    let c = &resolved.experiment;
    let dataset = Dataset::open(&c.data, &c.model, c.run.seed)?;
    for warning in dataset.warnings() {
        reporter.warn(&origins::in_line(warning, resolved));
    }
    Ok(Arc::new(dataset))
}

/// Opens every pose and the first image of each clip in each stream; all that is wrong with them.
pub fn look_into_files(dataset: &Dataset, c: &Experiment, reporter: &Reporter) -> Vec<Problem> {
    let threads = c.data.num_workers.unwrap_or_else(default_workers).max(1);
    let problems = dataset.verify(threads, &|done, all| reporter.stage("looking into the clips", done, all));
    reporter.finish();
    problems
}

fn summary(c: &Experiment, dataset: &Dataset, trainer: &Trainer, device: &str, threads: usize) -> String {
    let texts = dataset.collisions();
    format!(
        "{} to train on and {} to validate on, {} in {}; {} parameters on {device}, {}; the run goes to {}",
        count(dataset.train.len(), "clip"),
        dataset.val.len(),
        count(texts.texts, "text"),
        count(texts.classes, "class"),
        amount(trainer.network.parameters().elements("")),
        count(threads, "thread"),
        c.run.work_dir.display(),
    )
}
