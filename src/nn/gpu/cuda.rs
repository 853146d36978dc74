//! NVIDIA GPUs, through CUDA's driver, NVRTC and cuBLAS.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt::Display;
use std::rc::Rc;

use candle_core::{Error, Result};
use cudarc::cublas::{result as blas, sys as blas_sys};
use cudarc::driver::result::{
    self as driver, device, event, function, memcpy_dtoh_async, memcpy_htod_async, module, stream,
};
use cudarc::driver::sys;
use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};

use super::kernels;
use super::libraries;
use super::machine::{Card, Gemm, Machine, Ptr, Upload};
use super::ops::{USUAL_SHARED, int};
use crate::nn::Stored;

/// GPU number `index`, after it has computed something.
///
/// # Errors
/// Why it cannot be used, as the middle of a sentence: no driver, no such GPU, a library that is missing, a GPU or a
/// driver that is too old.
pub fn open(index: usize) -> std::result::Result<Rc<dyn Card>, String> {
    libraries::load()?;
    driver::init().map_err(|error| text(&error))?;
    let count = usize::try_from(device::get_count().map_err(|error| text(&error))?).unwrap_or(0);
    match count {
        0 => return Err("there is no NVIDIA GPU here".to_owned()),
        1 if index > 0 => return Err("there is one GPU, cuda:0".to_owned()),
        _ if index >= count => return Err(format!("there are {count} GPUs, cuda:0 to cuda:{}", count - 1)),
        _ => {}
    }
    let gpu = Gpu::new(index).map_err(|error| text(&error))?;
    if gpu.capability < OLDEST {
        return Err(format!("{} is too old (compute capability {})", gpu.name, gpu.capability_text()));
    }
    gpu.compute_something().map_err(|error| text(&error))?;
    Ok(Rc::new(gpu))
}

/// The oldest GPUs that the kernels are for: Turing's, 7.5.
const OLDEST: usize = 75;
/// From Ampere's 8.0 on, GPUs compute in bf16.
const WITH_BF16: usize = 80;

fn text(error: &dyn Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

fn fail(what: &str, error: &dyn Display) -> Error {
    Error::Cuda(format!("{what}: {error}").into())
}

/// A GPU that this process uses.
struct Gpu {
    index: usize,
    name: String,
    /// Its compute capability: 90 = 9.0.
    capability: usize,
    context: Rc<Context>,
}

/// The process's context of a GPU.
struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

impl Context {
    /// Makes this thread work with it.
    fn bind(&self) -> Result<()> {
        // SAFETY: it is retained as long as this value is there.
        unsafe { driver::ctx::set_current(self.context) }.map_err(|error| fail("cuCtxSetCurrent", &error))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `Gpu::new`. What fails here has nobody to tell.
        unsafe { driver::primary_ctx::release(self.device) }.ok();
    }
}

impl Gpu {
    fn new(index: usize) -> std::result::Result<Self, driver::DriverError> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        let device = device::get(int(index))?;
        // SAFETY: the device has just been got.
        let (major, minor, context) = unsafe {
            (
                device::get_attribute(device, MAJOR)?,
                device::get_attribute(device, MINOR)?,
                driver::primary_ctx::retain(device)?,
            )
        };
        let context = Rc::new(Context { device, context });
        let capability = usize::try_from(10 * major + minor).unwrap_or(0);
        Ok(Self { index, name: device::get_name(device)?, capability, context })
    }

    fn capability_text(&self) -> String {
        format!("{}.{}", self.capability / 10, self.capability % 10)
    }

    /// Kernels compile, run, and give what they should; products too: what a driver or a library that is too old fails at.
    fn compute_something(&self) -> Result<()> {
        let machine: Rc<dyn Machine> = Rc::new(Cuda::new(self, Stored::F32, &[])?);
        let buffer = super::Buffer::zeros(&machine, 4 * 64)?;
        let ops = super::ops::Ops::new(Rc::clone(&machine), Stored::F32);
        let halves = [0.5f32; 16];
        machine.write(buffer.at(), bytemuck::cast_slice(&halves))?;
        let (x, product, twice) = (buffer.at(), buffer.at() + 64, buffer.at() + 128);
        ops.linear(4, (x, 4), (x, 4, 4), (product, 4), false)?;
        ops.combine([x, product, twice, 0], (4, 4), 1, super::ops::Mask::default())?;
        let mut found = [0f32; 16];
        machine.read(twice, bytemuck::cast_slice_mut(&mut found))?;
        if found.map(f32::to_bits) == [1.5f32.to_bits(); 16] {
            return Ok(());
        }
        Err(Error::Msg(format!("it computes wrongly: {found:?} is not 16 times 1.5")))
    }
}

