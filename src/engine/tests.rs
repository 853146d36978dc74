//! What must be the same on every engine, and what must change nothing on any.

use std::rc::Rc;
use std::slice::from_ref;

use candle_core::{Result as CandleResult, Tensor};

use super::cpu::precision::Bf16;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::cuda::emulator::Emulator;
use super::device::Compute;
use super::{End, Engine, Placed, Step, with_decoder};
use crate::Result;
use crate::config::{self, EngineKind, Experiment, TextDecoder};
use crate::data::{Batch, Sizes};
use crate::model::Hypothesis;
use crate::model::decoder::{self, Decoder, DecoderKind, Encoded, Loss};
use crate::model::{Score, TextReport};
use crate::nn::{Builder, Linear, Operations, Pass, loss};

/// A small network with everything that drops switched on, and `more` settings.
pub(super) fn experiment(frames: usize, more: &[(&str, &str)]) -> Experiment {
    let frames = frames.to_string();
    let small = [
        ("run.device", "cpu"),
        ("data.batch_size", "2"),
        ("model.sequence_length", frames.as_str()),
        ("model.image_size", "16"),
        ("model.projector_dim", "12"),
        ("model.d_model", "16"),
        ("model.pose_landmarks", "5"),
        ("model.temporal_nhead", "2"),
        ("model.temporal_layers", "1"),
        ("model.temporal_dim_feedforward", "24"),
        ("model.vocab_size", "31"),
        ("model.backbone.patch_size", "4"),
        ("model.backbone.embed_dim", "20"),
        ("model.backbone.depth", "2"),
        ("model.backbone.num_heads", "2"),
        ("model.backbone.mlp_ratio", "2.0"),
        ("model.projector_dropout", "0.1"),
        ("model.fusion_dropout", "0.1"),
        ("model.backbone.dropout", "0.2"),
        ("model.backbone.attention_dropout", "0.2"),
        ("model.backbone.stochastic_depth", "0.2"),
    ];
    config::for_tests(&[&small, more].concat())
}

/// `clips` clips, the last of which ends a frame early where there is more than one frame.
pub(super) fn batch(c: &Experiment, clips: usize, kind: usize) -> Placed {
    let sizes = Sizes::of(&c.model);
    let mut batch = Batch::new((0..clips).collect(), sizes);
    for (stream, pixels) in batch.images.iter_mut().enumerate() {
        for (i, byte) in pixels.bytes_mut().iter_mut().enumerate() {
            *byte = ((i + stream + 3 * kind) * (i + 7) % 251) as u8;
        }
    }
    batch.pose.iter_mut().enumerate().for_each(|(i, x)| *x = ((i + kind) as f32).sin());
    let target = |i: usize| match c.model.decoder.kind {
        TextDecoder::Stub => vec![((5 * i + 3 + kind) % c.model.vocab_size) as u32],
        // Texts of different lengths.
        TextDecoder::Transformer => {
            let tokens: Vec<u32> =
                (0..3 + 2 * i + kind).map(|at| (4 + (5 * at + i + kind) % 20) as u32).collect();
            [[1].as_slice(), &tokens, &[2]].concat()
        }
    };
    let targets = (0..clips).map(target).collect();
    if let (Some(last), true) = (batch.pad_mask.last_mut(), sizes.frames > 1) {
        *last = false;
    }
    Placed::new(batch, targets)
}

/// Loss and gradients of a step of one batch, the second that `engine` computes: so that buffers serve again.
fn step(engine: &mut dyn Engine, c: &Experiment) -> Result<(f64, Vec<Vec<f32>>)> {
    let mut batch = batch(c, 2, 0);
    let mut step = Step::of(1);
    engine.train(&mut batch, &Pass::training(1, 4), &mut step)?;
    let mut step = Step::of(1);
    let pass = Pass { first_row: 2, ..Pass::training(1, 5) };
    engine.train(&mut batch, &pass, &mut step)?;
    let gradients = engine.gradients(&step)?;
    // A rate of 0 changes no parameter, and the outcome has the loss on every engine.
    let pending = engine.update(step, &[0.0], None)?;
    Ok((engine.outcome(pending)?.loss, gradients))
}

fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&a, &b) in pairs {
        difference += f64::from(a - b).powi(2);
        norm += f64::from(b).powi(2);
    }
    (difference / norm.max(f64::MIN_POSITIVE)).sqrt()
}

fn on_cpu(precision: &str, frames: usize, chunk: Option<usize>) -> Result<(f64, Vec<Vec<f32>>)> {
    let chunk = chunk.map_or_else(|| "auto".to_owned(), |chunk| chunk.to_string());
    let c = experiment(frames, &[("optimization.frames_per_chunk", &chunk), ("run.precision", precision)]);
    step(super::new(&c, &Compute::Cpu)?.as_mut(), &c)
}

/// What the CPU computes in; bfloat16 is f32 where the processor has none.
const PRECISIONS: [&str; 2] = ["fp32", "bf16"];

#[test]
fn chunks_change_nothing() -> Result<()> {
    for precision in PRECISIONS {
        let (loss, gradients) = on_cpu(precision, 20, None)?; // 40 images a stream
        for chunk in [16, 32] {
            let (other, others) = on_cpu(precision, 20, Some(chunk))?;
            assert_eq!((other, &others), (loss, &gradients), "{precision}, {chunk}");
        }
        for chunk in [1, 7, 39] {
            let (other, others) = on_cpu(precision, 20, Some(chunk))?;
            let error = distance(&others, &gradients);
            assert!((other / loss - 1.0).abs() < 1e-5 && error < 1e-5, "{precision}, {chunk}");
        }
    }
    Ok(())
}

#[test]
fn threads_change_nothing() -> Result<()> {
    for precision in PRECISIONS {
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool starts");
            pool.install(|| on_cpu(precision, 9, None))
        };
        let one = with(1)?;
        for threads in [2, 3, 5] {
            assert_eq!(with(threads)?, one, "{precision}, {threads} threads");
        }
    }
    Ok(())
}

/// Gradients of the whole network, with each decoder, are within 1e-2 of f32's, and are other ones. With more layers, or
/// with dropout, which makes numbers larger, they are farther off: `scripts/PERF.md` says how far.
#[test]
fn bfloat16_is_near_f32() -> Result<()> {
    let none_dropped = [
        ("model.projector_dropout", "0"),
        ("model.fusion_dropout", "0"),
        ("model.temporal_dropout", "0"),
        ("model.decoder.dropout", "0"),
        ("model.backbone.dropout", "0"),
        ("model.backbone.attention_dropout", "0"),
        ("model.backbone.stochastic_depth", "0"),
    ];
    // As wide as networks that are worth their training: what is rounded averages out.
    let wide = [
        ("model.image_size", "64"),
        ("model.projector_dim", "64"),
        ("model.d_model", "128"),
        ("model.temporal_nhead", "4"),
        ("model.temporal_layers", "2"),
        ("model.temporal_dim_feedforward", "256"),
        ("model.backbone.patch_size", "16"),
        ("model.backbone.embed_dim", "96"),
        ("model.backbone.depth", "4"),
        ("model.backbone.num_heads", "3"),
        ("model.backbone.mlp_ratio", "4.0"),
    ];
    let translating = [
        ("model.decoder.kind", "transformer"),
        ("model.decoder.layers", "2"),
        ("model.decoder.nhead", "4"),
        ("model.decoder.dim_feedforward", "256"),
        ("tokenizer.vocab_size", "24"),
    ];
    for more in [&[][..], &translating] {
        let with = |precision: &str| -> Result<(f64, Vec<Vec<f32>>)> {
            let c =
                experiment(8, &[&[("run.precision", precision)], &none_dropped[..], &wide, more].concat());
            let kind = decoder::of_no_texts(&c);
            step(with_decoder(&c, &Compute::Cpu, kind.as_ref())?.as_mut(), &c)
        };
        let ((loss, gradients), (expected, f32)) = (with("bf16")?, with("fp32")?);
        let error = distance(&gradients, &f32);
        assert!((loss / expected - 1.0).abs() < 1e-3 && error < 1e-2, "{loss}, not {expected}; {error}");
        assert_eq!(error > 1e-4, Bf16::is_native(), "{error}");
    }
    Ok(())
}

