//! The innermost product: a tile of sums in registers.

use half::bf16;

/// Rows of a tile.
pub const ROWS: usize = 6;
/// Columns of a tile, the most: four vectors of 16. With [`ROWS`] they fill 24 of 32 registers.
pub const COLUMNS: usize = 64;
/// A tile has a multiple of so many columns.
pub const LANES: usize = 16;

/// Sums, in rows of [`COLUMNS`].
pub type Tile = [f32; ROWS * COLUMNS];

/// Two neighbours of a sum: numbers `2 p` and `2 p + 1`, the former in the low half.
pub type Pair = u32;

/// A pair of two numbers.
#[inline(always)]
#[allow(clippy::inline_always)]
pub fn pair(low: bf16, high: bf16) -> Pair {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}

/// A tile's left operand.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// Rows of numbers.
    Rows([&'a [bf16]; ROWS]),
    /// Rows of pairs, (pairs, [`ROWS`]): the transpose.
    Packed(&'a [Pair]),
}

/// How tiles are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// On any processor: each pair's products are added one after the other, with one rounding each.
    Plain,
    /// By `vdpbf16ps`, with the same roundings but for what is smaller than 2^-126, which counts as 0.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Kernel {
    /// The processor's own, where it has one.
    #[must_use]
    pub fn native() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512bf16") {
                return Some(Self::Avx512);
            }
        }
        None
    }

    /// The sums over `pairs` pairs of `left` and `right` (pairs, columns) into the first `columns` of each row of `tile`.
    #[allow(unsafe_code)]
    pub fn tile(self, pairs: usize, left: Left, right: &[Pair], columns: usize, tile: &mut Tile) {
        assert!(columns.is_multiple_of(LANES) && columns <= COLUMNS, "a tile of {columns} columns");
        assert!(right.len() >= pairs * columns, "the right operand is too short");
        match left {
            Left::Rows(rows) => assert!(rows.iter().all(|row| row.len() >= 2 * pairs), "a row is too short"),
            Left::Packed(packed) => assert!(packed.len() >= pairs * ROWS, "the left operand is too short"),
        }
        match self {
            Self::Plain => plain(pairs, left, right, columns, tile),
            // SAFETY: `native` gives this one only where the processor has the instructions; the operands are as long as the
            // kernel reads, as asserted above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe {
                match columns / LANES {
                    1 => avx512::tile::<1>(pairs, left, right, tile),
                    2 => avx512::tile::<2>(pairs, left, right, tile),
                    3 => avx512::tile::<3>(pairs, left, right, tile),
                    _ => avx512::tile::<4>(pairs, left, right, tile),
                }
            },
        }
    }
}

fn plain(pairs: usize, left: Left, right: &[Pair], columns: usize, tile: &mut Tile) {
    let halves = |pair: Pair| [pair << 16, pair & 0xffff_0000].map(f32::from_bits);
    for (i, out) in tile.chunks_exact_mut(COLUMNS).enumerate() {
        let out = &mut out[..columns];
        out.fill(0.0);
        for (p, right) in right.chunks_exact(columns.max(1)).take(pairs).enumerate() {
            let [low, high] = halves(match left {
                Left::Rows(rows) => pair(rows[i][2 * p], rows[i][2 * p + 1]),
                Left::Packed(packed) => packed[p * ROWS + i],
            });
            for (out, &right) in out.iter_mut().zip(right) {
                let [right_low, right_high] = halves(right);
                *out = low.mul_add(right_low, high.mul_add(right_high, *out));
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };

    use super::{COLUMNS, LANES, Left, Pair, ROWS, Tile};

    /// A tile of `V` vectors a row.
    ///
    /// # Safety
    /// The processor has AVX512-BF16; rows have `2 * pairs` numbers, packed ones `ROWS * pairs` pairs, and `right` has
    /// `LANES * V * pairs`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[allow(unsafe_code)]
    pub unsafe fn tile<const V: usize>(pairs: usize, left: Left, right: &[Pair], tile: &mut Tile) {
        match left {
            Left::Rows(rows) => {
                let rows = rows.map(|row| row.as_ptr().cast());
                // SAFETY: as the caller promises; a row is read pair by pair.
                unsafe { sums::<V, 1>(pairs, rows, right.as_ptr(), tile) }
            }
            Left::Packed(packed) => {
                let first: *const [u8; 4] = packed.as_ptr().cast();
                // SAFETY: as the caller promises; row `i` begins at pair `i`, which is there unless there are none.
                unsafe {
                    let rows = std::array::from_fn(|i| first.wrapping_add(i));
                    sums::<V, ROWS>(pairs, rows, right.as_ptr(), tile);
                }
            }
        }
    }

    /// Row `i`'s pairs are `STEP` apart from `rows[i]` on.
    #[target_feature(enable = "avx512f,avx512bf16")]
    #[allow(unsafe_code)]
    unsafe fn sums<const V: usize, const STEP: usize>(
        pairs: usize,
        rows: [*const [u8; 4]; ROWS],
        right: *const Pair,
        tile: &mut Tile,
    ) {
        let as_pairs = |x: __m512i| {
            // SAFETY: vectors of the same bits.
            unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
        };
        let mut sums = [[_mm512_setzero_ps(); V]; ROWS];
        for p in 0..pairs {
            // SAFETY: the operands are as long as the caller promises; neither need be aligned.
            let columns: [__m512bh; V] = std::array::from_fn(|v| unsafe {
                as_pairs(_mm512_loadu_si512(right.add((p * V + v) * LANES).cast()))
            });
            for (sums, row) in sums.iter_mut().zip(rows) {
                // SAFETY: as above.
                let number = i32::from_ne_bytes(unsafe { row.add(p * STEP).read() });
                let number = as_pairs(_mm512_set1_epi32(number));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = _mm512_dpbf16_ps(*sum, number, column);
                }
            }
        }
        for (out, sums) in tile.chunks_exact_mut(COLUMNS).zip(sums) {
            for (out, sum) in out.chunks_exact_mut(LANES).zip(sums) {
                // SAFETY: `out` holds a vector.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) }
            }
        }
    }
}
