//! The dataset: opened once, shared by the loader's threads, one clip decoded at a time.

use super::batch::{Phase, Pixels, Sample, Sizes};
use super::features::FeatureSource;
use super::frames::{FrameTable, Listing, PassedOver, PoseListing, list_features, list_frames, list_poses};
use super::image::ImageDecoder;
use super::manifest::{Index, Metadata, read_index, read_metadata};
use super::pose::{self, Pose};
use super::sampling::{frame_at, sample_indices, stride, union};
use super::table::Source;
use super::{on_threads, shortened, some_of};
use crate::config::streams::{Stream, StreamKind, image_streams, pose_stream};
use crate::config::{self, OnBadClip};
use crate::error::{Error, ErrorKind, Problem, Result, count};
use crate::input::hexadecimal;
use crate::random::{Purpose, stream};
use rand::RngExt;
use sha1::{Digest, Sha1};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Where a stream's files are.
#[derive(Clone, Debug)]
pub struct StreamFolder {
    /// The stream.
    pub stream: &'static Stream,
    /// Its folder.
    pub dir: PathBuf,
    /// The field that names the folder.
    pub key: &'static str,
}

impl std::fmt::Display for StreamFolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.dir.display(), self.key)
    }
}

/// A clip: its text, and which files it has.
#[derive(Clone, Debug)]
pub struct Clip {
    /// The `video_id`.
    pub id: String,
    /// The text, as written in the metadata.
    pub text: String,
    /// Of each image stream.
    pub frames: Vec<FrameTable>,
    /// Whether there is a pose file.
    pub has_pose: bool,
}

impl Clip {
    /// The numbers that any of its streams has, sorted; their number is the clip's length `T0`.
    #[must_use]
    pub fn numbers(&self) -> Vec<u32> {
        union(self.frames.iter().map(FrameTable::numbers))
    }
}

/// All clips of both splits and where their files are. Nothing of it changes after [`Dataset::open`].
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The clips: those of the training index in its order, then those that only the validation index has.
    pub clips: Vec<Clip>,
    /// Positions in `clips` of the training split, in the order of its index.
    pub train: Vec<usize>,
    /// Positions in `clips` of the validation split, in the order of its index.
    pub val: Vec<usize>,
    /// The image streams'.
    pub streams: Vec<StreamFolder>,
    /// The pose stream's.
    pub poses: StreamFolder,
    /// The sizes of a sample.
    pub sizes: Sizes,
    /// What a clip costs that cannot be loaded.
    pub on_bad_clip: OnBadClip,
    pub(super) landmarks: usize,
    seed: u64,
    pub(super) warnings: Vec<String>,
    /// Frames and poses in its folders that are of clips which neither index names.
    pub unindexed_files: usize,
    /// Where features are, in the place of images.
    features: Option<FeatureSource>,
}

/// The field of features that were made elsewhere.
pub(super) const FEATURES_DIR: &str = "data.features_dir";

