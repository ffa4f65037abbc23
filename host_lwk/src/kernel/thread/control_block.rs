// SPDX-License-Identifier: MIT OR Apache-2.0
//! The thread control block: what the kernel keeps of a thread. A thread is in lists by pointers in itself, so that no list
//! ever allocates.

use super::cpu_timer::NEVER;
use crate::kernel::memory::Stack;
use crate::kernel::sync::SpinLock;
use alloc::boxed::Box;
use core::cell::Cell;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};

/// States of a thread. It sleeps.
pub(super) const ASLEEP: u8 = 0;
/// It is among the ready threads of its home, or on its way there.
pub(super) const READY: u8 = 1;
/// It runs, at its home.
pub(super) const RUNNING: u8 = 2;
/// It has nothing to do yet.
pub(super) const NEW: u8 = 3;

/// What a thread does.
pub type Job = Box<dyn FnOnce() + Send>;

/// A thread.
pub struct Thread {
    /// Its stack pointer while it does not run.
    pub(super) stack_pointer: Cell<*mut u8>,
    _stack: Option<Stack>,
    /// The CPU where it is ready or runs. Changes under the lock of that CPU's ready threads.
    pub(super) home: AtomicU32,
    /// The CPU that is to be its home.
    pub(super) target: AtomicU32,
    pub(super) state: AtomicU8,
    /// It was unparked since it last returned from a park.
    pub(super) unparked: AtomicBool,
    /// Behind it in a policy's list.
    pub(super) next_ready: Cell<*const Thread>,
    /// It is in a [`WaitList`].
    pub(super) waiting: AtomicBool,
    /// Behind it in that list.
    next_waiter: Cell<*const Thread>,
    /// What it is to do next.
    pub(super) job: SpinLock<Option<Job>>,
    pub(super) has_job: AtomicBool,
    /// It is to end when it has nothing to do.
    pub(super) ends: AtomicBool,
    /// Whether its job is not done, and who waits for that.
    pub(super) busy: SpinLock<(bool, WaitList)>,
    pub(super) ready_since_ns: AtomicU64,
    pub(super) waited_ns: AtomicU64,
    /// The time that it armed, the CPU that keeps it, and what is behind it in that CPU's list.
    pub(super) armed_ns: AtomicU64,
    pub(super) armed_on: AtomicU32,
    pub(super) next_armed: Cell<*const Thread>,
}

// SAFETY: a `Cell` in it belongs to the list in which the thread is, or to the thread while it is in none; lists are locked.
unsafe impl Sync for Thread {}
// SAFETY: as above.
unsafe impl Send for Thread {}

impl Thread {
    /// A thread that has never run, at home on `cpu`. One without a stack is what a CPU does when nobody is ready: it has the
    /// stack that the CPU began on.
    pub(super) fn with_stack(stack: Option<Stack>, cpu: u32) -> Self {
        Self {
            stack_pointer: Cell::new(null_mut()),
            _stack: stack,
            home: AtomicU32::new(cpu),
            target: AtomicU32::new(cpu),
            state: AtomicU8::new(NEW),
            unparked: AtomicBool::new(false),
            next_ready: Cell::new(null()),
            waiting: AtomicBool::new(false),
            next_waiter: Cell::new(null()),
            job: SpinLock::new(None),
            has_job: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            busy: SpinLock::new((false, WaitList::new())),
            ready_since_ns: AtomicU64::new(0),
            waited_ns: AtomicU64::new(0),
            armed_ns: AtomicU64::new(NEVER),
            armed_on: AtomicU32::new(0),
            next_armed: Cell::new(null()),
        }
    }

    /// How long it was ready without running.
    pub fn waited_ns(&self) -> u64 {
        self.waited_ns.load(Ordering::Relaxed)
    }
}

/// Threads that wait for one thing. A thread waits for one thing at a time.
///
/// Whoever lets a thread go does so under the lock around this list, and the thread takes that lock once more before it goes
/// on. So a thread that is in the list, or was just taken out, still exists.
pub struct WaitList(*const Thread);

// SAFETY: the threads in it exist, by the contract above.
unsafe impl Send for WaitList {}

impl WaitList {
    /// Nobody.
    pub const fn new() -> Self {
        Self(null())
    }

    pub(super) fn add(&mut self, thread: &Thread) {
        thread.waiting.store(true, Ordering::Relaxed);
        thread.next_waiter.set(self.0);
        self.0 = thread;
    }

    pub(super) fn take(&mut self) -> Option<&'static Thread> {
        // SAFETY: a thread in the list exists; see above.
        let first = unsafe { self.0.as_ref() }?;
        self.0 = first.next_waiter.get();
        Some(first)
    }
}
