// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sectors in memory, a page at a time, and only those that were written.
#![forbid(unsafe_code)]

use super::{BlockError, BlockMemory, Ranges, SECTOR_BYTES};
use crate::addr::PAGE_SIZE;
use crate::alloc_ext::{try_append_zeroes, NoMemory, TryPush};
use alloc::vec::Vec;

/// How many sectors a page has.
pub(super) const PAGE_SECTORS: u64 = PAGE_SIZE / SECTOR_BYTES;
/// What a sector holds that nobody wrote.
pub(super) const ZERO_SECTOR: [u8; SECTOR_BYTES as usize] = [0; SECTOR_BYTES as usize];
/// How many pages a group has.
const GROUP_PAGES: u64 = 512;
/// All sectors of a page.
const ALL: u8 = u8::MAX;

/// A page.
#[derive(Default)]
struct Page {
    /// Its bytes; empty if all that is there is zero.
    bytes: Vec<u8>,
    /// Which of its sectors are there.
    there: u8,
}

/// Sectors in memory.
pub(super) struct Pages {
    /// Groups of pages; an empty one has none.
    groups: Vec<Vec<Page>>,
    /// How many pages have bytes.
    held: u64,
    /// How many may.
    most: u64,
}

/// A part of a page.
pub(super) struct Part {
    pub(super) page: u64,
    /// Its first sector in the page.
    pub(super) first: u64,
    /// How many sectors.
    pub(super) count: u64,
    /// How many bytes of the whole are before it.
    pub(super) offset: u64,
}

impl Part {
    fn mask(&self) -> u8 {
        let bits = (1u16 << (self.count & 15)).wrapping_sub(1);
        (bits << (self.first & 7)) as u8
    }
    fn bytes(&self) -> core::ops::Range<usize> {
        let begin = self.first.wrapping_mul(SECTOR_BYTES) as usize;
        let length = self.count.wrapping_mul(SECTOR_BYTES) as usize;
        begin..begin.wrapping_add(length)
    }
}

/// The parts of `count` sectors from `sector` on that are each in one page.
pub(super) fn parts(sector: u64, count: u64) -> impl Iterator<Item = Part> {
    let (mut at, mut left) = (sector, count);
    core::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let first = at % PAGE_SECTORS;
        let here = PAGE_SECTORS.wrapping_sub(first).min(left);
        let part = Part {
            page: at / PAGE_SECTORS,
            first,
            count: here,
            offset: at.wrapping_sub(sector).wrapping_mul(SECTOR_BYTES),
        };
        at = at.wrapping_add(here);
        left = left.wrapping_sub(here);
        Some(part)
    })
}

/// The parts of all of a request's ranges.
pub(super) fn parts_of(ranges: &Ranges) -> impl Iterator<Item = Part> + '_ {
    let ranges = ranges.as_slice().iter();
    ranges.flat_map(|range| parts(range.sector, range.count))
}

impl Pages {
    /// None of so many sectors, with room in memory for so many pages.
    pub(super) fn new(sectors: u64, most_pages: u64) -> Result<Self, NoMemory> {
        let pages = sectors.div_ceil(PAGE_SECTORS);
        let count = usize::try_from(pages.div_ceil(GROUP_PAGES)).map_err(|_| NoMemory)?;
        let mut groups = Vec::new();
        groups.try_reserve_exact(count).map_err(|_| NoMemory)?;
        for _ in 0..count {
            groups.try_push(Vec::new())?;
        }
        Ok(Self {
            groups,
            held: 0,
            most: most_pages,
        })
    }

    fn find(&self, page: u64) -> Option<&Page> {
        let group = self.groups.get((page / GROUP_PAGES) as usize)?;
        group.get((page % GROUP_PAGES) as usize)
    }

    fn page(&mut self, page: u64) -> Result<&mut Page, BlockError> {
        let group = self.groups.get_mut((page / GROUP_PAGES) as usize);
        let group = group.ok_or(BlockError::OutOfRange)?;
        if group.is_empty() {
            let mut pages = Vec::new();
            let reserved = pages.try_reserve_exact(GROUP_PAGES as usize);
            reserved.map_err(|_| NoMemory)?;
            for _ in 0..GROUP_PAGES {
                pages.try_push(Page::default())?;
            }
            *group = pages;
        }
        let page = group.get_mut((page % GROUP_PAGES) as usize);
        page.ok_or(BlockError::OutOfRange)
    }

    /// Which sectors of a part's are there: a bit for each of the page's.
    pub(super) fn there(&self, part: &Part) -> u8 {
        self.find(part.page).map_or(0, |page| page.there) & part.mask()
    }
    /// Whether all of a part is there.
    pub(super) fn has(&self, part: &Part) -> bool {
        self.there(part) == part.mask()
    }

    /// The bytes of a part; `None` if they are zero, or not there.
    pub(super) fn read(&self, part: &Part) -> Option<&[u8]> {
        self.find(part.page)?.bytes.get(part.bytes())
    }

    /// Room for the bytes of a part, which is there from now on.
    pub(super) fn write(&mut self, part: &Part) -> Result<&mut [u8], BlockError> {
        let has_room = self.held < self.most;
        let page = self.page(part.page)?;
        let mut held = 0;
        if page.bytes.is_empty() {
            if !has_room {
                return Err(BlockError::NoSpace);
            }
            try_append_zeroes(&mut page.bytes, PAGE_SIZE as usize)?;
            held = 1;
        }
        page.there |= part.mask();
        self.held = self.held.wrapping_add(held);
        let page = self.page(part.page)?;
        page.bytes
            .get_mut(part.bytes())
            .ok_or(BlockError::OutOfRange)
    }

    /// Takes in what a request writes, from `sector` on.
    pub(super) fn take(&mut self, sector: u64, memory: &BlockMemory) -> Result<(), BlockError> {
        for part in parts(sector, memory.bytes() / SECTOR_BYTES) {
            memory.read(part.offset, self.write(&part)?)?;
        }
        Ok(())
    }

    /// Zeroes are there. Gives the page's memory back if it can.
    pub(super) fn clear(&mut self, part: &Part) -> Result<(), BlockError> {
        let mask = part.mask();
        let page = self.page(part.page)?;
        page.there |= mask;
        let mut freed = 0;
        if mask == ALL && !page.bytes.is_empty() {
            page.bytes = Vec::new();
            freed = 1;
        } else if let Some(bytes) = page.bytes.get_mut(part.bytes()) {
            bytes.fill(0);
        }
        self.held = self.held.wrapping_sub(freed);
        Ok(())
    }

    /// As [`Pages::clear`], for a page of which nothing has to be there: if it has no memory, it gets no note either.
    pub(super) fn forget(&mut self, part: &Part) -> Result<(), BlockError> {
        match self.find(part.page) {
            Some(page) if !page.bytes.is_empty() => self.clear(part),
            _ => Ok(()),
        }
    }
}
