// SPDX-License-Identifier: MIT OR Apache-2.0
//! Multiboot 2 kernels (Multiboot2 Specification 2.0), with modules, by the i386 machine state. Header and information are
//! lists of tags. A loader refuses a kernel whose header has a tag that it does not know, unless that is marked as optional.

use super::acpi::Tables;
use super::elf::Elf;
use super::error::BootError;
use super::layout::{self, EBDA, HIGH_MEMORY};
use super::program::{self, Addresses, EntryPoint, Program, Source, Told, LOADER_NAME};
use super::writer::Writer;
use crate::addr::Gpa;
use crate::bytes::{align_up, le16, le32};
use crate::image::Machine;
use crate::interfaces::GuestMemory;
use crate::state::{CpuState, Reg};

const HEADER_MAGIC: u32 = 0xe852_50d6;
/// What the kernel finds in EAX.
const BOOTED_MAGIC: u32 = 0x36d7_6289;
/// The header lies in this much of the file (3.1.1).
const SEARCH_BYTES: u64 = 32768;
const HEADER_BYTES: u64 = 16;
/// 32-bit protected mode of an i386.
const ARCHITECTURE: u32 = 0;
/// In a tag's flags: it may be ignored.
const OPTIONAL: u16 = 1;

/// Tags of the header (3.1.3 to 3.1.13).
mod want {
    pub const END: u16 = 0;
    pub const INFORMATION: u16 = 1;
    pub const ADDRESSES: u16 = 2;
    pub const ENTRY: u16 = 3;
    pub const CONSOLE: u16 = 4;
    pub const FRAME_BUFFER: u16 = 5;
    /// Modules on page boundaries, which they always are.
    pub const MODULE_ALIGNMENT: u16 = 6;
    /// What these ask for is done on machines with EFI alone.
    pub const EFI_BOOT_SERVICES: u16 = 7;
    pub const EFI_ENTRY_32: u16 = 8;
    pub const EFI_ENTRY_64: u16 = 9;
    /// The kernel can also be loaded elsewhere than where it was linked.
    pub const RELOCATABLE: u16 = 10;
}

/// In the console tag: one of the consoles that a loader can set up must be there.
const CONSOLE_REQUIRED: u32 = 1;

/// Tags of the information (3.6).
mod tell {
    pub const END: u32 = 0;
    pub const COMMAND_LINE: u32 = 1;
    pub const LOADER_NAME: u32 = 2;
    pub const MODULE: u32 = 3;
    pub const MEMORY: u32 = 4;
    pub const MEMORY_MAP: u32 = 6;
    pub const ACPI_OLD_RSDP: u32 = 14;
    pub const ACPI_NEW_RSDP: u32 = 15;
    /// The last tag of the specification. What is missing in the list above is of things that this machine does not have.
    pub const LAST: u32 = 21;
}

const TAG_HEADER_BYTES: u32 = 8;
const MAP_HEADER_BYTES: u32 = 16;
const MAP_ENTRY_BYTES: u32 = 24;
const MAP_VERSION: u32 = 0;

/// Where a kernel's header lies.
#[derive(Clone, Copy)]
struct Header {
    at: u64,
    bytes: u32,
}

fn find_header(kernel: &[u8]) -> Option<Header> {
    let window = kernel.get(..SEARCH_BYTES as usize).unwrap_or(kernel);
    let header_at = |at: u64| {
        let field = |n: u64| le32(window, at.checked_add(n)?);
        let [magic, architecture, bytes, sum] = [field(0)?, field(4)?, field(8)?, field(12)?];
        let all = [architecture, bytes, sum].into_iter();
        let zero = all.fold(magic, u32::wrapping_add) == 0;
        let fits = at.saturating_add(bytes.into()) <= SEARCH_BYTES;
        (magic == HEADER_MAGIC && architecture == ARCHITECTURE && zero && fits).then_some(bytes)
    };
    let mut places = (0..SEARCH_BYTES).step_by(8);
    places.find_map(|at| header_at(at).map(|bytes| Header { at, bytes }))
}

/// Whether the file has a Multiboot 2 header.
pub(super) fn has_header(kernel: &[u8]) -> bool {
    find_header(kernel).is_some()
}

/// What a header asks for that matters here.
#[derive(Default)]
struct Wishes {
    addresses: Option<Addresses>,
    /// Physical.
    entry: Option<u32>,
}

/// Looks through the header's tags.
fn read_tags(file: &[u8], header: Header) -> Result<Wishes, BootError> {
    let end = header.at.saturating_add(header.bytes.into());
    let cut_off = BootError::Truncated {
        need: end,
        have: file.len() as u64,
    };
    if end > file.len() as u64 {
        return Err(cut_off);
    }
    let mut wishes = Wishes::default();
    let mut at = header.at.saturating_add(HEADER_BYTES);
    loop {
        let kind = le16(file, at).ok_or(cut_off)?;
        let flags = le16(file, at.saturating_add(2)).ok_or(cut_off)?;
        let bytes = le32(file, at.saturating_add(4)).ok_or(cut_off)?;
        let tag_end = at.saturating_add(bytes.into());
        if bytes < 8 || tag_end > end {
            return Err(BootError::BadKernel(
                "a tag of its Multiboot 2 header is longer than the header, or too short",
            ));
        }
        let body = at.saturating_add(8);
        match kind {
            want::END => return Ok(wishes),
            want::ADDRESSES => wishes.addresses = Some(Addresses::read(file, body).ok_or(cut_off)?),
            want::ENTRY => wishes.entry = Some(le32(file, body).ok_or(cut_off)?),
            _ if flags & OPTIONAL != 0 => {}
            want::INFORMATION => check_information(file, body, tag_end)?,
            want::CONSOLE if le32(file, body).unwrap_or(0) & CONSOLE_REQUIRED == 0 => {}
            want::CONSOLE | want::FRAME_BUFFER => return Err(BootError::NeedsDisplay),
            want::MODULE_ALIGNMENT
            | want::EFI_BOOT_SERVICES
            | want::EFI_ENTRY_32
            | want::EFI_ENTRY_64
            | want::RELOCATABLE => {}
            unknown => return Err(BootError::UnknownTag(unknown.into())),
        }
        at = align_up(tag_end, 8);
    }
}

