// SPDX-License-Identifier: MIT OR Apache-2.0
//! The states in which boot protocols have a CPU enter a kernel.

use super::layout;
use super::writer::{write_zeros, Writer};
use crate::addr::{Gpa, NotRam};
use crate::interfaces::GuestMemory;
use crate::state::{cr0, cr4, efer, CpuState, Seg, Segment, SegmentAttributes as A, TableRegister};

/// The selectors that Linux's protocol asks for, and that GRUB uses for Multiboot.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;

/// The bytes that [`write_gdt`] takes.
pub(super) const GDT_BYTES: u64 = 32;

/// How wide the code segment is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// 32-bit protected mode, paging off.
    Protected,
    /// 64-bit mode with these page tables.
    Long {
        /// The root of the page tables.
        cr3: u64,
    },
}

/// A flat segment that has been used, at privilege level 0.
fn flat(selector: u16, more: u16) -> Segment {
    let attributes = A(A::P | A::S | A::G | A::WRITE_OR_READ | A::ACCESSED | more);
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attributes,
    }
}

fn code(mode: Mode) -> Segment {
    flat(
        CODE,
        A::CODE | if mode == Mode::Protected { A::DB } else { A::L },
    )
}

fn data() -> Segment {
    flat(DATA, A::DB)
}

/// A flat segment's descriptor (APM 2: 4.7): all of the limit is ones, all of the base zeros.
fn descriptor(segment: Segment) -> u64 {
    let attributes = u64::from(segment.attributes.0);
    0x000f_0000_0000_ffff | (attributes & 0xff) << 40 | (attributes & 0xf00) << 44
}

/// Writes a GDT with a code and a data segment, both flat.
pub(super) fn write_gdt(to: &mut Writer<'_>, mode: Mode) -> Result<(), NotRam> {
    to.u64(0)?;
    to.u64(0)?;
    to.u64(descriptor(code(mode)))?;
    to.u64(descriptor(data()))
}

/// A CPU in `mode` at `rip`, interrupts off, with the GDT of [`write_gdt`] at `gdt`.
pub(super) fn entry_state(mode: Mode, rip: u64, gdt: Gpa) -> CpuState {
    let mut state = CpuState::reset();
    state.rip = rip;
    state.gprs.0 = [0; 16];
    state.gdtr = TableRegister {
        base: gdt.0,
        limit: GDT_BYTES as u16 - 1,
    };
    // A kernel that goes back to real mode finds the interrupt vector table.
    state.idtr.limit = layout::VECTOR_TABLE_BYTES as u16 - 1;
    state.control.cr0 = cr0::PE | cr0::ET | cr0::NE;
    if let Mode::Long { cr3 } = mode {
        state.control.cr0 |= cr0::PG;
        state.control.cr3 = cr3;
        state.control.cr4 = cr4::PAE;
        state.control.efer = efer::LME | efer::LMA;
    }
    for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        state.segments[seg as usize] = data();
    }
    state.segments[Seg::Cs as usize] = code(mode);
    state
}

/// Writes page tables that map the first 4 GiB to themselves: six pages at `at`, which is page-aligned.
pub(super) fn write_identity_map(memory: &dyn GuestMemory, at: Gpa) -> Result<(), NotRam> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    write_zeros(memory, at, 2 * 4096)?;
    let directory = |index: u64| at.0.wrapping_add(index.wrapping_mul(4096));
    Writer { memory, at }.u64(directory(1) | PRESENT_WRITABLE)?;
    let mut pointers = Writer {
        memory,
        at: Gpa(directory(1)),
    };
    for index in 0..4 {
        pointers.u64(directory(2 + index) | PRESENT_WRITABLE)?;
    }
    let mut entries = Writer {
        memory,
        at: Gpa(directory(2)),
    };
    for index in 0..2048u64 {
        entries.u64(index << 21 | LARGE | PRESENT_WRITABLE)?;
    }
    Ok(())
}
