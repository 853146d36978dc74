//! What a dataset's tables tell of its health, before any of its files is opened.

use super::dataset::{Clip, Dataset, ENDINGS};
use super::sampling::distinct;
use super::some_of;
use crate::error::{Error, ErrorKind, Problem, Result, count};

impl Clip {
    /// Whether any of its streams has an image.
    #[must_use]
    pub fn has_images(&self) -> bool {
        self.frames.iter().any(|table| !table.numbers().is_empty())
    }
}

impl Dataset {
    /// Refuses a dataset of which more than the share `max_empty_clips` of the clips, or all clips of a split, have no
    /// image; adds warnings of what else is missing, repeated or the same.
    pub(super) fn check_contents(&mut self, max_empty_clips: f64) -> Result<()> {
        let empty: Vec<&str> =
            self.clips.iter().filter(|clip| !clip.has_images()).map(|clip| clip.id.as_str()).collect();
        if empty.len() == self.clips.len() {
            return Err(self.no_images());
        }
        Error::all(ErrorKind::Data, self.too_many_empty(&empty, max_empty_clips))?;
        let mut warnings = Vec::new();
        if !empty.is_empty() {
            let (have, they) = if empty.len() == 1 { ("has", "it is") } else { ("have", "they are") };
            warnings.push(format!(
                "{} of {} {have} no image in any stream: {they} black images to the network: {}",
                empty.len(),
                count(self.clips.len(), "clip"),
                some_of(&empty)
            ));
        }
        warnings.extend(self.empty_streams());
        warnings.extend(self.repetition());
        self.warnings.extend(warnings);
        Ok(())
    }

    /// The splits, each with the field that it comes from; a split that is opened alone has no training split beside it.
    pub(super) fn splits(&self) -> impl Iterator<Item = (&'static str, &'static str, &[usize])> {
        let all: [(_, _, &[usize]); 2] =
            [("training", "data.train_index", &self.train), ("validation", "data.val_index", &self.val)];
        all.into_iter().filter(|(_, _, split)| !split.is_empty())
    }

    fn no_images(&self) -> Error {
        let example = self.clips.first().map_or("", |clip| clip.id.as_str());
        let folders: Vec<String> = self.streams.iter().map(ToString::to_string).collect();
        let key = self.streams.first().map_or("", |folder| folder.stream.key);
        Error::data(format!("none of the {} has a frame", count(self.clips.len(), "clip")))
            .cause(format!("no file named {example}_f<number>.jpg, for example, in {}", some_of(&folders)))
            .hint(match ENDINGS.iter().find(|ending| example.ends_with(*ending)) {
                Some(ending) => format!("write the ids in the three CSVs without {ending}"),
                None => format!("is {key} right, and are the frames named <video_id>_f<number>.jpg?"),
            })
    }

    fn too_many_empty(&self, empty: &[&str], most: f64) -> Vec<Problem> {
        const HINT: &str = "put the images back, or take the clips out of the indices";
        let all = self.clips.len();
        // Not the product: 0.29 times 100 is less than 29.
        if empty.len() as f64 / all as f64 > most {
            let share = format!("more than the share that data.max_empty_clips = {most} allows");
            let have = if empty.len() == 1 { "has" } else { "have" };
            let what =
                format!("{} of {} {have} no image in any stream: {share}", empty.len(), count(all, "clip"));
            let hint = format!("{HINT}; a larger data.max_empty_clips makes black images of them");
            return vec![
                Problem::new(what).cause(format!("without any image: {}", some_of(empty))).hint(hint),
            ];
        }
        let imageless = |split: &[usize]| !self.any_of(split, Clip::has_images);
        let splits = self.splits().filter(|(_, _, split)| most < 1.0 && imageless(split));
        let problem = |(name, key, split): (&str, &str, &[usize])| {
            let ids = split.iter().filter_map(|&at| self.clips.get(at)).map(|clip| clip.id.as_str());
            let what = format!("no clip of the {name} split ({key}) has an image in any stream");
            Problem::new(what).cause(some_of(&ids.collect::<Vec<_>>())).hint(HINT)
        };
        splits.map(problem).collect()
    }

    fn any_of(&self, split: &[usize], has: impl Fn(&Clip) -> bool) -> bool {
        split.iter().filter_map(|&at| self.clips.get(at)).any(has)
    }

    /// Streams of which no clip, or no clip of a split, has anything.
    fn empty_streams(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (at, stream) in self.streams.iter().enumerate() {
            let has = |clip: &Clip| clip.frames.get(at).is_some_and(|table| !table.numbers().is_empty());
            found.extend(self.without("a frame", &stream.to_string(), has));
        }
        found.extend(self.without("a pose", &self.poses.to_string(), |clip| clip.has_pose));
        found
    }

    fn without(&self, what: &str, folder: &str, has: impl Fn(&Clip) -> bool) -> Vec<String> {
        if !self.clips.iter().any(&has) {
            return vec![format!("no clip has {what} in {folder}: is it right?")];
        }
        let empty = self.splits().filter(|(_, _, split)| !self.any_of(split, &has));
        empty.map(|(name, _, _)| format!("no clip of the {name} split has {what} in {folder}")).collect()
    }

    /// Where most of what the network sees is a clip's last frame again.
    fn repetition(&self) -> Option<String> {
        let with_images = self.clips.iter().filter(|clip| clip.has_images());
        let mut lengths: Vec<usize> = with_images.map(|clip| clip.numbers().len()).collect();
        lengths.sort_unstable();
        let (shown, repeated) = repeated(&lengths, self.sizes.frames);
        let median = lengths.get(lengths.len() / 2)?;
        (repeated * 2 > shown).then(|| {
            format!(
                "{} % of the frames that the network sees are repetitions: half of the clips have {} or fewer, and each \
                 is stretched to {} (model.sequence_length)",
                percent(repeated, shown),
                count(*median, "frame"),
                self.sizes.frames
            )
        })
    }
}

/// How many frames clips of these lengths are shown as, and how many of them repeat the one before. A clip without
/// frames is not shown.
pub(super) fn repeated(lengths: &[usize], sequence: usize) -> (usize, usize) {
    let lengths = lengths.iter().filter(|&&length| length > 0);
    let each = |length: &usize| (sequence, sequence - distinct(*length, sequence));
    lengths.map(each).fold((0, 0), |(shown, repeated), (s, r)| (shown + s, repeated + r))
}

/// `part` of `all` in percent; 0 of nothing.
fn percent(part: usize, all: usize) -> usize {
    (100.0 * part as f64 / all.max(1) as f64).round() as usize
}
