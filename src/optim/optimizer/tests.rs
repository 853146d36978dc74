//! Each optimizer against its published formula in f64, on parameters of odd sizes.

use candle_core::Device;

use super::*;
use crate::config::{Glob, ParameterGroup};
use crate::nn::{Builder, Frozen, Init};

const LR: f64 = 0.01;
const DECAY: f64 = 0.1;

/// Sizes: one number, no vector's multiple, more than one thread's share.
const SIZES: [usize; 4] = [1, 3, 17, GRAIN + 3];

fn numbers(len: usize, kind: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 3 + kind * 11) as f32 * 0.71).sin()).collect()
}

/// A section of each kind, with numbers that are not the defaults.
fn sections() -> [Optimization; 4] {
    let of = |optimizer| Optimization { optimizer, weight_decay: DECAY, ..Optimization::default() };
    [
        Optimization { betas: [0.8, 0.99], eps: 1e-4, ..of(OptimizerKind::AdamW) },
        of(OptimizerKind::Adam),
        of(OptimizerKind::Sgd),
        Optimization { momentum: 0.7, ..of(OptimizerKind::Sgd) },
    ]
}

/// One number's way through the steps, its gradients given, at a rate and a weight decay.
fn plain(c: &Optimization, (lr, decay): (f64, f64), start: f64, gradients: &[f64]) -> f64 {
    let ([beta1, beta2], kind) = (c.betas, c.optimizer);
    let (mut p, mut m, mut v) = (start, 0.0, 0.0);
    for (steps, gradient) in (1..).zip(gradients) {
        let mut g = *gradient;
        match kind {
            OptimizerKind::AdamW => p *= 1.0 - lr * decay,
            OptimizerKind::Adam | OptimizerKind::Sgd => g += decay * p,
        }
        if kind == OptimizerKind::Sgd {
            m = c.momentum * m + g;
            p -= lr * m;
            continue;
        }
        m = beta1 * m + (1.0 - beta1) * g;
        v = beta2 * v + (1.0 - beta2) * g * g;
        let (mean, square) = (m / (1.0 - beta1.powi(steps)), v / (1.0 - beta2.powi(steps)));
        p -= lr * mean / (square.sqrt() + c.eps);
    }
    p
}

/// The largest parameter trains faster and without decay, and the second one is frozen.
#[test]
fn steps_follow_the_formula() -> Result<()> {
    const FROZEN: usize = 1;
    for c in sections() {
        let names = SIZES.map(|size| size.to_string());
        let largest = Glob::new(&names[3]).expect("a name is a pattern");
        let group = ParameterGroup {
            pattern: largest,
            lr: None,
            lr_factor: Some(2.0),
            weight_decay: Some(0.0),
            freeze: false,
        };
        let c = Optimization { lr: LR, groups: vec![group], ..c };
        let frozen = Frozen::new([names[FROZEN].clone()].into(), Vec::new());
        let builder = Builder::new(&Device::Cpu, 1).with_frozen(frozen);
        for (size, name) in SIZES.iter().zip(&names) {
            builder.parameter(name, &[*size], Init::Zeros)?;
        }
        let parameters = builder.parameters();
        for (_, var) in parameters.iter() {
            var.set(&Tensor::from_vec(numbers(var.elem_count(), 0), var.dims(), &Device::Cpu)?)?;
        }
        let groups = ParameterGroups::new(&c, &builder.blueprint())?;
        let rates = groups.rates();
        let mut optimizer = Optimizer::new(&c, groups, &parameters);
        for step in 1..=4 {
            let trained = SIZES.iter().enumerate().filter(|(at, _)| *at != FROZEN);
            let gradients: candle_core::Result<Vec<Tensor>> =
                trained.map(|(_, &size)| Tensor::from_vec(numbers(size, step), size, &Device::Cpu)).collect();
            optimizer.step(&parameters, &gradients?, &rates, 1.0)?;
        }
        assert_eq!(optimizer.steps(), 4);
        for (at, (_, var)) in parameters.iter().enumerate() {
            let size = var.elem_count();
            let of_step: Vec<Vec<f32>> = (0..=4).map(|step| numbers(size, step)).collect();
            let found = var.to_vec1::<f32>()?;
            if at == FROZEN {
                assert_eq!(found, of_step[0]);
                assert_eq!(optimizer.moments()[at], Moments::default());
                continue;
            }
            let rule = if at == 3 { (2.0 * LR, 0.0) } else { (LR, DECAY) };
            for (i, &found) in found.iter().enumerate() {
                let gradients: Vec<f64> = of_step[1..].iter().map(|step| f64::from(step[i])).collect();
                let expected = plain(&c, rule, f64::from(of_step[0][i]), &gradients);
                let close = (f64::from(found) - expected).abs() < 2e-6;
                assert!(close, "{:?}, {i} of {size}: {found}, not {expected}", c.optimizer);
            }
        }
    }
    Ok(())
}
