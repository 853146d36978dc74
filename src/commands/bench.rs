//! `slt-run bench`: times real training steps on data made in memory.

use std::time::Instant;

use rand::Rng;
use serde_json::json;

use super::{print, resolve};
use crate::cli::BenchArgs;
use crate::config::{Experiment, Setting};
use crate::data::{Batch, Sizes};
use crate::nn::{Pass, device, threads};
use crate::observe::reporter::Reporter;
use crate::random::{Purpose, stream};
use crate::train::feed::on_device;
use crate::train::{Trainer, memory};
use crate::{Error, Result};

/// What an experiment must have for a run, and a benchmark has no use for.
const UNUSED: [&str; 8] = [
    "data.face_dir",
    "data.hand_left_dir",
    "data.hand_right_dir",
    "data.pose_dir",
    "data.metadata_csv",
    "data.train_index",
    "data.val_index",
    "run.work_dir",
];

/// The seconds of one step.
#[derive(Clone, Copy, Debug)]
struct Seconds {
    data: f64,
    forward: f64,
    backward: f64,
    optimizer: f64,
}

impl Seconds {
    /// What PyTorch's `forward`, `backward` and `step` take together; making data is no part of it.
    fn step(&self) -> f64 {
        self.forward + self.backward + self.optimizer
    }
}

pub fn bench(mut args: BenchArgs, reporter: &Reporter) -> Result<()> {
    let unused = |key: &&str| Setting {
        key: (*key).to_owned(),
        value: "unused".to_owned(),
        origin: "slt-run bench".to_owned(),
    };
    args.layers.presets = UNUSED.iter().map(unused).collect();
    let resolved = resolve(args.layers, reporter)?;
    let c = &resolved.experiment;
    let device = device::select(&c.run, |warning| reporter.warn(warning))?;
    let threads = threads::start(threads::available(c.run.threads));
    let mut trainer = Trainer::new(c, &device)?;
    let mut seconds = Vec::new();
    for step in 0..args.steps.max(1) {
        let these = one_step(c, &mut trainer, step as u64)?;
        reporter.verbose(&format!("step {}: {these:?}", step + 1));
        seconds.push(these);
    }
    seconds.sort_by(|a, b| a.step().total_cmp(&b.step()));
    let (fastest, median) = (seconds[0], seconds[seconds.len() / 2]);
    let images = 3 * c.data.batch_size * c.model.sequence_length;
    let images_per_s = images as f64 / median.step();
    let peak = memory::peak_resident().map(|bytes| bytes as f64 / f64::from(1 << 30));
    if args.json {
        let report = json!({
            "images": images,
            "step_s_min": fastest.step(),
            "step_s_median": median.step(),
            "images_per_s": images_per_s,
            "forward_s": median.forward,
            "backward_s": median.backward,
            "optimizer_s": median.optimizer,
            "data_s": median.data,
            "peak_rss_gib": peak,
            "threads": threads,
            "device": device::describe(&device),
            "parameters": trainer.network.parameters().elements(""),
        });
        return print(&format!("{report}\n"));
    }
    print(&format!(
        "images a step   {images}\nstep            {:.3} s fastest, {:.3} s median of {}\nimages a second {images_per_s:.1}\n\
         forward         {:.3} s\nbackward        {:.3} s\noptimizer       {:.3} s\ndata            {:.3} s\n\
         peak memory     {}\nthreads         {threads}\n",
        fastest.step(),
        median.step(),
        seconds.len(),
        median.forward,
        median.backward,
        median.optimizer,
        median.data,
        peak.map_or("unknown".to_owned(), |gib| format!("{gib:.2} GiB")),
    ))
}

fn one_step(c: &Experiment, trainer: &mut Trainer, step: u64) -> Result<Seconds> {
    let begun = Instant::now();
    let batch = on_device(random_batch(c, step), trainer.network.device())?;
    let data = begun.elapsed();
    let result = trainer.network.train(&batch.inputs, &batch.targets, &Pass::training(c.run.seed, step))?;
    if !result.loss.is_finite() {
        return Err(Error::run(format!("the loss of step {} is {}", step + 1, result.loss)));
    }
    let begun = Instant::now();
    let parameters = trainer.network.parameters();
    trainer.optimizer.step(parameters, &result.gradients, c.optimization.lr, 1.0)?;
    Ok(Seconds {
        data: data.as_secs_f64(),
        forward: result.forward.as_secs_f64(),
        backward: result.backward.as_secs_f64(),
        optimizer: begun.elapsed().as_secs_f64(),
    })
}

/// Noise of the shape that the loader's batches have.
fn random_batch(c: &Experiment, step: u64) -> Batch {
    let mut rng = stream(c.run.seed, Purpose::Bench, [step, 0]);
    let sizes = Sizes {
        frames: c.model.sequence_length,
        image_size: c.model.image_size,
        pose: 3 * c.model.pose_landmarks,
    };
    let mut batch = Batch::new((0..c.data.batch_size).collect(), sizes);
    batch.images.iter_mut().for_each(|images| rng.fill_bytes(images));
    for value in &mut batch.pose {
        *value = (f64::from(rng.next_u32()) / f64::from(u32::MAX)) as f32;
    }
    for target in &mut batch.targets {
        *target = rng.next_u32() % c.model.vocab_size as u32;
    }
    batch
}
