// SPDX-License-Identifier: MIT OR Apache-2.0
//! PCI (PCI Local Bus Specification 3.0): configuration space by ports and by the ECAM window, base address registers that are sized, moved and
//! switched off, and interrupts of the example device (`palacios_core/src/devices/example_rng.rs`) by its pin and by messages.

use super::interrupts::{halt_until, pic_on};
use super::ioapic::set_pin;
use super::memory_control::{read, write};
use crate::apic::{self, let_in, LEVEL, MASKED, XAPIC};
use crate::io::{inb, inl, inw, mmio_read, mmio_write, outb, outl, outw};
use crate::smp::{until, wait_ms};
use crate::{acpi, check, check_eq, paging, tests, trap, Outcome};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

tests!(; ours: pci_functions_by_ports, pci_functions_by_ecam, pci_ports_of_every_size, pci_moves_the_acpi_ports; our_device: pci_bar_is_sized_and_moved,
    pci_intx, pci_msix, pci_needs_the_bus);

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
/// The example device.
const RNG: u32 = 0x7633_1234;

// The command register.
const MEMORY: u16 = 1 << 1;
const MASTER: u16 = 1 << 2;
const NO_INTX: u16 = 1 << 10;

// Registers of the example device, and how a transfer ended that failed.
const NUMBER: u64 = 0;
const ENDED: u64 = 4;
const AT: u64 = 8;
const BYTES: u64 = 0x10;
const DOORBELL: u64 = 0x800;
const FAILED: u32 = 1 << 31;
const VECTOR: u8 = 0x62;

/// A function: its slot and its number in that.
#[derive(Clone, Copy, PartialEq)]
struct Function(u32, u32);

impl Function {
    fn select(self, register: u32) -> u16 {
        outl(
            ADDRESS,
            1 << 31 | self.0 << 11 | self.1 << 8 | register & !3,
        );
        DATA + (register & 3) as u16
    }
    fn get(self, register: u32) -> u32 {
        inl(self.select(register))
    }
    fn set(self, register: u32, value: u32) {
        outl(self.select(register), value);
    }
    fn set_command(self, command: u16) {
        outw(self.select(4), command);
    }
    /// Where its configuration space is in memory.
    fn ecam(self) -> Result<u64, &'static str> {
        Ok(acpi::ecam().ok_or("no MCFG")? + u64::from(self.0 << 15 | self.1 << 12))
    }
    /// The capability of an id.
    fn capability(self, id: u32) -> Result<u32, &'static str> {
        let mut at = self.get(0x34) & 0xff;
        while at != 0 {
            if self.get(at) & 0xff == id {
                return Ok(at);
            }
            at = self.get(at) >> 8 & 0xff;
        }
        Err("no such capability")
    }
}

fn all() -> impl Iterator<Item = Function> {
    (0..32).flat_map(|slot| (0..8).map(move |function| Function(slot, function)))
}

/// The chipset, and where it is.
const CHIPSET: [(Function, u32, u32); 3] = [
    (Function(0, 0), 0x1237_8086, 0x0600),
    (Function(1, 0), 0x7000_8086, 0x0601),
    (Function(1, 3), 0x7113_8086, 0x0680),
];

fn pci_functions_by_ports() -> Outcome {
    for (function, id, class) in CHIPSET {
        check_eq!((function.get(0), function.get(8) >> 16), (id, class));
    }
    check_eq!(Function(0, 0).get(0xc) >> 16 & 0x80, 0);
    check_eq!(
        Function(1, 0).get(0xc) >> 16 & 0x80,
        0x80,
        "it has several functions"
    );
    let absent =
        all().filter(|function| function.0 < 2 && CHIPSET.iter().all(|(at, ..)| at != function));
    for function in absent {
        check_eq!(function.get(0), u32::MAX);
    }
    // Without its highest bit the address register selects nothing.
    outl(ADDRESS, 0x7fff_ffff);
    check_eq!((inl(ADDRESS), inl(DATA)), (0x00ff_fffc, u32::MAX));
    Ok(())
}