impl Dataset {
    /// What tells this dataset from others: a digest of both splits' clips, in order, with their texts. Files are not
    /// looked into.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut digest = Sha1::new();
        for (split, clips) in [(0_u8, &self.train), (1, &self.val)] {
            for clip in clips.iter().filter_map(|&at| self.clips.get(at)) {
                for text in [&clip.id, &clip.text] {
                    digest.update([split]);
                    digest.update((text.len() as u64).to_le_bytes());
                    digest.update(text);
                }
            }
        }
        hexadecimal(&digest.finalize())
    }

    /// How many frames and poses there are, and a digest of which: where one is missing, the clip is sampled in
    /// another way or has zeros in its place.
    #[must_use]
    pub fn files_fingerprint(&self) -> String {
        let (mut digest, mut frames) = (Sha1::new(), 0);
        for clip in &self.clips {
            for table in &clip.frames {
                frames += table.numbers().len();
                digest.update((table.numbers().len() as u64).to_le_bytes());
                table.numbers().iter().for_each(|number| digest.update(number.to_le_bytes()));
            }
            digest.update([u8::from(clip.has_pose)]);
        }
        let poses = self.clips.iter().filter(|clip| clip.has_pose).count();
        let digest = hexadecimal(&digest.finalize());
        format!(
            "{}, {} ({})",
            count(frames, "frame"),
            count(poses, "pose"),
            digest.get(..8).unwrap_or_default()
        )
    }

    /// Reads the CSVs and lists the folders, each once.
    ///
    /// # Errors
    /// All that is wrong with the CSVs and folders, as one error of kind `Data`; so is a share of clips without images
    /// above `data.max_empty_clips`.
    pub fn open(data: &config::Data, model: &config::Model, seed: u64) -> Result<Self> {
        let sources = Sources::new(data);
        let mut problems = Vec::new();
        let mut read = |source: &Source| read_index(source).map_err(|found| problems.extend(found)).ok();
        let train = sources.train.as_ref().map_or(Some(Index::default()), &mut read);
        let indices = train.zip(read(&sources.val));
        Self::open_sources(&sources, indices.ok_or(problems), (data, model, seed))
    }

    /// The texts of the training split alone, in the order of its index: no folder is looked into.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn train_texts_of(data: &config::Data) -> Result<Vec<String>> {
        let sources = Sources::new(data);
        let failed = |problems| Error::of(ErrorKind::Data, problems);
        let (Some(metadata), Some(train)) = (&sources.metadata, &sources.train) else {
            return Ok(Vec::new());
        };
        let texts = read_metadata(metadata).map_err(failed)?.texts;
        let ids = read_index(train).map_err(failed)?.ids;
        Ok(ids.iter().filter_map(|id| texts.get(id).cloned()).collect())
    }

    /// The clips of one index, which `source` is, as a validation split without a training split.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_split(
        (source, index): (Source, Index),
        with_texts: bool,
        data: &config::Data,
        model: &config::Model,
    ) -> Result<Self> {
        let all = Sources::new(data);
        let sources =
            Sources { metadata: all.metadata.filter(|_| with_texts), train: None, val: source, ..all };
        Self::open_sources(&sources, Ok((Index::default(), index)), (data, model, 0))
    }

    /// With the training index and the validation index, or what is wrong with them.
    fn open_sources(
        sources: &Sources,
        indices: Result<(Index, Index), Vec<Problem>>,
        (data, model, seed): (&config::Data, &config::Model, u64),
    ) -> Result<Self> {
        let mut problems = Vec::new();
        let mut keep = |found: &mut Vec<Problem>| problems.append(found);
        let indices = indices.map_err(|mut found| keep(&mut found)).ok();
        let metadata = match (&sources.metadata, &indices) {
            (Some(source), _) => read_metadata(source).map_err(|mut found| keep(&mut found)).ok(),
            (None, Some((train, val))) => Some(Metadata::without_texts([train, val])),
            (None, None) => None,
        };
        let mut warnings = Vec::new();
        let splits = match (&metadata, &indices) {
            (Some(metadata), Some((train, val))) => {
                Splits::new(sources, metadata, [train, val], &mut warnings)
                    .map_err(|mut found| keep(&mut found))
                    .ok()
            }
            _ => None,
        };
        let clips = splits.as_ref().map(|splits| splits.ids.clone()).unwrap_or_default();
        let ids: HashMap<&str, usize> = clips.iter().enumerate().map(|(at, id)| (id.as_str(), at)).collect();
        // A folder that cannot be listed is reported even where the CSVs left no ids to look for.
        let folders = list_folders(sources, &ids).map_err(|mut found| keep(&mut found)).ok();
        Error::all(ErrorKind::Data, problems)?;
        let (Some(metadata), Some(splits), Some(folders)) = (metadata, splits, folders) else {
            return Err(Error::data("the dataset cannot be opened"));
        };
        let folder = |stream: &'static Stream| match &data.features_dir {
            Some(dir) if stream.kind != StreamKind::Pose => {
                StreamFolder { stream, dir: dir.clone(), key: FEATURES_DIR }
            }
            _ => StreamFolder { stream, dir: (stream.dir)(data).into(), key: stream.key },
        };
        let mut dataset = Self {
            clips: join(&splits.ids, &metadata, folders.streams, &folders.poses),
            train: splits.train,
            val: splits.val,
            streams: image_streams().map(folder).collect(),
            poses: folder(pose_stream()),
            sizes: Sizes::of(model),
            on_bad_clip: data.on_bad_clip,
            landmarks: model.pose_landmarks,
            seed,
            warnings,
            unindexed_files: folders.unindexed,
            features: None,
        };
        if let Some(dir) = &data.features_dir {
            let width = model.backbone.embed_dim;
            dataset = dataset.with_features(FeatureSource { folder: dir.clone(), width, key: FEATURES_DIR });
        }
        dataset.warnings.extend(folders.warnings);
        dataset.check_contents(data.max_empty_clips)?;
        Ok(dataset)
    }

    /// As it is, with these features in the place of its images.
    #[must_use]
    pub fn with_features(mut self, source: FeatureSource) -> Self {
        self.sizes.features = Some(source.width);
        self.features = Some(source);
        self
    }

    /// Whether its features were made elsewhere, so that there are no images at all.
    #[must_use]
    pub fn has_made_features(&self) -> bool {
        self.features.as_ref().is_some_and(|source| source.key == FEATURES_DIR)
    }

    /// Where features are, in the place of images.
    #[must_use]
    pub fn features(&self) -> Option<&FeatureSource> {
        self.features.as_ref()
    }

    /// What is odd and does not stop a run: ids without metadata, repeated rows, files with odd names, clips without
    /// images, clips in both splits, streams without files, frames that are mostly repeated.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Decodes one clip as `phase` of `epoch` (counted from 0) samples it. It depends on the seed, the epoch and the
    /// clip alone.
    ///
    /// # Errors
    /// A file, named, cannot be read or decoded.
    pub fn load(&self, clip: usize, phase: Phase, epoch: usize) -> Result<Sample> {
        let mut sample = Sample::new(self.sizes);
        self.load_into(clip, phase, epoch, &mut ImageDecoder::default(), &mut sample)?;
        Ok(sample)
    }

    /// [`Dataset::load`] into a sample that exists already, whatever it held.
    ///
    /// # Errors
    /// A file, named, cannot be read or decoded; `sample` is then left in part as it was.
    pub fn load_into(
        &self,
        position: usize,
        phase: Phase,
        epoch: usize,
        decoder: &mut ImageDecoder,
        sample: &mut Sample,
    ) -> Result<()> {
        let clip =
            self.clips.get(position).ok_or_else(|| Error::run(format!("there is no clip {position}")))?;
        let numbers = clip.numbers();
        let offset = self.offset(position, phase, epoch, stride(numbers.len(), self.sizes.frames));
        let positions = sample_indices(numbers.len(), self.sizes.frames, offset);
        if let Some(source) = &self.features {
            self.load_features(source, clip, &positions, &mut sample.images)?;
            return self.load_pose(clip, offset, &mut sample.pose);
        }
        // The number of each step; none in a clip without frames.
        let steps: Vec<Option<u32>> = positions.into_iter().map(|at| numbers.get(at).copied()).collect();
        for ((stream, table), images) in self.streams.iter().zip(&clip.frames).zip(&mut sample.images) {
            let shown: Vec<Option<u32>> =
                steps.iter().map(|step| frame_at(table.numbers(), (*step)?)).collect();
            self.load_stream(stream, clip, table, &shown, decoder, images.bytes_mut())?;
        }
        self.load_pose(clip, offset, &mut sample.pose)
    }

    /// Fills `streams`, `(T, D)` each, with the rows at `positions` of a clip's features.
    fn load_features(
        &self,
        source: &FeatureSource,
        clip: &Clip,
        positions: &[usize],
        streams: &mut [Pixels],
    ) -> Result<()> {
        let is_empty = clip.numbers().is_empty();
        if is_empty && self.has_made_features() {
            let features = streams.iter_mut().filter_map(Pixels::features_mut);
            features.for_each(|features| features.fill(0.0));
            return Ok(());
        }
        let mut file = source.open(&clip.id)?;
        for (stream, features) in streams.iter_mut().filter_map(Pixels::features_mut).enumerate() {
            file.read(stream, positions, features)?;
        }
        Ok(())
    }

    /// The first frame's position: drawn from `0..stride` in training, 0 in validation.
    fn offset(&self, clip: usize, phase: Phase, epoch: usize, stride: usize) -> usize {
        match phase {
            Phase::Validation => 0,
            Phase::Train => {
                let mut random = stream(self.seed, Purpose::Offset, [epoch as u64, clip as u64]);
                random.random_range(0..stride.max(1) as u64) as usize
            }
        }
    }

    /// Fills `images`, `(T, H, W, 3)`, with the frames `shown`; a frame that is shown again is copied.
    fn load_stream(
        &self,
        stream: &StreamFolder,
        clip: &Clip,
        table: &FrameTable,
        shown: &[Option<u32>],
        decoder: &mut ImageDecoder,
        images: &mut [u8],
    ) -> Result<()> {
        let mut before: Option<(u32, &mut [u8])> = None;
        for (image, shown) in images.chunks_exact_mut(self.sizes.image_bytes()).zip(shown) {
            match (*shown, &before) {
                (None, _) => image.fill(0),
                (Some(number), Some((last, pixels))) if *last == number => image.copy_from_slice(pixels),
                (Some(number), _) => {
                    let path = stream.dir.join(table.file_name(&clip.id, number));
                    decoder.read(&path, self.sizes.image_size, image)?;
                    before = Some((number, image));
                }
            }
        }
        Ok(())
    }

    /// The frames `numbers` of an image stream of a clip, `(N, H, W, 3)` RGB bytes, decoded on `threads` threads.
    ///
    /// # Errors
    /// The first file, named, that cannot be read or decoded.
    pub fn decode(&self, clip: &Clip, stream: usize, numbers: &[u32], threads: usize) -> Result<Pixels> {
        let none = || Error::run(format!("there is no image stream {stream}"));
        let (folder, table) = self.streams.get(stream).zip(clip.frames.get(stream)).ok_or_else(none)?;
        let size = self.sizes.image_bytes();
        let mut bytes = vec![0; numbers.len() * size];
        let left = Mutex::new(numbers.iter().zip(bytes.chunks_exact_mut(size)));
        let work = || {
            let mut decoder = ImageDecoder::default();
            loop {
                let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((&number, image)) = next else { return Ok(()) };
                let path = folder.dir.join(table.file_name(&clip.id, number));
                decoder.read(&path, self.sizes.image_size, image)?;
            }
        };
        on_threads(threads.min(numbers.len()), work).into_iter().collect::<Result<()>>()?;
        Ok(Pixels::Bytes(bytes))
    }

    /// Fills `pose`, `(T, P)`: rows in their own stride, from the clip's offset.
    fn load_pose(&self, clip: &Clip, offset: usize, pose: &mut [f32]) -> Result<()> {
        let found = if clip.has_pose { self.read_pose(clip)? } else { Pose::default() };
        let rows = sample_indices(found.rows, self.sizes.frames, offset);
        let width = self.sizes.pose;
        for (out, row) in pose.chunks_exact_mut(width.max(1)).zip(rows) {
            match found.values.get(row * width..(row + 1) * width) {
                Some(values) => out.copy_from_slice(values),
                None => out.fill(0.0),
            }
        }
        Ok(())
    }

    /// The texts of the training split, in the order of its index.
    #[must_use]
    pub fn train_texts(&self) -> Vec<&str> {
        self.texts_of(&self.train)
    }

    /// The texts of the validation split, in the order of its index.
    #[must_use]
    pub fn validation_texts(&self) -> Vec<&str> {
        self.texts_of(&self.val)
    }

    fn texts_of(&self, split: &[usize]) -> Vec<&str> {
        split.iter().filter_map(|&at| self.clips.get(at)).map(|clip| clip.text.as_str()).collect()
    }

    /// The whole pose of a clip that has one.
    pub(super) fn read_pose(&self, clip: &Clip) -> Result<Pose> {
        pose::read(&self.poses.dir.join(format!("{}.npz", clip.id)), self.landmarks)
    }
}

