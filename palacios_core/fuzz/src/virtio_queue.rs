// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hostile driver at a virtio device: rings of garbage that change while they are read, registers in any order, resets and bus mastering at
//! any time, records that nobody wrote. The device may not panic, hang, keep a pin, or fail to work after a reset.
#![forbid(unsafe_code)]

use crate::{size, value, Target};
use palacios_core::addr::{Gpa, NotRam};
use palacios_core::devices::testing::{saved, OwnLinks, Shared, TestMachine};
use palacios_core::devices::virtio::driver::{
    Buffer, TestDriver, BUFFERS, QUEUE_STRIDE, RAM_BYTES, RINGS,
};
use palacios_core::devices::virtio::rng::Rng;
use palacios_core::devices::virtio::{legacy, VirtioDevice};
use palacios_core::interfaces::{DmaMemory, GuestMemory, PinError, PinnedMemory, RandomSource};
use palacios_core::state_io::{StateError, StateReader};
use std::collections::VecDeque;

pub(crate) type Step = [u8; 8];

/// The target.
pub const TARGET: Target = Target {
    name: "virtio_queue",
    run,
    header_bytes: 1,
    step_bytes: 8,
};

/// The sizes of queues that the driver chooses.
const SIZE: u16 = 16;

fn run(data: &[u8]) {
    let Some((features, rest)) = data.split_first() else {
        return;
    };
    let (steps, record): (Vec<Step>, _) = crate::steps(rest);
    let fresh = || -> Box<dyn VirtioDevice> { Box::new(Rng::new(Box::new(Ones)).unwrap()) };
    let mut hostile = Hostile::new(fresh(), *features);
    for step in &steps {
        hostile.step(step);
    }
    let mut driver = hostile.end(record);
    driver.offer(0, &[Buffer::write(BUFFERS, 4)]);
    driver.run();
    assert_eq!(driver.take_used(0), Some((0, 4)));
    assert_eq!(driver.read_memory(BUFFERS, 4), [0xff; 4]);
}

/// Random numbers by chance.
struct Ones;

impl RandomSource for Ones {
    fn fill(&mut self, buf: &mut [u8]) -> bool {
        buf.fill(0xff);
        true
    }
}

/// Memory that somebody writes to whenever it is read.
#[derive(Clone, Default)]
struct Racing {
    machine: TestMachine,
    writes: Shared<VecDeque<(u64, u32)>>,
}

impl GuestMemory for Racing {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), NotRam> {
        if let Some((to, value)) = self.writes.borrow_mut().pop_front() {
            let _ = GuestMemory::write(&self.machine, Gpa(to), &value.to_le_bytes());
        }
        GuestMemory::read(&self.machine, at, buf)
    }
    fn write(&self, at: Gpa, data: &[u8]) -> Result<(), NotRam> {
        GuestMemory::write(&self.machine, at, data)
    }
}

impl DmaMemory for Racing {
    fn pin(&self, at: Gpa, bytes: u64, write: bool) -> Result<Box<dyn PinnedMemory>, PinError> {
        // Each 64 KiB are a region of their own.
        let left = 0x1_0000 - (at.0 & 0xffff);
        match bytes > left {
            true => Err(PinError::CrossesRegions),
            false => self.machine.pin(at, bytes, write),
        }
    }
}

/// A device in the hands of a hostile driver.
pub(crate) struct Hostile {
    pub(crate) driver: TestDriver,
    racing: Racing,
}

impl Hostile {
    pub(crate) fn new(device: Box<dyn VirtioDevice>, features: u8) -> Self {
        let racing = Racing::default();
        let machine = racing.machine.clone();
        let dma = || Box::new(racing.clone()) as Box<dyn DmaMemory>;
        let links = OwnLinks::with_dma(&racing.machine, &dma);
        let mut driver = TestDriver::with_links(machine, &links, device);
        driver.start(u64::from(features) << 28 | u64::from(features) << 5, SIZE);
        Self { driver, racing }
    }

