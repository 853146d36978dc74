//! Each optimizer against its published formula in f64, on parameters of odd sizes.

use candle_core::Device;

use super::*;
use crate::nn::{Builder, Init};

const LR: f64 = 0.01;
const DECAY: f64 = 0.1;

/// Sizes: one number, no vector's multiple, more than one thread's share.
const SIZES: [usize; 4] = [1, 3, 17, GRAIN + 3];

fn numbers(len: usize, kind: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 3 + kind * 11) as f32 * 0.71).sin()).collect()
}

/// An experiment's section for `kind`, the rest as it is by default.
fn section(kind: OptimizerKind) -> Optimization {
    Optimization { optimizer: kind, weight_decay: DECAY, ..Optimization::default() }
}

/// One number's way through the steps, its gradients given.
fn plain(kind: OptimizerKind, start: f64, gradients: &[f64]) -> f64 {
    let (mut p, mut m, mut v) = (start, 0.0, 0.0);
    for (steps, gradient) in (1..).zip(gradients) {
        let mut g = *gradient;
        match kind {
            OptimizerKind::AdamW => p *= 1.0 - LR * DECAY,
            OptimizerKind::Adam | OptimizerKind::Sgd => g += DECAY * p,
        }
        if kind == OptimizerKind::Sgd {
            p -= LR * g;
            continue;
        }
        m = BETA1 * m + (1.0 - BETA1) * g;
        v = BETA2 * v + (1.0 - BETA2) * g * g;
        let (mean, square) = (m / (1.0 - BETA1.powi(steps)), v / (1.0 - BETA2.powi(steps)));
        p -= LR * mean / (square.sqrt() + EPS);
    }
    p
}

#[test]
fn steps_follow_the_formula() -> Result<()> {
    for kind in [OptimizerKind::AdamW, OptimizerKind::Adam, OptimizerKind::Sgd] {
        let builder = Builder::new(&Device::Cpu, 1);
        for size in SIZES {
            builder.parameter(&size.to_string(), &[size], Init::Zeros)?;
        }
        let parameters = builder.parameters();
        for (_, var) in parameters.iter() {
            var.set(&Tensor::from_vec(numbers(var.elem_count(), 0), var.dims(), &Device::Cpu)?)?;
        }
        let mut optimizer = Optimizer::new(&section(kind), &parameters);
        for step in 1..=4 {
            let gradients: candle_core::Result<Vec<Tensor>> =
                SIZES.iter().map(|&size| Tensor::from_vec(numbers(size, step), size, &Device::Cpu)).collect();
            optimizer.step(&parameters, &gradients?, LR, 1.0)?;
        }
        assert_eq!(optimizer.steps(), 4);
        for (_, var) in parameters.iter() {
            let size = var.elem_count();
            let of_step: Vec<Vec<f32>> = (0..=4).map(|step| numbers(size, step)).collect();
            for (i, &found) in var.to_vec1::<f32>()?.iter().enumerate() {
                let gradients: Vec<f64> = of_step[1..].iter().map(|step| f64::from(step[i])).collect();
                let expected = plain(kind, f64::from(of_step[0][i]), &gradients);
                assert!(
                    (f64::from(found) - expected).abs() < 2e-6,
                    "{kind:?}, {i} of {size}: {found}, not {expected}"
                );
            }
        }
    }
    Ok(())
}
