//! What each kind of reporter writes, and when.

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

/// A terminal 80 columns wide that keeps what is written to it.
impl indicatif::TermLike for Writes {
    fn width(&self) -> u16 {
        80
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
    assert_eq!(written(&writes), [1, 2].map(|n| format!("Epoch {n}/2 - train_loss=2.1 - val_loss=2.2\n")));
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
fn bars_and_lines_fit_a_terminal() {
    for bars in [true, false] {
        let (reporter, writes, time) = reporter(Verbosity::Normal, bars);
        reporter.stage("looking into the clips", 1, 123_456);
        reporter.start(1000, 1000, 12_345);
        reporter.begin_epoch(1000, 12_345);
        for step in 12_343..=12_345 {
            time.fetch_add(40_000, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(60));
            reporter.step(step, 10.3735, 4.97e-4, 16_480);
        }
        let each = written(&writes);
        let text = each.concat();
        assert!(text.contains("12345/12345") && text.contains("lr 4.97e-4"), "{text}");
        assert!(text.contains("412 images/s"), "{text}");
        // Bars redraw a line in place, so that a write is a line; without them a write may be several.
        let lines = each.iter().flat_map(|write| write.lines());
        assert!(lines.clone().all(|line| line.trim_end().chars().count() <= 80), "{text}");
    }
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
