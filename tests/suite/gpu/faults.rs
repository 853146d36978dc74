//! What goes wrong on a GPU: one that cannot be used, full memory, work that fails. All with the pretended CUDA.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{NAMES, command_with, fake, json, needs_card};
use crate::support::{Outcome, World};

type Variable<'a> = (&'a str, &'a str);

/// Whether the test is left out.
fn left_out() -> bool {
    if needs_card() {
        eprintln!("left out: needs the pretended CUDA");
    }
    needs_card()
}

fn run(world: &World, args: &[&str], variables: &[Variable]) -> Outcome {
    run_with(fake(), world, args, variables)
}

fn run_with(folder: &Path, world: &World, args: &[&str], variables: &[Variable]) -> Outcome {
    let mut command = command_with(folder, world, args);
    Outcome::of(&command.envs(variables.iter().copied()).output().unwrap())
}

/// The run goes on on the CPU, and one warning says why.
fn falls_back(outcome: &Outcome, why: &[&str]) {
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let about = |line: &&str| line.starts_with("warning: the device ");
    let warnings: Vec<_> = outcome.stderr.lines().filter(about).collect();
    assert_eq!(warnings.len(), 1, "{}", outcome.stderr);
    assert!(
        warnings[0].contains("(run.device, from --device cuda") && warnings[0].contains("cannot be used: ")
    );
    assert!(warnings[0].ends_with("; the run goes on on the CPU"), "{}", warnings[0]);
    for part in why {
        assert!(warnings[0].contains(part), "{part:?} is not in {}", warnings[0]);
    }
}

const CHECK: [&str; 3] = ["check", "tiny.toml", "--device=cuda"];

#[test]
fn a_gpu_that_cannot_be_used_is_said_once() {
    if left_out() {
        return;
    }
    let world = World::new();
    let second = ["tiny.toml", "--device=cuda:1", "--epochs=1"];
    falls_back(&run(&world, &second, &[]), &["there is one GPU, cuda:0"]);
    assert_eq!(json(&world, "run/run.json")["device"], "cpu");
    let cases: [(&[Variable], &[&str]); 9] = [
        (&[("FAKE_CUDA_GPUS", "0")], &["there is no NVIDIA GPU here"]),
        (&[("FAKE_CUDA_CAPABILITY", "70")], &["Pretended GPU 0 is too old (compute capability 7.0)"]),
        (&[("FAKE_CUDA_FAIL", "cuInit=100")], &["CUDA_ERROR_NO_DEVICE"]),
        (&[("FAKE_CUDA_FAIL", "cuInit=803")], &["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"]),
        (&[("FAKE_CUDA_FAIL", "cublasCreate_v2=1")], &["cublasCreate", "CUBLAS_STATUS_NOT_INITIALIZED"]),
        (&[("FAKE_CUDA_FAIL", "nvrtcCompileProgram=5")], &["sm_90", "NVRTC_ERROR_INVALID_OPTION"]),
        (&[("FAKE_CUDA_MEMORY", "1000000")], &["CUDA_ERROR_OUT_OF_MEMORY"]),
        (&[("FAKE_CUDA_FAIL_LAUNCH", "1")], &["the GPU's work failed", "CUDA_ERROR_ILLEGAL_ADDRESS"]),
        // A GPU newer than the compiler knows.
        (&[("FAKE_CUDA_CAPABILITY", "131")], &["sm_131", "NVRTC_ERROR_INVALID_OPTION"]),
    ];
    for (variables, why) in cases {
        falls_back(&run(&world, &CHECK, variables), why);
    }
    let outcome = run(&world, &["check", "tiny.toml", "--device=cuda:2"], &[("FAKE_CUDA_GPUS", "2")]);
    falls_back(&outcome, &["there are 2 GPUs, cuda:0 to cuda:1"]);
    let outcome = run(&world, &["check", "tiny.toml", "--device=cuda:1"], &[("FAKE_CUDA_GPUS", "2")]);
    assert!(outcome.stdout.contains("cuda:1 ("), "{}{}", outcome.stdout, outcome.stderr);
}

/// The functions that a run of the program with these arguments and variables calls, and how often.
fn calls(world: &World, args: &[&str], variables: &[Variable]) -> Vec<(String, usize)> {
    let log = world.path("calls");
    run(world, args, &[variables, &[("FAKE_CUDA_LOG", log.to_str().unwrap())]].concat());
    let line = |line: &str| {
        let (name, times) = line.split_once(' ').unwrap();
        (name.to_owned(), times.parse().unwrap())
    };
    fs::read_to_string(log).unwrap().lines().map(line).collect()
}

