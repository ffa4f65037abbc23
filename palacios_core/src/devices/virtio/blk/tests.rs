// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of the disk: what a driver asks for, what it should not, stores that go wrong, and power that fails.

use super::*;
use crate::block::faulty::{Fault, FaultSwitch, FaultyStore};
use crate::block::ram::RamStore;
use crate::block::recording::{Dice, Log, RecordingStore};
use crate::block::snapshot::SnapshotStore;
use crate::block::{MAX_RANGES, SECTOR_BYTES};
use crate::devices::testing::{saved, TestMachine};
use crate::devices::virtio::driver::{Buffer, TestDriver, RAM_BYTES};
use crate::devices::virtio::{feature as ring, Virtio};
use proptest::prelude::*;

const SECTOR: usize = SECTOR_BYTES as usize;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// A disk and its driver.
struct Disk(TestDriver);

/// A request that the driver waits for.
struct Waits {
    head: u16,
    status_at: u64,
    data_at: u64,
    data_bytes: usize,
}

impl Disk {
    fn with(store: impl BlockStore + 'static, queues: u16, features: u64) -> Self {
        let blk = Blk::new(Box::new(store), queues, "a disk of the tests").unwrap();
        let mut driver = TestDriver::new(TestMachine::new(), Box::new(blk));
        driver.start(features, QUEUE_SIZE);
        Self(driver)
    }
    fn new(store: impl BlockStore + 'static) -> Self {
        Self::with(store, 1, u64::MAX)
    }
    fn image(&self) -> Vec<u8> {
        (0..60)
            .map(|at| self.0.virtio.read_config(at, 1) as u8)
            .collect()
    }
    fn config(&self, at: u64, size: u8) -> u64 {
        self.0.virtio.read_config(at, size)
    }

    /// Submits a request: header and `out` to be read, `room` bytes and the status to be written, cut into pieces of `cut`.
    fn submit(
        &mut self,
        queue: u16,
        kind: u32,
        sector: u64,
        out: &[u8],
        room: usize,
        cut: usize,
    ) -> Waits {
        let mut read = Vec::new();
        read.extend_from_slice(&kind.to_le_bytes());
        read.extend_from_slice(&[0; 4]);
        read.extend_from_slice(&sector.to_le_bytes());
        read.extend_from_slice(out);
        let driver = &mut self.0;
        let (read_at, write_at) = (driver.allocate(read.len()), driver.allocate(room + 1));
        driver.write_memory(read_at, &read);
        driver.write_memory(write_at + room as u64, &[0xee]);
        let cut_up = |at: u64, bytes: usize, write| {
            let starts = (0..bytes).step_by(cut.max(1));
            starts.map(move |start| Buffer {
                at: at + start as u64,
                bytes: cut.min(bytes - start) as u32,
                write,
            })
        };
        let buffers: Vec<_> = cut_up(read_at, read.len(), false)
            .chain(cut_up(write_at, room + 1, true))
            .collect();
        let head = match buffers.len() % 2 {
            0 => driver.offer_indirect(queue, &buffers),
            _ => driver.offer(queue, &buffers),
        };
        Waits {
            head,
            status_at: write_at + room as u64,
            data_at: write_at,
            data_bytes: room,
        }
    }
    fn status(&self, of: &Waits) -> u8 {
        self.0.read_memory(of.status_at, 1)[0]
    }
    fn data(&self, of: &Waits) -> Vec<u8> {
        self.0.read_memory(of.data_at, of.data_bytes)
    }
    /// Makes a request and waits for it; gives its status, its data, and how much was written.
    fn request(&mut self, kind: u32, sector: u64, out: &[u8], room: usize) -> (u8, Vec<u8>, u32) {
        let waits = self.submit(0, kind, sector, out, room, 1 << 20);
        self.0.run();
        let (head, written) = self.0.take_used(0).expect("it comes back");
        assert_eq!(head, u32::from(waits.head));
        assert_eq!(self.0.machine.pins.get(), 0, "nothing stays pinned");
        (self.status(&waits), self.data(&waits), written)
    }
    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        let (status, _, written) = self.request(OUT, sector, data, 0);
        assert_eq!(written, 1);
        status
    }
    fn read(&mut self, sector: u64, sectors: usize) -> Result<Vec<u8>, u8> {
        let (status, data, written) = self.request(IN, sector, &[], sectors * SECTOR);
        assert_eq!(
            written as usize,
            if status == OK { data.len() + 1 } else { 1 }
        );
        if status == OK {
            Ok(data)
        } else {
            Err(status)
        }
    }
    fn reset(&mut self) {
        self.0.set(0x14, 1, 0);
        assert_eq!(self.0.status(), 0);
    }
    fn start(&mut self, features: u64) {
        self.0.start(features, QUEUE_SIZE);
    }
}

