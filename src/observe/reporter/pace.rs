//! How fast training goes and how long it will take, from the steps of the last minute.

use std::collections::VecDeque;
use std::time::Duration;

/// How far back the rate looks.
const WINDOW: Duration = Duration::from_mins(1);

/// The work that is left: whole training steps, whole epochs' ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remaining {
    /// Training steps, over all epochs.
    pub(super) steps: usize,
    /// Epochs whose validation and saving are still to come.
    pub(super) epochs: usize,
}

/// The recent pace of a run. Times are since the run's start.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When each recent step ended, how long it took and how many images it had.
    steps: VecDeque<(Duration, Duration, usize)>,
    /// When the step that runs now began.
    since: Duration,
    /// How long validating and saving took, the last time.
    epoch_end: Duration,
}

impl Pace {
    /// Steps are made from `now` on.
    pub(super) fn resume(&mut self, now: Duration) {
        self.since = now;
    }

    /// A step of `images` images ended.
    pub(super) fn step(&mut self, now: Duration, images: usize) {
        self.steps.push_back((now, now.saturating_sub(self.since), images));
        self.since = now;
        // One step is always kept, however long it took.
        while self.steps.len() > 1 && self.steps.front().is_some_and(|(end, ..)| *end + WINDOW < now) {
            self.steps.pop_front();
        }
    }

    /// An epoch ended: all since its last step was validation and saving.
    pub(super) fn end_epoch(&mut self, now: Duration) {
        self.epoch_end = now.saturating_sub(self.since);
    }

    /// Images per second over the recent steps; `None` before the first or where no time passed.
    pub(super) fn images_per_second(&self) -> Option<f64> {
        let seconds = self.seconds();
        let images: usize = self.steps.iter().map(|(.., images)| images).sum();
        (seconds > 0.0).then(|| images as f64 / seconds)
    }

    /// How long the last step took.
    pub(super) fn last_step(&self) -> Duration {
        self.steps.back().map_or(Duration::ZERO, |(_, took, _)| *took)
    }

    /// How long the work that is left will take at this pace; `None` before the first step.
    pub(super) fn time_left(&self, left: Remaining) -> Option<Duration> {
        if self.steps.is_empty() {
            return None;
        }
        let step = self.seconds() / self.steps.len() as f64;
        let seconds = step * left.steps as f64 + self.epoch_end.as_secs_f64() * left.epochs as f64;
        Duration::try_from_secs_f64(seconds).ok()
    }

    fn seconds(&self) -> f64 {
        self.steps.iter().map(|(_, took, _)| took.as_secs_f64()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute_and_of_steps_alone() {
        let mut pace = Pace::default();
        assert_eq!(pace.images_per_second(), None);
        assert_eq!(pace.time_left(Remaining { steps: 1, epochs: 0 }), None);
        pace.resume(seconds(100));
        pace.step(seconds(110), 20);
        assert_eq!(pace.images_per_second(), Some(2.0));
        // 30 s of validation are no training time, and the first step leaves the window.
        pace.end_epoch(seconds(140));
        pace.resume(seconds(140));
        for i in 1..=35 {
            pace.step(seconds(140 + i), 8);
        }
        assert_eq!(pace.images_per_second(), Some(8.0));
        assert_eq!(pace.last_step(), seconds(1));
        assert_eq!(pace.time_left(Remaining { steps: 100, epochs: 3 }), Some(seconds(190)));
    }

    #[test]
    fn a_step_longer_than_the_window_counts() {
        let mut pace = Pace::default();
        pace.resume(seconds(0));
        pace.step(seconds(500), 1000);
        pace.step(seconds(1000), 1000);
        assert_eq!(pace.images_per_second(), Some(2.0));
    }
}