/// The dataset's paths with the keys that they came from.
struct Sources<'a> {
    /// None where texts are of no interest.
    metadata: Option<Source<'a>>,
    /// None where there is but one split.
    train: Option<Source<'a>>,
    val: Source<'a>,
    /// The image streams'; none where features come in the place of images.
    streams: Vec<Source<'a>>,
    features: Option<Source<'a>>,
    pose: Source<'a>,
}

impl<'a> Sources<'a> {
    fn new(data: &'a config::Data) -> Self {
        let source = |key, path: &'a PathBuf| Source { key, path: path.as_path() };
        let folder = |stream: &Stream| Source { key: stream.key, path: (stream.dir)(data) };
        Self {
            metadata: Some(source("data.metadata_csv", &data.metadata_csv)),
            train: Some(source("data.train_index", &data.train_index)),
            val: source("data.val_index", &data.val_index),
            streams: match data.features_dir {
                Some(_) => Vec::new(),
                None => image_streams().map(folder).collect(),
            },
            features: data.features_dir.as_ref().map(|path| source(FEATURES_DIR, path)),
            pose: folder(pose_stream()),
        }
    }
}

/// The ids of both splits that the metadata knows.
struct Splits {
    ids: Vec<String>,
    train: Vec<usize>,
    val: Vec<usize>,
}

