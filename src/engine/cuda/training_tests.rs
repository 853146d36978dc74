//! Training on an emulated GPU against the CPU: updates, windows, scaled gradients, memory that is full.

use std::rc::Rc;

use super::GpuDevice;
use super::emulator::{EmulatedDevice, Emulator};
use crate::config::{self, Experiment};
use crate::data::{Batch, Pixels, Sizes};
use crate::engine::device::Compute;
use crate::engine::{self, End, Engine, Outcome, Placed, Step};
use crate::error::ErrorKind;
use crate::nn::{ActivationDtype, Pass};
use crate::optim::LossScale;

const FRAMES: usize = 3;
const CLASSES: usize = 11;

/// A small experiment, with `settings` over it.
fn experiment(settings: &[(&str, &str)]) -> Experiment {
    let small = [
        ("run.device", "cuda"),
        ("run.precision", "fp32"),
        ("data.batch_size", "4"),
        ("model.image_size", "8"),
        ("model.sequence_length", "3"),
        ("model.projector_dim", "8"),
        ("model.d_model", "16"),
        ("model.pose_landmarks", "2"),
        ("model.temporal_nhead", "2"),
        ("model.temporal_layers", "1"),
        ("model.temporal_dim_feedforward", "16"),
        ("model.vocab_size", "11"),
        ("model.backbone.patch_size", "4"),
        ("model.backbone.embed_dim", "16"),
        ("model.backbone.depth", "2"),
        ("model.backbone.num_heads", "2"),
        ("optimization.lr", "3e-3"),
    ];
    config::for_tests(&small.iter().chain(settings).copied().collect::<Vec<_>>())
}

/// `clips` clips, each bright where its class says, different for each `seed`.
fn batch(clips: usize, seed: usize) -> Placed {
    let sizes = Sizes { frames: FRAMES, image_size: 8, pose: 6, features: None };
    let mut batch = Batch::new((0..clips).collect(), sizes);
    for (stream, pixels) in batch.images.iter_mut().enumerate() {
        let images = pixels.bytes_mut();
        let a_clip = images.len() / clips;
        for (i, byte) in images.iter_mut().enumerate() {
            let class = (i / a_clip + seed) % CLASSES;
            *byte = ((i * (17 + stream) + seed * 7) % 31 + 20 * class) as u8;
        }
    }
    for (i, value) in batch.pose.iter_mut().enumerate() {
        *value = ((i + 5 * seed) as f32 * 0.37).sin();
    }
    let targets = (0..clips).map(|clip| vec![((clip + seed) % CLASSES) as u32]).collect();
    Placed::new(batch, targets)
}

fn emulated() -> (Compute, Rc<EmulatedDevice>) {
    let card = Emulator::device(7);
    (Compute::Gpu(Rc::clone(&card) as Rc<dyn GpuDevice>), card)
}

/// Steps of `window` batches each; their losses and norms.
fn train(engine: &mut dyn Engine, c: &Experiment, steps: usize, window: usize) -> Vec<(f64, f64)> {
    let mut all = Vec::new();
    for number in 0..steps {
        let mut step = Step::of(window);
        for part in 0..window {
            // The last batch of a window is smaller, as that of an epoch is.
            let mut batch = batch(if part + 1 == window { 3 } else { 4 }, number * window + part);
            let pass = Pass { first_row: step.clips(), ..Pass::training(1, number as u64) };
            engine.train(&mut batch, &pass, &mut step).unwrap();
            assert_eq!(step.loss().is_none(), window == 1 && engine.sends_ahead());
        }
        assert_eq!(step.weight(), 4 * (window - 1) + 3);
        let known = step.loss();
        let rates = engine.host().optimizer.groups().rates();
        let pending = engine.update(step, &rates, c.optimization.grad_clip).unwrap();
        let outcome = engine.outcome(pending).unwrap();
        assert_eq!(outcome.end, End::Updated);
        all.push((known.unwrap_or(outcome.loss), outcome.norm));
    }
    engine.pull().unwrap();
    all
}

/// A step of one batch, and what became of it.
fn step(engine: &mut dyn Engine, batch: &mut Placed, number: u64, lr: f64, max_norm: Option<f64>) -> Outcome {
    let mut step = Step::of(1);
    engine.train(batch, &Pass::training(1, number), &mut step).unwrap();
    let pending = engine.update(step, &[lr], max_norm).unwrap();
    engine.outcome(pending).unwrap()
}

