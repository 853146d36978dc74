//! Bad input: one message with path, key or row, the layer that the value came from and the cure; nothing written.

use std::fs;
use std::process::Command;

use crate::support::{Outcome, TINY, World, line_of, npz};

/// Runs what must be refused with `code`, and looks whether anything was written.
fn refused_under(world: &World, env: &[(&str, &str)], args: &[&str], code: i32, parts: &[&str]) -> Outcome {
    let before = world.files();
    let outcome = Outcome::of(&world.command(args).envs(env.iter().copied()).output().unwrap());
    assert_eq!(outcome.code, code, "{args:?}\n{}", outcome.stderr);
    outcome.says(parts);
    assert_eq!(outcome.stdout, "");
    let after = world.files();
    let written: Vec<_> = after.keys().filter(|name| before.get(*name) != after.get(*name)).collect();
    assert!(written.is_empty() && before.len() == after.len(), "written: {written:?}\n{}", outcome.stderr);
    outcome
}

fn refused(world: &World, args: &[&str], code: i32, parts: &[&str]) -> Outcome {
    refused_under(world, &[], args, code, parts)
}

/// What training and `check` both refuse.
fn refused_by_both(world: &World, code: i32, parts: &[&str]) {
    refused(world, &["tiny.toml"], code, parts);
    let before = world.files();
    let checked = world.run(&["check", "tiny.toml"]);
    assert_eq!(checked.code, code, "{}{}", checked.stdout, checked.stderr);
    checked.says(parts);
    assert!(world.files() == before);
}

fn errors(outcome: &Outcome) -> usize {
    outcome.stderr.lines().filter(|line| line.starts_with("error: ")).count()
}

#[test]
fn a_missing_file() {
    let world = World::new();
    let outcome = refused(
        &world,
        &["none.toml"],
        2,
        &["experiment file none.toml", "caused by: No such file", "hint: "],
    );
    assert_eq!(errors(&outcome), 1, "{}", outcome.stderr);
    refused(&world, &["chekc"], 2, &["hint: did you mean the command check?"]);
    refused(&world, &["data"], 2, &["it is a folder"]);
    world.write("extending.toml", format!("extends = [\"gone/base.toml\"]\n{TINY}"));
    refused(&world, &["extending.toml"], 2, &["extending.toml:1: extends: cannot read gone/base.toml"]);
}

#[test]
fn a_syntax_error_has_line_and_column() {
    let world = World::new();
    world.write("bad.toml", "[run]\n\nseed = = 3\n");
    let line = "bad.toml:3:8: not valid TOML";
    refused(&world, &["bad.toml"], 2, &[line, "  3 | seed = = 3\n    |        ^"]);
    world.write("latin.toml", b"[run]\nwork_dir = \"a\xf1o\"\n");
    refused(&world, &["latin.toml"], 2, &["latin.toml", "line 2 is not UTF-8", "hint: "]);
}

#[test]
fn unknown_keys_in_every_layer() {
    let world = World::new();
    world.write("typo.toml", "[optimization]\nlearning_rate = 1\n\n[modle]\nd_model = 2\n");
    let outcome = refused(
        &world,
        &["tiny.toml", "typo.toml"],
        2,
        &["typo.toml:2: unknown key optimization.learning_rate", "typo.toml:4: unknown section [modle]"],
    );
    assert_eq!(outcome.stderr.matches("did you mean").count(), 2, "{}", outcome.stderr);
    refused_under(
        &world,
        &[("SLT_OPTIMIZATION__EPOCH", "3")],
        &["tiny.toml"],
        2,
        &["env SLT_OPTIMIZATION__EPOCH: unknown key", "did you mean", "SLT_OPTIMIZATION__EPOCHS"],
    );
    refused(
        &world,
        &["tiny.toml", "--set", "model.backbone.dept=6"],
        2,
        &["--set model.backbone.dept=6: unknown key", "did you mean", "model.backbone.depth"],
    );
    refused(&world, &["tiny.toml", "--epoch", "3"], 2, &["--epoch", "'--epochs'"]);
}

