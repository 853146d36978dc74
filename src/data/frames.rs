//! What a stream's folder holds: one listing, kept as a compact table of frame numbers for each clip.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use super::SHOWN;
use super::features::{FeatureFile, id_of};
use crate::error::Problem;

/// More frames than any clip has: 92 hours at 30 a second.
const MOST_ROWS: u32 = 10_000_000;

/// The frames that one stream has of one clip: sorted distinct numbers, 4 bytes a frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameTable {
    numbers: Box<[u32]>,
    digits: Digits,
}

/// How the numbers are written in the files' names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Digits {
    /// Padded with zeros to this many digits; a larger number has more.
    Padded(u8),
    /// How many digits each one has, where no one rule gives them all.
    Each(Box<[u8]>),
}

impl Default for Digits {
    fn default() -> Self {
        Self::Padded(1)
    }
}

/// A number as a file's name has it: its value, and how many digits it is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Written {
    number: u32,
    digits: u8,
}

impl Written {
    /// How many digits the number has by itself.
    fn own_digits(self) -> u8 {
        self.number.checked_ilog10().map_or(1, |log| log as u8 + 1)
    }
}

impl FrameTable {
    /// Sorts the files of one clip. Of two files with one number the shorter name stays; returns those that went.
    fn new(mut files: Vec<Written>) -> (Self, Vec<Written>) {
        files.sort_unstable();
        let mut dropped = Vec::new();
        files.dedup_by(|file, before| {
            let repeats = file.number == before.number;
            dropped.extend(repeats.then_some(*file));
            repeats
        });
        let padded = files.iter().filter(|file| file.digits > file.own_digits());
        let width = padded.map(|file| file.digits).max().unwrap_or(1);
        let regular = files.iter().all(|file| file.digits == width.max(file.own_digits()));
        let digits = if regular {
            Digits::Padded(width)
        } else {
            Digits::Each(files.iter().map(|file| file.digits).collect())
        };
        let numbers: Box<[u32]> = files.iter().map(|file| file.number).collect();
        (Self { numbers, digits }, dropped)
    }

    /// That of a clip's features: a frame a row, from 0.
    fn rows(rows: usize) -> Self {
        // More than a number counts are more than any clip has.
        let rows = u32::try_from(rows).unwrap_or(u32::MAX).min(MOST_ROWS);
        Self { numbers: (0..rows).collect(), digits: Digits::default() }
    }

    /// The frame numbers, sorted and distinct.
    #[must_use]
    pub fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    /// The name of the file with frame `number` of the clip `id`.
    #[must_use]
    pub fn file_name(&self, id: &str, number: u32) -> String {
        let width = match &self.digits {
            Digits::Padded(width) => *width,
            Digits::Each(widths) => {
                let at = self.numbers.binary_search(&number).ok();
                at.and_then(|at| widths.get(at)).copied().unwrap_or(1)
            }
        };
        frame_name(id, number, width)
    }
}

fn frame_name(id: &str, number: u32, digits: u8) -> String {
    format!("{id}_f{number:0width$}.jpg", width = usize::from(digits))
}

/// Files that a listing passes over for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassedOver {
    /// How many.
    pub files: usize,
    /// The name of the first of them, in the alphabet's order; a folder's own order is anyone's.
    pub example: String,
}

impl PassedOver {
    fn add(&mut self, name: &str) {
        if self.files == 0 || name < self.example.as_str() {
            name.clone_into(&mut self.example);
        }
        self.files += 1;
    }
}

/// What one listing of a stream's folder found.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The frames of each clip, in the order of the clips.
    pub tables: Vec<FrameTable>,
    /// Files that are not named `<id>_f<digits>.jpg`.
    pub other_files: PassedOver,
    /// Names that are not UTF-8.
    pub not_utf8: PassedOver,
    /// Names whose number is beyond 4294967295.
    pub huge_numbers: PassedOver,
    /// Names that repeat a clip's number with other leading zeros; one file of each is used.
    pub repeated: PassedOver,
    /// Frames of clips that are not asked for.
    pub other_clips: usize,
}

