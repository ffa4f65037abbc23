// SPDX-License-Identifier: MIT OR Apache-2.0
//! Arrangement of what is where: regions come, move and go while the guest runs, and with them pages that are not RAM.

use super::arrangement::Arrangement;
use super::frame_word::Refused;
use super::Memory;
use crate::addr::{Hpa, PAGE_SIZE};
use crate::alloc_ext::{NoMemory, TryPush};
use crate::host::{Host, Lock};
use crate::regions::{Change, RegionError, Regions};
use core::ops::Range;

impl<H: Host> Memory<H> {
    /// Arrangement what is where, now and behind a reset: all `changes` in their order, and for everybody at once; or none of them. When this
    /// returns, no access of a vCPU goes where it went before. `flush` is as for [`Memory::fault`]. Sleeps.
    pub fn change(&self, changes: &[Change], flush: &dyn Fn()) -> Result<(), RegionError> {
        let mut now = self.changes.lock();
        let at_reset = self.changed(&now.at_reset, changes)?;
        self.show(&mut now, changes, flush)?;
        now.at_reset = at_reset;
        Ok(())
    }

    /// The same until a reset: a change that the guest asked for.
    pub fn change_until_reset(
        &self,
        changes: &[Change],
        flush: &dyn Fn(),
    ) -> Result<(), RegionError> {
        self.show(&mut self.changes.lock(), changes, flush)
    }

    /// Everything is where it was before the guest changed it. Sleeps.
    pub fn reset_map(&self, flush: &dyn Fn()) -> Result<(), NoMemory> {
        let mut now = self.changes.lock();
        if now.regions == now.at_reset {
            return Ok(());
        }
        let regions = now.at_reset.try_clone()?;
        self.publish(&mut now, regions);
        self.forget(&(0..self.nested.format().end().0), flush);
        Ok(())
    }

    fn changed(&self, before: &Regions, changes: &[Change]) -> Result<Regions, RegionError> {
        let mut new = before.try_clone()?;
        for change in changes {
            new = new.changed(
                change,
                self.nested.format().end(),
                self.frames.other_pages().end,
            )?;
        }
        Ok(new)
    }

    fn show(
        &self,
        now: &mut Arrangement,
        changes: &[Change],
        flush: &dyn Fn(),
    ) -> Result<(), RegionError> {
        let new = self.changed(&now.regions, changes)?;
        self.publish(now, new);
        let mut forgot = false;
        for change in changes {
            if let Change::Remove { at, bytes } = change {
                forgot |= self.nested.forget(&(at.0..at.0.saturating_add(*bytes)));
            }
        }
        if forgot {
            self.flush(flush);
        }
        Ok(())
    }

    /// Shows other regions, and waits for those who act on what was shown before.
    fn publish(&self, now: &mut Arrangement, regions: Regions) {
        self.map.publish(&regions);
        now.regions = regions;
        self.wait_for_those_inside();
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
