// SPDX-License-Identifier: MIT OR Apache-2.0
//! A snapshot: reads go to another store, writes stay in memory and go with it. The store below is never written.
//!
//! ```text
//!   write ──▶ memory                  which sectors are there is known for each page
//!   read  ──▶ all in memory? ──▶ done
//!             └ no: the store below ──▶ what is in memory is copied over it ──▶ done
//! ```
#![forbid(unsafe_code)]

use super::pages::{parts, parts_of, Pages, Part, ZERO_SECTOR};
use super::{
    BlockError, BlockInfo, BlockMemory, BlockRequest, BlockStore, Done, DoneList, Operation,
    MOST_DONE, SECTOR_BYTES,
};
use crate::addr::PAGE_SIZE;
use crate::alloc_ext::NoMemory;
use crate::interfaces::Wake;
use alloc::boxed::Box;

/// What is written stays in memory.
pub struct SnapshotStore {
    below: Box<dyn BlockStore>,
    info: BlockInfo,
    pages: Pages,
    done: DoneList,
}

impl SnapshotStore {
    /// A snapshot of a store, which takes `most_bytes` of memory for what is written.
    pub fn new(below: Box<dyn BlockStore>, most_bytes: u64) -> Result<Self, NoMemory> {
        let info = below.info();
        Ok(Self {
            below,
            info: BlockInfo {
                is_read_only: false,
                needs_flush: false,
                can_discard: true,
                can_write_zeroes: true,
                ..info
            },
            pages: Pages::new(info.sectors, most_bytes / PAGE_SIZE)?,
            done: DoneList::new(MOST_DONE)?,
        })
    }

    /// Whether the store below is needed for a read.
    fn needs_below(&self, sector: u64, memory: &BlockMemory) -> bool {
        let mut parts = parts(sector, memory.bytes() / SECTOR_BYTES);
        !parts.all(|part| self.pages.has(&part))
    }

    /// Copies what is in memory over what the store below gave.
    fn copy_over(&self, sector: u64, memory: &BlockMemory) -> Result<(), BlockError> {
        for part in parts(sector, memory.bytes() / SECTOR_BYTES) {
            let there = self.pages.there(&part);
            for n in 0..part.count {
                let first = part.first.wrapping_add(n);
                if there & 1 << (first & 7) == 0 {
                    continue;
                }
                let one = Part {
                    first,
                    count: 1,
                    offset: part.offset.wrapping_add(n.wrapping_mul(SECTOR_BYTES)),
                    ..part
                };
                memory.write(one.offset, self.pages.read(&one).unwrap_or(&ZERO_SECTOR))?;
            }
        }
        Ok(())
    }

    fn serve(&mut self, operation: &Operation) -> Result<(), BlockError> {
        self.info.check(operation)?;
        match operation {
            Operation::Read { sector, memory } => self.copy_over(*sector, memory),
            Operation::Write { sector, memory, .. } => self.pages.take(*sector, memory),
            // All is lost at the end, and nothing before.
            Operation::Flush => Ok(()),
            Operation::Discard(ranges) | Operation::WriteZeroes { ranges, .. } => {
                parts_of(ranges).try_for_each(|part| self.pages.clear(&part))
            }
        }
    }
}

impl BlockStore for SnapshotStore {
    /// As it was when the snapshot was made: the store below may have become smaller, and then fails to read.
    fn info(&self) -> BlockInfo {
        self.info
    }
    fn begin(&mut self, wake: Box<dyn Wake>) -> Result<(), NoMemory> {
        self.below.begin(wake)
    }
    fn submit(&mut self, request: BlockRequest) -> Result<(), BlockRequest> {
        if let Operation::Read { sector, memory } = &request.operation {
            if self.info.check(&request.operation).is_ok() && self.needs_below(*sector, memory) {
                return self.below.submit(request);
            }
        }
        if self.done.is_full() {
            return Err(request);
        }
        let result = self.serve(&request.operation);
        self.done.push(request, result);
        Ok(())
    }
    fn next_done(&mut self) -> Option<Done> {
        if let Some(done) = self.done.pop() {
            return Some(done);
        }
        let mut done = self.below.next_done()?;
        if let (Ok(()), Operation::Read { sector, memory }) = (done.result, &done.request.operation)
        {
            done.result = self.copy_over(*sector, memory);
        }
        Some(done)
    }
    fn drain(&mut self) {
        self.below.drain();
    }
    fn outlives_vm(&self) -> bool {
        false
    }
}
