// SPDX-License-Identifier: MIT OR Apache-2.0
//! Split virtqueues against another project's, `virtio-queue` of rust-vmm: on the same memory both take the same chains, leave the same used
//! ring, and want the same interrupts.
#![forbid(unsafe_code)]

use palacios_core::alloc_ext::NoMemory;
use palacios_core::devices::testing::{Shared, TestMachine};
use palacios_core::devices::virtio::chain::{total_bytes, Chain};
use palacios_core::devices::virtio::driver::{Buffer, TestDriver, BUFFERS, RAM_BYTES, RINGS};
use palacios_core::devices::virtio::{feature, DeviceType, QueueError, Rings, VirtioDevice};
use palacios_core::devices::Step;
use palacios_core::state_io::{StateError, StateReader, StateWriter};
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const SIZE: u16 = 16;

/// A chain: its head, and of each buffer address, length, and whether the device writes it.
type Taken = (u16, Vec<(u64, u32, bool)>);

/// Takes all chains, and says of each that it was filled.
struct Taker {
    chain: Chain,
    taken: Shared<Vec<Taken>>,
}

impl Taker {
    fn new() -> Result<(Self, Shared<Vec<Taken>>), NoMemory> {
        let taken = Shared::default();
        let taker = Self {
            chain: Chain::new(SIZE)?,
            taken: taken.clone(),
        };
        Ok((taker, taken))
    }
}

impl VirtioDevice for Taker {
    fn name(&self) -> &'static str {
        "taker"
    }
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }
    fn features(&self) -> u64 {
        0
    }
    fn queue_count(&self) -> u16 {
        1
    }
    fn queue_size(&self) -> u16 {
        SIZE
    }
    fn read_config(&self, _: u64, _: &mut [u8]) {}
    fn step(&mut self, rings: &mut Rings<'_>) -> Result<Step, QueueError> {
        while rings.take(0, &mut self.chain)? {
            let of = |write, segment: &palacios_core::devices::virtio::chain::Segment| {
                (segment.at.0, segment.bytes, write)
            };
            let readable = self
                .chain
                .readable()
                .iter()
                .map(|segment| of(false, segment));
            let writable = self
                .chain
                .writable()
                .iter()
                .map(|segment| of(true, segment));
            let chain = (self.chain.head(), readable.chain(writable).collect());
            self.taken.borrow_mut().push(chain);
            let written = total_bytes(self.chain.writable()) as u32;
            rings.put(0, self.chain.head(), written)?;
        }
        Ok(Step::Idle)
    }
    fn reset(&mut self) {}
    fn save(&self, _: &mut StateWriter<'_>) -> Result<(), StateError> {
        Ok(())
    }
    fn restore(&mut self, _: &mut StateReader<'_>, _: u64) -> Result<(), StateError> {
        Ok(())
    }
}

/// The same queue in both.
struct Both {
    driver: TestDriver,
    taken: Shared<Vec<Taken>>,
    memory: GuestMemoryMmap,
    theirs: Queue,
}

impl Both {
    fn new(features: u64) -> Self {
        let (taker, taken) = Taker::new().expect("a test has memory");
        let mut driver = TestDriver::new(TestMachine::new(), Box::new(taker));
        driver.start(features, SIZE);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)]);
        let mut theirs = Queue::new(SIZE).expect("a queue");
        let ring = |register| driver.get(register, 8) as u32;
        theirs.set_size(SIZE);
        theirs.set_desc_table_address(Some(ring(0x20)), Some(0));
        theirs.set_avail_ring_address(Some(ring(0x28)), Some(0));
        theirs.set_used_ring_address(Some(ring(0x30)), Some(0));
        theirs.set_event_idx(features & feature::EVENT_IDX != 0);
        theirs.set_ready(true);
        Self {
            driver,
            taken,
            memory: memory.expect("memory"),
            theirs,
        }
    }

    /// Their memory is as ours.
    fn copy_memory(&self) {
        let ram = self.driver.machine.ram.borrow();
        // All else is zero.
        for at in [RINGS, BUFFERS] {
            let piece = &ram[at as usize..][..0x1_0000];
            let copied = self.memory.write_slice(piece, GuestAddress(at));
            copied.expect("as large");
        }
    }

    /// What they take of it, and whether they interrupt.
    fn run_theirs(&mut self) -> (Vec<Taken>, bool) {
        let mut taken = Vec::new();
        loop {
            while let Some(chain) = self.theirs.pop_descriptor_chain(&self.memory) {
                let head = chain.head_index();
                let buffers = chain.map(|of| (of.addr().0, of.len(), of.is_write_only()));
                let buffers: Vec<_> = buffers.collect();
                let written = buffers.iter().filter(|(.., write)| *write);
                let written = written
                    .map(|(_, bytes, _)| bytes)
                    .fold(0, |sum: u32, of| sum.wrapping_add(*of));
                taken.push((head, buffers));
                if self.theirs.add_used(&self.memory, head, written).is_err() {
                    // There is no such descriptor.
                    return (taken, false);
                }
            }
            if !self
                .theirs
                .enable_notification(&self.memory)
                .expect("memory")
            {
                break;
            }
        }
        let interrupts = self
            .theirs
            .needs_notification(&self.memory)
            .expect("memory");
        (taken, interrupts)
    }
}

