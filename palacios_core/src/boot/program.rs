// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels that come as segments and are entered in 32-bit protected mode, with the address of what the loader tells them in
//! EBX: Multiboot 1 and 2, and PVH. A protocol finds the segments and the entry point, and writes what is told.
//!
//! ```text
//! kernel's segments, where it wants them
//! modules, each on a page of its own: behind the kernel, at 1 MiB or above
//! GDT, information: as high as they can be below the extended BIOS data area
//! ```

use super::cpu::{self, Mode};
use super::elf::{slice, Elf, Segment};
use super::error::BootError;
use super::initrd;
use super::layout::{EBDA, HIGH_MEMORY};
use super::writer::{write_zeros, Writer};
use crate::addr::{Gpa, NotRam, PAGE_SIZE};
use crate::bytes::{align_up, le32};
use crate::image::{Machine, Module};
use crate::interfaces::GuestMemory;
use crate::ram::LOW_RAM_END;
use crate::state::{CpuState, Reg};

/// What the kernels are told of who loaded them. Xen drops the first word of each command line, as the name of its file, unless it
/// finds here a loader that puts none there.
pub(super) const LOADER_NAME: &str = "v3vee, like GRUB 2";

/// The lowest address of the information, which grows down from the extended BIOS data area.
const INFO_MIN: u64 = 0x2_0000;
/// Left free below it, as a stack for kernels that push before they set one up.
const STACK_BYTES: u64 = 0x1000;

/// A kernel and where it goes.
pub(super) struct Program<'a> {
    source: Source<'a>,
    /// The physical address of its entry point.
    entry: u64,
    /// The end of the memory it needs.
    end: u64,
}

/// Where a kernel's segments come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// An ELF file's program headers.
    Elf(Elf<'a>),
    /// A header that says where a piece of the file goes.
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

/// A kernel's entry point, as its file names it.
#[derive(Clone, Copy)]
pub(super) enum EntryPoint {
    /// An address in physical memory.
    Physical(u64),
    /// By rights a virtual address, but kernels that are linked high may give the physical one, at which they begin.
    Named(u64),
}

/// What the `addresses` of a Multiboot header say: all physical.
pub(super) struct Addresses {
    /// Where the header itself goes.
    pub header: u64,
    /// Where the kernel begins.
    pub load: u64,
    /// Where its data end; zero: with the file.
    pub load_end: u64,
    /// Where its zeros end; zero: there are none.
    pub bss_end: u64,
}

impl Addresses {
    /// Reads the four of them, one behind the other.
    pub fn read(file: &[u8], at: u64) -> Option<Self> {
        let field = |n: u64| le32(file, at.checked_add(n.checked_mul(4)?)?).map(u64::from);
        Some(Self {
            header: field(0)?,
            load: field(1)?,
            load_end: field(2)?,
            bss_end: field(3)?,
        })
    }

    /// The one segment of a kernel whose header lies at `header_at` of its file.
    pub fn segment<'a>(&self, file: &'a [u8], header_at: u64) -> Result<Segment<'a>, BootError> {
        let start = self.load;
        let wrong = |why| Err(BootError::BadKernel(why));
        let before_header = self.header.checked_sub(start);
        let Some(from) = before_header.and_then(|before| header_at.checked_sub(before)) else {
            return wrong("its Multiboot header's addresses put it before the file's beginning");
        };
        let loaded = match self.load_end {
            0 => (file.len() as u64).saturating_sub(from),
            end if end >= start => end.saturating_sub(start),
            _ => return wrong("its Multiboot header has load_end_addr before load_addr"),
        };
        let bytes = match self.bss_end {
            0 => loaded,
            end if end >= start.saturating_add(loaded) => end.saturating_sub(start),
            _ => return wrong("its Multiboot header has bss_end_addr before the end of its data"),
        };
        Ok(Segment {
            data: slice(file, from, loaded)?,
            start,
            bytes,
            virtual_start: start,
        })
    }
}

