// SPDX-License-Identifier: GPL-2.0
//! Waiting for events: killable or interruptible, with a deadline, and by `poll`.
//!
//! A queue counts its events. A waiter notes the count, looks whether what it wants is there — it may sleep while it looks —
//! and if not, waits until the count is another one. So no event is lost, and nothing is looked at in a half-sleeping state.

use core::sync::atomic::{AtomicU32, Ordering};
use kernel::{bindings, fs::File, prelude::*, sync::LockClassKey, types::Opaque};

/// What may end a wait early.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// A signal that kills.
    Killed,
    /// Any signal.
    Interrupted,
}

/// How many events a queue had at a moment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventCount(u32);

/// A wait queue. Files that `poll` it hold what it lies in.
#[pin_data]
pub(crate) struct Queue {
    events: AtomicU32,
    #[pin]
    head: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A wait queue has its own lock.
unsafe impl Send for Queue {}
// SAFETY: As above.
unsafe impl Sync for Queue {}

impl Queue {
    pub(crate) fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self> {
        pin_init!(Self {
            events: AtomicU32::new(0),
            // SAFETY: The slot is memory for a wait queue; name and key are static.
            head <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_waitqueue_head(slot, name.as_char_ptr(), key.as_ptr())
            }),
        })
    }

    /// The count now. Whoever waits reads it before looking whether there is anything to wait for.
    pub(crate) fn event_count(&self) -> EventCount {
        EventCount(self.events.load(Ordering::SeqCst))
    }

    /// Something happened. Any context but NMI.
    pub(crate) fn wake(&self) {
        // Also the barrier between what happened and the look at the list, against a waiter that does the reverse.
        self.events.fetch_add(1, Ordering::SeqCst);
        let list = self.head.get();
        // SAFETY: Initialised; a racy look at a pointer, as `waitqueue_active` has it.
        let active =
            unsafe { (&raw const (*list).head.next).read_volatile() != &raw mut (*list).head };
        if active {
            // SAFETY: Initialised.
            unsafe { bindings::__wake_up(list, bindings::TASK_NORMAL, 0, core::ptr::null_mut()) };
        }
    }

    /// Sleeps until there are other events than `seen`, or, without an error, until `deadline_ns` on the monotonic clock.
    /// With no lock held: the host may freeze the waiter here for as long as it sleeps itself.
    pub(crate) fn wait(&self, seen: EventCount, until: Until, deadline_ns: Option<u64>) -> Result {
        let state = match until {
            // Whoever waits for a guest is no load, whatever the guest does.
            Until::Killed => {
                bindings::TASK_WAKEKILL | bindings::TASK_UNINTERRUPTIBLE | bindings::TASK_NOLOAD
            }
            Until::Interrupted => bindings::TASK_INTERRUPTIBLE,
        };
        let state = state | bindings::TASK_FREEZABLE;
        let entry = Opaque::<bindings::wait_queue_entry>::uninit();
        // SAFETY: Memory for an entry, which is off the queue again before this returns.
        unsafe { bindings::init_wait_entry(entry.get(), 0) };
        let result = loop {
            // SAFETY: Queue and entry are initialised.
            let signal = unsafe {
                bindings::prepare_to_wait_event(self.head.get(), entry.get(), state as i32)
            };
            let left = jiffies_left(deadline_ns);
            if self.event_count() != seen || left == 0 {
                break Ok(());
            }
            if signal != 0 {
                break Err(ERESTARTSYS);
            }
            // SAFETY: An ordinary sleep.
            unsafe { bindings::schedule_timeout(left) };
        };
        // SAFETY: Queue and entry are initialised.
        unsafe { bindings::finish_wait(self.head.get(), entry.get()) };
        result
    }

    /// Has `poll` wait for events.
    ///
    /// # Safety
    /// `table` is what the kernel gave to the `poll` of `file`, and `self` lives as long as the file.
    pub(crate) unsafe fn poll(&self, file: &File, table: *mut bindings::poll_table) {
        // SAFETY: By the contract above.
        unsafe { bindings::poll_wait(file.as_ptr(), self.head.get(), table) };
    }
}

fn jiffies_left(deadline_ns: Option<u64>) -> isize {
    let Some(deadline_ns) = deadline_ns else {
        return isize::MAX;
    };
    // SAFETY: Reads a clock.
    let now_ns = unsafe { bindings::ktime_get() } as u64;
    match deadline_ns.saturating_sub(now_ns) {
        0 => 0,
        // SAFETY: Arithmetic.
        ns => unsafe { bindings::nsecs_to_jiffies64(ns) }
            .saturating_add(1)
            .min(isize::MAX as u64) as isize,
    }
}
