//! The network's operations on a GPU: which kernels they launch, with how many threads, on which buffers.
#![allow(unsafe_code, reason = "each operation checks that its buffers are as large as its kernel needs")]

use std::cell::RefCell;
use std::rc::Rc;

use super::kernels::{self, Args};
use super::memory::{Activation, Allocator, Buffer, DevicePtr, Element, Matrix, Slice};
use super::stream::{Gemm, GpuStream, Launch, Operand};
use crate::nn::images::{MEAN, STD};
use crate::nn::{ActivationDtype, Dropout, Pass};
use crate::random::Purpose;
use crate::{Error, Result};

/// A dropout's mask for one launch; none where it drops nothing.
#[derive(Clone, Default)]
pub struct Mask {
    words: Option<Slice<u16>>,
    /// What is kept counts so much.
    scale: f32,
}

/// The layer norm of a sum: `sum = x + drop_path(dropout(branch + branch_bias)) + position`, `xhat` = the sum normalised,
/// `y = xhat * weight + bias`; without a weight, `y` = the sum. (R, D) each, but for what `None` leaves out.
#[derive(Clone, Default)]
#[allow(missing_docs, reason = "named in the formula")]
pub struct NormForward<'a> {
    /// R.
    pub rows: usize,
    /// D.
    pub width: usize,
    /// Rows that a dropout's mask is drawn for together.
    pub sample_rows: usize,
    /// Its rows may lie apart by a multiple of D.
    pub x: Option<&'a Matrix<f32>>,
    pub branch: Option<&'a Matrix<Activation>>,
    pub branch_bias: Option<&'a Slice<f32>>,
    pub dropout: Mask,
    pub drop_path: Mask,
    /// (P, D): row `i` is added to rows `i`, `i + P`, ….
    pub position: Option<&'a Matrix<f32>>,
    pub sum: Option<&'a Matrix<f32>>,
    pub weight: Option<&'a Slice<f32>>,
    pub bias: Option<&'a Slice<f32>>,
    pub y: Option<&'a Matrix<f32>>,
    /// `y` as an operand of products.
    pub y_operand: Option<&'a Matrix<Activation>>,
    pub xhat: Option<&'a Matrix<Activation>>,
    /// (R): one over the standard deviation.
    pub rstd: Option<&'a Slice<f32>>,
}

/// The gradient of [`NormForward`].
#[allow(missing_docs, reason = "named as in the forward pass")]
pub struct NormBackward<'a> {
    pub sample_rows: usize,
    /// The gradient of `y` is the sum of both.
    pub dy: Option<&'a Matrix<f32>>,
    pub dy_operand: Option<&'a Matrix<Activation>>,
    pub xhat: &'a Matrix<Activation>,
    pub rstd: &'a Slice<f32>,
    pub weight: &'a Slice<f32>,
    pub bias: &'a Slice<f32>,
    /// What reaches the sum beside the norm: for all rows, or the first of each so many.
    pub d_sum: Option<&'a Matrix<f32>>,
    /// The gradient of `x`.
    pub d_x: Option<&'a Matrix<f32>>,
    /// Gets `y`, computed again; it may be `xhat`.
    pub y: Option<&'a Matrix<Activation>>,
    pub d_branch: Option<&'a Matrix<Activation>>,
    pub dropout: Mask,
    pub drop_path: Mask,
    /// (D) each; sums over the rows are added.
    pub d_weight: &'a Slice<f32>,
    pub d_bias: &'a Slice<f32>,
    pub d_branch_bias: Option<&'a Slice<f32>>,
}

/// `out = dropout(f + t)`; sums of its columns are added to `column_sums`.
#[derive(Default)]
#[allow(missing_docs, reason = "named in the formula")]
pub struct Combine<'a> {
    pub f: Option<&'a Matrix<f32>>,
    pub t: Option<&'a Matrix<Activation>>,
    pub out: Option<&'a Matrix<Activation>>,
    pub column_sums: Option<&'a Slice<f32>>,
    pub dropout: Mask,
    pub sample_rows: usize,
}

/// What follows an MLP's first product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nonlinearity {
    /// By the error function.
    Gelu,
    /// `max(0, x)`.
    Relu,
}

/// A bias, a nonlinearity and a dropout, for rows of an MLP's hidden numbers.
pub struct Activate<'a> {
    /// (R, M): before the bias.
    pub hidden: &'a Matrix<Activation>,
    /// (M).
    pub bias: &'a Slice<f32>,
    /// Which one.
    pub nonlinearity: Nonlinearity,
    /// The dropout's mask.
    pub dropout: Mask,
    /// Rows that it is drawn for together.
    pub sample_rows: usize,
}

