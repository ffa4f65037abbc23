// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of rings: a device that echoes, a driver that is right, and drivers that are wrong in each way.

use super::*;
use crate::addr::NotRam;
use crate::alloc_ext::NoMemory;
use crate::devices::links::DmaError;
use crate::devices::testing::{saved, OwnLinks, Shared, TestMachine};
use crate::devices::virtio::chain::{copy_in, copy_out, total_bytes, Segment};
use crate::devices::virtio::driver::{Buffer, TestDriver, BUFFERS, RAM_BYTES, RINGS};
use crate::devices::virtio::{feature, DeviceType, Rings, Virtio, VirtioDevice};
use crate::devices::Step;
use crate::interfaces::{DmaMemory, GuestMemory, PinError, PinnedMemory};
use proptest::prelude::*;
use std::boxed::Box;
use std::vec::Vec;

/// Copies what it reads to what it may write.
struct Echo {
    chain: Chain,
    bytes: Vec<u8>,
    /// How many chains it takes in a step.
    at_once: usize,
}

impl Echo {
    fn new() -> Result<Self, NoMemory> {
        Ok(Self {
            chain: Chain::new(MAX_QUEUE_SIZE)?,
            bytes: Vec::new(),
            at_once: 8,
        })
    }
}

impl VirtioDevice for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_count(&self) -> u16 {
        2
    }
    fn queue_size(&self) -> u16 {
        MAX_QUEUE_SIZE
    }
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn step(&mut self, rings: &mut Rings<'_>) -> Result<Step, QueueError> {
        let mut left = self.at_once;
        for queue in 0..2 {
            while left > 0 && rings.take(queue, &mut self.chain)? {
                left -= 1;
                let bytes = total_bytes(self.chain.readable()).min(1 << 20);
                self.bytes.resize(bytes as usize, 0);
                copy_out(rings.dma(), self.chain.readable(), 0, &mut self.bytes)?;
                let written = copy_in(rings.dma(), self.chain.writable(), 0, &self.bytes)?;
                rings.put(queue, self.chain.head(), written as u32)?;
            }
        }
        Ok(if left > 0 { Step::Idle } else { Step::Again })
    }
    fn reset(&mut self) {}
    fn save(&self, _: &mut StateWriter<'_>) -> Result<(), StateError> {
        Ok(())
    }
    fn restore(&mut self, _: &mut StateReader<'_>, _: u64) -> Result<(), StateError> {
        Ok(())
    }
}

fn bench(features: u64, size: u16) -> TestDriver {
    let mut driver = TestDriver::new(TestMachine::new(), Box::new(Echo::new().unwrap()));
    driver.start(features, size);
    driver
}

const INDIRECT: u64 = feature::INDIRECT_DESC;
const EVENT: u64 = feature::EVENT_IDX;

fn echo(driver: &mut TestDriver, queue: u16, text: &[u8], indirect: bool) {
    let (from, to) = (driver.allocate(text.len()), driver.allocate(text.len() + 8));
    driver.write_memory(from, text);
    let cut = text.len() as u32 / 3;
    let rest = text.len() as u32 - cut;
    let buffers = [
        Buffer::read(from, cut),
        Buffer::read(from + u64::from(cut), rest),
        Buffer::write(to, rest),
        Buffer::write(to + u64::from(rest), cut + 8),
    ];
    let head = match indirect {
        true => driver.offer_indirect(queue, &buffers),
        false => driver.offer(queue, &buffers),
    };
    driver.run();
    let used = driver.take_used(queue);
    assert_eq!(used, Some((head.into(), text.len() as u32)));
    assert_eq!(driver.read_memory(to, text.len()), text);
    assert_eq!(driver.take_used(queue), None);
}

#[test]
fn chains_go_round_and_indices_wrap() {
    let all = [0, INDIRECT, EVENT, INDIRECT | EVENT]
        .map(|features| [4, 8, 16, 64].map(|size| (features, size)));
    for (features, size) in all.into_iter().flatten() {
        let mut driver = bench(features, size);
        // As if so many had gone round already.
        let begin = u16::MAX - 20;
        driver.skip_to(0, begin);
        let queue = &mut driver.virtio.queues[0];
        (queue.next_available, queue.offered, queue.read_until) = (begin, begin, begin);
        (queue.next_used, queue.written_used, queue.published_used) = (begin, begin, begin);
        for round in 0..40u16 {
            let indirect = features & INDIRECT != 0 && round % 3 == 0;
            driver.set_used_event(0, begin.wrapping_add(round));
            echo(&mut driver, 0, &round.to_le_bytes(), indirect);
        }
        assert_eq!(driver.sink.messages.borrow().len(), 40);
        assert!(!driver.needs_reset());
    }
}

