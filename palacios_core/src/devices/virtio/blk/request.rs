// SPDX-License-Identifier: MIT OR Apache-2.0
//! A request of a driver's, from its chain to what the store is asked for (virtio 1.2: 5.2.6).
#![forbid(unsafe_code)]

use super::config::MAX_RANGE_SECTORS;
use crate::addr::{Gpa, PAGE_SIZE};
use crate::alloc_ext::NoMemory;
use crate::block::{
    BlockError, BlockInfo, BlockMemory, Operation, Ranges, SectorRange, MAX_RANGES,
};
use crate::devices::links::{Dma, DmaError};
use crate::devices::virtio::chain::{copy_in, copy_out, pieces, total_bytes, Chain, Segment};
use crate::devices::virtio::QueueError;
use crate::interfaces::PinError;

/// The header, which the device reads first.
const HEADER_BYTES: u64 = 16;
/// A range to discard or to zero.
const RANGE_BYTES: u64 = 16;
/// The most data of a request. More than any driver sends, as it is told less.
const MAX_DATA_BYTES: u64 = 64 << 20;

/// Types of requests.
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Of a range that is zeroed: its space may be given back.
const UNMAP: u32 = 1;

/// A request's header, and where its status goes.
pub(super) struct Request {
    kind: u32,
    sector: u64,
    pub(super) status_at: Gpa,
}

/// What a disk can do now.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) info: BlockInfo,
    pub(super) can_discard: bool,
    pub(super) can_write_zeroes: bool,
    /// Writes are done only when they cannot be lost.
    pub(super) through: bool,
}

/// What is to be done for a request.
pub(super) enum Asked {
    /// This, by the store; and so many bytes of data are written to the guest if that ends well.
    Store(Operation, u32),
    /// Nothing yet: too many transfers use its memory.
    Later,
    /// The disk tells its name.
    Id,
    /// Nothing: it cannot be.
    Refused(BlockError),
}

impl From<Result<(Operation, u32), BlockError>> for Asked {
    fn from(asked: Result<(Operation, u32), BlockError>) -> Self {
        match asked {
            Ok((operation, data_bytes)) => Self::Store(operation, data_bytes),
            Err(error) => Self::Refused(error),
        }
    }
}

/// Why memory of the guest's is no data.
enum Unpinned {
    /// The driver broke the rules.
    Queue(QueueError),
    /// The request fails.
    Block(BlockError),
    /// Too many transfers use it.
    Crowded,
}

impl From<NoMemory> for Unpinned {
    fn from(NoMemory: NoMemory) -> Self {
        Self::Block(BlockError::NoMemory)
    }
}

impl Request {
    /// Reads the header. Each request has one, and a byte for its status behind all else.
    pub(super) fn read(dma: &Dma, chain: &Chain) -> Result<Self, QueueError> {
        let mut header = [0; HEADER_BYTES as usize];
        let count = copy_out(dma, chain.readable(), 0, &mut header)?;
        let last = chain.writable().iter().rev().find(|of| of.bytes > 0);
        let (true, Some(last)) = (count == header.len(), last) else {
            return Err(QueueError::Request);
        };
        let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        Ok(Self {
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            status_at: last.at.wrapping_add(u64::from(last.bytes).wrapping_sub(1)),
        })
    }

    /// What it asks for. Its data is pinned then.
    pub(super) fn ask(
        &self,
        dma: &Dma,
        chain: &Chain,
        limits: Limits,
    ) -> Result<Asked, QueueError> {
        let asked = match self.kind {
            kind::IN => self.transfer(dma, chain.writable(), 0, true, limits),
            kind::OUT => self.transfer(dma, chain.readable(), HEADER_BYTES, false, limits),
            kind::FLUSH => Ok((Operation::Flush, 0)),
            kind::DISCARD if limits.can_discard => return ranges(dma, chain, limits, false),
            kind::WRITE_ZEROES if limits.can_write_zeroes => {
                return ranges(dma, chain, limits, true);
            }
            kind::GET_ID => return Ok(Asked::Id),
            _ => return Ok(Asked::Refused(BlockError::Unsupported)),
        };
        match asked {
            Err(Unpinned::Queue(error)) => Err(error),
            Err(Unpinned::Block(error)) => Ok(Asked::Refused(error)),
            Err(Unpinned::Crowded) => Ok(Asked::Later),
            Ok((operation, data_bytes)) => {
                let checked = limits.info.check(&operation);
                Ok(checked.map(|()| (operation, data_bytes)).into())
            }
        }
    }

