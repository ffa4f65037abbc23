// SPDX-License-Identifier: MIT OR Apache-2.0
//! A split virtqueue, the device's side (virtio 1.2: 2.7).
//!
//! ```text
//!            driver                      guest memory                       device
//!   adds a chain of buffers ──▶ descriptors
//!   offers it ────────────────▶ available ring: heads, index ──▶ takes it        next_available
//!                               used ring: heads, index     ◀── puts it back     next_used
//!   takes it back ◀────────────                             ◀── publishes        published_used
//! ```
//!
//! All of it is in the guest's memory, which the guest may change at any time. The device believes nothing of it that it has not checked
//! in a copy of its own. What breaks the rules is a [`QueueError`], after which the device wants to be reset.
#![forbid(unsafe_code)]

use super::chain::{Chain, DESCRIPTOR_BYTES};
use super::error::QueueError;
use crate::addr::Gpa;
use crate::devices::links::Dma;
use crate::state_io::{StateError, StateReader, StateWriter};
use core::sync::atomic::{fence, Ordering};

/// The largest queue that a device has. A chain is no longer.
pub const MAX_QUEUE_SIZE: u16 = 256;
/// The vector that is none (virtio 1.2: 4.1.5.1.3).
pub const NO_VECTOR: u16 = 0xffff;

/// In the available ring: the driver wants no interrupts. In the used ring: the device wants no notifications.
const NOT_NOW: u16 = 1;
/// Where the entries of both rings begin.
const RING_HEADER_BYTES: u64 = 4;
const INDEX_AT: u64 = 2;
const AVAILABLE_BYTES: u64 = 2;
const USED_BYTES: u64 = 8;
/// How many entries of a ring are read or written at once at most, a power of two: a step of a device takes about so many.
const AT_ONCE: usize = 16;

/// What device and driver agreed on about rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// VIRTIO_F_EVENT_IDX: each side says at which index it wants to be told.
    pub event_index: bool,
}

/// A queue.
#[derive(Debug)]
pub struct Queue {
    max_size: u16,
    // What the driver sets.
    pub(super) size: u16,
    pub(super) descriptors: Gpa,
    pub(super) available: Gpa,
    pub(super) used: Gpa,
    pub(super) vector: u16,
    ready: bool,
    /// How many chains were taken, modulo 2^16.
    next_available: u16,
    /// How many the driver had offered when that was last read.
    offered: u16,
    /// Heads of chains that were read of the available ring: those before `read_until`, each in the slot of its number.
    heads: [u16; AT_ONCE],
    read_until: u16,
    /// How many were put back.
    next_used: u16,
    /// How many of them are in the used ring; the others' entries are in `entries`, each in the slot of its number.
    written_used: u16,
    entries: [u64; AT_ONCE],
    /// How many of them the driver knows of.
    published_used: u16,
    /// The driver was told that it need not notify.
    is_suppressed: bool,
    /// Chains may wait.
    is_pending: bool,
}