fn pattern(seed: u8, sectors: usize) -> Vec<u8> {
    (0..sectors * SECTOR)
        .map(|n| (n / 7) as u8 ^ seed)
        .collect()
}

fn ranges(all: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sector, count, flags) in all {
        bytes.extend_from_slice(&sector.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
    }
    bytes
}

#[test]
fn it_reads_what_was_written() {
    let mut disk = Disk::new(RamStore::new(64).unwrap());
    assert_eq!(disk.read(0, 64).unwrap(), vec![0; 64 * SECTOR]);
    assert_eq!(disk.write(5, &pattern(1, 9)), OK);
    assert_eq!(disk.write(7, &pattern(2, 1)), OK);
    let mut expected = pattern(1, 9);
    expected[2 * SECTOR..3 * SECTOR].copy_from_slice(&pattern(2, 1));
    assert_eq!(disk.read(5, 9).unwrap(), expected);
    assert_eq!(disk.read(4, 1).unwrap(), vec![0; SECTOR]);
    assert_eq!(disk.request(FLUSH, 0, &[], 0).0, OK);
    // Cut as no driver does, but may: the status in a piece with data, the header in pieces.
    for cut in [9, 16, 17, 511] {
        let write = disk.submit(0, OUT, 20, &pattern(cut as u8, 1), 0, cut);
        let read = disk.submit(0, IN, 5, &[], SECTOR, cut);
        disk.0.run();
        assert_eq!((disk.status(&write), disk.status(&read)), (OK, OK));
        assert_eq!(disk.data(&read), expected[..SECTOR]);
        while disk.0.take_used(0).is_some() {}
        assert_eq!(disk.read(20, 1).unwrap(), pattern(cut as u8, 1));
    }
}

#[test]
fn its_configuration_tells_all() {
    let info = BlockInfo {
        sectors: 0x1234_5678,
        block_bytes: 512,
        physical_block_bytes: 4096,
        is_read_only: false,
        needs_flush: true,
        can_discard: true,
        can_write_zeroes: true,
    };
    let image = config::image(&info, 4, Cache::default());
    let u32_at = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
    assert_eq!(u32_at(0), 0x1234_5678);
    assert_eq!((u32_at(8), u32_at(12)), (SIZE_MAX, 126));
    assert_eq!(image[16..20], [0xff, 0xff, 16, 63]);
    assert_eq!((u32_at(20), image[24], image[25]), (512, 3, 0));
    assert_eq!((image[26], image[32], image[34]), (8, 1, 4));
    assert_eq!(
        [36, 40, 44, 48, 52].map(u32_at),
        [131_072, 16, 1, 131_072, 16]
    );
    assert_eq!(image[56], 1);
    assert_eq!(
        config::features(&info),
        0x7e56 & !feature::RO | feature::SEG_MAX
    );
    let bare = BlockInfo {
        is_read_only: true,
        needs_flush: false,
        can_discard: false,
        can_write_zeroes: false,
        ..info
    };
    let always = config::features(&bare);
    assert_eq!(
        always & (feature::RO | feature::FLUSH | feature::DISCARD),
        feature::RO
    );
    assert_eq!(config::image(&bare, 1, Cache::default())[36..], [0; 24]);
    let disk = Disk::with(RamStore::new(64).unwrap(), 4, u64::MAX);
    assert_eq!(disk.config(0, 8), 64);
    assert_eq!(disk.config(34, 2), 4);
    assert_eq!(disk.image().len(), 60);
    assert_eq!(disk.config(58, 8), 0);
}

