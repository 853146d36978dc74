//! The network's operations on a GPU: which kernels they launch, with how many threads, on what.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::Result;

use super::kernels::{self, Args};
use super::machine::{Gemm, Machine, Matrix, Ptr, Room};
use crate::nn::{Dropout, Pass, Stored};
use crate::random::Purpose;

/// A dropout's mask for one launch; none where it drops nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mask {
    /// Where its words are, or 0.
    pub words: Ptr,
    /// What is kept counts so much.
    pub scale: f32,
}

/// Where queries, keys and values are, or their gradients, and how they lie there.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "named as in attention")]
pub struct Qkv {
    pub q: Ptr,
    pub k: Ptr,
    pub v: Ptr,
    /// Numbers from one query to the next, of all heads.
    pub q_row: usize,
    /// The same of keys and values.
    pub kv_row: usize,
    /// Of each sample.
    pub queries: usize,
    /// Of each sample.
    pub keys: usize,
}

impl Qkv {
    /// All three side by side, `width` numbers each, for `tokens` a sample.
    #[must_use]
    pub fn joined(ops: &Ops, at: Ptr, width: usize, tokens: usize) -> Self {
        let (k, v) = (ops.stored_at(at, width), ops.stored_at(at, 2 * width));
        Self { q: at, k, v, q_row: 3 * width, kv_row: 3 * width, queries: tokens, keys: tokens }
    }

