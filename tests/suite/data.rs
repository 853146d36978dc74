//! The data module as the trainer uses it, on small datasets in temporary folders.

#![allow(clippy::unwrap_used, clippy::float_cmp)]

use jpeg_encoder::{ColorType, Encoder};
use slt_run::config;
use slt_run::data::{Dataset, Depth, Loader, Phase, Request, Sample, requests, stride, training_order};
use slt_run::model::decoder::{self, Classes};
use slt_run::random::{Purpose, stream};
use slt_run::train::Feed;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const SIZE: usize = 8;
const STREAMS: [&str; 3] = ["face", "hand_l", "hand_r"];

/// A dataset in a temporary folder, with the configuration that points to it.
struct Little {
    dir: TempDir,
    data: config::Data,
    model: config::Model,
}

impl Little {
    /// Empty folders; `rows` of the metadata, the ids of both splits.
    fn new(rows: &[(&str, &str)], train: &[&str], val: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in STREAMS.into_iter().chain(["pose"]) {
            std::fs::create_dir(at(folder)).unwrap();
        }
        let rows = rows.iter().fold("video_id;texto\n".to_string(), |mut all, (id, text)| {
            writeln!(all, "{id};{text}").unwrap();
            all
        });
        std::fs::write(at("subs.csv"), rows).unwrap();
        std::fs::write(at("train.csv"), format!("video_id\n{}\n", train.join("\n"))).unwrap();
        std::fs::write(at("val.csv"), format!("{}\n", val.join("\n"))).unwrap();
        let data = config::Data {
            face_dir: at("face"),
            hand_left_dir: at("hand_l"),
            hand_right_dir: at("hand_r"),
            pose_dir: at("pose"),
            metadata_csv: at("subs.csv"),
            train_index: at("train.csv"),
            val_index: at("val.csv"),
            batch_size: 2,
            ..config::Data::default()
        };
        Self { dir, data, model: model() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A grey frame of `level` in one stream.
    fn frame(&self, stream: &str, name: &str, level: u8) {
        std::fs::write(self.path(stream).join(name), grey(level)).unwrap();
    }

    /// Frames `numbers` of a clip in all streams: level = 20 x number + 5 x stream.
    fn frames(&self, id: &str, numbers: impl IntoIterator<Item = u8>) {
        for number in numbers {
            for (at, stream) in STREAMS.into_iter().enumerate() {
                self.frame(stream, &format!("{id}_f{number:03}.jpg"), 20 * number + 5 * at as u8);
            }
        }
    }

    /// A pose of one landmark: row r is (r, r, r).
    fn pose(&self, id: &str, rows: usize) {
        let values: Vec<f32> = (0..rows).flat_map(|row| [row as f32; 3]).collect();
        write_pose(&self.path("pose").join(format!("{id}.npz")), "pose", rows, &values);
    }

    fn open(&self) -> Dataset {
        Dataset::open(&self.data, &self.model, 7).unwrap()
    }

    fn error(&self) -> String {
        let error = Dataset::open(&self.data, &self.model, 7).unwrap_err();
        assert_eq!(error.exit_code(), 3);
        error.to_string()
    }
}

fn model() -> config::Model {
    config::Model {
        image_size: SIZE,
        sequence_length: 4,
        pose_landmarks: 1,
        vocab_size: 1000,
        ..config::Model::default()
    }
}

fn grey(level: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    Encoder::new(&mut bytes, 95).encode(&[level; 12 * 10], 12, 10, ColorType::Luma).unwrap();
    bytes
}

fn write_pose(path: &Path, name: &str, rows: usize, values: &[f32]) {
    let width = values.len().checked_div(rows).unwrap_or(3);
    let dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}\n");
    let mut writer = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    writer.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
    writer.write_all(b"\x93NUMPY\x01\x00").unwrap();
    writer.write_all(&(dict.len() as u16).to_le_bytes()).unwrap();
    writer.write_all(dict.as_bytes()).unwrap();
    writer.write_all(&values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()).unwrap();
    writer.finish().unwrap();
}

/// The frame number that each of the T images of a stream shows; none for a black one.
fn shown(sample: &Sample, at: usize) -> Vec<Option<u8>> {
    let level = |image: &[u8]| image[SIZE * SIZE];
    let number = |level: u8| (level - 5 * at as u8 + 5) / 20;
    let images = sample.images[at].bytes().chunks_exact(SIZE * SIZE * 3).map(level);
    images.map(|level| (level > 0).then(|| number(level))).collect()
}

#[test]
fn a_long_clip_is_sampled_in_step_with_its_pose() {
    let little = Little::new(&[("a", "uno"), ("b", "dos")], &["a"], &["b"]);
    little.frames("a", 1..11);
    little.frames("b", 1..3);
    little.pose("a", 6);
    let dataset = little.open();
    let val = dataset.load(0, Phase::Validation, 5).unwrap();
    // 10 frames to 4: stride 3.
    assert_eq!(shown(&val, 0), [Some(1), Some(4), Some(7), Some(10)]);
    // 6 rows to 4: stride 2, then the last again.
    assert_eq!(val.pose, [0., 0., 0., 2., 2., 2., 4., 4., 4., 4., 4., 4.]);
    let mut offsets = Vec::new();
    for epoch in 0..20 {
        let sample = dataset.load(0, Phase::Train, epoch).unwrap();
        let first = shown(&sample, 0)[0].unwrap();
        assert_eq!(shown(&sample, 0), shown(&sample, 1));
        assert_eq!(shown(&sample, 0), shown(&sample, 2));
        // The pose's stride is 2: its offset is at most 1.
        assert_eq!(sample.pose[0], f32::from((first - 1).min(1)));
        let drawn = rand::RngExt::random_range(&mut stream(7, Purpose::Offset, [epoch as u64, 0]), 0..3u64);
        assert_eq!(u64::from(first - 1), drawn);
        offsets.push(first);
    }
    assert!((1..=3).all(|first| offsets.contains(&first)), "{offsets:?}");
    // 2 frames to 4.
    let short = dataset.load(1, Phase::Train, 0).unwrap();
    assert_eq!(shown(&short, 2), [Some(1), Some(2), Some(2), Some(2)]);
    assert!(short.pose.iter().all(|&value| value == 0.0));
}

#[test]
fn streams_are_matched_by_number() {
    let little = Little::new(&[("a", "uno"), ("b", "dos")], &["a"], &["b"]);
    for number in [1, 2, 3, 4] {
        little.frame("face", &format!("a_f{number}.jpg"), 20 * number);
    }
    little.frame("hand_l", "a_f1.jpg", 25);
    little.frame("hand_l", "a_f3.jpg", 65);
    little.frame("hand_r", "b_f9.jpg", 190);
    let dataset = little.open();
    let sample = dataset.load(0, Phase::Train, 0).unwrap();
    assert_eq!(shown(&sample, 0), [Some(1), Some(2), Some(3), Some(4)]);
    // A gap, then past the end: the last one again.
    assert_eq!(shown(&sample, 1), [Some(1), None, Some(3), Some(3)]);
    assert_eq!(shown(&sample, 2), [None; 4]);
    // The clip's numbers are those of any stream.
    let other = dataset.load(1, Phase::Train, 0).unwrap();
    assert_eq!(shown(&other, 2), [Some(9); 4]);
    let summary = dataset.summary();
    let hand = summary.streams[1];
    assert_eq!((hand.name, hand.frames, hand.empty), ("hand_left", 2, 1));
    assert_eq!((hand.short, hand.with_gaps, hand.missing_frames), (1, 1, 1));
    assert_eq!((summary.train.max, summary.val.max, summary.missing_poses), (4, 1, 2));
    assert_eq!(summary.unseen_val_texts, 1);
}

#[test]
fn a_clip_without_any_frame_is_zeros_and_a_warning() {
    let mut little = Little::new(&[("a", "uno"), ("b", "dos")], &["a", "b"], &["a"]);
    little.frames("a", 1..2);
    little.data.max_empty_clips = 0.5;
    let dataset = little.open();
    let sample = dataset.load(1, Phase::Train, 0).unwrap();
    assert!(sample == Sample::new(dataset.sizes));
    let warnings = dataset.warnings().join("\n");
    assert!(warnings.contains("1 of 2 clips has no image in any stream: it is black images"), "{warnings}");
    assert!(warnings.contains("to the network: b"), "{warnings}");
    assert!(warnings.contains("1 clip in both"), "{warnings}");
    assert!(warnings.contains("no clip has a pose"), "{warnings}");
}

#[test]
fn clips_without_any_image_count_whatever_else_they_have() {
    let ids: Vec<String> = (0..100).map(|number| format!("clip{number}")).collect();
    let rows: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), "hola")).collect();
    let all: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut little = Little::new(&rows, &all[..80], &all[80..]);
    for id in &all[29..] {
        little.frame("face", &format!("{id}_f1.jpg"), 20);
    }
    // A pose is no image.
    all.iter().for_each(|id| little.pose(id, 2));
    for (most, refused) in [(0.01, true), (0.28, true), (0.29, false), (1.0, false)] {
        little.data.max_empty_clips = most;
        let opened = Dataset::open(&little.data, &little.model, 7);
        assert_eq!(opened.is_err(), refused, "{most}");
    }
    let summary = little.open().summary();
    let empty: Vec<usize> = summary.streams.iter().map(|stream| stream.empty).collect();
    assert_eq!(empty, [29, 100, 100]);
    assert!(little.open().warnings().join("\n").contains("29 of 100 clips have no image in any stream"));
    little.data.max_empty_clips = 0.1;
    let error = little.error();
    for part in
        ["29 of 100 clips have no image", "data.max_empty_clips = 0.1", "clip0, clip1, ", "clip9 and 19 more"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    // One of a hundred is borne; a whole split is not, however small.
    all[..28].iter().for_each(|id| little.frame("hand_l", &format!("{id}_f1.jpg"), 20));
    little.data.max_empty_clips = 0.01;
    assert!(little.open().warnings().join("\n").contains("1 of 100 clips has no image in any stream"));
    std::fs::write(little.path("val.csv"), "clip28\n").unwrap();
    little.data.max_empty_clips = 0.9;
    let error = little.error();
    assert!(error.contains("no clip of the validation split (data.val_index) has an image"), "{error}");
}

