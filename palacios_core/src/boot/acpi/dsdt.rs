// SPDX-License-Identifier: MIT OR Apache-2.0
//! The devices of the machine, in ACPI's own language (ACPI 6.5: 5.7, 6, 19).
//!
//! ```text
//! \\_S5                  how to power off
//! \\_SB.PCI0             the PCI bus: its windows, which pin leads to which link
//!     .ISA_             the ISA bridge: the links LNKA to LNKD over its registers, serial ports, clock
//!     .SL02 … SL1F      slots for devices that come and go
//! \\_SB.RSVD             addresses that the chipset has
//! \\_GPE._E01            a device came, or is to go
//! ```

use super::table::{op, Table, Window};
use crate::devices::acpi::{PM1_EVENT_PORT, S5_SLEEP_TYPE};
use crate::devices::pci::hotplug::{EVENT_PORT, EVENT_PORTS, SLOT_PORT, SLOT_PORTS};
use crate::devices::pci::{
    high_window, intx, isa_bridge, Bdf, BUSES, ECAM, FIRST_FREE_SLOT, MEMORY_WINDOW, PORT_WINDOW,
    SLOTS,
};
use crate::devices::{rtc, AcpiDevice};
use crate::image::machine::ImageDevice;
use crate::image::Machine;

/// Spaces of operation regions (5.5.2.4).
const PORTS: u8 = 1;
const PCI_CONFIG: u8 = 2;
/// The ISA bridge's registers, and the links over them.
const REGISTERS: [&[u8; 4]; 4] = [b"PRQA", b"PRQB", b"PRQC", b"PRQD"];
const LINKS: [&[u8; 4]; 4] = [b"LNKA", b"LNKB", b"LNKC", b"LNKD"];
/// In a register: the wire leads nowhere.
const OFF: u32 = 0x80;
/// Values of a notification (5.6.6).
const DEVICE_CHECK: u32 = 1;
const EJECT_REQUEST: u32 = 3;
/// The ports below those of PCI configuration.
const LOW_PORTS: core::ops::Range<u64> = 0..0xcf8;

/// The table.
pub(super) fn dsdt(machine: &Machine<'_>) -> Table {
    let mut t = Table::new(b"DSDT", 2);
    // Name (\_S5, Package () {S5, S5, 0, 0})
    t.put(b"\x08\\_S5_");
    t.package(op::PACKAGE, |t| {
        t.put(&[4, 0x0a, S5_SLEEP_TYPE, 0x0a, S5_SLEEP_TYPE, 0, 0])
    });
    t.package(op::SCOPE, |t| {
        t.put(b"\\_SB_");
        t.device(b"PCI0", |t| pci_bus(t, machine));
        t.device(b"RSVD", reserved);
    });
    t.package(op::SCOPE, |t| {
        t.put(b"\\_GPE");
        t.method(b"_E01", 0, |t| t.put(b"\\\x2f\x03_SB_PCI0SCAN"));
    });
    t
}

fn pci_bus(t: &mut Table, machine: &Machine<'_>) {
    t.pnp_id(0x0a03);
    t.named_integer(b"_UID", 0);
    t.resources(b"_CRS", 16 + 8 + 16 + 16 + 26 + 46, |t| {
        t.window(Window::Buses, 16, &(0..BUSES.into()));
        t.ports(0xcf8, 8);
        t.window(Window::Ports, 16, &LOW_PORTS);
        t.window(Window::Ports, 16, &PORT_WINDOW);
        t.window(Window::Memory, 32, &MEMORY_WINDOW);
        t.window(Window::Memory, 64, &high_window(machine.ram));
    });
    routing_table(t);
    t.device(b"ISA_", |t| isa_bridge(t, machine));
    t.fields(
        b"SLTS",
        PORTS,
        SLOT_PORT.into(),
        4,
        &[b"CAME", b"GOES", b"EJCT"],
    );
    for slot in FIRST_FREE_SLOT..SLOTS {
        t.device(&slot_name(slot), |t| hot_plug_slot(t, slot));
    }
    t.method(b"SCAN", 0, scan);
}

/// Which pin of which slot leads to which link (6.2.13).
fn routing_table(t: &mut Table) {
    t.name(b"_PRT");
    t.package(op::PACKAGE, |t| {
        let slots = SLOTS.saturating_sub(FIRST_FREE_SLOT);
        t.put(&[slots.saturating_mul(4)]);
        for slot in FIRST_FREE_SLOT..SLOTS {
            for pin in 0..4u8 {
                let wire = intx::wire(Bdf::new(slot, 0), pin.saturating_add(1));
                t.package(op::PACKAGE, |t| {
                    t.put(&[4]);
                    t.integer(u32::from(slot) << 16 | 0xffff);
                    t.integer(pin.into());
                    // A name below this one, of two parts.
                    t.put(b"\x2eISA_");
                    t.put(LINKS.get(wire).copied().unwrap_or(b"LNKA"));
                    t.integer(0);
                });
            }
        }
    });
}

