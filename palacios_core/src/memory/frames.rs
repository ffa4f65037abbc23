// SPDX-License-Identifier: MIT OR Apache-2.0
//! The frames of a VM's memory: which physical memory is behind each of its pages.
//!
//! Pages have numbers, RAM first and without a hole. For each GiB there is a word; below it, where its frames are smaller, a
//! table of words for 2 MiB each, and below those tables for 4 KiB each ([`super::frame_word`]). Tables stay until the VM ends,
//! so that all may walk them without a lock.

use super::frame_word::{Content, FrameWord, Refused};
use super::words::{WordPages, WORDS};
use crate::addr::{Hpa, PAGE_SIZE};
use crate::alloc_ext::{NoMemory, TryPush};
use crate::host::{GuestRam, Host, PageSize, RamError};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// All frames of a VM.
pub(super) struct Frames<H: Host> {
    tables: WordPages<H>,
    /// A word for each GiB.
    root: Vec<AtomicU64>,
    /// How many pages are RAM: those whose frames the provider gives.
    ram_pages: u64,
    /// How many frames of RAM there are of each size, the smallest first.
    counts: [AtomicU64; 3],
    /// How many pages the tables take.
    table_pages: AtomicU64,
}

/// The word that has to do with a page, and which pages it is of.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    pub(super) word: FrameWord<'a>,
    pub(super) first: u64,
    pub(super) size: PageSize,
}

impl Slot<'_> {
    pub(super) fn pages(&self) -> Range<u64> {
        self.first..self.first.saturating_add(self.size.pages())
    }
}

/// A frame, and which pages are in it. It stays while whoever found it is inside the gate, or has pinned it.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    /// Where it is.
    pub(super) at: Hpa,
    /// Its first page.
    pub(super) first: u64,
    pub(super) size: PageSize,
}

impl Frame {
    /// Where `page`, one of the frame's, is.
    #[inline]
    pub(super) fn page(&self, page: u64) -> Hpa {
        let before = page.wrapping_sub(self.first);
        self.at.wrapping_add(before.wrapping_mul(PAGE_SIZE))
    }
}

impl<H: Host> Frames<H> {
    /// None yet, for a VM with so many pages of RAM and room for so many other pages.
    pub(super) fn new(host: &H, ram_pages: u64, other_pages: u64) -> Result<Self, NoMemory> {
        let huge = PageSize::Huge.pages();
        // Other pages begin in a word of their own: RAM and what is not RAM never share a frame.
        let words = ram_pages
            .div_ceil(huge)
            .saturating_add(other_pages.div_ceil(huge));
        let mut root = Vec::new();
        root.try_reserve_exact(words as usize)
            .map_err(|_| NoMemory)?;
        for _ in 0..words {
            root.try_push(AtomicU64::new(0))?;
        }
        Ok(Self {
            tables: WordPages::new(host),
            root,
            ram_pages,
            counts: [0; 3].map(AtomicU64::new),
            table_pages: AtomicU64::new(0),
        })
    }

    /// How many pages are RAM.
    pub(super) fn ram_pages(&self) -> u64 {
        self.ram_pages
    }
    /// The numbers of pages that are not RAM.
    pub(super) fn other_pages(&self) -> Range<u64> {
        let huge = PageSize::Huge.pages();
        let end = (self.root.len() as u64).saturating_mul(huge);
        self.ram_pages.next_multiple_of(huge)..end
    }
    /// How many frames of this size RAM has.
    pub(super) fn count(&self, size: PageSize) -> u64 {
        self.counter(size).load(Relaxed)
    }
    fn counter(&self, size: PageSize) -> &AtomicU64 {
        let [small, large, huge] = &self.counts;
        match size {
            PageSize::Small => small,
            PageSize::Large => large,
            PageSize::Huge => huge,
        }
    }
    /// How many pages the tables take.
    pub(super) fn table_pages(&self) -> u64 {
        self.table_pages.load(Relaxed)
    }

