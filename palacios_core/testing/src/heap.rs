// SPDX-License-Identifier: MIT OR Apache-2.0
//! The heap of a test: counts what each thread allocates, and lets a chosen allocation fail.
//!
//! What the test host gives beside the heap (pages, frames, threads, locks) counts as well. What its own bookkeeping
//! needs does not.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static HEAP: Counting = Counting;

const NEVER: u64 = u64::MAX;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static EXEMPT: Cell<u32> = const { Cell::new(0) };
    /// How many more allocations of this thread succeed.
    static FUEL: Cell<u64> = const { Cell::new(NEVER) };
}

/// How many allocations this thread has made.
pub fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// Runs `f`; what it allocates is not counted, and does not fail.
pub fn exempt<R>(f: impl FnOnce() -> R) -> R {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            EXEMPT.set(EXEMPT.get() - 1);
        }
    }
    EXEMPT.set(EXEMPT.get() + 1);
    let _leave = Leave;
    f()
}

/// Counts one allocation of this thread; `false` if it is to fail.
pub(crate) fn allocate() -> bool {
    if EXEMPT.get() > 0 {
        return true;
    }
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    match FUEL.get() {
        NEVER => true,
        0 => {
            FUEL.set(NEVER);
            false
        }
        left => {
            FUEL.set(left - 1);
            true
        }
    }
}

/// Runs `f` over and over: the first time its first allocation fails, then its second, and so on, until it comes to its
/// end without one that fails. `f` gets the number of the allocation that fails; it must allocate by fallible calls
/// only, except under [`exempt`]. Returns how many allocations `f` makes when none fails.
pub fn fail_each(mut f: impl FnMut(u64)) -> u64 {
    for n in 0.. {
        FUEL.set(n);
        f(n);
        let failed = FUEL.replace(NEVER) == NEVER;
        if !failed {
            return n;
        }
    }
    unreachable!()
}

// SAFETY: everything is the system's allocator, but for the calls that fail.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match allocate() {
            // SAFETY: the caller's promises are the system allocator's.
            true => unsafe { System.alloc(layout) },
            false => std::ptr::null_mut(),
        }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match allocate() {
            // SAFETY: as above.
            true => unsafe { System.alloc_zeroed(layout) },
            false => std::ptr::null_mut(),
        }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        match allocate() {
            // SAFETY: as above.
            true => unsafe { System.realloc(at, layout, bytes) },
            false => std::ptr::null_mut(),
        }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}