#[test]
fn many_chains_are_one_interrupt() {
    let mut driver = bench(EVENT, 64);
    driver.virtio.device_mut().reset();
    let at = driver.allocate(4);
    for _ in 0..8 {
        driver.offer(1, &[Buffer::read(at, 2), Buffer::write(at + 2, 2)]);
    }
    driver.run();
    assert_eq!(*driver.sink.messages.borrow(), [2], "the vector of queue 1");
    assert!(driver.virtio.line());
    assert_eq!(driver.virtio.take_isr(), 1);
    assert!(!driver.virtio.line());
    assert_eq!(std::iter::from_fn(|| driver.take_used(1)).count(), 8);
}

#[test]
fn an_interrupt_comes_where_the_driver_wants_it() {
    let mut driver = bench(EVENT, 64);
    let at = driver.allocate(4);
    driver.set_used_event(0, 2);
    for (rounds, interrupts) in [(1, 0), (1, 0), (1, 1), (1, 1), (5, 1)] {
        for _ in 0..rounds {
            driver.offer(0, &[Buffer::read(at, 1)]);
        }
        driver.run();
        assert_eq!(driver.sink.messages.borrow().len(), interrupts);
    }
    driver.set_used_event(0, 10);
    for _ in 0..4 {
        driver.offer(0, &[Buffer::read(at, 1)]);
    }
    driver.run();
    assert_eq!(driver.sink.messages.borrow().len(), 2, "9 to 13 passes 10");
    let mut driver = bench(0, 64);
    driver.set_available_flags(0, 1);
    driver.offer(0, &[Buffer::read(at, 1)]);
    driver.run();
    assert_eq!(driver.sink.messages.borrow().len(), 0);
}

#[test]
fn a_busy_device_wants_no_notifications() {
    let mut driver = bench(0, 64);
    let at = driver.allocate(4);
    for _ in 0..9 {
        driver.offer(0, &[Buffer::read(at, 1)]);
    }
    driver.virtio.notify(1);
    let mut sink = driver.sink.clone();
    assert_eq!(driver.virtio.step(&mut sink), Step::Again);
    assert_eq!(driver.used_flags(0), 1);
    driver.step_until_idle();
    assert_eq!(driver.used_flags(0), 0, "it wants them again");
    let mut driver = bench(EVENT, 64);
    for _ in 0..9 {
        driver.offer(0, &[Buffer::read(at, 1)]);
    }
    driver.virtio.notify(1);
    assert_eq!(driver.virtio.step(&mut sink), Step::Again);
    assert_eq!(driver.avail_event(0), 0);
    driver.step_until_idle();
    assert_eq!(driver.avail_event(0), 9);
}

/// What a driver does to a queue of 8, and what the device says.
#[test]
fn each_lie_breaks_the_device_and_a_reset_mends_it() {
    type Lie = fn(&mut TestDriver);
    let at = BUFFERS;
    let lies: [(QueueError, Lie); 14] = [
        (QueueError::Index, |driver| {
            driver.write_memory(RINGS + 0x2002, &9u16.to_le_bytes());
        }),
        (QueueError::Index, |driver| {
            driver.write_memory(RINGS + 0x2002, &0xffffu16.to_le_bytes());
        }),
        (QueueError::Descriptor, |driver| driver.offer_head(0, 8)),
        (QueueError::Descriptor, |driver| {
            driver.descriptor(0, 0, Buffer::read(BUFFERS, 1), 1, 8);
            driver.offer_head(0, 0);
        }),
        (QueueError::Descriptor, |driver| {
            driver.offer(0, &[Buffer::read(u64::MAX - 3, 8)]);
        }),
        (QueueError::Loop, |driver| {
            driver.descriptor(0, 3, Buffer::read(BUFFERS, 1), 1, 4);
            driver.descriptor(0, 4, Buffer::read(BUFFERS, 1), 1, 3);
            driver.offer_head(0, 3);
        }),
        (QueueError::Loop, |driver| {
            driver.descriptor(0, 3, Buffer::read(BUFFERS, 1), 1, 3);
            driver.offer_head(0, 3);
        }),
        (QueueError::Loop, |driver| {
            driver.offer_indirect(0, &[Buffer::read(BUFFERS, 1); 9]);
        }),
        (QueueError::Order, |driver| {
            driver.offer(0, &[Buffer::write(BUFFERS, 1), Buffer::read(BUFFERS, 1)]);
        }),
        (QueueError::TooLong, |driver| {
            driver.offer(0, &[Buffer::write(0, u32::MAX), Buffer::write(0, 1)]);
        }),
        (QueueError::Indirect, |driver| {
            driver.descriptor(0, 0, Buffer::read(BUFFERS, 24), 4, 0);
            driver.offer_head(0, 0);
        }),
        (QueueError::Indirect, |driver| {
            driver.descriptor(0, 0, Buffer::read(BUFFERS, 0), 4, 0);
            driver.offer_head(0, 0);
        }),
        (QueueError::Indirect, |driver| {
            // One table in another.
            driver.descriptor(1, 0, Buffer::read(RINGS + 0x4000, 16), 4, 0);
            driver.descriptor(0, 0, Buffer::read(RINGS + 0x4000, 16), 4, 0);
            driver.offer_head(0, 0);
        }),
        (QueueError::Indirect, |driver| {
            driver.descriptor(0, 0, Buffer::read(RINGS + 0x4000, 16), 5, 1);
            driver.offer_head(0, 0);
        }),
    ];
    let mut driver = bench(INDIRECT, 8);
    for (n, (error, lie)) in lies.into_iter().enumerate() {
        driver.sink.messages.take();
        lie(&mut driver);
        driver.run();
        assert_eq!(driver.virtio.fault(), Some(error), "lie {n}");
        assert!(driver.needs_reset());
        assert_eq!(*driver.sink.messages.borrow(), [0], "a change is told");
        driver.offer(0, &[Buffer::read(at, 1)]);
        assert_eq!(driver.run(), 1, "nothing goes on");
        driver.set(0x14, 1, 0);
        assert_eq!(driver.status(), 0);
        driver.start(INDIRECT, 8);
        echo(&mut driver, 0, b"as new", false);
    }
}

