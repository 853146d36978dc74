//! `LayerNorm`.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::super::rows::{self, Norm};
use super::{ROWS, Sink, with_numbers};
use crate::nn::parameters::cpu_floats;

struct LayerNorm {
    eps: f32,
    sink: Arc<Sink>,
}

pub(super) fn layer_norm(
    x: &Tensor,
    [weight, bias]: [&Tensor; 2],
    eps: f32,
    sink: &Arc<Sink>,
) -> Result<Tensor> {
    x.contiguous()?.apply_op3(weight, bias, LayerNorm { eps, sink: Arc::clone(sink) })
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
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
        let x = cpu_floats(x, x_layout)?;
        let (weight, bias) = (cpu_floats(weight, weight_layout)?, cpu_floats(bias, bias_layout)?);
        let norm = Norm { weight, bias, eps: self.eps };
        let mut y = vec![0.0; x.len()];
        let block = ROWS * weight.len().max(1);
        y.par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(y, x)| rows::layer_norm(y, x, norm));
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        with_numbers([x, weight, bias, dy], |[x_numbers, weight_numbers, bias_numbers, dy]| {
            let norm = Norm { weight: weight_numbers, bias: bias_numbers, eps: self.eps };
            let mut sums = None;
            let d_x = self.sink.gradient(x, |d_x, _| sums = Some(backward(d_x, x_numbers, dy, norm)))?;
            let [d_weight, d_bias] =
                sums.unwrap_or_else(|| backward(&mut vec![0.0; dy.len()], x_numbers, dy, norm));
            let d_weight = self.sink.gradient(weight, |sum, _| rows::add_bias(sum, &d_weight))?;
            Ok((d_x, d_weight, self.sink.gradient(bias, |sum, _| rows::add_bias(sum, &d_bias))?))
        })?
    }
}

/// Adds the gradient of `x` to `d_x`; gives those of weight and bias.
fn backward(d_x: &mut [f32], x: &[f32], dy: &[f32], norm: Norm) -> [Vec<f32>; 2] {
    let width = norm.weight.len();
    let zeros = || [vec![0.0; width], vec![0.0; width]];
    let block = ROWS * width.max(1);
    let blocks = d_x.par_chunks_mut(block).zip(x.par_chunks(block)).zip(dy.par_chunks(block));
    let sums: Vec<[Vec<f32>; 2]> = blocks
        .map(|((d_x, x), dy)| {
            let [mut d_weight, mut d_bias] = zeros();
            rows::layer_norm_backward(d_x, x, dy, norm, &mut d_weight, &mut d_bias);
            [d_weight, d_bias]
        })
        .collect();
    let mut all = zeros();
    for block in sums {
        all.iter_mut().zip(&block).for_each(|(sum, values)| rows::add_bias(sum, values));
    }
    all
}
