//! The kernels and their order, on the emulated GPU, against the CPU.

use std::rc::Rc;

use candle_core::{Device, Tensor};

use super::emulator::Emulator;
use super::kernels::{SIZES, VECTORS};
use super::layers::Keep;
use super::memory::{Activation, Matrix, Slice, Transfer};
use super::ops::{Factor, Ops, Output, Write};
use super::{
    Allocator, GpuNetwork, GpuStream, GpuUpdateRule, HostBatch, NetworkSpec, StreamData, head_widths,
    step_memory,
};
use crate::config::streams::{STREAMS, Stream};
use crate::config::{self, Experiment};
use crate::data::{Batch, Pixels, Sizes};
use crate::engine::batch::{frames, targets};
use crate::engine::device::Compute;
use crate::engine::{self, Engine, Placed, Step};
use crate::error::ErrorKind;
use crate::model::decoder::Fused;
use crate::model::{DecoderStep, Encoded, Network, decoder};
use crate::nn::{ActivationDtype, Blueprint, Pass};
use crate::optim::ParameterGroups;

/// A network whose widths are `scale` times small odd numbers, with `drop` at all its dropouts.
fn model(scale: usize, drop: f64, frames: usize, depth: usize) -> config::Model {
    config::Model {
        image_size: 12,
        sequence_length: frames,
        projector_dim: 3 * scale,
        d_model: 10 * scale,
        pose_landmarks: 5,
        projector_dropout: drop,
        fusion_dropout: drop,
        temporal_nhead: 2,
        temporal_layers: 2,
        temporal_dim_feedforward: 7 * scale,
        temporal_dropout: drop,
        vocab_size: 31,
        backbone: config::Backbone {
            patch_size: 4,
            embed_dim: 9 * scale,
            depth,
            num_heads: 3,
            mlp_ratio: 2.0,
            layer_norm_eps: 1e-2, // another one than the other norms'
            dropout: drop,
            attention_dropout: drop,
            stochastic_depth: drop,
            ..config::Backbone::default()
        },
        decoder: config::Decoder::default(),
    }
}

/// An experiment of a network, with label smoothing of 0.1.
fn experiment(c: &config::Model) -> Experiment {
    let settings = [("run.device", "cpu"), ("run.seed", "3"), ("optimization.label_smoothing", "0.1")];
    Experiment { model: c.clone(), ..config::for_tests(&settings) }
}

fn blueprint(c: &config::Model) -> Rc<Blueprint> {
    Network::blueprint_of(c, decoder::of_no_texts(&experiment(c)).as_ref()).unwrap()
}

/// A batch whose last clip's last frame is padding.
fn batch(c: &config::Model, clips: usize, bytes: bool) -> Placed {
    let (frames, image_size) = (c.sequence_length, c.image_size);
    let sizes = Sizes { frames, image_size, pose: 3 * c.pose_landmarks, features: None };
    let mut batch = Batch::new((0..clips).collect(), sizes);
    for (stream, pixels) in batch.images.iter_mut().enumerate() {
        let images = pixels.bytes_mut();
        images.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i * (i + 3 * stream) % 251) as u8);
        if !bytes {
            // Channels first.
            let area = image_size * image_size;
            let planes = images
                .chunks_exact(3 * area)
                .flat_map(|image| (0..3).flat_map(move |channel| image.iter().skip(channel).step_by(3)));
            *pixels = Pixels::Normalised(planes.map(|&byte| f32::from(byte) / 100.0).collect());
        }
    }
    batch.pose.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 * 0.7).sin());
    if let (Some(last), true) = (batch.pad_mask.last_mut(), frames > 1) {
        *last = false;
    }
    let targets = (0..clips).map(|i| vec![(i * 7 + 3) as u32 % 31]).collect();
    Placed::new(batch, targets)
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn floats_of(engine: &dyn Engine) -> Vec<Vec<f32>> {
    engine.host().parameters().iter().map(|(_, var)| floats(var.as_tensor())).collect()
}

/// One group of all parameters.
fn groups_of(blueprint: &Blueprint) -> ParameterGroups {
    ParameterGroups::new(&config::Optimization::default(), blueprint).unwrap()
}

