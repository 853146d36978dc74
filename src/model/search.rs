//! Beam search for the most probable sequences of tokens. It knows the next tokens' logits, and nothing of what gives them.
//!
//! The rules are those of `beam` in the translating network's reference implementation, to the letter: candidates in the
//! order of their summed log-probabilities (ties: the earlier hypothesis, then the smaller token); of the best
//! `2 * beam_size`, an `<eos>` among the first `beam_size` ends its hypothesis, later ones are dropped, and others go on.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::config::{Decoding, LengthPenaltyRule};
use crate::error::{Error, ErrorKind, Problem, Result};

/// A sequence of tokens, and how probable it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Without those that begin and end it.
    pub tokens: Vec<u32>,
    /// Its summed log-probability over the length penalty.
    pub score: f64,
}

/// A hypothesis that goes on, as a decoder sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The row of the step before that it goes on from; at the first step its clip.
    pub parent: usize,
    /// Its newest token.
    pub token: u32,
}

/// What gives the logits of the next tokens, step by step.
pub trait NextTokens {
    /// Of each row, the logits of the token that follows. Rows of one clip are neighbours, and clips keep their order.
    ///
    /// # Errors
    /// Where computing them fails.
    fn step(&mut self, rows: &[Row]) -> Result<Logits>;
}

/// Logits of the tokens that may follow.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logits {
    /// (R, V), one row after another.
    pub values: Vec<f32>,
    /// The logarithm of the sum of their exponentials, of each row; NaN where one of them is.
    pub log_sums: Vec<f64>,
}

impl Logits {
    /// Of `rows` rows.
    #[must_use]
    pub fn new(values: Vec<f32>, rows: usize) -> Self {
        let vocabulary = (values.len() / rows.max(1)).max(1);
        let log_sum = |row: &[f32]| {
            let largest = row.iter().fold(f32::NEG_INFINITY, |largest, &x| largest.max(x));
            f64::from(largest) + row.iter().map(|&x| f64::from(x - largest).exp()).sum::<f64>().ln()
        };
        let log_sums = values.chunks(vocabulary).map(log_sum).collect();
        Self { values, log_sums }
    }
}

/// Tokens that are not a text's.
#[derive(Clone, Copy, Debug)]
pub struct Specials<'t> {
    /// What every sequence begins with.
    pub begin: u32,
    /// What ends it.
    pub end: u32,
    /// What is never generated.
    pub never: &'t [u32],
}

/// The best hypotheses of each of `clips` clips, `n_best` at most, the best first. All clips are searched side by side.
///
/// Where the rules leave nothing to go on with and nothing has ended, hypotheses end as they are.
///
/// # Errors
/// Of kind `Numbers` where a logit is NaN, or as [`NextTokens::step`].
pub fn search(
    next: &mut dyn NextTokens,
    clips: usize,
    specials: Specials,
    c: &Decoding,
) -> Result<Vec<Vec<Hypothesis>>> {
    let mut beams: Vec<Beam> = (0..clips).map(|_| Beam::default()).collect();
    let mut rows: Vec<Row> = (0..clips).map(|parent| Row { parent, token: specials.begin }).collect();
    for length in 1..=c.max_length {
        if rows.is_empty() {
            break;
        }
        let Logits { values: logits, log_sums } = next.step(&rows)?;
        if log_sums.iter().any(|sum| !sum.is_finite()) {
            return Err(not_a_number());
        }
        let vocabulary = logits.len() / rows.len();
        let (mut row, mut following) = (0, Vec::new());
        for beam in &mut beams {
            let count = beam.live.len();
            let of_beam = logits.get(row * vocabulary..(row + count) * vocabulary).unwrap_or_default();
            beam.step(of_beam, log_sums.get(row..).unwrap_or_default(), length, (specials, c));
            following
                .extend(beam.live.iter().map(|live| Row { parent: row + live.parent, token: live.token() }));
            row += count;
        }
        rows = following;
    }
    Ok(beams.into_iter().map(|beam| beam.into_best(c)).collect())
}