impl Splits {
    fn new(
        sources: &Sources,
        metadata: &Metadata,
        indices: [&Index; 2],
        warnings: &mut Vec<String>,
    ) -> Result<Self, Vec<Problem>> {
        warnings.extend(metadata.warnings.iter().cloned());
        let mut ids: Vec<String> = Vec::new();
        let mut positions = HashMap::<&str, usize>::new();
        let mut problems = Vec::new();
        let [train, val] =
            [(indices[0], sources.train.as_ref()), (indices[1], Some(&sources.val))].map(|split| {
                let (index, Some(source)) = split else { return Vec::new() };
                warnings.extend(index.warnings.iter().cloned());
                let (known, unknown): (Vec<&str>, Vec<&str>) =
                    index.ids.iter().map(String::as_str).partition(|id| metadata.texts.contains_key(*id));
                let ending = ending(&unknown, |id| metadata.texts.contains_key(id));
                // Without metadata all ids are known.
                let metadata = sources.metadata.as_ref().unwrap_or(source);
                let ending = ending.map(|(ending, in_index)| {
                    let (with, without) = if in_index { (source, metadata) } else { (metadata, source) };
                    format!(
                        "the ids of {with} end in {ending}, those of {without} do not: write all without it"
                    )
                });
                match note_unknown(source, metadata, &known, &unknown, ending) {
                    Ok(warning) => warnings.extend(warning),
                    Err(problem) => problems.push(problem),
                }
                known
                    .into_iter()
                    .map(|id| *positions.entry(id).or_insert_with(|| push(&mut ids, id)))
                    .collect()
            });
        if !problems.is_empty() {
            return Err(problems);
        }
        let shared: Vec<&str> = val
            .iter()
            .filter(|&&at| at < train.len())
            .filter_map(|&at| ids.get(at))
            .map(String::as_str)
            .collect();
        if let Some(train) = sources.train.as_ref().filter(|_| !shared.is_empty()) {
            warnings.push(format!(
                "{} in both {train} and {}, so that the validation loss is too good: {}",
                count(shared.len(), "clip"),
                sources.val,
                some_of(&shared)
            ));
        }
        Ok(Self { ids, train, val })
    }
}

