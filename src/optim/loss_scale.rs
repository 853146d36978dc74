//! The scale that keeps float16's gradients within its range.

use std::path::Path;

use crate::checkpoint::Value;
use crate::{Error, Result};

/// As `torch.amp.GradScaler` does it (<https://docs.pytorch.org/docs/stable/amp.html#gradient-scaling>), with its numbers:
/// halved where a gradient is not finite, doubled after 2000 steps without one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// What losses are multiplied by.
    pub scale: f64,
    /// Steps since it changed.
    pub good_steps: u64,
}

const GROWTH: f64 = 2.0;
const BACKOFF: f64 = 0.5;
const INTERVAL: u64 = 2000;
/// Below this one, it is not the scale that is too large.
const LEAST: f64 = 1.0;

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: 65_536.0, good_steps: 0 }
    }
}

impl LossScale {
    /// After a step whose gradient was finite.
    pub fn keep(&mut self) {
        self.good_steps += 1;
        if self.good_steps == INTERVAL {
            *self = Self { scale: self.scale * GROWTH, good_steps: 0 };
        }
    }

    /// After one whose gradient was not; whether a smaller scale may help.
    #[must_use]
    pub fn back_off(&mut self) -> bool {
        if self.scale * BACKOFF < LEAST {
            return false;
        }
        *self = Self { scale: self.scale * BACKOFF, good_steps: 0 };
        true
    }

    /// As `GradScaler.state_dict()`.
    #[must_use]
    pub fn to_value(self) -> Value<'static> {
        Value::dict([
            ("scale", Value::Float(self.scale)),
            ("growth_factor", Value::Float(GROWTH)),
            ("backoff_factor", Value::Float(BACKOFF)),
            ("growth_interval", Value::whole(INTERVAL)),
            ("_growth_tracker", Value::whole(self.good_steps)),
        ])
    }

    /// From a `GradScaler`'s state in the checkpoint `path`.
    ///
    /// # Errors
    /// A data error where it has no usable scale.
    pub fn from_value(path: &Path, value: &Value) -> Result<Self> {
        let scale = value.get("scale").and_then(Value::as_number);
        let scale = scale.filter(|scale| scale.is_finite() && *scale >= LEAST);
        let good_steps =
            value.get("_growth_tracker").and_then(Value::as_int).and_then(|n| u64::try_from(n).ok());
        match (scale, good_steps) {
            (Some(scale), Some(good_steps)) if good_steps < INTERVAL => Ok(Self { scale, good_steps }),
            _ => Err(Error::data(format!("{}: `scaler_state` has no usable scale", path.display()))
                .hint("--init-from takes the weights of any checkpoint")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_pytorchs_rule() {
        let mut scale = LossScale::default();
        assert!(scale.back_off());
        assert_eq!(scale, LossScale { scale: 32_768.0, good_steps: 0 });
        for _ in 0..1999 {
            scale.keep();
        }
        assert_eq!(scale, LossScale { scale: 32_768.0, good_steps: 1999 });
        scale.keep();
        assert_eq!(scale, LossScale { scale: 65_536.0, good_steps: 0 });
        for _ in 0..16 {
            assert!(scale.back_off());
        }
        assert!(!scale.back_off());
        assert_eq!(scale, LossScale { scale: 1.0, good_steps: 0 });
    }

    #[test]
    fn a_checkpoint_keeps_it() {
        let path = Path::new("a.pt");
        let scale = LossScale { scale: 1024.0, good_steps: 17 };
        assert_eq!(LossScale::from_value(path, &scale.to_value()).unwrap(), scale);
        for wrong in [
            Value::dict([("scale", Value::Float(f64::NAN)), ("_growth_tracker", Value::Int(0))]),
            Value::dict([("scale", Value::Float(1024.0))]),
            Value::Float(3.0),
        ] {
            let error = LossScale::from_value(path, &wrong).unwrap_err().to_string();
            assert!(error.contains("a.pt: `scaler_state`"), "{error}");
        }
    }
}
