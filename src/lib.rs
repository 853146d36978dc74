//! slt-run: trains multi-stream sign language translation experiments described in TOML files.
//!
//! The modules stand in the order in which data flows; each depends only on those above it.

pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod data;
pub mod demo;
pub mod error;
pub mod files;
pub mod model;
pub mod nn;
pub mod observe;
pub mod random;
pub mod train;

pub use error::{Error, Kind, Result};
