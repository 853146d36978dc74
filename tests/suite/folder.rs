//! Whose folder it is: what no run has written stays as it is, what a run has saved is not lost, and two runs keep apart.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::support::{Outcome, TINY, World};

fn run_json(world: &World, folder: &str) -> Json {
    serde_json::from_str(&world.read(&format!("{folder}/run.json"))).unwrap()
}

fn start(world: &World, args: &[&str]) -> Child {
    world.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_until(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_mins(1), "it does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn outcome(child: Child) -> Outcome {
    Outcome::of(&child.wait_with_output().unwrap())
}

/// No command starts, and nothing in the working directory is another than before.
fn refused(world: &World, file: &str, code: i32, says: &[&str]) {
    let before = world.files();
    for more in [&[][..], &["--resume"], &["--set", "run.resume=auto"], &["--overwrite"]] {
        let outcome = world.run(&[&[file][..], more].concat());
        assert_eq!(outcome.code, code, "{more:?}: {}", outcome.stderr);
        outcome.says(says);
        assert!(world.files() == before, "{more:?}");
    }
    let checked = world.run(&["check", file]);
    assert_eq!(checked.code, code, "{}", checked.stderr);
    checked.says(says);
    assert!(world.files() == before);
}

#[test]
fn a_hand_written_file_of_one_of_our_names_is_left_alone() {
    for name in ["config.toml", "config.json", "metrics.jsonl", "last.pt", "best.pt", "run.json", "git.diff"]
    {
        let world = World::new();
        fs::create_dir(world.path("exp")).unwrap();
        world.write(&format!("exp/{name}"), TINY);
        world.write("exp.toml", TINY.replace("\"run\"", "\"exp\""));
        // The experiment's own file, where it is that.
        let file = if name == "config.toml" { "exp/config.toml" } else { "exp.toml" };
        world.write(file, TINY.replace("\"run\"", "\"exp\""));
        let says = format!("run.work_dir exp has a {name} that no run has written");
        refused(&world, file, 2, &[&says, "hint: choose another run.work_dir"]);
    }
}

#[test]
fn a_broken_clip_takes_nothing_away_but_what_its_run_has_made() {
    let world = World::new();
    let (_, frames) = world.clip();
    fs::write(&frames[0], "no JPEG").unwrap();
    fs::create_dir(world.path("run")).unwrap();
    world.write("run/config.toml", TINY);
    let before = world.files();
    assert_ne!(world.run(&["run/config.toml", "--resume"]).code, 0);
    assert!(world.files() == before);
}

#[test]
fn pipes_and_folders_in_the_place_of_a_run_s_files_are_refused() {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs", "1"]);
    for name in ["metrics.jsonl", "config.toml", "run.json", ".slt-run.lock", "git.diff"] {
        let path = world.path("run").join(name);
        let good = fs::read(&path).ok();
        let _ = fs::remove_file(&path);
        for kind in ["pipe", "folder"] {
            match kind {
                "pipe" => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
                _ => fs::create_dir(&path).unwrap(),
            }
            let what = if kind == "pipe" { "a named pipe" } else { "a folder" };
            for more in [&["--resume"][..], &["--overwrite"], &[]] {
                let outcome = world.run(&[&["tiny.toml", "--epochs", "2"][..], more].concat());
                assert_eq!(outcome.code, 2, "{name} {more:?}: {}", outcome.stderr);
                outcome.says(&[&format!("run.work_dir run: {name} is {what}, not a regular file"), "hint: "]);
            }
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
        }
        good.into_iter().for_each(|good| fs::write(&path, good).unwrap());
    }
    world.ok(&["tiny.toml", "--epochs", "2", "--resume"]);
}

#[test]
fn a_run_whose_checkpoints_are_gone_is_refused_with_the_ways_on() {
    let world = World::new();
    world.ok(&["tiny.toml"]);
    let keep = [fs::read(world.path("run/last.pt")).unwrap(), fs::read(world.path("run/best.pt")).unwrap()];
    for name in ["last.pt", "best.pt"] {
        fs::remove_file(world.path("run").join(name)).unwrap();
    }
    let gone = |more: &[&str], says: &[&str]| {
        let before = world.files();
        let outcome = world.run(&[&["tiny.toml", "--epochs", "3"][..], more].concat());
        assert_eq!(outcome.code, 2, "{}", outcome.stderr);
        outcome.says(says).says(&["--overwrite", "another run.work_dir"]);
        assert!(world.files() == before);
    };
    for more in [&["--resume"][..], &["--set", "run.resume=auto"]] {
        gone(
            more,
            &["run.work_dir run holds a run whose checkpoints are gone", "metrics.jsonl tells of 2 epochs"],
        );
    }
    // As version 0.1.0 left it.
    let mut run = run_json(&world, "run");
    run.as_object_mut().unwrap().remove("saved").unwrap();
    world.write("run/run.json", run.to_string());
    gone(&["--resume"], &["holds a run whose checkpoints are gone"]);
    // On a disk that is not mounted.
    fs::create_dir(world.path("disk")).unwrap();
    for name in ["last.pt", "best.pt"] {
        symlink(format!("../disk/{name}"), world.path("run").join(name)).unwrap();
    }
    let dangling = "run.work_dir run: last.pt is a link that leads nowhere: ../disk/last.pt";
    // The walk of `files` follows links, so only the refusal is looked at.
    world.run(&["tiny.toml", "--epochs", "3", "--resume"]).says(&[
        dangling,
        "best.pt is a link",
        "mount the disk",
    ]);
    // Mounted again, it goes on.
    fs::write(world.path("disk/last.pt"), &keep[0]).unwrap();
    fs::write(world.path("disk/best.pt"), &keep[1]).unwrap();
    world.ok(&["tiny.toml", "--epochs", "3", "--resume"]);
    assert!(
        fs::read(world.path("disk/last.pt")).unwrap() == keep[0],
        "what a link leads to is not written over"
    );
    assert_eq!(world.checkpoint("run/last.pt").epoch, 3);
}

/// A rate that grows: the best epoch is an early one.
const EARLY_BEST: &[&str] = &[
    "tiny.toml",
    "--optimizer=sgd",
    "--lr=0.05",
    "--scheduler=steplr",
    "--scheduler-step-size=1",
    "--scheduler-gamma=3",
];

#[test]
fn a_best_checkpoint_that_is_gone_is_said_and_written_again() {
    let world = World::new();
    world.ok(&[EARLY_BEST, &["--epochs=5"]].concat());
    let best = run_json(&world, "run")["best"]["epoch"].as_u64().unwrap();
    assert!(best < 5, "{best}");
    fs::remove_file(world.path("run/best.pt")).unwrap();
    let said = format!("warning: best.pt is gone, and with it epoch {best}, the best (val_loss=");
    let outcome = world.ok(&[EARLY_BEST, &["--epochs=6", "--resume"]].concat());
    outcome.says(&[&said, "epoch 5, the last one, takes its place"]);
    let (run, found) = (run_json(&world, "run"), world.checkpoint("run/best.pt"));
    assert!(found.epoch >= 5);
    assert_eq!((found.epoch as u64, found.val_loss), {
        let best = &run["best"];
        (best["epoch"].as_u64().unwrap(), best["val_loss"].as_f64().unwrap())
    });
    // Also where nothing is left to train.
    fs::remove_file(world.path("run/best.pt")).unwrap();
    world.ok(&[EARLY_BEST, &["--epochs=6", "--resume"]].concat());
    assert!(world.path("run/best.pt").exists());
}

#[test]
fn a_folder_that_is_renamed_under_a_run_takes_the_run_along() {
    let world = World::new();
    let first = start(&world, &["tiny.toml", "--epochs=1000000", "--tensorboard=run/tb"]);
    wait_until(|| world.path("run/best.pt").exists());
    fs::rename(world.path("run"), world.path("moved")).unwrap();
    world.ok(&["tiny.toml", "--epochs=3"]);
    let stopped = outcome(first);
    assert_eq!(stopped.code, 1, "{}", stopped.stderr);
    let moved = fs::canonicalize(world.path("moved")).unwrap();
    stopped.says(&[
        "run.work_dir run is not this run's folder any more: it was renamed or replaced",
        &format!("go on with --work-dir {} --resume", moved.display()),
    ]);
    // The second run is as if it had been alone.
    assert_eq!(world.checkpoint("run/last.pt").epoch, 3);
    assert_eq!(world.read("run/metrics.jsonl").lines().count(), 3);
    assert_eq!(run_json(&world, "run")["ended"]["how"], "finished");
    assert!(!world.path("run/tb").exists());
    // And the first one goes on where it is, with what it has saved.
    let epoch = world.checkpoint("moved/last.pt").epoch;
    assert_eq!(world.read("moved/metrics.jsonl").lines().count(), epoch);
    assert!(run_json(&world, "moved")["ended"]["how"].as_str().unwrap().contains("renamed or replaced"));
    let epochs = (epoch + 1).to_string();
    world.ok(&["tiny.toml", "--work-dir=moved", "--resume", "--epochs", &epochs]);
    assert_eq!(world.checkpoint("moved/last.pt").epoch, epoch + 1);
}

#[test]
fn a_run_whose_lock_another_one_has_taken_writes_nothing_more() {
    let world = World::new();
    let first = start(&world, &["tiny.toml", "--epochs=1000000"]);
    wait_until(|| world.path("run/best.pt").exists());
    // Somebody takes the lock for a leftover, and another machine's process comes.
    let other = "{\"pid\":7,\"host\":\"node7\",\"started\":\"2026\",\"beat\":0}\n";
    world.write("lock", other);
    fs::rename(world.path("lock"), world.path("run/.slt-run.lock")).unwrap();
    let stopped = outcome(first);
    assert_eq!(stopped.code, 1, "{}", stopped.stderr);
    stopped.says(&["run.work_dir run is process 7 on node7's now: its lock is not this run's any more"]);
    assert_eq!(world.read("run/.slt-run.lock"), other);
    let epoch = world.checkpoint("run/last.pt").epoch;
    assert_eq!(world.read("run/metrics.jsonl").lines().count(), epoch);
    assert_eq!(run_json(&world, "run")["ended"], Json::Null);
}

#[test]
fn a_lock_that_is_removed_under_a_run_is_taken_again() {
    let world = World::new();
    let first = start(&world, &["tiny.toml", "--epochs=1000000"]);
    wait_until(|| world.path("run/best.pt").exists());
    fs::remove_file(world.path("run/.slt-run.lock")).unwrap();
    wait_until(|| world.path("run/.slt-run.lock").exists());
    world.run(&["tiny.toml", "--resume"]).says(&["run.work_dir run is in use: process "]);
    assert_eq!(crate::resume::signal(first, "-TERM").code, 143);
}

#[test]
fn best_and_last_are_two_files_when_a_run_has_ended() {
    let world = World::new();
    let two = || {
        let [last, best] = ["run/last.pt", "run/best.pt"].map(|name| fs::metadata(world.path(name)).unwrap());
        (last.ino() != best.ino(), last.nlink(), best.nlink())
    };
    world.ok(&["tiny.toml"]);
    let last = fs::read(world.path("run/last.pt")).unwrap();
    assert!(last == fs::read(world.path("run/best.pt")).unwrap(), "the last epoch is the best");
    assert_eq!(two(), (true, 1, 1));
    // As `torch.save` writes: into the file that is there.
    world.write("run/best.pt", "edited");
    assert!(fs::read(world.path("run/last.pt")).unwrap() == last);
    // A resume without anything to do puts the best in order, and leaves two files, too.
    world.ok(&["tiny.toml", "--resume"]);
    assert_eq!(two(), (true, 1, 1));
    assert!(fs::read(world.path("run/best.pt")).unwrap() == last);
    // One that a signal ends does.
    let child = start(&world, &["tiny.toml", "--resume", "--epochs=1000000"]);
    wait_until(|| world.read("run/metrics.jsonl").lines().count() > 4);
    crate::resume::signal(child, "-TERM").says(&["stopped by SIGTERM"]);
    assert_eq!(two(), (true, 1, 1));
}

#[test]
fn overwriting_moves_the_run_and_nothing_of_another_one_below_its_folder() {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs=1", "--tensorboard=run/tb/mine"]);
    world.ok(&["tiny.toml", "--epochs=1", "--work-dir=run/b", "--tensorboard=run/tb/theirs"]);
    let theirs = |world: &World| {
        let mut files = world.files();
        files.retain(|name, _| name.starts_with("run/b/") || name.starts_with("run/tb/theirs/"));
        files
    };
    let before = theirs(&world);
    assert!(before.len() > 7);
    world.ok(&["tiny.toml", "--epochs=1", "--overwrite"]).says(&["the run that was in run is now in "]);
    assert!(theirs(&world) == before);
    assert!(!world.path("run/tb/mine").exists());
    let files = world.files();
    let aside =
        files.keys().find(|name| name.starts_with("run.20")).unwrap().trim_end_matches('/').to_owned();
    let moved = files.keys().filter(|name| name.starts_with(&format!("{aside}/tb/mine/events")));
    assert_eq!(moved.count(), 1);
    assert!(files.contains_key(&format!("{aside}/last.pt")));
}

#[test]
fn lines_that_a_person_added_to_the_metrics_are_kept() {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs=1"]);
    let first = world.read("run/metrics.jsonl");
    let notes = "# warmer here\n{\"epoch\": 9, \"note\": \"looks odd\"}\n";
    world.write("run/metrics.jsonl", format!("{notes}{first}and a last word"));
    world.ok(&["tiny.toml", "--epochs=2", "--resume"]);
    let text = world.read("run/metrics.jsonl");
    assert!(text.starts_with(&format!("{notes}{first}and a last word\n{{\"epoch\":2,")), "{text}");
    assert_eq!(text.lines().count(), 5);
}

#[test]
fn curves_that_land_beside_another_run_s_are_said() {
    let world = World::new();
    let first = world.ok(&["tiny.toml", "--epochs=1", "--work-dir=first", "--tensorboard=curves"]);
    assert!(!first.stderr.contains("warning: "), "{}", first.stderr);
    let second = world.ok(&["tiny.toml", "--epochs=1", "--work-dir=second", "--tensorboard=curves"]);
    let name = fs::canonicalize(world.path("first")).unwrap();
    second.says(&[
        &format!("warning: curves has the curves of the run in {}", name.display()),
        "data.tensorboard",
    ]);
    // A run's own files are no other's, in whichever folder they are named.
    let again =
        world.ok(&["tiny.toml", "--epochs=2", "--work-dir=first", "--tensorboard=./curves/", "--resume"]);
    assert!(
        again.stderr.contains("the run in ") && !again.stderr.contains(name.to_str().unwrap()),
        "{}",
        again.stderr
    );
    let anew =
        world.ok(&["tiny.toml", "--epochs=1", "--work-dir=first", "--tensorboard=curves", "--overwrite"]);
    anew.says(&[&format!("an earlier run in {}", name.display())]);
}

#[test]
fn how_a_run_was_asked_for_and_how_it_ended_are_in_run_json() {
    let world = World::new();
    world.write("base.toml", "[model]\nprojector_dropout = 0.25\n");
    let mut command = world.command(&["tiny.toml", "base.toml", "--epochs=3", "--set", "run.seed=9"]);
    let first = Outcome::of(&command.env("SLT_OPTIMIZATION__LR", "0.002").output().unwrap());
    assert_eq!(first.code, 0, "{}", first.stderr);
    first.says(&[
        "override: optimization.epochs = 3 (--epochs 3)\n",
        "override: optimization.lr = 0.002 (env SLT_OPTIMIZATION__LR)\n",
        "override: run.seed = 9 (--set run.seed=9)\n",
    ]);
    assert!(!first.stderr.contains("projector_dropout"), "{}", first.stderr);
    let run = run_json(&world, "run");
    let keys: Vec<_> =
        run["overrides"].as_array().unwrap().iter().map(|o| o["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["optimization.epochs", "optimization.lr", "run.seed"]);
    assert_eq!(run["overrides"][1]["origin"], "env SLT_OPTIMIZATION__LR");

    let metrics = world.read("run/metrics.jsonl");
    let lines: Vec<Json> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let loss = |line: &&Json| line["val_loss"].as_f64().unwrap();
    let best = lines.iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap();
    for key in ["epoch", "val_loss", "val_accuracy"] {
        assert_eq!(run["best"][key], best[key], "{key}");
    }
    let line = format!(
        ": the best is epoch {} - val_loss={:.4} - val_accuracy={:.4}; the run is in run",
        best["epoch"],
        loss(&best),
        best["val_accuracy"].as_f64().unwrap()
    );
    assert!(first.stderr.lines().last().unwrap().ends_with(&line), "{}", first.stderr);
    let ended = |run: &Json| {
        (run["ended"]["how"].clone(), run["ended"]["epoch"].as_u64(), run["ended"]["step"].as_u64())
    };
    assert_eq!(ended(&run), ("finished".into(), Some(3), Some(6)));

    // A signal, with the best epoch so far; what ended the start before is kept beside the next one.
    let args = ["tiny.toml", "base.toml", "--epochs=1000000", "--lr=0.002", "--seed=9", "--resume"];
    let child = start(&world, &args);
    wait_until(|| world.read("run/metrics.jsonl").lines().count() > 4);
    assert_eq!(run_json(&world, "run")["ended"], Json::Null);
    crate::resume::signal(child, "-TERM").says(&["saved in run/last.pt", "; the best so far is epoch "]);
    let run = run_json(&world, "run");
    assert_eq!(
        (ended(&run).0, &run["resumed"][0]["after"]["how"]),
        ("stopped by SIGTERM".into(), &"finished".into())
    );
    // An error.
    let (_, frames) = world.clip();
    let child = start(&world, &args);
    let lines = world.read("run/metrics.jsonl").lines().count();
    wait_until(|| world.read("run/metrics.jsonl").lines().count() > lines);
    fs::write(frames.last().unwrap(), "no JPEG").unwrap();
    assert_eq!(outcome(child).code, 3);
    let how = ended(&run_json(&world, "run")).0;
    assert!(how.as_str().unwrap().contains("cannot load the clip"), "{how}");
}

#[test]
fn a_hang_up_saves_and_stops_unless_nohup_holds_it_off() {
    let world = World::new();
    // Where the tests themselves run under nohup, what they start cannot be stopped by a hang-up.
    if !hang_ups_are_ignored() {
        let child = start(&world, &["tiny.toml", "--epochs=1000000"]);
        wait_until(|| world.path("run/best.pt").exists());
        let stopped = crate::resume::signal(child, "-HUP");
        assert_eq!(stopped.code, 129, "{}", stopped.stderr);
        stopped.says(&["stopped by SIGHUP", "saved in run/last.pt"]);
    }

    let child = world.command(&["tiny.toml", "--epochs=300", "--work-dir=held"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(child.get_program()).args(child.get_args());
    let child = shell.current_dir(world.path("")).stderr(Stdio::piped()).spawn().unwrap();
    wait_until(|| world.path("held/best.pt").exists());
    let ended = crate::resume::signal(child, "-HUP");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(world.checkpoint("held/last.pt").epoch, 300);
}

/// Whether this process ignores SIGHUP, signal 1, which its children then do as well.
fn hang_ups_are_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

fn git(world: &World, line: &str) {
    let mut command = Command::new("git");
    command.current_dir(world.path("")).args(["-c", "user.name=a", "-c", "user.email=a@b"]);
    assert!(command.args(line.split(' ')).output().unwrap().status.success(), "{line}");
}

#[test]
fn an_experiment_that_git_does_not_know_is_kept_in_the_diff() {
    let world = World::new();
    world.write("base.toml", TINY);
    world.write("mine.toml", "extends = [\"new.toml\"]\n");
    world.write("new.toml", "extends = [\"base.toml\"]\n[model]\nprojector_dropout = 0.25\n");
    git(&world, "init");
    git(&world, "add base.toml mine.toml");
    git(&world, "commit -m x");
    world.ok(&["mine.toml", "--epochs=1"]);
    let first = world.read("run/git.diff");
    assert_eq!(run_json(&world, "run")["git"]["dirty"], true);
    assert!(first.contains("+++ b/new.toml") && first.contains("+projector_dropout = 0.25"), "{first}");
    assert!(!first.contains("tiny.toml"), "{first}");

    // What is changed by a resume is beside it; what is not is not written twice.
    world.ok(&["mine.toml", "--epochs=2", "--resume"]);
    assert_eq!(run_json(&world, "run")["resumed"][0]["git"]["diff"], "git.diff");
    world.write("mine.toml", "extends = [\"new.toml\"]\n# another day\n");
    world.ok(&["mine.toml", "--epochs=3", "--resume"]);
    assert_eq!(run_json(&world, "run")["resumed"][1]["git"]["diff"], "git-2.diff");
    assert_eq!(world.read("run/git.diff"), first);
    assert!(world.read("run/git-2.diff").contains("+# another day"));
    assert!(!world.path("run/git-3.diff").exists());
}

#[test]
fn without_an_experiment_file_it_is_the_working_directory_s_repository() {
    let world = World::new();
    git(&world, "init");
    git(&world, "add tiny.toml");
    git(&world, "commit -m x");
    let table: toml::Table = TINY.parse().unwrap();
    let mut args = Vec::new();
    for section in ["data", "model", "optimization", "run"] {
        for (name, value) in table[section].as_table().unwrap() {
            if let Some(fields) = value.as_table() {
                args.extend(
                    fields.iter().map(|(field, value)| format!("--set=model.{name}.{field}={value}")),
                );
            } else {
                args.push(format!("--set={section}.{name}={}", value.to_string().trim_matches('"')));
            }
        }
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let outcome = world.ok(&args);
    assert!(!outcome.stderr.contains("override: "), "{}", outcome.stderr);
    let run = run_json(&world, "run");
    assert_eq!(run["git"]["commit"].as_str().map(str::len), Some(40));
    assert_eq!(run["overrides"].as_array().map(Vec::len), Some(args.len()));
}
