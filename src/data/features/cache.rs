//! The cache of the frozen backbones' features: `<cache>/<key>/<video_id>.safetensors`, and `about.json`, which says what
//! the key is of.
//!
//! Each file is made under a name of this process alone and then renamed: several processes may fill one cache, and one
//! that is killed loses the clip that it was at.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::{FeatureFile, FeatureSource, encode, file_name};
use crate::config::{Experiment, FeatureDtype, Precision};
use crate::data::on_threads;
use crate::data::{Clip, Dataset};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::files::Folder;
use crate::input::hexadecimal;
use crate::limits::size;

/// How frames become a network's input; a change of it is another key.
const PREPROCESSING: &str = "RGB, bicubic with antialias to a square, (x / 255 - mean) / std of ImageNet";

/// The first characters of what is about to be a file, before it is renamed.
const TEMPORARY: &str = ".filling.";

/// What is left of a killed process for so long is removed.
const LEFT_OVER: Duration = Duration::from_hours(6);

/// What a file takes besides its numbers, about.
const HEADER_BYTES: u64 = 400;

/// What features are of: another network, image size or way of storing has another key.
#[derive(Clone, Debug, PartialEq)]
pub struct CacheKey {
    about: Value,
    digest: String,
}

impl CacheKey {
    /// That of an experiment's backbones, whose weights have the digest `weights`.
    #[must_use]
    pub fn new(c: &Experiment, weights: &str) -> Self {
        let b = &c.model.backbone;
        let mut about = json!({
            "format": 1,
            "weights_sha1": weights,
            "image_size": c.model.image_size,
            "preprocessing": PREPROCESSING,
            "feature_dtype": c.data.feature_dtype.to_string(),
            "patch_size": b.patch_size,
            "embed_dim": b.embed_dim,
            "depth": b.depth,
            "num_heads": b.num_heads,
            "mlp_ratio": b.mlp_ratio,
            "layer_norm_eps": b.layer_norm_eps,
        });
        // The other precisions' features agree to more digits than f16 keeps.
        if c.run.precision == Precision::Bf16 {
            about["precision"] = c.run.precision.to_string().into();
        }
        let digest = hexadecimal(&Sha1::digest(about.to_string()));
        Self { about, digest: digest.chars().take(16).collect() }
    }

    /// The name of its folder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.digest
    }
}

/// The features of one key.
#[derive(Debug)]
pub struct FeatureCache {
    source: FeatureSource,
    dtype: FeatureDtype,
    temporary: String,
}

/// The clips of a dataset that a cache lacks, and what they take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Positions in [`Dataset::clips`].
    pub clips: Vec<usize>,
    /// How many images go through the backbones.
    pub images: usize,
    /// How large their files will be.
    pub bytes: u64,
}

