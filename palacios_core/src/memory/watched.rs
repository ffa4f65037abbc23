// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which pages are watched, and who is told of writes to them: see `watch.rs`.
#![forbid(unsafe_code)]

use super::page_set::PageSet;
use crate::alloc_ext::NoMemory;
use crate::host::Host;
use alloc::boxed::Box;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Who wants to know of writes.
pub trait WriteWatcher: Send + Sync {
    /// A watched page is written, and is watched no more. Does not sleep, and uses no memory of the guest.
    fn written(&self, page: u64);
}

/// Pages that are watched.
pub(super) struct Watched<H: Host> {
    watcher: Option<Box<dyn WriteWatcher>>,
    /// A page was watched at some time.
    used: AtomicBool,
    pages: PageSet<H>,
}

impl<H: Host> Watched<H> {
    pub(super) fn new(host: &H, pages: u64) -> Result<Self, NoMemory> {
        Ok(Self {
            watcher: None,
            used: AtomicBool::new(false),
            pages: PageSet::new(host, pages)?,
        })
    }
    pub(super) fn table_pages(&self) -> u64 {
        self.pages.table_pages()
    }

    /// Whether a leaf for these pages must not be writable.
    pub(super) fn closes(&self, pages: &Range<u64>) -> bool {
        self.used.load(SeqCst) && self.pages.has_one_of(pages)
    }

    /// A page is written. From inside the gate.
    pub(super) fn note(&self, page: u64) {
        if self.used.load(SeqCst) && self.pages.take(page) {
            if let Some(watcher) = &self.watcher {
                watcher.written(page);
            }
        }
    }

    pub(super) fn set_watcher(&mut self, watcher: Box<dyn WriteWatcher>) {
        self.watcher = Some(watcher);
    }
    /// Takes the memory that it needs. One caller at a time.
    pub(super) fn make_room(&self) -> Result<(), NoMemory> {
        self.pages.make_room()?;
        self.used.store(true, SeqCst);
        Ok(())
    }
    /// Has the next write to a page told of.
    pub(super) fn add(&self, page: u64) {
        self.pages.add(page);
    }
}
