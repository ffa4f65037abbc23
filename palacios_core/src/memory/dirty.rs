// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which pages were written, and whether anybody wants to know: see `log.rs`.
#![forbid(unsafe_code)]

use super::page_set::PageSet;
use crate::alloc_ext::NoMemory;
use crate::host::Host;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Pages that were written.
pub(super) struct DirtyLog<H: Host> {
    active: AtomicBool,
    written: PageSet<H>,
}

impl<H: Host> DirtyLog<H> {
    pub(super) fn new(host: &H, pages: u64) -> Result<Self, NoMemory> {
        Ok(Self {
            active: AtomicBool::new(false),
            written: PageSet::new(host, pages)?,
        })
    }
    pub(super) fn is_active(&self) -> bool {
        self.active.load(SeqCst)
    }
    pub(super) fn table_pages(&self) -> u64 {
        self.written.table_pages()
    }
    /// A page is written.
    pub(super) fn note(&self, page: u64) {
        if self.is_active() {
            self.written.add(page);
        }
    }

    pub(super) fn set_active(&self, active: bool) {
        self.active.store(active, SeqCst);
    }
    /// Takes the memory that it needs.
    pub(super) fn make_room(&self) -> Result<(), NoMemory> {
        self.written.make_room()
    }
    /// Takes 64 pages from `first` on out of it: a bit for each that was written.
    pub(super) fn take_word(&self, first: u64) -> u64 {
        self.written.take_word(first)
    }
}
