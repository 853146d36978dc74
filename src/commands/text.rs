//! Numbers and tables as a person reads them.

use std::time::Duration;

/// `1 clip`, `2 clips`, `3 classes`.
pub fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ if noun.ends_with('s') => format!("{number} {noun}es"),
        _ => format!("{number} {noun}s"),
    }
}

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

/// Bytes in the unit that gives them one to three digits before the point.
pub fn bytes(number: usize) -> String {
    let mib = number as f64 / f64::from(1 << 20);
    if mib < 1000.0 { format!("{mib:.1} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

/// A number of parameters: `2.0 M`, `38.4 k`.
pub fn amount(number: usize) -> String {
    match number as f64 {
        n if n >= 1e6 => format!("{:.1} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => format!("{n}"),
    }
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
        assert_eq!(
            [(1, "clip"), (2, "clip"), (0, "class")].map(|(n, s)| count(n, s)),
            ["1 clip", "2 clips", "0 classes"]
        );
        let times = [0.04, 9.96, 99.6, 3600.0, 200_000.0].map(|s| about(Duration::from_secs_f64(s)));
        assert_eq!(times, ["40 ms", "10 s", "2 min", "1 h 0 min", "2 days 7 h"]);
        assert_eq!([bytes(1 << 19), bytes(3 << 30)], ["0.5 MiB", "3.0 GiB"]);
        assert_eq!([950, 38_400, 101_000_000].map(amount), ["950", "38.4 k", "101.0 M"]);
    }

    #[test]
    fn columns_stand_below_one_another() {
        let rows = [["", "clips", ""], ["train", "7", "a"], ["validation", "12345678", ""]];
        let text = table(&rows.map(|row| row.map(str::to_owned)));
        assert_eq!(text, "                clips\ntrain               7   a\nvalidation   12345678\n");
    }
}
