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
        \n\
        parameters of trains rate weight decay tensors numbers\n\
        everything yes N N N N k\n\
        \n";
    let shown = masked(&outcome.stdout);
    assert!(shown.starts_with(expected), "{shown}");
    // Lines that would be longer than 80 columns go on below, behind spaces.
    let first_lines = outcome.stdout.lines().filter(|line| !line.starts_with(' '));
    let shown = masked(&first_lines.collect::<Vec<_>>().join("\n"));
    let starts = [
        "parameters N k: backbones",
        "memory N KiB",
        "chunks all frames of a batch at once",
        "device cpu, N thread",
        "epoch N steps of",
        "one step loss N; N",
        "a run about N",
        "looked into N poses and N images: the first of each clip and stream",
        "not into N more images, which check --all opens",
        "everything is in order",
    ];
    for (line, start) in shown.lines().skip(21).zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    assert_eq!(shown.lines().count(), 21 + starts.len(), "{shown}");
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

#[test]
fn a_base_that_two_files_share_counts_once() {
    let world = World::new();
    world.write("a.toml", "extends = \"tiny.toml\"\n[optimization]\nlr = 0.5\n");
    world.write("b.toml", "extends = \"./tiny.toml\"\n[run]\nseed = 9\n");
    let shown = world.ok(&["config", "a.toml", "b.toml", "--set", "optimization.epochs=1"]);
    assert!(shown.stdout.contains("\nlr = 0.5 "), "{}", shown.stdout);
    assert!(shown.stdout.contains("\nseed = 9 ") && shown.stderr.is_empty(), "{}", shown.stderr);
    // Named on the command line, it is said to change nothing.
    world.ok(&["config", "a.toml", "tiny.toml"]).says(&["warning: tiny.toml was read already"]);
    world.write("tiny.toml", format!("extends = \"a.toml\"\n{TINY}"));
    let circle = world.run(&["config", "a.toml", "b.toml"]);
    assert_eq!(circle.code, 2);
    circle.says(&["extends goes in a circle"]);
}

#[test]
fn training_and_going_on_are_commands_too() {
    let world = World::new();
    world.ok(&["train", "tiny.toml", "--epochs", "1"]).says(&["Epoch 1/1"]);
    world.ok(&["resume", "tiny.toml"]).says(&["going on from run/last.pt, after 1 epoch", "Epoch 2/2"]);
    assert!(world.ok(&["help", "resume"]).stdout.contains("Usage: slt-run resume"));
    assert!(world.ok(&["help"]).stdout.contains("Usage: slt-run"));
    // An experiment file that was called so before there was such a command is one still.
    world.write("train", TINY);
    world.ok(&["train", "--epochs", "1", "--work-dir", "other"]).says(&["the run is in other"]);
    let none = world.run(&["translate", "tiny.toml"]);
    assert_eq!(none.code, 2);
    none.says(&["or a command: train, resume, evaluate, predict, check"]);
}

#[test]
fn unknown_flags_and_variables_are_answered() {
    let world = World::new();
    for (flag, answer) in [
        ("--depth=6", "tip: did you mean '--set model.backbone.depth=6'?"),
        ("--backbone-depth=6", "tip: did you mean '--set model.backbone.depth=6'?"),
        ("--clip-grad=1", "tip: did you mean '--grad-clip'?"),
        ("--patience=3", "tip: did you mean '--early-stopping'?"),
    ] {
        let outcome = world.run(&["tiny.toml", flag]);
        assert_eq!(outcome.code, 2);
        outcome.says(&[answer]);
    }
    let mut command = world.command(&["config", "tiny.toml"]);
    let outcome = Outcome::of(&command.env("SLT_LR", "1").output().unwrap());
    outcome.says(&["SLT_LR sets no field; the nearest that does is SLT_OPTIMIZATION__LR"]);
}

