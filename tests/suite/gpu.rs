//! The program on a GPU: its numbers against the CPU's and PyTorch's, and going on to the bit.
//!
//! Without a card it is the pretended CUDA of `tests/fake_cuda`, which does the same calls on the CPU; the numeric cases
//! take a real card where there is one. With `SLT_RUN_NEED_GPU=1` all is done on a real one, whose absence is a failure.
//! These tests may be run from the package's folder on another machine, with `SLT_RUN_BINARY` as the program.

mod faults;

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;
use slt_run::config::{self, Experiment};
use slt_run::engine::device::{self, Compute};
use slt_run::engine::{self, End, Engine, Step};
use slt_run::nn::{ActivationDtype, Pass};
use slt_run::optim::Schedule;
use slt_run::train::state;

use crate::cases::{self, Case};
use crate::resume::{Left, assert_same, signal, wait_until};
use crate::support::{self, Outcome, World};

/// Whether only a real card will do.
fn needs_card() -> bool {
    std::env::var_os("SLT_RUN_NEED_GPU").is_some_and(|value| value == "1")
}

/// The names that the pretended CUDA goes by: those that the program looks for, and those that the bindings try first.
const NAMES: [&str; 7] = [
    "libcuda.so.1",
    "libcuda.so",
    "libcublasLt.so.13",
    "libcublas.so.13",
    "libcublas.so",
    "libnvrtc.so.13",
    "libnvrtc.so",
];

/// The folder with the pretended CUDA, made once for its source; what it compiles stays there, too.
fn fake() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let files = [
            ("fake_cuda.c", include_str!("../fake_cuda/fake_cuda.c")),
            ("kernels.c", include_str!("../fake_cuda/kernels.c")),
            ("cublas.c", include_str!("../fake_cuda/cublas.c")),
            ("emulator.h", include_str!("../../src/engine/cuda/emulator.h")),
        ];
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let mut hash = DefaultHasher::new();
        (files, &compiler).hash(&mut hash);
        let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let parent = if built.is_dir() { built.to_owned() } else { std::env::temp_dir() };
        let folder = parent.join(format!("fake_cuda_{:016x}", hash.finish()));
        if folder.is_dir() {
            return folder;
        }
        let making = tempfile::tempdir_in(parent).unwrap();
        let path = |name: &str| making.path().join(name);
        files.iter().for_each(|(name, text)| fs::write(path(name), text).unwrap());
        let done = Command::new(compiler)
            .args(["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .args([path("libcuda.so.1"), path("fake_cuda.c")])
            .args(["-ldl", "-lm"])
            .output()
            .expect("a C compiler");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        NAMES[1..].iter().for_each(|name| symlink("libcuda.so.1", path(name)).unwrap());
        let made = making.keep();
        // Another process may have been faster.
        if fs::rename(&made, &folder).is_err() {
            fs::remove_dir_all(made).unwrap();
        }
        folder
    })
}

/// The program with the pretended CUDA of `folder` and nothing of a real one.
fn command_with(folder: &Path, world: &World, args: &[&str]) -> Command {
    let mut command = world.command(args);
    only(&mut command, folder);
    command
}

fn only(command: &mut Command, folder: &Path) {
    for name in ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_VISIBLE_DEVICES"] {
        command.env_remove(name);
    }
    command.env("LD_LIBRARY_PATH", folder);
}

/// The program with the GPU that this process tests on.
fn command(world: &World, args: &[&str]) -> Command {
    if needs_card() { world.command(args) } else { command_with(fake(), world, args) }
}

fn ok(world: &World, args: &[&str]) -> Outcome {
    let outcome = Outcome::of(&command(world, args).output().unwrap());
    let said = format!("{args:?}\n{}{}", outcome.stdout, outcome.stderr);
    assert!(outcome.code == 0 && !said.contains("(run.device"), "{said}");
    outcome
}

fn json(world: &World, name: &str) -> Value {
    serde_json::from_str(&world.read(name)).unwrap()
}

/// `key` of each epoch.
fn column(world: &World, folder: &str, key: &str) -> Vec<f64> {
    let line = |line: &str| serde_json::from_str::<Value>(line).unwrap()[key].as_f64().unwrap();
    world.read(&format!("{folder}/metrics.jsonl")).lines().map(line).collect()
}

