//! A GPU on the CPU, for tests: the kernels as a C compiler makes them, run by the fibers of `emulator.h`.
#![allow(unsafe_code, reason = "a pretended GPU's addresses are the host's")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_int, c_void};
use std::process::Command;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use libloading::Library;

use super::kernels;
use super::stream::{Address, Gemm, GpuDevice, GpuStream, Launch, Operand, Upload};
use crate::engine::oom::out_of_memory;
use crate::nn::ActivationDtype;
use crate::{Error, Result};

type Run = unsafe extern "C" fn(*const c_void, *const c_int, c_int, c_int, *const c_void, u32) -> c_int;

/// Bytes before and after each piece of memory that nobody may write.
const GUARD: usize = 256;

/// A GPU that is not there.
pub struct Emulator {
    library: Library,
    dtype: ActivationDtype,
    /// Length and memory of what is allocated.
    memory: RefCell<HashMap<Address, (usize, Vec<u64>)>>,
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
    /// With the kernels for `dtype` and `heads`, as for a GPU of compute capability `arch`.
    pub fn new(dtype: ActivationDtype, heads: &[usize], arch: usize, order: u32) -> Rc<Self> {
        let define = format!("#define {}\n", kernels::define(dtype));
        let source = kernels::source(dtype, heads, arch);
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
            dtype,
            memory: RefCell::default(),
            order: Cell::new(order),
            limit: Cell::new(usize::MAX),
            peak: Cell::new(0),
            waits: Cell::new(0),
            launches: Cell::new(0),
        })
    }

    /// The pretended device that such a GPU is.
    pub fn device(order: u32) -> Rc<EmulatedDevice> {
        Rc::new(EmulatedDevice { order, free: Cell::new(None), last: RefCell::default() })
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

    fn number(&self, at: Address, index: usize, is_f32: bool) -> f32 {
        // SAFETY: as far as the caller's addresses are right, which is what these tests are for.
        unsafe {
            match self.dtype {
                _ if is_f32 => *(at as *const f32).add(index),
                ActivationDtype::F32 => *(at as *const f32).add(index),
                ActivationDtype::Bf16 => (*(at as *const bf16).add(index)).to_f32(),
                ActivationDtype::F16 => (*(at as *const f16).add(index)).to_f32(),
            }
        }
    }

    fn set(&self, at: Address, index: usize, is_f32: bool, value: f32) {
        // SAFETY: as above.
        unsafe {
            match self.dtype {
                _ if is_f32 => *(at as *mut f32).add(index) = value,
                ActivationDtype::F32 => *(at as *mut f32).add(index) = value,
                ActivationDtype::Bf16 => *(at as *mut bf16).add(index) = bf16::from_f32(value),
                ActivationDtype::F16 => *(at as *mut f16).add(index) = f16::from_f32(value),
            }
        }
    }

    /// A factor as rows of `across` numbers.
    fn factor(&self, operand: &Operand, down: usize, across: usize) -> Vec<f32> {
        let mut all = Vec::with_capacity(down * across);
        for i in 0..down {
            for j in 0..across {
                let (row, column) = if operand.transposed { (j, i) } else { (i, j) };
                all.push(self.number(operand.address, row * operand.ld + column, false));
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

impl GpuStream for Emulator {
    fn allocate(&self, bytes: usize) -> Result<Address> {
        let used = self.used();
        if used + bytes > self.limit.get() {
            return Err(out_of_memory("", "", "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"));
        }
        self.peak.set(self.peak.get().max(used + bytes));
        // Not numbers, so that what is read before it is written shows.
        let memory = vec![u64::MAX; (bytes.next_multiple_of(8) + 2 * GUARD + 256) / 8];
        let at = (memory.as_ptr() as usize + GUARD).next_multiple_of(256) as Address;
        self.memory.borrow_mut().insert(at, (bytes, memory));
        Ok(at)
    }

    unsafe fn free(&self, at: Address) {
        let (bytes, memory) = self.memory.borrow_mut().remove(&at).expect("it was allocated");
        let start = at as usize - memory.as_ptr() as usize;
        let all: &[u8] = bytemuck::cast_slice(&memory);
        let untouched = |part: &[u8]| part.iter().all(|&byte| byte == 0xff);
        assert!(
            untouched(&all[..start]) && untouched(&all[start + bytes..]),
            "written outside of {bytes} bytes"
        );
    }

    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<()> {
        // SAFETY: as far as the caller's addresses are right.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.copy(bytes.as_ptr() as Address, to, bytes.len()) }
    }

    unsafe fn read(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        self.waits.set(self.waits.get() + 1);
        // SAFETY: as above.
        unsafe { self.copy(from, bytes.as_mut_ptr() as Address, bytes.len()) }
    }

    unsafe fn send(&self, _: usize, uploads: &[Upload]) -> Result<()> {
        // SAFETY: as above.
        uploads.iter().try_for_each(|upload| unsafe { self.write(upload.to, upload.bytes) })
    }

    fn peak_memory(&self) -> usize {
        self.peak.get()
    }

    fn receive(&self, _: usize) -> Result<()> {
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch, args: *const c_void) -> Result<()> {
        let &Launch { kernel, blocks, threads, shared_bytes } = launch;
        assert!(blocks[0] < 1 << 31 && blocks[1] < 1 << 16 && blocks[2] < 1 << 16, "{kernel}: {blocks:?}");
        self.launches.set(self.launches.get() + 1);
        let [threads, shared] = [threads, shared_bytes].map(u32::cast_signed);
        let order = self.order.get().wrapping_mul(69_069).wrapping_add(1);
        self.order.set(order);
        // SAFETY: `emulator.h` defines both so, and the caller's arguments are the kernel's.
        let wrong = unsafe {
            let run = self.library.get::<Run>("sim_launch").expect("it is there");
            let code = self.library.get::<*const c_void>(format!("run_{kernel}"));
            let code = code.map_err(|error| Error::run(error.to_string()))?;
            run(*code, blocks.map(u32::cast_signed).as_ptr(), threads, shared, args, order)
        };
        if wrong == 0 { Ok(()) } else { Err(Error::run(format!("{kernel}: a wrong launch, {blocks:?}"))) }
    }

    unsafe fn gemm(&self, g: &Gemm) -> Result<()> {
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
                let before = if g.accumulate { self.number(g.c, at, g.c_is_f32) } else { 0.0 };
                self.set(g.c, at, g.c_is_f32, before + c[i * g.n + j]);
            }
        }
        Ok(())
    }
}

/// A device that is emulated.
pub struct EmulatedDevice {
    order: u32,
    /// Bytes of memory that it has.
    pub free: Cell<Option<usize>>,
    /// The GPU that was made of it last.
    pub last: RefCell<Option<Rc<Emulator>>>,
}

impl GpuDevice for EmulatedDevice {
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

    fn open(&self, dtype: ActivationDtype, heads: &[usize]) -> Result<Rc<dyn GpuStream>> {
        let emulator = Emulator::new(dtype, heads, 80, self.order);
        emulator.limit(self.free.get().unwrap_or(usize::MAX));
        *self.last.borrow_mut() = Some(Rc::clone(&emulator));
        Ok(emulator)
    }
}
