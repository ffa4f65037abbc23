// SPDX-License-Identifier: MIT OR Apache-2.0
//! A walk through the nested tables for somebody who wants to see it. It makes nothing.
#![forbid(unsafe_code)]

use super::{index_of, Format, Leaf, NestedTables};
use crate::addr::{Gpa, Hpa};
use crate::host::Host;
use crate::memory::walk::trace::{EntryBits, TracedEntry, MOST_LEVELS};
use core::sync::atomic::Ordering::Acquire;

/// The entries on the way to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedTrace {
    /// What maps the address. `None`: the last entry is not present, and the guest's next access exits.
    pub leaf: Option<Leaf>,
    entries: [TracedEntry; MOST_LEVELS],
    len: usize,
}

impl NestedTrace {
    /// The entries, from the root down.
    pub fn entries(&self) -> &[TracedEntry] {
        self.entries.get(..self.len).unwrap_or(&[])
    }
}

impl<H: Host> NestedTables<H> {
    /// Follows the tables to `gpa`.
    pub fn trace(&self, gpa: Gpa) -> NestedTrace {
        let mut trace = NestedTrace {
            leaf: None,
            entries: [TracedEntry::NONE; MOST_LEVELS],
            len: 0,
        };
        if gpa >= self.format.end() {
            return trace;
        }
        let levels = (1..=self.format.levels).rev();
        let mut table = self.root;
        for (slot, level) in trace.entries.iter_mut().zip(levels) {
            let value = self.entry(table, gpa, level).load(Acquire);
            *slot = TracedEntry {
                level,
                at: table.0.wrapping_add(index_of(gpa, level).wrapping_mul(8)),
                value,
                bits: self.format.bits_of(value, level),
            };
            trace.len = trace.len.wrapping_add(1);
            if !self.format.is_present(value) {
                break;
            }
            if self.format.is_leaf(value, level) {
                trace.leaf = Some(self.leaf(value, gpa, level));
                break;
            }
            table = Hpa(value & self.format.address);
        }
        trace
    }
}

impl Format {
    /// What an entry of a table at `level` says. Entries that point to tables allow everything, and guests of any privilege use them.
    fn bits_of(&self, entry: u64, level: u8) -> EntryBits {
        if !self.is_present(entry) {
            return EntryBits::empty();
        }
        let leaf = self.is_leaf(entry, level);
        let mut bits = EntryBits::PRESENT | EntryBits::USER;
        bits.set(EntryBits::LEAF, leaf);
        bits.set(EntryBits::WRITABLE, !leaf || !self.read_only.is_done(entry));
        bits.set(
            EntryBits::EXECUTABLE,
            !leaf || !self.no_execute.is_done(entry),
        );
        bits
    }
}
