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
pub mod layout;
mod linux;
mod mp;
mod multiboot;
#[cfg(test)]
mod testing;

pub use error::BootError;

use crate::addr::{Gpa, NotRam, PAGE_SIZE};
use crate::devices::GuestMemory;
use crate::image::{BootKind, Machine};
use crate::state::CpuState;

/// Writes the machine's tables and kernel to `memory`, which has the machine's size; returns the state in which its first
/// CPU is to start. The others wait for their start-up IPIs in [`CpuState::reset`].
///
/// Memory that is not written is not cleared. May be called again to restart the machine.
pub fn load(machine: &Machine<'_>, memory: &dyn GuestMemory) -> Result<CpuState, BootError> {
    layout::write_bios_data(machine, memory)?;
    acpi::write(machine, memory)?;
    mp::write(machine, memory)?;
    let is_linux = linux::is_bzimage(machine.kernel);
    match machine.boot {
        BootKind::Linux => linux::load(machine, memory),
        BootKind::Multiboot => multiboot::load(machine, memory),
        BootKind::Auto if is_linux => linux::load(machine, memory),
        BootKind::Auto if multiboot::has_header(machine.kernel) => multiboot::load(machine, memory),
        BootKind::Auto => Err(BootError::UnknownKernel {
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
    /// Writes `text` and a zero; returns where.
    fn string(&mut self, text: &str) -> Result<Gpa, NotRam> {
        let at = self.bytes(text.as_bytes())?;
        self.bytes(&[0])?;
        Ok(at)
    }
}
