//! Field types of what trains how: groups of parameters by their names, and how much of a backbone is frozen.

use std::fmt;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::define::{FieldType, Kind};

/// `[[optimization.groups]]`: parameters that train otherwise than the rest. A parameter is of the first group that
/// matches its name.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterGroup {
    /// A glob over the parameters' names.
    #[serde(rename = "match")]
    pub pattern: Glob,
    /// Its learning rate, in the place of `optimization.lr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Its learning rate as a multiple of `optimization.lr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_factor: Option<f64>,
    /// Its weight decay, in the place of `optimization.weight_decay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Whether it does not train at all.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub freeze: bool,
}

impl ParameterGroup {
    /// Its learning rate where everything else has `lr`.
    #[must_use]
    pub fn lr(&self, lr: f64) -> f64 {
        self.lr.unwrap_or_else(|| self.lr_factor.map_or(lr, |factor| factor * lr))
    }

    /// Why it cannot work, and the cure.
    pub(super) fn fault(&self) -> Option<(String, &'static str)> {
        let numbers = [("lr", self.lr), ("lr_factor", self.lr_factor), ("weight_decay", self.weight_decay)];
        for (name, number) in numbers {
            if let Some(number) = number.filter(|number| !(number.is_finite() && *number >= 0.0)) {
                return Some((
                    format!("{name} must be a finite number of at least 0, not {number:?}"),
                    "correct it, or leave it out",
                ));
            }
        }
        if self.lr.is_some() && self.lr_factor.is_some() {
            return Some((
                "lr and lr_factor are two learning rates".to_owned(),
                "leave one of the two out: lr is a rate, lr_factor a multiple of optimization.lr",
            ));
        }
        let given = numbers.iter().find(|(_, number)| number.is_some());
        if let (true, Some((name, _))) = (self.freeze, given) {
            return Some((
                format!("freeze = true and {name} contradict each other: what is frozen has no use for it"),
                "leave one of the two out",
            ));
        }
        if !self.freeze && given.is_none() {
            return Some((
                "it says nothing of its parameters".to_owned(),
                "give it lr, lr_factor, weight_decay or freeze = true",
            ));
        }
        None
    }
}

impl FieldType for Vec<ParameterGroup> {
    const KIND: Kind = Kind::Groups;
    fn json(&self) -> Json {
        // Names and numbers: there is nothing that JSON could not hold.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// A pattern for whole names: `*` stands for any characters, dots among them, `?` for one, `[ab]` for one of these and
/// `[!ab]` for any other, as in Python's `fnmatch`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob {
    text: String,
    regex: Regex,
}

impl Glob {
    /// Reads a pattern; the reason where it is none.
    ///
    /// # Errors
    /// Where a bracket is not closed or holds a range that runs backwards.
    pub fn new(text: &str) -> Result<Self, String> {
        let mut regex = String::from("(?s)^");
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '*' => regex.push_str(".*"),
                '?' => regex.push('.'),
                '[' => {
                    let (inside, after) = rest
                        .as_str()
                        .split_once(']')
                        .ok_or_else(|| format!("{text:?} has a [ without a ]"))?;
                    let (not, inside) = match inside.strip_prefix('!') {
                        Some(inside) => ("^", inside),
                        None => ("", inside),
                    };
                    let inside = inside.replace('\\', "\\\\").replace(['[', '&', '~', '^'], "");
                    if inside.is_empty() {
                        return Err(format!("{text:?} has nothing between [ and ]"));
                    }
                    regex.extend(["[", not, &inside, "]"]);
                    rest = after.chars();
                }
                c => regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
            }
        }
        regex.push('$');
        let regex = Regex::new(&regex).map_err(|_| format!("{text:?} is no pattern for names"))?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// Whether it is the pattern of `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for Glob {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text)
    }
}

impl From<Glob> for String {
    fn from(glob: Glob) -> Self {
        glob.text
    }
}

/// How much of each backbone is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Freeze {
    /// Nothing.
    None,
    /// Patch embedding, class token, positions and so many first blocks.
    Blocks(usize),
    /// All of it.
    All,
}