/// A chain to offer: its buffers, and whether by a table of its own.
fn chains() -> impl Strategy<Value = Vec<(Vec<(u32, bool)>, bool)>> {
    let buffers = prop::collection::vec((1u32..5000, any::<bool>()), 1..4);
    prop::collection::vec((buffers, any::<bool>()), 0..5)
}

proptest! {
    #[test]
    fn right_chains(
        batches in prop::collection::vec((chains(), any::<u16>()), 1..40),
        event_index: bool,
        begin in prop::sample::select(&[0u16, 0xfff0][..]),
    ) {
        let event = if event_index { feature::EVENT_IDX } else { 0 };
        let mut both = Both::new(feature::INDIRECT_DESC | event);
        // Rings that have gone round so far: a record says so.
        if begin > 0 {
            both.driver.skip_to(0, begin);
            let mut record = palacios_core::devices::testing::saved(|w| both.driver.virtio.save(w));
            let end = record.len();
            record[end - 4..end - 2].copy_from_slice(&begin.to_le_bytes());
            record[end - 2..].copy_from_slice(&begin.to_le_bytes());
            both.driver.virtio.restore(&mut StateReader::new(&record)).expect("a right record");
            both.theirs.set_next_avail(begin);
            both.theirs.set_next_used(begin);
        }
        let mut offered = 0u16;
        for (batch, event) in batches {
            // Somewhere near, so that it is passed at times.
            let near = begin.wrapping_add(offered).wrapping_add(event % 4);
            both.driver.set_used_event(0, near);
            for (buffers, indirect) in batch {
                let mut at = BUFFERS;
                let mut chain: Vec<_> = buffers.iter().map(|(bytes, write)| {
                    at += 8192;
                    Buffer { at, bytes: *bytes, write: *write }
                }).collect();
                chain.sort_by_key(|buffer| buffer.write);
                match indirect {
                    true => both.driver.offer_indirect(0, &chain),
                    false => both.driver.offer(0, &chain),
                };
                offered = offered.wrapping_add(1);
            }
            both.copy_memory();
            let messages = both.driver.sink.messages.borrow().len();
            both.driver.run();
            let interrupts = both.driver.sink.messages.borrow().len() > messages;
            let ours = both.taken.take();
            let (theirs, interrupt) = both.run_theirs();
            prop_assert_eq!(&ours, &theirs);
            // Theirs asks for an interrupt even if nothing was put back.
            if !ours.is_empty() {
                prop_assert_eq!(interrupts, interrupt);
            }
            let used = both.driver.get(0x30, 8);
            let mut there = [0; 4 + 8 * SIZE as usize];
            both.memory.read_slice(&mut there, GuestAddress(used)).expect("memory");
            let here = both.driver.read_memory(used, there.len());
            // The flags are each one's own way to say that it is busy.
            prop_assert_eq!(&here[2..], &there[2..]);
            if event_index {
                let mut event = [0; 2];
                let at = used + 4 + 8 * u64::from(SIZE);
                both.memory.read_slice(&mut event, GuestAddress(at)).expect("memory");
                prop_assert_eq!(both.driver.avail_event(0), u16::from_le_bytes(event));
            }
            while both.driver.take_used(0).is_some() {}
        }
    }

    /// Of rings full of garbage we take no chain that they see otherwise; what we refuse they may cut short.
    #[test]
    fn garbage(
        writes in prop::collection::vec((0u64..0x200, any::<[u8; 8]>()), 0..60),
        small in prop::collection::vec((0u64..16, 0u64..RAM_BYTES as u64, 0u32..0x1000, 0u16..8, 0u16..18), 0..40),
        heads in prop::collection::vec(0u16..18, 0..16),
    ) {
        let mut both = Both::new(feature::INDIRECT_DESC);
        for (at, bytes) in writes {
            both.driver.write_memory(RINGS + at, &bytes);
        }
        for (index, at, bytes, flags, next) in small {
            both.driver.descriptor(0, index as u16, Buffer::read(at, bytes & !15), flags, next);
        }
        for head in heads {
            both.driver.offer_head(0, head);
        }
        both.copy_memory();
        both.driver.run();
        let ours = both.taken.take();
        let (theirs, _) = both.run_theirs();
        prop_assert!(theirs.len() >= ours.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            prop_assert_eq!(ours, theirs);
        }
        let took_all = ours.len() == theirs.len();
        prop_assert!(took_all || both.driver.needs_reset());
    }
}
