//! Opening a dataset's files before a run: what cannot be read, summed up, and what is odd about the files.

use super::dataset::Dataset;
use super::features::{FeatureFile, file_name};
use super::image::ImageDecoder;
use super::{SHOWN, on_threads, some_of_many};
use crate::error::{Error, Problem, count};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many of a dataset's images [`Dataset::verify`] opens. It opens every pose in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The first of each clip in each stream.
    FirstImages,
    /// All that the clips have.
    EveryImage,
}

/// What came of opening a dataset's files.
#[derive(Debug, Default)]
pub struct Verified {
    /// What cannot be read. Files of one stream that have the same thing wrong with them are one problem, with their
    /// number and ten examples; in the order of the first clip of each.
    pub problems: Vec<Problem>,
    /// What is odd, and keeps no file from being read.
    pub warnings: Vec<String>,
    /// How many images were opened.
    pub images: usize,
    /// How many poses were opened.
    pub poses: usize,
    /// Positions of the clips that a file of cannot be read.
    bad: BTreeSet<usize>,
}

impl Verified {
    /// A problem for each split of `dataset` of which no clip can be loaded.
    #[must_use]
    pub fn lost_splits(&self, dataset: &Dataset) -> Vec<Problem> {
        let is_lost = |split: &[usize]| split.iter().all(|clip| self.bad.contains(clip));
        let lost = dataset.splits().filter(|(_, _, split)| is_lost(split));
        let problem = |(name, key, split): (&str, &str, &[usize])| {
            Problem::new(format!(
                "no clip of the {name} split ({key}) is left: none of {} can be loaded",
                split.len()
            ))
        };
        lost.map(problem).collect()
    }
}

/// How many images a thread opens before it says how far it is.
const IMAGES_AT_A_TIME: usize = 64;

/// Some files of one clip, for one thread.
struct Piece {
    clip: usize,
    /// A position in `Dataset::streams`; behind them come the poses.
    source: usize,
    /// Which of the clip's files.
    files: Range<usize>,
}

/// A place among all files: clip, source, number.
type Place = (usize, usize, u32);

/// What makes problems the same: the source, and what is said apart from the numbers in it.
type Sort = (usize, Vec<String>, Option<String>);

/// Problems of one sort.
#[derive(Default)]
struct Group {
    files: usize,
    /// Whether all have the same causes, numbers included.
    alike: bool,
    /// The first ten files, with their names.
    first: BTreeMap<Place, (String, Problem)>,
}

#[derive(Default)]
struct Findings {
    groups: BTreeMap<Sort, Group>,
    bad: BTreeSet<usize>,
    /// A limit of this process that was met: it strikes whichever files are being read.
    limit: Option<Problem>,
}