fn parameters(engine: &dyn Engine) -> Vec<f32> {
    let all = engine.host().parameters().iter();
    all.flat_map(|(_, var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

/// As [`parameters`], without the keys' biases: they have no influence on attention, so that their gradient is nothing
/// but rounding, by which Adam moves them all the same.
fn parameters_with_gradients(engine: &dyn Engine) -> Vec<f32> {
    let numbers = |(name, var): (&str, &candle_core::Var)| {
        let mut numbers = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        if name.ends_with("in_proj_bias") {
            let width = numbers.len() / 3;
            numbers.drain(width..2 * width);
        }
        numbers
    };
    engine.host().parameters().iter().flat_map(numbers).collect()
}

fn moments(engine: &dyn Engine) -> Vec<f32> {
    let all = engine.host().optimizer.moments().iter();
    all.flat_map(|m| m.first.iter().chain(&m.second)).copied().collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a - b))).sum();
    (difference / b.iter().map(|&b| square(f64::from(b))).sum::<f64>()).sqrt()
}

/// What does not train is what it was at the start, to the bit, and has no moments.
fn frozen_stay(c: &Experiment, engine: &dyn Engine) {
    let start = engine::new(c, &Compute::Cpu).unwrap();
    let specs = engine.host().network.blueprint().parameters();
    let all = engine.host().parameters().iter().zip(start.host().parameters().iter());
    for ((((name, now), (_, before)), spec), moments) in all.zip(specs).zip(engine.host().optimizer.moments())
    {
        let numbers = |var: &candle_core::Var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(numbers(now) == numbers(before), !spec.trains, "{name}");
        assert!(spec.trains || moments.first.is_empty(), "{name}");
    }
}

/// Features in the place of images are what the frozen backbones make of them; and the same, without backbones.
#[test]
fn features_take_the_place_of_images() {
    let with_features = |engine: &mut dyn Engine, mut batch: Placed| {
        let images = batch.clips() * FRAMES;
        let of = |(at, pixels)| Pixels::Features(engine.features(at, pixels, images, 8).unwrap());
        batch.batch.images = batch.batch.images.iter().enumerate().map(of).collect();
        batch
    };
    for settings in [&[][..], &[("optimization.frames_per_chunk", "2")]] {
        let c = experiment(&[settings, &[("model.backbone.freeze", "all")]].concat());
        let (mut cpu, mut gpu) =
            (engine::new(&c, &Compute::Cpu).unwrap(), engine::new(&c, &emulated().0).unwrap());
        gpu.push().unwrap();
        for number in 0..3 {
            let (images, by_cpu) = (batch(3, number), with_features(cpu.as_mut(), batch(3, number)));
            let mut features = with_features(gpu.as_mut(), batch(3, number));
            for (a, b) in features.batch.images.iter().zip(&by_cpu.batch.images) {
                let (Pixels::Features(a), Pixels::Features(b)) = (a, b) else { panic!("no features") };
                assert!(distance(a, b) < 1e-5);
            }
            let at = number as u64;
            let expected = step(cpu.as_mut(), &mut { images }, at, 1e-3, None);
            let found = step(gpu.as_mut(), &mut features, at, 1e-3, None);
            assert!((found.loss / expected.loss - 1.0).abs() < 1e-5, "{found:?}, not {expected:?}");
            assert!((found.norm / expected.norm - 1.0).abs() < 1e-3, "{found:?}, not {expected:?}");
            let mut again = with_features(gpu.as_mut(), batch(2, 9));
            let evaluating = gpu.evaluate(&mut again).unwrap();
            let score = gpu.score(evaluating).unwrap();
            let evaluating = cpu.evaluate(&mut batch(2, 9)).unwrap();
            assert!((score.loss / cpu.score(evaluating).unwrap().loss - 1.0).abs() < 1e-5);
        }
    }
    let c = experiment(&[("data.features_dir", "made")]);
    let (mut cpu, mut gpu) =
        (engine::new(&c, &Compute::Cpu).unwrap(), engine::new(&c, &emulated().0).unwrap());
    gpu.push().unwrap();
    let made = || {
        let mut made = batch(3, 1);
        let features = (0..3 * FRAMES * 16).map(|i| (i as f32 * 0.7).sin()).collect();
        made.batch.images.fill(Pixels::Features(features));
        made
    };
    for at in 0..2 {
        let expected = step(cpu.as_mut(), &mut made(), at, 1e-3, None);
        let found = step(gpu.as_mut(), &mut made(), at, 1e-3, None);
        assert!((found.loss / expected.loss - 1.0).abs() < 1e-5, "{found:?}, not {expected:?}");
    }
    assert!(gpu.features(0, &Pixels::Bytes(vec![0; 192]), 1, 8).is_err());
    assert!(step_fails(gpu.as_mut(), &mut batch(3, 1)));
}

