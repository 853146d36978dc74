//! `x W^T + b`, or some of its outputs.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::super::precision::{Into, Precision, Rows};
use super::super::rows;
use super::{ROWS, Sink, with_numbers};
use crate::nn::operations::Affine;
use crate::nn::parameters::cpu_floats;

struct Map<P> {
    precision: P,
    outputs: Range<usize>,
    sink: Arc<Sink>,
}

pub(super) fn affine<P: Precision>(
    precision: P,
    x: &Tensor,
    map: Affine,
    sink: &Arc<Sink>,
) -> Result<Tensor> {
    let Affine { weight, bias, outputs } = map;
    let op = Map { precision, outputs, sink: Arc::clone(sink) };
    let x = x.contiguous()?;
    match bias {
        Some(bias) => x.apply_op3(weight, bias, op),
        None => x.apply_op2(weight, op),
    }
}

/// The gradients of `x` and of the numbers of `weight`, of all whose outputs `dy` is the gradient.
pub(super) fn gradients<P: Precision>(
    precision: P,
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
) -> Result<(Tensor, Vec<f32>)> {
    let (outputs, inputs) = weight.dims2()?;
    let count = x.dim(0)?;
    let (d_x, d_weight) = with_numbers([x, weight, dy], |[x, w, dy]| {
        let (x, dy) = (precision.operand(x), precision.operand(dy));
        let (x, dy) = (Rows::new(&x, inputs), Rows::new(&dy, outputs));
        let (mut d_x, mut d_weight) = (vec![0.0; count * inputs], vec![0.0; outputs * inputs]);
        precision.weight_gradient((outputs, count, inputs), dy, x, &mut d_weight, Into::Set);
        let right = precision.prepare(w, (outputs, inputs));
        precision.parallel_product(count, dy, &right, &mut d_x, Into::Set);
        (d_x, d_weight)
    })?;
    Ok((Tensor::from_vec(d_x, (count, inputs), x.device())?, d_weight))
}

impl<P: Precision> Map<P> {
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
        let into = if bias.is_some() { Into::Add } else { Into::Set };
        if let Some(bias) = bias.map(|bias| &bias[self.outputs.clone()]) {
            y.par_chunks_mut(ROWS * outputs.max(1)).for_each(|rows| {
                rows.chunks_exact_mut(outputs).for_each(|row| row.copy_from_slice(bias));
            });
        }
        let weight = &weight[self.outputs.start * inputs..self.outputs.end * inputs];
        let right = self.precision.prepare_transposed(weight, (outputs, inputs));
        let x = self.precision.operand(x);
        self.precision.parallel_product(count, Rows::new(&x, inputs), &right, &mut y, into);
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
        let (precision, inputs, outputs) = (self.precision, weight.dim(1)?, self.outputs.len());
        with_numbers([x, weight, dy], |[x_numbers, w, dy]| {
            let count = x_numbers.len() / inputs.max(1);
            let place = self.outputs.start * inputs..self.outputs.end * inputs;
            let of_bias =
                |bias| self.sink.gradient(bias, |sum, _| add_column_sums(&mut sum[self.outputs.clone()], dy));
            let d_bias = bias.map(of_bias).transpose()?.flatten();
            let dy = precision.operand(dy);
            let rows = Rows::new(&dy, outputs);
            let into = |is_new: bool| if is_new { Into::Set } else { Into::Add };
            let d_weight = self.sink.gradient(weight, |sum, is_new| {
                let (x, sum) = (precision.operand(x_numbers), &mut sum[place.clone()]);
                let size = (outputs, count, inputs);
                precision.weight_gradient(size, rows, Rows::new(&x, inputs), sum, into(is_new));
            })?;
            let d_x = self.sink.gradient(x, |sum, is_new| {
                let right = precision.prepare(&w[place.clone()], (outputs, inputs));
                precision.parallel_product(count, rows, &right, sum, into(is_new));
            })?;
            Ok([d_x, d_weight, d_bias])
        })?
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

impl<P: Precision> CustomOp2 for Map<P> {
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
        let (x, weight) = (cpu_floats(x, x_layout)?, cpu_floats(weight, weight_layout)?);
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

impl<P: Precision> CustomOp3 for Map<P> {
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
        let (x, weight) = (cpu_floats(x, x_layout)?, cpu_floats(weight, weight_layout)?);
        Ok(self.forward(x, x_layout.dims(), weight, Some(cpu_floats(bias, bias_layout)?)))
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
