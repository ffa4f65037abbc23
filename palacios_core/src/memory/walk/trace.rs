// SPDX-License-Identifier: MIT OR Apache-2.0
//! A walk for somebody who wants to see it: each entry on the way, what it says, and where the way ends. It marks nothing.

use super::{
    look_up, Access, AccessKind, GuestTables, Mode, Paging, Privilege, Translation, WalkError,
    ACCESSED, DIRTY, NO_EXECUTE, PRESENT, USER, WRITABLE,
};
use crate::addr::{Gpa, Gva, NotRam};
use crate::state::{cr0, rflags};
use bitflags::bitflags;

/// The most levels that tables have, guests' and nested ones.
pub const MOST_LEVELS: usize = 5;

/// How a guest translates (SDM 3A: 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagingMode {
    /// It does not: a linear address is a guest-physical one.
    Off,
    /// 32-bit paging.
    Legacy,
    /// PAE paging.
    Pae,
    /// 4-level paging.
    FourLevel,
    /// 5-level paging.
    FiveLevel,
}

impl Paging {
    /// How the guest translates.
    pub fn paging_mode(&self) -> PagingMode {
        match (self.mode(), self.levels()) {
            _ if self.cr0 & cr0::PG == 0 => PagingMode::Off,
            (Mode::Legacy, _) => PagingMode::Legacy,
            (Mode::Pae, _) => PagingMode::Pae,
            (Mode::Long, 5) => PagingMode::FiveLevel,
            (Mode::Long, _) => PagingMode::FourLevel,
        }
    }
}

bitflags! {
    /// What an entry of a page table says, of whichever form it is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EntryBits: u32 {
        /// It is present. Without this one it says nothing else.
        const PRESENT = 1 << 0;
        /// It allows writes.
        const WRITABLE = 1 << 1;
        /// It allows CPL 3.
        const USER = 1 << 2;
        /// It does not forbid execution.
        const EXECUTABLE = 1 << 3;
        /// The processor has used it.
        const ACCESSED = 1 << 4;
        /// The processor has written to the page.
        const DIRTY = 1 << 5;
        /// It maps a page itself.
        const LEAF = 1 << 6;
        /// Bits are set in it that must be zero.
        const RESERVED = 1 << 7;
        /// The page of the table has no frame, so the entry reads as zero.
        const UNTOUCHED = 1 << 8;
    }
}

/// An entry on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedEntry {
    /// The level of its table; those of level 1 map pages of 4 KiB.
    pub level: u8,
    /// Where it is: guest-physical for an entry of the guest's, host-physical for one of the nested tables.
    pub at: u64,
    /// What it holds.
    pub value: u64,
    /// What that means.
    pub bits: EntryBits,
}

impl TracedEntry {
    pub(crate) const NONE: Self = Self {
        level: 0,
        at: 0,
        value: 0,
        bits: EntryBits::empty(),
    };
}

/// Where a walk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceEnd {
    /// At a page.
    Mapped(Translation),
    /// At the last entry, which is not present.
    NotPresent,
    /// At the last entry, which has bits set that must be zero.
    Reserved,
    /// It does not begin: the address is not canonical.
    NonCanonical,
    /// No memory is where the next entry would be.
    NoTable(Gpa),
}

/// A walk through a guest's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// How the guest translates.
    pub mode: PagingMode,
    /// Where it ends.
    pub end: TraceEnd,
    entries: [TracedEntry; MOST_LEVELS],
    len: usize,
}

impl Trace {
    /// The entries, from the root down.
    pub fn entries(&self) -> &[TracedEntry] {
        self.entries.get(..self.len).unwrap_or(&[])
    }
}

/// A guest's tables, as they are read for a trace.
pub trait SeenTables {
    /// The entry of `size` (4 or 8) bytes at `at`. `Ok(None)`: its page has no frame. An error: no memory is there.
    fn see_entry(&mut self, at: Gpa, size: u8) -> Result<Option<u64>, NotRam>;
}

/// Walks as [`look_up`] does for a supervisor's read that nothing forbids.
pub fn trace(paging: &Paging, gva: Gva, tables: &mut dyn SeenTables) -> Trace {
    // What does not hang on the entries is out of the way: SMAP and protection keys.
    let unguarded = Paging {
        rflags: paging.rflags | rflags::AC,
        pkru: 0,
        ..*paging
    };
    let access = Access {
        kind: AccessKind::Read,
        privilege: Privilege::Supervisor,
    };
    let mut recorder = Recorder {
        paging,
        tables,
        entries: [TracedEntry::NONE; MOST_LEVELS],
        len: 0,
    };
    let walked = look_up(&unguarded, access, gva, &mut recorder);
    let last = recorder.len.checked_sub(1);
    let last = last.and_then(|last| recorder.entries.get(last));
    let reserved = last.is_some_and(|last| last.bits.contains(EntryBits::RESERVED));
    let end = match walked {
        Ok(page) => TraceEnd::Mapped(page),
        Err(WalkError::NonCanonical) => TraceEnd::NonCanonical,
        Err(WalkError::Tables(NotRam(at))) => TraceEnd::NoTable(at),
        Err(WalkError::PageFault { .. } | WalkError::Raced) if reserved => TraceEnd::Reserved,
        Err(WalkError::PageFault { .. } | WalkError::Raced) => TraceEnd::NotPresent,
    };
    Trace {
        mode: paging.paging_mode(),
        end,
        entries: recorder.entries,
        len: recorder.len,
    }
}

/// Notes each entry that the walker reads.
struct Recorder<'a> {
    paging: &'a Paging,
    tables: &'a mut dyn SeenTables,
    entries: [TracedEntry; MOST_LEVELS],
    len: usize,
}

impl GuestTables for Recorder<'_> {
    type Error = NotRam;

    fn read_entry(&mut self, at: Gpa, size: u8) -> Result<u64, NotRam> {
        let seen = self.tables.see_entry(at, size)?;
        let value = seen.unwrap_or(0);
        let level = self.paging.levels().wrapping_sub(self.len as u8);
        let mut bits = self.paging.bits_of(level, value);
        bits.set(EntryBits::UNTOUCHED, seen.is_none());
        if let Some(entry) = self.entries.get_mut(self.len) {
            *entry = TracedEntry {
                level,
                at: at.0,
                value,
                bits,
            };
            self.len = self.len.wrapping_add(1);
        }
        Ok(value)
    }

    fn compare_exchange_entry(&mut self, _: Gpa, _: u8, _: u64, _: u64) -> Result<bool, NotRam> {
        Ok(true)
    }
}

impl Paging {
    /// What an entry of a table at `level` says.
    fn bits_of(&self, level: u8, entry: u64) -> EntryBits {
        if entry & PRESENT == 0 {
            return EntryBits::empty();
        }
        let leaf = self.is_leaf(level, entry);
        // PAE's top entries carry neither rights nor marks.
        let plain = (self.mode(), level) == (Mode::Pae, 3);
        let has = |bit: u64| entry & bit != 0;
        let all = [
            (EntryBits::PRESENT, true),
            (EntryBits::WRITABLE, plain || has(WRITABLE)),
            (EntryBits::USER, plain || has(USER)),
            (EntryBits::EXECUTABLE, plain || !has(NO_EXECUTE)),
            (EntryBits::ACCESSED, !plain && has(ACCESSED)),
            (EntryBits::DIRTY, leaf && has(DIRTY)),
            (EntryBits::LEAF, leaf),
            (EntryBits::RESERVED, has(self.reserved(level, leaf))),
        ];
        all.into_iter()
            .filter(|(_, set)| *set)
            .map(|(bit, _)| bit)
            .collect()
    }
}
