//! BLEU of a corpus (Papineni et al. 2002), as sacrebleu computes it.

use std::collections::HashMap;

use super::{SACREBLEU, Tokenization, is_space, split};

/// The longest n-grams that are counted.
const ORDER: usize = 4;

/// What BLEU is computed by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bleu {
    /// How words are found.
    pub tokenization: Tokenization,
    /// The longest n-grams that count, 1 to 4.
    pub max_order: usize,
    /// Whether capitals are small letters.
    pub lowercase: bool,
    /// What stands for a precision of 0.
    pub smoothing: Smoothing,
    /// Whether orders without an n-gram are left out.
    pub effective_order: bool,
}

/// What stands for a precision of 0 (Chen and Cherry 2014).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Smoothing {
    /// Half of one match, a quarter for the next such order, and so on.
    Exp,
    /// So many matches.
    Floor(f64),
}

/// What BLEU is computed of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BleuStatistics {
    hypothesis_length: usize,
    reference_length: usize,
    correct: [usize; ORDER],
    total: [usize; ORDER],
}

/// BLEU and its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct BleuScore {
    /// 0 to 100.
    pub score: f64,
    /// What the precisions' mean is multiplied by, 0 to 1.
    pub brevity_penalty: f64,
    /// Of each order, 0 to 100.
    pub precisions: Vec<f64>,
}

impl Default for Bleu {
    /// sacrebleu's defaults.
    fn default() -> Self {
        Self {
            tokenization: Tokenization::Mteval13a,
            max_order: ORDER,
            lowercase: false,
            smoothing: Smoothing::Exp,
            effective_order: false,
        }
    }
}

impl Bleu {
    /// Of a corpus, with a reference for each hypothesis.
    #[must_use]
    pub fn corpus(&self, hypotheses: &[&str], references: &[&str]) -> BleuScore {
        self.score(&self.statistics(hypotheses, references))
    }

    /// Counts once what scores of every order are computed of.
    #[must_use]
    pub fn statistics(&self, hypotheses: &[&str], references: &[&str]) -> BleuStatistics {
        let mut all = BleuStatistics::default();
        for (hypothesis, reference) in hypotheses.iter().zip(references) {
            let [hypothesis, reference] = [hypothesis, reference].map(|text| self.prepared(text));
            let words = |text| split(text).collect::<Vec<&str>>();
            all.add(&words(&hypothesis), &words(&reference));
        }
        all
    }

    fn prepared(&self, text: &str) -> String {
        let text = text.trim_end_matches(is_space);
        if self.lowercase {
            self.tokenization.apply(&text.to_lowercase()).into_owned()
        } else {
            self.tokenization.apply(text).into_owned()
        }
    }

    /// Of what was counted.
    #[must_use]
    pub fn score(&self, counted: &BleuStatistics) -> BleuScore {
        let (hypothesis, reference) = (counted.hypothesis_length as f64, counted.reference_length as f64);
        let brevity_penalty = match counted.hypothesis_length {
            length if length >= counted.reference_length => 1.0,
            0 => 0.0,
            _ => (1.0 - reference / hypothesis).exp(),
        };
        let order = self.max_order.clamp(1, ORDER);
        let mut precisions = vec![0.0; order];
        if counted.correct.iter().take(order).all(|&correct| correct == 0) {
            return BleuScore { score: 0.0, brevity_penalty, precisions };
        }
        let (mut divisor, mut orders) = (1.0, order);
        let counts = counted.correct.iter().zip(&counted.total);
        for (n, (precision, (&correct, &total))) in (1..).zip(precisions.iter_mut().zip(counts)) {
            if total == 0 {
                break;
            }
            if self.effective_order {
                orders = n;
            }
            let total = total as f64;
            *precision = match (correct, self.smoothing) {
                (0, Smoothing::Exp) => {
                    divisor *= 2.0;
                    100.0 / (divisor * total)
                }
                (0, Smoothing::Floor(matches)) => 100.0 * matches / total,
                (correct, _) => 100.0 * correct as f64 / total,
            };
        }
        // As sacrebleu's logarithm of 0.
        let log = |precision: &f64| if *precision == 0.0 { -9_999_999_999.0 } else { precision.ln() };
        let sum: f64 = precisions.iter().take(orders).map(log).sum();
        BleuScore { score: brevity_penalty * (sum / orders as f64).exp(), brevity_penalty, precisions }
    }

    /// What tells how it was computed, as sacrebleu writes it.
    #[must_use]
    pub fn signature(&self) -> String {
        let case = if self.lowercase { "lc" } else { "mixed" };
        let effective = if self.effective_order { "yes" } else { "no" };
        let smoothing = match self.smoothing {
            Smoothing::Exp => "exp".to_owned(),
            Smoothing::Floor(matches) => format!("floor[{matches:.2}]"),
        };
        let tokenizer = self.tokenization.name();
        format!("nrefs:1|case:{case}|eff:{effective}|tok:{tokenizer}|smooth:{smoothing}|version:{SACREBLEU}")
    }
}

impl BleuStatistics {
    /// Counts a sentence: matches are at most as many as the reference has.
    fn add(&mut self, hypothesis: &[&str], reference: &[&str]) {
        self.hypothesis_length += hypothesis.len();
        self.reference_length += reference.len();
        for n in 1..=ORDER {
            let mut there = HashMap::<&[&str], usize>::new();
            reference.windows(n).for_each(|gram| *there.entry(gram).or_default() += 1);
            for gram in hypothesis.windows(n) {
                self.total[n - 1] += 1;
                if let Some(left @ 1..) = there.get_mut(gram) {
                    *left -= 1;
                    self.correct[n - 1] += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_are_clipped_and_short_hypotheses_are_penalised() {
        let bleu = Bleu { tokenization: Tokenization::None, ..Bleu::default() };
        let counted = bleu.statistics(&["the the the the"], &["the cat the mat"]);
        assert_eq!((counted.correct, counted.total), ([2, 0, 0, 0], [4, 3, 2, 1]));
        let short = Bleu { max_order: 1, ..bleu }.corpus(&["a b"], &["a b c d"]);
        assert!((short.brevity_penalty - (-1.0_f64).exp()).abs() < 1e-12);
        assert!((short.score - 100.0 * (-1.0_f64).exp()).abs() < 1e-9);
        let floor = Bleu { smoothing: Smoothing::Floor(0.1), lowercase: true, effective_order: true, ..bleu };
        assert_eq!(floor.signature(), "nrefs:1|case:lc|eff:yes|tok:none|smooth:floor[0.10]|version:2.6.0");
    }
}
