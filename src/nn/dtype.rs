//! The dtype of activations.

use std::fmt;

/// The dtype that activations and the operands of products are stored in. Parameters, moments, norms, softmax and loss are
/// f32 whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivationDtype {
    /// f32: everything as on the CPU.
    F32,
    /// bfloat16: f32's range, 8 bits of precision.
    Bf16,
    /// float16: 11 bits of precision in a small range, so that gradients are scaled.
    F16,
}

impl ActivationDtype {
    /// Bytes a number.
    #[must_use]
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }
}

impl fmt::Display for ActivationDtype {
    /// `PyTorch`'s name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        })
    }
}