#[test]
fn targets_are_as_long_as_the_longest() -> Result<()> {
    let placed = |targets| Placed { targets, ..batch(&experiment(1, &[]), 2, 0) };
    let of = |targets| -> Result<_> {
        let found = super::batch::targets(&placed(targets), &candle_core::Device::Cpu)?;
        Ok((found.dims().to_vec(), found.flatten_all()?.to_vec1::<u32>()?))
    };
    assert_eq!(of(vec![vec![1, 5, 2], vec![1]])?, (vec![2, 3], vec![1, 5, 2, 1, 0, 0]));
    assert_eq!(of(vec![vec![7], vec![8]])?, (vec![2, 1], vec![7, 8]));
    assert_eq!(of(Vec::new())?, (vec![0, 0], Vec::new()));
    Ok(())
}

/// Two linear layers on each frame and their mean: a decoder that no engine has blocks for.
struct TwoLayers;

struct TwoLayersModule {
    hidden: Linear,
    out: Linear,
    operations: Rc<dyn Operations>,
}

impl DecoderKind for TwoLayers {
    fn name(&self) -> &'static str {
        "two layers"
    }

    fn target(&self, text: &str) -> Vec<u32> {
        vec![text.len() as u32]
    }

    fn text(&self, _: &[u32]) -> Option<String> {
        None
    }

    fn loss_bytes(&self, c: &config::Model, clips: usize) -> usize {
        4 * clips * c.vocab_size
    }

    fn work(&self, _: &config::Model, _: usize, _: usize) -> f64 {
        0.0
    }

    fn any_target(&self, random: &mut dyn FnMut() -> u32) -> Vec<u32> {
        vec![random() % 3]
    }

    fn report(&self, _: &[&str], _: &[&str]) -> TextReport {
        TextReport::default()
    }

    fn saved(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    fn build(&self, b: &Builder, c: &config::Model) -> CandleResult<Box<dyn Decoder>> {
        Ok(Box::new(TwoLayersModule {
            hidden: Linear::new(&b.pp("hidden"), c.d_model, 10)?,
            out: Linear::new(&b.pp("out"), 10, c.vocab_size)?,
            operations: b.operations(),
        }))
    }
}

impl Decoder for TwoLayersModule {
    fn operations(&self) -> &dyn Operations {
        self.operations.as_ref()
    }

    fn head(&self) -> &'static str {
        "out"
    }

    fn logits(&self, encoded: Encoded, _: &Tensor, _: &Pass) -> Result<Tensor> {
        Ok(self.out.forward(&self.hidden.forward(encoded.frames)?.relu()?)?.mean(1)?)
    }

    /// Counts each clip twice: its weight is not the number of clips.
    fn loss(&self, encoded: Encoded, targets: &Tensor, pass: &Pass) -> Result<Loss> {
        let targets = targets.squeeze(1)?;
        let mean = loss::cross_entropy(&self.logits(encoded, &targets, pass)?, &targets, 0.0)?;
        Ok(Loss { mean, weight: 2 * targets.dim(0)? })
    }

    fn score(&self, encoded: Encoded, targets: &Tensor) -> Result<Score> {
        let Loss { mean, weight } = self.loss(encoded, targets, &Pass::EVALUATION)?;
        Ok(Score { loss: f64::from(mean.to_scalar::<f32>()?), weight, correct: 0 })
    }

    fn translate(&self, encoded: Encoded, _: &config::Decoding) -> Result<Vec<Vec<Hypothesis>>> {
        Ok(vec![Vec::new(); encoded.frames.dim(0)?])
    }
}

/// The engines that there are here: their names, and the experiment's setting and device for each.
pub(super) fn all() -> Vec<(&'static str, Compute)> {
    vec![
        ("candle", Compute::Graph(candle_core::Device::Cpu)),
        ("cpu", Compute::Cpu),
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        ("cuda", Compute::Gpu(Emulator::device(7))),
    ]
}

/// Every decoder's first gradients and three steps of two batches each are the same on all engines.
#[test]
fn engines_agree_whatever_reads_the_frames() -> Result<()> {
    agree(&all(), 1e-4)
}

