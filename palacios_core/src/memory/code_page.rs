// SPDX-License-Identifier: MIT OR Apache-2.0
//! The way to a page of the guest's code, remembered from one exit to the next: a guest exits again and again from the same few places.
//!
//! What is remembered are host addresses: of the page, and of each entry of the guest's tables on the way, with the entry's value. It is good
//! as long as nothing of the guest's memory has moved, which the gate's turn says, and no entry has another value. So it is as fresh as a
//! walk of the tables, whether the guest has told its processor of a change or not.

use super::copy::read_word;
use super::walk::{self, Access, AccessKind, GuestTables, Paging, Privilege};
use super::Resident;
use crate::addr::{Gpa, Gva, NotRam, PAGE_SIZE};
use crate::host::Host;
use crate::state::{cr4, Control};
use core::marker::PhantomData;

/// The most levels of the guest's tables.
const LEVELS: usize = 5;

/// As who a guest fetches instructions from which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeView {
    page: Gva,
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    user: bool,
}

impl CodeView {
    /// Of the page at `at`, at a privilege level.
    pub fn new(at: Gva, control: &Control, cpl: u8) -> Self {
        Self {
            page: at.page(),
            cr0: control.cr0,
            cr3: control.cr3,
            // Which translations the processor keeps says nothing of what the tables hold.
            cr4: control.cr4 & !cr4::PGE,
            efer: control.efer,
            user: cpl == 3,
        }
    }
}

/// An entry of the guest's tables, and where the host has it.
#[derive(Clone, Copy)]
struct Entry {
    at: *const u8,
    value: u64,
}

/// The way to a page of code.
pub struct CodePage {
    view: CodeView,
    turn: u64,
    entries: [Entry; LEVELS],
    levels: usize,
    entry_bytes: u8,
    code: *const u8,
}

// SAFETY: the addresses are no one thread's. They are used only inside the gate, in the turn in which they were found.
unsafe impl Send for CodePage {}

/// The bytes from an instruction on to the end of its page, while they stay where they are.
pub struct Code<'a> {
    at: *const u8,
    left: u64,
    inside: PhantomData<&'a ()>,
}

impl Code<'_> {
    /// Byte number `n`. `None`: it is in another page.
    #[inline]
    pub fn byte(&self, n: u8) -> Option<u8> {
        // SAFETY: in the page that `at` leads into, whose frame stays as long as this is there.
        (u64::from(n) < self.left)
            .then(|| unsafe { self.at.wrapping_add(n.into()).read_volatile() })
    }
}

impl<H: Host> Resident<'_, H> {
    /// The code at `at`, which `page` has led to before, if it still does.
    #[inline]
    pub fn remembered(&self, page: &CodePage, view: &CodeView, at: Gva) -> Option<Code<'_>> {
        if page.turn != self.turn() || page.view != *view {
            return None;
        }
        let way = page.entries.get(..page.levels)?;
        let size = page.entry_bytes;
        // SAFETY: in this turn the entry was found, so its frame stays while we are inside; it is aligned to its size.
        let is_same = |entry: &Entry| unsafe { read_word(entry.at, size) } == entry.value;
        way.iter().all(is_same).then(|| Code {
            at: page.code.wrapping_add(at.page_offset() as usize),
            left: PAGE_SIZE.wrapping_sub(at.page_offset()),
            inside: PhantomData,
        })
    }

    /// Finds the way to the page of `at`, as the guest's processor would; marks the entries as used. `None`: there is none now, or it leads to no
    /// memory that has frames.
    pub fn find_code(&mut self, paging: &Paging, view: &CodeView, at: Gva) -> Option<CodePage> {
        let privilege = match view.user {
            true => Privilege::User,
            false => Privilege::Supervisor,
        };
        let access = Access {
            kind: AccessKind::Execute,
            privilege,
        };
        let mut way = Way {
            tables: self,
            entries: [(Gpa(0), 0, 0); LEVELS],
            levels: 0,
        };
        let found = walk::translate(paging, access, at, &mut way).ok()?;
        let (entries, levels) = (way.entries, way.levels);
        let mut page = CodePage {
            view: *view,
            turn: self.turn(),
            entries: [Entry {
                at: core::ptr::null(),
                value: 0,
            }; LEVELS],
            levels,
            entry_bytes: 8,
            code: self.host_address(found.gpa.page()).ok()?,
        };
        for (to, (at, size, value)) in page.entries.iter_mut().zip(entries).take(levels) {
            page.entry_bytes = size;
            *to = Entry {
                at: self.host_address(at).ok()?,
                value,
            };
        }
        Some(page)
    }
}

/// Notes the entries of a walk: where they are, their size, and what they hold when it has ended.
struct Way<'a, 'b, H: Host> {
    tables: &'a mut Resident<'b, H>,
    entries: [(Gpa, u8, u64); LEVELS],
    levels: usize,
}

impl<H: Host> GuestTables for Way<'_, '_, H> {
    type Error = NotRam;

    fn read_entry(&mut self, at: Gpa, size: u8) -> Result<u64, NotRam> {
        let value = self.tables.read_entry(at, size)?;
        if let Some(slot) = self.entries.get_mut(self.levels) {
            *slot = (at, size, value);
            self.levels = self.levels.wrapping_add(1);
        }
        Ok(value)
    }

    fn compare_exchange_entry(
        &mut self,
        at: Gpa,
        size: u8,
        old: u64,
        new: u64,
    ) -> Result<bool, NotRam> {
        let done = self.tables.compare_exchange_entry(at, size, old, new)?;
        let slot = self.entries.iter_mut().find(|entry| entry.0 == at);
        if let (true, Some(slot)) = (done, slot) {
            // A ROM keeps what it has: then the entry looks changed next time, and is walked again.
            slot.2 = new;
        }
        Ok(done)
    }
}
