//! Training on an emulated GPU against the CPU: updates, windows, scaled gradients, memory that is full.

use std::rc::Rc;

use super::*;
use crate::config;
use crate::data::{Batch, Sizes};
use crate::engine::cuda::emulator::{EmulatedDevice, Emulator};
use crate::nn::device::Compute;
use crate::train::Learner;
use crate::train::feed::as_tensors;
use crate::train::learner::Place;

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
fn batch(clips: usize, seed: usize) -> TensorBatch {
    let sizes = Sizes { frames: FRAMES, image_size: 8, pose: 6 };
    let mut batch = Batch::new((0..clips).collect(), sizes);
    for (clip, target) in batch.targets.iter_mut().enumerate() {
        *target = ((clip + seed) % CLASSES) as u32;
    }
    for (stream, images) in batch.images.iter_mut().enumerate() {
        let a_clip = images.len() / clips;
        for (i, byte) in images.iter_mut().enumerate() {
            let class = (i / a_clip + seed) % CLASSES;
            *byte = ((i * (17 + stream) + seed * 7) % 31 + 20 * class) as u8;
        }
    }
    for (i, value) in batch.pose.iter_mut().enumerate() {
        *value = ((i + 5 * seed) as f32 * 0.37).sin();
    }
    as_tensors(batch).unwrap()
}

fn emulated() -> (Compute, Rc<EmulatedDevice>) {
    let card = Emulator::device(7);
    (Compute::Gpu(Rc::clone(&card) as Rc<dyn GpuDevice>), card)
}

/// Steps of `window` batches each; their losses and norms.
fn train(learner: &mut Learner, c: &Experiment, steps: usize, window: usize) -> Vec<(f64, f64)> {
    learner.to_gpu().unwrap();
    let mut all = Vec::new();
    for step in 0..steps {
        let (mut clips, mut sum) = (0, None);
        for part in 0..window {
            // The last batch of a window is smaller, as that of an epoch is.
            let mut batch = batch(if part + 1 == window { 3 } else { 4 }, step * window + part);
            let place = Place { first: part == 0, alone: window == 1 };
            let pass = Pass { first_row: clips, ..Pass::training(1, step as u64) };
            let loss = learner.forward_backward(&mut batch, &pass, place).unwrap();
            assert_eq!(loss.is_none(), window == 1 && learner.looks_ahead());
            sum = loss.map(|loss| sum.unwrap_or(0.0) + loss * batch.clips.len() as f64);
            clips += batch.clips.len();
        }
        let known = sum.map(|sum| sum / clips as f64);
        learner.update(c.optimization.lr, c.optimization.grad_clip, clips, known).unwrap();
        let outcome = learner.outcome().unwrap();
        assert_eq!(outcome.end, End::Updated);
        all.push((known.unwrap_or(outcome.loss), outcome.norm));
    }
    learner.to_host().unwrap();
    all
}

fn parameters(learner: &Learner) -> Vec<f32> {
    let all = learner.network.parameters().iter();
    all.flat_map(|(_, var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a - b))).sum();
    (difference / b.iter().map(|&b| square(f64::from(b))).sum::<f64>()).sqrt()
}

#[test]
fn updates_are_the_cpus() {
    compare_updates(&emulated().0);
}

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
    ] {
        let c = experiment(settings);
        let mut cpu = Learner::new(&c, &Compute::Cpu).unwrap();
        let mut gpu = Learner::new(&c, compute).unwrap();
        let (expected, found) = (train(&mut cpu, &c, 4, window), train(&mut gpu, &c, 4, window));
        for ((loss, norm), (expected_loss, expected_norm)) in found.iter().zip(&expected) {
            assert!((loss / expected_loss - 1.0).abs() < 1e-4, "{settings:?}: {found:?}, not {expected:?}");
            assert!((norm / expected_norm - 1.0).abs() < 1e-3, "{settings:?}: {found:?}, not {expected:?}");
        }
        let far = distance(&parameters(&gpu), &parameters(&cpu));
        // Adam moves what has a gradient of nothing but rounding.
        assert!(far < 1e-3, "{settings:?}: parameters {far}");
        assert_eq!(gpu.optimizer.steps(), 4);
        let moments = |learner: &Learner| -> Vec<f32> {
            learner
                .optimizer
                .moments()
                .iter()
                .flat_map(|m| m.exp_avg.iter().chain(&m.exp_avg_sq))
                .copied()
                .collect()
        };
        if !moments(&cpu).is_empty() {
            let far = distance(&moments(&gpu), &moments(&cpu));
            assert!(far < 1e-3, "{settings:?}: moments {far}");
        }
    }
}

