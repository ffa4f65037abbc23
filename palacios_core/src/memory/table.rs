// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nested page tables: guest-physical to host-physical, in the entry format of whichever vendor runs.
//!
//! The table is the VM's only record of which frame backs which guest page. One set serves all vCPUs, and the VMM's own
//! accesses walk it too. Entries are atomic words: processors read them, and may set accessed and dirty bits, at any time.

use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::host::{Host, NoMemory, PageRequest, PageSize};
use core::sync::atomic::{AtomicU64, Ordering};

/// How entries look and how many levels there are. The levels' index fields are the same for all vendors: 9 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// 4 or 5.
    pub levels: u8,
    /// The bits of an entry that points to a table.
    pub table: u64,
    /// The bits of a leaf that may be read, written and executed.
    pub leaf: u64,
    /// The bit that makes an entry above the last level a leaf.
    pub large: u64,
    /// There may be such leaves: a guest cannot harm the processor with them.
    pub large_pages: bool,
    /// Any of these bits set: the entry is present.
    pub present: u64,
    /// The bits of an entry that hold an address.
    pub address: u64,
}

impl Format {
    /// Where the guest-physical addresses end that tables of this format can map.
    pub const fn end(self) -> Gpa {
        Gpa(span(self.levels).wrapping_mul(ENTRIES))
    }
}

const ENTRIES: u64 = 512;
/// What mapping one page can need: a table for each level below the root, of at most five.
const SPARE_PAGES: usize = 4;

/// A leaf of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Where its page begins in guest-physical space.
    pub gpa: Gpa,
    /// The frame.
    pub frame: Hpa,
    /// The page's size.
    pub size: PageSize,
}

/// A few zeroed pages at hand, so that growing a table under its spin lock allocates nothing.
pub struct SparePages<H: Host> {
    host: H,
    pages: [Option<Hpa>; SPARE_PAGES],
}

impl<H: Host> SparePages<H> {
    /// An empty reserve.
    pub fn new(host: H) -> Self {
        Self {
            host,
            pages: [None; SPARE_PAGES],
        }
    }
    /// Fills the reserve up, with interrupts on.
    pub fn top_up(&mut self) -> Result<(), NoMemory> {
        for slot in self.pages.iter_mut().filter(|slot| slot.is_none()) {
            *slot = Some(self.host.alloc_pages(PageRequest::ONE)?);
        }
        Ok(())
    }
    fn take(&mut self) -> Result<Hpa, NoMemory> {
        self.pages.iter_mut().find_map(Option::take).ok_or(NoMemory)
    }
}

impl<H: Host> Drop for SparePages<H> {
    fn drop(&mut self) {
        for page in self.pages.iter_mut().filter_map(Option::take) {
            // SAFETY: allocated by `top_up`, and in the reserve means in nobody's use.
            unsafe { self.host.free_pages(page, PageRequest::ONE) };
        }
    }
}

/// One VM's nested tables.
pub struct Tables<H: Host> {
    host: H,
    format: Format,
    root: Hpa,
    pages: u64,
}

impl<H: Host> Tables<H> {
    /// An empty table.
    pub fn new(host: H, format: Format) -> Result<Self, NoMemory> {
        let root = host.alloc_pages(PageRequest::ONE)?;
        Ok(Self {
            host,
            format,
            root,
            pages: 1,
        })
    }
    /// What the hardware is pointed to.
    pub fn root(&self) -> Hpa {
        self.root
    }
    /// How many pages the tables themselves take.
    pub fn table_pages(&self) -> u64 {
        self.pages
    }

    /// The leaf that maps `gpa`, if there is one.
    pub fn lookup(&self, gpa: Gpa) -> Option<Leaf> {
        if gpa >= self.format.end() {
            return None;
        }
        let (mut table, mut level) = (self.root, self.format.levels);
        loop {
            let entry = self.entry(table, index(gpa, level)).load(Ordering::Acquire);
            if entry & self.format.present == 0 {
                return None;
            }
            let next = Hpa(entry & self.format.address);
            if level == 1 || entry & self.format.large != 0 {
                let size = if level == 1 {
                    PageSize::Small
                } else {
                    PageSize::Large
                };
                return Some(Leaf {
                    gpa: Gpa(gpa.0 & !(size.bytes() - 1)),
                    frame: next,
                    size,
                });
            }
            (table, level) = (next, level.wrapping_sub(1));
        }
    }

    /// Whether a large page may be mapped at `gpa`: no table of small pages hangs there, and there may be large ones at all.
    pub fn large_fits(&self, gpa: Gpa) -> bool {
        if gpa >= self.format.end() || !self.format.large_pages {
            return false;
        }
        let (mut table, mut level) = (self.root, self.format.levels);
        while level > 2 {
            let entry = self.entry(table, index(gpa, level)).load(Ordering::Acquire);
            if entry & self.format.present == 0 {
                return true;
            }
            (table, level) = (Hpa(entry & self.format.address), level.wrapping_sub(1));
        }
        self.entry(table, index(gpa, 2)).load(Ordering::Acquire) & self.format.present == 0
    }

