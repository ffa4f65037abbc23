// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pins: guest memory that stays where it is while a device works on it.

use super::copy::{copy_from_guest, copy_to_guest};
use super::frame_word::Refused;
use super::Memory;
use crate::addr::{Gpa, Hpa, PAGE_SIZE};
use crate::host::Host;
use crate::interfaces::PinError;
use core::ops::{Deref, Range};

/// Guest memory that stays where it is until this is dropped. What is written through it is dirty then. `M` is what leads to the VM's memory.
pub struct Pin<H: Host, M: Deref<Target = Memory<H>>> {
    memory: M,
    /// Where it begins in its first page.
    offset: u64,
    bytes: u64,
    pages: Range<u64>,
    write: bool,
}

impl<H: Host, M: Deref<Target = Memory<H>>> Pin<H, M> {
    /// Keeps the frames behind `bytes` at `gpa` where they are, for a device that reads, or writes. Sleeps.
    pub fn new(memory: M, gpa: Gpa, bytes: u64, write: bool) -> Result<Self, PinError> {
        let region = memory.region(gpa).ok_or(PinError::NotMemory(gpa))?;
        let left = region.range().end.wrapping_sub(gpa.0);
        if bytes > left {
            return Err(PinError::CrossesRegions);
        }
        let page = match write {
            true => region.written_page_at(gpa),
            false => Some(region.page_at(gpa)),
        };
        let first = page.ok_or(PinError::NotMemory(gpa))?;
        let pages = gpa.page_offset().saturating_add(bytes).div_ceil(PAGE_SIZE);
        let mut pin = Self {
            memory,
            offset: gpa.page_offset(),
            bytes,
            pages: first..first,
            write,
        };
        while pin.pages.end < first.saturating_add(pages) {
            // If it fails, what is pinned so far is let go.
            pin.pages.end = pin.memory.pin_frame(pin.pages.end)?;
        }
        pin.pages.end = first.saturating_add(pages);
        // Else the pages may have been given to another region meanwhile.
        match pin.memory.region(gpa) == Some(region) {
            true => Ok(pin),
            false => Err(PinError::CrossesRegions),
        }
    }
}

impl<H: Host> Memory<H> {
    /// Pins the frame of a page; returns the first page behind that frame.
    fn pin_frame(&self, page: u64) -> Result<u64, PinError> {
        loop {
            let slot = self.frames.slot(page).ok_or(PinError::NoMemory)?;
            match slot.word.pin() {
                Ok(_) => return Ok(slot.pages().end),
                Err(Refused::Crowded) => return Err(PinError::TooMany),
                Err(Refused::Empty) => self.fill(page).map_err(|_| PinError::NoMemory)?,
                Err(Refused::Busy | Refused::Pinned) => self.host.yield_now(),
            }
        }
    }
}

impl<H: Host, M: Deref<Target = Memory<H>>> Pin<H, M> {
    /// Its pieces, each in one page: where it is, and how many bytes.
    pub fn pieces(&self) -> impl Iterator<Item = (Hpa, u64)> + '_ {
        let (mut offset, mut left) = (self.offset, self.bytes);
        self.pages.clone().filter_map(move |page| {
            let at = self
                .memory
                .frames
                .find(page)
                .ok()?
                .page(page)
                .wrapping_add(offset);
            let bytes = left.min(PAGE_SIZE.wrapping_sub(offset));
            (offset, left) = (0, left.wrapping_sub(bytes));
            Some((at, bytes))
        })
    }
}

impl<H: Host, M: Deref<Target = Memory<H>>> Pin<H, M> {
    /// Copies out of it, from `at` bytes behind its beginning. `false`: it does not reach so far, and nothing was copied. Any context.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> bool {
        self.for_parts(at, buf.len(), |from, part| {
            let piece = buf.get_mut(part).unwrap_or_default();
            // SAFETY: the part ends in the page that `from` leads to, whose frame is pinned.
            unsafe { copy_from_guest(piece, from) };
        })
    }

    /// Copies into it. `false`: it does not reach so far, or was not pinned to be written; nothing was copied. Any context.
    pub fn write(&self, at: u64, data: &[u8]) -> bool {
        self.write
            && self.for_parts(at, data.len(), |to, part| {
                let piece = data.get(part).unwrap_or_default();
                // SAFETY: the part ends in the page that `to` leads to, whose frame is pinned.
                unsafe { copy_to_guest(to, piece) };
            })
    }

    /// Calls `f` with the host address of each part of `len` bytes at `at` that is in one page.
    fn for_parts(&self, at: u64, len: usize, mut f: impl FnMut(*mut u8, Range<usize>)) -> bool {
        let end = at.checked_add(len as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return false;
        }
        let mut done = 0usize;
        while done < len {
            let offset = self.offset.wrapping_add(at).wrapping_add(done as u64);
            let page = self.pages.start.wrapping_add(offset / PAGE_SIZE);
            let Ok(frame) = self.memory.frames.find(page) else {
                return false;
            };
            let in_page = offset % PAGE_SIZE;
            let room = PAGE_SIZE.wrapping_sub(in_page) as usize;
            let part = done..done.saturating_add(room).min(len);
            let host = self.memory.host.phys_to_virt(frame.page(page)).as_ptr();
            done = part.end;
            f(host.wrapping_add(in_page as usize), part);
        }
        true
    }
}

impl<H: Host, M: Deref<Target = Memory<H>>> Drop for Pin<H, M> {
    fn drop(&mut self) {
        let mut page = self.pages.start;
        while let Some(slot) = self.memory.frames.first_frame(&(page..self.pages.end)) {
            page = slot.pages().end;
            slot.word.unpin();
        }
        if self.write {
            let _inside = self.memory.gate.enter();
            let pages = self.pages.clone();
            pages.for_each(|page| self.memory.note_write(page));
        }
    }
}
