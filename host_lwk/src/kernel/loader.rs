// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the boot loader left: the command line, the modules, the memory map, ACPI's root and the kernel's own symbols
//! (Multiboot 2: 3.6).

use super::memory::MemoryMap;
use super::symbols::{self, Symbol, Symbols};
use super::sync::Once;
use core::ops::Range;
use multiboot2::{BootInformation, BootInformationHeader, MemoryAreaType};

/// What EAX holds at the entry.
const MAGIC: u32 = multiboot2::MAGIC;

/// The loader's information, where it left it.
pub struct Boot(BootInformation<'static>);

// SAFETY: memory that nobody writes.
unsafe impl Send for Boot {}
// SAFETY: as above.
unsafe impl Sync for Boot {}

static BOOT: Once<Boot> = Once::new();

/// A file that the loader brought.
#[derive(Clone, Copy)]
pub struct Module {
    /// The first word of its command line.
    pub name: &'static str,
    /// Its contents.
    pub bytes: &'static [u8],
}

/// Looks at what the loader left; `None` if it is not Multiboot 2.
///
/// # Safety
/// Once, at the entry, with EAX and EBX as they were.
pub unsafe fn init(magic: u32, info: u32) -> Option<&'static Boot> {
    if magic != MAGIC {
        return None;
    }
    // SAFETY: by the contract above, and the magic says that EBX points to such a structure.
    let info = unsafe { BootInformation::load(info as usize as *const BootInformationHeader) };
    // SAFETY: by the contract above.
    unsafe { BOOT.set(Boot(info.ok()?)) };
    let boot = BOOT.get()?;
    if let Some(symbols) = boot.symbols() {
        // SAFETY: by the contract above.
        unsafe { symbols::set(symbols) };
    }
    Some(boot)
}

impl Boot {
    /// The kernel's command line.
    pub fn command_line(&self) -> &str {
        let tag = self.0.command_line_tag();
        tag.and_then(|tag| tag.cmdline().ok()).unwrap_or_default()
    }

    /// Whether a word is on it.
    pub fn option(&self, word: &str) -> bool {
        self.command_line()
            .split_whitespace()
            .any(|other| other == word)
    }

    /// The modules, in their order.
    pub fn modules(&'static self) -> impl Iterator<Item = Module> {
        self.0.module_tags().map(|tag| {
            let line = tag.cmdline().unwrap_or_default();
            let len = tag.end_address().saturating_sub(tag.start_address()) as usize;
            Module {
                name: line.split_whitespace().next().unwrap_or_default(),
                // SAFETY: memory below 4 GiB, which is mapped; it is kept out of the heaps.
                bytes: unsafe {
                    core::slice::from_raw_parts(tag.start_address() as usize as *const u8, len)
                },
            }
        })
    }

    fn sections(&self) -> impl Iterator<Item = multiboot2::ElfSection<'_>> + Clone {
        let tag = self.0.elf_sections_tag();
        tag.into_iter().flat_map(|tag| tag.sections())
    }

    /// Where a copy of ACPI's root pointer is.
    pub fn rsdp(&self) -> Option<usize> {
        /// Past the header of a tag.
        const RSDP: usize = 8;
        let new = self
            .0
            .rsdp_v2_tag()
            .map(|tag| core::ptr::from_ref(tag) as usize);
        let old = || {
            self.0
                .rsdp_v1_tag()
                .map(|tag| core::ptr::from_ref(tag) as usize)
        };
        Some(new.or_else(old)? + RSDP)
    }

    /// The kernel's symbol table, if the loader kept it.
    fn symbols(&self) -> Option<Symbols> {
        let symbols = self
            .sections()
            .find(|section| section.section_type_raw() == SHT_SYMTAB)?;
        let names = self.sections().find(|section| {
            section.section_type_raw() == SHT_STRTAB && section.name() == Ok(".strtab")
        })?;
        // SAFETY: the loader put them there, below 4 GiB; they are kept out of the heaps.
        unsafe {
            Some(Symbols {
                table: core::slice::from_raw_parts(
                    symbols.start_address() as *const Symbol,
                    symbols.size() as usize / size_of::<Symbol>(),
                ),
                names: core::slice::from_raw_parts(
                    names.start_address() as *const u8,
                    names.size() as usize,
                ),
            })
        }
    }
}

impl MemoryMap for Boot {
    fn usable(&self) -> impl Iterator<Item = Range<u64>> {
        let areas = self.0.memory_map_tag().map(|tag| tag.memory_areas());
        let areas = areas.unwrap_or_default().iter();
        areas
            .filter(|area| area.typ() == MemoryAreaType::Available)
            .map(|area| area.start_address()..area.end_address())
    }

    fn taken(&self) -> impl Iterator<Item = Range<u64>> + Clone {
        let info = self.0.start_address() as u64..self.0.end_address() as u64;
        let module = |tag: &multiboot2::ModuleTag| {
            u64::from(tag.start_address())..u64::from(tag.end_address())
        };
        let sections = self.sections();
        let modules = self.0.module_tags().map(module);
        modules.chain([info]).chain(
            sections
                .filter(|section| section.start_address() != 0)
                .map(|section| section.start_address()..section.end_address()),
        )
    }
}

/// Types of ELF sections.
const SHT_SYMTAB: u32 = 2;
const SHT_STRTAB: u32 = 3;
