//! Which frames of a clip a sample shows: pure functions of lengths, numbers and an offset.

/// How far apart the sampled frames of a clip of `frames` frames are: `ceil(frames / length)`, at least 1.
#[must_use]
pub fn stride(frames: usize, length: usize) -> usize {
    frames.div_ceil(length.max(1)).max(1)
}

/// The `length` positions that a sample takes from `frames` frames: from `offset` in steps of [`stride`], then the
/// last one again. No frames: all 0, which nobody looks up.
///
/// `offset` is at most `stride - 1`; a larger one is cut.
#[must_use]
pub fn sample_indices(frames: usize, length: usize, offset: usize) -> Vec<usize> {
    let stride = stride(frames, length);
    let offset = offset.min(stride - 1);
    let mut indices: Vec<usize> = (offset..frames).step_by(stride).take(length).collect();
    indices.resize(length, indices.last().copied().unwrap_or(0));
    indices
}

/// How many different frames [`sample_indices`] takes from `frames` frames at an offset of 0; the rest repeat the last.
#[must_use]
pub fn distinct(frames: usize, length: usize) -> usize {
    frames.div_ceil(stride(frames, length))
}

/// The numbers that any of the image streams has, sorted. Each stream's own numbers are sorted and distinct.
#[must_use]
pub fn union<'a>(streams: impl Iterator<Item = &'a [u32]> + Clone) -> Vec<u32> {
    let Some(first) = streams.clone().next() else { return Vec::new() };
    if streams.clone().all(|numbers| numbers == first) {
        return first.to_vec();
    }
    let mut all: Vec<u32> = streams.flatten().copied().collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// The frame that a stream with the sorted `numbers` shows where the clip is at `number`: its own; past its end its
/// last one; in a gap, or in an empty stream, none.
#[must_use]
pub fn frame_at(numbers: &[u32], number: u32) -> Option<u32> {
    let last = *numbers.last()?;
    if number >= last {
        return Some(last);
    }
    numbers.binary_search(&number).is_ok().then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        frames: usize,
        sequence_length: usize,
        offset: usize,
        indices: Vec<usize>,
    }

    #[test]
    fn indices_are_the_scripts() {
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../tests/data/frame_sampling.json")).unwrap();
        assert!(cases.len() > 100);
        for case in cases {
            let got = sample_indices(case.frames, case.sequence_length, case.offset);
            assert_eq!(got, case.indices, "{} frames to {}", case.frames, case.sequence_length);
        }
    }

    #[test]
    fn an_offset_past_the_stride_is_cut() {
        assert_eq!(sample_indices(9, 4, 7), sample_indices(9, 4, 2));
        assert_eq!(sample_indices(3, 4, 2), [0, 1, 2, 2]);
        assert_eq!(sample_indices(0, 2, 5), [0, 0]);
    }

    #[test]
    fn different_frames_are_counted() {
        for (frames, length) in (0..40).flat_map(|frames| (1..12).map(move |length| (frames, length))) {
            let mut indices = sample_indices(frames, length, 0);
            indices.dedup();
            let expected = if frames == 0 { 0 } else { indices.len() };
            assert_eq!(distinct(frames, length), expected, "{frames} frames to {length}");
        }
    }

    #[test]
    fn the_clip_has_every_number_that_a_stream_has() {
        let of = |streams: &[&[u32]]| union(streams.iter().copied());
        assert_eq!(of(&[&[0, 1, 2], &[0, 1, 2], &[0, 1, 2]]), [0, 1, 2]);
        assert_eq!(of(&[&[1, 4], &[], &[0, 4, 9]]), [0, 1, 4, 9]);
        assert!(of(&[&[], &[]]).is_empty() && of(&[]).is_empty());
    }

    #[test]
    fn gaps_show_nothing_and_ends_repeat() {
        let numbers = [2, 3, 5];
        let shown: Vec<_> = (0..8).map(|n| frame_at(&numbers, n)).collect();
        assert_eq!(shown, [None, None, Some(2), Some(3), None, Some(5), Some(5), Some(5)]);
        assert_eq!(frame_at(&[], 0), None);
    }
}