    /// A read or write of what segments name behind `from`; of those that are written the last byte is the status.
    fn transfer(
        &self,
        dma: &Dma,
        segments: &[Segment],
        from: u64,
        is_read: bool,
        limits: Limits,
    ) -> Result<(Operation, u32), Unpinned> {
        let of_status = u64::from(is_read);
        let bytes = total_bytes(segments)
            .saturating_sub(from)
            .saturating_sub(of_status);
        if bytes > MAX_DATA_BYTES {
            return Err(Unpinned::Block(BlockError::Io));
        }
        if !is_read && limits.info.is_read_only {
            return Err(Unpinned::Block(BlockError::ReadOnly));
        }
        let mut memory = BlockMemory::default();
        for piece in pieces(segments, from, bytes) {
            pin(dma, piece, is_read, &mut memory)?;
        }
        let sector = self.sector;
        Ok(match is_read {
            true => (Operation::Read { sector, memory }, bytes as u32),
            false => {
                let through = limits.through;
                let write = Operation::Write {
                    sector,
                    memory,
                    through,
                };
                (write, 0)
            }
        })
    }

    /// Writes the disk's name; returns how many bytes of it there was room for.
    pub(super) fn write_id(&self, dma: &Dma, chain: &Chain, id: &[u8]) -> Result<u32, QueueError> {
        let room = total_bytes(chain.writable()).saturating_sub(1);
        let count = usize::try_from(room).unwrap_or(usize::MAX).min(id.len());
        let id = id.get(..count).unwrap_or_default();
        Ok(copy_in(dma, chain.writable(), 0, id)? as u32)
    }
}

/// Pins a piece of data. One that lies in two regions of memory is pinned in two.
fn pin(dma: &Dma, piece: Segment, write: bool, to: &mut BlockMemory) -> Result<(), Unpinned> {
    let mut left = piece;
    while left.bytes > 0 {
        let mut part = left;
        let pinned = loop {
            match dma.pin(part.at, part.bytes.into(), write) {
                Ok(pinned) => break pinned,
                Err(DmaError::NotPinned(PinError::CrossesRegions)) if has_end_of_page(&part) => {
                    part.bytes = first_half(&part);
                }
                Err(error) => return Err(unpinned(error)),
            }
        };
        to.push(pinned, part.bytes.into())?;
        left = Segment {
            at: left.at.wrapping_add(part.bytes.into()),
            bytes: left.bytes.wrapping_sub(part.bytes),
        };
    }
    Ok(())
}

fn to_end_of_page(at: Gpa) -> u32 {
    PAGE_SIZE.wrapping_sub(at.page_offset()) as u32
}

fn has_end_of_page(part: &Segment) -> bool {
    part.bytes > to_end_of_page(part.at)
}

/// About half of what ends with a page, and not nothing.
fn first_half(part: &Segment) -> u32 {
    let first = to_end_of_page(part.at);
    let rest = part.bytes.saturating_sub(first);
    let half_of_rest = rest / 2 / PAGE_SIZE as u32 * PAGE_SIZE as u32;
    first.wrapping_add(half_of_rest)
}

fn unpinned(error: DmaError) -> Unpinned {
    match error {
        DmaError::NotPinned(PinError::NotMemory(_)) | DmaError::Closed | DmaError::NotRam(_) => {
            Unpinned::Queue(QueueError::Memory(error))
        }
        DmaError::NotPinned(PinError::NoMemory) => Unpinned::Block(BlockError::NoMemory),
        DmaError::NotPinned(PinError::CrossesRegions) => Unpinned::Block(BlockError::Io),
        DmaError::NotPinned(PinError::TooMany) => Unpinned::Crowded,
    }
}

/// The ranges of a request to discard, or to write zeroes (virtio 1.2: 5.2.6.1, 5.2.6.2).
fn ranges(
    dma: &Dma,
    chain: &Chain,
    limits: Limits,
    write_zeroes: bool,
) -> Result<Asked, QueueError> {
    let bytes = total_bytes(chain.readable()).saturating_sub(HEADER_BYTES);
    let count = bytes / RANGE_BYTES;
    if bytes % RANGE_BYTES != 0 || count == 0 || count > MAX_RANGES as u64 {
        return Ok(Asked::Refused(BlockError::Io));
    }
    let (mut ranges, mut may_discard) = (Ranges::default(), write_zeroes);
    for n in 0..count {
        let mut raw = [0; RANGE_BYTES as usize];
        let at = HEADER_BYTES.wrapping_add(n.wrapping_mul(RANGE_BYTES));
        copy_out(dma, chain.readable(), at, &mut raw)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, f0, f1, f2, f3] = raw;
        let range = SectorRange {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            count: u32::from_le_bytes([c0, c1, c2, c3]).into(),
        };
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        if flags & !UNMAP != 0 || flags & UNMAP != 0 && !write_zeroes {
            return Ok(Asked::Refused(BlockError::Unsupported));
        }
        may_discard &= flags & UNMAP != 0;
        if range.count > MAX_RANGE_SECTORS.into() {
            return Ok(Asked::Refused(BlockError::Io));
        }
        if let Err(NoMemory) = ranges.push(range) {
            return Ok(Asked::Refused(BlockError::NoMemory));
        }
    }
    let operation = match write_zeroes {
        true => Operation::WriteZeroes {
            ranges,
            may_discard,
            through: limits.through,
        },
        false => Operation::Discard(ranges),
    };
    let checked = limits.info.check(&operation);
    Ok(checked.map(|()| (operation, 0)).into())
}
