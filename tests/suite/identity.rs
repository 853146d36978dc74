//! What a run is: its data by what they are, its folder, what it began with, and what it was changed by.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value as Json;
use slt_run::checkpoint::{Value, load, save};

use crate::support::{Outcome, World, npz};

/// The folders and tables of the tests' experiment, with their fields.
const DATA: [(&str, &str); 7] = [
    ("face-dir", "face"),
    ("hand-left-dir", "hand_l"),
    ("hand-right-dir", "hand_r"),
    ("pose-dir", "pose"),
    ("metadata-csv", "subs.csv"),
    ("train-index", "index/train.csv"),
    ("val-index", "index/val.csv"),
];

/// Flags that lead to the data in `root`.
fn data_in(root: &str) -> Vec<String> {
    DATA.iter().map(|(flag, name)| format!("--{flag}={root}/{name}")).collect()
}

fn run(world: &World, args: &[&str], more: &[String]) -> Outcome {
    let more = more.iter().map(String::as_str);
    world.run(&args.iter().copied().chain(more).collect::<Vec<_>>())
}

fn json(world: &World, file: &str) -> Json {
    serde_json::from_str(&world.read(file)).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = (entry.as_ref().unwrap().path(), entry.unwrap().file_name());
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            fs::copy(path, to.join(name)).unwrap();
        }
    }
}

/// The changes of a run's last resumption: key, and whether the data only moved.
fn changes(world: &World, folder: &str) -> Vec<(String, bool)> {
    let run = json(world, &format!("{folder}/run.json"));
    let last = run["resumed"].as_array().unwrap().last().unwrap().clone();
    let change = |c: &Json| (c["key"].as_str().unwrap().to_owned(), c["moved"] == Json::Bool(true));
    last["changes"].as_array().unwrap().iter().map(change).collect()
}

#[test]
fn data_that_moved_are_the_same() {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs=3", "--work-dir=whole"]);
    let whole = world.checkpoint("whole/last.pt");
    // A copy with other times, on "another node", and the first data gone.
    copy(&world.path("data"), &world.path("job/scratch"));
    let old = SystemTime::now() - Duration::from_hours(10_000);
    for entry in fs::read_dir(world.path("job/scratch/face")).unwrap() {
        let file = fs::File::options().append(true).open(entry.unwrap().path()).unwrap();
        file.set_modified(old).unwrap();
    }
    let absolute = world.path("job/scratch").to_str().unwrap().to_owned();
    for (n, root) in [absolute.as_str(), "job//scratch/", "./data/../job/scratch"].iter().enumerate() {
        let folder = format!("--work-dir=run{n}");
        world.ok(&["tiny.toml", "--epochs=1", &folder]);
        let resumed = run(&world, &["tiny.toml", "--epochs=3", "--resume", &folder], &data_in(root));
        assert_eq!(resumed.code, 0, "{}", resumed.stderr);
        resumed.says(&["the data have moved and are the same (data.face_dir, data.hand_left_dir"]);
        let found = changes(&world, &format!("run{n}"));
        let moved: Vec<_> = found.iter().filter(|(_, moved)| *moved).map(|(key, _)| key.as_str()).collect();
        assert_eq!(moved.len(), 7, "{found:?}");
        assert!(moved.iter().all(|key| key.starts_with("data.")), "{found:?}");
        assert!(found.contains(&("optimization.epochs".to_owned(), false)), "{found:?}");
        let last = world.checkpoint(&format!("run{n}/last.pt"));
        assert!(last.model == whole.model && last.optimizer_state == whole.optimizer_state);
        assert!(!world.read(&format!("run{n}/config.toml")).contains("changed"));
    }
    // A slash at the end of one folder.
    let slash = run(
        &world,
        &["tiny.toml", "--epochs=4", "--resume", "--work-dir=whole"],
        &["--face-dir=data/face/".to_owned()],
    );
    assert_eq!(slash.code, 0, "{}", slash.stderr);
    assert!(changes(&world, "whole").contains(&("data.face_dir".to_owned(), true)));
}

