//! Numbers that go wrong, and what keeps them from it: exit code 4, steps left out, clipping, accumulation.

use std::fs;

use crate::support::World;

/// A pose for a training clip whose mean no f32 holds: its batch's loss is NaN.
pub fn poison(world: &World) -> String {
    let (id, _) = world.clip();
    let pose: Vec<u8> = std::iter::repeat_n(f32::MAX.to_le_bytes(), 2 * 39).flatten().collect();
    world.write(&format!("data/pose/{id}.npz"), crate::support::npz("pose", "'<f4'", "(2, 39)", &pose));
    id
}

fn metrics(world: &World) -> Vec<serde_json::Value> {
    world.read("run/metrics.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_loss_that_is_no_number_stops_before_the_update() {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs=1"]);
    let (last, best) =
        (fs::read(world.path("run/last.pt")).unwrap(), fs::read(world.path("run/best.pt")).unwrap());
    let id = poison(&world);
    // What a clip holds is another now, which a resume does not take by itself.
    let stopped = world.run(&["tiny.toml", "--epochs=3", "--resume", "--allow-changes", "--batch-size=4"]);
    assert_eq!(stopped.code, 4, "{}", stopped.stderr);
    stopped.says(&[
        "error: the loss is NaN at step ",
        "(epoch 2)",
        "the clips of the batch: ",
        &id,
        "learning rate: 1e-3",
        "the largest activations, without dropout: ",
        "encoder.pose_projector NaN",
        "the last checkpoint is run/last.pt",
    ]);
    assert!(fs::read(world.path("run/last.pt")).unwrap() == last);
    assert!(fs::read(world.path("run/best.pt")).unwrap() == best);
}

#[test]
fn a_rate_that_explodes_leaves_a_healthy_checkpoint() {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs=1", "--optimizer=sgd", "--checkpoint-every=1"]);
    for lr in ["1e30", "1e15", "1e38"] {
        let args = [
            "tiny.toml",
            "--resume",
            "--allow-changes",
            "--optimizer=sgd",
            "--epochs=50",
            "--checkpoint-every=1",
        ];
        let stopped = world.run(&[&args[..], &["--lr", lr]].concat());
        assert_eq!(stopped.code, 4, "{}", stopped.stderr);
        let checkpoint = world.checkpoint("run/last.pt");
        for (name, tensor) in &checkpoint.model {
            assert!(tensor.to_f32().unwrap().iter().all(|v| v.is_finite()), "{name}");
        }
    }
}

#[test]
fn a_few_bad_steps_in_a_row_can_be_left_out() {
    let world = World::new();
    poison(&world);
    // One of an epoch's two batches is bad: never two in a row but across an epoch's end.
    let args = ["tiny.toml", "--epochs=3", "--batch-size=1"];
    let stopped = world.run(&args);
    assert_eq!(stopped.code, 4, "{}", stopped.stderr);
    fs::remove_dir_all(world.path("run")).unwrap();
    let run = world.ok(&[&args[..], &["--skip-nonfinite-steps=2"]].concat());
    assert_eq!(run.stderr.matches("the step is left out").count(), 3, "{}", run.stderr);
    for line in metrics(&world) {
        assert_eq!(line["skipped_steps"], 1, "{line}");
        assert!(line["train_loss"].is_number() && line["grad_norm"].is_number(), "{line}");
    }
}

#[test]
fn accumulated_batches_are_one_large_batch() {
    let world = World::new();
    // 6 training clips in steps of 4: the last step has 2, in one batch or in two.
    let common = [
        "tiny.toml",
        "--temporal-dropout=0.3",
        "--set=model.backbone.dropout=0.2",
        "--optimizer=sgd",
        "--lr=0.1",
    ];
    world.ok(&[&common[..], &["--batch-size=4", "--work-dir=large"]].concat());
    for (size, batches) in [("1", "4"), ("2", "2")] {
        let (size, batches) = (format!("--batch-size={size}"), format!("--accumulate={batches}"));
        let _ = fs::remove_dir_all(world.path("small"));
        world.ok(&[&common[..], &[&size, &batches, "--work-dir=small"]].concat());
        let (large, small) = (world.checkpoint("large/last.pt"), world.checkpoint("small/last.pt"));
        let steps = |c: &slt_run::checkpoint::Checkpoint| {
            c.extra.iter().find(|(key, _)| key == "step").unwrap().1.as_int()
        };
        assert_eq!(steps(&large), steps(&small));
        for ((name, a), (_, b)) in large.model.iter().zip(&small.model) {
            let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
            let norm = a.iter().map(|a| a * a).sum::<f32>().sqrt();
            let distance = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
            assert!(distance <= 1e-5 * norm.max(1e-3), "{name}: {distance} of {norm}");
        }
    }
}

#[test]
fn clipping_cuts_the_update_and_the_metrics_have_the_whole_norm() {
    let world = World::new();
    let args = ["tiny.toml", "--epochs=1", "--batch-size=6", "--optimizer=sgd", "--lr=1"];
    world.ok(&args);
    let reported = metrics(&world)[0]["grad_norm"].clone();
    let norm = reported.as_f64().unwrap();
    let free = world.checkpoint("run/last.pt");
    fs::remove_dir_all(world.path("run")).unwrap();
    // Half of the norm: the only update is half as long.
    let most = format!("--grad-clip={}", norm / 2.0);
    world.ok(&[&args[..], &[&most]].concat());
    assert_eq!(metrics(&world)[0]["grad_norm"], reported);
    let clipped = world.checkpoint("run/last.pt");
    fs::remove_dir_all(world.path("run")).unwrap();
    world.ok(&[&args[..4], &["--lr=0"]].concat());
    let start = world.checkpoint("run/last.pt");
    let (mut cut, mut whole) = (0.0, 0.0);
    for ((a, b), c) in start.model.iter().zip(&free.model).zip(&clipped.model) {
        let (a, b, c) = (a.1.to_f32().unwrap(), b.1.to_f32().unwrap(), c.1.to_f32().unwrap());
        for ((a, b), c) in a.iter().zip(&b).zip(&c) {
            whole += f64::from(a - b).powi(2);
            cut += f64::from(a - c).powi(2);
        }
    }
    assert!((whole.sqrt() / norm - 1.0).abs() < 1e-4, "{whole} {norm}");
    assert!((cut.sqrt() / norm - 0.5).abs() < 1e-4, "{cut} {norm}");
}
