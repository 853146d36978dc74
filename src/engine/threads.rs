//! The threads that compute: how many, and how they treat the smallest numbers.

/// How many threads a run computes with: as many as `configured`, else `RAYON_NUM_THREADS` where it is set to a number,
/// else the cores that affinity and cgroup quotas grant.
#[must_use]
pub fn available(configured: Option<usize>) -> usize {
    if let Some(threads) = configured.filter(|&threads| threads > 0) {
        return threads;
    }
    let granted = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.trim().parse().ok());
    asked.filter(|&threads| threads > 0).unwrap_or_else(granted)
}

/// Starts the pool of `threads` threads that all of a process's computations share, and sets the calling
/// thread up alike. Only the first call of a process decides the number; the number in force is returned.
#[must_use = "the number of threads in force"]
pub fn start(threads: usize) -> usize {
    flush_denormals();
    // An error says that the pool runs already.
    let _ = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("compute-{i}"))
        .start_handler(|_| flush_denormals())
        .build_global();
    rayon::current_num_threads()
}

/// Makes this thread treat denormal numbers as zero.
///
/// A network that has learned its clips by heart has gradients around 1e-40, and arithmetic on them is more
/// than ten times slower: 68 s were seen for a step of 5 s.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
pub fn flush_denormals() {
    const FLUSH_TO_ZERO: u32 = 1 << 15;
    const DENORMALS_ARE_ZERO: u32 = 1 << 6;
    let mut control: u32 = 0;
    // SAFETY: reads and writes this thread's own control register; the two bits change only how denormals round.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut control, options(nostack));
        control |= FLUSH_TO_ZERO | DENORMALS_ARE_ZERO;
        std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const control, options(nostack));
    }
}

/// Elsewhere denormals cost little.
#[cfg(not(target_arch = "x86_64"))]
pub fn flush_denormals() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn denormals_become_zero() {
        std::thread::spawn(|| {
            let tiny = std::hint::black_box(1e-30_f32);
            assert!(tiny * std::hint::black_box(1e-10_f32) > 0.0);
            flush_denormals();
            assert!(std::hint::black_box(tiny) * std::hint::black_box(1e-10_f32) == 0.0);
        })
        .join()
        .expect("the thread ends");
    }
}
