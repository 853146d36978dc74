//! The command line: `slt-run CONFIG…` trains, as `slt-run train CONFIG…` does; the other commands do what their help says.
//!
//! Every field of the experiment has its documented flag, made from [`FIELDS`].

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::builder::{PathBufValueParser, StyledStr, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, value_parser};

use crate::config::{self, FIELDS, Field, Layers, Preset, Role, SECTIONS, Setting};
use crate::evaluate::CheckpointChoice;
use crate::input;
use crate::observe::reporter::Verbosity;

/// What the command line asks for.
#[derive(Clone, Debug)]
pub enum Command {
    /// `slt-run CONFIG…`, `slt-run train CONFIG…`, `slt-run resume CONFIG…`: train.
    Train(TrainArgs),
    /// `slt-run evaluate RUN`: translate a split and measure the translations.
    Evaluate(EvaluateArgs),
    /// `slt-run predict RUN`: translate clips.
    Predict(PredictArgs),
    /// `slt-run check CONFIG…`: look at everything before a run, write nothing.
    Check(CheckArgs),
    /// `slt-run config CONFIG…`: print the resolved experiment with the origin of each value.
    Config(ConfigArgs),
    /// `slt-run bench CONFIG…`: time training steps, validation or loading.
    Bench(BenchArgs),
    /// `slt-run demo [DIR]`: draw a small dataset and train on it.
    Demo(DemoArgs),
}

/// `slt-run CONFIG…`.
#[derive(Clone, Debug)]
pub struct TrainArgs {
    /// The experiment; the caller fills in the environment.
    pub layers: Layers,
    /// Move a run that is in the way aside.
    pub overwrite: bool,
    /// Go on from a checkpoint although the experiment has changed.
    pub allow_changes: bool,
    /// How much to say.
    pub verbosity: Verbosity,
}

/// What `slt-run evaluate` and `slt-run predict` are told of a trained network.
#[derive(Clone, Debug)]
pub struct TrainedArgs {
    /// A run's folder or a checkpoint.
    pub run: PathBuf,
    /// Which checkpoint of a run's folder.
    pub checkpoint: CheckpointChoice,
    /// What is not as in the checkpoint's experiment; the caller fills in the environment.
    pub layers: Layers,
    /// How much to say.
    pub verbosity: Verbosity,
}

/// `slt-run evaluate RUN`.
#[derive(Clone, Debug)]
pub struct EvaluateArgs {
    /// The network.
    pub trained: TrainedArgs,
    /// The clips.
    pub split: SplitChoice,
}

/// A split of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SplitChoice {
    /// `data.train_index`.
    Train,
    /// `data.val_index`.
    Val,
    /// `data.test_index`.
    Test,
    /// An index file of its own.
    Index(PathBuf),
}

/// `slt-run predict RUN`.
#[derive(Clone, Debug)]
pub struct PredictArgs {
    /// The network.
    pub trained: TrainedArgs,
    /// The clips.
    pub clips: ClipsChoice,
    /// The file to write instead of the terminal.
    pub csv: Option<PathBuf>,
}

/// Clips of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClipsChoice {
    /// Those of the validation split.
    Validation,
    /// Those of an index file.
    Index(PathBuf),
    /// These.
    Ids(Vec<String>),
}

/// `slt-run check CONFIG…`.
#[derive(Clone, Debug)]
pub struct CheckArgs {
    /// The experiment; the caller fills in the environment.
    pub layers: Layers,
    /// Open every image, not only the first of each clip and stream.
    pub all: bool,
    /// How much to say.
    pub verbosity: Verbosity,
}

/// `slt-run config CONFIG…`.
#[derive(Clone, Debug)]
pub struct ConfigArgs {
    /// The experiment; the caller fills in the environment.
    pub layers: Layers,
    /// How much to say.
    pub verbosity: Verbosity,
}

/// `slt-run bench CONFIG…`.
#[derive(Clone, Debug)]
pub struct BenchArgs {
    /// The experiment; the caller fills in the environment and what has no use.
    pub layers: Layers,
    /// What to time.
    pub subject: Subject,
    /// How often to time it.
    pub steps: usize,
    /// Print one line of JSON instead of a table.
    pub json: bool,
    /// How much to say.
    pub verbosity: Verbosity,
}