impl Card for Gpu {
    fn name(&self) -> String {
        format!("cuda:{}", self.index)
    }

    fn describe(&self) -> String {
        format!("cuda:{} ({}, compute capability {})", self.index, self.name, self.capability_text())
    }

    fn has_bf16(&self) -> bool {
        self.capability >= WITH_BF16
    }

    fn free_memory(&self) -> Option<usize> {
        self.context.bind().ok()?;
        driver::mem_get_info().ok().map(|(free, _)| free)
    }

    fn machine(&self, stored: Stored, heads: &[usize]) -> Result<Rc<dyn Machine>> {
        Ok(Rc::new(Cuda::new(self, stored, heads)?))
    }
}

/// Kernels as machine code for a GPU of compute capability `arch`. Needs neither a driver nor a GPU.
///
/// # Errors
/// What the compiler says.
pub fn compile(source: &str, arch: usize) -> Result<Vec<u8>> {
    libraries::load_compiler().map_err(Error::Msg)?;
    let source = CString::new(source).map_err(|error| Error::Msg(error.to_string()))?;
    let program =
        nvrtc::create_program(&source, None).map_err(|error| nvrtc_error("nvrtcCreateProgram", error))?;
    let compiled = compile_program(program, arch);
    // SAFETY: made above, used no more.
    unsafe { nvrtc::destroy_program(program) }.map_err(|error| nvrtc_error("nvrtcDestroyProgram", error))?;
    compiled
}

fn compile_program(program: nvrtc_sys::nvrtcProgram, arch: usize) -> Result<Vec<u8>> {
    let options = [format!("--gpu-architecture=sm_{arch}"), "--std=c++17".to_owned()];
    // SAFETY: the program is there until the caller destroys it, and the buffer is as long as NVRTC says.
    unsafe {
        if let Err(error) = nvrtc::compile_program(program, &options) {
            let log = nvrtc::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|c| c as u8).filter(|&c| c != 0).collect();
            let log = String::from_utf8_lossy(&log).into_owned();
            return Err(nvrtc_error(&format!("the kernels do not compile for sm_{arch}: {log}"), error));
        }
        let mut size = 0;
        let sized = nvrtc_sys::nvrtcGetCUBINSize(program, &raw mut size).result();
        sized.map_err(|error| nvrtc_error("nvrtcGetCUBINSize", error))?;
        let mut code = vec![0u8; size];
        let got = nvrtc_sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result();
        got.map_err(|error| nvrtc_error("nvrtcGetCUBIN", error))?;
        Ok(code)
    }
}

fn nvrtc_error(what: &str, error: nvrtc::NvrtcError) -> Error {
    Error::Msg(format!("{what} ({:?})", error.0))
}

/// What cuBLAS may use in passing: what NVIDIA recommends for Hopper; given once, so that sums have one order.
const WORKSPACE: usize = 32 << 20;

/// A GPU with the kernels of one network.
struct Cuda {
    stored: Stored,
    stream: sys::CUstream,
    /// For copies from the host while the other computes.
    copies: sys::CUstream,
    blas: blas_sys::cublasHandle_t,
    workspace: sys::CUdeviceptr,
    module: sys::CUmodule,
    functions: RefCell<HashMap<String, Function>>,
    slots: RefCell<[Pinned; 2]>,
    memory: RefCell<Memory>,
    context: Rc<Context>,
}

/// What is allocated: the size of each piece, of all, and the most that it was.
#[derive(Default)]
struct Memory {
    pieces: HashMap<Ptr, usize>,
    now: usize,
    peak: usize,
}

