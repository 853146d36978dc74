//! Tests of the library and the program as a user meets them.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod cases;
mod checkpoint;
mod checkpoint_hostile;
mod cli;
mod config;
mod data;
mod demo;
mod run;
mod support;
