//! Somebody else's reader on what may be hostile: its panic becomes the message of an error.

use std::cell::Cell;

thread_local! {
    /// Whether this thread is inside [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Keeps Rust's own report of a panic from the terminal where the panic becomes an error anyway: inside a reader of
/// somebody else's. Every other panic is reported as before. For a program to call once, at its start.
pub fn silence_guarded_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !GUARDED.get() {
            report(info);
        }
    }));
}

/// Runs a reader of somebody else's on what may be hostile: its panic becomes the message of an error.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    let outer = GUARDED.replace(true);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    GUARDED.set(outer);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        format!("the reader gave up: {}", text.unwrap_or_else(|| "no reason given".into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_message() {
        let got: Result<(), String> = guarded(|| std::panic::panic_any(String::from("index 7")));
        assert_eq!(got, Err("the reader gave up: index 7".into()));
        assert!(!GUARDED.get());
        assert_eq!(guarded(|| guarded(|| ()).is_ok() && GUARDED.get()), Ok(true));
    }
}
