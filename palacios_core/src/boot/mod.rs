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
pub mod pci;
mod program;
mod pvh;
#[cfg(test)]
mod testing;
mod writer;

pub use error::BootError;

use crate::file_kind::FileKind;
use crate::image::{BootKind, Machine};
use crate::interfaces::GuestMemory;
use crate::state::CpuState;
use acpi::Tables;

/// A boot protocol.
struct Protocol {
    kind: BootKind,
    /// What its kernels are, for messages.
    name: &'static str,
    /// Whether a file is a kernel of this protocol.
    recognises: fn(&[u8]) -> bool,
    /// Loads the machine's kernel with its files.
    load: fn(&Machine<'_>, &dyn GuestMemory, &Tables) -> Loaded,
    /// What is said of a file that was to be such a kernel and is not; the argument is what it looks like.
    refuse: fn(&'static str) -> BootError,
}

/// The state at the kernel's entry point. `None`: the file is no kernel of that protocol.
type Loaded = Result<Option<CpuState>, BootError>;

/// All of them. A kernel that speaks several is started by the first one.
///
/// To add one: its file here, a row, its name in `BootKind` (`image/machine.rs`), what is said of other files in [`BootError`], and
/// its name in `Boot` of the tool (`userspace_ctl/src/guest.rs`).
static PROTOCOLS: [Protocol; 4] = [
    Protocol {
        kind: BootKind::Linux,
        name: "it is a Linux bzImage",
        recognises: linux::is_bzimage,
        load: linux::load,
        refuse: |looks_like| BootError::NotBzImage { looks_like },
    },
    Protocol {
        kind: BootKind::Multiboot,
        name: "it is a Multiboot 1 kernel",
        recognises: multiboot::has_header,
        load: multiboot::load,
        refuse: |looks_like| BootError::NotMultiboot { looks_like },
    },
    Protocol {
        kind: BootKind::Multiboot2,
        name: "it is a Multiboot 2 kernel",
        recognises: multiboot2::has_header,
        load: multiboot2::load,
        refuse: |looks_like| BootError::NotMultiboot2 { looks_like },
    },
    Protocol {
        kind: BootKind::Pvh,
        name: "it is an ELF file with a PVH note",
        recognises: pvh::has_note,
        load: pvh::load,
        refuse: |looks_like| BootError::NotPvh { looks_like },
    },
];

/// Writes the machine's tables and kernel to `memory`, which has the machine's size; returns the state in which its first
/// CPU is to start. The others wait for their start-up IPIs in [`CpuState::reset`].
///
/// Memory that is not written is not cleared. May be called again to restart the machine.
pub fn load(machine: &Machine<'_>, memory: &dyn GuestMemory) -> Result<CpuState, BootError> {
    let tables = write_tables(machine, memory)?;
    let wanted = |protocol: &&Protocol| match machine.boot {
        BootKind::Auto => (protocol.recognises)(machine.kernel),
        kind => protocol.kind == kind,
    };
    let Some(protocol) = PROTOCOLS.iter().find(wanted) else {
        let looks_like = looks_like(machine.kernel);
        return Err(BootError::UnknownKernel { looks_like });
    };
    let state = (protocol.load)(machine, memory, &tables)?;
    state.ok_or_else(|| (protocol.refuse)(looks_like(machine.kernel)))
}

/// What firmware leaves behind. A function of its own, since it takes much of a kernel's small stack.
#[inline(never)]
fn write_tables(machine: &Machine<'_>, memory: &dyn GuestMemory) -> Result<Tables, BootError> {
    layout::write_bios(machine, memory)?;
    let tables = Tables {
        rsdp: acpi::write(machine, memory)?,
    };
    mp::write(machine, memory)?;
    Ok(tables)
}

/// What a file seems to be that is not the expected kernel.
fn looks_like(kernel: &[u8]) -> &'static str {
    let mut protocols = PROTOCOLS.iter();
    match protocols.find(|protocol| (protocol.recognises)(kernel)) {
        Some(protocol) => protocol.name,
        None => error::looks_like(FileKind::of(kernel)),
    }
}
