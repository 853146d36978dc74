//! Fused blocks on the CPU: f32 slices, hand-written backward passes, SIMD chosen at run time.
//!
//! Candle's own operations train this network six times slower than PyTorch; `scripts/PERF.md` has the log.

mod gemm;
pub mod math;
pub mod rows;
pub mod vit;
