// SPDX-License-Identifier: MIT OR Apache-2.0
//! The dirty log: which pages of RAM were written since it was last asked, by the guest, the VMM, or a device.
//!
//! While it runs, RAM is shown to the guest in small pages that it may not write. Its first write to one faults, opens the page
//! for writes, and notes it. [`Memory::take_dirty`] takes what was noted and closes those pages again. Nothing is lost between: the guest
//! may write such a page until the flush, and whoever took the set copies it only behind that; and a write of the VMM's is noted behind the
//! write, so that it is in this set or in the next one.

use super::page_set::PAGES_PER_WORD;
use super::Memory;
use crate::host::{Host, Lock};
use crate::interfaces::LogError;

impl<H: Host> Memory<H> {
    /// Begins to log writes to RAM: those that end behind this call. `flush` is as for [`Memory::fault`]. Sleeps.
    pub fn begin_log(&self, flush: &dyn Fn()) -> Result<(), LogError> {
        let changes = self.changes.lock();
        if self.log.is_active() {
            return Err(LogError::Running);
        }
        self.log.make_room()?;
        let all = 0..self.frames.ram_pages();
        for first in (all.start..all.end).step_by(PAGES_PER_WORD as usize) {
            self.log.take_word(first);
        }
        self.log.set_active(true);
        self.wait_for_those_inside();
        changes.each_place(&all, |place| {
            self.nested.forget(place);
        });
        self.flush(flush);
        Ok(())
    }

    /// Ends the log: large pages come back as they are touched. Sleeps.
    pub fn end_log(&self, flush: &dyn Fn()) {
        let changes = self.changes.lock();
        self.log.set_active(false);
        self.wait_for_those_inside();
        changes.each_place(&(0..self.frames.ram_pages()), |place| {
            self.nested.forget(place);
        });
        self.flush(flush);
    }

    /// Takes what was written since the log began or was last asked about these pages: a bit for each, 64 in a word. `first` is a multiple
    /// of 64. When this returns, what is written to the pages from now on is noted again. Sleeps.
    pub fn take_dirty(&self, first: u64, words: &mut [u64], flush: &dyn Fn()) {
        let changes = self.changes.lock();
        let mut closed = false;
        for (word, first) in words
            .iter_mut()
            .zip((first..).step_by(PAGES_PER_WORD as usize))
        {
            *word = self.log.take_word(first);
            for page in (first..)
                .take(64)
                .enumerate()
                .filter(|(n, _)| *word >> n & 1 != 0)
                .map(|(_, page)| page)
            {
                changes.each_place(&(page..page.saturating_add(1)), |place| {
                    closed |= self.nested.forbid_writes(place);
                });
            }
        }
        if closed {
            self.flush(flush);
        }
    }
}
