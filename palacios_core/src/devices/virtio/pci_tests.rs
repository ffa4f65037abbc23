// SPDX-License-Identifier: MIT OR Apache-2.0
//! A driver that finds the device by its capabilities, and one of version 0.9.

use super::super::driver::TestWaker;
use super::super::rng::Rng;
use super::super::status;
use super::*;
use crate::addr::Gpa;
use crate::devices::pci::{Bdf, Function};
use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
use crate::devices::{Device, Space};
use crate::interfaces::{GuestMemory, RandomSource};
use proptest::prelude::*;

/// Where a firmware has put its base address registers.
const BARS: [(u8, u32); 4] = [
    (0x10, 0xc000),
    (0x14, 0xd000_0000),
    (0x18, 0xd001_0000),
    (0x20, 0xc100),
];
const RINGS: u64 = 0x1000;
const BUFFER: u64 = 0x8000;
const SIZE: u64 = 64;

struct Ones;

impl RandomSource for Ones {
    fn fill(&mut self, buf: &mut [u8]) -> bool {
        buf.fill(0x11);
        true
    }
}

struct Bench {
    machine: TestMachine,
    function: Function<VirtioPci>,
}

impl Bench {
    fn new() -> Self {
        let machine = TestMachine::new();
        machine.ram.replace(vec![0; 0x10000]);
        let rng = Rng::new(Box::new(Ones)).unwrap();
        let device = VirtioPci::new("rng", Box::new(rng), &machine).unwrap();
        let mut function = Function::new(&machine, Bdf::new(3, 0), device).unwrap();
        let waker = TestWaker::default();
        function.work().unwrap().begin(&waker).unwrap();
        let mut bench = Self { machine, function };
        for (at, address) in BARS {
            bench.set_config(at, 4, address);
        }
        bench.set_config(0x04, 2, 7);
        bench
    }

