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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn what_to_lower_is_said() {
        let error = out_of_memory(" with all of it", "a.b, ", "CUDA_ERROR_OUT_OF_MEMORY");
        assert_eq!((error.kind, error.exit_code()), (ErrorKind::Memory, 1));
        let text = error.to_string();
        for part in
            ["the GPU's memory is full with all of it\n", "lower a.b, data.batch_size", "OUT_OF_MEMORY"]
        {
            assert!(text.contains(part), "{text}");
        }
    }
}