impl<'a> Program<'a> {
    /// Checks that all segments together can be loaded, and finds the entry point in one of them.
    pub fn new(source: Source<'a>, entry: EntryPoint) -> Result<Self, BootError> {
        let (mut end, mut bytes) = (0u64, 0u64);
        let (mut physical, mut translated) = (None, None);
        for segment in source.segments() {
            let segment = segment?;
            let segment_end = segment
                .start
                .checked_add(segment.bytes)
                .filter(|end| *end <= LOW_RAM_END);
            end = end.max(segment_end.ok_or(BootError::SegmentTooHigh)?);
            bytes = bytes.saturating_add(segment.bytes);
            let (EntryPoint::Physical(at) | EntryPoint::Named(at)) = entry;
            if at.wrapping_sub(segment.start) < segment.bytes {
                physical = Some(at);
            }
            let offset = at.wrapping_sub(segment.virtual_start);
            if matches!(entry, EntryPoint::Named(_)) && offset < segment.bytes {
                translated = Some(segment.start.saturating_add(offset));
            }
        }
        // Segments may overlap, but not so much that loading them takes forever.
        if bytes > end {
            return Err(BootError::BadKernel(
                "its segments overlap: together they are longer than the memory that they cover",
            ));
        }
        let entry = translated.or(physical);
        Ok(Program {
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

/// A module's place in memory, and its command line.
#[derive(Clone, Copy)]
pub(super) struct Placed<'a> {
    pub start: u64,
    pub end: u64,
    pub bootargs: &'a str,
}

impl Placed<'_> {
    /// Where the next command line begins, if this module's is at `at`.
    pub fn line_behind(&self, at: Gpa) -> Gpa {
        let bytes = (self.bootargs.len() as u64).saturating_add(1);
        at.wrapping_add(bytes)
    }
}

/// The machine, and where its modules go.
pub(super) struct Told<'m, 'a> {
    pub machine: &'m Machine<'a>,
    kernel_end: u64,
}

impl<'a> Told<'_, 'a> {
    /// The modules, each on a page of its own behind the kernel. The machine's initial file systems, joined, are the last one.
    pub fn modules(&self) -> impl Iterator<Item = Placed<'a>> + '_ {
        let modules = self.machine.modules().map(|Module { data, bootargs }| {
            let bytes = data.len() as u64;
            (bytes, bootargs)
        });
        let joined = self.machine.initrds().next();
        let joined = joined.map(|_| (initrd::bytes(self.machine), ""));
        let mut free_from = self.kernel_end.max(HIGH_MEMORY);
        modules.chain(joined).map(move |(bytes, bootargs)| {
            let start = align_up(free_from, PAGE_SIZE);
            free_from = start.saturating_add(bytes);
            Placed {
                start,
                end: free_from,
                bootargs,
            }
        })
    }

    /// Where kernel and modules end.
    fn end(&self) -> u64 {
        let ends = self.modules().map(|module| module.end);
        ends.fold(self.kernel_end.max(HIGH_MEMORY), u64::max)
    }

    fn write_modules(&self, memory: &dyn GuestMemory) -> Result<(), BootError> {
        let mut places = self.modules();
        for (module, place) in self.machine.modules().zip(&mut places) {
            memory.write(Gpa(place.start), module.data)?;
        }
        match places.next() {
            Some(place) => Ok(initrd::write(self.machine, memory, place.start)?),
            None => Ok(()),
        }
    }

    /// The bytes of all command lines and the loader's name, with a zero behind each.
    fn text_bytes(&self) -> u64 {
        let lines = self.modules().map(|module| module.bootargs);
        let texts = lines.chain([self.machine.bootargs, LOADER_NAME]);
        texts.fold(0, |sum, text| {
            sum.saturating_add(text.len() as u64).saturating_add(1)
        })
    }
}

/// Writes what a kernel is told to a multiple of 8; gives the address that goes to EBX.
pub(super) type WriteInfo<'w> =
    dyn Fn(&Told<'_, '_>, &mut Writer<'_>) -> Result<Gpa, BootError> + 'w;

/// Loads the kernel and its modules, and tells it what `write_info` says; the state is that of its entry point.
pub(super) fn load(
    machine: &Machine<'_>,
    memory: &dyn GuestMemory,
    program: &Program<'_>,
    write_info: &WriteInfo<'_>,
) -> Result<CpuState, BootError> {
    let told = Told {
        machine,
        kernel_end: program.end,
    };
    let end = told.end();
    if end > LOW_RAM_END {
        return Err(BootError::FilesTooBig {
            bytes: end.saturating_sub(program.end),
            room: LOW_RAM_END.saturating_sub(program.end),
        });
    }
    if end > machine.ram.low().end {
        return Err(BootError::NeedsMemory {
            need: end,
            have: machine.ram.bytes(),
        });
    }
    let gdt = place_info(&told, write_info)?;
    let stack = gdt.0.saturating_sub(STACK_BYTES);
    if program.overlaps(0, PAGE_SIZE)? || program.overlaps(stack, HIGH_MEMORY)? {
        return Err(BootError::BadKernel("a segment lies over the BIOS data area, the boot loader's information or the BIOS; load it at 1 MiB or above"));
    }
    program.write(memory)?;
    told.write_modules(memory)?;
    let mut to = Writer { memory, at: gdt };
    cpu::write_gdt(&mut to, Mode::Protected)?;
    let info = write_info(&told, &mut to)?;
    let mut state = cpu::entry_state(Mode::Protected, program.entry, gdt);
    state.gprs[Reg::Rbx] = info.0;
    state.gprs[Reg::Rsp] = gdt.0;
    Ok(state)
}

/// Where GDT and information begin.
fn place_info(told: &Told<'_, '_>, write_info: &WriteInfo<'_>) -> Result<Gpa, BootError> {
    let mut to = Writer {
        memory: &Nowhere,
        at: Gpa(cpu::GDT_BYTES),
    };
    write_info(told, &mut to)?;
    let bytes = to.at.0;
    let room = EBDA - INFO_MIN;
    if bytes > room {
        let text_bytes = told.text_bytes();
        return Err(BootError::CommandLineTooLong {
            bytes: text_bytes,
            limit: room.saturating_sub(bytes.saturating_sub(text_bytes)),
        });
    }
    Ok(Gpa(EBDA.saturating_sub(bytes) & !15))
}

/// Takes what is written to learn how long it is.
struct Nowhere;

impl GuestMemory for Nowhere {
    fn read(&self, at: Gpa, _: &mut [u8]) -> Result<(), NotRam> {
        Err(NotRam(at))
    }
    fn write(&self, _: Gpa, _: &[u8]) -> Result<(), NotRam> {
        Ok(())
    }
}
