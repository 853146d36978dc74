//! What is done to each number: activations, dropout, residual sums.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::super::rows;
use super::mask::Mask;
use super::with_numbers;
use crate::nn::operations::Activation;
use crate::nn::parameters::cpu_floats;
use crate::nn::{Dropout, Pass};

/// Numbers that a thread takes at a time.
const AT_A_TIME: usize = 1 << 13;

fn mask_for(x: &Tensor, dropout: &Dropout, pass: &Pass) -> Result<Option<Mask>> {
    Ok(Mask::new(dropout, pass, x.dim(0)?, x.elem_count()))
}

struct Activate {
    f: Activation,
    mask: Option<Mask>,
}

pub(super) fn activate(x: &Tensor, f: Activation, dropout: &Dropout, pass: &Pass) -> Result<Tensor> {
    let mask = mask_for(x, dropout, pass)?;
    x.contiguous()?.apply_op1(Activate { f, mask })
}

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu_floats(x, layout)?;
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(AT_A_TIME).zip(x.par_chunks(AT_A_TIME)).enumerate().for_each(|(at, (y, x))| {
            match self.f {
                Activation::Gelu => rows::gelu(y, x),
                Activation::Relu => rows::relu(y, x),
            }
            if let Some(mask) = &self.mask {
                mask.apply(y, at * AT_A_TIME);
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let d_x = with_numbers([x, dy], |[x, dy]| {
            let mut d_x = vec![0.0; x.len()];
            let parts = dy.par_chunks(AT_A_TIME).zip(x.par_chunks(AT_A_TIME));
            d_x.par_chunks_mut(AT_A_TIME).zip(parts).enumerate().for_each(|(at, (d_x, (dy, x)))| {
                d_x.copy_from_slice(dy);
                if let Some(mask) = &self.mask {
                    mask.apply(d_x, at * AT_A_TIME);
                }
                match self.f {
                    Activation::Gelu => rows::multiply_by_gelu_slope(d_x, x),
                    Activation::Relu => rows::multiply_by_relu_slope(d_x, x),
                }
            });
            d_x
        })?;
        Ok(Some(Tensor::from_vec(d_x, x.dims(), x.device())?))
    }
}

struct Residual {
    mask: Option<Mask>,
}

pub(super) fn residual(x: &Tensor, branch: &Tensor, dropout: &Dropout, pass: &Pass) -> Result<Tensor> {
    let mask = mask_for(branch, dropout, pass)?;
    x.contiguous()?.apply_op2(&branch.contiguous()?, Residual { mask })
}

impl CustomOp2 for Residual {
    fn name(&self) -> &'static str {
        "residual"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        branch: &CpuStorage,
        branch_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, branch) = (cpu_floats(x, x_layout)?, cpu_floats(branch, branch_layout)?);
        let mut y = vec![0.0; x.len()];
        let parts = x.par_chunks(AT_A_TIME).zip(branch.par_chunks(AT_A_TIME));
        y.par_chunks_mut(AT_A_TIME).zip(parts).enumerate().for_each(|(at, (y, (x, branch)))| {
            y.copy_from_slice(branch);
            if let Some(mask) = &self.mask {
                mask.apply(y, at * AT_A_TIME);
            }
            rows::add_bias(y, x);
        });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        branch: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(mask) = &self.mask else { return Ok((Some(dy.clone()), Some(dy.clone()))) };
        let d_branch = with_numbers([dy], |[dy]| {
            let mut d_branch = vec![0.0; dy.len()];
            d_branch.par_chunks_mut(AT_A_TIME).zip(dy.par_chunks(AT_A_TIME)).enumerate().for_each(
                |(at, (d_branch, dy))| {
                    d_branch.copy_from_slice(dy);
                    mask.apply(d_branch, at * AT_A_TIME);
                },
            );
            d_branch
        })?;
        Ok((Some(dy.clone()), Some(Tensor::from_vec(d_branch, branch.dims(), branch.device())?)))
    }
}
