//! What the clips' files are, wherever they lie: a digest a clip, which a copy of the folders leaves as it is.

use super::dataset::{Clip, Dataset};
use super::features::{FeatureFile, FeatureSource};
use super::image::ImageDecoder;
use super::{SHOWN, on_threads, some_of};
use crate::error::{Problem, count};
use crate::input;
use sha1::{Digest, Sha1};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The files of a dataset's clips, as far as that is known without decoding them: of each frame its number and size; of
/// poses, and of each stream's first frame, the bytes too (those are opened before every run anyway); of features that were
/// made elsewhere, the first and last rows. Neither the folders' names nor the files' times are part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// A digest of each clip, in the order of [`Dataset::clips`].
    pub clips: Vec<u64>,
    /// The size of all files together, in bytes.
    pub bytes: u64,
}

impl Contents {
    /// The digests in 16 hexadecimal digits a clip.
    #[must_use]
    pub fn digests(&self) -> String {
        self.clips.iter().fold(String::new(), |text, clip| text + &format!("{clip:016x}"))
    }

    /// What [`Self::digests`] and the size say; `None` where the digests are none.
    #[must_use]
    pub fn from_digests(digests: &str, bytes: u64) -> Option<Self> {
        let (clips, rest) = digests.as_bytes().as_chunks::<16>();
        let clip = |digits: &[u8; 16]| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        let clips = clips.iter().map(clip).collect::<Option<_>>()?;
        rest.is_empty().then_some(Self { clips, bytes })
    }

    /// Size and digest of all files, for a message.
    #[must_use]
    pub fn summary(&self) -> String {
        let digest = input::hexadecimal(&Sha1::digest(self.digests()));
        format!("{} ({})", count(self.bytes as usize, "byte"), digest.get(..8).unwrap_or_default())
    }

    /// The clips, by their positions, whose files are others than in `earlier`.
    #[must_use]
    pub fn others(&self, earlier: &Self) -> Vec<usize> {
        (0..self.clips.len()).filter(|&at| self.clips.get(at) != earlier.clips.get(at)).collect()
    }
}

impl Dataset {
    /// What the clips' files are, on `threads` threads. `progress` is told how many clips of all are done. A file that
    /// cannot be read is another one than any that can: to say why is the matter of [`Dataset::verify`].
    #[must_use]
    pub fn contents(&self, threads: usize, progress: &(dyn Fn(usize, usize) + Sync)) -> Contents {
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            let mut found = Vec::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(clip) = self.clips.get(at) else { return found };
                found.push((at, self.clip_contents(clip)));
                progress(1 + done.fetch_add(1, Ordering::Relaxed), self.clips.len());
            }
        };
        let found = on_threads(threads, work);
        let mut contents = Contents { clips: vec![0; self.clips.len()], bytes: 0 };
        for (at, (digest, bytes)) in found.into_iter().flatten() {
            contents.clips[at] = digest;
            contents.bytes += bytes;
        }
        contents
    }

    /// `clips`, which are positions, counted and named: `2 of 24 clips: a, b`.
    #[must_use]
    pub fn named(&self, clips: &[usize]) -> String {
        let ids = clips.iter().filter_map(|&at| self.clips.get(at)).map(|clip| clip.id.as_str());
        let ids: Vec<&str> = ids.collect();
        format!("{} of {}: {}", ids.len(), count(self.clips.len(), "clip"), some_of(&ids))
    }

    /// Decodes every frame and the pose of the first ten of `clips`, which are positions: all that is wrong with them.
    #[must_use]
    pub fn broken(&self, clips: &[usize]) -> Vec<Problem> {
        let (mut decoder, mut image) = (ImageDecoder::default(), vec![0; self.sizes.image_bytes()]);
        let mut found = Vec::new();
        for clip in clips.iter().take(SHOWN).filter_map(|&at| self.clips.get(at)) {
            if let Some(source) = self.features().filter(|_| self.has_made_features()) {
                found.extend(source.open(&clip.id).err().into_iter().flat_map(|error| error.problems));
            }
            let images = self.streams.iter().filter(|_| !self.has_made_features());
            for (stream, table) in images.zip(&clip.frames) {
                let paths =
                    table.numbers().iter().map(|&number| stream.dir.join(table.file_name(&clip.id, number)));
                let read = paths.map(|path| decoder.read(&path, self.sizes.image_size, &mut image));
                found.extend(read.filter_map(Result::err).flat_map(|error| error.problems));
            }
            if clip.has_pose
                && let Err(error) = self.read_pose(clip)
            {
                found.extend(error.problems);
            }
        }
        found
    }

    /// A clip's digest and size.
    fn clip_contents(&self, clip: &Clip) -> (u64, u64) {
        let (mut digest, mut bytes) = (Sha1::new(), 0_u64);
        let made = self.features().filter(|_| self.has_made_features());
        if let Some(source) = made {
            bytes += add_features(&mut digest, source, &clip.id);
        }
        let images = self.streams.iter().filter(|_| made.is_none());
        for (stream, table) in images.zip(&clip.frames) {
            digest.update((table.numbers().len() as u64).to_le_bytes());
            for (at, &number) in table.numbers().iter().enumerate() {
                let path = stream.dir.join(table.file_name(&clip.id, number));
                digest.update(number.to_le_bytes());
                bytes += if at == 0 { add_file(&mut digest, &path) } else { add_size(&mut digest, &path) };
            }
        }
        digest.update([u8::from(clip.has_pose)]);
        if clip.has_pose {
            bytes += add_file(&mut digest, &self.poses.dir.join(format!("{}.npz", clip.id)));
        }
        let digest: [u8; 20] = digest.finalize().into();
        (digest.first_chunk().map_or(0, |first| u64::from_be_bytes(*first)), bytes)
    }
}

