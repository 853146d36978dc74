//! One stream's features to the width that fusion takes.

use super::mlp::{Mlp, MlpSaved};
use super::norm::{LayerNorm, NormGradients, NormOutputs, NormSaved, Residual};
use super::{Context, Linear};
use crate::Result;
use crate::engine::cuda::memory::{Activation, Buffer, Matrix, Slice};
use crate::engine::cuda::ops::Nonlinearity;
use crate::engine::cuda::parameters::Module;

/// Layer norm, linear, GELU, dropout, linear. Fusion's norm adds the last bias.
pub struct Projector {
    norm: LayerNorm,
    mlp: Mlp,
}

/// What its backward pass needs of its forward pass.
#[derive(Default)]
pub struct ProjectorSaved {
    norm: NormSaved,
    mlp: MlpSaved,
}

/// What both passes use in passing.
pub struct ProjectorScratch<'a> {
    /// (R, inputs): the norm's output, or its gradient.
    pub y: Matrix<Activation>,
    /// (R, hidden): activated, or their gradient.
    pub hidden: &'a mut Buffer<Activation>,
}

/// Its part of the streams side by side, or of their gradient.
pub struct JoinedColumns {
    /// (R, outputs).
    pub columns: Matrix<Activation>,
    /// (outputs): what is to be added to them.
    pub bias: Slice<f32>,
}

impl Projector {
    /// The module's `layers`.
    ///
    /// # Errors
    /// Where it has none.
    pub fn new(module: &Module) -> Result<Self> {
        let layers = module.pp("layers");
        let mlp = Mlp {
            fc1: Linear::new(&layers.pp(1))?,
            nonlinearity: Nonlinearity::Gelu,
            dropout: layers.dropout("3")?,
            fc2: Linear::new(&layers.pp(4))?,
        };
        Ok(Self { norm: LayerNorm::new(&layers.pp(0))?, mlp })
    }

    /// How wide its input is.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.norm.width()
    }

    /// How wide it is inside.
    #[must_use]
    pub fn hidden(&self) -> usize {
        self.mlp.hidden()
    }

    /// How wide its output is.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.mlp.fc2.outputs()
    }

    /// `x` (R, inputs) to `out`, and the bias that is to be added to it.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn forward(
        &self,
        cx: &Context,
        x: &Matrix<f32>,
        out: &JoinedColumns,
        scratch: ProjectorScratch,
        saved: &mut ProjectorSaved,
    ) -> Result<()> {
        let ProjectorScratch { y, hidden } = scratch;
        let input = Residual { x: Some(x), ..Residual::default() };
        let normed = NormOutputs { y_operand: Some(&y), ..NormOutputs::default() };
        self.norm.forward(cx, input, normed, Some(&mut saved.norm))?;
        self.mlp.forward(cx, &y, &out.columns, hidden, &mut saved.mlp)?;
        out.bias.copy_from(&self.mlp.fc2.bias)
    }

    /// The gradient of `x`, to `d_x` if there is one, from that of the output and of its bias.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn backward(
        &self,
        cx: &Context,
        d_out: &JoinedColumns,
        d_x: Option<&Matrix<f32>>,
        scratch: ProjectorScratch,
        saved: &ProjectorSaved,
    ) -> Result<()> {
        let ProjectorScratch { y: d_y, hidden } = scratch;
        cx.ops.add(&d_out.bias, &self.mlp.fc2.d_bias)?;
        let d_hidden = self.mlp.backward(cx, &saved.mlp, &d_out.columns, &d_y, hidden)?;
        let gradients = NormGradients { dy_operand: Some(&d_y), d_x, ..NormGradients::default() };
        let y = self.norm.backward_with_output(cx, &saved.norm, gradients)?;
        self.mlp.backward_input_weight(cx, &y, &d_hidden)
    }
}
