//! What a person reads when a configuration is wrong, to the letter; `tests/suite/config.rs` has the rest.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use super::*;

/// The required fields, below everything else.
const BASE: &str = r#"
[data]
face_dir = "face"
hand_left_dir = "left"
hand_right_dir = "right"
pose_dir = "pose"
metadata_csv = "subs.csv"
train_index = "train.csv"
val_index = "val.csv"
[run]
work_dir = "work"
"#;

/// What `files` (the first is given; all are written) make of an experiment, with the folder's name.
fn resolve_files(
    files: &[(&str, &str)],
    env: &[(&str, &str)],
    settings: &[&str],
) -> (crate::Result<Resolved>, String) {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.toml");
    fs::write(&base, BASE).unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let mut layers = Layers { files: vec![base], ..Layers::default() };
    layers.files.extend(files.first().map(|(name, _)| dir.path().join(name)));
    layers.env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
    layers.settings = settings.iter().map(|text| set(text)).collect();
    (resolve(&layers), format!("{}/", dir.path().display()))
}

/// The message for files, with the folder's name taken out.
fn refused_files(files: &[(&str, &str)], env: &[(&str, &str)], settings: &[&str]) -> String {
    let (resolved, folder) = resolve_files(files, env, settings);
    let error = resolved.unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string().replace(&folder, "")
}

fn refused(text: &str) -> String {
    refused_files(&[("a.toml", text)], &[], &[])
}

fn set(text: &str) -> Setting {
    let (key, value) = text.split_once('=').unwrap();
    Setting { key: key.into(), value: value.into(), origin: format!("--set {text}") }
}

#[test]
fn defaults_are_values_of_their_fields() {
    for field in FIELDS {
        if let Preset::Text(text) = field.default {
            assert!(value::from_text(field, text).is_ok(), "{}", field.key);
        }
        assert_eq!(field.default == Preset::Unset, field.optional, "{}", field.key);
    }
}

#[test]
fn a_wrong_type_names_its_place_in_every_layer() {
    assert_eq!(
        refused("[optimization]\nepochs = 3\nlr = \"fast\"\n"),
        "error: a.toml:3: optimization.lr: expected a number, found the string \"fast\"\n  \
         hint: for example the default, lr = 1e-3"
    );
    assert_eq!(
        refused_files(&[], &[("SLT_OPTIMIZATION__LR", "fast")], &[]),
        "error: env SLT_OPTIMIZATION__LR: optimization.lr: expected a number, found \"fast\"\n  \
         hint: for example the default, lr = 1e-3"
    );
    assert_eq!(
        refused_files(&[], &[], &["optimization.lr=fast"]),
        "error: --set optimization.lr=fast: optimization.lr: expected a number, found \"fast\"\n  \
         hint: for example the default, lr = 1e-3"
    );
}

#[test]
fn wrong_types_in_a_file() {
    let text = "[data]\nbatch_size = -4\nval_batch_size = 2.5\nnum_workers = [1]\nface_dir = 7\ntensorboard = true\n\
                [optimization]\nlr = \"1e-4\"\nepochs = \"\"\n[model]\nd_model = { a = 1 }\n\
                [model.image_size]\na = 1\n[run]\nseed = 1979-05-27\n";
    assert_eq!(
        refused(text),
        r#"error: a.toml:2: data.batch_size: expected a whole number, found the negative number -4
  hint: for example the default, batch_size = 4
error: a.toml:3: data.val_batch_size: expected a whole number, found the float 2.5
  hint: for example val_batch_size = 4
error: a.toml:4: data.num_workers: expected a whole number, found an array
  hint: for example num_workers = 4
error: a.toml:5: data.face_dir: expected a path, found the integer 7
  hint: put it in quotes: face_dir = "7"
error: a.toml:6: data.tensorboard: expected auto or a path, found the boolean true
  hint: write tensorboard = "auto", or a folder of your own
error: a.toml:8: optimization.lr: expected a number, found the string "1e-4"
  hint: write it without quotes: lr = 1e-4
error: a.toml:9: optimization.epochs: expected a whole number, found an empty string
  hint: leave it out for the default, 40; only optional fields can be unset
error: a.toml:11: model.d_model: expected a whole number, found a table
  hint: for example the default, d_model = 512
error: a.toml:12: model.image_size: expected a whole number, found a table
  hint: for example the default, image_size = 224
error: a.toml:15: run.seed: expected a whole number, found the datetime 1979-05-27
  hint: for example the default, seed = 1234"#
    );
}

