//! `slt-run check`: everything that could stop a run of days, found before it starts; nothing is written.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::text::{about, amount, bytes, count, table};
use super::train::{look_into_files, open_dataset};
use super::{origins, print, resolve, select_device};
use crate::config::streams::{STREAMS, image_streams};
use crate::config::{Experiment, Layers, Resolved, Resume};
use crate::data::{Dataset, Loader, Phase, Request, Summary};
use crate::engine::{Engine, Placed, Step, memory::Plan, threads};
use crate::error::{Kind, Problem};
use crate::nn::Pass;
use crate::observe::{self, reporter::Reporter, run_folder::RunFolder};
use crate::train::Trainer;
use crate::train::feed::default_workers;
use crate::{Error, Result};

pub fn check(layers: Layers, reporter: &Reporter) -> Result<()> {
    let resolved = resolve(layers, reporter)?;
    check_resolved(&resolved, reporter).map_err(|error| origins::in_error(error, &resolved))
}

fn check_resolved(resolved: &Resolved, reporter: &Reporter) -> Result<()> {
    let c = &resolved.experiment;
    let device = select_device(resolved, reporter);
    let threads = threads::start(threads::available(c.run.threads)?)?;
    let dataset = open_dataset(resolved, reporter)?;
    let problems = look_into_files(&dataset, c, reporter);
    let mut trainer = Trainer::new(c, &device, &dataset)?;

    let device = format!("{}, {}", device.describe(), count(threads, "thread"));
    print(&format!(
        "{}\n{}",
        describe_data(&dataset.summary(), c),
        describe_network(c, &trainer, &dataset, &device)
    ))?;
    Error::all(Kind::Data, problems)?;
    let engine = trainer.engine.as_mut();
    engine.plan().refuse_more_than_the_budget()?;
    let before = engine.chunk();
    print(&one_step(c, &dataset, engine)?)?;
    if let (Some(frames), true) = (engine.chunk(), engine.chunk() != before) {
        reporter.warn(&observe::smaller_chunk(frames));
    }
    check_work_dir(c, reporter)?;
    print("everything is in order\n")
}

fn describe_data(s: &Summary, c: &Experiment) -> String {
    let longer = format!("longer than {}", c.model.sequence_length);
    let mut splits = vec![["split", "clips", "frames: min", "median", "max", &longer].map(str::to_owned)];
    for (name, split) in [("train", &s.train), ("validation", &s.val)] {
        let numbers = [split.clips, split.min, split.median, split.max, split.longer_than_sequence];
        splits.push(row(name, numbers));
    }
    let titles =
        ["stream", "frames", "clips without", "clips cut short", "clips with gaps", "frames in gaps"];
    let mut streams = vec![titles.map(str::to_owned)];
    for stream in &s.streams {
        let numbers = [stream.frames, stream.empty, stream.short, stream.with_gaps, stream.missing_frames];
        streams.push(row(stream.name, numbers));
    }
    let mut pose = row("pose", [0, s.missing_poses, 0, 0, 0]);
    for column in [1, 3, 4, 5] {
        "-".clone_into(&mut pose[column]);
    }
    streams.push(pose);

    let t = &s.texts;
    let mut text = format!("{}\n{}\n", table(&splits), table(&streams));
    let _ = write!(text, "{} on {} of {} classes", count(t.texts, "text"), t.classes, c.model.vocab_size);
    if s.unseen_val_texts > 0 {
        let _ = write!(
            text,
            "; {} with a text that no training clip has",
            count(s.unseen_val_texts, "validation clip")
        );
    }
    if t.colliding > 0 {
        let _ = write!(text, "; {} share a class with another, for example", count(t.colliding, "text"));
    }
    text.push('\n');
    for [a, b] in &t.examples {
        let _ = writeln!(text, "  {a:?} and {b:?}");
    }
    text
}

fn row(name: &str, numbers: [usize; 5]) -> [String; 6] {
    let mut row =
        [name.to_owned(), String::new(), String::new(), String::new(), String::new(), String::new()];
    row.iter_mut().skip(1).zip(numbers).for_each(|(cell, number)| *cell = number.to_string());
    row
}