/// Queries (N Q, D), keys and values (N K, D), or their gradients. Their rows may lie apart.
#[derive(Clone)]
#[allow(missing_docs, reason = "named as in attention")]
pub struct Qkv {
    pub q: Matrix<Activation>,
    pub k: Matrix<Activation>,
    pub v: Matrix<Activation>,
}

/// Multi-head attention.
pub struct Attention<'a> {
    /// Before their biases.
    pub qkv: &'a Qkv,
    /// (3 D): of queries, keys and values.
    pub bias: &'a Slice<f32>,
    /// (N, K): 1 = a key that may be seen; `None` = all.
    pub valid: Option<&'a Slice<u8>>,
    /// N.
    pub samples: usize,
    /// How many heads.
    pub heads: usize,
    /// For the weights, (N, H, K, K).
    pub dropout: Mask,
}

/// The gradient of [`Attention`].
#[allow(missing_docs, reason = "named as in attention")]
pub struct AttentionBackward<'a> {
    /// (N Q, D): what the forward pass gave.
    pub mixed: &'a Matrix<Activation>,
    /// (N H Q): the same.
    pub lse: &'a Slice<f32>,
    pub d_mixed: &'a Matrix<Activation>,
    /// (N H Q): in passing.
    pub delta: &'a Slice<f32>,
    /// Gets the gradients.
    pub d_qkv: &'a Qkv,
}

/// Images on the GPU.
#[derive(Clone)]
pub enum Pixels {
    /// Bytes (N, H, W, 3).
    Bytes(Slice<u8>),
    /// Normalised (N, 3, H, W).
    Normalised(Slice<f32>),
}

/// Images of one size, cut into patches.
#[derive(Clone, Copy, Debug)]
pub struct PatchGrid {
    /// Height and width of an image.
    pub image: usize,
    /// Height and width of a patch, which divides the image's.
    pub patch: usize,
}

impl PatchGrid {
    /// Patches of an image.
    #[must_use]
    pub fn patches(self) -> usize {
        (self.image / self.patch).pow(2)
    }

    /// Numbers of a patch.
    #[must_use]
    pub fn patch_numbers(self) -> usize {
        3 * self.patch * self.patch
    }

    /// Numbers of an image.
    #[must_use]
    pub fn image_numbers(self) -> usize {
        3 * self.image * self.image
    }
}

/// Patches to tokens (N, S, D): a class token before the embedded patches, and positions.
pub struct Embed<'a> {
    /// (N P, D): embedded, before their bias.
    pub patches: &'a Matrix<Activation>,
    /// (D).
    pub bias: &'a Slice<f32>,
    /// (D).
    pub class_token: &'a Slice<f32>,
    /// (S D).
    pub position: &'a Slice<f32>,
    /// For each image's tokens.
    pub dropout: Mask,
    /// (N S, D).
    pub x: &'a Matrix<f32>,
}

/// Labels, loss and its gradient of a batch's logits.
pub struct CrossEntropy<'a> {
    /// (B, V); the bias is added.
    pub logits: &'a Matrix<f32>,
    /// (V).
    pub bias: &'a Slice<f32>,
    /// (B), each below V.
    pub targets: &'a Slice<u32>,
    /// (B, V), with the loss's scale.
    pub d_logits: Option<(&'a Matrix<Activation>, f64)>,
    /// (B).
    pub losses: &'a Slice<f32>,
    /// (B): 1 where the class was right.
    pub correct: &'a Slice<i32>,
    /// Label smoothing.
    pub smoothing: f64,
}

/// A result of a product.
#[derive(Clone, Copy)]
pub enum Output<'a> {
    /// In the activations' dtype.
    Activation(&'a Matrix<Activation>),
    /// In f32.
    F32(&'a Matrix<f32>),
}

/// Whether a product replaces what its result holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It does.
    Replace,
    /// It is added.
    Accumulate,
}

