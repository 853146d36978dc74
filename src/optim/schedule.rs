//! Learning-rate schedules, with PyTorch's recursions.

use std::f64::consts::PI;

use crate::config::{Optimization, SchedulerKind};
use crate::optim::ParameterGroups;

/// `ReduceLROnPlateau` leaves a rate that would change by no more than this.
const PLATEAU_EPS: f64 = 1e-8;

/// The learning rates of the parameters' groups, and the rules that change them; all of it is in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    kind: SchedulerKind,
    /// Each group's, the rest's first.
    rates: Vec<Rate>,
    /// PyTorch's `last_epoch`: how often it was stepped.
    steps: u64,
    step_size: u64,
    gamma: f64,
    t_max: u64,
    /// Training steps before the scheduler begins.
    warmup: u64,
    plateau: Plateau,
    patience: u64,
    threshold: f64,
    min_lr: f64,
    higher_is_better: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Rate {
    base: f64,
    now: f64,
}

/// What `ReduceLROnPlateau` has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Plateau {
    /// The best figure so far.
    pub best: Option<f64>,
    /// Epochs since then, or since the last step.
    pub bad_epochs: u64,
    /// How often the rates were lowered.
    pub reductions: u64,
}

impl Schedule {
    /// At its first rates.
    #[must_use]
    pub fn new(c: &Optimization, groups: &ParameterGroups) -> Self {
        let rate = |base: f64| Rate { base, now: base };
        Self {
            kind: c.scheduler,
            rates: groups.groups().iter().map(|group| rate(group.lr)).collect(),
            steps: 0,
            step_size: c.scheduler_step_size as u64,
            gamma: c.scheduler_gamma,
            t_max: c.scheduler_tmax as u64,
            warmup: c.warmup_steps as u64,
            plateau: Plateau::default(),
            patience: c.scheduler_patience as u64,
            threshold: c.scheduler_threshold,
            min_lr: c.min_lr,
            higher_is_better: c.best_metric.higher_is_better(),
        }
    }

    /// The groups' rates of training step `step`, counted from 0.
    #[must_use]
    pub fn rates(&self, step: u64) -> Vec<f64> {
        let warm = self.warm(step);
        self.rates.iter().map(|rate| rate.now * warm).collect()
    }

    /// The rate of the parameters without a group of their own, at training step `step`.
    #[must_use]
    pub fn lr(&self, step: u64) -> f64 {
        self.rates.first().map_or(0.0, |rate| rate.now) * self.warm(step)
    }

    /// The share of the rates that `step` has: it rises linearly from 0 over the warm-up.
    fn warm(&self, step: u64) -> f64 {
        if step < self.warmup { step as f64 / self.warmup as f64 } else { 1.0 }
    }

    /// The rates that the groups started from.
    pub fn base_rates(&self) -> impl Iterator<Item = f64> {
        self.rates.iter().map(|rate| rate.base)
    }

    /// Whether the rates ever change.
    #[must_use]
    pub fn is_constant(&self) -> bool {
        self.kind == SchedulerKind::None && self.warmup == 0
    }

    /// How often it was stepped.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// What the scheduler `plateau` has seen, where it is that one.
    #[must_use]
    pub fn plateau(&self) -> Option<Plateau> {
        (self.kind == SchedulerKind::Plateau).then_some(self.plateau)
    }

    /// After an epoch that ended with training step `step` (so many were done) and with `figure`, where that is known: to
    /// the next epoch's rates, unless the warm-up is not over.
    pub fn end_epoch(&mut self, step: u64, figure: Option<f64>) {
        if step < self.warmup {
            return;
        }
        match (self.kind, figure) {
            (SchedulerKind::Plateau, None) => {}
            (SchedulerKind::Plateau, Some(figure)) => self.watch(figure),
            _ => self.step(),
        }
    }