#[test]
fn a_stream_that_one_split_lacks_is_a_warning() {
    let little = Little::new(&[("a", "uno"), ("b", "dos")], &["a"], &["b"]);
    little.frames("a", 1..2);
    little.frame("face", "b_f1.jpg", 20);
    little.pose("b", 1);
    let warnings = little.open().warnings().join("\n");
    assert_eq!(warnings.matches("no clip of the ").count(), 3, "{warnings}");
    for (split, what, folder) in [
        ("validation", "a frame", "hand_l (data.hand_left_dir)"),
        ("validation", "a frame", "hand_r (data.hand_right_dir)"),
        ("training", "a pose", "pose (data.pose_dir)"),
    ] {
        let line = warnings.lines().find(|line| line.ends_with(folder)).unwrap();
        assert!(line.starts_with(&format!("no clip of the {split} split has {what} in ")), "{warnings}");
    }
}

#[test]
fn frames_that_are_mostly_repeated_are_a_warning() {
    let mut little = five();
    let said = |little: &Little| little.open().warnings().join("\n").contains("are repetitions");
    // Clips of 3, 5, 7, 9 and 11 frames.
    for (length, warned) in [(4, false), (11, false), (13, false), (16, true), (128, true)] {
        little.model.sequence_length = length;
        assert_eq!(said(&little), warned, "{length}");
    }
    let dataset = little.open();
    let warning = dataset.warnings().iter().find(|line| line.contains("are repetitions")).unwrap();
    assert!(warning.starts_with("95 % of the frames") && warning.contains("half of the clips have 7 frames"));
    assert!(warning.contains("stretched to 128 (model.sequence_length)"), "{warning}");
    let summary = dataset.summary();
    assert_eq!((summary.train.shown, summary.train.repeated), (4 * 128, 4 * 128 - 3 - 5 - 7 - 9));
    assert_eq!((summary.val.shown, summary.val.repeated), (2 * 128, 2 * 128 - 9 - 11));
}

