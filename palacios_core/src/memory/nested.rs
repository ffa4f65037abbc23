// SPDX-License-Identifier: MIT OR Apache-2.0
//! Nested page tables: guest-physical to host-physical, in the entry format of whichever vendor runs.
//!
//! They are a cache of what regions and frames say: an entry may be forgotten at any time, and the next access asks again. One
//! set serves all vCPUs. Entries are atomic words: processors read them, and may set accessed and dirty bits, at any time.
//! Tables stay until the VM ends, so entries are made and forgotten without a lock.

pub mod trace;

use super::words::{WordPages, WORDS};
use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::host::{Host, NoMemory, PageSize};
use crate::regions::Cache;
use core::ops::Range;
use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

/// How entries look and how many levels there are. The levels' index fields are the same for all vendors: 9 bits each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// 4 or 5.
    pub levels: u8,
    /// The bits of an entry that points to a table.
    pub table: u64,
    /// The bits of a leaf that may be read, written and executed, and is cached as RAM.
    pub leaf: u64,
    /// What makes a leaf one that may not be written.
    pub read_only: BitChange,
    /// What makes a leaf one that may not be executed.
    pub no_execute: BitChange,
    /// What makes a leaf one in which writes are gathered.
    pub write_combining: BitChange,
    /// What makes a leaf one that is not cached.
    pub uncached: BitChange,
    /// The bit that makes an entry above the last level a leaf.
    pub large: u64,
    /// Leaves of 2 MiB and more may be executed: a guest cannot harm the processor with them.
    pub large_executable: bool,
    /// There are leaves of 1 GiB.
    pub huge: bool,
    /// Any of these bits set: the entry is present.
    pub present: u64,
    /// The bits of an entry that hold an address.
    pub address: u64,
}

/// Bits of an entry that change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitChange {
    /// Those that are cleared.
    pub clear: u64,
    /// Those that are set then.
    pub set: u64,
}

impl BitChange {
    /// Clears bits.
    pub const fn clear(clear: u64) -> Self {
        Self { clear, set: 0 }
    }
    /// Sets bits.
    pub const fn set(set: u64) -> Self {
        Self { clear: 0, set }
    }
    const fn of(self, entry: u64) -> u64 {
        entry & !self.clear | self.set
    }
    /// Whether it would change nothing.
    const fn is_done(self, entry: u64) -> bool {
        self.of(entry) == entry
    }
}

impl Format {
    /// Where the guest-physical addresses end that tables of this format can map.
    pub const fn end(self) -> Gpa {
        Gpa(span(self.levels).wrapping_mul(WORDS))
    }

    /// The entry of a leaf.
    fn entry(&self, leaf: &Leaf) -> u64 {
        let mut entry = self.leaf;
        match leaf.cache {
            Cache::WriteBack => {}
            Cache::WriteCombining => entry = self.write_combining.of(entry),
            Cache::Uncached => entry = self.uncached.of(entry),
        }
        if !leaf.write {
            entry = self.read_only.of(entry);
        }
        if !leaf.execute {
            entry = self.no_execute.of(entry);
        }
        let large = if leaf.size == PageSize::Small {
            0
        } else {
            self.large
        };
        entry | large | leaf.frame.0 & self.address
    }
    fn is_present(&self, entry: u64) -> bool {
        entry & self.present != 0
    }
    fn is_leaf(&self, entry: u64, level: u8) -> bool {
        level == 1 || level <= 3 && entry & self.large != 0
    }
}

/// A leaf of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Where its page begins in guest-physical space.
    pub gpa: Gpa,
    /// Where it is.
    pub frame: Hpa,
    /// The page's size.
    pub size: PageSize,
    /// It may be written.
    pub write: bool,
    /// It may be executed.
    pub execute: bool,
    /// How it is cached.
    pub cache: Cache,
}

/// What became of a leaf that was to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It is there. Nothing was before.
    New,
    /// It is there. Another was, of which processors may still know.
    Changed,
    /// It is not: smaller ones are or were there.
    Split,
    /// It is not: a larger one is there, which must be forgotten first.
    Covered,
    /// It is not: the address is out of reach.
    OutOfReach,
    /// It is not: a page for a table is needed.
    NeedsTable,
}

/// At most one page that a table can be made of: it is taken where one may sleep, and used where one may not.
pub struct Spare<'a, H: Host> {
    tables: &'a WordPages<H>,
    page: Option<Hpa>,
}

impl<H: Host> Spare<'_, H> {
    /// Takes a page, if there is none. *Thread.*
    pub fn fill(&mut self) -> Result<(), NoMemory> {
        if self.page.is_none() {
            self.page = Some(self.tables.alloc()?);
        }
        Ok(())
    }
}

impl<H: Host> Drop for Spare<'_, H> {
    fn drop(&mut self) {
        if let Some(page) = self.page {
            // SAFETY: it was not used, so nobody has seen it.
            unsafe { self.tables.free(page) };
        }
    }
}

