// SPDX-License-Identifier: MIT OR Apache-2.0
//! How the VMM reads and writes guest memory: page by page, inside the gate only for a copy. What it writes is dirty like what
//! the guest writes.

use super::copy::{compare_exchange, copy_from_guest, copy_to_guest, read_word};
use super::frame_word::Refused;
use super::gate::Inside;
use super::walk::GuestTables;
use super::Memory;
use crate::addr::{Gpa, NotRam, PAGE_SIZE};
use crate::host::Host;
use crate::interfaces::GuestMemory;
use crate::regions::Writes;
use core::cell::Cell;

/// Why a page cannot be reached just now.
pub(super) enum Unreached {
    /// No memory is there, or none that takes writes.
    Nothing,
    /// This page has no frame.
    NoFrame(u64),
    /// It comes or goes.
    Busy,
}

impl<H: Host> Memory<H> {
    /// Runs `f` on the host address of `gpa`, good to the end of its page, while the frame stays. Never sleeps.
    #[inline]
    fn reach<R>(
        &self,
        inside: &Inside<'_>,
        gpa: Gpa,
        write: bool,
        f: impl FnOnce(*mut u8) -> R,
    ) -> Result<R, Unreached> {
        let region = self.map.find(inside, gpa).ok_or(Unreached::Nothing)?;
        let page = match write {
            true => region.written_page_at(gpa).ok_or(Unreached::Nothing)?,
            false => region.page_at(gpa),
        };
        let frame = self.frames.find(page).map_err(|refused| match refused {
            Refused::Empty => Unreached::NoFrame(page),
            Refused::Busy | Refused::Crowded | Refused::Pinned => Unreached::Busy,
        })?;
        let base = self.host.phys_to_virt(frame.page(page)).as_ptr();
        let result = f(base.wrapping_add(gpa.page_offset() as usize));
        if write {
            self.note_write(page);
        }
        Ok(result)
    }

    /// The same. Sleeps if the page has no frame yet.
    fn with_page<R>(
        &self,
        gpa: Gpa,
        write: bool,
        mut f: impl FnMut(*mut u8) -> R,
    ) -> Result<R, NotRam> {
        loop {
            let reached = self.reach(&self.gate.enter(), gpa, write, &mut f);
            let missing = match reached {
                Ok(result) => return Ok(result),
                Err(Unreached::Nothing) => return Err(NotRam(gpa)),
                Err(Unreached::Busy) => {
                    self.host.yield_now();
                    continue;
                }
                Err(Unreached::NoFrame(page)) => page,
            };
            self.fill(missing).map_err(|_| NotRam(gpa))?;
        }
    }

    /// Runs `f` on the host address of `gpa`, good to the end of its page, if that has a frame now; gives it none. Sleeps only while the frame
    /// comes or goes.
    pub(super) fn with_resident<R>(
        &self,
        gpa: Gpa,
        mut f: impl FnMut(*mut u8) -> R,
    ) -> Result<R, Unreached> {
        loop {
            // A statement of its own: to wait inside the gate is forbidden.
            let reached = self.reach(&self.gate.enter(), gpa, false, &mut f);
            match reached {
                Err(Unreached::Busy) => self.host.yield_now(),
                reached => return reached,
            }
        }
    }

    /// Where a guest's write to `gpa` goes; `None` where no memory is.
    pub fn writes_at(&self, gpa: Gpa) -> Option<Writes> {
        self.region(gpa).map(|region| region.writes)
    }

    /// The aligned word of `size` (4 or 8) bytes that holds `gpa`, in one access. Sleeps if the page has no frame yet.
    pub fn read_word(&self, gpa: Gpa, size: u8) -> Result<u64, NotRam> {
        let first = aligned(gpa, size);
        // SAFETY: `size` bytes, aligned to that, of a frame that stays meanwhile.
        self.with_page(first, false, |at| unsafe { read_word(at, size) })
    }

    /// Replaces `old` by `new`, 1, 2, 4 or 8 bytes at `gpa`, in one atomic step of the processor; `false` if the memory no
    /// longer held `old`. Fails also where the bytes are not aligned to their number.
    pub fn compare_exchange(&self, gpa: Gpa, size: u8, old: u64, new: u64) -> Result<bool, NotRam> {
        if !matches!(size, 1 | 2 | 4 | 8) || gpa.0 % u64::from(size) != 0 {
            return Err(NotRam(gpa));
        }
        // SAFETY: `size` aligned bytes of a frame that stays meanwhile.
        self.with_page(gpa, true, |at| unsafe {
            compare_exchange(at, size, old, new)
        })
    }

    /// What has frames now. Its use never sleeps, nor may its holder.
    pub fn resident(&self) -> Resident<'_, H> {
        Resident {
            memory: self,
            inside: self.gate.enter(),
            last: Cell::new(Piece::NONE),
        }
    }

    /// What is in one piece around `gpa`, in guest-physical space and in the host's, if it has a frame.
    fn piece(&self, inside: &Inside<'_>, gpa: Gpa) -> Result<Piece, NotRam> {
        let region = self.map.find(inside, gpa).ok_or(NotRam(gpa))?;
        let page = region.page_at(gpa);
        let frame = self.frames.find(page).map_err(|_| NotRam(gpa))?;
        let in_frame = frame
            .page(page)
            .0
            .wrapping_sub(frame.at.0)
            .wrapping_add(gpa.page_offset());
        let before = in_frame.min(gpa.0.wrapping_sub(region.at.0));
        let after = frame
            .size
            .bytes()
            .wrapping_sub(in_frame)
            .min(region.range().end.wrapping_sub(gpa.0));
        let first = frame.at.wrapping_add(in_frame.wrapping_sub(before));
        let offset = first.page_offset() as usize;
        let host = self.host.phys_to_virt(first.page()).as_ptr();
        Ok(Piece {
            at: Gpa(gpa.0.wrapping_sub(before)),
            bytes: before.wrapping_add(after),
            host: host.wrapping_add(offset),
        })
    }
}

