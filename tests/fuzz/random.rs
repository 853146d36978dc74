//! Random numbers and random damage to bytes.

/// `SplitMix64` (Steele, Lea and Flood 2014).
pub struct Random(u64);

/// Numbers at which readers go wrong.
const ODD: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

impl Random {
    /// The stream of input `number` under `seed`.
    pub fn new(seed: u64, number: u64) -> Self {
        let mut random = Self(seed ^ number.wrapping_mul(0xd1b5_4a32_d192_ed03));
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 for 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// An odd number, or one near it.
    pub fn odd(&mut self) -> u64 {
        let near = self.below(5) as u64;
        ODD[self.below(ODD.len())].wrapping_add(near).wrapping_sub(2)
    }

    /// A count: mostly small, now and then large.
    pub fn count(&mut self, most: usize) -> usize {
        let bits = self.below(usize::BITS as usize - most.leading_zeros() as usize + 1);
        self.below((1 << bits).min(most + 1))
    }

    /// A part of a sequence of `length`.
    pub fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = self.count(length - start);
        start..start + most
    }

    /// Damages `bytes` in one place; `others` are files to take pieces from.
    pub fn damage(&mut self, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
        let at = self.below(bytes.len());
        match self.below(9) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
            1 if !bytes.is_empty() => bytes[at] = self.next() as u8,
            2 => {
                let width = [1, 2, 4, 8][self.below(4)];
                let value = self.odd();
                let both = [value.to_le_bytes(), value.to_be_bytes()];
                let number = if self.one_in(2) { &both[0][..width] } else { &both[1][8 - width..] };
                for (to, from) in bytes.iter_mut().skip(at).zip(number) {
                    *to = *from;
                }
            }
            3 => drop(bytes.drain(self.range(bytes.len()))),
            4 => {
                let piece = bytes[self.range(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            5 => {
                let byte = self.next() as u8;
                let count = self.count(2000);
                bytes.splice(at..at, std::iter::repeat_n(byte, count));
            }
            6 if !others.is_empty() => {
                let other = &others[self.below(others.len())];
                let piece = other[self.range(other.len())].to_vec();
                let end = if self.one_in(2) { at } else { bytes.len().min(at + piece.len()) };
                bytes.splice(at..end, piece);
            }
            7 if self.one_in(4) => bytes.truncate(at),
            _ => {
                let number = self.odd().to_string();
                bytes.splice(at..at, number.into_bytes());
            }
        }
    }
}
