// SPDX-License-Identifier: MIT OR Apache-2.0
//! A hostile guest at PCI: configuration space by both ways, base address registers anywhere, tables of messages with any value. Nothing of it panics, functions stay where
//! they are, each address belongs to one device, and what was saved is restored.
#![forbid(unsafe_code)]

use crate::{size, value, Target};
use palacios_core::devices::bus::{Bus, SlotNumber};
use palacios_core::devices::pci::{Bdf, ECAM};
use palacios_core::devices::testing::TestMachine;
use palacios_core::devices::{IoAddress, Request, Resources, Space, KINDS};
use palacios_core::names::DeviceId;
use palacios_core::ram::RamLayout;
use palacios_core::sections::Sections;
use palacios_testing::{Config, TestHost};

type Step = [u8; 8];

/// The target.
pub const TARGET: Target = Target {
    name: "pci",
    run,
    header_bytes: 0,
    step_bytes: 8,
};

/// The functions, with their ids.
const FUNCTIONS: [(Bdf, u64); 4] = [
    (Bdf::new(0, 0), 0x1237_8086),
    (Bdf::new(1, 0), 0x7000_8086),
    (Bdf::new(1, 3), 0x7113_8086),
    (Bdf::new(2, 0), 0x7633_1234),
];
const KIND_NAMES: [&str; 6] = [
    "host-bridge",
    "isa-bridge",
    "acpi",
    "pci-hotplug",
    "example-rng",
    "hpet",
];

fn run(data: &[u8]) {
    let (steps, _): (Vec<Step>, _) = crate::steps(data);
    TestHost::run(Config::default(), |host| {
        let bus = Bus::new(host, Vec::new()).unwrap();
        let machine = TestMachine::new();
        machine.ram.set(vec![0; 0x1000]);
        for name in KIND_NAMES {
            let kind = KINDS.iter().find(|kind| kind.name == name).unwrap();
            let device = (kind.make)(Resources {
                links: &machine,
                ram: RamLayout::new(1 << 20),
                place: None,
                slot: None,
                stream: None,
                disk: None,
            });
            bus.attach(DeviceId::of_kind(name), device.unwrap())
                .unwrap();
        }
        for step in &steps {
            take(&bus, step);
        }
        for (at, id) in FUNCTIONS {
            let found = bus.read(&mut None, IoAddress::pci_config(at.register(0), 4));
            assert_eq!(found.value & 0xffff_ffff, id);
        }
        check_saved(&bus);
    });
}

fn take(bus: &Bus<TestHost>, step: &Step) {
    let (size, value) = (size(step), u64::from(value(step)));
    let at = u64::from(step[1]) | u64::from(step[2] >> 4) << 8;
    let (function, _) = FUNCTIONS[usize::from(step[3]) % FUNCTIONS.len()];
    let access = match step[0] >> 1 & 7 {
        0 => IoAddress::port(0xcf8 + (step[1] & 7) as u16, size),
        1 | 2 => IoAddress::memory(ECAM.start + function.register(at as u16), size),
        3 => IoAddress::memory(value << 12 | at, 1 << (step[2] & 3)),
        4 => IoAddress::port(value as u16, size),
        5 => own_address(bus, step, at, size),
        6 => IoAddress::pci_config(value, 1 << (step[2] & 3)),
        _ => return step_work(bus),
    };
    match step[0] & 1 {
        0 => {
            for write in [false, true] {
                let _ = bus.answerer_in_window(&mut None, access, write);
            }
            let _ = bus.read(&mut None, access);
        }
        _ => write(bus, access, value << ((step[2] & 0xc) * 2)),
    }
}

/// An address at which the example device answers just now.
fn own_address(bus: &Bus<TestHost>, step: &Step, at: u64, size: u8) -> IoAddress {
    let all = bus.devices().unwrap();
    let device = all.iter().find(|device| device.kind == "example-rng");
    let regions = &device.expect("nobody takes it away").regions;
    let region = regions[usize::from(step[3]) % regions.len()];
    let at = region.at.wrapping_add(at % region.length);
    match region.space {
        Space::Ports => IoAddress::port(at as u16, size),
        Space::Memory => IoAddress::memory(at, size),
        Space::PciConfig => IoAddress::pci_config(at, size),
    }
}

fn write(bus: &Bus<TestHost>, at: IoAddress, value: u64) {
    let written = bus.write(&mut None, at, value);
    grant(bus, written.request);
}

/// What is ejected stays here: the target is about configuration space.
fn grant(bus: &Bus<TestHost>, request: Option<(SlotNumber, Request)>) {
    if let Some((slot, Request::Regions)) = request {
        bus.update_regions(slot);
    }
}

fn step_work(bus: &Bus<TestHost>) {
    let rng = bus.find(&DeviceId::of_kind("example-rng"));
    let (_, written) = bus.step(rng.expect("nobody takes it away").0);
    grant(bus, written.request);
}

/// What is written down is taken back, and is then written down the same.
fn check_saved(bus: &Bus<TestHost>) {
    let mut state = Vec::new();
    bus.save(&mut state).unwrap();
    for section in Sections::new(&state) {
        bus.restore(&section.unwrap()).unwrap();
    }
    let mut again = Vec::new();
    bus.save(&mut again).unwrap();
    assert!(state == again);
}