/// Guest memory that is in one piece in the host too.
#[derive(Clone, Copy)]
struct Piece {
    at: Gpa,
    bytes: u64,
    host: *mut u8,
}

impl Piece {
    const NONE: Self = Self {
        at: Gpa(0),
        bytes: 0,
        host: core::ptr::null_mut(),
    };
}

/// The part of a guest's memory that has frames. None of them goes while this is there, which is for a moment.
pub struct Resident<'a, H: Host> {
    memory: &'a Memory<H>,
    inside: Inside<'a>,
    /// Where it was read last: the guest's tables and its code are often close together.
    last: Cell<Piece>,
}

impl<H: Host> Resident<'_, H> {
    /// Which turn of the gate this is.
    pub(super) fn turn(&self) -> u64 {
        self.inside.turn()
    }

    /// The host address of `gpa`, good to the end of its page, for reads.
    #[inline]
    pub(super) fn host_address(&self, gpa: Gpa) -> Result<*mut u8, NotRam> {
        let mut piece = self.last.get();
        if gpa.0.wrapping_sub(piece.at.0) >= piece.bytes {
            piece = self.memory.piece(&self.inside, gpa)?;
            self.last.set(piece);
        }
        let offset = gpa.0.wrapping_sub(piece.at.0);
        Ok(piece.host.wrapping_add(offset as usize))
    }

    /// Copies out of it.
    pub fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        for_pages(at, buf.len(), |gpa, part| {
            let piece = buf.get_mut(part).unwrap_or_default();
            let from = self.host_address(gpa)?;
            // SAFETY: the piece ends in the page that `from` leads to, whose frame stays while we are inside.
            unsafe { copy_from_guest(piece, from) };
            Ok(())
        })
    }
}

impl<H: Host> GuestTables for Resident<'_, H> {
    /// It has no frame yet.
    type Error = NotRam;

    fn read_entry(&mut self, at: Gpa, size: u8) -> Result<u64, NotRam> {
        match self.host_address(aligned(at, size)) {
            // SAFETY: `size` bytes, aligned to that, of a frame that stays while we are inside.
            Ok(at) => Ok(unsafe { read_word(at, size) }),
            Err(_) if self.memory.map.find(&self.inside, at).is_none() => Ok(u64::MAX),
            Err(missing) => Err(missing),
        }
    }

    fn compare_exchange_entry(
        &mut self,
        at: Gpa,
        size: u8,
        old: u64,
        new: u64,
    ) -> Result<bool, NotRam> {
        let first = aligned(at, size);
        let region = self.memory.map.find(&self.inside, first);
        if region.is_some_and(|region| region.writes != Writes::Allowed) {
            // A ROM keeps what it has, and the processor walks on.
            return Ok(true);
        }
        // SAFETY: as above.
        let exchanged = self.memory.reach(&self.inside, first, true, |at| unsafe {
            compare_exchange(at, size, old, new)
        });
        exchanged.map_err(|_| NotRam(at))
    }
}

impl<H: Host> GuestMemory for Memory<H> {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        for_pages(at, buf.len(), |gpa, part| {
            let piece = buf.get_mut(part).unwrap_or_default();
            // SAFETY: the piece ends in the page that the closure is given.
            self.with_page(gpa, false, |from| unsafe { copy_from_guest(piece, from) })
        })
    }

    fn write(&self, at: Gpa, data: &[u8]) -> Result<(), NotRam> {
        for_pages(at, data.len(), |gpa, part| {
            let piece = data.get(part).unwrap_or_default();
            // SAFETY: the piece ends in the page that the closure is given.
            self.with_page(gpa, true, |to| unsafe { copy_to_guest(to, piece) })
        })
    }
}

/// Calls `f` for the part of `len` bytes at `at` that is in each page.
#[inline]
fn for_pages(
    at: Gpa,
    len: usize,
    mut f: impl FnMut(Gpa, core::ops::Range<usize>) -> Result<(), NotRam>,
) -> Result<(), NotRam> {
    let (mut gpa, mut done) = (at, 0usize);
    let in_page = |gpa: Gpa| PAGE_SIZE.wrapping_sub(gpa.page_offset()) as usize;
    if (1..=in_page(at)).contains(&len) {
        // As most are that devices make.
        return f(at, 0..len);
    }
    while done < len {
        let in_page = in_page(gpa);
        let part = done..done.saturating_add(in_page).min(len);
        let bytes = part.len() as u64;
        f(gpa, part.clone())?;
        done = part.end;
        gpa = match gpa.checked_add(bytes) {
            Some(next) => next,
            None if done < len => return Err(NotRam(gpa)),
            None => gpa,
        };
    }
    Ok(())
}

/// Where the word of `size` (4 or 8) bytes begins that holds `gpa`.
fn aligned(gpa: Gpa, size: u8) -> Gpa {
    Gpa(gpa.0 & if size == 8 { !7 } else { !3 })
}
