// SPDX-License-Identifier: MIT OR Apache-2.0
//! Linux bzImages by the 64-bit boot protocol (Linux: Documentation/arch/x86/boot.rst).

use super::cpu::{self, Mode};
use super::layout::{self, ACPI_TABLES, EBDA, HIGH_MEMORY};
use super::{align_up, error, le16, le32, le64, write_zeros, BootError, Writer};
use crate::addr::{Gpa, PAGE_SIZE};
use crate::devices::GuestMemory;
use crate::image::Machine;
use crate::memory::LOW_RAM_END;
use crate::state::{CpuState, Reg};

const GDT: Gpa = Gpa(0x6000);
const ZERO_PAGE: Gpa = Gpa(0x7000);
const PAGE_TABLES: Gpa = Gpa(0x9000);
const COMMAND_LINE: Gpa = Gpa(0x2_0000);

/// Offsets in the file's setup header, which are the same in the zero page.
mod field {
    pub const SETUP_SECTS: u64 = 0x1f1;
    pub const SYSSIZE: u64 = 0x1f4;
    pub const VID_MODE: u64 = 0x1fa;
    pub const JUMP: u64 = 0x200;
    pub const MAGIC: u64 = 0x202;
    pub const VERSION: u64 = 0x206;
    pub const TYPE_OF_LOADER: u64 = 0x210;
    pub const RAMDISK_IMAGE: u64 = 0x218;
    pub const RAMDISK_SIZE: u64 = 0x21c;
    pub const CMD_LINE_PTR: u64 = 0x228;
    pub const INITRD_ADDR_MAX: u64 = 0x22c;
    pub const XLOADFLAGS: u64 = 0x236;
    pub const CMDLINE_SIZE: u64 = 0x238;
    pub const PREF_ADDRESS: u64 = 0x258;
    pub const INIT_SIZE: u64 = 0x260;
    /// The end of the room for the header in the zero page.
    pub const HEADER_MAX_END: u64 = 0x290;
    // In the zero page only.
    pub const ACPI_RSDP_ADDR: u64 = 0x070;
    pub const E820_ENTRIES: u64 = 0x1e8;
    pub const E820_TABLE: u64 = 0x2d0;
}

/// The 64-bit entry point, from the beginning of the kernel in memory.
const ENTRY_64: u64 = 0x200;
/// In `xloadflags`: there is one.
const XLF_KERNEL_64: u16 = 1;
/// Boot loaders without a number of their own.
const LOADER_UNKNOWN: u8 = 0xff;
const VID_MODE_NORMAL: u16 = 0xffff;

/// Whether the file has the header of a Linux kernel for x86.
pub(super) fn is_bzimage(kernel: &[u8]) -> bool {
    let magic = le32(kernel, field::MAGIC).map(u32::to_le_bytes);
    magic == Some(*b"HdrS") && le16(kernel, 0x1fe) == Some(0xaa55)
}

/// What the setup header says.
struct Kernel<'a> {
    /// From [`field::SETUP_SECTS`] on, for the zero page.
    header: &'a [u8],
    /// What goes to memory.
    payload: &'a [u8],
    /// Where it goes.
    load: u64,
    /// The end of the memory it needs there.
    end: u64,
    /// The end of the memory in which it finds an initrd.
    initrd_end: u64,
    /// The longest command line, without its zero.
    max_command_line: u64,
}

impl<'a> Kernel<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, BootError> {
        if !is_bzimage(file) {
            return Err(BootError::NotBzImage {
                looks_like: error::looks_like(file),
            });
        }
        let have = file.len() as u64;
        let cut_off = BootError::Truncated {
            need: field::HEADER_MAX_END,
            have,
        };
        let version = le16(file, field::VERSION).ok_or(cut_off)?;
        if version < 0x020c {
            return Err(BootError::OldProtocol { version });
        }
        if le16(file, field::XLOADFLAGS).ok_or(cut_off)? & XLF_KERNEL_64 == 0 {
            return Err(BootError::Not64Bit);
        }
        let (header, payload) = split(file)?;
        let load = le64(file, field::PREF_ADDRESS).ok_or(cut_off)?;
        let init_size = u64::from(le32(file, field::INIT_SIZE).ok_or(cut_off)?);
        let end = load.checked_add(init_size.max(payload.len() as u64));
        let end =
            end.filter(|end| load >= HIGH_MEMORY && load % PAGE_SIZE == 0 && *end <= LOW_RAM_END);
        let initrd_last = le32(file, field::INITRD_ADDR_MAX).ok_or(cut_off)?;
        Ok(Kernel {
            header,
            payload,
            load,
            end: end.ok_or(BootError::BadKernel(
                "it does not want to be between 1 MiB and 3 GiB",
            ))?,
            initrd_end: u64::from(initrd_last).saturating_add(1),
            max_command_line: le32(file, field::CMDLINE_SIZE).ok_or(cut_off)?.into(),
        })
    }
}

/// The setup header and the part that goes to memory.
fn split(file: &[u8]) -> Result<(&[u8], &[u8]), BootError> {
    let have = file.len() as u64;
    // Zero means four, for the oldest kernels; the boot sector itself is not counted.
    let sectors = match byte(file, field::SETUP_SECTS) {
        0 => 4,
        n => u64::from(n),
    };
    // The header's length is the offset of the jump over it (boot.rst: "Details of Header Fields").
    let header_end = u64::from(byte(file, field::JUMP + 1))
        .saturating_add(field::MAGIC)
        .min(field::HEADER_MAX_END);
    let payload_at = sectors.saturating_add(1).saturating_mul(512);
    let paragraphs = u64::from(le32(file, field::SYSSIZE).unwrap_or(0));
    let need = payload_at.saturating_add(paragraphs.saturating_mul(16));
    let cut_off = BootError::Truncated { need, have };
    if need > have {
        return Err(cut_off);
    }
    let header = file.get(field::SETUP_SECTS as usize..header_end as usize);
    let payload = file.get(payload_at as usize..);
    Ok((header.ok_or(cut_off)?, payload.ok_or(cut_off)?))
}

