// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which region answers at an address. A vCPU looks it up without a lock, while others attach devices and move regions.
//!
//! There are two sides, each sorted. One is shown; a change is written to the other, which is shown then. A look-up
//! reads the number of the side before and behind it, and begins again if that has changed: so it finds what was shown
//! at one moment. `palacios_core/models` proves it.
#![forbid(unsafe_code)]

use super::layout::{Entry, Layout, Target, MAX_ENTRIES};
use super::region::{IoAddress, Space};
use crate::alloc_ext::{NoMemory, TryPush};
use crate::atomic::{
    fence, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use alloc::vec::Vec;
use core::ops::Range;

/// The map.
pub(super) struct Map {
    /// Counts the changes; the lowest bit is the number of the side.
    shown: AtomicUsize,
    sides: [Side; 2],
}

/// One side.
struct Side {
    ports: Entries,
    memory: Entries,
    pci: Entries,
}

/// Entries that do not overlap, by ascending address, and how many they are.
struct Entries {
    count: AtomicUsize,
    packed: Vec<Packed>,
}

/// First address, end, address of the region's begin, target.
struct Packed([AtomicU64; 4]);

/// What a look-up found: addresses that are all one region's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    space: Space,
    entry: Entry,
    /// How many changes there were before.
    shown: usize,
}

impl Found {
    /// The region.
    pub(super) fn target(&self) -> Target {
        self.entry.target
    }
    /// The offset of an access in it.
    pub(super) fn offset(&self, access: IoAddress) -> u64 {
        access.at.wrapping_sub(self.entry.begin)
    }
    fn covers(&self, access: IoAddress) -> bool {
        let Range { start, end } = self.entry.range;
        let last = access.at.checked_add(access.covered());
        self.space == access.space && start <= access.at && last.is_some_and(|last| last <= end)
    }
}

impl Packed {
    fn new() -> Self {
        Self([0; 4].map(AtomicU64::new))
    }
    fn write(&self, entry: &Entry) {
        let [at, end, begin, target] = &self.0;
        at.store(entry.range.start, Relaxed);
        end.store(entry.range.end, Relaxed);
        begin.store(entry.begin, Relaxed);
        target.store(entry.target.packed(), Relaxed);
    }
    fn at(&self) -> u64 {
        let [at, ..] = &self.0;
        at.load(Relaxed)
    }
    fn entry(&self) -> Entry {
        let [at, end, begin, target] = self.0.each_ref().map(|word| word.load(Relaxed));
        Entry {
            range: at..end,
            begin,
            target: Target::unpacked(target),
        }
    }
}

impl Entries {
    fn new() -> Result<Self, NoMemory> {
        let mut packed = Vec::new();
        packed
            .try_reserve_exact(MAX_ENTRIES)
            .map_err(|_| NoMemory)?;
        for _ in 0..MAX_ENTRIES {
            packed.try_push(Packed::new())?;
        }
        let count = AtomicUsize::new(0);
        Ok(Self { count, packed })
    }

    fn write(&self, entries: &[Entry]) {
        for (slot, entry) in self.packed.iter().zip(entries) {
            slot.write(entry);
        }
        self.count.store(entries.len(), Relaxed);
    }

    /// The last entry that begins at or before `at`.
    #[inline]
    fn last_before(&self, at: u64) -> Option<Entry> {
        let there = self.packed.get(..self.count.load(Relaxed))?;
        let before = there.partition_point(|entry| entry.at() <= at);
        there.get(before.wrapping_sub(1)).map(Packed::entry)
    }
}

impl Map {
    /// A map of nothing.
    pub(super) fn new() -> Result<Self, NoMemory> {
        let side = || {
            Ok(Side {
                ports: Entries::new()?,
                memory: Entries::new()?,
                pci: Entries::new()?,
            })
        };
        Ok(Self {
            shown: AtomicUsize::new(0),
            sides: [side()?, side()?],
        })
    }

    fn entries(&self, shown: usize, space: Space) -> &Entries {
        let [even, odd] = &self.sides;
        let side = if shown % 2 == 0 { even } else { odd };
        match space {
            Space::Ports => &side.ports,
            Space::Memory => &side.memory,
            Space::PciConfig => &side.pci,
        }
    }

    /// Shows another layout from now on. One caller at a time.
    pub(super) fn show(&self, layout: &Layout) {
        let before = self.shown.load(Relaxed);
        let next = before.wrapping_add(1);
        // Who reads what is written from here on also sees that `before` is shown, and that it reads the wrong side.
        fence(Release);
        self.entries(next, Space::Ports).write(&layout.ports);
        self.entries(next, Space::Memory).write(&layout.memory);
        self.entries(next, Space::PciConfig).write(&layout.pci);
        self.shown.store(next, Release);
    }

    /// Which region answers an access. `last` is what the caller found last, if anything: it is likely to be that again.
    #[inline]
    pub(super) fn find<'a>(
        &self,
        last: &'a mut Option<Found>,
        access: IoAddress,
    ) -> Option<&'a Found> {
        let again = |last: &Found| last.covers(access) && self.still_shows(last);
        if !last.as_ref().is_some_and(again) {
            *last = self.look_up(access);
        }
        last.as_ref()
    }

    fn look_up(&self, access: IoAddress) -> Option<Found> {
        loop {
            let shown = self.shown.load(Acquire);
            let space = access.space;
            let entry = self.entries(shown, space).last_before(access.at);
            if self.is_shown(shown) {
                let found = Found {
                    space,
                    entry: entry?,
                    shown,
                };
                return found.covers(access).then_some(found);
            }
        }
    }

    /// The map has not changed since this was found.
    #[inline]
    pub(super) fn still_shows(&self, found: &Found) -> bool {
        self.is_shown(found.shown)
    }

    #[inline]
    fn is_shown(&self, shown: usize) -> bool {
        fence(Acquire);
        self.shown.load(Relaxed) == shown
    }
}
