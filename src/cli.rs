//! The command line: `slt-run CONFIG…` trains, as `slt-run train CONFIG…` does; the other commands do what their help says.

mod command;
mod definition;
mod values;

use std::ffi::OsString;
use std::path::Path;

use clap::Arg;
use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::config::{self, FIELDS, Field};
use definition::command;
use values::{
    bench_args, cache_args, check_args, config_args, demo_args, evaluate_args, predict_args, resume_args,
    train_args,
};

pub use command::{
    BenchArgs, CacheArgs, CheckArgs, ClipsChoice, Command, ConfigArgs, DemoArgs, EvaluateArgs, PredictArgs,
    SplitChoice, Subject, TrainArgs, TrainedArgs,
};

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
        Some(("cache", matches)) => Command::Cache(cache_args(matches)),
        Some(("config", matches)) => Command::Config(config_args(matches)),
        Some(("bench", matches)) => Command::Bench(bench_args(matches)),
        Some(("demo", matches)) => Command::Demo(demo_args(matches)),
        _ => Command::Train(train_args(&matches)),
    })
}

/// Commands that came later than experiment files which may be called so: a file of that name is taken for itself.
const LATER_COMMANDS: [&str; 6] = ["train", "resume", "help", "evaluate", "predict", "cache"];

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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::definition::default_of;
    use super::*;
    use crate::observe::reporter::Verbosity;

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
            ("a.toml --patience 3", "did you mean '--early-stopping'?"),
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
