// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tests of the registers: as drivers use them, and as none should.

use super::super::driver::{Buffer, TestDriver, BUFFERS, RINGS};
use super::super::{legacy, modern};
use super::*;
use crate::addr::Gpa;
use crate::devices::testing::TestMachine;
use crate::devices::virtio::chain::Chain;
use crate::devices::virtio::DeviceType;
use crate::interfaces::GuestMemory;
use proptest::prelude::*;
use std::boxed::Box;
use std::vec::Vec;

/// Feature 5 is the device's; it refuses to work with feature 6 and without 5.
const OWN: u64 = 1 << 5;
const NEEDS_OWN: u64 = 1 << 6;

/// Keeps each chain that it takes until the test lets it go.
struct Keeper {
    chain: Chain,
    kept: Vec<u16>,
    let_go: bool,
    config: [u8; 12],
    changed: bool,
    activated: Vec<u64>,
}

impl VirtioDevice for Keeper {
    fn name(&self) -> &'static str {
        "keeper"
    }
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }
    fn features(&self) -> u64 {
        OWN | NEEDS_OWN | 1 << 40
    }
    fn accepts(&self, features: u64) -> bool {
        features & NEEDS_OWN == 0 || features & OWN != 0
    }
    fn queue_count(&self) -> u16 {
        2
    }
    fn queue_size(&self) -> u16 {
        64
    }
    fn read_config(&self, offset: u64, bytes: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(bytes) {
            *byte = self.config.get(at).copied().unwrap_or(0);
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            // The test says by its last byte what is to happen.
            match self.config.get_mut(at) {
                Some(slot) if at < 11 => *slot = *byte,
                Some(_) => (self.let_go, self.changed) = (byte & 1 != 0, byte & 2 != 0),
                None => {}
            }
        }
    }
    fn take_config_change(&mut self) -> bool {
        core::mem::take(&mut self.changed)
    }
    fn activate(&mut self, features: u64) {
        self.activated.push(features);
    }
    fn step(&mut self, rings: &mut Rings<'_>) -> Result<Step, QueueError> {
        while rings.take(0, &mut self.chain)? {
            self.kept.push(self.chain.head());
        }
        if self.let_go {
            for head in self.kept.drain(..) {
                rings.put(0, head, 0)?;
            }
        }
        Ok(Step::Idle)
    }
    fn in_flight(&self) -> usize {
        self.kept.len()
    }
    fn drain(&mut self) {
        self.let_go = true;
    }
    fn reset(&mut self) {
        assert_eq!(self.kept.len(), 0, "nothing is in flight");
        self.let_go = false;
    }
    fn save(&self, _: &mut StateWriter<'_>) -> Result<(), StateError> {
        Ok(())
    }
    fn restore(&mut self, _: &mut StateReader<'_>, _: u64) -> Result<(), StateError> {
        Ok(())
    }
}

fn bench() -> TestDriver {
    let keeper = Keeper {
        chain: Chain::new(64).unwrap(),
        kept: Vec::new(),
        let_go: false,
        config: *b"abcdefghijkl",
        changed: false,
        activated: Vec::new(),
    };
    TestDriver::new(TestMachine::new(), Box::new(keeper))
}

fn let_go(driver: &mut TestDriver, how: u8) {
    driver.virtio.write_config(11, 1, how.into());
}

#[test]
fn features_are_agreed_on() {
    let mut driver = bench();
    assert_eq!(
        driver.offered(),
        OWN | NEEDS_OWN
            | feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | feature::VERSION_1
            | 1 << 40
    );
    driver.set(0, 4, 2);
    assert_eq!(driver.get(4, 4), 0, "there are 64");
    let version_1 = feature::VERSION_1;
    for (accepted, fits) in [
        (version_1, true),
        (version_1 | OWN | NEEDS_OWN, true),
        (version_1 | 1 << 40, true),
        (OWN, false),
        (version_1 | NEEDS_OWN, false),
        (version_1 | 1 << 7, false),
        (version_1 | 1 << 63, false),
    ] {
        driver.set(0x14, 1, 0);
        driver.set(0x14, 1, 3);
        driver.set(8, 4, 0);
        driver.set(0xc, 4, accepted & 0xffff_ffff);
        driver.set(8, 4, 1);
        driver.set(0xc, 4, accepted >> 32);
        assert_eq!(driver.get(0xc, 4), accepted >> 32);
        driver.set(0x14, 1, 0xb);
        assert_eq!(driver.status() == 0xb, fits, "{accepted:#x}");
        driver.set(0x14, 1, 0xf);
        assert_eq!(driver.virtio.is_live(), fits);
        // Too late.
        driver.set(0xc, 4, 0);
        assert_eq!(driver.get(0xc, 4), accepted >> 32);
    }
}

