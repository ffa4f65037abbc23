// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which of a CPU's ready threads runs next, and for how long. `scheduler.rs` has the mechanism: it tells a
//! policy what happened, and names the policy that is used (`Ready`).
//!
//! To add a policy: its type here, and its name at `Ready`. What a policy keeps in each thread, as `next_ready`, is a field in
//! `control_block.rs`.

use super::control_block::Thread;
use core::ptr::null;

/// The ready threads of one CPU, in the order of a policy. A thread in it exists until it is taken out: a thread that is ready
/// does not end.
pub trait Policy: Send {
    /// Nobody is ready.
    const EMPTY: Self;

    /// How long a thread runs while others are ready.
    fn slice_ns(&self) -> u64;

    /// Whether nobody is ready.
    fn is_empty(&self) -> bool;

    /// `thread` is ready: it woke, or its turn ended.
    fn add(&mut self, thread: &Thread);

    /// `thread` is ready, and another gave up its turn for it: it is to be next.
    fn add_as_next(&mut self, thread: &Thread);

    /// Takes `thread` out; `false` if it is not in it.
    fn remove(&mut self, thread: &Thread) -> bool;

    /// Takes out the thread whose turn it is.
    fn take_next(&mut self) -> Option<&'static Thread>;
}

/// First come, first served, in equal slices.
pub struct RoundRobin {
    first: *const Thread,
    last: *const Thread,
}

// SAFETY: a thread in the list exists, on whatever CPU it is looked at.
unsafe impl Send for RoundRobin {}

impl Policy for RoundRobin {
    const EMPTY: Self = Self {
        first: null(),
        last: null(),
    };

    fn slice_ns(&self) -> u64 {
        4_000_000
    }

    fn is_empty(&self) -> bool {
        self.first.is_null()
    }

    fn add(&mut self, thread: &Thread) {
        thread.next_ready.set(null());
        // SAFETY: a thread in the list exists.
        match unsafe { self.last.as_ref() } {
            None => self.first = thread,
            Some(last) => last.next_ready.set(thread),
        }
        self.last = thread;
    }

    fn add_as_next(&mut self, thread: &Thread) {
        thread.next_ready.set(self.first);
        self.first = thread;
        if self.last.is_null() {
            self.last = thread;
        }
    }

    fn remove(&mut self, thread: &Thread) -> bool {
        let mut found = false;
        let mut rest = core::mem::replace(self, Self::EMPTY);
        while let Some(other) = rest.take_next() {
            match core::ptr::eq(other, thread) {
                true => found = true,
                false => self.add(other),
            }
        }
        found
    }

    fn take_next(&mut self) -> Option<&'static Thread> {
        // SAFETY: as above; it stays until it has run to its end.
        let first = unsafe { self.first.as_ref() }?;
        self.first = first.next_ready.get();
        if self.first.is_null() {
            self.last = null();
        }
        Some(first)
    }
}
