//! Tests of the library and the binary as a user meets them.

mod config;
//! Tests of slt-run from the outside.

mod checkpoint;
//! The tests that need more than one module, or the program itself.

mod demo;
