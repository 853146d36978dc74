//! From CSVs and folders of JPEG frames to batches: a [`Dataset`] is opened once, a [`Loader`] turns [`Request`]s
//! into [`Batch`]es on its threads.
//!
//! Shapes in this module: `B` clips of a batch, `T` frames (`model.sequence_length`), `H` = `W` =
//! `model.image_size`, `P` = `3 * model.pose_landmarks`. Pixels stay bytes until they are on the device.

mod bad_clips;
mod batch;
mod contents;
mod dataset;
mod digests;
pub mod features;
mod frames;
mod image;
mod loader;
mod manifest;
mod pose;
mod same_streams;
mod sampling;
mod summary;
mod table;
mod verify;

pub use bad_clips::{BadClips, SkippedClip};
pub use batch::{Batch, Phase, Pixels, Request, Sample, Sizes, requests, training_order};
pub use dataset::{Clip, Dataset, StreamFolder};
pub use digests::Contents;
pub use frames::FrameTable;
pub use image::ImageDecoder;
pub use loader::Loader;
pub use manifest::{Index, Metadata, read_index, read_metadata};
pub use pose::{Pose, read as read_pose};
pub use sampling::{frame_at, sample_indices, stride};
pub use summary::{SplitSummary, StreamSummary, Summary};
pub use table::Source;
pub use verify::{Depth, Verified};

/// What `work` returns on each of up to `threads` threads, this one among them: fewer where the system grants fewer.
fn on_threads<T: Send>(threads: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, &work).ok();
        let others: Vec<_> = (1..threads).map_while(spawn).collect();
        let mut results = vec![work()];
        results.extend(others.into_iter().filter_map(|thread| thread.join().ok()));
        results
    })
}

/// The first ten of `items` and how many more there are: `a, b and 3 more`.
fn some_of<T: std::fmt::Display>(items: &[T]) -> String {
    some_of_many(items, 0)
}

/// [`some_of`] `items` and `more` that are not at hand.
fn some_of_many<T: std::fmt::Display>(items: &[T], more: usize) -> String {
    let shown: Vec<String> = items.iter().take(SHOWN).map(|item| shortened(&item.to_string())).collect();
    let rest = items.len().saturating_sub(SHOWN) + more;
    if rest == 0 { shown.join(", ") } else { format!("{} and {rest} more", shown.join(", ")) }
}

/// How many of many things a message names.
const SHOWN: usize = 10;

/// The first ten of many things, and how many there were: what a message needs of a list that may be as long as a file.
struct FirstTen<T> {
    first: Vec<T>,
    all: usize,
}

impl<T> Default for FirstTen<T> {
    fn default() -> Self {
        Self { first: Vec::new(), all: 0 }
    }
}

impl<T: std::fmt::Display> FirstTen<T> {
    fn push(&mut self, item: impl FnOnce() -> T) {
        self.all += 1;
        if self.first.len() < SHOWN {
            self.first.push(item());
        }
    }

    fn is_empty(&self) -> bool {
        self.all == 0
    }
}

impl<T: std::fmt::Display> std::fmt::Display for FirstTen<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&some_of_many(&self.first, self.all - self.first.len()))
    }
}

/// The first 100 characters of a text.
fn shortened(text: &str) -> String {
    const MOST: usize = 100;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut_after_ten() {
        assert_eq!(some_of(&[1, 2]), "1, 2");
        assert_eq!(some_of(&(0..12).collect::<Vec<_>>()), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more");
    }
}
