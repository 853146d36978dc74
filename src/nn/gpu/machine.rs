//! What a GPU does for the network: memory, launches, matrix products.

use std::ffi::c_void;
use std::rc::Rc;

use candle_core::Result;

use crate::nn::Stored;

/// An address in a GPU's memory; 0 where there is none.
pub type Ptr = u64;

/// A GPU that can be had.
pub trait Card {
    /// As the configuration names it.
    fn name(&self) -> String;

    /// For a person.
    fn describe(&self) -> String;

    /// Whether it computes in bf16.
    fn has_bf16(&self) -> bool;

    /// Bytes of memory that are free.
    fn free_memory(&self) -> Option<usize>;

    /// It with the kernels for `stored` and heads of such widths.
    ///
    /// # Errors
    /// Where the kernels cannot be made, or its memory is full.
    fn machine(&self, stored: Stored, heads: &[usize]) -> Result<Rc<dyn Machine>>;
}

/// A matrix product of row-major matrices, `C (m, n) = A (m, k) B (k, n)`, or added to what C holds. `A` and `B` are of the
/// stored type, sums are f32.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// The left factor.
    pub a: Matrix,
    /// The right factor.
    pub b: Matrix,
    /// The result.
    pub c: Ptr,
    /// Numbers from one of its rows to the next.
    pub ldc: usize,
    /// Whether the result is f32, not of the stored type.
    pub wide: bool,
    /// Whether it is added to what is there.
    pub add: bool,
}

/// A factor of a [`Gemm`].
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// Where it is.
    pub at: Ptr,
    /// Numbers from one row, as it lies in memory, to the next.
    pub ld: usize,
    /// Whether it lies transposed in memory.
    pub turned: bool,
}

impl Matrix {
    /// As it lies in memory.
    #[must_use]
    pub fn new(at: Ptr, ld: usize) -> Self {
        Self { at, ld, turned: false }
    }

    /// The transpose of what lies in memory.
    #[must_use]
    pub fn turned(at: Ptr, ld: usize) -> Self {
        Self { at, ld, turned: true }
    }
}

/// Bytes on their way to a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    /// Where to.
    pub to: Ptr,
    /// What.
    pub bytes: &'a [u8],
}

/// A GPU with the kernels of one network. All work but copies of [`Self::send`] is done in the order of the calls, and no
/// call but [`Self::read`], [`Self::write`] and [`Self::free`] waits for it.
///
/// Addresses are not checked: an operation that is given a wrong one reads or writes other numbers of the GPU, or fails.
pub trait Machine {
    /// Bytes of memory, a multiple of 256 from its start.
    ///
    /// # Errors
    /// `CUDA_ERROR_OUT_OF_MEMORY` in the text where there is no more.
    fn allocate(&self, bytes: usize) -> Result<Ptr>;

    /// Gives memory back, once all work is done.
    fn free(&self, at: Ptr);

    /// Sets bytes to 0.
    ///
    /// # Errors
    /// Where the driver fails.
    fn zero(&self, at: Ptr, bytes: usize) -> Result<()>;

    /// Copies within the GPU.
    ///
    /// # Errors
    /// Where the driver fails.
    fn copy(&self, from: Ptr, to: Ptr, bytes: usize) -> Result<()>;

    /// Writes bytes, once all work is done.
    ///
    /// # Errors
    /// Where the driver fails.
    fn write(&self, to: Ptr, bytes: &[u8]) -> Result<()>;

    /// Reads bytes, once all work is done: the one call of a step that waits.
    ///
    /// # Errors
    /// Where the driver, or the work, failed.
    fn read(&self, from: Ptr, bytes: &mut [u8]) -> Result<()>;

    /// Begins to copy from the host while other work goes on, through pinned memory of `slot` (0 or 1).
    ///
    /// # Errors
    /// Where the driver fails, or memory cannot be had.
    fn send(&self, slot: usize, uploads: &[Upload]) -> Result<()>;

    /// Lets the work that follows wait for what was sent through `slot`.
    ///
    /// # Errors
    /// Where the driver fails.
    fn receive(&self, slot: usize) -> Result<()>;

    /// Starts `blocks` (x, y, z) of `threads` of a kernel, each block with `shared` bytes. `args` points to the
    /// struct that the kernel takes.
    ///
    /// # Errors
    /// Where there is no such kernel, or the driver fails.
    fn launch(
        &self,
        kernel: &str,
        blocks: [usize; 3],
        threads: usize,
        shared: usize,
        args: *const c_void,
    ) -> Result<()>;

    /// The most memory that was allocated at a time so far, in bytes.
    fn peak_memory(&self) -> usize;

    /// A matrix product.
    ///
    /// # Errors
    /// Where the library fails.
    fn gemm(&self, gemm: &Gemm) -> Result<()>;
}

/// Memory that goes back with it.
pub struct Buffer {
    machine: Rc<dyn Machine>,
    at: Ptr,
    bytes: usize,
}

impl Buffer {
    /// Of so many bytes, whatever they hold.
    ///
    /// # Errors
    /// Where there is no more memory.
    pub fn new(machine: &Rc<dyn Machine>, bytes: usize) -> Result<Self> {
        Ok(Self { machine: Rc::clone(machine), at: machine.allocate(bytes)?, bytes })
    }

    /// All zero.
    ///
    /// # Errors
    /// Where there is no more memory.
    pub fn zeros(machine: &Rc<dyn Machine>, bytes: usize) -> Result<Self> {
        let buffer = Self::new(machine, bytes)?;
        machine.zero(buffer.at, bytes)?;
        Ok(buffer)
    }

    /// Where it begins.
    #[must_use]
    pub fn at(&self) -> Ptr {
        self.at
    }

    /// How much it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.machine.free(self.at);
    }
}

/// A buffer that grows to what is asked of it, and keeps nothing when it does.
#[derive(Default)]
pub struct Room {
    buffer: Option<Buffer>,
}

impl Room {
    /// At least so many bytes.
    ///
    /// # Errors
    /// Where there is no more memory.
    pub fn of(&mut self, machine: &Rc<dyn Machine>, bytes: usize) -> Result<Ptr> {
        match &self.buffer {
            Some(buffer) if buffer.bytes >= bytes => Ok(buffer.at),
            _ => {
                // The old one first: there may not be memory for both.
                self.buffer = None;
                Ok(self.buffer.insert(Buffer::new(machine, bytes)?).at)
            }
        }
    }

    /// What it holds now; 0 before it holds anything.
    #[must_use]
    pub fn at(&self) -> Ptr {
        self.buffer.as_ref().map_or(0, |buffer| buffer.at)
    }
}
