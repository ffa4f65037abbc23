// SPDX-License-Identifier: MIT OR Apache-2.0
//! ACPI tables (ACPI 6.5) for the one PC that this VMM makes: processors, interrupt controllers, power, and the devices
//! that kernels do not find by themselves.
//!
//! Written by hand: a library that makes tables panics where there is no memory. Everything is fixed but the list of processors and serial ports.

mod dsdt;
mod table;

use super::error::BootError;
use super::layout::ACPI_TABLES;
use super::writer::Writer;
use crate::addr::Gpa;
use crate::devices::acpi::{PM1_CONTROL_PORT, PM1_EVENT_PORT, PM_TIMER_PORT, SCI_IRQ};
use crate::devices::hpet;
use crate::devices::pci::hotplug::{EVENT_PORT, EVENT_PORTS};
use crate::devices::pci::{BUSES, ECAM};
use crate::devices::reset::{RESET_PORT, RESET_VALUE};
use crate::image::Machine;
use crate::interfaces::GuestMemory;
use crate::interrupts::chipset::TIMER_INPUT;
use crate::interrupts::pic::LEVELS;
use crate::interrupts::{ioapic, lapic};
pub(super) use table::copy;
use table::{checksum, place, Table};

/// The length of the root pointer.
pub(super) const RSDP_BYTES: usize = 36;

/// The tables of firmware that a boot protocol tells the kernel of.
pub(super) struct Tables {
    /// ACPI's root pointer.
    pub rsdp: [u8; RSDP_BYTES],
}

/// Writes all tables; gives the root pointer, which is at [`ACPI_TABLES`].
pub(super) fn write(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
) -> Result<[u8; RSDP_BYTES], BootError> {
    let mut to = Writer {
        memory,
        at: Gpa(ACPI_TABLES.saturating_add(RSDP_BYTES as u64)),
    };
    let facs = place(&mut to, &facs())?;
    let dsdt = dsdt::dsdt(machine).write(&mut to)?;
    let fadt = fadt(facs, dsdt).write(&mut to)?;
    let madt = madt(machine.vcpus).write(&mut to)?;
    let mut rsdt = Table::new(b"RSDT", 1);
    let mut xsdt = Table::new(b"XSDT", 1);
    let hpet = hpet().write(&mut to)?;
    let mcfg = mcfg().write(&mut to)?;
    for table in [fadt, madt, hpet, mcfg] {
        rsdt.u32(table as u32);
        xsdt.u64(table);
    }
    let rsdt = rsdt.write(&mut to)?;
    let xsdt = xsdt.write(&mut to)?;
    let rsdp = rsdp(rsdt, xsdt);
    memory.write(Gpa(ACPI_TABLES), &rsdp)?;
    Ok(rsdp)
}

/// The root pointer (5.2.5.3).
fn rsdp(rsdt: u64, xsdt: u64) -> [u8; RSDP_BYTES] {
    let mut rsdp = [0; RSDP_BYTES];
    let mut at = 0usize;
    let mut put = |data: &[u8]| {
        let end = at.saturating_add(data.len());
        if let Some(to) = rsdp.get_mut(at..end) {
            copy(to, data);
        }
        at = end;
    };
    put(b"RSD PTR \0V3VEE \x02");
    put(&(rsdt as u32).to_le_bytes());
    put(&(RSDP_BYTES as u32).to_le_bytes());
    put(&xsdt.to_le_bytes());
    // The first checksum is over the fields of ACPI 1.0.
    rsdp[8] = checksum(&rsdp[..20]);
    rsdp[32] = checksum(&rsdp);
    rsdp
}

/// The firmware's control structure (5.2.10): nothing but its name and length, without a checksum.
fn facs() -> [u8; 64] {
    let mut facs = [0; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4] = 64;
    facs[32] = 2;
    facs
}

/// An I/O port as a generic address (5.2.3.2): the access size is 1, 2 or 3 for a byte, word or double word.
fn generic_port(table: &mut Table, port: u16, bits: u8, access: u8) {
    table.put(&[1, bits, 0, access]);
    table.u64(port.into());
}

