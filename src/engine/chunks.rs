//! How many frames go through a backbone at a time, and fewer where a GPU's memory turns out to be too small.

use std::cell::Cell;

use crate::engine::cpu::vit::UNIT;
use crate::engine::oom::out_of_memory;
use crate::error::ErrorKind;
use crate::{Error, Result};

/// The chunk of a network's steps.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    /// `None` = all frames of a batch at once.
    now: Cell<Option<usize>>,
    may_shrink: bool,
}

impl Chunks {
    /// `chunk` frames of a stream at a time, `None` = all.
    #[must_use]
    pub fn new(chunk: Option<usize>) -> Self {
        Self { now: Cell::new(chunk), may_shrink: false }
    }

    /// Fewer where the device's memory is full, if it `may_shrink`.
    #[must_use]
    pub fn or_fewer(self, may_shrink: bool) -> Self {
        Self { may_shrink, ..self }
    }

    /// Frames of a stream at a time, as things stand.
    #[must_use]
    pub fn get(&self) -> Option<usize> {
        self.now.get()
    }

    /// Goes on with a chunk that was chosen before, if this one was chosen and not asked for.
    pub fn restore(&self, chunk: Option<usize>) {
        if self.may_shrink {
            self.now.set(chunk);
        }
    }

    /// Does `work` on batches of `images` frames of a stream with the chunk that it is given. Where the device's memory
    /// is full and the chunk may shrink, it is halved and the work done again, down to one frame; the smaller chunk
    /// stays.
    ///
    /// # Errors
    /// Kind `Memory`: the memory is full with the smallest chunk that may be; or what else `work` fails with.
    pub fn run<T>(&self, images: usize, mut work: impl FnMut(Option<usize>) -> Result<T>) -> Result<T> {
        loop {
            let chunk = self.now.get();
            match work(chunk) {
                Err(error) if error.kind == ErrorKind::Memory => match smaller(chunk, images) {
                    Some(next) if self.may_shrink => self.now.set(Some(next)),
                    _ => return Err(full(chunk, images, &error)),
                },
                done => return done,
            }
        }
    }
}

/// About half of it, in whole units where there is more than one; `None` below one frame.
fn smaller(chunk: Option<usize>, images: usize) -> Option<usize> {
    let half = chunk.map_or(images, |chunk| chunk.min(images)) / 2;
    let whole = if half > UNIT { half / UNIT * UNIT } else { half };
    (whole > 0).then_some(whole)
}

fn full(chunk: Option<usize>, images: usize, error: &Error) -> Error {
    let frames = chunk.map_or(images, |chunk| chunk.min(images));
    let with = match (frames, chunk) {
        (0 | 1, _) => " with one frame of a stream at a time (optimization.frames_per_chunk)".to_owned(),
        (_, None) => format!(" with all {frames} frames of a stream at once (optimization.frames_per_chunk)"),
        _ => format!(" with {frames} frames of a stream at a time (optimization.frames_per_chunk)"),
    };
    let lower = if frames > 1 { "optimization.frames_per_chunk (or make it \"auto\"), " } else { "" };
    let causes = error.problems.iter().flat_map(|problem| &problem.causes);
    out_of_memory(&with, lower, causes.map(String::as_str).collect::<Vec<_>>().join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory_is_full() -> Error {
        out_of_memory("", "", "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")")
    }

    /// Frames that are tried where only `fits` at a time fit, and what comes of it.
    fn tries(chunks: &Chunks, images: usize, fits: usize) -> (Vec<usize>, Result<()>) {
        let mut tried = Vec::new();
        let result = chunks.run(images, |chunk| {
            let frames = chunk.unwrap_or(images);
            tried.push(frames);
            if frames <= fits { Ok(()) } else { Err(memory_is_full()) }
        });
        (tried, result)
    }

    #[test]
    fn a_chunk_shrinks_until_it_fits_and_stays_small() {
        let chunks = Chunks::new(None).or_fewer(true);
        let (tried, result) = tries(&chunks, 512, 50);
        assert_eq!((tried, result), (vec![512, 256, 128, 64, 32], Ok(())));
        assert_eq!(chunks.get(), Some(32));
        assert_eq!(tries(&chunks, 512, 50), (vec![32], Ok(())));
        assert_eq!(
            tries(&Chunks::new(Some(80)).or_fewer(true), 100, 1),
            (vec![80, 32, 16, 8, 4, 2, 1], Ok(()))
        );
    }

    #[test]
    fn what_does_not_fit_names_the_chunk_and_what_to_lower() {
        let (tried, result) = tries(&Chunks::new(Some(4)).or_fewer(true), 100, 0);
        assert_eq!(tried, [4, 2, 1]);
        let error = result.unwrap_err();
        assert_eq!(error.exit_code(), 1);
        let text = error.to_string();
        for part in ["is full with one frame of a stream at a time", "OUT_OF_MEMORY", "lower data.batch_size"]
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_number_that_was_asked_for_stays() {
        let chosen = Chunks::new(None).or_fewer(true);
        chosen.restore(Some(32));
        assert_eq!(chosen.get(), Some(32));
        let chunks = Chunks::new(Some(48));
        chunks.restore(Some(32));
        let (tried, result) = tries(&chunks, 100, 32);
        assert_eq!((tried, chunks.get()), (vec![48], Some(48)));
        let text = result.unwrap_err().to_string();
        assert!(
            text.contains("is full with 48 frames of a stream at a time (optimization.frames_per_chunk)")
        );
        assert!(text.contains("lower optimization.frames_per_chunk (or make it \"auto\"), data.batch_size"));
        let (_, result) = tries(&Chunks::new(None), 100, 32);
        assert!(result.unwrap_err().to_string().contains("with all 100 frames of a stream at once"));
    }

    #[test]
    fn other_errors_are_not_tried_again() {
        let (chunks, mut tried) = (Chunks::new(None).or_fewer(true), 0);
        let result: Result<()> = chunks.run(64, |_| {
            tried += 1;
            Err(Error::run("odd"))
        });
        assert!(result.unwrap_err().to_string().contains("odd"));
        assert_eq!((tried, chunks.get()), (1, None));
    }
}
