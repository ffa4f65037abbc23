// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a loader needs of ELF files: the segments, 32- and 64-bit, bounds-checked.

use super::{le16, le32, le64, BootError};

/// A piece of a kernel: bytes of its file and the zeros after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment<'a> {
    /// What the file gives; no longer than the memory.
    pub data: &'a [u8],
    /// Where it goes in guest-physical memory.
    pub start: u64,
    /// Its length in memory.
    pub bytes: u64,
    /// Where the kernel believes it to be.
    pub virtual_start: u64,
}

/// An ELF executable for x86.
#[derive(Clone, Copy)]
pub(super) struct Elf<'a> {
    file: &'a [u8],
    is_64: bool,
    /// Its entry point, as a virtual address.
    pub entry: u64,
    table: u64,
    entry_bytes: u16,
    count: u16,
}

const PT_LOAD: u32 = 1;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;

impl<'a> Elf<'a> {
    /// Reads the file header; `None` if the file is no ELF.
    pub fn parse(file: &'a [u8]) -> Result<Option<Self>, BootError> {
        if !file.starts_with(b"\x7fELF") {
            return Ok(None);
        }
        let cut_off = BootError::Truncated {
            need: 64,
            have: file.len() as u64,
        };
        let machine = le16(file, 18).ok_or(cut_off)?;
        let is_64 = match (file.get(4..6), machine) {
            (Some([1, 1]), EM_386) => false,
            (Some([2, 1]), EM_X86_64) => true,
            _ => {
                return Err(BootError::BadKernel(
                    "it is an ELF file for another processor",
                ))
            }
        };
        let read = || {
            Some(if is_64 {
                (
                    le64(file, 24)?,
                    le64(file, 32)?,
                    le16(file, 54)?,
                    le16(file, 56)?,
                )
            } else {
                (
                    le32(file, 24)?.into(),
                    le32(file, 28)?.into(),
                    le16(file, 42)?,
                    le16(file, 44)?,
                )
            })
        };
        let (entry, table, entry_bytes, count) = read().ok_or(cut_off)?;
        if entry_bytes < if is_64 { 56 } else { 32 } {
            return Err(BootError::BadKernel(
                "its ELF program headers are too short",
            ));
        }
        Ok(Some(Elf {
            file,
            is_64,
            entry,
            table,
            entry_bytes,
            count,
        }))
    }

    /// The segments to load.
    pub fn segments(&self) -> impl Iterator<Item = Result<Segment<'a>, BootError>> {
        let elf = *self;
        (0..elf.count).filter_map(move |index| elf.segment(index).transpose())
    }

    fn segment(&self, index: u16) -> Result<Option<Segment<'a>>, BootError> {
        let file = self.file;
        // Two 16-bit numbers: no overflow.
        let at = self
            .table
            .saturating_add(u64::from(index) * u64::from(self.entry_bytes));
        let field = |offset_32: u64, offset_64: u64| {
            if self.is_64 {
                le64(file, at.checked_add(offset_64)?)
            } else {
                le32(file, at.checked_add(offset_32)?).map(u64::from)
            }
        };
        let read = || {
            Some((
                le32(file, at)?,
                field(4, 8)?,
                field(8, 16)?,
                field(12, 24)?,
                field(16, 32)?,
                field(20, 40)?,
            ))
        };
        let (kind, offset, virtual_start, start, file_bytes, bytes) =
            read().ok_or(BootError::Truncated {
                need: at.saturating_add(self.entry_bytes.into()),
                have: file.len() as u64,
            })?;
        if kind != PT_LOAD || bytes == 0 {
            return Ok(None);
        }
        if file_bytes > bytes {
            return Err(BootError::BadKernel(
                "a segment is longer in its file than in memory",
            ));
        }
        Ok(Some(Segment {
            data: slice(file, offset, file_bytes)?,
            start,
            bytes,
            virtual_start,
        }))
    }
}

/// `file[at..at + bytes]`.
pub(super) fn slice(file: &[u8], at: u64, bytes: u64) -> Result<&[u8], BootError> {
    let get = || {
        let rest = file.get(usize::try_from(at).ok()?..)?;
        rest.get(..usize::try_from(bytes).ok()?)
    };
    get().ok_or(BootError::Truncated {
        need: at.saturating_add(bytes),
        have: file.len() as u64,
    })
}
