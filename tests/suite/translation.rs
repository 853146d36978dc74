//! Translating: tokens, training, evaluating and predicting as a user meets them, and what is refused.

use std::fs;

use serde_json::Value;
use slt_run::demo::{Options, draw};
use slt_run::text::metrics;

use crate::support::{Outcome, TINY, World};

/// Drawn sentences, and the smallest network that translates them, in `tiny.toml`.
fn world() -> World {
    let world = World::empty();
    let options = Options { clips: 100, frames: 8, size: 16, signs: 8, seed: 5, translate: true };
    draw(&world.path("data"), &options, &|_, _| ()).unwrap();
    let translating = "\n[model.decoder]\nkind = \"transformer\"\nlayers = 1\nnhead = 2\ndim_feedforward = 16\n\
                       \n[tokenizer]\nkind = \"word\"\n\n[decoding]\nmax_length = 9\n";
    world.write("tiny.toml", TINY.replace("\n[optimization]", &format!("{translating}\n[optimization]")));
    // A few clips are enough for most of what is looked at here.
    for (split, clips) in [("train", 12), ("val", 5)] {
        let path = format!("data/index/{split}.csv");
        let some: Vec<String> = world.read(&path).lines().take(1 + clips).map(str::to_owned).collect();
        world.write(&path, some.join("\n") + "\n");
    }
    world
}

fn json(world: &World, path: &str) -> Value {
    serde_json::from_str(&world.read(path)).unwrap()
}

/// The rows of a CSV, by their columns' names.
fn rows(world: &World, path: &str) -> Vec<std::collections::HashMap<String, String>> {
    let mut reader = csv::Reader::from_path(world.path(path)).unwrap();
    reader.deserialize().map(|row| row.unwrap()).collect()
}

fn refused(world: &World, code: i32, args: &[&str], parts: &[&str]) -> Outcome {
    let outcome = world.run(args);
    assert_eq!(outcome.code, code, "{args:?}\n{}{}", outcome.stdout, outcome.stderr);
    outcome.says(parts);
    outcome
}

#[test]
fn a_run_translates_while_it_trains_and_is_evaluated_after() {
    let world = world();
    let said = world.ok(&["tiny.toml", "--evaluate-every", "2", "--epochs=4", "--tensorboard=run/tb"]);
    assert_eq!(said.stderr.matches("BLEU=").count(), 2, "{}", said.stderr);
    let lines: Vec<Value> =
        world.read("run/metrics.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (at, line) in lines.iter().enumerate() {
        let figures = ["val_bleu", "val_chrf", "val_wer"].map(|name| line.get(name).and_then(Value::as_f64));
        assert!(figures.iter().all(|figure| figure.is_some() == (at % 2 == 1)), "{line}");
    }
    let events: Vec<Vec<u8>> = fs::read_dir(world.path("run/tb"))
        .unwrap()
        .map(|file| fs::read(file.unwrap().path()).unwrap())
        .collect();
    let has =
        |text: &str| events.iter().any(|file| file.windows(text.len()).any(|part| part == text.as_bytes()));
    assert!(has("bleu/val") && has("translations/val") && has("| reference | hypothesis |"));

    let said = world.ok(&["evaluate", "run", "--checkpoint", "last"]);
    for part in
        ["5 clips of val by run/last.pt (epoch 4): beam of 5", "BLEU-1…4 13a", "nrefs:1|case:mixed", "WER"]
    {
        assert!(said.stdout.contains(part), "{part} is not in {}", said.stdout);
    }
    let (found, predictions) =
        (json(&world, "run/evaluation/val/metrics.json"), rows(&world, "run/evaluation/val/predictions.csv"));
    let texts = |column: &str| predictions.iter().map(|row| row[column].as_str()).collect::<Vec<_>>();
    let expected = metrics::figures(&texts("hypothesis"), &texts("reference"));
    for (name, value) in expected.iter() {
        assert_eq!(found["figures"][name].as_f64(), Some(value), "{name}");
    }
    // What training said of its last epoch.
    let same =
        [("bleu_4_13a", "val_bleu"), ("chrf2", "val_chrf"), ("wer", "val_wer"), ("accuracy", "val_accuracy")];
    for (name, in_training) in same {
        let (a, b) = (found["figures"][name].as_f64().unwrap(), lines[3][in_training].as_f64().unwrap());
        assert!((a - b).abs() < 1e-9, "{name}: {a}, {b}");
    }
    assert!(
        (found["figures"]["loss"].as_f64().unwrap() - lines[3]["val_loss"].as_f64().unwrap()).abs() < 1e-6
    );
    assert_eq!(found["decoding"]["beam_size"], 5);
    let digest = |path: &str| {
        use sha1::Digest;
        slt_run::input::hexadecimal(&sha1::Sha1::digest(world.read_bytes(path)))
    };
    assert_eq!(found["checkpoint"]["sha1"], digest("run/last.pt"));
    assert_eq!(found["tokenizer_sha1"], digest("run/tokenizer.json"));

    // The same again changes nothing; another search leaves the earlier results beside its own.
    let names = |world: &World| {
        let all: Vec<String> =
            world.files().into_keys().filter(|name| name.contains("evaluation/val/")).collect();
        all.len()
    };
    world.ok(&["evaluate", "run", "--checkpoint", "last", "-q"]);
    assert_eq!(names(&world), 3);
    world.ok(&["evaluate", "run", "--checkpoint=last", "--beam-size=2", "--n-best=2", "-q"]);
    assert_eq!(names(&world), 5);
    let both = rows(&world, "run/evaluation/val/predictions.csv");
    assert!(both.len() == 10 && both[0]["rank"] == "1" && both[1]["rank"] == "2", "{both:?}");
}

