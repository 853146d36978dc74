//! The progress bars of a terminal: one for the epochs, one for the batches of the one that runs.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

const EPOCHS: &str = "{prefix:>12} [{bar:30}] {msg}";
const BATCHES: &str = "{prefix:>12} [{bar:14}] {pos}/{len}  {wide_msg}";

/// The bars. Nothing is drawn before work is reported, and nothing after [`Bars::finish`].
pub(super) struct Bars {
    screen: MultiProgress,
    epochs: Option<ProgressBar>,
    /// Training or validation batches, or what a stage counts.
    batches: Option<ProgressBar>,
}

impl Bars {
    /// Bars at the end of what standard error shows.
    pub(super) fn on_stderr() -> Self {
        Self::on(ProgressDrawTarget::stderr())
    }

    /// Bars anywhere.
    pub(super) fn on(target: ProgressDrawTarget) -> Self {
        Self { screen: MultiProgress::with_draw_target(target), epochs: None, batches: None }
    }

    /// Does `write` while the bars are away.
    pub(super) fn suspend(&self, write: impl FnOnce()) {
        self.screen.suspend(write);
    }

    pub(super) fn start(&mut self, epochs: usize, first_epoch: usize) {
        self.finish();
        let bar = self.add(epochs, EPOCHS);
        bar.set_prefix(format!("epoch {first_epoch}/{epochs}"));
        bar.set_position(first_epoch.saturating_sub(1) as u64);
        self.epochs = Some(bar);
    }

    pub(super) fn begin_epoch(&mut self, epoch: usize, epochs: usize, steps: usize) {
        if let Some(bar) = &self.epochs {
            bar.set_prefix(format!("epoch {epoch}/{epochs}"));
        }
        self.count("train", steps);
    }

    pub(super) fn begin_validation(&mut self, steps: usize) {
        self.count("validate", steps);
    }

    /// Step `step` is done; `left` says how long the run will take.
    pub(super) fn step(&mut self, step: usize, message: String, left: String) {
        if let Some(bar) = &self.batches {
            bar.set_message(message);
            bar.set_position(step as u64);
        }
        if let Some(bar) = self.epochs.as_ref().filter(|_| !left.is_empty()) {
            bar.set_message(left);
        }
    }

    pub(super) fn end_epoch(&mut self, epoch: usize) {
        if let Some(bar) = &self.epochs {
            bar.set_position(epoch as u64);
        }
    }

    pub(super) fn stage(&mut self, what: &str, done: usize, all: usize, note: &str) {
        let same =
            self.batches.as_ref().is_some_and(|bar| bar.prefix() == what && bar.length() == Some(all as u64));
        if !same {
            self.count(what, all);
        }
        self.step(done, note.to_owned(), String::new());
        if done >= all {
            self.finish();
        }
    }

    /// Takes all bars away.
    pub(super) fn finish(&mut self) {
        for bar in [self.batches.take(), self.epochs.take()].into_iter().flatten() {
            bar.finish_and_clear();
            self.screen.remove(&bar);
        }
    }

    /// The lower bar counts `what` anew.
    fn count(&mut self, what: &str, all: usize) {
        if let Some(bar) = self.batches.take() {
            bar.finish_and_clear();
            self.screen.remove(&bar);
        }
        let bar = self.add(all, BATCHES);
        bar.set_prefix(what.to_owned());
        self.batches = Some(bar);
    }

    fn add(&self, length: usize, template: &str) -> ProgressBar {
        let bar = ProgressBar::new(length as u64);
        // The templates are constants and are tried in the tests; the default style would do as well.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        self.screen.add(bar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_sound() {
        for template in [EPOCHS, BATCHES] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
