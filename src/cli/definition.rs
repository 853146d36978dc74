//! The commands, their arguments and flags: every field of the experiment has its own, made from [`FIELDS`].

use std::fmt::Write;
use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Arg, ArgAction, value_parser};

use crate::config::{FIELDS, Field, Preset, Role, SECTIONS};
use crate::input;

/// The field of which the flag may stand alone.
pub(super) const RESUME: &str = "run.resume";

/// The command line's definition.
pub(super) fn command() -> clap::Command {
    let check = clap::Command::new("check")
        .about("Check an experiment and its data, and say what a run will cost; writes nothing")
        .args(experiment_options())
        .arg(all_option())
        .args(verbosity_options())
        .after_help(without_flag());
    let cache = clap::Command::new("cache")
        .about("Fill the feature cache: send every frame through the frozen backbones once")
        .arg_required_else_help(true)
        .args(experiment_options())
        .args(verbosity_options())
        .after_help(without_flag());
    let config = clap::Command::new("config")
        .about("Print the resolved experiment, each value with its origin, as a valid experiment file")
        .args(experiment_options())
        .args(verbosity_options())
        .after_help(without_flag());
    let train = clap::Command::new("train")
        .about("Train: the same as without a command")
        .args(train_options())
        .arg(overwrite_option().conflicts_with(RESUME))
        .after_help(without_flag());
    let resume = clap::Command::new("resume")
        .about("Go on with a run: the same as --resume")
        .arg_required_else_help(true)
        .args(train_options())
        .after_help(without_flag());
    clap::Command::new("slt-run")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Trains multi-stream sign language translation experiments described in TOML files")
        .after_help(format!(
            "{}\n\nLater layers win: built-in defaults, CONFIG files from left to right, environment variables\n\
             (SLT_OPTIMIZATION__LR=1e-4, SLT_MODEL__BACKBONE__DEPTH=6), the command line.",
            without_flag()
        ))
        .args_conflicts_with_subcommands(true)
        .arg_required_else_help(true)
        .args(train_options())
        .arg(overwrite_option().conflicts_with(RESUME))
        .subcommand(train)
        .subcommand(resume)
        .subcommand(evaluate_command())
        .subcommand(predict_command())
        .subcommand(check)
        .subcommand(cache)
        .subcommand(bench_command())
        .subcommand(config)
        .subcommand(demo_command())
}

fn evaluate_command() -> clap::Command {
    clap::Command::new("evaluate")
        .about("Translate a split with a trained network, measure the translations and write both beside the run")
        .arg_required_else_help(true)
        .args(trained_options())
        .arg(
            Arg::new("split")
                .long("split")
                .value_name("SPLIT")
                .help("The clips: those of data.val_index, data.test_index or data.train_index [val]")
                .value_parser(["val", "test", "train"])
                .default_value("val")
                .hide_default_value(true),
        )
        .arg(index_option("The clips: those of this CSV of video_ids").conflicts_with("split"))
        .args(verbosity_options())
        .after_help(AS_TRAINED)
}

fn predict_command() -> clap::Command {
    clap::Command::new("predict")
        .about("Translate clips with a trained network; needs no texts")
        .arg_required_else_help(true)
        .args(trained_options())
        .arg(
            Arg::new("ids")
                .long("ids")
                .value_name("ID,…")
                .help("The clips, by their video_ids; those of data.val_index without it")
                .value_delimiter(',')
                .action(ArgAction::Append),
        )
        .arg(index_option("The clips: those of this CSV of video_ids").conflicts_with("ids"))
        .arg(
            Arg::new("csv")
                .long("csv")
                .value_name("FILE")
                .help("Write a CSV to this file instead of the terminal")
                .value_parser(path_parser()),
        )
        .args(verbosity_options())
        .after_help(AS_TRAINED)
}

/// What a trained network leaves to say.
const AS_TRAINED: &str = "The network, its tokens and everything that is not given are as in the checkpoint. \
     Of the environment's SLT_… variables, those of [data], [decoding] and [run] count.";

fn index_option(help: &'static str) -> Arg {
    Arg::new("index").long("index").value_name("FILE").help(help).value_parser(path_parser())
}