fn send(network: &mut GpuNetwork, slot: usize, Placed { batch, targets, .. }: &Placed) {
    let targets = targets.concat();
    let images = batch.images.iter().map(|pixels| match pixels {
        Pixels::Bytes(bytes) => StreamData::ImageBytes(bytes),
        Pixels::Normalised(numbers) => StreamData::Images(numbers),
        Pixels::Features(numbers) => StreamData::Features(numbers),
    });
    let streams: Vec<StreamData> = images.chain([StreamData::Pose(&batch.pose)]).collect();
    let valid: Vec<u8> = batch.pad_mask.iter().map(|&valid| u8::from(valid)).collect();
    let (clips, frames) = (batch.clips.len(), batch.sizes.frames);
    let batch = HostBatch { streams: &streams, valid: &valid, targets: &targets, clips, frames };
    network.send(slot, &batch).unwrap();
}

/// Makes a GPU with kernels for a type and widths of heads.
type Make<'a> = &'a dyn Fn(ActivationDtype, &[usize]) -> Rc<dyn GpuStream>;

/// An emulated one of compute capability 8.0.
fn emulated(dtype: ActivationDtype, heads: &[usize]) -> Rc<dyn GpuStream> {
    Emulator::new(dtype, heads, 80, 1)
}

/// A network on the CPU whose biases and norms are away from 0 and 1, and the same on a GPU.
fn twins(c: &config::Model, dtype: ActivationDtype, make: Make) -> (Box<dyn Engine>, GpuNetwork) {
    twins_with(c, dtype, make, Fused::Stub { label_smoothing: 0.1 })
}

fn twins_with(
    c: &config::Model,
    dtype: ActivationDtype,
    make: Make,
    decoder: Fused,
) -> (Box<dyn Engine>, GpuNetwork) {
    let mut engine = engine::new(&experiment(c), &Compute::Cpu).unwrap();
    for (i, (_, var)) in engine.host().parameters().iter().enumerate() {
        let n = var.elem_count();
        let noise: Vec<f32> = (0..n).map(|k| 0.1 * ((k * 37 + i * 11) as f32).sin()).collect();
        let noise = Tensor::from_vec(noise, var.dims(), &Device::Cpu).unwrap();
        var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
    }
    engine.push().unwrap();
    let blueprint = Rc::clone(engine.host().network.blueprint());
    let groups = groups_of(&blueprint);
    let spec = NetworkSpec {
        blueprint: &blueprint,
        model: c,
        streams: STREAMS,
        decoder,
        groups: &groups,
        moments: 2,
    };
    let stream = make(dtype, &head_widths(&spec).unwrap());
    let mut on_gpu = GpuNetwork::new(&Allocator::new(stream, dtype), &spec).unwrap();
    on_gpu.write_parameters(&floats_of(engine.as_ref())).unwrap();
    (engine, on_gpu)
}

/// The decoder's logits on the CPU, without dropout.
fn logits_of(engine: &mut dyn Engine, batch: &mut Placed) -> Vec<f32> {
    let encoded = engine.encode(batch).unwrap();
    let pad_mask = &frames(&batch.batch, &Device::Cpu).unwrap().pad_mask;
    let encoded = Encoded { frames: &encoded, pad_mask };
    let decoder = engine.host().evaluator.decoder();
    floats(&decoder.logits(encoded, &targets(batch, &Device::Cpu).unwrap(), &Pass::EVALUATION).unwrap())
}

fn norm(a: &[f32]) -> f64 {
    a.iter().map(|&a| f64::from(a).powi(2)).sum::<f64>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        difference += f64::from(a - b).powi(2);
        norm += f64::from(b).powi(2);
    }
    assert_eq!(a.len(), b.len());
    (difference / norm.max(1e-30)).sqrt()
}

/// How far a step on a GPU is from the CPU's in f32, relative to the CPU's numbers.
struct Errors {
    loss: f64,
    logits: f64,
    /// Of all gradients at once.
    gradients: f64,
    /// Each parameter's name, its gradient's error, and the gradient's size on the CPU.
    parameters: Vec<(String, f64, f64)>,
    /// The largest number in the keys' third of an attention's bias, whose gradient is zero but for rounding.
    keys: f64,
}

