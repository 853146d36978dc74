//! slt-run: trains multi-stream sign language translation experiments described in TOML files.
//!
//! In the order in which data flows: `cli` and `commands` (what was asked for), `config` (the experiment), `data` (files to
//! batches), `text` (tokens and figures), `nn` and `model` (the network), `engine` (what computes it), `optim` (what updates it), `train` (the loop),
//! `checkpoint` and `observe` (what a run leaves), `evaluate` (a trained network on clips). `demo`
//! draws datasets; `error`, `files`, `guard`, `input`, `limits`, `random` and `zip_read` serve all.

pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod demo;
pub mod engine;
pub mod error;
pub mod evaluate;
pub mod files;
pub mod guard;
pub mod input;
pub mod limits;
pub mod model;
pub mod nn;
pub mod observe;
pub mod optim;
pub mod random;
pub mod text;
pub mod train;
mod zip_read;

pub use error::{Error, ErrorKind, Result};
