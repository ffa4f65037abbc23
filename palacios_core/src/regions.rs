// SPDX-License-Identifier: MIT OR Apache-2.0
//! Regions: what lies where in guest-physical space, and how that may change. A region shows pages of the VM's memory; where there
//! is none, a device may answer.
#![forbid(unsafe_code)]

use crate::addr::{Gpa, PAGE_SIZE};
use crate::alloc_ext::{NoMemory, TryPush};
use crate::ram::RamLayout;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// How many regions a VM may have.
pub const MAX_REGIONS: usize = 64;

/// Guest-physical addresses that show pages of the VM's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where it begins, a multiple of 4 KiB.
    pub at: Gpa,
    /// Its length, a multiple of 4 KiB, not zero.
    pub bytes: u64,
    /// The number of its first page.
    pub page: u64,
    /// Where the guest's writes go.
    pub writes: Writes,
    /// How processors cache it.
    pub cache: Cache,
}

/// Where a guest's writes to a region go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// To its pages.
    Allowed,
    /// Nowhere, as with a ROM.
    Dropped,
    /// To the device at that address, as with a flash memory.
    ToDevice,
    /// To other pages, from this number on: reads come from a ROM, and writes go to the RAM behind it.
    ToPage(u64),
}

/// How processors cache memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// As RAM.
    WriteBack,
    /// Writes are gathered, as a frame buffer wants.
    WriteCombining,
    /// Not at all, as a device's registers.
    Uncached,
}

/// Why the map of regions cannot be so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionError {
    /// Its bounds are no multiples of 4 KiB.
    Unaligned,
    /// It has no bytes.
    Empty,
    /// It ends behind the last address that a guest can have.
    OutOfReach,
    /// Another region, which begins there, has some of its addresses.
    Overlaps(Gpa),
    /// It shows pages that the VM does not have.
    NoSuchPages,
    /// No region is there.
    NotThere,
    /// There are [`MAX_REGIONS`] already.
    TooMany,
    /// Pages in it are pinned: a device works on them.
    Pinned,
    /// The host has no memory for it.
    NoMemory,
}

impl From<NoMemory> for RegionError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

impl fmt::Display for RegionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned => f.write_str("a region begins and ends at a multiple of 4 KiB"),
            Self::Empty => f.write_str("a region has at least one page"),
            Self::OutOfReach => {
                f.write_str("the region ends behind the last guest-physical address")
            }
            Self::Overlaps(other) => write!(
                f,
                "the region at {other} has some of these addresses; remove it first"
            ),
            Self::NoSuchPages => f.write_str("the region shows pages that the VM does not have"),
            Self::NotThere => f.write_str("no region is there"),
            Self::TooMany => write!(f, "a VM has at most {MAX_REGIONS} regions"),
            Self::Pinned => f.write_str("a device works on pages of the region; detach it first"),
            Self::NoMemory => f.write_str("the host has no memory for the region"),
        }
    }
}

