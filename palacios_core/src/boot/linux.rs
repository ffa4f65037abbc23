// SPDX-License-Identifier: MIT OR Apache-2.0
//! Linux bzImages (Linux: Documentation/arch/x86/boot.rst). A kernel with a 64-bit entry point is entered there, an older or
//! a 32-bit one by the 32-bit boot protocol.

use super::acpi::Tables;
use super::cpu::{self, Mode};
use super::error::BootError;
use super::initrd;
use super::layout::{self, ACPI_TABLES, EBDA, HIGH_MEMORY};
use super::writer::{write_zeros, Writer};
use crate::addr::{Gpa, PAGE_SIZE};
use crate::bytes::{le16, le32, le64};
use crate::file_kind::has_linux_magic;
use crate::image::Machine;
use crate::interfaces::GuestMemory;
use crate::ram::LOW_RAM_END;
use crate::state::{CpuState, Reg};

const GDT: Gpa = Gpa(0x6000);
const ZERO_PAGE: Gpa = Gpa(0x7000);
const PAGE_TABLES: Gpa = Gpa(0x9000);
const COMMAND_LINE: Gpa = Gpa(0x2_0000);
/// Where kernels before [`version::ZERO_PAGE`] look for the zero page, and for the command line behind it.
const OLD_ZERO_PAGE: Gpa = Gpa(0x9_0000);
const OLD_COMMAND_LINE: Gpa = Gpa(0x9_8000);

/// Offsets in the file's setup header, which are the same in the zero page.
mod field {
    pub const SETUP_SECTS: u64 = 0x1f1;
    pub const SYSSIZE: u64 = 0x1f4;
    pub const VID_MODE: u64 = 0x1fa;
    pub const JUMP: u64 = 0x200;
    pub const MAGIC: u64 = 0x202;
    pub const VERSION: u64 = 0x206;
    pub const TYPE_OF_LOADER: u64 = 0x210;
    pub const LOADFLAGS: u64 = 0x211;
    pub const CODE32_START: u64 = 0x214;
    pub const RAMDISK_IMAGE: u64 = 0x218;
    pub const RAMDISK_SIZE: u64 = 0x21c;
    pub const CMD_LINE_PTR: u64 = 0x228;
    pub const INITRD_ADDR_MAX: u64 = 0x22c;
    pub const RELOCATABLE_KERNEL: u64 = 0x234;
    pub const XLOADFLAGS: u64 = 0x236;
    pub const CMDLINE_SIZE: u64 = 0x238;
    pub const PREF_ADDRESS: u64 = 0x258;
    pub const INIT_SIZE: u64 = 0x260;
    /// The end of the room for the header in the zero page.
    pub const HEADER_MAX_END: u64 = 0x290;
    // In the zero page only.
    pub const EXT_MEM_K: u64 = 0x002;
    /// A magic number and the command line's offset from the zero page, as before [`version::ZERO_PAGE`](super::version::ZERO_PAGE).
    pub const OLD_COMMAND_LINE: u64 = 0x020;
    pub const ACPI_RSDP_ADDR: u64 = 0x070;
    pub const ALT_MEM_K: u64 = 0x1e0;
    pub const E820_ENTRIES: u64 = 0x1e8;
    pub const E820_TABLE: u64 = 0x2d0;
}

/// Versions of the boot protocol, and what came with them.
mod version {
    /// The first with the header's magic number: Linux 1.3.73.
    pub const FIRST: u16 = 0x0200;
    /// A command line anywhere, and an entry point that is told where the zero page lies: Linux 2.4.
    pub const ZERO_PAGE: u16 = 0x0202;
    pub const INITRD_ADDR_MAX: u16 = 0x0203;
    /// A `syssize` of 32 bits.
    pub const SYSSIZE: u16 = 0x0204;
    pub const CMDLINE_SIZE: u16 = 0x0206;
    pub const PREF_ADDRESS: u16 = 0x020a;
    pub const XLOADFLAGS: u16 = 0x020c;
}