fn isa_bridge(t: &mut Table, machine: &Machine<'_>) {
    t.named_integer(b"_ADR", address(isa_bridge::AT));
    t.fields(
        b"ROUT",
        PCI_CONFIG,
        isa_bridge::ROUTES.into(),
        1,
        &REGISTERS,
    );
    for ((name, register), uid) in LINKS.into_iter().zip(REGISTERS).zip(1..=4) {
        t.device(name, |t| link(t, register, uid));
    }
    let acpi = |described: ImageDevice<'_>| (described.kind.acpi)(described.place?);
    for described in machine.devices().filter_map(acpi) {
        isa_device(t, &described);
    }
    isa_device(t, &rtc::ACPI);
}

/// A wire of the PCI bus, which the guest routes to an interrupt (6.2.13).
fn link(t: &mut Table, register: &[u8; 4], uid: u32) {
    t.pnp_id(0x0c0f);
    t.named_integer(b"_UID", uid);
    t.resources(b"_PRS", 5 + 4 * 3, |t| t.level_interrupts(&intx::POSSIBLE));
    // Present, working and shown; and enabled.
    t.method(b"_STA", 0, |t| {
        t.package(op::IF, |t| {
            t.put(&[op::AND]);
            t.put(register);
            t.integer(OFF);
            t.put(&[op::NOWHERE, op::RETURN]);
            t.integer(0b1001);
        });
        t.put(&[op::RETURN]);
        t.integer(0b1011);
    });
    t.method(b"_DIS", 0, |t| {
        t.put(&[op::OR]);
        t.put(register);
        t.integer(OFF);
        t.put(register);
    });
    t.method(b"_CRS", 0, |t| {
        t.resources(b"BUFF", 5 + 4, |t| t.level_interrupts(&[0]));
        interrupt_field(t, b"BUFF");
        t.put(&[op::AND]);
        t.put(register);
        t.integer(0xf);
        t.put(b"INTR");
        t.put(&[op::RETURN]);
        t.put(b"BUFF");
    });
    t.method(b"_SRS", 1, |t| {
        interrupt_field(t, &[op::ARG0]);
        t.put(&[op::STORE]);
        t.put(b"INTR");
        t.put(register);
    });
}

/// The interrupt in a buffer with one.
fn interrupt_field(t: &mut Table, buffer: &[u8]) {
    t.put(&[op::DOUBLE_WORD_FIELD]);
    t.put(buffer);
    t.integer(5);
    t.put(b"INTR");
}

/// A device with its id and its resources.
fn isa_device(t: &mut Table, device: &AcpiDevice) {
    t.device(&device.name, |t| {
        t.name(b"_HID");
        t.put(&[0x0c]);
        t.put(&device.hid);
        t.named_integer(b"_UID", device.uid.into());
        t.resources(b"_CRS", 8 + 3, |t| {
            t.ports(device.place.port, device.place.ports as u8);
            // An interrupt, edge-triggered (6.4.2.1).
            t.put(&[0x22]);
            t.u16(1u16.checked_shl(device.place.irq).unwrap_or(0));
        });
    });
}

/// A function's address (6.1.1).
fn address(of: Bdf) -> u32 {
    u32::from(of.slot()) << 16 | u32::from(of.function())
}

/// SL, and the slot's number in hexadecimal digits.
fn slot_name(slot: u8) -> [u8; 4] {
    let digit = |value: u8| match value & 0xf {
        value @ 0..=9 => b'0'.wrapping_add(value),
        value => b'A'.wrapping_sub(10).wrapping_add(value),
    };
    [b'S', b'L', digit(slot >> 4), digit(slot)]
}

/// A slot whose device the guest can eject (6.3.3).
fn hot_plug_slot(t: &mut Table, slot: u8) {
    t.named_integer(b"_ADR", address(Bdf::new(slot, 0)));
    t.named_integer(b"_SUN", slot.into());
    t.method(b"_EJ0", 1, |t| {
        t.put(&[op::STORE]);
        t.integer(1u32.wrapping_shl(slot.into()));
        t.put(b"EJCT");
    });
}

/// Tells the guest's kernel of slots to which something happened.
fn scan(t: &mut Table) {
    for (register, local, event) in [
        (b"CAME", op::LOCAL0, DEVICE_CHECK),
        (b"GOES", op::LOCAL1, EJECT_REQUEST),
    ] {
        t.put(&[op::STORE]);
        t.put(register);
        t.put(&[local]);
        for slot in FIRST_FREE_SLOT..SLOTS {
            t.package(op::IF, |t| {
                t.put(&[op::AND, local]);
                t.integer(1u32.wrapping_shl(slot.into()));
                t.put(&[op::NOWHERE, op::NOTIFY]);
                t.put(&slot_name(slot));
                t.integer(event);
            });
        }
    }
}

/// What no device may be given: the ECAM window, and the chipset's ports.
fn reserved(t: &mut Table) {
    t.pnp_id(0x0c02);
    t.named_integer(b"_UID", 0);
    t.resources(b"_CRS", 12 + 3 * 8, |t| {
        let bytes = ECAM.end.wrapping_sub(ECAM.start);
        t.fixed_memory(ECAM.start as u32, bytes as u32);
        t.ports(PM1_EVENT_PORT, 64);
        t.ports(SLOT_PORT, SLOT_PORTS as u8);
        t.ports(EVENT_PORT, EVENT_PORTS);
    });
}
