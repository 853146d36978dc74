//! A GPU on the CPU, for tests: the kernels as a C compiler makes them, run by the fibers of `emulator.h`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_int, c_void};
use std::process::Command;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use candle_core::{Error, Result};
use half::{bf16, f16};
use libloading::Library;

use super::kernels;
use super::machine::{Card, Gemm, Machine, Matrix, Ptr, Upload};
use super::ops::int;
use crate::nn::Stored;

type Launch = unsafe extern "C" fn(*const c_void, *const c_int, c_int, c_int, *const c_void, u32) -> c_int;

/// Bytes before and after each piece of memory that nobody may write.
const GUARD: usize = 256;

/// A GPU that is not there.
pub struct Emulator {
    library: Library,
    stored: Stored,
    /// Length and memory of what is allocated.
    memory: RefCell<HashMap<Ptr, (usize, Vec<u64>)>>,
    /// In which order threads run: results must not depend on it.
    order: Cell<u32>,
    /// How much memory there is.
    limit: Cell<usize>,
    /// The most that was allocated at a time.
    peak: Cell<usize>,
    /// How often the host waited for work.
    waits: Cell<usize>,
    launches: Cell<usize>,
}

impl Emulator {
    /// With the kernels for `stored` and `heads`, as for a GPU of compute capability `arch`.
    pub fn new(stored: Stored, heads: &[usize], arch: usize, order: u32) -> Rc<Self> {
        let define = format!("#define {}\n", kernels::define(stored));
        let source = kernels::source(stored, heads, arch);
        // The kernels' own define comes after the header, which needs it too.
        let source = format!("{define}{}{}", include_str!("emulator.h"), source.replacen(&define, "", 1));
        let folder = tempfile::tempdir().expect("a folder");
        // A copy for each: what threads share is in it.
        let so = folder.path().join("kernels.so");
        std::fs::write(&so, compiled(&source)).expect("the library is written");
        // SAFETY: the library has just been made of the kernels, and does nothing when it is opened.
        let library = unsafe { Library::new(&so) }.expect("the kernels are a library");
        Rc::new(Self {
            library,
            stored,
            memory: RefCell::default(),
            order: Cell::new(order),
            limit: Cell::new(usize::MAX),
            peak: Cell::new(0),
            waits: Cell::new(0),
            launches: Cell::new(0),
        })
    }

    /// The pretended card that such a GPU is.
    pub fn card(order: u32) -> Rc<Emulated> {
        Rc::new(Emulated { order, free: Cell::new(None), last: RefCell::default() })
    }

    /// Lets it have so many bytes.
    pub fn limit(&self, bytes: usize) {
        self.limit.set(bytes);
    }

    /// How many bytes are allocated.
    pub fn used(&self) -> usize {
        self.memory.borrow().values().map(|(bytes, _)| bytes).sum()
    }

    /// How often it was waited for since the last call.
    pub fn take_waits(&self) -> usize {
        self.waits.take()
    }

    /// How many kernels were launched, and products computed, since the last call.
    pub fn take_launches(&self) -> usize {
        self.launches.take()
    }

    /// The size that C gives the arguments of `kernel`.
    pub fn size_of_arguments(&self, kernel: &str) -> usize {
        // SAFETY: `emulator.h` defines it so for each kernel.
        unsafe {
            let size = self.library.get::<unsafe extern "C" fn() -> u32>(format!("size_{kernel}"));
            size.expect("there is such a kernel")() as usize
        }
    }

    fn number(&self, at: Ptr, index: usize, wide: bool) -> f32 {
        // SAFETY: as far as the caller's addresses are right, which is what these tests are for.
        unsafe {
            match self.stored {
                _ if wide => *(at as *const f32).add(index),
                Stored::F32 => *(at as *const f32).add(index),
                Stored::Bf16 => (*(at as *const bf16).add(index)).to_f32(),
                Stored::F16 => (*(at as *const f16).add(index)).to_f32(),
            }
        }
    }

    fn set(&self, at: Ptr, index: usize, wide: bool, value: f32) {
        // SAFETY: as above.
        unsafe {
            match self.stored {
                _ if wide => *(at as *mut f32).add(index) = value,
                Stored::F32 => *(at as *mut f32).add(index) = value,
                Stored::Bf16 => *(at as *mut bf16).add(index) = bf16::from_f32(value),
                Stored::F16 => *(at as *mut f16).add(index) = f16::from_f32(value),
            }
        }
    }

    /// A factor as rows of `across` numbers.
    fn factor(&self, matrix: &Matrix, down: usize, across: usize) -> Vec<f32> {
        let mut all = Vec::with_capacity(down * across);
        for i in 0..down {
            for j in 0..across {
                let (row, column) = if matrix.turned { (j, i) } else { (i, j) };
                all.push(self.number(matrix.at, row * matrix.ld + column, false));
            }
        }
        all
    }
}

