//! What happens to a run while it runs: clips that break, and `kill -9` at any moment.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};

use crate::support::{Outcome, World};

fn lines(world: &World) -> usize {
    fs::read_to_string(world.path("run/metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Starts a run and calls `disturb` once it has trained `epochs` epochs.
fn disturbed(world: &World, args: &[&str], epochs: usize, disturb: impl FnOnce()) -> Outcome {
    let mut child = world.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(world, &mut child, epochs);
    disturb();
    Outcome::of(&child.wait_with_output().unwrap())
}

fn wait_for(world: &World, child: &mut Child, epochs: usize) {
    let begun = Instant::now();
    while lines(world) < epochs && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_mins(1), "it does not train");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_frame_that_breaks_stops_the_run_after_a_checkpoint() {
    let world = World::new();
    let args = ["tiny.toml", "--epochs=400", "--batch-size=1"];
    world.ok(&args);
    let whole = fs::read(world.path("run/last.pt")).unwrap();
    fs::remove_dir_all(world.path("run")).unwrap();

    let (id, frames) = world.clip();
    let frame = frames.last().unwrap();
    let good = fs::read(frame).unwrap();
    let stopped = disturbed(&world, &args, 2, || fs::write(frame, &good[..good.len() / 2]).unwrap());
    assert_eq!(stopped.code, 3, "{}", stopped.stderr);
    stopped.says(&[
        &format!("cannot load the clip {id}"),
        frame.file_name().unwrap().to_str().unwrap(),
        "the last checkpoint is run/last.pt; --resume goes on from it",
    ]);
    let checkpoint = world.checkpoint("run/last.pt");
    assert!((2..400).contains(&checkpoint.epoch), "{}", checkpoint.epoch);
    // As long as it is broken, nothing goes on; then it is as if nothing had happened.
    let resume: Vec<&str> = args.iter().copied().chain(["--resume"]).collect();
    assert_eq!(world.run(&resume).code, 3);
    fs::write(frame, &good).unwrap();
    world.ok(&resume);
    assert!(fs::read(world.path("run/last.pt")).unwrap() == whole);
}

#[test]
fn a_bad_clip_can_be_left_out_but_not_many() {
    let world = World::new();
    let args = ["tiny.toml", "--epochs=300", "--batch-size=1", "--on-bad-clip=skip"];
    let (id, frames) = world.clip();
    let run = disturbed(&world, &args, 2, || fs::remove_file(frames.last().unwrap()).unwrap());
    assert_eq!(run.code, 0, "{}", run.stderr);
    let without = format!("the run goes on without the clip {id}");
    assert_eq!(run.stderr.matches(&without).count(), 1, "{}", run.stderr);
    let text = world.read("run/metrics.jsonl");
    let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["bad_clips"].clone();
    assert_eq!(line(text.lines().next().unwrap()), serde_json::json!([]));
    assert_eq!(line(text.lines().last().unwrap()), serde_json::json!([id]));

    // Of 8 clips one may be bad. What was counted is counted still after a resume.
    let other = world.read("data/index/train.csv").lines().nth(3).unwrap().to_owned();
    let resume = ["tiny.toml", "--epochs=100000", "--batch-size=1", "--on-bad-clip=skip", "--resume"];
    let stopped = disturbed(&world, &resume, 302, || {
        fs::remove_file(world.path(&format!("data/pose/{other}.npz"))).unwrap();
    });
    assert_eq!(stopped.code, 3, "{}", stopped.stderr);
    stopped.says(&["2 of 8 clips cannot be loaded", &id, &other, "the last checkpoint is run/last.pt"]);
}

/// Skipping goes on until nothing is left of a split; then there is no loss to speak of.
#[test]
fn a_split_without_a_clip_is_an_error_and_no_nan() {
    for (split, name) in [("train", "training"), ("val", "validation")] {
        let world = World::new();
        let index = format!("data/index/{split}.csv");
        let id = world.read(&index).lines().nth(1).unwrap().to_owned();
        world.write(&index, format!("video_id\n{id}\n"));
        let args = ["tiny.toml", "--epochs=400", "--batch-size=1", "--on-bad-clip=skip"];
        world.ok(&args);
        let whole = fs::read(world.path("run/last.pt")).unwrap();
        fs::remove_dir_all(world.path("run")).unwrap();

        let pose = format!("data/pose/{id}.npz");
        let good = fs::read(world.path(&pose)).unwrap();
        let left = format!("no clip of the {name} split (data.{split}_index, from tiny.toml:");
        let stopped = disturbed(&world, &args, 2, || world.write(&pose, "PK"));
        assert_eq!(stopped.code, 3, "{}", stopped.stderr);
        let parts = [left.as_str(), "is left: none of 1 can be loaded", &id, &pose, "run/last.pt; --resume"];
        stopped.says(&parts);
        let metrics = world.read("run/metrics.jsonl");
        assert!(!metrics.contains("null") && !metrics.contains("NaN"), "{metrics}");
        // Nor does it go on with nothing.
        let resume: Vec<&str> = args.iter().copied().chain(["--resume"]).collect();
        let refused = world.run(&resume);
        assert_eq!(refused.code, 3, "{}", refused.stderr);
        refused.says(&["cannot read the pose", &left]);
        world.write(&pose, good);
        world.ok(&resume);
        // But for the clip that it remembers, it is as if nothing had happened.
        if split == "train" {
            assert!(fs::read(world.path("run/last.pt")).unwrap() == whole);
        }
        assert_eq!(lines(&world), 400);
    }
}

/// A frame that a look at the first ones does not see.
#[test]
fn a_split_without_a_clip_from_the_start() {
    let world = World::new();
    let (id, frames) = world.clip();
    fs::write(frames.last().unwrap(), "").unwrap();
    let args = ["tiny.toml", "--on-bad-clip=skip", "--sequence-length=9"];
    world.write("data/index/train.csv", format!("video_id\n{id}\n"));
    let outcome = world.run(&args);
    assert_eq!(outcome.code, 3, "{}", outcome.stderr);
    outcome.says(&["no clip of the training split", &id]);
    assert!(!world.path("run").exists());
}

#[test]
fn kill_9_at_200_moments() {
    let world = World::new();
    let args =
        ["tiny.toml", "--epochs=150", "--batch-size=2", "--checkpoint-every=1", "--temporal-dropout=0.2"];
    world.ok(&args);
    let read = |name: &str| fs::read(world.path(name)).unwrap();
    let whole = (read("run/last.pt"), read("run/best.pt"), lines(&world));
    let expected = shapes(&world, "run/last.pt");
    fs::remove_dir_all(world.path("run")).unwrap();

    let resume: Vec<&str> = args.iter().copied().chain(["--resume", "-q"]).collect();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    for moment in 0..200 {
        let mut child = world.command(&resume).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random.random_range(0..60_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        for name in ["run/last.pt", "run/best.pt"] {
            if world.path(name).exists() {
                assert_eq!(shapes(&world, name), expected, "{name} after {moment}");
            }
        }
    }
    world.ok(&resume);
    assert!(read("run/last.pt") == whole.0 && read("run/best.pt") == whole.1, "the numbers differ");
    assert_eq!(lines(&world), whole.2);
}

/// Names and shapes of a checkpoint's parameters.
fn shapes(world: &World, name: &str) -> Vec<(String, Vec<usize>)> {
    world.checkpoint(name).model.into_iter().map(|(name, tensor)| (name, tensor.shape)).collect()
}