/// A kernel, and how much shared memory beyond the usual 48 KiB it has been granted.
#[derive(Clone, Copy)]
struct Function {
    function: sys::CUfunction,
    granted: usize,
}

/// Memory of the host that the GPU copies from by itself, and the event that marks its last copy.
struct Pinned {
    at: *mut c_void,
    bytes: usize,
    copied: sys::CUevent,
}

impl Cuda {
    fn new(gpu: &Gpu, stored: Stored, heads: &[usize]) -> Result<Self> {
        gpu.context.bind()?;
        let code = compile(&kernels::source(stored, heads, gpu.capability), gpu.capability)?;
        let kind = || stream::StreamKind::NonBlocking;
        let new_event = || event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        // SAFETY: the context is current, and each thing made here is used only with it and given back once.
        unsafe {
            let make = || -> std::result::Result<_, driver::DriverError> {
                let module = module::load_data(code.as_ptr().cast())?;
                let workspace = driver::malloc_sync(WORKSPACE)?;
                Ok((
                    module,
                    workspace,
                    stream::create(kind())?,
                    stream::create(kind())?,
                    [new_event()?, new_event()?],
                ))
            };
            let (module, workspace, stream, copies, events) =
                make().map_err(|error| fail("the GPU cannot be set up", &error))?;
            let blas = blas::create_handle().map_err(|error| fail("cublasCreate", &error))?;
            let cuda = Self {
                stored,
                stream,
                copies,
                blas,
                workspace,
                module,
                functions: RefCell::default(),
                slots: RefCell::new(events.map(|copied| Pinned {
                    at: std::ptr::null_mut(),
                    bytes: 0,
                    copied,
                })),
                memory: RefCell::new(Memory { now: WORKSPACE, peak: WORKSPACE, ..Memory::default() }),
                context: Rc::clone(&gpu.context),
            };
            blas::set_stream(blas, stream.cast()).map_err(|error| fail("cublasSetStream", &error))?;
            let set = blas_sys::cublasSetWorkspace_v2(blas, workspace as *mut c_void, WORKSPACE).result();
            set.map_err(|error| fail("cublasSetWorkspace", &error))?;
            // Sums of halves stay f32 where they are put together, too.
            let mode = blas_sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
            let set = blas_sys::cublasSetMathMode(blas, mode).result();
            set.map_err(|error| fail("cublasSetMathMode", &error))?;
            Ok(cuda)
        }
    }

    fn function(&self, kernel: &str, shared: usize) -> Result<sys::CUfunction> {
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST_SHARED;
        let mut functions = self.functions.borrow_mut();
        let found = functions.get(kernel).copied();
        let Function { function, granted } = if let Some(found) = found {
            found
        } else {
            let name = CString::new(kernel).map_err(|error| Error::Msg(error.to_string()))?;
            // SAFETY: the module is loaded as long as this value is there.
            let got = unsafe { module::get_function(self.module, name) };
            Function { function: got.map_err(|error| fail(kernel, &error))?, granted: USUAL_SHARED }
        };
        if shared > granted {
            // SAFETY: a function of a module that is loaded.
            let set = unsafe { function::set_function_attribute(function, MOST_SHARED, int(shared)) };
            set.map_err(|error| fail(&format!("{kernel} with {shared} bytes of shared memory"), &error))?;
        }
        if found.is_none() || shared > granted {
            functions.insert(kernel.to_owned(), Function { function, granted: granted.max(shared) });
        }
        Ok(function)
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: streams of this value.
        unsafe { stream::synchronize(self.stream) }.map_err(|error| fail("the GPU's work failed", &error))?;
        unsafe { stream::synchronize(self.copies) }.map_err(|error| fail("a copy to the GPU failed", &error))
    }
}

