//! Drawn datasets: signs as cartoons, in the documented layout, for a first run, for tests and for benchmarks.
//!
//! Everything is decided by the options: the same ones give the same files, to the byte, in any number of threads.

mod canvas;
mod clip;
mod figure;
mod folder;
mod sentence;
mod sign;
mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Problem, Result};
use clip::Clip;
use sentence::VOCABULARY;
use sign::{MOST_SIGNS, Sign, signs};

/// The most files that a dataset may have.
pub const MOST_FILES: usize = 100_000;

/// What to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// How many clips; at least two for each sign.
    pub clips: usize,
    /// Frames of the longest clips; a clip has from half of that to all of it.
    pub frames: usize,
    /// Width and height of the face and hand crops, in pixels.
    pub size: usize,
    /// How many different signs.
    pub signs: usize,
    /// What all that is random follows from.
    pub seed: u64,
    /// Whether clips are sentences of several signs, to be translated.
    #[serde(default, skip_serializing_if = "is_false")]
    pub translate: bool,
}

/// Datasets of single signs are marked as they were before there were others.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Default for Options {
    fn default() -> Self {
        Self { clips: 400, frames: 14, size: 64, signs: 6, seed: 1234, translate: false }
    }
}

impl Options {
    /// What is drawn for translation where nothing else is asked for.
    #[must_use]
    pub fn to_translate() -> Self {
        Self { clips: 1200, frames: 16, size: 32, signs: 12, seed: 1234, translate: true }
    }
}

/// A dataset on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// The experiment file that trains on it.
    pub experiment: PathBuf,
    /// Clips in the training split.
    pub train: usize,
    /// Clips in the validation split.
    pub val: usize,
    /// Crops and poses that were drawn just now; 0 where the dataset was there already.
    pub files: usize,
    /// Whether the same dataset was there already and was left as it is.
    pub reused: bool,
}

/// Draws a dataset into `dir`, or finds there the one that these options gave before.
///
/// The layout is the documented one: `face/`, `hand_l/` and `hand_r/` with `<id>_f<number>.jpg`, `pose/<id>.npz`,
/// `subs.csv`, `index/train.csv` and `index/val.csv`, and beside them the experiment file `demo.toml`, whose paths
/// begin with `dir` as it was given. `progress` is called on this thread with the clips done and all clips.
///
/// # Errors
/// Kind `Config` for options that cannot work (all of them at once) and for a folder that holds anything else,
/// a dataset of other options included; kind `Run` where files cannot be written.
pub fn draw(dir: &Path, options: &Options, progress: &dyn Fn(usize, usize)) -> Result<Drawn> {
    options.check()?;
    let (signs, clips) = if options.translate { sentences(options) } else { single_signs(options) };
    let files = count_files(&signs, &clips);
    if files > MOST_FILES {
        return Err(Error::new(ErrorKind::Config, too_many_files(&files.to_string())));
    }
    let folder = folder::open(dir, options)?;
    let val = clips.iter().filter(|clip| clip.validation).count();
    let mut drawn =
        Drawn { experiment: folder.experiment(), train: clips.len() - val, val, files: 0, reused: true };
    if folder.is_complete() {
        folder.keep_experiment_current(options)?;
        return Ok(drawn);
    }
    folder.begin(options)?;
    drawn.files = draw_clips(dir, options, &signs, &clips, progress)?;
    drawn.reused = false;
    write::tables(dir, &signs, &clips)?;
    folder.finish(options)?;
    Ok(drawn)
}

/// Signs, and clips of one each.
fn single_signs(options: &Options) -> (Vec<Sign>, Vec<Clip>) {
    let clips = (0..options.clips).map(|index| Clip::plan(options, index));
    (signs(options.signs, options.seed), clips.collect())
}

/// Signs, and clips of sentences.
fn sentences(options: &Options) -> (Vec<Sign>, Vec<Clip>) {
    let plan = sentence::plan(options.signs, options.clips, options.seed);
    let clips = plan.into_iter().enumerate().map(|(index, said)| Clip::of_sentence(options, index, said));
    (sentence::signs(options.signs, options.seed), clips.collect())
}

/// The options of the dataset that `dir` holds, or of one whose drawing broke off there; `None` for any other folder.
#[must_use]
pub fn drawn_with(dir: &Path) -> Option<Options> {
    folder::drawn_with(dir)
}

