//! How BLEU's words are found in a text: sacrebleu's tokenizers.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

/// A tokenizer of sacrebleu.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tokenization {
    /// `13a`, that of mteval-v13a: punctuation of ASCII is split off.
    #[default]
    Mteval13a,
    /// `intl`, that of mteval-v14: all punctuation and symbols of Unicode are split off.
    International,
    /// `none`: words are split at white space.
    None,
    /// `char`: each character is a word.
    Char,
}

impl Tokenization {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mteval13a, Self::International, Self::None, Self::Char];

    /// What a signature calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Mteval13a => "13a",
            Self::International => "intl",
            Self::None => "none",
            Self::Char => "char",
        }
    }

    /// `text` with white space between its words.
    #[must_use]
    pub fn apply(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::Mteval13a => mteval_13a(text).into(),
            Self::International => replaced(text.to_owned(), &INTERNATIONAL).into(),
            Self::None => text.into(),
            Self::Char => text.chars().flat_map(|c| [c, ' ']).collect::<String>().into(),
        }
    }
}

/// A pattern, and what takes its place.
type Rule = (Regex, &'static str);

/// mteval-v13a's rules: punctuation but for dots, commas and hyphens; dots and commas that no digit precedes or follows; and
/// hyphens after digits.
static MTEVAL_13A: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    rules(&[
        (r"([\{-~\[-` -&\(-\+:-@/])", " ${1} "),
        (r"([^0-9])([\.,])", "${1} ${2} "),
        (r"([\.,])([^0-9])", " ${1} ${2}"),
        (r"([0-9])(-)", "${1} ${2} "),
    ])
});

/// mteval-v14's rules: punctuation that no digit precedes, or follows, and symbols.
static INTERNATIONAL: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    rules(&[(r"(\P{N})(\p{P})", "${1} ${2} "), (r"(\p{P})(\P{N})", " ${1} ${2}"), (r"(\p{S})", " ${1} ")])
});

#[expect(clippy::expect_used, reason = "the patterns are constants, and tests use each")]
fn rules(of: &[(&str, &'static str)]) -> Vec<Rule> {
    of.iter().map(|(pattern, with)| (Regex::new(pattern).expect("a pattern"), *with)).collect()
}

fn replaced(text: String, rules: &[Rule]) -> String {
    rules.iter().fold(text, |text, (pattern, with)| pattern.replace_all(&text, *with).into_owned())
}

fn mteval_13a(text: &str) -> String {
    let mut text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if text.contains('&') {
        for (entity, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
            text = text.replace(entity, character);
        }
    }
    replaced(format!(" {text} "), &MTEVAL_13A)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_each_tokenizer_does() {
        let words = |it: Tokenization, text: &str| {
            super::super::split(&it.apply(text)).map(str::to_owned).collect::<Vec<_>>().join("|")
        };
        assert_eq!(
            words(Tokenization::Mteval13a, "¿Qué? 3.000,5 (a-b) 1-2 &quot;x&quot;."),
            "¿Qué|?|3.000,5|(|a-b|)|1|-|2|\"|x|\"|."
        );
        assert_eq!(words(Tokenization::International, "¿Qué? 3.000,5 $"), "¿|Qué|?|3.000,5|$");
        assert_eq!(words(Tokenization::None, "¿Qué?\u{a0}sí"), "¿Qué?|sí");
        assert_eq!(words(Tokenization::Char, "sí o"), "s|í|o");
    }
}
