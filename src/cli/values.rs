//! From what clap has matched to what is asked for.

use std::path::PathBuf;

use clap::ArgMatches;

use super::command::{
    BenchArgs, CacheArgs, CheckArgs, ClipsChoice, ConfigArgs, DemoArgs, EvaluateArgs, PredictArgs,
    SplitChoice, Subject, TrainArgs, TrainedArgs,
};
use super::definition::RESUME;
use crate::config::{FIELDS, Layers, Setting};
use crate::evaluate::CheckpointChoice;
use crate::observe::reporter::Verbosity;

pub(super) fn train_args(matches: &ArgMatches) -> TrainArgs {
    TrainArgs {
        layers: layers(matches),
        overwrite: is_set(matches, "overwrite"),
        allow_changes: matches.get_flag("allow-changes"),
        verbosity: verbosity(matches),
    }
}

/// `slt-run resume CONFIG…`: a flag that says otherwise comes later and wins.
pub(super) fn resume_args(matches: &ArgMatches) -> TrainArgs {
    let mut args = train_args(matches);
    let setting =
        Setting { key: RESUME.to_owned(), value: "auto".to_owned(), origin: "slt-run resume".to_owned() };
    args.layers.settings.insert(0, setting);
    args
}

/// Whether a switch is on, where the command has it.
fn is_set(matches: &ArgMatches, id: &str) -> bool {
    matches.try_get_one::<bool>(id).ok().flatten().copied().unwrap_or(false)
}

pub(super) fn config_args(matches: &ArgMatches) -> ConfigArgs {
    ConfigArgs { layers: layers(matches), verbosity: verbosity(matches) }
}

pub(super) fn check_args(matches: &ArgMatches) -> CheckArgs {
    CheckArgs { layers: layers(matches), all: matches.get_flag("all"), verbosity: verbosity(matches) }
}

pub(super) fn cache_args(matches: &ArgMatches) -> CacheArgs {
    CacheArgs { layers: layers(matches), verbosity: verbosity(matches) }
}

fn trained_args(matches: &ArgMatches) -> TrainedArgs {
    let choice = matches.get_one::<PathBuf>("checkpoint").map(|path| match path.to_str() {
        Some("best") => CheckpointChoice::Best,
        Some("last") => CheckpointChoice::Last,
        _ => CheckpointChoice::File(path.clone()),
    });
    TrainedArgs {
        run: matches.get_one::<PathBuf>("run").cloned().unwrap_or_default(),
        checkpoint: choice.unwrap_or(CheckpointChoice::Best),
        layers: layers(matches),
        verbosity: verbosity(matches),
    }
}

pub(super) fn evaluate_args(matches: &ArgMatches) -> EvaluateArgs {
    let split = match (matches.get_one::<PathBuf>("index"), matches.get_one::<String>("split")) {
        (Some(index), _) => SplitChoice::Index(index.clone()),
        (None, Some(split)) if split == "train" => SplitChoice::Train,
        (None, Some(split)) if split == "test" => SplitChoice::Test,
        _ => SplitChoice::Val,
    };
    EvaluateArgs { trained: trained_args(matches), split }
}

pub(super) fn predict_args(matches: &ArgMatches) -> PredictArgs {
    let ids = matches.get_many::<String>("ids").map(|ids| ids.map(|id| id.trim().to_owned()).collect());
    let clips = match (matches.get_one::<PathBuf>("index"), ids) {
        (Some(index), _) => ClipsChoice::Index(index.clone()),
        (None, Some(ids)) => ClipsChoice::Ids(ids),
        (None, None) => ClipsChoice::Validation,
    };
    PredictArgs { trained: trained_args(matches), clips, csv: matches.get_one::<PathBuf>("csv").cloned() }
}

pub(super) fn bench_args(matches: &ArgMatches) -> BenchArgs {
    let subjects = [
        ("evaluation", Subject::Evaluation),
        ("decoding", Subject::Decoding),
        ("features", Subject::Features),
        ("data", Subject::Data),
    ];
    let chosen = subjects.into_iter().find(|(flag, _)| matches.get_flag(flag));
    let subject = chosen.map_or(Subject::Training, |(_, subject)| subject);
    BenchArgs {
        layers: layers(matches),
        subject,
        steps: matches.get_one::<u64>("steps").map_or(5, |&steps| steps as usize),
        json: matches.get_flag("json"),
        verbosity: verbosity(matches),
    }
}

pub(super) fn demo_args(matches: &ArgMatches) -> DemoArgs {
    let size = |name| matches.get_one::<u64>(name).and_then(|n| usize::try_from(*n).ok());
    let translate = matches.get_flag("translate");
    let usual = if translate { "demo_translation" } else { "demo" };
    DemoArgs {
        dir: matches.get_one("dir").cloned().unwrap_or_else(|| usual.into()),
        translate,
        clips: size("clips"),
        frames: size("frames"),
        size: size("size"),
        signs: size("signs"),
        seed: matches.get_one("seed").copied(),
        data_only: matches.get_flag("data-only"),
        run: train_args(matches),
    }
}

fn verbosity(matches: &ArgMatches) -> Verbosity {
    if matches.get_flag("quiet") {
        Verbosity::Quiet
    } else if matches.get_flag("verbose") {
        Verbosity::Verbose
    } else {
        Verbosity::Normal
    }
}

/// The experiment's layers, but for the environment.
fn layers(matches: &ArgMatches) -> Layers {
    let mut warnings = Vec::new();
    if is_set(matches, "no-pin-memory") {
        warnings.push("--no-pin-memory has no effect: there is no pinned memory to switch off".to_owned());
    }
    Layers {
        files: values(matches, "config").map(|(file, _): (&PathBuf, _)| file.clone()).collect(),
        presets: Vec::new(),
        env: Vec::new(),
        settings: settings(matches),
        warnings,
    }
}

/// `--set` and the fields' flags, in the order in which they were written.
fn settings(matches: &ArgMatches) -> Vec<Setting> {
    let mut found = set_values(matches);
    for (field, flag) in FIELDS.iter().filter_map(|field| Some((field, field.flag()?))) {
        for (value, at) in values::<String>(matches, field.key) {
            let origin = format!("{flag} {value}");
            found.push((at, Setting { key: field.key.to_owned(), value: value.clone(), origin }));
        }
    }
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, setting)| setting).collect()
}

/// `--set` with the place of each on the command line.
fn set_values(matches: &ArgMatches) -> Vec<(usize, Setting)> {
    values::<(String, String)>(matches, "set")
        .map(|((key, value), at)| {
            let origin = format!("--set {key}={value}");
            (at, Setting { key: key.clone(), value: value.clone(), origin })
        })
        .collect()
}

/// An option's values, each with its place on the command line.
fn values<'a, T: Clone + Send + Sync + 'static>(
    matches: &'a ArgMatches,
    id: &str,
) -> impl Iterator<Item = (&'a T, usize)> {
    // A command need not have all of them.
    let values = matches.try_get_many::<T>(id).ok().flatten();
    let indices: Vec<usize> =
        values.as_ref().and_then(|_| matches.indices_of(id)).into_iter().flatten().collect();
    values.into_iter().flatten().zip(indices)
}
