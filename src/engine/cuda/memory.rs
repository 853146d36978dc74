//! A GPU's memory as typed buffers: what safe code hands to a kernel is allocated, of the type that it says, and as long as it
//! says.
#![allow(unsafe_code, reason = "lengths are checked here, and here addresses are made of buffers")]

use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

use super::stream::{Address, GpuStream, Upload};
use crate::nn::ActivationDtype;
use crate::{Error, Result};

/// A number of the activations' dtype, which is known when the network is built.
#[derive(Clone, Copy, Debug)]
pub struct Activation;

/// What a buffer holds.
pub trait Element: 'static {
    /// Bytes of each.
    fn bytes(dtype: ActivationDtype) -> usize;
}

impl Element for Activation {
    fn bytes(dtype: ActivationDtype) -> usize {
        dtype.bytes()
    }
}

impl<E: bytemuck::Pod> Element for E {
    fn bytes(_: ActivationDtype) -> usize {
        size_of::<E>()
    }
}

/// A kernel's argument: where numbers begin, or null where it is left out. Only a buffer makes one.
#[repr(transparent)]
pub struct DevicePtr<E> {
    address: Address,
    element: PhantomData<fn(E)>,
}

impl<E> Clone for DevicePtr<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for DevicePtr<E> {}

impl<E> Default for DevicePtr<E> {
    fn default() -> Self {
        Self { address: 0, element: PhantomData }
    }
}

impl<E> std::fmt::Debug for DevicePtr<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.address)
    }
}

/// Where buffers come from.
#[derive(Clone)]
pub struct Allocator {
    stream: Rc<dyn GpuStream>,
    dtype: ActivationDtype,
}

impl Allocator {
    /// From `stream`'s memory, for activations of `dtype`.
    #[must_use]
    pub fn new(stream: Rc<dyn GpuStream>, dtype: ActivationDtype) -> Self {
        Self { stream, dtype }
    }

    /// The stream.
    #[must_use]
    pub fn stream(&self) -> &Rc<dyn GpuStream> {
        &self.stream
    }

    /// The activations' dtype.
    #[must_use]
    pub fn dtype(&self) -> ActivationDtype {
        self.dtype
    }

    /// `len` elements, whatever they are.
    ///
    /// # Errors
    /// Kind `Memory` where there is no more.
    pub fn empty<E: Element>(&self, len: usize) -> Result<Slice<E>> {
        let element_bytes = E::bytes(self.dtype);
        let bytes = len.checked_mul(element_bytes);
        let bytes =
            bytes.ok_or_else(|| Error::memory(format!("{len} numbers are more than any GPU holds")))?;
        let address = self.stream.allocate(bytes)?;
        let allocation = Rc::new(Allocation { stream: Rc::clone(&self.stream), address });
        Ok(Slice { allocation, start: 0, len, element_bytes, element: PhantomData })
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// Kind `Memory` where there is no more.
    pub fn zeros<E: Element>(&self, len: usize) -> Result<Slice<E>> {
        let slice = self.empty(len)?;
        slice.zero()?;
        Ok(slice)
    }

    /// Begins to copy from the host while other work goes on, through pinned memory of `slot` (0 or 1).
    ///
    /// # Errors
    /// Where the driver fails, or memory cannot be had.
    pub fn send(&self, slot: usize, transfers: &[Transfer]) -> Result<()> {
        let uploads: Vec<Upload> =
            transfers.iter().map(|transfer| Upload { to: transfer.to, bytes: transfer.bytes }).collect();
        // SAFETY: each transfer keeps the memory that it is for, whose length was checked; before memory is freed, copies end.
        unsafe { self.stream.send(slot, &uploads) }
    }
}

/// Memory that goes back with it.
struct Allocation {
    stream: Rc<dyn GpuStream>,
    address: Address,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated by `Allocator::empty`, and no slice has it any more.
        unsafe { self.stream.free(self.address) };
    }
}

/// Elements of a GPU's memory, which is there as long as any slice of it is. As a tensor's storage, it may be shared.
pub struct Slice<E> {
    allocation: Rc<Allocation>,
    start: usize,
    len: usize,
    element_bytes: usize,
    element: PhantomData<fn(E)>,
}

impl<E> Clone for Slice<E> {
    fn clone(&self) -> Self {
        Self { allocation: Rc::clone(&self.allocation), ..*self }
    }
}

