// SPDX-License-Identifier: MIT OR Apache-2.0
//! Multiboot 1 kernels (Multiboot Specification 0.6.96), with modules: ELF files, or anything with load addresses in its
//! Multiboot header.
//!
//! As GRUB does, a 64-bit ELF file with a Multiboot header is loaded, too; it is entered in 32-bit mode like all others.

use super::acpi::Tables;
use super::elf::{Elf, Segment};
use super::error::BootError;
use super::layout::{self, EBDA, HIGH_MEMORY};
use super::program::{self, Addresses, EntryPoint, Program, Source, Told, LOADER_NAME};
use super::writer::Writer;
use crate::addr::Gpa;
use crate::bytes::le32;
use crate::image::Machine;
use crate::interfaces::GuestMemory;
use crate::state::{CpuState, Reg};

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What the kernel finds in EAX.
const BOOTED_MAGIC: u32 = 0x2bad_b002;
/// The header lies in this much of the file (3.1).
const SEARCH_BYTES: u64 = 8192;

/// Flags of the header (3.1.2). A loader refuses a kernel that sets one of the low half that it does not know.
mod want {
    pub const PAGE_ALIGNED_MODULES: u32 = 1 << 0;
    pub const MEMORY: u32 = 1 << 1;
    pub const VIDEO: u32 = 1 << 2;
    pub const ADDRESSES: u32 = 1 << 16;
    pub const REQUIRED: u32 = 0xffff;
}

/// Flags of the information (3.3): which of its fields are there.
mod has {
    pub const MEMORY: u32 = 1 << 0;
    pub const COMMAND_LINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
    pub const MEMORY_MAP: u32 = 1 << 6;
    pub const LOADER_NAME: u32 = 1 << 9;
}

/// Double words of the information's fields.
const INFO_WORDS: usize = 32;
const MAP_ENTRY_BYTES: u32 = 24;

/// A kernel's Multiboot header.
#[derive(Clone, Copy)]
struct Header {
    at: u64,
    flags: u32,
}

fn find_header(kernel: &[u8]) -> Option<Header> {
    let window = kernel.get(..SEARCH_BYTES as usize).unwrap_or(kernel);
    let matches = |at: &u64| {
        let fields = || {
            Some([
                le32(window, *at)?,
                le32(window, at.checked_add(4)?)?,
                le32(window, at.checked_add(8)?)?,
            ])
        };
        fields().is_some_and(|all| {
            all[0] == HEADER_MAGIC && all.into_iter().fold(0, u32::wrapping_add) == 0
        })
    };
    let at = (0..SEARCH_BYTES).step_by(4).find(matches)?;
    Some(Header {
        at,
        flags: le32(window, at.checked_add(4)?)?,
    })
}

/// Whether the file has a Multiboot 1 header.
pub(super) fn has_header(kernel: &[u8]) -> bool {
    find_header(kernel).is_some()
}

fn parse(file: &[u8], header: Header) -> Result<Program<'_>, BootError> {
    let required = header.flags & want::REQUIRED;
    let unknown = required & !(want::PAGE_ALIGNED_MODULES | want::MEMORY | want::VIDEO);
    if unknown != 0 {
        return Err(BootError::UnknownFlags(unknown));
    }
    if required & want::VIDEO != 0 {
        return Err(BootError::NeedsDisplay);
    }
    if header.flags & want::ADDRESSES != 0 {
        let (segment, entry) = flat(file, header)?;
        return Program::new(Source::Flat(segment), EntryPoint::Physical(entry.into()));
    }
    let elf = Elf::parse(file)?.ok_or(BootError::BadKernel(
        "it is no ELF file, and its Multiboot header gives no addresses",
    ))?;
    Program::new(Source::Elf(elf), EntryPoint::Named(elf.entry))
}

/// A kernel whose Multiboot header says where it goes (3.1.3), and its entry point.
fn flat(file: &[u8], header: Header) -> Result<(Segment<'_>, u32), BootError> {
    let cut_off = BootError::Truncated {
        need: header.at.saturating_add(32),
        have: file.len() as u64,
    };
    let addresses = Addresses::read(file, header.at.saturating_add(12)).ok_or(cut_off)?;
    let entry = le32(file, header.at.saturating_add(28)).ok_or(cut_off)?;
    let segment = addresses.segment(file, header.at)?;
    Ok((segment, entry))
}

/// Loads the kernel and its modules; the state is that of its entry point (3.2). `None`: the file has no such header.
pub(super) fn load(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
    _: &Tables,
) -> Result<Option<CpuState>, BootError> {
    let Some(header) = find_header(machine.kernel) else {
        return Ok(None);
    };
    let kernel = parse(machine.kernel, header)?;
    let mut state = program::load(machine, memory, &kernel, &write_info)?;
    state.gprs[Reg::Rax] = BOOTED_MAGIC.into();
    Ok(Some(state))
}

/// The information (3.3), with all it points to before it.
fn write_info(told: &Told<'_, '_>, to: &mut Writer<'_>) -> Result<Gpa, BootError> {
    let machine = told.machine;
    let command_line = to.string(machine.bootargs)?;
    let loader_name = to.string(LOADER_NAME)?;
    let (modules, module_count) = write_modules(told, to)?;
    to.align(8)?;
    let map = to.at;
    for region in layout::memory_map(machine.ram) {
        // The length of the entry does not count itself.
        to.u32(MAP_ENTRY_BYTES.wrapping_sub(4))?;
        to.u64(region.start)?;
        to.u64(region.bytes)?;
        to.u32(region.kind as u32)?;
    }
    let map_bytes = to.at.0.saturating_sub(map.0);
    let low_end = machine.ram.low().end;
    let mut info = [0u32; INFO_WORDS];
    info[0] = has::MEMORY | has::COMMAND_LINE | has::MODULES | has::MEMORY_MAP | has::LOADER_NAME;
    info[1] = (EBDA >> 10) as u32;
    info[2] = (low_end.saturating_sub(HIGH_MEMORY) >> 10) as u32;
    info[4] = command_line.0 as u32;
    info[5] = module_count;
    info[6] = modules.0 as u32;
    info[11] = map_bytes as u32;
    info[12] = map.0 as u32;
    info[16] = loader_name.0 as u32;
    let at = to.at;
    for word in info {
        to.u32(word)?;
    }
    Ok(at)
}

/// The modules' command lines, and behind them their table; gives where that is and how many entries it has.
fn write_modules(told: &Told<'_, '_>, to: &mut Writer<'_>) -> Result<(Gpa, u32), BootError> {
    let mut line_at = to.at;
    for module in told.modules() {
        to.string(module.bootargs)?;
    }
    to.align(8)?;
    let (table, mut count) = (to.at, 0u32);
    for module in told.modules() {
        to.u32(module.start as u32)?;
        to.u32(module.end as u32)?;
        to.u32(line_at.0 as u32)?;
        to.u32(0)?;
        line_at = module.line_behind(line_at);
        count = count.saturating_add(1);
    }
    Ok((table, count))
}

#[cfg(test)]
mod tests;