#[test]
fn wrong_types_in_every_layer() {
    let world = World::new();
    world.write("types.toml", "[optimization]\nepochs = \"many\"\nlr = [1]\n[data]\nface_dir = 3\n");
    let parts = [
        "types.toml:2: optimization.epochs: expected a whole number, found the string \"many\"",
        "types.toml:3: optimization.lr: expected a number, found an array",
        "types.toml:5: data.face_dir: expected a path, found the integer 3",
    ];
    assert_eq!(errors(&refused(&world, &["tiny.toml", "types.toml"], 2, &parts)), 3);
    refused_under(
        &world,
        &[("SLT_OPTIMIZATION__LR", "fast"), ("SLT_MODEL__BACKBONE__DEPTH", "1.5")],
        &["tiny.toml"],
        2,
        &[
            "env SLT_OPTIMIZATION__LR: optimization.lr: expected a number, found \"fast\"",
            "env SLT_MODEL__BACKBONE__DEPTH: model.backbone.depth: expected a whole number, found \"1.5\"",
            "hint: for example",
        ],
    );
    refused(
        &world,
        &["tiny.toml", "--epochs", "x", "--set", "run.seed=-1"],
        2,
        &["--epochs x: optimization.epochs: expected", "--set run.seed=-1: run.seed: expected"],
    );
}

#[test]
fn extends_in_a_circle() {
    let world = World::new();
    world.write("a.toml", "extends = [\"b.toml\"]\n");
    world.write("b.toml", "\nextends = \"a.toml\"\n");
    let outcome = refused(
        &world,
        &["a.toml"],
        2,
        &["b.toml:2: extends goes in a circle", "a.toml -> b.toml -> a.toml"],
    );
    assert_eq!(errors(&outcome), 1, "{}", outcome.stderr);
}

#[test]
fn values_that_cannot_work_are_reported_at_once() {
    let world = World::new();
    let bad = "[data]\nbatch_size = 0\n\
               [model]\nimage_size = 20\nd_model = 15\n\
               [optimization]\nepochs = 0\nlr = -1e-3\nweight_decay = -1\nlabel_smoothing = 1.5\nscheduler_tmax = 0\n\
               optimizer = \"adamx\"\nscheduler = \"cosin\"\n[run]\ndevice = \"gpu\"\n";
    world.write("bad.toml", bad);
    let patch = line_of("patch_size");
    let outcome = refused(
        &world,
        &["tiny.toml", "bad.toml"],
        2,
        &[
            "bad.toml:2: data.batch_size: must be at least 1, not 0",
            &format!(
                "model.image_size = 20 (bad.toml:4) is not a multiple of model.backbone.patch_size = 8 (tiny.toml:{patch})"
            ),
            "model.d_model = 15 (bad.toml:5) is not a multiple of model.temporal_nhead = 2",
            "bad.toml:7: optimization.epochs: must be at least 1",
            "bad.toml:8: optimization.lr: must be at least 0, not -0.001",
            "bad.toml:9: optimization.weight_decay: must be at least 0",
            "bad.toml:10: optimization.label_smoothing: must be from 0 to 1, not 1.5",
            "bad.toml:11: optimization.scheduler_tmax: must be at least 1",
            "bad.toml:12: optimization.optimizer: unknown optimizer \"adamx\"",
            "did you mean cosine?",
            "bad.toml:15: run.device: unknown device \"gpu\"",
        ],
    );
    assert_eq!(errors(&outcome), 11, "{}", outcome.stderr);
    // Every one of them says what to do.
    assert_eq!(outcome.stderr.matches("  hint: ").count(), 11, "{}", outcome.stderr);
    let flags = ["tiny.toml", "--lr", "-1", "--label-smoothing=-0.1", "--batch-size", "0"];
    assert_eq!(errors(&refused(&world, &flags, 2, &["--lr -1: ", "--label-smoothing -0.1: "])), 3);
}

