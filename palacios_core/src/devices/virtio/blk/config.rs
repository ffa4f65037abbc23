// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a driver is told of a disk (virtio 1.2: 5.2.3, 5.2.4).
#![forbid(unsafe_code)]

use crate::block::{BlockInfo, MAX_RANGES, SECTOR_BYTES};

/// How many requests a queue holds.
pub const QUEUE_SIZE: u16 = 128;
/// The most bytes of a piece of data.
pub const SIZE_MAX: u32 = 64 << 10;
/// The most pieces of data of a request: header and status are in the chain, too.
pub const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// The most sectors of a range that is discarded or zeroed.
pub const MAX_RANGE_SECTORS: u32 = (64 << 20) / SECTOR_BYTES as u32;
/// Where the driver sets the cache's mode.
pub(super) const WRITEBACK: u64 = 32;
/// How many bytes there are.
const BYTES: usize = 60;

/// Features of a block device.
pub mod feature {
    /// VIRTIO_BLK_F_SIZE_MAX.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// VIRTIO_BLK_F_SEG_MAX.
    pub const SEG_MAX: u64 = 1 << 2;
    /// VIRTIO_BLK_F_GEOMETRY.
    pub const GEOMETRY: u64 = 1 << 4;
    /// VIRTIO_BLK_F_RO.
    pub const RO: u64 = 1 << 5;
    /// VIRTIO_BLK_F_BLK_SIZE.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// VIRTIO_BLK_F_FLUSH.
    pub const FLUSH: u64 = 1 << 9;
    /// VIRTIO_BLK_F_TOPOLOGY.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// VIRTIO_BLK_F_CONFIG_WCE.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// VIRTIO_BLK_F_MQ.
    pub const MQ: u64 = 1 << 12;
    /// VIRTIO_BLK_F_DISCARD.
    pub const DISCARD: u64 = 1 << 13;
    /// VIRTIO_BLK_F_WRITE_ZEROES.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// What a disk over such a store offers.
pub(super) fn features(info: &BlockInfo) -> u64 {
    let always = feature::SIZE_MAX
        | feature::SEG_MAX
        | feature::GEOMETRY
        | feature::BLK_SIZE
        | feature::TOPOLOGY
        | feature::MQ;
    [
        (info.is_read_only, feature::RO),
        (info.needs_flush, feature::FLUSH | feature::CONFIG_WCE),
        (info.can_discard, feature::DISCARD),
        (info.can_write_zeroes, feature::WRITE_ZEROES),
    ]
    .into_iter()
    .filter(|(has, _)| *has)
    .fold(always, |features, (_, feature)| features | feature)
}

/// Whether writes may wait in a cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cache {
    is_writeback: bool,
}

impl Default for Cache {
    fn default() -> Self {
        Self { is_writeback: true }
    }
}

impl Cache {
    pub(super) fn is_writeback(self) -> bool {
        self.is_writeback
    }
    pub(super) fn set_writeback(&mut self, value: u8) {
        self.is_writeback = value != 0;
    }
    /// Whether a write is done only when it cannot be lost. A driver that knows no flush counts on that (virtio 1.2: 5.2.6.2).
    pub(super) fn writes_through(self, features: u64) -> bool {
        features & feature::FLUSH == 0 || features & feature::CONFIG_WCE != 0 && !self.is_writeback
    }
}

/// The configuration space (virtio 1.2: 5.2.4).
pub(super) fn image(info: &BlockInfo, queues: u16, cache: Cache) -> [u8; BYTES] {
    let sectors_of = |bytes: u32| (bytes / SECTOR_BYTES as u32).max(1);
    let block_sectors = sectors_of(info.block_bytes);
    let ratio = (info.physical_block_bytes / info.block_bytes.max(1)).max(1);
    let ranges = MAX_RANGES as u32;
    let [cylinders, heads, sectors] = geometry(info.sectors);
    let [heads, sectors] = [heads, sectors].map(|count| count as u8);
    let mut image = [0; BYTES];
    let mut put = |at: usize, bytes: &[u8]| {
        let there = image.iter_mut().skip(at);
        there.zip(bytes).for_each(|(to, from)| *to = *from);
    };
    put(0, &info.sectors.to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(16, &cylinders.to_le_bytes());
    put(18, &[heads, sectors]);
    put(20, &info.block_bytes.to_le_bytes());
    // The physical block in logical ones, as a power of two; it begins with the first. Then the smallest good request, in blocks; no best
    // one is known.
    put(24, &[ratio.checked_ilog2().unwrap_or(0) as u8, 0]);
    put(26, &(ratio as u16).to_le_bytes());
    put(WRITEBACK as usize, &[cache.is_writeback().into()]);
    put(34, &queues.to_le_bytes());
    if info.can_discard {
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &ranges.to_le_bytes());
        put(44, &block_sectors.to_le_bytes());
    }
    if info.can_write_zeroes {
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &ranges.to_le_bytes());
        put(56, &[1]);
    }
    image
}

/// Cylinders, heads and sectors for systems that count so: as many cylinders as 16 bits can tell.
fn geometry(sectors: u64) -> [u16; 3] {
    const HEADS: u16 = 16;
    const SECTORS: u16 = 63;
    let cylinders = sectors / (HEADS as u64 * SECTORS as u64);
    [cylinders.min(u16::MAX.into()) as u16, HEADS, SECTORS]
}