#[test]
fn it_tells_its_name() {
    let mut disk = Disk::new(RamStore::new(8).unwrap());
    let (status, name, written) = disk.request(GET_ID, 0, &[], 20);
    assert_eq!(
        (status, name.as_slice(), written),
        (OK, &b"a disk of the tests\0"[..], 21)
    );
    let (status, name, written) = disk.request(GET_ID, 0, &[], 4);
    assert_eq!((status, name.as_slice(), written), (OK, &b"a di"[..], 5));
    let (status, name, written) = disk.request(GET_ID, 0, &[], 30);
    assert_eq!((status, name.len(), written), (OK, 30, 21));
}

#[test]
fn what_cannot_be_is_refused_as_a_disk_does() {
    let mut disk = Disk::new(RamStore::new(64).unwrap());
    assert_eq!(disk.write(0, &pattern(1, 64)), OK);
    let end = u64::MAX / SECTOR_BYTES;
    for (kind, sector, out, room, status) in [
        (IN, 63, 0, 2 * SECTOR, IO_ERROR),
        (IN, 64, 0, SECTOR, IO_ERROR),
        (IN, u64::MAX, 0, SECTOR, IO_ERROR),
        (IN, end, 0, SECTOR, IO_ERROR),
        (IN, 0, 0, SECTOR - 1, IO_ERROR),
        (IN, 64, 0, 0, OK),
        (IN, 65, 0, 0, IO_ERROR),
        (OUT, 63, 2 * SECTOR, 0, IO_ERROR),
        (OUT, 0, 100, 0, IO_ERROR),
        (OUT, u64::MAX, SECTOR, 0, IO_ERROR),
        (2, 0, 0, 0, UNSUPPORTED),
        (3, 0, 16, 0, UNSUPPORTED),
        (14, 0, 16, 0, UNSUPPORTED),
        (u32::MAX, 0, 0, SECTOR, UNSUPPORTED),
        (DISCARD, 0, 0, 0, IO_ERROR),
        (DISCARD, 0, 15, 0, IO_ERROR),
        (DISCARD, 0, 16 * (MAX_RANGES + 1), 0, IO_ERROR),
    ] {
        let answer = disk.request(kind, sector, &vec![0; out], room);
        assert_eq!(answer.0, status, "{kind} at {sector:#x}, {out}, {room}");
        if status != OK {
            assert_eq!(answer.2, 1);
        }
    }
    assert_eq!(disk.read(0, 64).unwrap(), pattern(1, 64));
    assert!(!disk.0.needs_reset());
    let mut disk = Disk::new(RamStore::of(&pattern(3, 8)).unwrap().read_only());
    assert_ne!(disk.0.offered() & feature::RO, 0);
    assert_eq!(disk.write(0, &pattern(1, 1)), IO_ERROR);
    assert_eq!(disk.read(0, 8).unwrap(), pattern(3, 8));
    assert_eq!(
        disk.request(DISCARD, 0, &ranges(&[(0, 1, 0)]), 0).0,
        UNSUPPORTED
    );
}