/// One VM's nested tables.
pub struct NestedTables<H: Host> {
    tables: WordPages<H>,
    format: Format,
    root: Hpa,
    pages: AtomicU64,
}

impl<H: Host> NestedTables<H> {
    /// Tables with nothing in them.
    pub fn new(host: &H, format: Format) -> Result<Self, NoMemory> {
        let tables = WordPages::new(host);
        let root = tables.alloc()?;
        Ok(Self {
            tables,
            format,
            root,
            pages: AtomicU64::new(1),
        })
    }
    /// How the entries look.
    pub fn format(&self) -> &Format {
        &self.format
    }
    /// What the hardware is pointed to.
    pub fn root(&self) -> Hpa {
        self.root
    }
    /// How many pages the tables themselves take.
    pub fn table_pages(&self) -> u64 {
        self.pages.load(Relaxed)
    }

    /// Makes a leaf, in place of one of the same size. A table on its way is made of `spare`.
    pub fn make(&self, leaf: &Leaf, spare: &mut Spare<'_, H>) -> Made {
        if leaf.gpa >= self.format.end() {
            return Made::OutOfReach;
        }
        let (last, mut level, mut table) = (level_of(leaf.size), self.format.levels, self.root);
        while level > last {
            let entry = self.entry(table, leaf.gpa, level);
            let next = match entry.load(Acquire) {
                next if self.format.is_present(next) => next,
                absent => match self.new_table(entry, absent, spare) {
                    Some(next) => next,
                    None => return Made::NeedsTable,
                },
            };
            if self.format.is_leaf(next, level) {
                return Made::Covered;
            }
            (table, level) = (Hpa(next & self.format.address), level.wrapping_sub(1));
        }
        self.put(self.entry(table, leaf.gpa, last), leaf, last)
    }

    fn put(&self, entry: &AtomicU64, leaf: &Leaf, level: u8) -> Made {
        let mut old = entry.load(Acquire);
        loop {
            if self.format.is_present(old) && !self.format.is_leaf(old, level) {
                return Made::Split;
            }
            let new = self.format.entry(&self.with_rights_of(leaf, old, level));
            match entry.compare_exchange_weak(old, new, AcqRel, Acquire) {
                Ok(_) if self.format.is_present(old) => return Made::Changed,
                Ok(_) => return Made::New,
                Err(now) => old = now,
            }
        }
    }

    /// The leaf, with what the entry that it replaces allows. Nobody but [`NestedTables::forbid_writes`] takes rights away, and flushes: another
    /// vCPU may have got them just now, and uses them.
    fn with_rights_of(&self, leaf: &Leaf, old: u64, level: u8) -> Leaf {
        let before = self.leaf(old, leaf.gpa, level);
        let same = self.format.is_present(old) && before.frame == leaf.frame;
        Leaf {
            write: leaf.write || same && before.write,
            execute: leaf.execute || same && before.execute,
            ..*leaf
        }
    }

    /// Replaces a leaf that is larger than a page, and has `gpa`, by a table of nothing: smaller leaves can be made there then. `true`: it did,
    /// and processors may still know the leaf.
    pub fn split(&self, gpa: Gpa, spare: &mut Spare<'_, H>) -> bool {
        let (mut level, mut table) = (self.format.levels, self.root);
        while level > 1 && gpa < self.format.end() {
            let entry = self.entry(table, gpa, level);
            let seen = entry.load(Acquire);
            if !self.format.is_present(seen) {
                return false;
            }
            if self.format.is_leaf(seen, level) {
                // Others may change it just now. Then it is tried again.
                let now = self.new_table(entry, seen, spare);
                return now.is_some_and(|now| !self.format.is_leaf(now, level));
            }
            (table, level) = (Hpa(seen & self.format.address), level.wrapping_sub(1));
        }
        false
    }

    /// Puts a table in place of the entry `old`. Gives the entry; another's, if that one was faster. `None`: there is no spare page.
    fn new_table(&self, entry: &AtomicU64, old: u64, spare: &mut Spare<'_, H>) -> Option<u64> {
        let new = spare.page?.0 | self.format.table;
        match entry.compare_exchange(old, new, AcqRel, Acquire) {
            Ok(_) => {
                spare.page = None;
                self.pages.fetch_add(1, Relaxed);
                Some(new)
            }
            Err(others) => Some(others),
        }
    }

