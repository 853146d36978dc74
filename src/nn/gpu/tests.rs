//! The kernels and their order, on the emulated GPU, against the CPU.

use std::rc::Rc;

use candle_core::{DType, Device, Tensor};

use super::emulator::Emulator;
use super::engine::{Engine, HostBatch};
use super::kernels::{SIZES, VECTORS};
use super::machine::Machine;
use crate::config;
use crate::model::Inputs;
use crate::nn::Stored;
use crate::nn::{Images, Pass};
use crate::train::Network;

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
            dropout: drop,
            attention_dropout: drop,
            stochastic_depth: drop,
        },
    }
}

/// A batch whose last clip's last frame is padding.
fn batch(c: &config::Model, clips: usize, bytes: bool) -> (Inputs, Tensor) {
    let (frames, size) = (c.sequence_length, c.image_size);
    let cpu = &Device::Cpu;
    let images = |stream: usize| {
        let values: Vec<u8> =
            (0..clips * frames * size * size * 3).map(|i| (i * (i + 3 * stream) % 251) as u8).collect();
        let shape = (clips * frames, size, size, 3);
        let images = Tensor::from_vec(values, shape, cpu).unwrap();
        if bytes {
            return Images::Bytes(images);
        }
        let floats =
            images.to_dtype(DType::F32).unwrap().permute((0, 3, 1, 2)).unwrap().contiguous().unwrap();
        Images::Normalised((floats / 100.0).unwrap())
    };
    let pose: Vec<f32> = (0..clips * frames * 15).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut mask = vec![1u8; clips * frames];
    if frames > 1 {
        mask[clips * frames - 1] = 0;
    }
    let inputs = Inputs {
        images: [images(0), images(1), images(2)],
        pose: Tensor::from_vec(pose, (clips, frames, 15), cpu).unwrap(),
        pad_mask: Tensor::from_vec(mask, (clips, frames), cpu).unwrap(),
    };
    let targets: Vec<u32> = (0..clips).map(|i| (i * 7 + 3) as u32 % 31).collect();
    (inputs, Tensor::from_vec(targets, clips, cpu).unwrap())
}

fn send(engine: &mut Engine, slot: usize, inputs: &Inputs, targets: &Tensor) {
    let bytes = |tensor: &Tensor| -> Vec<u8> {
        let flat = tensor.flatten_all().unwrap();
        match tensor.dtype() {
            DType::U8 => flat.to_vec1::<u8>().unwrap(),
            DType::U32 => bytemuck::cast_slice(&flat.to_vec1::<u32>().unwrap()).to_vec(),
            _ => bytemuck::cast_slice(&flat.to_vec1::<f32>().unwrap()).to_vec(),
        }
    };
    let normalised = matches!(inputs.images[0], Images::Normalised(_));
    let images = inputs.images.each_ref().map(|(Images::Bytes(t) | Images::Normalised(t))| bytes(t));
    let (clips, frames) = inputs.pad_mask.dims2().unwrap();
    engine
        .send(
            slot,
            &HostBatch {
                images: images.each_ref().map(Vec::as_slice),
                normalised,
                pose: &bytes(&inputs.pose),
                valid: &bytes(&inputs.pad_mask),
                targets: &bytes(targets),
                clips,
                frames,
            },
        )
        .unwrap();
}

/// Makes a GPU with kernels for a type and widths of heads.
type Make<'a> = &'a dyn Fn(Stored, &[usize]) -> Rc<dyn Machine>;

/// An emulated one of compute capability 8.0.
fn emulated(stored: Stored, heads: &[usize]) -> Rc<dyn Machine> {
    Emulator::new(stored, heads, 80, 1)
}