/// The 64-bit entry point, from the beginning of the kernel in memory.
const ENTRY_64: u64 = 0x200;
/// In `xloadflags`: there is one.
const XLF_KERNEL_64: u16 = 1;
/// In `loadflags`: the kernel is loaded at 1 MiB, and not below.
const LOADED_HIGH: u8 = 1;
/// A unit of `syssize`.
const PARAGRAPH_BYTES: u64 = 16;
/// Before the offset of an old command line.
const OLD_COMMAND_LINE_MAGIC: u16 = 0xa33f;
/// Boot loaders without a number of their own.
const LOADER_UNKNOWN: u8 = 0xff;
const VID_MODE_NORMAL: u16 = 0xffff;

/// Whether the file has the header of a Linux kernel for x86.
pub(super) fn is_bzimage(kernel: &[u8]) -> bool {
    has_linux_magic(kernel) && le16(kernel, 0x1fe) == Some(0xaa55)
}

/// What the setup header says.
struct Kernel<'a> {
    /// From [`field::SETUP_SECTS`] on, for the zero page.
    header: &'a [u8],
    /// What goes to memory.
    payload: &'a [u8],
    /// Where it goes.
    load: u64,
    /// The end of the memory it needs.
    end: u64,
    entry: Entry,
    /// The end of the memory in which it finds an initrd.
    initrd_end: u64,
    /// The longest command line, without its zero.
    max_command_line: u64,
    /// Where it looks for the zero page, and for the command line.
    zero_page: Gpa,
    command_line: Gpa,
}

/// Where a kernel is entered.
#[derive(Clone, Copy)]
struct Entry {
    mode: Mode,
    rip: u64,
}

impl<'a> Kernel<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, BootError> {
        let fields = Fields::of(file)?;
        if fields.version < version::FIRST {
            return Err(BootError::OldProtocol {
                version: fields.version,
            });
        }
        if fields.u8(field::LOADFLAGS)? & LOADED_HIGH == 0 {
            return Err(BootError::ZImage);
        }
        let (header, payload) = fields.split()?;
        let initrd_last = fields.since(version::INITRD_ADDR_MAX, field::INITRD_ADDR_MAX)?;
        let command_line_bytes = fields.since(version::CMDLINE_SIZE, field::CMDLINE_SIZE)?;
        let load = fields.load_address()?;
        let (zero_page, command_line) = match fields.version {
            ..version::ZERO_PAGE => (OLD_ZERO_PAGE, OLD_COMMAND_LINE),
            _ => (ZERO_PAGE, COMMAND_LINE),
        };
        Ok(Kernel {
            header,
            payload,
            load,
            end: fields.end(load, payload.len() as u64)?,
            entry: fields.entry(load)?,
            initrd_end: u64::from(initrd_last.unwrap_or(0x37ff_ffff)).saturating_add(1),
            max_command_line: command_line_bytes.unwrap_or(255).into(),
            zero_page,
            command_line,
        })
    }
}

/// Reads the setup header of a file.
struct Fields<'a> {
    file: &'a [u8],
    version: u16,
}

impl<'a> Fields<'a> {
    fn of(file: &'a [u8]) -> Result<Self, BootError> {
        let version = le16(file, field::VERSION).ok_or(cut_off(file))?;
        Ok(Self { file, version })
    }
    fn u8(&self, at: u64) -> Result<u8, BootError> {
        let byte = self.file.get(at as usize).copied();
        byte.ok_or(cut_off(self.file))
    }
    fn u32(&self, at: u64) -> Result<u32, BootError> {
        le32(self.file, at).ok_or(cut_off(self.file))
    }
    /// A field that came with a version of the protocol, if this is as new.
    fn since(&self, version: u16, at: u64) -> Result<Option<u32>, BootError> {
        (self.version >= version).then(|| self.u32(at)).transpose()
    }
    /// The address that the kernel prefers, since there is one; zero is none.
    fn preferred_address(&self) -> Result<Option<u64>, BootError> {
        if self.version < version::PREF_ADDRESS {
            return Ok(None);
        }
        let address = le64(self.file, field::PREF_ADDRESS).ok_or(cut_off(self.file))?;
        Ok((address != 0).then_some(address))
    }

