//! What happens to gradients between the backward pass and the update: their norm, and sums over several batches.

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;

use crate::Result;
use crate::nn::parameters::with_slices;

/// Numbers that one thread takes in one go. Fixed, so that a sum is the same for any number of threads.
pub const GRAIN: usize = 1 << 16;

/// What `torch.nn.utils.clip_grad_norm_` adds to the norm before it divides by it.
const EPS: f64 = 1e-6;

/// The Euclidean norm of all gradients together. It is a finite number just where all of them are: the squares are
/// added in f64, which no f32 overflows.
///
/// # Errors
/// Where a gradient cannot be read.
pub fn norm(gradients: &[Tensor]) -> Result<f64> {
    let contiguous: candle_core::Result<Vec<Tensor>> = gradients.iter().map(Tensor::contiguous).collect();
    let contiguous = contiguous?;
    let squares = with_slices(&contiguous.iter().collect::<Vec<_>>(), |slices| {
        slices.iter().map(|values| sum_of_squares(values)).sum::<f64>()
    })?;
    Ok(squares.sqrt())
}

fn sum_of_squares(values: &[f32]) -> f64 {
    let parts: Vec<f64> = values.par_chunks(GRAIN).map(squares_of_part).collect();
    parts.into_iter().sum()
}

/// In eight lanes, so that it is bound by memory and not by the latency of an addition.
fn squares_of_part(values: &[f32]) -> f64 {
    let mut lanes = [0.0; 8];
    let (whole, rest) = values.as_chunks::<8>();
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    let rest: f64 = rest.iter().map(|value| f64::from(*value).powi(2)).sum();
    lanes.into_iter().sum::<f64>() + rest
}

/// The factor that cuts gradients of `norm` to at most `max_norm`: that of `clip_grad_norm_`
/// (<https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html>).
#[must_use]
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + EPS)).min(1.0)
}

/// The sum of several batches' gradients, each weighted by its clips: times `1 / clips`, the gradient of one batch of
/// them all.
#[derive(Default)]
pub struct Accumulator {
    sums: Vec<Tensor>,
    clips: usize,
}

impl Accumulator {
    /// Adds the gradients of the mean loss over `clips` clips.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn add(&mut self, gradients: &[Tensor], clips: usize) -> Result<()> {
        if self.sums.is_empty() {
            // Memory of its own: what it is given may be used again for the next batch.
            let zeros: candle_core::Result<_> = gradients.iter().map(Tensor::zeros_like).collect();
            self.sums = zeros?;
        }
        for (sum, gradient) in self.sums.iter().zip(gradients) {
            sum.inplace_op2(&gradient.contiguous()?, &AddScaled(clips as f32))?;
        }
        self.clips += clips;
        Ok(())
    }

    /// The sums, and how many clips they are of.
    #[must_use]
    pub fn sums(&self) -> (&[Tensor], usize) {
        (&self.sums, self.clips)
    }

    /// Back to zeros.
    ///
    /// # Errors
    /// Where the tensor library fails.
    pub fn clear(&mut self) -> Result<()> {
        for sum in &self.sums {
            sum.zero_set()?;
        }
        self.clips = 0;
        Ok(())
    }
}

/// What an operation in place changes and what it reads: contiguous f32 numbers.
pub(super) fn numbers<'a>(
    changed: &'a mut CpuStorage,
    changed_at: &Layout,
    read: &'a CpuStorage,
    read_at: &Layout,
) -> candle_core::Result<(&'a mut [f32], &'a [f32])> {
    let (CpuStorage::F32(changed), CpuStorage::F32(read)) = (changed, read) else {
        candle_core::bail!("parameters and gradients are f32")
    };
    let (Some((start, end)), Some((from, to))) =
        (changed_at.contiguous_offsets(), read_at.contiguous_offsets())
    else {
        candle_core::bail!("parameters and gradients are contiguous")
    };
    Ok((&mut changed[start..end], &read[from..to]))
}

/// `sum += factor * x`, in place.
struct AddScaled(f32);

impl InplaceOp2 for AddScaled {
    fn name(&self) -> &'static str {
        "add-scaled"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        at: &Layout,
        x: &CpuStorage,
        x_at: &Layout,
    ) -> candle_core::Result<()> {
        let (sum, x) = numbers(sum, at, x, x_at)?;
        sum.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).for_each(|(sum, x)| {
            for (sum, x) in sum.iter_mut().zip(x) {
                *sum += self.0 * x;
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    #[test]
    fn the_norm_is_of_all_gradients_together() {
        let long: Vec<f32> = (0..200_003).map(|i| (i as f32 * 0.7).sin()).collect();
        let expected = long.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() + 25.0;
        let found = norm(&[tensor(&long), tensor(&[3.0, -4.0]), tensor(&[])]).unwrap();
        assert!((found - expected.sqrt()).abs() < 1e-9 * found, "{found}");
    }

    #[test]
    fn the_norm_tells_of_every_number_that_is_not_finite() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 7, 8, 18] {
                let mut values = vec![1.0; 19];
                values[at] = bad;
                assert!(!norm(&[tensor(&[1.0]), tensor(&values)]).unwrap().is_finite(), "{bad} at {at}");
            }
        }
        assert!(norm(&[tensor(&[f32::MAX; 19])]).unwrap().is_finite());
    }

    #[test]
    fn large_gradients_are_cut_and_small_ones_are_not() {
        assert!(clip_factor(0.5, 1.0) >= 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert!(clip_factor(1.0, 1.0) < 1.0); // PyTorch's 1e-6
    }

    #[test]
    fn sums_are_weighted_by_clips() {
        let mut sum = Accumulator::default();
        sum.add(&[tensor(&[1.0, 2.0])], 3).unwrap();
        sum.add(&[tensor(&[5.0, -2.0])], 1).unwrap();
        let (sums, clips) = sum.sums();
        assert_eq!((sums[0].to_vec1::<f32>().unwrap(), clips), (vec![8.0, 4.0], 4));
        sum.clear().unwrap();
        sum.add(&[tensor(&[1.0, 1.0])], 2).unwrap();
        assert_eq!(sum.sums().0[0].to_vec1::<f32>().unwrap(), [2.0, 2.0]);
    }
}
