// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's physical memory: two regions, below and above 4 GiB, mapped at virtual addresses that share nothing with
//! the physical ones but the page offset.
//!
//! The lowest free page is given first, so that a page in use by mistake soon has a new owner. Freed pages hold a pattern,
//! and one that was written meanwhile is found when it is given again.

use palacios_core::addr::{Hpa, LARGE_PAGE_SIZE, PAGE_SIZE};
use palacios_core::host::PageRequest;
use std::alloc::{alloc_zeroed, dealloc, Layout};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const PAGE: usize = PAGE_SIZE as usize;
const FREED: u8 = 0xdb;
const LOW: Hpa = Hpa(0x0120_0000);
const HIGH: Hpa = Hpa(0x1a_bfe0_0000);

// The states of a page.
const FRESH: u8 = 0;
const FREE: u8 = 1;
const GIVEN: u8 = 2;

/// All physical memory.
pub struct Arena {
    low: Region,
    high: Region,
}

struct Region {
    base: Hpa,
    memory: NonNull<u8>,
    layout: Layout,
    /// Where in `memory` the first page begins.
    skip: usize,
    /// The state of each page; changed with `runs` locked, read by anybody.
    pages: Vec<AtomicU8>,
    /// How often each page was freed.
    owners: Vec<AtomicU32>,
    runs: Mutex<Runs>,
}

#[derive(Default)]
struct Runs {
    /// The runs that are given, by index of their first page.
    given: HashMap<usize, usize>,
    /// No page below this one is free.
    lowest: usize,
}

// SAFETY: the memory is the region's own until it hands pages out, each to one owner.
unsafe impl Send for Region {}
// SAFETY: as above; the bookkeeping is behind a lock.
unsafe impl Sync for Region {}

impl Arena {
    pub fn new(low_pages: usize, high_pages: usize) -> Self {
        Self {
            low: Region::new(LOW, low_pages),
            high: Region::new(HIGH, high_pages),
        }
    }
    pub fn alloc(&self, want: PageRequest) -> Option<Hpa> {
        let high = (!want.below_4g).then(|| self.high.alloc(want));
        high.flatten().or_else(|| self.low.alloc(want))
    }
    pub fn free(&self, at: Hpa, pages: u32) {
        self.region(at).free(at, pages as usize);
    }
    /// The address at which a page that is given is mapped.
    pub fn address(&self, at: Hpa) -> NonNull<u8> {
        let region = self.region(at);
        let offset = (at.0 - region.base.0) as usize;
        let state = region.pages[offset / PAGE].load(Ordering::Relaxed);
        assert!(state == GIVEN, "use of {at}, a page that is nobody's");
        region.address(offset)
    }
    /// A number that changes when the page is freed.
    pub fn owner(&self, at: Hpa) -> u32 {
        let region = self.region(at);
        let page = ((at.0 - region.base.0) / PAGE_SIZE) as usize;
        region.owners[page].load(Ordering::SeqCst)
    }
    /// How many pages are given.
    pub fn given(&self) -> usize {
        self.low.given() + self.high.given()
    }
    fn region(&self, at: Hpa) -> &Region {
        [&self.low, &self.high]
            .into_iter()
            .find(|r| at >= r.base && at.0 - r.base.0 < (r.pages.len() * PAGE) as u64)
            .unwrap_or_else(|| panic!("{at} is no physical memory"))
    }
}

impl Region {
    fn new(base: Hpa, pages: usize) -> Self {
        // Room to align it. (With a larger alignment in the layout, the allocator would touch all of it.)
        let layout = Layout::from_size_align((pages + 2) * PAGE, 16);
        let layout = layout.expect("the size of physical memory");
        // SAFETY: the layout has a size.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("physical memory");
        // Large pages are aligned in physical memory only.
        let large = memory.addr().get() % LARGE_PAGE_SIZE as usize == 0;
        let skip = memory.align_offset(PAGE) + if large { PAGE } else { 0 };
        Self {
            base,
            memory,
            layout,
            skip,
            pages: (0..pages).map(|_| AtomicU8::new(FRESH)).collect(),
            owners: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            runs: Mutex::default(),
        }
    }
    fn address(&self, offset: usize) -> NonNull<u8> {
        // SAFETY: callers pass offsets in the region; its memory is longer by what is skipped.
        unsafe { self.memory.add(self.skip + offset) }
    }
    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn given(&self) -> usize {
        self.runs().given.values().sum()
    }
    fn is_free(&self, page: usize) -> bool {
        let state = self.pages.get(page).map(|p| p.load(Ordering::Relaxed));
        state.is_some_and(|state| state != GIVEN)
    }

    fn alloc(&self, want: PageRequest) -> Option<Hpa> {
        let (count, align) = (want.pages as usize, want.align_pages as usize);
        assert!(count > 0 && align.is_power_of_two(), "{want:?}");
        if count > self.pages.len() || align > self.pages.len() {
            return None;
        }
        let mut runs = self.runs();
        while runs.lowest < self.pages.len() && !self.is_free(runs.lowest) {
            runs.lowest += 1;
        }
        let first_pfn = (self.base.0 / PAGE_SIZE) as usize;
        let mut page = (first_pfn + runs.lowest).next_multiple_of(align) - first_pfn;
        while page + count <= self.pages.len() {
            match (page..page + count).rev().find(|page| !self.is_free(*page)) {
                None => {
                    (page..page + count).for_each(|page| self.give(page));
                    runs.given.insert(page, count);
                    return Some(Hpa(self.base.0 + (page * PAGE) as u64));
                }
                Some(taken) => page = (first_pfn + taken + 1).next_multiple_of(align) - first_pfn,
            }
        }
        None
    }

    fn give(&self, page: usize) {
        let was = self.pages[page].swap(GIVEN, Ordering::Relaxed);
        if was != FRESH {
            // SAFETY: the page is free, and therefore the region's own.
            let bytes =
                unsafe { std::slice::from_raw_parts_mut(self.address(page * PAGE).as_ptr(), PAGE) };
            let at = Hpa(self.base.0 + (page * PAGE) as u64);
            assert!(*bytes == [FREED; PAGE], "{at} was written after its free");
            bytes.fill(0);
        }
    }

    fn free(&self, at: Hpa, pages: usize) {
        assert!(at.page_offset() == 0, "free of {at}, which is no page");
        let first = ((at.0 - self.base.0) / PAGE_SIZE) as usize;
        let mut runs = self.runs();
        let given = runs.given.remove(&first);
        assert!(given == Some(pages), "free of {pages} at {at}: {given:?}");
        for page in first..first + pages {
            // Before it changes: who reads it meanwhile shall find out.
            self.owners[page].fetch_add(1, Ordering::SeqCst);
            // SAFETY: the last owner gave it up, so that it is the region's own again.
            unsafe { self.address(page * PAGE).write_bytes(FREED, PAGE) };
            self.pages[page].store(FREE, Ordering::Relaxed);
        }
        runs.lowest = runs.lowest.min(first);
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}
