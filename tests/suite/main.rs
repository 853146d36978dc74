//! Tests of the library and the binary as a user meets them.

mod config;
//! Tests of slt-run from the outside.

mod checkpoint;