#[test]
fn required_fields_without_a_value() {
    let world = World::new();
    world.write("little.toml", "[data]\nface_dir = \"data/face\"\n");
    let parts = ["7 required fields have no value", "data.val_index", "SLT_DATA__VAL_INDEX", "--val-index"];
    refused(&world, &["little.toml"], 2, &parts);
}

#[test]
fn paths_that_are_not_there_are_all_named_with_their_layer() {
    let world = World::new();
    world.write("paths.toml", "[data]\nhand_left_dir = \"nowhere\"\n");
    fs::write(world.path("file"), "x").unwrap();
    let outcome = refused_under(
        &world,
        &[("SLT_DATA__POSE_DIR", "poses")],
        &["tiny.toml", "paths.toml", "--face-dir", "file", "--set", "data.val_index=val.csv"],
        3,
        &[
            "cannot list the folder nowhere (data.hand_left_dir, from paths.toml:2)",
            "cannot list the folder poses (data.pose_dir, from env SLT_DATA__POSE_DIR)",
            "cannot list the folder file (data.face_dir, from --face-dir file)",
            "caused by: Not a directory",
            "cannot read val.csv (data.val_index, from --set data.val_index=val.csv)",
            "hint: correct data.val_index",
        ],
    );
    assert_eq!(errors(&outcome), 4, "{}", outcome.stderr);
}

#[test]
fn metadata_that_cannot_be_used() {
    let world = World::new();
    let key = format!("data/subs.csv (data.metadata_csv, from tiny.toml:{})", line_of("metadata_csv"));
    let good = world.read("data/subs.csv");
    let (id, _) = world.clip();
    let cases: [(&str, Vec<u8>, Vec<&str>); 7] = [
        (
            "columns",
            b"name,what\na,b\n".to_vec(),
            vec!["has no column `video_id`", "has no column `texto`", "`name`, `what`"],
        ),
        (
            "ragged",
            format!("{good}x,y,z\n").into_bytes(),
            vec!["rows of another width than its first: lines 10", "line 10 has 3 fields"],
        ),
        ("encoding", [good.as_bytes(), b"x,se\xf1a\n"].concat(), vec!["is not UTF-8: line 10", "iconv"]),
        (
            "utf16",
            good.encode_utf16().fold(vec![0xff, 0xfe], |mut all, unit| {
                all.extend(unit.to_le_bytes());
                all
            }),
            vec!["is UTF-16", "iconv"],
        ),
        ("empty", Vec::new(), vec!["is empty", "hint: "]),
        (
            "two texts",
            format!("{good}{id},otra\n").into_bytes(),
            vec!["has two texts for", "and 10", "\"otra\"", "hint: keep one"],
        ),
        ("no text", format!("{good}x, \n").into_bytes(), vec!["1 row without a text: lines 10 (x)"]),
    ];
    for (name, bytes, parts) in cases {
        world.write("data/subs.csv", bytes);
        eprintln!("{name}");
        refused_by_both(&world, 3, &[parts, vec![key.as_str()]].concat());
    }
}

#[test]
fn indices_that_cannot_be_used() {
    let world = World::new();
    let key = "data/index/train.csv (data.train_index, from tiny.toml:";
    let cases = [
        ("video_id\nnobody\nnothing\n", "knows none of the 2 ids of "),
        ("video_id\n../clip_00000\n", "line 2"),
        ("a/b\n", "a path separator"),
        ("video_id\n..\n", "`..`"),
        ("video_id\n", "lists no ids"),
        ("", "is empty"),
    ];
    for (text, part) in cases {
        world.write("data/index/train.csv", text);
        let part = part.replace("line 2", "lines 2 (\"../clip_00000\": a path separator)");
        refused_by_both(&world, 3, &[key, &part]);
    }
}

