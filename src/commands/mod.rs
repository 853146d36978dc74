//! What each command does, from the arguments to the last line that it prints.

mod bench;
mod cache;
mod check;
mod demo;
mod earlier;
mod evaluate;
mod groups;
mod origins;
mod prepare;
mod said;
mod show;
mod text;
mod train;

use std::ffi::OsString;
use std::io::Write;

use crate::cli::Command;
use crate::config::{self, Device, Experiment, Layers, Resolved};
use crate::data::features;
use crate::engine::{
    self,
    device::{self, Compute},
};
use crate::model::{decoder, sizes};
use crate::observe::reporter::Reporter;
use crate::train::trainer::Ended;
use crate::{Error, Result};

/// Runs `command`; `arguments` is the command line as it was given, for `run.json`. Gives the process's exit code.
///
/// # Errors
/// Everything that can go wrong, for `main` to print and to turn into the exit code.
pub fn run(command: Command, arguments: &[OsString]) -> Result<u8, Box<(Error, Reporter)>> {
    let verbosity = match &command {
        Command::Train(args) => args.verbosity,
        Command::Evaluate(args) => args.trained.verbosity,
        Command::Predict(args) => args.trained.verbosity,
        Command::Check(args) => args.verbosity,
        Command::Cache(args) => args.verbosity,
        Command::Config(args) => args.verbosity,
        Command::Bench(args) => args.verbosity,
        Command::Demo(args) => args.run.verbosity,
    };
    let reporter = Reporter::new(verbosity);
    let result = match command {
        Command::Train(args) => train::train(args, arguments, &reporter),
        Command::Evaluate(args) => evaluate::evaluate(args, &reporter).map(|()| Ended::Finished),
        Command::Predict(args) => evaluate::predict(args, &reporter).map(|()| Ended::Finished),
        Command::Check(args) => check::check(args, &reporter).map(|()| Ended::Finished),
        Command::Cache(args) => cache::cache(args, &reporter),
        Command::Config(args) => show::show(args.layers, &reporter).map(|()| Ended::Finished),
        Command::Bench(args) => bench::bench(args, &reporter).map(|()| Ended::Finished),
        Command::Demo(args) => demo::demo(args, arguments, &reporter),
    };
    match result {
        Ok(Ended::Finished) => Ok(0),
        Ok(Ended::Stopped(signal)) => Ok(signal.exit_code()),
        Err(error) => Err(Box::new((error, reporter))),
    }
}

/// Resolves an experiment under this process's environment, refuses networks that no machine can hold, and passes its
/// warnings on.
fn resolve(mut layers: Layers, reporter: &Reporter) -> Result<Resolved> {
    layers.env = std::env::vars_os().collect();
    let mut resolved = config::resolve(&layers)?;
    settle_width(&mut resolved.experiment).map_err(|error| origins::in_error(error, &resolved))?;
    let c = &resolved.experiment;
    let decoder = decoder::of_no_texts(c);
    // One with too many layers is refused by those who build it.
    if let Ok(blueprint) = engine::blueprint(c, decoder.as_ref()) {
        sizes::refuse_impossible(c, decoder.as_ref(), &blueprint)
            .map_err(|error| origins::in_error(error, &resolved))?;
    }
    resolved.warnings.iter().for_each(|warning| reporter.warn(warning));
    Ok(resolved)
}

/// Any width of features that were made elsewhere is the network's.
fn settle_width(c: &mut Experiment) -> Result<()> {
    if let Some(folder) = &c.data.features_dir {
        c.model.backbone.embed_dim = features::width_in(folder)?;
    }
    Ok(())
}

/// Where an experiment computes; what it has to do without is a warning that says where its value came from.
fn select_device(resolved: &Resolved, reporter: &Reporter) -> Compute {
    let (device, warning) = device::select(&resolved.experiment);
    // On a CPU that was asked for, there is nothing to say but that mixed precision is for GPUs.
    let cpu = resolved.experiment.run.device == Device::Cpu;
    if let Some(warning) = warning.filter(|_| !cpu || resolved.is_asked_for("run.precision")) {
        reporter.warn(&origins::in_line(&warning, resolved));
    }
    device
}

/// Prints a command's result on standard output; that nobody reads on is no failure.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::run("cannot write to standard output").cause(error))
        }
        _ => Ok(()),
    }
}