    /// Where the kernel is loaded: a kernel that cannot be moved begins at 1 MiB, whatever it does from there.
    fn load_address(&self) -> Result<u64, BootError> {
        let preferred = self.preferred_address()?;
        let movable = preferred.is_some() && self.u8(field::RELOCATABLE_KERNEL)? != 0;
        let load = preferred.filter(|_| movable).unwrap_or(HIGH_MEMORY);
        if load < HIGH_MEMORY || load % PAGE_SIZE != 0 {
            return Err(BootError::OutOfRange);
        }
        Ok(load)
    }

    /// The end of the memory that a kernel of so many bytes needs, which is loaded at `load`. From there it moves itself to
    /// the address that it prefers, where it needs `init_size` bytes.
    fn end(&self, load: u64, bytes: u64) -> Result<u64, BootError> {
        let at = self.preferred_address()?.unwrap_or(load);
        let init_size = self.since(version::PREF_ADDRESS, field::INIT_SIZE)?;
        let ends = [
            load.checked_add(bytes),
            at.checked_add(init_size.unwrap_or(0).into()),
        ];
        let [Some(loaded), Some(running)] = ends else {
            return Err(BootError::OutOfRange);
        };
        let end = loaded.max(running);
        let fits = end <= LOW_RAM_END;
        fits.then_some(end).ok_or(BootError::OutOfRange)
    }

    fn entry(&self, load: u64) -> Result<Entry, BootError> {
        let flags = match self.version >= version::XLOADFLAGS {
            true => le16(self.file, field::XLOADFLAGS).ok_or(cut_off(self.file))?,
            false => 0,
        };
        if flags & XLF_KERNEL_64 != 0 {
            return Ok(Entry {
                mode: Mode::Long { cr3: PAGE_TABLES.0 },
                rip: load.saturating_add(ENTRY_64),
            });
        }
        // It is given for a kernel at 1 MiB, and moves with the kernel. Zero is none.
        let named = match self.u32(field::CODE32_START)? {
            0 => HIGH_MEMORY,
            named => named.into(),
        };
        let offset = named.checked_sub(HIGH_MEMORY).ok_or(BootError::BadKernel(
            "its 32-bit entry point (code32_start) lies below 1 MiB",
        ))?;
        Ok(Entry {
            mode: Mode::Protected,
            rip: load.saturating_add(offset),
        })
    }

    /// The setup header and the part that goes to memory.
    fn split(&self) -> Result<(&'a [u8], &'a [u8]), BootError> {
        let (file, have) = (self.file, self.file.len() as u64);
        // Zero means four, for the oldest kernels; the boot sector itself is not counted.
        let sectors = match self.u8(field::SETUP_SECTS)? {
            0 => 4,
            n => u64::from(n),
        };
        // The header's length is the offset of the jump over it (boot.rst: "Details of Header Fields").
        let header_end = u64::from(self.u8(field::JUMP + 1)?)
            .saturating_add(field::MAGIC)
            .min(field::HEADER_MAX_END);
        let payload_at = sectors.saturating_add(1).saturating_mul(512);
        let paragraphs = self.since(version::SYSSIZE, field::SYSSIZE)?.unwrap_or(1);
        let code_bytes = u64::from(paragraphs).saturating_mul(PARAGRAPH_BYTES);
        let need = payload_at.saturating_add(code_bytes);
        // A file may end within its last paragraph.
        if need.saturating_sub(have) >= PARAGRAPH_BYTES {
            return Err(BootError::Truncated { need, have });
        }
        let header = file.get(field::SETUP_SECTS as usize..header_end as usize);
        let payload = file.get(payload_at as usize..);
        Ok((header.ok_or(cut_off(file))?, payload.ok_or(cut_off(file))?))
    }
}

/// The file ends before its header does.
fn cut_off(file: &[u8]) -> BootError {
    BootError::Truncated {
        need: field::HEADER_MAX_END,
        have: file.len() as u64,
    }
}

