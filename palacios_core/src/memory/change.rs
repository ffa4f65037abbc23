// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes of what is where: regions come, move and go while the guest runs, and with them pages that are not RAM.

use super::arrangement::Arrangement;
use super::frame_word::Refused;
use super::Memory;
use crate::addr::{Hpa, PAGE_SIZE};
use crate::alloc_ext::{NoMemory, TryPush};
use crate::host::{Host, Lock};
use crate::regions::{Change, RegionError, Regions};
use core::ops::Range;

/// No processor has physical addresses of more than 52 bits.
const PHYSICAL_END: u64 = 1 << 52;

impl<H: Host> Memory<H> {
    /// Changes what is where: all `changes` in their order, and for everybody at once; or none of them. It stays so behind a reset. What
    /// the guest itself has changed is undone. When this returns, no access of a vCPU goes where it went before. `flush` is as for
    /// [`Memory::fault`]. Sleeps.
    pub fn change(&self, changes: &[Change], flush: &dyn Fn()) -> Result<(), RegionError> {
        let mut now = self.changes.lock();
        let end = self.frames.other_pages().end;
        let at_reset = self.changed(&now.at_reset, changes, end)?;
        let shown = at_reset.try_clone()?;
        now.at_reset = at_reset;
        self.show(&mut now, shown, flush);
        Ok(())
    }

    /// A change that the guest asked for: of pages of RAM, until a reset.
    pub fn change_until_reset(
        &self,
        changes: &[Change],
        flush: &dyn Fn(),
    ) -> Result<(), RegionError> {
        let mut now = self.changes.lock();
        let new = self.changed(&now.regions, changes, self.frames.ram_pages())?;
        self.show(&mut now, new, flush);
        Ok(())
    }

    /// Everything is where it was before the guest changed it. Sleeps.
    pub fn reset_map(&self, flush: &dyn Fn()) -> Result<(), NoMemory> {
        let mut now = self.changes.lock();
        if now.regions != now.at_reset {
            let regions = now.at_reset.try_clone()?;
            self.show(&mut now, regions, flush);
        }
        Ok(())
    }

    /// Whether something else is shown somewhere than when the machine started. *Thread.*
    pub fn is_rearranged(&self) -> bool {
        let now = self.changes.lock();
        now.regions != now.at_reset
    }

    /// `before`, changed. Regions may show the pages below `pages`.
    fn changed(
        &self,
        before: &Regions,
        changes: &[Change],
        pages: u64,
    ) -> Result<Regions, RegionError> {
        let mut new = before.try_clone()?;
        for change in changes {
            new = new.changed(change, self.nested.format().end(), pages)?;
        }
        Ok(new)
    }

    /// Shows other regions, waits for those who act on what was shown before, and has processors forget it. The flush is needed
    /// even if no leaf is there any more: another vCPU may have split a large one just now, and not have flushed yet.
    fn show(&self, now: &mut Arrangement, regions: Regions, flush: &dyn Fn()) {
        self.map.publish(&regions);
        let before = core::mem::replace(&mut now.regions, regions);
        self.wait_for_those_inside();
        now.regions.each_difference(&before, |range| {
            self.nested.forget(&range);
        });
        self.flush(flush);
    }

    /// Takes pages into the VM's memory that are not RAM: a ROM, a frame buffer, a page that is shared. They are one piece of physical
    /// memory at `at`, which stays the caller's. Returns the number of the first, for a [`Region`](crate::regions::Region). Sleeps.
    pub fn add_pages(&self, at: Hpa, count: u64) -> Result<u64, RegionError> {
        if count == 0 {
            return Err(RegionError::Empty);
        }
        if at.page_offset() != 0 {
            return Err(RegionError::Unaligned);
        }
        let bytes = count.checked_mul(PAGE_SIZE);
        let end = bytes.and_then(|bytes| at.checked_add(bytes));
        if end.is_none_or(|end| end.0 > PHYSICAL_END) {
            return Err(RegionError::OutOfReach);
        }
        let mut now = self.changes.lock();
        let first = now.free_numbers(&self.frames.other_pages(), count);
        let first = first.ok_or(RegionError::NoSuchPages)?;
        let pages = first..first.saturating_add(count);
        now.others.try_push(pages.clone())?;
        now.others.sort_unstable_by_key(|pages| pages.start);
        if let Err(error) = self.frames.adopt(pages.clone(), at) {
            self.frames.disown(pages.clone());
            now.others.retain(|taken| *taken != pages);
            return Err(error.into());
        }
        Ok(first)
    }

    /// Gives pages back that [`Memory::add_pages`] took in. No region may show them. When this returns, nobody uses them. Sleeps.
    pub fn remove_pages(&self, first: u64, count: u64) -> Result<(), RegionError> {
        let mut now = self.changes.lock();
        let pages = first..first.saturating_add(count);
        if !now.others.contains(&pages) {
            return Err(RegionError::NoSuchPages);
        }
        if let Some(region) = now
            .regions
            .iter()
            .chain(now.at_reset.iter())
            .find(|region| region.uses(&pages))
        {
            return Err(RegionError::Overlaps(region.at));
        }
        self.seal(&pages)?;
        self.frames.disown(pages.clone());
        now.others.retain(|taken| *taken != pages);
        Ok(())
    }

    /// Lets nobody use these frames any more, and waits for who does; or leaves all as they are, as one is pinned.
    fn seal(&self, pages: &Range<u64>) -> Result<(), RegionError> {
        let mut page = pages.start;
        while let Some(slot) = self.frames.first_frame(&(page..pages.end)) {
            if matches!(slot.word.seal(), Err(Refused::Pinned)) {
                self.unseal(&(pages.start..slot.first));
                return Err(RegionError::Pinned);
            }
            page = slot.pages().end;
        }
        self.wait_for_those_inside();
        Ok(())
    }

    fn unseal(&self, pages: &Range<u64>) {
        let mut page = pages.start;
        while let Some(slot) = self.frames.first_frame(&(page..pages.end)) {
            slot.word.unseal();
            page = slot.pages().end;
        }
    }

    /// The number of bytes of pages that are not RAM.
    pub fn other_bytes(&self) -> u64 {
        let now = self.changes.lock();
        let pages = now
            .others
            .iter()
            .map(|pages| pages.end.wrapping_sub(pages.start));
        pages.sum::<u64>().saturating_mul(PAGE_SIZE)
    }
}
