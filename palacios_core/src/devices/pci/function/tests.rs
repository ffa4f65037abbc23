// SPDX-License-Identifier: MIT OR Apache-2.0
//! A function with everything, as a guest sees it.

use super::*;
use crate::addr::Gpa;
use crate::devices::pci::bar::ROM;
use crate::devices::pci::{intx, Ids};
use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
use crate::devices::Space;
use crate::interfaces::Msi;
use proptest::prelude::*;

const AT: Bdf = Bdf::new(5, 0);
const BELLS: &[(u64, u64)] = &[(0x800, 4)];

/// What was asked of it last.
#[derive(Default)]
struct Everything {
    last: (usize, u64, u64),
    rung: u64,
}

impl PciDevice for Everything {
    fn description(&self) -> Description {
        let ids = Ids {
            vendor: 0x1234,
            device: 0x5678,
            subsystem_vendor: 0x9abc,
            subsystem: 0xdef0,
            class: 0xff_0102,
            revision: 3,
        };
        Description {
            bars: [
                Bar::ports(16),
                Bar::memory(0x1000).with_doorbells(BELLS),
                Bar::memory64(1 << 32).prefetchable(),
                Bar::NONE,
                Bar::NONE,
                Bar::NONE,
            ],
            rom_bytes: 0x800,
            msi_vectors: 4,
            msix: Some((8, 4)),
            ..Description::new("everything", ids)
        }
    }
    fn reset(&mut self, _: &mut Wires) {
        *self = Self::default();
    }
    fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        to.u64(self.last.2)
    }
    fn restore(&mut self, from: &mut StateReader<'_>) -> Result<(), StateError> {
        self.last.2 = from.u64()?;
        Ok(())
    }
    fn read(&mut self, _: &mut Wires, bar: usize, offset: u64, _: u8) -> u64 {
        (bar as u64) << 40 | offset
    }
    fn write(&mut self, _: &mut Wires, bar: usize, offset: u64, _: u8, value: u64) {
        self.last = (bar, offset, value);
    }
    fn step(&mut self, _: &mut Wires, rung: u64) -> Step {
        self.rung = rung;
        Step::Idle
    }
}

type Tested = Function<Everything>;

fn bench() -> (TestMachine, Tested) {
    let machine = TestMachine::new();
    machine.ram.replace(vec![0; 0x1000]);
    let function = Function::new(&machine, AT, Everything::default()).unwrap();
    (machine, function)
}

fn config(function: &mut Tested, at: u64, size: u8, value: u64) {
    function.write(0, at, size, value);
}

/// Places all base address registers, and switches all on.
fn placed() -> (TestMachine, Tested) {
    let (machine, mut function) = bench();
    config(&mut function, 0x10, 8, 0xd000_0000_0000_c000);
    config(&mut function, 0x18, 8, 0x12_0000_0000);
    config(&mut function, 0x20, 4, 0xd001_0000);
    config(&mut function, 0x30, 4, 0xd002_0001);
    config(&mut function, 4, 2, 7);
    (machine, function)
}

/// The capability of that id.
fn capability(function: &mut Tested, id: u8) -> u64 {
    let mut at = function.read(0, 0x34, 1);
    while at != 0 {
        if function.read(0, at, 1) == u64::from(id) {
            return at;
        }
        at = function.read(0, at + 1, 1);
    }
    panic!("no capability {id}");
}

#[test]
fn the_header_says_what_it_is() {
    let (_, mut function) = bench();
    for (at, value) in [
        (0, 0x5678_1234),
        (4, 0x0010_0000),
        (8, 0xff01_0203),
        (0x0c, 0),
        (0x2c, 0xdef0_9abc),
        (0x3c, 0x100),
    ] {
        assert_eq!(function.read(0, at, 4), value, "{at:#x}");
    }
    assert_eq!(function.regions()[0], IoRegion::pci_config(5 << 15));
    assert!(function.regions()[1..].iter().all(|region| !region.on));
}