fn assert_close(world: &World, folder: &str, tolerance: f64) {
    for key in ["train_loss", "val_loss"] {
        let (found, expected) = (column(world, folder, key), column(world, "cpu", key));
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() <= tolerance * b.abs(), "{folder}: {key} {found:?}, not {expected:?}");
        }
    }
}

const FLOAT16: [&str; 2] = ["--precision=amp", "--set=optimization.amp_dtype=float16"];

#[test]
fn training_on_a_gpu_gives_the_cpus_losses() {
    let world = World::new();
    world.ok(&["tiny.toml", "--work-dir=cpu"]);
    let cases: [(&str, &[&str], f64); 3] =
        [("f32", &["--precision=fp32"], 1e-4), ("bf16", &["--precision=amp"], 2e-2), ("f16", &FLOAT16, 2e-2)];
    for (folder, more, tolerance) in cases {
        let work_dir = format!("--work-dir={folder}");
        let outcome = ok(&world, &[&["tiny.toml", "--device=cuda", &work_dir], more].concat());
        assert!(!outcome.stderr.contains("warning"), "{}", outcome.stderr);
        assert_eq!(json(&world, &format!("{folder}/run.json"))["device"], "cuda:0");
        assert_close(&world, folder, tolerance);
        // One clip of the two is what rounding may change.
        let (found, expected) =
            (column(&world, folder, "val_accuracy"), column(&world, "cpu", "val_accuracy"));
        let most = if folder == "f32" { 0.0 } else { 0.5 };
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= most), "{found:?} {expected:?}");
    }
}

#[test]
fn check_and_bench_use_the_gpu() {
    let world = World::new();
    let checked = ok(&world, &["check", "tiny.toml", "--device=cuda"]);
    assert!(checked.stdout.contains("cuda:0 ("), "{}", checked.stdout);
    for (more, stored) in
        [(&["--precision=fp32"][..], "float32"), (&["--precision=amp"], "bfloat16"), (&FLOAT16, "float16")]
    {
        let args = [&["bench", "tiny.toml", "--json", "--steps=2", "--device=cuda"], more].concat();
        let report: Value = serde_json::from_str(&ok(&world, &args).stdout).unwrap();
        assert_eq!((&report["device"], &report["precision"]), (&"cuda:0".into(), &stored.into()), "{report}");
        assert!(report["peak_gpu_gib"].as_f64().unwrap() > 0.0, "{report}");
        assert!(report["images_per_s"].as_f64().unwrap() > 0.0 && report["forward_s"].is_null(), "{report}");
        let report: Value =
            serde_json::from_str(&ok(&world, &[&args[..], &["--evaluation"]].concat()).stdout).unwrap();
        assert_eq!(report["device"], "cuda:0");
    }
}

/// Kernels with more shared memory than every GPU gives without being asked.
#[test]
fn wide_heads_have_the_shared_memory_that_they_need() {
    let world = World::new();
    let args = ["bench", "tiny.toml", "--json", "--steps=1", "--device=cuda", "--batch-size=1"];
    let wide = ["--d-model=96", "--set=model.temporal_nhead=1"];
    let report: Value = serde_json::from_str(&ok(&world, &[&args[..], &wide].concat()).stdout).unwrap();
    assert_eq!(report["device"], "cuda:0");
}

/// Everything random, steps of two batches, and curves.
const LIVELY: [&str; 11] = [
    "tiny.toml",
    "--device=cuda",
    "--batch-size=1",
    "--accumulate=2",
    "--epochs=2",
    "--temporal-dropout=0.2",
    "--fusion-dropout=0.1",
    "--set=model.backbone.dropout=0.1",
    "--set=model.backbone.stochastic_depth=0.2",
    "--grad-clip=1",
    "--tensorboard=run/tb",
];

