// SPDX-License-Identifier: MIT OR Apache-2.0
//! A set of pages: a bit for each, set and taken without a lock.

use super::words::{WordPages, WORDS};
use crate::addr::Hpa;
use crate::alloc_ext::{NoMemory, TryPush};
use crate::host::Host;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// How many pages a word of the set is about.
pub const PAGES_PER_WORD: u64 = 64;
/// How many pages a page of bits is about: 128 MiB of memory.
const PAGES_PER_PAGE: u64 = WORDS * PAGES_PER_WORD;

/// A set of a VM's pages. It takes memory when it is first used, and keeps it.
pub(super) struct PageSet<H: Host> {
    bits: WordPages<H>,
    /// Pages of bits; 0 where there is none.
    root: Vec<AtomicU64>,
}

impl<H: Host> PageSet<H> {
    /// Empty, with room for the pages 0 to `pages`.
    pub(super) fn new(host: &H, pages: u64) -> Result<Self, NoMemory> {
        let count = pages.div_ceil(PAGES_PER_PAGE) as usize;
        let mut root = Vec::new();
        root.try_reserve_exact(count).map_err(|_| NoMemory)?;
        for _ in 0..count {
            root.try_push(AtomicU64::new(0))?;
        }
        Ok(Self {
            bits: WordPages::new(host),
            root,
        })
    }

    /// Takes the memory that all its bits need. One caller at a time.
    pub(super) fn make_room(&self) -> Result<(), NoMemory> {
        for root in self.root.iter().filter(|root| root.load(Relaxed) == 0) {
            root.store(self.bits.alloc()?.0, Release);
        }
        Ok(())
    }

    /// How many pages its bits take.
    pub(super) fn table_pages(&self) -> u64 {
        self.root
            .iter()
            .filter(|root| root.load(Relaxed) != 0)
            .count() as u64
    }

    /// The word that has the bit of `page`.
    fn word(&self, page: u64) -> Option<&AtomicU64> {
        match self
            .root
            .get((page / PAGES_PER_PAGE) as usize)?
            .load(Acquire)
        {
            0 => None,
            at => Some(self.bits.word(Hpa(at), page / PAGES_PER_WORD)),
        }
    }

    /// Adds a page.
    pub(super) fn add(&self, page: u64) {
        if let Some(word) = self.word(page) {
            word.fetch_or(1 << (page % PAGES_PER_WORD), AcqRel);
        }
    }

    /// Takes a page out of the set; whether it was in it.
    pub(super) fn take(&self, page: u64) -> bool {
        let bit = 1 << (page % PAGES_PER_WORD);
        let taken = |word: &AtomicU64| word.fetch_and(!bit, AcqRel) & bit != 0;
        self.word(page).is_some_and(taken)
    }

    /// Whether one of these pages is in the set. They begin at a multiple of 64, or are one.
    pub(super) fn has_one_of(&self, pages: &Range<u64>) -> bool {
        let one = pages.end.wrapping_sub(pages.start) == 1;
        let mask = if one {
            1 << (pages.start % PAGES_PER_WORD)
        } else {
            u64::MAX
        };
        let mut page = pages.start;
        while page < pages.end {
            if self
                .word(page)
                .is_some_and(|word| word.load(Acquire) & mask != 0)
            {
                return true;
            }
            page = page.saturating_add(PAGES_PER_WORD);
        }
        false
    }

    /// Takes the 64 pages from `first` on, a multiple of 64, out of the set. A bit for each that was in it.
    pub(super) fn take_word(&self, first: u64) -> u64 {
        self.word(first).map_or(0, |word| word.swap(0, AcqRel))
    }
}

impl<H: Host> Drop for PageSet<H> {
    fn drop(&mut self) {
        for root in &self.root {
            match root.load(Acquire) {
                0 => {}
                // SAFETY: a page of ours; `self` is dropped, so nobody reads it.
                at => unsafe { self.bits.free(Hpa(at)) },
            }
        }
    }
}
