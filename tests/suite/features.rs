//! Features in the place of images: the cache of frozen backbones, and those that other tools have made.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use slt_run::config::FeatureDtype;
use slt_run::data::features::encode;

use crate::support::World;

const FREEZE: &str = "--set=model.backbone.freeze=all";

/// The files of the cache in `folder`, of its only key; by their names.
fn cached(world: &World, folder: &str) -> Vec<String> {
    let keys: Vec<_> = fs::read_dir(world.path(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(keys.len(), 1, "{keys:?}");
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(&keys[0]).unwrap().map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

fn file(world: &World, folder: &str, id: &str) -> std::path::PathBuf {
    let key = fs::read_dir(world.path(folder)).unwrap().next().unwrap().unwrap().path();
    key.join(format!("{id}.safetensors"))
}

fn val_losses(world: &World, run: &str) -> Vec<f64> {
    let text = world.read(&format!("{run}/metrics.jsonl"));
    let loss =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["val_loss"].as_f64().unwrap();
    text.lines().map(loss).collect()
}

/// Frames that are missing in the middle and at the end of a stream, a stream without any, and a clip without any.
fn with_gaps(world: &World) {
    let mut clips: Vec<String> =
        world.read("data/index/train.csv").lines().skip(1).map(str::to_owned).collect();
    clips.sort();
    let remove = |stream: &str, id: &str, keep: &dyn Fn(usize) -> bool| {
        let mut paths: Vec<_> = fs::read_dir(world.path("data").join(stream))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&format!("{id}_f")))
            .collect();
        paths.sort();
        paths
            .iter()
            .enumerate()
            .filter(|(at, _)| !keep(*at))
            .for_each(|(_, path)| fs::remove_file(path).unwrap());
    };
    remove("face", &clips[0], &|at| at != 1);
    remove("hand_l", &clips[0], &|at| at == 0);
    remove("hand_r", &clips[1], &|_| false);
    for stream in ["face", "hand_l", "hand_r"] {
        remove(stream, &clips[2], &|_| false);
    }
}

#[test]
fn a_run_from_float32_features_is_the_uncached_one_to_the_bit() {
    for odd in [&["--batch-size=4"][..], &["--batch-size=3", "--sequence-length=5", "--accumulate=2"]] {
        let world = World::new();
        with_gaps(&world);
        let args = [&["tiny.toml", FREEZE, "--max-empty-clips=0.5", "--epochs=3"], odd].concat();
        world.ok(&args);
        let plain = world.read_bytes("run/last.pt");
        let cache = ["--feature-cache=features", "--feature-dtype=float32", "--work-dir=cached"];
        let first = world.ok(&[&args[..], &cache].concat());
        first.says(&["8 clips of 8 go through the backbones once", "8 clips cached in", "images/s"]);
        assert!(world.read_bytes("cached/last.pt") == plain, "{odd:?}");
        assert!(world.read_bytes("cached/best.pt") == world.read_bytes("run/best.pt"));
        // The second run finds them all; so do a resume and an evaluation.
        let second = world.ok(&[&args[..], &cache, &["--overwrite", "--epochs=2"]].concat());
        second.says(&["the features of 8 clips are in features/"]);
        assert!(!second.stderr.contains("go through"), "{}", second.stderr);
        world.ok(&[&args[..], &cache, &["--resume"]].concat());
        assert!(world.read_bytes("cached/last.pt") == plain, "{odd:?}, resumed");
        world.ok(&["evaluate", "cached", "--quiet"]);
        world.ok(&["evaluate", "run", "--quiet"]);
        let predictions = |run: &str| world.read(&format!("{run}/evaluation/val/predictions.csv"));
        assert_eq!(predictions("cached"), predictions("run"));
    }
}

#[test]
fn float16_takes_half_and_loses_little() {
    let world = World::new();
    let args = ["tiny.toml", FREEZE, "--epochs=8", "--lr=0.01"];
    world.ok(&args);
    for dtype in ["float16", "float32"] {
        let cache = format!("--feature-cache={dtype}");
        world
            .ok(&[&args[..], &[&cache, "--feature-dtype", dtype, "--work-dir=cached", "--overwrite"]]
                .concat());
        for (cached, plain) in val_losses(&world, "cached").iter().zip(val_losses(&world, "run")) {
            assert!((cached - plain).abs() < 0.01, "{dtype}: {cached} and {plain}");
        }
    }
    let id = world.clip().0;
    let size = |folder: &str| fs::metadata(file(&world, folder, &id)).unwrap().len();
    assert!(size("float16") < size("float32"));
}

#[test]
fn what_changes_is_seen_and_what_is_another_network_s_is_not_taken() {
    let world = World::new();
    let cache = ["cache", "tiny.toml", FREEZE, "--feature-cache=features"];
    world.ok(&cache).says(&["8 clips cached"]);
    assert_eq!(cached(&world, "features").len(), 9);
    let before = world.files();
    world.ok(&cache).says(&["the features of 8 clips are in"]);
    assert!(world.files() == before);

    // Another time, another size, one more frame.
    let (id, frames) = world.clip();
    let touch = |path: &Path| {
        let file = fs::File::options().append(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(100)).unwrap();
    };
    touch(&frames[0]);
    world.ok(&cache).says(&["1 clip of 8 go through", "1 clip cached"]);
    let name = frames[0].to_str().unwrap();
    let (start, _) = name.rsplit_once("_f").unwrap();
    fs::copy(&frames[0], format!("{start}_f77.jpg")).unwrap();
    world.ok(&cache).says(&["1 clip of 8 go through"]);
    // A file that was cut, and one that is none.
    let broken = file(&world, "features", &id);
    let whole = fs::read(&broken).unwrap();
    for bytes in [&whole[..whole.len() / 2], b"nothing"] {
        fs::write(&broken, bytes).unwrap();
        world.ok(&cache).says(&["1 clip of 8 go through"]);
        assert!(fs::read(&broken).unwrap() == whole);
    }
    // Other weights, sizes and ways of storing are other keys.
    for other in
        ["--seed=7", "--image-size=24", "--feature-dtype=float32", "--set=model.backbone.num_heads=4"]
    {
        let mut args = cache.to_vec();
        args.push(other);
        world.ok(&args).says(&["8 clips of 8 go through"]);
    }
    assert_eq!(fs::read_dir(world.path("features")).unwrap().count(), 5);
}

#[test]
fn a_killed_process_loses_one_clip_and_two_fill_one_cache() {
    let world = World::new();
    let slow = ["--image-size=224", "--set=model.backbone.embed_dim=96", "--set=model.backbone.depth=8"];
    let args = [&["cache", "tiny.toml", FREEZE, "--feature-cache=features"][..], &slow].concat();
    let mut child = world.command(&args).spawn().unwrap();
    let begun = Instant::now();
    // The folder stands a moment before the key's folder in it does.
    let keys = || fs::read_dir(world.path("features")).map_or(0, Iterator::count);
    let files = || keys() == 1 && cached(&world, "features").len() > 3;
    while !files() && begun.elapsed() < Duration::from_mins(1) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let left = cached(&world, "features");
    assert!(left.len() > 3, "{left:?}");
    let whole = |name: &&String| name.ends_with(".safetensors");
    let done = left.iter().filter(whole).count();
    let mut processes: Vec<_> = (0..2).map(|_| world.command(&args).spawn().unwrap()).collect();
    processes.iter_mut().for_each(|process| assert!(process.wait().unwrap().success()));
    assert!(done < 8, "the first process was too fast to be killed");
    assert_eq!(cached(&world, "features").iter().filter(whole).count(), 8);
    world.ok(&args).says(&["the features of 8 clips are in"]);
}

#[test]
fn a_signal_ends_filling_and_leaves_no_run() {
    let world = World::new();
    let slow = ["--image-size=224", "--set=model.backbone.embed_dim=96", "--set=model.backbone.depth=8"];
    let args = [&["tiny.toml", FREEZE, "--feature-cache=features"][..], &slow].concat();
    let child = world.command(&args).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let begun = Instant::now();
    while !world.path("features").exists() && begun.elapsed() < Duration::from_mins(1) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let kill = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let outcome = crate::support::Outcome::of(&child.wait_with_output().unwrap());
    assert_eq!(outcome.code, 143, "{}", outcome.stderr);
    outcome.says(&["stopped by SIGTERM while the features were made", "goes on from there"]);
    assert!(!world.path("run").exists());
}

#[test]
fn caches_that_cannot_work_are_refused_before_the_first_clip() {
    let world = World::new();
    let id = world.clip().0;
    for (args, code, says) in [
        (&["tiny.toml", "--feature-cache=f"][..], 2, "keeps what changes: model.backbone.freeze = none"),
        (
            &["tiny.toml", "--feature-cache=f", "--set=model.backbone.freeze=1"],
            2,
            "model.backbone.freeze = 1",
        ),
        (&["cache", "tiny.toml", FREEZE], 2, "data.feature_cache is unset"),
        (&["tiny.toml", FREEZE, "--feature-cache=data/subs.csv"], 2, "cannot write the feature cache"),
        (&["tiny.toml", FREEZE, "--feature-cache=f", "--features-dir=g"], 2, "two places for features"),
    ] {
        let outcome = world.run(args);
        assert_eq!(outcome.code, code, "{args:?} {}", outcome.stderr);
        outcome.says(&[says, "hint: "]);
        assert!(!world.path("run").exists() && !world.path("f").exists(), "{args:?}");
    }
    // A frame that breaks after the start: its clip is left out where the experiment says so.
    fs::write(&world.clip().1[1], b"\xff\xd8 and no more").unwrap();
    let cache = ["cache", "tiny.toml", FREEZE, "--feature-cache=features"];
    let refused = world.run(&cache);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    refused.says(&[&format!("cannot load the clip {id}"), "hint: "]);
    let skipped = world.ok(&[&cache[..], &["--on-bad-clip=skip"]].concat());
    skipped.says(&[&format!("the clip {id} is not cached"), "cached in"]);
}

#[test]
fn check_tells_what_a_cache_costs() {
    let world = World::new();
    let args = ["check", "tiny.toml", FREEZE, "--feature-cache=features"];
    let check = world.ok(&args);
    for part in ["8 clips of 8 go through the backbones once", "images/s", "in features/", "free"] {
        assert!(check.stdout.replace("\n             ", " ").contains(part), "{part}\n{}", check.stdout);
    }
    assert!(!world.path("features").exists());
    world.ok(&["cache", "tiny.toml", FREEZE, "--feature-cache=features"]);
    assert!(world.ok(&args).stdout.contains("all features are in"));
}

/// A file of features for each clip, as another tool would write them: a row for each frame.
fn make_features(world: &World, width: usize) {
    fs::create_dir(world.path("made")).unwrap();
    for (at, line) in world.read("data/subs.csv").lines().skip(1).enumerate() {
        let id = line.split([',', ';']).next().unwrap();
        let rows = 2 + at % 3;
        let number = |stream: usize, i: usize| ((at * 7 + stream * 31 + i) as f32 * 0.37).sin();
        let streams: Vec<Vec<f32>> =
            (0..3).map(|stream| (0..rows * width).map(|i| number(stream, i)).collect()).collect();
        let bytes = encode(&streams, width, FeatureDtype::Float16, "").unwrap();
        world.write(&format!("made/{id}.safetensors"), bytes);
    }
}

#[test]
fn features_from_elsewhere_need_no_images_and_no_backbones() {
    let world = World::new();
    make_features(&world, 10);
    for stream in ["face", "hand_l", "hand_r"] {
        fs::remove_dir_all(world.path("data").join(stream)).unwrap();
    }
    let without: String = crate::support::TINY
        .lines()
        .filter(|line| !line.contains("data/face") && !line.contains("data/hand"))
        .fold(String::new(), |text, line| text + line + "\n");
    world.write("made.toml", without);
    let args = ["made.toml", "--features-dir=made", "--epochs=3"];
    world.ok(&["check", "made.toml", "--features-dir=made"]);
    world.ok(&args);
    let last = world.checkpoint("run/last.pt");
    assert!(last.model.iter().all(|(name, _)| !name.contains("backbone.")));
    let projector =
        last.model.iter().find(|(name, _)| name == "encoder.face_projector.layers.0.weight").unwrap();
    assert_eq!(projector.1.shape, [10]);
    let whole = world.read_bytes("run/last.pt");
    // The snapshot repeats the run, and a resume goes on to the bit.
    world.ok(&["run/config.toml", "--work-dir=again"]);
    assert!(world.read_bytes("again/last.pt") == whole);
    world.ok(&["made.toml", "--features-dir=made", "--epochs=1", "--work-dir=parts"]);
    world.ok(&["made.toml", "--features-dir=made", "--epochs=3", "--work-dir=parts", "--resume"]);
    assert!(world.read_bytes("parts/last.pt") == whole);
    world.ok(&["evaluate", "run", "--quiet"]);
    // Other contents are other data.
    let id = world.clip_ids()[0].clone();
    let path = world.path(&format!("made/{id}.safetensors"));
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let changed = world.run(&["made.toml", "--features-dir=made", "--epochs=4", "--resume"]);
    assert_eq!(changed.code, 2, "{}", changed.stderr);
    changed.says(&[&id]);
}

#[test]
fn bad_features_from_elsewhere_are_named() {
    let world = World::new();
    make_features(&world, 4);
    let args = ["tiny.toml", "--features-dir=made"];
    // The first file by name says how wide they are.
    let mut ids = world.clip_ids();
    ids.sort();
    let id = ids.pop().unwrap();
    let path = world.path(&format!("made/{id}.safetensors"));
    let good = fs::read(&path).unwrap();
    let wide = encode(&[vec![0.0; 10], vec![0.0; 10], vec![0.0; 10]], 5, FeatureDtype::Float32, "").unwrap();
    let mut nan = encode(&[vec![0.0; 8], vec![0.0; 8], vec![0.0; 8]], 4, FeatureDtype::Float32, "").unwrap();
    let end = nan.len() - 96;
    nan[end..end + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    for (bytes, says) in [
        (&good[..good.len() - 3], "its header says"),
        (b"hello", "it has 5 bytes"),
        (&wide, "wide"),
        (&nan, "holds NaN in row 0"),
    ] {
        fs::write(&path, bytes).unwrap();
        for command in [&args[..], &[&["check"], &args[..]].concat()] {
            let outcome = world.run(command);
            assert_eq!(outcome.code, 3, "{says} {}", outcome.stderr);
            outcome.says(&[says, &format!("{id}.safetensors"), "hint: "]);
        }
    }
    fs::write(&path, good).unwrap();
    for (args, says) in [
        (&["tiny.toml", "--features-dir=nowhere"][..], "cannot list the folder nowhere"),
        (&["tiny.toml", "--features-dir=data/pose"], "has no file <video_id>.safetensors"),
        (&["tiny.toml", "--features-dir=made", "--set=model.backbone.freeze=1"], "leaves no backbone"),
    ] {
        let outcome = world.run(args);
        assert!(outcome.code == 2 || outcome.code == 3, "{}", outcome.stderr);
        outcome.says(&[says, "hint: "]);
    }
}
