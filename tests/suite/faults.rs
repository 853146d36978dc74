//! Every operation on a run's files fails in turn, and the process is killed at each: what was saved stays whole.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use slt_run::config::{self, Layers};
use slt_run::engine::{self, device::Compute};
use slt_run::nn::Parameters;
use slt_run::train::state;

use crate::support::{Outcome, World};

/// What `src/files/fault.rs` reads.
const VARIABLE: &str = "SLTRUN_FAULT";

/// An operation of a run that nothing disturbs.
struct Operation {
    number: usize,
    what: String,
    /// The file's name, without the run's folder.
    file: String,
}

impl Operation {
    /// The file that it writes in the end, without what a temporary name adds.
    fn target(&self) -> Option<&str> {
        self.file.strip_prefix(".slt-run.")?.strip_suffix(".tmp")
    }

    /// Whether it belongs to a log, which may cost a warning and no more.
    fn is_log(&self) -> bool {
        self.file == "metrics.jsonl" || self.file.starts_with("events.out.tfevents.")
    }
}

/// A run of two epochs, again and again in new folders.
struct Repeated {
    world: World,
    operations: Vec<Operation>,
}

impl Repeated {
    fn new() -> Self {
        let world = World::new();
        let mut repeated = Self { world, operations: Vec::new() };
        let outcome = repeated.run("whole", "list:operations");
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        let list = repeated.world.read("operations");
        repeated.operations = list
            .lines()
            .map(|line| {
                let [number, what, path] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
                let file = path.rsplit('/').next().unwrap().to_owned();
                Operation { number: number.parse().unwrap(), what: what.to_owned(), file }
            })
            .collect();
        repeated
    }

    /// Trains into `folder`, and TensorBoard's events into a folder beside it.
    fn run(&self, folder: &str, fault: &str) -> Outcome {
        let logs = format!("{folder}-logs");
        let args = ["tiny.toml", "--work-dir", folder, "--tensorboard", &logs, "--num-workers", "0"];
        let mut command = self.world.command(&args);
        command.env(VARIABLE, fault).env("RAYON_NUM_THREADS", "1");
        Outcome::of(&command.output().unwrap())
    }

    /// Goes on with the run in `folder`, undisturbed.
    fn resume(&self, folder: &str) -> Outcome {
        let logs = format!("{folder}-logs");
        let args =
            ["tiny.toml", "--work-dir", folder, "--tensorboard", &logs, "--num-workers", "0", "--resume"];
        Outcome::of(&self.world.command(&args).env("RAYON_NUM_THREADS", "1").output().unwrap())
    }

    /// How many epochs' checkpoints had replaced `name` before operation `number` was done. What replaces it after
    /// both is a copy of what it is already.
    fn saved(&self, name: &str, number: usize) -> usize {
        self.moves(name).filter(|&moved| moved < number).count().min(2)
    }

    /// The operations that put something in the place of `name`.
    fn moves(&self, name: &str) -> impl Iterator<Item = usize> {
        let moves = self.operations.iter().filter(move |o| o.what == "rename" && o.target() == Some(name));
        moves.map(|operation| operation.number)
    }

    /// Whether it is part of making a file of its own of `best.pt` at the run's end, where the file system has no
    /// clones: that may fail.
    fn separates(&self, operation: &Operation) -> bool {
        let synced = |number| {
            self.operations.iter().find(|o| o.number > number && o.what == "sync folder").map(|o| o.number)
        };
        let moves: Vec<usize> = self.moves("best.pt").collect();
        match moves[..] {
            [_, second, third] => {
                synced(second).is_some_and(|from| operation.number > from)
                    && synced(third).is_some_and(|to| operation.number <= to)
            }
            _ => false,
        }
    }

    /// Whether it is part of a first try to make `best.pt` that another way follows: a clone, a link, a copy.
    fn has_another_way(&self, operation: &Operation) -> bool {
        let way = self.operations.iter().filter(|o| o.what == "link" || o.what == "clone");
        operation.target() == Some("best.pt")
            && operation.what != "rename"
            && way.filter(|way| way.number >= operation.number).count() > 0
            && self.moves("best.pt").find(|&moved| moved > operation.number).is_some_and(|moved| {
                !self
                    .operations
                    .iter()
                    .any(|o| o.what == "rename" && o.number > operation.number && o.number < moved)
            })
    }

    /// Calls `check` with each of `faults` on each operation that it applies to, on two threads.
    fn each(&self, faults: &[&str], check: impl Fn(&Operation, &str) + Sync) {
        let all: Vec<_> = faults
            .iter()
            .flat_map(|&fault| self.operations.iter().map(move |operation| (fault, operation)))
            // Elsewhere these are as the fault that strikes as a whole.
            .filter(|(fault, operation)| !matches!(*fault, "half" | "tear") || operation.what == "write")
            .collect();
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some((fault, operation)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                        check(operation, fault);
                    }
                });
            }
        });
    }
}

