// SPDX-License-Identifier: GPL-2.0
//! Misc devices whose files hold the module, and can be polled.
//!
//! `kernel::miscdevice` of 7.2 leaves `fops.owner` unset, so an open file would not keep the module in; and it has no
//! `poll`. So its table of operations is taken over and completed.

use crate::ffi::THIS_MODULE;
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::{
    bindings,
    error::to_result,
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceOptions},
    prelude::*,
    str::CString,
    types::{ForeignOwnable, Opaque},
};

/// A table of file operations. It must be static: files outlive their device.
pub(crate) struct Operations(bindings::file_operations);

// SAFETY: Never written.
unsafe impl Sync for Operations {}

/// Files that can be polled.
pub(crate) trait Poll: MiscDevice {
    /// What the file is ready for, as `EPOLL` bits. Queues are waited on by [`crate::queue::Queue::poll`].
    ///
    /// # Safety
    /// `table` is what the kernel gave for this call.
    unsafe fn poll(
        me: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        file: &File,
        table: *mut bindings::poll_table,
    ) -> u32;
}

impl Operations {
    /// Those of `T`.
    pub(crate) const fn new<T: MiscDevice>() -> Self {
        // SAFETY: `into_raw` points at a static table.
        let mut operations = unsafe { *MiscDeviceOptions { name: c"" }.into_raw::<T>().fops };
        operations.owner = THIS_MODULE;
        Self(operations)
    }

    /// Those of `T`, with `poll`.
    pub(crate) const fn with_poll<T: Poll>() -> Self {
        let mut operations = Self::new::<T>();
        operations.0.poll = Some(poll::<T>);
        operations
    }
}

/// # Safety
/// For the kernel to call, on an open file of `T`.
unsafe extern "C" fn poll<T: Poll>(
    file: *mut bindings::file,
    table: *mut bindings::poll_table,
) -> bindings::__poll_t {
    // SAFETY: The file's private data is what `T::open` gave.
    unsafe {
        let me = <T::Ptr as ForeignOwnable>::borrow((*file).private_data);
        T::poll(me, File::from_raw_file(file), table)
    }
}

/// A misc device, whose node only root may open until an administrator says otherwise.
#[pin_data(PinnedDrop)]
pub(crate) struct Device {
    name: CString,
    #[pin]
    misc: Opaque<bindings::miscdevice>,
    registered: AtomicBool,
}

// SAFETY: The misc core has its own lock.
unsafe impl Send for Device {}
// SAFETY: As above.
unsafe impl Sync for Device {}

impl Device {
    /// Not there yet: see [`Device::register`].
    pub(crate) fn new(name: CString, operations: &'static Operations) -> impl PinInit<Self> {
        let misc = bindings::miscdevice {
            minor: bindings::MISC_DYNAMIC_MINOR as i32,
            fops: &operations.0,
            mode: 0o600,
            ..Default::default()
        };
        pin_init!(Self {
            name,
            misc: Opaque::new(misc),
            registered: AtomicBool::new(false),
        })
    }

    /// Lets the node appear. To be called once.
    pub(crate) fn register(&self) -> Result {
        let misc = self.misc.get();
        // SAFETY: Made in place by `new`, so device and name stay where they are until `unregister`. Not registered yet:
        // nobody else writes.
        to_result(unsafe {
            (*misc).name = self.name.as_char_ptr();
            bindings::misc_register(misc)
        })?;
        self.registered.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Removes the node. Files stay open.
    pub(crate) fn unregister(&self) {
        if self.registered.swap(false, Ordering::Relaxed) {
            // SAFETY: It is registered, and this comes here once.
            unsafe { bindings::misc_deregister(self.misc.get()) };
        }
    }

    /// The device that a file was opened on.
    ///
    /// # Safety
    /// `misc` is what the misc core gave to the `open` of a file of a `Device`.
    pub(crate) unsafe fn of(misc: *const bindings::miscdevice) -> *const Self {
        // SAFETY: By the contract above, it lies in a `Device`.
        unsafe { misc.byte_sub(core::mem::offset_of!(Device, misc)) }.cast()
    }
}

#[pinned_drop]
impl PinnedDrop for Device {
    fn drop(self: Pin<&mut Self>) {
        self.unregister();
    }
}
