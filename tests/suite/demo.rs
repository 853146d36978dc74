//! Drawn datasets: the layout, what is in it, that it repeats, and what is refused.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::Path;

use slt_run::ErrorKind;
use slt_run::demo::{Drawn, Options, draw};

const SMALL: Options = Options { clips: 16, frames: 10, size: 32, signs: 4, seed: 7, translate: false };

fn draw_quietly(dir: &Path, options: &Options) -> slt_run::Result<Drawn> {
    draw(dir, options, &|_, _| ())
}

/// Every file under `dir` by its relative path.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, dir: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, files);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(dir, dir, &mut all);
    all
}

/// The dataset alone, without the files that name the folder.
fn data(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    files(dir).into_iter().filter(|(name, _)| !name.starts_with(".slt-run") && name != "demo.toml").collect()
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8(bytes.to_vec()).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn the_layout_is_the_documented_one() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("not/yet/there");
    let seen = RefCell::new(Vec::new());
    let drawn = draw(&dir, &SMALL, &|done, all| seen.borrow_mut().push((done, all))).unwrap();
    assert_eq!(*seen.borrow(), (1..=16).map(|done| (done, 16)).collect::<Vec<_>>());
    assert_eq!((drawn.train, drawn.val, drawn.reused), (12, 4, false));
    assert_eq!(drawn.experiment, dir.join("demo.toml"));

    let data = data(&dir);
    assert_eq!(data.len(), drawn.files + 3);
    let texts: BTreeMap<String, String> = lines(&data["subs.csv"])
        .iter()
        .skip(1)
        .map(|row| row.split_once(',').map(|(id, text)| (id.to_owned(), text.to_owned())).unwrap())
        .collect();
    assert_eq!(lines(&data["subs.csv"])[0], "video_id,texto");
    assert_eq!(texts.len(), 16);
    let split = |name: &str| -> BTreeSet<String> {
        let rows = lines(&data[name]);
        assert_eq!(rows[0], "video_id");
        rows.into_iter().skip(1).collect()
    };
    let (train, val) = (split("index/train.csv"), split("index/val.csv"));
    assert_eq!((train.len(), val.len()), (12, 4));
    assert!(train.is_disjoint(&val));
    let signs = |ids: &BTreeSet<String>| ids.iter().map(|id| texts[id].clone()).collect::<BTreeSet<_>>();
    assert_eq!(signs(&train).len(), 4);
    assert_eq!(signs(&train), signs(&val));
}

#[test]
fn clips_have_frames_gaps_and_poses() {
    let folder = tempfile::tempdir().unwrap();
    draw_quietly(folder.path(), &SMALL).unwrap();
    let data = data(folder.path());
    let numbers = |stream: &str, id: &str| -> Vec<usize> {
        let start = format!("{stream}/{id}_f");
        let named = data.keys().filter_map(|name| name.strip_prefix(&start)?.strip_suffix(".jpg"));
        named.map(|digits| digits.parse().unwrap()).collect()
    };
    let (mut gaps, mut absent, mut lengths) = (0, 0, BTreeSet::new());
    for i in 0..16 {
        let id = format!("clip_{i:05}");
        let face = numbers("face", &id);
        assert_eq!(face, (0..face.len()).collect::<Vec<_>>());
        assert!((5..=10).contains(&face.len()));
        lengths.insert(face.len());
        let (left, right) = (numbers("hand_l", &id), numbers("hand_r", &id));
        assert!(!right.is_empty() && right.iter().chain(&left).all(|n| face.contains(n)));
        gaps += usize::from(right.len() < face.len());
        absent += usize::from(left.is_empty());
        assert_eq!(pose_shape(&data[&format!("pose/{id}.npz")]), (face.len(), 39));
    }
    assert!(gaps > 0 && absent > 0 && absent < 16 && lengths.len() > 2, "{gaps} {absent} {lengths:?}");
    for (name, bytes) in data.iter().filter(|(name, _)| name.strip_suffix(".jpg").is_some()) {
        let mut decoder = zune_jpeg::JpegDecoder::new(zune_core::bytestream::ZCursor::new(bytes));
        assert_eq!(decoder.decode().unwrap().len(), 32 * 32 * 3, "{name}");
    }
}