impl Dataset {
    /// Opens the files on `threads` threads, as the loader does: every pose, and as many images as `depth` says; the
    /// result does not depend on the number of threads. `progress` is told how many files of all are done, by
    /// whichever thread is done with some.
    #[must_use]
    pub fn verify(&self, threads: usize, depth: Depth, progress: &(dyn Fn(usize, usize) + Sync)) -> Verified {
        let pieces = self.pieces(depth);
        let all = pieces.iter().map(|piece| piece.files.len()).sum();
        let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let work = || {
            let (mut decoder, mut found) = (ImageDecoder::default(), Findings::default());
            let mut image = vec![0; self.sizes.image_bytes()];
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.open_piece(piece, &mut decoder, &mut image, &mut found);
                let files = piece.files.len();
                progress(files + done.fetch_add(files, Ordering::Relaxed), all);
            }
            found
        };
        let mut found = Findings::default();
        for other in on_threads(threads, work) {
            found.merge(other);
        }
        let poses = self.streams.len();
        let mut opened = vec![0; poses + 1];
        for piece in &pieces {
            opened.get_mut(piece.source).into_iter().for_each(|number| *number += piece.files.len());
        }
        let (bad, limit) = (found.bad.clone(), found.limit.clone());
        let problems = found.into_problems(|source| self.opened(source, &opened));
        Verified {
            problems: limit.map_or(problems, |limit| vec![limit]),
            warnings: self.same_streams(),
            images: opened.iter().take(poses).sum(),
            poses: opened.get(poses).copied().unwrap_or(0),
            bad,
        }
    }

    /// `24 images opened in data/face (data.face_dir)`.
    fn opened(&self, source: usize, numbers: &[usize]) -> String {
        let number = numbers.get(source).copied().unwrap_or(0);
        let noun = if self.has_made_features() { "file" } else { "image" };
        let (noun, folder) = self.streams.get(source).map_or(("pose", &self.poses), |folder| (noun, folder));
        format!("{} opened in {folder}", count(number, noun))
    }

    fn pieces(&self, depth: Depth) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (at, clip) in self.clips.iter().enumerate() {
            // A file of features is of all streams.
            let sources = if self.has_made_features() { 1 } else { clip.frames.len() };
            for (source, table) in clip.frames.iter().enumerate().take(sources) {
                let images = match depth {
                    Depth::FirstImages => table.numbers().len().min(1),
                    Depth::EveryImage => table.numbers().len(),
                };
                let parts = (0..images).step_by(IMAGES_AT_A_TIME);
                let files = |start: usize| start..images.min(start + IMAGES_AT_A_TIME);
                pieces.extend(parts.map(|start| Piece { clip: at, source, files: files(start) }));
            }
            if clip.has_pose {
                pieces.push(Piece { clip: at, source: self.streams.len(), files: 0..1 });
            }
        }
        pieces
    }

    fn open_piece(&self, piece: &Piece, decoder: &mut ImageDecoder, image: &mut [u8], found: &mut Findings) {
        let Some(clip) = self.clips.get(piece.clip) else { return };
        let mut note = |number, name: String, error: Error| {
            for problem in error.problems {
                found.add((piece.clip, piece.source, number), name.clone(), problem);
            }
        };
        let Some((stream, table)) = self.streams.get(piece.source).zip(clip.frames.get(piece.source)) else {
            if let Err(error) = self.read_pose(clip) {
                note(0, format!("{}.npz", clip.id), error);
            }
            return;
        };
        if let Some(source) = self.features().filter(|_| self.has_made_features()) {
            let read = |mut file: FeatureFile| {
                let mut row = vec![0.0; source.width];
                let rows: Vec<usize> = piece.files.clone().collect();
                (0..self.streams.len())
                    .try_for_each(|stream| rows.iter().try_for_each(|&at| file.read(stream, &[at], &mut row)))
            };
            if let Err(error) = source.open(&clip.id).and_then(read) {
                note(0, file_name(&clip.id), error);
            }
            return;
        }
        for &number in table.numbers().get(piece.files.clone()).unwrap_or_default() {
            let name = table.file_name(&clip.id, number);
            if let Err(error) = decoder.read(&stream.dir.join(&name), self.sizes.image_size, image) {
                note(number, name, error);
            }
        }
    }
}

impl Findings {
    fn add(&mut self, place: Place, name: String, problem: Problem) {
        if problem.limit.is_some() {
            self.limit = Some(problem);
            return;
        }
        self.bad.insert(place.0);
        let causes = problem.causes.iter().map(|cause| without_numbers(cause)).collect();
        let group = Group { files: 1, alike: true, first: BTreeMap::from([(place, (name, problem))]) };
        let hint = group.first.values().next().and_then(|(_, problem)| problem.hint.clone());
        self.merge_group((place.1, causes, hint), group);
    }

    fn merge(&mut self, other: Self) {
        self.bad.extend(other.bad);
        self.limit = self.limit.take().or(other.limit);
        other.groups.into_iter().for_each(|(sort, group)| self.merge_group(sort, group));
    }

    fn merge_group(&mut self, sort: Sort, mut other: Group) {
        let group = self.groups.entry(sort).or_insert_with(|| Group { alike: true, ..Group::default() });
        let causes = |group: &Group| group.first.values().next().map(|(_, problem)| problem.causes.clone());
        let same = group.files == 0 || causes(group) == causes(&other);
        group.alike = group.alike && other.alike && same;
        group.files += other.files;
        group.first.append(&mut other.first);
        while group.first.len() > SHOWN {
            group.first.pop_last();
        }
    }

