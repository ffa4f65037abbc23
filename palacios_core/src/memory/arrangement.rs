// SPDX-License-Identifier: MIT OR Apache-2.0
//! The writers' copy of what lies where in guest-physical space, under the lock `Memory::changes`. It is for those that change
//! something, one at a time: regions (`change.rs`), revoked frames (`take.rs`), the dirty log (`log.rs`). All others look at the
//! readers' copy (`region_map.rs`), to which each change of regions is published.
#![forbid(unsafe_code)]

use crate::alloc_ext::NoMemory;
use crate::regions::Regions;
use alloc::vec::Vec;
use core::ops::Range;

/// The regions, and what a change of them needs beside.
pub(super) struct Arrangement {
    pub(super) regions: Regions,
    /// What is where behind a reset.
    pub(super) at_reset: Regions,
    /// The numbers of pages that are not RAM, by ascending number.
    pub(super) others: Vec<Range<u64>>,
}

impl Arrangement {
    pub(super) fn new(regions: Regions) -> Result<Self, NoMemory> {
        Ok(Self {
            at_reset: regions.try_clone()?,
            regions,
            others: Vec::new(),
        })
    }

    /// Calls `f` for the guest-physical addresses at which some of `pages` are shown.
    pub(super) fn each_place(&self, pages: &Range<u64>, mut f: impl FnMut(&Range<u64>)) {
        for place in self.regions.iter().filter_map(|region| region.shows(pages)) {
            f(&place);
        }
    }

    /// The first of `count` numbers in `room` that are free.
    pub(super) fn free_numbers(&self, room: &Range<u64>, count: u64) -> Option<u64> {
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
