//! Numbers, times and errors as a person reads them.

use std::borrow::Cow;
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use crate::error::Error;
use crate::observe::metrics::{EpochMetrics, TranslationFigures};

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

/// What a terminal shows of a line at least. Longer ones wrap, and their columns no longer stand below one another.
const COLUMNS: usize = 80;

/// The first of `lines` that fits a terminal, or else the last one.
pub(super) fn fitting<const N: usize>(lines: [String; N]) -> String {
    let last = lines.last().cloned().unwrap_or_default();
    lines.into_iter().find(|line| line.chars().count() <= COLUMNS).unwrap_or(last)
}

/// What one epoch of `epochs` gave, in a line of at most 80 characters: where it is a long one, first the time, then the
/// learning rate and then, beside figures of translations, the accuracy are left out. A `*` is behind the best one so far.
#[must_use]
pub fn epoch_line(m: &EpochMetrics, epochs: usize, best: bool) -> String {
    let (train_loss, val_loss) = (six_characters(m.train_loss), six_characters(m.val_loss));
    let losses = format!("Epoch {}/{epochs} - train_loss={train_loss} - val_loss={val_loss}", m.epoch);
    let mut start = format!("{losses} - acc={:.3}", m.val_accuracy);
    let mut shortest = start.clone();
    if let Some(TranslationFigures { val_bleu, val_chrf, val_wer }) = m.translation {
        let [bleu, chrf, wer] = [val_bleu, val_chrf, val_wer].map(percent);
        let figures = format!(" - BLEU={bleu} chrF={chrf} WER={wer}");
        (start, shortest) = (start + &figures, losses + &figures);
    }
    let (lr, time) = (format!(" lr={}", rate(m.lr)), format!(" {}", short_time(m.seconds)));
    let star = if best { " *" } else { "" };
    fitting([
        format!("{start}{lr}{time}{star}"),
        format!("{start}{lr}{star}"),
        format!("{start}{star}"),
        format!("{shortest}{star}"),
    ])
}

/// A figure of at most 100, or a little more, in four characters at most.
fn percent(value: f64) -> String {
    if value >= 99.95 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// A loss with four decimals, or as many as six characters leave room for.
fn six_characters(value: f64) -> String {
    match value.abs() {
        size if size >= 1e4 => format!("{value:.1e}"),
        size if size >= 1e3 => format!("{value:.1}"),
        size if size >= 1e2 => format!("{value:.2}"),
        size if size >= 1e1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// How long something took, in four characters: `40ms`, `0.3s`, `12s`, `20m`, `5.3h`, `2.1d`.
fn short_time(seconds: f64) -> String {
    let (number, unit) = match seconds {
        s if s < 0.0995 => (1e3 * s, "ms"),
        s if s < 99.5 => (s, "s"),
        s if s < 99.5 * 60.0 => (s / 60.0, "m"),
        s if s < 99.5 * 3600.0 => (s / 3600.0, "h"),
        s => (s / 86_400.0, "d"),
    };
    if number < 9.95 && unit != "ms" { format!("{number:.1}{unit}") } else { format!("{number:.0}{unit}") }
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
    use crate::error::{ErrorKind, Problem};

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
    fn an_epoch_is_a_line_of_80_columns() {
        let mut m = EpochMetrics {
            epoch: 1,
            train_loss: 5.16291,
            val_loss: 3.20367,
            val_accuracy: 4.0 / 7.0,
            translation: None,
            lr: 5e-4,
            grad_norm: 1.0,
            skipped_steps: 0,
            bad_clips: Vec::new(),
            seconds: 0.42,
            images_per_second: 1.0,
            data_wait_seconds: 0.0,
        };
        let line = "Epoch 1/20 - train_loss=5.1629 - val_loss=3.2037 - acc=0.571 lr=5e-4 0.4s";
        assert_eq!(epoch_line(&m, 20, false), line);
        assert_eq!(epoch_line(&m, 20, true), format!("{line} *"));
        let figures = TranslationFigures { val_bleu: 99.96, val_chrf: 98.76, val_wer: 1.04 };
        let translated = EpochMetrics { translation: Some(figures), ..m.clone() };
        let line = "Epoch 1/20 - train_loss=5.1629 - val_loss=3.2037 - BLEU=100 chrF=98.8 WER=1.0 *";
        assert_eq!(epoch_line(&translated, 20, true), line);
        // A cosine that has come to its end.
        m.lr = 0.0;
        assert!(epoch_line(&m, 20, false).contains(" lr=0 "));
        for epochs in [1, 40, 999, 10_000, usize::MAX] {
            for loss in [0.0, 9.999_96, 10.3735, 123.456, 98_765.4, 1e-9, 1e300, f64::NAN, f64::INFINITY] {
                for (lr, seconds) in
                    [(4.97e-4, 0.01), (1.25e-5, 99.4), (1e-300, 5.9e3), (0.1, 3.5e5), (0.0, 1e7)]
                {
                    m = EpochMetrics { epoch: epochs, train_loss: loss, val_loss: loss, lr, seconds, ..m };
                    let line = epoch_line(&m, epochs, true);
                    assert!(line.chars().count() <= 80 || epochs == usize::MAX, "{line}");
                    assert!(line.contains(" - acc=0.571") && line.ends_with(" *"), "{line}");
                    assert!(line.contains(" lr=") || epochs > 9999 || lr < 1e-99, "{line}");
                }
            }
        }
        assert_eq!(
            [0.04, 0.42, 12.0, 1200.0, 19_000.0, 180_000.0, 1e6].map(short_time),
            ["40ms", "0.4s", "12s", "20m", "5.3h", "50h", "12d"]
        );
    }

    #[test]
    fn errors_are_red_only_in_colour() {
        let first = Problem::new("cannot read a.toml").cause("no such file").hint("check the path");
        let error = Error { kind: ErrorKind::Config, problems: vec![first, Problem::new("second\u{1b}[2J")] };
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
