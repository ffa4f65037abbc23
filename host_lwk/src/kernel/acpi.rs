// SPDX-License-Identifier: MIT OR Apache-2.0
//! ACPI: which CPUs and I/O APICs the machine has, and how it is switched off.

use super::sync::Once;
use super::{stop, time};
use crate::log;
use acpi::madt::{Madt, MadtEntry};
use acpi::{AcpiHandler, AcpiTables, PhysicalMapping};
use alloc::vec::Vec;
use core::ptr::NonNull;
use palacios_core::alloc_ext::{NoMemory, TryPush};
use x86_64::instructions::port::Port;

/// The processor may be used (ACPI 6.5: 5.2.12.2).
const ENABLED: u32 = 1;
/// SLP_EN of a PM1 control register (ACPI 6.5: 4.8.3.2.1).
const SLEEP_ENABLE: u16 = 1 << 13;

/// How long the machine may take to go off.
const OFF_NS: u64 = 2_000_000_000;

/// All memory is mapped where it is.
#[derive(Clone)]
struct MappedInPlace;

impl AcpiHandler for MappedInPlace {
    unsafe fn map_physical_region<T>(&self, at: usize, size: usize) -> PhysicalMapping<Self, T> {
        let virt = NonNull::new(at as *mut T).unwrap_or(NonNull::dangling());
        // SAFETY: below 4 GiB, where firmware puts its tables, all is mapped.
        unsafe { PhysicalMapping::new(at, virt, size, size, self.clone()) }
    }
    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}
}

/// The CPUs and the interrupt controllers of this machine.
#[derive(Default)]
pub struct Topology {
    apic_ids: Vec<u32>,
    /// The address and the first line of each.
    io_apics: Vec<(u64, u32)>,
    /// The ISA interrupts that have another line than that of their number: interrupt, line, flags.
    overrides: Vec<(u8, u32, u16)>,
}

/// The registers that switch the machine off, each with what is written there.
#[derive(Default)]
struct PowerOff([Option<(u16, u16)>; 2]);

static POWER_OFF: Once<PowerOff> = Once::new();

impl Topology {
    /// The local APICs of all usable CPUs.
    pub fn apic_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.apic_ids.iter().copied()
    }
    /// Each I/O APIC's address and first line.
    pub fn io_apics(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.io_apics.iter().copied()
    }
    /// The line of an ISA interrupt; whether it is active low, and whether level-triggered (ACPI 6.5: 5.2.12.5).
    pub fn line(&self, irq: u8) -> (u32, bool, bool) {
        let mut all = self.overrides.iter();
        all.find(|(isa, ..)| *isa == irq)
            .map_or((irq.into(), false, false), |(_, line, flags)| {
                (*line, flags & 3 == 3, flags >> 2 & 3 == 3)
            })
    }

    /// Takes over an entry of the table of APICs. The highest APIC id stands for all CPUs, so no CPU has it (SDM 3A: 11.6.2).
    fn add(&mut self, entry: MadtEntry<'_>) -> Result<(), NoMemory> {
        match entry {
            MadtEntry::LocalApic(cpu) if cpu.flags & ENABLED != 0 && cpu.apic_id != u8::MAX => {
                self.add_cpu(cpu.apic_id.into())
            }
            MadtEntry::LocalX2Apic(cpu)
                if cpu.flags & ENABLED != 0 && cpu.x2apic_id != u32::MAX =>
            {
                self.add_cpu(cpu.x2apic_id)
            }
            MadtEntry::IoApic(io) => {
                let (at, base) = (io.io_apic_address, io.global_system_interrupt_base);
                self.io_apics.try_push((at.into(), base))
            }
            MadtEntry::InterruptSourceOverride(line) => {
                let (irq, gsi, flags) = (line.irq, line.global_system_interrupt, line.flags);
                self.overrides.try_push((irq, gsi, flags))
            }
            _ => Ok(()),
        }
    }

    /// Adds a CPU once, though firmware may list it twice, by an entry of each kind.
    fn add_cpu(&mut self, apic_id: u32) -> Result<(), NoMemory> {
        match self.apic_ids.contains(&apic_id) {
            true => Ok(()),
            false => self.apic_ids.try_push(apic_id),
        }
    }
}