fn byte(file: &[u8], at: u64) -> u8 {
    file.get(at as usize).copied().unwrap_or(0)
}

/// Loads the kernel; the state is that of its 64-bit entry point.
pub(super) fn load(machine: &Machine<'_>, memory: &dyn GuestMemory) -> Result<CpuState, BootError> {
    let kernel = Kernel::parse(machine.kernel)?;
    let limit = kernel.max_command_line.min(EBDA - COMMAND_LINE.0 - 1);
    if machine.bootargs.len() as u64 > limit {
        return Err(BootError::CommandLineTooLong {
            bytes: machine.bootargs.len() as u64,
            limit,
        });
    }
    let initrd = place_initrds(machine, &kernel)?;
    memory.write(Gpa(kernel.load), kernel.payload)?;
    write_initrds(machine, memory, initrd)?;
    Writer {
        memory,
        at: COMMAND_LINE,
    }
    .string(machine.bootargs)?;
    write_zero_page(machine, memory, &kernel, initrd)?;
    cpu::write_identity_map(memory, PAGE_TABLES)?;
    let mode = Mode::Long { cr3: PAGE_TABLES.0 };
    cpu::write_gdt(&mut Writer { memory, at: GDT }, mode)?;
    let mut state = cpu::entry_state(mode, kernel.load.saturating_add(ENTRY_64), GDT);
    state.gprs[Reg::Rsi] = ZERO_PAGE.0;
    Ok(state)
}

/// All initrds as one, of `bytes` at `start`; both are zero if there is none.
#[derive(Clone, Copy)]
struct Initrd {
    start: u64,
    bytes: u64,
}

/// The length of an initrd with the zeros after it: Linux finds the next one at a multiple of 4.
fn padded(initrd: &[u8]) -> u64 {
    align_up(initrd.len() as u64, 4)
}

/// Finds room for the initrds, as high as the kernel can reach.
fn place_initrds(machine: &Machine<'_>, kernel: &Kernel<'_>) -> Result<Initrd, BootError> {
    let bytes = machine
        .initrds()
        .map(padded)
        .fold(0u64, u64::saturating_add);
    let ram_end = layout::low_ram_end(machine.memory_bytes);
    let have = machine.memory_bytes;
    let reach = kernel.initrd_end.min(LOW_RAM_END);
    let room = reach.saturating_sub(kernel.end);
    if bytes > room {
        return Err(BootError::FilesTooBig { bytes, room });
    }
    let end = reach.min(ram_end);
    let start = end.saturating_sub(bytes) & !(PAGE_SIZE - 1);
    if kernel.end > ram_end || (bytes > 0 && start < kernel.end) {
        let need = kernel
            .end
            .saturating_add(bytes)
            .saturating_add(PAGE_SIZE - 1);
        return Err(BootError::NeedsMemory { need, have });
    }
    Ok(Initrd {
        start: if bytes > 0 { start } else { 0 },
        bytes,
    })
}

fn write_initrds(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
    at: Initrd,
) -> Result<(), BootError> {
    let mut to = Writer {
        memory,
        at: Gpa(at.start),
    };
    for initrd in machine.initrds() {
        to.bytes(initrd)?;
        let padding = padded(initrd).saturating_sub(initrd.len() as u64);
        to.bytes([0; 3].get(..padding as usize).unwrap_or(&[]))?;
    }
    Ok(())
}

/// The zero page (boot.rst; Linux: Documentation/arch/x86/zero-page.rst).
fn write_zero_page(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
    kernel: &Kernel<'_>,
    initrd: Initrd,
) -> Result<(), BootError> {
    let field = |at: u64, value: &[u8]| memory.write(ZERO_PAGE.wrapping_add(at), value);
    write_zeros(memory, ZERO_PAGE, PAGE_SIZE)?;
    field(field::SETUP_SECTS, kernel.header)?;
    field(field::TYPE_OF_LOADER, &[LOADER_UNKNOWN])?;
    field(field::VID_MODE, &VID_MODE_NORMAL.to_le_bytes())?;
    // All of it lies below 4 GiB, so the upper halves of these stay zero.
    field(field::RAMDISK_IMAGE, &(initrd.start as u32).to_le_bytes())?;
    field(field::RAMDISK_SIZE, &(initrd.bytes as u32).to_le_bytes())?;
    field(field::CMD_LINE_PTR, &(COMMAND_LINE.0 as u32).to_le_bytes())?;
    // Since protocol 2.14; older kernels search for it.
    field(field::ACPI_RSDP_ADDR, &ACPI_TABLES.to_le_bytes())?;
    let mut entries = 0u8;
    let mut table = Writer {
        memory,
        at: ZERO_PAGE.wrapping_add(field::E820_TABLE),
    };
    for region in layout::memory_map(machine.memory_bytes) {
        table.u64(region.start)?;
        table.u64(region.bytes)?;
        table.u32(region.kind as u32)?;
        entries = entries.saturating_add(1);
    }
    field(field::E820_ENTRIES, &[entries])?;
    Ok(())
}

#[cfg(test)]
mod tests;