    /// To where an earlier schedule by the same rules was after `steps` steps, with what it had seen: every rate follows
    /// from the first one, to the bit.
    pub fn restore(&mut self, steps: u64, plateau: Plateau) {
        if self.kind == SchedulerKind::Plateau {
            self.steps = steps;
            self.plateau = plateau;
            for _ in 0..plateau.reductions.min(steps) {
                self.reduce();
            }
            return;
        }
        for _ in 0..steps {
            self.step();
        }
    }

    /// `ReduceLROnPlateau.step`, with a relative threshold and no cooldown
    /// (<https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html>).
    fn watch(&mut self, figure: f64) {
        self.steps += 1;
        let is_better = |best: f64| {
            if self.higher_is_better {
                figure > best * (1.0 + self.threshold)
            } else {
                figure < best * (1.0 - self.threshold)
            }
        };
        let nothing = if self.higher_is_better { f64::NEG_INFINITY } else { f64::INFINITY };
        if is_better(self.plateau.best.unwrap_or(nothing)) {
            self.plateau.best = Some(figure);
            self.plateau.bad_epochs = 0;
        } else {
            self.plateau.bad_epochs += 1;
        }
        if self.plateau.bad_epochs > self.patience {
            self.plateau.bad_epochs = 0;
            self.plateau.reductions += 1;
            self.reduce();
        }
    }

    fn reduce(&mut self) {
        for rate in &mut self.rates {
            let lower = (rate.now * self.gamma).max(self.min_lr);
            if rate.now - lower > PLATEAU_EPS {
                rate.now = lower;
            }
        }
    }

    /// `StepLR` and `CosineAnnealingLR` (`eta_min` 0) in their chainable form, which rises again past `T_max`
    /// (<https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.CosineAnnealingLR.html>).
    fn step(&mut self) {
        self.steps += 1;
        let (steps, gamma, t_max) = (self.steps, self.gamma, self.t_max);
        let falls = steps.is_multiple_of(self.step_size);
        for rate in &mut self.rates {
            match self.kind {
                SchedulerKind::StepLr if falls => rate.now *= gamma,
                SchedulerKind::Cosine => rate.now = cosine(*rate, steps, t_max),
                SchedulerKind::None | SchedulerKind::StepLr | SchedulerKind::Plateau => {}
            }
        }
    }
}

