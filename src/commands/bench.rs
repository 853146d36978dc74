//! `slt-run bench`: times training steps or validation batches on data made in memory, or the loading of real clips.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use rand::Rng;
use serde_json::{Value, json};

use super::prepare::open_dataset;
use super::{origins, print, resolve, select_device};
use crate::cli::{BenchArgs, Subject};
use crate::config::streams::image_streams;
use crate::config::{
    Decoding, Experiment, FIELDS, Field, OptimizerKind, Preset, Resolved, Role, Setting, TextDecoder,
};
use crate::data::{Batch, Dataset, Loader, Sizes, requests};
use crate::engine::{self, End, Engine, Outcome, Placed, Step, Times, memory, threads};
use crate::model::{decoder, work};
use crate::nn::{ActivationDtype, Init, Pass};
use crate::observe::reporter::Reporter;
use crate::random::{Purpose, stream};
use crate::train::feed::default_workers;
use crate::{Error, Result};

/// The same work, timed several times.
struct Timing {
    /// Images that it takes each time.
    images: usize,
    /// The seconds of each time, the fastest first.
    seconds: Vec<f64>,
}

impl Timing {
    fn new(images: usize, mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self { images, seconds }
    }

    fn fastest(&self) -> f64 {
        self.seconds.first().copied().unwrap_or(f64::NAN)
    }

