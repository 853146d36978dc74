//! What a person sees while the program works: progress bars on a terminal, plain lines elsewhere.
//!
//! Everything goes to one place, standard error, in whole lines under one lock: bars and lines from several
//! threads never mix. A place that is closed is silence, never a failure.

mod bars;
mod format;
mod pace;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use bars::Bars;
pub use format::render_error;
use format::{duration, loss, printable, rate, speed, warning};
use pace::{Left, Pace};

/// The longest time without a line while training, where there are no bars.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// How much is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings and errors only.
    Quiet,
    /// Also progress and each epoch's line.
    #[default]
    Normal,
    /// Also details.
    Verbose,
}

/// Tells a person what happens. Shared by reference; every method may be called from any thread.
pub struct Reporter {
    verbosity: Verbosity,
    color: bool,
    state: Mutex<State>,
}

/// Time since some fixed moment.
type Clock = Box<dyn Fn() -> Duration + Send>;

struct State {
    out: Box<dyn Write + Send>,
    clock: Clock,
    bars: Option<Bars>,
    /// When the last line was written.
    last_line: Duration,
    epochs: usize,
    epoch: usize,
    steps_per_epoch: usize,
    /// This epoch's training steps.
    steps: usize,
    validation: Option<Validation>,
    pace: Pace,
}

/// Where a validation stands.
struct Validation {
    step: usize,
    steps: usize,
    since: Duration,
}

/// Whether to draw bars and to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Looks {
    bars: bool,
    color: bool,
}

impl Looks {
    /// From the environment's variables and from whether the output is a terminal: `NO_COLOR` and
    /// `CLICOLOR_FORCE` as <https://no-color.org> and <https://bixense.com/clicolors> say, no bars on a dumb one.
    fn new(terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let bars = terminal && set("TERM").is_none_or(|term| term != "dumb");
        let color = if set("NO_COLOR").is_some() {
            false
        } else if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
            true
        } else {
            bars && set("CLICOLOR").is_none_or(|value| value != "0")
        };
        Self { bars, color }
    }
}

impl Reporter {
    /// A reporter to standard error, with bars and colours if that is a terminal that can show them.
    #[must_use]
    pub fn new(verbosity: Verbosity) -> Self {
        let looks = Looks::new(io::stderr().is_terminal(), |name| std::env::var_os(name));
        let bars = looks.bars && verbosity > Verbosity::Quiet;
        let start = Instant::now();
        let clock = Box::new(move || start.elapsed());
        Self::with(verbosity, looks.color, Box::new(io::stderr()), clock, bars.then(Bars::on_stderr))
    }

    /// A reporter that writes plain lines to `out`, whatever that is.
    #[must_use]
    pub fn plain(verbosity: Verbosity, out: Box<dyn Write + Send>) -> Self {
        let start = Instant::now();
        Self::with(verbosity, false, out, Box::new(move || start.elapsed()), None)
    }

    fn with(
        verbosity: Verbosity,
        color: bool,
        out: Box<dyn Write + Send>,
        clock: Clock,
        bars: Option<Bars>,
    ) -> Self {
        let state = State {
            last_line: clock(),
            out,
            clock,
            bars,
            epochs: 0,
            epoch: 0,
            steps_per_epoch: 0,
            steps: 0,
            validation: None,
            pace: Pace::default(),
        };
        Self { verbosity, color, state: Mutex::new(state) }
    }

    /// A line that everyone but `--quiet` sees.
    pub fn info(&self, line: &str) {
        if self.verbosity >= Verbosity::Normal {
            self.lock().line(&printable(line));
        }
    }

    /// A line for `--verbose`.
    pub fn verbose(&self, line: &str) {
        if self.verbosity >= Verbosity::Verbose {
            self.lock().line(&printable(line));
        }
    }

    /// Something that a person should know although the work goes on; shown always, after `warning:`.
    pub fn warn(&self, line: &str) {
        self.lock().line(&warning(line, self.color));
    }

    /// Why the work ends; shown always, after the bars are gone.
    pub fn error(&self, error: &Error) {
        let mut state = self.lock();
        state.finish();
        state.line(&render_error(error, self.color));
    }

    /// Whether lines are coloured.
    #[must_use]
    pub fn color(&self) -> bool {
        self.color
    }

    /// How far a long piece of work outside of training is, such as drawing a dataset: `done` of `all`.
    pub fn stage(&self, what: &str, done: usize, all: usize) {
        if self.verbosity >= Verbosity::Normal {
            self.lock().stage(what, done, all);
        }
    }