impl Region {
    /// RAM that is written and cached as such.
    pub const fn ram(at: Gpa, bytes: u64, page: u64) -> Self {
        Self {
            at,
            bytes,
            page,
            writes: Writes::Allowed,
            cache: Cache::WriteBack,
        }
    }

    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        self.at.0..self.end()
    }
    fn end(&self) -> u64 {
        self.at.0.saturating_add(self.bytes)
    }
    /// The numbers of its pages.
    pub fn pages(&self) -> Range<u64> {
        self.page..self.page.saturating_add(self.bytes / PAGE_SIZE)
    }
    /// The page that `gpa` shows, which lies in the region.
    pub fn page_at(&self, gpa: Gpa) -> u64 {
        self.page.wrapping_add(self.pages_before(gpa))
    }
    /// The page that takes a write at `gpa`; `None` if it is none of memory's.
    pub fn written_page_at(&self, gpa: Gpa) -> Option<u64> {
        match self.writes {
            Writes::Allowed => Some(self.page_at(gpa)),
            Writes::ToPage(page) => Some(page.wrapping_add(self.pages_before(gpa))),
            Writes::Dropped | Writes::ToDevice => None,
        }
    }
    fn pages_before(&self, gpa: Gpa) -> u64 {
        gpa.0.wrapping_sub(self.at.0) / PAGE_SIZE
    }
    /// Whether the guest reads or writes any of these pages through it.
    pub fn uses(&self, pages: &Range<u64>) -> bool {
        let writes = match self.writes {
            Writes::ToPage(page) => page..page.saturating_add(self.bytes / PAGE_SIZE),
            _ => 0..0,
        };
        self.shows(pages).is_some() || writes.start < pages.end && pages.start < writes.end
    }
    /// The addresses at which some of these pages are shown.
    pub fn shows(&self, pages: &Range<u64>) -> Option<Range<u64>> {
        let own = self.pages();
        let (first, end) = (pages.start.max(own.start), pages.end.min(own.end));
        let at = |page: u64| {
            let before = page.wrapping_sub(own.start).wrapping_mul(PAGE_SIZE);
            self.at.0.wrapping_add(before)
        };
        (first < end).then(|| at(first)..at(end))
    }

    /// Whether it is to `gpa` what another region is, which has that address too.
    fn shows_alike(&self, other: &Self, gpa: Gpa) -> bool {
        let of = |region: &Self| {
            let device = region.writes == Writes::ToDevice;
            let written = region.written_page_at(gpa);
            (region.page_at(gpa), written, device, region.cache)
        };
        of(self) == of(other)
    }

    /// Whether it may be, in a guest-physical space that ends at `end` and a VM with so many pages.
    fn check(&self, end: Gpa, pages: u64) -> Result<(), RegionError> {
        let aligned = |address| address % PAGE_SIZE == 0;
        if !aligned(self.at.0) || !aligned(self.bytes) {
            return Err(RegionError::Unaligned);
        }
        if self.bytes == 0 {
            return Err(RegionError::Empty);
        }
        let last = self.at.checked_add(self.bytes);
        if last.is_none_or(|last| last > end) {
            return Err(RegionError::OutOfReach);
        }
        let count = self.bytes / PAGE_SIZE;
        let there = |page: u64| page.checked_add(count).is_some_and(|end| end <= pages);
        let writes_there = match self.writes {
            Writes::ToPage(page) => there(page),
            _ => true,
        };
        if !there(self.page) || !writes_there {
            return Err(RegionError::NoSuchPages);
        }
        Ok(())
    }
}

/// A change of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A region appears where none was.
    Add(Region),
    /// Nothing is shown there any more. Regions that reach beyond are cut.
    Remove {
        /// The first address.
        at: Gpa,
        /// How many bytes.
        bytes: u64,
    },
}

/// Regions by ascending address, none over another.
#[derive(PartialEq, Eq)]
pub(crate) struct Regions(Vec<Region>);

