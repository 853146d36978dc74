//! The command line: what each command prints, where, and with which exit code.

use crate::support::{Outcome, TINY, World, line_of};

/// The documented command line, flag for flag, with a value that differs from the default where a default is.
const FLAGS: &str = "--face-dir data/face --hand-left-dir data/hand_l --hand-right-dir data/hand_r --pose-dir data/pose \
    --metadata-csv data/subs.csv --train-index data/index/train.csv --val-index data/index/val.csv \
    --work-dir run --batch-size 3 --val-batch-size 2 --num-workers 1 --tensorboard logs \
    --image-size 16 --sequence-length 3 --projector-dim 8 --d-model 16 --pose-landmarks 13 --temporal-nhead 2 \
    --temporal-layers 1 --temporal-dim-feedforward 16 --temporal-dropout 0.2 --projector-dropout 0.1 \
    --fusion-dropout 0.1 --vocab-size 100 --optimizer adam --lr 2e-3 --weight-decay 1e-4 --scheduler cosine \
    --scheduler-step-size 3 --scheduler-gamma 0.9 --scheduler-tmax 4 --label-smoothing 0.05 --epochs 1 \
    --device cpu --precision fp32 --seed 9";
const BACKBONE: &str = "--set model.backbone.patch_size=8 --set model.backbone.embed_dim=16 --set model.backbone.depth=1 \
    --set model.backbone.num_heads=2";

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Every number in `text` as `N`, and runs of spaces as one.
fn masked(text: &str) -> String {
    let mut masked = String::new();
    for line in text.lines() {
        let words = line.split_whitespace().map(|word| {
            let mut last_was_digit = false;
            let mut out = String::new();
            for c in word.chars() {
                let digit = c.is_ascii_digit() || (c == '.' && last_was_digit);
                if !digit {
                    out.push(c);
                } else if !last_was_digit {
                    out.push('N');
                }
                last_was_digit = digit;
            }
            out
        });
        masked += &words.collect::<Vec<_>>().join(" ");
        masked.push('\n');
    }
    masked
}

#[test]
fn the_documented_command_line_works_without_a_file() {
    let world = World::new();
    let line = format!("{FLAGS} {BACKBONE}");
    let args = words(&line);
    let outcome = world.ok(&args);
    outcome.says(&["Epoch 1/1 - train_loss="]);
    assert!(world.path("run/last.pt").exists() && world.path("logs").is_dir());
    // Each flag reached its field.
    let shown = world.ok(&[&["config"], args.as_slice()].concat()).stdout;
    let pairs: Vec<_> = words(FLAGS).chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect();
    assert_eq!(pairs.len(), 36);
    for (flag, value) in pairs {
        let field = flag.trim_start_matches("--").replace('-', "_");
        let line = shown.lines().find(|line| line.starts_with(&format!("{field} = "))).unwrap();
        assert!(line.ends_with(&format!("# {flag} {value}")), "{line}");
    }
}

#[test]
fn config_prints_an_experiment_file_with_origins() {
    let world = World::new();
    let with_env = |args: &[&str]| {
        let mut command = world.command(args);
        Outcome::of(&command.env("SLT_OPTIMIZATION__LR", "3e-4").output().unwrap())
    };
    let first = with_env(&["config", "tiny.toml", "--seed", "7", "--set", "model.backbone.depth=2"]);
    assert_eq!((first.code, first.stderr.as_str()), (0, ""));
    let line = |start: &str| first.stdout.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
    let aligned = |line: String| words(&line).join(" ");
    assert_eq!(aligned(line("lr =")), "lr = 0.0003 # env SLT_OPTIMIZATION__LR");
    assert_eq!(aligned(line("seed =")), "seed = 7 # --seed 7");
    assert_eq!(aligned(line("depth =")), "depth = 2 # --set model.backbone.depth=2");
    assert_eq!(aligned(line("epochs =")), format!("epochs = 2 # tiny.toml:{}", line_of("epochs")));
    assert_eq!(aligned(line("mlp_ratio =")), "mlp_ratio = 4.0 # default");

    // What it prints is an experiment file that resolves to the same.
    world.write("printed.toml", &first.stdout);
    let again = world.ok(&["config", "printed.toml"]).stdout;
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split("  # ").next().unwrap().trim_end().to_owned()).collect()
    };
    assert_eq!(values(&again), values(&first.stdout));
    assert!(!again.contains("# default"));
    assert_eq!(world.files().keys().filter(|name| name.starts_with("run")).count(), 0);
}

