// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a loader needs of ELF files, 32- and 64-bit, bounds-checked: the segments, and the notes.

use super::error::BootError;
use crate::bytes::{self, align_up, le16, le32, le64};

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

/// An entry of the table of program headers.
struct ProgramHeader {
    kind: u32,
    offset: u64,
    virtual_start: u64,
    start: u64,
    file_bytes: u64,
    bytes: u64,
    alignment: u64,
}

/// A note: some words under a number that its owner knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Note<'a> {
    /// Who gave the number; with a zero at the end.
    pub owner: &'a [u8],
    pub kind: u32,
    pub data: &'a [u8],
}

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// So many program headers with notes are looked at, and so many notes of each: a hostile file shall not take forever.
const MOST_NOTES: usize = 256;
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
        let headers = elf.headers(PT_LOAD);
        headers.filter_map(move |header| header.and_then(|header| elf.segment(&header)).transpose())
    }

    /// The notes; what is malformed of them is left out.
    pub fn notes(&self) -> impl Iterator<Item = Note<'a>> {
        let file = self.file;
        let headers = self.headers(PT_NOTE).filter_map(Result::ok);
        headers.take(MOST_NOTES).flat_map(move |header| {
            let notes = slice(file, header.offset, header.file_bytes).unwrap_or(&[]);
            let alignment = if header.alignment == 8 { 8 } else { 4 };
            let mut at = 0;
            let next = core::iter::from_fn(move || Note::read(notes, &mut at, alignment));
            next.take(MOST_NOTES)
        })
    }

    /// The program headers of one kind.
    fn headers(
        &self,
        kind: u32,
    ) -> impl Iterator<Item = Result<ProgramHeader, BootError>> + use<'a> {
        let elf = *self;
        let all = (0..elf.count).map(move |index| elf.header(index));
        all.filter(move |header| !matches!(header, Ok(header) if header.kind != kind))
    }

    fn header(&self, index: u16) -> Result<ProgramHeader, BootError> {
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
            Some(ProgramHeader {
                kind: le32(file, at)?,
                offset: field(4, 8)?,
                virtual_start: field(8, 16)?,
                start: field(12, 24)?,
                file_bytes: field(16, 32)?,
                bytes: field(20, 40)?,
                alignment: field(28, 48)?,
            })
        };
        read().ok_or(BootError::Truncated {
            need: at.saturating_add(self.entry_bytes.into()),
            have: file.len() as u64,
        })
    }

    fn segment(&self, header: &ProgramHeader) -> Result<Option<Segment<'a>>, BootError> {
        if header.bytes == 0 {
            return Ok(None);
        }
        if header.file_bytes > header.bytes {
            return Err(BootError::BadKernel(
                "a segment is longer in its file than in memory",
            ));
        }
        Ok(Some(Segment {
            data: slice(self.file, header.offset, header.file_bytes)?,
            start: header.start,
            bytes: header.bytes,
            virtual_start: header.virtual_start,
        }))
    }
}

impl<'a> Note<'a> {
    /// The note at `at`, which moves to the next one.
    fn read(notes: &'a [u8], at: &mut u64, alignment: u64) -> Option<Self> {
        let owner_bytes = u64::from(le32(notes, *at)?);
        let data_bytes = u64::from(le32(notes, at.checked_add(4)?)?);
        let kind = le32(notes, at.checked_add(8)?)?;
        let owner_at = at.checked_add(12)?;
        let data_at = align_up(owner_at.checked_add(owner_bytes)?, alignment);
        let note = Note {
            owner: slice(notes, owner_at, owner_bytes).ok()?,
            kind,
            data: slice(notes, data_at, data_bytes).ok()?,
        };
        *at = align_up(data_at.checked_add(data_bytes)?, alignment);
        Some(note)
    }
}

/// `file[at..at + bytes]`.
pub(super) fn slice(file: &[u8], at: u64, len: u64) -> Result<&[u8], BootError> {
    bytes::slice(file, at, len).ok_or(BootError::Truncated {
        need: at.saturating_add(len),
        have: file.len() as u64,
    })
}
