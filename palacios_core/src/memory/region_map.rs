// SPDX-License-Identifier: MIT OR Apache-2.0
//! The readers' copy of what lies where in guest-physical space, which needs no lock. The writers' copy is in `arrangement.rs`.
#![forbid(unsafe_code)]

use super::gate::Inside;
use crate::addr::Gpa;
use crate::alloc_ext::{NoMemory, TryPush};
use crate::regions::{Cache, Region, Regions, Writes, MAX_REGIONS};
use alloc::vec::Vec;
use core::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};

/// Looked at from inside the gate.
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
        self.count.store(regions.len(), Relaxed);
    }

    #[inline]
    fn find(&self, gpa: Gpa) -> Option<Region> {
        let there = self.packed.get(..self.count.load(Relaxed))?;
        // There are few, and the last one that begins at or before it is the one.
        let mut from_the_end = there.iter().rev();
        let [at, bytes, page, written] = from_the_end.find(|[at, ..]| at.load(Relaxed) <= gpa.0)?;
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
