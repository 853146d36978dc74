//! How good translations are: BLEU, chrF, ROUGE-L and error rates, as the implementations that papers cite compute them.
//!
//! BLEU and chrF follow sacrebleu 2.6.0, error rates jiwer 4.0.0's defaults, ROUGE-L the evaluations of the field. All are of
//! a corpus with one reference a sentence, from 0 to 100, but for error rates, which may be more.

mod bleu;
mod chrf;
mod distance;
mod tokenize;

pub use bleu::{Bleu, BleuScore, BleuStatistics, Smoothing};
pub use chrf::Chrf;
pub use distance::{cer, rouge_l, wer};
pub use tokenize::Tokenization;

/// The release of sacrebleu whose definitions are followed, as signatures name it.
const SACREBLEU: &str = "2.6.0";

/// Figures of a corpus, by name, in the order of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    values: Vec<(String, f64)>,
    signatures: Vec<(String, String)>,
}

impl Figures {
    /// The figure of this name: `bleu_1_13a` to `bleu_4_char`, `bleu_4_13a_lowercase`, `chrf2`, `chrf2++`, `rouge_l`, `wer`
    /// and `cer`. Error rates are missing where no reference has a word.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<f64> {
        self.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// The signature of this name: `bleu_13a_signature` and its like, `chrf2_signature`, `chrf2++_signature`.
    #[must_use]
    pub fn signature(&self, name: &str) -> Option<&str> {
        self.signatures().find(|(other, _)| *other == name).map(|(_, text)| text)
    }

    /// Name and value of each figure.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.values.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// Name and text of each signature.
    pub fn signatures(&self) -> impl Iterator<Item = (&str, &str)> {
        self.signatures.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    fn add(&mut self, name: impl Into<String>, value: f64) {
        self.values.push((name.into(), value));
    }
}

/// All figures of `hypotheses` against `references`, a reference for each.
#[must_use]
pub fn figures(hypotheses: &[&str], references: &[&str]) -> Figures {
    let mut found = Figures::default();
    for tokenization in Tokenization::ALL {
        let name = tokenization.name();
        let bleu = Bleu { tokenization, ..Bleu::default() };
        let statistics = bleu.statistics(hypotheses, references);
        for max_order in 1..=4 {
            let score = Bleu { max_order, ..bleu }.score(&statistics).score;
            found.add(format!("bleu_{max_order}_{name}"), score);
        }
        found.signatures.push((format!("bleu_{name}_signature"), bleu.signature()));
    }
    let lowercase = Bleu { lowercase: true, ..Bleu::default() };
    found.add("bleu_4_13a_lowercase", lowercase.corpus(hypotheses, references).score);
    for (name, word_order) in [("chrf2", 0), ("chrf2++", 2)] {
        let chrf = Chrf { word_order };
        found.add(name, chrf.corpus(hypotheses, references));
        found.signatures.push((format!("{name}_signature"), chrf.signature()));
    }
    found.add("rouge_l", rouge_l(hypotheses, references));
    for (name, rate) in [("wer", wer(hypotheses, references)), ("cer", cer(hypotheses, references))] {
        if let Some(rate) = rate {
            found.add(name, rate);
        }
    }
    found
}

/// BLEU-4 (`13a`), chrF2 and WER: what a run is followed by while it trains. WER is 0 where no reference has a word.
#[must_use]
pub fn brief(hypotheses: &[&str], references: &[&str]) -> (f64, f64, f64) {
    (
        Bleu::default().corpus(hypotheses, references).score,
        Chrf::default().corpus(hypotheses, references),
        wer(hypotheses, references).unwrap_or_default(),
    )
}

/// Python's white space: Unicode's and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.split()`.
fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        hypotheses: Vec<String>,
        references: Vec<String>,
        expected: serde_json::Map<String, serde_json::Value>,
    }

    fn is_near(found: f64, expected: f64) -> bool {
        (found - expected).abs() <= 1e-9 * expected.abs().max(1e-9)
    }

    #[test]
    fn figures_are_those_of_the_reference_implementations() {
        let path =
            std::env::var_os("METRIC_CASES").unwrap_or_else(|| "tests/data/translation_metrics.json".into());
        let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(cases.len() > 10);
        for (at, case) in cases.iter().enumerate() {
            let texts = |all: &'static str| -> Vec<&str> {
                let all = if all == "hypotheses" { &case.hypotheses } else { &case.references };
                all.iter().map(String::as_str).collect()
            };
            let (hypotheses, references) = (texts("hypotheses"), texts("references"));
            let found = figures(&hypotheses, &references);
            for (name, expected) in &case.expected {
                let near = |found: f64, expected: &serde_json::Value| {
                    let expected = expected.as_f64().unwrap();
                    assert!(is_near(found, expected), "case {at}: {name} is {found}, not {expected}");
                };
                if let Some(value) = found.get(name) {
                    near(value, expected);
                } else if let Some(signature) = found.signature(name) {
                    assert_eq!(signature, expected.as_str().unwrap(), "case {at}: {name}");
                } else {
                    others(name, expected, &hypotheses, &references, &near);
                }
            }
            for (name, _) in found.iter() {
                assert!(case.expected.contains_key(name), "case {at}: {name} is not expected");
            }
        }
    }

    /// What is expected beside the figures of a table.
    fn others(
        name: &str,
        expected: &serde_json::Value,
        hypotheses: &[&str],
        references: &[&str],
        near: &dyn Fn(f64, &serde_json::Value),
    ) {
        let of_sentences = |word_order| {
            let pairs = hypotheses.iter().zip(references).zip(expected.as_array().unwrap());
            pairs.for_each(|((h, r), expected)| near(Chrf { word_order }.sentence(h, r), expected));
        };
        match name {
            "chrf2_sentences" => return of_sentences(0),
            "chrf2++_sentences" => return of_sentences(2),
            "bleu_4_none_floor" => {
                let legacy = Bleu {
                    tokenization: Tokenization::None,
                    smoothing: Smoothing::Floor(0.0),
                    effective_order: true,
                    ..Bleu::default()
                };
                return near(legacy.corpus(hypotheses, references).score, expected);
            }
            _ => {}
        }
        let tokenization =
            Tokenization::ALL.into_iter().find(|it| name.contains(&format!("_{}_", it.name())));
        let tokenization = tokenization.unwrap_or_else(|| panic!("{name} is not computed"));
        let score = Bleu { tokenization, ..Bleu::default() }.corpus(hypotheses, references);
        if name.ends_with("_bp") {
            near(score.brevity_penalty, expected);
        } else {
            let expected = expected.as_array().unwrap();
            assert!(name.ends_with("_precisions") && expected.len() == score.precisions.len(), "{name}");
            score.precisions.iter().zip(expected).for_each(|(found, expected)| near(*found, expected));
        }
    }

    #[test]
    fn nothing_is_measured_of_nothing() {
        let found = figures(&[], &[]);
        assert_eq!(
            (found.get("bleu_4_13a"), found.get("chrf2"), found.get("wer")),
            (Some(0.0), Some(0.0), None)
        );
        assert_eq!(brief(&["x"], &[" "]), (0.0, 0.0, 0.0));
    }

    #[test]
    fn long_texts_are_measured() {
        let long = "palabra ".repeat(12_500);
        let found = figures(&[&long, "uno"], &["una palabra", &long]);
        assert!(found.iter().all(|(_, value)| value.is_finite()), "{found:?}");
    }
}