fn step_fails(engine: &mut dyn Engine, batch: &mut Placed) -> bool {
    let mut step = Step::of(1);
    engine.train(batch, &Pass::training(1, 0), &mut step).is_err()
}

#[test]
fn updates_are_the_cpus() {
    compare_updates(&emulated().0);
}

/// Biases without decay, a slower temporal encoder, and a part that is frozen.
const GROUPS: &str = "[{ match = \"*.bias\", weight_decay = 0.0 }, { match = \"encoder.temporal.*\", lr_factor = 0.3 }, \
                      { match = \"*pose_projector*\", freeze = true }]";

fn compare_updates(compute: &Compute) {
    for (settings, window) in [
        (&[("optimization.optimizer", "adamw"), ("optimization.weight_decay", "0.05")][..], 1),
        (&[("optimization.optimizer", "adam"), ("optimization.weight_decay", "0.05")], 1),
        (
            &[
                ("optimization.optimizer", "sgd"),
                ("optimization.lr", "0.05"),
                ("optimization.weight_decay", "0.01"),
            ],
            1,
        ),
        (&[("optimization.grad_clip", "0.5"), ("model.temporal_dropout", "0.2")], 2),
        (
            &[
                ("optimization.optimizer", "sgd"),
                ("optimization.lr", "0.02"),
                ("optimization.momentum", "0.8"),
                ("optimization.groups", GROUPS),
                ("model.backbone.freeze", "0"),
            ],
            1,
        ),
        (
            &[
                ("optimization.betas", "[0.7, 0.95]"),
                ("optimization.eps", "1e-4"),
                ("optimization.weight_decay", "0.05"),
                ("optimization.groups", GROUPS),
                ("model.backbone.freeze", "1"),
                ("model.backbone.layer_norm_eps", "1e-3"),
            ],
            2,
        ),
        (
            &[
                ("model.backbone.freeze", "1"),
                ("model.backbone.stochastic_depth", "0.3"),
                ("optimization.frames_per_chunk", "2"),
                ("optimization.groups", "[{ match = \"*blocks.1.mlp.*\", freeze = true }]"),
            ],
            1,
        ),
        (&[("model.backbone.freeze", "2"), ("optimization.grad_clip", "0.5")], 2),
        (&[("model.backbone.freeze", "all"), ("optimization.frames_per_chunk", "4")], 2),
        (&[("optimization.groups", "[{ match = \"decoder.*\", freeze = true }]")], 1),
    ] {
        let c = experiment(settings);
        let mut cpu = engine::new(&c, &Compute::Cpu).unwrap();
        let mut gpu = engine::new(&c, compute).unwrap();
        let expected = train(cpu.as_mut(), &c, 4, window);
        let found = train(gpu.as_mut(), &c, 4, window);
        for ((loss, norm), (expected_loss, expected_norm)) in found.iter().zip(&expected) {
            assert!((loss / expected_loss - 1.0).abs() < 1e-4, "{settings:?}: {found:?}, not {expected:?}");
            assert!((norm / expected_norm - 1.0).abs() < 1e-3, "{settings:?}: {found:?}, not {expected:?}");
        }
        let (cpu, gpu) = (cpu.as_ref(), gpu.as_ref());
        let far = distance(&parameters(gpu), &parameters(cpu));
        assert!(far < 2e-3, "{settings:?}: parameters {far}");
        let far = distance(&parameters_with_gradients(gpu), &parameters_with_gradients(cpu));
        assert!(far < 1e-4, "{settings:?}: parameters that have gradients {far}");
        assert_eq!(gpu.host().optimizer.steps(), 4);
        frozen_stay(&c, gpu);
        if !moments(cpu).is_empty() {
            let far = distance(&moments(gpu), &moments(cpu));
            assert!(far < 1e-3, "{settings:?}: moments {far}");
        }
    }
}