impl FeatureCache {
    /// The features of `key` in the folder that the experiment names; nothing is written.
    #[must_use]
    pub fn new(cache: &Path, key: &CacheKey, c: &Experiment) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let host = gethostname::gethostname();
        let owner = format!("{} {} {}", host.to_string_lossy(), std::process::id(), now.as_nanos());
        let owner: String = hexadecimal(&Sha1::digest(owner)).chars().take(16).collect();
        let source = FeatureSource {
            folder: cache.join(key.name()),
            width: c.model.backbone.embed_dim,
            key: "data.feature_cache",
        };
        Self { source, dtype: c.data.feature_dtype, temporary: format!("{TEMPORARY}{owner}.tmp") }
    }

    /// Where its features are.
    #[must_use]
    pub fn source(&self) -> &FeatureSource {
        &self.source
    }

    /// Makes its folder, where it is not there, and says there what it is of. Removes what killed processes have left.
    ///
    /// # Errors
    /// Kind `Config` where the folder cannot be made or written to.
    pub fn make(&self, key: &CacheKey) -> Result<()> {
        let dir = &self.source.folder;
        let failed = |error: io::Error| {
            Error::io(ErrorKind::Config, "cannot write the feature cache", dir, &error)
                .hint("set data.feature_cache to a folder that you may write to")
        };
        fs::create_dir_all(dir).map_err(failed)?;
        let folder = Folder::open(dir).map_err(failed)?;
        if !folder.has("about.json") {
            let mut about = key.about.clone();
            about["made_by"] = format!("slt-run {}", env!("CARGO_PKG_VERSION")).into();
            self.put(&folder, "about.json", format!("{about:#}\n").as_bytes()).map_err(failed)?;
        }
        for entry in fs::read_dir(dir).map_err(failed)?.flatten() {
            let is_old = || entry.metadata().and_then(|file| file.modified()).is_ok_and(is_left_over);
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY)) && is_old() {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// The clips of `dataset` that it lacks, or has of other frames than there are now, on `threads` threads; `progress` is
    /// told how many of all are looked at.
    #[must_use]
    pub fn missing(
        &self,
        dataset: &Dataset,
        threads: usize,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Missing {
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            let mut found = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(clip) = dataset.clips.get(at) else { return found };
                if !self.has(dataset, clip) {
                    found.push(at);
                }
                progress(1 + done.fetch_add(1, Ordering::Relaxed), dataset.clips.len());
            }
        };
        let mut clips: Vec<usize> = on_threads(threads, work).into_iter().flatten().collect();
        clips.sort_unstable();
        let of = |&at: &usize| dataset.clips.get(at);
        let images =
            clips.iter().filter_map(of).flat_map(|clip| &clip.frames).map(|table| table.numbers().len());
        let bytes = clips.iter().filter_map(of).map(|clip| self.bytes(clip));
        Missing { images: images.sum(), bytes: bytes.sum(), clips }
    }

    /// Whether the clip's features are there, and of the frames that there are.
    #[must_use]
    pub fn has(&self, dataset: &Dataset, clip: &Clip) -> bool {
        let path = self.source.file(&clip.id);
        // Most of an empty cache is not there.
        path.exists()
            && FeatureFile::open(&path).is_ok_and(|file| {
                file.rows() == clip.rows()
                    && file.width() == self.source.width
                    && file.is_stored_as(self.dtype)
                    && file.stamp() == Some(dataset.stamp(clip).as_str())
            })
    }

    /// Writes the features (T0, D) of a clip's image streams, made of the frames that `stamp` is of.
    ///
    /// # Errors
    /// Kind `Numbers` where a number is not finite; kind `Run` where the disk fails.
    pub fn store(&self, id: &str, streams: &[Vec<f32>], stamp: &str) -> Result<()> {
        let bytes = encode(streams, self.source.width, self.dtype, stamp)
            .map_err(|error| error.context(format!("the clip {id} cannot be cached")))?;
        let path = self.source.file(id);
        let written =
            Folder::open(&self.source.folder).and_then(|folder| self.put(&folder, &file_name(id), &bytes));
        written.map_err(|error| {
            let error = Error::io(ErrorKind::Run, "cannot write", &path, &error);
            error.hint("what is cached stays; the same command goes on from there")
        })
    }

    /// The name is another process's at no time.
    fn put(&self, folder: &Folder, name: &str, bytes: &[u8]) -> io::Result<()> {
        let moved = folder
            .write_atomically(&self.temporary, bytes)
            .and_then(|()| folder.rename(&self.temporary, name));
        if moved.is_err() {
            let _ = folder.remove_file(&self.temporary);
        }
        moved
    }

    /// How large a clip's file is.
    fn bytes(&self, clip: &Clip) -> u64 {
        let each = match self.dtype {
            FeatureDtype::Float16 => 2,
            FeatureDtype::Float32 => 4,
        };
        HEADER_BYTES + (clip.frames.len() * clip.rows() * self.source.width * each) as u64
    }

    /// Refuses to begin what the disk has no room for.
    ///
    /// # Errors
    /// Kind `Config`, with what is needed and what there is.
    pub fn require_room(&self, missing: &Missing) -> Result<()> {
        let Some(free) = self.free_space().filter(|&free| free < missing.bytes) else { return Ok(()) };
        let what = format!(
            "the feature cache needs {} and {} has {} free",
            size(missing.bytes),
            self.source.folder.display(),
            size(free)
        );
        let problem = Problem::new(what);
        Err(Error::new(
            ErrorKind::Config,
            problem.hint("make room, or set data.feature_cache to a folder on another disk; float16 takes half of float32"),
        ))
    }

    /// What the disk has left for it, where the system says so.
    #[must_use]
    pub fn free_space(&self) -> Option<u64> {
        let there = self.source.folder.ancestors().find(|folder| folder.exists());
        let there: PathBuf = match there {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => ".".into(),
        };
        free_space(&there)
    }
}

#[cfg(unix)]
fn free_space(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    disk.f_bavail.checked_mul(disk.f_frsize)
}

#[cfg(not(unix))]
fn free_space(_: &Path) -> Option<u64> {
    None
}

fn is_left_over(modified: SystemTime) -> bool {
    modified.elapsed().is_ok_and(|age| age > LEFT_OVER)
}

impl Clip {
    /// The rows that its features have: one a frame, and one for a clip without frames, which is a black image.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.numbers().len().max(1)
    }
}

impl Dataset {
    /// What tells a clip's frames from others of the same names: a digest of the names, sizes and times of its files.
    #[must_use]
    pub fn stamp(&self, clip: &Clip) -> String {
        let mut digest = Sha1::new();
        for (folder, table) in self.streams.iter().zip(&clip.frames) {
            digest.update((table.numbers().len() as u64).to_le_bytes());
            for &number in table.numbers() {
                let name = table.file_name(&clip.id, number);
                let file = fs::metadata(folder.dir.join(&name)).ok();
                let modified = file.as_ref().and_then(|file| file.modified().ok());
                let since = modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
                digest.update(name);
                digest.update(file.map_or(u64::MAX, |file| file.len()).to_le_bytes());
                digest.update(since.unwrap_or_default().as_nanos().to_le_bytes());
            }
        }
        hexadecimal(&digest.finalize())
    }
}
