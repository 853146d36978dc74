//! CUDA's functions, as far as this program links to them: entries that jump to where a library, once open, has them.
//!
//! Candle's bindings name the libraries at link time, so that a program built with them would not start without. Here
//! every function that they call is defined, and the linker, which looks into shared libraries only for what is missing
//! (`--as-needed`), needs none. Until its library is open, a function gives its library's error for "not initialised".
//! A name that is missing here does no harm beyond that: its library is needed to start again (`.ci/run` looks).
//!
//! On other platforms than Linux on x86-64, the libraries are linked as the bindings say.

use libloading::Library;

use super::libraries::Name;

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(super) fn connect(_: Name, _: &Library) {}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(super) use entries::connect;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod entries {
    use std::arch::global_asm;
    use std::ffi::c_void;
    use std::sync::atomic::{AtomicPtr, Ordering};

    use super::{Library, Name};

    /// Sends the entries of an open library's functions there. What it lacks keeps its error.
    pub(in super::super) fn connect(name: Name, library: &Library) {
        // SAFETY: the assembler below lays out one pointer for each of SYMBOLS, in their order.
        let slots = unsafe { &slt_run_cuda_slots };
        for ((of, symbol), slot) in SYMBOLS.iter().zip(slots) {
            // SAFETY: only its address is taken; who calls it declares its type.
            if let (true, Ok(found)) = (*of == name, unsafe { library.get::<*mut c_void>(*symbol) }) {
                slot.store(*found, Ordering::Release);
            }
        }
    }

    unsafe extern "C" {
        static slt_run_cuda_slots: [AtomicPtr<c_void>; SYMBOLS.len()];
    }

    /// For each library, the function that stands in for those that are not there, and all the functions.
    macro_rules! entries {
        ($($library:ident, $missing:literal: $($symbol:literal)+;)+) => {
            const SYMBOLS: &[(Name, &str)] = &[$($((Name::$library, $symbol)),+),+];

            // Hidden: libraries that are opened later must not find these instead of each other's.
            global_asm!(
                ".macro slt_run_cuda_entry name, missing",
                ".pushsection .data.slt_run_cuda,\"aw\",@progbits",
                "77: .quad \\missing",
                ".popsection",
                ".globl \\name",
                ".hidden \\name",
                ".type \\name,@function",
                "\\name: jmpq *77b(%rip)",
                ".endm",
                ".pushsection .data.slt_run_cuda,\"aw\",@progbits",
                ".balign 8",
                ".globl slt_run_cuda_slots",
                ".hidden slt_run_cuda_slots",
                "slt_run_cuda_slots:",
                ".popsection",
                ".pushsection .text.slt_run_cuda,\"ax\",@progbits",
                $($(concat!("slt_run_cuda_entry ", $symbol, ", ", $missing),)+)+
                // The libraries' own numbers for "not initialised"; the compiler has only "internal error".
                "slt_run_no_driver: movl $3, %eax",
                "retq",
                "slt_run_no_cublas: movl $1, %eax",
                "retq",
                "slt_run_no_curand: movl $101, %eax",
                "retq",
                "slt_run_no_nvrtc: movl $11, %eax",
                "retq",
                ".popsection",
                options(att_syntax)
            );
        };
    }

    entries! {
        Driver, "slt_run_no_driver":
            "cuCtxDestroy_v2" "cuCtxGetCurrent" "cuCtxSetCurrent" "cuCtxSynchronize" "cuDeviceGet"
            "cuDeviceGetAttribute" "cuDeviceGetCount" "cuDeviceGetDefaultMemPool" "cuDeviceGetMemPool"
            "cuDeviceGetName" "cuDevicePrimaryCtxRelease_v2" "cuDevicePrimaryCtxRetain" "cuDeviceTotalMem_v2"
            "cuDriverGetVersion" "cuEventCreate" "cuEventDestroy_v2" "cuEventElapsedTime_v2" "cuEventQuery"
            "cuEventRecord" "cuEventSynchronize" "cuFuncGetAttribute" "cuFuncSetAttribute" "cuGetErrorName"
            "cuGetErrorString" "cuInit" "cuLaunchHostFunc" "cuLaunchKernel" "cuMemAllocAsync" "cuMemAlloc_v2"
            "cuMemFreeAsync" "cuMemFreeHost" "cuMemFree_v2" "cuMemGetInfo_v2" "cuMemHostAlloc"
            "cuMemHostGetFlags" "cuMemPoolGetAttribute" "cuMemPoolSetAttribute" "cuMemPoolTrimTo"
            "cuMemcpyDtoDAsync_v2" "cuMemcpyDtoHAsync_v2" "cuMemcpyDtoH_v2" "cuMemcpyHtoDAsync_v2"
            "cuMemcpyHtoD_v2" "cuMemcpyPeerAsync" "cuMemsetD8Async" "cuMemsetD8_v2" "cuModuleGetFunction"
            "cuModuleGetGlobal_v2" "cuModuleLoad" "cuModuleLoadData" "cuModuleUnload"
            "cuOccupancyMaxActiveBlocksPerMultiprocessor" "cuStreamCreate" "cuStreamDestroy_v2"
            "cuStreamIsCapturing" "cuStreamQuery" "cuStreamSynchronize" "cuStreamWaitEvent";
        Cublas, "slt_run_no_cublas":
            "cublasCreate_v2" "cublasDestroy_v2" "cublasDgemmStridedBatched" "cublasGemmEx"
            "cublasGemmStridedBatchedEx" "cublasGetMathMode" "cublasSetMathMode" "cublasSetStream_v2"
            "cublasSetWorkspace_v2" "cublasSgemmStridedBatched" "cublasSgemm_v2";
        CublasLt, "slt_run_no_cublas":
            "cublasLtCreate" "cublasLtDestroy" "cublasLtMatmul" "cublasLtMatmulAlgoGetHeuristic"
            "cublasLtMatmulDescCreate" "cublasLtMatmulDescDestroy" "cublasLtMatmulDescSetAttribute"
            "cublasLtMatmulPreferenceCreate" "cublasLtMatmulPreferenceDestroy"
            "cublasLtMatmulPreferenceSetAttribute" "cublasLtMatrixLayoutCreate" "cublasLtMatrixLayoutDestroy"
            "cublasLtMatrixLayoutSetAttribute";
        Curand, "slt_run_no_curand":
            "curandCreateGenerator" "curandDestroyGenerator" "curandGenerateNormal"
            "curandGenerateNormalDouble" "curandGenerateUniform" "curandGenerateUniformDouble"
            "curandSetPseudoRandomGeneratorSeed" "curandSetStream";
        Nvrtc, "slt_run_no_nvrtc":
            "nvrtcAddNameExpression" "nvrtcCompileProgram" "nvrtcCreateProgram" "nvrtcDestroyProgram"
            "nvrtcGetCUBIN" "nvrtcGetCUBINSize" "nvrtcGetErrorString" "nvrtcGetLoweredName"
            "nvrtcGetNumSupportedArchs" "nvrtcGetPTX" "nvrtcGetPTXSize" "nvrtcGetProgramLog"
            "nvrtcGetProgramLogSize" "nvrtcGetSupportedArchs" "nvrtcVersion";
    }

    // Candle's kernels for quantised numbers: half of what would be the program, they want CUDA's runtime, and announce
    // themselves to it as the program starts. With these in their place they are not linked. Nothing here quantises; who
    // begins to must link them.
    global_asm!(
        ".macro slt_run_unused name",
        ".globl \\name",
        ".hidden \\name",
        ".type \\name,@function",
        "\\name:",
        ".endm",
        ".pushsection .text.slt_run_unused,\"ax\",@progbits",
        ".irp q, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0",
        "slt_run_unused launch_mmq_gguf_\\q",
        "slt_run_unused launch_mmvq_gguf_\\q\\()_bf16_plain",
        "slt_run_unused launch_mmvq_gguf_\\q\\()_f16_plain",
        "slt_run_unused launch_mmvq_gguf_\\q\\()_f32_plain",
        ".endr",
        ".irp name, launch_mmq_quantize_q8_1_D2S6, launch_mmq_quantize_q8_1_D4, launch_mmq_quantize_q8_1_DS4, \
         launch_mmvq_gguf_quantize_q8_1_bf16, launch_mmvq_gguf_quantize_q8_1_f16, \
         launch_mmvq_gguf_quantize_q8_1_f32, moe_gemm_gguf, moe_gemm_gguf_prefill, moe_gemm_wmma",
        "slt_run_unused \\name",
        ".endr",
        "ud2",
        ".popsection",
        options(att_syntax)
    );
}