#[test]
fn whole_numbers_must_fit_a_file() {
    let hint = "\n  hint: the largest whole number that an experiment file can hold is 9223372036854775807";
    for seed in ["9223372036854775808", "18446744073709551616", &"9".repeat(50)] {
        assert_eq!(
            refused_files(&[], &[], &[&format!("run.seed={seed}")]),
            format!(
                "error: --set run.seed={seed}: run.seed: expected a whole number, found the number {seed}{hint}"
            )
        );
    }
    assert_eq!(
        refused_files(&[], &[("SLT_DATA__BATCH_SIZE", "-1")], &[]),
        "error: env SLT_DATA__BATCH_SIZE: data.batch_size: expected a whole number, found the negative number -1\n  \
         hint: for example the default, batch_size = 4"
    );
}

#[test]
fn unknown_keys_are_refused_in_every_layer() {
    let text = "lr = 1\nextend = \"b\"\n[optimization]\nnesterov = 1\nbatch_size = 2\nlabel_smothing = 0.1\n\
                extends = \"b\"\n[model.backbon]\ndepth = 1\n[optimisation]\nlr = 1\n[[data2]]\na = 1\n";
    assert_eq!(
        refused_files(
            &[("a.toml", text)],
            &[("SLT_OPTIMIZATION__LRR", "1"), ("SLT_MODEL__BACKBONE", "1")],
            &["model.depth=3", "x=1"]
        ),
        "error: a.toml:1: unknown key lr
  hint: did you mean optimization.lr?
error: a.toml:2: unknown key extend
  hint: did you mean extends?
error: a.toml:4: unknown key optimization.nesterov
  hint: there is no Nesterov momentum; [optimization] has epochs, optimizer, lr, weight_decay, betas, eps, momentum, \
         groups, warmup_steps, scheduler, scheduler_step_size, scheduler_gamma, scheduler_tmax, \
         scheduler_patience, scheduler_threshold, min_lr, label_smoothing, frames_per_chunk, accumulate, \
         grad_clip, skip_nonfinite_steps, amp_dtype, best_metric, early_stopping, keep_checkpoints
error: a.toml:5: unknown key optimization.batch_size
  hint: did you mean data.batch_size?
error: a.toml:6: unknown key optimization.label_smothing
  hint: did you mean optimization.label_smoothing?
error: a.toml:7: extends stands inside [optimization]
  hint: put it at the top of the file, before the first section
error: a.toml:8: unknown section [model.backbon]
  hint: did you mean [model.backbone]?
error: a.toml:10: unknown section [optimisation]
  hint: did you mean [optimization]?
error: a.toml:12: unknown section [data2]
  hint: did you mean [data]?
error: env SLT_MODEL__BACKBONE: model.backbone is a section, not a field
  hint: name the field: SLT_MODEL__BACKBONE__<FIELD>
error: env SLT_OPTIMIZATION__LRR: unknown key optimization.lrr
  hint: did you mean SLT_OPTIMIZATION__LR?
error: --set model.depth=3: unknown key model.depth
  hint: did you mean model.backbone.depth?
error: --set x=1: unknown key x
  hint: the sections are [data], [model], [model.backbone], [model.decoder], [tokenizer], [decoding], [optimization], [run]"
    );
    assert_eq!(
        refused("data = 3\nmodel.backbone = \"vit\""),
        "error: a.toml:1: data: expected a section, found the integer 3\n  \
         hint: write [data] and its fields on the lines below it\n\
         error: a.toml:2: model.backbone: expected a section, found the string \"vit\"\n  \
         hint: write [model.backbone] and its fields on the lines below it"
    );
}

#[test]
fn syntax_errors_show_the_line() {
    assert_eq!(
        refused("[optimization]\nlr = 1e-4 x\n"),
        "error: a.toml:2:6: not valid TOML: string values must be quoted, expected literal string\n  \
         2 | lr = 1e-4 x\n    |      ^"
    );
    assert_eq!(
        refused("a = \"ñ\" = 1"),
        "error: a.toml:1:9: not valid TOML: unexpected key or value, expected newline, `#`\n  \
         1 | a = \"ñ\" = 1\n    |         ^"
    );
    let long = refused(&format!("a = \"{}\" b", "x".repeat(1000)));
    assert!(long.lines().all(|line| line.chars().count() < 140), "{long}");
}

