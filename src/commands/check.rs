//! `slt-run check`: everything that could stop a run of days, found before it starts; nothing is written.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use super::train::open_dataset;
use super::{print, resolve};
use crate::config::{Experiment, Layers};
use crate::data::{Dataset, Loader, Phase, Request, Summary};
use crate::error::{Kind, Problem};
use crate::nn::{Pass, device, threads};
use crate::observe::reporter::Reporter;
use crate::train::feed::{default_workers, on_device};
use crate::train::memory::Plan;
use crate::train::{Network, Trainer};
use crate::{Error, Result};

pub fn check(layers: Layers, reporter: &Reporter) -> Result<()> {
    let resolved = resolve(layers, reporter)?;
    let c = &resolved.experiment;
    let device = device::select(&c.run, |warning| reporter.warn(warning))?;
    let threads = threads::start(c.run.threads.unwrap_or_else(threads::available));
    let dataset = open_dataset(c, reporter)?;
    let problems = dataset.verify(c.data.num_workers.unwrap_or_else(default_workers).max(1));
    let trainer = Trainer::new(c, &device)?;

    let mut text = describe_data(&dataset.summary(), c);
    text += &describe_network(&trainer, &device::describe(&device), threads);
    print(&text)?;
    Error::all(Kind::Data, problems)?;
    print(&format!("{}\n", one_step(c, &dataset, &trainer.network)?))?;
    if c.run.work_dir.join("config.toml").exists() {
        reporter.warn(&format!(
            "{} holds a run already: choose another run.work_dir, or move it aside with --overwrite",
            c.run.work_dir.display()
        ));
    }
    print("everything is in order\n")
}

fn describe_data(s: &Summary, c: &Experiment) -> String {
    let mut text = String::new();
    for (name, split, index) in [("train", &s.train, &c.data.train_index), ("val", &s.val, &c.data.val_index)]
    {
        let _ = writeln!(
            text,
            "{name:<12} {} clips from {}; frames a clip: {} min, {} median, {} max; {} longer than {}",
            split.clips,
            index.display(),
            split.min,
            split.median,
            split.max,
            split.longer_than_sequence,
            c.model.sequence_length,
        );
    }
    for stream in &s.streams {
        let _ = writeln!(
            text,
            "{:<12} {} frames; clips without any: {}; that end early: {}; with gaps: {} ({} frames)",
            stream.name, stream.frames, stream.empty, stream.short, stream.with_gaps, stream.missing_frames,
        );
    }
    let _ = writeln!(text, "{:<12} clips without a pose file: {}", "pose", s.missing_poses);
    let t = &s.texts;
    let _ = writeln!(
        text,
        "{:<12} {} different, in {} of {} classes; {} share a class with another; {} in validation only",
        "texts", t.texts, t.classes, c.model.vocab_size, t.colliding, s.unseen_val_texts,
    );
    for [a, b] in &t.examples {
        let _ = writeln!(text, "{:<12} one class: {a:?} and {b:?}", "");
    }
    text
}

fn describe_network(trainer: &Trainer, device: &str, threads: usize) -> String {
    let parameters = trainer.network.parameters();
    let millions = |prefix: &str| parameters.elements(prefix) as f64 / 1e6;
    let part = |name: &str, prefixes: &[&str]| {
        format!("{name} {:.2} M", prefixes.iter().map(|prefix| millions(prefix)).sum::<f64>())
    };
    let parts = [
        part("backbones", &["encoder.face_backbone", "encoder.hand_backbone_"]),
        part(
            "projectors",
            &["encoder.face_projector", "encoder.hand_left_", "encoder.hand_right_", "encoder.pose_"],
        ),
        part("fusion", &["encoder.fusion"]),
        part("temporal", &["encoder.positional", "encoder.temporal"]),
        part("decoder", &["decoder"]),
    ];
    let Plan { chunk, memory, budget } = trainer.plan;
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    let chosen = match chunk {
        None => "all frames of a batch at once, nothing computed twice".to_owned(),
        Some(frames) => {
            format!("{frames} frames of a stream at a time, backbones computed twice (4/3 of the work)")
        }
    };
    let budget = budget.map_or_else(String::new, |budget| format!("; the budget is {:.2} GiB", gib(budget)));
    let mut text = format!("{:<12} {:.2} M: {}\n", "parameters", millions(""), parts.join(", "));
    let _ = writeln!(
        text,
        "{:<12} {:.2} GiB expected on the CPU: {:.2} parameters and optimizer, {:.2} backbones, {:.2} head, {:.2} batches{budget}",
        "memory",
        gib(memory.total()),
        gib(memory.parameters),
        gib(memory.backbones),
        gib(memory.head),
        gib(memory.batches),
    );
    let _ = writeln!(text, "{:<12} {chosen}", "chunks");
    let _ = writeln!(text, "{:<12} {device}, {threads} threads", "device");
    text
}

/// One training step on the first batch, without an update.
fn one_step(c: &Experiment, dataset: &Arc<Dataset>, network: &Network) -> Result<String> {
    let clips: Vec<usize> = dataset.train.iter().take(c.data.batch_size).copied().collect();
    let steps = dataset.train.len().div_ceil(c.data.batch_size);
    let request = Request { phase: Phase::Train, epoch: 0, clips };
    let mut loader = Loader::new(Arc::clone(dataset), 0, std::iter::once(request));
    let (_, batch) = loader.next().ok_or_else(|| Error::run("the loader has no batch"))??;
    let images = 3 * batch.targets.len() * c.model.sequence_length;
    let meal = on_device(batch, network.device())?;
    let begun = Instant::now();
    let step = network.train(&meal.inputs, &meal.targets, &Pass::training(c.run.seed, 0))?;
    let seconds = begun.elapsed().as_secs_f64();
    if !step.loss.is_finite() {
        let problem = Problem::new(format!("the loss of one training step is {}", step.loss));
        return Err(Error::new(Kind::Numbers, problem.hint("look at the poses and the initial weights")));
    }
    Ok(format!(
        "{:<12} {steps} an epoch, {} epochs; one on {images} images: loss {:.4}, {seconds:.2} s, {:.0} images/s",
        "steps",
        c.optimization.epochs,
        step.loss,
        images as f64 / seconds,
    ))
}