/// Whether a function gives something back: where it fails, there is nobody to tell.
fn gives_back(name: &str) -> bool {
    ["Free", "Destroy", "Release", "Unload"].iter().any(|part| name.contains(part))
}

/// Where the first kernel fails, nothing but opening a GPU was done.
const OPENING: [(&str, &str); 1] = [("FAKE_CUDA_FAIL_LAUNCH", "1")];

#[test]
fn every_call_that_opens_a_gpu_may_fail() {
    if left_out() {
        return;
    }
    let world = World::new();
    let names = calls(&world, &CHECK, &OPENING);
    assert!(names.len() > 25 && names.iter().any(|(name, _)| name == "cublasGemmEx"), "{names:?}");
    for (name, _) in names {
        let outcome = run(&world, &CHECK, &[("FAKE_CUDA_FAIL", &format!("{name}=1"))]);
        if gives_back(&name) {
            assert_eq!(outcome.code, 0, "{name}: {}", outcome.stderr);
        } else {
            falls_back(&outcome, &[]);
        }
    }
}

#[test]
fn every_call_of_a_run_may_fail() {
    if left_out() {
        return;
    }
    let world = World::new();
    let mut args = vec!["tiny.toml", "--device=cuda", "--batch-size=2"];
    run(&world, &[&args[..], &["--epochs=1"]].concat(), &[]);
    let before = fs::read(world.path("run/last.pt")).unwrap();
    let best = fs::read(world.path("run/best.pt")).unwrap();
    args.extend(["--resume", "--epochs=2"]);
    let opening = calls(&world, &CHECK, &OPENING);
    let all = calls(&world, &args, &[("FAKE_CUDA_FAIL_LAUNCH", "60")]);
    let mut failed = 0;
    for (name, times) in all.iter().filter(|(name, _)| !gives_back(name)) {
        let opened = opening.iter().find(|(other, _)| other == name).map_or(0, |(_, times)| *times);
        // The first call after the GPU was opened, and one in the midst.
        for at in [opened + 1, opened.midpoint(*times)] {
            if at <= opened || at > *times || name == "cuMemGetInfo_v2" {
                continue;
            }
            let code = match &name[..2] {
                "cu" if name.starts_with("cublas") => 13,
                "cu" => 700,
                _ => 11,
            };
            let outcome = run(&world, &args, &[("FAKE_CUDA_FAIL", &format!("{name}={code}@{at}"))]);
            let what = format!("{name}, call {at} of {times}: {}", outcome.stderr);
            assert_eq!(outcome.code, 1, "{what}");
            assert_eq!(outcome.stderr.matches("error: ").count(), 1, "{what}");
            assert!(fs::read(world.path("run/last.pt")).unwrap() == before, "{what}");
            assert!(fs::read(world.path("run/best.pt")).unwrap() == best, "{what}");
            failed += 1;
        }
    }
    assert!(failed > 20, "{failed}");
    let outcome = run(&world, &args, &[("FAKE_CUDA_FAIL_LAUNCH", "60")]);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    outcome.says(&[
        "error: the GPU failed",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "an illegal memory access",
        "nvidia-smi",
    ]);
    assert!(fs::read(world.path("run/last.pt")).unwrap() == before);
    // The run is not harmed.
    let outcome = run(&world, &args, &[]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
}

/// A folder with the pretended CUDA but for `name`, which is no library there, or is missing.
fn without(world: &World, name: &str, is_there: bool) -> std::path::PathBuf {
    let folder = world.path(&format!("without_{name}_{is_there}"));
    fs::create_dir(&folder).unwrap();
    for other in NAMES.iter().filter(|other| !other.starts_with(&format!("{name}."))) {
        symlink(fake().join(other), folder.join(other)).unwrap();
    }
    if is_there {
        fs::write(folder.join(format!("{name}.13")), "no library").unwrap();
        fs::write(folder.join(format!("{name}.12")), "no library").unwrap();
        fs::write(folder.join(format!("{name}.1")), "no library").unwrap();
    }
    folder
}

#[test]
#[allow(unsafe_code, reason = "whether a library is there is found by opening it")]
fn a_library_that_is_missing_or_broken_is_named() {
    if left_out() {
        return;
    }
    let world = World::new();
    for name in ["libcuda.so", "libcublasLt.so", "libcublas.so", "libnvrtc.so"] {
        let outcome = run_with(&without(&world, name, true), &world, &CHECK, &[]);
        falls_back(&outcome, &[name]);
        // SAFETY: NVIDIA's libraries may be opened at any time.
        let is_installed = |end| unsafe { libloading::Library::new(format!("{name}.{end}")) }.is_ok();
        if !Path::new("/usr/local/cuda").exists() && !["1", "12", "13"].into_iter().any(is_installed) {
            let outcome = run_with(&without(&world, name, false), &world, &CHECK, &[]);
            falls_back(&outcome, &[name]);
        }
    }
}

/// What cuBLAS may use in passing, which is taken first.
const WORKSPACE: usize = 32 << 20;

#[test]
fn full_memory_makes_chunks_smaller_or_names_what_to_lower() {
    if left_out() {
        return;
    }
    let world = World::new();
    let args =
        ["tiny.toml", "--device=cuda", "--image-size=32", "--set=model.backbone.depth=4", "--batch-size=3"];
    let report = run(&world, &[&["bench"], &args[..], &["--json", "--steps=1"]].concat(), &[]);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    let peak = (report["peak_gpu_gib"].as_f64().unwrap() * f64::from(1 << 30)) as usize;
    // A step fits, but not the batch that comes after it.
    let just = peak.to_string();
    let just = [("FAKE_CUDA_MEMORY", just.as_str())];
    let outcome =
        run(&world, &[&args[..], &["--epochs=1", "--work-dir=just", "--memory-budget=1GiB"]].concat(), &just);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    outcome.says(&["the GPU's memory was full: from here on"]);

    let less = (WORKSPACE + (peak - WORKSPACE) / 5 * 4).to_string();
    // The GPU has less than it seemed to have when chunks were chosen.
    let less = [("FAKE_CUDA_MEMORY", less.as_str())];
    let args = [&args[..], &["--memory-budget=1GiB"]].concat();

    let outcome = run(&world, &[&args[..], &["--epochs=1"]].concat(), &less);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let said: Vec<_> = outcome.stderr.lines().filter(|line| line.starts_with("warning")).collect();
    assert_eq!(said.len(), 1, "{}", outcome.stderr);
    assert!(said[0].contains("the GPU's memory was full: from here on"), "{}", said[0]);
    assert!(said[0].contains("optimization.frames_per_chunk = "), "{}", said[0]);

    let last = fs::read(world.path("run/last.pt")).unwrap();
    let more = ["--resume", "--epochs=2", "--frames-per-chunk=9"];
    let outcome = run(&world, &[&args[..], &more].concat(), &less);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    outcome.says(&[
        "error: the GPU's memory is full with all 9 frames of a stream at once (optimization.frames_per_chunk",
        "CUDA_ERROR_OUT_OF_MEMORY",
        "lower optimization.frames_per_chunk (or make it \"auto\"), data.batch_size or model.sequence_length",
    ]);
    assert!(fs::read(world.path("run/last.pt")).unwrap() == last);
    let outcome = run(&world, &[&args[..], &["--resume", "--epochs=2"]].concat(), &[]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
}

/// Whatever is too much, it is one error with what to do about it, or the run goes well.
#[test]
fn memory_may_be_full_at_any_place() {
    if left_out() {
        return;
    }
    let world = World::new();
    let args = ["tiny.toml", "--device=cuda", "--epochs=1", "--batch-size=2", "--overwrite"];
    let opening = calls(&world, &CHECK, &OPENING);
    let allocations = |calls: &[(String, usize)], name: &str| {
        calls.iter().find(|call| call.0 == name).map_or(0, |call| call.1)
    };
    let all = calls(&world, &args, &[]);
    for name in ["cuMemAlloc_v2", "cuMemHostAlloc"] {
        let (first, last) = (allocations(&opening, name) + 1, allocations(&all, name));
        assert!(last >= first);
        for at in (first..=last).step_by((last - first) / 12 + 1) {
            let outcome = run(&world, &args, &[("FAKE_CUDA_FAIL", &format!("{name}=2@{at}"))]);
            let what = format!("{name}, call {at} of {first} to {last}: {}", outcome.stderr);
            assert_eq!(outcome.code, 1, "{what}");
            assert_eq!(outcome.stderr.matches("error: the GPU's memory is full").count(), 1, "{what}");
            assert!(outcome.stderr.contains("data.batch_size"), "{what}");
        }
    }
}