    /// Training begins: `epochs` in all, from `first_epoch` (1 unless resumed), usually `steps_per_epoch` steps each.
    pub fn start(&self, epochs: usize, first_epoch: usize, steps_per_epoch: usize) {
        let mut state = self.lock();
        (state.epochs, state.epoch, state.steps_per_epoch) = (epochs, first_epoch, steps_per_epoch);
        state.pace = Pace::default();
        state.last_line = state.now();
        if let Some(bars) = &mut state.bars {
            bars.start(epochs, first_epoch);
        }
    }

    /// Epoch `epoch` (from 1) begins, with `steps` training steps.
    pub fn begin_epoch(&self, epoch: usize, steps: usize) {
        let mut state = self.lock();
        (state.epoch, state.steps, state.validation) = (epoch, steps, None);
        let (now, epochs) = (state.now(), state.epochs);
        state.pace.resume(now);
        if let Some(bars) = &mut state.bars {
            bars.begin_epoch(epoch, epochs, steps);
        }
    }

    /// Training step `step` (from 1 in each epoch) ended, with its `loss`, at learning rate `lr`, of `images` images.
    pub fn step(&self, step: usize, loss: f64, lr: f64, images: usize) {
        let mut state = self.lock();
        let now = state.now();
        state.pace.step(now, images);
        if self.verbosity >= Verbosity::Normal {
            state.show_step(step, loss, lr);
        }
    }

    /// Validation begins, with `steps` batches.
    pub fn begin_validation(&self, steps: usize) {
        let mut state = self.lock();
        state.validation = Some(Validation { step: 0, steps, since: state.now() });
        if let Some(bars) = &mut state.bars {
            bars.begin_validation(steps);
        }
    }

    /// A validation batch ended.
    pub fn validation_step(&self) {
        let mut state = self.lock();
        if self.verbosity >= Verbosity::Normal {
            state.show_validation_step();
        }
    }

    /// An epoch ended, and `line` sums it up.
    pub fn end_epoch(&self, line: &str) {
        let mut state = self.lock();
        let now = state.now();
        state.pace.end_epoch(now);
        state.validation = None;
        let epoch = state.epoch;
        if let Some(bars) = &mut state.bars {
            bars.end_epoch(epoch);
        }
        if self.verbosity >= Verbosity::Normal {
            state.line(&printable(line));
        }
    }

    /// Takes the bars away. Dropping the reporter does the same.
    pub fn finish(&self) {
        self.lock().finish();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked while it wrote a line leaves nothing behind that the next line needs.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.finish();
    }
}

impl State {
    fn now(&self) -> Duration {
        (self.clock)()
    }

