// SPDX-License-Identifier: MIT OR Apache-2.0
//! A descriptor chain: what the driver hands to the device in one piece (virtio 1.2: 2.7.5).
//!
//! The guest may change a descriptor at any time. Each is read once, what was read is checked, and only that is used.
#![forbid(unsafe_code)]

use super::error::QueueError;
use crate::addr::Gpa;
use crate::alloc_ext::{NoMemory, TryPush};
use crate::devices::links::Dma;
use alloc::vec::Vec;

/// The bytes of a descriptor.
pub const DESCRIPTOR_BYTES: u64 = 16;
/// How many descriptors are read at once at most.
const AT_ONCE: usize = 4;

/// The flags of a descriptor (virtio 1.2: 2.7.5).
mod flag {
    pub const NEXT: u16 = 1 << 0;
    pub const WRITE: u16 = 1 << 1;
    pub const INDIRECT: u16 = 1 << 2;
}

/// A descriptor.
#[derive(Clone, Copy, Default)]
struct Descriptor {
    at: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn of(raw: [u8; DESCRIPTOR_BYTES as usize]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, f0, f1, n0, n1] = raw;
        Self {
            at: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            bytes: u32::from_le_bytes([b0, b1, b2, b3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A piece of guest memory that a chain names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub at: Gpa,
    /// How long it is.
    pub bytes: u32,
}

/// A chain that was taken from a queue. It is used again and again, and asks for no memory.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    /// Those that the device reads, then those that it writes.
    segments: Vec<Segment>,
    readable: usize,
}

/// A table of descriptors, and some that were read of it.
struct Table {
    at: Gpa,
    entries: u16,
    /// How many are read at once.
    at_once: usize,
    /// The first that was read.
    first: u16,
    read: [Descriptor; AT_ONCE],
    count: u16,
}

impl Table {
    fn new(at: Gpa, entries: u16, at_once: usize) -> Self {
        Self {
            at,
            entries,
            at_once,
            first: 0,
            read: [Descriptor::default(); AT_ONCE],
            count: 0,
        }
    }

    /// A descriptor. It was read just now, or with those before it.
    fn get(&mut self, dma: &Dma, index: u16) -> Result<Descriptor, QueueError> {
        let behind = index.wrapping_sub(self.first);
        if behind >= self.count {
            return self.read_from(dma, index);
        }
        let descriptor = self.read.get(usize::from(behind));
        descriptor.copied().ok_or(QueueError::Descriptor)
    }

    /// Reads this descriptor, and some behind it: most chains go on there.
    #[inline]
    fn read_from(&mut self, dma: &Dma, index: u16) -> Result<Descriptor, QueueError> {
        if index >= self.entries {
            return Err(QueueError::Descriptor);
        }
        let left = usize::from(self.entries.wrapping_sub(index));
        let count = left.min(self.at_once).min(AT_ONCE);
        let mut raw = [[0; DESCRIPTOR_BYTES as usize]; AT_ONCE];
        let wanted = raw.get_mut(..count).unwrap_or_default();
        let offset = u64::from(index).wrapping_mul(DESCRIPTOR_BYTES);
        let at = self.at.checked_add(offset).ok_or(QueueError::Descriptor)?;
        dma.read(at, wanted.as_flattened_mut())?;
        for (to, raw) in self.read.iter_mut().zip(raw) {
            *to = Descriptor::of(raw);
        }
        (self.first, self.count) = (index, count as u16);
        let [first, ..] = self.read;
        Ok(first)
    }
}

impl Chain {
    /// Room for chains of queues of at most `most` descriptors.
    pub fn new(most: u16) -> Result<Self, NoMemory> {
        let mut segments = Vec::new();
        let reserved = segments.try_reserve_exact(most.into());
        reserved.map_err(|_| NoMemory)?;
        Ok(Self {
            head: 0,
            segments,
            readable: 0,
        })
    }

    /// Its first descriptor, by which the driver knows it.
    pub fn head(&self) -> u16 {
        self.head
    }
    /// What the device reads.
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }
    /// What the device writes.
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }

    /// Reads the chain that begins at `head` in the table of a queue of `size` descriptors.
    pub(super) fn read(
        &mut self,
        dma: &Dma,
        table: Gpa,
        size: u16,
        head: u16,
        may_be_indirect: bool,
    ) -> Result<(), QueueError> {
        self.segments.clear();
        (self.head, self.readable) = (head, 0);
        // A driver that may use indirect tables does, and then one descriptor leads there.
        let at_once = if may_be_indirect { 1 } else { AT_ONCE };
        let mut table = Table::new(table, size, at_once);
        let (mut index, mut is_indirect, mut bytes) = (head, false, 0u64);
        // A chain has no more descriptors than the queue, in the queue's table and in an indirect one (2.7.5.2, 2.7.5.3.1). The one
        // that leads to that table is one more.
        for _ in 0..=size {
            let descriptor = table.get(dma, index)?;
            if descriptor.has(flag::INDIRECT) {
                if is_indirect || !may_be_indirect || descriptor.has(flag::NEXT) {
                    return Err(QueueError::Indirect);
                }
                table = indirect(&descriptor)?;
                (index, is_indirect) = (0, true);
                continue;
            }
            self.push(&descriptor, size)?;
            bytes = bytes.wrapping_add(descriptor.bytes.into());
            // Lengths are told to the driver in 32 bits (2.7.4.2).
            if bytes > u32::MAX.into() {
                return Err(QueueError::TooLong);
            }
            if !descriptor.has(flag::NEXT) {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(QueueError::Loop)
    }

    fn push(&mut self, descriptor: &Descriptor, size: u16) -> Result<(), QueueError> {
        if self.segments.len() >= usize::from(size) {
            return Err(QueueError::Loop);
        }
        let segment = Segment {
            at: Gpa(descriptor.at),
            bytes: descriptor.bytes,
        };
        if segment.at.checked_add(segment.bytes.into()).is_none() {
            return Err(QueueError::Descriptor);
        }
        if !descriptor.has(flag::WRITE) {
            // What the device reads comes first (2.7.4.2).
            if self.readable != self.segments.len() {
                return Err(QueueError::Order);
            }
            self.readable = self.readable.wrapping_add(1);
        }
        let pushed = self.segments.try_push(segment);
        pushed.map_err(|NoMemory| QueueError::Loop)
    }
}

/// The table that a descriptor leads to.
fn indirect(descriptor: &Descriptor) -> Result<Table, QueueError> {
    let bytes = u64::from(descriptor.bytes);
    match u16::try_from(bytes / DESCRIPTOR_BYTES) {
        Ok(entries @ 1..) if bytes % DESCRIPTOR_BYTES == 0 => {
            Ok(Table::new(Gpa(descriptor.at), entries, AT_ONCE))
        }
        _ => Err(QueueError::Indirect),
    }
}

/// How many bytes segments have.
pub fn total_bytes(segments: &[Segment]) -> u64 {
    let bytes = segments.iter().map(|segment| u64::from(segment.bytes));
    bytes.fold(0, u64::wrapping_add)
}

/// The pieces of `bytes` bytes from `from` on of what segments name, fewer if there are no more.
pub fn pieces(segments: &[Segment], from: u64, bytes: u64) -> impl Iterator<Item = Segment> + '_ {
    let (mut skip, mut left) = (from, bytes);
    segments.iter().filter_map(move |segment| {
        let there = u64::from(segment.bytes);
        if skip >= there {
            skip = skip.wrapping_sub(there);
            return None;
        }
        let at = segment.at.wrapping_add(skip);
        let here = there.wrapping_sub(skip).min(left);
        (skip, left) = (0, left.wrapping_sub(here));
        (here > 0).then_some(Segment {
            at,
            bytes: here as u32,
        })
    })
}

/// Copies out of what segments name, from `from` on; returns how many bytes there were.
pub fn copy_out(
    dma: &Dma,
    segments: &[Segment],
    from: u64,
    buf: &mut [u8],
) -> Result<usize, QueueError> {
    let mut done = 0usize;
    for piece in pieces(segments, from, buf.len() as u64) {
        let end = done.saturating_add(piece.bytes as usize);
        dma.read(piece.at, buf.get_mut(done..end).unwrap_or_default())?;
        done = end;
    }
    Ok(done)
}

/// Copies into what segments name, from `from` on; returns how many bytes there was room for.
pub fn copy_in(
    dma: &Dma,
    segments: &[Segment],
    from: u64,
    data: &[u8],
) -> Result<usize, QueueError> {
    let mut done = 0usize;
    for piece in pieces(segments, from, data.len() as u64) {
        let end = done.saturating_add(piece.bytes as usize);
        dma.write(piece.at, data.get(done..end).unwrap_or_default())?;
        done = end;
    }
    Ok(done)
}