    /// Addresses at which something is, or nothing.
    fn address(step: &Step) -> u64 {
        let low = u64::from(step[6]) << 4 | u64::from(step[7]) << 12;
        match step[5] & 7 {
            0 => RINGS + u64::from(step[6]),
            1 => RINGS + QUEUE_STRIDE + low,
            2 => RAM_BYTES as u64 - u64::from(step[6] & 31),
            3 => low << 32,
            4 => u64::MAX - low,
            _ => BUFFERS + low,
        }
    }

    pub(crate) fn step(&mut self, step: &Step) {
        let (a, b, value) = (step[1], step[2], value(step));
        let driver = &mut self.driver;
        let in_rings = RINGS + u64::from(u16::from_le_bytes([a, step[3]]) & 0x7fff);
        match step[0] % 12 {
            0 | 1 => {
                let buffer = Buffer {
                    at: Self::address(step),
                    bytes: u32::from(step[3]) << (b >> 4) | u32::from(b & 15),
                    write: b & 1 != 0,
                };
                driver.descriptor(
                    u16::from(a >> 7),
                    u16::from(a & 31),
                    buffer,
                    u16::from(step[4] & 7),
                    u16::from(step[4] >> 3),
                );
            }
            2 | 3 => driver.offer_head(0, u16::from(a & 31)),
            4 => driver.write_memory(in_rings, &value.to_le_bytes()),
            5 => self.racing.writes.borrow_mut().push_back((in_rings, value)),
            6 => driver.set((a & 0x3f).into(), size(step) << (b >> 7), value.into()),
            7 => {
                let (at, size, has_msix) = ((a & 0x3f).into(), size(step), b & 0x80 != 0);
                legacy::write(
                    &mut driver.virtio,
                    has_msix,
                    at,
                    size,
                    value.into(),
                    &mut driver.sink,
                );
                legacy::read(&mut driver.virtio, has_msix, at, size);
            }
            8 => driver.virtio.set_dma_open(a & 1 != 0),
            9 => _ = self.save_and_restore(),
            _ => {
                driver.virtio.notify(a.into());
                driver.virtio.step(&mut driver.sink);
            }
        }
    }

    /// Brings it to rest, if that can be now. What it was saved as it takes back.
    fn save_and_restore(&mut self) -> bool {
        let driver = &mut self.driver;
        for _ in 0..100 {
            if driver.virtio.is_at_rest() {
                let record = saved(|w| driver.virtio.save(w));
                let restored = driver.virtio.restore(&mut StateReader::new(&record));
                // A disk's store may have become smaller meanwhile. What is refused changes nothing.
                let is_refused = restored == Err(StateError::SmallerStore);
                assert!(restored.is_ok() || is_refused, "{restored:?}");
                assert_eq!(saved(|w| driver.virtio.save(w)), record);
                return true;
            }
            driver.virtio.finish(&mut driver.sink);
        }
        false
    }

    /// Ends what is under way; a record of garbage; then a reset, and a driver that is right.
    pub(crate) fn end(mut self, record: &[u8]) -> TestDriver {
        assert!(self.save_and_restore(), "it never rests");
        self.racing.writes.take();
        let driver = &mut self.driver;
        let mut damaged = saved(|w| driver.virtio.save(w));
        for bytes in record.chunks_exact(2) {
            let at = usize::from(bytes[0]) % damaged.len();
            damaged[at] = bytes[1];
        }
        for record in [record, &damaged] {
            let before = saved(|w| driver.virtio.save(w));
            if driver
                .virtio
                .restore(&mut StateReader::new(record))
                .is_err()
            {
                assert_eq!(saved(|w| driver.virtio.save(w)), before);
            }
            driver.run();
        }
        driver.set(0x14, 1, 0);
        driver.step_until_idle();
        assert_eq!(driver.status(), 0);
        assert_eq!(driver.machine.pins.get(), 0, "nothing stays pinned");
        driver.virtio.set_dma_open(true);
        driver.start(u64::MAX, SIZE);
        self.driver
    }
}
