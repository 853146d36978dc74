//! The class of a text: SHA-1 of the stripped, lower-cased text, as the Python script computes it.

use sha1::{Digest, Sha1};

/// `text` as Python's `str.strip().lower()` leaves it.
///
/// Python's white space is Unicode's `White_Space` and the four separators U+001C to U+001F. Both lower-casings
/// are Unicode's full mapping, with the final sigma.
#[must_use]
pub fn normalize(text: &str) -> String {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)).to_lowercase()
}

/// The first 8 bytes, big-endian, of the SHA-1 of the normalised text.
#[must_use]
pub fn text_hash(text: &str) -> u64 {
    let digest = Sha1::digest(normalize(text).as_bytes());
    digest.iter().take(8).fold(0, |hash, &byte| hash << 8 | u64::from(byte))
}

/// The class of a text among `vocab_size` classes. 0 classes count as 1.
#[must_use]
pub fn text_target(text: &str, vocab_size: usize) -> u32 {
    (text_hash(text) % vocab_size.max(1) as u64) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        normalized: String,
        hash: String,
        targets: BTreeMap<String, u32>,
    }

    #[test]
    fn targets_are_the_scripts() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../tests/data/text_targets.json")).unwrap();
        assert!(cases.len() > 20);
        for case in cases {
            assert_eq!(normalize(&case.text), case.normalized);
            assert_eq!(text_hash(&case.text).to_string(), case.hash, "{:?}", case.text);
            for (vocab, target) in case.targets {
                assert_eq!(text_target(&case.text, vocab.parse().unwrap()), target, "{:?}", case.text);
            }
        }
    }

    #[test]
    fn every_white_space_of_python_is_stripped_and_nothing_else() {
        // `''.join(c for c in map(chr, range(0x110000)) if c.isspace())` in Python 3.
        let python = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \u{85}\u{a0}\u{1680}\u{2000}\u{2001}\u{2002}\u{2003}\u{2004}\
                      \u{2005}\u{2006}\u{2007}\u{2008}\u{2009}\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}";
        for c in (0..=0x0010_ffff).filter_map(char::from_u32) {
            assert_eq!(normalize(&c.to_string()).is_empty(), python.contains(c), "U+{:04X}", c as u32);
        }
    }
}