impl Errors {
    fn of(c: &config::Model, dtype: ActivationDtype, make: Make, chunk: Option<usize>, bytes: bool) -> Self {
        let (mut engine, mut on_gpu) = twins(c, dtype, make);
        let mut batch = batch(c, 2, bytes);
        let pass = Pass { first_row: 2, ..Pass::training(1, 5) };
        let mut step = Step::of(1);
        engine.train(&mut batch, &pass, &mut step).unwrap();
        let (expected_loss, expected) = (step.loss().unwrap(), engine.gradients(&step).unwrap());
        let logits = logits_of(engine.as_mut(), &mut batch);

        send(&mut on_gpu, 1, &batch);
        // Twice, so that memory from one step serves the next.
        for _ in 0..2 {
            on_gpu.zero_gradients().unwrap();
            on_gpu.forward_backward(1, &pass, chunk, 1024.0).unwrap();
        }
        let loss = on_gpu.scores().unwrap().loss;
        let (mut all, mut all_expected) = (Vec::new(), Vec::new());
        let (mut parameters, mut keys) = (Vec::new(), 0.0_f64);
        let names = engine.host().parameters().iter().map(|(name, _)| name);
        for ((found, mut expected), name) in on_gpu.read_gradients().unwrap().iter().zip(expected).zip(names)
        {
            // The gradients' sum over two clips, times the scale.
            let mut found: Vec<f32> = found.iter().map(|g| g / 2048.0).collect();
            if name.ends_with("in_proj_bias") {
                let third = expected.len() / 3;
                keys = found[third..2 * third].iter().fold(keys, |most, g| most.max(f64::from(g.abs())));
                expected[third..2 * third].fill(0.0);
                found[third..2 * third].fill(0.0);
            }
            parameters.push((name.to_owned(), distance(&found, &expected), norm(&expected)));
            all.extend(found);
            all_expected.extend(expected);
        }
        Self {
            loss: (loss / expected_loss - 1.0).abs(),
            logits: distance(&on_gpu.logits(1, chunk).unwrap(), &logits),
            gradients: distance(&all, &all_expected),
            parameters,
            keys,
        }
    }

    fn within(&self, tolerance: f64) {
        let largest = self.parameters.iter().map(|&(_, _, size)| size).fold(0.0, f64::max);
        for (name, far, size) in &self.parameters {
            // The least gradients are sums of what nearly cancels.
            let enough = (20.0 * tolerance).max(0.05 * tolerance * largest / size);
            assert!(*far < enough, "{name}: {far} of {size}");
        }
        for (what, far) in [("loss", self.loss), ("logits", self.logits), ("gradients", self.gradients)] {
            assert!(far < tolerance, "{what}: {far}");
        }
        assert!(self.keys < tolerance, "the keys' bias: {}", self.keys);
    }

    /// Rounding in another order gives errors like `other`'s. A unit that it switches (`ReLU`) moves single gradients by
    /// up to 40 times, and all of them together by up to 5 (seen in 48 emulated steps whose parameters differ by 1e-3):
    /// what is compared is the middle one and all together. A gradient that is wrong is off by as much as it is.
    #[cfg(feature = "cuda")]
    fn like(&self, other: &Self, tolerance: f64) {
        assert!(self.loss < tolerance && self.keys < tolerance, "{} {}", self.loss, self.keys);
        let mut ratios = Vec::new();
        for ((name, far, size), (_, expected, _)) in self.parameters.iter().zip(&other.parameters) {
            assert!(*far < 1.0 || *expected > 0.1, "{name}: {far} of {size}, and emulated {expected}");
            ratios.push(far / expected.max(f64::MIN_POSITIVE));
        }
        ratios.sort_by(f64::total_cmp);
        for (what, ratio, most) in [
            ("middle gradient", ratios[ratios.len() / 2], 3.0),
            ("gradients", self.gradients / other.gradients, 10.0),
            ("logits", self.logits / other.logits, 3.0),
        ] {
            assert!(ratio < most, "{what}: {ratio} times as far off as emulated");
        }
    }
}

/// Loss, logits and every gradient of a step against the CPU.
fn check(
    c: &config::Model,
    dtype: ActivationDtype,
    make: Make,
    chunk: Option<usize>,
    bytes: bool,
    tolerance: f64,
) {
    Errors::of(c, dtype, make, chunk, bytes).within(tolerance);
}