/// A factor of a product.
#[derive(Clone, Copy)]
pub enum Factor<'a> {
    /// As it lies in memory.
    Plain(&'a Matrix<Activation>),
    /// The transpose of what lies in memory.
    Transposed(&'a Matrix<Activation>),
}

/// What the update does, and what of it is the same for all rules.
pub struct Update<'a> {
    /// All parameters.
    pub parameters: &'a Slice<f32>,
    /// Their gradients.
    pub gradients: &'a Slice<f32>,
    /// Their copies that products take, where they are others.
    pub operands: Option<&'a Slice<Activation>>,
    /// What [`Ops::check_step`] left.
    pub verdict: &'a Slice<kernels::Verdict>,
}

/// Adam's numbers of one step, as [`kernels::Adam`] takes them.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "named as in the optimizer")]
pub struct Adam {
    pub decay: f32,
    pub l2: f32,
    pub step_size: f32,
    pub root_correction: f32,
    pub rest1: f32,
    pub beta2: f32,
    pub rest2: f32,
    pub eps: f32,
}

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

/// Rows that share a mask, as a kernel divides by them.
fn sample_rows(rows: usize) -> Result<i32> {
    int(rows.max(1))
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

impl Mask {
    /// Words of 16 elements that a sample of `elements` has.
    fn sample_words(elements: usize) -> usize {
        elements.div_ceil(16)
    }

    /// For `samples` of `elements` each.
    fn ptr(&self, samples: usize, elements: usize) -> Result<DevicePtr<u16>> {
        at_least(self.words.as_ref(), samples.saturating_mul(Self::sample_words(elements)))
    }

    /// For `rows` of `width`, `sample_rows` of them a sample.
    fn for_rows(&self, rows: usize, width: usize, sample_rows: usize) -> Result<DevicePtr<u16>> {
        let sample_rows = sample_rows.max(1);
        self.ptr(rows.div_ceil(sample_rows), sample_rows.saturating_mul(width))
    }

    /// Whether it drops anything.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.words.is_some()
    }
}