#[test]
fn registers_read_as_they_were_written() {
    let mut driver = bench();
    assert_eq!(driver.get(0x12, 2), 2, "queues");
    for (offset, size, value) in [(0, 4, 7), (8, 4, 9), (0x16, 2, 1), (0x18, 2, 32)] {
        driver.set(offset, size, value);
        assert_eq!(driver.get(offset, size), value);
    }
    for (offset, value) in [(0x20, 0x1234_5678_9ab0u64), (0x28, 0x10), (0x30, 1 << 40)] {
        driver.set(offset, 4, value & 0xffff_ffff);
        driver.set(offset + 4, 4, value >> 32);
        assert_eq!(driver.get(offset, 8), value);
        assert_eq!(driver.get(offset + 4, 4), value >> 32);
        driver.set(offset, 8, !value);
        assert_eq!(driver.get(offset, 8), !value);
    }
    for (offset, vector, reads) in [
        (0x10, 15, 15),
        (0x10, 16, 0xffff),
        (0x1a, 3, 3),
        (0x1a, 99, 0xffff),
    ] {
        driver.set(offset, 2, vector);
        assert_eq!(driver.get(offset, 2), reads);
    }
    assert_eq!(driver.get(0x1e, 2), 1, "the doorbell of queue 1");
    driver.set(0x16, 2, 2);
    assert_eq!(driver.get(0x18, 2), 0, "there is no such queue");
    driver.set(0x18, 2, 8);
    assert_eq!(driver.get(0x18, 2), 0);
    // A byte of a register, and what is behind the end.
    driver.set(0x16, 2, 1);
    assert_eq!(driver.get(0x12, 1), 2);
    assert_eq!(driver.get(0x36, 8), driver.get(0x36, 2));
    assert_eq!(driver.get(0x38, 4), 0);
    assert_eq!(driver.get(u64::MAX, 4), 0);
}

#[test]
fn a_queue_is_enabled_as_it_may_be() {
    let good = [
        (0x18, 64),
        (0x20, RINGS),
        (0x28, RINGS + 0x2000),
        (0x30, RINGS + 0x3000),
    ];
    for (offset, value, fits) in [
        (0x18, 64, true),
        (0x18, 1, true),
        (0x18, 0, false),
        (0x18, 65, false),
        (0x18, 128, false),
        (0x20, RINGS + 8, false),
        (0x28, RINGS + 1, false),
        (0x30, RINGS + 2, false),
        (0x20, !15, false),
        (0x30, !3, false),
    ] {
        let mut driver = bench();
        for (register, usual) in good {
            let size = if register == 0x18 { 2 } else { 8 };
            let value = if register == offset { value } else { usual };
            driver.set(register, size, value);
        }
        driver.set(0x1c, 2, 1);
        assert_eq!(driver.get(0x1c, 2) == 1, fits, "{offset:#x}: {value:#x}");
        assert_eq!(driver.needs_reset(), !fits);
        if fits {
            driver.set(0x20, 8, 0);
            driver.set(0x18, 2, 2);
            assert_eq!(driver.get(0x20, 8), RINGS, "it is the device's now");
            assert_eq!(driver.get(0x18, 2), value);
        }
    }
}

