//! All randomness of a run: seeded streams that depend on nothing but the seed and on what they are for.
//!
//! A stream is named, not drawn from a shared generator: the mask of image 7 in step 12 is the same whether
//! the images before it were computed, chunked, recomputed or done on another thread. This is what makes a
//! run repeatable to the bit, with any number of workers, and after a resume.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a stream of random numbers is for. The numbers are part of the format of a run: a changed one
/// changes every experiment, so they are never reused or reordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights; `ids` = the parameter's position.
    Init = 1,
    /// The order of the training clips; `ids` = epoch.
    Order = 2,
    /// The first frame of a training clip; `ids` = epoch, clip.
    Offset = 3,
    /// Dropout masks; `ids` = training step, dropout site and row.
    Dropout = 4,
    /// Drawn datasets (`slt-run demo`); `ids` = clip and part.
    Demo = 5,
    /// Data that a benchmark makes in memory; `ids` = step.
    Bench = 6,
}

/// The stream of random numbers for `purpose` and up to two `ids` (missing ones are 0), under a run's `seed`.
///
/// `ChaCha8` keyed by all four, so that streams are independent and the same on every platform.
#[must_use]
pub fn stream(seed: u64, purpose: Purpose, ids: [u64; 2]) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..12].copy_from_slice(&(purpose as u32).to_le_bytes());
    key[16..24].copy_from_slice(&ids[0].to_le_bytes());
    key[24..].copy_from_slice(&ids[1].to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, purpose, ids| stream(seed, purpose, ids).next_u64();
        let first = draw(1, Purpose::Order, [2, 3]);
        assert_eq!(first, draw(1, Purpose::Order, [2, 3]));
        for other in [
            draw(2, Purpose::Order, [2, 3]),
            draw(1, Purpose::Offset, [2, 3]),
            draw(1, Purpose::Order, [3, 3]),
            draw(1, Purpose::Order, [2, 4]),
        ] {
            assert_ne!(first, other);
        }
    }
}
