//! CUDA's shared libraries, opened when a GPU is asked for: a program that was built with CUDA starts anywhere.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::cuda_backend::cudarc::driver::sys::CUDA_VERSION;
use libloading::Library;

use super::symbols;

/// One of CUDA's libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// The driver's own, of any version that is new enough.
    Driver,
    /// Matrix products: the part that cuBLAS builds on.
    CublasLt,
    /// Matrix products.
    Cublas,
    /// Random numbers: Candle starts a generator with each device.
    Curand,
    /// The compiler of kernels.
    Nvrtc,
}

impl Name {
    /// Its file's name, with the version that this program was built for.
    #[must_use]
    pub fn file(self) -> String {
        let major = CUDA_VERSION / 1000;
        match self {
            Self::Driver => "libcuda.so.1".to_owned(),
            Self::CublasLt => format!("libcublasLt.so.{major}"),
            Self::Cublas => format!("libcublas.so.{major}"),
            // It has kept its number from CUDA 11 on.
            Self::Curand => "libcurand.so.10".to_owned(),
            Self::Nvrtc => format!("libnvrtc.so.{major}"),
        }
    }
}

/// Opens all that computing needs, once: the driver, cuBLAS and cuRAND.
///
/// # Errors
/// Which one is missing, as the middle of a sentence.
pub fn load() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let all = [Name::Driver, Name::CublasLt, Name::Cublas, Name::Curand];
    LOADED.get_or_init(|| all.into_iter().try_for_each(open)).clone()
}

/// Opens the compiler of kernels, once. It needs neither a driver nor a GPU.
///
/// # Errors
/// That it is missing, as the middle of a sentence.
pub fn load_compiler() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(|| open(Name::Nvrtc)).clone()
}

fn open(name: Name) -> Result<(), String> {
    let file = name.file();
    let mut first = None;
    for path in places(&file) {
        // SAFETY: NVIDIA's libraries may be opened at any time, from any thread.
        match unsafe { Library::new(&path) } {
            Ok(library) => {
                symbols::connect(name, &library);
                if name == Name::Nvrtc {
                    open_builtins(&path);
                }
                // Never closed: its functions are called until the process ends.
                std::mem::forget(library);
                return Ok(());
            }
            // What the system's loader says is the cause, and begins with the file's name.
            Err(error) => {
                first = first.or(std::error::Error::source(&error).map(ToString::to_string));
            }
        }
    }
    let cure = if name == Name::Driver {
        "is NVIDIA's driver installed?"
    } else {
        "add its folder to LD_LIBRARY_PATH, or set CUDA_HOME"
    };
    Err(format!("{} ({cure})", first.unwrap_or_else(|| format!("{file} cannot be opened"))))
}

/// Opens the part that NVRTC looks for by name alone when it compiles, where NVRTC itself was found by its folder.
fn open_builtins(nvrtc: &Path) {
    let folder = nvrtc.parent().and_then(|folder| folder.read_dir().ok());
    for file in folder.into_iter().flatten().flatten() {
        if file.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so.") {
            // SAFETY: as for the others. Where it cannot be opened, compiling says so.
            unsafe { Library::new(file.path()) }.map(std::mem::forget).ok();
        }
    }
}

/// Where a library may be: wherever the system looks, then in CUDA's usual folders.
fn places(file: &str) -> Vec<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let homes = homes.chain([PathBuf::from("/usr/local/cuda")]);
    let inside = homes.flat_map(|home| ["lib64", "lib"].map(|lib| home.join(lib).join(file)));
    std::iter::once(PathBuf::from(file)).chain(inside.filter(|path| path.is_file())).collect()
}

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that is left out says so")]
mod tests {
    use super::*;
    use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};

    /// NVRTC needs no GPU: kernels compile for 8.0 and 9.0 wherever the library is, and what is wrong is an error.
    #[test]
    fn kernels_compile_where_the_compiler_is() {
        if let Err(why) = load_compiler() {
            eprintln!("left out: {why}");
            return;
        }
        let compile = |source: &str, arch| {
            compile_ptx_with_opts(source, CompileOptions { arch: Some(arch), ..CompileOptions::default() })
        };
        let kernel = "extern \"C\" __global__ void twice(float *x, int n) {
            int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) x[i] *= 2.0f;
        }";
        for (arch, target) in [("compute_80", "sm_80"), ("compute_90", "sm_90")] {
            let ptx = compile(kernel, arch).unwrap().to_src();
            assert!(ptx.contains(target) && ptx.contains(".entry twice"), "{ptx}");
        }
        assert!(compile("nonsense", "compute_90").is_err());
    }

    #[test]
    fn a_library_that_is_missing_is_named() {
        assert!(Name::Cublas.file().starts_with("libcublas.so.1"));
        // What the library would be asked is answered without it.
        if let Err(why) = load() {
            assert!(why.starts_with("lib") && why.contains(".so"), "{why}");
            assert!(super::super::open(0).is_err());
        }
        assert!(super::super::open(usize::MAX).is_err());
    }
}
