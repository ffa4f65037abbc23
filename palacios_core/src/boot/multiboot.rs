// SPDX-License-Identifier: MIT OR Apache-2.0
//! Multiboot 1 kernels (Multiboot Specification 0.6.96), with modules: ELF files, or anything with load addresses in its
//! Multiboot header.
//!
//! As GRUB does, a 64-bit ELF file with a Multiboot header is loaded, too; it is entered in 32-bit mode like all others.

use super::cpu::{self, Mode};
use super::elf::{slice, Elf, Segment};
use super::layout::{self, EBDA, HIGH_MEMORY};
use super::{align_up, error, le32, write_zeros, BootError, Writer};
use crate::addr::{Gpa, PAGE_SIZE};
use crate::devices::GuestMemory;
use crate::image::Machine;
use crate::memory::LOW_RAM_END;
use crate::state::{CpuState, Reg};

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What the kernel finds in EAX.
const BOOTED_MAGIC: u32 = 0x2bad_b002;
/// The header lies in this much of the file (3.1).
const SEARCH_BYTES: u64 = 8192;
const LOADER_NAME: &str = "v3vee";

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

/// The lowest address of our information, which grows down from the extended BIOS data area.
const INFO_MIN: u64 = 0x2_0000;
/// Left free below it, as a stack for kernels that push before they set one up.
const STACK_BYTES: u64 = 0x1000;
/// Bytes of the information's fields.
const INFO_BYTES: u64 = 0x80;
const MAP_ENTRY_BYTES: u64 = 24;
const MODULE_ENTRY_BYTES: u64 = 16;

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

/// A kernel and where it goes.
struct Kernel<'a> {
    source: Source<'a>,
    /// The physical address of its entry point.
    entry: u64,
    /// The end of the memory it needs.
    end: u64,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Elf(Elf<'a>),
    Flat(Segment<'a>),
}

impl<'a> Source<'a> {
    fn segments(self) -> impl Iterator<Item = Result<Segment<'a>, BootError>> {
        let (elf, flat) = match self {
            Source::Elf(elf) => (Some(elf), None),
            Source::Flat(segment) => (None, Some(Ok(segment))),
        };
        elf.into_iter().flat_map(|elf| elf.segments()).chain(flat)
    }
}