#[test]
fn accesses_reach_the_register_that_was_placed() {
    let (machine, mut function) = placed();
    for (space, at, bar, offset) in [
        (Space::Ports, 0xc004, 0, 4),
        (Space::Memory, 0xd000_0ffc, 1, 0xffc),
        (Space::Memory, 0xd000_0010, 1, 0x10),
        (Space::Memory, 0x12_1000_0000, 2, 0x1000_0000),
        (Space::Memory, 0xd002_0000, ROM as u64, 0),
    ] {
        assert_eq!(
            machine.read(&mut function, space, at, 8),
            bar << 40 | offset
        );
    }
    machine.write(&mut function, Space::Memory, 0xd000_0ff8, 4, 9);
    assert_eq!(function.device.last, (1, 0xff8, 9));
    // The table of MSI-X has a register for itself.
    assert_eq!(
        machine.read(&mut function, Space::Memory, 0xd001_000c, 4),
        1
    );
    config(&mut function, 4, 2, 4);
    assert!(function.regions()[1..].iter().all(|region| !region.on));
    assert!(matches!(function.request(), Some(Request::Regions)));
    assert!(function.request().is_none(), "once");
}

#[test]
fn a_doorbell_is_a_region_of_its_own() {
    let (_, mut function) = placed();
    let is_bell = |region: &IoRegion| region.doorbell;
    let number = function.regions().iter().position(is_bell).unwrap();
    let bell = function.regions()[number];
    assert_eq!((bell.at, bell.length), (0xd000_0800, 4));
    assert_eq!(function.work().unwrap().step(1 << number), Step::Idle);
    assert_eq!(function.device.rung, 1);
}

#[test]
fn the_pin_is_asserted_until_the_guest_has_seen_it() {
    let (machine, mut function) = bench();
    let line = intx::line(AT, 1);
    function.wires.interrupt(3);
    assert!(machine.line(line));
    assert_eq!(function.read(0, 6, 2), 0x18, "status says so");
    config(&mut function, 4, 2, 0x400);
    assert!(!machine.line(line), "the guest forbids it");
    assert_eq!(function.read(0, 6, 2), 0x18);
    config(&mut function, 4, 2, 0);
    assert!(machine.line(line));
    function.wires.acknowledge();
    assert!(!machine.line(line));
    assert_eq!(function.read(0, 6, 2), 0x10);
}

#[test]
fn messages_take_the_place_of_the_pin() {
    let (machine, mut function) = placed();
    let line = intx::line(AT, 1);
    function.wires.interrupt(0);
    let msi = capability(&mut function, 5);
    config(&mut function, msi + 4, 8, 0xfee0_3000);
    config(&mut function, msi + 12, 2, 0x40);
    config(&mut function, msi + 2, 2, 0x21);
    assert!(!machine.line(line));
    function.wires.interrupt(2);
    let message = |data| Msi {
        address: 0xfee0_3000,
        data,
    };
    assert_eq!(machine.msis.take(), [message(0x42)]);
    // Masked, and shown as pending.
    config(&mut function, msi + 16, 4, 0xf);
    function.wires.interrupt(1);
    assert_eq!(function.read(0, msi + 20, 4), 2);
    assert!(machine.msis.borrow().is_empty());
    config(&mut function, msi + 16, 4, 0);
    assert_eq!(machine.msis.take(), [message(0x41)]);
    // Who may not master the bus sends nothing.
    config(&mut function, 4, 2, 3);
    function.wires.interrupt(1);
    assert!(machine.msis.borrow().is_empty());
    assert!(!machine.line(line));
}