#[test]
fn what_is_not_found_is_looked_for_from_the_experiment_file_too() {
    let world = World::new();
    let here = world.path("").canonicalize().unwrap().display().to_string();
    let here = here.trim_end_matches('/');
    std::fs::create_dir_all(world.path("configs/crops")).unwrap();
    world.write("configs/a.toml", "extends = \"../tiny.toml\"\n");
    world.write("configs/index.csv", "video_id\n");
    let started = format!("relative paths start at the working directory, {here}");
    let says = |args: &[&str], code: i32, parts: &[&str]| {
        let outcome = world.run(args);
        assert_eq!(outcome.code, code, "{}", outcome.stderr);
        outcome.says(&[&started]).says(parts);
    };
    for command in ["check", "train", "bench"] {
        let args = [command, "configs/a.toml", "--face-dir", "crops", "--train-index", "index.csv"];
        let args = if command == "bench" { [args.as_slice(), &["--data"]].concat() } else { args.to_vec() };
        says(&args, 3, &["configs/crops is there", "configs/index.csv is there"]);
    }
    says(
        &["configs/a.toml", "--metadata-csv", "gone/subs.csv"],
        3,
        &["cannot read gone/subs.csv", "seen from the experiment file, in configs, it is not there either"],
    );
    says(&["configs/a.toml", "--init-from", "gone.pt"], 3, &["gone.pt", "it is not there either"]);
    says(&["gone.toml"], 2, &["cannot read the experiment file gone.toml"]);
    says(&["tiny.toml", "--pose-dir", "gone"], 3, &["where the experiment file is"]);
    // Started in a folder of the project, as one does.
    let mut command = world.command(&["check", "a.toml"]);
    let outcome = Outcome::of(&command.current_dir(world.path("configs")).output().unwrap());
    assert_eq!(outcome.code, 3);
    outcome.says(&[&format!("the working directory, {here}/configs; ../data/face is there")]);
    // What a link points to may be on a disk that is not mounted.
    std::os::unix::fs::symlink("/gone/w.pt", world.path("w.pt")).unwrap();
    let outcome = world.run(&["tiny.toml", "--init-from", "w.pt"]);
    assert_eq!(outcome.code, 3);
    outcome.says(&["it is a link to /gone/w.pt, which is not there"]);
}

