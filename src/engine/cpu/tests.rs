//! The fused backbone against the same network as plain Candle operations.

use candle_core::{DType, Device, Result, Tensor, Var};

use super::precision::{Bf16, F32, Precision};
use super::vit::{self, Backbone, Backward, Kept, Tape, Workspace};
use crate::config;
use crate::data::Pixels;
use crate::model::VisionTransformer;
use crate::nn::parameters::with_slices;
use crate::nn::{Builder, Images, Pass};

fn view(pixels: &Pixels) -> vit::Pixels<'_> {
    match pixels {
        Pixels::Bytes(bytes) => vit::Pixels::Bytes(bytes),
        Pixels::Normalised(floats) => vit::Pixels::Normalised(floats),
        Pixels::Features(_) => panic!("features go through no backbone"),
    }
}

fn config(patch: usize, heads: usize, head: usize, depth: usize, drop: f64) -> config::Backbone {
    config::Backbone {
        patch_size: patch,
        embed_dim: heads * head,
        depth,
        num_heads: heads,
        mlp_ratio: 2.5,
        layer_norm_eps: 1e-2, // another one than the other norms'
        dropout: drop,
        attention_dropout: drop,
        stochastic_depth: drop,
        ..config::Backbone::default()
    }
}

fn distance(a: &Tensor, b: &Tensor) -> Result<f32> {
    let norm = b.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
    Ok((a - b)?.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt() / norm.max(1e-12))
}

/// In f32 and in bfloat16, whose errors are of its 8 bits.
fn check(c: &config::Backbone, size: usize, images: usize, bytes: bool) -> Result<()> {
    let found = check_in(F32, c, size, images, bytes)?;
    assert!(found.features < 1e-5, "features: {}", found.features);
    for (name, error) in &found.gradients {
        assert!(*error < 3e-5, "{name}: {error}");
    }
    let found = check_in(Bf16::default(), c, size, images, bytes)?;
    assert!(found.features < 1e-2, "features in bfloat16: {}", found.features);
    assert!(found.all_gradients < 2e-2, "gradients in bfloat16: {}", found.all_gradients);
    Ok(())
}

/// How far off results are, relative to their norms.
struct Errors {
    features: f32,
    gradients: Vec<(String, f32)>,
    /// Of the whole gradient.
    all_gradients: f32,
}

/// Features and every gradient against the same network as plain Candle operations.
fn check_in<P: Precision<Number: Kept>>(
    precision: P,
    c: &config::Backbone,
    size: usize,
    images: usize,
    bytes: bool,
) -> Result<Errors> {
    let b = Builder::new(&Device::Cpu, 5);
    let net = VisionTransformer::new(&b, c, size)?;
    for (_, var) in b.parameters().iter() {
        // Biases and norms away from 0 and 1, so that each matters.
        var.set(&(var.as_tensor() + Tensor::randn(0f32, 0.1, var.dims(), &Device::Cpu)?)?)?;
    }
    let floats = Tensor::rand(0f32, 255.0, (images, size, size, 3), &Device::Cpu)?;
    let pixels = if bytes {
        Pixels::Bytes(floats.to_dtype(DType::U8)?.flatten_all()?.to_vec1()?)
    } else {
        let floats = (floats.permute((0, 3, 1, 2))?.contiguous()? / 64.0)?;
        Pixels::Normalised(floats.flatten_all()?.to_vec1()?)
    };
    let images = match &pixels {
        Pixels::Bytes(bytes) => Images::of_bytes(bytes, images, size, &Device::Cpu)?,
        Pixels::Normalised(floats) | Pixels::Features(floats) => {
            Images::normalised(floats, images, size, &Device::Cpu)?
        }
    };
    let pass = Pass { first_row: 3, ..Pass::training(1, 2) };
    let pull = Tensor::randn(0f32, 1.0, (images.count()?, c.embed_dim), &Device::Cpu)?;

    let expected = net.forward(&images, &pass)?;
    let store = (&expected * &pull)?.sum_all()?.backward()?;

    let blueprint = b.blueprint();
    let backbone = Backbone::new(&blueprint.root(), c, size).expect("a backbone");
    let vars: Vec<(String, Var)> =
        b.parameters().iter().map(|(name, var)| (name.to_owned(), var.clone())).collect();
    let tensors: Vec<&Tensor> = vars.iter().map(|(_, var)| var.as_tensor()).collect();
    let count = images.count()?;
    let (mut tape, mut workspace) = (Tape::default(), Workspace::default());
    let mut gradients = vit::Gradients::default();
    let (mut features_error, mut errors, mut squares) = (0.0, Vec::new(), [0.0, 0.0]);
    with_slices(&tensors, |slices| -> Result<()> {
        let weights = backbone.positions.map(|&position| slices[position]);
        let drops = backbone.drops(&pass);
        let pixels = view(&pixels);
        let features =
            |tape| vit::forward(&precision, &backbone.shape, &weights, pixels, count, drops.as_ref(), tape);
        let found = features(Some(&mut tape));
        let without = features(None);
        assert_eq!(without, found);
        let found = Tensor::from_vec(found, expected.dims(), &Device::Cpu)?;
        features_error = distance(&found, &expected)?;
        let (tape, workspace) = (&mut tape, &mut workspace);
        let with = Backward { pixels, drops: drops.as_ref(), tape, free: true, workspace };
        vit::backward(
            &precision,
            &backbone.shape,
            &weights,
            with,
            &pull.flatten_all()?.to_vec1::<f32>()?,
            &mut gradients,
        );
        Ok(())
    })??;
    let positions = backbone.positions.clone().into_values();
    let mut found: Vec<(usize, Vec<f32>)> = positions.zip(gradients.into_values()).collect();
    found.sort_by_key(|(position, _)| *position);
    let gradients = found.into_iter().map(|(_, gradient)| gradient);
    assert_eq!(gradients.len(), vars.len());
    for ((name, var), found) in vars.iter().zip(gradients) {
        let mut found = Tensor::from_vec(found, var.dims(), &Device::Cpu)?;
        let mut expected = store.get(var).expect("a gradient").clone();
        if name.ends_with("in_proj_bias") {
            // The key third's gradient is zero but for rounding.
            let d = c.embed_dim;
            let without_key = |t: &Tensor| Tensor::cat(&[&t.narrow(0, 0, d)?, &t.narrow(0, 2 * d, d)?], 0);
            (found, expected) = (without_key(&found)?, without_key(&expected)?);
        }
        let error = distance(&found, &expected)?;
        errors.push((name.clone(), error));
        let square = |t: &Tensor| t.sqr()?.sum_all()?.to_scalar::<f32>();
        squares = [squares[0] + square(&(&found - &expected)?)?, squares[1] + square(&expected)?];
    }
    let all_gradients = (squares[0] / squares[1]).sqrt();
    Ok(Errors { features: features_error, gradients: errors, all_gradients })
}

#[test]
fn gradients_are_those_of_plain_operations() -> Result<()> {
    check(&config(4, 2, 16, 3, 0.0), 12, 5, true)?; // a last group of one image
    check(&config(8, 3, 5, 2, 0.0), 16, 2, false)?; // widths that no vector divides
    check(&config(8, 1, 7, 1, 0.0), 8, 1, true)?; // one patch, one image, one block
    check(&config(16, 4, 24, 2, 0.0), 32, 3, false)
}

#[test]
fn dropout_falls_on_the_same_places() -> Result<()> {
    check(&config(4, 2, 16, 3, 0.3), 12, 5, true)?;
    check(&config(8, 1, 7, 1, 0.5), 8, 1, false)
}
