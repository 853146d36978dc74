//! `slt-run check`: everything that could stop a run of days, found before it starts; nothing is written.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cache::foretell;
use super::groups::describe_groups;
use super::prepare::{Opened, begin, look_into_files, open_dataset};
use super::text::{about, amount, table, wrapped};
use super::{origins, print, resolve, select_device};
use crate::cli::CheckArgs;
use crate::config::streams::{STREAMS, Stream, image_streams, pose_stream};
use crate::config::{Experiment, Resolved, Resume};
use crate::data::{Dataset, Depth, Phase, Pixels, Request, Summary, Verified};
use crate::engine::{self, Engine, Step, memory, memory::Plan, threads};
use crate::error::{ErrorKind, Problem, count};
use crate::limits::size;
use crate::model::{DecoderKind, TextReport};
use crate::nn::Pass;
use crate::observe::{self, reporter::Reporter, run_folder::RunFolder};
use crate::train::feed::{Feed, default_workers};
use crate::{Error, Result};

pub fn check(args: CheckArgs, reporter: &Reporter) -> Result<()> {
    let resolved = resolve(args.layers, reporter)?;
    let depth = if args.all { Depth::EveryImage } else { Depth::FirstImages };
    check_resolved(&resolved, depth, reporter).map_err(|error| origins::in_error(error, &resolved))
}

fn check_resolved(resolved: &Resolved, depth: Depth, reporter: &Reporter) -> Result<()> {
    let c = &resolved.experiment;
    let device = select_device(resolved, reporter);
    let threads = threads::start(threads::available(c.run.threads)?)?;
    let Opened { dataset, decoder, texts } = open_dataset(resolved, None, reporter)?;
    let mut found = look_into_files(&dataset, resolved, depth, reporter);
    let sized = memory::with_batches_of(c, dataset.train.len(), dataset.val.len());
    let mut engine = engine::with_decoder(&sized, &device, decoder.as_ref())?;
    let engine = engine.as_mut();
    if let Err(error) = begin(c, decoder.as_ref(), engine, reporter) {
        found.problems.extend(error.problems);
    }

    let device = format!("{}, {}", device.describe(), count(threads, "thread"));
    let summary = dataset.summary();
    let host = engine.host();
    print(&format!(
        "{}\n{}\n{}",
        describe_data(&summary, &texts),
        describe_groups(host.network.blueprint(), &host.optimizer),
        wrapped(&describe_network(c, engine, &dataset, &device), LABEL)
    ))?;
    let looked_at = describe_look(&found, &summary, dataset.unindexed_files);
    Error::all(ErrorKind::Data, found.problems)?;
    engine.plan().refuse_more_than_the_budget()?;
    let before = engine.chunk();
    let cached = foretell(engine, c, &dataset, reporter)?;
    let (cost, row) = cached.unzip();
    print(&wrapped(&cost.unwrap_or_default(), LABEL))?;
    print(&wrapped(&one_step(c, &dataset, decoder.as_ref(), engine, row.as_deref())?, LABEL))?;
    if let (Some(frames), true) = (engine.chunk(), engine.chunk() != before) {
        reporter.warn(&observe::smaller_chunk(frames));
    }
    check_work_dir(c, reporter)?;
    let end = match reporter.warnings() {
        0 => "everything is in order".to_owned(),
        warnings => format!("in order, with {}", count(warnings, "warning")),
    };
    print(&format!("{}{end}\n", wrapped(&looked_at, LABEL)))
}

/// The width of the words before each line on the network and the run.
const LABEL: usize = 13;

/// What the columns of the tables mean.
const LEGEND: &str = "\
longer         has more frames than model.sequence_length: some are left out
repeated       share of the network's frames that show a clip's last one again
clips without  have nothing in this stream: black images, or a pose of zeros
cut short      the stream ends before the clip: its last frame is shown again
with gaps      the stream lacks frames before its last one: black images there
";

fn describe_data(s: &Summary, t: &TextReport) -> String {
    let title = ["split", "clips", "frames: min", "median", "max", "longer", "repeated"];
    let mut splits = vec![title.map(str::to_owned)];
    for (name, split) in [("train", &s.train), ("validation", &s.val)] {
        let share = format!("{:.0} %", 100.0 * split.repeated as f64 / split.shown.max(1) as f64);
        let [clips, min, median, max, longer] =
            [split.clips, split.min, split.median, split.max, split.longer_than_sequence]
                .map(|number| number.to_string());
        splits.push([name.to_owned(), clips, min, median, max, longer, share]);
    }
    let title = ["stream", "frames", "clips without", "cut short", "with gaps", "frames in gaps"];
    let mut streams = vec![title.map(str::to_owned)];
    for stream in &s.streams {
        let numbers = [stream.frames, stream.empty, stream.short, stream.with_gaps, stream.missing_frames];
        streams.push(row(stream.name, numbers));
    }
    let mut pose = row(pose_stream().name, [0, s.missing_poses, 0, 0, 0]);
    for column in [1, 3, 4, 5] {
        "-".clone_into(&mut pose[column]);
    }
    streams.push(pose);

    let mut text = format!("{}\n{}\n{LEGEND}\n", table(&splits), table(&streams));
    let mut texts = t.full.clone();
    if s.unseen_val_texts > 0 {
        let _ = write!(
            texts,
            "; {} with a text that no training clip has",
            count(s.unseen_val_texts, "validation clip")
        );
    }
    if let Some(problem) = &t.problem {
        let _ = write!(texts, "; {problem}");
    }
    texts.push('\n');
    text.push_str(&wrapped(&texts, 2));
    for example in &t.examples {
        let _ = writeln!(text, "  {example}");
    }
    text
}