fn pci_functions_by_ecam() -> Outcome {
    for function in all() {
        let at = function.ecam()?;
        for register in [0, 4, 8, 0xc, 0x2c, 0x34, 0x3c, 0x40, 0x60] {
            check_eq!(mmio_read(at + u64::from(register)), function.get(register));
        }
        check_eq!(mmio_read(at + 0x100), u32::MAX, "none is of PCI Express");
    }
    // What is written by one way is read by the other.
    let (bridge, before) = (Function(1, 0), Function(1, 0).get(0x60));
    mmio_write(bridge.ecam()? + 0x60, 0x8080_8080);
    check_eq!(bridge.get(0x60), 0x8080_8080);
    bridge.set(0x60, before);
    check_eq!(mmio_read(bridge.ecam()? + 0x60), before);
    Ok(())
}

fn pci_ports_of_every_size() -> Outcome {
    let bridge = Function(0, 0);
    let bytes = [0, 1, 2, 3].map(|n| inb(bridge.select(n)));
    check_eq!(bytes, [0x86, 0x80, 0x37, 0x12]);
    check_eq!(
        [inw(bridge.select(0)), inw(bridge.select(2))],
        [0x8086, 0x1237]
    );
    let isa = Function(1, 0);
    let before = isa.get(0x60);
    outb(isa.select(0x62), 0x85);
    check_eq!(isa.get(0x60), before & !0xff_0000 | 0x85_0000);
    outw(isa.select(0x60), 0x8b8a);
    check_eq!(isa.get(0x60) & 0xffff, 0x8b8a);
    isa.set(0x60, before);
    // The reset control is a port of its own, and narrow accesses leave the address register alone.
    outl(ADDRESS, 0x8000_0800);
    outb(ADDRESS, 0xff);
    outw(ADDRESS, 0xffff);
    check_eq!(inl(ADDRESS), 0x8000_0800);
    Ok(())
}

fn pci_moves_the_acpi_ports() -> Outcome {
    const TIMER: u16 = 8;
    let pm = Function(1, 3);
    let base = pm.get(0x40);
    check_eq!(base & 0x3f, 1);
    let (here, there) = (base as u16 & !0x3f, 0xb000);
    check!(inl(here + TIMER) != u32::MAX);
    pm.set(0x40, u32::from(there));
    let seen = (inl(here + TIMER), inl(there + TIMER));
    pm.set(0x40, base);
    check!(seen.0 == u32::MAX && seen.1 != u32::MAX);
    check!(inl(here + TIMER) != u32::MAX);
    Ok(())
}

/// The example device.
fn rng() -> Result<Function, &'static str> {
    all()
        .find(|function| function.get(0) == RNG)
        .ok_or("no example device")
}

/// Where its registers are, for a handler.
static REGISTERS: AtomicU64 = AtomicU64::new(0);

fn registers(of: Function) -> u64 {
    let at = u64::from(of.get(0x10) & !0xf);
    REGISTERS.store(at, SeqCst);
    at
}

fn pci_bar_is_sized_and_moved() -> Outcome {
    let rng = rng()?;
    let before = rng.get(0x10);
    check!(before != 0, "firmware has placed it");
    let [number, other] = [
        mmio_read(registers(rng) + NUMBER),
        mmio_read(registers(rng) + NUMBER),
    ];
    check!(number != other);
    rng.set(0x10, u32::MAX);
    let size = rng.get(0x10);
    check_eq!(size, 0xffff_f000);
    for at in [0xd000_0000u32, 0xd123_4000, 0xfeb0_0000, before] {
        let old = rng.get(0x10);
        rng.set(0x10, at | 0xfff);
        check_eq!(rng.get(0x10), at);
        mmio_write(u64::from(at) + BYTES, at);
        check_eq!(mmio_read(u64::from(at) + BYTES), at);
        if old != size && old != at {
            check_eq!(mmio_read(u64::from(old) + BYTES), u32::MAX);
        }
    }
    rng.set_command(0);
    check_eq!(mmio_read(u64::from(before) + BYTES), u32::MAX);
    rng.set_command(MEMORY);
    check_eq!(mmio_read(u64::from(before) + BYTES), before);
    Ok(())
}

