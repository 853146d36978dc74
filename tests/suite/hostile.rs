//! Hostile files through the program: nothing hangs, crashes, reaches outside or takes memory out of proportion.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use slt_run::data::ImageDecoder;

use crate::support::{Outcome, TINY, World};

/// What the program says to `args`, under a limit of 6 GiB of address space (a plain run maps 1 to 2) and 30 seconds:
/// an error of `code` that contains `parts` and a cure, with nothing written.
fn refused(world: &World, env: &[(&str, &str)], args: &[&str], code: i32, parts: &[&str]) -> Outcome {
    let program = world.command(args);
    let mut limited = Command::new("timeout");
    limited.args(["-s", "KILL", "30", "sh", "-c", "ulimit -v 6291456 && exec \"$0\" \"$@\""]);
    limited.arg(program.get_program()).args(args).current_dir(world.path("")).envs(env.iter().copied());
    for (name, _) in program.get_envs().filter(|(_, value)| value.is_none()) {
        limited.env_remove(name);
    }
    let outcome = Outcome::of(&limited.env("RAYON_NUM_THREADS", "1").output().unwrap());
    assert_eq!(outcome.code, code, "{args:?}\n{}", outcome.stderr);
    outcome.says(parts).says(&["hint: "]);
    assert!(!world.path("run").exists());
    outcome
}