#[test]
fn files_that_cannot_be_read() {
    let here = std::env::current_dir().unwrap().display().to_string();
    let missing = |name: &str| {
        let error = resolve(&Layers { files: vec![name.into()], ..Layers::default() }).unwrap_err();
        let start = format!(
            "error: cannot read the experiment file {name}\n  \
             caused by: No such file or directory (os error 2)\n  hint: "
        );
        error.to_string().strip_prefix(&start).unwrap().replace(&here, "HERE")
    };
    assert_eq!(
        missing("no/such.toml"),
        "give the path of a TOML file; relative paths start at the working directory, HERE"
    );
    assert_eq!(
        missing("translate"),
        "give the path of a TOML file, or a command: train, resume, evaluate, predict, check, cache, config, bench, demo, \
         help; relative paths start at the working directory, HERE"
    );
    assert_eq!(missing("chek"), "did you mean the command check?");
    assert_eq!(missing("model.backbone.depth=6"), "did you mean --set model.backbone.depth=6?");
    assert_eq!(missing("lr=1e-4"), "did you mean --set optimization.lr=1e-4?");
    assert_eq!(
        refused("\nextends = [\"base.toml\", \"sub/none.toml\"]").replace(&here, "HERE"),
        "error: a.toml:2: extends: cannot read sub/none.toml\n  \
         caused by: No such file or directory (os error 2)\n  \
         hint: paths in extends are relative to the file that they stand in, not to the working directory, HERE, \
         where it is not, either"
    );
    let dir = tempfile::tempdir().unwrap();
    let fail = |path: PathBuf| {
        let error = resolve(&Layers { files: vec![path], ..Layers::default() }).unwrap_err().to_string();
        error.replace(&dir.path().display().to_string(), "DIR")
    };
    assert_eq!(
        fail(dir.path().into()),
        "error: cannot read the experiment file DIR\n  caused by: it is a folder, not a regular file\n  \
         hint: it is a folder; give a file"
    );
    fs::write(dir.path().join("latin.toml"), b"a = 1\nb = \"\xf1\"").unwrap();
    assert_eq!(
        fail(dir.path().join("latin.toml")),
        "error: cannot read the experiment file DIR/latin.toml\n  caused by: line 2 is not UTF-8 text\n  \
         hint: save the file in the encoding UTF-8"
    );
    fs::write(dir.path().join("last.pt"), vec![0xff; 300 * 1024]).unwrap();
    assert!(
        fail(dir.path().join("last.pt")).contains("hint: a checkpoint is no experiment: --init-from takes")
    );
    fs::write(dir.path().join("big.toml"), vec![b'#'; 300 * 1024]).unwrap();
    assert_eq!(
        fail(dir.path().join("big.toml")),
        "error: cannot read the experiment file DIR/big.toml\n  caused by: it is larger than 256 KiB\n  \
         hint: give an experiment file in TOML"
    );
}

#[test]
fn extends_in_a_circle() {
    let files = [
        ("a.toml", "extends = \"b.toml\"\n"),
        ("b.toml", "# from c\nextends = [\"c.toml\"]\n"),
        ("c.toml", "extends = [\"base.toml\", \"b.toml\"]\n"),
    ];
    assert_eq!(
        refused_files(&files, &[], &[]),
        "error: c.toml:1: extends goes in a circle\n  caused by: b.toml -> c.toml -> b.toml\n  \
         hint: take one of these extends out"
    );
    assert_eq!(
        refused("extends = 3"),
        "error: a.toml:1: extends: expected a file's path, or a list of them\n  \
         hint: for example extends = [\"base.toml\"]"
    );
    // Files that double at every step: 2^101 reads, if nothing stopped them.
    let names: Vec<_> = (0..101)
        .map(|n| (format!("f{n}.toml"), format!("extends = [\"f{0}.toml\", \"f{0}.toml\"]", n + 1)))
        .collect();
    let mut files: Vec<_> = names.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    files.push(("f101.toml", ""));
    let text = refused_files(&files, &[], &[]);
    assert!(text.contains("more than 100 files are extended") && text.lines().count() == 2, "{text}");
    let text = refused(&format!("extends = [{}]", "\"base.toml\",".repeat(101)));
    assert!(text.contains("a.toml:1: more than 100 files are extended"), "{text}");
}

