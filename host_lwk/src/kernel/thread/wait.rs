// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sleeping and waking: parks, and the lists in which threads wait.

use super::control_block::{Thread, WaitList};
use super::scheduler::{current, schedule, wake, Reason};
use crate::kernel::sync::IrqsOff;
use core::sync::atomic::Ordering;

/// Sleeps until `ready`, which is looked at whenever somebody called [`wake`].
pub(super) fn sleep_until(ready: impl Fn() -> bool) {
    while !ready() {
        let _irqs = IrqsOff::new();
        schedule(Reason::Sleeps, &ready);
    }
}

/// Sleeps until the current thread was unparked since this last returned.
pub fn park() {
    let unparked = &current().unparked;
    sleep_until(|| unparked.load(Ordering::Acquire));
    unparked.store(false, Ordering::Release);
}

impl Thread {
    /// Ends its sleep in [`park`], or its next one. In any context.
    pub fn unpark(&self) {
        if !self.unparked.swap(true, Ordering::AcqRel) {
            wake(self);
        }
    }
}

impl WaitList {
    /// Adds the calling thread, which then calls [`WaitList::sleep`] with the lock released.
    pub(super) fn add_current(&mut self) {
        self.add(current());
    }

    /// Sleeps until somebody called [`WaitList::wake_all`].
    pub(super) fn sleep() {
        let me = current();
        sleep_until(|| !me.waiting.load(Ordering::Acquire));
    }

    /// Wakes all who wait.
    pub(super) fn wake_all(&mut self) {
        while let Some(thread) = self.take() {
            thread.waiting.store(false, Ordering::Release);
            wake(thread);
        }
    }
}