impl<E: Element> Slice<E> {
    /// How many elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Some of the elements.
    ///
    /// # Errors
    /// Where there are fewer.
    pub fn slice(&self, range: Range<usize>) -> Result<Self> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::run(format!("a GPU's buffer of {} numbers has no {range:?}", self.len)));
        }
        Ok(Self { start: self.start + range.start, len: range.len(), ..self.clone() })
    }

    /// As a kernel takes it.
    pub(super) fn ptr(&self) -> DevicePtr<E> {
        DevicePtr { address: self.address(), element: PhantomData }
    }

    pub(super) fn address(&self) -> Address {
        self.allocation.address + (self.start * self.element_bytes) as Address
    }

    fn stream(&self) -> &dyn GpuStream {
        self.allocation.stream.as_ref()
    }

    fn bytes(&self) -> usize {
        self.len * self.element_bytes
    }

    fn must_have(&self, len: usize) -> Result<()> {
        if len == self.len {
            return Ok(());
        }
        Err(Error::run(format!("{len} numbers for a GPU's buffer of {}", self.len)))
    }

    /// Sets all to 0.
    ///
    /// # Errors
    /// Where the driver fails.
    pub fn zero(&self) -> Result<()> {
        // SAFETY: its own memory.
        unsafe { self.stream().zero(self.address(), self.bytes()) }
    }

    /// Copies as many elements from another one.
    ///
    /// # Errors
    /// Where their numbers differ, or the driver fails.
    pub fn copy_from(&self, other: &Self) -> Result<()> {
        self.must_have(other.len)?;
        // SAFETY: both are as long.
        unsafe { self.stream().copy(other.address(), self.address(), self.bytes()) }
    }
}

impl<E: bytemuck::Pod> Slice<E> {
    /// Sets all from the host's memory, once all work is done.
    ///
    /// # Errors
    /// Where their numbers differ, or the driver fails.
    pub fn write(&self, values: &[E]) -> Result<()> {
        self.must_have(values.len())?;
        // SAFETY: as many bytes.
        unsafe { self.stream().write(self.address(), bytemuck::cast_slice(values)) }
    }

    /// All of them, once all work is done.
    ///
    /// # Errors
    /// Where the work failed.
    pub fn to_vec(&self) -> Result<Vec<E>> {
        let mut values = vec![E::zeroed(); self.len];
        // SAFETY: as many bytes.
        unsafe { self.stream().read(self.address(), bytemuck::cast_slice_mut(&mut values)) }?;
        Ok(values)
    }
}

impl Slice<f32> {
    /// Itself as activations, where those are f32.
    #[must_use]
    pub fn as_activations(&self, dtype: ActivationDtype) -> Option<Slice<Activation>> {
        let Self { allocation, start, len, element_bytes, .. } = self.clone();
        (dtype == ActivationDtype::F32).then_some(Slice {
            allocation,
            start,
            len,
            element_bytes,
            element: PhantomData,
        })
    }
}

/// Numbers of the host on their way to a buffer.
pub struct Transfer<'a> {
    to: Address,
    bytes: &'a [u8],
    _kept: Rc<Allocation>,
}

impl<'a> Transfer<'a> {
    /// `values` to all of `to`.
    ///
    /// # Errors
    /// Where their numbers differ.
    pub fn new<E: bytemuck::Pod>(to: &Slice<E>, values: &'a [E]) -> Result<Self> {
        to.must_have(values.len())?;
        Ok(Self { to: to.address(), bytes: bytemuck::cast_slice(values), _kept: Rc::clone(&to.allocation) })
    }
}

/// A row-major matrix in a GPU's memory.
pub struct Matrix<E> {
    data: Slice<E>,
    rows: usize,
    cols: usize,
    /// Elements from one row to the next.
    stride: usize,
}

impl<E> Clone for Matrix<E> {
    fn clone(&self) -> Self {
        Self { data: self.data.clone(), ..*self }
    }
}

impl<E: Element> Matrix<E> {
    /// The first elements of `data` as `rows` of `cols`.
    ///
    /// # Errors
    /// Where there are fewer.
    pub fn new(data: &Slice<E>, rows: usize, cols: usize) -> Result<Self> {
        Self::strided(data, rows, cols, cols)
    }

    fn strided(data: &Slice<E>, rows: usize, cols: usize, stride: usize) -> Result<Self> {
        let needed = if cols == 0 {
            Some(0)
        } else {
            rows.checked_sub(1).map_or(Some(0), |r| r.checked_mul(stride)?.checked_add(cols))
        };
        if needed.is_none_or(|needed| needed > data.len()) {
            let len = data.len();
            return Err(Error::run(format!("a GPU's buffer of {len} numbers has no {rows} rows of {cols}")));
        }
        Ok(Self { data: data.clone(), rows, cols, stride })
    }