#[test]
fn no_memory_is_behind_a_ring_or_a_buffer() {
    let end = RAM_BYTES as u64;
    for (register, at) in [(0x20, end), (0x28, end), (0x30, end), (0x30, end - 8)] {
        let mut driver = bench(0, 8);
        driver.set(0x14, 1, 0);
        driver.set(0x14, 1, 3);
        driver.set(8, 4, 1);
        driver.set(0xc, 4, 1);
        driver.set(0x14, 1, 0xb);
        driver.set(0x18, 2, 8);
        for (offset, ring) in [
            (0x20, RINGS),
            (0x28, RINGS + 0x2000),
            (0x30, RINGS + 0x3000),
        ] {
            driver.set(offset, 8, if offset == register { at } else { ring });
        }
        driver.set(0x1c, 2, 1);
        driver.set(0x14, 1, 0xf);
        driver.offer(0, &[Buffer::read(BUFFERS, 1)]);
        driver.run();
        let fault = driver.virtio.fault();
        let is_memory = matches!(fault, Some(QueueError::Memory(DmaError::NotRam(_))));
        assert!(is_memory, "{register:#x}: {fault:?}");
    }
    for buffer in [Buffer::read(end - 1, 2), Buffer::write(end, 1)] {
        let mut driver = bench(0, 8);
        driver.offer(0, &[Buffer::read(BUFFERS, 4), buffer]);
        driver.run();
        assert!(driver.needs_reset());
    }
}

#[test]
fn an_indirect_table_is_refused_if_nobody_agreed_on_it() {
    let mut driver = bench(0, 8);
    driver.offer_indirect(0, &[Buffer::read(BUFFERS, 1)]);
    driver.run();
    assert_eq!(driver.virtio.fault(), Some(QueueError::Indirect));
}

#[test]
fn a_device_that_may_not_master_the_bus_waits() {
    let mut driver = bench(0, 8);
    driver.virtio.set_dma_open(false);
    driver.offer(0, &[Buffer::read(BUFFERS, 1)]);
    driver.run();
    assert_eq!(driver.take_used(0), None);
    assert!(!driver.needs_reset());
    driver.waker.0.set(0);
    driver.virtio.set_dma_open(true);
    assert_eq!(driver.waker.0.get(), 1);
    driver.step_until_idle();
    assert!(driver.take_used(0).is_some());
}

#[test]
fn a_saved_device_goes_on_where_it_was() {
    let mut driver = bench(EVENT | INDIRECT, 16);
    echo(&mut driver, 0, b"before", true);
    driver.offer(0, &[Buffer::read(BUFFERS, 1)]);
    let record = saved(|w| driver.virtio.save(w));
    let mut other = Virtio::new(Box::new(Echo::new().unwrap()), &driver.machine, 16).unwrap();
    other.restore(&mut StateReader::new(&record)).unwrap();
    assert_eq!(saved(|w| other.save(w)), record);
    other.begin(&driver.waker).unwrap();
    other.set_dma_open(true);
    driver.virtio = other;
    // Nobody notifies again.
    driver.step_until_idle();
    assert!(driver.take_used(0).is_some());
    echo(&mut driver, 0, b"behind", true);
}