#[test]
fn check_says_what_a_run_needs_and_writes_nothing() {
    let world = World::new();
    let before = world.files();
    let outcome = world.ok(&["check", "tiny.toml"]);
    assert_eq!(outcome.stderr, "");
    assert!(world.files() == before);
    assert!(outcome.stdout.lines().all(|line| line.chars().count() <= 80), "{}", outcome.stdout);
    let expected = "split clips frames: min median max longer repeated\n\
        train N N N N N N %\n\
        validation N N N N N N %\n\
        \n\
        stream frames clips without cut short with gaps frames in gaps\n\
        face N N N N N\n\
        hand_left N N N N N\n\
        hand_right N N N N N\n\
        pose - N - - -\n\
        \n\
        longer has more frames than model.sequence_length: some are left out\n\
        repeated share of the network's frames that show a clip's last one again\n\
        clips without have nothing in this stream: black images, or a pose of zeros\n\
        cut short the stream ends before the clip: its last frame is shown again\n\
        with gaps the stream lacks frames before its last one: black images there\n\
        \n\
        N texts on N of N classes\n\
        \n";
    let shown = masked(&outcome.stdout);
    assert!(shown.starts_with(expected), "{shown}");
    // Lines that would be longer than 80 columns go on below, behind spaces.
    let first_lines = outcome.stdout.lines().filter(|line| !line.starts_with(' '));
    let shown = masked(&first_lines.collect::<Vec<_>>().join("\n"));
    let starts = [
        "parameters N k: backbones",
        "memory N MiB",
        "chunks all frames of a batch at once",
        "device cpu, N thread",
        "epoch N steps of",
        "one step loss N; N",
        "a run about N",
        "looked into N poses and N images: the first of each clip and stream",
        "not into N more images, which check --all opens",
        "everything is in order",
    ];
    for (line, start) in shown.lines().skip(18).zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    assert_eq!(shown.lines().count(), 18 + starts.len(), "{shown}");
    assert!(outcome.stdout.lines().nth(1).unwrap().starts_with("train            6 "), "{}", outcome.stdout);
    // A run that is there already is worth a warning.
    world.ok(&["tiny.toml", "--epochs", "1"]);
    let outcome = world.ok(&["check", "tiny.toml"]);
    outcome.says(&["warning: run.work_dir run holds a run already"]);
    assert!(outcome.stdout.ends_with("\nin order, with 1 warning\n"), "{}", outcome.stdout);
}

#[test]
fn quiet_normal_and_verbose() {
    let world = World::new();
    let run = |folder: &str, flag: &[&str]| {
        let outcome = world.ok(&[&["tiny.toml", "--work-dir", folder], flag].concat());
        assert_eq!(outcome.stdout, "");
        assert!(!outcome.stderr.contains(['\x1b', '\r']), "{}", outcome.stderr);
        outcome.stderr
    };
    assert_eq!(run("a", &["--quiet"]), "");
    let normal = run("b", &[]);
    let lines: Vec<&str> = normal.lines().collect();
    assert_eq!(lines.len(), 5, "{normal}");
    assert_eq!(lines[0], "override: run.work_dir = \"b\" (--work-dir b)");
    let lines = &lines[1..];
    assert!(
        lines[0].starts_with("6 clips to train on and 2 to validate on, 2 texts in 2 classes; "),
        "{normal}"
    );
    assert!(lines[1].starts_with("Epoch 1/2 - ") && lines[2].starts_with("Epoch 2/2 - "), "{normal}");
    assert!(
        lines[3].starts_with("trained 2 epochs in ") && lines[3].ends_with("; the run is in b"),
        "{normal}"
    );
    assert!(run("c", &["-v"]).lines().count() >= 4);
    let clash = world.run(&["tiny.toml", "-q", "-v"]);
    assert_eq!(clash.code, 2);
    // Warnings are not quiet.
    world.ok(&["tiny.toml", "--work-dir", "d", "--quiet", "--precision", "amp"]).says(&["warning: "]);
}

#[test]
fn colours_only_where_they_are_wanted() {
    let world = World::new();
    let stderr = |variables: &[(&str, &str)]| {
        let mut command = world.command(&["none.toml"]);
        Outcome::of(&command.envs(variables.iter().copied()).output().unwrap()).stderr
    };
    assert!(!stderr(&[]).contains('\x1b'), "a pipe is no terminal");
    assert!(stderr(&[("CLICOLOR_FORCE", "1")]).contains("\x1b["));
    assert!(!stderr(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).contains('\x1b'));
}

