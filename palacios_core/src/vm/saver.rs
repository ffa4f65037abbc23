// SPDX-License-Identifier: MIT OR Apache-2.0
//! A VM as the stream of bytes of a [saved file](crate::saved_file), a piece at a time: no piece is long but the image, which is there already.
#![forbid(unsafe_code)]

use super::saved::SaveError;
use super::states::State;
use super::Vm;
use crate::host::Host;
use crate::saved_file::{self, MOST_PAGES};
use crate::sections::Sections;
use crate::state_io::StateError;
use alloc::vec::Vec;
use core::ops::Range;

/// So many pages are looked at before others get the CPU.
const MOST_LOOKS: u64 = 1 << 14;

/// How far a VM was written down. Its owner [holds](Vm::hold) it meanwhile.
pub struct Saver {
    next: Next,
    /// The sections so far.
    sections: u64,
    /// What was written last, and how much of it was read.
    piece: Vec<u8>,
    read: usize,
    /// How much of the image was read, while it is at it.
    image_read: Option<usize>,
    /// Why no more comes.
    failed: Option<SaveError>,
}

#[derive(Clone, Copy)]
enum Next {
    Image,
    State,
    Ram(u64),
    End,
    Nothing,
}

impl Default for Saver {
    fn default() -> Self {
        Self::new()
    }
}

impl Saver {
    /// At the beginning.
    pub fn new() -> Self {
        Self {
            next: Next::Image,
            sections: 0,
            piece: Vec::new(),
            read: 0,
            image_read: None,
            failed: None,
        }
    }

    /// What was written and not read yet: what is in hand, and then the image.
    fn waiting<'a>(&'a self, image: &'a [u8]) -> &'a [u8] {
        let piece = self.piece.get(self.read..).unwrap_or_default();
        match self.image_read.filter(|_| piece.is_empty()) {
            Some(read) => image.get(read..).unwrap_or_default(),
            None => piece,
        }
    }

    fn took(&mut self, len: usize) {
        match &mut self.image_read {
            Some(read) if self.read == self.piece.len() => *read = read.wrapping_add(len),
            _ => self.read = self.read.wrapping_add(len),
        }
    }
}

impl<H: Host> Vm<H> {
    /// Copies what comes next of its saved file; returns how many bytes. None: that was all. *Thread.*
    ///
    /// # Errors
    /// As [`Vm::save`], from then on: there is a hole in what was written.
    pub fn read_saved(&self, saver: &mut Saver, to: &mut [u8]) -> Result<usize, SaveError> {
        let image = (*self.image).as_ref();
        let mut done = 0usize;
        if let Some(why) = saver.failed {
            return Err(why);
        }
        while let Some(room) = to.get_mut(done..).filter(|room| !room.is_empty()) {
            let waiting = saver.waiting(image);
            let len = waiting.len().min(room.len());
            for (to, from) in room.iter_mut().zip(waiting) {
                *to = *from;
            }
            saver.took(len);
            done = done.wrapping_add(len);
            if len != 0 {
                continue;
            }
            match self.write_next(saver) {
                Ok(true) => {}
                Ok(false) => break,
                Err(why) => {
                    saver.piece.clear();
                    (saver.image_read, saver.failed) = (None, Some(why));
                    // What was copied before is still good.
                    return if done == 0 { Err(why) } else { Ok(done) };
                }
            }
        }
        Ok(done)
    }

    /// Writes the next piece. `false`: there is none.
    fn write_next(&self, saver: &mut Saver) -> Result<bool, SaveError> {
        let state = self.state();
        if state != State::Paused {
            return Err(SaveError::WrongState(state));
        }
        saver.piece.clear();
        (saver.read, saver.image_read) = (0, None);
        let piece = &mut saver.piece;
        let mut written = 1;
        saver.next = match saver.next {
            Next::Image => {
                saved_file::write_begin(piece, (*self.image).as_ref())?;
                saver.image_read = Some(0);
                Next::State
            }
            Next::State => {
                self.save(piece)?;
                written = Sections::new(piece).count() as u64;
                Next::Ram(0)
            }
            Next::Ram(from) if from >= self.memory().ram_pages() => {
                written = 0;
                Next::End
            }
            Next::Ram(from) => {
                let end = from.saturating_add(MOST_LOOKS);
                match self.first_page(from..end, piece)? {
                    Some(page) => Next::Ram(self.write_ram(page, piece)?),
                    None => {
                        written = 0;
                        self.shared.host().yield_now();
                        Next::Ram(end)
                    }
                }
            }
            Next::End => {
                saved_file::write_end(piece, saver.sections)?;
                Next::Nothing
            }
            Next::Nothing => return Ok(false),
        };
        saver.sections = saver.sections.wrapping_add(written);
        Ok(true)
    }

    /// The first of these pages of RAM that holds something. `room` is empty, and stays so.
    fn first_page(&self, pages: Range<u64>, room: &mut Vec<u8>) -> Result<Option<u64>, StateError> {
        for page in pages.start..pages.end.min(self.memory().ram_pages()) {
            if self.memory().append_page(page, room)? {
                room.clear();
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    /// Writes what is in RAM from a page on, up to the first page of zeroes; returns the page behind that.
    fn write_ram(&self, first: u64, to: &mut Vec<u8>) -> Result<u64, StateError> {
        let end = first
            .saturating_add(MOST_PAGES)
            .min(self.memory().ram_pages());
        let mut page = first;
        saved_file::write_ram(to, first, |to| {
            while page < end && self.memory().append_page(page, to.end())? {
                page = page.wrapping_add(1);
            }
            Ok(())
        })?;
        Ok(page)
    }
}