#[test]
fn other_contents_are_other_data() {
    let world = World::new();
    world.ok(&["tiny.toml"]);
    let (id, frames) = world.clip();
    let pose = world.path(&format!("data/pose/{id}.npz"));
    let good = fs::read(&pose).unwrap();
    // Another pose of the same shape, and so of the same size.
    let rows = frames.len();
    let numbers = |value: f32| (0..rows * 39).flat_map(|_| value.to_le_bytes()).collect::<Vec<u8>>();
    let poses = [0.25, 0.5].map(|value| npz("pose", "'<f4'", &format!("({rows}, 39)"), &numbers(value)));
    let frame = fs::read(frames.last().unwrap()).unwrap();
    let longer = [frame.as_slice(), b"x"].concat();
    for (path, bytes, back) in [(&pose, &poses[0], &good), (frames.last().unwrap(), &longer, &frame)] {
        fs::write(path, bytes).unwrap();
        let refused = world.run(&["tiny.toml", "--resume", "--epochs=3"]);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        let named = format!("the content of the frames and poses (1 of 8 clips: {id}) was ");
        refused.says(&[&named, " bytes (", "--allow-changes"]);
        fs::write(path, back).unwrap();
    }
    // What breaks while a run that may skip it trains does not stop it.
    fs::write(&pose, &poses[0]).unwrap();
    let skipping = world.ok(&["tiny.toml", "--resume", "--epochs=3", "--on-bad-clip=skip"]);
    skipping.says(&["warning: the content of the frames and poses (1 of 8 clips: "]);
    // But another folder is other data, and both are named.
    copy(&world.path("data"), &world.path("other"));
    fs::write(world.path(&format!("other/pose/{id}.npz")), &poses[1]).unwrap();
    let args = ["tiny.toml", "--resume", "--epochs=4", "--on-bad-clip=skip", "--pose-dir=other/pose"];
    let before = world.files();
    let refused = world.run(&args);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    refused.says(&[
        "the content of the frames and poses (1 of 8 clips: ",
        "data.pose_dir was \"data/pose\" in run/last.pt and is \"other/pose\" (--pose-dir other/pose) now",
    ]);
    assert_eq!(world.files(), before);
    world.ok(&[&args[..], &["--allow-changes"]].concat());
    assert!(
        world.read("run/config.toml").contains("#   data.pose_dir was \"data/pose\" and is \"other/pose\"")
    );
}