impl Machine for Cuda {
    fn allocate(&self, bytes: usize) -> Result<Ptr> {
        self.context.bind()?;
        // SAFETY: what it holds is not read before it is written: every kernel's outputs are.
        let got = unsafe { driver::malloc_sync(bytes.max(1)) };
        let at = got.map_err(|error| fail(&format!("{bytes} bytes of the GPU's memory"), &error))?;
        let mut memory = self.memory.borrow_mut();
        memory.pieces.insert(at, bytes);
        memory.now += bytes;
        memory.peak = memory.peak.max(memory.now);
        Ok(at)
    }

    fn free(&self, at: Ptr) {
        // Work that has not been done may use it. What fails here, fails again where somebody can be told.
        self.wait().ok();
        // SAFETY: allocated above, given back once by its `Buffer`.
        unsafe { driver::free_sync(at) }.ok();
        let mut memory = self.memory.borrow_mut();
        memory.now -= memory.pieces.remove(&at).unwrap_or(0);
    }

    fn peak_memory(&self) -> usize {
        self.memory.borrow().peak
    }

    fn zero(&self, at: Ptr, bytes: usize) -> Result<()> {
        // SAFETY: a buffer of this GPU of at least so many bytes.
        unsafe { driver::memset_d8_async(at, 0, bytes, self.stream) }
            .map_err(|error| fail("cuMemsetD8Async", &error))
    }

    fn copy(&self, from: Ptr, to: Ptr, bytes: usize) -> Result<()> {
        // SAFETY: buffers of this GPU of at least so many bytes.
        let copied = unsafe { driver::memcpy_dtod_async(to, from, bytes, self.stream) };
        copied.map_err(|error| fail("cuMemcpyDtoDAsync", &error))
    }

    fn write(&self, to: Ptr, bytes: &[u8]) -> Result<()> {
        // In the stream's order: the plain copy may return before the bytes are there, and other streams do not wait.
        // SAFETY: a buffer of this GPU of at least so many bytes; the copy is done when this returns.
        let copied = unsafe { memcpy_htod_async(to, bytes, self.stream) };
        copied.map_err(|error| fail("cuMemcpyHtoDAsync", &error))?;
        self.wait()
    }

    fn read(&self, from: Ptr, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: a buffer of this GPU of at least so many bytes, copied before this returns.
        unsafe { memcpy_dtoh_async(bytes, from, self.stream) }
            .map_err(|error| fail("cuMemcpyDtoHAsync", &error))?;
        unsafe { stream::synchronize(self.stream) }.map_err(|error| fail("the GPU's work failed", &error))
    }