/// Adds what a file holds; its size, 0 for one that cannot be read.
fn add_file(digest: &mut Sha1, path: &Path) -> u64 {
    let Ok((content, size)) = input::sha1(path) else { return add_missing(digest) };
    digest.update(content);
    digest.update(size.to_le_bytes());
    size
}

/// Adds what tells a clip's features from others: the file's size, its header, and the first and last rows; its size.
fn add_features(digest: &mut Sha1, source: &FeatureSource, id: &str) -> u64 {
    let path = source.file(id);
    let sample = FeatureFile::open(&path).and_then(|mut file| file.sample());
    let Ok(sample) = sample else { return add_missing(digest) };
    digest.update(sample);
    add_size(digest, &path)
}

/// Adds how large a file is; its size, 0 for one that is not there.
fn add_size(digest: &mut Sha1, path: &Path) -> u64 {
    let Ok(file) = fs::metadata(path) else { return add_missing(digest) };
    digest.update(file.len().to_le_bytes());
    file.len()
}

fn add_missing(digest: &mut Sha1) -> u64 {
    digest.update(u64::MAX.to_le_bytes());
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::for_tests;
    use crate::demo::{Options, draw};
    use std::time::{Duration, SystemTime};

    fn open(root: &Path) -> Dataset {
        let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
        let fields = [
            ("data.face_dir", "face"),
            ("data.hand_left_dir", "hand_l"),
            ("data.hand_right_dir", "hand_r"),
            ("data.pose_dir", "pose"),
            ("data.metadata_csv", "subs.csv"),
            ("data.train_index", "index/train.csv"),
            ("data.val_index", "index/val.csv"),
        ]
        .map(|(key, name)| (key, path(name)));
        let settings: Vec<_> = fields.iter().map(|(key, path)| (*key, path.as_str())).collect();
        let c = for_tests(&settings);
        Dataset::open(&c.data, &c.model, 0).unwrap()
    }

    fn contents(root: &Path) -> Contents {
        let dataset = open(root);
        let one = dataset.contents(1, &|_, _| ());
        assert_eq!(dataset.contents(3, &|_, _| ()), one);
        one
    }

    fn drawn() -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("data");
        draw(
            &root,
            &Options { clips: 6, frames: 3, size: 16, signs: 2, seed: 3, translate: false },
            &|_, _| (),
        )
        .unwrap();
        (folder, root)
    }

    /// The file of a clip's last frame of the face, or its pose.
    fn file(root: &Path, clip: &Clip, pose: bool) -> std::path::PathBuf {
        if pose {
            return root.join("pose").join(format!("{}.npz", clip.id));
        }
        let last = *clip.frames[0].numbers().last().unwrap();
        root.join("face").join(clip.frames[0].file_name(&clip.id, last))
    }

    #[test]
    fn a_copy_is_the_same_and_times_are_nothing() {
        let (_folder, root) = drawn();
        let before = contents(&root);
        assert_eq!(before.clips.len(), 6);
        let moved = root.with_file_name("elsewhere");
        fs::rename(&root, &moved).unwrap();
        let old = SystemTime::now() - Duration::from_hours(1000);
        for entry in fs::read_dir(moved.join("face")).unwrap() {
            fs::File::options().append(true).open(entry.unwrap().path()).unwrap().set_modified(old).unwrap();
        }
        assert_eq!(contents(&moved), before);
        assert_eq!(Contents::from_digests(&before.digests(), before.bytes), Some(before));
        for text in ["0", "0123456789abcdeg", "0123456789abcdef0"] {
            assert_eq!(Contents::from_digests(text, 0), None, "{text}");
        }
    }

    #[test]
    fn other_files_of_the_same_names_are_others() {
        let (_folder, root) = drawn();
        let (before, dataset) = (contents(&root), open(&root));
        let differs = |path: &Path, bytes: &[u8], clip: &str| {
            let good = fs::read(path).unwrap();
            fs::write(path, bytes).unwrap();
            let others = contents(&root).others(&before);
            assert_eq!(dataset.named(&others), format!("1 of 6 clips: {clip}"), "{}", path.display());
            fs::write(path, good).unwrap();
            assert_eq!(contents(&root).others(&before), [0; 0]);
        };
        let clip = dataset.clips.iter().find(|clip| clip.frames[0].numbers().len() > 1).unwrap();
        // A later frame by its size, a pose and a first frame by every byte.
        let frame = file(&root, clip, false);
        differs(&frame, &[fs::read(&frame).unwrap(), vec![0]].concat(), &clip.id);
        let first = root.join("face").join(clip.frames[0].file_name(&clip.id, clip.frames[0].numbers()[0]));
        for path in [file(&root, clip, true), first] {
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            differs(&path, &bytes, &clip.id);
        }
    }

    #[test]
    fn what_cannot_be_read_is_another_file() {
        let (_folder, root) = drawn();
        let (before, dataset) = (contents(&root), open(&root));
        assert_eq!(dataset.broken(&[0, 1, 2, 3, 4, 5]), []);
        let frame = file(&root, &dataset.clips[0], false);
        fs::write(&frame, b"\xff\xd8 and no more").unwrap();
        let broken = dataset.broken(&[0, 1]);
        assert!(
            matches!(broken.as_slice(), [one] if one.what.contains(frame.to_str().unwrap())),
            "{broken:?}"
        );
        fs::remove_file(frame).unwrap();
        let gone = dataset.contents(2, &|_, _| ());
        assert_ne!(gone.clips[0], before.clips[0]);
        assert_eq!(gone.clips[1..], before.clips[1..]);
    }
}