/// A checkpoint that does not know what its data held knows them by their paths.
#[test]
fn old_checkpoints_know_their_data_by_their_paths() {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs=1"]);
    let path = world.path("run/last.pt");
    let Value::Dict(mut items) = load(&path).unwrap() else { panic!() };
    items.retain(|(key, _)| key.as_str() != Some("contents"));
    save(&path, &Value::Dict(items)).unwrap();
    copy(&world.path("data/face"), &world.path("faces"));
    let refused = world.run(&["tiny.toml", "--epochs=2", "--resume", "--face-dir=faces"]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    refused.says(&["data.face_dir was \"data/face\" in run/last.pt and is \"faces\""]);
    world.ok(&["tiny.toml", "--epochs=2", "--resume", "--face-dir=./data/face/"]);
    // From here on it knows.
    world.ok(&["tiny.toml", "--epochs=3", "--resume", "--face-dir=faces"]);
}

#[test]
fn a_run_s_folder_is_enough_to_go_on() {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs=3", "--seed=5", "--work-dir=whole"]);
    let whole = world.checkpoint("whole/last.pt").model;
    let start = |folder: &str| world.ok(&["tiny.toml", "--epochs=1", "--seed=5", "--work-dir", folder]);
    start("run");
    let before = world.files();
    world.run(&["run"]).says(&["run.work_dir run holds a run already", "--resume"]);
    assert_eq!(world.files(), before);
    assert!(world.ok(&["check", "run", "--resume"]).stdout.contains("everything is in order"));
    world.ok(&["run/", "--resume", "--epochs=3"]);
    assert!(world.checkpoint("run/last.pt").model == whole);
    assert!(world.read("run/config.toml").contains("work_dir = \"run\"\n"));
    // Moved, and from somewhere else.
    start("second");
    fs::create_dir_all(world.path("far/away")).unwrap();
    fs::rename(world.path("second"), world.path("far/moved")).unwrap();
    let mut command = world.command(&["../moved", "--resume", "--set", "optimization.epochs=3"]);
    let resumed = Outcome::of(&command.current_dir(world.path("far/away")).output().unwrap());
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(world.checkpoint("far/moved/last.pt").model == whole);
    assert!(!world.path("second").exists() && !world.path("far/away/second").exists());
    // Again from there: where the data are is written down now.
    let mut command = world.command(&["moved", "--resume", "--epochs=4"]);
    let resumed = Outcome::of(&command.current_dir(world.path("far")).output().unwrap());
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    // Elsewhere it is a new run of the same experiment.
    world.ok(&["run", "--work-dir=again"]);
    assert!(world.checkpoint("again/last.pt").model == whole);
    // A folder of something else is none.
    world.write("far/config.toml", "[run]\nwork_dir = \"far\"\n");
    let refused = world.run(&["far", "--resume"]);
    assert_eq!(refused.code, 2);
    refused.says(&["it is a folder; give far/config.toml"]);
}

/// Two checkpoints to begin from, which are a run's.
fn with_weights() -> World {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs=1", "--seed=1", "--work-dir=one"]);
    world.ok(&["tiny.toml", "--epochs=1", "--seed=2", "--work-dir=two"]);
    fs::copy(world.path("one/last.pt"), world.path("w.pt")).unwrap();
    world
}

/// The SHA-1 of a file, by another program than ours.
fn sha1(path: PathBuf) -> String {
    let output = std::process::Command::new("sha1sum").arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn what_a_run_begins_with_is_part_of_it() {
    let world = with_weights();
    let (one, two) = (sha1(world.path("w.pt")), sha1(world.path("two/last.pt")));
    let begun = world.ok(&["tiny.toml", "--init-from", "w.pt"]);
    begun.says(&[&format!("the weights begin as those of w.pt (SHA-1 {one})")]);
    let pinned = format!("w.pt@sha1:{one}");
    assert!(world.read("run/config.toml").contains(&format!("init_from = \"{pinned}\"\n")));
    assert_eq!(json(&world, "run/config.json")["run"]["init_from"], pinned.as_str());
    let last = world.checkpoint("run/last.pt");
    let (_, config) = last.extra.iter().find(|(key, _)| key == "config").unwrap();
    assert!(config.as_str().unwrap().contains(&pinned));
    // The snapshot begins with the same file, in every layer.
    world.ok(&["run/config.toml", "--work-dir=again"]);
    assert!(fs::read(world.path("again/last.pt")).unwrap() == fs::read(world.path("run/last.pt")).unwrap());
    world.ok(&["tiny.toml", "--set", "run.init_from=w.pt", "--work-dir=set"]);
    assert!(fs::read(world.path("set/last.pt")).unwrap() == fs::read(world.path("run/last.pt")).unwrap());
    let drawn = world.ok(&["run/config.toml", "--work-dir=drawn", "--init-from="]);
    assert!(!drawn.stderr.contains("the weights begin"), "{}", drawn.stderr);
    assert!(world.checkpoint("drawn/last.pt").model != last.model);
    // And with no other one.
    fs::copy(world.path("two/last.pt"), world.path("w.pt")).unwrap();
    let before = world.files();
    for command in
        [&["run/config.toml", "--work-dir=new"][..], &["check", "run/config.toml", "--work-dir=new"]]
    {
        let refused = world.run(command);
        assert_eq!(refused.code, 3, "{}", refused.stderr);
        refused.says(&["run.init_from w.pt is not the file it was", &one, &two, "--init-from w.pt"]);
    }
    assert_eq!(world.files(), before);
    // The flag puts the digest off with the path.
    world.ok(&["run/config.toml", "--work-dir=new", "--init-from=w.pt"]);
    assert!(world.read("new/config.toml").contains(&format!("init_from = \"w.pt@sha1:{two}\"")));
}

#[test]
fn a_resume_knows_what_the_run_began_with() {
    let world = with_weights();
    let (one, two) = (sha1(world.path("one/last.pt")), sha1(world.path("two/last.pt")));
    let args = |more: &[&'static str]| [&["tiny.toml"][..], more].concat();
    world.ok(&args(&["--init-from=w.pt", "--epochs=3", "--work-dir=whole"]));
    world.ok(&args(&["--init-from=w.pt", "--epochs=1"]));
    let refused = |more: &[&'static str], says: &[&str]| {
        let before = world.files();
        let outcome = world.run(&args(&[&["--resume", "--epochs=3"], more].concat()));
        assert_eq!(outcome.code, 2, "{}", outcome.stderr);
        outcome.says(says).says(&["--allow-changes"]);
        assert_eq!(world.files(), before);
    };
    let was = format!("run.init_from was \"w.pt@sha1:{one}\" in run/last.pt and is ");
    refused(
        &["--init-from=two/last.pt"],
        &[&format!("{was}\"two/last.pt@sha1:{two}\" (--init-from two/last.pt)")],
    );
    refused(&[], &[&format!("{was}\"\" (default)")]);
    fs::copy(world.path("two/last.pt"), world.path("w.pt")).unwrap();
    refused(&["--init-from=w.pt"], &[&format!("{was}\"w.pt@sha1:{two}\"")]);
    fs::remove_file(world.path("w.pt")).unwrap();
    refused(&["--init-from=none.pt"], &[&format!("{was}\"none.pt\"")]);
    // The weights have gone into last.pt: their file is not needed, and a copy is as good.
    world.ok(&args(&["--init-from=w.pt", "--resume", "--epochs=2"]));
    assert!(world.read("run/config.toml").contains(&format!("init_from = \"w.pt@sha1:{one}\"")));
    world.ok(&args(&["--init-from=one/last.pt", "--resume", "--epochs=3"]));
    assert!(changes(&world, "run").contains(&("run.init_from".to_owned(), false)));
    let [whole, last] = ["whole/last.pt", "run/last.pt"].map(|name| world.checkpoint(name));
    assert!(last.model == whole.model && last.optimizer_state == whole.optimizer_state);
    world.ok(&args(&["--resume", "--epochs=4", "--allow-changes"]));
    assert!(world.read("run/config.toml").contains("#   run.init_from was "));
}

/// The key of before this was a field is missing: nobody knows what such a run began with, and it goes on.
#[test]
fn older_runs_do_not_say_what_they_began_with() {
    let world = with_weights();
    world.ok(&["tiny.toml", "--epochs=1"]);
    edit(&world, |key, value| {
        if let ("config", Value::Str(config)) = (key, value) {
            *config = config.replace("init_from = \"\"\n", "");
        }
    });
    world.ok(&["tiny.toml", "--resume", "--epochs=2", "--init-from=w.pt"]);
    // The file may be another one by now.
    assert!(world.read("run/config.toml").contains("init_from = \"w.pt\"\n"));
    world.ok(&["tiny.toml", "--resume", "--epochs=3", "--init-from=w.pt"]);
}

#[test]
fn check_begins_as_the_run_does() {
    let world = with_weights();
    let digest = sha1(world.path("w.pt"));
    let before = world.files();
    let plain = world.ok(&["check", "tiny.toml"]);
    let checked = world.ok(&["check", "tiny.toml", "--init-from=w.pt"]);
    checked.says(&[&digest]);
    let loss = |outcome: &Outcome| {
        let line = outcome.stdout.lines().find(|line| line.starts_with("one step")).unwrap().to_owned();
        line.split(';').next().unwrap().to_owned()
    };
    assert_ne!(loss(&plain), loss(&checked));
    let misfit = world.run(&["check", "tiny.toml", "--init-from=w.pt", "--d-model=32"]);
    assert_eq!(misfit.code, 3, "{}", misfit.stderr);
    misfit.says(&["w.pt has parameters of another shape"]);
    let missing = world.run(&["check", "tiny.toml", "--init-from=none.pt"]);
    assert_eq!(missing.code, 3);
    missing.says(&["none.pt", "No such file"]);
    assert_eq!(world.files(), before);
    // A run that goes on does not need the file.
    world.ok(&["tiny.toml", "--init-from=w.pt", "--epochs=1"]);
    fs::remove_file(world.path("w.pt")).unwrap();
    world.ok(&["check", "tiny.toml", "--init-from=w.pt", "--resume"]);
}

#[test]
fn a_changed_run_says_what_was_changed_at_which_step() {
    let world = World::new();
    let comments = |file: &str| -> Vec<String> {
        world.read(file).lines().filter(|l| l.starts_with("#   ")).map(str::to_owned).collect()
    };
    world.ok(&["tiny.toml"]);
    world.ok(&["tiny.toml", "--epochs=3", "--resume"]);
    let untouched = world.read("run/config.toml");
    assert!(!untouched.contains("does not repeat"), "{untouched}");
    world.ok(&["tiny.toml", "--epochs=4", "--resume", "--lr=0.5", "--allow-changes"]);
    let first = "#   optimization.lr was 0.001 and is 0.5 after step 6 (epoch 3)".to_owned();
    assert!(world.read("run/config.toml").contains("and this file does not repeat it:\n"));
    assert_eq!(comments("run/config.toml"), std::slice::from_ref(&first));
    // Later starts add theirs, and keep what was there.
    world.ok(&["tiny.toml", "--epochs=5", "--resume", "--lr=0.5"]);
    assert_eq!(comments("run/config.toml"), std::slice::from_ref(&first));
    world.ok(&["run", "--resume", "--epochs=6", "--weight-decay=0.25", "--grad-clip=1", "--allow-changes"]);
    let expected = [
        first.as_str(),
        "#   optimization.weight_decay was 0.0 and is 0.25 after step 10 (epoch 5)",
        "#   optimization.grad_clip was \"\" and is 1.0 after step 10 (epoch 5)",
    ];
    assert_eq!(comments("run/config.toml"), expected);
    let edits = &json(&world, "run/config.json")["edits"];
    assert_eq!((&edits[0]["step"], &edits[1]["key"]), (&6.into(), &"optimization.weight_decay".into()));
    let last = world.checkpoint("run/last.pt");
    let (_, config) = last.extra.iter().find(|(key, _)| key == "config").unwrap();
    assert!(expected.iter().all(|line| config.as_str().unwrap().contains(line)));
    // It is an experiment file all the same, and a run of it has not been changed.
    world.ok(&["run/config.toml", "--work-dir=new", "--epochs=1"]);
    assert_eq!(comments("new/config.toml"), [""; 0]);
    edit(&world, |key, value| {
        if key == "edits" {
            *value = Value::Int(3);
        }
    });
    let damaged = world.run(&["run", "--resume", "--epochs=7"]);
    assert_eq!(damaged.code, 3, "{}", damaged.stderr);
    damaged.says(&["`edits` should list what the run was changed by"]);
}

/// Other heads are another function of the same parameters.
#[test]
fn the_same_shapes_may_be_another_network() {
    let world = World::new();
    world.ok(&["tiny.toml"]);
    let before = world.files();
    for (setting, key) in [
        ("model.backbone.num_heads=4", "model.backbone.num_heads"),
        ("model.temporal_nhead=4", "model.temporal_nhead"),
    ] {
        let args = ["tiny.toml", "--resume", "--epochs=3", "--set", setting];
        let changed = format!("{key} was 2 in run/last.pt and is 4");
        let refused = world.run(&args);
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        refused.says(&[&changed, "no flag resumes with another model"]);
        assert!(!refused.stderr.contains("--allow-changes"), "{}", refused.stderr);
        let refused = world.run(&[&args[..], &["--allow-changes"]].concat());
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        refused.says(&[&changed, "another network", "no flag resumes with another model"]);
        let args = ["tiny.toml", "--work-dir=new", "--init-from=run/last.pt", "--set", setting];
        let refused = world.run(&args);
        assert_eq!(refused.code, 3, "{}", refused.stderr);
        refused.says(&[&format!("run/last.pt is of a network with {key} = 2; this one has 4")]);
    }
    assert_eq!(world.files(), before);
    // Dropout is a matter of training.
    world.ok(&["tiny.toml", "--resume", "--epochs=3", "--temporal-dropout=0.3", "--allow-changes"]);
    world.ok(&["tiny.toml", "--work-dir=new", "--init-from=run/last.pt", "--temporal-dropout=0.2"]);
}

#[test]
fn curves_go_into_the_run_s_own_folder() {
    let world = World::new();
    world.ok(&["tiny.toml", "--tensorboard=auto"]);
    assert_eq!(
        crate::resume::points(&world.path("run/tensorboard")).iter().filter(|p| p.0 == "lr").count(),
        2
    );
    assert!(world.read("run/config.toml").contains("tensorboard = \"auto\"\n"));
    world.ok(&["run", "--work-dir=other", "--epochs=1"]);
    assert_eq!(
        crate::resume::points(&world.path("other/tensorboard")).iter().filter(|p| p.0 == "lr").count(),
        1
    );
    // It goes where the run goes.
    fs::rename(world.path("run"), world.path("moved")).unwrap();
    world.ok(&["moved", "--resume", "--epochs=3"]);
    assert_eq!(
        crate::resume::points(&world.path("moved/tensorboard")).iter().filter(|p| p.0 == "lr").count(),
        3
    );
    assert!(!world.path("run").exists() && !world.path("auto").exists());
}

/// Rewrites `run/last.pt`.
fn edit(world: &World, change: impl Fn(&str, &mut Value<'static>)) {
    let path = world.path("run/last.pt");
    let Value::Dict(mut items) = load(&path).unwrap() else { panic!() };
    for (key, value) in &mut items {
        change(key.as_str().unwrap(), value);
    }
    fs::remove_file(&path).unwrap();
    save(&path, &Value::Dict(items)).unwrap();
}

#[test]
fn checkpoints_of_no_run_are_refused_at_once() {
    let world = World::new();
    world.ok(&["tiny.toml"]);
    let good = fs::read(world.path("run/last.pt")).unwrap();
    let refused = |says: &[&str], change: &dyn Fn(&str, &mut Value<'static>)| {
        edit(&world, change);
        let begun = Instant::now();
        let outcome = world.run(&["tiny.toml", "--resume", "--epochs=9000000000000000000"]);
        assert_eq!(outcome.code, 3, "{}", outcome.stderr);
        assert!(begun.elapsed() < Duration::from_secs(20));
        outcome.says(&["run/last.pt"]).says(says);
        fs::remove_file(world.path("run/last.pt")).unwrap();
        world.write("run/last.pt", &good);
    };
    let set = |name: &'static str, to: i64| {
        move |key: &str, value: &mut Value<'static>| {
            if key == name {
                *value = Value::Int(to);
            }
        }
    };
    refused(&["3 of an experiment that has 2"], &set("epoch", 3));
    refused(&["cannot be where a run stands"], &set("epoch", 1 << 40));
    let endless = |key: &str, value: &mut Value<'static>| match (key, value) {
        ("epoch" | "step", value) => *value = Value::Int(1 << 60),
        ("config", Value::Str(config)) => {
            *config = config.replace("epochs = 2", "epochs = 9000000000000000000");
        }
        _ => {}
    };
    refused(&["cannot be where a run stands"], &endless);
    let states = |change: fn(&mut Vec<(Value<'static>, Value<'static>)>)| {
        move |key: &str, value: &mut Value<'static>| {
            let ("optimizer_state", Value::Dict(parts)) = (key, value) else { return };
            let Value::Dict(states) = &mut parts[0].1 else { panic!() };
            change(states);
        }
    };
    let named = states(|all| all.iter_mut().enumerate().for_each(|(n, s)| s.0 = Value::Str(n.to_string())));
    refused(&["a state under `0`, which is no parameter's number"], &named);
    refused(&["has no state for 1 of "], &states(|all| drop(all.pop())));
    refused(&["is empty after 4 updates"], &states(Vec::clear));
    // As it was, it goes on.
    world.ok(&["tiny.toml", "--resume", "--epochs=3"]);
}