    /// Writes `text` and a newline at once, above the bars.
    fn line(&mut self, text: &str) {
        self.last_line = self.now();
        let line = format!("{text}\n");
        let out = &mut self.out;
        // A closed or full output is not worth the run.
        let mut write = || {
            let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
        };
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    fn finish(&mut self) {
        if let Some(bars) = &mut self.bars {
            bars.finish();
        }
    }

    /// Whether, if nothing is written now, the next chance would come too late; it comes in `next`.
    fn line_is_due(&self, next: Duration) -> bool {
        self.now().saturating_sub(self.last_line) + next > LINE_EVERY
    }

    fn stage(&mut self, what: &str, done: usize, all: usize) {
        if let Some(bars) = &mut self.bars {
            bars.stage(what, done, all);
        } else if self.line_is_due(Duration::from_secs(1)) {
            self.line(&format!("{what} {done}/{all}"));
        }
    }

    fn show_step(&mut self, step: usize, loss_now: f64, lr: f64) {
        let speed = self.pace.images_per_second().map(speed).unwrap_or_default();
        let left = Left {
            steps: self.steps.saturating_sub(step)
                + self.epochs.saturating_sub(self.epoch) * self.steps_per_epoch,
            epochs: (self.epochs + 1).saturating_sub(self.epoch),
        };
        let left =
            self.pace.time_left(left).map(|time| format!("{} left", duration(time))).unwrap_or_default();
        let (loss, lr) = (loss(loss_now), rate(lr));
        if let Some(bars) = &mut self.bars {
            bars.step(step, format!("loss {loss}  lr {lr}  {speed}"), left);
        } else if self.line_is_due(self.pace.last_step()) {
            let (epoch, epochs, steps) = (self.epoch, self.epochs, self.steps);
            self.line(&format!(
                "epoch {epoch}/{epochs} step {step}/{steps} loss {loss} lr {lr} {speed}, {left}"
            ));
        }
    }

    fn show_validation_step(&mut self) {
        let now = self.now();
        let Some(validation) = &mut self.validation else { return };
        validation.step += 1;
        let took = now.saturating_sub(validation.since);
        validation.since = now;
        let (step, steps) = (validation.step, validation.steps);
        if let Some(bars) = &mut self.bars {
            bars.step(step, String::new(), String::new());
        } else if self.line_is_due(took) {
            let (epoch, epochs) = (self.epoch, self.epochs);
            self.line(&format!("epoch {epoch}/{epochs} validation {step}/{steps}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// A place to write to that a test can read, one entry per write.
    #[derive(Clone, Debug, Default)]
    struct Writes(Arc<Mutex<Vec<String>>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(String::from_utf8(bytes.to_vec()).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A terminal 100 columns wide that keeps what is written to it.
    impl indicatif::TermLike for Writes {
        fn width(&self) -> u16 {
            100
        }
        fn move_cursor_up(&self, n: usize) -> io::Result<()> {
            if n > 0 { self.write_str(&format!("<up {n}>")) } else { Ok(()) }
        }
        fn move_cursor_down(&self, n: usize) -> io::Result<()> {
            if n > 0 { self.write_str(&format!("<down {n}>")) } else { Ok(()) }
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, s: &str) -> io::Result<()> {
            self.write_str(&format!("{s}\n"))
        }
        fn write_str(&self, s: &str) -> io::Result<()> {
            self.clone().write(s.as_bytes()).map(|_| ())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.write_str("<clear>")
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A reporter, what it wrote, and its clock in milliseconds.
    fn reporter(verbosity: Verbosity, bars: bool) -> (Reporter, Writes, Arc<AtomicU64>) {
        let (writes, time) = (Writes::default(), Arc::new(AtomicU64::new(0)));
        let clock = Arc::clone(&time);
        let bars = bars.then(|| Bars::on(indicatif::ProgressDrawTarget::term_like(Box::new(writes.clone()))));
        let reporter = Reporter::with(
            verbosity,
            false,
            Box::new(writes.clone()),
            Box::new(move || Duration::from_millis(clock.load(Ordering::Relaxed))),
            bars,
        );
        (reporter, writes, time)
    }

    fn written(writes: &Writes) -> Vec<String> {
        writes.0.lock().unwrap().clone()
    }

    /// Two epochs of 100 steps, `step_ms` each, with 10 validation batches of as long.
    fn train(reporter: &Reporter, time: &AtomicU64, step_ms: u64) {
        reporter.start(2, 1, 100);
        for epoch in 1..=2 {
            reporter.begin_epoch(epoch, 100);
            for step in 1..=100 {
                time.fetch_add(step_ms, Ordering::Relaxed);
                reporter.step(step, 2.1337, 3e-4, 412);
            }
            reporter.begin_validation(10);
            for _ in 0..10 {
                time.fetch_add(step_ms, Ordering::Relaxed);
                reporter.validation_step();
            }
            reporter.end_epoch(&format!("Epoch {epoch}/2 - train_loss=2.1 - val_loss=2.2"));
        }
        reporter.finish();
    }

    #[test]
    fn short_epochs_have_a_line_each() {
        let (reporter, writes, time) = reporter(Verbosity::Normal, false);
        train(&reporter, &time, 100);
        assert_eq!(
            written(&writes),
            [1, 2].map(|n| format!("Epoch {n}/2 - train_loss=2.1 - val_loss=2.2\n"))
        );
    }

    #[test]
    fn lines_come_at_least_every_thirty_seconds() {
        let (reporter, writes, time) = reporter(Verbosity::Normal, false);
        train(&reporter, &time, 1000);
        let lines = written(&writes);
        // No gap of more than 30 steps of a second, and no more lines than that needs.
        assert_eq!(lines.len(), 8, "{lines:?}");
        // The first epoch's 70 steps, the second's 100, at 1 s each: the first validation's time is not known yet.
        assert_eq!(lines[0], "epoch 1/2 step 30/100 loss 2.134 lr 3e-4 412 images/s, 2 min 50 s left\n");
        assert_eq!(lines[2], "epoch 1/2 step 90/100 loss 2.134 lr 3e-4 412 images/s, 1 min 50 s left\n");
        assert_eq!(lines[4], "epoch 2/2 step 30/100 loss 2.134 lr 3e-4 412 images/s, 1 min 20 s left\n");
    }

    #[test]
    fn slow_steps_have_a_line_each() {
        let (reporter, writes, time) = reporter(Verbosity::Normal, false);
        train(&reporter, &time, 25_000);
        let lines = written(&writes);
        assert_eq!(lines.len(), 2 * 111);
        assert!(lines.contains(&"epoch 2/2 validation 7/10\n".to_owned()));
    }

    #[test]
    fn quiet_shows_warnings_and_errors_alone() {
        let (reporter, writes, time) = reporter(Verbosity::Quiet, false);
        reporter.info("info");
        reporter.verbose("verbose");
        reporter.stage("drawing", 1, 2);
        train(&reporter, &time, 60_000);
        reporter.warn("two texts share a class");
        reporter.error(&Error::run("disk full").hint("make room"));
        assert_eq!(
            written(&writes),
            ["warning: two texts share a class\n", "error: disk full\n  hint: make room\n"]
        );
    }

    #[test]
    fn verbose_shows_more() {
        for (verbosity, count) in [(Verbosity::Normal, 1), (Verbosity::Verbose, 2)] {
            let (reporter, writes, _) = reporter(verbosity, false);
            reporter.info("info");
            reporter.verbose("verbose");
            assert_eq!(written(&writes).len(), count);
        }
    }

    #[test]
    fn threads_write_whole_lines() {
        let (reporter, writes, _) = reporter(Verbosity::Normal, false);
        std::thread::scope(|scope| {
            for i in 0..4 {
                let reporter = &reporter;
                scope.spawn(move || {
                    (0..50).for_each(|j| reporter.info(&format!("{i} {j} {}", "x".repeat(300))));
                });
            }
        });
        let lines = written(&writes);
        assert_eq!(lines.len(), 200);
        assert!(lines.iter().all(|line| line.ends_with("xxx\n") && line.matches('\n').count() == 1));
    }

    #[test]
    fn bars_show_the_numbers_and_make_way_for_lines() {
        let (reporter, writes, time) = reporter(Verbosity::Normal, true);
        reporter.start(3, 1, 4);
        reporter.begin_epoch(1, 4);
        for step in 1..=4 {
            time.fetch_add(2000, Ordering::Relaxed);
            // Bars are redrawn at most 20 times a second of real time.
            std::thread::sleep(Duration::from_millis(60));
            reporter.step(step, 1.5, 1e-3, 100);
        }
        reporter.info("a line");
        let text = written(&writes).concat();
        for part in ["epoch 1/3", "train", "4/4", "loss 1.500  lr 1e-3  50 images/s", "16 s left"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        // The bars are cleared, the line is written in one go, and the bars come back below it.
        let writes_now = written(&writes);
        let at = writes_now.iter().position(|write| write == "a line\n").unwrap();
        assert!(writes_now[..at].iter().rev().take(4).any(|write| write.contains("<clear>")), "{text}");
        assert!(writes_now[at..].concat().contains("epoch 1/3"), "{text}");
        reporter.begin_validation(2);
        reporter.validation_step();
        reporter.end_epoch("Epoch 1/3 - done");
        reporter.finish();
        let text = written(&writes).concat();
        assert!(text.contains("validate") && text.contains("Epoch 1/3 - done\n"), "{text}");
        let after = written(&writes).len();
        reporter.info("last");
        assert_eq!(written(&writes)[after..].concat().replace("<clear>", ""), "last\n");
    }

    #[test]
    fn a_closed_output_is_silence() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let reporter = Reporter::plain(Verbosity::Verbose, Box::new(Closed));
        reporter.info("x");
        reporter.warn("y");
        reporter.error(&Error::run("z"));
    }

    #[test]
    fn the_environment_decides_the_looks() {
        let looks = |terminal, variables: &[(&str, &str)]| {
            let looks = Looks::new(terminal, |name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
            });
            (looks.bars, looks.color)
        };
        assert_eq!(looks(true, &[("TERM", "xterm")]), (true, true));
        assert_eq!(looks(false, &[("TERM", "xterm")]), (false, false));
        assert_eq!(looks(true, &[("TERM", "dumb")]), (false, false));
        assert_eq!(looks(true, &[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")]), (true, false));
        assert_eq!(looks(true, &[("NO_COLOR", "")]), (true, true));
        assert_eq!(looks(true, &[("CLICOLOR", "0")]), (true, false));
        assert_eq!(looks(false, &[("CLICOLOR_FORCE", "1")]), (false, true));
    }
}