/// The stub and its loss on the host: the gradient of the sum of the clips' losses times `scale` for the encoded frames, and
/// for weight and bias.
fn stub_on_host(engine: &dyn Engine, encoded: Vec<f32>, batch: &Placed, scale: f64) -> [Vec<f32>; 3] {
    let (clips, length) = (batch.clips(), batch.batch.sizes.frames);
    let encoded = Tensor::from_vec(encoded, (clips, length, ()), &Device::Cpu).unwrap();
    let pad_mask = &frames(&batch.batch, &Device::Cpu).unwrap().pad_mask;
    let network = &engine.host().network;
    let DecoderStep { weight, d_frames, gradients, .. } = network
        .decoder()
        .train(
            Encoded { frames: &encoded, pad_mask },
            &targets(batch, &Device::Cpu).unwrap(),
            &Pass::EVALUATION,
            &network.trainable_of("decoder"),
        )
        .unwrap();
    assert_eq!(weight, clips);
    let gradients: [Tensor; 2] = gradients().unwrap().try_into().unwrap();
    let [d_weight, d_bias] = gradients;
    [d_frames, d_weight, d_bias].map(|gradient| floats(&(gradient * (scale * clips as f64)).unwrap()))
}

#[test]
fn a_decoder_on_the_host_gives_the_stubs_gradients() {
    for (layers, chunk) in [(2, None), (2, Some(4)), (0, None)] {
        let c = config::Model { temporal_layers: layers, ..model(4, 0.2, 3, 2) };
        let (engine, mut whole) = twins(&c, ActivationDtype::F32, &emulated);
        let (_, mut split) = twins_with(&c, ActivationDtype::F32, &emulated, Fused::Nothing);
        let batch = batch(&c, 2, true);
        let pass = Pass { first_row: 2, ..Pass::training(1, 5) };
        send(&mut whole, 1, &batch);
        send(&mut split, 1, &batch);
        let names: Vec<&str> = engine.host().parameters().iter().map(|(name, _)| name).collect();
        let position = |name: &str| names.iter().position(|known| *known == name).unwrap();
        let lm_head = ["decoder.lm_head.weight", "decoder.lm_head.bias"].map(position);
        for _ in 0..2 {
            whole.zero_gradients().unwrap();
            split.zero_gradients().unwrap();
            whole.forward_backward(1, &pass, chunk, 8.0).unwrap();
            split.encode(1, &pass, chunk, Keep::ForBackward).unwrap();
            let encoded = split.read_encoded().unwrap();
            let [d_encoded, gradients @ ..] = stub_on_host(engine.as_ref(), encoded, &batch, 8.0);
            split.backward_from(1, &pass, chunk, &d_encoded).unwrap();
            for (position, gradient) in lm_head.into_iter().zip(&gradients) {
                split.add_gradient(position, gradient).unwrap();
            }
        }
        let (found, expected) = (split.read_gradients().unwrap(), whole.read_gradients().unwrap());
        let largest = expected.iter().map(|g| norm(g)).fold(0.0, f64::max);
        for ((found, expected), name) in found.iter().zip(&expected).zip(&names) {
            let off: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
            assert!(norm(&off) < 1e-6 * largest, "{name}: {} of {largest}", norm(&off));
        }
        assert!(distance(&found.concat(), &expected.concat()) < 1e-6);
        assert!(largest > 1.0);

        // Norm, clipping and update are of all parameters, wherever their gradients come from.
        let rule = GpuUpdateRule::Sgd { lr: 0.1, l2: 0.01, momentum: 0.0 };
        for on_gpu in [&mut whole, &mut split] {
            on_gpu.update(&[rule], 1.0 / 16.0, Some(0.5)).unwrap();
        }
        let (found, expected) = (split.update_report().unwrap(), whole.update_report().unwrap());
        assert!(found.finite && found.loss.is_none() && expected.loss.unwrap() > 0.0);
        assert!((found.norm / expected.norm - 1.0).abs() < 1e-6);
        let (found, expected) = (split.read_parameters().unwrap(), whole.read_parameters().unwrap());
        assert!(distance(&found.concat(), &expected.concat()) < 1e-6);
        assert_ne!(found, floats_of(engine.as_ref()));
        assert_eq!(split.read_parameter(lm_head[0]).unwrap(), found[lm_head[0]]);
        // Where it is not, the decoder is not asked.
        assert!(
            split.forward_backward(1, &pass, chunk, 8.0).unwrap_err().to_string().contains("on the host")
        );
    }
}

