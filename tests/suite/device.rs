//! Where a run computes, and what is said where that is not what was asked for. A test that needs a GPU's absence asks
//! for one that no machine has.

use slt_run::engine::device::Compute;

use crate::support::{Outcome, TINY, World, line_of};

/// The lines that warn of the device or the precision.
fn warnings(outcome: &Outcome) -> Vec<&str> {
    let about = |line: &&str| line.contains("(run.device") || line.contains("(run.precision");
    outcome.stderr.lines().filter(about).collect()
}

#[test]
fn a_device_that_cannot_be_used_is_said_once_with_where_it_came_from() {
    let world = World::new();
    world.write("cuda.toml", TINY.replace("device = \"cpu\"", "device = \"cuda:63\""));
    let line = line_of("device");
    for (i, (args, variable, origin)) in [
        (&["cuda.toml"][..], None, format!("from cuda.toml:{line}")),
        (&["tiny.toml", "--device", "cuda:63"], None, "from --device cuda:63".to_owned()),
        (&["tiny.toml", "--set", "run.device=cuda:63"], None, "from --set run.device=cuda:63".to_owned()),
        (&["tiny.toml"], Some("cuda:63"), "from env SLT_RUN__DEVICE".to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = format!("run{i}");
        let mut command = world.command(&[args, &["--work-dir", &folder, "--epochs", "1", "-q"]].concat());
        variable.map(|value| command.env("SLT_RUN__DEVICE", value));
        let outcome = Outcome::of(&command.output().unwrap());
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        let said = warnings(&outcome);
        assert_eq!(said.len(), 1, "{}", outcome.stderr);
        let start = format!("warning: the device cuda:63 (run.device, {origin}) cannot be used: ");
        assert!(said[0].starts_with(&start), "{}", said[0]);
        assert!(said[0].ends_with("; the run goes on on the CPU"), "{}", said[0]);
        let run: serde_json::Value =
            serde_json::from_str(&world.read(&format!("{folder}/run.json"))).unwrap();
        assert_eq!(run["device"], "cpu");
    }
    // The same run as on the CPU, to the bit: the checkpoint's experiment tells them apart by the device alone.
    world.ok(&["tiny.toml", "--work-dir", "cpu", "--epochs", "1", "-q"]);
    let without_times = |name: &str| {
        let text = world.read(name);
        let mut line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        let numbers = line.as_object_mut().unwrap();
        numbers.retain(|key, _| !key.contains("second"));
        numbers.clone()
    };
    assert_eq!(without_times("run0/metrics.jsonl"), without_times("cpu/metrics.jsonl"));
}

#[test]
fn mixed_precision_on_a_cpu_is_said_once() {
    let world = World::new();
    // The documented default is a GPU with mixed precision: one warning says both.
    let defaults = TINY.replace("device = \"cpu\"\nprecision = \"fp32\"\n", "");
    world.write("defaults.toml", &defaults);
    for command in ["check", "bench"] {
        let outcome = world.ok(&[command, "tiny.toml", "--precision", "amp"]);
        let said = warnings(&outcome);
        assert_eq!(said.len(), 1, "{}", outcome.stderr);
        assert!(said[0].contains("(run.precision, from --precision amp)"), "{}", said[0]);
        let outcome = world.ok(&[command, "defaults.toml", "--device", "cuda:63"]);
        let said = warnings(&outcome);
        assert_eq!(said.len(), 1, "{}", outcome.stderr);
        assert!(said[0].ends_with("; the run goes on on the CPU, in f32"), "{}", said[0]);
    }
    assert!(warnings(&world.ok(&["check", "tiny.toml"])).is_empty());
}

#[test]
fn a_build_says_whether_it_has_cuda() {
    let world = World::new();
    let outcome = world.ok(&["check", "tiny.toml", "--device", "cuda:63"]);
    let without = outcome.stderr.contains("built without CUDA (cargo build --release --features cuda)");
    assert_eq!(without, !cfg!(feature = "cuda"), "{}", outcome.stderr);
    assert_eq!(Compute::Cpu.free_memory(), None);
    // Without the feature, nothing of CUDA is in the program; with it, nothing but itself is needed to start.
    let program = std::fs::read(env!("CARGO_BIN_EXE_slt-run")).unwrap();
    let has = |name: &str| program.windows(name.len()).any(|window| window == name.as_bytes());
    if !cfg!(feature = "cuda") {
        assert!(!has("cuInit") && !has("cublasCreate") && !has("libcuda.so"));
    }
}
