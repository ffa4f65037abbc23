// SPDX-License-Identifier: GPL-2.0
//! The control group that pays for a VM's memory.

use crate::ffi::{self, MemCgroup};
use kernel::{prelude::*, sync::Arc};

/// A control group of the memory controller: that of whoever made a VM.
pub(crate) struct Payer(*mut MemCgroup);

// SAFETY: A counted reference that any thread may use and drop.
unsafe impl Send for Payer {}
// SAFETY: As above.
unsafe impl Sync for Payer {}

impl Payer {
    /// The control group of the calling process.
    pub(crate) fn of_caller() -> Result<Arc<Self>> {
        // SAFETY: Called by a process, in its context.
        let payer = Self(unsafe { ffi::v3vee_payer_get() });
        Ok(Arc::new(payer, GFP_KERNEL_ACCOUNT)?)
    }

    /// Has it pay for what `f` takes.
    pub(crate) fn during<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: A counted reference; the group in force before is put back below.
        let before = unsafe { ffi::v3vee_payer_enter(self.0) };
        let result = f();
        // SAFETY: As above.
        unsafe { ffi::v3vee_payer_enter(before) };
        result
    }
}

impl Drop for Payer {
    fn drop(&mut self) {
        // SAFETY: The reference that was counted by `of_caller`, and is not used any more.
        unsafe { ffi::v3vee_payer_put(self.0) };
    }
}
