// SPDX-License-Identifier: GPL-2.0
//! What the module holds, in `/sys/kernel/debug/v3vee`: with no VM, each of these is zero.

use core::sync::atomic::{AtomicU64, Ordering};
use kernel::{bindings, prelude::*};

/// A count of things held.
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
    pub(crate) fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }
}

/// 4 KiB pages, for guests and for the VMM.
pub(crate) static PAGES: Counter = Counter(AtomicU64::new(0));
/// 2 MiB pages of guest RAM.
pub(crate) static LARGE_PAGES: Counter = Counter(AtomicU64::new(0));
/// VMs, from their creation until all their memory is back.
pub(crate) static VMS: Counter = Counter(AtomicU64::new(0));
/// Threads of virtual CPUs and of workers.
pub(crate) static THREADS: Counter = Counter(AtomicU64::new(0));
/// Locks and shared values that the core asked for.
pub(crate) static OBJECTS: Counter = Counter(AtomicU64::new(0));
/// Files that are the far ends of devices' streams.
pub(crate) static FILES: Counter = Counter(AtomicU64::new(0));

/// Forgets what is held now.
pub(crate) fn start_from_zero() {
    for counter in [&PAGES, &LARGE_PAGES, &VMS, &THREADS, &OBJECTS, &FILES] {
        counter.0.store(0, Ordering::Relaxed);
    }
}

/// The directory; removed when dropped.
pub(crate) struct Directory(*mut bindings::dentry);

// SAFETY: A debugfs directory may be removed on any thread.
unsafe impl Send for Directory {}
// SAFETY: Nothing is done through a shared reference.
unsafe impl Sync for Directory {}

impl Directory {
    /// Publishes the counters. A host without debugfs goes without.
    pub(crate) fn new() -> Self {
        // SAFETY: The name is a C string; a null parent is the root.
        let dir =
            unsafe { bindings::debugfs_create_dir(c"v3vee".as_char_ptr(), core::ptr::null_mut()) };
        for (name, counter) in [
            (c"pages", &PAGES),
            (c"large_pages", &LARGE_PAGES),
            (c"vms", &VMS),
            (c"threads", &THREADS),
            (c"objects", &OBJECTS),
            (c"files", &FILES),
        ] {
            // SAFETY: `dir` is what `debugfs_create_dir` gave, which may be an error; the counter is static and outlives
            // the file, which goes with the directory.
            unsafe {
                bindings::debugfs_create_u64(name.as_char_ptr(), 0o444, dir, counter.0.as_ptr())
            };
        }
        Self(dir)
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::dentry {
        self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // SAFETY: What `debugfs_create_dir` gave, removed once.
        unsafe { bindings::debugfs_remove(self.0) };
    }
}