#[test]
fn a_chain_that_is_no_request_breaks_it() {
    let end = RAM_BYTES as u64;
    let at = 0x20_0000;
    for buffers in [
        &[Buffer::read(at, 16)][..],
        &[Buffer::write(at, 17)],
        &[Buffer::read(at, 15), Buffer::write(at, 1)],
        &[Buffer::read(at, 16), Buffer::write(at, 0)],
        &[Buffer::read(at, 16), Buffer::write(end, 1)],
        &[
            Buffer::read(at, 16),
            Buffer::write(end - 100, SECTOR as u32),
            Buffer::write(at, 1),
        ],
        &[Buffer::read(end, 16), Buffer::write(at, 1)],
    ] {
        let mut disk = Disk::new(RamStore::new(8).unwrap());
        disk.0.offer(0, buffers);
        disk.0.run();
        assert!(disk.0.needs_reset(), "{buffers:?}");
        assert_eq!(disk.0.machine.pins.get(), 0);
        disk.reset();
        disk.start(u64::MAX);
        assert_eq!(disk.write(0, &pattern(1, 1)), OK);
    }
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let mut disk = Disk::new(RamStore::new(64).unwrap());
    assert_eq!(disk.write(0, &pattern(1, 64)), OK);
    let two = ranges(&[(3, 2, 0), (16, 16, 0)]);
    assert_eq!(disk.request(WRITE_ZEROES, 0, &two, 0).0, OK);
    assert_eq!(
        disk.request(WRITE_ZEROES, 0, &ranges(&[(40, 1, 1)]), 0).0,
        OK
    );
    assert_eq!(disk.request(DISCARD, 0, &ranges(&[(41, 1, 0)]), 0).0, OK);
    let mut expected = pattern(1, 64);
    for (sector, count) in [(3, 2), (16, 16), (40, 2)] {
        expected[sector * SECTOR..(sector + count) * SECTOR].fill(0);
    }
    assert_eq!(disk.read(0, 64).unwrap(), expected);
    for (kind, range, status) in [
        (DISCARD, (0, 1, 1), UNSUPPORTED),
        (DISCARD, (0, 1, 2), UNSUPPORTED),
        (WRITE_ZEROES, (0, 1, 2), UNSUPPORTED),
        (WRITE_ZEROES, (64, 1, 0), IO_ERROR),
        (WRITE_ZEROES, (u64::MAX, 1, 0), IO_ERROR),
        (WRITE_ZEROES, (0, MAX_RANGE_SECTORS + 1, 0), IO_ERROR),
        (DISCARD, (1, u32::MAX, 0), IO_ERROR),
    ] {
        let answer = disk.request(kind, 0, &ranges(&[range]), 0);
        assert_eq!(answer.0, status, "{kind}: {range:?}");
    }
    assert_eq!(disk.read(0, 64).unwrap(), expected);
    // Who has not agreed on them has none.
    disk.reset();
    disk.start(ring::INDIRECT_DESC);
    assert_eq!(
        disk.request(DISCARD, 0, &ranges(&[(0, 1, 0)]), 0).0,
        UNSUPPORTED
    );
    assert_eq!(
        disk.request(WRITE_ZEROES, 0, &ranges(&[(0, 1, 0)]), 0).0,
        UNSUPPORTED
    );
}

#[test]
fn several_queues_are_served_with_an_interrupt_each() {
    let mut disk = Disk::with(RamStore::new(64).unwrap(), 4, u64::MAX);
    let mut all = Vec::new();
    for queue in 0..4 {
        for n in 0..5 {
            let sector = u64::from(queue) * 8 + n;
            all.push(disk.submit(queue, OUT, sector, &pattern(queue as u8, 1), 0, 4096));
        }
    }
    disk.0.run();
    let mut vectors = disk.0.sink.messages.take();
    vectors.sort_unstable();
    assert_eq!(vectors, [1, 2, 3, 4]);
    for queue in 0..4 {
        assert_eq!(std::iter::from_fn(|| disk.0.take_used(queue)).count(), 5);
    }
    assert!(all.iter().all(|waits| disk.status(waits) == OK));
}

fn faulty(fault: Fault) -> (Disk, FaultSwitch) {
    let (store, switch) = FaultyStore::new(Box::new(RamStore::new(64).unwrap()));
    let mut disk = Disk::new(store);
    assert_eq!(disk.write(0, &pattern(1, 64)), OK);
    switch.set(fault);
    (disk, switch)
}

