//! The `slt-run` binary: reads the command line, runs the command, prints the error chain.

use std::ffi::OsString;
use std::process::ExitCode;

use slt_run::limits::allocator::{Orderly, end_on_panics_for_memory};
use slt_run::{cli, commands, guard, limits};

/// Faster than the system's allocator for the many short-lived tensors of a step.
#[global_allocator]
static ALLOCATOR: Orderly<mimalloc::MiMalloc> = Orderly(mimalloc::MiMalloc);

/// Lets the allocator keep what is freed instead of giving it back to the system: a training step frees and takes the
/// same gigabyte again and again, and the system clears every page that it hands out.
#[allow(unsafe_code)]
fn keep_freed_memory() {
    /// `mi_option_purge_delay` of `mimalloc.h`; -1 means never.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: sets a number that the allocator reads; a value from the environment stays in force.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, -1) };
}

/// Keeps C's allocator, which hardly anything here uses, from setting 64 MiB of addresses aside for each thread: under a
/// limit (`ulimit -v`) they are missing elsewhere.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn save_addresses() {
    // SAFETY: sets a number, before there are other threads.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn save_addresses() {}

/// Keeps the system from backing the heap with pages of 2 MiB. The allocator asks for them, and then every gap between
/// two blocks is resident: 7 % of a training step's memory, for 2 % of its time.
#[cfg(target_os = "linux")]
fn use_small_pages() {
    // Where the system does not know this, nothing happens.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

#[cfg(not(target_os = "linux"))]
fn use_small_pages() {}

fn main() -> ExitCode {
    use_small_pages();
    save_addresses();
    keep_freed_memory();
    limits::let_writes_fail();
    end_on_panics_for_memory();
    guard::silence_guarded_panics();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let command = match cli::parse(arguments.clone()) {
        Ok(command) => command,
        Err(error) => {
            // Help and version are "errors" too, for standard output; that nobody reads them is none.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match commands::run(command, &arguments) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let (error, reporter) = *failure;
            reporter.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