#[test]
fn words_of_other_languages_are_answered() {
    for (line, hint) in [
        ("[optimization]\nscheduler = None", "write scheduler = \"none\""),
        ("[optimization]\noptimizer = None", "leave it out for the default, adamw"),
        (
            "[optimization]\ngrad_clip = None",
            "leave it out, or write grad_clip = \"\", to leave it unset (off)",
        ),
        ("data.tensorboard = True", "write tensorboard = \"auto\", or a folder of your own"),
        ("[data]\ntensorboard = false", "leave it out, or write tensorboard = \"\", to leave it unset (off)"),
        ("[run]\ndevice = cuda:1 # the second", "put it in quotes: device = \"cuda:1\""),
        ("[data]\nface_dir = data/face", "put it in quotes: face_dir = \"data/face\""),
        ("[run]\nresume = true", "the choices are never, auto"),
        ("[data]\nval_batch_size = \"none\"", "leave it out, or write val_batch_size = \"\""),
        ("[run]\nmemory_budget = 8", "write the unit: memory_budget = \"8GiB\""),
        ("[run]\nmemory_budget = \"8000000000\"", "write the unit: memory_budget = \"8000000000B\""),
        ("[run]\nfp16 = true", "write run.precision = \"amp\" and optimization.amp_dtype = \"float16\""),
        ("bf16 = true", "write run.precision = \"amp\" and optimization.amp_dtype = \"bfloat16\""),
        (
            "[run]\nprecision = \"fp16\"",
            "write run.precision = \"amp\" and optimization.amp_dtype = \"float16\"",
        ),
        ("[optim]\nlr = 1", "did you mean [optimization]?"),
        ("[optimization]\npatience = 3", "did you mean optimization.early_stopping?"),
        ("[optimization]\nclip_grad = 1", "did you mean optimization.grad_clip?"),
    ] {
        let text = refused(line);
        assert!(text.contains(&format!("\n  hint: {hint}")), "{line}\n{text}");
        assert_eq!(text.matches("error: ").count(), 1, "{line}\n{text}");
    }
    assert!(!refused("a = 1 2").contains("hint"), "nothing is known of that line");
    // No line, however long, makes a long message.
    let zeros = "0".repeat(3000);
    for line in [format!("face_dir = {}", "é".repeat(3000)), format!("[run]\nmemory_budget = \"{zeros}8\"")]
    {
        let text = refused(&line);
        assert!(text.contains("\n  hint: ") && text.chars().count() < 800, "{text}");
    }
}

#[test]
fn a_tilde_is_the_home_folder_in_every_layer() {
    let home = std::env::home_dir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    fs::write(&file, BASE.replace("\"face\"", "\"~/face\"")).unwrap();
    let layers = Layers {
        files: vec![file],
        env: vec![("SLT_DATA__POSE_DIR".into(), "~/pose".into())],
        settings: vec![set("run.work_dir=~"), set("data.hand_left_dir=./~/left")],
        ..Layers::default()
    };
    let found = resolve(&layers).unwrap();
    let (data, run) = (&found.experiment.data, &found.experiment.run);
    assert_eq!((&data.face_dir, &data.pose_dir), (&home.join("face"), &home.join("pose")));
    assert_eq!((run.work_dir.clone(), data.hand_left_dir.clone()), (home.join(""), "./~/left".into()));
    for layer in [
        refused("[run]\nwork_dir = \"~other/x\""),
        refused_files(&[], &[("SLT_RUN__WORK_DIR", "~other/x")], &[]),
        refused_files(&[], &[], &["run.work_dir=~other/x"]),
        refused("extends = \"~other/x.toml\""),
    ] {
        assert!(layer.contains("another user's home folder\n  hint: write that folder out"), "{layer}");
    }
}