/// The kernel wants to be told some things. It is told what a loader can know of this machine.
fn check_information(file: &[u8], from: u64, to: u64) -> Result<(), BootError> {
    let wanted = (from..to).step_by(4).filter_map(|at| le32(file, at));
    match wanted.max() {
        Some(last) if last > tell::LAST => Err(BootError::UnknownTag(last)),
        _ => Ok(()),
    }
}

fn parse(file: &[u8], header: Header) -> Result<Program<'_>, BootError> {
    let wishes = read_tags(file, header)?;
    let Some(mut addresses) = wishes.addresses else {
        let elf = Elf::parse(file)?.ok_or(BootError::BadKernel(
            "it is no ELF file, and its Multiboot 2 header gives no addresses",
        ))?;
        let physical = wishes.entry.map(|entry| EntryPoint::Physical(entry.into()));
        let entry = physical.unwrap_or(EntryPoint::Named(elf.entry));
        return Program::new(Source::Elf(elf), entry);
    };
    let entry = wishes.entry.ok_or(BootError::BadKernel(
        "its Multiboot 2 header gives addresses, and no entry point",
    ))?;
    if addresses.load == u64::from(u32::MAX) {
        // All of the file is loaded, from its beginning (3.1.5).
        addresses.load = addresses.header.saturating_sub(header.at);
    }
    let segment = addresses.segment(file, header.at)?;
    Program::new(Source::Flat(segment), EntryPoint::Physical(entry.into()))
}

/// Loads the kernel and its modules; the state is that of its entry point (3.3). `None`: the file has no such header.
pub(super) fn load(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
    tables: &Tables,
) -> Result<Option<CpuState>, BootError> {
    let Some(header) = find_header(machine.kernel) else {
        return Ok(None);
    };
    let kernel = parse(machine.kernel, header)?;
    let write_info = |told: &Told<'_, '_>, to: &mut Writer<'_>| write_info(told, tables, to);
    let mut state = program::load(machine, memory, &kernel, &write_info)?;
    state.gprs[Reg::Rax] = BOOTED_MAGIC.into();
    Ok(Some(state))
}

/// The information (3.6).
fn write_info(told: &Told<'_, '_>, tables: &Tables, to: &mut Writer<'_>) -> Result<Gpa, BootError> {
    let machine = told.machine;
    to.align(8)?;
    let start = to.at;
    to.u64(0)?;
    tag(to, tell::COMMAND_LINE, &[machine.bootargs.as_bytes(), &[0]])?;
    tag(to, tell::LOADER_NAME, &[LOADER_NAME.as_bytes(), &[0]])?;
    for module in told.modules() {
        let [from, end] = [module.start as u32, module.end as u32].map(u32::to_le_bytes);
        let parts: [&[u8]; 4] = [&from, &end, module.bootargs.as_bytes(), &[0]];
        tag(to, tell::MODULE, &parts)?;
    }
    let low_end = machine.ram.low().end;
    let high_kib = low_end.saturating_sub(HIGH_MEMORY) >> 10;
    let [low, high] = [(EBDA >> 10) as u32, high_kib as u32].map(u32::to_le_bytes);
    tag(to, tell::MEMORY, &[&low, &high])?;
    write_memory_map(machine, to)?;
    // What ACPI 1.0 knew of the root pointer, and all of it.
    tag(to, tell::ACPI_OLD_RSDP, &[&tables.rsdp[..20]])?;
    tag(to, tell::ACPI_NEW_RSDP, &[&tables.rsdp])?;
    tag(to, tell::END, &[])?;
    let bytes = to.at.0.saturating_sub(start.0) as u32;
    to.memory.write(start, &bytes.to_le_bytes())?;
    Ok(start)
}

/// Writes a tag of these parts, and zeros up to where the next one begins.
fn tag(to: &mut Writer<'_>, kind: u32, parts: &[&[u8]]) -> Result<(), BootError> {
    let bytes = parts.iter().fold(TAG_HEADER_BYTES, |sum, part| {
        sum.saturating_add(part.len() as u32)
    });
    to.u32(kind)?;
    to.u32(bytes)?;
    for part in parts {
        to.bytes(part)?;
    }
    to.align(8)?;
    Ok(())
}

fn write_memory_map(machine: &Machine<'_>, to: &mut Writer<'_>) -> Result<(), BootError> {
    let regions = || layout::memory_map(machine.ram);
    let entries_bytes = regions().fold(0u32, |sum, _| sum.saturating_add(MAP_ENTRY_BYTES));
    to.u32(tell::MEMORY_MAP)?;
    to.u32(entries_bytes.saturating_add(MAP_HEADER_BYTES))?;
    to.u32(MAP_ENTRY_BYTES)?;
    to.u32(MAP_VERSION)?;
    for region in regions() {
        to.u64(region.start)?;
        to.u64(region.bytes)?;
        to.u32(region.kind as u32)?;
        to.u32(0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