#[test]
fn a_checkpoint_alone_translates_what_it_has_never_seen() {
    let world = world();
    world.ok(&["tiny.toml", "--epochs=1", "-q"]);
    world.ok(&["evaluate", "run", "-q"]);
    let expected = world.read("run/evaluation/val/predictions.csv");
    // Another machine: nothing but the checkpoint, and data elsewhere.
    fs::create_dir(world.path("there")).unwrap();
    fs::rename(world.path("run/best.pt"), world.path("there/model.pt")).unwrap();
    fs::remove_dir_all(world.path("run")).unwrap();
    fs::rename(world.path("data"), world.path("there/clips")).unwrap();
    let paths: Vec<String> = [
        ("face_dir", "face"),
        ("hand_left_dir", "hand_l"),
        ("hand_right_dir", "hand_r"),
        ("pose_dir", "pose"),
        ("metadata_csv", "subs.csv"),
        ("val_index", "index/val.csv"),
        ("test_index", "index/train.csv"),
    ]
    .iter()
    .map(|(field, path)| format!("--set=data.{field}=there/clips/{path}"))
    .collect();
    let with = |command: &[&str]| {
        let all: Vec<String> = command.iter().map(|part| (*part).to_owned()).chain(paths.clone()).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        world.ok(&all)
    };
    with(&["evaluate", "there/model.pt", "-q"]);
    assert_eq!(world.read("there/evaluation/val/predictions.csv"), expected);
    with(&["evaluate", "there/model.pt", "--split", "test", "-q"]);
    assert_eq!(rows(&world, "there/evaluation/test/predictions.csv").len(), 12);
    world.write("there/other.csv", "video_id\nclip_00017\n");
    with(&["evaluate", "there/model.pt", "--index", "there/other.csv", "-q"]);
    assert_eq!(rows(&world, "there/evaluation/other/predictions.csv")[0]["video_id"], "clip_00017");

    // No texts are needed to predict.
    fs::remove_file(world.path("there/clips/subs.csv")).unwrap();
    let said = with(&["predict", "there/model.pt", "--ids", "clip_00017,clip_00005"]);
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert!(
        lines.len() == 3 && lines[0] == "video_id,hypothesis,score" && lines[1].starts_with("clip_00017,"),
        "{lines:?}"
    );
    with(&["predict", "there/model.pt", "--csv", "there/all.csv", "-q"]);
    assert_eq!(rows(&world, "there/all.csv").len(), 5);
    let hypotheses =
        |path: &str| rows(&world, path).iter().map(|row| row["hypothesis"].clone()).collect::<Vec<_>>();
    assert_eq!(hypotheses("there/all.csv"), hypotheses("there/evaluation/val/predictions.csv"));
}