#[test]
fn images_that_cannot_be_decoded() {
    let world = World::new();
    let (_, frames) = world.clip();
    let shown = frames[0].strip_prefix(world.path("")).unwrap().to_str().unwrap().to_owned();
    let good = fs::read(&frames[0]).unwrap();
    let mut huge = good.clone();
    let header = huge.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    huge[header + 5..header + 9].copy_from_slice(&[0xea, 0x60, 0xea, 0x60]);
    let cases: [(&str, &[u8], &str); 5] = [
        ("truncated", &good[..good.len() / 2], "caused by: "),
        ("empty", b"", "it is empty"),
        ("a PNG", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "PNG"),
        ("text", b"not an image", "caused by: "),
        ("60,000 pixels", &huge, "60000"),
    ];
    let named =
        format!("cannot read the image {shown} (data.face_dir, from tiny.toml:{})", line_of("face_dir"));
    for (name, bytes, part) in cases {
        eprintln!("{name}");
        fs::write(&frames[0], bytes).unwrap();
        refused_by_both(&world, 3, &[&named, part, "hint: replace the file"]);
    }
    // In the middle of a clip, which only training meets: the run folder is taken back.
    fs::write(&frames[0], &good).unwrap();
    fs::write(frames.last().unwrap(), &good[..good.len() / 2]).unwrap();
    for workers in ["0", "2"] {
        let args = [
            "tiny.toml",
            "--num-workers",
            workers,
            "--tensorboard",
            "logs/tb",
            "--set",
            "model.sequence_length=9",
        ];
        let before = world.files();
        let outcome = world.run(&args);
        assert_eq!(outcome.code, 3, "{}", outcome.stderr);
        outcome.says(&["cannot read the image data/face/", "(data.face_dir, from tiny.toml:"]);
        assert!(world.files() == before, "{:?}", world.files().keys());
    }
}

#[test]
fn poses_that_cannot_be_used() {
    let world = World::new();
    let (id, _) = world.clip();
    let file = format!("data/pose/{id}.npz");
    let good = fs::read(world.path(&file)).unwrap();
    let mut numbers = [0.5_f32; 2 * 39];
    numbers[39 + 3 * 7 + 1] = f32::NAN;
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let cases = [
        ("no pose", npz("points", "'<f4'", "(2, 39)", &bytes), "it has no array `pose`"),
        (
            "width",
            npz("pose", "'<f4'", "(3, 26)", &bytes),
            "26 values a frame, and model.pose_landmarks = 13 needs 39",
        ),
        ("objects", npz("pose", "'|O'", "(2, 39)", &bytes), "Python objects"),
        ("NaN", npz("pose", "'<f4'", "(2, 39)", &bytes), "row 1, landmark 7 (y) is NaN"),
        ("truncated", good[..good.len() / 2].to_vec(), "it is not a whole npz file"),
        ("empty", Vec::new(), "it is not a whole npz file"),
    ];
    for (name, bytes, part) in cases {
        eprintln!("{name}");
        world.write(&file, bytes);
        refused_by_both(&world, 3, &[&format!("cannot read the pose {file}"), part]);
    }
    world.write(&file, npz("pose", "'<f4'", "(2, 39)", &bytes));
    refused_by_both(&world, 3, &[&format!("(data.pose_dir, from tiny.toml:{})", line_of("pose_dir"))]);
    world.write(&file, npz("pose", "'<f4'", "(3, 24)", &bytes));
    refused_by_both(&world, 3, &["set model.pose_landmarks = 8", "the value now is the default"]);
}

