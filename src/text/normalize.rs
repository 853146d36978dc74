//! When two texts are one: the same but for white space around them and capitals, as the Python script has it.

/// `text` as Python's `str.strip().lower()` leaves it.
///
/// Python's white space is Unicode's `White_Space` and the four separators U+001C to U+001F. Both lower-casings
/// are Unicode's full mapping, with the final sigma.
#[must_use]
pub fn normalize(text: &str) -> String {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)).to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

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
