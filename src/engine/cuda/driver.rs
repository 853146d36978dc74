//! NVIDIA GPUs, through CUDA's driver, NVRTC and cuBLAS.
#![allow(unsafe_code, reason = "calls into CUDA's libraries")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::fmt::Display;
use std::rc::Rc;

use cudarc::cublas::{result as blas, sys as blas_sys};
use cudarc::driver::result::{
    self as driver, device, event, function, memcpy_dtoh_async, memcpy_htod_async, module, stream,
};
use cudarc::driver::sys;
use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};

use super::kernels;
use super::libraries;
use super::memory::{Allocator, Matrix};
use super::ops::{Combine, Factor, Ops, Output, USUAL_SHARED, Write, int};
use super::stream::{Address, Gemm, GpuDevice, GpuStream, Launch, Upload};
use crate::engine::oom::out_of_memory;
use crate::nn::ActivationDtype;
use crate::{Error, Result};

/// GPU number `index`, after it has computed something.
///
/// # Errors
/// Why it cannot be used, as the middle of a sentence: no driver, no such GPU, a library that is missing, a GPU or a
/// driver that is too old.
pub fn open(index: usize) -> Result<Rc<dyn GpuDevice>, String> {
    libraries::load()?;
    driver::init().map_err(|error| first_line(&error))?;
    let count = usize::try_from(device::get_count().map_err(|error| first_line(&error))?).unwrap_or(0);
    match count {
        0 => return Err("there is no NVIDIA GPU here".to_owned()),
        1 if index > 0 => return Err("there is one GPU, cuda:0".to_owned()),
        _ if index >= count => return Err(format!("there are {count} GPUs, cuda:0 to cuda:{}", count - 1)),
        _ => {}
    }
    let device = CudaDevice::new(index).map_err(|error| first_line(&error))?;
    if device.capability < OLDEST {
        let (name, capability) = (&device.name, device.capability_text());
        return Err(format!("{name} is too old (compute capability {capability})"));
    }
    device.compute_something().map_err(|error| cause(&error))?;
    Ok(Rc::new(device))
}

/// The oldest GPUs that the kernels are for: Turing's, 7.5.
const OLDEST: usize = 75;
/// From Ampere's 8.0 on, GPUs compute in bf16.
const WITH_BF16: usize = 80;

