//! The network's operations on a GPU: which kernels they launch, with how many threads, on which buffers.

use std::cell::RefCell;
use std::rc::Rc;

use super::kernels::{self, Args};
use super::memory::{Allocator, Buffer, DevicePtr, Element, Matrix, Slice};
use super::stream::{GpuStream, Launch};
use crate::nn::ActivationDtype;
use crate::{Error, Result};

mod activation;
mod attention;
mod loss;
mod mask;
mod matmul;
mod norm;
mod patches;
mod update;

pub use activation::{Activate, Nonlinearity};
pub use attention::{Attention, AttentionBackward, Qkv};
pub use loss::CrossEntropy;
pub use mask::Mask;
pub use matmul::{Factor, Output, Write};
pub use norm::{Combine, NormBackward, NormForward};
pub use patches::{Embed, PatchGrid, Pixels};
pub use update::{Adam, Update};

/// How many blocks share the rows of an operation that sums over them: as many as keep a GPU busy. It depends on the sizes
/// alone, so that sums have one order.
const BLOCKS: usize = 1024;

/// The same where a block has sums of three rows: six for each of an H100's multiprocessors.
const NORM_BLOCKS: usize = 6 * 132;

/// Bytes of shared memory that a block may have on any GPU without asking.
pub(super) const USUAL_SHARED: usize = 48 << 10;

/// Threads of a block that goes down columns.
const COLUMNS: usize = 128;

/// Blocks that a launch may have in y and in z; in x they may be as many as an `int` counts.
const MOST_BLOCKS: u32 = 65_535;

/// Launches, with the memory that they need in passing.
pub struct Ops {
    allocator: Allocator,
    masks: RefCell<Buffer<u16>>,
    path_masks: RefCell<Buffer<u16>>,
    partial: RefCell<Buffer<f32>>,
    partial_squares: RefCell<Buffer<f64>>,
}

/// How `rows` rows of `width` are shared out to blocks down the columns.
struct Columns {
    blocks: [usize; 3],
    block_rows: usize,
    vector: usize,
}

impl Columns {
    fn new(rows: usize, width: usize) -> Self {
        let vector = vector(width);
        let across = width.div_ceil(COLUMNS * vector);
        let block_rows = rows.saturating_mul(across).div_ceil(BLOCKS).max(1);
        Self { blocks: [across, rows.div_ceil(block_rows), 1], block_rows, vector }
    }

    fn parts(&self) -> usize {
        self.blocks[1]
    }
}

/// The largest variant of the row kernels that a width allows.
fn vector(width: usize) -> usize {
    if width.is_multiple_of(4) { 4 } else { 1 }
}

/// A kernel's `i64`.
pub(super) fn long(n: usize) -> Result<i64> {
    i64::try_from(n).map_err(|_| too_large(n))
}

/// A kernel's `int`.
pub(super) fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| too_large(n))
}

fn too_large(n: usize) -> Error {
    Error::run(format!("a size of {n} is more than the GPU's kernels take"))
        .hint("lower data.batch_size or the sizes of the network (model)")
}

/// A matrix of `rows` rows of `width`, side by side; null where there is none.
fn rows_of<E: Element>(matrix: Option<&Matrix<E>>, rows: usize, width: usize) -> Result<DevicePtr<E>> {
    let Some(matrix) = matrix else { return Ok(DevicePtr::default()) };
    if (matrix.rows(), matrix.cols(), matrix.stride()) != (rows, width, width) {
        let (found, cols, stride) = (matrix.rows(), matrix.cols(), matrix.stride());
        let what = format!(
            "a kernel takes {rows} x {width} numbers side by side, not {found} x {cols} ({stride} apart)"
        );
        return Err(Error::run(what));
    }
    Ok(matrix.ptr())
}

/// A slice of `len` numbers or more; null where there is none.
fn at_least<E: Element>(slice: Option<&Slice<E>>, len: usize) -> Result<DevicePtr<E>> {
    let Some(slice) = slice else { return Ok(DevicePtr::default()) };
    if slice.len() < len {
        return Err(Error::run(format!("a kernel takes {len} numbers, not {}", slice.len())));
    }
    Ok(slice.ptr())
}

