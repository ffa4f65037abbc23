// SPDX-License-Identifier: MIT OR Apache-2.0
//! Regions: what lies where in guest-physical space. A region shows pages of the VM's memory; where there is none, a device may
//! answer.
#![forbid(unsafe_code)]

use super::gate::Inside;
use crate::addr::{Gpa, PAGE_SIZE};
use crate::alloc_ext::{NoMemory, TryPush};
use crate::ram::RamLayout;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use core::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

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
pub(super) struct Regions(Vec<Region>);

impl Regions {
    /// Those of a PC with this RAM. The holes of a PC below 1 MiB are RAM too, which keeps what is written to a screen that is not there,
    /// until a device or firmware puts something else in their place.
    pub(super) fn of_ram(ram: RamLayout) -> Result<Self, NoMemory> {
        let mut all = Vec::new();
        for range in ram.ranges().into_iter().filter(|range| !range.is_empty()) {
            let page = ram.offset(Gpa(range.start)).unwrap_or(0) / PAGE_SIZE;
            let bytes = range.end.wrapping_sub(range.start);
            all.try_push(Region::ram(Gpa(range.start), bytes, page))?;
        }
        Ok(Self(all))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Region> {
        self.0.iter()
    }

    /// These, changed; for a guest-physical space that ends at `end`, and a VM with so many pages.
    pub(super) fn changed(
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

/// The regions as all look at them, without a lock, from inside the gate.
///
/// There are two sides. One is shown; a change is written to the other, which is shown then. Who was inside may still look at the first
/// side, so a change waits until they have left, and the next one finds nobody there.
pub(super) struct RegionMap {
    shown: AtomicUsize,
    sides: [Side; 2],
}

/// Regions, packed, and how many they are.
struct Side {
    count: AtomicUsize,
    packed: Vec<[AtomicU64; 4]>,
}

impl Side {
    fn new() -> Result<Self, NoMemory> {
        let mut packed = Vec::new();
        packed
            .try_reserve_exact(MAX_REGIONS)
            .map_err(|_| NoMemory)?;
        for _ in 0..MAX_REGIONS {
            packed.try_push([0; 4].map(AtomicU64::new))?;
        }
        let count = AtomicUsize::new(0);
        Ok(Self { count, packed })
    }

    fn write(&self, regions: &Regions) {
        for (slot, region) in self.packed.iter().zip(regions.iter()) {
            for (word, value) in slot.iter().zip(pack(region)) {
                word.store(value, Relaxed);
            }
        }
        self.count.store(regions.0.len(), Relaxed);
    }

    #[inline]
    fn find(&self, gpa: Gpa) -> Option<Region> {
        let there = self.packed.get(..self.count.load(Relaxed))?;
        let behind = there.partition_point(|[at, ..]| at.load(Relaxed) <= gpa.0);
        let [at, bytes, page, written] = there.get(behind.checked_sub(1)?)?;
        let (at, bytes) = (at.load(Relaxed), bytes.load(Relaxed));
        let unpacked = || unpack([at, bytes, page.load(Relaxed), written.load(Relaxed)]);
        (gpa.0.wrapping_sub(at) < bytes).then(unpacked)
    }
}

impl RegionMap {
    pub(super) fn new(regions: &Regions) -> Result<Self, NoMemory> {
        let map = Self {
            shown: AtomicUsize::new(0),
            sides: [Side::new()?, Side::new()?],
        };
        map.publish(regions);
        Ok(map)
    }

    fn side(&self, number: usize) -> &Side {
        let [even, odd] = &self.sides;
        if number % 2 == 0 {
            even
        } else {
            odd
        }
    }

    /// Shows other regions from now on. One caller at a time, who then waits for those inside the gate.
    pub(super) fn publish(&self, regions: &Regions) {
        let next = self.shown.load(Relaxed).wrapping_add(1);
        self.side(next).write(regions);
        self.shown.store(next, Release);
    }

    /// The region in which `gpa` lies.
    #[inline]
    pub(super) fn find(&self, _: &Inside<'_>, gpa: Gpa) -> Option<Region> {
        self.side(self.shown.load(Acquire)).find(gpa)
    }
}

const WRITES_SHIFT: u32 = 60;
const CACHE_SHIFT: u32 = 56;
const PAGE_MASK: u64 = (1 << CACHE_SHIFT) - 1;

fn pack(region: &Region) -> [u64; 4] {
    let (writes, written) = match region.writes {
        Writes::Allowed => (0, 0),
        Writes::Dropped => (1, 0),
        Writes::ToDevice => (2, 0),
        Writes::ToPage(page) => (3, page),
    };
    let cache = match region.cache {
        Cache::WriteBack => 0,
        Cache::WriteCombining => 1,
        Cache::Uncached => 2,
    };
    let page = region.page & PAGE_MASK | writes << WRITES_SHIFT | cache << CACHE_SHIFT;
    [region.at.0, region.bytes, page, written]
}

fn unpack([at, bytes, page, written]: [u64; 4]) -> Region {
    Region {
        at: Gpa(at),
        bytes,
        page: page & PAGE_MASK,
        writes: match page >> WRITES_SHIFT {
            0 => Writes::Allowed,
            1 => Writes::Dropped,
            2 => Writes::ToDevice,
            _ => Writes::ToPage(written),
        },
        cache: match page >> CACHE_SHIFT & 0xf {
            0 => Cache::WriteBack,
            1 => Cache::WriteCombining,
            _ => Cache::Uncached,
        },
    }
}
