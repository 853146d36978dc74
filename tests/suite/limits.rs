//! Where memory, files or threads end: one message that names what has ended, and nothing half made.

use std::process::Command;

use crate::support::{Outcome, World};

/// What the program says under limits that the shell sets first, and how many errors it names.
fn limited(world: &World, limits: &str, env: &[(&str, &str)], args: &[&str]) -> (Outcome, usize) {
    let program = world.command(args);
    let mut shell = Command::new("bash");
    // What else the shell was given would count among the open files.
    let close = "exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-";
    shell.args(["-c", &format!("{close}; {limits} && exec \"$0\" \"$@\"")]);
    shell.arg(program.get_program()).args(args).current_dir(world.path(""));
    for (name, _) in program.get_envs().filter(|(_, value)| value.is_none()) {
        shell.env_remove(name);
    }
    shell.env("RAYON_NUM_THREADS", "1").envs(env.iter().copied());
    let outcome = Outcome::of(&shell.output().unwrap());
    let errors = outcome.stderr.matches("error: ").count();
    (outcome, errors)
}

/// Both `check` and a run refuse `args` with `code` and `parts`; nothing is written.
fn both_refuse(world: &World, limits: &str, args: &[&str], code: i32, parts: &[&str]) {
    let before = world.files();
    for command in [&["check", "tiny.toml"][..], &["tiny.toml"]] {
        let (outcome, errors) = limited(world, limits, &[], &[command, args].concat());
        assert_eq!((outcome.code, errors), (code, 1), "{args:?}\n{}", outcome.stderr);
        outcome.says(parts).says(&["hint: "]);
        assert!(world.files() == before, "{args:?}");
    }
}

#[test]
fn sizes_that_no_machine_has_are_errors() {
    let world = World::new();
    let set = |setting: &str, code, parts: &[&str]| {
        both_refuse(&world, "true", &["--set", setting], code, parts);
    };
    set("model.d_model=1000000000", 2, &["model.d_model = 1000000000", "no machine can hold"]);
    let deep = ["more than 1048576 parameters", "lower model.backbone.depth, model.temporal_layers or"];
    set("model.backbone.depth=1000000000", 2, &deep);
    set("model.temporal_layers=1000000000", 2, &deep);
    let much = ["a training step is expected to take", "lower "];
    set("model.vocab_size=20000000000", 1, &[much[0], much[1], "model.vocab_size"]);
    set("model.d_model=1000000", 1, &[much[0], "model.d_model"]);
    set("model.sequence_length=1000000", 1, &much);
    set("model.backbone.mlp_ratio=1e10", 1, &[much[0], "GiB"]);
    // Batches have no more clips than there are.
    world.ok(&["check", "tiny.toml", "--set", "data.batch_size=1000000"]);
    world.ok(&["tiny.toml", "--set", "data.val_batch_size=1000000", "--epochs", "1"]);
}

#[test]
fn check_fails_above_the_budget() {
    let world = World::new();
    let check = world.run(&["check", "tiny.toml", "--memory-budget", "64KiB"]);
    assert_eq!(check.code, 1, "{}", check.stdout);
    check.says(&[
        "is expected to take",
        "the budget (run.memory_budget, from --memory-budget",
        "64.0 KiB",
        "lower ",
    ]);
    assert!(check.stdout.contains("memory  ") && !check.stdout.contains("everything is in order"));
    // It plans the chunks of a run, which takes what it takes.
    world.ok(&["tiny.toml", "--memory-budget", "64KiB", "--epochs", "1"]);
}

#[test]
fn the_budget_knows_the_limits_on_memory() {
    let world = World::new();
    for (limits, most) in [("ulimit -v 400000", 293.0), ("ulimit -d 300000", 220.0)] {
        let (outcome, _) = limited(&world, limits, &[], &["check", "tiny.toml"]);
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        let (_, budget) = outcome.stdout.split_once("the budget is ").unwrap();
        let (budget, _) = budget.split_once(" MiB").unwrap();
        let budget: f64 = budget.parse().unwrap();
        assert!((20.0..most).contains(&budget), "{limits}: {budget} MiB");
    }
}

#[test]
fn what_a_limit_on_memory_does_not_allow_is_refused_before_it_is_taken() {
    let world = World::new();
    let classes = ["--vocab-size", "2000000"];
    both_refuse(&world, "ulimit -v 400000", &classes, 1, &["(ulimit -v) of 390.6 MiB", "model.vocab_size"]);
    both_refuse(&world, "ulimit -d 300000", &classes, 1, &["(ulimit -d) of 293.0 MiB", "model.vocab_size"]);
}

