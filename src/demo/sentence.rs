//! The sentences of a drawn dataset to translate: what can be said, and which of it training sees.
//!
//! A sentence is who does something, to whom where there are three signs or more, and when, at its beginning or its end:
//! `el perro ve`, `hoy el perro ve el gato`. Whoever acts may also be acted on, so that the order of the signs decides what
//! is said.

use std::collections::HashSet;

use rand::RngExt;
use rand::seq::SliceRandom;

use super::sign::{Sign, distinct_signs};
use crate::random::{Purpose, stream};

/// A sentence: its signs, by number, in their order.
pub(super) type Sentence = Vec<usize>;

const NOUNS: [&str; 7] =
    ["el perro", "el gato", "la vaca", "el pájaro", "la gallina", "el caballo", "la tortuga"];
const VERBS: [&str; 4] = ["ve", "busca", "sigue", "espera"];
const ADVERBS: [&str; 2] = ["hoy", "mañana"];

/// The fewest and the most different signs that there are sentences of.
pub(super) const VOCABULARY: std::ops::RangeInclusive<usize> = 8..=NOUNS.len() + VERBS.len() + ADVERBS.len();

/// The signs of a vocabulary of `count`, within [`VOCABULARY`], and what each of them is.
struct Vocabulary {
    nouns: usize,
    verbs: usize,
}

impl Vocabulary {
    fn new(count: usize) -> Self {
        let others = count.saturating_sub(ADVERBS.len());
        let verbs = (others / 3).max(others.saturating_sub(NOUNS.len())).clamp(1, VERBS.len());
        Self { nouns: others.saturating_sub(verbs).min(NOUNS.len()), verbs }
    }

    fn texts(&self) -> Vec<&'static str> {
        let parts = [&NOUNS[..self.nouns], &VERBS[..self.verbs], &ADVERBS];
        parts.concat()
    }

    /// Every sentence, the short ones first.
    fn sentences(&self) -> Vec<Sentence> {
        let (nouns, verbs) = (0..self.nouns, self.nouns..self.nouns + self.verbs);
        let adverbs: Vec<usize> = (verbs.end..verbs.end + ADVERBS.len()).collect();
        let mut all = Vec::new();
        for who in nouns.clone() {
            for does in verbs.clone() {
                let whom = nouns.clone().filter(|whom| *whom != who).map(|whom| vec![who, does, whom]);
                let plain: Vec<Sentence> = std::iter::once(vec![who, does]).chain(whom).collect();
                for sentence in &plain {
                    for adverb in &adverbs {
                        all.push([&[*adverb], sentence.as_slice()].concat());
                        all.push([sentence.as_slice(), &[*adverb]].concat());
                    }
                }
                all.extend(plain);
            }
        }
        all.sort_by_key(Vec::len);
        all
    }
}

/// The signs of a vocabulary of `count`, with the texts that they stand for.
pub(super) fn signs(count: usize, seed: u64) -> Vec<Sign> {
    let texts = Vocabulary::new(count).texts();
    distinct_signs(texts.len(), seed)
        .zip(texts)
        .map(|(sign, text)| Sign { text: text.to_owned(), ..sign })
        .collect()
}

/// What the clips say, in order, with whether each is for validation: every sixth clip, which says what no clip for training
/// does.
pub(super) fn plan(count: usize, clips: usize, seed: u64) -> Vec<(Sentence, bool)> {
    // Clips count from 0, so the last number but one is free for what all clips share.
    let mut random = stream(seed, Purpose::Demo, [u64::MAX - 1, 0]);
    let mut all = Vocabulary::new(count).sentences();
    all.shuffle(&mut random);
    // Of each length, every fifth sentence is kept from training.
    let mut of_splits = [false, true].map(|_| vec![Vec::new(); LONGEST + 1]);
    let mut seen = [0; LONGEST + 1];
    for sentence in all {
        let length = sentence.len().min(LONGEST);
        seen[length] += 1;
        of_splits[usize::from(seen[length] % 5 == 1)][length].push(sentence);
    }
    let mut next = |validation: bool, length: usize| {
        let of_length = &of_splits[usize::from(validation)][length];
        of_length[random.random_range(0..of_length.len() as u64) as usize].clone()
    };
    let mut used = HashSet::new();
    (0..clips)
        .map(|clip| {
            let validation = clip % 6 == 5;
            // Long sentences are many, and short ones few.
            let length = [2, 3, 3, 4, 4, 4][(clip + clip / 6) % 6];
            // What was not said yet is said first.
            let mut sentence = next(validation, length);
            for _ in 0..20 {
                if used.insert(sentence.clone()) {
                    break;
                }
                sentence = next(validation, length);
            }
            (sentence, validation)
        })
        .collect()
}

/// Signs of the longest sentence.
const LONGEST: usize = 4;

/// The text of a sentence.
pub(super) fn text(sentence: &[usize], signs: &[Sign]) -> String {
    let words: Vec<&str> =
        sentence.iter().filter_map(|&sign| signs.get(sign)).map(|sign| sign.text.as_str()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_sentences_have_one_text() {
        for count in VOCABULARY {
            let signs = signs(count, 1);
            assert_eq!(signs.len(), count);
            let all = Vocabulary::new(count).sentences();
            let texts: HashSet<String> = all.iter().map(|sentence| text(sentence, &signs)).collect();
            assert_eq!(texts.len(), all.len());
            let lengths: HashSet<usize> = all.iter().map(Vec::len).collect();
            assert_eq!(lengths, HashSet::from([2, 3, 4]));
        }
    }

    #[test]
    fn the_order_of_the_signs_decides_what_is_said() {
        let all: HashSet<Sentence> = Vocabulary::new(12).sentences().into_iter().collect();
        let turned =
            |s: &Sentence| s.len() == 3 && all.contains(&s.iter().rev().copied().collect::<Vec<_>>());
        assert!(all.iter().filter(|sentence| turned(sentence)).count() > 100);
    }

    #[test]
    fn validation_says_what_training_does_not_with_the_same_signs() {
        for (count, clips, seed) in [(8, 120, 1), (12, 900, 2), (13, 2000, 3)] {
            let plan = plan(count, clips, seed);
            assert_eq!(plan, super::plan(count, clips, seed));
            let split = |validation| plan.iter().filter(move |clip| clip.1 == validation).map(|clip| &clip.0);
            let (train, val): (HashSet<_>, HashSet<_>) = (split(false).collect(), split(true).collect());
            assert!(train.is_disjoint(&val) && split(true).count() == clips / 6);
            let signs: HashSet<usize> = train.iter().flat_map(|sentence| sentence.iter().copied()).collect();
            assert_eq!(signs.len(), count);
            for sentences in [&train, &val] {
                let lengths: HashSet<usize> = sentences.iter().map(|sentence| sentence.len()).collect();
                assert_eq!(lengths, HashSet::from([2, 3, 4]), "{count}");
            }
        }
        assert_ne!(plan(12, 60, 1), plan(12, 60, 2));
    }
}
