//! Field types that are `auto` or something definite.

use std::fmt;

use bytesize::ByteSize;
use serde::Deserialize;
use serde_json::Value as Json;

use super::define::{FieldType, Kind};

/// How many frames of a stream go through its backbone at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Chunk {
    /// As the memory budget asks.
    Auto,
    /// This many.
    Frames(usize),
}

/// How much memory a run may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum MemoryBudget {
    /// What the machine and its limits leave.
    Auto,
    /// This many bytes.
    Bytes(usize),
}

impl Chunk {
    /// Reads `auto` or a number of at least 1; `None` for anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("auto") {
            return Some(Self::Auto);
        }
        text.parse::<u32>().ok().filter(|&frames| frames > 0).map(|frames| Self::Frames(frames as usize))
    }
}

impl MemoryBudget {
    /// Reads `auto` or a size with its unit, such as `8GiB` or `500 MB`; `None` for anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        if text.eq_ignore_ascii_case("auto") {
            return Some(Self::Auto);
        }
        // A number alone would be bytes, and is never meant to be.
        if text.ends_with(|last: char| last.is_ascii_digit()) {
            return None;
        }
        let ByteSize(bytes) = text.parse().ok()?;
        // The largest whole number that f64 holds exactly is far above any machine.
        (1..1 << 53).contains(&bytes).then_some(Self::Bytes(bytes as usize))
    }
}

impl fmt::Display for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Frames(frames) => write!(f, "{frames}"),
        }
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Bytes(bytes) = self else { return f.write_str("auto") };
        // In the largest unit that says it exactly: what is shown must read back.
        let units = [("GiB", bytesize::GIB), ("MiB", bytesize::MIB), ("B", 1)];
        let exact = units.into_iter().find(|(_, factor)| (*bytes as u64).is_multiple_of(*factor));
        let (unit, factor) = exact.unwrap_or(("B", 1));
        write!(f, "{}{unit}", *bytes as u64 / factor)
    }
}

impl TryFrom<String> for Chunk {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::from_text(&text).ok_or_else(|| format!("no number of frames: {text:?}"))
    }
}

impl TryFrom<String> for MemoryBudget {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::from_text(&text).ok_or_else(|| format!("no size in memory: {text:?}"))
    }
}

impl FieldType for Chunk {
    const KIND: Kind = Kind::AutoOrCount;
    fn json(&self) -> Json {
        match self {
            Self::Auto => "auto".into(),
            Self::Frames(frames) => (*frames).into(),
        }
    }
}

impl FieldType for MemoryBudget {
    const KIND: Kind = Kind::AutoOrBytes;
    fn json(&self) -> Json {
        self.to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_their_units() {
        for (text, bytes) in
            [("8GiB", 8 << 30), ("1.5 gib", 3 << 29), ("500MB", 500_000_000), ("4096b", 4096), ("12 B", 12)]
        {
            assert_eq!(MemoryBudget::from_text(text), Some(MemoryBudget::Bytes(bytes)), "{text}");
        }
        for text in ["", "GiB", "-1GiB", "0B", "8", "4096", "nanB", "infB", "1e300B", "8 apples"] {
            assert_eq!(MemoryBudget::from_text(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for budget in [MemoryBudget::Auto, MemoryBudget::Bytes(8 << 30), MemoryBudget::Bytes(1_000_000_007)] {
            assert_eq!(MemoryBudget::from_text(&budget.to_string()), Some(budget));
        }
        for chunk in [Chunk::Auto, Chunk::Frames(16)] {
            assert_eq!(Chunk::from_text(&chunk.to_string()), Some(chunk));
        }
        assert_eq!([Chunk::from_text("0"), Chunk::from_text("-3"), Chunk::from_text("x")], [None; 3]);
    }
}
