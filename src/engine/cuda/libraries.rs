//! CUDA's shared libraries, opened when a GPU is asked for: a program that was built with CUDA starts anywhere.
//!
//! The bindings would look for a library by its name alone, and panic without it. Opened here first, it is found wherever
//! it may be, and under its versioned name from then on; where the system finds one without a version in its name, the
//! bindings take that one.
#![allow(unsafe_code, reason = "opening a library runs its code")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

/// One of CUDA's libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// The driver's own.
    Driver,
    /// The part that cuBLAS builds on.
    CublasLt,
    /// Matrix products.
    Cublas,
    /// The compiler of kernels.
    Nvrtc,
}

/// Majors of CUDA that the libraries may be of. What is called here is the same in both.
const MAJORS: [u32; 2] = [13, 12];

impl Name {
    /// Its files' names, the newest first.
    fn files(self) -> Vec<String> {
        let of = |name: &str| MAJORS.iter().map(|major| format!("lib{name}.so.{major}")).collect();
        match self {
            Self::Driver => vec!["libcuda.so.1".to_owned()],
            Self::CublasLt => of("cublasLt"),
            Self::Cublas => of("cublas"),
            Self::Nvrtc => of("nvrtc"),
        }
    }
}

/// Opens all that computing needs, once: the driver, cuBLAS, and the compiler of kernels.
///
/// # Errors
/// Which one is missing, as the middle of a sentence.
pub fn load() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let all = [Name::Driver, Name::CublasLt, Name::Cublas];
    LOADED.get_or_init(|| all.into_iter().try_for_each(open)).clone()?;
    load_compiler()
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
    let files = name.files();
    let mut first = None;
    for path in places(&files) {
        // SAFETY: NVIDIA's libraries may be opened at any time, from any thread.
        match unsafe { Library::new(&path) } {
            Ok(library) => {
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
        "add its folder to LD_LIBRARY_PATH, set CUDA_HOME, or activate an environment that has PyTorch with CUDA"
    };
    Err(format!("{} ({cure})", first.unwrap_or_else(|| format!("{} cannot be opened", files[0]))))
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

/// Where a library may be: wherever the system looks, then in CUDA's usual folders, then where an active Python
/// environment has those of NVIDIA's wheels, which PyTorch brings.
fn places(files: &[String]) -> Vec<PathBuf> {
    let folders = |names: &[&str]| -> Vec<PathBuf> {
        names
            .iter()
            .filter_map(std::env::var_os)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
            .collect()
    };
    let homes = folders(&["CUDA_HOME", "CUDA_PATH"]).into_iter().chain([PathBuf::from("/usr/local/cuda")]);
    let mut inside: Vec<PathBuf> =
        homes.flat_map(|home| ["lib64", "lib"].map(|lib| home.join(lib))).collect();
    // An environment that is not active may still be the one whose Python is found first.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter_map(|bin| bin.parent().map(Path::to_path_buf));
    let on_path = on_path.filter(|folder| folder.join("pyvenv.cfg").is_file());
    for environment in folders(&["VIRTUAL_ENV", "CONDA_PREFIX"]).into_iter().chain(on_path) {
        for python in entries(&environment.join("lib")) {
            for wheel in entries(&python.join("site-packages/nvidia")) {
                inside.push(wheel.join("lib"));
            }
        }
    }
    let by_name = files.iter().map(PathBuf::from);
    let by_path = files.iter().flat_map(|file| inside.iter().map(move |folder| folder.join(file)));
    by_name.chain(by_path.filter(|path| path.is_file())).collect()
}

/// What is in a folder, in order; nothing where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_missing_is_named() {
        assert_eq!(Name::Cublas.files(), ["libcublas.so.13", "libcublas.so.12"]);
        if let Err(why) = load() {
            assert!(why.starts_with("lib") && why.contains(".so"), "{why}");
        }
    }
}
