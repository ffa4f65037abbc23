// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pages of atomic words, known by their physical address: the tables of frames, of translations and of dirty pages are made
//! of them. Whoever allocates one frees it when the VM ends and not before, so a word can be read at any time without a lock.

use crate::addr::Hpa;
use crate::host::{Host, NoMemory, PageRequest};
use core::sync::atomic::AtomicU64;

/// How many words a page has.
pub(super) const WORDS: u64 = 512;

/// Reaches such pages of one host.
pub(super) struct WordPages<H: Host>(H);

impl<H: Host> WordPages<H> {
    pub(super) fn new(host: &H) -> Self {
        Self(host.clone())
    }

    /// A page whose words are zero. *Thread.*
    pub(super) fn alloc(&self) -> Result<Hpa, NoMemory> {
        self.0.alloc_pages(PageRequest::ONE)
    }

    /// Gives a page back.
    ///
    /// # Safety
    /// It came from [`WordPages::alloc`], and nobody uses it any more.
    pub(super) unsafe fn free(&self, page: Hpa) {
        // SAFETY: by the contract above.
        unsafe { self.0.free_pages(page, PageRequest::ONE) };
    }

    /// A word of a page that is not freed while `self` is borrowed: the tables free their pages when they are dropped.
    pub(super) fn word(&self, page: Hpa, index: u64) -> &AtomicU64 {
        let at = self.0.phys_to_virt(page).cast::<AtomicU64>();
        // SAFETY: the page is one of the tables', which live longer than the borrow, and the index is below 512 by its mask.
        unsafe { at.add((index & (WORDS - 1)) as usize).as_ref() }
    }
}