/// Many threads that load large images take more than is planned for batches.
#[test]
fn memory_that_runs_out_while_training_ends_the_run_in_good_order() {
    let world = World::new();
    let args = ["tiny.toml", "--set", "model.image_size=512", "--set", "model.backbone.patch_size=128"];
    let greedy = [&args[..], &["--epochs", "4", "--num-workers", "96", "--quiet"]].concat();
    let before = world.files();
    let (outcome, errors) = limited(&world, "ulimit -v 600000", &[], &greedy);
    assert_eq!((outcome.code, errors), (1, 1), "{}", outcome.stderr);
    outcome.says(&["error: memory ran out", "(ulimit -v) of 585.9 MiB", "hint: lower ", "data.num_workers"]);
    assert!(world.files() == before);

    // What was saved stays, and is named.
    world.ok(&[&args[..], &["--epochs", "1"]].concat());
    let before = world.read_bytes("run/last.pt");
    let (outcome, _) = limited(&world, "ulimit -v 600000", &[], &[&greedy[..], &["--resume"]].concat());
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    outcome.says(&["error: memory ran out", "the last checkpoint is run/last.pt", "--resume"]);
    assert!(world.read_bytes("run/last.pt") == before);
    world.ok(&[&args[..], &["--epochs", "2", "--resume"]].concat());
}

#[test]
fn a_limit_on_the_size_of_files_is_named() {
    let world = World::new();
    let before = world.files();
    for kilobytes in [1, 8] {
        let limit = format!("ulimit -f {kilobytes}");
        let (outcome, errors) = limited(&world, &limit, &[], &["tiny.toml", "--quiet"]);
        assert_eq!((outcome.code, errors), (1, 1), "{}", outcome.stderr);
        outcome.says(&[&format!("(ulimit -f) is reached: {kilobytes}.0 KiB"), "hint: raise it"]);
        assert!(world.files() == before, "{kilobytes}");
    }
    world.ok(&["tiny.toml", "--epochs", "1"]);
    let last = world.read_bytes("run/last.pt");
    let (outcome, errors) = limited(&world, "ulimit -f 8", &[], &["tiny.toml", "--resume", "--quiet"]);
    assert_eq!((outcome.code, errors), (1, 1), "{}", outcome.stderr);
    outcome.says(&["cannot save run/last.pt", "ulimit -f", "the last checkpoint is run/last.pt"]);
    assert!(world.read_bytes("run/last.pt") == last);
    assert_eq!(world.ok(&["tiny.toml", "--resume", "--quiet"]).code, 0);
}

#[test]
fn a_limit_on_open_files_is_named_and_no_clip_blamed() {
    let world = World::new();
    let id = world.clip().0;
    let before = world.files();
    for skip in ["error", "skip"] {
        let skip = format!("data.on_bad_clip={skip}");
        // Three are open from the start, and a run keeps one open.
        for (check, args) in
            [(true, &["check", "tiny.toml", "--set", &skip][..]), (false, &["tiny.toml", "--set", &skip])]
        {
            let (outcome, errors) = limited(&world, "ulimit -n 4", &[], args);
            assert!(world.files() == before);
            if check && outcome.code == 0 {
                // Whether two files were to be open at a time is chance.
                continue;
            }
            assert_eq!((outcome.code, errors), (1, 1), "{}", outcome.stderr);
            outcome.says(&["the limit on open files (ulimit -n) is reached: 4", "hint: raise it"]);
            assert!(!outcome.stderr.contains(&id) && !outcome.stderr.contains("data/"), "{}", outcome.stderr);
        }
    }
}

#[test]
fn threads_have_a_bound_and_may_be_refused() {
    let world = World::new();
    for many in ["1025", "99999999999999999999"] {
        let (outcome, _) = limited(&world, "true", &[("RAYON_NUM_THREADS", many)], &["check", "tiny.toml"]);
        assert_eq!(outcome.code, 2, "{}", outcome.stderr);
        outcome.says(&["RAYON_NUM_THREADS: must be at most 1024", "hint: "]);
        // It is not looked at where the experiment says how many.
        let threads = ["check", "tiny.toml", "--threads", "1"];
        assert_eq!(limited(&world, "true", &[("RAYON_NUM_THREADS", many)], &threads).0.code, 0);
    }
    // No thread can have a stack of that size.
    let stacks = [("RUST_MIN_STACK", "40000000000")];
    let (outcome, errors) = limited(&world, "ulimit -v 2000000", &stacks, &["tiny.toml"]);
    assert_eq!((outcome.code, errors), (1, 1), "{}", outcome.stderr);
    outcome.says(&["the system does not grant 1 thread to", "run.threads", "ulimit -u"]);
    assert!(!world.path("run").exists());
    let demo =
        ["demo", "drawn", "--data-only", "--clips", "8", "--size", "16", "--frames", "2", "--signs", "2"];
    assert_eq!(limited(&world, "ulimit -v 2000000", &stacks, &demo).0.code, 0);
    assert!(world.path("drawn/subs.csv").exists());
}
