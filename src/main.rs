//! The `slt-run` binary.

/// Faster than the system's allocator for the many short-lived tensors of a step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {}