    /// How many rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row to the next.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Some of the columns.
    ///
    /// # Errors
    /// Where there are fewer.
    pub fn columns(&self, range: Range<usize>) -> Result<Self> {
        if range.end > self.cols {
            return Err(Error::run(format!("a matrix of {} columns has no {range:?}", self.cols)));
        }
        let data = self.data.slice(range.start.min(self.data.len())..self.data.len())?;
        Self::strided(&data, self.rows, range.len(), self.stride)
    }

    /// The first of each `n` rows.
    ///
    /// # Errors
    /// Where they do not divide the rows.
    pub fn every(&self, n: usize) -> Result<Self> {
        if n == 0 || !self.rows.is_multiple_of(n) {
            return Err(Error::run(format!("{} rows are not a multiple of {n}", self.rows)));
        }
        Self::strided(&self.data, self.rows / n, self.cols, self.stride * n)
    }

    /// The first `rows` rows.
    ///
    /// # Errors
    /// Where there are fewer.
    pub fn first_rows(&self, rows: usize) -> Result<Self> {
        Self::strided(&self.data, rows, self.cols, self.stride)
    }

    /// Rows `range`.
    ///
    /// # Errors
    /// Where there are fewer, or they do not lie side by side.
    pub fn row_range(&self, range: Range<usize>) -> Result<Self> {
        Self::new(
            &self.flat()?.slice(range.start * self.cols..range.end * self.cols)?,
            range.len(),
            self.cols,
        )
    }

    /// The same numbers as other rows.
    ///
    /// # Errors
    /// Where the numbers do not come out, or do not lie side by side.
    pub fn reshape(&self, rows: usize, cols: usize) -> Result<Self> {
        let flat = self.flat()?;
        flat.must_have(rows * cols)?;
        Self::new(&flat, rows, cols)
    }

    /// All its numbers, row by row.
    ///
    /// # Errors
    /// Where its rows do not lie side by side.
    pub fn flat(&self) -> Result<Slice<E>> {
        if self.stride != self.cols {
            return Err(Error::run("the rows of a matrix do not lie side by side"));
        }
        self.data.slice(0..self.rows * self.cols)
    }

    /// Its first element, as a kernel takes it.
    pub(super) fn ptr(&self) -> DevicePtr<E> {
        self.data.ptr()
    }

    pub(super) fn address(&self) -> Address {
        self.data.address()
    }
}

/// Memory that grows to what is asked of it, and keeps nothing when it does. It serves one step after another.
pub struct Buffer<E> {
    memory: Option<Slice<E>>,
    rows: usize,
    cols: usize,
}

impl<E> Default for Buffer<E> {
    fn default() -> Self {
        Self { memory: None, rows: 0, cols: 0 }
    }
}

impl<E: Element> Buffer<E> {
    /// `rows` of `cols` elements, whatever they are.
    ///
    /// # Errors
    /// Kind `Memory` where there is no more.
    pub fn resize(&mut self, allocator: &Allocator, rows: usize, cols: usize) -> Result<Matrix<E>> {
        let len = rows.checked_mul(cols);
        let len =
            len.ok_or_else(|| Error::memory(format!("{rows} x {cols} numbers are more than any GPU holds")))?;
        if self.memory.as_ref().is_none_or(|memory| memory.len() < len) {
            // The old one first: there may not be memory for both.
            self.memory = None;
            self.memory = Some(allocator.empty(len)?);
        }
        (self.rows, self.cols) = (rows, cols);
        self.matrix()
    }

    /// `len` elements, whatever they are.
    ///
    /// # Errors
    /// Kind `Memory` where there is no more.
    pub fn resize_vector(&mut self, allocator: &Allocator, len: usize) -> Result<Slice<E>> {
        self.resize(allocator, 1, len)?.flat()
    }

    /// What it was sized to last.
    ///
    /// # Errors
    /// Where it never was: a backward pass before its forward pass.
    pub fn matrix(&self) -> Result<Matrix<E>> {
        let memory = self.memory.as_ref();
        let memory = memory.ok_or_else(|| Error::run("a GPU's buffer is read before it is written"))?;
        Matrix::new(memory, self.rows, self.cols)
    }

    /// The same as elements in a row.
    ///
    /// # Errors
    /// As [`Self::matrix`].
    pub fn vector(&self) -> Result<Slice<E>> {
        self.matrix()?.flat()
    }
}