/// Reads the tables. A machine without tables has one CPU, and nothing else that they tell of.
///
/// # Safety
/// Once, at boot. `rsdp` points to ACPI's root.
pub unsafe fn init(rsdp: Option<usize>) -> Result<Topology, NoMemory> {
    let mut topology = Topology::default();
    // SAFETY: by the contract above.
    let tables = rsdp.and_then(|at| unsafe { AcpiTables::from_rsdp(MappedInPlace, at) }.ok());
    let Some(tables) = tables else {
        log!("no ACPI tables: one CPU, and no power-off");
        return Ok(topology);
    };
    if let Ok(madt) = tables.find_table::<Madt>() {
        for entry in madt.get().entries() {
            topology.add(entry)?;
        }
    }
    // SAFETY: by the contract above.
    unsafe { POWER_OFF.set(power_off_registers(&tables).unwrap_or_default()) };
    Ok(topology)
}

/// The PM1 control registers, with the value that the DSDT's `\_S5` gives for each (ACPI 6.5: 7.4.2, 20.2.5).
fn power_off_registers(tables: &AcpiTables<MappedInPlace>) -> Option<PowerOff> {
    let fadt = tables.find_table::<acpi::fadt::Fadt>().ok()?;
    let dsdt = tables.dsdt().ok()?;
    // SAFETY: firmware's own bytes, below 4 GiB.
    let aml =
        unsafe { core::slice::from_raw_parts(dsdt.address as *const u8, dsdt.length as usize) };
    let types = soft_off_types(aml)?;
    let a = fadt.pm1a_control_block().ok();
    let b = fadt.pm1b_control_block().ok().flatten();
    let register = |block: Option<acpi::address::GenericAddress>, kind: u8| {
        let port = u16::try_from(block?.address)
            .ok()
            .filter(|port| *port != 0)?;
        Some((port, u16::from(kind & 7) << 10 | SLEEP_ENABLE))
    };
    Some(PowerOff([register(a, types[0]), register(b, types[1])]))
}

/// The two numbers of `Name(_S5, Package(…) {a, b, …})`, found by its bytes: all firmware writes it so, and an interpreter of AML
/// would be large.
fn soft_off_types(aml: &[u8]) -> Option<[u8; 2]> {
    const NAME_OP: u8 = 0x08;
    const PACKAGE_OP: u8 = 0x12;
    const BYTE_PREFIX: u8 = 0x0a;
    let at = aml.windows(4).enumerate().find(|(at, name)| {
        let before = aml.get(at.wrapping_sub(2)..*at).unwrap_or_default();
        *name == b"_S5_" && (before.get(1) == Some(&NAME_OP) || before == [NAME_OP, b'\\'])
    })?;
    let mut bytes = aml.get(at.0 + 4..)?.iter().copied();
    if bytes.next()? != PACKAGE_OP {
        return None;
    }
    // The package's length has up to three more bytes; then its number of elements.
    let more = bytes.next()? >> 6;
    let mut bytes = bytes.skip(usize::from(more) + 1);
    let mut number = || match bytes.next()? {
        BYTE_PREFIX => bytes.next(),
        small @ (0 | 1) => Some(small),
        _ => None,
    };
    Some([number()?, number().unwrap_or(0)])
}

/// Switches the machine off; stands still where it cannot.
pub fn power_off() -> ! {
    let registers = POWER_OFF.get().map_or([None; 2], |off| off.0);
    for (port, value) in registers.into_iter().flatten() {
        // SAFETY: ACPI says that this switches the machine off.
        unsafe { Port::<u16>::new(port).write(value) };
    }
    time::spin_ns(OFF_NS);
    log!("this machine cannot switch itself off");
    stop::halt()
}