/// What was trained on one GPU goes on on another to the bit, from parameters and moments in the host's memory.
#[test]
fn parameters_and_moments_go_there_and_back() {
    let c = experiment(&[("run.precision", "amp")]);
    let mut whole = engine::new(&c, &emulated().0).unwrap();
    train(whole.as_mut(), &c, 2, 1);
    let mut other = engine::new(&c, &emulated().0).unwrap();
    for ((_, to), (_, from)) in other.host().parameters().iter().zip(whole.host().parameters().iter()) {
        to.set(from.as_tensor()).unwrap();
    }
    let optimizer = &whole.host().optimizer;
    let (steps, kept) = (optimizer.steps(), optimizer.moments().to_vec());
    other.host_mut().optimizer.restore(steps, kept);
    assert_ne!(moments(other.as_ref()), vec![0.0; moments(other.as_ref()).len()]);
    other.push().unwrap();
    assert_eq!(train(other.as_mut(), &c, 2, 1), train(whole.as_mut(), &c, 2, 1));
    assert_eq!(parameters(other.as_ref()), parameters(whole.as_ref()));
    assert_eq!(moments(other.as_ref()), moments(whole.as_ref()));
}

/// The host waits once a step, however many kernels it starts; and what it starts stays few.
#[test]
fn a_step_waits_once() {
    let c = experiment(&[("run.precision", "amp")]);
    let (compute, card) = emulated();
    let mut engine = engine::new(&c, &compute).unwrap();
    assert_eq!(engine.activation_dtype(), ActivationDtype::Bf16);
    train(engine.as_mut(), &c, 1, 1);
    let gpu = card.last.borrow().clone().unwrap();
    gpu.take_waits();
    gpu.take_launches();
    let mut step = Step::of(1);
    engine.train(&mut batch(4, 1), &Pass::training(1, 1), &mut step).unwrap();
    let pending = engine.update(step, &[1e-3], None).unwrap();
    assert_eq!(gpu.take_waits(), 0);
    engine.outcome(pending).unwrap();
    assert_eq!(gpu.take_waits(), 1);
    // 31 for each of the blocks, 16 around them for each backbone, and the rest: a step of Candle's operations starts
    // several thousand.
    let launches = gpu.take_launches();
    assert!(launches < 3 * (2 * 34 + 20) + 130, "{launches} launches");
}

#[test]
fn full_memory_makes_chunks_smaller() {
    let c = experiment(&[]);
    let (compute, card) = emulated();
    let mut whole = engine::new(&c, &compute).unwrap();
    let expected = train(whole.as_mut(), &c, 2, 1);
    let peak = whole.peak_gpu_memory().unwrap();

    // The budget is no help where others take memory later.
    let mut engine = engine::new(&c, &compute).unwrap();
    let gpu = card.last.borrow().clone().unwrap();
    assert_eq!(engine.chunk(), None);
    gpu.limit(peak * 8 / 10);
    let found = train(engine.as_mut(), &c, 2, 1);
    let chunk = engine.chunk().expect("it shrank");
    assert!(chunk < 12, "{chunk}");
    for ((loss, norm), (expected_loss, expected_norm)) in found.iter().zip(&expected) {
        assert!((loss / expected_loss - 1.0).abs() < 1e-5 && (norm / expected_norm - 1.0).abs() < 1e-4);
    }

    // At a resume the chunk is what it was, so that sums have the same order.
    let saved = engine.chunk_to_save().unwrap();
    let mut resumed = engine::new(&c, &compute).unwrap();
    card.last.borrow().as_ref().unwrap().limit(usize::MAX);
    resumed.restore_chunk(saved);
    assert_eq!(train(resumed.as_mut(), &c, 2, 1), found);

    // What was asked for stays, and what does not fit at all is an error.
    let c = experiment(&[("optimization.frames_per_chunk", "8")]);
    let mut engine = engine::new(&c, &compute).unwrap();
    let gpu = card.last.borrow().clone().unwrap();
    let mut batch = batch(4, 0);
    engine.send(&mut batch).unwrap();
    gpu.limit(gpu.used() + 4096);
    let error = engine.train(&mut batch, &Pass::training(1, 0), &mut Step::of(1)).unwrap_err();
    assert!(error.to_string().contains("is full with 8 frames of a stream at a time"), "{error}");
    assert_eq!((error.kind, error.exit_code()), (ErrorKind::Memory, 1));
}

/// float16: a scale that is too large is halved until gradients fit, without an update before; then training goes on.
#[test]
fn scaled_gradients_recover() {
    recover(&emulated().0);
}