    /// Nothing to make tables of, yet.
    pub fn spare(&self) -> Spare<'_, H> {
        Spare {
            tables: &self.tables,
            page: None,
        }
    }

    /// The leaf that maps `gpa`, as its bits say.
    pub fn find(&self, gpa: Gpa) -> Option<Leaf> {
        if gpa >= self.format.end() {
            return None;
        }
        let (mut level, mut table) = (self.format.levels, self.root);
        loop {
            let entry = self.entry(table, gpa, level).load(Acquire);
            if !self.format.is_present(entry) {
                return None;
            }
            if self.format.is_leaf(entry, level) {
                return Some(self.leaf(entry, gpa, level));
            }
            (table, level) = (Hpa(entry & self.format.address), level.wrapping_sub(1));
        }
    }

    fn leaf(&self, entry: u64, gpa: Gpa, level: u8) -> Leaf {
        let span = span(level);
        let format = &self.format;
        Leaf {
            gpa: Gpa(gpa.0 & !span.wrapping_sub(1)),
            frame: Hpa(entry & format.address & !span.wrapping_sub(1)),
            size: size_of(level),
            write: !format.read_only.is_done(entry),
            execute: !format.no_execute.is_done(entry),
            cache: match () {
                () if format.uncached.is_done(entry) => Cache::Uncached,
                () if format.write_combining.is_done(entry) => Cache::WriteCombining,
                () => Cache::WriteBack,
            },
        }
    }

    /// Forgets all leaves that have one of these addresses. Processors may still know them until they are flushed. Returns whether there
    /// was one.
    pub fn forget(&self, range: &Range<u64>) -> bool {
        self.each_leaf(range, &|entry| {
            entry.swap(0, AcqRel) & self.format.present != 0
        })
    }

    /// Lets nobody write through the leaves that have one of these addresses. As above.
    pub fn forbid_writes(&self, range: &Range<u64>) -> bool {
        let read_only = self.format.read_only;
        self.each_leaf(range, &|entry| {
            let forbid = |old: u64| {
                let writable = self.format.is_present(old) && !read_only.is_done(old);
                writable.then(|| read_only.of(old))
            };
            entry.fetch_update(AcqRel, Acquire, forbid).is_ok()
        })
    }

    fn each_leaf(&self, range: &Range<u64>, act: &dyn Fn(&AtomicU64) -> bool) -> bool {
        let range = range.start..range.end.min(self.format.end().0);
        !range.is_empty() && self.each_leaf_of(self.root, self.format.levels, &range, act)
    }

    /// In a table that has the address `range.start`.
    fn each_leaf_of(
        &self,
        table: Hpa,
        level: u8,
        range: &Range<u64>,
        act: &dyn Fn(&AtomicU64) -> bool,
    ) -> bool {
        let (mut at, mut found) = (range.start, false);
        while at < range.end {
            let entry = self.entry(table, Gpa(at), level);
            let seen = entry.load(Acquire);
            let next = (at | span(level).wrapping_sub(1)).wrapping_add(1);
            if self.format.is_present(seen) {
                found |= match self.format.is_leaf(seen, level) {
                    true => act(entry),
                    false => {
                        let part = at..range.end.min(next);
                        let below = Hpa(seen & self.format.address);
                        self.each_leaf_of(below, level.wrapping_sub(1), &part, act)
                    }
                };
            }
            at = next;
            if at & span(level).wrapping_mul(WORDS).wrapping_sub(1) == 0 {
                // The end of this table.
                break;
            }
        }
        found
    }

    fn entry(&self, table: Hpa, gpa: Gpa, level: u8) -> &AtomicU64 {
        self.tables.word(table, index_of(gpa, level))
    }

    fn free_tables(&self, table: Hpa, level: u8) {
        if level > 1 {
            for index in 0..WORDS {
                let entry = self.tables.word(table, index).load(Acquire);
                if self.format.is_present(entry) && !self.format.is_leaf(entry, level) {
                    self.free_tables(Hpa(entry & self.format.address), level.wrapping_sub(1));
                }
            }
        }
        // SAFETY: one of our tables, to which only its parent led; `self` is dropped, so nobody walks it.
        unsafe { self.tables.free(table) };
    }
}

impl<H: Host> Drop for NestedTables<H> {
    fn drop(&mut self) {
        self.free_tables(self.root, self.format.levels);
    }
}

/// The level whose leaves have this size.
const fn level_of(size: PageSize) -> u8 {
    match size {
        PageSize::Small => 1,
        PageSize::Large => 2,
        PageSize::Huge => 3,
    }
}

const fn size_of(level: u8) -> PageSize {
    match level {
        1 => PageSize::Small,
        2 => PageSize::Large,
        _ => PageSize::Huge,
    }
}

/// The bytes that one entry of a table at `level` covers.
const fn span(level: u8) -> u64 {
    PAGE_SIZE.wrapping_shl(level_shift(level))
}

/// Which entry of a table at `level` is that of `gpa`.
const fn index_of(gpa: Gpa, level: u8) -> u64 {
    gpa.0.wrapping_shr(12 + level_shift(level)) & (WORDS - 1)
}

/// By how much more than at level 1 the index field of `level` is shifted.
const fn level_shift(level: u8) -> u32 {
    (level as u32).wrapping_sub(1).wrapping_mul(9) & 63
}