#[test]
fn a_run_on_a_gpu_goes_on_to_the_bit() {
    let world = World::new();
    for precision in [&["--precision=amp"][..], &FLOAT16] {
        let args = [&LIVELY[..], precision].concat();
        ok(&world, &args);
        let whole = Left::of(&world);
        for (name, code) in [("-TERM", 143), ("-KILL", -1)] {
            fs::remove_dir_all(world.path("run")).unwrap();
            let mut child = command(&world, &[&args[..], &["--checkpoint-every=1"]].concat())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let last = world.path("run/last.pt");
            wait_until(&mut child, || last.exists());
            let stopped = signal(child, name);
            assert_eq!(stopped.code, code, "{}", stopped.stderr);
            ok(&world, &[&args[..], &["--resume"]].concat());
            assert_same(&Left::of(&world), &whole, &format!("{precision:?} after {name}"));
        }
        let checkpoint = world.checkpoint("run/last.pt");
        let scaler = checkpoint.extra.iter().find(|(key, _)| key == "scaler_state").map(|(_, value)| value);
        let scale =
            scaler.and_then(|value| value.get("scale")).and_then(slt_run::checkpoint::Value::as_number);
        assert_eq!(scale.is_some(), precision.len() == 2, "{precision:?}: {scaler:?}");
        fs::remove_dir_all(world.path("run")).unwrap();
    }
}

#[test]
fn a_run_goes_on_on_another_device() {
    let world = World::new();
    world.ok(&["tiny.toml", "--work-dir=cpu"]);
    for (folder, devices) in [("there", ["cpu", "cuda"]), ("back", ["cuda", "cpu"])] {
        for (device, epochs) in devices.into_iter().zip(["1", "2"]) {
            let (folder, device) = (format!("--work-dir={folder}"), format!("--device={device}"));
            ok(&world, &["tiny.toml", &folder, &device, &format!("--epochs={epochs}"), "--resume"]);
        }
        assert_close(&world, folder, 1e-4);
        let run = json(&world, &format!("{folder}/run.json"));
        assert!(run["resumed"][0]["changes"].to_string().contains("run.device"), "{run}");
    }
}

#[test]
fn a_loss_that_is_no_number_stops_on_a_gpu_too() {
    let world = World::new();
    ok(&world, &["tiny.toml", "--epochs=1", "--device=cuda"]);
    let last = fs::read(world.path("run/last.pt")).unwrap();
    let id = crate::numbers::poison(&world);
    let args = ["tiny.toml", "--epochs=3", "--resume", "--allow-changes", "--device=cuda"];
    let stopped = Outcome::of(&command(&world, &args).output().unwrap());
    assert_eq!(stopped.code, 4, "{}", stopped.stderr);
    stopped.says(&[
        "error: the loss is NaN at step ",
        "(epoch 2)",
        "the clips of the batch: ",
        &id,
        "the largest activations, without dropout: ",
        "encoder.pose_projector NaN",
        "the last checkpoint is run/last.pt",
    ]);
    assert!(fs::read(world.path("run/last.pt")).unwrap() == last);
    let skipping = ok(&world, &[&args[..], &["--skip-nonfinite-steps=5", "--batch-size=1"]].concat());
    assert!(skipping.stderr.matches("the step is left out").count() >= 2, "{}", skipping.stderr);
}

/// Set in the process that computes, which has its own libraries.
const INSIDE: &str = "SLT_TEST_INSIDE";
const COMPUTED: &str = "computed on cuda:0";

#[test]
fn the_cases_hold_on_a_gpu() {
    if std::env::var_os(INSIDE).is_some() {
        return repeat_cases();
    }
    let inside = |folder: Option<&Path>| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "gpu::the_cases_hold_on_a_gpu", "--nocapture"]).env(INSIDE, "1");
        folder.inspect(|folder| only(&mut command, folder));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    // A real card where there is one.
    let mut said = inside(None);
    if !needs_card() && !said.contains(COMPUTED) {
        said = inside(Some(fake()));
    }
    assert!(said.contains(COMPUTED), "{said}");
    eprintln!("{said}");
}