/// RUN, which checkpoint of it, and the fields that do not make the network.
fn trained_options() -> Vec<Arg> {
    let mut options = vec![
        Arg::new("run")
            .value_name("RUN")
            .help("A run's folder, or a checkpoint")
            .required(true)
            .value_parser(path_parser()),
        Arg::new("checkpoint")
            .long("checkpoint")
            .value_name("best|last|FILE")
            .help("Which checkpoint of the folder [best]")
            .value_parser(path_parser()),
        set_option(),
    ];
    let says_where = ["run.device", "run.threads", "run.engine", "run.precision", "run.memory_budget"];
    let is_free = |field: &&Field| {
        matches!(field.section, "data" | "decoding") && field.name != "tensorboard"
            || says_where.contains(&field.key)
    };
    options.extend(FIELDS.iter().filter(is_free).filter_map(field_option));
    options
}

fn bench_command() -> clap::Command {
    clap::Command::new("bench")
        .about("Time training steps of an experiment on data made in memory; needs no dataset")
        .args(experiment_options())
        .arg(
            Arg::new("evaluation")
                .long("evaluation")
                .action(ArgAction::SetTrue)
                .help("Time validation batches instead: forward only, without dropout or a graph"),
        )
        .arg(Arg::new("decoding").long("decoding").action(ArgAction::SetTrue).conflicts_with("evaluation").help(
            "Time the search for texts of decoding.max_length tokens instead, from encoded frames",
        ))
        .arg(
            Arg::new("features")
                .long("features")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["evaluation", "decoding"])
                .help("Time training steps of all that follows the backbones, on features in the place of images"),
        )
        .arg(
            Arg::new("data")
                .long("data")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["evaluation", "decoding", "features"])
                .help("Time loading the experiment's training clips instead, by one thread and by data.num_workers"),
        )
        .arg(
            Arg::new("steps")
                .long("steps")
                .value_name("N")
                .help("Steps, batches or passes over the clips to time [5]")
                .value_parser(value_parser!(u64).range(1..=1_000_000)),
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print one line of JSON"))
        .args(verbosity_options())
        .after_help(without_flag())
}

fn demo_command() -> clap::Command {
    let size = |name: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .help(help)
            .value_parser(value_parser!(u64).range(1..=1_000_000))
    };
    clap::Command::new("demo")
        .about("Draw a small dataset, write an experiment file for it and train on it on the CPU")
        .arg(
            Arg::new("dir")
                .value_name("DIR")
                .help("Folder for the dataset, the experiment file and the run [demo, with --translate demo_translation]")
                .value_parser(path_parser()),
        )
        .arg(
            Arg::new("translate")
                .long("translate")
                .action(ArgAction::SetTrue)
                .help("Draw sentences of several signs, and translate them"),
        )
        .arg(size("clips", "Clips to draw"))
        .arg(size("frames", "Frames of a clip"))
        .arg(size("size", "Side of an image, in pixels").value_name("PX"))
        .arg(size("signs", "Different signs"))
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("N")
                .help("Seed of the drawing")
                .value_parser(value_parser!(u64)),
        )
        .arg(Arg::new("data-only").long("data-only").action(ArgAction::SetTrue).help("Stop before training"))
        .arg(overwrite_option().conflicts_with(RESUME))
        // The experiment file and its data are the demo's own, and so is its seed.
        .args(train_options().into_iter().filter(|arg| {
            let field = FIELDS.iter().find(|field| arg.get_id() == field.key);
            let is_data = field.is_some_and(|f| f.role == Role::Data);
            !is_data && !["config", "no-pin-memory", "run.seed"].iter().any(|id| arg.get_id() == id)
        }))
        .after_help(without_flag())
}

/// What a run is told, but for `--overwrite`.
fn train_options() -> Vec<Arg> {
    let mut options = experiment_options();
    options.push(allow_changes_option());
    options.extend(verbosity_options());
    options
}

