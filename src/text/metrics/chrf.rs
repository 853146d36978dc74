//! chrF and chrF++ (Popović 2015, 2017), as sacrebleu computes them.

use std::cmp::Ordering;

use super::{SACREBLEU, split};

/// The longest n-grams of characters.
const CHARACTERS: usize = 6;
/// The longest n-grams of words that may be asked for.
const WORDS: usize = 2;
/// How many times as much recall counts as precision.
const BETA: f64 = 2.0;

/// What chrF is computed by: n-grams of up to 6 characters, beta 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chrf {
    /// The longest n-grams of words that count: 0 for chrF2, 2 for chrF2++.
    pub word_order: usize,
}

/// Of one order: n-grams of the hypothesis, of the reference, and of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    hypothesis: usize,
    reference: usize,
    both: usize,
}

type Statistics = [Counts; CHARACTERS + WORDS];

impl Chrf {
    /// Of a corpus, with a reference for each hypothesis; 0 to 100.
    #[must_use]
    pub fn corpus(&self, hypotheses: &[&str], references: &[&str]) -> f64 {
        let mut all = Statistics::default();
        for (hypothesis, reference) in hypotheses.iter().zip(references) {
            for (sum, counts) in all.iter_mut().zip(self.statistics(hypothesis, reference)) {
                sum.hypothesis += counts.hypothesis;
                sum.reference += counts.reference;
                sum.both += counts.both;
            }
        }
        self.score(&all)
    }

    /// Of a sentence; 0 to 100.
    #[must_use]
    pub fn sentence(&self, hypothesis: &str, reference: &str) -> f64 {
        self.score(&self.statistics(hypothesis, reference))
    }

    /// What tells how it was computed, as sacrebleu writes it.
    #[must_use]
    pub fn signature(&self) -> String {
        let words = self.word_order;
        format!("nrefs:1|case:mixed|eff:yes|nc:{CHARACTERS}|nw:{words}|space:no|version:{SACREBLEU}")
    }

    fn statistics(self, hypothesis: &str, reference: &str) -> Statistics {
        let characters = |text| split(text).flat_map(str::chars).collect::<Vec<char>>();
        let (hypothesis_characters, reference_characters) = (characters(hypothesis), characters(reference));
        let (hypothesis_words, reference_words) = (words(hypothesis), words(reference));
        let mut all = Statistics::default();
        let (of_characters, of_words) = all.split_at_mut(CHARACTERS);
        for (n, counts) in (1..).zip(of_characters) {
            *counts = count(&hypothesis_characters, &reference_characters, n);
        }
        for (n, counts) in (1..=self.word_order).zip(of_words) {
            *counts = count(&hypothesis_words, &reference_words, n);
        }
        all
    }

    /// The F-score of the mean precision and the mean recall over the orders that both texts have.
    fn score(self, all: &Statistics) -> f64 {
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for counts in all.iter().take(CHARACTERS + self.word_order) {
            if counts.hypothesis > 0 && counts.reference > 0 {
                precision += counts.both as f64 / counts.hypothesis as f64;
                recall += counts.both as f64 / counts.reference as f64;
                orders += 1.0;
            }
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        (precision, recall) = (precision / orders, recall / orders);
        let factor = BETA * BETA;
        100.0 * ((1.0 + factor) * precision * recall / (factor * precision + recall))
    }
}

/// The words of a text, with a character of punctuation at the end, or else at the beginning, as a word of its own.
fn words(text: &str) -> Vec<&str> {
    let mut all = Vec::new();
    for word in split(text) {
        let is_punctuation = |c: &char| c.is_ascii_punctuation();
        let (first, last) = (word.chars().next(), word.chars().next_back());
        let alone = word.chars().nth(1).is_none();
        if let Some(last) = last.filter(is_punctuation).filter(|_| !alone) {
            let (start, end) = word.split_at(word.len() - last.len_utf8());
            all.extend([start, end]);
        } else if let Some(first) = first.filter(is_punctuation).filter(|_| !alone) {
            let (start, end) = word.split_at(first.len_utf8());
            all.extend([start, end]);
        } else {
            all.push(word);
        }
    }
    all
}

/// Counts the n-grams of both sequences. Where the reference has none, those of the hypothesis do not count.
fn count<T: Ord>(hypothesis: &[T], reference: &[T], n: usize) -> Counts {
    let sorted = |sequence| {
        let mut grams: Vec<&[T]> = <[T]>::windows(sequence, n).collect();
        grams.sort_unstable();
        grams
    };
    let (hypothesis, reference) = (sorted(hypothesis), sorted(reference));
    if reference.is_empty() {
        return Counts::default();
    }
    let (mut a, mut b, mut both) = (hypothesis.iter().peekable(), reference.iter().peekable(), 0);
    while let (Some(left), Some(right)) = (a.peek(), b.peek()) {
        match left.cmp(right) {
            Ordering::Less => drop(a.next()),
            Ordering::Greater => drop(b.next()),
            Ordering::Equal => {
                both += 1;
                a.next();
                b.next();
            }
        }
    }
    Counts { hypothesis: hypothesis.len(), reference: reference.len(), both }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punctuation_is_split_off_at_one_end() {
        assert_eq!(words("(hi) hi. .hi . ¿qué?"), ["(hi", ")", "hi", ".", ".", "hi", ".", "¿qué", "?"]);
    }

    #[test]
    fn n_grams_in_both_are_counted_as_often_as_both_have_them() {
        let counts = count(&['a', 'a', 'a', 'b'], &['a', 'a', 'c'], 1);
        assert_eq!((counts.hypothesis, counts.reference, counts.both), (4, 3, 2));
        assert_eq!(count(&['a', 'b'], &['a'], 2), Counts::default());
    }
}