#[test]
fn a_translating_run_goes_on_to_the_bit() {
    let args = |more: &'static [&'static str]| {
        let all = [
            "tiny.toml",
            "--batch-size=4",
            "--temporal-dropout=0.2",
            "--evaluate-every=1",
            "--best-metric=val_chrf",
        ];
        [all.as_slice(), &["--tensorboard=run/tb"], more].concat()
    };
    let whole = world();
    whole.ok(&args(&["--epochs=3"]));
    let parts = world();
    parts.ok(&args(&["--epochs=1"]));
    parts.ok(&args(&["--epochs=2", "--resume", "--num-workers=0"]));
    parts.ok(&args(&["--epochs=3", "--resume", "--threads=1"]));
    let (parts_last, whole_last) = (parts.read_bytes("run/last.pt"), whole.read_bytes("run/last.pt"));
    assert!(parts_last == whole_last, "last.pt differs");
    // The best epoch may be one that an experiment of fewer epochs came to.
    let best = |world: &World| {
        world.checkpoint("run/best.pt").model.iter().map(|(_, it)| it.to_f32().unwrap()).collect::<Vec<_>>()
    };
    assert!(best(&parts) == best(&whole), "best.pt differs");
    let figures = |world: &World| -> Vec<Value> {
        let line = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        world.read("run/metrics.jsonl").lines().map(line).map(|row| row["val_bleu"].clone()).collect()
    };
    assert_eq!(figures(&parts), figures(&whole));
    assert_eq!(parts.read("run/tokenizer.json"), whole.read("run/tokenizer.json"));
    let best = json(&whole, "run/run.json")["best"].clone();
    let all: Vec<f64> = whole
        .read("run/metrics.jsonl")
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["val_chrf"].as_f64().unwrap())
        .collect();
    let most = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    assert_eq!(
        (best["value"].as_f64(), best["epoch"].as_u64()),
        (Some(most), all.iter().position(|value| value.to_bits() == most.to_bits()).map(|at| at as u64 + 1))
    );
}

#[test]
fn batches_that_make_one_step_are_as_one_batch() {
    let world = world();
    let common = ["tiny.toml", "--epochs=2", "--set=model.decoder.dropout=0", "--temporal-dropout=0", "-q"];
    world.ok(&[common.as_slice(), &["--batch-size=4", "--work-dir=one", "--grad-clip=0.5"]].concat());
    world.ok(&[
        common.as_slice(),
        &["--batch-size=2", "--accumulate=2", "--work-dir=two", "--grad-clip=0.5"],
    ]
    .concat());
    world.ok(&[
        common.as_slice(),
        &["--batch-size=4", "--work-dir=chunks", "--grad-clip=0.5", "--frames-per-chunk=2"],
    ]
    .concat());
    let line = |run: &str| -> Value {
        serde_json::from_str(world.read(&format!("{run}/metrics.jsonl")).lines().last().unwrap()).unwrap()
    };
    for key in ["train_loss", "val_loss", "grad_norm"] {
        let [one, two, chunks] = ["one", "two", "chunks"].map(|run| line(run)[key].as_f64().unwrap());
        assert!(
            (one - two).abs() < 2e-5 * one && (one - chunks).abs() < 2e-5 * one,
            "{key}: {one}, {two}, {chunks}"
        );
    }
}

#[test]
fn the_stub_answers_with_a_training_text() {
    let world = World::new();
    world.ok(&["tiny.toml", "-q"]);
    let said = world.ok(&["evaluate", "run"]);
    assert!(
        said.stdout.contains("top 1 accuracy") && said.stdout.contains("most probable class"),
        "{}",
        said.stdout
    );
    let texts: Vec<String> = rows(&world, "data/subs.csv").iter().map(|row| row["texto"].clone()).collect();
    for row in rows(&world, "run/evaluation/val/predictions.csv") {
        assert!(texts.contains(&row["hypothesis"]), "{row:?}");
    }
    let figures = json(&world, "run/evaluation/val/metrics.json")["figures"].clone();
    let [one, five, accuracy] =
        ["top_1_accuracy", "top_5_accuracy", "accuracy"].map(|name| figures[name].as_f64().unwrap());
    assert!(one <= five && (one - accuracy).abs() < 1e-12, "{figures}");
    world.ok(&["predict", "run", "--ids", "clip_00002"]);
}