/// The shape of the array `pose`, after checking its type, its values and that it is compressed.
fn pose_shape(npz: &[u8]) -> (usize, usize) {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(npz)).unwrap();
    let mut entry = zip.by_name("pose.npy").unwrap();
    assert_eq!(entry.compression(), zip::CompressionMethod::Deflated);
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).unwrap();
    let array = npyz::NpyFile::new(&bytes[..]).unwrap();
    assert_eq!(array.dtype().descr(), "'<f4'");
    let shape = array.shape().to_vec();
    assert!(array.into_vec::<f32>().unwrap().iter().all(|v| v.is_finite()));
    (shape[0] as usize, shape[1] as usize)
}

#[test]
fn the_seed_decides_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| folder.path().join(name));
    draw_quietly(&a, &SMALL).unwrap();
    draw_quietly(&b, &SMALL).unwrap();
    draw_quietly(&c, &Options { seed: 8, ..SMALL }).unwrap();
    let (a, b, c) = (data(&a), data(&b), data(&c));
    assert!(a == b);
    let same = a.iter().filter(|(name, bytes)| c.get(*name) == Some(bytes)).map(|(name, _)| name.as_str());
    assert_eq!(same.collect::<Vec<_>>(), ["index/train.csv", "index/val.csv", "subs.csv"]);
}

#[test]
fn a_dataset_is_reused_and_a_broken_one_drawn_again() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("demo");
    draw_quietly(&dir, &SMALL).unwrap();
    let before = files(&dir);
    let again = draw_quietly(&dir, &SMALL).unwrap();
    assert_eq!((again.reused, again.files, again.train, again.val), (true, 0, 12, 4));
    assert!(files(&dir) == before);

    // A changed experiment file is a person's work: it stays.
    fs::write(dir.join("demo.toml"), "# mine\n").unwrap();
    assert!(draw_quietly(&dir, &SMALL).unwrap().reused);
    assert_eq!(fs::read(dir.join("demo.toml")).unwrap(), b"# mine\n");

    let marker = dir.join(".slt-run-demo");
    let unfinished =
        fs::read_to_string(&marker).unwrap().replace("\"complete\": true", "\"complete\": false");
    fs::write(&marker, unfinished).unwrap();
    fs::remove_dir_all(dir.join("pose")).unwrap();
    assert!(!draw_quietly(&dir, &SMALL).unwrap().reused);
    assert_eq!(fs::read(dir.join("demo.toml")).unwrap(), b"# mine\n");
    fs::remove_file(dir.join("demo.toml")).unwrap();
    assert!(draw_quietly(&dir, &SMALL).unwrap().reused);
    assert!(files(&dir) == before);
}

#[test]
fn the_experiment_file_follows_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    draw_quietly(&old, &SMALL).unwrap();
    fs::rename(&old, &new).unwrap();
    assert!(draw_quietly(&new, &SMALL).unwrap().reused);
    let text = fs::read_to_string(new.join("demo.toml")).unwrap();
    assert!(
        text.contains(new.join("face").to_str().unwrap()) && !text.contains(old.to_str().unwrap()),
        "{text}"
    );
}

#[test]
fn other_folders_are_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |dir: &Path, options: &Options| {
        let before = files(folder.path());
        let error = draw_quietly(dir, options).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Config);
        assert!(error.problems.iter().all(|problem| problem.hint.is_some()), "{error}");
        assert!(files(folder.path()) == before);
        error.to_string()
    };
    let foreign = folder.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis.tex"), "x").unwrap();
    assert!(refused(&foreign, &SMALL).contains("holds no drawn dataset"));
    assert!(refused(&foreign.join("thesis.tex"), &SMALL).contains("is a file"));
    let ours = folder.path().join("ours");
    draw_quietly(&ours, &SMALL).unwrap();
    let message = refused(&ours, &Options { clips: 20, seed: 9, ..SMALL });
    assert!(message.contains("clips 16 there, 20 now; seed 7 there, 9 now"), "{message}");
    let many = Options { clips: 4200, frames: 14, ..SMALL };
    assert!(refused(&foreign.join("new"), &many).contains("files, where 100000 are the most"));
    assert!(refused(&ours, &Options { clips: 0, ..SMALL }).contains("0 clips"));
}

#[test]
fn one_frame_of_one_sign_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let drawn = draw_quietly(
        folder.path(),
        &Options { clips: 2, frames: 1, size: 16, signs: 1, seed: 0, translate: false },
    )
    .unwrap();
    assert_eq!((drawn.train, drawn.val, drawn.files), (1, 1, 6));
}
