//! `slt-run CONFIG…`: builds everything a run needs, checks all of it, then claims the folder and trains.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::resolve;
use crate::Result;
use crate::cli::TrainArgs;
use crate::config::{Experiment, Resolved};
use crate::data::Dataset;
use crate::nn::{device, threads};
use crate::observe::Observer;
use crate::observe::reporter::Reporter;
use crate::observe::run_folder::{RunFolder, RunInfo};
use crate::train::{Feed, Trainer, state};

pub fn train(args: TrainArgs, arguments: &[OsString], reporter: &Reporter) -> Result<()> {
    let experiment_file = args.layers.files.last().cloned();
    let resolved = resolve(args.layers, reporter)?;
    let init_from = args.init_from.as_deref();
    run(&resolved, experiment_file, init_from, args.overwrite, arguments, reporter)
}

/// Trains a resolved experiment. Nothing is written before all that it needs is known to be sound.
pub fn run(
    resolved: &Resolved,
    experiment_file: Option<PathBuf>,
    init_from: Option<&Path>,
    overwrite: bool,
    arguments: &[OsString],
    reporter: &Reporter,
) -> Result<()> {
    let (started, begun) = (SystemTime::now(), Instant::now());
    let c = &resolved.experiment;
    let device = device::select(&c.run, |warning| reporter.warn(warning))?;
    let threads = threads::start(c.run.threads.unwrap_or_else(threads::available));
    let dataset = open_dataset(c, reporter)?;
    let mut trainer = Trainer::new(c, &device)?;
    if let Some(path) = init_from {
        state::init_from(path, trainer.network.parameters())?;
    }

    let (folder, aside) = RunFolder::claim(&c.run.work_dir, overwrite, started)?;
    if let Some(aside) = aside {
        reporter.info(&format!(
            "the run that was in {} is now in {}",
            folder.path().display(),
            aside.display()
        ));
    }
    folder.write_config(&resolved.to_toml(), &resolved.to_json())?;
    folder.write_run_json(&RunInfo {
        command_line: arguments.iter().map(|text| text.to_string_lossy().into_owned()).collect(),
        started,
        device: device::describe(&device),
        threads,
        experiment: experiment_file,
    })?;
    reporter.info(&summary(c, &dataset, &trainer, &device::describe(&device), threads));

    let mut feed = Feed::new(&dataset, &c.data, c.run.seed, 0..c.optimization.epochs, &device);
    let mut observer = Observer::open(reporter, &folder.metrics(), c.data.tensorboard.as_deref());
    trainer.run(&mut feed, &mut observer, &folder)?;
    reporter.info(&format!(
        "Trained {} epochs in {:.1} s; the best validation loss is {:.4}. The run is in {}",
        c.optimization.epochs,
        begun.elapsed().as_secs_f64(),
        trainer.progress.best_val_loss,
        folder.path().display(),
    ));
    Ok(())
}

/// Opens the dataset and passes its warnings on.
pub fn open_dataset(c: &Experiment, reporter: &Reporter) -> Result<Arc<Dataset>> {
    let dataset = Dataset::open(&c.data, &c.model, c.run.seed)?;
    dataset.warnings().iter().for_each(|warning| reporter.warn(warning));
    Ok(Arc::new(dataset))
}

fn summary(c: &Experiment, dataset: &Dataset, trainer: &Trainer, device: &str, threads: usize) -> String {
    let texts = dataset.collisions();
    let sharing = match texts.colliding {
        0 => String::new(),
        n => format!(", {n} of them share a class with another"),
    };
    format!(
        "{} training and {} validation clips; {} texts in {} classes{sharing}; {:.1} M parameters on {device}, {threads} threads; {}",
        dataset.train.len(),
        dataset.val.len(),
        texts.texts,
        texts.classes,
        trainer.network.parameters().elements("") as f64 / 1e6,
        c.run.work_dir.display(),
    )
}
