//! Tests of the library and the program as a user meets them.

mod cases;
mod checkpoint;
mod checkpoint_hostile;
mod config;
mod data;
#![allow(clippy::unwrap_used)]

mod demo;