/// A hypothesis that goes on.
#[derive(Clone, Debug, Default)]
struct Live {
    tokens: Vec<u32>,
    /// The sum of its log-probabilities.
    total: f64,
    /// Which of the beam's hypotheses of the step before it goes on from.
    parent: usize,
}

impl Live {
    fn token(&self) -> u32 {
        self.tokens.last().copied().unwrap_or_default()
    }
}

/// The search of one clip.
struct Beam {
    live: Vec<Live>,
    /// Those that have ended, the best first.
    done: Vec<Hypothesis>,
}

impl Default for Beam {
    /// One empty hypothesis.
    fn default() -> Self {
        Self { live: vec![Live::default()], done: Vec::new() }
    }
}

/// A way to go on. The better one is the smaller.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    /// The negative summed log-probability.
    cost: f64,
    /// Which of the beam's hypotheses it goes on from.
    beam: usize,
    token: u32,
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let places = (self.beam, self.token).cmp(&(other.beam, other.token));
        self.cost.total_cmp(&other.cost).then(places)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Beam {
    /// One token more; `logits` (live, V) with the logarithms of their sums, `length` tokens with it.
    fn step(
        &mut self,
        logits: &[f32],
        log_sums: &[f64],
        length: usize,
        (specials, c): (Specials, &Decoding),
    ) {
        if self.live.is_empty() {
            return;
        }
        let candidates = self.candidates(logits, log_sums, specials, c);
        let (mut following, is_last) = (Vec::new(), length == c.max_length);
        for (rank, Candidate { cost, beam, token }) in candidates.into_iter().enumerate() {
            let Some(from) = self.live.get(beam) else { continue };
            if token == specials.end {
                if rank < c.beam_size {
                    let score = -cost / penalty(c, length);
                    self.done.push(Hypothesis { tokens: from.tokens.clone(), score });
                }
            } else if following.len() < c.beam_size {
                let tokens = [from.tokens.as_slice(), &[token]].concat();
                following.push(Live { tokens, total: -cost, parent: beam });
            }
        }
        if following.is_empty() && self.done.is_empty() {
            self.end_live(length.saturating_sub(1).max(1), c);
        }
        self.keep_best(c.beam_size);
        self.live = following;
        if is_last {
            self.end_live(length, c);
            self.keep_best(c.beam_size);
        } else if self.is_decided(length, c) {
            self.live.clear();
        }
    }

    /// The best `2 * beam_size` ways to go on, the best first.
    fn candidates(
        &self,
        logits: &[f32],
        log_sums: &[f64],
        specials: Specials,
        c: &Decoding,
    ) -> Vec<Candidate> {
        let most = 2 * c.beam_size;
        let vocabulary = logits.len() / self.live.len();
        let mut best: BinaryHeap<Candidate> = BinaryHeap::with_capacity(most.min(logits.len()) + 1);
        let rows = self.live.iter().zip(logits.chunks(vocabulary.max(1))).zip(log_sums);
        for (beam, ((live, logits), log_sum)) in rows.enumerate() {
            let repeats = repeats(&live.tokens, c.no_repeat_ngram);
            let too_early = live.tokens.len() < c.min_length;
            // What a logit has to be above to be among the best, a little less than that.
            let mut least = f32::NEG_INFINITY;
            for (token, &logit) in (0_u32..).zip(logits) {
                if logit < least {
                    continue;
                }
                // Without a negative zero, which would be smaller than zero.
                let cost = 0.0 - (live.total + (f64::from(logit) - log_sum));
                if best.len() == most && best.peek().is_some_and(|worst| cost >= worst.cost) {
                    continue;
                }
                let is_out = specials.never.contains(&token)
                    || (too_early && token == specials.end)
                    || repeats.contains(&token);
                if !is_out {
                    best.push(Candidate { cost, beam, token });
                    if best.len() > most {
                        best.pop();
                    }
                    if let (Some(worst), true) = (best.peek(), best.len() == most) {
                        let needed = log_sum - live.total - worst.cost;
                        least = (needed - 1e-4 * needed.abs().max(1.0)) as f32;
                    }
                }
            }
        }
        best.into_sorted_vec()
    }

    /// Whether none that lives can still beat the worst that has ended. A hypothesis's score is at its best at the end of
    /// the longest one where length counts for it, and now where it does not.
    fn is_decided(&self, length: usize, c: &Decoding) -> bool {
        let (Some(worst), true) = (self.done.last(), self.done.len() == c.beam_size) else { return false };
        let reach = if c.length_penalty > 0.0 { c.max_length } else { length + 1 };
        let total = self.live.iter().fold(f64::NEG_INFINITY, |most, live| most.max(live.total));
        total / penalty(c, reach) <= worst.score
    }

    /// Ends those that live as they are, with `length` tokens.
    fn end_live(&mut self, length: usize, c: &Decoding) {
        let ended = self.live.drain(..);
        self.done.extend(ended.map(|Live { tokens, total, .. }| {
            let score = total / penalty(c, length);
            Hypothesis { tokens, score }
        }));
    }

    /// Sorts those that have ended, and keeps the best.
    fn keep_best(&mut self, size: usize) {
        self.done.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.done.truncate(size);
    }

    fn into_best(mut self, c: &Decoding) -> Vec<Hypothesis> {
        self.done.truncate(c.n_best);
        self.done
    }
}