#[test]
fn check_lists_every_broken_file() {
    let world = World::new();
    let (id, frames) = world.clip();
    fs::write(&frames[0], "").unwrap();
    world.write(&format!("data/pose/{id}.npz"), "");
    let ids: Vec<String> = world.read("data/index/val.csv").lines().skip(1).map(str::to_owned).collect();
    world.write(&format!("data/pose/{}.npz", ids[0]), "x");
    let outcome = world.run(&["check", "tiny.toml"]);
    // The two poses are one error.
    assert_eq!((outcome.code, errors(&outcome)), (3, 2), "{}", outcome.stderr);
    outcome.says(&[
        "cannot read 2 of the 8 poses opened in data/pose",
        &id,
        &ids[0],
        "cannot read the image ",
    ]);
    assert!(!outcome.stdout.contains("in order"));
}

#[test]
fn check_all_opens_every_frame() {
    let world = World::new();
    let images = ["face", "hand_l", "hand_r"].map(|stream| names(&world, stream).len()).iter().sum::<usize>();
    let outcome = world.ok(&["check", "tiny.toml", "--all"]);
    let says = format!("looked into  8 poses and {images} images\neverything is in order\n");
    assert!(outcome.stdout.ends_with(&says), "{}", outcome.stdout);

    // All but the first frame of each clip, which a look at the first ones misses; not of the clip of the one step.
    let (id, _) = world.clip();
    let is_later = |name: &String| !name.starts_with(&id) && !is_first(&world, name);
    let later: Vec<String> = names(&world, "face").into_iter().filter(is_later).collect();
    assert!(later.len() > 10, "{later:?}");
    later.iter().for_each(|name| world.write(&format!("data/face/{name}"), "GIF89a"));
    let outcome = world.ok(&["check", "tiny.toml", "--batch-size=1"]);
    assert!(outcome.stdout.contains("\nnot into "), "{}", outcome.stdout);
    let outcome = world.run(&["check", "tiny.toml", "--all", "--num-workers=3"]);
    assert_eq!((outcome.code, errors(&outcome)), (3, 1), "{}", outcome.stderr);
    outcome.says(&[
        &format!(
            "cannot read {} of the {} images opened in data/face",
            later.len(),
            names(&world, "face").len()
        ),
        &format!("(data.face_dir, from tiny.toml:{})", line_of("face_dir")),
        "caused by: it is a GIF, not a JPEG",
        &format!("and {} more\n", later.len() - 10),
    ]);
    assert_eq!(later.iter().filter(|name| outcome.stderr.contains(name.as_str())).count(), 10);
}