/// Has the device put so many bytes into a frame.
fn begin(at: u64, frame: u64, bytes: u32) {
    write(at + AT, frame);
    mmio_write(at + BYTES, bytes);
    mmio_write(at + DOORBELL, 1);
}

/// The interrupt comes as long as the device asserts its pin, which it does until its register is read.
fn pci_intx() -> Outcome {
    let (rng, frame) = (rng()?, paging::frame()?);
    let (at, irq) = (registers(rng), rng.get(0x3c) & 0xff);
    check_eq!(rng.get(0x3c) >> 8 & 0xff, 1, "INTA");
    check!([5, 10, 11].contains(&irq));
    pic_on(0x20);
    apic::on();
    trap::on_interrupt(|vector| {
        if vector == VECTOR && trap::count(VECTOR) % 2 == 0 {
            mmio_read(REGISTERS.load(SeqCst) + ENDED);
        }
        apic::eoi();
    });
    set_pin(irq, LEVEL | u32::from(VECTOR));
    rng.set_command(MEMORY | MASTER);
    let before = mmio_read(at + ENDED) & !FAILED;
    for times in 1..4 {
        begin(at, frame, 256);
        halt_until(VECTOR, 2 * times);
    }
    check_eq!(mmio_read(at + ENDED), before + 3);
    check!((0..256).step_by(8).all(|n| read(frame + n) != 0));
    // It may not assert its pin: only its status says so.
    rng.set_command(MEMORY | MASTER | NO_INTX);
    begin(at, frame, 8);
    until(|| rng.get(4) >> 16 & 8 != 0)?;
    let_in();
    let silent = trap::count(VECTOR);
    set_pin(irq, MASKED);
    mmio_read(at + ENDED);
    rng.set_command(MEMORY);
    check_eq!((silent, rng.get(4) >> 16 & 8), (6, 0));
    Ok(())
}

fn pci_msix() -> Outcome {
    let (rng, frame) = (rng()?, paging::frame()?);
    let (at, msix) = (registers(rng), rng.capability(0x11)?);
    let bar = 0x10 + 4 * (rng.get(msix + 4) & 7);
    let table = u64::from(rng.get(bar) & !0xf) + u64::from(rng.get(msix + 4) & !7);
    let pending = u64::from(rng.get(bar) & !0xf) + u64::from(rng.get(msix + 8) & !7);
    check_eq!(mmio_read(table + 12), 1, "masked");
    apic::on();
    rng.set_command(MEMORY | MASTER);
    write(table, XAPIC | u64::from(apic::id()) << 12);
    mmio_write(table + 8, VECTOR.into());
    outw(rng.select(msix + 2), 1 << 15);
    begin(at, frame, 64);
    until(|| mmio_read(pending) == 1)?;
    check_eq!(trap::count(VECTOR), 0);
    mmio_write(table + 12, 0);
    halt_until(VECTOR, 1);
    check_eq!(mmio_read(pending), 0);
    for times in 2..5 {
        begin(at, frame, 64);
        halt_until(VECTOR, times);
    }
    mmio_write(table + 12, 1);
    outw(rng.select(msix + 2), 0);
    rng.set_command(MEMORY);
    check_eq!(trap::count(VECTOR), 4);
    Ok(())
}

/// Who may not master the bus writes nothing, and sends nothing.
fn pci_needs_the_bus() -> Outcome {
    let (rng, frame) = (rng()?, paging::frame()?);
    let at = registers(rng);
    write(frame, 0x1111);
    rng.set_command(MEMORY);
    let before = mmio_read(at + ENDED);
    begin(at, frame, 8);
    until(|| mmio_read(at + ENDED) != before)?;
    check!(mmio_read(at + ENDED) & FAILED != 0);
    wait_ms(1);
    check_eq!(read(frame), 0x1111);
    Ok(())
}