/// The fixed description (5.2.9): ACPI mode always on, no SMIs, no 8042, no VGA; general-purpose events are those of hot plug.
fn fadt(facs: u64, dsdt: u64) -> Table {
    const LEGACY_DEVICES: u16 = 1 << 0;
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    const WBINVD: u32 = 1 << 0;
    const PROC_C1: u32 = 1 << 2;
    const NO_POWER_BUTTON: u32 = 1 << 4;
    const NO_SLEEP_BUTTON: u32 = 1 << 5;
    const NO_RTC_WAKE: u32 = 1 << 6;
    const RESET_REGISTER: u32 = 1 << 10;
    let mut t = Table::new(b"FACP", 6);
    t.u32(facs as u32);
    t.u32(dsdt as u32);
    t.put(&[0, 0]);
    t.u16(SCI_IRQ.into());
    t.put(&[0; 8]); // No SMI command, no S4BIOS, no P-states.
    for block in [
        PM1_EVENT_PORT,
        0,
        PM1_CONTROL_PORT,
        0,
        0,
        PM_TIMER_PORT,
        EVENT_PORT,
        0,
    ] {
        t.u32(block.into());
    }
    t.put(&[4, 2, 0, 4, EVENT_PORTS, 0, 0, 0]); // Lengths of event, control, control 2, timer, GPEs; GPE1 base, C-states.
    t.u16(0xffff); // No C2,
    t.u16(0xffff); // no C3.
    t.put(&[0; 9]); // No flush, duty cycle, RTC alarm or century.
    t.u16(LEGACY_DEVICES | VGA_NOT_PRESENT);
    t.put(&[0]);
    t.u32(WBINVD | PROC_C1 | NO_POWER_BUTTON | NO_SLEEP_BUTTON | NO_RTC_WAKE | RESET_REGISTER);
    generic_port(&mut t, RESET_PORT, 8, 1);
    t.put(&[RESET_VALUE, 0, 0, 5]); // No ARM flags; minor version 5.
    t.u64(0); // The FACS is below 4 GiB, and must be given only once.
    t.u64(dsdt);
    generic_port(&mut t, PM1_EVENT_PORT, 32, 2);
    t.put(&[0; 12]);
    generic_port(&mut t, PM1_CONTROL_PORT, 16, 2);
    t.put(&[0; 24]);
    generic_port(&mut t, PM_TIMER_PORT, 32, 3);
    generic_port(&mut t, EVENT_PORT, EVENT_PORTS.saturating_mul(8), 1);
    t.put(&[0; 36]); // GPE1, sleep control, sleep status.
    t.put(b"v3vee\0\0\0");
    t
}

/// The interrupt controllers (5.2.12).
fn madt(vcpus: u32) -> Table {
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
    let mut t = Table::new(b"APIC", 5);
    t.u32(lapic::BASE_GPA as u32);
    t.u32(PCAT_COMPAT);
    // A local APIC: processor, APIC id. A machine has too few processors for ids that need an x2APIC entry.
    for id in 0..vcpus {
        t.put(&[0, 8, id as u8, id as u8]);
        t.u32(ENABLED);
    }
    // The I/O APIC: id 0, address, first interrupt.
    t.put(&[1, 12, 0, 0]);
    t.u32(ioapic::BASE_GPA as u32);
    t.u32(0);
    // Overrides: ISA interrupt, global interrupt, flags.
    t.put(&[2, 10, 0, 0]);
    t.u32(TIMER_INPUT.into());
    t.u16(0);
    // The system control interrupt, and those of PCI.
    for irq in (0..16u8).filter(|irq| LEVELS >> irq & 1 != 0) {
        t.put(&[2, 10, 0, irq]);
        t.u32(irq.into());
        t.u16(ACTIVE_HIGH_LEVEL);
    }
    // NMI: of all processors, flags, LINT1.
    t.put(&[4, 6, 0xff, 0, 0, 1]);
    t
}

const _: () = assert!(crate::image::machine::MAX_VCPUS < 255);

/// The high-precision event timer (IA-PC HPET 1.0a: 3.2.4).
fn hpet() -> Table {
    const MEMORY: u8 = 0;
    /// Periodic timers closer than this may lose interrupts.
    const MIN_PERIOD_TICKS: u16 = hpet::MIN_SPACING_TICKS as u16;
    let mut t = Table::new(b"HPET", 1);
    t.u32(hpet::CAPABILITIES as u32);
    t.put(&[MEMORY, 64, 0, 0]);
    t.u64(hpet::BASE_GPA);
    t.put(&[0]); // The first one.
    t.u16(MIN_PERIOD_TICKS);
    t.put(&[0]); // Other registers may share its page.
    t
}

/// Where configuration space is in memory (PCI Firmware Specification 3.0: 4.1.2).
fn mcfg() -> Table {
    let mut t = Table::new(b"MCFG", 1);
    t.u64(0);
    t.u64(ECAM.start);
    t.u16(0);
    t.put(&[0, BUSES.saturating_sub(1)]);
    t.u32(0);
    t
}

#[cfg(test)]
mod tests;