fn push(ids: &mut Vec<String>, id: &str) -> usize {
    ids.push(id.to_owned());
    ids.len() - 1
}

/// The warning for ids that the metadata lacks; an error where no others are left.
fn note_unknown(
    index: &Source,
    metadata: &Source,
    known: &[&str],
    unknown: &[&str],
    ending: Option<String>,
) -> Result<Option<String>, Problem> {
    let all = known.len() + unknown.len();
    if known.is_empty() {
        return Err(Problem::new(format!("{metadata} knows none of the {} of {index}", count(all, "id")))
            .cause(format!("unknown: {}", some_of(unknown)))
            .hint(ending.unwrap_or_else(|| "do the two files belong to one dataset?".to_owned())));
    }
    if unknown.is_empty() {
        return Ok(None);
    }
    let warning = format!(
        "{} of {all} ids of {index} are not in {metadata}, left out: {}",
        unknown.len(),
        some_of(unknown)
    );
    Ok(Some(match ending {
        Some(ending) => format!("{warning}; {ending}"),
        None => warning,
    }))
}

/// What ids that are files' names end in.
pub(super) const ENDINGS: [&str; 9] =
    [".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".m4v", ".npz", ".jpg"];

/// The ending, as of a file's name, without which one of the `unknown` ids is known, and true; or with which it is, and
/// false.
fn ending(unknown: &[&str], is_known: impl Fn(&str) -> bool) -> Option<(String, bool)> {
    unknown.iter().find_map(|id| {
        let without = id.rfind('.').filter(|&at| is_known(&id[..at])).map(|at| (id[at..].to_owned(), true));
        let with = || ENDINGS.iter().find(|ending| is_known(&format!("{id}{ending}")));
        without.or_else(|| with().map(|ending| ((*ending).to_owned(), false)))
    })
}

/// What the folders hold.
struct Folders {
    /// The image streams'.
    streams: Vec<Listing>,
    /// For each clip, whether it has a pose.
    poses: Vec<bool>,
    /// Of odd names.
    warnings: Vec<String>,
    /// Files of clips that neither index names.
    unindexed: usize,
}

/// Lists the folders, side by side: most of the time is the system's.
fn list_folders<'a>(sources: &Sources<'a>, ids: &HashMap<&str, usize>) -> Result<Folders, Vec<Problem>> {
    let clips = ids.len();
    let (streams, poses) = std::thread::scope(|scope| {
        let list_on_thread = |source: &Source<'a>| {
            let path = source.path;
            let list = move || list_frames(path, ids, clips);
            // Where the system grants no thread, this one lists the folder, too.
            std::thread::Builder::new().spawn_scoped(scope, list).map_err(|_| Box::new(list()))
        };
        let threads: Vec<_> = sources.streams.iter().map(list_on_thread).collect();
        let poses = list_poses(sources.pose.path, ids, clips);
        let lost = || Err(std::io::Error::other("the listing was interrupted"));
        let listed = threads.into_iter().map(|thread| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|_| lost()),
            Err(listed) => *listed,
        });
        (listed.collect::<Vec<_>>(), poses)
    });
    let mut problems = Vec::new();
    let failed = |source: &Source, error: &std::io::Error| {
        let problem = Problem::new(format!("cannot list the folder {source}")).io(source.path, error);
        problem.hint(format!("correct {}", source.key))
    };
    let (mut warnings, mut unindexed) = (Vec::new(), 0);
    let streams = streams.into_iter().zip(&sources.streams).map(|(listing, source)| match listing {
        Ok(listing) => {
            warnings.extend(odd_frames(source, &listing));
            unindexed += listing.other_clips;
            listing
        }
        Err(error) => {
            problems.push(failed(source, &error));
            Listing::default()
        }
    });
    let mut streams: Vec<Listing> = streams.collect();
    if let Some(source) = &sources.features {
        match list_features(source.path, ids, clips) {
            Ok(Ok(listing)) => {
                unindexed += listing.other_clips;
                warnings.extend(odd_names(
                    source,
                    &listing.other_files,
                    "not named <video_id>.safetensors, ignored",
                ));
                streams = image_streams().map(|_| listing.clone()).collect();
            }
            Ok(Err(found)) => problems.extend(found),
            Err(error) => problems.push(failed(source, &error)),
        }
    }
    let poses = poses.unwrap_or_else(|error| {
        problems.push(failed(&sources.pose, &error));
        PoseListing::default()
    });
    if !problems.is_empty() {
        return Err(problems);
    }
    warnings.extend(odd_names(&sources.pose, &poses.other_files, "not named <video_id>.npz, ignored"));
    unindexed += poses.other_clips;
    Ok(Folders { streams, poses: poses.found, warnings, unindexed })
}

