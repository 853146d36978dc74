//! Numbers, times and errors as a person reads them.

use std::borrow::Cow;
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use crate::error::Error;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();

/// `error` with its causes and hints, one problem after the other, `error:` in red where `color`.
/// There is no newline at the end, and nothing in it can move the cursor or change colours.
#[must_use]
pub fn render_error(error: &Error, color: bool) -> String {
    let problems: Vec<String> = error
        .problems
        .iter()
        .map(|problem| {
            let text = problem.to_string();
            let text = printable(&text);
            match text.strip_prefix("error:") {
                Some(rest) if color => format!("{ERROR}error:{ERROR:#}{rest}"),
                _ => text.into_owned(),
            }
        })
        .collect();
    problems.join("\n")
}

/// A warning's line, `warning:` in yellow where `color`.
pub(super) fn warning(line: &str, color: bool) -> String {
    let line = printable(line);
    if color { format!("{WARNING}warning:{WARNING:#} {line}") } else { format!("warning: {line}") }
}

/// `text` with control characters replaced: a file's name must not drive the terminal.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    let bad = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(bad) { text.replace(bad, "\u{fffd}").into() } else { text.into() }
}

/// How long something takes, in its two largest units: `2 d 3 h`, `1 h 12 min`, `12 min`, `40 s`.
pub(super) fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if days > 0 {
        format!("{days} d {} h", hours % 24)
    } else if hours > 0 {
        format!("{hours} h {} min", minutes % 60)
    } else if minutes >= 10 {
        format!("{minutes} min")
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else {
        format!("{seconds} s")
    }
}

/// A learning rate as short as three digits allow: `3e-4`, `1.25e-5`, `0`.
pub(super) fn rate(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((digits, exponent)) if digits.contains('.') => {
            format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

/// A loss with three decimals, or three digits where it is very small.
pub(super) fn loss(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.01 { rate(value) } else { format!("{value:.3}") }
}

/// Images per second: whole numbers from ten on.
pub(super) fn speed(value: f64) -> String {
    if value < 10.0 { format!("{value:.1} images/s") } else { format!("{value:.0} images/s") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Kind, Problem};

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [3e-4, 1e-3, 0.0, 1.25e-5, 0.000_299_999_999, 1.0].map(rate),
            ["3e-4", "1e-3", "0", "1.25e-5", "3e-4", "1e0"]
        );
        assert_eq!(
            [2.13449, 0.0, 0.000_412, f64::NAN, f64::INFINITY].map(loss),
            ["2.134", "0.000", "4.12e-4", "NaN", "inf"]
        );
        assert_eq!([4.25, 411.6].map(speed), ["4.2 images/s", "412 images/s"]);
        assert_eq!(
            [0, 59, 61, 600, 4320, 183_600].map(|s| duration(Duration::from_secs(s))),
            ["0 s", "59 s", "1 min 1 s", "10 min", "1 h 12 min", "2 d 3 h"]
        );
    }

    #[test]
    fn errors_are_red_only_in_colour() {
        let first = Problem::new("cannot read a.toml").cause("no such file").hint("check the path");
        let error = Error { kind: Kind::Config, problems: vec![first, Problem::new("second\u{1b}[2J")] };
        let plain = render_error(&error, false);
        assert_eq!(
            plain,
            "error: cannot read a.toml\n  caused by: no such file\n  hint: check the path\nerror: second\u{fffd}[2J"
        );
        let colored = render_error(&error, true);
        assert_eq!(colored.matches("\u{1b}[31m").count(), 2, "{colored:?}");
        assert_eq!(colored.matches("error:\u{1b}[0m").count(), 2, "{colored:?}");
        assert!(warning("x", true).contains("\u{1b}[33m"));
        assert_eq!(warning("x\r", false), "warning: x\u{fffd}");
    }
}