    /// The word that says where `page` is: the one of the smallest size that there is.
    #[inline]
    pub(super) fn slot(&self, page: u64) -> Option<Slot<'_>> {
        let mut size = PageSize::Huge;
        let mut word = FrameWord(self.root.get((page / size.pages()) as usize)?);
        while let (Content::Table(table), Some(smaller)) = (word.content(), size.smaller()) {
            size = smaller;
            word = FrameWord(self.tables.word(Hpa(table), page / size.pages() % WORDS));
        }
        let first = page & !size.pages().wrapping_sub(1);
        Some(Slot { word, first, size })
    }

    /// The frame of `page`. It stays while the caller is inside the gate, or has pinned it.
    #[inline]
    pub(super) fn find(&self, page: u64) -> Result<Frame, Refused> {
        let slot = self.slot(page).ok_or(Refused::Empty)?;
        match slot.word.content() {
            Content::Frame(at) => Ok(Frame {
                at: Hpa(at),
                first: slot.first,
                size: slot.size,
            }),
            Content::Empty => Err(Refused::Empty),
            // A table that was made meanwhile: its maker was busy with the word just now.
            Content::Busy | Content::Table(_) => Err(Refused::Busy),
        }
    }

    /// Sees to it that a page of RAM has a frame, of its provider. Only who wants the same page waits. Sleeps.
    pub(super) fn fill(&self, host: &H, ram: &H::Ram, page: u64) -> Result<(), NoMemory> {
        loop {
            let slot = self.slot(page).ok_or(NoMemory)?;
            match slot.word.content() {
                Content::Frame(_) => return Ok(()),
                Content::Busy => host.yield_now(),
                Content::Table(_) => {}
                Content::Empty if page >= self.ram_pages => return Err(NoMemory),
                Content::Empty if slot.word.claim() => self.fill_claimed(ram, &slot)?,
                Content::Empty => {}
            }
        }
    }

    /// Gets a frame for a word that is claimed, or a table for frames of a smaller size.
    fn fill_claimed(&self, ram: &H::Ram, slot: &Slot<'_>) -> Result<(), NoMemory> {
        let fits = slot.pages().end <= self.ram_pages;
        let given = match fits {
            true => ram.page(slot.first, slot.size),
            false => Err(RamError::TooLarge),
        };
        match given {
            Ok(frame) => {
                self.counter(slot.size).fetch_add(1, Relaxed);
                slot.word.give(frame.0);
                Ok(())
            }
            Err(RamError::TooLarge) if slot.size != PageSize::Small => self.split_claimed(slot),
            Err(_) => {
                slot.word.clear();
                Err(NoMemory)
            }
        }
    }

    fn split_claimed(&self, slot: &Slot<'_>) -> Result<(), NoMemory> {
        match self.tables.alloc() {
            Ok(table) => {
                self.table_pages.fetch_add(1, Relaxed);
                slot.word.give_table(table.0);
                Ok(())
            }
            Err(NoMemory) => {
                slot.word.clear();
                Err(NoMemory)
            }
        }
    }

    /// The first frame that has one of these pages.
    pub(super) fn first_frame(&self, pages: &Range<u64>) -> Option<Slot<'_>> {
        let mut page = pages.start;
        while page < pages.end {
            let slot = self.slot(page)?;
            match slot.word.content() {
                Content::Frame(_) | Content::Busy => return Some(slot),
                Content::Table(_) => {}
                Content::Empty => page = slot.pages().end,
            }
        }
        None
    }

    /// The frame of a page of RAM was taken out of the guest.
    pub(super) fn left(&self, size: PageSize) {
        self.counter(size).fetch_sub(1, Relaxed);
    }

    /// Gives pages that are not RAM their frames, which begin at `at` and are one piece. They have none yet.
    pub(super) fn adopt(&self, pages: Range<u64>, at: Hpa) -> Result<(), NoMemory> {
        let mut page = pages.start;
        while page < pages.end {
            let slot = self.slot(page).ok_or(NoMemory)?;
            let frame = at.wrapping_add(page.wrapping_sub(pages.start).wrapping_mul(PAGE_SIZE));
            let fits = slot.first == page && slot.pages().end <= pages.end;
            let aligned = frame.0 % slot.size.bytes() == 0;
            if !slot.word.claim() {
                continue;
            }
            if fits && aligned {
                slot.word.give(frame.0);
                page = slot.pages().end;
            } else {
                self.split_claimed(&slot)?;
            }
        }
        Ok(())
    }

    /// Takes those frames out again. Nobody uses them any more.
    pub(super) fn disown(&self, pages: Range<u64>) {
        let mut page = pages.start;
        while let Some(slot) = self.first_frame(&(page..pages.end)) {
            slot.word.clear();
            page = slot.pages().end;
        }
    }

    fn free_tables(&self, word: FrameWord<'_>) {
        let Content::Table(table) = word.content() else {
            return;
        };
        for index in 0..WORDS {
            self.free_tables(FrameWord(self.tables.word(Hpa(table), index)));
        }
        // SAFETY: a table of ours, to which only this word led; `self` is dropped, so nobody walks it.
        unsafe { self.tables.free(Hpa(table)) };
    }
}

impl<H: Host> Drop for Frames<H> {
    fn drop(&mut self) {
        for word in &self.root {
            self.free_tables(FrameWord(word));
        }
    }
}
