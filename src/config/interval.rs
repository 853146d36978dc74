//! How often something happens: in steps or in time.

use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;
use jiff::fmt::friendly::{Designator, Spacing, SpanPrinter};
use serde::Deserialize;
use serde_json::Value as Json;

use super::define::{FieldType, Kind};

/// How often a checkpoint is written beside the end of each epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum CheckpointEvery {
    /// Only at the end of an epoch.
    Epoch,
    /// After so many training steps.
    Steps(u64),
    /// With the first step that ends so long after the last checkpoint.
    Time(Duration),
}

/// `1 hour 30 minutes`.
const IN_WORDS: SpanPrinter =
    SpanPrinter::new().designator(Designator::Verbose).spacing(Spacing::BetweenUnitsAndDesignators);

impl CheckpointEvery {
    /// Reads `epoch`, a number of steps (`500`, `500 steps`) or a time (`30 minutes`, `2h`, `90 s`); `None` for
    /// anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if text == "epoch" {
            return Some(Self::Epoch);
        }
        let steps = text.strip_suffix("steps").or_else(|| text.strip_suffix("step")).unwrap_or(&text);
        if let Ok(steps) = steps.trim_end().parse::<u32>() {
            return (steps > 0).then(|| Self::Steps(steps.into()));
        }
        let time: SignedDuration = text.parse().ok()?;
        let whole = time.subsec_nanos() == 0 && (1..=u32::MAX.into()).contains(&time.as_secs());
        whole.then(|| Self::Time(time.unsigned_abs()))
    }
}

impl fmt::Display for CheckpointEvery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epoch => f.write_str("epoch"),
            Self::Steps(steps) => write!(f, "{steps} steps"),
            Self::Time(time) => f.write_str(&IN_WORDS.unsigned_duration_to_string(time)),
        }
    }
}

impl TryFrom<String> for CheckpointEvery {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::from_text(&text).ok_or_else(|| format!("not how often: {text:?}"))
    }
}

impl FieldType for CheckpointEvery {
    const KIND: Kind = Kind::Interval;
    fn json(&self) -> Json {
        self.to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_times_are_read() {
        let time = |seconds| CheckpointEvery::Time(Duration::from_secs(seconds));
        for (text, expected) in [
            ("Epoch", CheckpointEvery::Epoch),
            ("500", CheckpointEvery::Steps(500)),
            ("1 step", CheckpointEvery::Steps(1)),
            (" 20 steps ", CheckpointEvery::Steps(20)),
            ("30 min", time(1800)),
            ("30m", time(1800)),
            ("2 hours", time(7200)),
            ("90s", time(90)),
            ("1h 30m", time(5400)),
            ("1 hour", time(3600)),
        ] {
            assert_eq!(CheckpointEvery::from_text(text), Some(expected), "{text}");
            assert_eq!(CheckpointEvery::from_text(&expected.to_string()), Some(expected), "{text}");
        }
        for text in [
            "",
            "0",
            "-1",
            "1.5",
            "0 min",
            "-5 min",
            "0.5 s",
            "PT5x",
            "5 apples",
            "steps",
            "99999999999",
            "every epoch",
        ] {
            assert_eq!(CheckpointEvery::from_text(text), None, "{text}");
        }
    }
}
