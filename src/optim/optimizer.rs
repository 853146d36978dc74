//! `AdamW`, `Adam` and `SGD` as PyTorch computes them, keyed by the parameters' order.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;

use super::gradients::{GRAIN, numbers};
use crate::Result;
use crate::config::{Optimization, OptimizerKind};
use crate::nn::Parameters;

/// Adam's and `AdamW`'s decay of the first moment.
pub const BETA1: f64 = 0.9;
/// Adam's and `AdamW`'s decay of the second moment.
pub const BETA2: f64 = 0.999;
/// Adam's and `AdamW`'s eps.
pub const EPS: f64 = 1e-8;

/// Updates parameters from their gradients; its state is in a checkpoint.
pub struct Optimizer {
    kind: OptimizerKind,
    weight_decay: f64,
    steps: u64,
    moments: Vec<Moments>,
}

/// Adam's running means of one parameter's gradient and squared gradient, in the parameter's layout; empty for SGD.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// The first moment.
    pub exp_avg: Vec<f32>,
    /// The second moment.
    pub exp_avg_sq: Vec<f32>,
}

impl Optimizer {
    /// With moments of zero.
    #[must_use]
    pub fn new(c: &Optimization, parameters: &Parameters) -> Self {
        let moments = |var: &Var| match c.optimizer {
            OptimizerKind::Sgd => Moments::default(),
            OptimizerKind::AdamW | OptimizerKind::Adam => {
                Moments { exp_avg: vec![0.0; var.elem_count()], exp_avg_sq: vec![0.0; var.elem_count()] }
            }
        };
        Self {
            kind: c.optimizer,
            weight_decay: c.weight_decay,
            steps: 0,
            moments: parameters.iter().map(|(_, var)| moments(var)).collect(),
        }
    }

    /// Which one it is.
    #[must_use]
    pub fn kind(&self) -> OptimizerKind {
        self.kind
    }

    /// The factor of its weight decay.
    #[must_use]
    pub fn weight_decay(&self) -> f64 {
        self.weight_decay
    }

    /// How many steps it has taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The moments of each parameter, in order.
    #[must_use]
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Goes on after `steps` steps that left `moments`, which have the parameters' sizes and order.
    pub fn restore(&mut self, steps: u64, moments: Vec<Moments>) {
        (self.steps, self.moments) = (steps, moments);
    }

    /// The numbers of the next step, at the learning rate `lr`.
    #[must_use]
    pub fn next_rule(&self, lr: f64) -> UpdateRule {
        UpdateRule::new(self.kind, lr, self.weight_decay, self.steps + 1)
    }

    /// Counts a step that was taken elsewhere.
    pub fn count_step(&mut self) {
        self.steps += 1;
    }

    /// One step at the learning rate `lr`; `gradients` are in the parameters' order, and count `scale` times.
    pub fn step(&mut self, parameters: &Parameters, gradients: &[Tensor], lr: f64, scale: f64) -> Result<()> {
        let rule = self.next_rule(lr);
        self.steps += 1;
        let scale = scale as f32;
        for (((_, var), gradient), moments) in parameters.iter().zip(gradients).zip(&mut self.moments) {
            let update = Update { rule, scale, moments: RefCell::new(moments) };
            var.as_tensor().inplace_op2(&gradient.contiguous()?, &update)?;
        }
        Ok(())
    }
}

/// The numbers of one step, computed in f64 as PyTorch does and used in f32.
#[derive(Clone, Copy, Debug)]
pub enum UpdateRule {
    /// `AdamW` and Adam.
    Adam {
        /// What the parameter is multiplied by (`AdamW`).
        decay: f32,
        /// What of the parameter is added to the gradient (Adam).
        l2: f32,
        /// The learning rate over the first moment's bias correction.
        step_size: f32,
        /// The root of the second moment's bias correction.
        root_correction: f32,
    },
    /// Gradient descent.
    Sgd {
        /// The learning rate.
        lr: f32,
        /// What of the parameter is added to the gradient.
        l2: f32,
    },
}

impl UpdateRule {
    fn new(kind: OptimizerKind, lr: f64, weight_decay: f64, steps: u64) -> Self {
        let power = steps.min(i32::MAX as u64) as i32;
        let (decay, l2) = match kind {
            OptimizerKind::AdamW => (1.0 - lr * weight_decay, 0.0),
            OptimizerKind::Adam => (1.0, weight_decay),
            OptimizerKind::Sgd => return Self::Sgd { lr: lr as f32, l2: weight_decay as f32 },
        };
        Self::Adam {
            decay: decay as f32,
            l2: l2 as f32,
            step_size: (lr / (1.0 - BETA1.powi(power))) as f32,
            root_correction: (1.0 - BETA2.powi(power)).sqrt() as f32,
        }
    }
}

/// One parameter's update, in place.
struct Update<'a> {
    rule: UpdateRule,
    /// What the gradient is multiplied by first; 1 changes no bit.
    scale: f32,
    moments: RefCell<&'a mut Moments>,
}

impl InplaceOp2 for Update<'_> {
    fn name(&self) -> &'static str {
        "optimizer-step"
    }

    fn cpu_fwd(
        &self,
        parameter: &mut CpuStorage,
        at: &Layout,
        gradient: &CpuStorage,
        gradient_at: &Layout,
    ) -> candle_core::Result<()> {
        let (p, g) = numbers(parameter, at, gradient, gradient_at)?;
        let scale = self.scale;
        match self.rule {
            UpdateRule::Adam { decay, l2, step_size, root_correction } => {
                let mut moments = self.moments.borrow_mut();
                let Moments { exp_avg, exp_avg_sq } = &mut **moments;
                p.par_chunks_mut(GRAIN)
                    .zip(g.par_chunks(GRAIN))
                    .zip(exp_avg.par_chunks_mut(GRAIN))
                    .zip(exp_avg_sq.par_chunks_mut(GRAIN))
                    .for_each(|(((p, g), m), v)| {
                        adam(p, g, m, v, [scale, decay, l2, step_size, root_correction]);
                    });
            }
            UpdateRule::Sgd { lr, l2 } => p
                .par_chunks_mut(GRAIN)
                .zip(g.par_chunks(GRAIN))
                .for_each(|(p, g)| p.iter_mut().zip(g).for_each(|(p, g)| *p -= lr * (g * scale + l2 * *p))),
        }
        Ok(())
    }
}

/// Adam's rule with bias correction
/// (<https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html>), in PyTorch's order of operations.
fn adam(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], rule: [f32; 5]) {
    let [scale, decay, l2, step_size, root_correction] = rule;
    let (beta2, rest1, rest2, eps) = (BETA2 as f32, (1.0 - BETA1) as f32, (1.0 - BETA2) as f32, EPS as f32);
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * scale + l2 * *p;
        *m += (g - *m) * rest1;
        *v = *v * beta2 + g * g * rest2;
        *p = *p * decay - step_size * (*m / (v.sqrt() / root_correction + eps));
    }
}

#[cfg(test)]
mod tests;