impl Freeze {
    /// Reads `none`, `all` or a number; `None` for anything else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        match text {
            _ if text.eq_ignore_ascii_case("none") => Some(Self::None),
            _ if text.eq_ignore_ascii_case("all") => Some(Self::All),
            number => number.parse::<u32>().ok().map(|blocks| Self::Blocks(blocks as usize)),
        }
    }

    /// Whether it freezes the parameter `name` of a backbone, such as `blocks.3.norm1.weight`.
    #[must_use]
    pub fn covers(self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Blocks(blocks) => {
                match name.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()) {
                    Some(block) => block.parse::<usize>().is_ok_and(|block| block < blocks),
                    None => !name.starts_with("norm."),
                }
            }
        }
    }
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Blocks(blocks) => write!(f, "{blocks}"),
            Self::All => f.write_str("all"),
        }
    }
}

impl TryFrom<String> for Freeze {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::from_text(&text).ok_or_else(|| format!("not how much to freeze: {text:?}"))
    }
}

impl FieldType for Freeze {
    const KIND: Kind = Kind::Freeze;
    fn json(&self) -> Json {
        self.to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_names_as_fnmatch_does() {
        for (glob, matches, others) in [
            ("decoder.*", &["decoder.lm_head.weight", "decoder."][..], &["encoder.decoder.x", "decoder"][..]),
            ("*.bias", &["a.bias", "a.b.bias"], &["bias", "a.bias.x"]),
            (
                "*blocks.[0-3].*",
                &["encoder.backbone.blocks.2.norm1.weight"],
                &["x.blocks.4.a", "x.blocks.12.a"],
            ),
            ("*.[!0-3].w", &["a.7.w"], &["a.2.w"]),
            ("a?c", &["abc", "a.c"], &["ac", "abbc"]),
            ("a(b|c)+", &["a(b|c)+"], &["ab"]),
            ("[^a]", &["a"], &["b", "^"]),
        ] {
            let glob = Glob::new(glob).unwrap();
            for name in matches {
                assert!(glob.matches(name), "{glob} {name}");
            }
            for name in others {
                assert!(!glob.matches(name), "{glob} {name}");
            }
        }
        for text in ["a[", "[]", "[!]", "[z-a]"] {
            assert!(Glob::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn groups_that_contradict_themselves_are_told() {
        let group = |text: &str| serde_json::from_str::<ParameterGroup>(text).unwrap();
        let good = group(r#"{"match": "*", "lr_factor": 0.1, "weight_decay": 0}"#);
        assert!(good.fault().is_none() && (good.lr(0.5) - 0.05).abs() < 1e-12);
        assert!(group(r#"{"match": "*", "freeze": true}"#).fault().is_none());
        for (text, says) in [
            (r#"{"match": "*"}"#, "says nothing"),
            (r#"{"match": "*", "lr": 1, "lr_factor": 1}"#, "two learning rates"),
            (r#"{"match": "*", "lr": 1, "freeze": true}"#, "contradict"),
            (r#"{"match": "*", "weight_decay": -1}"#, "at least 0"),
        ] {
            assert!(group(text).fault().unwrap().0.contains(says), "{text}");
        }
    }

    #[test]
    fn what_is_frozen_begins_at_the_image() {
        let names = [
            "cls_token",
            "pos_embed",
            "patch_embed.proj.bias",
            "blocks.1.mlp.0.weight",
            "blocks.10.x",
            "norm.weight",
        ];
        let frozen = |text: &str| {
            let freeze = Freeze::from_text(text).unwrap();
            assert_eq!(Freeze::from_text(&freeze.to_string()), Some(freeze));
            names.map(|name| freeze.covers(name))
        };
        assert_eq!(frozen("none"), [false; 6]);
        assert_eq!(frozen("ALL"), [true; 6]);
        assert_eq!(frozen("0"), [true, true, true, false, false, false]);
        assert_eq!(frozen("2"), [true, true, true, true, false, false]);
        assert_eq!(frozen("11"), [true, true, true, true, true, false]);
        for text in ["", "-1", "some", "1.5"] {
            assert_eq!(Freeze::from_text(text), None);
        }
    }
}
