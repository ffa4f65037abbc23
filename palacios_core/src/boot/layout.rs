// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where things are in the guest-physical address space of a PC.
//!
//! ```text
//! 0x0000_0000  interrupt vector table
//! 0x0000_0400  BIOS data area
//! 0x0000_6000  GDT, zero page, page tables, command line of a Linux kernel
//!      below   information of a Multiboot kernel
//! 0x0009_fc00  extended BIOS data area
//! 0x000a_0000  where a display would be; text written to 0x000b_8000 stays there
//! 0x000e_0000  ACPI tables
//! 0x000f_0000  MP tables
//! 0x000f_ff00  what interrupts in real mode lead to
//! 0x0010_0000  kernel and its files
//! 0xc000_0000  memory of PCI devices, if there is that much RAM
//! 0xf000_0000  configuration space of PCI
//! 0xfec0_0000  I/O APIC
//! 0xfed0_0000  HPET
//! 0xfee0_0000  local APICs
//! 0xff00_0000  memory of the test device, if there is one
//! 0x1_0000_0000  the rest of the RAM
//! ```

use super::writer::{write_zeros, Writer};
use crate::addr::{Gpa, NotRam};
use crate::devices::crtc::INDEX_PORT;
use crate::devices::pci::ECAM;
use crate::image::Machine;
use crate::interfaces::GuestMemory;
use crate::ram::RamLayout;

/// The extended BIOS data area, the end of conventional memory.
pub const EBDA: u64 = 0x9_fc00;
/// The end of what real mode calls memory.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// Our ACPI tables, in the range that kernels search for the RSDP (ACPI 6.5: 5.2.5.1).
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Our MP tables, in the range that kernels search for their pointer (MultiProcessor Specification 1.4: 4).
pub const MP_TABLES: u64 = 0xf_0000;
/// The segment of the BIOS.
const BIOS_SEGMENT: u64 = 0xf_0000;
/// The handlers of interrupts in real mode.
const BIOS_CODE: u64 = 0xf_ff00;
/// Where an 8086 begins after a reset, and kernels jump to for one.
const RESET_VECTOR: u64 = 0xf_fff0;
/// The interrupt vector table of real mode, at address 0.
pub(super) const VECTOR_TABLE_BYTES: u64 = 0x400;
/// One megabyte: the end of what real mode reaches, and of the BIOS's range.
pub const HIGH_MEMORY: u64 = 0x10_0000;

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

/// The memory map of a machine with this RAM, in ascending order.
pub fn memory_map(ram: RamLayout) -> impl Iterator<Item = Region> {
    let high = ram.high();
    let all = [
        (0, EBDA, RegionKind::Ram),
        (EBDA, CONVENTIONAL_END, RegionKind::Reserved),
        (ACPI_TABLES, HIGH_MEMORY, RegionKind::Reserved),
        (HIGH_MEMORY, ram.low().end, RegionKind::Ram),
        (ECAM.start, ECAM.end, RegionKind::Reserved),
        (high.start, high.end, RegionKind::Ram),
    ];
    all.into_iter()
        .filter(|(start, end, _)| end > start)
        .map(|(start, end, kind)| Region {
            start,
            bytes: end.saturating_sub(start),
            kind,
        })
}

/// Writes what a BIOS leaves in memory, as far as kernels use it.
pub(super) fn write_bios(machine: &Machine<'_>, memory: &dyn GuestMemory) -> Result<(), NotRam> {
    write_vector_table(memory)?;
    write_bios_data(machine, memory)
}

/// The interrupt vector table of real mode, with its handlers.
///
/// There are no BIOS services: a call of one comes back with the carry flag set, which means that it failed. An interrupt of the
/// PIC pair is ended, and the timer's counted.
fn write_vector_table(memory: &dyn GuestMemory) -> Result<(), NotRam> {
    let mut code = Writer {
        memory,
        at: Gpa(BIOS_CODE),
    };
    let service = code.bytes(&handler::SERVICE)?;
    let timer = code.bytes(&handler::TIMER)?;
    let primary = code.bytes(&handler::PRIMARY)?;
    let secondary = code.bytes(&handler::SECONDARY)?;
    memory.write(Gpa(RESET_VECTOR), &handler::RESET)?;
    let mut table = Writer { memory, at: Gpa(0) };
    for vector in 0..VECTOR_TABLE_BYTES / 4 {
        let handler = match vector {
            0x08 => timer,
            0x09..=0x0f => primary,
            0x70..=0x77 => secondary,
            _ => service,
        };
        let segment = (BIOS_SEGMENT >> 4) as u32;
        table.u32(segment << 16 | handler.0.wrapping_sub(BIOS_SEGMENT) as u32)?;
    }
    Ok(())
}