#[test]
fn a_file_counts_once_at_its_first_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let write = |name: &str, text: &str| fs::write(path(name), text).unwrap();
    write("base.toml", &format!("{BASE}[optimization]\nlr = 1\nepochs = 1\n"));
    write("a.toml", "extends = \"base.toml\"\n[optimization]\nlr = 2\n");
    fs::create_dir(path("sub")).unwrap();
    write("sub/b.toml", "extends = [\"../base.toml\", \"../a.toml\"]\n[optimization]\nepochs = 3\n");
    let found = |names: &[&str]| {
        let files = names.iter().map(|name| path(name)).collect();
        let found = resolve(&Layers { files, ..Layers::default() }).unwrap();
        let o = &found.experiment.optimization;
        (o.lr, o.epochs, found.warnings.len())
    };
    // The base is below both, however it is named.
    assert_eq!(found(&["a.toml", "sub/b.toml"]), (2.0, 3, 0));
    assert_eq!(found(&["sub/b.toml"]), (2.0, 3, 0));
    // Who names it once more is told that it changes nothing.
    assert_eq!(found(&["a.toml", "base.toml"]), (2.0, 1, 1));
    assert_eq!(found(&["base.toml", "a.toml"]), (2.0, 1, 0));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("base.toml", path("link.toml")).unwrap();
        write("c.toml", "extends = \"link.toml\"\n");
        assert_eq!(found(&["a.toml", "c.toml"]), (2.0, 1, 0));
    }
}

#[test]
fn what_was_asked_for_is_told_from_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    let asked = |text: &str, settings: &[&str]| {
        fs::write(&file, text).unwrap();
        let settings = settings.iter().map(|text| set(text)).collect();
        let found = resolve(&Layers { files: vec![file.clone()], settings, ..Layers::default() }).unwrap();
        (found.is_asked_for("run.precision"), found.to_toml())
    };
    let (by_default, snapshot) = asked(BASE, &[]);
    assert!(!by_default);
    assert!(asked(&format!("{BASE}precision = \"amp\"\n"), &[]).0);
    assert!(asked(BASE, &["run.precision=amp"]).0);
    // A resolved experiment says everything.
    assert!(!asked(&snapshot, &[]).0);
    assert!(asked(&snapshot.replace("precision = \"amp\"", "precision = \"fp32\""), &[]).0);
}

#[test]
fn groups_and_pairs_are_the_same_in_every_layer() {
    let groups = "[[optimization.groups]]\nmatch = \"decoder.*\"\nlr_factor = 10\n\
                  [[optimization.groups]]\nmatch = \"*.bias\"\nweight_decay = 0\n";
    let inline = "[{ match = \"decoder.*\", lr_factor = 10 }, { match = \"*.bias\", weight_decay = 0.0 }]";
    let of_file = resolve_files(&[("a.toml", groups)], &[("SLT_OPTIMIZATION__BETAS", "[0.5, 0.25]")], &[]);
    let of_file = of_file.0.unwrap().experiment;
    let of_settings =
        crate::config::for_tests(&[("optimization.groups", inline), ("optimization.betas", "0.5, 0.25")]);
    assert_eq!(of_file.optimization, of_settings.optimization);
    let toml = of_settings.to_toml();
    assert!(toml.contains("betas = [0.5, 0.25]\n"), "{toml}");
    let line = "groups = [{ match = \"decoder.*\", lr_factor = 10.0 }, { match = \"*.bias\", weight_decay = 0.0 }]\n";
    assert!(toml.contains(line), "{toml}");
    let again = resolve_files(&[("a.toml", toml.as_str())], &[], &[]).0.unwrap().experiment;
    assert_eq!(again, of_settings);
    for (text, says) in [
        ("[optimization]\nbetas = 0.9", "expected two numbers, found 0.9"),
        ("[optimization]\nbetas = [0.9, 1.0]", "must be at least 0 and below 1, not 1.0"),
        ("[optimization]\ngroups = 3", "expected a list of groups"),
        ("[[optimization.groups]]\nlr = 1", "group 1: it has no match"),
        ("[[optimization.groups]]\nmatch = \"a\"\nlearn = 1", "group 1: unknown key learn"),
        ("[[optimization.groups]]\nmatch = \"a\"\nlr = \"1\"", "group 1: lr must be a number"),
        ("[[optimization.groups]]\nmatch = \"a[\"\nlr = 1", "has a [ without a ]"),
        ("[[optimization.groups]]\nmatch = \"a\"\nlr = 1\nlr_factor = 1", "two learning rates"),
        ("[model.backbone]\nfreeze = \"some\"", "expected none, all or a number of blocks"),
    ] {
        let text = refused(text);
        assert!(text.contains(says) && text.contains("hint: "), "{text}");
    }
}

