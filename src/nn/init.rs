//! Initial values of parameters, by PyTorch's rules.

use rand::Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};

/// How a parameter is initialised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// Normal with mean 0 and this standard deviation (`nn.Embedding` with 1).
    Normal(f64),
    /// Normal with mean 0 and variance `1 / width`, and zeros in the first row of `width` numbers, which is for padding.
    Embedding {
        /// Numbers of a row.
        width: usize,
    },
    /// `nn.init.trunc_normal_`: normal of this standard deviation, cut at -2 and 2.
    TruncatedNormal(f64),
    /// `nn.init.xavier_uniform_` for a matrix of these fans.
    XavierUniform {
        /// Columns.
        fan_in: usize,
        /// Rows.
        fan_out: usize,
    },
    /// The default of `nn.Linear` and `nn.Conv2d`, weight and bias alike: uniform within `1 / sqrt(fan_in)`
    /// (`kaiming_uniform_` with `a = sqrt(5)`).
    FanIn(usize),
}

impl Init {
    /// Draws `count` values.
    pub fn draw(self, count: usize, rng: &mut impl Rng) -> Vec<f32> {
        match self {
            Self::Zeros => vec![0.0; count],
            Self::Ones => vec![1.0; count],
            Self::Normal(std) => (0..count).map(|_| (normal(rng) * std) as f32).collect(),
            Self::Embedding { width } => {
                let std = (width as f64).powf(-0.5);
                let mut values = Self::Normal(std).draw(count, rng);
                values.iter_mut().take(width).for_each(|value| *value = 0.0);
                values
            }
            Self::TruncatedNormal(std) => (0..count).map(|_| truncated(std, rng) as f32).collect(),
            Self::XavierUniform { fan_in, fan_out } => {
                uniform((6.0 / (fan_in + fan_out) as f64).sqrt(), count, rng)
            }
            Self::FanIn(fan_in) => uniform(1.0 / (fan_in as f64).sqrt(), count, rng),
        }
    }
}

fn normal(rng: &mut impl Rng) -> f64 {
    StandardNormal.sample(rng)
}

/// Rejection is exact, and at the deviations in use (0.02) it never rejects.
fn truncated(std: f64, rng: &mut impl Rng) -> f64 {
    loop {
        let value = normal(rng) * std;
        if value.abs() <= 2.0 {
            return value;
        }
    }
}

fn uniform(bound: f64, count: usize, rng: &mut impl Rng) -> Vec<f32> {
    match Uniform::new_inclusive(-bound, bound) {
        Ok(range) => (0..count).map(|_| range.sample(rng) as f32).collect(),
        // A fan of 0 has no finite bound, and no weight to draw either.
        Err(_) => vec![0.0; count],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, stream};

    fn moments(init: Init) -> (f64, f64, f64) {
        let values = init.draw(40_000, &mut stream(7, Purpose::Init, [0, 0]));
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 4e4;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / 4e4;
        let largest = values.iter().fold(0.0_f64, |a, &v| a.max(f64::from(v).abs()));
        (mean, variance.sqrt(), largest)
    }

    #[test]
    fn distributions_have_pytorchs_spread() {
        let third = 1.0 / 3.0_f64.sqrt();
        for (init, std, bound) in [
            (Init::Normal(1.0), 1.0, 6.0),
            (Init::TruncatedNormal(0.02), 0.02, 0.12),
            (Init::TruncatedNormal(1.0), 0.8796, 2.0),
            (Init::XavierUniform { fan_in: 30, fan_out: 90 }, 0.05_f64.sqrt() * third, 0.05_f64.sqrt()),
            (Init::FanIn(64), 0.125 * third, 0.125),
        ] {
            let (mean, found, largest) = moments(init);
            assert!(mean.abs() < 0.03 * std, "{init:?}: mean {mean}");
            assert!((found / std - 1.0).abs() < 0.02, "{init:?}: std {found}, not {std}");
            assert!(largest <= bound * 1.000_001, "{init:?}: {largest} is out of bounds");
        }
    }
}
