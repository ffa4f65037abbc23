// SPDX-License-Identifier: MIT OR Apache-2.0
//! Why a kernel could not be loaded, in words that say what to do.

use crate::addr::NotRam;
use crate::file_kind::FileKind;
use crate::ram::LOW_RAM_END;
use core::fmt;

/// Why a kernel could not be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// The kernel speaks no boot protocol that this loader knows.
    UnknownKernel {
        /// A guess at what it is.
        looks_like: &'static str,
    },
    /// The kernel was said to be a Linux bzImage.
    NotBzImage {
        /// A guess at what it is.
        looks_like: &'static str,
    },
    /// The kernel was said to be a Multiboot 1 kernel.
    NotMultiboot {
        /// A guess at what it is.
        looks_like: &'static str,
    },
    /// The kernel was said to be a Multiboot 2 kernel.
    NotMultiboot2 {
        /// A guess at what it is.
        looks_like: &'static str,
    },
    /// The kernel was said to be an ELF file with a PVH note.
    NotPvh {
        /// A guess at what it is.
        looks_like: &'static str,
    },
    /// The Linux kernel speaks a boot protocol before 2.00, which came with Linux 2.0.
    OldProtocol {
        /// The protocol's version: major in the high byte, minor in the low.
        version: u16,
    },
    /// The Linux kernel is one that is loaded below 1 MiB.
    ZImage,
    /// The kernel's file ends too early.
    Truncated {
        /// Bytes that it should have at least.
        need: u64,
        /// Bytes that it has.
        have: u64,
    },
    /// The kernel contradicts itself; says how.
    BadKernel(&'static str),
    /// The Linux kernel is to be loaded, or to run, where guests have no RAM for it.
    OutOfRange,
    /// A segment of the kernel lies where guests have no RAM for it.
    SegmentTooHigh,
    /// The Multiboot kernel requires features that a loader must refuse if it does not know them.
    UnknownFlags(u32),
    /// The Multiboot 2 kernel requires, or requires to be told, what a tag of this number stands for, which this loader does not
    /// know.
    UnknownTag(u32),
    /// The Multiboot kernel requires a video mode.
    NeedsDisplay,
    /// The machine has too little memory for kernel and files.
    NeedsMemory {
        /// Bytes it needs at least.
        need: u64,
        /// Bytes it has.
        have: u64,
    },
    /// The kernel's files do not fit where it can reach them, whatever the machine's memory.
    FilesTooBig {
        /// Their length.
        bytes: u64,
        /// The length that would fit.
        room: u64,
    },
    /// The kernel takes no command line of this length.
    CommandLineTooLong {
        /// Its length.
        bytes: u64,
        /// The longest that is taken.
        limit: u64,
    },
    /// The tables for firmware do not fit their place.
    TablesTooBig,
    /// Memory is smaller than the machine.
    NotRam(NotRam),
    /// The host has no memory for what is built.
    NoMemory,
}

impl From<NotRam> for BootError {
    fn from(error: NotRam) -> Self {
        Self::NotRam(error)
    }
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownKernel { looks_like } => write!(f, "the kernel is neither a Linux bzImage nor a Multiboot kernel, nor an ELF file with a PVH note: {looks_like}"),
            Self::NotBzImage { looks_like } => write!(f, "the kernel is not a Linux bzImage: {looks_like}"),
            Self::NotMultiboot { looks_like } => write!(f, "the kernel has no Multiboot 1 header in its first 8192 bytes: {looks_like}"),
            Self::NotMultiboot2 { looks_like } => write!(f, "the kernel has no Multiboot 2 header in its first 32768 bytes: {looks_like}"),
            Self::NotPvh { looks_like } => write!(f, "the kernel is no ELF file with a PVH note (XEN_ELFNOTE_PHYS32_ENTRY): {looks_like}"),
            Self::OldProtocol { version } => write!(f, "the Linux kernel speaks boot protocol {}.{:02}; 2.00 (Linux 2.0) or later is needed", version >> 8, version & 0xff),
            Self::ZImage => f.write_str("the Linux kernel is a zImage, which is loaded below 1 MiB; build it as a bzImage"),
            Self::Truncated { need, have } => write!(f, "the kernel's file is cut off: it has {have} bytes and needs {need}; copy it again"),
            Self::BadKernel(why) => write!(f, "the kernel is malformed: {why}"),
            Self::OutOfRange => write!(f, "the Linux kernel does not want to be between 1 MiB and {} MiB", LOW_RAM_END >> 20),
            Self::SegmentTooHigh => write!(f, "the kernel has a segment above {} MiB; it is loaded by physical addresses", LOW_RAM_END >> 20),
            Self::UnknownFlags(flags) => write!(f, "the Multiboot kernel requires features {flags:#x}, which this loader does not know"),
            Self::UnknownTag(tag) => write!(f, "the Multiboot 2 kernel requires what tag {tag} stands for, which this loader does not know; mark it as optional in the kernel's header"),
            Self::NeedsDisplay => f.write_str("the Multiboot kernel requires a video mode (in its header), and the machine has no display; build it for a serial port"),
            Self::NeedsMemory { need, have } => write!(f, "the machine has {} MiB of memory; to load its kernel and files takes {} MiB, and a kernel needs more to run", have >> 20, need.div_ceil(1 << 20)),
            Self::FilesTooBig { bytes, room } => write!(f, "the kernel's files have {bytes} bytes; there is room for {room} where the kernel can reach them"),
            Self::CommandLineTooLong { bytes, limit } => write!(f, "the command line has {bytes} bytes; the kernel takes {limit}"),
            Self::NoMemory => f.write_str("the host has too little memory to build the guest's tables"),
            Self::TablesTooBig => f.write_str("the ACPI tables do not fit; take devices or processors out of the machine"),
            Self::NotRam(error) => write!(f, "the machine's memory is incomplete: {error}"),
        }
    }
}

impl core::error::Error for BootError {}

/// The words for a file that speaks no boot protocol of ours.
pub(super) fn looks_like(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Empty => "it is empty",
        FileKind::Elf => "it is an ELF file without a Multiboot header and without a PVH note; of Linux, take the bzImage (vmlinuz), or build vmlinux with CONFIG_PVH",
        FileKind::Compressed => "it is compressed; unpack it first",
        FileKind::OtherLinux => "it is a Linux kernel for another processor",
        FileKind::Cpio => "it is a cpio archive, maybe an initrd",
        FileKind::DosProgram => "it is a program for DOS, Windows or EFI",
        FileKind::Linux
        | FileKind::PalaciosImage
        | FileKind::DeviceTree
        | FileKind::Text
        | FileKind::Unknown => "its contents are not recognised",
    }
}
