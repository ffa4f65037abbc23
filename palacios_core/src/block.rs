// SPDX-License-Identifier: MIT OR Apache-2.0
//! Block stores: where a disk keeps its bytes, whatever the disk is to the guest.
//!
//! ```text
//!   disk ── submit ──▶ store ──▶ a file, memory, another store
//!     ▲                  │
//!     │◀── wake ─────────┤  something is done, or the store has changed        any context
//!     └─── next_done ────┘  the request comes back, with how it ended
//! ```
//!
//! A request belongs to the store from `submit` until `next_done` gives it back. With it go the guest's pages, which are pinned; the store
//! reads or writes them where they are. Requests that are under way together have no order: what must come behind something else is
//! submitted when that is done.
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "test-support"))]
pub mod faulty;
mod pages;
pub mod ram;
#[cfg(any(test, feature = "test-support"))]
pub mod recording;
pub mod snapshot;

use crate::addr::Hpa;
use crate::alloc_ext::{NoMemory, TryPush};
use crate::interfaces::{PinnedMemory, Wake};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

/// Positions and lengths are in sectors of so many bytes, whatever blocks the store has.
pub const SECTOR_BYTES: u64 = 512;
/// The most ranges of one request.
pub const MAX_RANGES: usize = 16;

/// What a store is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// How large it is.
    pub sectors: u64,
    /// Each request is of whole blocks of this size: a power of two from 512 to 4096.
    pub block_bytes: u32,
    /// It works best with whole blocks of this size, a power of two, not less than the other.
    pub physical_block_bytes: u32,
    /// It takes no writes.
    pub is_read_only: bool,
    /// What is written may be lost until it is flushed.
    pub needs_flush: bool,
    /// It can forget what nobody needs.
    pub can_discard: bool,
    /// It can write zeroes without being given them.
    pub can_write_zeroes: bool,
}

/// Sectors that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorRange {
    /// The first.
    pub sector: u64,
    /// How many.
    pub count: u64,
}

impl SectorRange {
    /// Whether a store of so many sectors has all of them.
    pub fn is_in(&self, sectors: u64) -> bool {
        let end = self.sector.checked_add(self.count);
        end.is_some_and(|end| end <= sectors)
    }
    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.count.saturating_mul(SECTOR_BYTES)
    }
}

/// The ranges of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<SectorRange>);

impl Ranges {
    /// One more.
    pub fn push(&mut self, range: SectorRange) -> Result<(), NoMemory> {
        self.0.try_push(range)
    }
    /// All of them.
    pub fn as_slice(&self) -> &[SectorRange] {
        &self.0
    }
}

/// What a request wants.
pub enum Operation {
    /// Reads from `sector` on, as many bytes as there is memory.
    Read {
        /// The first sector.
        sector: u64,
        /// Where to.
        memory: BlockMemory,
    },
    /// Writes from `sector` on.
    Write {
        /// The first sector.
        sector: u64,
        /// What.
        memory: BlockMemory,
        /// It is done only when the bytes can no longer be lost.
        through: bool,
    },
    /// All writes that were done when this was submitted can no longer be lost when it is done.
    Flush,
    /// Nobody needs these any more; what a read of them gives is undefined.
    Discard(Ranges),
    /// Zeroes are there.
    WriteZeroes {
        /// Where.
        ranges: Ranges,
        /// The store may give the space back.
        may_discard: bool,
        /// As of a write.
        through: bool,
    },
}

/// A request to a store.
pub struct BlockRequest {
    /// By which the disk knows it again.
    pub token: u32,
    /// What it wants.
    pub operation: Operation,
}

/// A request that came to its end.
pub struct Done {
    /// The request, with its memory.
    pub request: BlockRequest,
    /// How it ended.
    pub result: Result<(), BlockError>,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// The store could not read or write.
    Io,
    /// It has no space left.
    NoSpace,
    /// It is not so large, or not any more.
    OutOfRange,
    /// It takes no writes.
    ReadOnly,
    /// It cannot do that.
    Unsupported,
    /// The host has no memory for it.
    NoMemory,
    /// It is not there any more.
    Gone,
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Io => "it could not be read or written",
            Self::NoSpace => "there is no space left",
            Self::OutOfRange => "it is not so large",
            Self::ReadOnly => "it is read-only",
            Self::Unsupported => "it cannot do that",
            Self::NoMemory => "the host has too little memory",
            Self::Gone => "it is not there any more",
        })
    }
}

impl From<NoMemory> for BlockError {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// A store. Its owner calls it on one thread at a time; all calls but [`BlockStore::drain`] come back soon. When it is dropped, it first
/// ends what is under way.
pub trait BlockStore: Send {
    /// What it is like now.
    fn info(&self) -> BlockInfo;
    /// Called once, before the first request: it calls `wake` whenever a request is done, and when [`BlockStore::info`] has changed.
    fn begin(&mut self, wake: Box<dyn Wake>) -> Result<(), NoMemory>;
    /// Takes a request; gives it back if it can take no more before one is done. The caller has held it against
    /// [`BlockStore::info`] with [`BlockInfo::check`].
    fn submit(&mut self, request: BlockRequest) -> Result<(), BlockRequest>;
    /// Gives back a request that is done. The order is the store's.
    fn next_done(&mut self) -> Option<Done>;
    /// Returns when all that is under way is done. May take long.
    fn drain(&mut self);
    /// Makes it so many bytes long, whole blocks. [`BlockStore::info`] tells the new size. May take long.
    fn resize(&mut self, _bytes: u64) -> Result<(), BlockError> {
        Err(BlockError::Unsupported)
    }
    /// What was written is there when the VM is not: a VM that is loaded from a file can go on with it.
    fn outlives_vm(&self) -> bool {
        true
    }
}

impl BlockInfo {
    /// Whether a request can be made of this store.
    pub fn check(&self, operation: &Operation) -> Result<(), BlockError> {
        match operation {
            Operation::Read { sector, memory } => self.check_memory(*sector, memory),
            Operation::Write { sector, memory, .. } => {
                self.check_writable()?;
                self.check_memory(*sector, memory)
            }
            Operation::Flush => Ok(()),
            Operation::Discard(_) if !self.can_discard => Err(BlockError::Unsupported),
            Operation::WriteZeroes { .. } if !self.can_write_zeroes => Err(BlockError::Unsupported),
            Operation::Discard(ranges) | Operation::WriteZeroes { ranges, .. } => {
                self.check_writable()?;
                let mut all = ranges.as_slice().iter();
                all.try_for_each(|range| self.check_range(range))
            }
        }
    }