fn recover(compute: &Compute) {
    let c = experiment(&[("run.precision", "amp"), ("optimization.amp_dtype", "float16")]);
    let mut engine = engine::new(&c, compute).unwrap();
    let begins = (engine.activation_dtype(), engine.loss_scale());
    assert_eq!(begins, (ActivationDtype::F16, Some(LossScale::default())));
    engine.restore_loss_scale(LossScale { scale: 2f64.powi(40), good_steps: 3 });
    let before = parameters(engine.as_ref());
    let (mut halved, mut last) = (0, 2f64.powi(40));
    let outcome = loop {
        let outcome = step(engine.as_mut(), &mut batch(4, 0), 0, 1e-3, None);
        match outcome.end {
            End::Rescaled(scale) => {
                assert_eq!(scale.to_bits(), (last / 2.0).to_bits());
                (halved, last) = (halved + 1, scale);
                engine.pull().unwrap();
                assert_eq!(parameters(engine.as_ref()), before);
                assert_eq!(engine.host().optimizer.steps(), 0);
            }
            _ => break outcome,
        }
    };
    assert!((5..35).contains(&halved), "{halved}");
    assert_eq!(outcome.end, End::Updated);
    assert_eq!(engine.loss_scale(), Some(LossScale { scale: last, good_steps: 1 }));
    engine.pull().unwrap();
    assert_ne!(parameters(engine.as_ref()), before);
    // The norm is that of the gradient, not of the scaled one.
    let mut cpu = engine::new(&experiment(&[]), &Compute::Cpu).unwrap();
    let expected = step(cpu.as_mut(), &mut batch(4, 0), 0, 1e-3, None);
    assert!((outcome.norm / expected.norm - 1.0).abs() < 1e-2);
}

#[test]
fn what_is_no_number_updates_nothing() {
    refuse(&emulated().0);
}

fn refuse(compute: &Compute) {
    for precision in
        [&[("run.precision", "fp32")][..], &[("run.precision", "amp"), ("optimization.amp_dtype", "float16")]]
    {
        let c = experiment(precision);
        let mut engine = engine::new(&c, compute).unwrap();
        let before = parameters(engine.as_ref());
        let mut sick = batch(4, 0);
        sick.batch.pose.fill(f32::NAN);
        let outcome = step(engine.as_mut(), &mut sick, 0, 1e-3, Some(1.0));
        assert_eq!(outcome.end, End::NotFinite);
        assert!(outcome.loss.is_nan());
        engine.pull().unwrap();
        assert_eq!(parameters(engine.as_ref()), before);
        assert_eq!(engine.host().optimizer.steps(), 0);
    }
}

/// On the same clips, over and over, mixed precision learns what f32 learns.
#[test]
fn mixed_precision_learns_the_same() {
    compare_learning(&emulated().0);
}

fn compare_learning(compute: &Compute) {
    let end = |settings: &[(&str, &str)]| {
        let easy = [
            ("optimization.label_smoothing", "0"),
            ("optimization.lr", "4e-3"),
            ("model.backbone.depth", "1"),
            ("model.temporal_dropout", "0"),
            ("model.projector_dropout", "0"),
            ("model.fusion_dropout", "0"),
        ];
        let c = experiment(&[settings, &easy].concat());
        let compute = if settings.is_empty() { &Compute::Cpu } else { compute };
        let mut engine = engine::new(&c, compute).unwrap();
        for number in 0..100 {
            step(engine.as_mut(), &mut batch(4, 0), number, c.optimization.lr, None);
        }
        let evaluating = engine.evaluate(&mut batch(4, 0)).unwrap();
        engine.score(evaluating).unwrap()
    };
    let f32 = end(&[]);
    // It was 2.3.
    assert!(f32.loss < 0.1 && f32.correct == 4, "{f32:?}");
    for amp_dtype in ["bfloat16", "float16"] {
        let amp = end(&[("run.precision", "amp"), ("optimization.amp_dtype", amp_dtype)]);
        assert_eq!(amp.correct, 4, "{amp_dtype}: {amp:?} and {f32:?}");
        assert!((amp.loss - f32.loss).abs() < 0.02, "{amp_dtype}: {amp:?} and {f32:?}");
    }
}

/// The same on a card, where there is one; `SLT_RUN_NEED_GPU=1` makes its absence a failure.
#[cfg(feature = "cuda")]
mod on_a_card {
    use super::*;

    #[test]
    fn training_is_the_cpus() {
        if let Some(card) = crate::engine::cuda::driver::for_tests() {
            let compute = Compute::Gpu(card);
            compare_updates(&compute);
            recover(&compute);
            refuse(&compute);
            compare_learning(&compute);
        }
    }
}