#[test]
fn a_store_that_goes_wrong_is_heard_of() {
    let (mut disk, switch) = faulty(Fault::Full);
    assert_eq!(disk.write(0, &pattern(2, 1)), IO_ERROR);
    assert_eq!(disk.read(0, 64).unwrap(), pattern(1, 64));
    switch.set(Fault::Gone);
    assert_eq!(disk.read(0, 1), Err(IO_ERROR));
    assert_eq!(disk.request(FLUSH, 0, &[], 0).0, IO_ERROR);
    switch.set(Fault::FailsEvery(3));
    let failed = (0..9).filter(|_| disk.read(0, 1).is_err()).count();
    assert_eq!(failed, 3);
    switch.set(Fault::None);
    assert_eq!(disk.read(0, 64).unwrap(), pattern(1, 64));
    assert!(!disk.0.needs_reset());
}

#[test]
fn a_change_of_size_is_told() {
    let (mut disk, switch) = faulty(Fault::None);
    let woken = disk.0.waker.0.get();
    switch.set(Fault::Shrunk(10));
    assert!(disk.0.waker.0.get() > woken);
    disk.0.sink.messages.take();
    disk.0.step_until_idle();
    assert_eq!(*disk.0.sink.messages.borrow(), [0]);
    assert_eq!(disk.config(0, 8), 10);
    assert_eq!(disk.read(9, 2), Err(IO_ERROR));
    assert_eq!(disk.read(9, 1).unwrap(), pattern(1, 10)[9 * SECTOR..]);
    switch.set(Fault::None);
    disk.0.step_until_idle();
    assert_eq!(disk.config(0, 8), 64);
    assert_eq!(disk.read(0, 64).unwrap(), pattern(1, 64));
}

#[test]
fn a_reset_waits_for_the_store() {
    let (mut disk, switch) = faulty(Fault::Slow);
    let waits = disk.submit(0, IN, 0, &[], SECTOR, 4096);
    disk.0.run();
    assert!(!disk.0.virtio.is_at_rest());
    assert_eq!(disk.0.machine.pins.get(), 1);
    disk.0.set(0x14, 1, 0);
    assert_ne!(disk.0.status(), 0);
    switch.set(Fault::None);
    disk.0.step_until_idle();
    assert_eq!(disk.0.status(), 0);
    assert_eq!(disk.0.machine.pins.get(), 0);
    assert_eq!(disk.status(&waits), 0xee, "the status is written no more");
    disk.start(u64::MAX);
    assert_eq!(disk.read(0, 1).unwrap(), pattern(1, 1));
    // The machine is reset: the store is waited for.
    switch.set(Fault::Slow);
    disk.submit(0, IN, 0, &[], SECTOR, 4096);
    disk.0.run();
    disk.0.virtio.reset();
    assert!(disk.0.virtio.is_at_rest());
    assert_eq!(disk.0.machine.pins.get(), 0);
}

#[test]
fn a_store_that_takes_no_more_is_asked_again() {
    let (mut disk, switch) = faulty(Fault::Busy);
    let all: Vec<_> = (0..5)
        .map(|n| disk.submit(0, IN, n, &[], SECTOR, 4096))
        .collect();
    disk.0.run();
    assert_eq!(disk.0.take_used(0), None);
    switch.set(Fault::None);
    disk.0.step_until_idle();
    assert!(all.iter().all(|waits| disk.status(waits) == OK));
    // What it has not taken is dropped by a reset.
    switch.set(Fault::Busy);
    disk.submit(0, OUT, 0, &pattern(9, 1), 0, 4096);
    disk.0.run();
    disk.reset_when_stepped();
    switch.set(Fault::None);
    disk.start(u64::MAX);
    assert_eq!(disk.read(0, 1).unwrap(), pattern(1, 1));
}

impl Disk {
    fn reset_when_stepped(&mut self) {
        self.0.set(0x14, 1, 0);
        self.0.step_until_idle();
        assert_eq!(self.0.status(), 0);
    }
}