#[test]
fn streams_with_the_same_files_are_warnings() {
    let mut little = five();
    assert_eq!(little.open().same_streams(), [] as [String; 0]);
    // A copy that lacks a file, with other zeros in the names.
    let names = |stream: &str| -> Vec<String> {
        let entries = std::fs::read_dir(little.path(stream)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let right = little.path("hand_r");
    names("hand_r").iter().for_each(|name| std::fs::remove_file(right.join(name)).unwrap());
    for name in names("hand_l").iter().skip(1) {
        let other = name.replace("_f0", "_f00");
        std::fs::copy(little.path("hand_l").join(name), right.join(other)).unwrap();
    }
    let found = little.open().same_streams();
    assert!(found.len() == 1 && found[0].contains("hold the same files"), "{found:?}");
    assert!(found[0].contains("hand_l (data.hand_left_dir) and "), "{found:?}");
    assert!(found[0].contains("hand_r (data.hand_right_dir)"), "{found:?}");
    // A few frames that are alike, such as black ones, are none.
    for name in names("hand_r").iter().skip(6) {
        std::fs::write(right.join(name), grey(1)).unwrap();
    }
    assert_eq!(little.open().same_streams(), [] as [String; 0]);
    // One folder under two names.
    little.data.hand_left_dir = little.path("pose/../face");
    let found = little.open().same_streams();
    assert!(found.len() == 1 && found[0].contains("are one folder"), "{found:?}");
}

#[test]
fn a_dataset_without_frames_asks_for_the_right_folder() {
    let little = Little::new(&[("a", "uno")], &["a"], &["a"]);
    little.pose("a", 3);
    let error = little.error();
    assert!(
        error.contains("none of the 1 clip has a frame") && error.contains("is data.face_dir right"),
        "{error}"
    );
}

#[test]
fn unknown_and_repeated_ids_are_warnings() {
    let little = Little::new(&[("a", "uno"), ("b", "dos")], &["a", "x", "b", "a"], &["y", "b"]);
    little.frames("a", 1..2);
    little.frames("b", 1..2);
    for name in ["notes.txt", "b_f1.jpeg", "z_f1.jpg"] {
        std::fs::write(little.path("face").join(name), b"").unwrap();
    }
    std::fs::write(little.path("pose").join("a.npy"), b"").unwrap();
    let dataset = little.open();
    assert_eq!(dataset.unindexed_files, 1);
    assert_eq!((dataset.train.as_slice(), dataset.val.as_slice()), (&[0, 1][..], &[1][..]));
    let warnings = dataset.warnings().join("\n");
    for expected in [
        "1 of 3 ids of",
        "left out: x",
        "left out: y",
        "repeats 1 id, kept once: a",
        "(data.face_dir): 2 files not named <video_id>_f<number>.jpg, ignored, for example b_f1.jpeg",
        "(data.pose_dir): 1 file not named <video_id>.npz, ignored: a.npy",
    ] {
        assert!(warnings.contains(expected), "{expected}: {warnings}");
    }
}

#[test]
fn all_problems_come_at_once() {
    let mut little = Little::new(&[("a", "uno"), ("b", "")], &["../a"], &["z"]);
    little.data.face_dir = little.path("subs.csv");
    little.data.pose_dir = little.path("nowhere");
    let error = little.error();
    for expected in
        ["lines 3 (b)", "\"../a\": a path separator", "subs.csv (data.face_dir)", "nowhere (data.pose_dir)"]
    {
        assert!(error.contains(expected), "{expected}: {error}");
    }
    assert_eq!(error.matches("error: ").count(), 4, "{error}");
}

#[test]
fn ids_that_are_files_names_are_told() {
    let error = |rows: &[_], train: &[_], val: &[_]| Little::new(rows, train, val).error();
    let index = error(&[("a", "uno"), ("b.x", "dos")], &["a.mp4"], &["b.x.mp4"]);
    assert_eq!(index.matches("end in .mp4, those of").count(), 2, "{index}");
    assert!(index.contains("train.csv (data.train_index) end in .mp4"), "{index}");
    let metadata = error(&[("a.avi", "uno")], &["a"], &["a"]);
    assert!(metadata.contains("subs.csv (data.metadata_csv) end in .avi, those of"), "{metadata}");
    let all = error(&[("a.mp4", "uno")], &["a.mp4"], &["a.mp4"]);
    assert!(all.contains("hint: write the ids in the three CSVs without .mp4"), "{all}");
    let little = Little::new(&[("a", "uno"), ("b", "dos")], &["a", "b.mp4"], &["a"]);
    little.frames("a", 1..2);
    let warnings = little.open().warnings().join("\n");
    assert!(warnings.contains("left out: b.mp4; the ids of"), "{warnings}");
}

#[test]
fn an_index_of_unknown_ids_is_an_error() {
    let little = Little::new(&[("a", "uno")], &["a"], &["x", "y"]);
    little.frames("a", 1..2);
    let error = little.error();
    assert!(
        error.contains("knows none of the 2 ids of") && error.contains("val.csv (data.val_index)"),
        "{error}"
    );
}

#[test]
fn verify_lists_every_bad_file() {
    let little = Little::new(&[("a", "uno"), ("b", "dos"), ("c", "tres")], &["a", "b", "c"], &["c"]);
    for id in ["a", "b", "c"] {
        little.frames(id, 1..3);
        little.pose(id, 2);
    }
    let verify = |threads, depth| {
        let found = little.open().verify(threads, depth, &|_, _| ());
        found.problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(verify(3, Depth::FirstImages), [] as [&str; 0]);
    std::fs::write(little.path("face").join("a_f001.jpg"), b"\x89PNG\r\n\x1a\n").unwrap();
    std::fs::write(little.path("hand_r").join("b_f001.jpg"), b"").unwrap();
    write_pose(&little.path("pose").join("b.npz"), "pose", 1, &[0.0; 39]);
    write_pose(&little.path("pose").join("c.npz"), "points", 1, &[0.0; 3]);
    // Behind the first frame.
    std::fs::write(little.path("hand_l").join("c_f002.jpg"), b"GIF89a").unwrap();
    let found = verify(2, Depth::FirstImages);
    let expected = ["a_f001.jpg", "b_f001.jpg", "b.npz", "c.npz"];
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found}");
    }
    assert!(found[0].contains("a PNG") && found[1].contains("empty"));
    assert!(found[2].contains("39 values") && found[2].contains("model.pose_landmarks = 1"));
    assert_eq!(found, verify(1, Depth::FirstImages));
    let every = verify(3, Depth::EveryImage);
    assert_eq!(every.len(), 5);
    assert!(every[3].contains("c_f002.jpg") && every[3].contains("a GIF"), "{}", every[3]);
}

#[test]
fn verify_says_how_far_it_is_and_which_splits_are_lost() {
    let little = five();
    std::fs::write(little.path("face").join("e_f009.jpg"), b"").unwrap();
    let dataset = little.open();
    let told = std::sync::Mutex::new(Vec::new());
    let found = dataset.verify(2, Depth::EveryImage, &|done, all| told.lock().unwrap().push((done, all)));
    let images = dataset.summary().streams.iter().map(|stream| stream.frames).sum::<usize>();
    assert_eq!((found.images, found.poses), (images, 4));
    let told = told.into_inner().unwrap();
    assert!(told.iter().all(|(_, all)| *all == images + 4) && told.contains(&(images + 4, images + 4)));
    assert_eq!(found.problems.len(), 1);
    assert_eq!(found.lost_splits(&dataset), []);
    // The other clip of the validation split.
    std::fs::write(little.path("pose").join("d.npz"), b"").unwrap();
    let found = dataset.verify(2, Depth::EveryImage, &|_, _| ());
    let lost: Vec<String> = found.lost_splits(&dataset).iter().map(ToString::to_string).collect();
    let what = "error: no clip of the validation split (data.val_index) is left: none of 2 can be loaded";
    assert_eq!(lost, [what]);
    let first = dataset.verify(2, Depth::FirstImages, &|_, _| ());
    assert_eq!((first.images, first.problems.len(), first.lost_splits(&dataset).len()), (15, 1, 0));
}

/// Five clips of different lengths, with a missing hand and a missing pose among them.
fn five() -> Little {
    let ids = ["a", "b", "c", "d", "e"];
    let little = Little::new(&ids.map(|id| (id, id)), &ids[..4], &ids[3..]);
    for (at, id) in ids.into_iter().enumerate() {
        little.frames(id, 1..4 + 2 * at as u8);
        if at != 2 {
            little.pose(id, 3 * at);
        }
    }
    std::fs::remove_file(little.path("hand_l").join("b_f002.jpg")).unwrap();
    little
}

fn all_requests(dataset: &Dataset) -> Vec<Request> {
    requests(7, [dataset.train.clone(), dataset.val.clone()], [3, 2], 0..3).collect()
}

#[test]
fn batches_do_not_depend_on_the_number_of_workers() {
    let little = five();
    let dataset = Arc::new(little.open());
    let asked = all_requests(&dataset);
    assert_eq!(asked.len(), 9);
    let run = |workers| {
        let mut loader = Loader::new(Arc::clone(&dataset), workers, asked.clone().into_iter());
        let mut got = Vec::new();
        while let Some(next) = loader.next() {
            got.push(next.unwrap());
        }
        assert!(loader.next().is_none());
        assert!(loader.take_wait() > Duration::ZERO);
        assert_eq!(loader.take_wait(), Duration::ZERO);
        got
    };
    let alone = run(0);
    assert!(alone.iter().map(|(request, _)| request).eq(&asked));
    let (request, batch) = &alone[0];
    assert_eq!(request.clips, training_order(7, 0, &dataset.train)[..3]);
    for (at, &clip) in request.clips.iter().enumerate() {
        let sample = dataset.load(clip, Phase::Train, 0).unwrap();
        let length = sample.images[1].bytes().len();
        assert!(batch.images[1].bytes()[at * length..(at + 1) * length] == *sample.images[1].bytes());
        assert_eq!(batch.pose[at * 12..(at + 1) * 12], sample.pose);
    }
    for workers in [1, 4] {
        assert!(run(workers) == alone, "{workers} workers");
    }
}

#[test]
fn errors_come_in_their_place_and_the_rest_follows() {
    let little = five();
    std::fs::write(little.path("face").join("c_f001.jpg"), b"").unwrap();
    std::fs::remove_file(little.path("hand_r").join("d_f001.jpg")).unwrap();
    let dataset = Arc::new(little.open());
    // Gone after the listing.
    std::fs::remove_file(little.path("pose").join("b.npz")).unwrap();
    let batch = |clips: &[usize]| Request { phase: Phase::Validation, epoch: 0, clips: clips.to_vec() };
    let asked = vec![batch(&[0]), batch(&[0, 2, 1]), batch(&[4]), batch(&[99]), batch(&[]), batch(&[3])];
    for workers in [0, 1, 4] {
        let mut loader = Loader::new(Arc::clone(&dataset), workers, asked.clone().into_iter());
        let mut got = Vec::new();
        while let Some(next) = loader.next() {
            got.push(next.map(|(request, _)| request.clips).map_err(|error| error.to_string()));
        }
        assert_eq!(got.len(), 6);
        assert_eq!(got[0], Ok(vec![0]));
        // Of two clips that fail, the first in the batch.
        let error = got[1].clone().unwrap_err();
        assert!(
            error.contains("the clip c") && error.contains("c_f001.jpg") && error.contains("empty"),
            "{error}"
        );
        assert_eq!(got[2], Ok(vec![4]));
        assert!(got[3].is_err());
        assert_eq!(got[4], Ok(vec![]));
        assert_eq!(got[5], Ok(vec![3]));
    }
}

#[test]
fn bad_clips_are_left_out_where_they_may_be() {
    let mut little = five();
    little.data.on_bad_clip = config::OnBadClip::Skip;
    let dataset = Arc::new(little.open());
    let batch = |clips: &[usize]| Request { phase: Phase::Validation, epoch: 0, clips: clips.to_vec() };
    let load = |workers, asked: Vec<Request>| {
        let mut loader = Loader::new(Arc::clone(&dataset), workers, asked.into_iter());
        let mut got = Vec::new();
        while let Some(next) = loader.next() {
            got.push(next);
        }
        got
    };
    let sound = load(0, vec![batch(&[0, 3])]).remove(0).unwrap().1;
    assert!(sound.skipped.is_empty());
    // After the listing: a frame of b vanishes, one of c is cut off, the pose of e breaks.
    std::fs::remove_file(little.path("face").join("b_f003.jpg")).unwrap();
    let frame = std::fs::read(little.path("hand_r").join("c_f003.jpg")).unwrap();
    std::fs::write(little.path("hand_r").join("c_f003.jpg"), &frame[..frame.len() / 2]).unwrap();
    std::fs::write(little.path("pose").join("e.npz"), b"PK").unwrap();
    let asked = vec![batch(&[1, 0, 2, 3, 4]), batch(&[2, 1]), batch(&[0, 99]), batch(&[3])];
    let alone = load(0, asked.clone());
    let (request, first) = alone[0].as_ref().unwrap();
    assert_eq!(request.clips, [1, 0, 2, 3, 4]);
    let ids: Vec<&str> = first.skipped.iter().map(|clip| clip.id.as_str()).collect();
    assert_eq!(ids, ["b", "c", "e"]);
    for (clip, [file, why]) in first.skipped.iter().zip([
        ["face/b_f003.jpg", "No such file"],
        ["hand_r/c_f003.jpg", "truncated"],
        ["pose/e.npz", "not a whole npz file"],
    ]) {
        assert!(clip.problem.contains(file) && clip.problem.contains(why), "{}", clip.problem);
    }
    // What is left is the batch of the clips that are left.
    let mut left = first.clone();
    left.skipped.clear();
    assert!(left == sound);
    let (_, empty) = alone[1].as_ref().unwrap();
    assert_eq!((empty.skipped.len(), empty.clips.len()), (2, 0));
    assert!(
        empty.images.iter().all(|images| images.bytes().is_empty())
            && empty.pose.is_empty()
            && empty.pad_mask.is_empty()
    );
    // No file's fault, so no clip to skip.
    assert!(alone[2].is_err());
    assert_eq!(alone[3].as_ref().unwrap().1.clips, [3]);
    // The targets are those of the clips that are left: of a and d, whose texts have classes of their own.
    let decoder = decoder::of_no_texts(&crate::support::experiment(&[]));
    let mut feed = Feed::of(&dataset, decoder.as_ref(), 0, std::iter::once(asked[0].clone()));
    let fed = feed.next(Phase::Validation, 0).unwrap();
    assert_eq!((fed.clips(), fed.targets), (2, ["a", "d"].map(|text| decoder.target(text)).to_vec()));
    assert_ne!(decoder.target("a"), decoder.target("d"));
    for workers in [1, 4] {
        assert!(load(workers, asked.clone()) == alone, "{workers} workers");
    }
}

#[test]
fn a_loader_is_dropped_at_any_moment() {
    let little = five();
    let dataset = Arc::new(little.open());
    for taken in 0..6 {
        let endless = requests(1, [dataset.train.clone(), dataset.val.clone()], [2, 2], 0..usize::MAX);
        let mut loader = Loader::new(Arc::clone(&dataset), 3, endless);
        for _ in 0..taken {
            loader.next().unwrap().unwrap();
        }
        drop(loader);
    }
    assert_eq!(Arc::strong_count(&dataset), 1);
}

fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
    path.exists().then_some(path)
}