/// The checkpoints of `folder` are those of the epochs that had been saved, and fit the network to the last key.
fn checkpoints_are_whole(runs: &Repeated, folder: &str, saved_before: usize, name: &str) {
    let path = runs.world.path(folder);
    let parameters = network(&runs.world.path("tiny.toml"));
    for file in ["last.pt", "best.pt"] {
        let saved = runs.saved(file, saved_before);
        assert_eq!(path.join(file).exists(), saved > 0, "{name}: {file}");
        if saved > 0 {
            state::init_from(&path.join(file), &parameters).unwrap();
            // Both epochs of this run are its best so far.
            assert_eq!(runs.world.checkpoint(&format!("{folder}/{file}")).epoch, saved, "{name}: {file}");
        }
    }
}

fn network(experiment: &Path) -> Parameters {
    let layers = Layers { files: vec![experiment.to_owned()], ..Layers::default() };
    let c = config::resolve(&layers).unwrap().experiment;
    let engine = engine::new(&c, &Compute::Cpu).unwrap();
    engine.host().parameters().clone()
}

/// After a fault the same command with `--resume` ends with the checkpoints of a run that nothing disturbed.
fn goes_on(runs: &Repeated, folder: &str, name: &str) {
    // Nothing is left that would be in the way of another run there.
    let left: BTreeSet<String> = match fs::read_dir(runs.world.path(folder)) {
        Ok(entries) => entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect(),
        Err(_) => BTreeSet::new(),
    };
    let known = ["config.toml", "config.json", "run.json", "metrics.jsonl", "last.pt", "best.pt"];
    let probe = [".slt-run.lock", ".slt-run.probe"];
    for file in left {
        let stem = file.strip_prefix(".slt-run.").and_then(|rest| rest.strip_suffix(".tmp")).unwrap_or(&file);
        assert!(known.contains(&stem) || probe.contains(&stem), "{name}: {file} is left");
    }
    let resumed = runs.resume(folder);
    assert_eq!(resumed.code, 0, "{name}: {}", resumed.stderr);
    for file in ["last.pt", "best.pt"] {
        let same = fs::read(runs.world.path(folder).join(file)).unwrap()
            == fs::read(runs.world.path("whole").join(file)).unwrap();
        assert!(same, "{name}: {file} differs after --resume");
    }
}

#[test]
fn every_operation_may_fail() {
    let runs = Repeated::new();
    let counted = |what: &str| runs.operations.iter().filter(|operation| operation.what == what).count();
    assert!(counted("write") > 20 && counted("sync") > 8 && counted("rename") >= 7 && counted("clone") == 2);
    runs.each(&["ENOSPC", "half"], |operation, fault| {
        let (number, what, file) = (operation.number, &operation.what, &operation.file);
        let name = format!("{fault} at {number}, {what} {file}");
        let folder = format!("{fault}{number}");
        let outcome = runs.run(&folder, &format!("{fault}:{number}"));
        let stderr = &outcome.stderr;
        let survives = operation.is_log()
            || runs.has_another_way(operation)
            || runs.separates(operation)
            // What cannot be cleaned up is for the next run.
            || what == "remove" && outcome.code == 0;
        if survives {
            assert_eq!(outcome.code, 0, "{name}: {stderr}");
            let warned = stderr.contains("the run goes on without ");
            assert_eq!(warned, operation.is_log(), "{name}: {stderr}");
            checkpoints_are_whole(&runs, &folder, usize::MAX, &name);
        } else {
            assert_eq!(outcome.code, 1, "{name}: {stderr}");
            let target = match operation.target() {
                Some(file) if !file.starts_with('.') => format!("{folder}/{file}"),
                _ => folder.clone(),
            };
            outcome.says(&[&target, "No space left on device", "hint: make room on that disk"]);
            assert_eq!(stderr.matches("error: ").count(), 1, "{name}: {stderr}");
            checkpoints_are_whole(&runs, &folder, number, &name);
        }
        goes_on(&runs, &folder, &name);
    });
}

#[test]
fn the_disk_may_be_full_from_any_operation_on() {
    let runs = Repeated::new();
    runs.each(&["ENOSPC"], |operation, fault| {
        let (number, what, file) = (operation.number, &operation.what, &operation.file);
        let name = format!("{fault} from {number} on, {what} {file}");
        let folder = format!("{fault}{number}");
        let outcome = runs.run(&folder, &format!("{fault}:{number}+"));
        let mut rest = runs.operations.iter().filter(|operation| operation.number >= number);
        let saves = rest.any(|operation| {
            operation.file.strip_suffix(".tmp").is_some() || operation.what == "sync folder"
        });
        assert_eq!(outcome.code, i32::from(saves), "{name}: {}", outcome.stderr);
        checkpoints_are_whole(&runs, &folder, number, &name);
        goes_on(&runs, &folder, &name);
    });
}

#[cfg(unix)]
#[test]
fn the_process_may_be_killed_at_every_operation() {
    let runs = Repeated::new();
    runs.each(&["kill", "tear"], |operation, fault| {
        let (number, what, file) = (operation.number, &operation.what, &operation.file);
        let name = format!("{fault} at {number}, {what} {file}");
        let folder = format!("{fault}{number}");
        let outcome = runs.run(&folder, &format!("{fault}:{number}"));
        assert_eq!(outcome.code, -1, "{name}: {}", outcome.stderr);
        checkpoints_are_whole(&runs, &folder, number, &name);
        goes_on(&runs, &folder, &name);
    });
}
