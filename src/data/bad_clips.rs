//! Clips that break after the start of a run that is to go on without them (`data.on_bad_clip = "skip"`).

use super::some_of;
use crate::error::{Error, ErrorKind, Problem, Result};
use std::collections::BTreeMap;

/// A clip that a batch had to do without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedClip {
    /// The `video_id`.
    pub id: String,
    /// The file, and what is wrong with it, on one line.
    pub problem: String,
}

impl SkippedClip {
    /// The clip `id`, which `error` kept from being loaded.
    #[must_use]
    pub fn new(id: &str, error: &Error) -> Self {
        let problem =
            error.problems.iter().map(Problem::line).collect::<Vec<_>>().join("; ").replace('\n', " ");
        Self { id: id.to_owned(), problem }
    }
}

/// The clips that a run has skipped at least once, and how many it may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadClips {
    clips: usize,
    ids: BTreeMap<String, String>,
}

impl BadClips {
    /// Of a dataset of `clips` distinct clips, those of training and validation together.
    #[must_use]
    pub fn new(clips: usize) -> Self {
        Self { clips, ids: BTreeMap::new() }
    }

    /// How many may be skipped: 1 % of the clips, rounded down, and 1 where there are fewer than a hundred: in a small
    /// dataset, too, a single file is no reason to stop for somebody who asked not to.
    #[must_use]
    pub fn limit(&self) -> usize {
        (self.clips / 100).max(1)
    }

    /// Counts `clip`, unless it is counted already; says whether it was new.
    ///
    /// # Errors
    /// A data error that lists the clips and their files, once there are more than [`BadClips::limit`].
    pub fn add(&mut self, clip: &SkippedClip) -> Result<bool> {
        let new = self.ids.insert(clip.id.clone(), clip.problem.clone()).is_none();
        if self.ids.len() <= self.limit() { Ok(new) } else { Err(self.too_many()) }
    }

    /// The clips, by `video_id`, and what was wrong with each when it was last seen.
    #[must_use]
    pub fn ids(&self) -> &BTreeMap<String, String> {
        &self.ids
    }

    /// Takes over what an earlier part of the run had counted.
    pub fn restore(&mut self, ids: impl IntoIterator<Item = (String, String)>) {
        self.ids.extend(ids);
    }

    /// The error of a pass over a split, of which `ids` are the clips and which comes from the field `key`, that had to
    /// do without all of them: there is no loss of nothing.
    #[must_use]
    pub fn none_left(&self, split: &str, key: &str, ids: &[String]) -> Error {
        let line = |id: &String| self.ids.get(id).map(|problem| format!("{id}: {problem}"));
        let lines: Vec<String> = ids.iter().filter_map(line).collect();
        let what =
            format!("no clip of the {split} split ({key}) is left: none of {} can be loaded", ids.len());
        let hint = "put the files back, and go on with --resume; data.on_bad_clip = \"skip\" skips some clips, not all";
        Error::new(ErrorKind::Data, Problem::new(what).cause(some_of(&lines)).hint(hint))
    }

    fn too_many(&self) -> Error {
        let what = format!(
            "{} of {} clips cannot be loaded, and data.on_bad_clip = \"skip\" allows for {} (1 %)",
            self.ids.len(),
            self.clips,
            self.limit()
        );
        let lines: Vec<String> = self.ids.iter().map(|(id, problem)| format!("{id}: {problem}")).collect();
        let problem = Problem::new(what).cause(some_of(&lines));
        Error::new(ErrorKind::Data, problem.hint("put the files back, or take the clips out of the indices"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(id: &str) -> SkippedClip {
        let error = Error::data("cannot read x.jpg").cause("it is empty").hint("replace it");
        SkippedClip::new(id, &error)
    }

    #[test]
    fn one_in_a_hundred_is_allowed_and_one_in_any_case() {
        let limits = [0, 1, 60, 100, 199, 200, 8459].map(|clips| BadClips::new(clips).limit());
        assert_eq!(limits, [1, 1, 1, 1, 1, 2, 84]);
    }

    #[test]
    fn a_clip_counts_once_and_one_too_many_is_an_error() {
        let mut bad = BadClips::new(200);
        assert_eq!(
            ["a", "b", "a"].map(|id| bad.add(&clip(id)).unwrap()),
            [true, true, false],
            "the third was counted before"
        );
        let error = bad.add(&clip("c")).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind, ErrorKind::Data);
        assert!(text.contains("3 of 200 clips") && text.contains("allows for 2"), "{text}");
        assert!(text.contains("a: cannot read x.jpg: it is empty, b: ") && text.contains("hint: "), "{text}");
    }

    #[test]
    fn a_split_without_a_clip_names_its_own() {
        let mut bad = BadClips::new(300);
        assert_eq!(["a", "v"].map(|id| bad.add(&clip(id)).unwrap()), [true, true]);
        let error = bad.none_left("validation", "data.val_index", &["v".to_owned()]);
        let text = error.to_string();
        assert_eq!(error.kind, ErrorKind::Data);
        assert!(text.contains("the validation split (data.val_index) is left: none of 1 "), "{text}");
        assert!(text.contains("v: cannot read x.jpg") && !text.contains("a: cannot"), "{text}");
    }

    #[test]
    fn counts_go_on_after_a_resume() {
        let mut first = BadClips::new(100);
        first.add(&clip("a")).unwrap();
        let mut second = BadClips::new(100);
        second.restore(first.ids().clone());
        assert_eq!(second, first);
        assert!(!second.add(&clip("a")).unwrap());
        assert!(second.add(&clip("b")).is_err());
    }
}