    fn check_writable(&self) -> Result<(), BlockError> {
        match self.is_read_only {
            true => Err(BlockError::ReadOnly),
            false => Ok(()),
        }
    }

    fn check_memory(&self, sector: u64, memory: &BlockMemory) -> Result<(), BlockError> {
        if memory.bytes() % SECTOR_BYTES != 0 {
            return Err(BlockError::Io);
        }
        let count = memory.bytes() / SECTOR_BYTES;
        self.check_range(&SectorRange { sector, count })
    }

    fn check_range(&self, range: &SectorRange) -> Result<(), BlockError> {
        // A power of two.
        let block_sectors = u64::from(self.block_bytes) / SECTOR_BYTES;
        if (range.sector | range.count) & block_sectors.saturating_sub(1) != 0 {
            return Err(BlockError::Io);
        }
        match range.is_in(self.sectors) {
            true => Ok(()),
            false => Err(BlockError::OutOfRange),
        }
    }
}

/// The guest's memory that a request reads or writes: pinned pieces, one behind the other.
#[derive(Default)]
pub struct BlockMemory {
    /// Most requests have one piece, which needs no list.
    first: Option<Piece>,
    rest: Vec<Piece>,
    bytes: u64,
}

struct Piece {
    pinned: Box<dyn PinnedMemory>,
    bytes: u64,
}

impl BlockMemory {
    /// One more piece at its end.
    pub fn push(&mut self, pinned: Box<dyn PinnedMemory>, bytes: u64) -> Result<(), NoMemory> {
        let piece = Piece { pinned, bytes };
        match self.first {
            None => self.first = Some(piece),
            Some(_) => self.rest.try_push(piece)?,
        }
        self.bytes = self.bytes.saturating_add(bytes);
        Ok(())
    }
    /// How much it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    /// Calls `piece` for each piece in order: where the host has it, and how many bytes.
    pub fn pieces(&self, piece: &mut dyn FnMut(Hpa, u64)) {
        for of in self.all() {
            of.pinned.pieces(piece);
        }
    }
    fn all(&self) -> impl Iterator<Item = &Piece> {
        self.first.iter().chain(&self.rest)
    }

    /// Copies out of it, from `at` bytes behind its beginning.
    pub fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.for_parts(at, buf.len(), |pinned, at, part| {
            pinned.read(at, buf.get_mut(part).unwrap_or_default())
        })
    }
    /// Copies into it.
    pub fn write(&self, at: u64, data: &[u8]) -> Result<(), BlockError> {
        self.for_parts(at, data.len(), |pinned, at, part| {
            pinned.write(at, data.get(part).unwrap_or_default())
        })
    }

    /// Calls `f` for the part of `len` bytes at `at` that is in each piece.
    fn for_parts(
        &self,
        at: u64,
        len: usize,
        mut f: impl FnMut(&dyn PinnedMemory, u64, core::ops::Range<usize>) -> bool,
    ) -> Result<(), BlockError> {
        let (mut skip, mut done) = (at, 0usize);
        for piece in self.all() {
            if done == len {
                break;
            }
            if skip >= piece.bytes {
                skip = skip.wrapping_sub(piece.bytes);
                continue;
            }
            let there = usize::try_from(piece.bytes.wrapping_sub(skip)).unwrap_or(usize::MAX);
            let part = done..done.saturating_add(there).min(len);
            done = part.end;
            if !f(piece.pinned.as_ref(), skip, part) {
                return Err(BlockError::Io);
            }
            skip = 0;
        }
        match done == len {
            true => Ok(()),
            false => Err(BlockError::Io),
        }
    }
}

/// What a store has done and not given back: for stores that are done when `submit` returns.
struct DoneList {
    done: Vec<Done>,
    most: usize,
}

impl DoneList {
    fn new(most: usize) -> Result<Self, NoMemory> {
        let mut done = Vec::new();
        done.try_reserve_exact(most).map_err(|_| NoMemory)?;
        Ok(Self { done, most })
    }
    fn is_full(&self) -> bool {
        self.done.len() >= self.most
    }
    /// There was room: whoever submits looks first.
    fn push(&mut self, request: BlockRequest, result: Result<(), BlockError>) {
        let pushed = self.done.try_push(Done { request, result });
        debug_assert!(pushed.is_ok());
    }
    fn pop(&mut self) -> Option<Done> {
        self.done.pop()
    }
}

/// How many requests such a store keeps.
const MOST_DONE: usize = 64;