/// The files of a stream, sorted.
fn names(world: &World, stream: &str) -> Vec<String> {
    let entries = fs::read_dir(world.path("data").join(stream)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn is_first(world: &World, name: &str) -> bool {
    let clip = |name: &str| name.rsplit_once("_f").unwrap().0.to_owned();
    names(world, "face").iter().find(|other| clip(other) == clip(name)).unwrap() == name
}

/// Twelve files, twelve messages: nobody reads those.
#[test]
fn what_every_clip_has_is_one_error() {
    let world = World::new();
    let bytes: Vec<u8> = [0.5_f32; 2 * 39].iter().flat_map(|x| x.to_le_bytes()).collect();
    for name in names(&world, "pose") {
        world.write(&format!("data/pose/{name}"), npz("pose", "'<f4'", "(3, 24)", &bytes));
    }
    for args in [&["tiny.toml"][..], &["check", "tiny.toml"], &["check", "tiny.toml", "--all"]] {
        let outcome = world.run(args);
        assert_eq!((outcome.code, errors(&outcome)), (3, 1), "{}", outcome.stderr);
        outcome.says(&[
            &format!(
                "cannot read 8 of the 8 poses opened in data/pose (data.pose_dir, from tiny.toml:{})",
                line_of("pose_dir")
            ),
            "caused by: it has 24 values a frame, and model.pose_landmarks = 13 needs 39",
            "caused by: for example ",
            "hint: set model.pose_landmarks = 8",
        ]);
    }
}

#[test]
fn data_that_look_healthy_and_are_not() {
    let world = World::new();
    let warned = |args: &[&str], warnings: &[&str]| {
        let outcome = world.ok(&[&["check", "tiny.toml"], args].concat());
        assert_eq!(outcome.stderr.lines().count(), warnings.len(), "{}", outcome.stderr);
        outcome.says(warnings);
        let number = match warnings.len() {
            1 => "1 warning".to_owned(),
            number => format!("{number} warnings"),
        };
        assert!(outcome.stdout.ends_with(&format!("\nin order, with {number}\n")), "{}", outcome.stdout);
        // A run says the same.
        let dir = tempfile::tempdir().unwrap();
        let work_dir = format!("--work-dir={}", dir.path().join("run").display());
        world.ok(&[&["tiny.toml", "--epochs=1", &work_dir], args].concat()).says(warnings);
    };
    let (left, right) = ("data/hand_l (data.hand_left_dir, from ", "data/hand_r (data.hand_right_dir, from ");
    warned(
        &["--hand-right-dir=data/pose/../hand_l"],
        &[
            "warning: data/hand_l (data.hand_left_dir, from tiny.toml:3) and data/pose/../hand_l (data.hand_right_dir, ",
        ],
    );
    warned(
        &["--sequence-length=128"],
        &["stretched to 128 (model.sequence_length, from --sequence-length 128)"],
    );
    world.write("data/face/Thumbs.db", "");
    warned(&[], &["1 file not named <video_id>_f<number>.jpg, ignored: Thumbs.db"]);
    fs::remove_file(world.path("data/face/Thumbs.db")).unwrap();

    fs::rename(world.path("data/hand_r"), world.path("right")).unwrap();
    fs::create_dir(world.path("data/hand_r")).unwrap();
    warned(&[], &[&format!("warning: no clip has a frame in {right}")]);
    for name in names(&world, "hand_l") {
        std::os::unix::fs::symlink(format!("../hand_l/{name}"), world.path("data/hand_r").join(name))
            .unwrap();
    }
    warned(&[], &[&format!("warning: {left}")]);
    fs::remove_dir_all(world.path("data/hand_r")).unwrap();
    fs::create_dir(world.path("data/hand_r")).unwrap();
    for name in names(&world, "hand_l") {
        fs::copy(world.path("data/hand_l").join(&name), world.path("data/hand_r").join(&name)).unwrap();
    }
    warned(&[], &["and data/hand_r (data.hand_right_dir, from tiny.toml:4) hold the same files, "]);
}

#[test]
fn crops_that_were_deleted_are_no_clips() {
    let world = World::new();
    let (id, _) = world.clip();
    for stream in ["face", "hand_l", "hand_r"] {
        let start = format!("{id}_f");
        for name in names(&world, stream).iter().filter(|name| !name.starts_with(&start)) {
            fs::remove_file(world.path("data").join(stream).join(name)).unwrap();
        }
    }
    refused_by_both(
        &world,
        3,
        &["7 of 8 clips have no image in any stream", "data.max_empty_clips = 0.01", "without any image: "],
    );
    // The validation split has nothing at all, whatever share may be so.
    let most = ["check", "tiny.toml", "--max-empty-clips=0.9"];
    assert_eq!(world.run(&most).says(&["no clip of the validation split (data.val_index, "]).code, 3);
    world.write("data/index/val.csv", format!("{id}\n"));
    let outcome = world.ok(&most);
    outcome
        .says(&["warning: 5 of 6 clips have no image in any stream: they are black images to the network: "]);
    for stream in ["face", "hand_left", "hand_right"] {
        let row = outcome.stdout.lines().find(|line| line.starts_with(stream)).unwrap();
        let without: usize = row.split_whitespace().nth(2).unwrap().parse().unwrap();
        assert!(without >= 5, "{row}");
    }
    refused(&world, &["tiny.toml", "--max-empty-clips=1.5"], 2, &["must be from 0 to 1, not 1.5"]);
}

#[test]
fn a_work_folder_that_is_none() {
    let world = World::new();
    world.write("file", "x");
    let is_file = ["run.work_dir file is a file", "hint: choose another run.work_dir (from --work-dir file)"];
    refused(&world, &["tiny.toml", "--work-dir", "file"], 2, &is_file);
    assert_eq!(world.run(&["check", "tiny.toml", "--work-dir", "file"]).says(&is_file).code, 2);
    refused(
        &world,
        &["tiny.toml", "--work-dir", "file/run"],
        2,
        &["run.work_dir file/run lies below a file"],
    );
    // No one can make folders there, root included.
    refused(
        &world,
        &["tiny.toml", "--work-dir", "/proc/slt-run"],
        2,
        &["run.work_dir /proc/slt-run cannot be written", "hint: "],
    );
}

/// Runs the program in namespaces of its own, where `mount` is a new file system with `options`; afterwards what is on
/// it is copied to `after`. `None` where the system grants no such namespaces.
fn on_mount(world: &World, options: &str, args: &[&str]) -> Option<Outcome> {
    let able = Command::new("unshare").args(["-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).output();
    if !able.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: this system grants no user namespaces with mounts");
        return None;
    }
    fs::create_dir_all(world.path("mount")).unwrap();
    let script =
        "mount -t tmpfs -o \"$0\" tmpfs mount || exit 99; \"$@\"; code=$?; cp -r mount after; exit $code";
    let mut command = Command::new("unshare");
    command.current_dir(world.path("")).args(["-Urm", "sh", "-c", script, options]);
    command.arg(env!("CARGO_BIN_EXE_slt-run")).args(args);
    Some(Outcome::of(&command.output().unwrap()))
}

#[test]
fn a_read_only_work_folder() {
    let world = World::new();
    let Some(outcome) = on_mount(&world, "ro", &["tiny.toml", "--work-dir", "mount/run"]) else { return };
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
    outcome.says(&[
        "run.work_dir mount/run cannot be written",
        "caused by: Read-only file system",
        "hint: choose another run.work_dir (from --work-dir mount/run)",
    ]);
    assert_eq!(fs::read_dir(world.path("after")).unwrap().count(), 0);
}

#[test]
fn a_disk_that_is_full_from_the_start() {
    let world = World::new();
    let args = ["tiny.toml", "--work-dir", "mount/run"];
    let Some(outcome) = on_mount(&world, "nr_inodes=1,size=4k", &args) else { return };
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    outcome.says(&[
        "run.work_dir mount/run cannot be written",
        "No space left",
        "hint: make room on that disk",
    ]);
    assert_eq!(fs::read_dir(world.path("after")).unwrap().count(), 0);
}

#[test]
fn a_disk_that_fills_up_leaves_the_last_checkpoint_whole() {
    let world = World::new();
    world.ok(&["tiny.toml", "--epochs", "1"]);
    let size = fs::metadata(world.path("run/last.pt")).unwrap().len();
    // Room for one checkpoint and the small files, not for two.
    let options = format!("size={}k", size * 3 / 2 / 1024 + 24);
    let args = ["tiny.toml", "--work-dir", "mount/run", "--epochs", "3"];
    let Some(outcome) = on_mount(&world, &options, &args) else { return };
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    outcome.says(&["cannot save mount/run/last.pt", "No space left", "hint: make room on that disk"]);
    assert_eq!(errors(&outcome), 1, "{}", outcome.stderr);
    let names = world
        .files()
        .keys()
        .filter_map(|name| name.strip_prefix("after/run/"))
        .map(str::to_owned)
        .collect::<Vec<_>>();
    assert_eq!(names, ["", "best.pt", "config.json", "config.toml", "last.pt", "metrics.jsonl", "run.json"]);
    assert_eq!(world.checkpoint("after/run/last.pt").epoch, 1);
    assert_eq!(world.checkpoint("after/run/best.pt").epoch, 1);
}