impl<'a> Kernel<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, BootError> {
        let header = find_header(file).ok_or(BootError::NotMultiboot {
            looks_like: error::looks_like(file),
        })?;
        let required = header.flags & want::REQUIRED;
        let unknown = required & !(want::PAGE_ALIGNED_MODULES | want::MEMORY | want::VIDEO);
        if unknown != 0 {
            return Err(BootError::UnknownFlags(unknown));
        }
        if required & want::VIDEO != 0 {
            return Err(BootError::NeedsDisplay);
        }
        let elf = Elf::parse(file);
        let (source, entry) = if header.flags & want::ADDRESSES != 0 {
            let (segment, entry) = flat(file, header)?;
            (Source::Flat(segment), entry)
        } else {
            let elf = elf?.ok_or(BootError::BadKernel(
                "it is no ELF file, and its Multiboot header gives no addresses",
            ))?;
            (Source::Elf(elf), elf.entry)
        };
        Self::lay_out(source, entry)
    }

    /// Checks that all segments together can be loaded, and translates the entry point: by rights a virtual address, but
    /// kernels that are linked high may give the physical one, at which they begin.
    fn lay_out(source: Source<'a>, named_entry: u64) -> Result<Self, BootError> {
        let (mut end, mut bytes) = (0u64, 0u64);
        let (mut entry, mut physical_entry) = (None, None);
        for segment in source.segments() {
            let segment = segment?;
            let segment_end = segment
                .start
                .checked_add(segment.bytes)
                .filter(|end| *end <= LOW_RAM_END);
            end = end.max(segment_end.ok_or(BootError::BadKernel(
                "a segment lies above 3 GiB; a Multiboot kernel is loaded by physical addresses",
            ))?);
            bytes = bytes.saturating_add(segment.bytes);
            let offset = named_entry.wrapping_sub(segment.virtual_start);
            if offset < segment.bytes {
                entry = Some(segment.start.saturating_add(offset));
            }
            if named_entry.wrapping_sub(segment.start) < segment.bytes {
                physical_entry = Some(named_entry);
            }
        }
        let entry = entry.or(physical_entry);
        // Segments may overlap, but not so that loading them takes forever.
        if bytes > end {
            return Err(BootError::BadKernel("its segments overlap"));
        }
        Ok(Kernel {
            source,
            entry: entry.ok_or(BootError::BadKernel("its entry point lies in no segment"))?,
            end,
        })
    }

    fn overlaps(&self, start: u64, end: u64) -> Result<bool, BootError> {
        for segment in self.source.segments() {
            let segment = segment?;
            if segment.start < end && start < segment.start.saturating_add(segment.bytes) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn write(&self, memory: &dyn GuestMemory) -> Result<(), BootError> {
        for segment in self.source.segments() {
            let segment = segment?;
            memory.write(Gpa(segment.start), segment.data)?;
            let loaded = segment.data.len() as u64;
            let rest = Gpa(segment.start.saturating_add(loaded));
            write_zeros(memory, rest, segment.bytes.saturating_sub(loaded))?;
        }
        Ok(())
    }
}

/// The one segment of a kernel whose Multiboot header says where it goes (3.1.3), and its entry point.
fn flat(file: &[u8], header: Header) -> Result<(Segment<'_>, u64), BootError> {
    let read = |offset: u64| {
        let field = le32(file, header.at.saturating_add(offset)).map(u64::from);
        field.ok_or(BootError::Truncated {
            need: header.at.saturating_add(32),
            have: file.len() as u64,
        })
    };
    let (header_at, start, load_end, bss_end, entry) =
        (read(12)?, read(16)?, read(20)?, read(24)?, read(28)?);
    let wrong = |why| Err(BootError::BadKernel(why));
    let before_header = header_at.checked_sub(start);
    let Some(from) = before_header.and_then(|before| header.at.checked_sub(before)) else {
        return wrong("its Multiboot header's addresses put it before the file's beginning");
    };
    let loaded = match load_end {
        0 => (file.len() as u64).saturating_sub(from),
        end if end >= start => end.saturating_sub(start),
        _ => return wrong("its Multiboot header has load_end_addr before load_addr"),
    };
    let bytes = match bss_end {
        0 => loaded,
        end if end >= start.saturating_add(loaded) => end.saturating_sub(start),
        _ => return wrong("its Multiboot header has bss_end_addr before the end of its data"),
    };
    let segment = Segment {
        data: slice(file, from, loaded)?,
        start,
        bytes,
        virtual_start: start,
    };
    Ok((segment, entry))
}

/// Where our information goes.
struct Info {
    gdt: u64,
    info: u64,
    map: u64,
    modules: u64,
    strings: u64,
    module_count: u32,
}

impl Info {
    /// One block, as high as it can be below the extended BIOS data area.
    fn lay_out(machine: &Machine<'_>) -> Result<Self, BootError> {
        let modules = machine.modules();
        let string = |text: &str| (text.len() as u64).saturating_add(1);
        let (count, text) = modules.fold((0u64, 0u64), |(count, text), module| {
            (
                count.saturating_add(1),
                text.saturating_add(string(module.bootargs)),
            )
        });
        let text = text
            .saturating_add(string(machine.bootargs))
            .saturating_add(string(LOADER_NAME));
        let map = layout::memory_map(machine.memory_bytes);
        let map_bytes = map.fold(0u64, |bytes, _| bytes.saturating_add(MAP_ENTRY_BYTES));
        let head = cpu::GDT_BYTES
            .saturating_add(INFO_BYTES)
            .saturating_add(map_bytes);
        let bytes = head
            .saturating_add(count.saturating_mul(MODULE_ENTRY_BYTES))
            .saturating_add(text);
        let room = EBDA - INFO_MIN;
        if bytes > room {
            return Err(BootError::CommandLineTooLong {
                bytes: text,
                limit: room.saturating_sub(bytes.saturating_sub(text)),
            });
        }
        let gdt = EBDA.saturating_sub(bytes) & !15;
        let info = gdt.saturating_add(cpu::GDT_BYTES);
        let map = info.saturating_add(INFO_BYTES);
        let modules = map.saturating_add(map_bytes);
        Ok(Info {
            gdt,
            info,
            map,
            modules,
            strings: modules.saturating_add(count.saturating_mul(MODULE_ENTRY_BYTES)),
            module_count: count as u32,
        })
    }
}

/// Loads the kernel and its modules; the state is that of its entry point (3.2).
pub(super) fn load(machine: &Machine<'_>, memory: &dyn GuestMemory) -> Result<CpuState, BootError> {
    let kernel = Kernel::parse(machine.kernel)?;
    let info = Info::lay_out(machine)?;
    let files_end = machine
        .modules()
        .fold(kernel.end.max(HIGH_MEMORY), |end, module| {
            align_up(end, PAGE_SIZE).saturating_add(module.data.len() as u64)
        });
    if files_end > LOW_RAM_END {
        return Err(BootError::FilesTooBig {
            bytes: files_end.saturating_sub(kernel.end),
            room: LOW_RAM_END.saturating_sub(kernel.end),
        });
    }
    if files_end > layout::low_ram_end(machine.memory_bytes) {
        return Err(BootError::NeedsMemory {
            need: files_end,
            have: machine.memory_bytes,
        });
    }
    let stack = info.gdt.saturating_sub(STACK_BYTES);
    if kernel.overlaps(0, PAGE_SIZE)? || kernel.overlaps(stack, HIGH_MEMORY)? {
        return Err(BootError::BadKernel("a segment lies over the BIOS data area, the Multiboot information or the BIOS; load it at 1 MiB or above"));
    }
    kernel.write(memory)?;
    write_info(machine, memory, &info, &kernel)?;
    cpu::write_gdt(
        &mut Writer {
            memory,
            at: Gpa(info.gdt),
        },
        Mode::Protected,
    )?;
    let mut state = cpu::entry_state(Mode::Protected, kernel.entry, Gpa(info.gdt));
    state.gprs[Reg::Rax] = BOOTED_MAGIC.into();
    state.gprs[Reg::Rbx] = info.info;
    state.gprs[Reg::Rsp] = info.gdt;
    Ok(state)
}

/// The information (3.3) with all it points to.
fn write_info(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
    info: &Info,
    kernel: &Kernel<'_>,
) -> Result<(), BootError> {
    let mut strings = Writer {
        memory,
        at: Gpa(info.strings),
    };
    let command_line = strings.string(machine.bootargs)?;
    let loader_name = strings.string(LOADER_NAME)?;
    write_modules(machine, memory, info, kernel.end, &mut strings)?;
    let map_bytes = write_memory_map(machine, memory, info.map)?;
    write_zeros(memory, Gpa(info.info), INFO_BYTES)?;
    let field = |at: u64, value: u64| {
        memory.write(
            Gpa(info.info.wrapping_add(at)),
            &(value as u32).to_le_bytes(),
        )
    };
    let low_end = layout::low_ram_end(machine.memory_bytes);
    field(
        0,
        u64::from(
            has::MEMORY | has::COMMAND_LINE | has::MODULES | has::MEMORY_MAP | has::LOADER_NAME,
        ),
    )?;
    field(4, EBDA >> 10)?;
    field(8, low_end.saturating_sub(HIGH_MEMORY) >> 10)?;
    field(16, command_line.0)?;
    field(20, info.module_count.into())?;
    field(24, info.modules)?;
    field(44, map_bytes)?;
    field(48, info.map)?;
    field(64, loader_name.0)?;
    Ok(())
}

/// The modules, each on a page of its own after the kernel, and their table.
fn write_modules(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
    info: &Info,
    kernel_end: u64,
    strings: &mut Writer<'_>,
) -> Result<(), BootError> {
    let mut table = Writer {
        memory,
        at: Gpa(info.modules),
    };
    let mut end = kernel_end.max(HIGH_MEMORY);
    for module in machine.modules() {
        let start = align_up(end, PAGE_SIZE);
        end = start.saturating_add(module.data.len() as u64);
        memory.write(Gpa(start), module.data)?;
        table.u32(start as u32)?;
        table.u32(end as u32)?;
        table.u32(strings.string(module.bootargs)?.0 as u32)?;
        table.u32(0)?;
    }
    Ok(())
}

/// The memory map; returns its length.
fn write_memory_map(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
    at: u64,
) -> Result<u64, BootError> {
    let mut map = Writer {
        memory,
        at: Gpa(at),
    };
    for region in layout::memory_map(machine.memory_bytes) {
        // The length of the entry does not count itself.
        map.u32(MAP_ENTRY_BYTES as u32 - 4)?;
        map.u64(region.start)?;
        map.u64(region.bytes)?;
        map.u32(region.kind as u32)?;
    }
    Ok(map.at.0.saturating_sub(at))
}

#[cfg(test)]
mod tests;
