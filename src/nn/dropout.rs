//! Dropout and stochastic depth, from masks that can be drawn again.

use candle_core::{Result, Tensor};
use rand::Rng;

use crate::random::{Purpose, stream};

/// One pass through the network: whether it trains, and what its dropout masks are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Dropout is on only where this is `Some`.
    pub masks: Option<Masks>,
    /// The position of this tensor's first row in the whole step: a chunk of the images has the masks that
    /// it would have in the whole batch.
    pub first_row: usize,
}

/// What a training step's dropout masks depend on, besides site and row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Masks {
    /// The run's seed.
    pub seed: u64,
    /// The training step, counted from 0 over the whole run.
    pub step: u64,
}

impl Pass {
    /// No dropout.
    pub const EVALUATION: Self = Self { masks: None, first_row: 0 };

    /// A training pass whose masks are those of `step`.
    #[must_use]
    pub fn training(seed: u64, step: u64) -> Self {
        Self { masks: Some(Masks { seed, step }), first_row: 0 }
    }
}

/// `nn.Dropout`, or per-sample stochastic depth: a place in the network with masks of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The probability of a zero, in 0..1.
    p: f64,
    site: u64,
}

impl Dropout {
    /// With probability `p` at the network's `site` (sites start at 1, in the order of construction).
    #[must_use]
    pub fn new(p: f64, site: u64) -> Self {
        Self { p, site }
    }

    /// Whether it changes anything in training.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.p > 0.0
    }

    /// Its place in the random streams.
    #[must_use]
    pub fn site(&self) -> u64 {
        self.site
    }

    /// Random numbers of 32 bits below this one are zeros.
    #[must_use]
    pub fn threshold(&self) -> u32 {
        (self.p * 4_294_967_296.0) as u32
    }

    /// What the elements that are kept are multiplied by.
    #[must_use]
    pub fn scale(&self) -> f32 {
        (1.0 / (1.0 - self.p)) as f32
    }

    /// Zeros elements of `x` (rows, …) with probability `p` and scales the others by `1 / (1 - p)`.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        match pass.masks {
            Some(masks) if self.p > 0.0 => x.mul(&self.mask(x.dims(), masks, pass.first_row, x)?),
            _ => Ok(x.clone()),
        }
    }

    /// Zeros whole rows of `x` (rows, …) with probability `p` and scales the others by `1 / (1 - p)`:
    /// stochastic depth, each sample on its own.
    pub fn forward_rows(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        match pass.masks {
            Some(masks) if self.p > 0.0 => {
                let mut shape = vec![1; x.rank()];
                shape[0] = x.dim(0)?;
                x.broadcast_mul(&self.mask(&shape, masks, pass.first_row, x)?)
            }
            _ => Ok(x.clone()),
        }
    }

    /// Fills `mask`, one row's elements, with 0 (probability `p`) or `1 / (1 - p)`.
    pub fn fill_row(&self, mask: &mut [f32], masks: Masks, row: usize) {
        let (mut is_kept, scale) = (self.draws(masks, row, 0), self.scale());
        for value in mask {
            *value = if is_kept() { scale } else { 0.0 };
        }
    }

    /// As [`Self::fill_row`], of the elements from `first` on: 1 where one is kept, else 0.
    pub fn fill_kept(&self, kept: &mut [u8], masks: Masks, row: usize, first: usize) {
        let mut is_kept = self.draws(masks, row, first);
        for kept in kept {
            *kept = u8::from(is_kept());
        }
    }

    /// Whether each of a row's elements is kept, one after another from `first` on.
    fn draws(&self, masks: Masks, row: usize, first: usize) -> impl FnMut() -> bool + use<> {
        let mut rng = stream(masks.seed, Purpose::Dropout, [masks.step, self.site << 40 | row as u64]);
        rng.set_word_pos(first as u128);
        let threshold = self.threshold();
        move || rng.next_u32() >= threshold
    }

    fn mask(&self, shape: &[usize], masks: Masks, first_row: usize, like: &Tensor) -> Result<Tensor> {
        let row: usize = shape[1..].iter().product();
        let mut values = vec![0.0; shape.iter().product()];
        for (i, chunk) in values.chunks_mut(row.max(1)).enumerate() {
            self.fill_row(chunk, masks, first_row + i);
        }
        Tensor::from_vec(values, shape, like.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, IndexOp};

    #[test]
    fn a_chunk_has_the_masks_of_the_whole() -> Result<()> {
        let x = Tensor::ones((6, 50), candle_core::DType::F32, &Device::Cpu)?;
        let dropout = Dropout::new(0.3, 4);
        let whole = dropout.forward(&x, &Pass::training(1, 2))?;
        let chunk = dropout.forward(&x.i(2..5)?, &Pass { first_row: 2, ..Pass::training(1, 2) })?;
        assert_eq!(whole.i(2..5)?.to_vec2::<f32>()?, chunk.to_vec2::<f32>()?);
        for other in [Pass::training(2, 2), Pass::training(1, 3)] {
            assert_ne!(whole.to_vec2::<f32>()?, dropout.forward(&x, &other)?.to_vec2::<f32>()?);
        }
        assert_ne!(
            whole.to_vec2::<f32>()?,
            Dropout::new(0.3, 5).forward(&x, &Pass::training(1, 2))?.to_vec2::<f32>()?
        );
        Ok(())
    }

    #[test]
    fn the_share_of_zeros_is_p_and_the_mean_stays() -> Result<()> {
        let x = Tensor::ones((100, 1000), candle_core::DType::F32, &Device::Cpu)?;
        for p in [0.1, 0.5, 0.9] {
            let y = Dropout::new(p, 1).forward(&x, &Pass::training(0, 0))?.flatten_all()?.to_vec1::<f32>()?;
            let zeros = y.iter().filter(|&&v| v == 0.0).count() as f64 / 1e5;
            let mean = y.iter().map(|&v| f64::from(v)).sum::<f64>() / 1e5;
            assert!((zeros - p).abs() < 0.01 && (mean - 1.0).abs() < 0.05, "p {p}: {zeros}, mean {mean}");
        }
        Ok(())
    }

    #[test]
    fn rows_fall_whole() -> Result<()> {
        let x = Tensor::ones((64, 3, 2), candle_core::DType::F32, &Device::Cpu)?;
        let y = Dropout::new(0.5, 1).forward_rows(&x, &Pass::training(0, 0))?.reshape((64, 6))?;
        let rows = y.to_vec2::<f32>()?;
        assert!(rows.iter().all(|row| *row == [0.0; 6] || *row == [2.0; 6]));
        assert!(rows.contains(&vec![0.0; 6]) && rows.contains(&vec![2.0; 6]));
        Ok(())
    }

    #[test]
    fn evaluation_changes_nothing() -> Result<()> {
        let x = Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu)?;
        let y = Dropout::new(0.9, 1).forward(&x, &Pass::EVALUATION)?;
        assert_eq!(x.to_vec2::<f32>()?, y.to_vec2::<f32>()?);
        Ok(())
    }
}
