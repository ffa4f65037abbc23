// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts a guest into memory, as firmware and boot loader would: ACPI and MP tables, the kernel with its files, and the state in
//! which the first CPU enters it.
//!
//! Kernels are the caller's and may be malformed: each number of theirs is checked before anything is written.
#![forbid(unsafe_code)]

pub mod acpi;
mod cpu;
mod elf;
mod error;
mod initrd;
pub mod layout;
mod linux;
mod mp;
mod multiboot;
mod multiboot2;
mod program;
mod pvh;
#[cfg(test)]
mod testing;

pub use error::BootError;

use crate::addr::{Gpa, NotRam, PAGE_SIZE};
use crate::image::{BootKind, Machine};
use crate::interfaces::GuestMemory;
use crate::state::CpuState;

/// A boot protocol.
struct Protocol {
    kind: BootKind,
    /// What its kernels are, for messages.
    name: &'static str,
    /// Whether a file is a kernel of this protocol.
    recognises: fn(&[u8]) -> bool,
    /// Loads the machine's kernel with its files; the state is that of its entry point.
    load: fn(&Machine<'_>, &dyn GuestMemory, &Tables) -> Result<CpuState, BootError>,
}

/// All of them. A kernel that speaks several is started by the first one.
static PROTOCOLS: [Protocol; 4] = [
    Protocol {
        kind: BootKind::Linux,
        name: "it is a Linux bzImage",
        recognises: linux::is_bzimage,
        load: linux::load,
    },
    Protocol {
        kind: BootKind::Multiboot,
        name: "it is a Multiboot 1 kernel",
        recognises: multiboot::has_header,
        load: multiboot::load,
    },
    Protocol {
        kind: BootKind::Multiboot2,
        name: "it is a Multiboot 2 kernel",
        recognises: multiboot2::has_header,
        load: multiboot2::load,
    },
    Protocol {
        kind: BootKind::Pvh,
        name: "it is an ELF file with a PVH note",
        recognises: pvh::has_note,
        load: pvh::load,
    },
];

/// The tables of firmware that a protocol tells of.
struct Tables {
    /// ACPI's root pointer.
    rsdp: [u8; acpi::RSDP_BYTES],
}

/// Writes the machine's tables and kernel to `memory`, which has the machine's size; returns the state in which its first
/// CPU is to start. The others wait for their start-up IPIs in [`CpuState::reset`].
///
/// Memory that is not written is not cleared. May be called again to restart the machine.
pub fn load(machine: &Machine<'_>, memory: &dyn GuestMemory) -> Result<CpuState, BootError> {
    layout::write_bios(machine, memory)?;
    let tables = Tables {
        rsdp: acpi::write(machine, memory)?,
    };
    mp::write(machine, memory)?;
    let wanted = |protocol: &&Protocol| match machine.boot {
        BootKind::Auto => (protocol.recognises)(machine.kernel),
        kind => protocol.kind == kind,
    };
    match PROTOCOLS.iter().find(wanted) {
        Some(protocol) => (protocol.load)(machine, memory, &tables),
        None => Err(BootError::UnknownKernel {
            looks_like: error::looks_like(machine.kernel),
        }),
    }
}

/// `bytes` zeros.
fn write_zeros(memory: &dyn GuestMemory, at: Gpa, bytes: u64) -> Result<(), NotRam> {
    static ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
    let mut done = 0u64;
    while done < bytes {
        let step = bytes.saturating_sub(done).min(PAGE_SIZE);
        let zeros = ZEROS.get(..step as usize).unwrap_or(&ZEROS);
        memory.write(at.checked_add(done).ok_or(NotRam(at))?, zeros)?;
        done = done.saturating_add(step);
    }
    Ok(())
}

/// The next multiple of `unit`, a power of two; the last one there is where there is none.
fn align_up(value: u64, unit: u64) -> u64 {
    let mask = unit.wrapping_sub(1);
    value.saturating_add(mask) & !mask
}

/// `bytes[at..at + 2]` as a little-endian number, if it is there.
fn le16(bytes: &[u8], at: u64) -> Option<u16> {
    let raw = bytes.get(usize::try_from(at).ok()?..)?;
    raw.first_chunk().copied().map(u16::from_le_bytes)
}

fn le32(bytes: &[u8], at: u64) -> Option<u32> {
    let raw = bytes.get(usize::try_from(at).ok()?..)?;
    raw.first_chunk().copied().map(u32::from_le_bytes)
}

fn le64(bytes: &[u8], at: u64) -> Option<u64> {
    let raw = bytes.get(usize::try_from(at).ok()?..)?;
    raw.first_chunk().copied().map(u64::from_le_bytes)
}

/// Writes one thing after the other.
struct Writer<'a> {
    memory: &'a dyn GuestMemory,
    at: Gpa,
}

impl Writer<'_> {
    /// Writes `data`; returns where.
    fn bytes(&mut self, data: &[u8]) -> Result<Gpa, NotRam> {
        let at = self.at;
        self.memory.write(at, data)?;
        self.at = at.checked_add(data.len() as u64).ok_or(NotRam(at))?;
        Ok(at)
    }
    fn u32(&mut self, value: u32) -> Result<(), NotRam> {
        self.bytes(&value.to_le_bytes()).map(|_| ())
    }
    fn u64(&mut self, value: u64) -> Result<(), NotRam> {
        self.bytes(&value.to_le_bytes()).map(|_| ())
    }
    /// Writes zeros up to the next multiple of `unit`, which is at most 8.
    fn align(&mut self, unit: u64) -> Result<(), NotRam> {
        let bytes = align_up(self.at.0, unit).saturating_sub(self.at.0);
        let zeros = [0; 8];
        self.bytes(zeros.get(..bytes as usize).unwrap_or(&zeros))
            .map(|_| ())
    }
    /// Writes `text` and a zero; returns where.
    fn string(&mut self, text: &str) -> Result<Gpa, NotRam> {
        let at = self.bytes(text.as_bytes())?;
        self.bytes(&[0])?;
        Ok(at)
    }
}
