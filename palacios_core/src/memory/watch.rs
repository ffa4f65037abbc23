// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watched pages: who made something of a page's contents, a cache of decoded code or a shadow of a page table, learns of the next
//! write to it, by the guest, the VMM or a device.
//!
//! The guest may not write a watched page: its write faults, the watcher is told, and the page is open. Watched again before the guest's
//! write is done, it is closed again, and the write faults again. A write of the VMM's is told of behind it, from inside the gate, so that
//! what is made of the page after that has the write in it.

use super::watched::WriteWatcher;
use super::Memory;
use crate::addr::Gpa;
use crate::alloc_ext::NoMemory;
use crate::host::{Host, Lock, PageSize};
use alloc::boxed::Box;
use core::ops::Range;

impl<H: Host> Memory<H> {
    /// Says who is told of writes to watched pages, before anybody uses the memory.
    pub fn set_watcher(&mut self, watcher: Box<dyn WriteWatcher>) {
        self.watched.set_watcher(watcher);
    }

    /// Has the watcher told of the next write to a page of RAM that is not done yet when this returns. `flush` is as for [`Memory::fault`].
    /// Nobody writes to a page that is no RAM, of which nothing is told. Sleeps.
    pub fn watch(&self, page: u64, flush: &dyn Fn()) -> Result<(), NoMemory> {
        if page >= self.frames.ram_pages() {
            return Ok(());
        }
        let changes = self.changes.lock();
        self.watched.make_room()?;
        let pages = page..page.saturating_add(1);
        loop {
            self.watched.add(page);
            self.wait_for_those_inside();
            changes.each_place(&pages, |place| self.close_place(place));
            self.flush(flush);
            // Who wrote just then took it out again, and told.
            if self.watched.closes(&pages) {
                return Ok(());
            }
        }
    }

    /// Lets the guest write at the addresses of a page no more.
    fn close_place(&self, place: &Range<u64>) {
        match self.nested.find(Gpa(place.start)) {
            Some(leaf) if leaf.size != PageSize::Small => self.nested.forget(place),
            _ => self.nested.forbid_writes(place),
        };
    }
}