/// One warning for each kind of odd name in a stream's folder.
fn odd_frames(source: &Source, listing: &Listing) -> Vec<String> {
    let kinds = [
        (&listing.other_files, "not named <video_id>_f<number>.jpg, ignored"),
        (&listing.not_utf8, "with a name that is not UTF-8, ignored"),
        (&listing.huge_numbers, "with a frame number beyond 4294967295, ignored"),
        (
            &listing.repeated,
            "with a frame number that another file of the clip has (in more or fewer zeros), ignored",
        ),
    ];
    kinds.into_iter().filter_map(|(files, what)| odd_names(source, files, what)).collect()
}

/// The warning of files that are passed over because `what`; none where there are none.
fn odd_names(source: &Source, passed: &PassedOver, what: &str) -> Option<String> {
    let (files, example) = (count(passed.files, "file"), shortened(&passed.example));
    match passed.files {
        0 => None,
        1 => Some(format!("{source}: {files} {what}: {example}")),
        _ => Some(format!("{source}: {files} {what}, for example {example}")),
    }
}

/// Puts the parts of each clip together.
fn join(ids: &[String], metadata: &Metadata, listings: Vec<Listing>, poses: &[bool]) -> Vec<Clip> {
    let mut tables: Vec<_> = listings.into_iter().map(|listing| listing.tables.into_iter()).collect();
    let clip = |(at, id): (usize, &String)| {
        let text = metadata.texts.get(id).cloned().unwrap_or_default();
        Clip {
            id: id.clone(),
            text,
            frames: tables.iter_mut().map(|tables| tables.next().unwrap_or_default()).collect(),
            has_pose: poses.get(at).copied().unwrap_or(false),
        }
    };
    ids.iter().enumerate().map(clip).collect()
}