#[test]
fn a_request_waits_for_memory_that_too_many_transfers_use() {
    let (mut disk, switch) = faulty(Fault::Slow);
    disk.0.machine.most_pins.set(Some(3));
    let all: Vec<_> = (0..8)
        .map(|n| disk.submit(0, IN, n, &[], SECTOR, 4096))
        .collect();
    disk.0.run();
    assert_eq!(disk.0.machine.pins.get(), 3);
    assert_eq!(disk.0.take_used(0), None, "none has failed");
    switch.set(Fault::None);
    disk.0.step_until_idle();
    assert!(all.iter().all(|waits| disk.status(waits) == OK));
    assert_eq!(disk.0.machine.pins.get(), 0);
    // It is others who use the memory: it looks again by itself.
    disk.0.machine.most_pins.set(Some(0));
    let waits = disk.submit(0, IN, 0, &[], SECTOR, 4096);
    assert_eq!(disk.0.step_once(), Step::Again);
    assert!(!disk.0.virtio.is_at_rest());
    disk.0.machine.most_pins.set(None);
    disk.0.step_until_idle();
    assert_eq!(disk.status(&waits), OK);
    assert!(disk.0.virtio.is_at_rest());
    // One that waits is dropped by a reset.
    disk.0.machine.most_pins.set(Some(0));
    let waits = disk.submit(0, IN, 0, &[], SECTOR, 4096);
    assert_eq!(disk.0.step_once(), Step::Again);
    disk.reset_when_stepped();
    assert_eq!(disk.status(&waits), 0xee);
    disk.0.machine.most_pins.set(None);
    disk.start(u64::MAX);
    assert_eq!(disk.read(0, 1).unwrap(), pattern(1, 1));
}

#[test]
fn more_requests_than_a_store_takes_at_once() {
    let mut disk = Disk::with(RamStore::new(64).unwrap(), 2, u64::MAX);
    let mut count = 0;
    for queue in [0, 1] {
        for n in 0..42 {
            disk.submit(queue, OUT, n, &pattern(n as u8, 1), 0, 4096);
        }
    }
    disk.0.run();
    for queue in [0, 1] {
        count += std::iter::from_fn(|| disk.0.take_used(queue)).count();
    }
    assert_eq!(count, 84);
    assert_eq!(disk.read(41, 1).unwrap(), pattern(41, 1));
}

#[test]
fn a_saved_disk_goes_on() {
    let mut disk = Disk::new(RamStore::of(&pattern(1, 64)).unwrap().read_only());
    assert_eq!(disk.read(0, 1).unwrap(), pattern(1, 1));
    let record = saved(|w| disk.0.virtio.save(w));
    let store = Box::new(RamStore::of(&pattern(1, 64)).unwrap().read_only());
    let blk = Box::new(Blk::new(store, 1, "").unwrap());
    let mut other = Virtio::new(blk, &disk.0.machine, 16).unwrap();
    other.begin(&disk.0.waker).unwrap();
    other.restore(&mut StateReader::new(&record)).unwrap();
    assert_eq!(saved(|w| other.save(w)), record);
    other.set_dma_open(true);
    disk.0.virtio = other;
    assert_eq!(disk.read(1, 1).unwrap(), pattern(1, 2)[SECTOR..]);
    // On a store that is larger the guest is told.
    let store = Box::new(RamStore::of(&pattern(1, 96)).unwrap().read_only());
    let blk = Box::new(Blk::new(store, 1, "").unwrap());
    let mut other = Virtio::new(blk, &disk.0.machine, 16).unwrap();
    other.begin(&disk.0.waker).unwrap();
    other.restore(&mut StateReader::new(&record)).unwrap();
    other.set_dma_open(true);
    disk.0.sink.messages.take();
    disk.0.virtio = other;
    disk.0.step_until_idle();
    assert_eq!(*disk.0.sink.messages.borrow(), [0]);
    // One that is smaller has not all that the guest knows to be there.
    let store = Box::new(RamStore::of(&pattern(1, 63)).unwrap().read_only());
    let blk = Box::new(Blk::new(store, 1, "").unwrap());
    let mut other = Virtio::new(blk, &disk.0.machine, 16).unwrap();
    let refused = other.restore(&mut StateReader::new(&record));
    assert_eq!(refused, Err(StateError::SmallerStore));
}