    fn send(&self, slot: usize, uploads: &[Upload]) -> Result<()> {
        let mut slots = self.slots.borrow_mut();
        let pinned = &mut slots[slot];
        let padded = |upload: &Upload| upload.bytes.len().next_multiple_of(256);
        let needed: usize = uploads.iter().map(padded).sum();
        // SAFETY: pinned memory is written only when its last copy is done, and within its length; it is freed only when
        // it is replaced, or with this value.
        unsafe {
            event::synchronize(pinned.copied).map_err(|error| fail("a copy to the GPU failed", &error))?;
            if pinned.bytes < needed {
                if !pinned.at.is_null() {
                    driver::free_host(pinned.at).map_err(|error| fail("cuMemFreeHost", &error))?;
                    (pinned.at, pinned.bytes) = (std::ptr::null_mut(), 0);
                }
                let got = driver::malloc_host(needed, 0);
                pinned.at = got.map_err(|error| fail(&format!("{needed} bytes of pinned memory"), &error))?;
                pinned.bytes = needed;
            }
            let mut at = pinned.at.cast::<u8>();
            for upload in uploads {
                let bytes = upload.bytes;
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len());
                let from = std::slice::from_raw_parts(at, bytes.len());
                let copied = memcpy_htod_async(upload.to, from, self.copies);
                copied.map_err(|error| fail("cuMemcpyHtoDAsync", &error))?;
                at = at.add(padded(upload));
            }
            event::record(pinned.copied, self.copies).map_err(|error| fail("cuEventRecord", &error))
        }
    }

    fn receive(&self, slot: usize) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: an event and a stream of this value.
        let waits = unsafe { stream::wait_event(self.stream, self.slots.borrow()[slot].copied, flags) };
        waits.map_err(|error| fail("cuStreamWaitEvent", &error))
    }

    fn launch(
        &self,
        kernel: &str,
        blocks: [usize; 3],
        threads: usize,
        shared: usize,
        args: *const c_void,
    ) -> Result<()> {
        let function = self.function(kernel, shared)?;
        let [x, y, z] = blocks.map(|n| n as u32);
        let mut params = [args.cast_mut()];
        // SAFETY: the kernel takes one struct, which the caller's arguments are; the driver copies it before it returns.
        let launched = unsafe {
            driver::launch_kernel(
                function,
                (x, y, z),
                (threads as u32, 1, 1),
                shared as u32,
                self.stream,
                &mut params,
            )
        };
        launched.map_err(|error| fail(&format!("{kernel} with {blocks:?} blocks"), &error))
    }

    fn gemm(&self, g: &Gemm) -> Result<()> {
        use blas_sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        use blas_sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_16F, CUDA_R_32F};
        let of = |stored| match stored {
            Stored::F32 => CUDA_R_32F,
            Stored::Bf16 => CUDA_R_16BF,
            Stored::F16 => CUDA_R_16F,
        };
        let (one, kept) = (1f32, if g.add { 1f32 } else { 0f32 });
        let turned = |turned| if turned { CUBLAS_OP_T } else { CUBLAS_OP_N };
        let (factor, result) = (of(self.stored), if g.wide { CUDA_R_32F } else { of(self.stored) });
        // SAFETY: buffers of this GPU that hold the matrices. cuBLAS's matrices lie column by column: it is given the
        // transposed product, whose factors change places.
        let done = unsafe {
            blas::gemm_ex(
                self.blas,
                turned(g.b.turned),
                turned(g.a.turned),
                int(g.n),
                int(g.m),
                int(g.k),
                (&raw const one).cast(),
                g.b.at as *const c_void,
                factor,
                int(g.b.ld),
                g.a.at as *const c_void,
                factor,
                int(g.a.ld),
                (&raw const kept).cast(),
                g.c as *mut c_void,
                result,
                int(g.ldc),
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.map_err(|error| fail(&format!("a product of {} x {} x {}", g.m, g.k, g.n), &error))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        self.wait().ok();
        // SAFETY: each was made once by `new`, and nothing is at work any more. What fails has nobody to tell.
        unsafe {
            for pinned in self.slots.get_mut() {
                if !pinned.at.is_null() {
                    driver::free_host(pinned.at).ok();
                }
                event::destroy(pinned.copied).ok();
            }
            blas::destroy_handle(self.blas).ok();
            driver::free_sync(self.workspace).ok();
            module::unload(self.module).ok();
            stream::destroy(self.copies).ok();
            stream::destroy(self.stream).ok();
        }
    }
}

/// The first GPU, for tests; none where there is none, unless `SLT_RUN_NEED_GPU=1` asks for one.
#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that is left out says so")]
pub(crate) fn for_tests() -> Option<Rc<dyn Card>> {
    match open(0) {
        Ok(card) => Some(card),
        Err(why) => {
            assert!(std::env::var("SLT_RUN_NEED_GPU").as_deref() != Ok("1"), "no GPU: {why}");
            eprintln!("left out: no GPU: {why}");
            None
        }
    }
}

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that is left out says so")]
mod tests {
    use super::*;

    /// NVRTC needs no GPU: all kernels compile wherever the library is, and what is wrong is an error.
    #[test]
    fn kernels_compile_where_the_compiler_is() {
        if let Err(why) = libraries::load_compiler() {
            eprintln!("left out: {why}");
            return;
        }
        for stored in [Stored::F32, Stored::Bf16, Stored::F16] {
            for arch in [80, 90] {
                let code = compile(&kernels::source(stored, &[64, 5, 80], arch), arch).unwrap();
                assert_eq!(code[..4], *b"\x7fELF", "{stored:?} for {arch}");
            }
        }
        let error = compile("nonsense", 90).unwrap_err().to_string();
        assert!(error.contains("sm_90") && error.contains("nonsense"), "{error}");
    }
}