/// The host waits once a step, however many kernels it starts; and what it starts stays few.
#[test]
fn a_step_waits_once() {
    let c = experiment(&[("run.precision", "amp")]);
    let (compute, card) = emulated();
    let mut learner = Learner::new(&c, &compute).unwrap();
    assert_eq!(learner.stored(), ActivationDtype::Bf16);
    train(&mut learner, &c, 1, 1);
    let gpu = card.last.borrow().clone().unwrap();
    gpu.take_waits();
    gpu.take_launches();
    let mut batch = batch(4, 1);
    let place = Place { first: true, alone: true };
    learner.forward_backward(&mut batch, &Pass::training(1, 1), place).unwrap();
    learner.update(1e-3, None, 4, None).unwrap();
    assert_eq!(gpu.take_waits(), 0);
    learner.outcome().unwrap();
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
    let mut whole = Learner::new(&c, &compute).unwrap();
    let expected = train(&mut whole, &c, 2, 1);
    let peak = whole.peak_gpu_memory().unwrap();

    // The budget is no help where others take memory later.
    let mut learner = Learner::new(&c, &compute).unwrap();
    let gpu = card.last.borrow().clone().unwrap();
    assert_eq!(learner.chunk(), None);
    gpu.limit(peak * 8 / 10);
    let found = train(&mut learner, &c, 2, 1);
    let chunk = learner.chunk().expect("it shrank");
    assert!(chunk < 12, "{chunk}");
    for ((loss, norm), (expected_loss, expected_norm)) in found.iter().zip(&expected) {
        assert!((loss / expected_loss - 1.0).abs() < 1e-5 && (norm / expected_norm - 1.0).abs() < 1e-4);
    }

    // At a resume the chunk is what it was, so that sums have the same order.
    let saved = learner.chunk_to_save().unwrap();
    let mut resumed = Learner::new(&c, &compute).unwrap();
    card.last.borrow().as_ref().unwrap().limit(usize::MAX);
    resumed.restore_chunk(saved);
    assert_eq!(train(&mut resumed, &c, 2, 1), found);

    // What was asked for stays, and what does not fit at all is an error.
    let c = experiment(&[("optimization.frames_per_chunk", "8")]);
    let mut learner = Learner::new(&c, &compute).unwrap();
    let gpu = card.last.borrow().clone().unwrap();
    let mut batch = batch(4, 0);
    learner.send(&mut batch).unwrap();
    gpu.limit(gpu.used() + 4096);
    let place = Place { first: true, alone: true };
    let error = learner.forward_backward(&mut batch, &Pass::training(1, 0), place).unwrap_err();
    assert!(error.to_string().contains("is full with 8 frames of a stream at a time"), "{error}");
    assert_eq!(error.exit_code(), 1);
}

/// float16: a scale that is too large is halved until gradients fit, without an update before; then training goes on.
#[test]
fn scaled_gradients_recover() {
    recover(&emulated().0);
}

fn recover(compute: &Compute) {
    let c = experiment(&[("run.precision", "amp"), ("optimization.amp_dtype", "float16")]);
    let mut learner = Learner::new(&c, compute).unwrap();
    assert_eq!((learner.stored(), learner.loss_scale()), (ActivationDtype::F16, Some(LossScale::default())));
    learner.restore_loss_scale(LossScale { scale: 2f64.powi(40), good_steps: 3 });
    learner.to_gpu().unwrap();
    let before = parameters(&learner);
    let (mut halved, mut last) = (0, 2f64.powi(40));
    let outcome = loop {
        let mut batch = batch(4, 0);
        learner
            .forward_backward(&mut batch, &Pass::training(1, 0), Place { first: true, alone: true })
            .unwrap();
        learner.update(1e-3, None, 4, None).unwrap();
        let outcome = learner.outcome().unwrap();
        match outcome.end {
            End::Rescaled(scale) => {
                assert_eq!(scale.to_bits(), (last / 2.0).to_bits());
                (halved, last) = (halved + 1, scale);
                learner.to_host().unwrap();
                assert_eq!(parameters(&learner), before);
                assert_eq!(learner.optimizer.steps(), 0);
            }
            _ => break outcome,
        }
    };
    assert!((5..35).contains(&halved), "{halved}");
    assert_eq!(outcome.end, End::Updated);
    assert_eq!(learner.loss_scale(), Some(LossScale { scale: last, good_steps: 1 }));
    learner.to_host().unwrap();
    assert_ne!(parameters(&learner), before);
    // The norm is that of the gradient, not of the scaled one.
    let c32 = experiment(&[]);
    let mut cpu = Learner::new(&c32, &Compute::Cpu).unwrap();
    let place = Place { first: true, alone: true };
    let loss = cpu.forward_backward(&mut batch(4, 0), &Pass::training(1, 0), place).unwrap();
    cpu.update(1e-3, None, 4, loss).unwrap();
    assert!((outcome.norm / cpu.outcome().unwrap().norm - 1.0).abs() < 1e-2);
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
        let mut learner = Learner::new(&c, compute).unwrap();
        learner.to_gpu().unwrap();
        let before = parameters(&learner);
        let mut sick = batch(4, 0);
        let pose = (sick.inputs.pose.clone() * f64::NAN).unwrap();
        sick.inputs.pose = pose;
        learner
            .forward_backward(&mut sick, &Pass::training(1, 0), Place { first: true, alone: true })
            .unwrap();
        learner.update(1e-3, Some(1.0), 4, None).unwrap();
        let outcome = learner.outcome().unwrap();
        assert_eq!(outcome.end, End::NotFinite);
        assert!(outcome.loss.is_nan());
        learner.to_host().unwrap();
        assert_eq!(parameters(&learner), before);
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
        let mut learner = Learner::new(&c, compute).unwrap();
        learner.to_gpu().unwrap();
        for step in 0..100 {
            let place = Place { first: true, alone: true };
            let loss = learner.forward_backward(&mut batch(4, 0), &Pass::training(1, step), place).unwrap();
            learner.update(c.optimization.lr, None, 4, loss).unwrap();
            learner.outcome().unwrap();
        }
        learner.evaluate(&mut batch(4, 0)).unwrap();
        learner.score().unwrap()
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
        if let Some(card) = gpu::cuda::for_tests() {
            let compute = Compute::Gpu(card);
            compare_updates(&compute);
            recover(&compute);
            refuse(&compute);
            compare_learning(&compute);
        }
    }
}