/// The rate after step `n` of a cosine with this `T_max`.
fn cosine(Rate { base, now }: Rate, n: u64, period: u64) -> f64 {
    let t_max = period as f64;
    // PyTorch's condition, (n - 1 - T_max) % (2 T_max) == 0, without negative numbers: n is at least 1.
    if (n - 1 + period).is_multiple_of(2 * period) {
        return now + base * (1.0 - (PI / t_max).cos()) / 2.0;
    }
    (1.0 + (PI * n as f64 / t_max).cos()) / (1.0 + (PI * (n - 1) as f64 / t_max).cos()) * now
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    use crate::config::{BestMetric, Glob, ParameterGroup};
    use crate::nn::{Builder, Init};

    /// An experiment's section as a case of PyTorch's describes it, and the groups of a network with a parameter for each.
    fn of_case(case: &Value) -> (Optimization, ParameterGroups) {
        let number = |key: &str, default: f64| case[key].as_f64().unwrap_or(default);
        let word = |key: &str| case[key].as_str().unwrap_or_default();
        let factors: Vec<f64> =
            case["lr_factors"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
        let builder = Builder::recording();
        builder.parameter("rest", &[1], Init::Zeros).unwrap();
        let group = |(at, factor): (usize, &f64)| {
            let name = format!("group{at}");
            builder.parameter(&name, &[1], Init::Zeros).unwrap();
            let pattern = Glob::new(&name).unwrap();
            ParameterGroup { pattern, lr: None, lr_factor: Some(*factor), weight_decay: None, freeze: false }
        };
        let c = Optimization {
            lr: number("base_lr", 0.0),
            scheduler: serde_json::from_value(case["scheduler"].clone()).unwrap_or(SchedulerKind::None),
            scheduler_step_size: number("scheduler_step_size", 5.0) as usize,
            scheduler_gamma: number("scheduler_gamma", 0.5),
            scheduler_tmax: number("scheduler_tmax", 10.0) as usize,
            scheduler_patience: number("scheduler_patience", 10.0) as usize,
            scheduler_threshold: number("scheduler_threshold", 1e-4),
            min_lr: number("min_lr", 0.0),
            warmup_steps: number("warmup_steps", 0.0) as usize,
            best_metric: if word("mode") == "max" { BestMetric::ValBleu } else { BestMetric::ValLoss },
            groups: factors.iter().enumerate().map(group).collect(),
            ..Optimization::default()
        };
        let groups = ParameterGroups::new(&c, &builder.blueprint()).unwrap();
        (c, groups)
    }

    fn cases(text: &str) -> Vec<Value> {
        serde_json::from_str(text).expect("the file is JSON")
    }

    #[test]
    fn rates_are_pytorchs() {
        for case in cases(include_str!("../../tests/data/lr_schedules.json")) {
            let (c, groups) = of_case(&case);
            let mut schedule = Schedule::new(&c, &groups);
            let expected = case["lr_per_epoch"].as_array().expect("a list of rates");
            assert!(expected.len() > 10);
            for (epoch, expected) in (0..).zip(expected) {
                let (found, expected) = (schedule.lr(epoch), expected.as_f64().expect("a rate"));
                let close = (found - expected).abs() <= 1e-9 * expected.abs() + 1e-15;
                assert!(close, "{case}: epoch {epoch}: {found} is not {expected}");
                schedule.end_epoch(epoch, None);
            }
        }
    }

    /// Cases of `scripts/torch_schedules.py`: random figures over 200 epochs of a few steps, several groups.
    #[test]
    fn rates_of_groups_and_plateaus_are_pytorchs_and_go_on() {
        let own = include_str!("../../tests/data/schedules.json").to_owned();
        let text =
            std::env::var_os("SCHEDULE_CASES").map_or(own, |path| std::fs::read_to_string(path).unwrap());
        let cases = cases(&text);
        assert!(cases.len() > 5);
        for case in cases {
            let (c, groups) = of_case(&case);
            let mut schedule = Schedule::new(&c, &groups);
            let numbers = |value: &Value| -> Vec<f64> {
                // JSON has no NaN: null stands for it.
                value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap_or(f64::NAN)).collect()
            };
            let steps = case["steps_per_epoch"].as_u64().unwrap();
            let mut step = 0;
            for (epoch, figure) in numbers(&case["figures"]).into_iter().enumerate() {
                let rates = &case["rates"][epoch];
                for expected in rates.as_array().unwrap() {
                    let expected = numbers(expected);
                    let found = schedule.rates(step);
                    assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.iter().zip(&expected) {
                        let close = (found - expected).abs() <= 1e-12 * expected.abs();
                        assert!(
                            close,
                            "{}: epoch {epoch}, step {step}: {found} is not {expected}",
                            case["name"]
                        );
                    }
                    step += 1;
                }
                assert_eq!(step, (epoch as u64 + 1) * steps);
                schedule.end_epoch(step, Some(figure));
                let mut resumed = Schedule::new(&c, &groups);
                resumed.restore(schedule.steps(), schedule.plateau().unwrap_or_default());
                assert_eq!(resumed, schedule, "{}: epoch {epoch}", case["name"]);
            }
        }
    }

    #[test]
    fn a_figure_that_is_not_known_is_waited_for() {
        let c = Optimization {
            scheduler: SchedulerKind::Plateau,
            scheduler_patience: 0,
            ..Optimization::default()
        };
        let groups = ParameterGroups::new(&c, &Builder::recording().blueprint()).unwrap();
        let mut schedule = Schedule::new(&c, &groups);
        let before = schedule.lr(0);
        schedule.end_epoch(1, Some(1.0));
        schedule.end_epoch(2, None);
        assert!(schedule.lr(2) >= before);
        schedule.end_epoch(3, Some(1.0));
        assert!(schedule.lr(3) < before);
    }
}
