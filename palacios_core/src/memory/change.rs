// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes of what is where: regions come, move and go while the guest runs, and with them pages that are not RAM.

use super::frame_word::Refused;
use super::region::{Change, RegionError, Regions};
use super::Memory;
use crate::addr::{Hpa, PAGE_SIZE};
use crate::alloc_ext::TryPush;
use crate::host::{Host, Lock};
use alloc::vec::Vec;
use core::ops::Range;

/// What only those look at who change it, one at a time.
pub(super) struct Changes {
    pub(super) regions: Regions,
    /// The numbers of pages that are not RAM, by ascending number.
    others: Vec<Range<u64>>,
}

impl Changes {
    pub(super) fn new(regions: Regions) -> Self {
        Self {
            regions,
            others: Vec::new(),
        }
    }

    /// Calls `f` for the guest-physical addresses at which some of `pages` are shown.
    pub(super) fn each_place(&self, pages: &Range<u64>, mut f: impl FnMut(&Range<u64>)) {
        for place in self.regions.iter().filter_map(|region| region.shows(pages)) {
            f(&place);
        }
    }

    /// The first of `count` numbers in `room` that are free.
    fn free_numbers(&self, room: &Range<u64>, count: u64) -> Option<u64> {
        let mut from = room.start;
        for taken in &self.others {
            if taken.start.saturating_sub(from) >= count {
                break;
            }
            from = taken.end;
        }
        (room.end.saturating_sub(from) >= count).then_some(from)
    }
}

impl<H: Host> Memory<H> {
    /// Changes what is where: all `changes` in their order, and for everybody at once; or none of them. When this returns, no access of a
    /// vCPU goes where it went before. `flush` is as for [`Memory::fault`]. Sleeps.
    pub fn change(&self, changes: &[Change], flush: &dyn Fn()) -> Result<(), RegionError> {
        let mut now = self.changes.lock();
        let pages = self.frames.other_pages().end;
        let mut new = None;
        for change in changes {
            let before = new.as_ref().unwrap_or(&now.regions);
            new = Some(before.changed(change, self.nested.format().end(), pages)?);
        }
        let Some(new) = new else {
            return Ok(());
        };
        self.map.publish(&new);
        now.regions = new;
        self.wait_for_those_inside();
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

    /// Takes pages into the VM's memory that are not RAM: a ROM, a frame buffer, a page that is shared. They are one piece of physical
    /// memory at `at`, which stays the caller's. Returns the number of the first, for a [`super::Region`]. Sleeps.
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
        if let Some(region) = now.regions.iter().find(|region| region.uses(&pages)) {
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