fn repeat_cases() {
    for (precision, amp_dtype) in [("fp32", "auto"), ("amp", "bfloat16"), ("amp", "float16")] {
        let (mut most, mut dtype) = ([0.0; 5], ActivationDtype::F32);
        // Half of them are enough where it takes long.
        let step = if needs_card() || precision == "fp32" { 1 } else { 2 };
        for case in cases::all().into_iter().step_by(step) {
            let c = experiment(&case, precision, amp_dtype);
            let (compute, warning) = device::select(&c);
            if compute.is_cpu() {
                eprintln!("{}", warning.unwrap());
                return;
            }
            dtype = compute.activation_dtype(&c);
            for (most, off) in most.iter_mut().zip(repeat(&case, &c, &compute)) {
                *most = f64::max(*most, off);
            }
        }
        let shown: Vec<_> = WHAT.iter().zip(most).map(|(what, off)| format!("{what} {off:.1e}")).collect();
        eprintln!("{dtype}: {}", shown.join(", "));
        let limits = tolerances(dtype);
        assert!(most.iter().zip(limits).all(|(&off, limit)| off <= limit), "{dtype}: more than {limits:?}");
    }
    eprintln!("{COMPUTED}");
}

/// The experiment that a case is.
fn experiment(case: &Case, precision: &str, amp_dtype: &str) -> Experiment {
    let mut c = support::experiment(&[
        ("run.device", "cuda"),
        ("run.precision", precision),
        ("optimization.amp_dtype", amp_dtype),
    ]);
    c.model.clone_from(&case.model);
    c.optimization =
        config::Optimization { amp_dtype: c.optimization.amp_dtype, ..case.optimization.clone() };
    c.data.batch_size = case.arrays["logits_0"].0[0];
    c
}

/// What is compared, by the norm of the difference over the norm; gradients and parameters each for themselves.
const WHAT: [&str; 5] = ["first logits", "losses", "first gradients", "last logits", "last parameters"];

/// How far each may be off.
fn tolerances(dtype: ActivationDtype) -> [f64; 5] {
    match dtype {
        // Adam makes steps of one size of gradients that are next to nothing: their rounding is in the parameters.
        ActivationDtype::F32 => [
            cases::FIRST_LOGITS,
            cases::LOSSES,
            cases::GRADIENTS,
            cases::FINAL_LOGITS,
            5.0 * cases::FINAL_PARAMETERS,
        ],
        ActivationDtype::Bf16 => [2e-2, 1e-2, 1e-1, 1e-1, 1.0],
        ActivationDtype::F16 => [5e-3, 5e-3, 5e-2, 5e-2, 1.0],
    }
}

/// Does what `cases.rs` does on the CPU: how far each of [`WHAT`] is off.
fn repeat(case: &Case, c: &Experiment, compute: &Compute) -> [f64; 5] {
    let mut engine = engine::with_decoder(c, compute, case.decoder().as_ref()).unwrap();
    state::init_from(&case.path.join("init.pt"), engine.host().parameters()).unwrap();
    engine.push().unwrap();
    let mut schedule = Schedule::new(&c.optimization, engine.host().optimizer.groups());
    let mut off = [0.0; 5];
    let logits_off = |engine: &mut dyn Engine, step, key: &str| {
        cases::off(&support::logits(engine, &mut case.batch(step)), &case.arrays[key].1)
    };
    off[0] = logits_off(engine.as_mut(), 0, "logits_0");
    let expected = cases::numbers(&case.json["loss"]);
    for (at, &expected) in expected.iter().enumerate() {
        let (mut batch, mut step) = (case.batch(at), Step::of(1));
        engine.train(&mut batch, &Pass::training(0, at as u64), &mut step).unwrap();
        if at == 0 {
            let found = engine.gradients(&step).unwrap();
            off[2] = case.gradients_off(engine.host().parameters(), &found).1;
        }
        let pending = engine.update(step, &schedule.rates(at as u64), None).unwrap();
        let found = engine.outcome(pending).unwrap();
        assert_eq!(found.end, End::Updated);
        off[1] = f64::max(off[1], (found.loss - expected).abs() / expected.abs());
        schedule.end_epoch(at as u64 + 1, None);
    }
    off[3] = logits_off(engine.as_mut(), expected.len() - 1, "logits_final");
    engine.pull().unwrap();
    off[4] = case.parameters_off(engine.host().parameters()).1;
    off
}