#[test]
fn knobs_of_training_that_contradict_each_other_are_refused() {
    for (text, says) in [
        ("[optimization]\nmomentum = 0.9", "optimization.momentum = 0.9 (a.toml:2) is SGD's"),
        ("[optimization]\noptimizer = \"sgd\"\nbetas = [0.5, 0.9]", "is Adam's and AdamW's"),
        ("[optimization]\noptimizer = \"sgd\"\neps = 1e-6", "optimization.eps = 1e-6"),
        ("[optimization]\nscheduler = \"plateau\"\nscheduler_gamma = 1", "does not lower the learning rate"),
        ("[optimization]\nscheduler = \"plateau\"\nmin_lr = 1", "is above optimization.lr = 0.001"),
        (
            "[optimization]\nearly_stopping = 2\nbest_metric = \"val_bleu\"\n[run]\nevaluate_every = 3",
            "optimization.early_stopping = 2 (a.toml:2) is less than run.evaluate_every = 3",
        ),
        (
            "[model.backbone]\nfreeze = 13",
            "model.backbone.freeze = 13 (a.toml:2) is more than model.backbone.depth = 12",
        ),
    ] {
        let text = refused(text);
        assert!(text.contains(says) && text.contains("hint: "), "{text}");
    }
}

#[test]
fn values_that_cannot_work_are_reported_at_once() {
    let text = "[data]\nbatch_size = 0\nval_batch_size = 0\n[model]\nimage_size = 225\ntemporal_dropout = 1\n\
                [model.backbone]\nstochastic_depth = 1.5\nmlp_ratio = 1e-9\nnum_heads = 7\n\
                [optimization]\nlabel_smoothing = 1.5\nlr = nan\nweight_decay = -1\nscheduler_gamma = 0\n\
                scheduler = \"cosin\"\noptimizer = \"AdamX\"\n";
    let env =
        [("SLT_OPTIMIZATION__EPOCHS", "0"), ("SLT_RUN__DEVICE", "gpu"), ("SLT_DATA__NUM_WORKERS", "100000")];
    assert_eq!(
        refused_files(&[("a.toml", text)], &env, &["model.temporal_nhead=7", "optimization.scheduler_tmax=0"]),
        "error: a.toml:16: optimization.scheduler: unknown scheduler \"cosin\"
  hint: did you mean cosine? the choices are none, steplr, cosine, plateau
error: a.toml:17: optimization.optimizer: unknown optimizer \"AdamX\"
  hint: did you mean adamw? the choices are adamw, adam, sgd
error: env SLT_RUN__DEVICE: run.device: unknown device \"gpu\"
  hint: did you mean cuda? the choices are cpu, cuda and cuda:N, where N is a device's number
error: a.toml:2: data.batch_size: must be at least 1, not 0
  hint: the default is 4
error: a.toml:3: data.val_batch_size: must be at least 1, not 0
  hint: leave it out for the default: as `batch_size`
error: env SLT_DATA__NUM_WORKERS: data.num_workers: must be at most 1024, not 100000
  hint: leave it out for the default: the cores at hand, at most 8
error: a.toml:6: model.temporal_dropout: must be at least 0 and below 1, not 1.0
  hint: at a rate of 1 everything is dropped and nothing can be learned
error: a.toml:8: model.backbone.stochastic_depth: must be at least 0 and below 1, not 1.5
  hint: the default is 0.0
error: env SLT_OPTIMIZATION__EPOCHS: optimization.epochs: must be at least 1, not 0
  hint: the default is 40
error: a.toml:13: optimization.lr: must be a finite number, not NaN
  hint: the default is 1e-3
error: a.toml:14: optimization.weight_decay: must be at least 0, not -1.0
  hint: the default is 0.0
error: a.toml:15: optimization.scheduler_gamma: must be above 0, not 0.0
  hint: the default is 0.5
error: --set optimization.scheduler_tmax=0: optimization.scheduler_tmax: must be at least 1, not 0
  hint: the default is 10
error: a.toml:12: optimization.label_smoothing: must be from 0 to 1, not 1.5
  hint: the default is 0.1
error: model.d_model = 512 (default) is not a multiple of model.temporal_nhead = 7 (--set model.temporal_nhead=7)
  hint: set model.d_model to 511 or 518, or model.temporal_nhead to a divisor of 512
error: model.image_size = 225 (a.toml:5) is not a multiple of model.backbone.patch_size = 16 (default)
  hint: set model.image_size to 224 or 240, or model.backbone.patch_size to a divisor of 225
error: model.backbone.embed_dim = 384 (default) is not a multiple of model.backbone.num_heads = 7 (a.toml:10)
  hint: set model.backbone.embed_dim to 378 or 385, or model.backbone.num_heads to a divisor of 384
error: model.backbone.embed_dim = 384 (default) times model.backbone.mlp_ratio = 1e-9 (a.toml:9) leaves the \
         backbone's hidden layer without a unit
  hint: raise model.backbone.mlp_ratio; the usual value is 4.0"
    );
}

