//! The threads that compute: how many, and how they treat the smallest numbers.

use std::error::Error as _;
use std::io;

use crate::config::MOST_THREADS;
use crate::error::{ErrorKind, Problem, count};
use crate::{Error, Result};

/// The variable that stands in for `run.threads`.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// How many threads a run computes with: as many as `configured`, else `RAYON_NUM_THREADS` where it is set to a number,
/// else the cores that affinity and cgroup quotas grant.
///
/// # Errors
/// Kind `Config` where the variable has more than `run.threads` may have.
pub fn available(configured: Option<usize>) -> Result<usize> {
    if let Some(threads) = configured.filter(|&threads| threads > 0) {
        return Ok(threads);
    }
    match std::env::var(VARIABLE).ok().and_then(|text| asked(&text)) {
        Some(threads) if threads > MOST_THREADS => {
            let what = format!("{VARIABLE}: must be at most {MOST_THREADS}, not {threads}");
            let hint = format!("set {VARIABLE} or run.threads to the cores at hand, or unset both");
            Err(Error::new(ErrorKind::Config, Problem::new(what).hint(hint)))
        }
        Some(threads) => Ok(threads as usize),
        None => Ok(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)),
    }
}

/// The number of threads that a text asks for, if it does.
fn asked(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // A number of any length is too large, not none.
    digits.then(|| text.parse().unwrap_or(u64::MAX)).filter(|&threads| threads > 0)
}

/// Starts the pool of `threads` threads that all of a process's computations share, and sets the calling
/// thread up alike. Only the first call of a process decides the number; the number in force is returned.
///
/// # Errors
/// Kind `Run` where the system grants fewer threads.
pub fn start(threads: usize) -> Result<usize> {
    flush_denormals();
    // This thread is one of them, so that it neither sleeps nor wakes another for each operation; but for the only one,
    // which could not compute for others while it waits for them.
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
    let builder = if threads > 1 { builder.use_current_thread() } else { builder };
    let built =
        builder.thread_name(|i| format!("compute-{i}")).start_handler(|_| flush_denormals()).build_global();
    // Another error says that the pool runs already.
    let refused =
        built.err().filter(|error| error.source().is_some_and(<dyn std::error::Error>::is::<io::Error>));
    match refused {
        Some(error) => {
            let what = format!(
                "the system does not grant {} to compute with (run.threads)",
                count(threads, "thread")
            );
            let hint = "set run.threads to fewer, or raise the limits on processes (ulimit -u) and memory (ulimit -v)";
            Err(Error::new(ErrorKind::Run, Problem::new(what).cause(error).hint(hint)))
        }
        None => Ok(rayon::current_num_threads()),
    }
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
    fn numbers_of_threads_are_read() {
        assert_eq!(
            ["3", " 12 ", "0", "", "-1", "many", "1e3"].map(asked),
            [Some(3), Some(12), None, None, None, None, None]
        );
        assert_eq!(asked("99999999999999999999999"), Some(u64::MAX));
    }

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
