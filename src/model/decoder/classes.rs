//! The classes that texts are hashed to: SHA-1 of the stripped, lower-cased text, as the Python script computes it.

use std::collections::{BTreeMap, HashMap, HashSet};

use sha1::{Digest, Sha1};

use super::TextReport;
use crate::error::{Error, Result, count};
use crate::text::normalize;

/// A number of classes, and what stands for each.
#[derive(Clone, Debug)]
pub struct Classes {
    number: usize,
    /// The first of the training texts of each class that has one, as written.
    texts: BTreeMap<u32, String>,
}

impl Classes {
    /// So many classes, known by the texts of the training split.
    #[must_use]
    pub fn new(number: usize, train: &[&str]) -> Self {
        let mut texts = BTreeMap::new();
        for text in train {
            texts.entry(text_class(text, number)).or_insert_with(|| (*text).to_owned());
        }
        Self { number, texts }
    }

    /// A text's class.
    #[must_use]
    pub fn of(&self, text: &str) -> u32 {
        text_class(text, self.number)
    }

    /// The training text that stands for a class; none where no text has it.
    #[must_use]
    pub fn text(&self, class: u32) -> Option<&str> {
        self.texts.get(&class).map(String::as_str)
    }

    /// The classes that a training text stands for, in order.
    #[must_use]
    pub fn with_texts(&self) -> Vec<u32> {
        self.texts.keys().copied().collect()
    }

    /// The training texts that stand for classes, as a JSON list in the order of the classes.
    #[must_use]
    pub fn to_saved(&self) -> String {
        self.texts.values().map(String::as_str).collect::<serde_json::Value>().to_string()
    }

    /// So many classes, with the texts of [`Self::to_saved`].
    ///
    /// # Errors
    /// A data error where that is no list of texts.
    pub fn from_saved(number: usize, texts: &str) -> Result<Self> {
        let texts: Vec<String> = serde_json::from_str(texts).map_err(|error| {
            Error::data("the training texts of the classes cannot be read")
                .cause(error)
                .hint("the file was damaged: take another checkpoint")
        })?;
        Ok(Self::new(number, &texts.iter().map(String::as_str).collect::<Vec<_>>()))
    }

    /// How `texts`, as written and with repetitions, fall on the classes.
    #[must_use]
    pub fn report(&self, texts: &[&str]) -> TextReport {
        let found = Collisions::new(texts.iter().map(|text| (*text, self.of(text))));
        let all = count(found.texts, "text");
        let examples = found.examples.iter().map(|[a, b]| format!("{a:?} and {b:?}"));
        TextReport {
            brief: format!("{all} in {}", count(found.classes, "class")),
            full: format!("{all} on {} of {} classes", found.classes, self.number),
            problem: (found.colliding > 0).then(|| {
                format!("{} share a class with another, for example", count(found.colliding, "text"))
            }),
            examples: examples.collect(),
            warning: (found.colliding > 0).then(|| {
                format!(
                    "{} of {} texts share a class with another text and cannot be told apart: a larger \
                     model.vocab_size separates them",
                    found.colliding, found.texts
                )
            }),
        }
    }
}

/// The first 8 bytes, big-endian, of the SHA-1 of the normalised text.
fn text_hash(text: &str) -> u64 {
    let digest = Sha1::digest(normalize(text).as_bytes());
    digest.iter().take(8).fold(0, |hash, &byte| hash << 8 | u64::from(byte))
}

/// The class of a text among `number` classes. 0 classes count as 1.
fn text_class(text: &str, number: usize) -> u32 {
    (text_hash(text) % number.max(1) as u64) as u32
}

/// How the texts fall on the classes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Collisions {
    /// Distinct texts, stripped and lower-cased.
    texts: usize,
    /// Classes that have a text.
    classes: usize,
    /// Texts that share their class with another text.
    colliding: usize,
    /// Up to three pairs of texts on one class.
    examples: Vec<[String; 2]>,
}

impl Collisions {
    /// Counts over `texts` (as written, repetitions allowed) with their classes.
    fn new<'a>(texts: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let mut seen = HashSet::new();
        let mut classes = HashMap::<u32, Vec<String>>::new();
        let mut examples = Vec::new();
        for (text, class) in texts {
            let text = normalize(text);
            if !seen.insert(text.clone()) {
                continue;
            }
            let members = classes.entry(class).or_default();
            if let (Some(first), true) = (members.first(), examples.len() < 3) {
                examples.push([first.clone(), text.clone()]);
            }
            members.push(text);
        }
        let colliding = classes.values().map(Vec::len).filter(|&members| members > 1).sum();
        Self { texts: seen.len(), classes: classes.len(), colliding, examples }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_share_a_class_are_counted() {
        let texts = [("Uno", 1), ("uno ", 1), ("dos", 1), ("tres", 2), ("cuatro", 1)];
        let got = Collisions::new(texts);
        assert_eq!((got.texts, got.classes, got.colliding), (4, 2, 3));
        assert_eq!(got.examples[0], ["uno", "dos"]);
    }

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
            serde_json::from_str(include_str!("../../../tests/data/text_targets.json")).unwrap();
        assert!(cases.len() > 20);
        for case in cases {
            assert_eq!(normalize(&case.text), case.normalized);
            assert_eq!(text_hash(&case.text).to_string(), case.hash, "{:?}", case.text);
            for (vocab, target) in case.targets {
                assert_eq!(text_class(&case.text, vocab.parse().unwrap()), target, "{:?}", case.text);
            }
        }
    }

    #[test]
    fn a_class_stands_for_its_first_training_text() {
        let classes = Classes::new(1000, &["Hola", "adi\u{f3}s", " hola "]);
        assert_eq!(classes.text(classes.of("HOLA")), Some("Hola"));
        assert_eq!(classes.text(classes.of("nunca")), None);
        let report = Classes::new(1, &[]).report(&["uno", "Uno ", "dos"]);
        assert_eq!(
            (report.brief.as_str(), report.full.as_str()),
            ("2 texts in 1 class", "2 texts on 1 of 1 classes")
        );
        assert_eq!(report.problem.as_deref(), Some("2 texts share a class with another, for example"));
        assert_eq!(report.examples, ["\"uno\" and \"dos\""]);
        assert!(report.warning.is_some_and(|warning| warning.starts_with("2 of 2 texts share a class")));
        assert_eq!(classes.report(&["uno"]).warning, None);
    }
}
