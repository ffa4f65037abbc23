// SPDX-License-Identifier: MIT OR Apache-2.0
//! ELF files with a note that names a 32-bit entry point, by the x86/HVM direct boot ABI ("PVH"; Xen: docs/misc/pvh.pandoc).
//! `vmlinux`, the kernel in a Linux bzImage, is one.

use super::acpi::Tables;
use super::elf::Elf;
use super::error::BootError;
use super::layout::{self, ACPI_TABLES};
use super::program::{self, EntryPoint, Program, Source, Told};
use super::writer::Writer;
use crate::addr::Gpa;
use crate::bytes::{le32, le64};
use crate::image::Machine;
use crate::interfaces::GuestMemory;
use crate::state::CpuState;

/// XEN_ELFNOTE_PHYS32_ENTRY: the physical address of the entry point.
const NOTE_OWNER: &[u8] = b"Xen\0";
const NOTE_KIND: u32 = 18;

const START_INFO_MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const START_INFO_VERSION: u32 = 1;

/// The entry point that a file's note names, if it has one.
fn entry_of(elf: Elf<'_>) -> Option<u64> {
    let mut notes = elf.notes();
    let note = notes.find(|note| note.owner == NOTE_OWNER && note.kind == NOTE_KIND)?;
    match note.data.len() {
        4 => le32(note.data, 0).map(u64::from),
        8 => le64(note.data, 0),
        _ => None,
    }
}

/// Whether the file has such a note.
pub(super) fn has_note(kernel: &[u8]) -> bool {
    let elf = Elf::parse(kernel).ok().flatten();
    elf.and_then(entry_of).is_some()
}

/// Loads the kernel and its modules; the state is that of its entry point. `None`: the file has no such note.
pub(super) fn load(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
    _: &Tables,
) -> Result<Option<CpuState>, BootError> {
    let elf = Elf::parse(machine.kernel)?;
    let Some((elf, entry)) = elf.and_then(|elf| Some((elf, entry_of(elf)?))) else {
        return Ok(None);
    };
    let kernel = Program::new(Source::Elf(elf), EntryPoint::Physical(entry))?;
    program::load(machine, memory, &kernel, &write_info).map(Some)
}

/// The structure `hvm_start_info`, with all it points to before it.
fn write_info(told: &Told<'_, '_>, to: &mut Writer<'_>) -> Result<Gpa, BootError> {
    let machine = told.machine;
    let command_line = to.string(machine.bootargs)?;
    let mut line_at = to.at;
    for module in told.modules() {
        to.string(module.bootargs)?;
    }
    to.align(8)?;
    let (modules, mut module_count) = (to.at, 0u32);
    for module in told.modules() {
        to.u64(module.start)?;
        to.u64(module.end.saturating_sub(module.start))?;
        to.u64(line_at.0)?;
        to.u64(0)?;
        line_at = module.line_behind(line_at);
        module_count = module_count.saturating_add(1);
    }
    let (map, mut region_count) = (to.at, 0u32);
    for region in layout::memory_map(machine.ram) {
        to.u64(region.start)?;
        to.u64(region.bytes)?;
        to.u32(region.kind as u32)?;
        to.u32(0)?;
        region_count = region_count.saturating_add(1);
    }
    let start = to.at;
    for word in [START_INFO_MAGIC, START_INFO_VERSION, 0, module_count] {
        to.u32(word)?;
    }
    for address in [modules.0, command_line.0, ACPI_TABLES, map.0] {
        to.u64(address)?;
    }
    to.u32(region_count)?;
    to.u32(0)?;
    Ok(start)
}

#[cfg(test)]
mod tests;
