//! Figures that align sequences: ROUGE-L, and error rates of words and of characters.

use super::{is_space, split};

/// ROUGE-L (Lin 2004): the mean over sentences of the F-score, beta 1.2, of the longest common subsequence of words that are
/// split at white space; 0 to 100.
#[must_use]
pub fn rouge_l(hypotheses: &[&str], references: &[&str]) -> f64 {
    const BETA_SQUARED: f64 = 1.2 * 1.2;
    let mut total = 0.0;
    for (hypothesis, reference) in hypotheses.iter().zip(references) {
        let [hypothesis, reference] = [hypothesis, reference].map(|text| split(text).collect::<Vec<&str>>());
        let common = longest_common_subsequence(&hypothesis, &reference) as f64;
        if common > 0.0 {
            let (precision, recall) = (common / hypothesis.len() as f64, common / reference.len() as f64);
            total += (1.0 + BETA_SQUARED) * precision * recall / (recall + BETA_SQUARED * precision);
        }
    }
    100.0 * total / references.len().max(1) as f64
}

/// The word error rate in percent, as jiwer's defaults: substitutions, deletions and insertions over the words of the
/// references. References without a word are left out with their hypotheses; none where no other is left.
#[must_use]
pub fn wer(hypotheses: &[&str], references: &[&str]) -> Option<f64> {
    error_rate(hypotheses, references, |text| {
        let text = single_spaces(text);
        let words = text.trim_matches(is_space).split(' ').filter(|word| !word.is_empty());
        words.map(str::to_owned).collect::<Vec<String>>()
    })
}

/// The character error rate in percent, as [`wer`]; spaces inside a text count.
#[must_use]
pub fn cer(hypotheses: &[&str], references: &[&str]) -> Option<f64> {
    error_rate(hypotheses, references, |text| text.trim_matches(is_space).chars().collect::<Vec<char>>())
}

fn error_rate<T: PartialEq>(
    hypotheses: &[&str],
    references: &[&str],
    parts: impl Fn(&str) -> Vec<T>,
) -> Option<f64> {
    let (mut errors, mut all) = (0, 0);
    for (hypothesis, reference) in hypotheses.iter().zip(references) {
        let reference = parts(reference);
        if !reference.is_empty() {
            errors += edit_distance(&reference, &parts(hypothesis));
            all += reference.len();
        }
    }
    (all > 0).then(|| 100.0 * (errors as f64 / all as f64))
}

/// Two or more characters of white space become one space; a single one stays what it is.
fn single_spaces(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut spaces = (0, ' ');
    let put = |out: &mut String, (count, first): (usize, char)| match count {
        0 => {}
        1 => out.push(first),
        _ => out.push(' '),
    };
    for c in text.chars() {
        if is_space(c) {
            spaces = if spaces.0 == 0 { (1, c) } else { (spaces.0 + 1, spaces.1) };
        } else {
            put(&mut out, std::mem::replace(&mut spaces, (0, ' ')));
            out.push(c);
        }
    }
    put(&mut out, spaces);
    out
}

/// Substitutions, deletions and insertions that make `b` of `a`: Levenshtein's distance, in memory for one row.
fn edit_distance<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let start = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[start..], &b[start..]);
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[..a.len() - end], &b[..b.len() - end]);
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

fn longest_common_subsequence<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for a in a {
        let mut diagonal = 0;
        for (j, b) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if a == b { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_in_full() {
        let distance =
            |a: &str, b: &str| edit_distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        for (a, b, expected) in [
            ("kitten", "sitting", 3),
            ("", "abc", 3),
            ("abc", "", 3),
            ("abc", "abc", 0),
            ("ab", "ba", 2),
            ("xaby", "xy", 2),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
        assert_eq!(distance(&"a".repeat(300), ""), 300);
        assert_eq!(longest_common_subsequence(b"abcbdab", b"bdcaba"), 4);
    }

    #[test]
    fn white_space_is_as_in_the_reference_implementation() {
        assert_eq!(single_spaces(" a\u{a0}b \t c  "), " a\u{a0}b c ");
        assert_eq!(wer(&["a\u{a0}b"], &["a b"]), Some(100.0));
        assert_eq!(wer(&["x y z"], &["a"]), Some(300.0));
        assert_eq!(wer(&["x"], &[" "]), None);
        assert_eq!(cer(&["ab"], &["abcd", "unpaired"]), Some(50.0));
    }
}