/// Loads the kernel; the state is that of its entry point. `None`: it is no bzImage.
pub(super) fn load(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
    _: &Tables,
) -> Result<Option<CpuState>, BootError> {
    if !is_bzimage(machine.kernel) {
        return Ok(None);
    }
    let kernel = Kernel::parse(machine.kernel)?;
    let limit = kernel.max_command_line.min(EBDA - COMMAND_LINE.0 - 1);
    if machine.bootargs.len() as u64 > limit {
        return Err(BootError::CommandLineTooLong {
            bytes: machine.bootargs.len() as u64,
            limit,
        });
    }
    let initrd = place_initrd(machine, &kernel)?;
    memory.write(Gpa(kernel.load), kernel.payload)?;
    initrd::write(machine, memory, initrd.start)?;
    Writer {
        memory,
        at: kernel.command_line,
    }
    .string(machine.bootargs)?;
    write_zero_page(machine, memory, &kernel, initrd)?;
    let Entry { mode, rip } = kernel.entry;
    if let Mode::Long { cr3 } = mode {
        cpu::write_identity_map(memory, Gpa(cr3))?;
    }
    cpu::write_gdt(&mut Writer { memory, at: GDT }, mode)?;
    let mut state = cpu::entry_state(mode, rip, GDT);
    state.gprs[Reg::Rsi] = kernel.zero_page.0;
    Ok(Some(state))
}

/// All initrds as one, of `bytes` at `start`; both are zero if there is none.
#[derive(Clone, Copy)]
struct Initrd {
    start: u64,
    bytes: u64,
}

/// Finds room for the initrds, as high as the kernel can reach.
fn place_initrd(machine: &Machine<'_>, kernel: &Kernel<'_>) -> Result<Initrd, BootError> {
    let bytes = initrd::bytes(machine);
    let ram_end = machine.ram.low().end;
    let have = machine.ram.bytes();
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

/// The zero page (boot.rst; Linux: Documentation/arch/x86/zero-page.rst).
fn write_zero_page(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
    kernel: &Kernel<'_>,
    initrd: Initrd,
) -> Result<(), BootError> {
    let zero_page = kernel.zero_page;
    let field = |at: u64, value: &[u8]| memory.write(zero_page.wrapping_add(at), value);
    write_zeros(memory, zero_page, PAGE_SIZE)?;
    field(field::SETUP_SECTS, kernel.header)?;
    field(field::TYPE_OF_LOADER, &[LOADER_UNKNOWN])?;
    field(field::VID_MODE, &VID_MODE_NORMAL.to_le_bytes())?;
    if kernel.entry.mode == Mode::Protected {
        let entry = kernel.entry.rip as u32;
        field(field::CODE32_START, &entry.to_le_bytes())?;
    }
    // What the BIOS's two calls say of the memory above 1 MiB, for kernels that know no memory map.
    let high_kib = machine.ram.low().end.saturating_sub(HIGH_MEMORY) >> 10;
    let short = u16::try_from(high_kib).unwrap_or(u16::MAX);
    field(field::EXT_MEM_K, &short.to_le_bytes())?;
    field(field::ALT_MEM_K, &(high_kib as u32).to_le_bytes())?;
    // All of it lies below 4 GiB, so the upper halves of these stay zero.
    field(field::RAMDISK_IMAGE, &(initrd.start as u32).to_le_bytes())?;
    field(field::RAMDISK_SIZE, &(initrd.bytes as u32).to_le_bytes())?;
    if kernel.command_line == OLD_COMMAND_LINE {
        let offset = OLD_COMMAND_LINE.0.wrapping_sub(OLD_ZERO_PAGE.0) as u16;
        let named = u32::from(offset) << 16 | u32::from(OLD_COMMAND_LINE_MAGIC);
        field(field::OLD_COMMAND_LINE, &named.to_le_bytes())?;
    } else {
        let at = kernel.command_line.0 as u32;
        field(field::CMD_LINE_PTR, &at.to_le_bytes())?;
    }
    // Since protocol 2.14; older kernels search for it.
    field(field::ACPI_RSDP_ADDR, &ACPI_TABLES.to_le_bytes())?;
    let mut entries = 0u8;
    let mut table = Writer {
        memory,
        at: zero_page.wrapping_add(field::E820_TABLE),
    };
    for region in layout::memory_map(machine.ram) {
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
