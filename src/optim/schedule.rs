//! Learning-rate schedules, with PyTorch's recursions.

use std::f64::consts::PI;

use crate::config::{Optimization, SchedulerKind};

/// A learning rate and the rule that changes it; all of it is in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    kind: SchedulerKind,
    base_lr: f64,
    lr: f64,
    /// PyTorch's `last_epoch`: how often [`Self::step`] was called.
    steps: u64,
    step_size: u64,
    gamma: f64,
    t_max: u64,
}

impl Schedule {
    /// At its first rate.
    #[must_use]
    pub fn new(c: &Optimization) -> Self {
        Self {
            kind: c.scheduler,
            base_lr: c.lr,
            lr: c.lr,
            steps: 0,
            step_size: c.scheduler_step_size as u64,
            gamma: c.scheduler_gamma,
            t_max: c.scheduler_tmax as u64,
        }
    }

    /// The rate of the next training step.
    #[must_use]
    pub fn lr(&self) -> f64 {
        self.lr
    }

    /// The rate that it started from.
    #[must_use]
    pub fn base_lr(&self) -> f64 {
        self.base_lr
    }

    /// Which one it is.
    #[must_use]
    pub fn kind(&self) -> SchedulerKind {
        self.kind
    }

    /// How often it was stepped.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// To the next epoch's rate, from this one's: `StepLR` and `CosineAnnealingLR` (`eta_min` 0) in their
    /// chainable form, which rises again past `T_max`
    /// (<https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.CosineAnnealingLR.html>).
    pub fn step(&mut self) {
        self.steps += 1;
        match self.kind {
            SchedulerKind::None => {}
            SchedulerKind::StepLr => {
                if self.steps.is_multiple_of(self.step_size) {
                    self.lr *= self.gamma;
                }
            }
            SchedulerKind::Cosine => self.lr = self.cosine(),
        }
    }

    fn cosine(&self) -> f64 {
        let (n, period) = (self.steps, self.t_max);
        let t_max = period as f64;
        // PyTorch's condition, (n - 1 - T_max) % (2 T_max) == 0, without negative numbers: n is at least 1.
        if (n - 1 + period).is_multiple_of(2 * period) {
            return self.lr + self.base_lr * (1.0 - (PI / t_max).cos()) / 2.0;
        }
        (1.0 + (PI * n as f64 / t_max).cos()) / (1.0 + (PI * (n - 1) as f64 / t_max).cos()) * self.lr
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn rates_are_pytorchs() {
        let text = include_str!("../../tests/data/lr_schedules.json");
        let cases: Vec<Value> = serde_json::from_str(text).expect("the file is JSON");
        for case in &cases {
            let number = |key: &str, default: f64| case[key].as_f64().unwrap_or(default);
            let mut schedule = Schedule::new(&Optimization {
                lr: number("base_lr", 0.0),
                scheduler: match case["scheduler"].as_str() {
                    Some("steplr") => SchedulerKind::StepLr,
                    Some("cosine") => SchedulerKind::Cosine,
                    _ => SchedulerKind::None,
                },
                scheduler_step_size: number("scheduler_step_size", 5.0) as usize,
                scheduler_gamma: number("scheduler_gamma", 0.5),
                scheduler_tmax: number("scheduler_tmax", 10.0) as usize,
                ..Optimization::default()
            });
            let expected = case["lr_per_epoch"].as_array().expect("a list of rates");
            assert!(expected.len() > 10);
            for (epoch, expected) in expected.iter().enumerate() {
                let expected = expected.as_f64().expect("a rate");
                let close = (schedule.lr() - expected).abs() <= 1e-9 * expected.abs() + 1e-15;
                assert!(close, "{case}: epoch {epoch}: {} is not {expected}", schedule.lr());
                schedule.step();
            }
        }
    }
}
