//! Going on: to the bit, from any moment, and only with the same experiment.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Outcome, World, event_scalars};

/// Dropout everywhere, more steps than one an epoch, and curves.
const LIVELY: &[&str] = &[
    "tiny.toml",
    "--batch-size=2",
    "--temporal-dropout=0.2",
    "--fusion-dropout=0.1",
    "--set=model.backbone.dropout=0.1",
    "--set=model.backbone.stochastic_depth=0.2",
    "--tensorboard=run/tb",
];

/// The arguments of one run: the common ones, then `more`.
fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    LIVELY.iter().copied().chain(more.iter().copied()).collect()
}

/// Epochs in `metrics.jsonl`, each with what must not depend on interruptions.
fn epochs(world: &World, folder: &str) -> Vec<(u64, String)> {
    let text = world.read(&format!("{folder}/metrics.jsonl"));
    let line = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        let keep = ["train_loss", "val_loss", "val_accuracy", "lr", "grad_norm", "skipped_steps"];
        let kept: Vec<String> = keep.iter().map(|key| json[*key].to_string()).collect();
        (json["epoch"].as_u64().unwrap(), kept.join(" "))
    };
    text.lines().map(line).collect()
}

/// Every point of every curve: tag, step, the value's bits.
pub fn points(folder: &Path) -> Vec<(String, i64, u32)> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<_> =
        files.flat_map(|file| event_scalars(&file)).map(|s| (s.0, s.1, s.2.to_bits())).collect();
    all.sort();
    all
}

/// What a finished run leaves, without times.
#[derive(Debug, PartialEq)]
pub struct Left {
    last: Vec<u8>,
    best: Vec<u8>,
    epochs: Vec<(u64, String)>,
    points: Vec<(String, i64, u32)>,
}

impl Left {
    pub fn of(world: &World) -> Self {
        Self {
            last: fs::read(world.path("run/last.pt")).unwrap(),
            best: fs::read(world.path("run/best.pt")).unwrap(),
            epochs: epochs(world, "run"),
            points: points(&world.path("run/tb")),
        }
    }
}

/// As `assert_eq`, without printing megabytes.
pub fn assert_same(found: &Left, expected: &Left, what: &str) {
    assert_eq!(found.epochs, expected.epochs, "{what}");
    assert_eq!(found.points, expected.points, "{what}");
    assert!(found.last == expected.last, "{what}: last.pt differs");
    assert!(found.best == expected.best, "{what}: best.pt differs");
}

fn start(world: &World, args: &[&str]) -> Child {
    world.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until `is_so`, or until the process ends.
pub fn wait_until(child: &mut Child, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_mins(1), "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub fn kill(mut child: Child) {
    let _ = child.kill();
    child.wait().unwrap();
}

#[test]
fn a_killed_run_goes_on_to_the_bit() {
    let world = World::new();
    let cases: [&[&str]; 9] = [
        &["--optimizer=adamw", "--weight-decay=0.1", "--scheduler=cosine", "--scheduler-tmax=3"],
        &["--optimizer=adam", "--scheduler=steplr", "--scheduler-step-size=2", "--grad-clip=0.5"],
        // A rate that grows: the best epoch is an early one.
        &[
            "--optimizer=sgd",
            "--lr=0.05",
            "--scheduler=steplr",
            "--scheduler-step-size=1",
            "--scheduler-gamma=3",
        ],
        &["--accumulate=2", "--checkpoint-every=1", "--frames-per-chunk=2"],
        &["--checkpoint-every=2 steps", "--num-workers=0"],
        &["--engine=candle", "--accumulate=2"],
        &["--precision=bf16", "--frames-per-chunk=2", "--grad-clip=0.5"],
        &[
            "--optimizer=sgd",
            "--momentum=0.8",
            "--scheduler=plateau",
            "--scheduler-patience=0",
            "--scheduler-threshold=0.1",
            "--warmup-steps=5",
            "--keep-checkpoints=2",
            "--set=model.backbone.freeze=0",
            "--set=optimization.groups=[{ match = \"*.bias\", lr_factor = 3, weight_decay = 0.1 }]",
        ],
        &[
            "--betas=[0.5, 0.9]",
            "--eps=1e-4",
            "--scheduler=plateau",
            "--best-metric=val_accuracy",
            "--early-stopping=9",
        ],
    ];
    let mut seen_early_best = false;
    for case in cases {
        let args = with(&[case, &["--epochs=5"]].concat());
        world.ok(&args);
        let whole = Left::of(&world);
        seen_early_best |= whole.last != whole.best;
        for epoch in [1, 3] {
            fs::remove_dir_all(world.path("run")).unwrap();
            let mut child = start(&world, &args);
            let metrics = world.path("run/metrics.jsonl");
            wait_until(&mut child, || {
                fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() >= epoch)
            });
            kill(child);
            world.ok(&[&args, &["--resume"][..]].concat());
            assert_same(&Left::of(&world), &whole, &format!("{case:?} after {epoch}"));
        }
        fs::remove_dir_all(world.path("run")).unwrap();
    }
    assert!(seen_early_best, "no case has its best epoch before its last");
}