#[test]
fn warnings_come_once() {
    let world = World::new();
    // No machine has such a device.
    let args = ["tiny.toml", "--epochs", "1", "--device", "cuda:63", "--precision", "amp", "--no-pin-memory"];
    let outcome = Outcome::of(&world.command(&args).env("SLT_OPTIMIZATION_LR", "1").output().unwrap());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    for part in ["cuda:63", "--no-pin-memory has no effect", "SLT_OPTIMIZATION_LR sets no field"] {
        let lines = outcome.stderr.lines().filter(|line| !line.starts_with("override: "));
        let found: Vec<_> = lines.filter(|line| line.contains(part)).collect();
        assert!(found.len() == 1 && found[0].starts_with("warning: "), "{}", outcome.stderr);
    }
    // Texts that share a class: one warning, and its numbers nowhere else.
    let outcome = world.ok(&["tiny.toml", "--epochs", "1", "--vocab-size", "1", "--work-dir", "one"]);
    assert_eq!(outcome.stderr.matches("share a class").count(), 1, "{}", outcome.stderr);
}

#[test]
fn version_and_help() {
    let world = World::new();
    let version = world.ok(&["--version"]);
    assert_eq!(version.stdout, format!("slt-run {}\n", env!("CARGO_PKG_VERSION")));
    for args in [&["--help"][..], &["check", "--help"], &["config", "--help"], &["demo", "--help"]] {
        let help = world.ok(args);
        assert!(help.stdout.contains("Usage: slt-run") && help.stderr.is_empty());
    }
    for flag in words(FLAGS).into_iter().step_by(2) {
        assert!(world.ok(&["--help"]).stdout.contains(&format!("  {flag} <")), "{flag}");
    }
    let nothing = world.run(&[]);
    assert_eq!(nothing.code, 2);
    nothing.says(&["Usage: slt-run"]);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let world = World::new();
    let mut command = world.command(&["config", "tiny.toml"]);
    let mut child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
}

#[test]
fn a_demo_draws_and_trains() {
    let world = World::new();
    let size = ["--clips", "8", "--frames", "4", "--size", "16", "--signs", "2", "--seed", "3"];
    let drawn = world.ok(&[&["demo", "d", "--data-only"], size.as_slice()].concat());
    drawn.says(&["drew 6 clips to train on and 2 to validate on; the experiment is d/demo.toml"]);
    assert!(world.path("d/demo.toml").exists() && !world.path("d/run").exists());
    let tiny =
        ["--set", "optimization.epochs=1", "--set", "model.image_size=16", "--set", "model.backbone.depth=1"];
    let trained = world.ok(&[&["demo", "d"], size.as_slice(), tiny.as_slice()].concat());
    trained.says(&["found 6 clips", "Epoch 1/1 - ", "the run is in d/run"]);
    assert!(world.path("d/run/last.pt").exists() && world.path("d/run/tensorboard").is_dir());
    let again = world.run(&[&["demo", "d"], size.as_slice(), tiny.as_slice()].concat());
    assert_eq!(again.code, 2);
    again.says(&["d/run holds a run already", "--overwrite"]);
    world.ok(&[&["demo", "d", "--overwrite"], size.as_slice(), tiny.as_slice()].concat());
    let other = world.run(&["demo", "d", "--clips", "4", "--signs", "2", "--data-only"]);
    assert_eq!(other.code, 2);
    other.says(&["drawn with other options", "clips 8 there, 4 now"]);
    // The drawn experiment is an ordinary one.
    world.ok(&["check", "d/demo.toml", "--set", "model.image_size=16"]);
}

#[test]
fn several_files_and_layers_meet_in_one_run() {
    let world = World::new();
    world.write("base.toml", TINY);
    world.write(
        "child.toml",
        "extends = [\"base.toml\"]\n[optimization]\nepochs = 3\n[run]\nwork_dir = \"child\"\n",
    );
    let mut command = world.command(&["child.toml", "--set", "run.seed=4"]);
    let outcome = Outcome::of(&command.env("SLT_OPTIMIZATION__EPOCHS", "1").output().unwrap());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    outcome.says(&["Epoch 1/1"]);
    let written = world.read("child/config.toml");
    assert!(written.contains("epochs = 1\n") && written.contains("seed = 4\n"), "{written}");
}