#[test]
fn a_tilde_is_the_home_folder() {
    let world = World::new();
    let home = world.path("home").display().to_string();
    std::fs::create_dir(&home).unwrap();
    std::fs::rename(world.path("tiny.toml"), world.path("home/base.toml")).unwrap();
    world.write("tiny.toml", "extends = \"~/base.toml\"\n");
    let with_home = |args: &[&str]| Outcome::of(&world.command(args).env("HOME", &home).output().unwrap());
    let outcome = with_home(&["tiny.toml", "--epochs=1", "--work-dir=~/run"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(world.path("home/run/last.pt").exists() && !world.path("~").exists());
    assert!(world.read("home/run/config.toml").contains(&format!("work_dir = \"{home}/run\"")));
    let again = with_home(&["tiny.toml", "--epochs=1", "--work-dir=b", "--init-from=~/run/best.pt"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    let refused = with_home(&["tiny.toml", "--init-from=~other/best.pt"]);
    assert_eq!(refused.code, 2);
    refused.says(&["another user's home folder"]);
}

#[test]
fn precision_by_default_is_silent_on_a_cpu() {
    let world = World::new();
    world.write("tiny.toml", TINY.replace("precision = \"fp32\"\n", ""));
    let silent = |args: &[&str]| {
        let outcome = world.ok(args);
        assert!(!outcome.stderr.contains("warning"), "{}", outcome.stderr);
    };
    silent(&["tiny.toml", "--epochs", "1"]);
    silent(&["check", "tiny.toml", "--work-dir", "new"]);
    // Nor does a run's own snapshot ask for anything.
    silent(&["run/config.toml", "--work-dir", "again"]);
    world
        .ok(&["tiny.toml", "--work-dir", "c", "--precision", "amp"])
        .says(&["(run.precision, from --precision amp)"]);
    world.ok(&["tiny.toml", "--work-dir", "d", "--device", "cuda:63"]).says(&["the device cuda:63"]);
}

#[test]
fn lines_of_a_run_fit_80_columns() {
    let world = World::new();
    let outcome =
        world.ok(&["tiny.toml", "--epochs", "12", "--scheduler", "cosine", "--scheduler-tmax", "11"]);
    let epochs: Vec<&str> = outcome.stderr.lines().filter(|line| line.starts_with("Epoch ")).collect();
    assert_eq!(epochs.len(), 12);
    assert!(epochs.iter().all(|line| line.chars().count() <= 80 && line.contains(" - acc=")), "{epochs:?}");
    assert!(epochs[11].contains(" lr=0 "), "{}", epochs[11]);
    assert!(epochs[0].ends_with(" *"), "{}", epochs[0]);
    for args in
        [&["bench", "tiny.toml", "--steps", "1"][..], &["bench", "tiny.toml", "--data", "--steps", "1"]]
    {
        let table = world.ok(args).stdout;
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    }
    for args in [&["--help"][..], &["demo", "--help"], &["bench", "--help"]] {
        let mut command = world.command(args);
        let help = Outcome::of(&command.env("COLUMNS", "80").output().unwrap()).stdout;
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    }
}

#[test]
fn a_resumed_run_says_its_own_time_and_that_of_the_whole() {
    let world = World::new();
    let first = world.ok(&["tiny.toml", "--epochs", "1"]);
    first.says(&["trained 1 epoch in "]);
    // As if it had taken an hour.
    let metrics = world.read("run/metrics.jsonl");
    let (before, after) = metrics.split_once("\"seconds\":").unwrap();
    let (_, after) = after.split_once(',').unwrap();
    world.write("run/metrics.jsonl", format!("{before}\"seconds\":3600.0,{after}"));
    let rest = world.ok(&["tiny.toml", "--epochs", "3", "--resume"]);
    rest.says(&["trained epochs 2 to 3 in ", ", all 3 in 1 h 0 min: the best is epoch "]);
    let one = world.ok(&["tiny.toml", "--epochs", "4", "--resume"]);
    one.says(&["trained epoch 4 in ", ", all 4 in 1 h 0 min: "]);
}

#[test]
fn a_demo_s_hints_are_commands_that_work() {
    let world = World::new();
    let size = ["--clips", "8", "--frames", "4", "--size", "16", "--signs", "2"];
    let tiny = ["--epochs", "2", "--image-size", "16", "--set", "model.backbone.depth=1"];
    let drawn = world.ok(&[&["demo", "my demo", "--data-only"], size.as_slice()].concat());
    let hint = drawn.stderr.lines().find_map(|line| line.strip_prefix("train on it with: ")).unwrap();
    let shell = |line: &str| {
        let script = format!("slt-run() {{ \"$PROGRAM\" \"$@\"; }}; {line}");
        let mut command = std::process::Command::new("bash");
        command.current_dir(world.path("")).args(["-c", &script]);
        Outcome::of(&command.env("PROGRAM", world.command(&[]).get_program()).output().unwrap())
    };
    let trained = shell(&format!("{hint} --epochs 1 --image-size 16 --set model.backbone.depth=1"));
    assert_eq!(trained.code, 0, "{}", trained.stderr);
    // The folder's own options hold where none are given; a run there goes on, or is moved aside.
    let refused = world.run(&[&["demo", "my demo"], tiny.as_slice()].concat());
    assert_eq!(refused.code, 2);
    refused.says(&["found 6 clips", "holds a run already", "(--resume)", "--overwrite"]);
    let resumed = world.ok(&[&["demo", "my demo", "--resume"], tiny.as_slice()].concat());
    resumed.says(&["after 1 epoch", "Epoch 2/2", "Result: "]);
    world.ok(&[&["demo", "my demo", "--overwrite"], tiny.as_slice()].concat()).says(&["Epoch 2/2"]);
    // What is there is taken where the options are left out, as the message says.
    let other = world.run(&["demo", "my demo", "--clips", "9"]);
    assert_eq!(other.code, 2);
    other.says(&["clips 8 there, 9 now", "leave these options out to take what is there"]);
    world.ok(&["demo", "my demo", "--data-only"]).says(&["found 6 clips"]);
}
