//! `slt-run demo`: draws a small dataset and trains on it through the same code as any run.

use std::ffi::OsString;
use std::path::Path;

use super::prepare::Call;
use super::text::shell_word;
use super::{evaluate, resolve, train};
use crate::Result;
use crate::cli::{DemoArgs, SplitChoice, TrainedArgs};
use crate::config::{Layers, Resolved};
use crate::demo::{Options, draw, drawn_with};
use crate::error::count;
use crate::evaluate::{CheckpointChoice, Translation};
use crate::observe::reporter::{Reporter, Verbosity};
use crate::train::trainer::Ended;

pub fn demo(args: DemoArgs, arguments: &[OsString], reporter: &Reporter) -> Result<Ended> {
    // A dataset that is there already is taken as it is, unless another one is asked for.
    let usual = if args.translate { Options::to_translate() } else { Options::default() };
    let default = drawn_with(&args.dir).filter(|there| there.translate == args.translate).unwrap_or(usual);
    let options = Options {
        clips: args.clips.unwrap_or(default.clips),
        frames: args.frames.unwrap_or(default.frames),
        size: args.size.unwrap_or(default.size),
        signs: args.signs.unwrap_or(default.signs),
        seed: args.seed.unwrap_or(default.seed),
        translate: args.translate,
    };
    let drawn = draw(&args.dir, &options, &|done, all| reporter.stage("drawing", done, all))?;
    reporter.info(&format!(
        "{} {} to train on and {} to validate on; the experiment is {}",
        if drawn.reused { "found" } else { "drew" },
        count(drawn.train, "clip"),
        drawn.val,
        drawn.experiment.display(),
    ));
    if args.data_only {
        reporter.info(&format!("train on it with: slt-run {}", shell_word(&drawn.experiment)));
        return Ok(Ended::Finished);
    }
    let mut run = args.run;
    run.layers.files = vec![drawn.experiment.clone()];
    let resolved = resolve(run.layers, reporter)?;
    let call = Call {
        experiment_file: Some(drawn.experiment),
        overwrite: run.overwrite,
        allow_changes: run.allow_changes,
        arguments,
    };
    let ended = train::run(&resolved, &call, reporter)?;
    if ended != Ended::Finished {
        return Ok(ended);
    }
    if options.translate {
        return say_translations(&resolved, reporter).map(|()| ended);
    }
    if let Some(accuracy) = last_accuracy(&resolved.experiment.run.work_dir.join("metrics.jsonl")) {
        let right = (accuracy * drawn.val as f64).round();
        let percent = 100.0 * accuracy;
        reporter.info(&format!(
            "Result: {percent:.1} % validation accuracy, the signs of {right} of {} clips",
            drawn.val
        ));
    }
    Ok(ended)
}

/// Translates the validation split as `slt-run evaluate` does, and shows some of it.
fn say_translations(resolved: &Resolved, reporter: &Reporter) -> Result<()> {
    let run = TrainedArgs {
        run: resolved.experiment.run.work_dir.clone(),
        checkpoint: CheckpointChoice::Best,
        layers: Layers::default(),
        verbosity: Verbosity::Normal,
    };
    let evaluated = evaluate::evaluate_split(run, &SplitChoice::Val, reporter)?;
    let bleu = evaluated.bleu;
    reporter.info(&format!("Result: BLEU-4 {bleu:.1} on sentences that no training clip has"));
    // The first of each length.
    let mut shown: Vec<&Translation> = Vec::new();
    for translation in &evaluated.translations {
        let length = |it: &Translation| it.reference.split_whitespace().count();
        if shown.len() < 3 && !shown.iter().any(|other| length(other) == length(translation)) {
            shown.push(translation);
        }
    }
    for translation in shown {
        reporter.info(&format!("  signed      {}", translation.reference));
        reporter.info(&format!("  translated  {}", translation.hypothesis()));
    }
    Ok(())
}

/// The validation accuracy of a run's last epoch; `None` where its metrics could not be written.
fn last_accuracy(metrics: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(metrics).ok()?;
    let last: serde_json::Value = serde_json::from_str(text.lines().last()?).ok()?;
    last.get("val_accuracy")?.as_f64()
}