/// How often `part` goes into `whole`.
fn times(whole: usize, part: usize) -> Result<usize> {
    if part == 0 || !whole.is_multiple_of(part) {
        return Err(Error::run(format!("{whole} rows are not a multiple of {part}")));
    }
    Ok(whole / part)
}

impl Ops {
    /// Launches on the stream of `allocator`, whose kernels are for its dtype.
    #[must_use]
    pub fn new(allocator: Allocator) -> Self {
        let masks = RefCell::<Buffer<u16>>::default;
        Self {
            allocator,
            masks: masks(),
            path_masks: masks(),
            partial: RefCell::default(),
            partial_squares: RefCell::default(),
        }
    }

    /// Where buffers come from.
    #[must_use]
    pub fn allocator(&self) -> &Allocator {
        &self.allocator
    }

    /// The stream.
    #[must_use]
    pub fn stream(&self) -> &Rc<dyn GpuStream> {
        self.allocator.stream()
    }

    /// The activations' dtype.
    #[must_use]
    pub fn dtype(&self) -> ActivationDtype {
        self.allocator.dtype()
    }

    #[allow(unsafe_code, reason = "each operation checks that its buffers are as large as its kernel needs")]
    fn launch<A: Args>(
        &self,
        kernel: &str,
        blocks: [usize; 3],
        threads: usize,
        shared: usize,
        a: &A,
    ) -> Result<()> {
        if blocks.contains(&0) {
            return Ok(());
        }
        let [x, y, z] = blocks.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        if i32::try_from(x).is_err() || y > MOST_BLOCKS || z > MOST_BLOCKS {
            return Err(Error::run(format!("{kernel}: {blocks:?} blocks are more than a GPU takes"))
                .hint("lower data.batch_size, or optimization.frames_per_chunk"));
        }
        let launch = Launch {
            kernel,
            blocks: [x, y, z],
            threads: int(threads)?.cast_unsigned(),
            shared_bytes: int(shared)?.cast_unsigned(),
        };
        // SAFETY: each operation below gives a kernel the struct of its name, with pointers to what was checked to be large
        // enough.
        unsafe { self.stream().launch(&launch, std::ptr::from_ref(a).cast()) }
    }

    /// A kernel with one thread an element.
    fn launch_each<A: Args>(&self, kernel: &str, threads: usize, elements: usize, a: &A) -> Result<()> {
        self.launch(kernel, [elements.div_ceil(threads), 1, 1], threads, 0, a)
    }

    /// A kernel of `rows.cu` in the variant for `vector`.
    fn launch_rows<A: Args>(
        &self,
        kernel: &str,
        vector: usize,
        blocks: [usize; 3],
        shared: usize,
        a: &A,
    ) -> Result<()> {
        self.launch(&format!("{kernel}_{vector}"), blocks, 128, shared, a)
    }

    /// Adds the sums over rows of `partial` to one to three destinations, each with an equal part of the columns.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn reduce(&self, partial: &Matrix<f32>, to: &[Option<&Slice<f32>>]) -> Result<()> {
        let (parts, width) = (partial.rows(), partial.cols());
        let each = times(width, to.len())?;
        let out = |i: usize| at_least(to.get(i).copied().flatten(), each);
        let args = kernels::Reduce {
            partial: rows_of(Some(partial), parts, width)?,
            out0: out(0)?,
            out1: out(1)?,
            out2: out(2)?,
            width: long(width)?,
            parts: int(parts)?,
            outs: int(to.len().min(3))?,
        };
        self.launch("reduce", [width.div_ceil(32), 1, 1], 256, 4 * 256, &args)
    }

    /// Adds numbers to as many others.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn add(&self, values: &Slice<f32>, to: &Slice<f32>) -> Result<()> {
        self.reduce(&Matrix::new(values, 1, values.len())?, &[Some(to)])
    }
}
