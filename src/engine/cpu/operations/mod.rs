//! The operations of [`crate::nn::Operations`] as fused, parallel ones: each is one operation of Candle's graph, with a
//! backward pass by hand. No result depends on how many threads there are: they share out rows, and a sum over rows goes
//! over blocks of a fixed size.

mod affine;
mod attention;
mod elementwise;
mod mask;
mod norm;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId};

use super::precision::Precision;
use crate::nn::operations::{Activation, Affine, Attention, Graph, Operations};
use crate::nn::parameters::with_slices;
use crate::nn::{Dropout, Pass};

/// Rows that a thread takes at a time, and that are summed before they are added to what others have summed.
const ROWS: usize = 32;

/// The fused operations of a network.
#[derive(Default)]
pub struct FusedOperations<P> {
    precision: P,
    sink: Arc<Sink>,
}

impl<P: Precision> Operations for FusedOperations<P> {
    fn affine(&self, x: &Tensor, map: Affine) -> Result<Tensor> {
        affine::affine(self.precision, x, map, &self.sink)
    }

    fn affine_gradients(&self, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<(Tensor, Vec<f32>)> {
        affine::gradients(self.precision, x, weight, dy)
    }

    fn layer_norm(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
        norm::layer_norm(x, [weight, bias], eps, &self.sink)
    }

    fn activate(&self, x: &Tensor, f: Activation, dropout: &Dropout, pass: &Pass) -> Result<Tensor> {
        elementwise::activate(x, f, dropout, pass)
    }

    fn residual(&self, x: &Tensor, branch: &Tensor, dropout: &Dropout, pass: &Pass) -> Result<Tensor> {
        elementwise::residual(x, branch, dropout, pass)
    }

    fn attend(&self, attention: &Attention, pass: &Pass) -> Result<Tensor> {
        attention::attend(self.precision, attention, pass)
    }

    fn backward(&self, output: &Tensor, gradient: &Tensor) -> Result<GradStore> {
        // What a pass that failed has left.
        drop(self.sink.take());
        let mut store = Graph.backward(output, gradient)?;
        for (tensor, values) in self.sink.take() {
            let mut sum = Tensor::from_vec(values, tensor.dims(), tensor.device())?;
            // What other operations gave.
            if let Some(others) = store.get(&tensor) {
                sum = (others + sum)?;
            }
            store.insert(&tensor, sum);
        }
        Ok(store)
    }
}

/// Where gradients of variables are summed. Candle's own store adds each to a tensor of zeros and keeps both.
#[derive(Default)]
struct Sink {
    sums: Mutex<HashMap<TensorId, (Tensor, Vec<f32>)>>,
}

impl Sink {
    /// Lends the gradient of `variable` to `add`, and says whether it is new, which is all zeros.
    fn with(&self, variable: &Tensor, add: impl FnOnce(&mut [f32], bool)) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_new = false;
        let (_, sum) = sums.entry(variable.id()).or_insert_with(|| {
            is_new = true;
            (variable.clone(), vec![0.0; variable.elem_count()])
        });
        add(sum, is_new);
    }

    /// The gradient of an operand, to which `add` adds as in [`Self::with`]: nothing where it is a constant, and a
    /// variable's is summed here. It is given where it is an operation's result.
    fn gradient(&self, operand: &Tensor, add: impl FnOnce(&mut [f32], bool)) -> Result<Option<Tensor>> {
        if operand.is_variable() {
            self.with(operand, add);
            return Ok(None);
        }
        if !operand.track_op() {
            return Ok(None);
        }
        let mut sum = vec![0.0; operand.elem_count()];
        add(&mut sum, true);
        Ok(Some(Tensor::from_vec(sum, operand.dims(), operand.device())?))
    }

    fn take(&self) -> Vec<(Tensor, Vec<f32>)> {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.drain().map(|(_, sum)| sum).collect()
    }
}

/// Lends the numbers of tensors.
fn with_numbers<const N: usize, R>(tensors: [&Tensor; N], work: impl FnOnce([&[f32]; N]) -> R) -> Result<R> {
    let tensors: Result<Vec<Tensor>> = tensors.into_iter().map(Tensor::contiguous).collect();
    let tensors = tensors?;
    let tensors: Vec<&Tensor> = tensors.iter().collect();
    with_slices(&tensors, |slices| work(std::array::from_fn(|at| slices[at])))
}

#[cfg(test)]
mod tests;