/// A gradient from the host before a forward pass that keeps what it needs is an error, and so is another size.
#[test]
fn a_backward_pass_needs_its_forward_pass() {
    let c = model(1, 0.0, 3, 1);
    let (_, mut split) = twins_with(&c, ActivationDtype::F32, &emulated, Fused::Nothing);
    let batch = batch(&c, 2, true);
    let pass = Pass::EVALUATION;
    let gradient = vec![1.0; 2 * 3 * c.d_model];
    assert!(split.encode(0, &pass, None, Keep::ForBackward).is_err());
    send(&mut split, 0, &batch);
    assert!(split.backward_from(0, &pass, None, &gradient).is_err());
    split.encode(0, &pass, None, Keep::Nothing).unwrap();
    let error = split.backward_from(0, &pass, None, &gradient).unwrap_err().to_string();
    assert!(error.contains("nothing was kept"), "{error}");
    split.encode(0, &pass, None, Keep::ForBackward).unwrap();
    assert!(split.backward_from(0, &pass, None, &gradient[1..]).is_err());
    split.backward_from(0, &pass, None, &gradient).unwrap();
    // Once: it is used up; and another batch, or other chunks, are no use.
    assert!(split.backward_from(0, &pass, None, &gradient).is_err());
    split.encode(0, &pass, None, Keep::ForBackward).unwrap();
    assert!(split.backward_from(0, &pass, Some(2), &gradient).is_err());
    send(&mut split, 1, &batch);
    assert!(split.backward_from(1, &pass, None, &gradient).is_err());
    send(&mut split, 0, &batch);
    assert!(split.backward_from(0, &pass, None, &gradient).is_err());
}

