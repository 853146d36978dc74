//! `slt-run bench`: what it prints, and what it needs.

use serde_json::Value;

use crate::support::World;

/// The keys that every kind of benchmark shares with `scripts/torch_bench.py step`.
const SHARED: [&str; 5] = ["images", "step_s_min", "step_s_median", "images_per_s", "peak_rss_gib"];

fn report(world: &World, args: &[&str]) -> Value {
    let outcome = world.ok(&[&["bench", "tiny.toml", "--json"], args].concat());
    assert_eq!((outcome.stdout.lines().count(), outcome.stderr.as_str()), (1, ""));
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    for key in SHARED {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    let seconds = |key: &str| report[key].as_f64().unwrap();
    assert!(seconds("step_s_min") <= seconds("step_s_median"), "{report}");
    let rate = seconds("images") / seconds("step_s_median");
    assert!((seconds("images_per_s") / rate - 1.0).abs() < 1e-9, "{report}");
    report
}

#[test]
fn steps_and_validation_need_no_dataset() {
    let world = World::new();
    std::fs::remove_dir_all(world.path("data")).unwrap();
    let step = report(&world, &["--steps", "2", "--set", "run.threads=1"]);
    assert_eq!(step["images"], 3 * 4 * 3);
    for key in ["forward_s", "backward_s", "optimizer_s", "data_s", "parameters"] {
        assert!(step[key].as_f64().unwrap() > 0.0, "{key}: {step}");
    }
    assert_eq!((&step["threads"], &step["frames_per_chunk"]), (&1.into(), &Value::Null));
    assert_eq!(report(&world, &["--set", "optimization.frames_per_chunk=4"])["frames_per_chunk"], 4);
    // A validation batch has the size that validation has.
    let batch = report(&world, &["--evaluation", "--steps", "2", "--val-batch-size", "5"]);
    assert_eq!((&batch["images"], &batch["forward_s"]), (&(3 * 5 * 3).into(), &Value::Null));
    let shown = world.ok(&["bench", "tiny.toml", "--evaluation", "--steps", "1"]).stdout;
    assert!(shown.starts_with("images a batch  36\nbatch           "), "{shown}");
    let shown = world.ok(&["bench", "tiny.toml", "--steps", "1"]).stdout;
    for title in ["images a step", "step ", "images a second", "forward ", "peak memory", "threads"] {
        assert!(shown.lines().any(|line| line.starts_with(title)), "{title}: {shown}");
    }
    assert!(!world.path("run").exists());
}

#[test]
fn loading_takes_every_training_clip() {
    let world = World::new();
    let data = report(&world, &["--data", "--steps", "2", "--num-workers", "3"]);
    assert_eq!((&data["images"], &data["workers"]), (&(3 * 6 * 3).into(), &3.into()));
    for key in ["one_thread_s_min", "one_thread_images_per_s", "open_s"] {
        assert!(data[key].as_f64().unwrap() > 0.0, "{key}: {data}");
    }
    let shown = world.ok(&["bench", "tiny.toml", "--data", "--num-workers", "0"]).stdout;
    assert!(
        shown.starts_with("images a pass    54\n") && shown.contains("\nthreads          1\n"),
        "{shown}"
    );
    assert!(!world.path("run").exists());

    // What cannot be read is the data's fault, with its place.
    let (id, frames) = world.clip();
    std::fs::write(&frames[0], b"no image").unwrap();
    let broken = world.run(&["bench", "tiny.toml", "--data"]);
    assert_eq!(broken.code, 3);
    broken.says(&[&format!("cannot load the clip {id}"), frames[0].file_name().unwrap().to_str().unwrap()]);
    let missing = world.run(&["bench", "tiny.toml", "--data", "--face-dir", "nowhere"]);
    assert_eq!(missing.code, 3);
    missing.says(&["nowhere", "--face-dir nowhere"]);
    assert_eq!(world.run(&["bench", "--data", "--epochs", "1"]).code, 2);
}
