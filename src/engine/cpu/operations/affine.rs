//! `x W^T + b`, or some of its outputs.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::super::gemm::{Into, Matrix, parallel_product};
use super::super::rows;
use super::{ROWS, Sink, floats, with_numbers};
use crate::nn::operations::Affine;

struct Map {
    outputs: Range<usize>,
    sink: Arc<Sink>,
}

pub(super) fn affine(x: &Tensor, map: Affine, sink: &Arc<Sink>) -> Result<Tensor> {
    let Affine { weight, bias, outputs } = map;
    let op = Map { outputs, sink: Arc::clone(sink) };
    let x = x.contiguous()?;
    match bias {
        Some(bias) => x.apply_op3(weight, bias, op),
        None => x.apply_op2(weight, op),
    }
}

impl Map {
    fn forward(
        &self,
        x: &[f32],
        dims: &[usize],
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> (CpuStorage, Shape) {
        let (inputs, outputs) = (dims.last().copied().unwrap_or(1), self.outputs.len());
        let count = x.len() / inputs.max(1);
        let mut y = vec![0.0; count * outputs];
        let bias = bias.map(|bias| &bias[self.outputs.clone()]);
        if let Some(bias) = bias {
            y.par_chunks_mut(ROWS * outputs.max(1)).for_each(|rows| {
                rows.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
            });
        }
        let into = if bias.is_some() { Into::Add } else { Into::Set };
        let weight = Matrix::rows(&weight[self.outputs.start * inputs..], inputs).t();
        parallel_product((count, inputs, outputs), Matrix::rows(x, inputs), weight, &mut y, outputs, into);
        let mut shape = dims.to_vec();
        shape.pop();
        shape.push(outputs);
        (CpuStorage::F32(y), shape.into())
    }

    /// The gradient of `x`, where it is asked for; those of variables go to the sink.
    fn backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        dy: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let (inputs, outputs) = (weight.dim(1)?, self.outputs.len());
        with_numbers([x, weight, dy], |[x_numbers, w, dy]| {
            let count = x_numbers.len() / inputs.max(1);
            let all = outputs * inputs == w.len();
            let place = self.outputs.start * inputs..self.outputs.end * inputs;
            let product = |into: &mut [f32], is_new: bool| {
                let into = (&mut into[place.clone()], if is_new { Into::Set } else { Into::Add });
                let (dy, x) = (Matrix::rows(dy, outputs).t(), Matrix::rows(x_numbers, inputs));
                parallel_product((outputs, count, inputs), dy, x, into.0, inputs, into.1);
            };
            let d_weight = self.of_parameter(weight, |sum, is_new| product(sum, is_new))?;
            debug_assert!(all || d_weight.is_none() || !weight.is_variable());
            let d_bias = match bias {
                Some(bias) => self.of_parameter(bias, |sum, _| {
                    add_column_sums(&mut sum[self.outputs.clone()], dy);
                })?,
                None => None,
            };
            let d_x = if x.track_op() {
                let mut d_x = vec![0.0; x_numbers.len()];
                let weight = Matrix::rows(&w[place.start..], inputs);
                let dy = Matrix::rows(dy, outputs);
                parallel_product((count, outputs, inputs), dy, weight, &mut d_x, inputs, Into::Set);
                self.sink.give(x, d_x)?
            } else {
                None
            };
            Ok([d_x, d_weight, d_bias])
        })?
    }

    /// A parameter's gradient, to which `add` adds: a variable's is summed in the sink.
    fn of_parameter(&self, parameter: &Tensor, add: impl FnOnce(&mut [f32], bool)) -> Result<Option<Tensor>> {
        if parameter.is_variable() {
            self.sink.with(parameter, add);
            return Ok(None);
        }
        if !parameter.track_op() {
            return Ok(None);
        }
        let mut sum = vec![0.0; parameter.elem_count()];
        add(&mut sum, true);
        Ok(Some(Tensor::from_vec(sum, parameter.dims(), parameter.device())?))
    }
}

/// Adds the sum over the rows of `x` to `out`.
fn add_column_sums(out: &mut [f32], x: &[f32]) {
    let sums: Vec<Vec<f32>> = x
        .par_chunks(ROWS * out.len().max(1))
        .map(|x| {
            let mut sum = vec![0.0; out.len()];
            rows::add_column_sums(&mut sum, x);
            sum
        })
        .collect();
    for sum in sums {
        rows::add_bias(out, &sum);
    }
}

impl CustomOp2 for Map {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (floats(x, x_layout)?, floats(weight, weight_layout)?);
        Ok(self.forward(x, x_layout.dims(), weight, None))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [d_x, d_weight, _] = self.backward(x, weight, None, dy)?;
        Ok((d_x, d_weight))
    }
}

impl CustomOp3 for Map {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (floats(x, x_layout)?, floats(weight, weight_layout)?);
        Ok(self.forward(x, x_layout.dims(), weight, Some(floats(bias, bias_layout)?)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [d_x, d_weight, d_bias] = self.backward(x, weight, Some(bias), dy)?;
        Ok((d_x, d_weight, d_bias))
    }
}
