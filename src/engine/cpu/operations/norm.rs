//! `LayerNorm`.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::super::rows::{self, Norm};
use super::{ROWS, Sink, floats, with_numbers};

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
        let x = floats(x, x_layout)?;
        let (weight, bias) = (floats(weight, weight_layout)?, floats(bias, bias_layout)?);
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
        let (d_x, d_weight, d_bias) = with_numbers([x, weight, bias, dy], |[x, weight, bias, dy]| {
            let norm = Norm { weight, bias, eps: self.eps };
            let width = weight.len().max(1);
            let (mut d_x, block) = (vec![0.0; x.len()], ROWS * width);
            let blocks = d_x.par_chunks_mut(block).zip(x.par_chunks(block)).zip(dy.par_chunks(block));
            let sums: Vec<[Vec<f32>; 2]> = blocks
                .map(|((d_x, x), dy)| {
                    let [mut d_weight, mut d_bias] = [vec![0.0; width], vec![0.0; width]];
                    let mut x = x.to_vec();
                    rows::layer_norm_backward(d_x, &mut x, dy, norm, &mut d_weight, &mut d_bias);
                    [d_weight, d_bias]
                })
                .collect();
            let [mut d_weight, mut d_bias] = [vec![0.0; width], vec![0.0; width]];
            for [weight, bias] in sums {
                rows::add_bias(&mut d_weight, &weight);
                rows::add_bias(&mut d_bias, &bias);
            }
            (d_x, d_weight, d_bias)
        })?;
        Ok((self.sink.give(x, d_x)?, self.sink.give(weight, d_weight)?, self.sink.give(bias, d_bias)?))
    }
}
