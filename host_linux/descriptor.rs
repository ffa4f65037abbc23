// SPDX-License-Identifier: GPL-2.0
//! Files that a VM reads and writes: the far ends of its devices' streams.
//!
//! A program gives an open file with `V3_VM_ATTACH`, and may then end: the VM holds the file. The work is in helpers.c. It reads and
//! writes as whoever opened the file, never waits long, and is told by the file's wait queues when that may be ready.

use crate::counters::FILES;
use crate::ffi;
use crate::payer::Payer;
use alloc::boxed::Box;
use core::ptr::NonNull;
use kernel::{bindings, ffi::c_void, fs::LocalFile, prelude::*, sync::Arc};
use palacios_core::host::{Descriptor, DescriptorError, NoMemory, Wake};

/// What a device does with a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Role {
    /// It reads it.
    pub(crate) input: bool,
    /// It writes it.
    pub(crate) output: bool,
}

/// What speaks against a file. The numbers are those of helpers.c.
#[derive(Clone, Copy)]
pub(crate) enum FileFault {
    /// It is one of this module's.
    Ours = 1,
    /// It is no file, pipe, socket or terminal.
    NoBytes = 2,
    /// It was not opened for reading.
    NotReadable = 3,
    /// It was not opened for writing.
    NotWritable = 4,
    /// It has no O_NONBLOCK.
    Waits = 5,
}

/// Whether a file can have that role.
pub(crate) fn check(file: &LocalFile, role: Role) -> Result<(), FileFault> {
    // SAFETY: An open file.
    match unsafe { ffi::v3vee_file_fault(file.as_ptr(), role.input, role.output) } {
        0 => Ok(()),
        1 => Err(FileFault::Ours),
        3 => Err(FileFault::NotReadable),
        4 => Err(FileFault::NotWritable),
        5 => Err(FileFault::Waits),
        _ => Err(FileFault::NoBytes),
    }
}

/// A file that a VM holds.
pub(crate) struct FarEnd {
    end: NonNull<ffi::FarEnd>,
    /// Boxed twice: C has one word for it.
    waker: Option<KBox<Box<dyn Wake>>>,
    /// Who pays for what the file takes up, such as the pages of a pipe.
    payer: Arc<Payer>,
}

// SAFETY: A file may be used on any thread, and this is used on one at a time.
unsafe impl Send for FarEnd {}

impl FarEnd {
    /// Takes a reference of its own to a file that was checked.
    pub(crate) fn new(file: &LocalFile, payer: Arc<Payer>) -> Result<Self, NoMemory> {
        // SAFETY: An open file.
        let end = unsafe { ffi::v3vee_far_end_new(file.as_ptr()) };
        let end = NonNull::new(end).ok_or(NoMemory)?;
        FILES.add(1);
        Ok(Self {
            end,
            waker: None,
            payer,
        })
    }

    fn transfer(
        &self,
        write: bool,
        buf: *mut c_void,
        len: usize,
    ) -> Result<usize, DescriptorError> {
        const WOULD_BLOCK: isize = -(bindings::EAGAIN as isize);
        // SAFETY: This is freed by `drop` only; the callers have so much memory there, which may be written unless it is to be
        // written out.
        let transfer =
            || unsafe { ffi::v3vee_far_end_transfer(self.end.as_ptr(), write, buf, len) };
        match self.payer.during(transfer) {
            WOULD_BLOCK => Err(DescriptorError::WouldBlock),
            done => usize::try_from(done).map_err(|_| DescriptorError::Closed),
        }
    }
}

impl Descriptor for FarEnd {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, DescriptorError> {
        self.transfer(false, buf.as_mut_ptr().cast(), buf.len())
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, DescriptorError> {
        self.transfer(true, data.as_ptr().cast_mut().cast(), data.len())
    }

    fn watch(&mut self, waker: Box<dyn Wake>) -> Result<(), NoMemory> {
        let waker = KBox::new(waker, GFP_KERNEL_ACCOUNT).map_err(|_| NoMemory)?;
        let waker = self.waker.insert(waker);
        let context = (&raw mut **waker).cast();
        // SAFETY: The waker stays where it is until `drop` has seen off all who call it. No spin lock is held.
        let watched = unsafe { ffi::v3vee_far_end_watch(self.end.as_ptr(), wake, context) };
        watched.then_some(()).ok_or(NoMemory)
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        // SAFETY: Made by `new`, and not used any more. The waker is dropped behind this.
        unsafe { ffi::v3vee_far_end_free(self.end.as_ptr()) };
        FILES.sub(1);
    }
}

/// # Safety
/// `context` is what `watch` gave.
unsafe extern "C" fn wake(context: *mut c_void) {
    // SAFETY: By the contract above; only shared references are made of it.
    let waker = unsafe { &*context.cast::<Box<dyn Wake>>() };
    waker.wake();
}