impl Regions {
    /// Those of a PC with this RAM. The holes of a PC below 1 MiB are RAM too, which keeps what is written to a screen that is not there,
    /// until a device or firmware puts something else in their place.
    pub(crate) fn of_ram(ram: RamLayout) -> Result<Self, NoMemory> {
        let mut all = Vec::new();
        for range in ram.ranges().into_iter().filter(|range| !range.is_empty()) {
            let page = ram.offset(Gpa(range.start)).unwrap_or(0) / PAGE_SIZE;
            let bytes = range.end.wrapping_sub(range.start);
            all.try_push(Region::ram(Gpa(range.start), bytes, page))?;
        }
        Ok(Self(all))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Region> {
        self.0.iter()
    }
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
    /// Calls `f` for the addresses at which `before` showed something that these do not show, or not in the same way.
    pub(crate) fn each_difference(&self, before: &Self, mut f: impl FnMut(Range<u64>)) {
        for old in before.iter() {
            let mut at = old.at.0;
            while at < old.end() {
                // The region that has `at`, or the next one.
                let new = self.iter().find(|new| new.end() > at);
                let (end, same) = match new {
                    Some(new) if new.at.0 <= at => (new.end(), new.shows_alike(old, Gpa(at))),
                    Some(new) => (new.at.0, false),
                    None => (old.end(), false),
                };
                let end = end.min(old.end());
                if !same {
                    f(at..end);
                }
                at = end;
            }
        }
    }
    /// The same once more.
    pub(crate) fn try_clone(&self) -> Result<Self, NoMemory> {
        let mut all = Vec::new();
        for region in self.iter() {
            all.try_push(*region)?;
        }
        Ok(Self(all))
    }

    /// These, changed; for a guest-physical space that ends at `end`, and a VM with so many pages.
    pub(crate) fn changed(
        &self,
        change: &Change,
        end: Gpa,
        pages: u64,
    ) -> Result<Self, RegionError> {
        match change {
            Change::Add(region) => self.with(region, end, pages),
            Change::Remove { at, bytes } => {
                let whole = Region::ram(*at, *bytes, 0);
                whole.check(end, u64::MAX)?;
                self.without(whole.range())
            }
        }
    }

    fn with(&self, new: &Region, end: Gpa, pages: u64) -> Result<Self, RegionError> {
        new.check(end, pages)?;
        let other = self
            .iter()
            .find(|other| other.at.0 < new.end() && new.at.0 < other.end());
        if let Some(other) = other {
            return Err(RegionError::Overlaps(other.at));
        }
        let (mut all, before) = (Vec::new(), self.iter().filter(|other| other.at < new.at));
        for region in before.chain([new]) {
            all.try_push(*region)?;
        }
        for region in self.iter().filter(|other| other.at > new.at) {
            all.try_push(*region)?;
        }
        Self(all).of_a_size()
    }

    fn without(&self, hole: Range<u64>) -> Result<Self, RegionError> {
        let mut all = Vec::new();
        for region in self.iter() {
            let before = region.at.0..region.end().min(hole.start);
            let after = region.at.0.max(hole.end)..region.end();
            for part in [before, after].into_iter().filter(|part| !part.is_empty()) {
                let rest = Region {
                    at: Gpa(part.start),
                    bytes: part.end.wrapping_sub(part.start),
                    page: region.page_at(Gpa(part.start)),
                    writes: match region.writes {
                        Writes::ToPage(_) => {
                            Writes::ToPage(region.written_page_at(Gpa(part.start)).unwrap_or(0))
                        }
                        other => other,
                    },
                    ..*region
                };
                all.try_push(rest)?;
            }
        }
        let taken = self
            .iter()
            .any(|other| other.at.0 < hole.end && hole.start < other.end());
        match taken {
            true => Self(all).of_a_size(),
            false => Err(RegionError::NotThere),
        }
    }

    fn of_a_size(self) -> Result<Self, RegionError> {
        match self.0.len() <= MAX_REGIONS {
            true => Ok(self),
            false => Err(RegionError::TooMany),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const PAGES: u64 = 100;
    const END: Gpa = Gpa(64 * PAGE_SIZE);

    fn none() -> Regions {
        Regions(Vec::new())
    }

    #[test]
    fn ram_is_where_a_pc_has_it() {
        let layout = RamLayout::new((3 << 30) + 5 * PAGE_SIZE);
        let regions = Regions::of_ram(layout).unwrap();
        let low = Region::ram(Gpa(0), 3 << 30, 0);
        let high = Region::ram(Gpa(1 << 32), 5 * PAGE_SIZE, (3 << 30) / PAGE_SIZE);
        assert_eq!(regions.0, [low, high]);
        let small = Regions::of_ram(RamLayout::new(2 << 20)).unwrap();
        assert_eq!(small.0, [Region::ram(Gpa(0), 2 << 20, 0)]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_reason() {
        let regions = none().changed(
            &Change::Add(Region::ram(Gpa(0x4000), 0x2000, 3)),
            END,
            PAGES,
        );
        let regions = regions.unwrap();
        let add = |at, bytes, page, writes| {
            let region = Region {
                writes,
                ..Region::ram(Gpa(at), bytes, page)
            };
            regions.changed(&Change::Add(region), END, PAGES).err()
        };
        let plain = |at, bytes, page| add(at, bytes, page, Writes::Allowed);
        for (at, bytes, page, why) in [
            (0x1001, 0x1000, 0, RegionError::Unaligned),
            (0x1000, 0xfff, 0, RegionError::Unaligned),
            (0x1000, 0, 0, RegionError::Empty),
            (END.0, 0x1000, 0, RegionError::OutOfReach),
            (END.0 - 0x1000, 0x2000, 0, RegionError::OutOfReach),
            (u64::MAX - 0xfff, 0x1000, 0, RegionError::OutOfReach),
            (0x1000, u64::MAX - 0xfff, 0, RegionError::OutOfReach),
            (0x3000, 0x2000, 0, RegionError::Overlaps(Gpa(0x4000))),
            (0x5000, 0x1000, 0, RegionError::Overlaps(Gpa(0x4000))),
            (0x1000, 0x1000, PAGES, RegionError::NoSuchPages),
            (0x1000, 0x2000, PAGES - 1, RegionError::NoSuchPages),
            (0x1000, 0x1000, u64::MAX, RegionError::NoSuchPages),
        ] {
            assert_eq!(
                plain(at, bytes, page),
                Some(why),
                "{at:#x} {bytes:#x} {page}"
            );
        }
        assert_eq!(
            add(0x1000, 0x1000, 0, Writes::ToPage(PAGES)),
            Some(RegionError::NoSuchPages)
        );
        assert_eq!(plain(0x3000, 0x1000, PAGES - 1), None);
        assert_eq!(plain(0x6000, 0x1000, 0), None);
        let remove = |at, bytes| {
            regions
                .changed(&Change::Remove { at: Gpa(at), bytes }, END, PAGES)
                .err()
        };
        assert_eq!(remove(0x6000, 0x1000), Some(RegionError::NotThere));
        assert_eq!(remove(0x4000, 0), Some(RegionError::Empty));
        assert_eq!(remove(0x4000, 0x800), Some(RegionError::Unaligned));
        assert_eq!(remove(0, END.0), None);
        for error in [
            RegionError::Overlaps(Gpa(0)),
            RegionError::TooMany,
            RegionError::Pinned,
        ] {
            assert!(!std::format!("{error}").is_empty());
        }
    }

    #[test]
    fn there_is_a_bound() {
        let mut regions = none();
        for n in 0..MAX_REGIONS as u64 {
            let region = Region::ram(Gpa(2 * n * PAGE_SIZE), PAGE_SIZE, 0);
            regions = regions
                .changed(&Change::Add(region), Gpa(1 << 40), PAGES)
                .unwrap();
        }
        let more = Region::ram(Gpa(1 << 30), PAGE_SIZE, 0);
        let refused = regions
            .changed(&Change::Add(more), Gpa(1 << 40), PAGES)
            .err();
        assert_eq!(refused, Some(RegionError::TooMany));
    }

    fn change() -> impl Strategy<Value = Change> {
        let writes = prop_oneof![
            Just(Writes::Allowed),
            Just(Writes::Dropped),
            (0..90u64).prop_map(Writes::ToPage)
        ];
        let region =
            (0..60u64, 1..5u64, 0..95u64, writes).prop_map(|(at, pages, page, writes)| Region {
                writes,
                ..Region::ram(Gpa(at * PAGE_SIZE), pages * PAGE_SIZE, page)
            });
        let remove = (0..60u64, 1..20u64).prop_map(|(at, pages)| Change::Remove {
            at: Gpa(at * PAGE_SIZE),
            bytes: pages * PAGE_SIZE,
        });
        prop_oneof![3 => region.prop_map(Change::Add), 1 => remove]
    }

    /// The pages' addresses at which something was shown that is not any more, page by page.
    fn differences(now: &Regions, before: &Regions) -> Vec<u64> {
        let shown = |regions: &Regions, at: u64| {
            let region = regions.iter().find(|region| region.range().contains(&at))?;
            Some((region.page_at(Gpa(at)), region.written_page_at(Gpa(at))))
        };
        let pages = (0..END.0).step_by(PAGE_SIZE as usize);
        let differs = |at: &u64| shown(before, *at).is_some_and(|was| shown(now, *at) != Some(was));
        pages.filter(differs).collect()
    }

    fn forgotten(now: &Regions, before: &Regions) -> Vec<u64> {
        let mut all = Vec::new();
        now.each_difference(before, |range| {
            all.extend(range.step_by(PAGE_SIZE as usize))
        });
        all
    }

    proptest! {
        /// Against a map from each page's address to what is shown there.
        #[test]
        fn changes_follow_a_model(changes in prop::collection::vec(change(), 1..60)) {
            let (mut regions, mut model) = (none(), BTreeMap::new());
            for change in changes {
                let changed = regions.changed(&change, END, PAGES);
                let at = |at: Gpa, n: u64| at.0 + n * PAGE_SIZE;
                let worked = match change {
                    Change::Add(new) => {
                        let pages = new.bytes / PAGE_SIZE;
                        let free = (0..pages).all(|n| !model.contains_key(&at(new.at, n)));
                        let written = |n| new.written_page_at(Gpa(at(new.at, n)));
                        let fits = at(new.at, pages) <= END.0
                            && new.page + pages <= PAGES
                            && written(pages - 1).is_none_or(|page| page < PAGES);
                        if free && fits {
                            model.extend((0..pages).map(|n| (at(new.at, n), (new.page + n, written(n)))));
                        }
                        free && fits
                    }
                    Change::Remove { at: from, bytes } => {
                        let (before, fits) = (model.len(), from.0 + bytes <= END.0);
                        model.retain(|at, _| !fits || !(from.0..from.0 + bytes).contains(at));
                        model.len() < before
                    }
                };
                prop_assert_eq!(changed.is_ok(), worked);
                let before = std::mem::replace(&mut regions, none());
                regions = changed.unwrap_or_else(|_| before.try_clone().unwrap());
                prop_assert_eq!(differences(&regions, &before), forgotten(&regions, &before));
                let ascending = regions.0.windows(2).all(|pair| pair[0].end() <= pair[1].at.0);
                prop_assert!(ascending);
                let shown = regions.iter().flat_map(|region| {
                    region.range().step_by(PAGE_SIZE as usize).map(|at| {
                        (at, (region.page_at(Gpa(at)), region.written_page_at(Gpa(at))))
                    })
                });
                prop_assert!(shown.eq(model.iter().map(|(at, page)| (*at, *page))));
            }
        }
    }
}