/// Trains on each of `engines`, with each decoder: numbers differ from the first's by less than `tolerance`, relatively.
fn agree(engines: &[(&str, Compute)], tolerance: f64) -> Result<()> {
    let common = [("optimization.accumulate", "2"), ("run.precision", "fp32")];
    let translating = [
        ("model.decoder.kind", "transformer"),
        ("model.decoder.layers", "2"),
        ("model.decoder.nhead", "4"),
        ("model.decoder.dim_feedforward", "24"),
        ("tokenizer.vocab_size", "24"),
        ("decoding.max_length", "9"),
        ("decoding.n_best", "3"),
    ];
    let untied = [&common[..], &translating, &[("model.decoder.tied", "false")]].concat();
    let stub = experiment(6, &common);
    let [tied, untied] =
        [&[&common[..], &translating].concat(), &untied].map(|settings| experiment(6, settings));
    let kinds = [&stub, &tied, &untied].map(|c| (c, decoder::of_no_texts(c)));
    let others: (&Experiment, Rc<dyn DecoderKind>) = (&stub, Rc::new(TwoLayers));
    for (c, kind) in kinds.into_iter().chain([others]) {
        // The reference is computed as a graph throughout.
        let of_engine = |name: &str| {
            let mut c = c.clone();
            if name == "candle" {
                c.run.engine = EngineKind::Candle;
            }
            c
        };
        let kind = kind.as_ref();
        let mut found = Vec::new();
        for (name, compute) in engines {
            let mut engine = with_decoder(&of_engine(name), compute, kind)?;
            let (loss, gradients) = step(engine.as_mut(), c)?;
            let mut losses = vec![loss];
            for number in 0..3 {
                let mut whole = Step::of(2);
                for (kind, clips) in [2, 1].into_iter().enumerate() {
                    let mut batch = batch(c, clips, kind);
                    let pass = Pass { first_row: whole.clips(), ..Pass::training(1, number) };
                    engine.train(&mut batch, &pass, &mut whole)?;
                }
                losses.push(whole.loss().expect("known"));
                let pending = engine.update(whole, &[1e-3], Some(1.0))?;
                let outcome = engine.outcome(pending)?;
                assert_eq!(outcome.end, End::Updated, "{name}");
                losses.push(outcome.norm);
            }
            let mut batch = batch(c, 2, 5);
            let evaluating = engine.evaluate(&mut batch)?;
            let score = engine.score(evaluating)?;
            losses.push(score.loss);
            let encoded = engine.encode(&mut batch)?.flatten_all()?.to_vec1::<f32>()?;
            let texts: Vec<Vec<Vec<u32>>> = if c.model.decoder.kind == TextDecoder::Stub {
                Vec::new()
            } else {
                let best = engine.translate(&mut batch, &c.decoding)?;
                best.into_iter().map(|best| best.into_iter().map(|it| it.tokens).collect()).collect()
            };
            found.push((name, losses, gradients, encoded, (score.weight, score.correct, texts)));
        }
        let (_, losses, gradients, encoded, score) = &found[0];
        for (name, other, others, frames, other_score) in &found[1..] {
            let name = format!("{} on {name}", kind.name());
            for (found, expected) in other.iter().zip(losses) {
                assert!((found / expected - 1.0).abs() < tolerance, "{name}: {found} is not {expected}");
            }
            assert_eq!(others.len(), gradients.len(), "{name}");
            for (at, (found, expected)) in others.iter().zip(gradients).enumerate() {
                let error = distance(from_ref(found), from_ref(expected));
                assert!(error < tolerance, "{name}: parameter {at} is off by {error}");
            }
            let error = distance(from_ref(frames), from_ref(encoded));
            assert!(error < 10.0 * tolerance, "{name}: frames after the steps are off by {error}");
            assert_eq!(other_score, score, "{name}");
        }
    }
    Ok(())
}