/// The library that a source makes, made once.
fn compiled(source: &str) -> Vec<u8> {
    static MADE: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = made.get(source) {
        return library.clone();
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (c, so) = (folder.path().join("kernels.c"), folder.path().join("kernels.so"));
    std::fs::write(&c, source).expect("the source is written");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let done = Command::new(&compiler)
        .args(["-std=gnu11", "-O2", "-shared", "-fPIC", "-w", "-o"])
        .args([&so, &c])
        .arg("-lm")
        .output()
        .expect("the C compiler starts");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let library = std::fs::read(&so).expect("there is a library");
    made.insert(source.to_owned(), library.clone());
    library
}

impl Machine for Emulator {
    fn allocate(&self, bytes: usize) -> Result<Ptr> {
        let used = self.used();
        if used + bytes > self.limit.get() {
            return Err(Error::Cuda("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")".into()));
        }
        self.peak.set(self.peak.get().max(used + bytes));
        // Not numbers, so that what is read before it is written shows.
        let memory = vec![u64::MAX; (bytes.next_multiple_of(8) + 2 * GUARD + 256) / 8];
        let at = (memory.as_ptr() as usize + GUARD).next_multiple_of(256) as Ptr;
        self.memory.borrow_mut().insert(at, (bytes, memory));
        Ok(at)
    }

    fn free(&self, at: Ptr) {
        let (bytes, memory) = self.memory.borrow_mut().remove(&at).expect("it was allocated");
        let start = at as usize - memory.as_ptr() as usize;
        let all: &[u8] = bytemuck::cast_slice(&memory);
        let untouched = |part: &[u8]| part.iter().all(|&byte| byte == 0xff);
        assert!(
            untouched(&all[..start]) && untouched(&all[start + bytes..]),
            "written outside of {bytes} bytes"
        );
    }

    fn zero(&self, at: Ptr, bytes: usize) -> Result<()> {
        // SAFETY: as far as the caller's addresses are right.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    fn copy(&self, from: Ptr, to: Ptr, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn write(&self, to: Ptr, bytes: &[u8]) -> Result<()> {
        self.copy(bytes.as_ptr() as Ptr, to, bytes.len())
    }

    fn read(&self, from: Ptr, bytes: &mut [u8]) -> Result<()> {
        self.waits.set(self.waits.get() + 1);
        self.copy(from, bytes.as_mut_ptr() as Ptr, bytes.len())
    }

    fn send(&self, _: usize, uploads: &[Upload]) -> Result<()> {
        uploads.iter().try_for_each(|upload| self.write(upload.to, upload.bytes))
    }

    fn peak_memory(&self) -> usize {
        self.peak.get()
    }

    fn receive(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn launch(
        &self,
        kernel: &str,
        blocks: [usize; 3],
        threads: usize,
        shared: usize,
        args: *const c_void,
    ) -> Result<()> {
        assert!(blocks[0] < 1 << 31 && blocks[1] < 1 << 16 && blocks[2] < 1 << 16, "{kernel}: {blocks:?}");
        self.launches.set(self.launches.get() + 1);
        let blocks = blocks.map(int);
        self.order.set(self.order.get().wrapping_mul(69_069).wrapping_add(1));
        // SAFETY: `emulator.h` defines both so, and the caller's arguments are the kernel's.
        let wrong = unsafe {
            let launch = self.library.get::<Launch>("sim_launch").expect("it is there");
            let run = self.library.get::<*const c_void>(format!("run_{kernel}"));
            let run = run.map_err(|error| Error::Msg(error.to_string()))?;
            launch(*run, blocks.as_ptr(), int(threads), int(shared), args, self.order.get())
        };
        if wrong == 0 { Ok(()) } else { Err(Error::Msg(format!("{kernel}: a wrong launch, {blocks:?}"))) }
    }

    fn gemm(&self, g: &Gemm) -> Result<()> {
        self.launches.set(self.launches.get() + 1);
        let (a, b) = (self.factor(&g.a, g.m, g.k), self.factor(&g.b, g.k, g.n));
        let mut c = vec![0f32; g.m * g.n];
        // SAFETY: three matrices of these sizes, row by row.
        unsafe {
            gemm::gemm(
                g.m,
                g.n,
                g.k,
                c.as_mut_ptr(),
                1,
                g.n.cast_signed(),
                false,
                a.as_ptr(),
                1,
                g.k.cast_signed(),
                b.as_ptr(),
                1,
                g.n.cast_signed(),
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        for i in 0..g.m {
            for j in 0..g.n {
                let at = i * g.ldc + j;
                let before = if g.add { self.number(g.c, at, g.wide) } else { 0.0 };
                self.set(g.c, at, g.wide, before + c[i * g.n + j]);
            }
        }
        Ok(())
    }
}

/// A card with an emulated GPU.
pub struct Emulated {
    order: u32,
    /// Bytes of memory that it has.
    pub free: Cell<Option<usize>>,
    /// The GPU that was made of it last.
    pub last: RefCell<Option<Rc<Emulator>>>,
}

impl Card for Emulated {
    fn name(&self) -> String {
        "cuda:0".to_owned()
    }

    fn describe(&self) -> String {
        "cuda:0 (emulated)".to_owned()
    }

    fn has_bf16(&self) -> bool {
        true
    }

    fn free_memory(&self) -> Option<usize> {
        self.free.get()
    }

    fn machine(&self, stored: Stored, heads: &[usize]) -> Result<Rc<dyn Machine>> {
        let emulator = Emulator::new(stored, heads, 80, self.order);
        emulator.limit(self.free.get().unwrap_or(usize::MAX));
        *self.last.borrow_mut() = Some(Rc::clone(&emulator));
        Ok(emulator)
    }
}