#[test]
fn tokenizers_that_cannot_be_are_refused() {
    let world = world();
    world.write("bad.json", "{\"model\": 3}");
    let set = |file: &str| format!("--set=tokenizer.file={file}");
    refused(
        &world,
        3,
        &["tiny.toml", &set("bad.json")],
        &["cannot use tokenizer.file bad.json", "no tokenizer.json"],
    );
    refused(&world, 3, &["tiny.toml", &set("none.json")], &["cannot read tokenizer.file none.json"]);
    refused(
        &world,
        2,
        &["tiny.toml", "--set=tokenizer.kind=bpe", "--set=tokenizer.vocab_size=9"],
        &["tokenizer.vocab_size = 9", "characters"],
    );
    assert!(!world.path("run").exists());
    world.ok(&["tiny.toml", "--epochs=1", "-q"]);
    let good = world.read("run/tokenizer.json");
    world.write("lacks.json", good.replace("<eos>", "</s>"));
    refused(
        &world,
        3,
        &["tiny.toml", "--work-dir=other", &set("lacks.json")],
        &["no token <eos>", "number 2"],
    );
    // The run's own tokenizer elsewhere is the same one.
    world.write("mine.json", &good);
    world.ok(&["tiny.toml", "--epochs=2", "--resume", &set("mine.json"), "-q"]);

    // Another one is not.
    let other = good.replace("\"ve\"", "\"mira\"");
    assert_ne!(other, good);
    world.write("run/tokenizer.json", &other);
    refused(
        &world,
        3,
        &["tiny.toml", "--epochs=3", "--resume"],
        &["another tokenizer", "run/tokenizer.json"],
    );
    fs::remove_file(world.path("run/tokenizer.json")).unwrap();
    world.ok(&["tiny.toml", "--epochs=3", "--resume", "-q"]);
    assert_eq!(world.read("run/tokenizer.json"), good);
    world.write("other.json", &other);
    refused(
        &world,
        3,
        &["tiny.toml", "--work-dir=new", "--init-from=run/best.pt", &set("other.json")],
        &["another tokenizer"],
    );

    let all = world.read("data/subs.csv");
    let same: Vec<String> =
        all.lines().map(|line| line.split_once(',').map_or("", |(id, _)| id).to_owned() + ",hola").collect();
    world.write("data/subs.csv", "video_id,texto\n".to_owned() + &same[1..].join("\n") + "\n");
    refused(&world, 3, &["tiny.toml", "--work-dir=same"], &["no two different words"]);
}

#[test]
fn evaluations_that_cannot_be_are_refused_and_leave_nothing() {
    let world = world();
    refused(&world, 2, &["evaluate", "run"], &["there is no run and no checkpoint run"]);
    fs::create_dir(world.path("empty")).unwrap();
    refused(&world, 2, &["evaluate", "empty"], &["holds no run"]);
    refused(&world, 3, &["evaluate", "tiny.toml"], &["tiny.toml"]);
    world.ok(&["tiny.toml", "--epochs=1", "-q"]);
    refused(
        &world,
        2,
        &["evaluate", "run", "--split=test"],
        &["data.test_index is unset", "--test-index FILE"],
    );
    world.write("unknown.csv", "video_id\nnobody\n");
    refused(&world, 3, &["evaluate", "run", "--index", "unknown.csv"], &["unknown.csv (--index)", "nobody"]);
    refused(&world, 3, &["predict", "run", "--ids", "nobody"], &["has a frame"]);
    refused(
        &world,
        2,
        &["evaluate", "run", "--set=model.d_model=32"],
        &["model.d_model is as in the checkpoint"],
    );
    refused(
        &world,
        2,
        &["evaluate", "run", "--n-best=9"],
        &["decoding.n_best = 9", "decoding.beam_size = 5"],
    );
    refused(
        &world,
        2,
        &["tiny.toml", "--best-metric=val_bleu", "--work-dir=x"],
        &["val_bleu", "not computed", "run.evaluate_every"],
    );
    fs::remove_file(world.path("run/best.pt")).unwrap();
    refused(&world, 2, &["evaluate", "run"], &["has no best.pt", "--checkpoint last"]);
    fs::remove_file(world.path("run/last.pt")).unwrap();
    refused(&world, 2, &["evaluate", "run"], &["no checkpoint yet"]);
    assert!(!world.path("run/evaluation").exists());
}