/// What no layer has would never be trained.
#[test]
fn a_parameter_that_nothing_computes_with_is_an_error() {
    let c = model(1, 0.0, 3, 1);
    let blueprint = blueprint(&c);
    let &[face, left, right, pose] = STREAMS else { panic!("other streams") };
    let twice = Stream { projector: left.projector, ..right };
    for (streams, what) in [
        (&[face, left, twice, pose][..], "nothing on the GPU computes with encoder.hand_right_projector."),
        (&[face, left, pose], "fusion takes 12, not 9"),
        (&[face, left, right, Stream { kind: face.kind, ..pose }], "pose_projector takes"),
    ] {
        let decoder = Fused::Nothing;
        let groups = groups_of(&blueprint);
        let spec =
            NetworkSpec { blueprint: &blueprint, model: &c, streams, decoder, groups: &groups, moments: 0 };
        let error = head_widths(&spec).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn parameters_are_read_and_written_by_position() {
    let c = model(1, 0.0, 3, 1);
    for dtype in [ActivationDtype::F32, ActivationDtype::Bf16] {
        let (engine, mut on_gpu) = twins(&c, dtype, &emulated);
        let batch = batch(&c, 2, true);
        send(&mut on_gpu, 0, &batch);
        let before = on_gpu.logits(0, None).unwrap();
        let last = engine.host().parameters().len() - 1;
        let weight = on_gpu.read_parameter(last - 1).unwrap();
        let zeros = vec![0.0; weight.len()];
        on_gpu.write_parameter(last - 1, &zeros).unwrap();
        assert_eq!(on_gpu.read_parameter(last - 1).unwrap(), zeros);
        // Products take the new numbers, too: what is left is the bias.
        let bias = on_gpu.read_parameter(last).unwrap();
        assert_eq!(on_gpu.logits(0, None).unwrap(), [bias.clone(), bias].concat());
        on_gpu.write_parameter(last - 1, &weight).unwrap();
        assert_eq!(on_gpu.logits(0, None).unwrap(), before);
        assert!(on_gpu.write_parameter(last, &zeros).is_err());
        assert!(on_gpu.add_gradient(last, &zeros).is_err());
        assert!(on_gpu.read_parameter(last + 1).is_err());
    }
}

#[test]
fn what_a_step_takes_is_known_before() {
    for (dtype, chunk, decoder) in [
        (ActivationDtype::Bf16, None, Fused::Stub { label_smoothing: 0.0 }),
        (ActivationDtype::F32, Some(2), Fused::Stub { label_smoothing: 0.0 }),
    ] {
        let c = model(4, 0.2, 3, 2);
        let blueprint = blueprint(&c);
        let groups = groups_of(&blueprint);
        let spec = NetworkSpec {
            blueprint: &blueprint,
            model: &c,
            streams: STREAMS,
            decoder,
            groups: &groups,
            moments: 2,
        };
        let expected = step_memory(&spec, dtype, 2, 3, chunk).unwrap();
        let emulator = Emulator::new(dtype, &head_widths(&spec).unwrap(), 80, 1);
        let stream = Rc::clone(&emulator) as Rc<dyn GpuStream>;
        let mut on_gpu = GpuNetwork::new(&Allocator::new(stream, dtype), &spec).unwrap();
        let batch = batch(&c, 2, true);
        send(&mut on_gpu, 0, &batch);
        let before = emulator.used();
        on_gpu.forward_backward(0, &Pass::training(1, 5), chunk, 1.0).unwrap();
        on_gpu.evaluate(0, chunk).unwrap();
        assert_eq!(expected.backbones + expected.head, emulator.used() - before, "{dtype} {chunk:?}");
        assert!(expected.backbones > 0 && expected.head > 0);
    }
}

#[test]
fn what_does_not_fit_a_kernel_is_an_error() {
    let c = model(1, 0.0, 1, 1);
    let blueprint = blueprint(&c);
    let decoder = Fused::Nothing;
    let groups = groups_of(&blueprint);
    let spec = NetworkSpec {
        blueprint: &blueprint,
        model: &c,
        streams: STREAMS,
        decoder,
        groups: &groups,
        moments: 0,
    };
    let of = |clips, frames| step_memory(&spec, ActivationDtype::F32, clips, frames, None);
    assert!(of(60_000, 1).is_ok());
    // More blocks than a launch has in z.
    let error = of(70_000, 1).unwrap_err();
    assert!(error.to_string().contains("blocks are more than a GPU takes"), "{error}");
    // More rows than an `int` counts.
    let error = of(3 << 30, 1).unwrap_err();
    assert!(error.to_string().contains("is more than the GPU's kernels take"), "{error}");
    assert_eq!((error.kind, of(1 << 62, 1).unwrap_err().kind), (ErrorKind::Run, ErrorKind::Memory));
    assert!(of(2, 2).is_err(), "there is one place for frames");
}

#[test]
fn buffers_are_as_large_as_they_say() {
    let emulator = Emulator::new(ActivationDtype::F16, &[], 80, 1);
    let allocator = Allocator::new(Rc::clone(&emulator) as Rc<dyn GpuStream>, ActivationDtype::F16);
    let ops = Ops::new(allocator.clone());
    let numbers: Slice<f32> = allocator.empty(12).unwrap();
    numbers.write(&[1.5; 12]).unwrap();
    assert!(numbers.write(&[0.0; 11]).is_err() && numbers.slice(6..13).is_err());
    assert!(numbers.copy_from(&numbers.slice(0..3).unwrap()).is_err());
    assert!(Transfer::new(&numbers, &[0f32; 13]).is_err());
    assert_eq!(numbers.slice(6..12).unwrap().to_vec().unwrap(), [1.5; 6]);

    let matrix = Matrix::new(&numbers, 4, 3).unwrap();
    assert!(Matrix::new(&numbers, 4, 4).is_err() && Matrix::new(&numbers, usize::MAX, 2).is_err());
    assert!(matrix.columns(2..4).is_err() && matrix.first_rows(5).is_err() && matrix.every(3).is_err());
    assert!(matrix.row_range(3..5).is_err() && matrix.reshape(2, 5).is_err());
    let half = matrix.every(2).unwrap().columns(1..3).unwrap();
    assert_eq!((half.rows(), half.cols(), half.stride()), (2, 2, 6));
    assert!(half.flat().is_err());

    let activations: Slice<Activation> = allocator.empty(12).unwrap();
    let (x, w) = (Matrix::new(&activations, 4, 3).unwrap(), Matrix::new(&activations, 2, 3).unwrap());
    let out = Matrix::new(&numbers, 4, 2).unwrap();
    let product = |b, out| ops.matmul(Factor::Plain(&x), b, Output::F32(out), Write::Replace);
    assert!(product(Factor::Transposed(&w), &out).is_ok());
    assert!(product(Factor::Plain(&w), &out).is_err() && product(Factor::Transposed(&w), &matrix).is_err());
    assert!(ops.add_column_sums(&x, &numbers.slice(0..2).unwrap()).is_err());
    assert!(ops.cast(&numbers, &activations.slice(0..4).unwrap()).is_err());

    // Memory goes back with the last that has it.
    let used = emulator.used();
    assert!(used > 0);
    drop((numbers, out, activations, x, w));
    assert!(emulator.used() < used && emulator.used() > 0);
    drop((matrix, half));
    let rest = emulator.used();
    emulator.limit(rest + 100);
    let error = allocator.empty::<f32>(1000).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Memory);
    assert!(error.to_string().contains("the GPU's memory is full"), "{error}");
    assert_eq!(allocator.empty::<f32>(usize::MAX).err().unwrap().kind, ErrorKind::Memory);
}

#[test]
fn a_batch_that_is_not_the_networks_is_refused() {
    let c = model(1, 0.0, 3, 1);
    let (_, mut on_gpu) = twins(&c, ActivationDtype::F32, &emulated);
    let images = vec![0u8; 2 * 3 * 12 * 12 * 3];
    let pose = vec![0f32; 2 * 3 * 15];
    let image = StreamData::ImageBytes(&images);
    let streams = [image, image, image, StreamData::Pose(&pose)];
    let good = HostBatch { streams: &streams, valid: &[1; 6], targets: &[3, 30], clips: 2, frames: 3 };
    on_gpu.send(0, &good).unwrap();
    let short = [image, image, StreamData::ImageBytes(&images[1..]), StreamData::Pose(&pose)];
    let swapped = [image, image, StreamData::Pose(&pose), image];
    for bad in [
        HostBatch { streams: &short, ..good },
        HostBatch { streams: &swapped, ..good },
        HostBatch { streams: &streams[..3], ..good },
        HostBatch { valid: &[1; 5], ..good },
        HostBatch { targets: &[3, 31], ..good },
        HostBatch { targets: &[3], ..good },
    ] {
        assert!(on_gpu.send(0, &bad).is_err(), "{bad:?}");
    }
    assert!(on_gpu.send(2, &good).is_err());
}

#[test]
fn arguments_have_the_same_layout_in_c() {
    let emulator = Emulator::new(ActivationDtype::Bf16, &[16], 80, 1);
    let kernels = [
        ("norm_forward_1", "NormForward"),
        ("norm_backward_4", "NormBackward"),
        ("combine_1", "Combine"),
        ("activate_4", "Activate"),
        ("activate_backward_1", "ActivateBackward"),
        ("attention_backward_kv_16", "Attention"),
        ("mask", "Mask"),
        ("patches", "Patches"),
        ("embed", "Embed"),
        ("embed_backward", "EmbedBackward"),
        ("reduce", "Reduce"),
        ("pool", "Pool"),
        ("pool_backward", "PoolBackward"),
        ("cross_entropy", "CrossEntropy"),
        ("squares", "Squares"),
        ("judge", "Judge"),
        ("adam", "Adam"),
        ("sgd", "Sgd"),
        ("cast", "Cast"),
    ];
    assert_eq!((kernels.len(), VECTORS), (SIZES.len(), [1, 4]));
    for (kernel, args) in kernels {
        let &(_, size) = SIZES.iter().find(|(name, _)| *name == args).unwrap();
        assert_eq!(emulator.size_of_arguments(kernel), size, "{kernel}");
    }
}

#[test]
fn a_step_in_f32_is_the_cpus() {
    for (scale, drop) in [(1, 0.2), (4, 0.2), (4, 0.0)] {
        check(&model(scale, drop, 3, 2), ActivationDtype::F32, &emulated, None, true, 2e-5);
    }
    check(
        &model(2, 0.1, 2, 1),
        ActivationDtype::F32,
        &|dtype, heads| Emulator::new(dtype, heads, 75, 1),
        None,
        false,
        2e-5,
    );
}

/// More tokens, and more frames, than a tile of attention has.
#[test]
fn attention_goes_over_many_tiles() {
    let mut c = model(2, 0.1, 1, 2);
    (c.image_size, c.backbone.patch_size) = (36, 4); // 82 tokens
    check(&c, ActivationDtype::F32, &emulated, None, true, 2e-5);
    check(&c, ActivationDtype::Bf16, &emulated, None, true, 2e-2);
    let mut c = model(4, 0.1, 70, 1);
    (c.image_size, c.d_model) = (4, 132); // heads of 66
    (c.backbone.embed_dim, c.backbone.num_heads) = (9, 1);
    check(&c, ActivationDtype::F32, &emulated, None, true, 2e-5);
    check(&c, ActivationDtype::F16, &emulated, None, true, 3e-3);
}

#[test]
fn a_step_in_half_precision_is_near_the_cpus() {
    check(&model(4, 0.2, 3, 2), ActivationDtype::Bf16, &emulated, None, true, 2e-2);
    check(&model(1, 0.2, 3, 2), ActivationDtype::F16, &emulated, None, true, 3e-3);
}

#[test]
fn chunks_change_nothing_but_rounding() {
    for chunk in [1, 4, 5] {
        check(&model(4, 0.2, 3, 2), ActivationDtype::F32, &emulated, Some(chunk), true, 2e-5);
    }
}

/// Threads may run in any order between two barriers: a barrier that is missing shows.
#[test]
fn the_order_of_threads_changes_no_bit() {
    let results: Vec<_> = [1, 2, 77]
        .into_iter()
        .map(|order| {
            let c = model(4, 0.2, 3, 2);
            let (_, mut on_gpu) =
                twins(&c, ActivationDtype::Bf16, &|dtype, heads| Emulator::new(dtype, heads, 80, order));
            let batch = batch(&c, 2, true);
            send(&mut on_gpu, 0, &batch);
            on_gpu.forward_backward(0, &Pass::training(1, 5), None, 64.0).unwrap();
            (on_gpu.scores().unwrap(), on_gpu.read_gradients().unwrap())
        })
        .collect();
    assert!(results[1..].iter().all(|result| *result == results[0]));
}

/// The same on a card, where there is one; `SLT_RUN_NEED_GPU=1` makes its absence a failure.
#[cfg(feature = "cuda")]
mod on_a_card {
    use super::*;
    use crate::engine::cuda::driver;

    /// ViT-S/16 with two blocks, and the temporal encoder's usual widths.
    fn documented() -> config::Model {
        let mut c = model(4, 0.1, 5, 2);
        (c.image_size, c.backbone.patch_size, c.backbone.embed_dim, c.backbone.num_heads) = (224, 16, 384, 6);
        (c.backbone.mlp_ratio, c.projector_dim, c.d_model) = (4.0, 256, 512);
        (c.temporal_nhead, c.temporal_dim_feedforward) = (8, 2048);
        c
    }

    /// Every step that `judge` is to look at: what it computes, in which chunks, and whether from bytes.
    fn steps(judge: impl Fn(&config::Model, Option<usize>, bool)) {
        for scale in [1, 4] {
            judge(&model(scale, 0.2, 3, 2), None, true);
            judge(&model(scale, 0.2, 3, 2), Some(4), false);
        }
        let mut many = model(2, 0.1, 70, 1);
        (many.image_size, many.backbone.patch_size) = (36, 4);
        judge(&many, None, true);
        judge(&documented(), None, true);
    }

    /// In half precision, rounding alone moves small gradients by as much as they are: how far, the emulator says.
    fn as_far_as_emulated(dtype: ActivationDtype, tolerance: f64) {
        let Some(card) = driver::for_tests() else { return };
        let make = |dtype, heads: &[usize]| card.open(dtype, heads).unwrap();
        steps(|c, chunk, bytes| {
            let of = |make| Errors::of(c, dtype, make, chunk, bytes);
            of(&make).like(&of(&emulated), tolerance);
        });
    }

    #[test]
    fn steps_in_f32_are_the_cpus() {
        let Some(card) = driver::for_tests() else { return };
        let make = |dtype, heads: &[usize]| card.open(dtype, heads).unwrap();
        steps(|c, chunk, bytes| check(c, ActivationDtype::F32, &make, chunk, bytes, 1e-4));
    }

    #[test]
    fn steps_in_bf16_are_as_near_the_cpus_as_emulated_ones() {
        as_far_as_emulated(ActivationDtype::Bf16, 2e-2);
    }

    #[test]
    fn steps_in_f16_are_as_near_the_cpus_as_emulated_ones() {
        as_far_as_emulated(ActivationDtype::F16, 3e-3);
    }

    /// Sums have one order: what is computed twice is the same to the bit.
    #[test]
    fn steps_repeat_to_the_bit() {
        let Some(card) = driver::for_tests() else { return };
        let make = |dtype, heads: &[usize]| card.open(dtype, heads).unwrap();
        let c = documented();
        let (_, mut on_gpu) = twins(&c, ActivationDtype::Bf16, &make);
        let batch = batch(&c, 3, true);
        let mut step = || {
            send(&mut on_gpu, 0, &batch);
            on_gpu.zero_gradients().unwrap();
            on_gpu.forward_backward(0, &Pass::training(1, 5), None, 64.0).unwrap();
            (on_gpu.scores().unwrap(), on_gpu.read_gradients().unwrap())
        };
        let first = step();
        assert!((0..5).all(|_| step() == first));
    }
}