impl Options {
    /// Everything that cannot work, at once.
    fn check(&self) -> Result<()> {
        let Self { clips, frames, size, signs, translate, .. } = *self;
        let mut problems = Vec::new();
        for (name, value) in [("clips", clips), ("frames", frames), ("signs", signs)] {
            if value == 0 {
                problems.push(
                    Problem::new(format!("a dataset of 0 {name}")).hint(format!("give --{name} 1 or more")),
                );
            }
        }
        if translate {
            problems.extend(self.cannot_be_translated());
        } else if signs > MOST_SIGNS {
            let what = format!("{signs} signs are more than the {MOST_SIGNS} that can be told apart");
            problems.push(Problem::new(what).hint(format!("give --signs {MOST_SIGNS} or less")));
        } else if clips > 0 && clips < 2 * signs {
            let what = format!(
                "{clips} clips are too few for {signs} signs: each sign needs one to train on and one to validate on"
            );
            problems.push(
                Problem::new(what).hint(format!("give --clips {} or more, or fewer --signs", 2 * signs)),
            );
        }
        if !(16..=2048).contains(&size) {
            let what = format!("crops of {size} pixels");
            problems.push(Problem::new(what).hint("give --size from 16 to 2048"));
        }
        // Each frame has a face at least, each clip half of its frames and a pose.
        let least = (frames / 2 + 1).saturating_mul(clips);
        if least > MOST_FILES {
            problems.push(too_many_files(&format!("at least {least}")));
        }
        Error::all(ErrorKind::Config, problems)
    }
}

impl Options {
    /// What cannot work of sentences.
    fn cannot_be_translated(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !VOCABULARY.contains(&self.signs) {
            let (least, most) = (VOCABULARY.start(), VOCABULARY.end());
            let what = format!("sentences of {} signs", self.signs);
            problems.push(Problem::new(what).hint(format!("give --signs from {least} to {most}")));
        }
        if (1..FEWEST_SENTENCES).contains(&self.clips) {
            let what = format!("{} clips are too few sentences to learn from", self.clips);
            problems.push(Problem::new(what).hint(format!("give --clips {FEWEST_SENTENCES} or more")));
        }
        if (1..8).contains(&self.frames) {
            let what = format!("sentences of four signs in {} frames", self.frames);
            problems.push(Problem::new(what).hint("give --frames 8 or more"));
        }
        problems
    }
}

/// So many say every sign, and sentences of each length in both splits.
const FEWEST_SENTENCES: usize = 100;

fn too_many_files(files: &str) -> Problem {
    Problem::new(format!("a dataset of {files} files, where {MOST_FILES} are the most"))
        .hint("give fewer --clips or --frames")
}

/// How many crops and poses the clips are.
fn count_files(signs: &[Sign], clips: &[Clip]) -> usize {
    clips.iter().map(|clip| clip.crops(signs).count() + 1).sum()
}

/// Draws all clips on all cores and says how many files that made. The first failure ends it.
fn draw_clips(
    dir: &Path,
    options: &Options,
    signs: &[Sign],
    clips: &[Clip],
    progress: &dyn Fn(usize, usize),
) -> Result<usize> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = |done: mpsc::Sender<Result<usize>>| {
        while !failed.load(Ordering::Relaxed) {
            let Some(clip) = clips.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
            let result = write::clip(dir, options, signs, clip);
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            if done.send(result).is_err() {
                return;
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(clips.len());
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for number in 0..threads {
            let to_it = sender.clone();
            let started = std::thread::Builder::new().spawn_scoped(scope, || work(to_it)).is_ok();
            // Those that the system grants draw all of it, if need be this one alone.
            if !started && number == 0 {
                work(sender.clone());
            }
            if !started {
                break;
            }
        }
        // The loop ends when the last worker has dropped its sender.
        drop(sender);
        let mut files = 0;
        for (done, result) in receiver.iter().enumerate() {
            files += result?;
            progress(done + 1, clips.len());
        }
        Ok(files)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_cannot_work_are_all_reported() {
        let options = Options { clips: 0, frames: 0, size: 8, signs: 0, seed: 1, translate: false };
        let error = options.check().unwrap_err();
        assert_eq!((error.kind, error.problems.len()), (ErrorKind::Config, 4));
        assert!(error.problems.iter().all(|p| p.hint.is_some()));
        let whats = |options: Options| options.check().map_or_else(|e| e.to_string(), |()| String::new());
        let good = Options { clips: 160, ..Options::default() };
        assert_eq!(whats(good), "");
        assert!(whats(Options { signs: 81, ..good }).contains("--clips 162 or more"));
        assert!(whats(Options { size: 2049, ..good }).contains("2049 pixels"));
        assert!(whats(Options { frames: usize::MAX, ..good }).contains("100000 are the most"));
        assert!(whats(Options { signs: usize::MAX, ..good }).contains("told apart"));
        assert!(whats(Options { clips: 12_501, ..good }).contains("at least 100008 files"));
    }
}
