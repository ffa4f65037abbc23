// SPDX-License-Identifier: GPL-2.0
//! The host's sleep: suspend, hibernation, the return to a hibernated system. This file only brings the news.
//!
//! What is done with VMs then is in `vms.rs` and `vm_node.rs` (`host_sleeps`, `host_wakes`). What is done with the processor is in
//! `virtualization.rs`, which `helpers.c` calls when the last CPU stops and the first one goes on.
//!
//! Before the host freezes its processes, all VMs are held, clocks and all, until it has thawed them again; so is one that is made meanwhile.
//! So no guest runs while devices sleep, and a guest knows nothing of the time that it missed, except that its real-time
//! clock says what the world's clocks say.

use crate::ffi;
use core::mem::offset_of;
use kernel::{bindings, error::to_result, prelude::*, sync::Arc, types::Opaque};

/// Whoever has to do something before the host falls asleep.
pub(crate) trait HostSleep: Send + Sync {
    /// The host is about to fall asleep; an error keeps it awake.
    fn host_sleeps(&self) -> Result;
    /// The host is awake again.
    fn host_wakes(&self);
}

/// Through it the kernel tells a [`HostSleep`].
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier<T: HostSleep> {
    #[pin]
    block: Opaque<bindings::notifier_block>,
    told: Arc<T>,
}

// SAFETY: The chain of notifiers has its own lock, and what is told may be shared.
unsafe impl<T: HostSleep> Send for Notifier<T> {}
// SAFETY: As above.
unsafe impl<T: HostSleep> Sync for Notifier<T> {}

impl<T: HostSleep> Notifier<T> {
    /// Tells nothing yet: see [`Notifier::register`].
    pub(crate) fn new(told: Arc<T>) -> impl PinInit<Self> {
        let block = bindings::notifier_block {
            notifier_call: Some(power_event::<T>),
            ..Default::default()
        };
        pin_init!(Self {
            block: Opaque::new(block),
            told,
        })
    }

    /// To be called once.
    pub(crate) fn register(&self) -> Result {
        // SAFETY: Made in place by `new`, so it stays where it is until it is dropped, which unregisters it.
        to_result(unsafe { ffi::v3vee_power_register(self.block.get()) })
    }
}

#[pinned_drop]
impl<T: HostSleep> PinnedDrop for Notifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Whether it is registered or not. After this the callback is not running and will not run.
        unsafe { ffi::v3vee_power_unregister(self.block.get()) };
    }
}

/// # Safety
/// For the kernel to call, on the block of a [`Notifier`] of `T`.
unsafe extern "C" fn power_event<T: HostSleep>(
    block: *mut bindings::notifier_block,
    event: usize,
    _: *mut c_void,
) -> i32 {
    // SAFETY: By the contract above; the notifier is dropped only when no callback runs.
    let notifier = unsafe {
        &*block
            .byte_sub(offset_of!(Notifier<T>, block))
            .cast::<Notifier<T>>()
    };
    match event as u32 {
        bindings::PM_SUSPEND_PREPARE
        | bindings::PM_HIBERNATION_PREPARE
        | bindings::PM_RESTORE_PREPARE => answer(notifier.told.host_sleeps()),
        bindings::PM_POST_SUSPEND | bindings::PM_POST_HIBERNATION | bindings::PM_POST_RESTORE => {
            notifier.told.host_wakes();
            bindings::NOTIFY_OK as i32
        }
        _ => bindings::NOTIFY_DONE as i32,
    }
}

/// What a notifier answers: `notifier_from_errno()`.
fn answer(result: Result) -> i32 {
    match result {
        Ok(()) => bindings::NOTIFY_OK as i32,
        Err(why) => (bindings::NOTIFY_STOP_MASK | bindings::NOTIFY_OK) as i32 - why.to_errno(),
    }
}
