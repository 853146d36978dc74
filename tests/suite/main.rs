//! Tests of the library and the program as a user meets them.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::format_push_string, clippy::needless_for_each)]

mod bad_input;
mod bench;
mod cases;
mod checkpoint;
mod checkpoint_hostile;
mod checkpoint_versions;
mod cli;
mod config;
mod data;
mod demo;
mod device;
mod documents;
mod faults;
mod features;
#[cfg(unix)]
mod folder;
#[cfg(all(feature = "cuda", target_os = "linux", target_arch = "x86_64"))]
mod gpu;
mod gradients;
mod hostile;
mod identity;
mod knobs;
#[cfg(target_os = "linux")]
mod limits;
mod lock;
mod mid_run;
mod numbers;
mod pretrained;
mod resume;
mod run;
mod support;
mod tokens;
mod translation;
