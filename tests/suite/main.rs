//! Tests of the library and the program as a user meets them.

mod checkpoint;
mod config;
mod data;
mod demo;
//! Integration tests: the library as its parts use each other, and the binary as a person uses it.

mod data;
mod checkpoint_hostile;