fn describe_network(c: &Experiment, trainer: &Trainer, dataset: &Dataset, device: &str) -> String {
    let blueprint = trainer.engine.host().network.blueprint();
    let part = |name: &str, modules: Vec<&str>| {
        let elements = modules.iter().map(|module| blueprint.elements(&format!("{module}.")));
        format!("{name} {}", amount(elements.fold(0, usize::saturating_add)))
    };
    let encoder = |names: Vec<&str>| names.iter().map(|name| format!("encoder.{name}")).collect::<Vec<_>>();
    let backbones = encoder(image_streams().filter_map(|stream| stream.backbone()).collect());
    let projectors = encoder(STREAMS.iter().map(|stream| stream.projector).collect());
    let parts = [
        part("backbones", backbones.iter().map(String::as_str).collect()),
        part("projectors", projectors.iter().map(String::as_str).collect()),
        part("fusion", vec!["encoder.fusion"]),
        part("temporal", vec!["encoder.positional", "encoder.temporal"]),
        part("decoder", vec!["decoder"]),
    ];
    let Plan { chunk, memory, budget } = *trainer.engine.plan();
    let chunks = match chunk {
        None => "all frames of a batch at once; nothing is computed twice".to_owned(),
        Some(frames) => {
            format!("{frames} frames of a stream at a time; backbones are computed twice, 4/3 of the work")
        }
    };
    let budget = budget.map_or_else(|| "unknown".to_owned(), bytes);
    let batches = dataset.train.len().div_ceil(c.data.batch_size);
    let val_batch = c.data.val_batch_size.unwrap_or(c.data.batch_size);
    let (epochs, val_batches) = (c.optimization.epochs, dataset.val.len().div_ceil(val_batch));
    format!(
        "parameters   {}: {}\n\
         memory       {} expected: {}; the budget is {budget}\n\
         chunks       {chunks}\n\
         device       {device}; {}\n\
         epoch        {} of at most {}, and {} of validation; {} are {}\n",
        amount(blueprint.elements("")),
        parts.join(", "),
        bytes(memory.total()),
        memory.parts(),
        match c.data.num_workers.unwrap_or_else(default_workers) {
            0 => "data is loaded in the training thread".to_owned(),
            workers => format!("{} for the data", count(workers, "thread")),
        },
        count(batches, "step"),
        count(c.data.batch_size, "clip"),
        val_batches,
        count(epochs, "epoch"),
        count(epochs.saturating_mul(batches), "step"),
    )
}

/// One training step on the first batch, without an update, and what it says about a run's time.
fn one_step(c: &Experiment, dataset: &Arc<Dataset>, engine: &mut dyn Engine) -> Result<String> {
    let clips: Vec<usize> = dataset.train.iter().take(c.data.batch_size).copied().collect();
    let request = Request { phase: Phase::Train, epoch: 0, clips };
    let mut loader = Loader::new(Arc::clone(dataset), 0, std::iter::once(request));
    let begun = Instant::now();
    let (_, batch) = loader.next().ok_or_else(|| Error::run("the loader has no batch"))??;
    let loading = begun.elapsed();
    let images = image_streams().count() * batch.targets.len() * c.model.sequence_length;
    let mut batch = Placed::from(batch);
    let begun = Instant::now();
    // A step of two batches: every engine tells their losses at once.
    let mut step = Step::of(2);
    engine.train(&mut batch, &Pass::training(c.run.seed, 0), &mut step)?;
    let (training, loss) = (begun.elapsed(), step.loss().unwrap_or(f64::NAN));
    if !loss.is_finite() {
        let problem = Problem::new(format!("the loss of one training step is {loss}"));
        return Err(Error::new(Kind::Numbers, problem.hint("look at the poses and the initial weights")));
    }
    let each = training.as_secs_f64() / batch.clips() as f64;
    let epoch = Duration::try_from_secs_f64(each * dataset.train.len() as f64).unwrap_or(Duration::MAX);
    let run = Duration::try_from_secs_f64(epoch.as_secs_f64() * c.optimization.epochs as f64);
    Ok(format!(
        "one step     loss {:.4}; {} for {images} images ({:.0} images/s), {} to load them in one thread\n\
         a run        about {} an epoch and {} for {}, without validation\n",
        loss,
        about(training),
        images as f64 / training.as_secs_f64(),
        about(loading),
        about(epoch),
        about(run.unwrap_or(Duration::MAX)),
        count(c.optimization.epochs, "epoch"),
    ))
}

/// What can be told of the work folder without writing to it.
fn check_work_dir(c: &Experiment, reporter: &Reporter) -> Result<()> {
    let folder = &c.run.work_dir;
    if folder.is_file() {
        return Err(Error::config(format!("run.work_dir {} is a file, not a folder", folder.display()))
            .hint("choose another run.work_dir"));
    }
    RunFolder::look(folder)?;
    if RunFolder::holds_run(folder)? && c.run.resume == Resume::Never {
        reporter.warn(&format!(
            "run.work_dir {} holds a run already: choose another one, go on with this one (--resume), or give --overwrite, which moves it aside",
            folder.display()
        ));
    }
    Ok(())
}
