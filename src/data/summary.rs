//! What a person wants to know of a dataset before a run of days: counts.

use super::contents::repeated;
use super::dataset::{Clip, Dataset};
use super::frames::FrameTable;
use super::sampling::frame_at;
use crate::text::normalize;
use std::collections::HashSet;

/// A split: the lengths of its clips in frames (`T0`), and how they are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplitSummary {
    /// How many clips.
    pub clips: usize,
    /// Of the shortest clip.
    pub min: usize,
    /// Of the clip in the middle; the longer one of two.
    pub median: usize,
    /// Of the longest clip.
    pub max: usize,
    /// Of all clips together.
    pub total: usize,
    /// Clips that are longer than `model.sequence_length`, so that frames are skipped.
    pub longer_than_sequence: usize,
    /// How many frames the clips that have images are shown as: `model.sequence_length` each.
    pub shown: usize,
    /// How many of these repeat the clip's last frame.
    pub repeated: usize,
}

/// What one image stream lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamSummary {
    /// The stream's.
    pub name: &'static str,
    /// Frames that are there.
    pub frames: usize,
    /// Clips that have no frame in it.
    pub empty: usize,
    /// Clips in which it ends before the clip does: its last frame is shown from there on.
    pub short: usize,
    /// Clips that it has frames of, with gaps in them.
    pub with_gaps: usize,
    /// Frames in those gaps: shown as zeros.
    pub missing_frames: usize,
}

/// The counts of a dataset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The training split.
    pub train: SplitSummary,
    /// The validation split.
    pub val: SplitSummary,
    /// Of each image stream, over the clips of both splits.
    pub streams: Vec<StreamSummary>,
    /// Clips without a pose file.
    pub missing_poses: usize,
    /// Validation clips with a text that no training clip has.
    pub unseen_val_texts: usize,
}

impl Dataset {
    /// Counts what the tables say; no file is opened.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let numbers: Vec<Vec<u32>> = self.clips.iter().map(Clip::numbers).collect();
        let lengths: Vec<usize> = numbers.iter().map(Vec::len).collect();
        let streams = self.streams.iter().enumerate().map(|(at, folder)| {
            let mut summary = StreamSummary { name: folder.stream.name, ..StreamSummary::default() };
            let tables = self.clips.iter().filter_map(|clip| clip.frames.get(at));
            tables.zip(&numbers).for_each(|(table, numbers)| summary.add(table, numbers));
            summary
        });
        let train_texts: HashSet<String> = self.normalized_texts(&self.train).collect();
        Summary {
            train: self.frames(&self.train, &lengths),
            val: self.frames(&self.val, &lengths),
            streams: streams.collect(),
            missing_poses: self.clips.iter().filter(|clip| !clip.has_pose).count(),
            unseen_val_texts: self
                .normalized_texts(&self.val)
                .filter(|text| !train_texts.contains(text))
                .count(),
        }
    }

    fn normalized_texts<'a>(&'a self, split: &'a [usize]) -> impl Iterator<Item = String> + 'a {
        split.iter().filter_map(|&at| self.clips.get(at)).map(|clip| normalize(&clip.text))
    }

    fn frames(&self, split: &[usize], lengths: &[usize]) -> SplitSummary {
        let mut lengths: Vec<usize> = split.iter().filter_map(|&at| lengths.get(at).copied()).collect();
        lengths.sort_unstable();
        let at = |position: usize| lengths.get(position).copied().unwrap_or(0);
        let (shown, repeated) = repeated(&lengths, self.sizes.frames);
        SplitSummary {
            clips: lengths.len(),
            min: at(0),
            median: at(lengths.len() / 2),
            max: lengths.last().copied().unwrap_or(0),
            total: lengths.iter().sum(),
            longer_than_sequence: lengths.iter().filter(|&&length| length > self.sizes.frames).count(),
            shown,
            repeated,
        }
    }
}

impl StreamSummary {
    /// Counts one clip: the stream's frames against the clip's numbers.
    fn add(&mut self, table: &FrameTable, clip: &[u32]) {
        let own = table.numbers();
        self.frames += own.len();
        if own.is_empty() {
            self.empty += 1;
            return;
        }
        self.short += usize::from(own.last() < clip.last());
        let missing = clip.iter().filter(|&&number| frame_at(own, number).is_none()).count();
        self.with_gaps += usize::from(missing > 0);
        self.missing_frames += missing;
    }
}
