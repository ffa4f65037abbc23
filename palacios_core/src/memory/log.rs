// SPDX-License-Identifier: MIT OR Apache-2.0
//! The dirty log: which pages of RAM were written since it was last asked, by the guest, the VMM, or a device.
//!
//! While it runs, RAM is shown to the guest in small pages that it may not write. Its first write to one faults, opens the page
//! for writes, and notes it. [`Memory::take_dirty`] takes what was noted and closes those pages again. Nothing is lost between: the guest
//! may write such a page until the flush, and whoever took the set copies it only behind that; and a write of the VMM's is noted behind the
//! write, so that it is in this set or in the next one.

use super::arrangement::Arrangement;
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
        let mut first = 0u64;
        while first < all.end {
            self.log.take_word(first);
            first = first.saturating_add(PAGES_PER_WORD);
        }
        self.log.set_active(true);
        self.wait_for_those_inside();
        changes.each_place(&all, |place| {
            self.nested.forget(place);
        });
        self.flush(flush);
        Ok(())
    }

    /// Ends the log: pages are opened as they are touched. Leaves stay small where they became so. Sleeps.
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
        // Who has written, and not noted it yet, notes it first: there may be no next set.
        self.wait_for_those_inside();
        let (mut taken, mut first) = (0, first & !PAGES_PER_WORD.wrapping_sub(1));
        for word in words {
            *word = self.log.take_word(first);
            self.close(&changes, first, *word);
            taken |= *word;
            first = first.saturating_add(PAGES_PER_WORD);
        }
        if taken != 0 {
            self.flush(flush);
        }
    }

    /// Lets the guest write to these pages no more: a bit for each from `first` on.
    fn close(&self, changes: &Arrangement, first: u64, mut bits: u64) {
        while bits != 0 {
            let page = first.saturating_add(bits.trailing_zeros().into());
            changes.each_place(&(page..page.saturating_add(1)), |place| {
                self.nested.forbid_writes(place);
            });
            bits &= bits.wrapping_sub(1);
        }
    }
}