#[test]
fn a_change_of_the_configuration_is_told() {
    let mut driver = bench();
    driver.start(0, 16);
    assert_eq!(
        driver.virtio.read_config(2, 4),
        u64::from(u32::from_le_bytes(*b"cdef"))
    );
    assert_eq!(
        driver.virtio.read_config(10, 8),
        u64::from(u16::from_le_bytes(*b"kl"))
    );
    assert_eq!(driver.virtio.read_config(u64::MAX, 8), 0);
    let before = driver.get(0x15, 1);
    let_go(&mut driver, 2);
    driver.step_until_idle();
    assert_eq!(driver.get(0x15, 1), before + 1);
    assert_eq!(*driver.sink.messages.borrow(), [0]);
    assert_eq!(driver.virtio.take_isr(), 2);
    assert_eq!(driver.virtio.take_isr(), 0);
    // Without a driver nobody is told.
    driver.set(0x14, 1, 0);
    let_go(&mut driver, 2);
    driver.step_until_idle();
    assert_eq!(driver.sink.messages.borrow().len(), 1);
    assert_eq!(driver.get(0x15, 1), before + 2);
}

#[test]
fn a_reset_is_over_when_nothing_is_in_flight() {
    let mut driver = bench();
    driver.start(0, 16);
    driver.offer(0, &[Buffer::read(BUFFERS, 1)]);
    driver.run();
    assert!(!driver.virtio.is_at_rest());
    driver.set(0x14, 1, 0);
    assert_eq!(driver.status(), 0xf, "not yet");
    assert!(!driver.virtio.is_live());
    // What the driver does meanwhile is void, and what it offers is not looked at.
    driver.set(0x14, 1, 3);
    driver.set(0x1c, 2, 1);
    driver.offer(0, &[Buffer::read(BUFFERS, 1)]);
    driver.run();
    assert_eq!(driver.status(), 0xf);
    let_go(&mut driver, 1);
    driver.run();
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.take_used(0), None, "it goes nowhere");
    assert_eq!(driver.get(0x1c, 2), 0);
    assert!(driver.sink.messages.borrow().is_empty());
    driver.start(0, 16);
    driver.offer(0, &[Buffer::read(BUFFERS, 1)]);
    driver.run();
    let_go(&mut driver, 1);
    driver.run();
    assert_eq!(driver.take_used(0), Some((0, 0)));
}

#[test]
fn it_comes_to_rest_without_beginning_anything() {
    let mut driver = bench();
    driver.start(0, 16);
    driver.offer(0, &[Buffer::read(BUFFERS, 1)]);
    driver.run();
    driver.offer(0, &[Buffer::read(BUFFERS, 1)]);
    driver.virtio.notify(1);
    let_go(&mut driver, 1);
    let mut sink = driver.sink.clone();
    driver.virtio.finish(&mut sink);
    assert!(driver.virtio.is_at_rest());
    assert_eq!(driver.take_used(0), Some((0, 0)));
    assert_eq!(driver.take_used(0), None, "that is for later");
    driver.step_until_idle();
    assert_eq!(driver.take_used(0), Some((1, 0)));
}

/// The driver of version 0.9, on a machine of its own.
struct OldDriver(TestDriver);

