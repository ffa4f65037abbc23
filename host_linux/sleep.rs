// SPDX-License-Identifier: GPL-2.0
//! The host's sleep: suspend, hibernation, the return to a hibernated system.
//!
//! Before the host freezes its processes, all VMs stand still, clocks and all; until it has thawed them again, none starts.
//! So no guest runs while devices sleep, and a guest knows nothing of the time that it missed, except that its real-time
//! clock says what the world's clocks say.

use crate::control::Control;
use crate::ffi;
use crate::queue::{Queue, Until};
use core::mem::offset_of;
use kernel::{
    bindings, error::to_result, new_mutex, prelude::*, static_lock_class, sync::Mutex,
    types::Opaque,
};

/// Whether the host is awake, for those who set VMs running.
///
/// Lock order: before any lock of a VM.
#[pin_data]
pub(crate) struct Awake {
    #[pin]
    awake: Mutex<bool>,
    #[pin]
    changed: Queue,
}

impl Awake {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            awake <- new_mutex!(true, "v3vee_awake"),
            changed <- Queue::new(c"v3vee_woken", static_lock_class!()),
        })
    }

    /// Calls `f` while the host is awake, and keeps it from falling asleep meanwhile. Waits for that, killable.
    pub(crate) fn during<R>(&self, f: impl FnOnce() -> Result<R>) -> Result<R> {
        loop {
            let seen = self.changed.seen();
            let awake = self.awake.lock();
            if *awake {
                return f();
            }
            drop(awake);
            self.changed.wait(seen, Until::Killed, None)?;
        }
    }

    /// From now on, or no longer, [`Awake::during`] waits.
    pub(crate) fn set(&self, awake: bool) {
        *self.awake.lock() = awake;
        self.changed.wake();
    }
}

/// Has the kernel tell a [`Control`] in which this lies.
#[pin_data(PinnedDrop)]
pub(crate) struct Notifier {
    #[pin]
    block: Opaque<bindings::notifier_block>,
}

// SAFETY: The chain of notifiers has its own lock.
unsafe impl Send for Notifier {}
// SAFETY: As above.
unsafe impl Sync for Notifier {}

impl Notifier {
    /// Tells nothing yet: see [`Notifier::register`].
    pub(crate) fn new() -> impl PinInit<Self> {
        let block = bindings::notifier_block {
            notifier_call: Some(power_event),
            ..Default::default()
        };
        pin_init!(Self {
            block: Opaque::new(block),
        })
    }

    /// To be called once.
    ///
    /// # Safety
    /// `self` is the notifier of a [`Control`].
    pub(crate) unsafe fn register(&self) -> Result {
        // SAFETY: By the contract above the callback finds what it looks for; dropping the notifier unregisters it.
        to_result(unsafe { ffi::v3vee_power_register(self.block.get()) })
    }
}

#[pinned_drop]
impl PinnedDrop for Notifier {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Whether it is registered or not. After this the callback is not running and will not run.
        unsafe { ffi::v3vee_power_unregister(self.block.get()) };
    }
}

/// # Safety
/// For the kernel to call, on the notifier of a [`Control`].
unsafe extern "C" fn power_event(
    block: *mut bindings::notifier_block,
    event: usize,
    _: *mut c_void,
) -> i32 {
    // SAFETY: By the contract of `Notifier::register`.
    let control = unsafe {
        let notifier = block.byte_sub(offset_of!(Notifier, block));
        &*notifier.byte_sub(Control::NOTIFIER).cast::<Control>()
    };
    match event as u32 {
        bindings::PM_SUSPEND_PREPARE
        | bindings::PM_HIBERNATION_PREPARE
        | bindings::PM_RESTORE_PREPARE => answer(control.host_sleeps()),
        bindings::PM_POST_SUSPEND | bindings::PM_POST_HIBERNATION | bindings::PM_POST_RESTORE => {
            control.host_wakes();
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
