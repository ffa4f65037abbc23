// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are in the guest-physical address space of a PC.
//!
//! ```text
//! 0x0000_0400  BIOS data area
//! 0x0000_6000  GDT, zero page, page tables, command line of a Linux kernel
//!      below   information of a Multiboot kernel
//! 0x0009_fc00  extended BIOS data area
//! 0x000a_0000  where a display would be
//! 0x000e_0000  ACPI tables
//! 0x000f_0000  MP tables
//! 0x0010_0000  kernel and its files
//! 0xc000_0000  devices, if there is that much RAM
//! 0xfec0_0000  I/O APIC
//! 0xfee0_0000  local APICs
//! 0x1_0000_0000  the rest of the RAM
//! ```

use crate::addr::{Gpa, NotRam};
use crate::devices::GuestMemory;
use crate::image::Machine;
use crate::memory::{HIGH_RAM, LOW_RAM_END};

/// The extended BIOS data area, the end of conventional memory.
pub const EBDA: u64 = 0x9_fc00;
/// The end of what real mode calls memory.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// Our ACPI tables, in the range that kernels search for the RSDP (ACPI 6.5: 5.2.5.1).
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Our MP tables, in the range that kernels search for their pointer (MultiProcessor Specification 1.4: 4).
pub const MP_TABLES: u64 = 0xf_0000;
/// One megabyte: the end of what real mode reaches, and of the BIOS's range.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Registers of the I/O APIC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Registers of each CPU's local APIC.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// What a range of the address space is, numbered as in an E820 map (ACPI 6.5: 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionKind {
    /// RAM for the kernel to use.
    Ram = 1,
    /// Not for use.
    Reserved = 2,
}

/// A range of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its first byte.
    pub start: u64,
    /// Its length in bytes, never zero.
    pub bytes: u64,
    /// What it is.
    pub kind: RegionKind,
}

/// The end of the RAM below 4 GiB.
pub fn low_ram_end(memory_bytes: u64) -> u64 {
    memory_bytes.min(LOW_RAM_END)
}

/// The memory map of a machine with this much RAM, in ascending order.
pub fn memory_map(memory_bytes: u64) -> impl Iterator<Item = Region> {
    let low_end = low_ram_end(memory_bytes);
    let high_end = HIGH_RAM.saturating_add(memory_bytes.saturating_sub(low_end));
    let all = [
        (0, EBDA, RegionKind::Ram),
        (EBDA, CONVENTIONAL_END, RegionKind::Reserved),
        (ACPI_TABLES, HIGH_MEMORY, RegionKind::Reserved),
        (HIGH_MEMORY, low_end, RegionKind::Ram),
        (HIGH_RAM, high_end, RegionKind::Ram),
    ];
    all.into_iter()
        .filter(|(start, end, _)| end > start)
        .map(|(start, end, kind)| Region {
            start,
            bytes: end.saturating_sub(start),
            kind,
        })
}

/// The part of the BIOS data area that kernels read: where the serial ports are, and how much memory there is below the
/// extended area.
pub(super) fn write_bios_data(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
) -> Result<(), NotRam> {
    super::write_zeros(memory, Gpa(0), 0x500)?;
    for (at, serial) in [0x400, 0x402, 0x404, 0x406]
        .into_iter()
        .zip(machine.serials())
    {
        memory.write(Gpa(at), &serial.port.to_le_bytes())?;
    }
    memory.write(Gpa(0x40e), &((EBDA >> 4) as u16).to_le_bytes())?;
    memory.write(Gpa(0x413), &((EBDA >> 10) as u16).to_le_bytes())?;
    // The extended area begins with its own length in KiB.
    memory.write(Gpa(EBDA), &[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ram(memory_bytes: u64) -> u64 {
        memory_map(memory_bytes)
            .filter(|r| r.kind == RegionKind::Ram)
            .map(|r| r.bytes)
            .sum()
    }

    #[test]
    fn all_ram_but_the_holes_of_a_pc_is_reported() {
        for mib in [2, 64, 3071, 3072, 3073, 8192, 1 << 20] {
            let bytes = mib << 20;
            assert_eq!(ram(bytes), bytes - (HIGH_MEMORY - EBDA), "{mib} MiB");
            let regions: Vec<_> = memory_map(bytes).collect();
            assert!(regions
                .windows(2)
                .all(|w| w[0].start + w[0].bytes <= w[1].start));
            assert!(regions
                .iter()
                .all(|r| r.start >= HIGH_RAM || r.start + r.bytes <= LOW_RAM_END));
        }
        assert_eq!(memory_map(3 << 30).last().unwrap().start, HIGH_MEMORY);
        assert_eq!(
            memory_map(5 << 30).last().unwrap(),
            Region {
                start: 4 << 30,
                bytes: 2 << 30,
                kind: RegionKind::Ram
            }
        );
    }
}
