// SPDX-License-Identifier: GPL-2.0
//! Files in `/sys/kernel/debug/v3vee` that check something when they are read: `conformance` holds this host against the core's
//! contract, line by line; `flushes` has the kernel flush all TLBs a thousand times, and says how often it did.

use crate::counters::Directory;
use crate::ffi::{self, THIS_MODULE};
use crate::host::Linux;
use crate::memory::Ram;
use crate::payer::Payer;
use core::fmt;
use core::ptr::null_mut;
use kernel::{bindings, prelude::*, seq_file::SeqFile, seq_print};
use palacios_core::conformance::Suite;

/// Room for all lines at once: a second try would run all again.
const OUTPUT_BYTES: usize = 16 << 10;
const FLUSHES_A_READ: u32 = 1000;

struct Operations(bindings::file_operations);

// SAFETY: Never written.
unsafe impl Sync for Operations {}

type Open = unsafe extern "C" fn(*mut bindings::inode, *mut bindings::file) -> i32;

const fn operations(open: Open) -> Operations {
    Operations(bindings::file_operations {
        owner: THIS_MODULE,
        open: Some(open),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::single_release),
        // SAFETY: All else is optional: null.
        ..unsafe { core::mem::zeroed() }
    })
}

static CONFORMANCE: Operations = operations(open_conformance);
static FLUSHES: Operations = operations(open_flushes);

/// Adds the files.
pub(crate) fn publish(directory: &Directory) {
    for (name, operations) in [(c"conformance", &CONFORMANCE), (c"flushes", &FLUSHES)] {
        // SAFETY: The directory is there, or is the error that debugfs takes in its place; the table is static, and names
        // the module that holds it.
        unsafe {
            bindings::debugfs_create_file_full(
                name.as_char_ptr(),
                0o400,
                directory.as_ptr(),
                null_mut(),
                core::ptr::null(),
                &operations.0,
            )
        };
    }
}

/// # Safety
/// For debugfs to call.
unsafe extern "C" fn open_conformance(_: *mut bindings::inode, file: *mut bindings::file) -> i32 {
    // SAFETY: A file that is being opened.
    unsafe { bindings::single_open_size(file, Some(show_conformance), null_mut(), OUTPUT_BYTES) }
}

/// # Safety
/// For debugfs to call.
unsafe extern "C" fn open_flushes(_: *mut bindings::inode, file: *mut bindings::file) -> i32 {
    // SAFETY: A file that is being opened.
    unsafe { bindings::single_open(file, Some(show_flushes), null_mut()) }
}

/// # Safety
/// For `single_open` to call.
unsafe extern "C" fn show_flushes(file: *mut bindings::seq_file, _data: *mut c_void) -> i32 {
    // SAFETY: The file of this call.
    let file = unsafe { SeqFile::from_raw(file) };
    // SAFETY: Thread context.
    let done = (0..FLUSHES_A_READ).filter(|_| unsafe { ffi::v3vee_flush_mappings() });
    seq_print!(file, "{}\n", done.count());
    0
}

/// # Safety
/// For `single_open` to call.
unsafe extern "C" fn show_conformance(file: *mut bindings::seq_file, _data: *mut c_void) -> i32 {
    // SAFETY: The file of this call.
    let file = unsafe { SeqFile::from_raw(file) };
    let print = |line: fmt::Arguments<'_>| seq_print!(file, "{}\n", line);
    let mut suite = Suite::new(&Linux, |report| print(format_args!("{report}")));
    suite.contract();
    suite.guest_ram(|| Payer::of_caller().and_then(Ram::new).ok());
    // SAFETY: In a window: interrupts are off. Halting is what comes closest to a guest that never exits.
    suite.kicks(|_: &Linux, _| unsafe { ffi::v3vee_halt() });
    print(format_args!("{}", suite.summary()));
    0
}