/// What one listing of the poses' folder found.
#[derive(Debug, Default)]
pub struct PoseListing {
    /// For each clip, in the order of the clips, whether it has a file.
    pub found: Vec<bool>,
    /// Files that are not named `<id>.npz`.
    pub other_files: PassedOver,
    /// Poses of clips that are not asked for.
    pub other_clips: usize,
}

/// The id and the digits of `<id>_f<digits>.jpg`; the digits are those between the last `_f` and `.jpg`.
fn split_name(name: &str) -> Option<(&str, &str)> {
    let (id, digits) = name.strip_suffix(".jpg")?.rsplit_once("_f")?;
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some((id, digits))
}

/// Lists `dir` once and keeps the frames of `ids` (id to position among `clips` clips). Nothing is opened or
/// asked for its size: a name is all there is to know.
///
/// # Errors
/// The folder is missing, is a file, or cannot be read.
pub fn list_frames(dir: &Path, ids: &HashMap<&str, usize>, clips: usize) -> io::Result<Listing> {
    let mut files: Vec<Vec<Written>> = vec![Vec::new(); clips];
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else {
            listing.not_utf8.add(&name.to_string_lossy());
            continue;
        };
        let Some((id, digits)) = split_name(name) else {
            listing.other_files.add(name);
            continue;
        };
        let Some(clip) = ids.get(id).and_then(|&clip| files.get_mut(clip)) else {
            listing.other_clips += 1;
            continue;
        };
        match digits.parse() {
            // A file's name has at most 255 bytes.
            Ok(number) => clip.push(Written { number, digits: digits.len() as u8 }),
            Err(_) => listing.huge_numbers.add(name),
        }
    }
    for (clip, files) in files.into_iter().enumerate() {
        let (table, dropped) = FrameTable::new(files);
        listing.tables.push(table);
        if dropped.is_empty() {
            continue;
        }
        let id = ids.iter().find(|(_, at)| **at == clip).map_or("", |(id, _)| *id);
        let names = dropped.iter().map(|file| frame_name(id, file.number, file.digits));
        names.for_each(|name| listing.repeated.add(&name));
    }
    Ok(listing)
}

/// Lists a folder of features once, and reads each clip's header: a clip's frames are the rows of its file, numbered from
/// 0. What is wrong with files is the inner error: a problem each for the first ten.
///
/// # Errors
/// The folder is missing, is a file, or cannot be read.
pub fn list_features(
    dir: &Path,
    ids: &HashMap<&str, usize>,
    clips: usize,
) -> io::Result<Result<Listing, Vec<Problem>>> {
    let mut listing = Listing { tables: vec![FrameTable::default(); clips], ..Listing::default() };
    let mut problems = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(id_of) else {
            listing.other_files.add(&name.to_string_lossy());
            continue;
        };
        let Some(table) = ids.get(id).and_then(|&clip| listing.tables.get_mut(clip)) else {
            listing.other_clips += 1;
            continue;
        };
        match FeatureFile::open(&dir.join(&name)).map(|file| FrameTable::rows(file.rows())) {
            Ok(rows) => *table = rows,
            Err(error) => problems.extend(error.problems),
        }
    }
    if problems.is_empty() {
        return Ok(Ok(listing));
    }
    problems.sort_by(|a, b| a.what.cmp(&b.what));
    problems.truncate(SHOWN);
    Ok(Err(problems))
}