/// Code for real mode.
#[rustfmt::skip]
mod handler {
    pub const SERVICE: [u8; 9] = [
        0x55,                           // push bp
        0x89, 0xe5,                     // mov bp, sp
        0x80, 0x4e, 0x06, 0x01,         // or byte [bp + 6], 1: the carry flag
        0x5d,                           // pop bp
        0xcf,                           // iret
    ];
    pub const TIMER: [u8; 21] = [
        0x1e,                           // push ds
        0x50,                           // push ax
        0xb8, 0x40, 0x00,               // mov ax, 0x40
        0x8e, 0xd8,                     // mov ds, ax
        0x66, 0xff, 0x06, 0x6c, 0x00,   // inc dword [0x6c]: the ticks in the BIOS data area
        0xcd, 0x1c,                     // int 0x1c: whoever wants to be told
        0xb0, 0x20,                     // mov al, 0x20: end of interrupt
        0xe6, 0x20,                     // out 0x20, al
        0x58,                           // pop ax
        0x1f,                           // pop ds
        0xcf,                           // iret
    ];
    pub const PRIMARY: [u8; 7] = [
        0x50,                           // push ax
        0xb0, 0x20,                     // mov al, 0x20
        0xe6, 0x20,                     // out 0x20, al
        0x58,                           // pop ax
        0xcf,                           // iret
    ];
    pub const SECONDARY: [u8; 9] = [
        0x50,                           // push ax
        0xb0, 0x20,                     // mov al, 0x20
        0xe6, 0xa0,                     // out 0xa0, al
        0xe6, 0x20,                     // out 0x20, al
        0x58,                           // pop ax
        0xcf,                           // iret
    ];
    /// A jump to ffff:0000 restarts the machine, by the chipset's reset control.
    pub const RESET: [u8; 9] = [
        0xb0, 0x06,                     // mov al, 6
        0xba, 0xf9, 0x0c,               // mov dx, 0xcf9
        0xee,                           // out dx, al
        0xf4,                           // hlt
        0xeb, 0xfd,                     // jmp to the hlt
    ];
}

/// The part of the BIOS data area that kernels read: where the serial ports are, how much memory there is below the
/// extended area, and the text display, whose controller has registers and shows nothing.
fn write_bios_data(machine: &Machine<'_>, memory: &dyn GuestMemory) -> Result<(), NotRam> {
    write_zeros(memory, Gpa(0x400), 0x100)?;
    for (at, serial) in [0x400, 0x402, 0x404, 0x406]
        .into_iter()
        .zip(machine.serials())
    {
        memory.write(Gpa(at), &serial.port.base().to_le_bytes())?;
    }
    memory.write(Gpa(0x40e), &((EBDA >> 4) as u16).to_le_bytes())?;
    memory.write(Gpa(0x413), &((EBDA >> 10) as u16).to_le_bytes())?;
    // Video mode 3, 80 columns of 25 rows; the CRT controller's index port.
    memory.write(Gpa(0x449), &[3, 80, 0])?;
    memory.write(Gpa(0x463), &INDEX_PORT.to_le_bytes())?;
    memory.write(Gpa(0x484), &[24])?;
    // The extended area begins with its own length in KiB.
    memory.write(Gpa(EBDA), &[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::testing::TestMemory;
    use crate::ram::{HIGH_RAM, LOW_RAM_END};

    fn map(bytes: u64) -> impl Iterator<Item = Region> {
        memory_map(RamLayout::new(bytes))
    }

    fn ram(bytes: u64) -> u64 {
        map(bytes)
            .filter(|r| r.kind == RegionKind::Ram)
            .map(|r| r.bytes)
            .sum()
    }

    #[test]
    fn all_ram_but_the_holes_of_a_pc_is_reported() {
        for mib in [2, 64, 3071, 3072, 3073, 8192, 1 << 20] {
            let bytes = mib << 20;
            assert_eq!(ram(bytes), bytes - (HIGH_MEMORY - EBDA), "{mib} MiB");
            let regions: Vec<_> = map(bytes).collect();
            assert!(regions
                .windows(2)
                .all(|w| w[0].start + w[0].bytes <= w[1].start));
            assert!(regions
                .iter()
                .filter(|r| r.kind == RegionKind::Ram)
                .all(|r| r.start >= HIGH_RAM || r.start + r.bytes <= LOW_RAM_END));
        }
        assert_eq!(map(3 << 30).last().unwrap().start, ECAM.start);
        assert_eq!(
            map(5 << 30).last().unwrap(),
            Region {
                start: 4 << 30,
                bytes: 2 << 30,
                kind: RegionKind::Ram
            }
        );
    }

    /// What the handlers do is a test of guests/tmk.
    #[test]
    fn every_vector_of_real_mode_leads_to_a_handler() {
        let memory = TestMemory::new(RamLayout::new(4 << 20));
        write_vector_table(&memory).unwrap();
        for vector in 0..256u64 {
            let pointer = memory.u32(vector * 4);
            let at = u64::from(pointer >> 16 << 4) + u64::from(pointer & 0xffff);
            let (first, size) = match vector {
                8 => (0x1e, 21),
                0x09..=0x0f => (0x50, 7),
                0x70..=0x77 => (0x50, 9),
                _ => (0x55, 9),
            };
            let code = memory.bytes(at, size);
            assert_eq!((code[0], code[size - 1]), (first, 0xcf), "{vector:#x}");
        }
    }
}