fn not_a_number() -> Error {
    let problem = Problem::new("a logit of the text decoder is NaN: there is no best token");
    Error::new(ErrorKind::Numbers, problem.hint("take a checkpoint whose training was healthy"))
}

/// What the summed log-probability of `length` tokens is divided by.
fn penalty(c: &Decoding, length: usize) -> f64 {
    let length = length as f64;
    match c.length_penalty_rule {
        LengthPenaltyRule::Gnmt => ((5.0 + length) / 6.0).powf(c.length_penalty),
        LengthPenaltyRule::Length => length.powf(c.length_penalty),
    }
}

/// The tokens that would make `tokens` end in a sequence of `n` that it has already.
fn repeats(tokens: &[u32], n: usize) -> Vec<u32> {
    let Some(before) = n.checked_sub(1) else { return Vec::new() };
    let tail = &tokens[tokens.len().saturating_sub(before)..];
    let again = |window: &[u32]| window.split_last().filter(|(_, head)| *head == tail).map(|(last, _)| *last);
    tokens.windows(n).filter_map(again).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    const SPECIALS: Specials = Specials { begin: 1, end: 2, never: &[0, 1, 3] };

    /// Logits that depend on the newest token alone: row `t` of the table follows token `t`.
    struct Table {
        rows: Vec<Vec<f32>>,
        steps: usize,
    }

    impl NextTokens for Table {
        fn step(&mut self, rows: &[Row]) -> Result<Logits> {
            self.steps += 1;
            let values = rows.iter().flat_map(|row| self.rows[row.token as usize].clone()).collect();
            Ok(Logits::new(values, rows.len()))
        }
    }

    fn table(vocabulary: usize, likely: &[(u32, u32, f32)]) -> Table {
        let mut rows = vec![vec![0.0; vocabulary]; vocabulary];
        for &(from, to, logit) in likely {
            rows[from as usize][to as usize] = logit;
        }
        Table { rows, steps: 0 }
    }

    fn searched(table: &mut Table, clips: usize, settings: &[(&str, &str)]) -> Vec<Vec<Vec<u32>>> {
        let c = config::for_tests(settings).decoding;
        let found = search(table, clips, SPECIALS, &c).unwrap();
        found.into_iter().map(|best| best.into_iter().map(|h| h.tokens).collect()).collect()
    }

    #[test]
    fn the_likely_sequence_is_found_in_every_clip() {
        let mut table = table(7, &[(1, 4, 9.0), (4, 5, 9.0), (5, 2, 9.0)]);
        assert_eq!(searched(&mut table, 3, &[]), [[[4, 5]], [[4, 5]], [[4, 5]]]);
        let greedy = [("decoding.beam_size", "1")];
        assert_eq!(searched(&mut table, 1, &greedy), [[[4, 5]]]);
        assert_eq!(searched(&mut table, 0, &[]).len(), 0);
    }

    #[test]
    fn a_wider_beam_finds_what_a_greedy_one_misses() {
        // 4 is likelier at first, and all that follows it is unlikely.
        let mut table = table(9, &[(1, 4, 3.0), (1, 5, 2.9), (5, 2, 9.0)]);
        let none = ("decoding.length_penalty", "0");
        assert_eq!(searched(&mut table, 1, &[("decoding.beam_size", "1"), none])[0][0][0], 4);
        assert_eq!(searched(&mut table, 1, &[("decoding.beam_size", "3"), none]), [[[5]]]);
        let best = searched(&mut table, 1, &[("decoding.beam_size", "3"), ("decoding.n_best", "3"), none]);
        assert_eq!((best[0].len(), &best[0][0]), (3, &vec![5]));
    }

    #[test]
    fn lengths_are_kept() {
        let mut ends = table(6, &[(1, 2, 9.0), (4, 2, 9.0), (5, 2, 9.0)]);
        assert_eq!(searched(&mut ends, 1, &[]), [[[0_u32; 0]]]);
        assert_eq!(searched(&mut ends, 1, &[("decoding.min_length", "3")])[0][0].len(), 3);
        let mut never = table(6, &[(1, 4, 9.0), (4, 4, 9.0)]);
        assert_eq!(searched(&mut never, 1, &[("decoding.max_length", "6")]), [[[4; 6]]]);
    }

    #[test]
    fn a_sequence_is_not_repeated() {
        assert_eq!(repeats(&[4, 5, 4], 2), [5]);
        assert_eq!(repeats(&[4, 5, 6], 1), [4, 5, 6]);
        assert_eq!(repeats(&[4, 5, 6, 4, 5], 3), [6]);
        assert!(repeats(&[4], 3).is_empty() && repeats(&[], 1).is_empty() && repeats(&[4, 4], 0).is_empty());
        let mut table = table(6, &[(1, 4, 9.0), (4, 4, 9.0), (5, 4, 3.0)]);
        let settings =
            [("decoding.max_length", "7"), ("decoding.no_repeat_ngram", "1"), ("decoding.beam_size", "1")];
        assert_eq!(searched(&mut table, 1, &settings)[0][0][0], 4);
    }

    #[test]
    fn where_nothing_can_follow_a_hypothesis_ends() {
        // Two tokens, none twice, and no end before the tenth.
        let mut table = table(6, &[(1, 4, 9.0)]);
        let settings = [("decoding.no_repeat_ngram", "1"), ("decoding.min_length", "10")];
        assert_eq!(searched(&mut table, 2, &settings), [[[4, 5]], [[4, 5]]]);
        assert!(table.steps <= 3, "{}", table.steps);
    }

    #[test]
    fn what_is_not_a_number_is_an_error() {
        let mut table = table(6, &[(1, 4, f32::NAN)]);
        let c = config::for_tests(&[]).decoding;
        assert_eq!(search(&mut table, 1, SPECIALS, &c).unwrap_err().kind, ErrorKind::Numbers);
    }

    #[test]
    fn a_decided_search_stops_early() {
        let mut table = table(6, &[(1, 2, 9.0), (4, 2, 9.0), (5, 2, 9.0)]);
        let none = [("decoding.length_penalty", "0"), ("decoding.max_length", "100")];
        searched(&mut table, 1, &none);
        assert!(table.steps < 20, "{}", table.steps);
    }
}
