// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a file seems to be, by its first bytes: a guess, for messages only. Whoever expected another file says so with it, in words
//! of its own.
//!
//! Which protocol loads a kernel is not decided here, but by `recognises` of each row of `PROTOCOLS` (`boot/mod.rs`).
#![forbid(unsafe_code)]

/// Where the setup header of a Linux kernel for x86 has its magic number (Linux: Documentation/arch/x86/boot.rst).
const LINUX_MAGIC_AT: usize = 0x202;
/// Where Linux kernels for ARM and RISC-V have theirs (Linux: Documentation/arch/arm64/booting.rst, arch/riscv/boot-image-header.rst).
const OTHER_LINUX_MAGIC_AT: usize = 0x38;

/// What a file seems to be. Nothing of it is promised to be well formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// It has no bytes.
    Empty,
    /// An image of the C Palacios.
    PalaciosImage,
    /// An ELF file.
    Elf,
    /// A Linux kernel for x86.
    Linux,
    /// A Linux kernel for another processor.
    OtherLinux,
    /// Compressed by gzip, bzip2, xz or zstd.
    Compressed,
    /// A flattened device tree.
    DeviceTree,
    /// A cpio archive.
    Cpio,
    /// A program for DOS, Windows or EFI.
    DosProgram,
    /// Text.
    Text,
    /// None of these.
    Unknown,
}

impl FileKind {
    /// Looks at a file's bytes.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match bytes {
            [] => Self::Empty,
            [b'v', b'3', b'v', b'e', b'e', 0, 0, 0 | 1, ..] => Self::PalaciosImage,
            [0x7f, b'E', b'L', b'F', ..] => Self::Elf,
            _ if has_linux_magic(bytes) => Self::Linux,
            [0x1f, 0x8b, ..]
            | [b'B', b'Z', b'h', ..]
            | [0xfd, b'7', b'z', b'X', b'Z', ..]
            | [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Compressed,
            _ if has_other_linux_magic(bytes) => Self::OtherLinux,
            [b'0', b'7', b'0', b'7', b'0', b'1', ..] => Self::Cpio,
            [b'M', b'Z', ..] => Self::DosProgram,
            [0xd0, 0x0d, 0xfe, 0xed, ..] => Self::DeviceTree,
            [b' '..=b'~' | b'\n' | b'\t', ..] => Self::Text,
            _ => Self::Unknown,
        }
    }
}

/// Whether the file has the magic number of a Linux kernel for x86.
pub(crate) fn has_linux_magic(bytes: &[u8]) -> bool {
    let magic = bytes.get(LINUX_MAGIC_AT..);
    magic.is_some_and(|magic| magic.starts_with(b"HdrS"))
}

fn has_other_linux_magic(bytes: &[u8]) -> bool {
    let magic = bytes.get(OTHER_LINUX_MAGIC_AT..);
    magic.is_some_and(|magic| magic.starts_with(b"ARM\x64") || magic.starts_with(b"RSC\x05"))
}