#[test]
fn the_table_of_msix_goes_first() {
    let (machine, mut function) = placed();
    let msix = capability(&mut function, 0x11);
    let table = 0xd001_0000;
    let write = |function: &mut Tested, at, size, value| {
        machine.write(function, Space::Memory, table + at, size, value);
    };
    write(&mut function, 0x30, 8, 0xfee0_4000);
    write(&mut function, 0x38, 4, 0x61);
    config(&mut function, msix + 2, 2, 0x8000);
    function.wires.interrupt(3);
    assert!(machine.msis.borrow().is_empty());
    assert_eq!(
        machine.read(&mut function, Space::Memory, table + 0x80, 8),
        8
    );
    write(&mut function, 0x3c, 4, 0);
    let message = Msi {
        address: 0xfee0_4000,
        data: 0x61,
    };
    assert_eq!(machine.msis.take(), [message]);
    function.wires.interrupt(200);
    assert!(machine.msis.borrow().is_empty(), "there is no such vector");
}

#[test]
fn bus_mastering_opens_guest_memory() {
    let (_, mut function) = bench();
    assert!(function.wires.dma().write(Gpa(0), &[1]).is_err());
    config(&mut function, 4, 2, 4);
    assert!(function.wires.dma().write(Gpa(0), &[1]).is_ok());
    function.reset();
    assert!(function.wires.dma().write(Gpa(0), &[1]).is_err());
}

#[test]
fn a_saved_one_is_at_the_same_place() {
    let (machine, mut function) = placed();
    machine.write(&mut function, Space::Memory, 0xd001_0008, 4, 77);
    function.wires.interrupt(0);
    let (regions, record) = (function.regions().to_vec(), saved(|w| function.save(w)));
    function.reset();
    assert!(!machine.line(intx::line(AT, 1)));
    assert_restores(&record, &mut function);
    assert_eq!(function.regions(), regions);
    assert!(machine.line(intx::line(AT, 1)));
    assert_eq!(
        machine.read(&mut function, Space::Memory, 0xd001_0008, 4),
        77
    );
}

/// An access by a guest: to configuration space, or to one of the regions.
fn accesses() -> impl Strategy<Value = Vec<(usize, u64, u8, u64, bool)>> {
    let region = prop_oneof![3 => Just(0usize), 1 => 0usize..9];
    let offset = prop_oneof![3 => 0u64..0x100, 1 => any::<u64>()];
    let size = prop::sample::select(vec![1u8, 2, 4, 8]);
    let value = prop_oneof![Just(u64::MAX), Just(0), any::<u64>()];
    prop::collection::vec((region, offset, size, value, any::<bool>()), 0..60)
}

proptest! {
    #[test]
    fn nothing_that_a_guest_does_breaks_it(accesses in accesses(), vectors in any::<[u16; 8]>()) {
        let (_, mut function) = bench();
        let all = function.regions().to_vec();
        for (n, (region, offset, size, value, write)) in accesses.into_iter().enumerate() {
            let Some(length) = all.get(region).map(|region| region.length) else { continue };
            let offset = offset % (length - u64::from(size).min(length - 1));
            match write {
                true => function.write(region, offset, size, value),
                false => _ = function.read(region, offset, size),
            }
            function.wires.interrupt(vectors[n % 8]);
            let now = function.regions();
            prop_assert_eq!(now.len(), all.len());
            for (now, before) in now.iter().zip(&all) {
                prop_assert_eq!((now.space, now.length), (before.space, before.length));
                prop_assert!(!now.on || now.at.checked_add(now.length).is_some());
            }
            prop_assert_eq!(now[0], AT.region(), "configuration space stays");
        }
        prop_assert_eq!(function.read(0, 0, 4), 0x5678_1234);
        let record = saved(|w| function.save(w));
        let (_, mut twin) = bench();
        assert_restores(&record, &mut twin);
        prop_assert_eq!(twin.regions(), function.regions());
    }

    #[test]
    fn a_damaged_record_is_restored_or_refused(at in 0usize..420, byte: u8, length in 0usize..450) {
        let (_, mut function) = placed();
        let mut record = saved(|w| function.save(w));
        if let Some(field) = record.get_mut(at) {
            *field = byte;
        }
        record.truncate(length);
        assert_survives(&record, &mut function);
    }
}