    fn median(&self) -> f64 {
        self.seconds.get(self.seconds.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn images_per_s(&self) -> f64 {
        self.images as f64 / self.median()
    }

    /// The keys that `scripts/torch_bench.py step` prints for PyTorch, then `more`.
    fn json(&self, more: Value) -> String {
        let mut report = json!({
            "images": self.images,
            "step_s_min": self.fastest(),
            "step_s_median": self.median(),
            "images_per_s": self.images_per_s(),
            "peak_rss_gib": peak_gib(),
        });
        if let (Value::Object(report), Value::Object(more)) = (&mut report, more) {
            report.extend(more);
        }
        format!("{report}\n")
    }

    /// For a person: `noun` is what was timed; `more` are further lines, a title and a value each.
    fn text(&self, noun: &str, more: &[(&str, String)]) -> String {
        let mut lines = vec![
            (format!("images a {noun}"), self.images.to_string()),
            (
                noun.to_owned(),
                format!(
                    "{:.3} s fastest, {:.3} s median of {}",
                    self.fastest(),
                    self.median(),
                    self.seconds.len()
                ),
            ),
            ("images a second".to_owned(), format!("{:.1}", self.images_per_s())),
        ];
        lines.extend(more.iter().map(|(title, value)| ((*title).to_owned(), value.clone())));
        let peak = peak_gib().map_or_else(|| "unknown".to_owned(), |gib| format!("{gib:.2} GiB"));
        lines.push(("peak memory".to_owned(), peak));
        let width = lines.iter().map(|(title, _)| title.len()).max().unwrap_or(0);
        let mut text = String::new();
        for (title, value) in lines {
            let _ = writeln!(text, "{title:width$} {value}");
        }
        text
    }
}

pub fn bench(mut args: BenchArgs, reporter: &Reporter) -> Result<()> {
    // What a run must have, and a benchmark has no use for.
    let unused = |field: &&Field| {
        field.default == Preset::Required && !(args.subject == Subject::Data && field.role == Role::Data)
    };
    let setting = |field: &Field| Setting {
        key: field.key.to_owned(),
        value: "unused".to_owned(),
        origin: "slt-run bench".to_owned(),
    };
    args.layers.presets = FIELDS.iter().filter(unused).map(setting).collect();
    let mut resolved = resolve(args.layers, reporter)?;
    if args.subject == Subject::Features {
        // A network of features has no backbones.
        resolved.experiment.data.features_dir.get_or_insert_with(|| "made in memory".into());
    }
    let times = args.steps.max(1);
    let text = match args.subject {
        Subject::Training | Subject::Features => training(&resolved, times, args.json, reporter),
        Subject::Evaluation => evaluation(&resolved, times, args.json, reporter),
        Subject::Decoding => decoding(&resolved, times, args.json, reporter),
        Subject::Data => data(&resolved, times, args.json, reporter),
    };
    print(&text.map_err(|error| origins::in_error(error, &resolved))?)
}

/// The seconds of one step; its parts, where they can be told.
#[derive(Clone, Copy, Debug)]
struct Seconds {
    data: f64,
    /// What PyTorch's `forward`, `backward` and `step` take together; making data is no part of it.
    step: f64,
    parts: Option<Times>,
}

fn training(resolved: &Resolved, steps: usize, json: bool, reporter: &Reporter) -> Result<String> {
    let c = &resolved.experiment;
    let device = select_device(resolved, reporter);
    let threads = threads::start(threads::available(c.run.threads)?)?;
    let mut engine = engine::new(c, &device)?;
    let mut seconds = Vec::new();
    for step in 0..steps {
        let these = one_step(c, engine.as_mut(), step as u64)?;
        reporter.verbose(&format!("step {}: {these:?}", step + 1));
        seconds.push(these);
    }
    seconds.sort_by(|a, b| a.step.total_cmp(&b.step));
    let median = seconds[seconds.len() / 2];
    let images = image_streams().count() * c.data.batch_size * c.model.sequence_length;
    let timing = Timing::new(images, seconds.iter().map(|seconds| seconds.step).collect());
    let part = |of: fn(&Times) -> Duration| median.parts.map(|parts| of(&parts).as_secs_f64());
    let (forward, backward, optimizer) = (part(|t| t.forward), part(|t| t.backward), part(|t| t.optimizer));
    let gpu = engine.peak_gpu_memory().map(|bytes| bytes as f64 / f64::from(1 << 30));
    let products = Products::of(c, engine.as_ref(), timing.fastest(), true)?;
    if json {
        return Ok(timing.json(json!({
            "gflops": products.gflops,
            "product_gflops": products.most,
            "forward_s": forward,
            "backward_s": backward,
            "optimizer_s": optimizer,
            "data_s": median.data,
            "threads": threads,
            "device": device.name(),
            "precision": engine.activation_dtype().to_string(),
            "peak_gpu_gib": gpu,
            "parameters": engine.host().parameters().elements(""),
            "frames_per_chunk": engine.chunk(),
        })));
    }
    let s = |seconds: f64| format!("{seconds:.3} s");
    let mut lines = Vec::new();
    let parts = [("forward", forward), ("backward", backward), ("optimizer", optimizer)];
    lines.extend(parts.into_iter().filter_map(|(name, seconds)| Some((name, s(seconds?)))));
    lines.extend([("data", s(median.data)), ("threads", threads.to_string())]);
    lines.push(("products", products.text(engine.activation_dtype())));
    lines.extend(
        gpu.map(|gib| ("peak of the GPU", format!("{gib:.2} GiB, in {}", engine.activation_dtype()))),
    );
    Ok(timing.text("step", &lines))
}

fn one_step(c: &Experiment, engine: &mut dyn Engine, step: u64) -> Result<Seconds> {
    let begun = Instant::now();
    let mut batch = random_batch(c, c.data.batch_size, step, c.data.feature_cache.is_some());
    engine.send(&mut batch)?;
    let data = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let pass = Pass::training(c.run.seed, step);
    let mut whole = Step::of(1);
    engine.train(&mut batch, &pass, &mut whole)?;
    let rates = engine.host().optimizer.groups().rates();
    let pending = engine.update(whole, &rates, None)?;
    let Outcome { loss, norm, end } = engine.outcome(pending)?;
    if end == End::NotFinite {
        let step = step + 1;
        return Err(Error::run(format!("the loss of step {step} is {loss}, its gradient's norm {norm}")));
    }
    Ok(Seconds { data, step: begun.elapsed().as_secs_f64(), parts: engine.times() })
}

/// What validation does with a batch: logits, loss and the number of right classes.
fn evaluation(resolved: &Resolved, batches: usize, json: bool, reporter: &Reporter) -> Result<String> {
    let c = &resolved.experiment;
    let device = select_device(resolved, reporter);
    let threads = threads::start(threads::available(c.run.threads)?)?;
    let mut engine = engine::new(c, &device)?;
    let clips = c.data.val_batch_size.unwrap_or(c.data.batch_size);
    let mut seconds = Vec::new();
    for at in 0..batches {
        let mut batch = random_batch(c, clips, at as u64, false);
        engine.send(&mut batch)?;
        let begun = Instant::now();
        let evaluating = engine.evaluate(&mut batch)?;
        let score = engine.score(evaluating)?;
        seconds.push(begun.elapsed().as_secs_f64());
        if !score.loss.is_finite() {
            return Err(Error::run(format!("the loss of batch {} is {}", at + 1, score.loss)));
        }
    }
    let timing = Timing::new(image_streams().count() * clips * c.model.sequence_length, seconds);
    let products = Products::of(c, engine.as_ref(), timing.fastest(), false)?;
    if json {
        return Ok(timing.json(json!({
            "threads": threads,
            "device": device.name(),
            "precision": engine.activation_dtype().to_string(),
            "gflops": products.gflops,
            "product_gflops": products.most,
        })));
    }
    let lines = [("threads", threads.to_string()), ("products", products.text(engine.activation_dtype()))];
    Ok(timing.text("batch", &lines))
}

/// How fast the matrix products of the network were.
struct Products {
    /// Floating-point operations a second, in 10^9, over all the time that was taken; what is computed again counts once.
    gflops: f64,
    /// What large products alone reach here, where that is known.
    most: Option<f64>,
}

impl Products {
    /// Of a training step or an evaluated batch that takes `seconds`.
    fn of(c: &Experiment, engine: &dyn Engine, seconds: f64, trains: bool) -> Result<Self> {
        const OPERATIONS: f64 = 2e-9;
        let decoder = decoder::of_no_texts(c);
        let blueprint = engine::blueprint(c, decoder.as_ref())?;
        let clips =
            if trains { c.data.batch_size } else { c.data.val_batch_size.unwrap_or(c.data.batch_size) };
        let length = decoder.any_target(&mut || 0).len();
        let head = work::encoder(&c.model, &blueprint, clips) + decoder.work(&c.model, clips, length);
        let mut work = head * if trains { 3.0 } else { 1.0 };
        // Cached features are not made again in training.
        if !(trains && c.data.feature_cache.is_some()) {
            for net in engine::cpu::backbones(&c.model, &blueprint)? {
                let [forward, trained] = net.shape.work();
                let images = (clips * c.model.sequence_length) as f64;
                work += images * (forward + if trains { 2.0 * trained } else { 0.0 });
            }
        }
        let most = engine.product_rate().map(|rate| OPERATIONS * rate);
        Ok(Self { gflops: OPERATIONS * work / seconds, most })
    }

    fn text(&self, dtype: ActivationDtype) -> String {
        let share = self.most.map_or_else(String::new, |most| {
            let share = 100.0 * self.gflops / most;
            format!(", {share:.0} % of the {most:.0} of large products in {dtype}")
        });
        format!("{:.0} GFLOP/s{share}", self.gflops)
    }
}

/// The search for the longest texts that `decoding.max_length` allows, of the clips of a validation batch, from encoded
/// frames that are noise.
fn decoding(resolved: &Resolved, times: usize, json: bool, reporter: &Reporter) -> Result<String> {
    let c = &resolved.experiment;
    if c.model.decoder.kind == TextDecoder::Stub {
        return Err(Error::config("the decoder \"stub\" searches for no tokens")
            .hint("set model.decoder.kind = \"transformer\""));
    }
    let device = select_device(resolved, reporter);
    let threads = threads::start(threads::available(c.run.threads)?)?;
    let clips = c.data.val_batch_size.unwrap_or(c.data.batch_size);
    // What comes before the decoder is of no account.
    let mut small = c.clone();
    (small.model.backbone.depth, small.optimization.optimizer) = (1, OptimizerKind::Sgd);
    let engine = engine::new(&small, &device)?;
    let longest = Decoding { min_length: c.decoding.max_length.saturating_sub(1), ..c.decoding.clone() };
    let mut seconds = Vec::new();
    for at in 0..times {
        let batch = random_batch(&small, clips, at as u64, false);
        let shape = (clips, c.model.sequence_length, c.model.d_model);
        let frames =
            Tensor::from_vec(noise(c.run.seed, at, shape.0 * shape.1 * shape.2), shape, &Device::Cpu)?;
        let begun = Instant::now();
        engine.host().translate(&frames, &batch, &longest)?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    let timing = Timing::new(image_streams().count() * clips * c.model.sequence_length, seconds);
    let a_clip = timing.fastest() / clips as f64;
    if json {
        return Ok(timing.json(json!({ "threads": threads, "clips": clips, "clip_s_min": a_clip })));
    }
    let lines = [("a clip", format!("{a_clip:.4} s fastest")), ("threads", threads.to_string())];
    Ok(timing.text("batch", &lines))
}

/// Normally distributed numbers.
fn noise(seed: u64, at: usize, count: usize) -> Vec<f32> {
    Init::Normal(1.0).draw(count, &mut stream(seed, Purpose::Bench, [at as u64, 1]))
}

/// From files to the bytes of batches: passes over the training clips in an epoch's order, first in one thread, then in
/// as many as a run would have.
fn data(resolved: &Resolved, passes: usize, json: bool, reporter: &Reporter) -> Result<String> {
    let c = &resolved.experiment;
    let begun = Instant::now();
    let dataset = open_dataset(resolved, None, reporter)?.dataset;
    let open = begun.elapsed().as_secs_f64();
    let workers = c.data.num_workers.unwrap_or_else(default_workers);
    let alone = load(c, &dataset, 0, passes)?;
    let timing = load(c, &dataset, workers, passes)?;
    if json {
        return Ok(timing.json(json!({
            "workers": workers,
            "one_thread_s_min": alone.fastest(),
            "one_thread_images_per_s": alone.images_per_s(),
            "open_s": open,
        })));
    }
    let lines = [
        ("threads", workers.max(1).to_string()),
        ("in one thread", format!("{:.1} images a second", alone.images_per_s())),
        ("tables, listings", format!("{open:.3} s")),
    ];
    Ok(timing.text("pass", &lines))
}

/// Times passes in the midst of loading: clips are loaded ahead across the end of a pass, as in a run, and a further
/// pass keeps that so for the last one.
fn load(c: &Experiment, dataset: &Arc<Dataset>, workers: usize, passes: usize) -> Result<Timing> {
    let plan = [dataset.train.clone(), Vec::new()];
    let requests = requests(c.run.seed, plan, [c.data.batch_size; 2], 0..passes + 1);
    let mut seconds = Vec::new();
    let mut begun = Instant::now();
    let mut loader = Loader::new(Arc::clone(dataset), workers, requests);
    for _ in 0..passes {
        for _ in 0..dataset.train.len().div_ceil(c.data.batch_size) {
            loader.next().ok_or_else(|| Error::run("the loader has no batch"))??;
        }
        seconds.push(begun.elapsed().as_secs_f64());
        begun = Instant::now();
    }
    Ok(Timing::new(image_streams().count() * dataset.train.len() * c.model.sequence_length, seconds))
}

/// The most memory that the process has had resident, in GiB.
fn peak_gib() -> Option<f64> {
    memory::peak_resident().map(|bytes| bytes as f64 / f64::from(1 << 30))
}

/// `clips` clips of noise, of the shape that the loader's batches have: of images, or of features.
fn random_batch(c: &Experiment, clips: usize, step: u64, of_features: bool) -> Placed {
    let mut rng = stream(c.run.seed, Purpose::Bench, [step, 0]);
    let features = (of_features || c.data.features_dir.is_some()).then_some(c.model.backbone.embed_dim);
    let sizes = Sizes { features, ..Sizes::of(&c.model) };
    let mut batch = Batch::new((0..clips).collect(), sizes);
    for stream in &mut batch.images {
        rng.fill_bytes(stream.bytes_mut());
        for value in stream.features_mut().into_iter().flatten() {
            *value = rng.next_u32() as f32 / u32::MAX as f32 - 0.5;
        }
    }
    for value in &mut batch.pose {
        *value = (f64::from(rng.next_u32()) / f64::from(u32::MAX)) as f32;
    }
    let decoder = decoder::of_no_texts(c);
    let targets = (0..clips).map(|_| decoder.any_target(&mut || rng.next_u32())).collect();
    Placed::new(batch, targets)
}