fn first_line(error: &dyn Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// What is behind an error, as the middle of a sentence.
fn cause(error: &Error) -> String {
    let problem = error.problems.first();
    let cause = problem.and_then(|problem| problem.causes.first().or(Some(&problem.what)));
    first_line(&cause.map_or("", String::as_str))
}

/// A call into one of CUDA's libraries that failed.
trait CudaError: Display {
    /// Whether the GPU's memory was full.
    fn is_out_of_memory(&self) -> bool;
}

impl CudaError for driver::DriverError {
    fn is_out_of_memory(&self) -> bool {
        self.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY
    }
}

impl CudaError for blas::CublasError {
    fn is_out_of_memory(&self) -> bool {
        self.0 == blas_sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED
    }
}

fn fail(what: &str, error: &dyn CudaError) -> Error {
    let cause = first_line(&format!("{what}: {error}"));
    if error.is_out_of_memory() {
        return out_of_memory("", "", cause);
    }
    failed(cause)
}

fn failed(cause: impl Display) -> Error {
    Error::run("the GPU failed")
        .cause(cause)
        .hint("nvidia-smi and the system's log show whether the card is well")
}

/// A GPU that this process uses.
struct CudaDevice {
    index: usize,
    name: String,
    /// Its compute capability: 90 = 9.0.
    capability: usize,
    context: Rc<PrimaryContext>,
}

/// The process's context of a GPU.
struct PrimaryContext {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

impl PrimaryContext {
    /// Makes this thread work with it.
    fn bind(&self) -> Result<()> {
        // SAFETY: it is retained as long as this value is there.
        unsafe { driver::ctx::set_current(self.context) }.map_err(|error| fail("cuCtxSetCurrent", &error))
    }
}

impl Drop for PrimaryContext {
    fn drop(&mut self) {
        // SAFETY: retained once by `CudaDevice::new`. What fails here has nobody to tell.
        unsafe { driver::primary_ctx::release(self.device) }.ok();
    }
}

impl CudaDevice {
    fn new(index: usize) -> Result<Self, driver::DriverError> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        let device = device::get(i32::try_from(index).unwrap_or(i32::MAX))?;
        // SAFETY: the device has just been got.
        let (major, minor, context) = unsafe {
            (
                device::get_attribute(device, MAJOR)?,
                device::get_attribute(device, MINOR)?,
                driver::primary_ctx::retain(device)?,
            )
        };
        let context = Rc::new(PrimaryContext { device, context });
        let capability = usize::try_from(10 * major + minor).unwrap_or(0);
        Ok(Self { index, name: device::get_name(device)?, capability, context })
    }

    fn capability_text(&self) -> String {
        format!("{}.{}", self.capability / 10, self.capability % 10)
    }

    /// Kernels compile, run, and give what they should; products too: what a driver or a library that is too old fails at.
    fn compute_something(&self) -> Result<()> {
        let allocator = Allocator::new(self.open(ActivationDtype::F32, &[])?, ActivationDtype::F32);
        let ops = Ops::new(allocator.clone());
        let matrix = || Matrix::new(&allocator.empty::<f32>(16)?, 4, 4);
        let operand = |of: &Matrix<f32>| {
            let operand = of.flat()?.as_activations(ActivationDtype::F32);
            Matrix::new(&operand.ok_or_else(|| Error::run("f32 is no dtype of activations"))?, 4, 4)
        };
        let (halves, product, sum) = (matrix()?, matrix()?, matrix()?);
        halves.flat()?.write(&[0.5f32; 16])?;
        let x = operand(&halves)?;
        let product_out = Output::Activation(&operand(&product)?);
        ops.matmul(Factor::Plain(&x), Factor::Transposed(&x), product_out, Write::Replace)?;
        let (t, out) = (operand(&product)?, operand(&sum)?);
        ops.combine(&Combine { f: Some(&halves), t: Some(&t), out: Some(&out), ..Combine::default() })?;
        let found = sum.flat()?.to_vec()?;
        if found.iter().all(|x| x.to_bits() == 1.5f32.to_bits()) {
            return Ok(());
        }
        Err(Error::run(format!("it computes wrongly: {found:?} is not 16 times 1.5")))
    }
}

impl GpuDevice for CudaDevice {
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

    fn open(&self, dtype: ActivationDtype, heads: &[usize]) -> Result<Rc<dyn GpuStream>> {
        Ok(Rc::new(CudaStream::new(self, dtype, heads)?))
    }
}

/// Kernels as machine code for a GPU of compute capability `arch`. Needs neither a driver nor a GPU.
///
/// # Errors
/// What the compiler says.
pub fn compile(source: &str, arch: usize) -> Result<Vec<u8>> {
    libraries::load_compiler().map_err(failed)?;
    let source = CString::new(source).map_err(failed)?;
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
    failed(format!("{what} ({:?})", error.0))
}

/// What cuBLAS may use in passing: what NVIDIA recommends for Hopper; given once, so that sums have one order.
const WORKSPACE: usize = 32 << 20;

/// Work on a GPU, with the kernels of one network.
struct CudaStream {
    dtype: ActivationDtype,
    stream: sys::CUstream,
    /// For copies from the host while the other computes.
    copies: sys::CUstream,
    blas: blas_sys::cublasHandle_t,
    workspace: sys::CUdeviceptr,
    module: sys::CUmodule,
    functions: RefCell<HashMap<String, Function>>,
    slots: RefCell<[Pinned; 2]>,
    memory: RefCell<Memory>,
    context: Rc<PrimaryContext>,
}

/// What is allocated: the size of each piece, of all, and the most that it was.
#[derive(Default)]
struct Memory {
    pieces: HashMap<Address, usize>,
    now: usize,
    peak: usize,
}

/// A kernel, and how much shared memory beyond the usual 48 KiB it has been granted.
#[derive(Clone, Copy)]
struct Function {
    function: sys::CUfunction,
    granted: u32,
}

/// Memory of the host that the GPU copies from by itself, and the event that marks its last copy.
struct Pinned {
    at: *mut c_void,
    bytes: usize,
    copied: sys::CUevent,
}

impl CudaStream {
    fn new(gpu: &CudaDevice, dtype: ActivationDtype, heads: &[usize]) -> Result<Self> {
        gpu.context.bind()?;
        let code = compile(&kernels::source(dtype, heads, gpu.capability), gpu.capability)?;
        let kind = || stream::StreamKind::NonBlocking;
        let new_event = || event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        // SAFETY: the context is current, and each thing made here is used only with it and given back once.
        unsafe {
            let make = || -> Result<_, driver::DriverError> {
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
            let opened = Self {
                dtype,
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
            Ok(opened)
        }
    }

    fn function(&self, kernel: &str, shared: u32) -> Result<sys::CUfunction> {
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_SHARED;
        let mut functions = self.functions.borrow_mut();
        let found = functions.get(kernel).copied();
        let Function { function, granted } = if let Some(found) = found {
            found
        } else {
            let name = CString::new(kernel).map_err(failed)?;
            // SAFETY: the module is loaded as long as this value is there.
            let got = unsafe { module::get_function(self.module, name) };
            Function { function: got.map_err(|error| fail(kernel, &error))?, granted: USUAL_SHARED as u32 }
        };
        if shared > granted {
            // SAFETY: a function of a module that is loaded.
            let set = unsafe { function::set_function_attribute(function, MAX_SHARED, shared.cast_signed()) };
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

impl GpuStream for CudaStream {
    fn allocate(&self, bytes: usize) -> Result<Address> {
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

    unsafe fn free(&self, at: Address) {
        // Work that has not been done may use it. What fails here, fails again where somebody can be told.
        self.wait().ok();
        // SAFETY: allocated above, given back once by who has it.
        unsafe { driver::free_sync(at) }.ok();
        let mut memory = self.memory.borrow_mut();
        memory.now -= memory.pieces.remove(&at).unwrap_or(0);
    }

    fn peak_memory(&self) -> usize {
        self.memory.borrow().peak
    }

    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<()> {
        // SAFETY: a buffer of this GPU of at least so many bytes.
        unsafe { driver::memset_d8_async(at, 0, bytes, self.stream) }
            .map_err(|error| fail("cuMemsetD8Async", &error))
    }

    unsafe fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<()> {
        // SAFETY: buffers of this GPU of at least so many bytes.
        let copied = unsafe { driver::memcpy_dtod_async(to, from, bytes, self.stream) };
        copied.map_err(|error| fail("cuMemcpyDtoDAsync", &error))
    }

    unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<()> {
        // In the stream's order: the plain copy may return before the bytes are there, and other streams do not wait.
        // SAFETY: a buffer of this GPU of at least so many bytes; the copy is done when this returns.
        let copied = unsafe { memcpy_htod_async(to, bytes, self.stream) };
        copied.map_err(|error| fail("cuMemcpyHtoDAsync", &error))?;
        self.wait()
    }

    unsafe fn read(&self, from: Address, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: a buffer of this GPU of at least so many bytes, copied before this returns.
        unsafe { memcpy_dtoh_async(bytes, from, self.stream) }
            .map_err(|error| fail("cuMemcpyDtoHAsync", &error))?;
        unsafe { stream::synchronize(self.stream) }.map_err(|error| fail("the GPU's work failed", &error))
    }

    unsafe fn send(&self, slot: usize, uploads: &[Upload]) -> Result<()> {
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
            for upload in uploads.iter().filter(|upload| !upload.bytes.is_empty()) {
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

    unsafe fn launch(&self, launch: &Launch, args: *const c_void) -> Result<()> {
        let &Launch { kernel, blocks: [x, y, z], threads, shared_bytes } = launch;
        let function = self.function(kernel, shared_bytes)?;
        let mut params = [args.cast_mut()];
        // SAFETY: the kernel takes one struct, which the caller's arguments are; the driver copies it before it returns.
        let launched = unsafe {
            driver::launch_kernel(
                function,
                (x, y, z),
                (threads, 1, 1),
                shared_bytes,
                self.stream,
                &mut params,
            )
        };
        launched.map_err(|error| fail(&format!("{kernel} with {:?} blocks", launch.blocks), &error))
    }

    unsafe fn gemm(&self, g: &Gemm) -> Result<()> {
        use blas_sys::cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        use blas_sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_16F, CUDA_R_32F};
        let operand = match self.dtype {
            ActivationDtype::F32 => CUDA_R_32F,
            ActivationDtype::Bf16 => CUDA_R_16BF,
            ActivationDtype::F16 => CUDA_R_16F,
        };
        let result = if g.c_is_f32 { CUDA_R_32F } else { operand };
        let (alpha, beta) = (1f32, if g.accumulate { 1f32 } else { 0f32 });
        let op = |transposed| if transposed { CUBLAS_OP_T } else { CUBLAS_OP_N };
        let (m, n, k) = (int(g.m)?, int(g.n)?, int(g.k)?);
        let (lda, ldb, ldc) = (int(g.a.ld)?, int(g.b.ld)?, int(g.ldc)?);
        // SAFETY: buffers of this GPU that hold the matrices. cuBLAS's matrices lie column by column: it is given the
        // transposed product, whose factors change places.
        let done = unsafe {
            blas::gemm_ex(
                self.blas,
                op(g.b.transposed),
                op(g.a.transposed),
                n,
                m,
                k,
                (&raw const alpha).cast(),
                g.b.address as *const c_void,
                operand,
                ldb,
                g.a.address as *const c_void,
                operand,
                lda,
                (&raw const beta).cast(),
                g.c as *mut c_void,
                result,
                ldc,
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        done.map_err(|error| fail(&format!("a product of {} x {} x {}", g.m, g.k, g.n), &error))
    }
}

impl Drop for CudaStream {
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
pub(crate) fn for_tests() -> Option<Rc<dyn GpuDevice>> {
    match open(0) {
        Ok(device) => Some(device),
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
        for dtype in [ActivationDtype::F32, ActivationDtype::Bf16, ActivationDtype::F16] {
            for arch in [80, 90] {
                let code = compile(&kernels::source(dtype, &[64, 5, 80], arch), arch).unwrap();
                assert_eq!(code[..4], *b"\x7fELF", "{dtype:?} for {arch}");
            }
        }
        let error = compile("nonsense", 90).unwrap_err().to_string();
        assert!(error.contains("sm_90") && error.contains("nonsense"), "{error}");
    }
}
