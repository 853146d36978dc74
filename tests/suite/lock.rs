//! One process a run folder: the second is refused, and one that is gone blocks nobody.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Outcome, World};

/// A process that trains until it is killed.
struct Endless(Child);

impl Endless {
    /// Starts it in `run` and waits until it has saved a checkpoint.
    fn start(world: &World) -> Self {
        let mut command = world.command(&["tiny.toml", "--epochs", "1000000"]);
        let run = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let begun = Instant::now();
        while !world.path("run/best.pt").exists() {
            assert!(begun.elapsed() < Duration::from_mins(1), "it saves nothing");
            std::thread::sleep(Duration::from_millis(10));
        }
        run
    }

    /// `kill -9`.
    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_second_process_is_refused_and_a_killed_one_blocks_nobody() {
    let world = World::new();
    let first = Endless::start(&world);
    let folders = || fs::read_dir(world.path("")).unwrap().count();
    let before = folders();
    for args in [&["tiny.toml"][..], &["tiny.toml", "--overwrite"]] {
        let second = world.run(args);
        assert_eq!(second.code, 2, "{}", second.stderr);
        let pid = first.0.id();
        second.says(&[
            &format!("error: run.work_dir run is in use: process {pid} on "),
            " has been writing to it since 20",
            &format!("hint: wait until that process ends, stop it (kill {pid} on "),
            "choose another run.work_dir (from tiny.toml:",
        ]);
    }
    assert_eq!(folders(), before);
    assert!(world.path("run/last.pt").exists());

    first.kill();
    assert!(world.path("run/.slt-run.lock").exists());
    world.run(&["tiny.toml"]).says(&["run.work_dir run holds a run already"]);
    world.ok(&["tiny.toml", "--overwrite"]).says(&["the run that was in run is now in "]);
    assert!(!world.path("run/.slt-run.lock").exists());
}

#[test]
fn the_lock_of_a_dead_process_of_any_host_blocks_nobody() {
    let world = World::new();
    fs::create_dir(world.path("run")).unwrap();
    // The number is of a living process here, and of none there.
    let pid = std::process::id();
    world.write(
        "run/.slt-run.lock",
        format!("{{\"pid\":{pid},\"host\":\"node7\",\"started\":\"2020\",\"beat\":0}}\n"),
    );
    world.ok(&["tiny.toml", "--epochs", "1"]);
    assert!(!world.path("run/.slt-run.lock").exists());
}

#[test]
fn of_several_that_start_at_once_one_trains() {
    let world = World::new();
    let start = || {
        let mut command = world.command(&["tiny.toml", "--epochs", "3"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let started: Vec<Child> = (0..5).map(|_| start()).collect();
    let outcomes: Vec<_> =
        started.into_iter().map(|child| Outcome::of(&child.wait_with_output().unwrap())).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.code == 0).count(), 1);
    for refused in outcomes.iter().filter(|outcome| outcome.code != 0) {
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        // Whoever comes after the end finds the run.
        assert!(refused.stderr.contains("is in use") || refused.stderr.contains("holds a run already"));
    }
    assert_eq!(world.checkpoint("run/last.pt").epoch, 3);
}