impl OldDriver {
    fn get(&mut self, offset: u64, size: u8) -> u64 {
        let driver = &mut self.0;
        legacy::read(&mut driver.virtio, true, offset, size)
    }
    fn set(&mut self, offset: u64, size: u8, value: u64) {
        let driver = &mut self.0;
        legacy::write(
            &mut driver.virtio,
            true,
            offset,
            size,
            value,
            &mut driver.sink,
        );
    }
    /// Puts a chain of one buffer into the available ring.
    fn offer(&self, index: u16) {
        let (descriptor, at) = (BUFFERS.to_le_bytes(), Gpa(RINGS));
        let write = |at: Gpa, data: &[u8]| GuestMemory::write(&self.0.machine, at, data).unwrap();
        write(at, &descriptor);
        write(at.wrapping_add(8), &1u32.to_le_bytes());
        let available = at.wrapping_add(64 * 16);
        write(available.wrapping_add(2), &index.to_le_bytes());
    }
    fn used(&self) -> u16 {
        let mut bytes = [0; 2];
        GuestMemory::read(&self.0.machine, Gpa(RINGS + 0x1002), &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }
}

#[test]
fn a_driver_of_version_0_9_is_served() {
    let mut old = OldDriver(bench());
    old.set(0x12, 1, 0);
    old.set(0x12, 1, 1);
    old.set(0x12, 1, 3);
    let offered =
        OWN | NEEDS_OWN | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::ANY_LAYOUT;
    assert_eq!(old.get(0, 4), offered);
    old.set(4, 4, OWN | 1 << 9);
    assert_eq!(old.get(4, 4), OWN);
    old.set(0x14, 2, 1);
    assert_eq!(old.get(0x14, 2), 1);
    assert_eq!(old.get(0x18, 4), u64::from(u32::from_le_bytes(*b"abcd")));
    old.set(0xe, 2, 5);
    assert_eq!(old.get(0xc, 2), 0, "there is no such queue");
    old.set(0xe, 2, 0);
    assert_eq!((old.get(0xc, 2), old.get(8, 4)), (64, 0));
    old.set(8, 4, RINGS >> 12);
    assert_eq!(old.get(8, 4), RINGS >> 12);
    old.set(0x16, 2, 2);
    assert_eq!(old.get(0x16, 2), 2);
    // It uses the queue before it is ready.
    old.offer(1);
    old.set(legacy::NOTIFY, 2, 0);
    assert!(old.0.waker.0.get() > 0);
    old.0.virtio.write_config(11, 1, 1);
    old.0.step_until_idle();
    assert_eq!(old.used(), 1);
    assert_eq!(*old.0.sink.messages.borrow(), [2]);
    old.set(0x12, 1, 7);
    assert_eq!(old.get(0x12, 1), 7);
    old.0.virtio.write_config(11, 1, 0);
    old.offer(2);
    old.0.run();
    assert!(!old.0.virtio.is_at_rest());
    assert_eq!((old.get(0x13, 1), old.get(0x13, 1)), (1, 0));
    // It does not wait for a reset: the device does.
    old.set(0x12, 1, 0);
    assert_eq!(old.get(0x12, 1), 0);
    assert!(old.0.virtio.is_at_rest());
    assert_eq!(old.used(), 1);
    assert_eq!(old.get(8, 4), 0);
}

#[test]
fn the_old_registers_move_without_msix() {
    let mut driver = bench();
    let first = u64::from(u32::from_le_bytes(*b"abcd"));
    for (has_msix, at) in [(true, 0x18), (false, 0x14)] {
        assert_eq!(legacy::config_at(has_msix), at);
        let read = legacy::read(&mut driver.virtio, has_msix, at, 4);
        assert_eq!(read, first);
    }
    legacy::write(&mut driver.virtio, false, 0x14, 1, 0x7a, &mut driver.sink);
    assert_eq!(driver.virtio.read_config(0, 1), 0x7a);
}

proptest! {
    /// Whatever is written to registers, nothing panics, and a reset makes it all as new.
    #[test]
    fn registers_of_garbage(steps in prop::collection::vec((any::<bool>(), 0u64..0x40, 0u32..4, any::<u64>()), 0..60)) {
        let mut driver = bench();
        for (is_legacy, offset, size, value) in steps {
            let (size, sink) = (1 << size, &mut driver.sink);
            if is_legacy {
                legacy::write(&mut driver.virtio, value & 1 != 0, offset, size, value, sink);
                legacy::read(&mut driver.virtio, value & 1 != 0, offset, size);
            } else {
                modern::write(&mut driver.virtio, offset, size, value, sink);
                modern::read(&driver.virtio, offset, size);
            }
            driver.virtio.step(&mut driver.sink);
        }
        let_go(&mut driver, 1);
        driver.set(0x14, 1, 0);
        driver.step_until_idle();
        prop_assert_eq!(driver.status(), 0);
        driver.start(0, 16);
        let_go(&mut driver, 1);
        driver.offer(0, &[Buffer::read(BUFFERS, 1)]);
        driver.run();
        prop_assert_eq!(driver.take_used(0), Some((0, 0)));
    }
}