/// What `slt-run bench` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A training step on data made in memory.
    Training,
    /// A validation batch on data made in memory.
    Evaluation,
    /// The search for the texts of a validation batch, from encoded frames made in memory.
    Decoding,
    /// Loading the training clips of the experiment's dataset.
    Data,
}

/// `slt-run demo [DIR]`. What is not given is for the demo to choose.
#[derive(Clone, Debug)]
pub struct DemoArgs {
    /// Folder for the dataset, the experiment file and the run.
    pub dir: PathBuf,
    /// Clips to draw.
    pub clips: Option<usize>,
    /// Frames of a clip.
    pub frames: Option<usize>,
    /// Side of an image, in pixels.
    pub size: Option<usize>,
    /// Different signs.
    pub signs: Option<usize>,
    /// Seed of the drawing.
    pub seed: Option<u64>,
    /// Draw sentences to translate instead of single signs.
    pub translate: bool,
    /// Stop before training.
    pub data_only: bool,
    /// The run on it. Its layers go on top of the demo's experiment file; the caller fills in files and environment.
    pub run: TrainArgs,
}

/// The field of which the flag may stand alone.
const RESUME: &str = "run.resume";

/// Reads a command line, the program's name first.
///
/// # Errors
/// What clap makes of it: `--help` and `--version` (exit code 0), an argument that is unknown or lacks its value, and
/// nothing at all, which prints the help to stderr (exit code 2).
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let args = with_negative_numbers(with_files(args));
    let matches = command().try_get_matches_from(&args).map_err(|error| advised(error, &args))?;
    Ok(match matches.subcommand() {
        Some(("train", matches)) => Command::Train(train_args(matches)),
        Some(("resume", matches)) => Command::Train(resume_args(matches)),
        Some(("evaluate", matches)) => Command::Evaluate(evaluate_args(matches)),
        Some(("predict", matches)) => Command::Predict(predict_args(matches)),
        Some(("check", matches)) => Command::Check(check_args(matches)),
        Some(("config", matches)) => Command::Config(config_args(matches)),
        Some(("bench", matches)) => Command::Bench(bench_args(matches)),
        Some(("demo", matches)) => Command::Demo(demo_args(matches)),
        _ => Command::Train(train_args(&matches)),
    })
}

/// Commands that came later than experiment files which may be called so: a file of that name is taken for itself.
const LATER_COMMANDS: [&str; 5] = ["train", "resume", "help", "evaluate", "predict"];

/// Writes a file's name that is a command's, too, as a path.
fn with_files(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if let Some(first) = args.get_mut(1)
        && LATER_COMMANDS.iter().any(|name| first == *name)
        && Path::new(first).is_file()
    {
        *first = Path::new(".").join(&first).into_os_string();
    }
    args
}

/// The error about an unknown flag with what is meant by it, or that there is none.
fn advised(mut error: clap::Error, args: &[OsString]) -> clap::Error {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return error };
    if error.kind() != ErrorKind::UnknownArgument || !flag.starts_with('-') {
        return error;
    }
    let texts: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let of_command = texts.get(1).copied().unwrap_or_default();
    let whole = command();
    let command = whole.find_subcommand(of_command).unwrap_or(&whole);
    let own: Vec<&str> = command.get_arguments().filter_map(Arg::get_long).collect();
    // `-lr 1e-4` is read as `-l`, `-r`.
    let is_it = |text: &&str| {
        text.split('=').next() == Some(flag) || text.starts_with(flag) && !flag.starts_with("--")
    };
    let at = texts.iter().position(is_it);
    let written = at.and_then(|at| texts.get(at)).copied().unwrap_or(flag);
    let (name, value) = match written.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (written, at.and_then(|at| texts.get(at + 1)).copied()),
    };
    let elsewhere = |other: &&clap::Command| {
        let is_flag = |arg: &Arg| arg.get_long() == Some(name.trim_start_matches('-'));
        other.get_arguments().any(is_flag) && !command.get_arguments().any(is_flag)
    };
    let tip = if let Some(other) = whole.get_subcommands().find(elsewhere) {
        format!("'slt-run {}' has {name}", other.get_name())
    } else {
        config::for_flag(name, value, &own, own.contains(&"set"))
    };
    error.remove(ContextKind::SuggestedArg);
    error.remove(ContextKind::SuggestedSubcommand);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![StyledStr::from(tip)]));
    error
}