impl Queue {
    /// A queue that the driver can make as large as `max_size`, a power of two.
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            descriptors: Gpa(0),
            available: Gpa(0),
            used: Gpa(0),
            vector: NO_VECTOR,
            ready: false,
            next_available: 0,
            offered: 0,
            heads: [0; AT_ONCE],
            read_until: 0,
            next_used: 0,
            written_used: 0,
            entries: [0; AT_ONCE],
            published_used: 0,
            is_suppressed: false,
            is_pending: false,
        }
    }
    /// Back to the beginning.
    pub fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// The largest size.
    pub fn max_size(&self) -> u16 {
        self.max_size
    }
    /// It is set up.
    pub fn is_ready(&self) -> bool {
        self.ready
    }
    /// Chains may wait in it.
    pub fn is_pending(&self) -> bool {
        self.is_pending && self.ready
    }
    /// The driver has notified, or may have.
    pub fn set_pending(&mut self) {
        self.is_pending = true;
    }

    /// The driver has set it up.
    pub fn enable(&mut self) -> Result<(), QueueError> {
        self.check().then_some(()).ok_or(QueueError::SetUp)?;
        (self.ready, self.is_pending) = (true, true);
        Ok(())
    }
    /// The driver has taken it away. If it comes again, that is from the beginning.
    pub fn disable(&mut self) {
        *self = Self {
            vector: self.vector,
            ..Self::new(self.max_size)
        };
    }

    /// Whether size and addresses are such as the driver may choose (virtio 1.2: 2.7).
    fn check(&self) -> bool {
        let of = |entry: u64| entry.wrapping_mul(self.size.into());
        let ring = |entry| of(entry).wrapping_add(RING_HEADER_BYTES).wrapping_add(2);
        let fits =
            |at: Gpa, align: u64, bytes| at.0 % align == 0 && at.checked_add(bytes).is_some();
        self.size.is_power_of_two()
            && self.size <= self.max_size
            && fits(self.descriptors, 16, of(DESCRIPTOR_BYTES))
            && fits(self.available, 2, ring(AVAILABLE_BYTES))
            && fits(self.used, 4, ring(USED_BYTES))
    }

    /// Where entry `index` of a ring is, if each has `bytes`.
    fn entry(&self, ring: Gpa, index: u16, bytes: u64) -> Gpa {
        let slot = index & self.size.wrapping_sub(1);
        let offset = u64::from(slot).wrapping_mul(bytes);
        ring.wrapping_add(RING_HEADER_BYTES.wrapping_add(offset))
    }
    /// Where the index is that stands behind the entries of a ring: of the available ring the driver's used_event, of the used ring the
    /// device's avail_event (virtio 1.2: 2.7.7.1, 2.7.10).
    fn event(&self, ring: Gpa, bytes: u64) -> Gpa {
        let entries = u64::from(self.size).wrapping_mul(bytes);
        ring.wrapping_add(RING_HEADER_BYTES.wrapping_add(entries))
    }

    /// Reads how many chains the driver has offered.
    fn look(&mut self, dma: &Dma) -> Result<(), QueueError> {
        let offered = read_u16(dma, self.available.wrapping_add(INDEX_AT))?;
        // Entries are read behind the index (virtio 1.2: 2.7.13).
        fence(Ordering::Acquire);
        // A driver that offers more than that offers some descriptor twice.
        if offered.wrapping_sub(self.published_used) > self.size {
            return Err(QueueError::Index);
        }
        self.offered = offered;
        Ok(())
    }

    /// Takes the next chain. `false`: there is none, and the driver notifies when there is one.
    pub fn take(
        &mut self,
        dma: &Dma,
        features: RingFeatures,
        chain: &mut Chain,
    ) -> Result<bool, QueueError> {
        if !self.is_pending() {
            return Ok(false);
        }
        if self.offered == self.next_available {
            self.look(dma)?;
        }
        if self.offered == self.next_available && !self.rearm(dma, features)? {
            self.is_pending = false;
            return Ok(false);
        }
        self.suppress(dma, features)?;
        let head = self.head(dma)?;
        chain.read(dma, self.descriptors, self.size, head, features.indirect)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(true)
    }

    /// The head of the next chain. It is read with those behind it.
    fn head(&mut self, dma: &Dma) -> Result<u16, QueueError> {
        if self.read_until == self.next_available {
            self.read_heads(dma)?;
        }
        let head = self.heads.get(slot(self.next_available));
        head.copied().ok_or(QueueError::Index)
    }

    fn read_heads(&mut self, dma: &Dma) -> Result<(), QueueError> {
        let first = self.next_available;
        let waiting = self.offered.wrapping_sub(first);
        let count = self.in_a_row(first, waiting);
        let mut raw = [[0; AVAILABLE_BYTES as usize]; AT_ONCE];
        let wanted = raw.get_mut(..count).unwrap_or_default();
        let at = self.entry(self.available, first, AVAILABLE_BYTES);
        dma.read(at, wanted.as_flattened_mut())?;
        let heads = self.heads.iter_mut().skip(slot(first));
        heads
            .zip(raw)
            .for_each(|(to, raw)| *to = u16::from_le_bytes(raw));
        self.read_until = first.wrapping_add(count as u16);
        Ok(())
    }

    /// How many of `count` entries from `first` on are read or written at once: the ring goes on at its beginning, and so do the copies of it.
    fn in_a_row(&self, first: u16, count: u16) -> usize {
        let row = usize::from(self.size).clamp(1, AT_ONCE);
        let to_end = row.wrapping_sub(usize::from(first) & row.wrapping_sub(1));
        usize::from(count).min(to_end)
    }

    /// While chains are taken, no notification is wanted.
    fn suppress(&mut self, dma: &Dma, features: RingFeatures) -> Result<(), QueueError> {
        // With an event index the driver notifies only if it passes the index that was last told, and that is behind.
        if features.event_index || self.is_suppressed {
            return Ok(());
        }
        self.is_suppressed = true;
        Ok(dma.write(self.used, &NOT_NOW.to_le_bytes())?)
    }

    /// Asks the driver to notify of the next chain. `true`: one is there already.
    fn rearm(&mut self, dma: &Dma, features: RingFeatures) -> Result<bool, QueueError> {
        if features.event_index {
            let event = self.event(self.used, USED_BYTES);
            dma.write(event, &self.next_available.to_le_bytes())?;
        } else if self.is_suppressed {
            self.is_suppressed = false;
            dma.write(self.used, &[0; 2])?;
        }
        // The driver writes its index and then reads this. One of both sees what the other wrote.
        fence(Ordering::SeqCst);
        self.look(dma)?;
        Ok(self.offered != self.next_available)
    }

    /// Puts a chain back, into which the device has written `written` bytes. The driver sees it when it is published.
    pub fn put(&mut self, dma: &Dma, head: u16, written: u32) -> Result<(), QueueError> {
        if let Some(entry) = self.entries.get_mut(slot(self.next_used)) {
            *entry = u64::from(head) | u64::from(written) << 32;
        }
        self.next_used = self.next_used.wrapping_add(1);
        let waiting = self.next_used.wrapping_sub(self.written_used);
        match usize::from(waiting) == self.in_a_row(self.written_used, self.size) {
            true => self.write_entries(dma),
            false => Ok(()),
        }
    }

    /// Writes the entries that are not in the used ring yet. They are in a row.
    fn write_entries(&mut self, dma: &Dma) -> Result<(), QueueError> {
        let first = self.written_used;
        let count = usize::from(self.next_used.wrapping_sub(first));
        let mut raw = [[0; USED_BYTES as usize]; AT_ONCE];
        let entries = self.entries.iter().skip(slot(first));
        raw.iter_mut()
            .zip(entries)
            .for_each(|(to, entry)| *to = entry.to_le_bytes());
        let written = raw.get(..count).unwrap_or_default();
        dma.write(
            self.entry(self.used, first, USED_BYTES),
            written.as_flattened(),
        )?;
        self.written_used = self.next_used;
        Ok(())
    }

    /// Shows the driver all chains that were put back. `true`: it wants an interrupt for them.
    pub fn publish(&mut self, dma: &Dma, features: RingFeatures) -> Result<bool, QueueError> {
        if !self.ready || self.next_used == self.published_used {
            return Ok(false);
        }
        self.write_entries(dma)?;
        // The index is written behind the entries (virtio 1.2: 2.7.8.2).
        fence(Ordering::Release);
        let index = self.used.wrapping_add(INDEX_AT);
        dma.write(index, &self.next_used.to_le_bytes())?;
        let before = core::mem::replace(&mut self.published_used, self.next_used);
        // The driver writes what it wants and then reads the index. One of both sees what the other wrote.
        fence(Ordering::SeqCst);
        if features.event_index {
            let event = read_u16(dma, self.event(self.available, AVAILABLE_BYTES))?;
            return Ok(passes(event, before, self.next_used));
        }
        Ok(read_u16(dma, self.available)? & NOT_NOW == 0)
    }

    /// Writes its state. It is at rest: all chains that were taken are back.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u16(self.size)?;
        to.u64(self.descriptors.0)?;
        to.u64(self.available.0)?;
        to.u64(self.used.0)?;
        to.u16(self.vector)?;
        to.bool(self.ready)?;
        to.bool(self.is_suppressed)?;
        to.u16(self.next_available)?;
        to.u16(self.next_used)
    }

    /// The queue that was saved, with the largest size of this one.
    pub fn restored(&self, from: &mut StateReader<'_>) -> Result<Self, StateError> {
        let mut queue = Self {
            size: from.u16()?,
            descriptors: Gpa(from.u64()?),
            available: Gpa(from.u64()?),
            used: Gpa(from.u64()?),
            vector: from.u16()?,
            ready: from.bool("a queue's state")?,
            is_suppressed: from.bool("a queue's state")?,
            next_available: from.u16()?,
            next_used: from.u16()?,
            ..Self::new(self.max_size)
        };
        if queue.ready && !queue.check() {
            return Err(StateError::Value("a queue's size or address"));
        }
        (queue.offered, queue.read_until) = (queue.next_available, queue.next_available);
        (queue.published_used, queue.written_used) = (queue.next_used, queue.next_used);
        // Nobody knows of the notifications that came meanwhile.
        queue.is_pending = queue.ready;
        Ok(queue)
    }
}

/// Where the copy of a ring's entry is.
fn slot(index: u16) -> usize {
    usize::from(index) % AT_ONCE
}

/// Whether an index that went from `before` to `now` passed `event` (virtio 1.2: 2.7.7.2).
fn passes(event: u16, before: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(before)
}

fn read_u16(dma: &Dma, at: Gpa) -> Result<u16, QueueError> {
    let mut bytes = [0; 2];
    dma.read(at, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
