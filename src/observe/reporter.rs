//! What a person sees while the program works: progress bars on a terminal, plain lines elsewhere.
//!
//! Everything goes to one place, standard error, in whole lines under one lock: bars and lines from several
//! threads never mix. A place that is closed is silence, never a failure.

mod bars;
mod format;
mod pace;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use bars::Bars;
use format::{duration, fitting, loss, printable, rate, speed, warning};
pub use format::{epoch_line, render_error};
use pace::{Pace, Remaining};

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
    warnings: usize,
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
            warnings: 0,
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
        let mut state = self.lock();
        state.warnings += 1;
        state.line(&warning(line, self.color));
    }

    /// How many warnings there have been.
    #[must_use]
    pub fn warnings(&self) -> usize {
        self.lock().warnings
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
        self.stage_with(what, done, all, "");
    }

    /// As [`Self::stage`], with a `note` such as how fast it goes.
    pub fn stage_with(&self, what: &str, done: usize, all: usize, note: &str) {
        if self.verbosity >= Verbosity::Normal {
            self.lock().stage(what, done, all, note);
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

    fn stage(&mut self, what: &str, done: usize, all: usize, note: &str) {
        if let Some(bars) = &mut self.bars {
            bars.stage(what, done, all, note);
        } else if self.line_is_due(Duration::from_secs(1)) {
            self.line(format!("{what} {done}/{all} {note}").trim_end());
        }
    }

    fn show_step(&mut self, step: usize, loss_now: f64, lr: f64) {
        let speed = self.pace.images_per_second().map(speed).unwrap_or_default();
        let left = Remaining {
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
            let start = format!("epoch {epoch}/{epochs} step {step}/{steps} loss {loss}");
            self.line(&fitting([
                format!("{start} lr {lr} {speed}, {left}"),
                format!("{start} {speed}, {left}"),
                format!("{start}, {left}"),
            ]));
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
