// SPDX-License-Identifier: MIT OR Apache-2.0
//! A tagged TLB that never forgets: what it once read from nested tables it uses until it is flushed.

use super::Violation;
use crate::TestHost;
use palacios_core::addr::{Gpa, Hpa, LARGE_PAGE_SIZE, PAGE_SIZE};
use palacios_core::host::Host;
use palacios_core::memory::table::Format;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// An address-space tag.
pub type Tag = u32;

/// One CPU's TLB.
#[derive(Debug, Default)]
pub struct Tlb {
    /// By tag, first address and size.
    entries: HashMap<(Tag, u64, u64), Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The tables it was read from.
    root: Hpa,
    frame: Hpa,
    /// How often the frame had changed hands when this was read.
    owner: u32,
}

/// The nested tables of the guest that runs.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// Where they begin.
    pub root: Hpa,
    /// How they look.
    pub format: Format,
    /// The tag of what is kept of them.
    pub tag: Tag,
}

/// A translation in use.
#[derive(Clone, Copy, Debug)]
pub struct Translation {
    /// The physical address.
    pub at: Hpa,
    /// It was read from other tables than those of the guest that uses it.
    pub foreign: bool,
    frame: Hpa,
    owner: u32,
}

impl Translation {
    /// The frame is still its owner's; otherwise somebody gave it away while the guest could reach it.
    pub fn check(&self, host: &TestHost, gpa: Gpa) -> Result<(), Violation> {
        match () {
            () if self.foreign => Err(Violation::ForeignTranslation { gpa }),
            () if host.owner(self.frame) != self.owner => Err(Violation::StaleTranslation { gpa }),
            () => Ok(()),
        }
    }
}

impl Tlb {
    /// Forgets what has this tag.
    pub fn flush_tag(&mut self, tag: Tag) {
        self.entries.retain(|(t, _, _), _| *t != tag);
    }
    /// Forgets everything.
    pub fn flush(&mut self) {
        self.entries.clear();
    }
    /// Where `gpa` is; `None` if neither the TLB nor the tables know.
    pub fn translate(&mut self, host: &TestHost, space: &Space, gpa: Gpa) -> Option<Translation> {
        let known = self.find(space.tag, gpa);
        let (entry, size) = match known {
            Some(known) => known,
            None => {
                let walked = self.walk(host, space, gpa)?;
                // A processor may walk ahead.
                self.walk(host, space, gpa.wrapping_add(PAGE_SIZE));
                walked
            }
        };
        Some(Translation {
            at: Hpa(entry.frame.0 + (gpa.0 & (size - 1))),
            foreign: entry.root != space.root,
            frame: entry.frame,
            owner: entry.owner,
        })
    }

    fn find(&self, tag: Tag, gpa: Gpa) -> Option<(Entry, u64)> {
        [PAGE_SIZE, LARGE_PAGE_SIZE].into_iter().find_map(|size| {
            let entry = self.entries.get(&(tag, gpa.0 & !(size - 1), size))?;
            Some((*entry, size))
        })
    }

    /// Reads the tables, and keeps what they say.
    fn walk(&mut self, host: &TestHost, space: &Space, gpa: Gpa) -> Option<(Entry, u64)> {
        let format = space.format;
        let (mut table, mut level) = (space.root, format.levels);
        loop {
            let shift = 12 + 9 * u32::from(level - 1);
            let index = (gpa.0 >> shift) as usize & 511;
            let base = host.phys_to_virt(table).cast::<AtomicU64>();
            // SAFETY: a page of 512 entries, which the VM frees after its vCPUs have ended.
            let entry = unsafe { base.add(index).as_ref() }.load(Ordering::Acquire);
            if entry & format.present == 0 {
                return None;
            }
            let next = Hpa(entry & format.address);
            if level == 1 || entry & format.large != 0 {
                let size = 1 << shift;
                let owner = host.owner(next);
                let entry = Entry {
                    root: space.root,
                    frame: next,
                    owner,
                };
                self.entries
                    .insert((space.tag, gpa.0 & !(size - 1), size), entry);
                return Some((entry, size));
            }
            (table, level) = (next, level - 1);
        }
    }
}
