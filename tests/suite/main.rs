//! Tests of the library and the program as a user meets them.

mod checkpoint;
mod config;
mod data;
mod demo;
