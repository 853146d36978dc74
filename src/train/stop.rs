//! Being told to stop: SIGTERM, SIGINT, SIGHUP (the terminal is gone) and SIGUSR1, which SLURM sends before a job's
//! time is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::{Error, Result};

/// Whether a signal asks the run to save and stop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// The first signal that came; 0 before.
    signal: Arc<AtomicUsize>,
    /// Whether the next one ends the process without more ado.
    at_once: Arc<AtomicBool>,
}

/// A signal that ends a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(u8);

impl Signal {
    /// What a shell makes of a process that a signal ended: 128 + its number.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        128_u8.saturating_add(self.0)
    }

    /// Its name, such as `SIGTERM`.
    #[must_use]
    pub fn name(self) -> String {
        #[cfg(unix)]
        if let Some(name) = signal_hook::low_level::signal_name(i32::from(self.0)) {
            return name.to_owned();
        }
        format!("signal {}", self.0)
    }
}

impl Stop {
    /// Takes these signals over from now on, but for a SIGHUP that `nohup` has told to be ignored. Each ends the process at once, with the same code as later, until
    /// [`Self::let_steps_end`].
    ///
    /// # Errors
    /// A run error where the system refuses.
    #[cfg(unix)]
    pub fn on_signals() -> Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
        use signal_hook::flag;
        let stop = Self::default();
        stop.at_once.store(true, Ordering::SeqCst);
        let hang_up = (!is_ignored(SIGHUP)).then_some(SIGHUP);
        for signal in [SIGTERM, SIGINT, SIGUSR1].into_iter().chain(hang_up) {
            // In this order: the first signal to be noted finds `at_once` false, and sets it after that.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop.at_once))
                .and_then(|_| flag::register(signal, Arc::clone(&stop.at_once)))
                .and_then(|_| flag::register_usize(signal, Arc::clone(&stop.signal), signal as usize))
                .map_err(|error| Error::run(format!("cannot listen for signal {signal}")).cause(error))?;
        }
        Ok(stop)
    }

    /// Other systems end the process by themselves.
    ///
    /// # Errors
    /// None.
    #[cfg(not(unix))]
    pub fn on_signals() -> Result<Self> {
        Ok(Self::default())
    }

    /// From now on the first signal is noted, for the run to save and stop; a second one ends the process at once.
    pub fn let_steps_end(&self) {
        self.at_once.store(false, Ordering::SeqCst);
    }

    /// The signal that has come, if one has.
    #[must_use]
    pub fn requested(&self) -> Option<Signal> {
        u8::try_from(self.signal.load(Ordering::Relaxed)).ok().filter(|&number| number > 0).map(Signal)
    }
}

/// Whether the process was started with `signal` ignored.
#[cfg(unix)]
#[allow(unsafe_code)]
fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action nothing changes; the present one is written where there is room for it.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: it was written, as 0 says.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_has_a_name_and_a_code() {
        let stop = Stop::default();
        assert_eq!(stop.requested(), None);
        stop.signal.store(15, Ordering::Relaxed);
        let signal = stop.requested().unwrap();
        assert_eq!((signal.exit_code(), signal.name().as_str()), (143, "SIGTERM"));
    }
}