#[test]
fn a_snapshot_leaves_what_is_below_alone() {
    let below = RamStore::of(&pattern(1, 64)).unwrap().read_only();
    let mut disk = Disk::new(SnapshotStore::new(Box::new(below), 8 << 10).unwrap());
    assert_eq!(disk.0.offered() & (feature::RO | feature::FLUSH), 0);
    let mut expected = pattern(1, 64);
    assert_eq!(disk.read(0, 64).unwrap(), expected);
    for (sector, count) in [(3, 1), (6, 4), (9, 1)] {
        assert_eq!(disk.write(sector, &pattern(5, count)), OK);
        let at = sector as usize * SECTOR;
        expected[at..at + count * SECTOR].copy_from_slice(&pattern(5, count));
        assert_eq!(disk.read(0, 64).unwrap(), expected);
    }
    assert_eq!(disk.read(6, 4).unwrap(), expected[6 * SECTOR..10 * SECTOR]);
    assert_eq!(
        disk.write(40, &pattern(6, 1)),
        IO_ERROR,
        "there is no more memory"
    );
    assert_eq!(disk.read(0, 64).unwrap(), expected);
    assert_eq!(
        disk.request(WRITE_ZEROES, 0, &ranges(&[(0, 8, 1)]), 0).0,
        OK
    );
    expected[..8 * SECTOR].fill(0);
    assert_eq!(disk.read(0, 64).unwrap(), expected);
    assert_eq!(disk.write(40, &pattern(6, 1)), OK, "now there is");
    assert_eq!(disk.request(FLUSH, 0, &[], 0).0, OK);
}

/// A guest that appends records, each of two sectors and one that commits it, and counts on flushes between. It goes on until the log is
/// long enough, and notes in the log when a record can be relied on.
fn append_records(disk: &mut Disk, log: &Log, records: u64) {
    for n in 0..records {
        let first = 1 + n * 3;
        for sector in 0..2 {
            disk.submit(0, OUT, first + sector, &record_of(n, sector), 0, 4096);
        }
        disk.0.run();
        assert_eq!(disk.request_after_others(FLUSH, 0, &[]), OK);
        assert_eq!(
            disk.request_after_others(OUT, first + 2, &record_of(n, 2)),
            OK
        );
        assert_eq!(disk.request_after_others(FLUSH, 0, &[]), OK);
        log.note(n);
    }
}

impl Disk {
    fn request_after_others(&mut self, kind: u32, sector: u64, out: &[u8]) -> u8 {
        while self.0.take_used(0).is_some() {}
        let waits = self.submit(0, kind, sector, out, 0, 4096);
        self.0.run();
        assert_eq!(self.0.take_used(0), Some((waits.head.into(), 1)));
        self.status(&waits)
    }
}