/// Lists the pose folder once, as [`list_frames`] does a stream's.
///
/// # Errors
/// The folder is missing, is a file, or cannot be read.
pub fn list_poses(dir: &Path, ids: &HashMap<&str, usize>, clips: usize) -> io::Result<PoseListing> {
    let mut listing = PoseListing { found: vec![false; clips], ..PoseListing::default() };
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".npz")) else {
            listing.other_files.add(&name.to_string_lossy());
            continue;
        };
        match ids.get(id).and_then(|&clip| listing.found.get_mut(clip)) {
            Some(seen) => *seen = true,
            None => listing.other_clips += 1,
        }
    }
    Ok(listing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(names: &[&str], ids: &[&str]) -> Listing {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let ids: HashMap<&str, usize> = ids.iter().enumerate().map(|(i, id)| (*id, i)).collect();
        list_frames(dir.path(), &ids, ids.len()).unwrap()
    }

    #[test]
    fn an_id_that_prefixes_another_keeps_its_own_frames() {
        let names =
            ["a_f1.jpg", "a_f1_f2.jpg", "a_f1_f10.jpg", "a_f2.jpg", "a__f3.jpg", "aa_f4.jpg", "_f5.jpg"];
        let got = list(&names, &["a", "a_f1", "a_"]);
        let numbers: Vec<&[u32]> = got.tables.iter().map(FrameTable::numbers).collect();
        assert_eq!(numbers, [&[1, 2][..], &[2, 10], &[3]]);
    }

    #[test]
    fn numbers_sort_as_numbers_and_names_come_back() {
        let regular = ["a_f9.jpg", "a_f10.jpg", "b_f0009.jpg", "b_f0010.jpg", "b_f12345.jpg", "c_f0.jpg"];
        let mixed = ["d_f007.jpg", "d_f1.jpg", "d_f12.jpg"];
        let names: Vec<&str> = regular.into_iter().chain(mixed).collect();
        let got = list(&names, &["a", "b", "c", "d"]);
        assert_eq!(got.tables[0].numbers(), [9, 10]);
        assert!(matches!(got.tables[1].digits, Digits::Padded(4)));
        assert!(matches!(got.tables[3].digits, Digits::Each(_)));
        let mut rebuilt: Vec<String> = Vec::new();
        for (id, table) in ["a", "b", "c", "d"].into_iter().zip(&got.tables) {
            rebuilt.extend(table.numbers().iter().map(|&n| table.file_name(id, n)));
        }
        let mut names: Vec<String> = names.iter().map(ToString::to_string).collect();
        names.sort();
        rebuilt.sort();
        assert_eq!(rebuilt, names);
    }

    #[test]
    fn odd_names_are_counted_and_one_of_two_equals_is_kept() {
        let names = [
            "a_f1.jpg",
            "a_f01.jpg",
            "a_f001.jpg",
            "a_f4294967295.jpg",
            "a_f4294967296.jpg",
            "a_f.jpg",
            "a_f1.JPG",
            "a_f-1.jpg",
            "a_f+2.jpg",
            "Thumbs.db",
            "a_f٣.jpg",
            "b_f1.jpg",
        ];
        let got = list(&names, &["a"]);
        assert_eq!(got.tables[0].numbers(), [1, u32::MAX]);
        assert_eq!(got.tables[0].file_name("a", 1), "a_f1.jpg");
        let seen = |passed: PassedOver| (passed.files, passed.example);
        assert_eq!(seen(got.repeated), (2, "a_f001.jpg".into()));
        assert_eq!(seen(got.huge_numbers), (1, "a_f4294967296.jpg".into()));
        assert_eq!(seen(got.other_files), (6, "Thumbs.db".into()));
        assert_eq!(got.other_clips, 1);
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_utf8_are_counted() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(std::ffi::OsStr::from_bytes(b"a_\xff_f1.jpg")), b"").unwrap();
        let got = list_frames(dir.path(), &HashMap::from([("a", 0)]), 1).unwrap();
        assert_eq!((got.not_utf8.files, got.not_utf8.example.as_str()), (1, "a_\u{fffd}_f1.jpg"));
        assert!(got.tables[0].numbers().is_empty());
    }

    #[test]
    fn poses_are_found_and_the_rest_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.npz", "a.npz", "c.npy", "c.NPZ", ".npz"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let got = list_poses(dir.path(), &HashMap::from([("c", 0), ("a", 1)]), 2).unwrap();
        assert_eq!((got.found, got.other_clips), (vec![false, true], 2));
        assert_eq!(got.other_files, PassedOver { files: 2, example: "c.NPZ".into() });
    }

    #[test]
    fn a_folder_that_is_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(list_frames(&dir.path().join("none"), &HashMap::new(), 0).is_err());
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        assert!(list_frames(&file, &HashMap::new(), 0).is_err());
        assert!(list_poses(&file, &HashMap::new(), 0).is_err());
    }
}