    /// What is the same in attention's forward and backward pass; the biases of the three lie one after another.
    #[must_use]
    pub fn attention(self, bias: Ptr, width: usize, heads: usize, mask: Mask) -> kernels::Attention {
        let of = |part: usize| bias + (4 * part * width) as Ptr;
        kernels::Attention {
            q: self.q,
            k: self.k,
            v: self.v,
            q_bias: of(0),
            k_bias: of(1),
            v_bias: of(2),
            drop: mask.words,
            drop_scale: mask.scale,
            q_sample: long(self.queries * self.q_row),
            kv_sample: long(self.keys * self.kv_row),
            queries: int(self.queries),
            keys: int(self.keys),
            heads: int(heads),
            width: int(width),
            q_row: int(self.q_row),
            kv_row: int(self.kv_row),
            scale: 1.0 / ((width / heads) as f32).sqrt(),
            ..kernels::Attention::default()
        }
    }
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

/// Launches, with the memory that they need in passing.
pub struct Ops {
    machine: Rc<dyn Machine>,
    stored: Stored,
    drop: RefCell<Room>,
    path: RefCell<Room>,
    partial: RefCell<Room>,
}

/// How `rows` rows of `width` are shared out to blocks down the columns.
struct Columns {
    blocks: [usize; 3],
    rows_a_block: usize,
    vector: usize,
}

impl Columns {
    fn new(rows: usize, width: usize) -> Self {
        let vector = vector(&[width]);
        let across = width.div_ceil(COLUMNS * vector);
        let rows_a_block = (rows * across).div_ceil(BLOCKS).max(1);
        Self { blocks: [across, rows.div_ceil(rows_a_block), 1], rows_a_block, vector }
    }
}

/// The largest variant of the row kernels that all `widths` allow.
fn vector(widths: &[usize]) -> usize {
    if widths.iter().all(|width| width.is_multiple_of(4)) { 4 } else { 1 }
}

pub(super) fn long(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

pub(super) fn int(n: usize) -> i32 {
    // Sizes that do not fit are refused before anything is launched: `Engine::new`.
    i32::try_from(n).unwrap_or(i32::MAX)
}

impl Ops {
    /// On `machine`, whose kernels are for `stored`.
    #[must_use]
    pub fn new(machine: Rc<dyn Machine>, stored: Stored) -> Self {
        let room = RefCell::<Room>::default;
        Self { machine, stored, drop: room(), path: room(), partial: room() }
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Rc<dyn Machine> {
        &self.machine
    }

    /// How activations are stored.
    #[must_use]
    pub fn stored(&self) -> Stored {
        self.stored
    }

    /// Room for `count` stored numbers.
    pub fn stored_room(&self, room: &mut Room, count: usize) -> Result<Ptr> {
        room.of(&self.machine, count * self.stored.bytes())
    }

    /// Room for `count` f32 numbers.
    pub fn f32_room(&self, room: &mut Room, count: usize) -> Result<Ptr> {
        room.of(&self.machine, count * 4)
    }

    /// The address of stored number `index` from `at`.
    #[must_use]
    pub fn stored_at(&self, at: Ptr, index: usize) -> Ptr {
        at + (index * self.stored.bytes()) as Ptr
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
        self.machine.launch(kernel, blocks, threads, shared, std::ptr::from_ref(a).cast())
    }

    /// A kernel with one thread an element.
    fn launch_each<A: Args>(&self, kernel: &str, threads: usize, elements: usize, a: &A) -> Result<()> {
        self.launch(kernel, [elements.div_ceil(threads), 1, 1], threads, 0, a)
    }

    /// A kernel of `rows.cu` in the variant for `vector`.
    fn launch_rows<A: Args>(
        &self,
        [one, four]: [&str; 2],
        vector: usize,
        blocks: [usize; 3],
        shared: usize,
        a: &A,
    ) -> Result<()> {
        self.launch(if vector == 4 { four } else { one }, blocks, 128, shared, a)
    }

    /// `out (rows, outputs) = x (rows, inputs) weight^T`, `weight` (outputs, inputs), with the rows of `x` and `out`
    /// `x_ld` and `out_ld` apart.
    pub fn linear(
        &self,
        rows: usize,
        (x, x_ld): (Ptr, usize),
        (weight, inputs, outputs): (Ptr, usize, usize),
        (out, out_ld): (Ptr, usize),
        wide: bool,
    ) -> Result<()> {
        let (a, b) = (Matrix::new(x, x_ld), Matrix::turned(weight, inputs));
        self.gemm(&Gemm { m: rows, n: outputs, k: inputs, a, b, c: out, ldc: out_ld, wide, add: false })
    }

    /// The gradient of [`Self::linear`]'s input, or added to what is there.
    pub fn linear_input(
        &self,
        rows: usize,
        (d_out, out_ld): (Ptr, usize),
        (weight, inputs, outputs): (Ptr, usize, usize),
        (d_x, x_ld): (Ptr, usize),
        (wide, add): (bool, bool),
    ) -> Result<()> {
        let (a, b) = (Matrix::new(d_out, out_ld), Matrix::new(weight, inputs));
        self.gemm(&Gemm { m: rows, n: inputs, k: outputs, a, b, c: d_x, ldc: x_ld, wide, add })
    }

    /// Adds the gradient of [`Self::linear`]'s weight to `gradient`, f32.
    pub fn linear_weight(
        &self,
        rows: usize,
        (x, x_ld): (Ptr, usize),
        (d_out, out_ld): (Ptr, usize),
        (gradient, inputs, outputs): (Ptr, usize, usize),
    ) -> Result<()> {
        let (a, b) = (Matrix::turned(d_out, out_ld), Matrix::new(x, x_ld));
        let (c, ldc) = (gradient, inputs);
        self.gemm(&Gemm { m: outputs, n: inputs, k: rows, a, b, c, ldc, wide: true, add: true })
    }

    fn gemm(&self, gemm: &Gemm) -> Result<()> {
        if gemm.m == 0 || gemm.n == 0 || gemm.k == 0 { Ok(()) } else { self.machine.gemm(gemm) }
    }

    /// The mask of `dropout` for `samples` of `elements` each. It is there until the next one is drawn.
    pub fn mask(&self, dropout: Dropout, pass: &Pass, samples: usize, elements: usize) -> Result<Mask> {
        self.draw(&self.drop, dropout, pass, samples, elements)
    }

    /// The mask of stochastic depth: one element a sample. It is there until the next one is drawn.
    pub fn path(&self, dropout: Dropout, pass: &Pass, samples: usize) -> Result<Mask> {
        self.draw(&self.path, dropout, pass, samples, 1)
    }

    fn draw(
        &self,
        room: &RefCell<Room>,
        dropout: Dropout,
        pass: &Pass,
        samples: usize,
        elements: usize,
    ) -> Result<Mask> {
        let Some(masks) = pass.masks.filter(|_| dropout.is_active()) else { return Ok(Mask::default()) };
        let words = samples * elements.div_ceil(16);
        let out = room.borrow_mut().of(&self.machine, 2 * words)?;
        let args = kernels::Mask {
            out,
            // The same bits: the kernel reads them as unsigned.
            seed: masks.seed.cast_signed(),
            step: masks.step.cast_signed(),
            site: dropout.site().cast_signed(),
            first_sample: long(pass.first_row),
            samples: long(samples),
            elements: long(elements),
            purpose: Purpose::Dropout as u32,
            threshold: dropout.threshold(),
        };
        self.launch_each("mask", 128, words, &args)?;
        Ok(Mask { words: out, scale: dropout.scale() })
    }

    /// Residual sum and layer norm; `rows`, `width` and what is not null of `a` are given, `drop` and `path` apart.
    pub fn norm(&self, a: kernels::NormForward, drop: Mask, path: Mask) -> Result<()> {
        let (rows, width) = (a.rows as usize, a.width as usize);
        let a = kernels::NormForward {
            drop: drop.words,
            drop_scale: drop.scale,
            path: path.words,
            path_scale: path.scale,
            x_step: a.x_step.max(1),
            rows_a_sample: a.rows_a_sample.max(1),
            period: a.period.max(1),
            ..a
        };
        let names = ["norm_forward_1", "norm_forward_4"];
        self.launch_rows(names, vector(&[width]), [rows.div_ceil(4), 1, 1], 16 * width, &a)
    }

    /// The gradient of [`Self::norm`]; sums for weight, shift and the branch's bias are added to `sums` (0: to none).
    pub fn norm_backward(
        &self,
        a: kernels::NormBackward,
        drop: Mask,
        path: Mask,
        sums: [Ptr; 3],
    ) -> Result<()> {
        let (rows, width) = (a.rows as usize, a.width as usize);
        let rows_a_block = rows.div_ceil(NORM_BLOCKS).max(4);
        let blocks = rows.div_ceil(rows_a_block);
        let partial = self.partial.borrow_mut().of(&self.machine, 4 * 3 * blocks * width)?;
        let a = kernels::NormBackward {
            drop: drop.words,
            drop_scale: drop.scale,
            path: path.words,
            path_scale: path.scale,
            in_step: a.in_step.max(1),
            rows_a_sample: a.rows_a_sample.max(1),
            rows_a_block: int(rows_a_block),
            partial,
            ..a
        };
        let names = ["norm_backward_1", "norm_backward_4"];
        // Four rows of f32 for each warp: of wide rows, a GPU's shared memory holds fewer.
        let warps = [4, 2, 1].into_iter().find(|warps| 16 * warps * width <= USUAL_SHARED).unwrap_or(1);
        let name = if vector(&[width]) == 4 { names[1] } else { names[0] };
        self.launch(name, [blocks, 1, 1], 32 * warps, 16 * warps * width, &a)?;
        self.reduce(partial, blocks, 3 * width, sums, 3)
    }

    /// `out = drop * (f + t)`, and its sums over rows added to `sum`; what is 0 is left out.
    pub fn combine(
        &self,
        [f, t, out, sum]: [Ptr; 4],
        (rows, width): (usize, usize),
        rows_a_sample: usize,
        drop: Mask,
    ) -> Result<()> {
        let columns = Columns::new(rows, width);
        let parts = columns.blocks[1];
        let partial =
            if sum == 0 { 0 } else { self.partial.borrow_mut().of(&self.machine, 4 * parts * width)? };
        let a = kernels::Combine {
            f,
            t,
            out,
            drop: drop.words,
            drop_scale: drop.scale,
            partial,
            rows: int(rows),
            width: int(width),
            rows_a_sample: int(rows_a_sample.max(1)),
            rows_a_block: int(columns.rows_a_block),
        };
        self.launch_rows(["combine_1", "combine_4"], columns.vector, columns.blocks, 0, &a)?;
        if sum == 0 { Ok(()) } else { self.reduce(partial, parts, width, [sum, 0, 0], 1) }
    }

    /// `out = drop * activation(hidden + bias)`.
    pub fn activate(
        &self,
        [hidden, bias, out]: [Ptr; 3],
        (rows, width): (usize, usize),
        rows_a_sample: usize,
        relu: bool,
        drop: Mask,
    ) -> Result<()> {
        let columns = Columns::new(rows, width);
        let a = kernels::Activate {
            hidden,
            bias,
            out,
            drop: drop.words,
            drop_scale: drop.scale,
            rows: int(rows),
            width: int(width),
            rows_a_sample: int(rows_a_sample.max(1)),
            rows_a_block: int(columns.rows_a_block),
            relu: relu.into(),
        };
        self.launch_rows(["activate_1", "activate_4"], columns.vector, columns.blocks, 0, &a)
    }

    /// The gradient of [`Self::activate`], in place: `d` becomes that of `hidden`, and `hidden` the output. The bias's is
    /// added to `sum`.
    pub fn activate_backward(
        &self,
        [hidden, bias, d, sum]: [Ptr; 4],
        (rows, width): (usize, usize),
        rows_a_sample: usize,
        relu: bool,
        drop: Mask,
    ) -> Result<()> {
        let columns = Columns::new(rows, width);
        let parts = columns.blocks[1];
        let partial = self.partial.borrow_mut().of(&self.machine, 4 * parts * width)?;
        let a = kernels::ActivateBackward {
            hidden,
            d,
            bias,
            drop: drop.words,
            drop_scale: drop.scale,
            partial,
            rows: int(rows),
            width: int(width),
            rows_a_sample: int(rows_a_sample.max(1)),
            rows_a_block: int(columns.rows_a_block),
            relu: relu.into(),
        };
        let names = ["activate_backward_1", "activate_backward_4"];
        self.launch_rows(names, columns.vector, columns.blocks, 0, &a)?;
        self.reduce(partial, parts, width, [sum, 0, 0], 1)
    }

    /// Adds the sums over `parts` rows of `partial` (parts, width) to `outs` destinations of equal width.
    pub fn reduce(
        &self,
        partial: Ptr,
        parts: usize,
        width: usize,
        [out0, out1, out2]: [Ptr; 3],
        outs: i32,
    ) -> Result<()> {
        let a = kernels::Reduce { partial, out0, out1, out2, width: long(width), parts: int(parts), outs };
        self.launch("reduce", [width.div_ceil(32), 1, 1], 256, 4 * 256, &a)
    }

    /// Attention over `samples`, heads of `head` numbers.
    pub fn attention(&self, a: &kernels::Attention, samples: usize, head: usize) -> Result<()> {
        let blocks = [(a.queries as usize).div_ceil(64), a.heads as usize, samples];
        self.launch(&format!("attention_forward_{head}"), blocks, 128, self.attention_shared(head), a)
    }

    /// The gradient of [`Self::attention`].
    pub fn attention_backward(&self, a: &kernels::Attention, samples: usize, head: usize) -> Result<()> {
        let shared = self.attention_shared(head);
        let blocks = [(a.queries as usize).div_ceil(64), a.heads as usize, samples];
        self.launch(&format!("attention_backward_q_{head}"), blocks, 128, shared, a)?;
        let blocks = [(a.keys as usize).div_ceil(64), a.heads as usize, samples];
        self.launch(&format!("attention_backward_kv_{head}"), blocks, 128, shared + 2 * 4 * 32, a)
    }

    /// Two tiles of 64 rows, as `attention.cu` lays them out.
    fn attention_shared(&self, head: usize) -> usize {
        2 * 64 * (head.next_multiple_of(16) + 8) * self.stored.bytes()
    }

    /// Images to patches.
    pub fn patches(&self, a: &kernels::Patches) -> Result<()> {
        let patches = a.images as usize * (a.size as usize / a.patch as usize).pow(2);
        self.launch("patches", [patches, 1, 1], 256, 0, a)
    }

    /// Patches to tokens.
    pub fn embed(&self, a: kernels::Embed, drop: Mask) -> Result<()> {
        let a = kernels::Embed { drop: drop.words, drop_scale: drop.scale, ..a };
        self.launch("embed", [a.images as usize * a.tokens as usize, 1, 1], 128, 0, &a)
    }

    /// The gradient of [`Self::embed`].
    pub fn embed_backward(&self, a: kernels::EmbedBackward, drop: Mask) -> Result<()> {
        let a = kernels::EmbedBackward { drop: drop.words, drop_scale: drop.scale, ..a };
        self.launch_each("embed_backward", 256, a.tokens as usize * a.width as usize, &a)
    }

    /// The mean over a clip's frames.
    pub fn pool(&self, a: &kernels::Pool) -> Result<()> {
        self.launch_each("pool", 256, a.clips as usize * a.width as usize, a)
    }

    /// The gradient of [`Self::pool`].
    pub fn pool_backward(&self, a: &kernels::PoolBackward) -> Result<()> {
        self.launch_each("pool_backward", 256, a.clips as usize * a.frames as usize * a.width as usize, a)
    }

    /// The loss of `clips` clips, and its gradient.
    pub fn cross_entropy(&self, a: &kernels::CrossEntropy, clips: usize) -> Result<()> {
        self.launch("cross_entropy", [clips, 1, 1], 256, 64, a)
    }

    /// The squares of `count` numbers, added up; what becomes of a step that has them.
    pub fn judge(&self, x: Ptr, count: usize, a: kernels::Judge) -> Result<()> {
        let blocks = count.div_ceil(256 * 8).clamp(1, BLOCKS);
        let partial = self.partial.borrow_mut().of(&self.machine, 8 * blocks)?;
        let squares = kernels::Squares { x, partial, count: long(count) };
        self.launch("squares", [blocks, 1, 1], 256, 8 * 256, &squares)?;
        let a = kernels::Judge { partial, parts: int(blocks), ..a };
        self.launch("judge", [1, 1, 1], 256, 8 * 256, &a)
    }

    /// The update of all parameters.
    pub fn adam(&self, a: &kernels::Adam) -> Result<()> {
        self.launch_each("adam", 256, a.count as usize, a)
    }

    /// The update of all parameters.
    pub fn sgd(&self, a: &kernels::Sgd) -> Result<()> {
        self.launch_each("sgd", 256, a.count as usize, a)
    }

    /// f32 to the stored type.
    pub fn cast(&self, x: Ptr, out: Ptr, count: usize) -> Result<()> {
        self.launch_each("cast", 256, count, &kernels::Cast { x, out, count: long(count) })
    }
}
