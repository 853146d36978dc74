//! Where memory is not to be had, the process ends in good order: with one message and an exit code, not an abort.
//!
//! Almost all of a program takes memory without asking whether there is some, and Rust's own answer to a refusal is to
//! abort. What a run will take is compared with what there is before it starts; this is for what that could not tell.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, UnsafeCell};
use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{MEMORY_HINT, memory_left, size};

/// An allocator that ends the process where `A` refuses.
pub struct Orderly<A>(pub A);

/// What puts in order what the process was about, and tells what there is to tell.
type LastWords = Box<dyn FnOnce() -> Option<String> + Send>;

static LAST_WORDS: Mutex<Option<LastWords>> = Mutex::new(None);
static ENDING: AtomicBool = AtomicBool::new(false);
static SPARE: Spare = Spare { bytes: UnsafeCell::new([0; SPARE_BYTES]), used: AtomicUsize::new(0) };

thread_local! {
    /// Whether this is the thread that ends the process: what it takes comes out of the spare memory if need be.
    static ENDS: Cell<bool> = const { Cell::new(false) };
}

/// Enough to remove a run's files and to say why. It takes no memory before it is used.
const SPARE_BYTES: usize = 1 << 20;

/// Memory that is there from the start.
struct Spare {
    bytes: UnsafeCell<[u8; SPARE_BYTES]>,
    used: AtomicUsize,
}

// SAFETY: the bytes are handed out in pieces that do not overlap, each once.
#[allow(unsafe_code)]
unsafe impl Sync for Spare {}

impl Spare {
    fn take(&self, layout: Layout) -> *mut u8 {
        let start = self.bytes.get().cast::<u8>();
        let place = |used: usize| {
            let at = (start as usize).checked_add(used)?.checked_next_multiple_of(layout.align())?;
            let end = (at - start as usize).checked_add(layout.size())?;
            (end <= SPARE_BYTES).then_some((at - start as usize, end))
        };
        let before = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| place(used).map(|(_, end)| end));
        match before.ok().and_then(place) {
            Some((at, _)) => start.wrapping_add(at),
            None => std::ptr::null_mut(),
        }
    }

    fn contains(&self, pointer: *mut u8) -> bool {
        (pointer as usize).wrapping_sub(self.bytes.get() as usize) < SPARE_BYTES
    }
}

/// Keeps `words` for the case that memory runs out, until the value that it returns is dropped.
#[must_use]
pub fn at_the_end(words: impl FnOnce() -> Option<String> + Send + 'static) -> Until {
    *LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(words));
    Until
}

/// Dropping it takes back what [`at_the_end`] was given.
pub struct Until;

impl Drop for Until {
    fn drop(&mut self) {
        drop(LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// What becomes of a request that was refused.
#[cold]
fn refused(layout: Layout) -> *mut u8 {
    if ENDS.get() {
        return SPARE.take(layout);
    }
    if ENDING.swap(true, Ordering::SeqCst) {
        wait();
    }
    ENDS.set(true);
    end(&format!("{} more", size(layout.size() as u64)))
}

/// Ends the process in the same way where a panic says that memory was refused: Rust itself panics where it cannot have
/// a thread's stack. For a program to call once, at its start.
pub fn end_on_panics_for_memory() {
    /// How Rust writes the system's `ENOMEM`.
    const REFUSED: &str = "(os error 12)";
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload_as_str().is_some_and(|said| said.contains(REFUSED)) {
            ENDS.set(true);
            if !ENDING.swap(true, Ordering::SeqCst) {
                end("a thread's stack");
            }
            wait();
        }
        report(info);
    }));
}

/// Another thread ends the process.
fn wait() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn end(what: &str) -> ! {
    let left = memory_left();
    let words = LAST_WORDS.try_lock().ok().and_then(|mut words| words.take());
    let words = words.and_then(|words| words());
    let start = if std::io::stderr().is_terminal() { "\n" } else { "" };
    let mut message = format!("{start}error: memory ran out: {what} cannot be had\n");
    if let Some(left) = left {
        let _ = if left.by.refuses() {
            writeln!(message, "  caused by: {} is used up", left.by)
        } else {
            writeln!(message, "  caused by: {} has {} left", left.by, size(left.bytes as u64))
        };
    }
    message.extend(words.map(|words| format!("  caused by: {words}\n")));
    let _ = writeln!(message, "  hint: {MEMORY_HINT}");
    say(message.as_bytes());
    exit()
}

/// Without what else is done at a process's end: a thread that waits may hold the locks that it takes.
#[cfg(unix)]
fn exit() -> ! {
    signal_hook::low_level::exit(1)
}

#[cfg(not(unix))]
fn exit() -> ! {
    std::process::exit(1)
}

/// Writes to standard error past Rust's lock, which a thread that waits may hold.
#[cfg(unix)]
fn say(mut message: &[u8]) {
    while let Ok(written @ 1..) = rustix::io::write(rustix::stdio::stderr(), message) {
        message = &message[written..];
    }
}

#[cfg(not(unix))]
fn say(message: &[u8]) {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), message);
}

// SAFETY: all memory is `A`'s, or a piece of the spare memory, which is handed out once and never given back.
#[allow(unsafe_code)]
unsafe impl<A: GlobalAlloc> GlobalAlloc for Orderly<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        let pointer = unsafe { self.0.alloc(layout) };
        if pointer.is_null() { refused(layout) } else { pointer }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise. The spare memory is zeros, too.
        let pointer = unsafe { self.0.alloc_zeroed(layout) };
        if pointer.is_null() { refused(layout) } else { pointer }
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if !SPARE.contains(pointer) {
            // SAFETY: the caller's promise, and it is `A`'s.
            unsafe { self.0.dealloc(pointer, layout) };
        }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if !SPARE.contains(pointer) {
            // SAFETY: the caller's promise, and it is `A`'s.
            let moved = unsafe { self.0.realloc(pointer, layout, new_size) };
            if !moved.is_null() {
                return moved;
            }
        }
        let Ok(new) = Layout::from_size_align(new_size, layout.align()) else { return std::ptr::null_mut() };
        // `A` has refused as much, or would have to copy: this is the end either way.
        let moved = refused(new);
        if !moved.is_null() {
            // SAFETY: both are as large as the smaller of the two sizes, and the new one overlaps nothing.
            unsafe { std::ptr::copy_nonoverlapping(pointer, moved, layout.size().min(new_size)) };
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_memory_is_handed_out_in_pieces() {
        static SPARE: Spare = Spare { bytes: UnsafeCell::new([0; SPARE_BYTES]), used: AtomicUsize::new(0) };
        let spare = &SPARE;
        let layout = |size, align| Layout::from_size_align(size, align).unwrap();
        let pieces = [(3, 1), (100, 64), (1, 1), (8, 8)].map(|(size, align)| {
            let piece = spare.take(layout(size, align));
            assert!(spare.contains(piece) && (piece as usize).is_multiple_of(align));
            (piece as usize, size)
        });
        assert!(pieces.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        assert!(spare.take(layout(SPARE_BYTES, 1)).is_null());
        let mut elsewhere = 0_u8;
        assert!(!spare.contains(std::ptr::null_mut()) && !spare.contains(&raw mut elsewhere));
    }
}
