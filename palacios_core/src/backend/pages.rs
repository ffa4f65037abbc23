// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages that a backend holds for the hardware, given back when dropped.

use crate::addr::{Hpa, LARGE_PAGE_SIZE, PAGE_SIZE};
use crate::host::{Host, NoMemory, PageRequest};
use core::ptr::NonNull;

/// A run of zeroed pages, physically contiguous.
pub(super) struct Pages<H: Host> {
    host: H,
    at: Hpa,
    /// Where `at` is mapped: asked for once, as each exit looks there many times.
    mapped: NonNull<u8>,
    want: PageRequest,
    /// How many of its pages lie unused before `at`.
    skipped: u32,
}

// SAFETY: the pages are its own, and the host has them mapped for all.
unsafe impl<H: Host> Send for Pages<H> {}
// SAFETY: as above; only `&mut` writes.
unsafe impl<H: Host> Sync for Pages<H> {}

impl<H: Host> Pages<H> {
    /// `pages` of them.
    pub(super) fn new(host: &H, pages: u32) -> Result<Self, NoMemory> {
        let want = PageRequest::run(pages);
        let at = host.alloc_pages(want)?;
        Ok(Self {
            host: host.clone(),
            at,
            mapped: host.phys_to_virt(at),
            want,
            skipped: 0,
        })
    }
    /// One page, and not the first of a large one. Where the host has SNP on, some processors take an access to a large page for
    /// one to a VMCB or save area that stands at its beginning, and the host gets a page fault that it cannot explain.
    pub(super) fn inside_large(host: &H) -> Result<Self, NoMemory> {
        let mut two = Self::new(host, 2)?;
        if two.at.0 % LARGE_PAGE_SIZE == 0 {
            two.at = two.at.wrapping_add(PAGE_SIZE);
            two.mapped = host.phys_to_virt(two.at);
            two.skipped = 1;
        }
        Ok(two)
    }
    /// Where the hardware finds them.
    pub(super) fn at(&self) -> Hpa {
        self.at
    }
    /// Where the host has them mapped.
    pub(super) fn as_ptr(&self) -> NonNull<u8> {
        self.mapped
    }
    /// Their bytes; for pages that the hardware does not write meanwhile.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.want.pages.saturating_sub(self.skipped) as usize * PAGE_SIZE as usize;
        // SAFETY: the run is this long, was zeroed by the host, and belongs to `self`.
        unsafe { core::slice::from_raw_parts_mut(self.as_ptr().as_ptr(), len) }
    }
    /// The word at offset `at`; 0 past the end. For pages that the hardware does not write meanwhile.
    pub(super) fn read_u32(&self, at: usize) -> u32 {
        let len = self.want.pages.saturating_sub(self.skipped) as usize * PAGE_SIZE as usize;
        // SAFETY: as in `bytes_mut`.
        let bytes = unsafe { core::slice::from_raw_parts(self.as_ptr().as_ptr(), len) };
        let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
        word.copied().map_or(0, u32::from_le_bytes)
    }
    /// Writes `data` at offset `at`; what lies past the end is left out.
    pub(super) fn write(&mut self, at: usize, data: &[u8]) {
        let rest = self.bytes_mut().get_mut(at..).unwrap_or_default();
        for (to, from) in rest.iter_mut().zip(data) {
            *to = *from;
        }
    }
}

impl<H: Host> Drop for Pages<H> {
    fn drop(&mut self) {
        let skipped = u64::from(self.skipped).wrapping_mul(PAGE_SIZE);
        let given = Hpa(self.at.0.wrapping_sub(skipped));
        // SAFETY: one run of one `alloc_pages`; its owner has taken the hardware off it.
        unsafe { self.host.free_pages(given, self.want) };
    }
}