fn row(name: &str, numbers: [usize; 5]) -> [String; 6] {
    let mut row =
        [name.to_owned(), String::new(), String::new(), String::new(), String::new(), String::new()];
    row.iter_mut().skip(1).zip(numbers).for_each(|(cell, number)| *cell = number.to_string());
    row
}

fn describe_network(c: &Experiment, engine: &dyn Engine, dataset: &Dataset, device: &str) -> String {
    let blueprint = engine.host().network.blueprint();
    let part = |name: &str, modules: Vec<&str>| {
        let elements = modules.iter().map(|module| blueprint.elements(&format!("{module}.")));
        format!("{name} {}", amount(elements.fold(0, usize::saturating_add)))
    };
    let encoder = |names: Vec<&str>| names.iter().map(|name| format!("encoder.{name}")).collect::<Vec<_>>();
    let backbones = encoder(image_streams().filter_map(Stream::backbone).collect());
    let projectors = encoder(STREAMS.iter().map(|stream| stream.projector).collect());
    let parts = [
        part("backbones", backbones.iter().map(String::as_str).collect()),
        part("projectors", projectors.iter().map(String::as_str).collect()),
        part("fusion", vec!["encoder.fusion"]),
        part("temporal", vec!["encoder.positional", "encoder.temporal"]),
        part("decoder", vec!["decoder"]),
    ];
    let Plan { chunk, memory, budget } = *engine.plan();
    let chunks = match chunk {
        None => "all frames of a batch at once; nothing is computed twice".to_owned(),
        Some(frames) => {
            format!("{frames} frames of a stream at a time; backbones are computed twice, 4/3 of the work")
        }
    };
    let budget = budget.map_or_else(|| "unknown".to_owned(), |bytes| size(bytes as u64));
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
        size(memory.total() as u64),
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

/// Which files were opened, and which were not.
fn describe_look(found: &Verified, s: &Summary, unindexed: usize) -> String {
    let images: usize = s.streams.iter().map(|stream| stream.frames).sum();
    let (poses, opened) = (count(found.poses, "pose"), count(found.images, "image"));
    let mut text = format!("looked into  {poses} and {opened}");
    let mut not = Vec::new();
    if found.images < images {
        text.push_str(": the first of each clip and stream");
        not.push(format!("{}, which check --all opens", count(images - found.images, "more image")));
    }
    text.push('\n');
    if unindexed > 0 {
        not.push(format!("{} of clips that neither index names", count(unindexed, "file")));
    }
    if !not.is_empty() {
        let _ = writeln!(text, "not into     {}", not.join(", and "));
    }
    text
}

/// One training step on the first batch, without an update, and what it says about a run's time. Where features are cached,
/// all of them are `row`, which is made of some image.
fn one_step(
    c: &Experiment,
    dataset: &Arc<Dataset>,
    decoder: &dyn DecoderKind,
    engine: &mut dyn Engine,
    row: Option<&[f32]>,
) -> Result<String> {
    let clips: Vec<usize> = dataset.train.iter().take(c.data.batch_size).copied().collect();
    let request = Request { phase: Phase::Train, epoch: 0, clips };
    let mut feed = Feed::of(dataset, decoder, 0, std::iter::once(request));
    let begun = Instant::now();
    let mut batch = feed.next(Phase::Train, 0)?;
    let loading = begun.elapsed();
    if batch.clips() == 0 {
        let what = "no clip of the first batch can be loaded";
        return Err(Error::data(what)
            .hint("check --all with data.on_bad_clip = \"error\" names what is wrong with them"));
    }
    if let Some(row) = row {
        let features = || Pixels::Features(row.repeat(batch.clips() * c.model.sequence_length));
        let streams = batch.batch.images.iter().map(|_| features()).collect();
        batch.batch.images = streams;
    }
    let images = image_streams().count() * batch.clips() * c.model.sequence_length;
    let begun = Instant::now();
    // A step of two batches: every engine tells their losses at once.
    let mut step = Step::of(2);
    engine.train(&mut batch, &Pass::training(c.run.seed, 0), &mut step)?;
    let (training, loss) = (begun.elapsed(), step.loss().unwrap_or(f64::NAN));
    step.give_up();
    if !loss.is_finite() {
        let problem = Problem::new(format!("the loss of one training step is {loss}"));
        return Err(Error::new(
            ErrorKind::Numbers,
            problem.hint("look at the poses and the initial weights"),
        ));
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