/// Writes `--lr -1e-4` as `--lr=-1e-4`: a negative number is a value, refused later with its reason, and clap would take
/// this one for a flag.
fn with_negative_numbers(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let flags: Vec<_> = FIELDS.iter().filter_map(Field::flag).collect();
    let mut joined: Vec<OsString> = Vec::new();
    for arg in args {
        let negative = arg.to_str().is_some_and(|text| text.starts_with('-') && text.parse::<f64>().is_ok());
        match joined.last_mut() {
            Some(flag) if negative && flags.iter().any(|known| flag == known.as_str()) => {
                flag.push("=");
                flag.push(arg);
            }
            _ => joined.push(arg),
        }
    }
    joined
}

/// The command line's definition.
fn command() -> clap::Command {
    let check = clap::Command::new("check")
        .about("Check an experiment and its data, and say what a run will cost; writes nothing")
        .args(experiment_options())
        .arg(all_option())
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
            Arg::new("data")
                .long("data")
                .action(ArgAction::SetTrue)
                .conflicts_with_all(["evaluation", "decoding"])
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
fn default_of(field: &Field) -> String {
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

fn train_args(matches: &ArgMatches) -> TrainArgs {
    TrainArgs {
        layers: layers(matches),
        overwrite: is_set(matches, "overwrite"),
        allow_changes: matches.get_flag("allow-changes"),
        verbosity: verbosity(matches),
    }
}

/// `slt-run resume CONFIG…`: a flag that says otherwise comes later and wins.
fn resume_args(matches: &ArgMatches) -> TrainArgs {
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

fn config_args(matches: &ArgMatches) -> ConfigArgs {
    ConfigArgs { layers: layers(matches), verbosity: verbosity(matches) }
}

fn check_args(matches: &ArgMatches) -> CheckArgs {
    CheckArgs { layers: layers(matches), all: matches.get_flag("all"), verbosity: verbosity(matches) }
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

fn evaluate_args(matches: &ArgMatches) -> EvaluateArgs {
    let split = match (matches.get_one::<PathBuf>("index"), matches.get_one::<String>("split")) {
        (Some(index), _) => SplitChoice::Index(index.clone()),
        (None, Some(split)) if split == "train" => SplitChoice::Train,
        (None, Some(split)) if split == "test" => SplitChoice::Test,
        _ => SplitChoice::Val,
    };
    EvaluateArgs { trained: trained_args(matches), split }
}

fn predict_args(matches: &ArgMatches) -> PredictArgs {
    let ids = matches.get_many::<String>("ids").map(|ids| ids.map(|id| id.trim().to_owned()).collect());
    let clips = match (matches.get_one::<PathBuf>("index"), ids) {
        (Some(index), _) => ClipsChoice::Index(index.clone()),
        (None, Some(ids)) => ClipsChoice::Ids(ids),
        (None, None) => ClipsChoice::Validation,
    };
    PredictArgs { trained: trained_args(matches), clips, csv: matches.get_one::<PathBuf>("csv").cloned() }
}

fn bench_args(matches: &ArgMatches) -> BenchArgs {
    let subjects =
        [("evaluation", Subject::Evaluation), ("decoding", Subject::Decoding), ("data", Subject::Data)];
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

fn demo_args(matches: &ArgMatches) -> DemoArgs {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, clap::Error> {
        parse(std::iter::once("slt-run").chain(line.split_whitespace()).map(OsString::from))
    }

    fn train(line: &str) -> TrainArgs {
        match parsed(line).unwrap() {
            Command::Train(args) => args,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// Exit code, whether it goes to stderr, and text.
    fn refused(line: &str) -> (i32, bool, String) {
        let error = parsed(line).unwrap_err();
        (error.exit_code(), error.use_stderr(), error.to_string())
    }

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn settings_keep_their_order_and_their_words() {
        let args =
            train("a.toml --lr 1 --set optimization.lr=2 b.toml --lr=-3 --epochs 7 --init-from w.pt -v");
        assert_eq!(args.layers.files, [PathBuf::from("a.toml"), PathBuf::from("b.toml")]);
        let settings: Vec<_> = args
            .layers
            .settings
            .iter()
            .map(|s| (s.key.as_str(), s.value.as_str(), s.origin.as_str()))
            .collect();
        assert_eq!(
            settings,
            [
                ("optimization.lr", "1", "--lr 1"),
                ("optimization.lr", "2", "--set optimization.lr=2"),
                ("optimization.lr", "-3", "--lr -3"),
                ("optimization.epochs", "7", "--epochs 7"),
                ("run.init_from", "w.pt", "--init-from w.pt"),
            ]
        );
        assert_eq!((args.overwrite, args.verbosity), (false, Verbosity::Verbose));
    }

    #[test]
    fn negative_numbers_are_values() {
        for value in ["-1", "-1.5", "-1e-4", "-inf"] {
            assert_eq!(train(&format!("--lr {value}")).layers.settings[0].value, value);
        }
        let empty = parse(["slt-run", "--tensorboard", ""].map(OsString::from)).unwrap();
        let Command::Train(args) = empty else { panic!() };
        assert_eq!(args.layers.settings[0].value, "");
    }

    #[test]
    fn a_value_keeps_its_equal_signs() {
        let args = train("--set run.work_dir=a=b");
        assert_eq!(args.layers.settings[0].value, "a=b");
        let (code, _, text) = refused("--set optimization.lr");
        assert_eq!(code, 2);
        assert!(text.contains("expected SECTION.FIELD=VALUE, such as optimization.lr=1e-4"), "{text}");
    }

    #[test]
    fn the_scripts_pin_memory_switch_only_warns() {
        let args = train("a.toml --no-pin-memory");
        assert_eq!(
            args.layers.warnings,
            ["--no-pin-memory has no effect: there is no pinned memory to switch off"]
        );
        assert!(args.layers.settings.is_empty());
    }

    #[test]
    fn subcommands() {
        let Command::Check(args) = parsed("check a.toml --epochs 1 -q").unwrap() else { panic!() };
        assert_eq!((args.layers.settings.len(), args.verbosity, args.all), (1, Verbosity::Quiet, false));
        let Command::Check(args) = parsed("check --all a.toml").unwrap() else { panic!() };
        assert!(args.all && args.layers.files == [PathBuf::from("a.toml")]);
        assert!(matches!(parsed("config a.toml b.toml --set a.b=c").unwrap(), Command::Config(_)));
        let bench = |line| match parsed(line).unwrap() {
            Command::Bench(args) => (args.subject, args.steps, args.json),
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(bench("bench a.toml"), (Subject::Training, 5, false));
        assert_eq!(bench("bench a.toml --evaluation --steps 2 --json"), (Subject::Evaluation, 2, true));
        assert_eq!(bench("bench a.toml --data"), (Subject::Data, 5, false));
        assert_eq!(refused("bench a.toml --data --evaluation").0, 2);
        let Command::Demo(args) = parsed("demo").unwrap() else { panic!() };
        assert_eq!((args.dir, args.clips, args.data_only), ("demo".into(), None, false));
        let line = "demo x --clips 9 --frames 8 --size 64 --signs 3 --seed 5 --data-only --set run.seed=1";
        let Command::Demo(args) = parsed(line).unwrap() else { panic!() };
        assert_eq!((args.dir, args.clips, args.frames, args.size), ("x".into(), Some(9), Some(8), Some(64)));
        assert_eq!((args.signs, args.seed, args.data_only), (Some(3), Some(5), true));
        assert_eq!(args.run.layers.settings[0].key, "run.seed");
        let line = "demo x --epochs 3 --resume --device cpu --threads 2 --set model.backbone.depth=1 --allow-changes";
        let Command::Demo(args) = parsed(line).unwrap() else { panic!() };
        let keys: Vec<_> = args.run.layers.settings.iter().map(|setting| setting.key.as_str()).collect();
        assert_eq!(
            keys,
            ["optimization.epochs", "run.resume", "run.device", "run.threads", "model.backbone.depth"]
        );
        assert!(args.run.allow_changes && args.run.layers.files.is_empty());
        assert_eq!(refused("demo --face-dir x").0, 2);
        assert_eq!(refused("demo --resume --overwrite").0, 2);
    }

    #[test]
    fn training_has_names_of_its_own() {
        let args = train("train a.toml --lr 1 --overwrite");
        assert_eq!((args.layers.files.len(), args.layers.settings.len(), args.overwrite), (1, 1, true));
        let args = train("resume a.toml --epochs 9");
        let settings: Vec<_> =
            args.layers.settings.iter().map(|s| (s.key.as_str(), s.value.as_str())).collect();
        assert_eq!(settings, [("run.resume", "auto"), ("optimization.epochs", "9")]);
        assert_eq!(refused("resume a.toml --overwrite").0, 2);
        for line in ["help", "help train", "help demo", "train --help", "resume --help"] {
            let (code, stderr, text) = refused(line);
            assert_eq!((code, stderr), (0, false), "{line}");
            assert!(text.contains("Usage: slt-run"), "{line}: {text}");
        }
    }

    #[test]
    fn unknown_flags_are_answered() {
        for (line, answer) in [
            ("a.toml --depth 6", "did you mean '--set model.backbone.depth=6'?"),
            ("a.toml --depth=6", "did you mean '--set model.backbone.depth=6'?"),
            ("--depth a.toml", "did you mean '--set model.backbone.depth=VALUE'?"),
            ("a.toml --clip-grad 1", "did you mean '--grad-clip'?"),
            ("check a.toml --backbone-depth 2", "did you mean '--set model.backbone.depth=2'?"),
            ("a.toml --patience 3", "there is no early stopping"),
            ("a.toml -lr 1e-4", "did you mean '--lr'?"),
            ("a.toml --fp16", "did you mean '--precision amp --amp-dtype float16'?"),
            ("a.toml --steps 3", "'slt-run bench' has --steps"),
            ("demo --clip 3", "did you mean '--clips'?"),
            ("a.toml --frobnicate", "there is none, and no field is like it"),
        ] {
            let (code, _, text) = refused(line);
            assert_eq!(code, 2, "{line}");
            assert!(text.contains(&format!("tip: {answer}")), "{line}: {text}");
            assert_eq!(text.matches("tip:").count(), 1, "{line}: {text}");
        }
    }

    #[test]
    fn help_has_the_values_of_every_field() {
        let text = refused("--help").2;
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = words(&text);
        for field in FIELDS {
            let (name, before) = match field.flag() {
                Some(flag) => (flag, "["),
                None => (field.name.to_owned(), ""),
            };
            let values = format!("{before}{}", field.type_name()).replace('`', "");
            let found = text.match_indices(&name).any(|(at, _)| {
                let after = &text[at..];
                if !after[name.len()..].starts_with([' ', '[']) {
                    return false;
                }
                let default = format!("[{}]", default_of(field)).replace('`', "");
                after.find(&default).is_some_and(|end| {
                    let about = &after[..end];
                    about.contains(&values) && !about[name.len()..].contains(" --")
                })
            });
            assert!(found, "{} lacks {values}: {text}", field.key);
        }
        assert!(
            text.contains("--optimizer <OPTIMIZER>") && text.contains("[adamw, adam, sgd] [default: adamw]")
        );
    }

    #[test]
    fn every_field_of_a_top_section_has_its_documented_flag() {
        for flag in "face-dir hand-left-dir hand-right-dir pose-dir metadata-csv train-index val-index batch-size \
                     val-batch-size num-workers tensorboard image-size sequence-length projector-dim d-model \
                     pose-landmarks projector-dropout fusion-dropout temporal-nhead temporal-layers \
                     temporal-dim-feedforward temporal-dropout vocab-size epochs optimizer lr weight-decay scheduler \
                     scheduler-step-size scheduler-gamma scheduler-tmax label-smoothing work-dir device precision seed"
            .split_whitespace()
        {
            let args = train(&format!("--{flag} 1"));
            assert_eq!(args.layers.settings[0].origin, format!("--{flag} 1"));
        }
    }

    #[test]
    fn mistakes_exit_with_2_and_help_with_0() {
        let (code, stderr, text) = refused("");
        assert_eq!((code, stderr), (2, true));
        assert!(text.contains("Usage:") && text.contains("--label-smoothing"), "{text}");
        let (code, _, text) = refused("a.toml --epoch 3");
        assert_eq!(code, 2);
        assert!(text.contains("unexpected argument '--epoch'") && text.contains("'--epochs'"), "{text}");
        assert_eq!(refused("a.toml --lr").0, 2);
        assert_eq!(refused("a.toml -q -v").0, 2);
        assert_eq!(refused("demo --clips 0").0, 2);
        assert_eq!((refused("--help").0, refused("--help").1), (0, false));
        assert_eq!(refused("--version").2, concat!("slt-run ", env!("CARGO_PKG_VERSION"), "\n"));
    }
}