#[test]
fn a_graph_knows_no_chunks() {
    let c = experiment(6, &[("optimization.frames_per_chunk", "16")]);
    let error = super::new(&c, &Compute::Graph(candle_core::Device::Cpu)).err().expect("refused").to_string();
    assert!(error.contains("frames_per_chunk") && error.contains("\"auto\""), "{error}");
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod on_an_emulated_gpu {
    use std::rc::Rc;

    use super::*;
    use crate::error::ErrorKind;
    use crate::optim::LossScale;

    #[test]
    fn fused_refuses_a_decoder_without_kernels() -> Result<()> {
        let compute = Compute::Gpu(Emulator::device(7));
        let fused = experiment(2, &[("run.engine", "fused")]);
        let error = with_decoder(&fused, &compute, &TwoLayers).err().expect("refused");
        assert_eq!((error.kind, error.exit_code()), (ErrorKind::Config, 2));
        let text = error.to_string();
        for part in ["run.engine = \"fused\"", "\"two layers\"", "on a GPU", "run.engine = \"auto\""] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        with_decoder(&fused, &compute, decoder::of_no_texts(&fused).as_ref())?;
        with_decoder(&fused, &Compute::Cpu, &TwoLayers)?;
        with_decoder(&experiment(2, &[]), &compute, &TwoLayers)?;
        Ok(())
    }

    /// float16: the gradients that the host's decoder gives are scaled on their way to the GPU.
    #[test]
    fn gradients_from_the_host_are_scaled() -> Result<()> {
        let precision = [("run.precision", "amp"), ("optimization.amp_dtype", "float16")];
        let c = experiment(3, &precision);
        let (loss, gradients) = step(with_decoder(&c, &Compute::Cpu, &TwoLayers)?.as_mut(), &c)?;
        let mut engine = with_decoder(&c, &Compute::Gpu(Emulator::device(7)), &TwoLayers)?;
        // Small enough for every gradient.
        let scale = LossScale { scale: 256.0, good_steps: 0 };
        engine.restore_loss_scale(scale);
        let (found, others) = step(engine.as_mut(), &c)?;
        assert!((found / loss - 1.0).abs() < 5e-3, "{found} is not {loss}");
        let error = distance(&others, &gradients);
        assert!(error < 1e-2, "gradients are off by {error}");
        assert_eq!(engine.loss_scale(), Some(LossScale { good_steps: 1, ..scale }));
        Ok(())
    }

    /// Another try, in smaller chunks, counts nothing twice: neither the host's gradients nor the GPU's.
    #[test]
    fn full_memory_is_no_matter_to_a_decoder_on_the_host() -> Result<()> {
        let c = experiment(6, &[("run.precision", "fp32")]);
        let card = Emulator::device(7);
        let compute = Compute::Gpu(Rc::clone(&card) as Rc<dyn super::super::cuda::GpuDevice>);
        let mut whole = with_decoder(&c, &compute, &TwoLayers)?;
        let (loss, gradients) = step(whole.as_mut(), &c)?;
        let peak = whole.peak_gpu_memory().expect("a GPU tells");
        let mut engine = with_decoder(&c, &compute, &TwoLayers)?;
        card.last.borrow().as_ref().expect("a GPU").limit(peak / 10 * 8);
        let (found, others) = step(engine.as_mut(), &c)?;
        assert!(engine.chunk().is_some_and(|chunk| chunk < 12), "{:?}", engine.chunk());
        assert!((found / loss - 1.0).abs() < 1e-5, "{found} is not {loss}");
        assert!(distance(&others, &gradients) < 1e-5, "{}", distance(&others, &gradients));
        Ok(())
    }
}

/// The same on a card, where there is one; `SLT_RUN_NEED_GPU=1` makes its absence a failure.
#[cfg(feature = "cuda")]
mod on_a_card {
    use super::*;

    #[test]
    fn candle_and_cuda_agree() -> Result<()> {
        let Some(card) = crate::engine::cuda::driver::for_tests() else { return Ok(()) };
        let engines = [
            ("candle", Compute::Graph(candle_core::Device::Cpu)),
            #[cfg(feature = "candle-cuda")]
            ("candle on the card", Compute::Graph(candle_core::Device::new_cuda(0)?)),
            ("cuda", Compute::Gpu(card)),
        ];
        agree(&engines, 5e-4)
    }
}