fn fifo(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// Reading a named pipe waits for a writer, reading a device may never end.
#[test]
fn pipes_devices_and_loops_in_the_place_of_files() {
    let world = World::new();
    let (id, frames) = world.clip();
    let pose = format!("data/pose/{id}.npz");
    let frame = frames[0].strip_prefix(world.path("")).unwrap().to_str().unwrap().to_owned();
    world.write("extending.toml", format!("extends = [\"base.toml\"]\n{TINY}"));
    let places: [(&str, &[&str], i32); 6] = [
        (&frame, &["check", "tiny.toml"], 3),
        (&pose, &["check", "tiny.toml"], 3),
        ("data/subs.csv", &["check", "tiny.toml"], 3),
        ("data/index/val.csv", &["check", "tiny.toml"], 3),
        ("base.toml", &["check", "extending.toml"], 2),
        ("weights.pt", &["tiny.toml", "--init-from", "weights.pt"], 3),
    ];
    for (name, args, code) in places {
        let path = world.path(name);
        let good = fs::read(&path).ok();
        fifo(&path);
        refused(&world, &[], args, code, &[name, "a named pipe, not a regular file"]);
        for (to, says) in
            [("/dev/zero", "a device"), ("/", "a folder"), (path.to_str().unwrap(), "caused by: ")]
        {
            fs::remove_file(&path).unwrap();
            symlink(to, &path).unwrap();
            refused(&world, &[], args, code, &[name, says]);
        }
        fs::remove_file(&path).unwrap();
        if let Some(good) = good {
            fs::write(&path, good).unwrap();
        }
    }
    fifo(&world.path("pipe.toml"));
    refused(&world, &[], &["check", "pipe.toml"], 2, &["pipe.toml", "a named pipe"]);
    // A shell's own pipe is a person's own doing.
    let mut shell = Command::new("bash");
    shell.args(["-c", "\"$0\" check <(cat tiny.toml)", env!("CARGO_BIN_EXE_slt-run")]);
    assert_eq!(Outcome::of(&shell.current_dir(world.path("")).output().unwrap()).code, 0);
}

#[test]
fn folders_that_are_loops_or_hold_other_things() {
    let world = World::new();
    let (id, frames) = world.clip();
    // A folder, a link to its own folder and a hanging link among the frames.
    fs::create_dir(world.path("data/face/other_f1.jpg")).unwrap();
    symlink(world.path("data/face"), world.path("data/face/loop")).unwrap();
    symlink("nowhere", world.path("data/face/none_f1.jpg")).unwrap();
    world.ok(&["check", "tiny.toml"]);
    fs::remove_file(&frames[0]).unwrap();
    fs::create_dir(&frames[0]).unwrap();
    let name = frames[0].file_name().unwrap().to_str().unwrap();
    refused(&world, &[], &["check", "tiny.toml"], 3, &[name, "a folder, not a regular file"]);

    fs::rename(world.path("data/pose"), world.path("poses")).unwrap();
    symlink(world.path("data/pose"), world.path("data/pose")).unwrap();
    let says = ["cannot list the folder data/pose", "caused by: ", "correct data.pose_dir"];
    refused(&world, &[], &["check", "tiny.toml"], 3, &says);
    assert!(world.path(&format!("poses/{id}.npz")).exists());
}

/// The places that an id could name outside of the folders hold files that would fit.
#[test]
fn ids_cannot_leave_their_folders() {
    let world = World::new();
    let (id, frames) = world.clip();
    fs::copy(&frames[0], world.path("data/secret_f1.jpg")).unwrap();
    fs::copy(world.path(&format!("data/pose/{id}.npz")), world.path("data/secret.npz")).unwrap();
    let texts = world.read("data/subs.csv");
    let long = "x".repeat(300);
    let absolute = world.path("data/secret");
    let absolute = absolute.to_str().unwrap();
    for (secret, reason) in [
        ("../secret", "a path separator"),
        (absolute, "a path separator"),
        ("..\\secret", "a path separator"),
        ("..", "`..`"),
        ("a\u{1b}[2J", "a control character"),
        (&long, "300 bytes"),
    ] {
        world.write("data/subs.csv", format!("{texts}{secret},hola\n"));
        world.write("data/index/train.csv", format!("video_id\n{id}\n{secret}\n"));
        let says = ["data/index/train.csv", "no file can have: lines 3 (", reason];
        let outcome = refused(&world, &[], &["check", "tiny.toml"], 3, &says);
        assert!(!outcome.stderr.contains('\u{1b}'), "{}", outcome.stderr);
    }
    // Dots alone are only names.
    for name in [".", "..secret", "secret..", "se..cret"] {
        world.write("data/index/train.csv", format!("video_id\n{id}\n{name}\n"));
        world.write("data/subs.csv", format!("{texts}{name},hola\n"));
        let outcome = world.ok(&["check", "tiny.toml", "--max-empty-clips=0.5"]);
        outcome.says(&[&format!("no image in any stream: it is black images to the network: {name}")]);
        fs::copy(&frames[0], world.path(&format!("data/face/{name}_f1.jpg"))).unwrap();
        assert!(!world.ok(&["check", "tiny.toml"]).stderr.contains("no image"));
    }
}

/// Files of a gigabyte that are nothing but a hole: what reads them whole is over its limit, or slow.
#[test]
fn files_of_a_gigabyte() {
    let world = World::new();
    let (id, frames) = world.clip();
    let pose = format!("data/pose/{id}.npz");
    let frame = frames[0].strip_prefix(world.path("")).unwrap().to_str().unwrap().to_owned();
    let cases: [(&str, &[&str], i32, &str); 5] = [
        (&frame, &["check", "tiny.toml"], 3, "larger than 256 MiB"),
        (&pose, &["check", "tiny.toml"], 3, "not a whole npz file"),
        ("data/subs.csv", &["check", "tiny.toml"], 3, "larger than 512 MiB"),
        ("big.toml", &["check", "big.toml"], 2, "larger than 256 KiB"),
        ("weights.pt", &["tiny.toml", "--init-from", "weights.pt"], 3, "not a zip file"),
    ];
    for (name, args, code, says) in cases {
        let path = world.path(name);
        let good = fs::read(&path).ok();
        File::create(&path).unwrap().set_len(1 << 30).unwrap();
        refused(&world, &[], args, code, &[name, says]);
        fs::remove_file(&path).unwrap();
        if let Some(good) = good {
            fs::write(&path, good).unwrap();
        }
    }
}

#[test]
fn values_in_the_environment_and_on_the_command_line() {
    let world = World::new();
    let deep = "[".repeat(100_000);
    let tables = "{a=".repeat(30_000);
    for value in [deep.as_str(), &tables, "[1, {a = [2]}]", "\u{1b}[2J", "nan", "1e999"] {
        for (variable, key) in [
            ("SLT_MODEL__BACKBONE__DEPTH", "model.backbone.depth"),
            ("SLT_OPTIMIZATION__LR", "optimization.lr"),
            ("SLT_RUN__DEVICE", "run.device"),
            ("SLT_RUN__MEMORY_BUDGET", "run.memory_budget"),
        ] {
            let outcome = refused(&world, &[(variable, value)], &["check", "tiny.toml"], 2, &[variable, key]);
            assert!(outcome.stderr.len() < 1000 && !outcome.stderr.contains('\u{1b}'), "{}", outcome.stderr);
        }
        let setting = format!("optimization.lr={value}");
        let outcome =
            refused(&world, &[], &["check", "tiny.toml", "--set", &setting], 2, &["optimization.lr"]);
        assert!(outcome.stderr.len() < 1000 && !outcome.stderr.contains('\u{1b}'), "{}", outcome.stderr);
    }
    let digits = "9".repeat(100_000);
    let depth = [("SLT_MODEL__BACKBONE__DEPTH", digits.as_str())];
    refused(&world, &depth, &["check", "tiny.toml"], 2, &["the largest whole number"]);
    // A network that no machine can hold, and files that extend too many.
    refused(
        &world,
        &[],
        &["check", "tiny.toml", "--set", "model.d_model=9223372036854775806"],
        2,
        &["no machine"],
    );
    let list = "\"tiny.toml\", ".repeat(5000);
    world.write("many.toml", format!("extends = [{list}]\n"));
    refused(&world, &[], &["check", "many.toml"], 2, &["many.toml:1: more than 100 files are extended"]);
    world.write("zero.toml", "extends = \"/dev/zero\"\n");
    refused(
        &world,
        &[],
        &["check", "zero.toml"],
        2,
        &["zero.toml:1: extends: cannot read /dev/zero", "a device"],
    );
}

/// A JPEG of one plane: `process` is the frame's marker, `precision` its bits a sample.
fn jpeg(process: u8, precision: u8, [width, height]: [u16; 2], scans: usize) -> Vec<u8> {
    let [[h1, h0], [w1, w0]] = [height, width].map(u16::to_be_bytes);
    let frame = [0xff, process, 0, 11, precision, h1, h0, w1, w0, 1, 1, 0x11, 0];
    let scan = [&[0xff, 0xda, 0, 8, 1, 1, 0, 0, 0, 0][..], &[0; 400]].concat();
    [&[0xff, 0xd8][..], &frame, &scan.repeat(scans), &[0xff, 0xd9]].concat()
}

#[test]
fn images_that_lie() {
    for (what, bytes, says) in [
        ("the largest size", jpeg(0xc0, 8, [65_500, 65_500], 1), "65500 x 65500 px"),
        ("long and thin", jpeg(0xc0, 8, [65_500, 1], 1), "65500 x 1 px"),
        ("many pixels in few bytes", jpeg(0xc0, 8, [8000, 8000], 1), "cannot hold 64000000 pixels"),
        ("no height", jpeg(0xc0, 8, [8, 0], 1), "8 x 0 px"),
        ("thousands of scans", jpeg(0xc2, 8, [64, 64], 3000), "3000 scans"),
        ("12 bits", jpeg(0xc1, 12, [64, 64], 1), ""),
        ("16 bits, lossless", jpeg(0xc3, 16, [64, 64], 1), ""),
        ("arithmetic coding", jpeg(0xc9, 8, [64, 64], 1), ""),
        ("no tables", jpeg(0xc0, 8, [64, 64], 1), ""),
    ] {
        let error = ImageDecoder::default().decode(&bytes, 8, &mut [0; 192]).expect_err(what);
        assert!(error.contains(says), "{what}: {error}");
    }
}