#[test]
fn the_real_metadata_reads() {
    let Some(path) = shared("lsa_t_meta.csv") else { return };
    let source = slt_run::data::Source { key: "data.metadata_csv", path: &path };
    let metadata = slt_run::data::read_metadata(&source).unwrap();
    assert_eq!(metadata.texts.len(), 8459);
    let texts: Vec<&str> = metadata.texts.values().map(String::as_str).collect();
    let report = Classes::new(32000, &[]).report(&texts);
    let warning = "1854 of 8009 texts share a class with another text";
    assert!(report.warning.is_some_and(|found| found.starts_with(warning)));
}

#[test]
fn the_real_clips_load() {
    let Some(root) = shared("lsa_t_mini") else { return };
    let mut little = Little::new(&[("a", "x")], &["a"], &["a"]);
    let at = |name: &str| root.join(name);
    little.data = config::Data {
        face_dir: at("face"),
        hand_left_dir: at("hand_l"),
        hand_right_dir: at("hand_r"),
        pose_dir: at("pose"),
        metadata_csv: at("subs.csv"),
        train_index: at("index/train.csv"),
        val_index: at("index/val.csv"),
        ..little.data
    };
    little.model.pose_landmarks = 13;
    little.model.sequence_length = 8;
    let dataset = little.open();
    let summary = dataset.summary();
    assert_eq!((summary.train.clips, summary.val.clips), (17, 7));
    assert_eq!((summary.train.min, summary.train.max, summary.missing_poses), (8, 8, 0));
    let report = Classes::new(little.model.vocab_size, &dataset.train_texts())
        .report(&[dataset.train_texts(), dataset.validation_texts()].concat());
    assert_eq!((report.brief.as_str(), report.warning, stride(8, 8)), ("4 texts in 4 classes", None, 1));
    let found = dataset.verify(2, Depth::EveryImage, &|_, _| ());
    assert_eq!((found.images, found.poses), (3 * 24 * 8, 24));
    assert!(found.problems.is_empty() && found.warnings.is_empty(), "{found:?}");
    assert_eq!(dataset.warnings(), [] as [String; 0]);
    let mut loader = Loader::new(Arc::new(dataset), 2, vec![].into_iter());
    assert!(loader.next().is_none());
}