    /// Maps a page; tables it needs come out of `spare`. Something is mapped there already, or the address is out of
    /// reach: nothing happens, and the answer is `false`.
    pub fn map(&mut self, leaf: Leaf, spare: &mut SparePages<H>) -> Result<bool, NoMemory> {
        if leaf.gpa >= self.format.end() {
            return Ok(false);
        }
        let last = if leaf.size == PageSize::Small { 1 } else { 2 };
        let (mut table, mut level) = (self.root, self.format.levels);
        while level > last {
            let at = index(leaf.gpa, level);
            let mut entry = self.entry(table, at).load(Ordering::Acquire);
            if entry & self.format.present == 0 {
                entry = spare.take()?.0 | self.format.table;
                self.pages += 1;
                self.entry(table, at).store(entry, Ordering::Release);
            } else if level == 2 && entry & self.format.large != 0 {
                return Ok(false);
            }
            (table, level) = (Hpa(entry & self.format.address), level.wrapping_sub(1));
        }
        let slot = self.entry(table, index(leaf.gpa, last));
        if slot.load(Ordering::Acquire) & self.format.present != 0 {
            return Ok(false);
        }
        let large = if last == 2 { self.format.large } else { 0 };
        slot.store(leaf.frame.0 | self.format.leaf | large, Ordering::Release);
        Ok(true)
    }

    /// Unmaps the page that covers `gpa`. Its translation may live on in TLBs: the caller flushes before it gives the
    /// frame back.
    pub fn unmap(&mut self, gpa: Gpa) -> Option<Leaf> {
        let leaf = self.lookup(gpa)?;
        let last = if leaf.size == PageSize::Small { 1 } else { 2 };
        let (mut table, mut level) = (self.root, self.format.levels);
        while level > last {
            let entry = self.entry(table, index(gpa, level)).load(Ordering::Acquire);
            (table, level) = (Hpa(entry & self.format.address), level.wrapping_sub(1));
        }
        self.entry(table, index(gpa, last))
            .store(0, Ordering::Release);
        Some(leaf)
    }

    /// The first leaf that covers anything from `from` on and before `end`.
    pub fn next_leaf(&self, from: Gpa, end: Gpa) -> Option<Leaf> {
        let end = end.min(self.format.end());
        self.first_leaf(self.root, self.format.levels, from, end)
    }

    /// The same in `table`, in whose reach `from` lies.
    fn first_leaf(&self, table: Hpa, level: u8, from: Gpa, end: Gpa) -> Option<Leaf> {
        let mut at = from;
        for i in index(from, level)..ENTRIES {
            if at >= end {
                return None;
            }
            let entry = self.entry(table, i).load(Ordering::Acquire);
            if entry & self.format.present != 0 {
                let found = match level == 1 || entry & self.format.large != 0 {
                    true => self.lookup(at),
                    false => self.first_leaf(Hpa(entry & self.format.address), level - 1, at, end),
                };
                if found.is_some() {
                    return found;
                }
            }
            at = Gpa(at.0 | span(level).wrapping_sub(1)).wrapping_add(1);
        }
        None
    }

    fn entry(&self, table: Hpa, index: u64) -> &AtomicU64 {
        let at = self.host.phys_to_virt(table).cast::<AtomicU64>();
        // SAFETY: `table` is one of this table's pages, alive while `self` is, and the index is below 512 by its mask.
        unsafe { at.add((index & (ENTRIES - 1)) as usize).as_ref() }
    }

    fn free_tables(&mut self, table: Hpa, level: u8) {
        if level > 1 {
            for i in 0..ENTRIES {
                let entry = self.entry(table, i).load(Ordering::Acquire);
                if entry & self.format.present != 0 && entry & self.format.large == 0 {
                    self.free_tables(Hpa(entry & self.format.address), level.wrapping_sub(1));
                }
            }
        }
        // SAFETY: the table was allocated as one page, and the only entry that led to it is gone with its parent.
        unsafe { self.host.free_pages(table, PageRequest::ONE) };
    }
}

impl<H: Host> Drop for Tables<H> {
    fn drop(&mut self) {
        self.free_tables(self.root, self.format.levels);
    }
}

/// The bytes that one entry of a table at `level` covers.
const fn span(level: u8) -> u64 {
    PAGE_SIZE.wrapping_shl(level_shift(level))
}

/// By how much more than at level 1 the index field of `level` is shifted.
const fn level_shift(level: u8) -> u32 {
    (level as u32).wrapping_sub(1).wrapping_mul(9) & 63
}

const fn index(gpa: Gpa, level: u8) -> u64 {
    gpa.0.wrapping_shr(12 + level_shift(level)) & (ENTRIES - 1)
}