/// A network on the CPU whose biases and norms are away from 0 and 1, and the same on a GPU.
fn twins(c: &config::Model, stored: Stored, make: Make) -> (Network, Engine) {
    let network = Network::new(c, 0.1, &Device::Cpu, 3).unwrap();
    for (i, (_, var)) in network.parameters().iter().enumerate() {
        let n = var.elem_count();
        let noise: Vec<f32> = (0..n).map(|k| 0.1 * ((k * 37 + i * 11) as f32).sin()).collect();
        let noise = Tensor::from_vec(noise, var.dims(), &Device::Cpu).unwrap();
        var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
    }
    let machine = make(stored, &Engine::heads(c));
    let engine = Engine::new(&machine, stored, network.classifier(), c, 0.1, true).unwrap();
    (network, engine)
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

/// Loss, logits and every gradient of a step against the CPU.
fn check(c: &config::Model, stored: Stored, make: Make, chunk: Option<usize>, bytes: bool, tolerance: f64) {
    let (network, mut engine) = twins(c, stored, make);
    let (inputs, targets) = batch(c, 2, bytes);
    let pass = Pass { first_row: 2, ..Pass::training(1, 5) };
    let expected = network.train(&inputs, &targets, &pass).unwrap();
    let logits = network.logits(&inputs).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();

    send(&mut engine, 1, &inputs, &targets);
    // Twice, so that memory from one step serves the next.
    for _ in 0..2 {
        engine.begin().unwrap();
        engine.forward_backward(1, &pass, chunk, 1024.0).unwrap();
    }
    let loss = engine.scores().unwrap().loss;
    assert!((loss / expected.loss - 1.0).abs() < tolerance, "loss {loss}, not {}", expected.loss);
    // The gradients' sum over two clips, times the scale.
    let names: Vec<&str> = network.parameters().iter().map(|(name, _)| name).collect();
    let (mut all, mut all_expected) = (Vec::new(), Vec::new());
    let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let largest = expected.gradients.iter().map(|g| norm(&numbers(g))).fold(0.0, f64::max);
    for ((found, expected), name) in
        engine.read_gradients().unwrap().iter().zip(&expected.gradients).zip(names)
    {
        let found: Vec<f32> = found.iter().map(|g| g / 2048.0).collect();
        let mut expected = numbers(expected);
        let mut found = found;
        if name.ends_with("in_proj_bias") {
            // The keys' third is zero but for rounding.
            let third = expected.len() / 3;
            assert!(found[third..2 * third].iter().all(|g| g.abs() < tolerance as f32), "{name}");
            expected[third..2 * third].fill(0.0);
            found[third..2 * third].fill(0.0);
        }
        // The least gradients are sums of what nearly cancels.
        let (far, size) = (distance(&found, &expected), norm(&expected));
        let enough = (20.0 * tolerance).max(0.05 * tolerance * largest / size);
        assert!(far < enough, "{name}: {far} of {size}");
        all.extend(found);
        all_expected.extend(expected);
    }
    let far = distance(&all, &all_expected);
    assert!(far < tolerance, "gradients: {far}");
    let found = engine.logits(1, chunk).unwrap();
    assert!(distance(&found, &logits) < tolerance, "logits: {}", distance(&found, &logits));
}

#[test]
fn arguments_have_the_same_layout_in_c() {
    let emulator = Emulator::new(Stored::Bf16, &[16], 80, 1);
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
        check(&model(scale, drop, 3, 2), Stored::F32, &emulated, None, true, 2e-5);
    }
    check(
        &model(2, 0.1, 2, 1),
        Stored::F32,
        &|stored, heads| Emulator::new(stored, heads, 75, 1),
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
    check(&c, Stored::F32, &emulated, None, true, 2e-5);
    check(&c, Stored::Bf16, &emulated, None, true, 2e-2);
    let mut c = model(4, 0.1, 70, 1);
    (c.image_size, c.d_model) = (4, 132); // heads of 66
    (c.backbone.embed_dim, c.backbone.num_heads) = (9, 1);
    check(&c, Stored::F32, &emulated, None, true, 2e-5);
    check(&c, Stored::F16, &emulated, None, true, 3e-3);
}

#[test]
fn a_step_in_half_precision_is_near_the_cpus() {
    check(&model(4, 0.2, 3, 2), Stored::Bf16, &emulated, None, true, 2e-2);
    check(&model(1, 0.2, 3, 2), Stored::F16, &emulated, None, true, 3e-3);
}

#[test]
fn chunks_change_nothing_but_rounding() {
    for chunk in [1, 4, 5] {
        check(&model(4, 0.2, 3, 2), Stored::F32, &emulated, Some(chunk), true, 2e-5);
    }
}

/// Threads may run in any order between two barriers: a barrier that is missing shows.
#[test]
fn the_order_of_threads_changes_no_bit() {
    let results: Vec<_> = [1, 2, 77]
        .into_iter()
        .map(|order| {
            let c = model(4, 0.2, 3, 2);
            let (_, mut engine) =
                twins(&c, Stored::Bf16, &|stored, heads| Emulator::new(stored, heads, 80, order));
            let (inputs, targets) = batch(&c, 2, true);
            send(&mut engine, 0, &inputs, &targets);
            engine.forward_backward(0, &Pass::training(1, 5), None, 64.0).unwrap();
            (engine.scores().unwrap(), engine.read_gradients().unwrap())
        })
        .collect();
    assert!(results[1..].iter().all(|result| *result == results[0]));
}

/// The same on a card, where there is one; `SLT_RUN_NEED_GPU=1` makes its absence a failure.
#[cfg(feature = "cuda")]
mod on_a_card {
    use super::*;
    use crate::nn::gpu::cuda;

    /// ViT-S/16 with two blocks, and the temporal encoder's usual widths.
    fn documented() -> config::Model {
        let mut c = model(4, 0.1, 5, 2);
        (c.image_size, c.backbone.patch_size, c.backbone.embed_dim, c.backbone.num_heads) = (224, 16, 384, 6);
        (c.backbone.mlp_ratio, c.projector_dim, c.d_model) = (4.0, 256, 512);
        (c.temporal_nhead, c.temporal_dim_feedforward) = (8, 2048);
        c
    }

    fn on_card(stored: Stored, tolerance: f64) {
        let Some(card) = cuda::for_tests() else { return };
        let make = |stored, heads: &[usize]| card.machine(stored, heads).unwrap();
        for scale in [1, 4] {
            check(&model(scale, 0.2, 3, 2), stored, &make, None, true, tolerance);
            check(&model(scale, 0.2, 3, 2), stored, &make, Some(4), false, tolerance);
        }
        let mut many = model(2, 0.1, 70, 1);
        (many.image_size, many.backbone.patch_size) = (36, 4);
        check(&many, stored, &make, None, true, tolerance);
        check(&documented(), stored, &make, None, true, tolerance);
    }

    #[test]
    fn steps_in_f32_are_the_cpus() {
        on_card(Stored::F32, 1e-4);
    }

    #[test]
    fn steps_in_bf16_are_near_the_cpus() {
        on_card(Stored::Bf16, 2e-2);
    }

    #[test]
    fn steps_in_f16_are_near_the_cpus() {
        on_card(Stored::F16, 1e-2);
    }

    /// Sums have one order: what is computed twice is the same to the bit.
    #[test]
    fn steps_repeat_to_the_bit() {
        let Some(card) = cuda::for_tests() else { return };
        let make = |stored, heads: &[usize]| card.machine(stored, heads).unwrap();
        let c = documented();
        let (_, mut engine) = twins(&c, Stored::Bf16, &make);
        let (inputs, targets) = batch(&c, 3, true);
        let mut step = || {
            send(&mut engine, 0, &inputs, &targets);
            engine.begin().unwrap();
            engine.forward_backward(0, &Pass::training(1, 5), None, 64.0).unwrap();
            (engine.scores().unwrap(), engine.read_gradients().unwrap())
        };
        let first = step();
        assert!((0..5).all(|_| step() == first));
    }
}
