//! Tests of the library and the binary as a user meets them.

mod config;
