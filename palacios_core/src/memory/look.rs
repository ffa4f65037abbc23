// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest memory for somebody who only looks: no page gets a frame, and nothing is marked as used or as written.

use super::access::Unreached;
use super::copy::{copy_from_guest, read_word};
use super::nested::trace::NestedTrace;
use super::walk::trace::{self, SeenTables, Trace};
use super::walk::{GuestTables, Paging};
use super::Memory;
use crate::addr::{Gpa, Gva, NotRam, PAGE_SIZE};
use crate::host::Host;

/// What is at a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Memory that has a frame.
    Resident,
    /// Memory that has none now. Nobody has touched it yet, and it reads as zeroes; or the host took it back, and keeps what it held.
    NoFrame,
    /// No memory: a device's address, or nobody's.
    Nothing,
}

impl Unreached {
    fn place(self) -> Place {
        match self {
            Self::NoFrame(_) | Self::Busy => Place::NoFrame,
            Self::Nothing => Place::Nothing,
        }
    }
}

impl<H: Host> Memory<H> {
    /// Copies what is at `gpa` to `buf`, to the end of the page at most. Returns what is there and how many bytes are of that kind; where that
    /// is not [`Place::Resident`], `buf` stays as it is. *Thread.*
    pub fn look(&self, gpa: Gpa, buf: &mut [u8]) -> (Place, usize) {
        let in_page = PAGE_SIZE.wrapping_sub(gpa.page_offset()) as usize;
        let len = buf.len().min(in_page);
        let piece = buf.get_mut(..len).unwrap_or_default();
        // SAFETY: the piece ends in the page that the closure is given.
        let copied = self.with_resident(gpa, |from| unsafe { copy_from_guest(piece, from) });
        let place = copied.map_or_else(Unreached::place, |()| Place::Resident);
        (place, len)
    }

    /// Follows the guest's own tables to the page of `gva`, and marks none of them. *Thread.*
    pub fn trace(&self, paging: &Paging, gva: Gva) -> Trace {
        trace::trace(paging, gva, &mut Untouched(self))
    }

    /// Follows the nested tables to `gpa`, and makes none. *Thread.*
    pub fn trace_nested(&self, gpa: Gpa) -> NestedTrace {
        self.nested.trace(gpa)
    }
}

/// The guest's page tables, which are looked at and keep their marks.
pub(crate) struct Untouched<'a, H: Host>(pub(crate) &'a Memory<H>);

impl<H: Host> SeenTables for Untouched<'_, H> {
    fn see_entry(&mut self, at: Gpa, size: u8) -> Result<Option<u64>, NotRam> {
        let first = Gpa(at.0 & !u64::from(size.wrapping_sub(1)));
        // SAFETY: `size` bytes, aligned to that, of a frame that stays meanwhile.
        let read = |from: *mut u8| unsafe { read_word(from, size) };
        match self.0.with_resident(first, read) {
            Ok(entry) => Ok(Some(entry)),
            Err(Unreached::Nothing) => Err(NotRam(at)),
            Err(Unreached::NoFrame(_) | Unreached::Busy) => Ok(None),
        }
    }
}

impl<H: Host> GuestTables for Untouched<'_, H> {
    /// No memory is there. To a processor that would read as all ones, of which there is nothing to see.
    type Error = NotRam;

    fn read_entry(&mut self, at: Gpa, size: u8) -> Result<u64, NotRam> {
        Ok(self.see_entry(at, size)?.unwrap_or(0))
    }
    fn compare_exchange_entry(&mut self, _: Gpa, _: u8, _: u64, _: u64) -> Result<bool, NotRam> {
        Ok(true)
    }
}