fn record_of(n: u64, sector: u64) -> Vec<u8> {
    let word = (n + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(sector);
    word.to_le_bytes().repeat(SECTOR / 8)
}

/// Whether an image holds each record that it has to, and no committed one that is not whole.
fn holds(image: &[u8], records: u64, acknowledged: &[u64]) -> bool {
    (0..records).all(|n| {
        let sector = |at: u64| {
            let begin = (1 + n * 3 + at) as usize * SECTOR;
            image[begin..begin + SECTOR] == record_of(n, at)
        };
        let committed = sector(2);
        (committed || !acknowledged.contains(&n)) && (!committed || sector(0) && sector(1))
    })
}

/// How many of the images after power failures at so many points do not hold what they should.
fn failures(features: u64, fault: Fault, flushes: bool, seed: u64) -> usize {
    const RECORDS: u64 = 40;
    let empty = vec![0; (RECORDS as usize * 3 + 2) * SECTOR];
    let mut dice = Dice::new(seed);
    let (store, log) = RecordingStore::new(empty.clone(), dice.clone());
    let (store, switch) = FaultyStore::new(Box::new(store));
    switch.set(fault);
    let mut disk = Disk::with(store, 1, features);
    match flushes {
        true => append_records(&mut disk, &log, RECORDS),
        false => append_records_without_flushes(&mut disk, &log, RECORDS),
    }
    let mut failures = 0;
    for _ in 0..1000 {
        let cut = dice.below(log.len() + 1);
        let image = log.image_at(cut, empty.clone(), &mut dice);
        failures += usize::from(!holds(&image, RECORDS, &log.noted(cut)));
    }
    failures
}

/// As [`append_records`], by a driver that knows no flush.
fn append_records_without_flushes(disk: &mut Disk, log: &Log, records: u64) {
    for n in 0..records {
        for sector in 0..3 {
            let at = 1 + n * 3 + sector;
            assert_eq!(
                disk.request_after_others(OUT, at, &record_of(n, sector)),
                OK
            );
        }
        log.note(n);
    }
}

#[test]
fn a_flush_means_flushed() {
    for seed in 1..4 {
        assert_eq!(failures(u64::MAX, Fault::None, true, seed), 0);
        let ignored = failures(u64::MAX, Fault::IgnoresFlush, true, seed);
        assert!(
            ignored > 500,
            "a store that ignores flushes is found out: {ignored}"
        );
    }
}

#[test]
fn a_driver_that_knows_no_flush_loses_nothing() {
    let old = ring::INDIRECT_DESC;
    assert_eq!(failures(old, Fault::None, false, 7), 0);
    let cached = failures(u64::MAX, Fault::None, false, 7);
    assert!(cached > 500, "one that knows it has to flush: {cached}");
}

#[test]
fn a_driver_can_switch_the_cache_off() {
    let (store, log) = RecordingStore::new(vec![0; 8 * SECTOR], Dice::new(1));
    let mut disk = Disk::new(store);
    let through = |log: &Log| {
        let empty = vec![0; 8 * SECTOR];
        let images =
            (1..50).map(|seed| log.image_at(log.len(), empty.clone(), &mut Dice::new(seed)));
        images
            .filter(|image| image[..SECTOR] == pattern(1, 1))
            .count()
            == 49
    };
    assert_eq!(disk.write(0, &pattern(1, 1)), OK);
    assert!(!through(&log));
    disk.0.virtio.write_config(32, 1, 0);
    assert_eq!(disk.config(32, 1), 0);
    assert_eq!(disk.write(0, &pattern(1, 1)), OK);
    assert!(through(&log));
    disk.reset();
    assert_eq!(disk.config(32, 1), 1);
    // Who has not agreed on the switch has none.
    disk.start(feature::FLUSH);
    disk.0.virtio.write_config(32, 1, 0);
    assert_eq!(disk.config(32, 1), 1);
}

proptest! {
    /// Whatever a driver asks of a disk, it holds what a plain array of sectors holds.
    #[test]
    fn it_is_an_array_of_sectors(
        steps in prop::collection::vec((0u8..5, 0u64..40, 1usize..12, any::<u8>(), 1usize..2000), 1..40),
        snapshot: bool,
    ) {
        let mut model = pattern(0, 40);
        let below = RamStore::of(&model).unwrap();
        let mut disk = match snapshot {
            true => Disk::new(SnapshotStore::new(Box::new(below), 1 << 20).unwrap()),
            false => Disk::new(below),
        };
        for (what, sector, count, seed, cut) in steps {
            let fits = sector as usize + count <= 40;
            let status = if fits { OK } else { IO_ERROR };
            let at = sector as usize * SECTOR;
            let cut = cut.max(256);
            let (kind, out, room) = match what {
                0 | 1 => (OUT, pattern(seed, count), 0),
                2 => (WRITE_ZEROES, ranges(&[(sector, count as u32, u32::from(seed & 1))]), 0),
                _ => (IN, Vec::new(), count * SECTOR),
            };
            let waits = disk.submit(0, kind, sector, &out, room, cut);
            disk.0.run();
            prop_assert!(disk.0.take_used(0).is_some());
            prop_assert_eq!(disk.status(&waits), status);
            if fits {
                let there = &mut model[at..at + count * SECTOR];
                match kind {
                    OUT => there.copy_from_slice(&out),
                    WRITE_ZEROES => there.fill(0),
                    _ => prop_assert_eq!(&disk.data(&waits), there),
                }
            }
        }
        prop_assert_eq!(disk.read(0, 40).unwrap(), model);
    }
}