    /// The first ten sorts, and a word on the rest. `opened` says what was opened of a source.
    fn into_problems(self, opened: impl Fn(usize) -> String) -> Vec<Problem> {
        let mut groups: Vec<(usize, Group)> =
            self.groups.into_iter().map(|((source, ..), group)| (source, group)).collect();
        groups.sort_by_key(|(_, group)| group.first.keys().next().copied());
        let rest = groups.split_off(groups.len().min(SHOWN));
        let mut problems: Vec<Problem> =
            groups.into_iter().map(|(source, group)| group.into_problem(&opened(source))).collect();
        if !rest.is_empty() {
            let files: usize = rest.iter().map(|(_, group)| group.files).sum();
            let first = rest.iter().filter_map(|(_, group)| group.first.values().next());
            let lines: Vec<String> = first.map(|(_, problem)| problem.line()).collect();
            problems.push(
                Problem::new(format!("{} cannot be read either", count(files, "more file")))
                    .cause(listed(&lines, files))
                    .hint("mend the others first: these may have the same cause"),
            );
        }
        problems
    }
}

impl Group {
    fn into_problem(self, opened: &str) -> Problem {
        let files = self.files;
        let mut first = self.first.into_values();
        let Some((name, problem)) = first.next() else { return Problem::new("no file") };
        if files == 1 {
            return problem;
        }
        let Problem { causes, hint, .. } = problem;
        let mut whole = Problem::new(format!("cannot read {files} of the {opened}"));
        let rest: Vec<(String, Problem)> = first.collect();
        if self.alike {
            let names: Vec<String> =
                std::iter::once(name).chain(rest.into_iter().map(|(name, _)| name)).collect();
            whole.causes = causes;
            whole = whole.cause(format!("for example {}", some_of_many(&names, files - names.len())));
        } else {
            let line = |name: &str, causes: &[String]| format!("{name}: {}", causes.join(": "));
            let lines: Vec<String> = std::iter::once(line(&name, &causes))
                .chain(rest.iter().map(|(name, problem)| line(name, &problem.causes)))
                .collect();
            whole = whole.cause(listed(&lines, files));
        }
        whole.hint = hint;
        whole
    }
}

/// The first ten lines of `all`.
fn listed(lines: &[String], all: usize) -> String {
    let shown = lines.len().min(SHOWN);
    let more = (all > shown).then(|| format!("and {} more", all - shown));
    let lines = lines.iter().take(SHOWN).cloned().chain(more);
    lines.collect::<Vec<_>>().join("\n")
}

/// `text` with 0 for every number, so that what differs in numbers alone is the same.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' if out.ends_with('0') => {}
            '0'..='9' => out.push('0'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(cause: &str) -> Problem {
        Problem::new("cannot read the pose x").cause(cause).hint("replace it")
    }

    fn problems(found: &[(Place, Problem)]) -> Vec<String> {
        let mut all = Findings::default();
        for (place, problem) in found {
            let mut one = Findings::default();
            one.add(*place, format!("{}.npz", place.0), problem.clone());
            all.merge(one);
        }
        all.into_problems(|source| format!("40 poses opened in p{source}"))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn what_many_files_have_is_one_problem() {
        let many: Vec<_> = (0..24).rev().map(|clip| ((clip, 3, 0), problem("it has 26 values"))).collect();
        assert_eq!(
            problems(&many),
            [
                "error: cannot read 24 of the 40 poses opened in p3\n  caused by: it has 26 values\n  caused by: for example \
              0.npz, 1.npz, 2.npz, 3.npz, 4.npz, 5.npz, 6.npz, 7.npz, 8.npz, 9.npz and 14 more\n  hint: replace it"
            ]
        );
    }

    #[test]
    fn numbers_are_shown_with_each_file_and_sorts_stay_apart() {
        let found = [
            ((5, 3, 0), problem("row 7 is NaN")),
            ((1, 3, 0), problem("row 12 is NaN")),
            ((2, 3, 0), problem("it is gone")),
            ((2, 1, 4), problem("row 1 is NaN")),
        ];
        let got = problems(&found);
        assert_eq!(got.len(), 3, "{got:?}");
        assert!(
            got[0].contains(
                "2 of the 40 poses opened in p3\n  caused by: 1.npz: row 12 is NaN\n    5.npz: row 7 is NaN"
            ),
            "{}",
            got[0]
        );
        assert!(got[1].contains("row 1 is NaN") && got[2].contains("it is gone"), "{got:?}");
    }

    #[test]
    fn ten_sorts_are_enough() {
        let letters = ('a'..='m').enumerate();
        let found: Vec<_> =
            letters.map(|(clip, c)| ((clip, 0, 0), problem(&format!("it holds {c}")))).collect();
        let got = problems(&found);
        assert_eq!(got.len(), 11);
        assert!(
            got[10].contains("3 more files cannot be read either") && got[10].contains("holds m"),
            "{}",
            got[10]
        );
    }
}
