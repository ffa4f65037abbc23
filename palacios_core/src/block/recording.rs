// SPDX-License-Identifier: MIT OR Apache-2.0
//! A store for tests that keeps a log of all writes and flushes, and says what may be on the disk if the power fails somewhere in it.
//!
//! The disk has a cache, and is as bad as a disk may be: requests are done in any order, and what was written and not flushed may be there,
//! may not be there, and may be there in part. A flush that is done covers the writes that were done when it was submitted.
#![forbid(unsafe_code)]

use super::{
    BlockError, BlockInfo, BlockMemory, BlockRequest, BlockStore, Done, Operation, SECTOR_BYTES,
};
use crate::alloc_ext::NoMemory;
use crate::devices::testing::Shared;
use crate::interfaces::Wake;
use std::boxed::Box;
use std::vec::Vec;

const SECTOR: usize = SECTOR_BYTES as usize;

/// Random numbers that are the same again for the same seed (xorshift).
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    /// Those of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end.max(1)
    }
}

/// What happened to the store.
#[derive(Clone, Debug)]
pub enum Event {
    /// A write was submitted; its number is that of the event.
    Write {
        /// The first sector.
        sector: u64,
        /// What.
        data: Vec<u8>,
    },
    /// The write of that number was done. `through`: and can no longer be lost.
    Written {
        /// The write.
        write: usize,
        /// It was to be done only then.
        through: bool,
    },
    /// A flush was done, which covers these writes.
    Flushed(Vec<usize>),
    /// The test noted something.
    Noted(u64),
}

/// What happened, in order.
#[derive(Clone, Default)]
pub struct Log(Shared<Vec<Event>>);

impl Log {
    /// Notes something.
    pub fn note(&self, what: u64) {
        self.0.borrow_mut().push(Event::Noted(what));
    }
    /// How many events there were.
    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }
    /// There was none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// What was noted in the first `cut` events.
    pub fn noted(&self, cut: usize) -> Vec<u64> {
        let log = self.0.borrow();
        let noted = log.iter().take(cut).filter_map(|event| match event {
            Event::Noted(what) => Some(*what),
            _ => None,
        });
        noted.collect()
    }

    /// What may be on the disk, which began as `image`, if the power failed behind the first `cut` events.
    pub fn image_at(&self, cut: usize, mut image: Vec<u8>, dice: &mut Dice) -> Vec<u8> {
        let log = self.0.borrow();
        let log = &log[..cut];
        let (mut durable, mut pending) = (vec_of(log.len()), Vec::new());
        for event in log {
            match event {
                Event::Written {
                    write,
                    through: true,
                } => durable[*write] = true,
                Event::Flushed(writes) => writes.iter().for_each(|write| durable[*write] = true),
                _ => {}
            }
        }
        for (number, event) in log.iter().enumerate() {
            if let Event::Write { sector, data } = event {
                match durable[number] {
                    true => apply(&mut image, *sector, data, &mut |_| true),
                    false => pending.push((*sector, data)),
                }
            }
        }
        // The others in any order, each whole, in part or not at all.
        while !pending.is_empty() {
            let (sector, data) = pending.swap_remove(dice.below(pending.len()));
            let how = dice.below(3);
            apply(&mut image, sector, data, &mut |_| match how {
                0 => false,
                1 => true,
                _ => dice.below(2) == 0,
            });
        }
        image
    }
}

fn vec_of(len: usize) -> Vec<bool> {
    std::vec![false; len]
}

fn apply(image: &mut [u8], sector: u64, data: &[u8], is_there: &mut dyn FnMut(usize) -> bool) {
    let room = image[sector as usize * SECTOR..].chunks_mut(SECTOR);
    for (n, (to, from)) in room.zip(data.chunks(SECTOR)).enumerate() {
        if is_there(n) {
            to.copy_from_slice(from);
        }
    }
}

/// The store.
pub struct RecordingStore {
    log: Log,
    image: Vec<u8>,
    dice: Dice,
    /// Requests that are not done, with the number of the write or what the flush covers.
    waiting: Vec<(BlockRequest, Vec<usize>)>,
    /// Writes that are done.
    written: Vec<usize>,
}

impl RecordingStore {
    /// A disk that begins as `image`. Its requests are done in an order of the dice's.
    pub fn new(image: Vec<u8>, dice: Dice) -> (Self, Log) {
        let log = Log::default();
        let store = Self {
            log: log.clone(),
            image,
            dice,
            waiting: Vec::new(),
            written: Vec::new(),
        };
        (store, log)
    }

    fn read(&self, sector: u64, memory: &BlockMemory) -> Result<(), BlockError> {
        let at = sector as usize * SECTOR;
        memory.write(0, &self.image[at..at + memory.bytes() as usize])
    }

    fn end(&mut self, request: &BlockRequest, of: Vec<usize>) -> Result<(), BlockError> {
        match &request.operation {
            Operation::Read { sector, memory } => self.read(*sector, memory),
            Operation::Write { through, .. } => {
                let (write, through) = (of[0], *through);
                self.written.push(write);
                let event = Event::Written { write, through };
                self.log.0.borrow_mut().push(event);
                Ok(())
            }
            Operation::Flush => {
                self.log.0.borrow_mut().push(Event::Flushed(of));
                Ok(())
            }
            Operation::Discard(_) | Operation::WriteZeroes { .. } => Err(BlockError::Unsupported),
        }
    }
}

impl BlockStore for RecordingStore {
    fn info(&self) -> BlockInfo {
        BlockInfo {
            sectors: (self.image.len() / SECTOR) as u64,
            block_bytes: SECTOR as u32,
            physical_block_bytes: SECTOR as u32,
            is_read_only: false,
            needs_flush: true,
            can_discard: false,
            can_write_zeroes: false,
        }
    }
    fn begin(&mut self, _wake: Box<dyn Wake>) -> Result<(), NoMemory> {
        Ok(())
    }
    fn submit(&mut self, request: BlockRequest) -> Result<(), BlockRequest> {
        let of = match &request.operation {
            Operation::Write { sector, memory, .. } => {
                let mut data = std::vec![0; memory.bytes() as usize];
                memory.read(0, &mut data).expect("its own length");
                apply(&mut self.image, *sector, &data, &mut |_| true);
                let mut log = self.log.0.borrow_mut();
                log.push(Event::Write {
                    sector: *sector,
                    data,
                });
                std::vec![log.len() - 1]
            }
            Operation::Flush => self.written.clone(),
            _ => Vec::new(),
        };
        self.waiting.push((request, of));
        Ok(())
    }
    fn next_done(&mut self) -> Option<Done> {
        if self.waiting.is_empty() {
            return None;
        }
        let which = self.dice.below(self.waiting.len());
        let (request, of) = self.waiting.swap_remove(which);
        let result = self.end(&request, of);
        Some(Done { request, result })
    }
    fn drain(&mut self) {}
}
