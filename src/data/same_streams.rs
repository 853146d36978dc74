//! Two streams that are one by mistake: the same folder given twice, or a folder that holds another one's files.

use super::dataset::Dataset;
use super::frames::FrameTable;
use crate::input;
use std::io::Read;
use std::path::{Path, PathBuf};

/// How many files of a pair of streams are compared: enough to tell a copy from a few frames that happen to be alike,
/// such as black ones.
const COMPARED: usize = 32;
/// How much of a file is compared.
const MAX_BYTES: u64 = 1 << 20;

impl Dataset {
    /// A warning for each pair of image streams that have one folder, or of which most files are the same: links, or
    /// copies. A few files, spread over the clips, are compared, and only read where they are of one size.
    #[must_use]
    pub fn same_streams(&self) -> Vec<String> {
        let mut found = Vec::new();
        // A file of features is of all streams.
        if self.has_made_features() {
            return found;
        }
        for (second, b) in self.streams.iter().enumerate() {
            for (first, a) in self.streams.iter().enumerate().take(second) {
                if is_one_folder(&a.dir, &b.dir) {
                    found.push(format!("{a} and {b} are one folder: is one of them wrong?"));
                } else if let Some((same, compared)) = self.same_files(first, second) {
                    let of = format!("{same} of the {compared} that were compared");
                    found.push(format!("{a} and {b} hold the same files, {of}"));
                }
            }
        }
        found
    }

    /// How many of the compared files of two streams are the same, and how many were compared; nothing where that is no
    /// more than half.
    fn same_files(&self, first: usize, second: usize) -> Option<(usize, usize)> {
        let (mut same, mut compared) = (0, 0);
        for [a, b] in self.pairs(first, second) {
            let Some(equal) = have_same_bytes(&a, &b) else { continue };
            compared += 1;
            same += usize::from(equal);
        }
        (2 * same > compared).then_some((same, compared))
    }

    /// Files of the same frame of the same clip in two streams.
    fn pairs(&self, first: usize, second: usize) -> Vec<[PathBuf; 2]> {
        let both = self.clips.iter().filter_map(|clip| {
            let [a, b] = [first, second].map(|stream| clip.frames.get(stream));
            Some((clip, a?, b?)).filter(|(_, a, b)| !a.numbers().is_empty() && !b.numbers().is_empty())
        });
        let both: Vec<_> = both.collect();
        let (step, each) = (both.len().div_ceil(COMPARED).max(1), (COMPARED / both.len().max(1)).max(1));
        let mut pairs = Vec::new();
        for (clip, a, b) in both.into_iter().step_by(step) {
            for number in
                spread(a.numbers(), each).into_iter().filter(|n| b.numbers().binary_search(n).is_ok())
            {
                let path = |stream: usize, table: &FrameTable| {
                    self.streams.get(stream).map(|s| s.dir.join(table.file_name(&clip.id, number)))
                };
                pairs.extend(path(first, a).zip(path(second, b)).map(|(a, b)| [a, b]));
            }
        }
        pairs
    }
}

/// Up to `each` of `numbers`, evenly spread.
fn spread(numbers: &[u32], each: usize) -> Vec<u32> {
    let at = |i: usize| numbers.get((2 * i + 1) * numbers.len() / (2 * each)).copied();
    let mut spread: Vec<u32> = (0..each).filter_map(at).collect();
    spread.dedup();
    spread
}

fn is_one_folder(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// Whether two files begin with the same mebibyte and are of one size; nothing where one cannot be read.
fn have_same_bytes(a: &Path, b: &Path) -> Option<bool> {
    let ((a, a_size), (b, b_size)) = (input::open(a).ok()?, input::open(b).ok()?);
    if a_size != b_size {
        return Some(false);
    }
    let read = |file: std::fs::File| {
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).ok().map(|_| bytes)
    };
    Some(read(a)? == read(b)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_spread_over_the_clip() {
        let numbers: Vec<u32> = (10..20).collect();
        assert_eq!(spread(&numbers, 1), [15]);
        assert_eq!(spread(&numbers, 3), [11, 15, 18]);
        assert_eq!(spread(&[4, 5], 32), [4, 5]);
        assert!(spread(&[], 4).is_empty());
    }

    #[test]
    fn files_are_compared_by_size_and_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, bytes) in [("a", "xyz"), ("b", "xyz"), ("c", "xyw"), ("d", "xyzw")] {
            std::fs::write(path(name), bytes).unwrap();
        }
        let same = |a, b| have_same_bytes(&path(a), &path(b));
        assert_eq!((same("a", "b"), same("a", "c"), same("a", "d")), (Some(true), Some(false), Some(false)));
        assert_eq!(same("a", "none"), None);
        assert!(is_one_folder(&path("."), dir.path()) && !is_one_folder(&path("a"), &path("b")));
    }
}
