//! The `slt-run` binary: reads the command line, runs the command, prints the error chain.

use std::ffi::OsString;
use std::process::ExitCode;

use slt_run::{cli, commands, data};

/// Faster than the system's allocator for the many short-lived tensors of a step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    data::silence_guarded_panics();
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
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let (error, reporter) = *failure;
            reporter.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