#[test]
fn a_hypothesis_that_nothing_may_follow_ends_and_long_texts_are_trained_on() {
    let world = world();
    let all = world.read("data/subs.csv");
    let id = world.read("data/index/train.csv").lines().nth(1).unwrap().to_owned();
    let with = |text: &str| {
        let line = |line: &str| if line.starts_with(&id) { format!("{id},{text}") } else { line.to_owned() };
        world.write("data/subs.csv", all.lines().map(line).collect::<Vec<_>>().join("\n") + "\n");
    };
    with("uno dos tres cuatro cinco seis siete ocho nueve diez");
    let said = world.ok(&["check", "tiny.toml", "--batch-size=1"]);
    assert!(said.stdout.contains("a text and 10 at most"), "{}", said.stdout);
    assert!(
        said.stdout.split_whitespace().collect::<Vec<_>>().join(" ").contains("do not occur in training")
    );
    said.says(&["1 text has more than decoding.max_length = 9 tokens"]);
    // 100,000 characters: as one word they are a token, and as many words more memory than there is.
    with(&"á".repeat(100_000));
    world.ok(&["tiny.toml", "--epochs=1", "--work-dir=long", "-q"]);
    with("hola y adiós ".repeat(7700).trim());
    let heads = "--set=model.decoder.nhead=16";
    refused(
        &world,
        1,
        &["tiny.toml", "--work-dir=longer", heads],
        &["expected to take", "shorten the longest text"],
    );
    assert!(!world.path("longer").exists());

    world.write("data/subs.csv", all);
    world.ok(&["tiny.toml", "--epochs=1", "-q"]);
    world.ok(&[
        "evaluate",
        "run",
        "--no-repeat-ngram=1",
        "--set=decoding.max_length=200",
        "--set=decoding.min_length=150",
        "-q",
    ]);
    assert_eq!(rows(&world, "run/evaluation/val/predictions.csv").len(), 5);
}

#[test]
fn a_full_disk_leaves_the_earlier_evaluation_whole() {
    let world = world();
    world.ok(&["tiny.toml", "--epochs=1", "-q"]);
    world.ok(&["evaluate", "run", "-q"]);
    let read = |name: &str| world.read_bytes(&format!("run/evaluation/val/{name}"));
    let (old_csv, old_json) = (read("predictions.csv"), read("metrics.json"));
    let other = ["evaluate", "run", "--beam-size=1", "-q"];
    let mut failures = 0;
    for number in 1..40 {
        for action in ["ENOSPC", "half"] {
            let mut command = world.command(&other);
            let outcome =
                Outcome::of(&command.env("SLTRUN_FAULT", format!("{action}:{number}+")).output().unwrap());
            if outcome.code == 0 {
                assert!(failures >= 4, "only {failures} operations can fail");
                return;
            }
            failures += 1;
            outcome.says(&["run/evaluation"]);
            // Whole, under its own name or a dated one.
            let all = world.files();
            let has = |old: &Vec<u8>| {
                all.iter().any(|(name, bytes)| name.contains("evaluation/val/") && bytes == old)
            };
            assert!(has(&old_csv) && has(&old_json), "{action} {number}");
            let now = (read("predictions.csv"), read("metrics.json"));
            assert!(
                now == (old_csv.clone(), old_json.clone()) || outcome.stderr.contains("metrics.json"),
                "{action} {number}"
            );
            if now.0 != old_csv {
                // The disk failed between two names: the next try goes on from there.
                return;
            }
        }
    }
    panic!("it never succeeds");
}
