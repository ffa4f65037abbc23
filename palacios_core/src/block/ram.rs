// SPDX-License-Identifier: MIT OR Apache-2.0
//! A RAM disk: bytes of an image to begin with, and what the guest writes. Its contents go with it.
#![forbid(unsafe_code)]

use super::pages::{parts, parts_of, Pages, PAGE_SECTORS, ZERO_SECTOR};
use super::{
    BlockError, BlockInfo, BlockMemory, BlockRequest, BlockStore, Done, DoneList, Operation,
    MOST_DONE, SECTOR_BYTES,
};
use crate::alloc_ext::NoMemory;
use crate::interfaces::Wake;
use alloc::boxed::Box;

/// A disk in memory. Pages that nobody wrote take none.
pub struct RamStore {
    sectors: u64,
    is_read_only: bool,
    pages: Pages,
    done: DoneList,
}

impl RamStore {
    /// An empty disk of so many sectors.
    pub fn new(sectors: u64) -> Result<Self, NoMemory> {
        Ok(Self {
            sectors,
            is_read_only: false,
            pages: Pages::new(sectors, u64::MAX)?,
            done: DoneList::new(MOST_DONE)?,
        })
    }

    /// A disk that begins as these bytes; the last sector is filled up with zeroes.
    pub fn of(bytes: &[u8]) -> Result<Self, BlockError> {
        Self::beginning_with(bytes, (bytes.len() as u64).div_ceil(SECTOR_BYTES))
    }
    /// A disk of so many sectors that begins as these bytes, which it has room for.
    pub fn beginning_with(bytes: &[u8], sectors: u64) -> Result<Self, BlockError> {
        let mut store = Self::new(sectors)?;
        let page_bytes = PAGE_SECTORS.wrapping_mul(SECTOR_BYTES) as usize;
        for (part, from) in parts(0, sectors).zip(bytes.chunks(page_bytes)) {
            if from.iter().any(|byte| *byte != 0) {
                let to = store.pages.write(&part)?;
                to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        }
        Ok(store)
    }

    /// The same, but it takes no writes.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self {
            is_read_only: true,
            ..self
        }
    }

    fn read(&self, sector: u64, memory: &BlockMemory) -> Result<(), BlockError> {
        for part in parts(sector, memory.bytes() / SECTOR_BYTES) {
            match self.pages.read(&part) {
                Some(bytes) => memory.write(part.offset, bytes)?,
                None => {
                    for n in 0..part.count {
                        let at = part.offset.wrapping_add(n.wrapping_mul(SECTOR_BYTES));
                        memory.write(at, &ZERO_SECTOR)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn serve(&mut self, operation: &Operation) -> Result<(), BlockError> {
        self.info().check(operation)?;
        match operation {
            Operation::Read { sector, memory } => self.read(*sector, memory),
            Operation::Write { sector, memory, .. } => self.pages.take(*sector, memory),
            Operation::Flush => Ok(()),
            Operation::Discard(ranges) | Operation::WriteZeroes { ranges, .. } => {
                parts_of(ranges).try_for_each(|part| self.pages.forget(&part))
            }
        }
    }
}

impl BlockStore for RamStore {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            sectors: self.sectors,
            block_bytes: SECTOR_BYTES as u32,
            physical_block_bytes: PAGE_SECTORS.wrapping_mul(SECTOR_BYTES) as u32,
            is_read_only: self.is_read_only,
            needs_flush: false,
            can_discard: !self.is_read_only,
            can_write_zeroes: !self.is_read_only,
        }
    }
    fn begin(&mut self, _wake: Box<dyn Wake>) -> Result<(), NoMemory> {
        Ok(())
    }
    fn submit(&mut self, request: BlockRequest) -> Result<(), BlockRequest> {
        if self.done.is_full() {
            return Err(request);
        }
        let result = self.serve(&request.operation);
        self.done.push(request, result);
        Ok(())
    }
    fn next_done(&mut self) -> Option<Done> {
        self.done.pop()
    }
    fn drain(&mut self) {}
    /// Another is made of the same image, if nobody writes to it.
    fn outlives_vm(&self) -> bool {
        self.is_read_only
    }
}
