//! Tests of the library and the program as a user meets them.
#![allow(clippy::unwrap_used)]

mod cases;
mod checkpoint;
mod checkpoint_hostile;
mod config;
mod data;
mod demo;
