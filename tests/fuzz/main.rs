//! Fuzzes the readers of files from elsewhere, for a second each; longer with `SLT_FUZZ_SECONDS`:
//!
//! ```text
//! SLT_FUZZ_SECONDS=600 SLT_FUZZ_SEED=7 cargo test --release --test fuzz -- checkpoint --nocapture
//! ```
//!
//! Good files are damaged with their format in mind and read. A panic, a hang, memory out of proportion to the file, or
//! an error that does not name the file fails the test; the input is kept, and `SLT_FUZZ_FILE=… cargo test --release
//! --test fuzz -- checkpoint` reads it again. What was found is in `tests/suite/hostile.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::cast_possible_wrap,
    clippy::format_collect,
    clippy::items_after_statements,
    unsafe_code
)]

mod bombs;
mod checkpoint;
mod csv;
mod engine;
mod features;
mod jpeg;
mod memory;
mod npz;
mod random;
mod safetensors;
mod tokenizer;
mod toml;
mod weights;
mod zips;

use std::path::{Path, PathBuf};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// A file or folder of `tests/data`.
fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// All files of a folder of `tests/data` whose names end with `end`.
fn files(folder: &str, end: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(data(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.to_str().unwrap().ends_with(end));
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

#[test]
fn checkpoint() {
    engine::fuzz(&checkpoint::target());
}

#[test]
fn npz() {
    engine::fuzz(&npz::target());
}

#[test]
fn jpeg() {
    engine::fuzz(&jpeg::target());
}

#[test]
fn csv() {
    engine::fuzz(&csv::target());
}

#[test]
fn tokenizer() {
    engine::fuzz(&tokenizer::target());
}

#[test]
fn toml() {
    engine::fuzz(&toml::target());
}

#[test]
fn features() {
    engine::fuzz(&features::target());
}

#[test]
fn weights() {
    engine::fuzz(&weights::target());
}