/// Memory whose driver offers a chain just before the device writes that it wants to be notified.
#[derive(Clone)]
struct LateOffer {
    machine: TestMachine,
    asked_at: u64,
    offered: Shared<bool>,
}

impl GuestMemory for LateOffer {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        GuestMemory::read(&self.machine, at, buf)
    }
    fn write(&self, at: Gpa, data: &[u8]) -> Result<(), NotRam> {
        if at.0 == self.asked_at && !self.offered.replace(true) {
            let index = Gpa(RINGS + 0x2002);
            GuestMemory::write(&self.machine, index, &1u16.to_le_bytes())?;
        }
        GuestMemory::write(&self.machine, at, data)
    }
}

impl DmaMemory for LateOffer {
    fn pin(&self, at: Gpa, bytes: u64, write: bool) -> Result<Box<dyn PinnedMemory>, PinError> {
        self.machine.pin(at, bytes, write)
    }
}

#[test]
fn a_chain_that_is_offered_at_the_last_moment_is_seen() {
    let late = LateOffer {
        machine: TestMachine::new(),
        // The device's avail_event, behind 8 entries of the used ring.
        asked_at: RINGS + 0x3004 + 8 * 8,
        offered: Shared::default(),
    };
    let device = Box::new(Echo::new().unwrap());
    let dma = || Box::new(late.clone()) as Box<dyn DmaMemory>;
    let links = OwnLinks::with_dma(&late.machine, &dma);
    let mut driver = TestDriver::with_links(late.machine.clone(), &links, device);
    driver.start(EVENT, 8);
    driver.descriptor(0, 0, Buffer::read(BUFFERS, 1), 0, 0);
    driver.step_until_idle();
    assert!(late.offered.get());
    assert_eq!(driver.take_used(0), Some((0, 0)), "nobody notifies of it");
}

#[test]
fn pieces_of_segments() {
    let segments =
        [(0x1000, 4), (0x2000, 0), (0x3000, 6)].map(|(at, bytes)| Segment { at: Gpa(at), bytes });
    let cut = |from, bytes| {
        let pieces = crate::devices::virtio::chain::pieces(&segments, from, bytes);
        pieces.map(|p| (p.at.0, p.bytes)).collect::<Vec<_>>()
    };
    assert_eq!(cut(0, 10), [(0x1000, 4), (0x3000, 6)]);
    assert_eq!(cut(1, 4), [(0x1001, 3), (0x3000, 1)]);
    assert_eq!(cut(4, 99), [(0x3000, 6)]);
    assert_eq!(cut(9, 1), [(0x3005, 1)]);
    assert_eq!(cut(10, 1), []);
    assert_eq!(cut(0, 0), []);
    assert_eq!(total_bytes(&segments), 10);
}

proptest! {
    /// What a guest does at random to descriptors and rings neither panics nor hangs, and what does go round is right.
    #[test]
    fn rings_of_garbage(
        writes in prop::collection::vec((0u64..0x4000, any::<[u8; 4]>()), 0..40),
        index in 0u16..12,
        features in 0u64..4,
    ) {
        let mut driver = bench(features << 28, 8);
        for (offset, bytes) in writes {
            driver.write_memory(RINGS + offset, &bytes);
        }
        driver.write_memory(RINGS + 0x2002, &index.to_le_bytes());
        driver.run();
        let _ = std::iter::from_fn(|| driver.take_used(0)).take(9).count();
        driver.set(0x14, 1, 0);
        driver.start(INDIRECT, 8);
        echo(&mut driver, 0, b"as new", true);
    }

    #[test]
    fn a_damaged_record_is_restored_or_refused(at in 0usize..120, byte: u8) {
        let driver = bench(EVENT, 16);
        let mut record = saved(|w| driver.virtio.save(w));
        if let Some(slot) = record.get_mut(at) {
            *slot = byte;
        }
        let mut other = bench(EVENT, 16);
        let before = saved(|w| other.virtio.save(w));
        match other.virtio.restore(&mut StateReader::new(&record)) {
            Ok(()) => prop_assert_eq!(saved(|w| other.virtio.save(w)), record),
            Err(_) => prop_assert_eq!(saved(|w| other.virtio.save(w)), before),
        }
        other.run();
    }
}
