//! Numbers and tables as a person reads them.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

/// How long something took or will take: `40 ms`, `0.4 s`, `12 s`, `3 min`, `5 h 20 min`, `2 days 3 h`.
pub fn about(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let minutes = (seconds / 60.0).round() as u64;
    let hours = minutes / 60;
    match seconds {
        s if s < 0.0995 => format!("{:.0} ms", 1e3 * s),
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 99.5 => format!("{s:.0} s"),
        _ if hours == 0 => format!("{minutes} min"),
        _ if hours < 48 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{} days {} h", hours / 24, hours % 24),
    }
}

/// A number of parameters: `2.0 M`, `38.4 k`.
pub fn amount(number: usize) -> String {
    match number as f64 {
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => format!("{n}"),
    }
}

/// What a terminal shows in a line without wrapping it by itself.
const COLUMNS: usize = 80;

/// Each line of `text` in lines of at most 80 columns, cut behind commas, semicolons and colons where that can be, else at
/// spaces; the later ones begin with `indent` spaces. A longer word stays whole.
pub fn wrapped(text: &str, indent: usize) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut wrapping = Wrapping { out: &mut out, column: 0, indent };
        for phrase in line.split_inclusive(", ").flat_map(|part| part.split_inclusive("; ")) {
            for phrase in phrase.split_inclusive(": ") {
                wrapping.phrase(phrase);
            }
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out
}

/// A line that is being cut.
struct Wrapping<'a> {
    out: &'a mut String,
    column: usize,
    indent: usize,
}

impl Wrapping<'_> {
    fn phrase(&mut self, phrase: &str) {
        let width = |text: &str| text.trim_end().chars().count();
        if self.column + width(phrase) <= COLUMNS || self.indent + width(phrase) <= COLUMNS {
            return self.part(phrase);
        }
        // Several spaces in a row, as behind a label, stay as they are.
        phrase.split_inclusive(' ').for_each(|word| self.part(word));
    }

    fn part(&mut self, part: &str) {
        if self.column + part.trim_end().chars().count() > COLUMNS && self.column > self.indent {
            self.out.truncate(self.out.trim_end().len());
            self.out.push('\n');
            self.out.push_str(&" ".repeat(self.indent));
            self.column = self.indent;
        }
        self.out.push_str(part);
        self.column += part.chars().count();
    }
}

/// A path as a shell reads it as one word.
pub fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    shlex::try_quote(&text).map(Cow::into_owned).unwrap_or(text)
}

/// Rows with their columns below one another: the first column to the left, the others to the right.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = (0..N)
            .map(|at| match (&row[at], widths[at]) {
                (cell, width) if at == 0 => format!("{cell:width$}"),
                (cell, width) => format!("{cell:>width$}"),
            })
            .collect();
        text += cells.join("   ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let times = [0.04, 9.96, 99.6, 3600.0, 200_000.0].map(|s| about(Duration::from_secs_f64(s)));
        assert_eq!(times, ["40 ms", "10 s", "2 min", "1 h 0 min", "2 days 7 h"]);
        assert_eq!([950, 38_400, 101_000_000].map(amount), ["950", "38.4 k", "101.0 M"]);
    }

    #[test]
    fn long_lines_are_cut_at_spaces() {
        let words = "abcdefghi ".repeat(9);
        let text = wrapped(&format!("label  {words}\nshort  line\n"), 7);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                format!("label  {}", words[..70].trim_end()).as_str(),
                &format!("       {}", words[70..].trim_end()),
                "short  line"
            ]
        );
        let phrases = format!("label  {}, 0.1 MiB; 0.2 MiB", "a".repeat(60));
        assert_eq!(wrapped(&phrases, 7), format!("label  {}, 0.1 MiB;\n       0.2 MiB\n", "a".repeat(60)));
        let long = "x".repeat(100);
        assert_eq!(wrapped(&format!("label  {long} y"), 7), format!("label  {long}\n       y\n"));
        assert_eq!(wrapped("\n", 3), "\n");
    }

    #[test]
    fn paths_are_one_word_to_a_shell() {
        assert_eq!(shell_word(Path::new("demo/demo.toml")), "demo/demo.toml");
        assert_eq!(shell_word(Path::new("my demo/it's.toml")), "\"my demo/it's.toml\"");
    }

    #[test]
    fn columns_stand_below_one_another() {
        let rows = [["", "clips", ""], ["train", "7", "a"], ["validation", "12345678", ""]];
        let text = table(&rows.map(|row| row.map(str::to_owned)));
        assert_eq!(text, "                clips\ntrain               7   a\nvalidation   12345678\n");
    }
}
