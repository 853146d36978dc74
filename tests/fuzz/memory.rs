//! An allocator that counts what each thread holds, so that a test can say what reading one file took at its peak.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// More than any reader may take; a request beyond it fails, which ends the process.
const MOST: isize = 4 << 30;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator with a count for each thread.
pub struct Counting;

fn count(bytes: isize) -> isize {
    // A thread at its end has no count any more.
    let live = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        live.get()
    });
    let live = live.unwrap_or(0);
    let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live)));
    live
}

// SAFETY: everything is passed on to the system's allocator, or refused with a null pointer.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if count(layout.size() as isize) > MOST {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // For a moment both may be there.
        if count(size as isize) > MOST {
            return std::ptr::null_mut();
        }
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// What `run` gives, and how many bytes this thread held at most while it ran, above what it held before.
pub fn peak_of<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let result = run();
    (result, PEAK.get().saturating_sub(before).max(0) as usize)
}
