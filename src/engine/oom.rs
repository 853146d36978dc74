//! A GPU's memory that is full, as a person reads it.

use std::fmt::Display;

use crate::Error;

/// A GPU's memory is full (kind `Memory`): `with` what, and which fields to `lower` beside those that always help
/// ("a.b, ").
#[must_use]
pub fn out_of_memory(with: &str, lower: &str, cause: impl Display) -> Error {
    Error::memory(format!("the GPU's memory is full{with}")).cause(cause).hint(format!(
        "lower {lower}data.batch_size or model.sequence_length; nvidia-smi shows who else uses the GPU's memory"
    ))
}
