// SPDX-License-Identifier: MIT OR Apache-2.0
//! A tagged TLB that never forgets: what it once read from nested tables it uses until it is flushed.
//!
//! Under VT-x there are two kinds of what it keeps (SDM 3C: 28.3.1): guest-physical translations of one EPT pointer, whoever
//! uses it, and combined ones, which go from a guest's linear addresses all the way, of one tag and one EPT pointer.

use super::{HostMachine, Violation};
use palacios_core::addr::{Gpa, Hpa, LARGE_PAGE_SIZE, PAGE_SIZE};
use palacios_core::memory::nested::{BitChange, Format};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// An address-space tag.
pub type Tag = u32;

/// The tag of guest-physical translations, which have none.
const UNTAGGED: Tag = 0;
/// Bits of an EPT pointer that translations are told apart by.
const EPT_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What a translation is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    tag: Tag,
    /// 0 where the processor has no EPT.
    ept: u64,
    at: u64,
    size: u64,
}

/// One CPU's TLB.
#[derive(Debug, Default)]
pub struct Tlb {
    entries: HashMap<Key, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The tables it was read from.
    root: Hpa,
    /// Whose linear addresses it is of.
    linear: Linear,
    frame: Hpa,
    /// How often the frame had changed hands when this was read.
    owner: u32,
    /// What the tables allowed then.
    rights: Rights,
}

/// What a leaf allows besides reads.
#[derive(Clone, Copy, Debug)]
struct Rights {
    write: bool,
    execute: bool,
}

impl Rights {
    fn of(format: &Format, entry: u64) -> Self {
        let forbids = |change: BitChange| entry & !change.clear | change.set == entry;
        Self {
            write: !forbids(format.read_only),
            execute: !forbids(format.no_execute),
        }
    }
    fn allow(self, access: Access) -> bool {
        match access {
            Access::Read => true,
            Access::Write => self.write,
            Access::Fetch => self.execute,
        }
    }
}

/// What an access is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Fetch,
}

/// A space of linear addresses: a guest, and how it pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Linear {
    pub guest: u64,
    pub paging: u64,
}

/// Whose translations are made and used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Owner {
    /// Under VT-x the EPT pointer; 0 elsewhere.
    pub ept: u64,
    pub linear: Linear,
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
    /// What else it is kept under.
    pub owner: Owner,
}

impl Space {
    fn ept(&self) -> u64 {
        self.owner.ept & EPT_ADDRESS
    }
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
    rights: Rights,
}

impl Translation {
    /// The frame is still its owner's; otherwise somebody gave it away while the guest could reach it.
    pub fn check(&self, host: &dyn HostMachine, gpa: Gpa) -> Result<(), Violation> {
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
        self.entries.retain(|key, _| key.tag != tag);
    }
    /// Forgets what has any tag.
    pub fn flush_tags(&mut self) {
        self.entries.retain(|key, _| key.tag == UNTAGGED);
    }
    /// Forgets what was made through this EPT pointer, whatever its tag.
    pub fn flush_ept(&mut self, pointer: u64) {
        self.entries
            .retain(|key, _| key.ept != pointer & EPT_ADDRESS);
    }
    /// Forgets everything.
    pub fn flush(&mut self) {
        self.entries.clear();
    }
    /// Where `gpa` is; `None` if neither the TLB nor the tables know, or what is known does not allow the access. An EPT violation makes the
    /// processor forget that (SDM 3C: 28.3.3.1); under SVM nothing of the kind is promised.
    pub fn translate(
        &mut self,
        host: &dyn HostMachine,
        space: &Space,
        gpa: Gpa,
        access: Access,
    ) -> Option<Translation> {
        let translation = self.translate_any(host, space, gpa)?;
        if translation.rights.allow(access) {
            return Some(translation);
        }
        if space.ept() != 0 {
            self.entries
                .retain(|key, _| key.ept != space.ept() || gpa.0 & !(key.size - 1) != key.at);
        }
        None
    }

    fn translate_any(
        &mut self,
        host: &dyn HostMachine,
        space: &Space,
        gpa: Gpa,
    ) -> Option<Translation> {
        let known = self.find(space, gpa);
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
            foreign: entry.root != space.root || entry.linear != space.owner.linear,
            frame: entry.frame,
            owner: entry.owner,
            rights: entry.rights,
        })
    }

    fn find(&mut self, space: &Space, gpa: Gpa) -> Option<(Entry, u64)> {
        let combined = self.find_tagged(space, space.tag, gpa);
        if combined.is_some() || space.ept() == 0 {
            return combined;
        }
        // The guest-physical one serves any guest; with what the guest's own tables say it makes a combined one.
        let (entry, size) = self.find_tagged(space, UNTAGGED, gpa)?;
        let entry = Entry {
            linear: space.owner.linear,
            ..entry
        };
        self.entries
            .insert(Self::key(space, space.tag, gpa, size), entry);
        Some((entry, size))
    }
    fn find_tagged(&self, space: &Space, tag: Tag, gpa: Gpa) -> Option<(Entry, u64)> {
        [PAGE_SIZE, LARGE_PAGE_SIZE, 1 << 30]
            .into_iter()
            .find_map(|size| {
                let entry = self.entries.get(&Self::key(space, tag, gpa, size))?;
                Some((*entry, size))
            })
    }
    fn key(space: &Space, tag: Tag, gpa: Gpa, size: u64) -> Key {
        Key {
            tag,
            ept: space.ept(),
            at: gpa.0 & !(size - 1),
            size,
        }
    }

    /// Reads the tables, and keeps what they say.
    fn walk(&mut self, host: &dyn HostMachine, space: &Space, gpa: Gpa) -> Option<(Entry, u64)> {
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
                let rights = Rights::of(&format, entry);
                if level > 1 && rights.execute && !format.large_executable {
                    host.processors().note(Violation::LargePage { gpa });
                }
                let size = 1 << shift;
                let owner = host.owner(next);
                let entry = Entry {
                    root: space.root,
                    linear: space.owner.linear,
                    frame: next,
                    owner,
                    rights,
                };
                for tag in [space.tag, UNTAGGED] {
                    if tag != UNTAGGED || space.ept() != 0 {
                        self.entries.insert(Self::key(space, tag, gpa, size), entry);
                    }
                }
                return Some((entry, size));
            }
            (table, level) = (next, level - 1);
        }
    }
}