impl Pixels {
    /// Numbers `range`.
    ///
    /// # Errors
    /// Where there are fewer.
    pub fn slice(&self, range: std::ops::Range<usize>) -> Result<Self> {
        Ok(match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.slice(range)?),
            Self::Normalised(numbers) => Self::Normalised(numbers.slice(range)?),
        })
    }
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

    /// A matrix product of `a` (M, K) and `b` (K, N).
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the library fails.
    pub fn matmul(&self, a: Factor, b: Factor, out: Output, write: Write) -> Result<()> {
        let ((m, k, a), (rows, n, b)) = (a.parts(), b.parts());
        let (to, c, ldc, c_is_f32) = match out {
            Output::Activation(c) => ((c.rows(), c.cols()), c.address(), c.stride(), false),
            Output::F32(c) => ((c.rows(), c.cols()), c.address(), c.stride(), true),
        };
        if k != rows || to != (m, n) {
            return Err(Error::run(format!(
                "a product of {m} x {k} and {rows} x {n} is not {} x {}",
                to.0, to.1
            )));
        }
        if m == 0 || n == 0 || k == 0 {
            return Ok(());
        }
        // SAFETY: matrices lie within their buffers.
        unsafe {
            self.stream().gemm(&Gemm {
                m,
                n,
                k,
                a,
                b,
                c,
                ldc,
                c_is_f32,
                accumulate: write == Write::Accumulate,
            })
        }
    }

    /// The mask of `dropout` for `samples` of `elements` each. It is there until the next one is drawn.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn mask(
        &self,
        dropout: Option<Dropout>,
        pass: &Pass,
        samples: usize,
        elements: usize,
    ) -> Result<Mask> {
        self.draw(&self.masks, dropout, pass, samples, elements)
    }

    /// The mask of stochastic depth: one element a sample. It is there until the next one is drawn.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn path_mask(&self, drop_path: Option<Dropout>, pass: &Pass, samples: usize) -> Result<Mask> {
        self.draw(&self.path_masks, drop_path, pass, samples, 1)
    }

    fn draw(
        &self,
        buffer: &RefCell<Buffer<u16>>,
        dropout: Option<Dropout>,
        pass: &Pass,
        samples: usize,
        elements: usize,
    ) -> Result<Mask> {
        let (Some(dropout), Some(masks)) = (dropout.filter(Dropout::is_active), pass.masks) else {
            return Ok(Mask::default());
        };
        let words = samples.saturating_mul(Mask::sample_words(elements));
        let out = buffer.borrow_mut().resize_vector(&self.allocator, words)?;
        let args = kernels::Mask {
            out: out.ptr(),
            // The same bits: the kernel reads them as unsigned.
            seed: masks.seed.cast_signed(),
            step: masks.step.cast_signed(),
            site: dropout.site().cast_signed(),
            first_sample: long(pass.first_row)?,
            samples: long(samples)?,
            elements: long(elements)?,
            purpose: Purpose::Dropout as u32,
            threshold: dropout.threshold(),
        };
        self.launch_each("mask", 128, words, &args)?;
        Ok(Mask { words: Some(out), scale: dropout.scale() })
    }

    /// A residual sum and its layer norm.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn norm(&self, a: &NormForward) -> Result<()> {
        let (rows, width) = (a.rows, a.width);
        let x_step = a.x.map_or(Ok(1), |x| times(x.stride(), width.max(1)))?;
        if a.x.is_some_and(|x| (x.rows(), x.cols()) != (rows, width)) {
            return Err(Error::run(format!("a norm takes {rows} x {width} numbers")));
        }
        let period = a.position.map_or(1, Matrix::rows);
        let args = kernels::NormForward {
            x: a.x.map(Matrix::ptr).unwrap_or_default(),
            branch: rows_of(a.branch, rows, width)?,
            bias: at_least(a.branch_bias, width)?,
            position: rows_of(a.position, period, width)?,
            drop: a.dropout.for_rows(rows, width, a.sample_rows)?,
            path: a.drop_path.ptr(rows.div_ceil(a.sample_rows.max(1)), 1)?,
            sum: rows_of(a.sum, rows, width)?,
            weight: at_least(a.weight, width)?,
            shift: at_least(a.bias, width)?,
            y: rows_of(a.y, rows, width)?,
            y_t: rows_of(a.y_operand, rows, width)?,
            xhat: rows_of(a.xhat, rows, width)?,
            rstd: at_least(a.rstd, rows)?,
            rows: int(rows)?,
            width: int(width)?,
            x_step: int(x_step)?,
            rows_a_sample: sample_rows(a.sample_rows)?,
            period: int(period.max(1))?,
            drop_scale: a.dropout.scale,
            path_scale: a.drop_path.scale,
        };
        self.launch_rows("norm_forward", vector(width), [rows.div_ceil(4), 1, 1], 16 * width, &args)
    }

    /// The gradient of [`Self::norm`].
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn norm_backward(&self, a: &NormBackward) -> Result<()> {
        let (rows, width) = (a.xhat.rows(), a.xhat.cols());
        let block_rows = rows.div_ceil(NORM_BLOCKS).max(4);
        let blocks = rows.div_ceil(block_rows);
        let partial = self.partial.borrow_mut().resize(&self.allocator, blocks, 3 * width)?;
        let in_step = a.d_sum.map_or(Ok(1), |d_sum| times(rows, d_sum.rows()))?;
        let args = kernels::NormBackward {
            dy: rows_of(a.dy, rows, width)?,
            dy_t: rows_of(a.dy_operand, rows, width)?,
            xhat: rows_of(Some(a.xhat), rows, width)?,
            rstd: at_least(Some(a.rstd), rows)?,
            weight: at_least(Some(a.weight), width)?,
            shift: at_least(Some(a.bias), width)?,
            d_in: rows_of(a.d_sum, rows / in_step, width)?,
            d_x: rows_of(a.d_x, rows, width)?,
            y: rows_of(a.y, rows, width)?,
            d_branch: rows_of(a.d_branch, rows, width)?,
            drop: a.dropout.for_rows(rows, width, a.sample_rows)?,
            path: a.drop_path.ptr(rows.div_ceil(a.sample_rows.max(1)), 1)?,
            partial: partial.ptr(),
            rows: int(rows)?,
            width: int(width)?,
            in_step: int(in_step)?,
            rows_a_sample: sample_rows(a.sample_rows)?,
            rows_a_block: int(block_rows)?,
            drop_scale: a.dropout.scale,
            path_scale: a.drop_path.scale,
        };
        // Four rows of f32 for each warp: of wide rows, a GPU's shared memory holds fewer.
        let warps = [4, 2, 1].into_iter().find(|warps| 16 * warps * width <= USUAL_SHARED).unwrap_or(1);
        let kernel = format!("norm_backward_{}", vector(width));
        self.launch(&kernel, [blocks, 1, 1], 32 * warps, 16 * warps * width, &args)?;
        self.reduce(&partial, &[Some(a.d_weight), Some(a.d_bias), a.d_branch_bias])
    }

    /// A sum, its dropout and the sums of its columns.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn combine(&self, a: &Combine) -> Result<()> {
        let sizes = a.f.map(|f| (f.rows(), f.cols())).or_else(|| a.t.map(|t| (t.rows(), t.cols())));
        let (rows, width) = sizes.unwrap_or_default();
        let columns = Columns::new(rows, width);
        let partial = match a.column_sums {
            Some(_) => Some(self.partial.borrow_mut().resize(&self.allocator, columns.parts(), width)?),
            None => None,
        };
        let args = kernels::Combine {
            f: rows_of(a.f, rows, width)?,
            t: rows_of(a.t, rows, width)?,
            out: rows_of(a.out, rows, width)?,
            drop: a.dropout.for_rows(rows, width, a.sample_rows)?,
            partial: partial.as_ref().map(Matrix::ptr).unwrap_or_default(),
            rows: int(rows)?,
            width: int(width)?,
            rows_a_sample: sample_rows(a.sample_rows)?,
            rows_a_block: int(columns.block_rows)?,
            drop_scale: a.dropout.scale,
        };
        self.launch_rows("combine", columns.vector, columns.blocks, 0, &args)?;
        match partial {
            Some(partial) => self.reduce(&partial, &[a.column_sums]),
            None => Ok(()),
        }
    }

    /// Adds the sums of the columns of `x` to `sums`.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn add_column_sums(&self, x: &Matrix<Activation>, sums: &Slice<f32>) -> Result<()> {
        self.combine(&Combine { t: Some(x), column_sums: Some(sums), ..Combine::default() })
    }

    /// Some of `x` dropped, in place.
    ///
    /// # Errors
    /// Where the GPU fails.
    pub fn drop_in_place(&self, x: &Matrix<Activation>, dropout: Mask, sample_rows: usize) -> Result<()> {
        if !dropout.is_active() {
            return Ok(());
        }
        self.combine(&Combine { t: Some(x), out: Some(x), dropout, sample_rows, ..Combine::default() })
    }

    /// `out = dropout(nonlinearity(hidden + bias))`.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn activate(&self, a: &Activate, out: &Matrix<Activation>) -> Result<()> {
        let (rows, width) = (a.hidden.rows(), a.hidden.cols());
        let columns = Columns::new(rows, width);
        let args = kernels::Activate {
            hidden: rows_of(Some(a.hidden), rows, width)?,
            bias: at_least(Some(a.bias), width)?,
            out: rows_of(Some(out), rows, width)?,
            drop: a.dropout.for_rows(rows, width, a.sample_rows)?,
            rows: int(rows)?,
            width: int(width)?,
            rows_a_sample: sample_rows(a.sample_rows)?,
            rows_a_block: int(columns.block_rows)?,
            relu: (a.nonlinearity == Nonlinearity::Relu).into(),
            drop_scale: a.dropout.scale,
        };
        self.launch_rows("activate", columns.vector, columns.blocks, 0, &args)
    }

    /// The gradient of [`Self::activate`], in place: `d`, that of the output, becomes that of `hidden`, and `hidden` the
    /// output. The bias's is added to `d_bias`.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn activate_backward(&self, a: &Activate, d: &Matrix<Activation>, d_bias: &Slice<f32>) -> Result<()> {
        let (rows, width) = (a.hidden.rows(), a.hidden.cols());
        let columns = Columns::new(rows, width);
        let partial = self.partial.borrow_mut().resize(&self.allocator, columns.parts(), width)?;
        let args = kernels::ActivateBackward {
            hidden: rows_of(Some(a.hidden), rows, width)?,
            d: rows_of(Some(d), rows, width)?,
            bias: at_least(Some(a.bias), width)?,
            drop: a.dropout.for_rows(rows, width, a.sample_rows)?,
            partial: partial.ptr(),
            rows: int(rows)?,
            width: int(width)?,
            rows_a_sample: sample_rows(a.sample_rows)?,
            rows_a_block: int(columns.block_rows)?,
            relu: (a.nonlinearity == Nonlinearity::Relu).into(),
            drop_scale: a.dropout.scale,
        };
        self.launch_rows("activate_backward", columns.vector, columns.blocks, 0, &args)?;
        self.reduce(&partial, &[Some(d_bias)])
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

    /// Attention: the heads' outputs to `mixed` (N Q, D), and to `lse` (N H Q) what the gradient needs.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn attention(
        &self,
        a: &Attention,
        mixed: &Matrix<Activation>,
        lse: Option<&Slice<f32>>,
    ) -> Result<()> {
        let (args, size) = Self::attention_args(a)?;
        let args = kernels::Attention {
            mixed: rows_of(Some(mixed), a.qkv.q.rows(), size.width)?,
            lse: at_least(lse, size.sums(a))?,
            ..args
        };
        let blocks = [size.queries.div_ceil(64), a.heads, a.samples];
        let kernel = format!("attention_forward_{}", size.head);
        self.launch(&kernel, blocks, 128, self.attention_shared(size.head), &args)
    }

    /// The gradient of [`Self::attention`].
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn attention_backward(&self, a: &Attention, b: &AttentionBackward) -> Result<()> {
        let (args, size) = Self::attention_args(a)?;
        let same = |x: &Matrix<Activation>, d: &Matrix<Activation>| {
            (x.rows(), x.cols(), x.stride()) == (d.rows(), d.cols(), d.stride())
        };
        let Qkv { q, k, v } = a.qkv;
        if !(same(q, &b.d_qkv.q) && same(k, &b.d_qkv.k) && same(v, &b.d_qkv.v)) {
            return Err(Error::run("attention's gradients lie otherwise than queries, keys and values"));
        }
        let args = kernels::Attention {
            mixed: rows_of(Some(b.mixed), q.rows(), size.width)?,
            lse: at_least(Some(b.lse), size.sums(a))?,
            d_mixed: rows_of(Some(b.d_mixed), q.rows(), size.width)?,
            delta: at_least(Some(b.delta), size.sums(a))?,
            d_q: b.d_qkv.q.ptr(),
            d_k: b.d_qkv.k.ptr(),
            d_v: b.d_qkv.v.ptr(),
            ..args
        };
        let shared = self.attention_shared(size.head);
        let blocks = |rows: usize| [rows.div_ceil(64), a.heads, a.samples];
        let kernel = |of: &str| format!("attention_backward_{of}_{}", size.head);
        self.launch(&kernel("q"), blocks(size.queries), 128, shared, &args)?;
        self.launch(&kernel("kv"), blocks(size.keys), 128, shared + 2 * 4 * 32, &args)
    }

    /// What is the same in attention's forward and backward pass.
    fn attention_args(a: &Attention) -> Result<(kernels::Attention, AttentionSize)> {
        let Qkv { q, k, v } = a.qkv;
        let width = q.cols();
        let size = AttentionSize {
            width,
            head: times(width, a.heads)?,
            queries: times(q.rows(), a.samples)?,
            keys: times(k.rows(), a.samples)?,
        };
        if (k.rows(), k.cols(), k.stride()) != (v.rows(), v.cols(), v.stride()) || k.cols() != width {
            return Err(Error::run("attention's keys and values lie differently"));
        }
        let bias = |part: usize| Ok::<_, Error>(a.bias.slice(part * width..(part + 1) * width)?.ptr());
        let args = kernels::Attention {
            q: q.ptr(),
            k: k.ptr(),
            v: v.ptr(),
            q_bias: bias(0)?,
            k_bias: bias(1)?,
            v_bias: bias(2)?,
            valid: at_least(a.valid, k.rows())?,
            drop: a.dropout.ptr(a.samples, a.heads * size.keys * size.keys)?,
            drop_scale: a.dropout.scale,
            q_sample: long(size.queries * q.stride())?,
            kv_sample: long(size.keys * k.stride())?,
            queries: int(size.queries)?,
            keys: int(size.keys)?,
            heads: int(a.heads)?,
            width: int(width)?,
            q_row: int(q.stride())?,
            kv_row: int(k.stride())?,
            scale: 1.0 / (size.head as f32).sqrt(),
            ..kernels::Attention::default()
        };
        Ok((args, size))
    }

    /// Two tiles of 64 rows, as `attention.cu` lays them out.
    fn attention_shared(&self, head: usize) -> usize {
        2 * 64 * (head.next_multiple_of(16) + 8) * self.dtype().bytes()
    }

    /// Images to patches (N P, 3 p p).
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn patches(&self, pixels: &Pixels, grid: PatchGrid, out: &Matrix<Activation>) -> Result<()> {
        let images = times(out.rows(), grid.patches())?;
        let numbers = images.saturating_mul(grid.image_numbers());
        let (bytes, normalised) = match pixels {
            Pixels::Bytes(bytes) => (Some(bytes), None),
            Pixels::Normalised(numbers) => (None, Some(numbers)),
        };
        let args = kernels::Patches {
            bytes: at_least(bytes, numbers)?,
            normalised: at_least(normalised, numbers)?,
            out: rows_of(Some(out), out.rows(), grid.patch_numbers())?,
            images: int(images)?,
            size: int(grid.image)?,
            patch: int(grid.patch)?,
            factor: STD.map(|std| 1.0 / (255.0 * std)),
            offset: std::array::from_fn(|c| -MEAN[c] / STD[c]),
        };
        self.launch("patches", [out.rows(), 1, 1], 256, 0, &args)
    }

    /// Patches to tokens.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn embed(&self, a: &Embed) -> Result<()> {
        let (rows, width) = (a.x.rows(), a.x.cols());
        let tokens = times(a.position.len(), width)?;
        let images = times(rows, tokens)?;
        let args = kernels::Embed {
            patches: rows_of(Some(a.patches), images * (tokens - 1), width)?,
            bias: at_least(Some(a.bias), width)?,
            class_token: at_least(Some(a.class_token), width)?,
            position: a.position.ptr(),
            drop: a.dropout.ptr(images, tokens * width)?,
            x: rows_of(Some(a.x), rows, width)?,
            images: int(images)?,
            tokens: int(tokens)?,
            width: int(width)?,
            drop_scale: a.dropout.scale,
        };
        self.launch("embed", [rows, 1, 1], 128, 0, &args)
    }

    /// The gradient of [`Self::embed`]: that of the tokens, `d_x` (N S, D), to that of the embedded patches (N P, D), and to
    /// its sums over images, `sums` (S, D).
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn embed_backward(
        &self,
        d_x: &Matrix<f32>,
        dropout: &Mask,
        d_patches: &Matrix<Activation>,
        sums: &Matrix<f32>,
    ) -> Result<()> {
        let (tokens, width) = (sums.rows(), sums.cols());
        let images = times(d_x.rows(), tokens)?;
        let args = kernels::EmbedBackward {
            d_x: rows_of(Some(d_x), d_x.rows(), width)?,
            drop: dropout.ptr(images, tokens * width)?,
            d_patches: rows_of(Some(d_patches), images * (tokens - 1), width)?,
            sums: rows_of(Some(sums), tokens, width)?,
            images: int(images)?,
            tokens: int(tokens)?,
            width: int(width)?,
            drop_scale: dropout.scale,
        };
        self.launch_each("embed_backward", 256, tokens * width, &args)
    }

    /// The mean over each clip's frames: `x` (B T, D), those that are `valid` (B T), to `mean` (B, D).
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn pool(&self, x: &Matrix<f32>, valid: &Slice<u8>, mean: &Matrix<Activation>) -> Result<()> {
        let (clips, width) = (mean.rows(), mean.cols());
        let args = kernels::Pool {
            x: rows_of(Some(x), x.rows(), width)?,
            valid: at_least(Some(valid), x.rows())?,
            mean: rows_of(Some(mean), clips, width)?,
            clips: int(clips)?,
            frames: int(times(x.rows(), clips)?)?,
            width: int(width)?,
        };
        self.launch_each("pool", 256, clips * width, &args)
    }

    /// The gradient of [`Self::pool`].
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn pool_backward(&self, d_mean: &Matrix<f32>, valid: &Slice<u8>, d_x: &Matrix<f32>) -> Result<()> {
        let (clips, width) = (d_mean.rows(), d_mean.cols());
        let args = kernels::PoolBackward {
            d_mean: rows_of(Some(d_mean), clips, width)?,
            valid: at_least(Some(valid), d_x.rows())?,
            d_x: rows_of(Some(d_x), d_x.rows(), width)?,
            clips: int(clips)?,
            frames: int(times(d_x.rows(), clips)?)?,
            width: int(width)?,
        };
        self.launch_each("pool_backward", 256, d_x.rows() * width, &args)
    }

    /// The loss of each clip, and its gradient. The caller has checked that all targets are classes.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn cross_entropy(&self, a: &CrossEntropy) -> Result<()> {
        let (clips, classes) = (a.logits.rows(), a.logits.cols());
        let args = kernels::CrossEntropy {
            logits: rows_of(Some(a.logits), clips, classes)?,
            bias: at_least(Some(a.bias), classes)?,
            targets: at_least(Some(a.targets), clips)?,
            d_logits: rows_of(a.d_logits.map(|(d_logits, _)| d_logits), clips, classes)?,
            loss: at_least(Some(a.losses), clips)?,
            right: at_least(Some(a.correct), clips)?,
            classes: int(classes)?,
            smoothing: a.smoothing as f32,
            scale: a.d_logits.map_or(0.0, |(_, scale)| scale as f32),
        };
        self.launch("cross_entropy", [clips, 1, 1], 256, 64, &args)
    }

    /// The norm of `gradients`, times `factor`, what they are multiplied by to have no norm above `max_norm`, the mean of
    /// `losses`, and whether all of it is finite, to `verdict`.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn check_step(
        &self,
        gradients: &Slice<f32>,
        losses: Option<&Slice<f32>>,
        factor: f64,
        max_norm: Option<f64>,
        verdict: &Slice<kernels::Verdict>,
    ) -> Result<()> {
        let count = gradients.len();
        let blocks = count.div_ceil(256 * 8).clamp(1, BLOCKS);
        let partial = self.partial_squares.borrow_mut().resize_vector(&self.allocator, blocks)?;
        let squares = kernels::Squares { x: gradients.ptr(), partial: partial.ptr(), count: long(count)? };
        self.launch("squares", [blocks, 1, 1], 256, 8 * 256, &squares)?;
        let args = kernels::Judge {
            partial: partial.ptr(),
            loss: at_least(losses, 0)?,
            verdict: at_least(Some(verdict), 1)?,
            share: factor,
            most: max_norm.unwrap_or(0.0),
            parts: int(blocks)?,
            clips: int(losses.map_or(0, Slice::len))?,
        };
        self.launch("judge", [1, 1, 1], 256, 8 * 256, &args)
    }

    /// Adam's and `AdamW`'s update of all parameters, with both `moments`.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn adam(&self, a: &Update, moments: &[Slice<f32>; 2], rule: Adam) -> Result<()> {
        let Adam { decay, l2, step_size, root_correction, rest1, beta2, rest2, eps } = rule;
        let count = a.parameters.len();
        let [m, v] = moments;
        let args = kernels::Adam {
            parameter: a.parameters.ptr(),
            gradient: at_least(Some(a.gradients), count)?,
            m: at_least(Some(m), count)?,
            v: at_least(Some(v), count)?,
            stored: at_least(a.operands, count)?,
            verdict: at_least(Some(a.verdict), 1)?,
            count: long(count)?,
            decay,
            l2,
            step_size,
            root_correction,
            rest1,
            beta2,
            rest2,
            eps,
        };
        self.launch_each("adam", 256, count, &args)
    }

    /// SGD's update of all parameters.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn sgd(&self, a: &Update, lr: f32, l2: f32) -> Result<()> {
        let count = a.parameters.len();
        let args = kernels::Sgd {
            parameter: a.parameters.ptr(),
            gradient: at_least(Some(a.gradients), count)?,
            stored: at_least(a.operands, count)?,
            verdict: at_least(Some(a.verdict), 1)?,
            count: long(count)?,
            lr,
            l2,
        };
        self.launch_each("sgd", 256, count, &args)
    }

    /// f32 to the activations' dtype.
    ///
    /// # Errors
    /// Where sizes do not fit each other, or the GPU fails.
    pub fn cast(&self, x: &Slice<f32>, out: &Slice<Activation>) -> Result<()> {
        let args = kernels::Cast { x: x.ptr(), out: at_least(Some(out), x.len())?, count: long(x.len())? };
        self.launch_each("cast", 256, x.len(), &args)
    }
}

/// Sizes of an attention.
struct AttentionSize {
    /// D.
    width: usize,
    /// Of one head.
    head: usize,
    /// Of each sample.
    queries: usize,
    /// Of each sample.
    keys: usize,
}

impl AttentionSize {
    /// How many sums of exponentials there are: one a query and head.
    fn sums(&self, a: &Attention) -> usize {
        a.samples * a.heads * self.queries
    }
}

impl Factor<'_> {
    /// Rows and columns as a factor, and where it lies.
    fn parts(self) -> (usize, usize, Operand) {
        let (matrix, transposed) = match self {
            Self::Plain(matrix) => (matrix, false),
            Self::Transposed(matrix) => (matrix, true),
        };
        let operand = Operand { address: matrix.address(), ld: matrix.stride(), transposed };
        let (rows, cols) = (matrix.rows(), matrix.cols());
        if transposed { (cols, rows, operand) } else { (rows, cols, operand) }
    }
}
