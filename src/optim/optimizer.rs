//! `AdamW`, `Adam` and `SGD` as PyTorch computes them, keyed by the parameters' order.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;

use super::ParameterGroups;
use super::gradients::{GRAIN, numbers};
use crate::Result;
use crate::config::{Optimization, OptimizerKind};
use crate::nn::Parameters;

/// Updates parameters from their gradients; its state is in a checkpoint.
pub struct Optimizer {
    kind: OptimizerKind,
    /// Adam's and `AdamW`'s.
    betas: [f64; 2],
    eps: f64,
    /// SGD's.
    momentum: f64,
    groups: ParameterGroups,
    steps: u64,
    moments: Vec<Moments>,
}

/// What an optimizer remembers of one parameter, in the parameter's layout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Adam's running mean of the gradient, `exp_avg`, or SGD's `momentum_buffer`; empty where there is none.
    pub first: Vec<f32>,
    /// Adam's running mean of the squared gradient, `exp_avg_sq`; empty for SGD.
    pub second: Vec<f32>,
}

/// How many moments the optimizer of `c` keeps of each number that trains.
#[must_use]
pub fn moments(c: &Optimization) -> usize {
    match c.optimizer {
        OptimizerKind::AdamW | OptimizerKind::Adam => 2,
        OptimizerKind::Sgd => usize::from(c.momentum > 0.0),
    }
}

impl Moments {
    /// Zeros, for a parameter of so many numbers that trains by `c`.
    fn zeros(c: &Optimization, numbers: usize) -> Self {
        let moments = moments(c);
        let of = |least: usize| if moments < least { Vec::new() } else { vec![0.0; numbers] };
        Self { first: of(1), second: of(2) }
    }
}

impl Optimizer {
    /// With moments of zero; a parameter that does not train has none.
    #[must_use]
    pub fn new(c: &Optimization, groups: ParameterGroups, parameters: &Parameters) -> Self {
        let mut moments = vec![Moments::default(); parameters.len()];
        let sizes: Vec<usize> = parameters.iter().map(|(_, var)| var.elem_count()).collect();
        for &position in groups.trainable() {
            moments[position] = Moments::zeros(c, sizes[position]);
        }
        let (betas, eps, momentum) = (c.betas, c.eps, c.momentum);
        Self { kind: c.optimizer, betas, eps, momentum, groups, steps: 0, moments }
    }

    /// Which one it is.
    #[must_use]
    pub fn kind(&self) -> OptimizerKind {
        self.kind
    }

    /// Adam's and `AdamW`'s decay of the first and the second moment.
    #[must_use]
    pub fn betas(&self) -> [f64; 2] {
        self.betas
    }

    /// Adam's and `AdamW`'s eps.
    #[must_use]
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// SGD's momentum.
    #[must_use]
    pub fn momentum(&self) -> f64 {
        self.momentum
    }

    /// What trains how.
    #[must_use]
    pub fn groups(&self) -> &ParameterGroups {
        &self.groups
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

    /// The numbers of each group's next step, at the groups' learning rates.
    #[must_use]
    pub fn next_rules(&self, rates: &[f64]) -> Vec<UpdateRule> {
        let groups = self.groups.groups().iter().zip(rates);
        groups.map(|(group, &lr)| self.rule(lr, group.weight_decay)).collect()
    }

    /// Counts a step that was taken elsewhere.
    pub fn count_step(&mut self) {
        self.steps += 1;
    }

    /// One step at the groups' learning rates; `gradients` are those of the parameters that train, in order, and count
    /// `scale` times.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &[Tensor],
        rates: &[f64],
        scale: f64,
    ) -> Result<()> {
        let rules = self.next_rules(rates);
        self.steps += 1;
        let scale = scale as f32;
        let vars: Vec<&Var> = parameters.iter().map(|(_, var)| var).collect();
        for (&position, gradient) in self.groups.trainable().iter().zip(gradients) {
            let rule = rules[self.groups.of()[position]];
            let update = Update { rule, scale, moments: RefCell::new(&mut self.moments[position]) };
            vars[position].as_tensor().inplace_op2(&gradient.contiguous()?, &update)?;
        }
        Ok(())
    }

    fn rule(&self, lr: f64, weight_decay: f64) -> UpdateRule {
        let power = (self.steps + 1).min(i32::MAX as u64) as i32;
        let (decay, l2) = match self.kind {
            OptimizerKind::AdamW => (1.0 - lr * weight_decay, 0.0),
            OptimizerKind::Adam => (1.0, weight_decay),
            OptimizerKind::Sgd => {
                let momentum = self.momentum as f32;
                return UpdateRule::Sgd { lr: lr as f32, l2: weight_decay as f32, momentum };
            }
        };
        let [beta1, beta2] = self.betas;
        UpdateRule::Adam {
            decay: decay as f32,
            l2: l2 as f32,
            step_size: (lr / (1.0 - beta1.powi(power))) as f32,
            root_correction: (1.0 - beta2.powi(power)).sqrt() as f32,
            rest1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            rest2: (1.0 - beta2) as f32,
            eps: self.eps as f32,
        }
    }
}

/// The numbers of one group's step, computed in f64 as PyTorch does and used in f32.
#[derive(Clone, Copy, Debug, PartialEq)]
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
        /// 1 - the first beta.
        rest1: f32,
        /// The second beta.
        beta2: f32,
        /// 1 - the second beta.
        rest2: f32,
        /// What is added to the root of the second moment.
        eps: f32,
    },
    /// Gradient descent.
    Sgd {
        /// The learning rate.
        lr: f32,
        /// What of the parameter is added to the gradient.
        l2: f32,
        /// What of the step before is kept; 0 where the optimizer has no moments.
        momentum: f32,
    },
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
        let (scale, rule) = (self.scale, self.rule);
        let mut moments = self.moments.borrow_mut();
        let Moments { first, second } = &mut **moments;
        let pairs = p.par_chunks_mut(GRAIN).zip(g.par_chunks(GRAIN));
        match rule {
            UpdateRule::Adam { .. } => {
                let moments = first.par_chunks_mut(GRAIN).zip(second.par_chunks_mut(GRAIN));
                pairs.zip(moments).for_each(|((p, g), (m, v))| adam(p, g, m, v, scale, rule));
            }
            UpdateRule::Sgd { lr, l2, momentum } if momentum > 0.0 => {
                pairs.zip(first.par_chunks_mut(GRAIN)).for_each(|((p, g), m)| {
                    for ((p, g), m) in p.iter_mut().zip(g).zip(m) {
                        *m = momentum * *m + (g * scale + l2 * *p);
                        *p -= lr * *m;
                    }
                });
            }
            UpdateRule::Sgd { lr, l2, .. } => pairs.for_each(|(p, g)| {
                for (p, g) in p.iter_mut().zip(g) {
                    *p -= lr * (g * scale + l2 * *p);
                }
            }),
        }
        Ok(())
    }
}

/// Adam's rule with bias correction
/// (<https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html>), in PyTorch's order of operations.
fn adam(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], scale: f32, rule: UpdateRule) {
    let UpdateRule::Adam { decay, l2, step_size, root_correction, rest1, beta2, rest2, eps } = rule else {
        return;
    };
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * scale + l2 * *p;
        *m += (g - *m) * rest1;
        *v = *v * beta2 + g * g * rest2;
        *p = *p * decay - step_size * (*m / (v.sqrt() / root_correction + eps));
    }
}

#[cfg(test)]
mod tests;