    fn config(&mut self, at: u8, size: u8) -> u32 {
        self.function.read(0, at.into(), size) as u32
    }
    fn set_config(&mut self, at: u8, size: u8, value: u32) {
        self.function.write(0, at.into(), size, value.into());
    }
    fn write(&mut self, at: u64, size: u8, value: u64) {
        self.machine
            .write(&mut self.function, Space::Memory, at, size, value);
    }
    fn read(&mut self, at: u64, size: u8) -> u64 {
        self.machine
            .read(&mut self.function, Space::Memory, at, size)
    }
    fn ram(&mut self, at: u64, data: &[u8]) {
        GuestMemory::write(&self.machine, Gpa(at), data).unwrap();
    }
    fn word(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        GuestMemory::read(&self.machine, Gpa(at), &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    /// The capabilities of virtio: what each leads to, the base address register, offset, length, what is behind.
    fn capabilities(&mut self) -> Vec<(u32, u32, u32, u32, u32)> {
        let (mut at, mut found) = (self.config(0x34, 1) as u8, Vec::new());
        while at != 0 {
            let id = self.config(at, 1);
            if id == u32::from(VENDOR_CAPABILITY) {
                found.push((
                    self.config(at + 3, 1),
                    self.config(at + 4, 1),
                    self.config(at + 8, 4),
                    self.config(at + 12, 4),
                    self.config(at + 16, 4),
                ));
            }
            at = self.config(at + 1, 1) as u8;
        }
        found
    }

    /// Where the ports or the memory begin that a capability leads to.
    fn place(&mut self, to: u8) -> (u32, u32) {
        let all = self.capabilities();
        let (_, bar, offset, _, more) = *all.iter().find(|found| found.0 == u32::from(to)).unwrap();
        let base = self.config(0x10 + 4 * bar as u8, 4) & !0xf;
        (base + offset, more)
    }

    /// Offers a buffer of 32 bytes as descriptor 0. The available ring is at `available`.
    fn offer(&mut self, available: u64, index: u16) {
        let mut descriptor = Vec::new();
        descriptor.extend(BUFFER.to_le_bytes());
        descriptor.extend(32u32.to_le_bytes());
        descriptor.extend(2u32.to_le_bytes());
        self.ram(RINGS, &descriptor);
        self.ram(available + 4 + 2 * u64::from(index), &0u16.to_le_bytes());
        self.ram(available + 2, &(index + 1).to_le_bytes());
    }

    /// Rings a port and has the worker look.
    fn ring(&mut self, port: u16) {
        let mut regions = self.function.regions().iter();
        let bell = regions.position(|region| {
            region.space == Space::Ports && region.at == u64::from(port) && region.doorbell
        });
        let bell = bell.expect("a doorbell");
        self.function.work().unwrap().step(1 << bell);
    }

    /// Sets it up as a driver of version 1. Vector 1 for its queue, if it has messages.
    fn start(&mut self) -> u16 {
        let (common, _) = self.place(leads_to::COMMON);
        let common = u64::from(common);
        let driver = status::DRIVER | 1;
        self.write(common + 0x14, 1, driver.into());
        self.write(common + 0x08, 4, 1);
        self.write(common + 0x0c, 4, 1);
        self.write(common + 0x14, 1, (driver | status::FEATURES_OK).into());
        assert_ne!(
            self.read(common + 0x14, 1) as u8 & status::FEATURES_OK,
            0,
            "version 1 is agreed on"
        );
        self.write(common + 0x16, 2, 0);
        self.write(common + 0x1a, 2, 1);
        self.write(common + 0x20, 8, RINGS);
        self.write(common + 0x28, 8, RINGS + 0x1000);
        self.write(common + 0x30, 8, RINGS + 0x2000);
        self.write(common + 0x1c, 2, 1);
        let ready = driver | status::FEATURES_OK | status::DRIVER_OK;
        self.write(common + 0x14, 1, ready.into());
        let offset = self.read(common + 0x1e, 2) as u32;
        let (doorbells, multiplier) = self.place(leads_to::NOTIFY);
        (doorbells + offset * multiplier) as u16
    }
}

#[test]
fn a_driver_of_configuration_space_alone_reaches_all() {
    let mut bench = Bench::new();
    let mut at = bench.config(0x34, 1) as u8;
    while (bench.config(at, 1), bench.config(at + 3, 1)) != (9, leads_to::WINDOW.into()) {
        at = bench.config(at + 1, 1) as u8;
    }
    let lead = |bench: &mut Bench, bar: usize, offset: u32, size: u32| {
        bench.set_config(at + 4, 1, bar as u32);
        bench.set_config(at + 8, 4, offset);
        bench.set_config(at + 12, 4, size);
    };
    // The number of queues, the status.
    lead(&mut bench, MODERN, 0x12, 2);
    assert_eq!(bench.config(at + 16, 2), 1);
    lead(&mut bench, MODERN, 0x14, 1);
    bench.set_config(at + 16, 1, status::DRIVER.into());
    assert_eq!(bench.config(at + 16, 1), u32::from(status::DRIVER));
    let (common, _) = bench.place(leads_to::COMMON);
    let direct = bench.read(u64::from(common) + 0x14, 1) as u8;
    assert_eq!(direct, status::DRIVER);
    bench.start();
    bench.offer(RINGS + 0x1000, 0);
    lead(&mut bench, NOTIFY, 0, 2);
    bench.set_config(at + 16, 2, 0);
    bench.function.work().unwrap().step(0);
    assert_eq!(bench.word(RINGS + 0x2002), 1, "the doorbell was heard");
    // What leads nowhere keeps what was written.
    for (bar, offset, size) in [(MODERN, 0x12, 3), (MODERN, 0x13, 2), (MODERN, 0x12, 0)] {
        lead(&mut bench, bar, offset, size);
        bench.set_config(at + 16, 4, 0x1234_5678);
        assert_eq!(bench.config(at + 16, 4), 0x1234_5678);
    }
    for (bar, offset) in [(TABLE.into(), 0), (6, 0), (255, 0), (MODERN, 0xffff_fffc)] {
        lead(&mut bench, bar, offset, 4);
        bench.set_config(at + 16, 4, 0x1234_5678);
        bench.config(at + 16, 4);
    }
}

#[test]
fn it_says_what_it_is_and_where_everything_is() {
    let mut bench = Bench::new();
    assert_eq!(bench.config(0, 4), 0x1005_1af4);
    assert_eq!(bench.config(0x2c, 4), 0x0004_1af4);
    let all = bench.capabilities();
    let leads: Vec<_> = all.iter().map(|found| found.0).collect();
    assert_eq!(leads, [1, 2, 3, 4, 5]);
    for (to, bar, offset, bytes, _) in all {
        let whole = if bar == 4 { 4 } else { MODERN_BYTES };
        assert!(offset + bytes <= whole, "capability {to}");
    }
}

#[test]
fn a_driver_is_told_by_its_pin() {
    let mut bench = Bench::new();
    let doorbell = bench.start();
    bench.offer(RINGS + 0x1000, 0);
    bench.ring(doorbell);
    assert_eq!(bench.word(RINGS + 0x2002), 1, "used");
    assert_eq!(bench.word(BUFFER), 0x1111);
    // Slot 3, pin A.
    let line = crate::devices::pci::intx::line(Bdf::new(3, 0), 1);
    assert!(bench.machine.line(line));
    let (isr, _) = bench.place(leads_to::ISR);
    assert_eq!(bench.read(isr.into(), 1), 1);
    assert!(!bench.machine.line(line));
    assert_eq!(bench.read(isr.into(), 1), 0);
    assert!(bench.machine.msis.borrow().is_empty());
    // A reset by the driver lets go of the pin as well.
    bench.offer(RINGS + 0x1000, 1);
    bench.ring(doorbell);
    assert!(bench.machine.line(line));
    let (common, _) = bench.place(leads_to::COMMON);
    bench.write(u64::from(common) + 0x14, 1, 0);
    assert!(!bench.machine.line(line));
}

#[test]
fn a_driver_is_told_by_messages() {
    let mut bench = Bench::new();
    let doorbell = bench.start();
    for vector in 0..2u64 {
        let entry = 0xd000_0000 + 16 * vector;
        bench.write(entry, 4, 0xfee0_0000);
        bench.write(entry + 8, 4, 0x40 + vector);
        bench.write(entry + 12, 4, 0);
    }
    let (mut at, mut msix) = (bench.config(0x34, 1) as u8, 0);
    while at != 0 {
        if bench.config(at, 1) == 0x11 {
            msix = at;
        }
        at = bench.config(at + 1, 1) as u8;
    }
    bench.set_config(msix + 2, 2, 0x8000);
    bench.offer(RINGS + 0x1000, 0);
    bench.ring(doorbell);
    let data: Vec<_> = bench
        .machine
        .msis
        .borrow()
        .iter()
        .map(|msi| msi.data)
        .collect();
    assert_eq!(data, [0x41]);
    // The pin is silent, and stays so without messages.
    let line = crate::devices::pci::intx::line(Bdf::new(3, 0), 1);
    assert!(!bench.machine.line(line));
    bench.set_config(msix + 2, 2, 0);
    assert!(!bench.machine.line(line));
    bench.set_config(msix + 2, 2, 0x8000);
    // And it goes on from a record.
    let record = saved(|w| bench.function.save(w));
    let mut other = Bench::new();
    other
        .machine
        .ram
        .replace(bench.machine.ram.borrow().clone());
    assert_restores(&record, &mut other.function);
    other.offer(RINGS + 0x1000, 1);
    other.ring(doorbell);
    assert_eq!(other.word(RINGS + 0x2002), 2);
    assert_eq!(other.machine.msis.borrow().len(), 1);
}

#[test]
fn a_driver_of_version_0_9_has_its_ports() {
    let mut bench = Bench::new();
    let port = |bench: &mut Bench, at: u16, size, value: u32| {
        let machine = bench.machine.clone();
        machine.port_write(&mut bench.function, 0xc000 + at, size, value);
    };
    port(&mut bench, 0x12, 1, u32::from(status::DRIVER | 1));
    port(&mut bench, 0x0e, 2, 0);
    let machine = bench.machine.clone();
    assert_eq!(
        machine.port_read(&mut bench.function, 0xc00c, 2),
        SIZE as u32
    );
    port(&mut bench, 0x08, 4, 1);
    let ready = status::DRIVER | status::DRIVER_OK | 1;
    port(&mut bench, 0x12, 1, ready.into());
    let available = RINGS + 16 * SIZE;
    bench.offer(available, 0);
    bench.ring(0xc010);
    assert_eq!(bench.word(RINGS + 0x1002), 1, "used, on the next page");
    assert_eq!(machine.port_read(&mut bench.function, 0xc013, 1), 1);
}

#[test]
fn features_that_are_not_offered_do_not_come_by_the_old_ports() {
    let mut bench = Bench::new();
    let (common, _) = bench.place(leads_to::COMMON);
    for half in 0..2 {
        bench.write(u64::from(common) + 0x08, 4, half);
        bench.write(u64::from(common) + 0x0c, 4, 0xffff_ffff);
    }
    let machine = bench.machine.clone();
    machine.port_write(
        &mut bench.function,
        0xc012,
        1,
        u32::from(status::DRIVER | 1),
    );
    let record = saved(|w| bench.function.save(w));
    assert_restores(&record, &mut Bench::new().function);
}

#[test]
fn it_transfers_only_while_it_may_master_the_bus() {
    let mut bench = Bench::new();
    let doorbell = bench.start();
    bench.set_config(0x04, 2, 3);
    bench.offer(RINGS + 0x1000, 0);
    bench.ring(doorbell);
    assert_eq!(bench.word(RINGS + 0x2002), 0);
    bench.set_config(0x04, 2, 7);
    // The bell that rang is not forgotten.
    bench.function.work().unwrap().step(0);
    assert_eq!(bench.word(RINGS + 0x2002), 1);
}

proptest! {
    #[test]
    fn a_damaged_record_is_restored_or_refused(record in prop::collection::vec(any::<u8>(), 0..400)) {
        let mut bench = Bench::new();
        assert_survives(&record, &mut bench.function);
    }
}