#[test]
fn sections_have_the_documented_defaults() {
    let mut expected = for_tests(&[]);
    let data = &mut expected.data;
    for path in [
        &mut data.face_dir,
        &mut data.hand_left_dir,
        &mut data.hand_right_dir,
        &mut data.pose_dir,
        &mut data.metadata_csv,
        &mut data.train_index,
        &mut data.val_index,
        &mut expected.run.work_dir,
    ] {
        path.clear();
    }
    assert_eq!(Experiment::default(), expected);
}

#[test]
fn absurd_sizes_are_refused() {
    let text = refused("[model]\nimage_size = 1_000_000_000\n");
    let first = "error: a training batch's images would take 1.7e13 GiB: data.batch_size = 4 (default), \
                 model.sequence_length = 128 (default), model.image_size = 1000000000 (a.toml:2)\n  \
                 hint: lower one of these; no machine can hold that much\n";
    assert!(text.starts_with(first), "{text}");
    let most = i64::MAX;
    for field in FIELDS.iter().filter(|field| field.kind == Kind::Whole && field.rule == Rule::Positive) {
        // Times are no sizes, and those of the parameters are known to the network.
        let is_of_parameters = ["model.backbone.depth", "model.temporal_layers"].contains(&field.key)
            || ["model.decoder", "tokenizer"].contains(&field.section);
        let is_time = field.section == "optimization"
            || ["run.evaluate_every", "decoding.max_length"].contains(&field.key);
        if !is_time && !is_of_parameters {
            refused_files(&[], &[], &[&format!("{}={most}", field.key)]);
        }
    }
}

#[test]
fn missing_values_are_listed_with_every_way_to_set_them() {
    let settings = ["data.face_dir=f", "data.hand_left_dir=l", "data.hand_right_dir=r", "data.pose_dir=p"];
    let mut layers = Layers { settings: settings.map(set).to_vec(), ..Layers::default() };
    assert_eq!(
        resolve(&layers).unwrap_err().to_string(),
        "error: 4 required fields have no value
  hint: set each in the experiment file, the environment or the command line:
    data.metadata_csv  SLT_DATA__METADATA_CSV  --metadata-csv
    data.train_index   SLT_DATA__TRAIN_INDEX   --train-index
    data.val_index     SLT_DATA__VAL_INDEX     --val-index
    run.work_dir       SLT_RUN__WORK_DIR       --work-dir"
    );
    layers
        .settings
        .extend(["data.metadata_csv=m", "data.train_index=t", "data.val_index=v", "run.work_dir="].map(set));
    assert_eq!(
        resolve(&layers).unwrap_err().to_string(),
        "error: --set run.work_dir=: run.work_dir: expected a path, found an empty string\n  \
         hint: only optional fields can be unset"
    );
}

#[cfg(unix)]
#[test]
fn environment_values_that_are_not_text() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = |text: &[u8]| OsString::from_vec(text.to_vec());
    let env = vec![
        (bytes(b"SLT_RUN__WORK_DIR"), bytes(b"w\xff")),
        (bytes(b"SLT_\xff"), bytes(b"")),
        (bytes(b"\xff\xfe\xfd\xfc\xfb"), bytes(b"")),
        ("SLT_RUN__SEED".into(), "1".into()),
        ("slt_run__seed".into(), "2".into()),
    ];
    let text = resolve(&Layers { env, ..Layers::default() }).unwrap_err().to_string();
    assert!(
        text.starts_with(
            "error: env SLT_RUN__WORK_DIR: run.work_dir: the value is not UTF-8 text\n  \
             hint: unset the variable, or set it to UTF-8 text\n\
             error: env slt_run__seed: SLT_RUN__SEED sets run.seed too\n  \
             hint: unset one of the two variables\n\
             error: 7 required fields have no value\n"
        ),
        "{text}"
    );
}
