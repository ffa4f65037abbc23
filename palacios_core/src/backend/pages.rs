// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages that a backend holds for the hardware, given back when dropped.

use crate::addr::{Hpa, PAGE_SIZE};
use crate::host::{Host, NoMemory, PageRequest};
use core::ptr::NonNull;

/// A run of zeroed pages, physically contiguous.
pub(super) struct Pages<H: Host> {
    host: H,
    at: Hpa,
    want: PageRequest,
}

impl<H: Host> Pages<H> {
    /// `pages` of them.
    pub(super) fn new(host: &H, pages: u32) -> Result<Self, NoMemory> {
        let want = PageRequest::run(pages);
        let at = host.alloc_pages(want)?;
        Ok(Self {
            host: host.clone(),
            at,
            want,
        })
    }
    /// Where the hardware finds them.
    pub(super) fn at(&self) -> Hpa {
        self.at
    }
    /// Where the host has them mapped.
    pub(super) fn as_ptr(&self) -> NonNull<u8> {
        self.host.phys_to_virt(self.at)
    }
    /// Their bytes; for pages that the hardware does not write meanwhile.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.want.pages as usize * PAGE_SIZE as usize;
        // SAFETY: the run is this long, was zeroed by the host, and belongs to `self`.
        unsafe { core::slice::from_raw_parts_mut(self.as_ptr().as_ptr(), len) }
    }
    /// Writes `data` at offset `at`; what lies past the end is left out.
    pub(super) fn write(&mut self, at: usize, data: &[u8]) {
        for (to, from) in self.bytes_mut().iter_mut().skip(at).zip(data) {
            *to = *from;
        }
    }
}

impl<H: Host> Drop for Pages<H> {
    fn drop(&mut self) {
        // SAFETY: one run of one `alloc_pages`; its owner has taken the hardware off it.
        unsafe { self.host.free_pages(self.at, self.want) };
    }
}
