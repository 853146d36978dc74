//! What a GPU does for the network: memory, launches, matrix products. Here memory has plain addresses; all above
//! [`super::memory`] and [`super::ops`] has typed buffers.
#![allow(unsafe_code, reason = "addresses and arguments are not checked here")]

use std::ffi::c_void;
use std::rc::Rc;

use crate::Result;
use crate::nn::ActivationDtype;

/// An address in a GPU's memory.
pub type Address = u64;

/// A GPU that can be had.
pub trait GpuDevice {
    /// As the configuration names it.
    fn name(&self) -> String;

    /// For a person.
    fn describe(&self) -> String;

    /// Whether it computes in bf16.
    fn has_bf16(&self) -> bool;

    /// Bytes of memory that are free.
    fn free_memory(&self) -> Option<usize>;

    /// A stream of work on it, with the kernels for `dtype` and heads of such widths.
    ///
    /// # Errors
    /// Where the kernels cannot be made, or its memory is full.
    fn open(&self, dtype: ActivationDtype, heads: &[usize]) -> Result<Rc<dyn GpuStream>>;
}

/// A product of row-major matrices, `C (m, n) = A (m, k) B (k, n)`, or added to what C holds. `A` and `B` are activations,
/// sums are f32.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// The left factor.
    pub a: Operand,
    /// The right factor.
    pub b: Operand,
    /// The result.
    pub c: Address,
    /// Numbers from one of its rows to the next.
    pub ldc: usize,
    /// Whether the result is f32, not of the activations' dtype.
    pub c_is_f32: bool,
    /// Whether it is added to what is there.
    pub accumulate: bool,
}

/// A factor of a [`Gemm`].
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// Where it is.
    pub address: Address,
    /// Numbers from one row, as it lies in memory, to the next.
    pub ld: usize,
    /// Whether it lies transposed in memory.
    pub transposed: bool,
}

/// Bytes on their way to a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    /// Where to.
    pub to: Address,
    /// What.
    pub bytes: &'a [u8],
}

/// How a kernel is started.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Its name.
    pub kernel: &'a str,
    /// Blocks (x, y, z).
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
}

/// A stream of work on a GPU, with the kernels of one network. All work but copies of [`Self::send`] is done in the order of
/// the calls, and no call but [`Self::read`], [`Self::write`] and [`Self::free`] waits for it.
pub trait GpuStream {
    /// Bytes of memory, a multiple of 256 from its start.
    ///
    /// # Errors
    /// Kind `Memory` where there is no more.
    fn allocate(&self, bytes: usize) -> Result<Address>;

    /// Gives memory back, once all work is done.
    ///
    /// # Safety
    /// It was allocated here and is used no more.
    unsafe fn free(&self, address: Address);

    /// Sets bytes to 0.
    ///
    /// # Errors
    /// Where the driver fails.
    ///
    /// # Safety
    /// So many bytes are allocated there.
    unsafe fn zero(&self, address: Address, bytes: usize) -> Result<()>;

    /// Copies within the GPU.
    ///
    /// # Errors
    /// Where the driver fails.
    ///
    /// # Safety
    /// So many bytes are allocated at both places.
    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()>;

    /// Writes bytes, once all work is done.
    ///
    /// # Errors
    /// Where the driver fails.
    ///
    /// # Safety
    /// So many bytes are allocated there.
    unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<()>;

    /// Reads bytes, once all work is done: the one call of a step that waits.
    ///
    /// # Errors
    /// Where the driver, or the work, failed.
    ///
    /// # Safety
    /// So many bytes are allocated there.
    unsafe fn read(&self, from: Address, bytes: &mut [u8]) -> Result<()>;

    /// Begins to copy from the host while other work goes on, through pinned memory of `slot` (0 or 1).
    ///
    /// # Errors
    /// Where the driver fails, or memory cannot be had.
    ///
    /// # Safety
    /// So many bytes are allocated at each place.
    unsafe fn send(&self, slot: usize, uploads: &[Upload]) -> Result<()>;

    /// Lets the work that follows wait for what was sent through `slot`.
    ///
    /// # Errors
    /// Where the driver fails.
    fn receive(&self, slot: usize) -> Result<()>;

    /// Starts a kernel with the struct that `args` points to.
    ///
    /// # Errors
    /// Where there is no such kernel, or the driver fails.
    ///
    /// # Safety
    /// The kernel takes such a struct, and all that it reads and writes is allocated.
    unsafe fn launch(&self, launch: &Launch, args: *const c_void) -> Result<()>;

    /// A matrix product.
    ///
    /// # Errors
    /// Where the library fails.
    ///
    /// # Safety
    /// The three matrices are allocated.
    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()>;

    /// The most memory that was allocated at a time so far, in bytes.
    fn peak_memory(&self) -> usize;
}