#[test]
fn more_epochs_are_the_same_run() {
    let world = World::new();
    let args = with(&["--scheduler=cosine"]);
    world.ok(&[&args, &["--epochs=4"][..]].concat());
    let whole = Left::of(&world);
    fs::remove_dir_all(world.path("run")).unwrap();
    world.ok(&[&args, &["--epochs=1"][..]].concat());
    // Other logs and workers are noted, and change nothing.
    world.ok(&[&args, &["--epochs=4", "--resume", "--num-workers=0", "--threads=1"][..]].concat());
    assert_same(&Left::of(&world), &whole, "1 + 3 epochs");
    let run: serde_json::Value = serde_json::from_str(&world.read("run/run.json")).unwrap();
    assert_eq!((&run["resumed"][0]["epoch"], &run["resumed"][0]["step"]), (&1.into(), &3.into()));
    let changes: BTreeMap<&str, (&str, &str)> = run["resumed"][0]["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["key"].as_str().unwrap(), (c["from"].as_str().unwrap(), c["to"].as_str().unwrap())))
        .collect();
    assert_eq!(changes["optimization.epochs"], ("1", "4"));
    assert_eq!(changes["data.num_workers"], ("\"\"", "0"));
    assert_eq!(changes["run.threads"], ("\"\"", "1"));
    // All done: it says so and changes nothing.
    let again = world.ok(&[&args, &["--epochs=4", "--resume"][..]].concat());
    again.says(&["all 4 epochs are done already"]);
    assert_same(&Left::of(&world), &whole, "nothing left to do");
}

#[test]
fn with_nothing_to_go_on_from_it_starts() {
    let world = World::new();
    world.ok(&["tiny.toml", "--resume"]);
    let first = fs::read(world.path("run/last.pt")).unwrap();
    fs::remove_dir_all(world.path("run")).unwrap();
    // A run that is killed when it is about to save its first checkpoint, with its first epoch in the metrics.
    assert!(world.command(&["tiny.toml"]).env("SLTRUN_FAULT", "list:operations").status().unwrap().success());
    fs::remove_dir_all(world.path("run")).unwrap();
    let list = world.read("operations");
    let save = list.lines().find(|line| line.contains("create\t") && line.ends_with("last.pt.tmp")).unwrap();
    let fault = format!("kill:{}", save.split('\t').next().unwrap());
    assert!(!world.command(&["tiny.toml"]).env("SLTRUN_FAULT", fault).status().unwrap().success());
    assert_eq!((epochs(&world, "run").len(), world.path("run/last.pt").exists()), (1, false));
    world.ok(&["tiny.toml", "--set", "run.resume=auto"]);
    assert!(fs::read(world.path("run/last.pt")).unwrap() == first);
    assert_eq!(epochs(&world, "run").len(), 2);
    world.run(&["tiny.toml"]).says(&["run holds a run already", "--resume"]);
}

/// Sends `signal` to `child` and waits for its end.
pub fn signal(child: Child, signal: &str) -> Outcome {
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
    Outcome::of(&child.wait_with_output().unwrap())
}

#[test]
fn signals_save_and_stop_and_the_run_goes_on_to_the_bit() {
    let world = World::new();
    // Steps that take a while, so that the signal comes between two of them.
    let slow = ["--image-size=224", "--set=model.backbone.embed_dim=96", "--set=model.backbone.depth=8"];
    let args = with(&[&slow[..], &["--epochs=2", "--batch-size=1"]].concat());
    world.ok(&args);
    let whole = Left::of(&world);
    let mut inside = 0;
    for (name, code) in [("-TERM", 143), ("-INT", 130), ("-USR1", 138)] {
        fs::remove_dir_all(world.path("run")).unwrap();
        let mut child = world.command(&args).stderr(Stdio::piped()).spawn().unwrap();
        let curves = world.path("run/tb");
        wait_until(&mut child, || {
            curves.is_dir() && points(&curves).iter().any(|point| point.0 == "loss/step")
        });
        let stopped = signal(child, name);
        assert_eq!(stopped.code, code, "{}", stopped.stderr);
        stopped.says(&[&format!("stopped by SIG{}", &name[1..]), "saved in run/last.pt", "--resume"]);
        let checkpoint = world.checkpoint("run/last.pt");
        let position = checkpoint.extra.iter().find(|(key, _)| key == "position").unwrap();
        inside += position.1.get("batches").unwrap().as_int().unwrap();
        world.ok(&[&args, &["--resume"][..]].concat());
        assert_same(&Left::of(&world), &whole, name);
    }
    assert!(inside > 0, "no signal came inside an epoch");
}

/// A network that takes its time, with more to validate on than to train on.
const SLOW: &[&str] = &[
    "tiny.toml",
    "--image-size=224",
    "--set=model.backbone.embed_dim=96",
    "--set=model.backbone.depth=8",
    "--train-index=data/index/val.csv",
    "--val-index=data/index/train.csv",
    "--val-batch-size=1",
    "--epochs=1",
    "--tensorboard=run/tb",
];

/// Starts a slow run and waits until it has trained its only step.
fn in_validation(world: &World, more: &[&str]) -> Child {
    let args = [SLOW, more].concat();
    let mut child = world.command(&args).stderr(Stdio::piped()).spawn().unwrap();
    let curves = world.path("run/tb");
    wait_until(&mut child, || curves.is_dir() && points(&curves).iter().any(|point| point.0 == "loss/step"));
    child
}

#[test]
fn a_signal_in_validation_saves_what_was_trained() {
    let world = World::new();
    world.ok(SLOW);
    let whole = Left::of(&world);
    fs::remove_dir_all(world.path("run")).unwrap();
    let stopped = signal(in_validation(&world, &[]), "-TERM");
    assert_eq!(stopped.code, 143, "{}", stopped.stderr);
    stopped.says(&["stopped by SIGTERM after step 1 (epoch 1): saved in run/last.pt"]);
    let checkpoint = world.checkpoint("run/last.pt");
    let position = checkpoint.extra.iter().find(|(key, _)| key == "position").unwrap();
    assert_eq!((checkpoint.epoch, position.1.get("batches").unwrap().as_int()), (0, Some(1)));
    world.ok(&[SLOW, &["--resume"]].concat());
    assert_same(&Left::of(&world), &whole, "after a signal in validation");
}

#[test]
fn a_second_signal_stops_at_once() {
    let world = World::new();
    // One validation batch of seconds, in which the first signal has to wait.
    let child = in_validation(&world, &["--val-batch-size=6", "--sequence-length=30", "--threads=1"]);
    let pid = child.id().to_string();
    let kill = |name: &str| std::process::Command::new("kill").args([name, pid.as_str()]).status().unwrap();
    assert!(kill("-TERM").success());
    std::thread::sleep(Duration::from_millis(20));
    let begun = Instant::now();
    let stopped = signal(child, "-INT");
    assert_eq!(stopped.code, 130, "{}", stopped.stderr);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(!world.path("run/last.pt").exists());
}

#[test]
fn another_experiment_is_refused_with_both_values() {
    let world = World::new();
    world.ok(&["tiny.toml"]);
    let before = world.files();
    let refused =
        world.run(&["tiny.toml", "--resume", "--lr=0.5", "--optimizer=sgd", "--epochs=3", "--num-workers=0"]);
    assert_eq!(refused.code, 2);
    refused.says(&[
        "optimization.lr was 0.001 in run/last.pt and is 0.5 (--lr 0.5) now",
        "optimization.optimizer was \"adamw\" in run/last.pt and is \"sgd\" (--optimizer sgd) now",
        "--allow-changes",
    ]);
    assert!(
        !refused.stderr.contains("epochs was") && !refused.stderr.contains("workers"),
        "{}",
        refused.stderr
    );
    let fewer = world.run(&["tiny.toml", "--resume", "--epochs=1"]);
    assert_eq!(fewer.code, 2);
    fewer.says(&["optimization.epochs was 2 in run/last.pt and is 1 (--epochs 1) now"]);
    // Another model never fits.
    let model = world.run(&["tiny.toml", "--resume", "--d-model=32", "--allow-changes", "--epochs=3"]);
    assert_eq!(model.code, 3, "{}", model.stderr);
    model.says(&["run/last.pt has parameters of another shape", "no flag resumes with another model"]);
    assert_eq!(world.files(), before);

    world.ok(&["tiny.toml", "--resume", "--lr=0.5", "--optimizer=sgd", "--epochs=3", "--allow-changes"]);
    assert_eq!(epochs(&world, "run").len(), 3);
    assert!(world.read("run/run.json").contains("optimization.lr"));
}

#[test]
fn files_that_have_gone_are_another_experiment() {
    let world = World::new();
    world.ok(&["tiny.toml"]);
    let (id, frames) = world.clip();
    for file in [frames.last().unwrap(), &world.path(&format!("data/pose/{id}.npz"))] {
        let good = fs::read(file).unwrap();
        fs::remove_file(file).unwrap();
        let refused = world.run(&["tiny.toml", "--resume", "--epochs=3"]);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        refused.says(&["the set of frames and poses was ", " frames, ", " poses ("]);
        fs::write(file, good).unwrap();
    }
    fs::remove_file(frames.last().unwrap()).unwrap();
    let skipping = world.ok(&["tiny.toml", "--resume", "--epochs=3", "--on-bad-clip=skip"]);
    skipping.says(&["warning: the set of frames and poses was "]);
    world.ok(&["tiny.toml", "--resume", "--epochs=4"]);
}

#[test]
fn other_batches_begin_their_epoch_anew() {
    let world = World::new();
    let run =
        |more: &[&str]| world.run(&[&["tiny.toml", "--epochs=3", "--on-bad-clip=error"][..], more].concat());
    // The last step of the second epoch cannot be saved: the checkpoint is of the one before it.
    let fault = saves_before_the_end(&world);
    let mut command = world.command(&["tiny.toml", "--epochs=3", "--batch-size=1", "--checkpoint-every=1"]);
    let broken = Outcome::of(&command.env("SLTRUN_FAULT", fault).output().unwrap());
    assert_eq!(broken.code, 1, "{}", broken.stderr);
    let checkpoint = world.checkpoint("run/last.pt");
    let position = checkpoint.extra.iter().find(|(key, _)| key == "position").unwrap();
    assert_eq!((checkpoint.epoch, position.1.get("batches").unwrap().as_int()), (1, Some(5)));
    let step = |checkpoint: &slt_run::checkpoint::Checkpoint| {
        checkpoint.extra.iter().find(|(key, _)| key == "step").unwrap().1.as_int().unwrap()
    };
    assert_eq!(step(&checkpoint), 11);
    assert_eq!(run(&["--batch-size=3", "--resume"]).code, 2);
    let resumed = run(&["--batch-size=3", "--resume", "--allow-changes"]);
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    resumed.says(&["epoch 2 begins anew: its batches have other clips now"]);
    // Two epochs of two steps.
    assert_eq!(step(&world.checkpoint("run/last.pt")), 15);
}

/// The fault that lets the twelfth save fail.
fn saves_before_the_end(world: &World) -> String {
    let mut command = world.command(&["tiny.toml", "--epochs=3", "--batch-size=1", "--checkpoint-every=1"]);
    assert!(command.env("SLTRUN_FAULT", "list:operations").output().unwrap().status.success());
    fs::remove_dir_all(world.path("run")).unwrap();
    let list = world.read("operations");
    // Six of the first epoch's steps, one of its end, five of the second's steps.
    let mut saves = list.lines().filter(|line| line.contains("\trename\t") && line.ends_with("last.pt.tmp"));
    format!("EIO:{}", saves.nth(12).unwrap().split('\t').next().unwrap())
}

#[test]
fn a_copied_run_leaves_the_curves_of_the_original_alone() {
    let world = World::new();
    let args = ["tiny.toml", "--tensorboard=tb", "--epochs=4"];
    world.ok(&args);
    let original = points(&world.path("tb"));
    fs::create_dir(world.path("copy")).unwrap();
    for file in ["last.pt", "best.pt", "config.toml", "metrics.jsonl", "run.json"] {
        fs::copy(world.path("run").join(file), world.path("copy").join(file)).unwrap();
    }
    // As if it had been copied after the first epoch.
    world.ok(&["tiny.toml", "--epochs=1", "--work-dir=short"]);
    fs::copy(world.path("short/last.pt"), world.path("copy/last.pt")).unwrap();
    let resumed =
        world.ok(&["tiny.toml", "--resume", "--epochs=4", "--work-dir=copy", "--tensorboard=copy/tb"]);
    resumed.says(&["event files elsewhere are left as they are"]);
    assert_eq!(points(&world.path("tb")), original);
    // A folder that was moved takes its own along.
    fs::rename(world.path("copy"), world.path("moved")).unwrap();
    fs::copy(world.path("short/last.pt"), world.path("moved/last.pt")).unwrap();
    let resumed = world.ok(&["tiny.toml", "--resume", "--epochs=4", "--work-dir=moved"]);
    assert!(!resumed.stderr.contains("event files"), "{}", resumed.stderr);
    assert!(points(&world.path("moved/tb")).is_empty());
}

#[test]
fn a_run_json_that_cannot_be_read_makes_no_run() {
    let world = World::new();
    world.ok(&["tiny.toml"]);
    world.write("run/run.json", "{nonsense");
    let before = world.files();
    let refused = world.run(&["tiny.toml", "--resume", "--epochs=3"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    refused.says(&[
        "has files of a run's names that no run has written",
        "run.json, which would say whose they are, is not",
    ]);
    assert!(world.files() == before);
    // As the hint says.
    world.write("run/run.json", "{\"version\": \"0.1.0\", \"command_line\": []}");
    world.ok(&["tiny.toml", "--resume", "--epochs=3"]);
}

#[test]
fn without_last_the_best_can_take_its_place() {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs=3"]);
    let whole = fs::read(world.path("run/last.pt")).unwrap();
    let before = fs::read(world.path("run/best.pt")).unwrap();
    fs::remove_file(world.path("run/last.pt")).unwrap();
    let refused = world.run(&["tiny.toml", "--epochs=3", "--resume"]);
    assert_eq!(refused.code, 2);
    refused.says(&["run has a best.pt but no last.pt", "copy best.pt to last.pt to go on from its epoch"]);
    world.write("run/last.pt", &before[..before.len() / 2]);
    let refused = world.run(&["tiny.toml", "--epochs=3", "--resume"]);
    assert_eq!(refused.code, 3);
    refused.says(&["cannot read run/last.pt", "run/best.pt may be whole: copy it to run/last.pt"]);
    world.write("run/last.pt", &before);
    world.ok(&["tiny.toml", "--epochs=3", "--resume"]);
    assert!(fs::read(world.path("run/last.pt")).unwrap() == whole);
}

#[test]
fn initial_weights_are_for_the_first_start_only() {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs=1", "--work-dir=other"]);
    let args = ["tiny.toml", "--init-from=other/last.pt", "--resume", "--epochs=2"];
    world.ok(&args);
    let last = fs::read(world.path("run/last.pt")).unwrap();
    let left = world.files();
    world.ok(&args).says(&["--init-from other/last.pt is not looked at", "all 2 epochs are done already"]);
    assert!(fs::read(world.path("run/last.pt")).unwrap() == last);
    assert_eq!(world.files(), left);
}

/// A signal before the first step leaves nothing that would be in the way of the same command without `--resume`.
#[test]
fn a_signal_at_the_start_leaves_no_half_of_a_run() {
    let world = World::new();
    for delay in (0..60).step_by(3) {
        let child = world.command(&["tiny.toml", "--epochs=400"]).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        let stopped = signal(child, "-TERM");
        // -1: before the program had begun.
        assert!([143, -1].contains(&stopped.code), "{}", stopped.stderr);
        let run = world.path("run");
        assert_eq!(run.join("config.toml").exists(), run.join("last.pt").exists(), "after {delay} ms");
        let _ = fs::remove_dir_all(run);
    }
}

#[test]
fn other_data_are_another_experiment() {
    let world = World::new();
    world.ok(&["tiny.toml"]);
    let table = world.read("data/subs.csv");
    let (id, _) = world.clip();
    let line = table.lines().find(|line| line.contains(&id)).unwrap().to_owned();
    let other = format!("{line} otra vez");
    world.write("data/subs.csv", table.replace(&line, &other));
    let refused = world.run(&["tiny.toml", "--resume", "--epochs=3"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    refused.says(&["the data (ids and texts of both splits) was "]);
    world.ok(&["tiny.toml", "--resume", "--epochs=3", "--allow-changes"]);
}
