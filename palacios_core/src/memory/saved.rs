// SPDX-License-Identifier: MIT OR Apache-2.0
//! RAM by the numbers of its pages, wherever the guest sees them: to be written down, and to be read back.

use super::copy::{copy_from_guest, copy_to_guest};
use super::frame_word::Refused;
use super::Memory;
use crate::addr::PAGE_SIZE;
use crate::alloc_ext::try_append_zeroes;
use crate::host::{GuestRam, Host, NoMemory};
use alloc::vec::Vec;

impl<H: Host> Memory<H> {
    /// How many pages of RAM there are.
    pub fn ram_pages(&self) -> u64 {
        self.frames.ram_pages()
    }

    /// Appends what a page of RAM holds. `false`: there is nothing but zeroes, and nothing was appended; if the page had no frame, it has none
    /// now. *Thread.*
    pub(crate) fn append_page(&self, page: u64, to: &mut Vec<u8>) -> Result<bool, NoMemory> {
        if self
            .frames
            .find(page)
            .is_err_and(|why| why == Refused::Empty)
            && !self.provider.holds(page)
        {
            return Ok(false);
        }
        let begin = to.len();
        let room = try_append_zeroes(to, PAGE_SIZE as usize)?;
        // SAFETY: `room` is a page, and so is what the closure is given.
        let copied = self.with_ram_page(page, |at| unsafe { copy_from_guest(room, at) });
        let holds = copied.is_ok() && !is_zero(to.get(begin..).unwrap_or_default());
        if !holds {
            to.truncate(begin);
        }
        copied.map(|()| holds)
    }

    /// Writes a page of RAM, or the beginning of one. *Thread.*
    pub(crate) fn write_page(&self, page: u64, bytes: &[u8]) -> Result<(), NoMemory> {
        let bytes = bytes.get(..PAGE_SIZE as usize).unwrap_or(bytes);
        // SAFETY: no more than the page that the closure is given.
        self.with_ram_page(page, |at| unsafe { copy_to_guest(at, bytes) })?;
        let _inside = self.gate.enter();
        self.note_write(page);
        Ok(())
    }

    /// Runs `f` on the host address of a page of RAM, which gets a frame if it has none.
    fn with_ram_page<R>(&self, page: u64, mut f: impl FnMut(*mut u8) -> R) -> Result<R, NoMemory> {
        loop {
            let reached = {
                let _inside = self.gate.enter();
                let frame = self.frames.find(page);
                frame.map(|frame| f(self.host.phys_to_virt(frame.page(page)).as_ptr()))
            };
            match reached {
                Ok(result) => return Ok(result),
                Err(Refused::Empty) => self.fill(page)?,
                Err(_) => self.host.yield_now(),
            }
        }
    }
}

fn is_zero(page: &[u8]) -> bool {
    let zero = |word: &[u8]| word == [0; 8];
    page.chunks_exact(8).all(zero)
}