/// CONFIG, `--set` and the flag of every field.
fn experiment_options() -> Vec<Arg> {
    let mut options = vec![
        Arg::new("config")
            .value_name("CONFIG")
            .help("Experiment files (TOML), or a run's folder for the experiment in it; later ones win")
            .action(ArgAction::Append)
            .num_args(0..)
            .value_parser(path_parser()),
        set_option(),
    ];
    options.extend(FIELDS.iter().filter_map(field_option));
    options.push(
        Arg::new("no-pin-memory")
            .long("no-pin-memory")
            .action(ArgAction::SetTrue)
            .help("Taken for the Python script's sake; has no effect")
            .help_heading(heading("data")),
    );
    options
}

fn set_option() -> Arg {
    Arg::new("set")
        .long("set")
        .value_name("SECTION.FIELD=VALUE")
        .help("Set any field, such as model.backbone.depth=6; an empty value unsets an optional one")
        .action(ArgAction::Append)
        .value_parser(|text: &str| match text.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_owned(), value.to_owned())),
            None => Err("expected SECTION.FIELD=VALUE, such as optimization.lr=1e-4"),
        })
}

/// The flag of a field, if it has one.
fn field_option(field: &'static Field) -> Option<Arg> {
    let flag = field.flag()?;
    let mut arg = Arg::new(field.key)
        .long(flag.trim_start_matches('-').to_owned())
        .value_name(field.name.to_ascii_uppercase())
        .help(format!("{} [{}] [{}]", field.doc, field.type_name(), default_of(field)).replace('`', ""))
        .help_heading(heading(field.section))
        .action(ArgAction::Append);
    if field.key == RESUME {
        // `--resume CONFIG` must not take the file for the value.
        arg = arg.num_args(0..=1).require_equals(true).default_missing_value("auto");
    }
    Some(arg)
}

/// The default as the help shows it.
pub(super) fn default_of(field: &Field) -> String {
    match field.default {
        Preset::Text(_) => format!("default: {}", field.default_text()),
        Preset::Required | Preset::Unset => field.default_text(),
    }
}

/// The fields that have no flag of their own, a line each below their section.
fn without_flag() -> String {
    let mut text = String::new();
    for section in SECTIONS {
        let of_section = |field: &&Field| field.section == section.name && field.flag().is_none();
        let fields: Vec<_> = FIELDS.iter().filter(of_section).collect();
        let Some(width) = fields.iter().map(|field| field.name.len()).max() else { continue };
        let break_before = if text.is_empty() { "" } else { "\n\n" };
        text.push_str(break_before);
        let _ = write!(text, "Fields of [{0}], for --set {0}.FIELD=VALUE and files:", section.name);
        for field in fields {
            let line = format!("\n  {:width$}  {} [{}]", field.name, field.type_name(), default_of(field));
            text += &line.replace('`', "");
        }
    }
    text
}

/// A path, with `~` for the home folder.
fn path_parser() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path: PathBuf| {
        input::expand_home(&path).map_err(|why| format!("{}: {}", why.what, why.hint))
    })
}

/// The heading in the help under which a section's flags stand.
fn heading(section: &'static str) -> &'static str {
    SECTIONS.iter().find(|s| s.name == section).map_or(section, |s| s.doc.trim_end_matches('.'))
}

fn overwrite_option() -> Arg {
    Arg::new("overwrite")
        .long("overwrite")
        .action(ArgAction::SetTrue)
        .help("Move a run that is already in the work folder aside, under a dated name")
}

fn all_option() -> Arg {
    Arg::new("all")
        .long("all")
        .action(ArgAction::SetTrue)
        .help("Open every image, not only the first of each clip and stream")
}

fn allow_changes_option() -> Arg {
    Arg::new("allow-changes")
        .long("allow-changes")
        .action(ArgAction::SetTrue)
        .help("Resume although values that decide the numbers have changed")
}

fn verbosity_options() -> [Arg; 2] {
    [
        Arg::new("quiet")
            .short('q')
            .long("quiet")
            .action(ArgAction::SetTrue)
            .help("Say nothing but warnings and errors"),
        Arg::new("verbose")
            .short('v')
            .long("verbose")
            .action(ArgAction::SetTrue)
            .conflicts_with("quiet")
            .help("Say more"),
    ]
}
