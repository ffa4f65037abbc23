// SPDX-License-Identifier: MIT OR Apache-2.0
//! A saved machine: a row of sections, each with the state of one part.
//!
//! ```text
//! +-------+----------+--------+-------+------------+------------+------+------+---------+
//! | magic | checksum | length | flags | path bytes | kind bytes | path | kind | content |    one section
//! +-------+----------+--------+-------+------------+------------+------+------+---------+
//!    u32      u32       u64      u16        u8           u8                   a record of `state_io`, which begins with its version
//! ```
//!
//! All numbers are little-endian. The checksum, CRC-32C, is of all that follows it. The path says whose state it is (`vcpu/0`, `device/com1`), the kind what
//! it is of (`cpu`, `serial`). Whoever reads sections skips one that it does not know, unless that *must be known*: then it refuses the whole by its name.
//!
//! This file knows the form alone. Which sections a VM's state has, and how they are read, is in `vm/saved.rs`; what stands in a saved file beside
//! them, and in which order, in `saved_file.rs`.
#![forbid(unsafe_code)]

use crate::checksum::{checksum, checksum_of};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::vec::Vec;
use core::fmt;

const MAGIC: u32 = u32::from_le_bytes(*b"sect");
/// The bytes before a section's names.
pub const HEAD_BYTES: usize = 20;
/// Where in the head its checksum is, and what it is of begins.
const CHECKSUM_AT: usize = 4;
const SUMMED_FROM: usize = 8;
/// A reader that does not know this section must not go on.
const MUST_KNOW: u16 = 1;
/// The most bytes of a path or a kind.
const MOST_NAME: usize = 63;

/// What a section is called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SectionName {
    bytes: [u8; MOST_NAME],
    len: u8,
}

impl SectionName {
    /// Cuts what is too long.
    pub fn new(name: fmt::Arguments<'_>) -> Self {
        let mut new = Self {
            bytes: [0; MOST_NAME],
            len: 0,
        };
        // It never fails.
        let _ = fmt::Write::write_fmt(&mut new, name);
        new
    }
    /// The name.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Write for SectionName {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if let Some(slot) = self.bytes.get_mut(usize::from(self.len)) {
                *slot = byte;
                self.len = self.len.wrapping_add(1);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for SectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for SectionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    /// Whose state it is.
    pub path: &'a str,
    /// What that is.
    pub kind: &'a str,
    /// Who does not know it must not go on.
    pub must_know: bool,
    /// Its record.
    pub content: &'a [u8],
}

/// Appends a section that must be known, whose record is what `write` writes. On an error nothing of it is left.
pub fn write_section(
    to: &mut Vec<u8>,
    path: &SectionName,
    kind: &str,
    write: impl FnOnce(&mut StateWriter<'_>) -> Result<(), StateError>,
) -> Result<(), StateError> {
    let begin = to.len();
    let written = write_parts(to, path, kind, write);
    match written {
        Ok(()) => seal(to.get_mut(begin..).unwrap_or_default()),
        Err(_) => to.truncate(begin),
    }
    written
}

fn write_parts(
    to: &mut Vec<u8>,
    path: &SectionName,
    kind: &str,
    write: impl FnOnce(&mut StateWriter<'_>) -> Result<(), StateError>,
) -> Result<(), StateError> {
    let (path, kind) = (path.as_str(), SectionName::new(format_args!("{kind}")));
    let begin = to.len();
    let mut head = StateWriter::new(to);
    head.u32(MAGIC)?;
    head.u32(0)?;
    head.u64(0)?;
    head.u16(MUST_KNOW)?;
    head.bytes(&[path.len() as u8, kind.len])?;
    head.bytes(path.as_bytes())?;
    head.bytes(kind.as_str().as_bytes())?;
    let content_from = to.len();
    write(&mut StateWriter::new(to))?;
    let length = to.len().wrapping_sub(content_from) as u64;
    put(to, begin.wrapping_add(SUMMED_FROM), &length.to_le_bytes());
    Ok(())
}

/// Appends all of a section but its content, which is to follow: for one that is long, and there already.
pub fn write_head(
    to: &mut Vec<u8>,
    path: &SectionName,
    kind: &str,
    content: &[u8],
) -> Result<(), StateError> {
    let begin = to.len();
    write_parts(to, path, kind, |_| Ok(()))?;
    let section = to.get_mut(begin..).unwrap_or_default();
    put(section, SUMMED_FROM, &(content.len() as u64).to_le_bytes());
    let sum = checksum_of(&[section.get(SUMMED_FROM..).unwrap_or_default(), content]);
    put(section, CHECKSUM_AT, &sum.to_le_bytes());
    Ok(())
}

/// Gives a section, as it stands there, the checksum of what it holds.
pub fn seal(section: &mut [u8]) {
    let sum = checksum(section.get(SUMMED_FROM..).unwrap_or_default());
    put(section, CHECKSUM_AT, &sum.to_le_bytes());
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    let room = to.get_mut(at..).unwrap_or_default();
    for (slot, byte) in room.iter_mut().zip(bytes) {
        *slot = *byte;
    }
}

/// How long a section is that begins with this head.
///
/// # Errors
/// It is no head of a section.
pub fn section_bytes(head: &[u8; HEAD_BYTES]) -> Result<u64, StateError> {
    let head = Head::read(&mut StateReader::new(head))?;
    let names = u64::from(head.path_bytes).saturating_add(head.kind_bytes.into());
    let bytes = head.length.saturating_add(names);
    Ok(bytes.saturating_add(HEAD_BYTES as u64))
}

struct Head {
    checksum: u32,
    length: u64,
    flags: u16,
    path_bytes: u8,
    kind_bytes: u8,
}

impl Head {
    fn read(from: &mut StateReader<'_>) -> Result<Self, StateError> {
        if from.u32()? != MAGIC {
            return Err(StateError::Value("section.magic"));
        }
        let (checksum, length, flags) = (from.u32()?, from.u64()?, from.u16()?);
        let [path_bytes, kind_bytes] = from.bytes()?;
        Ok(Self {
            checksum,
            length,
            flags,
            path_bytes,
            kind_bytes,
        })
    }
}

/// All sections in a row of bytes, up to the first that cannot be read.
#[derive(Clone)]
pub struct Sections<'a> {
    bytes: &'a [u8],
    checked: bool,
}

impl<'a> Sections<'a> {
    /// Those in `bytes`, whatever their checksums: they were looked at before.
    pub fn new(bytes: &'a [u8]) -> Self {
        let checked = false;
        Self { bytes, checked }
    }
    /// Those in `bytes`, up to the first that is damaged.
    pub fn checked(bytes: &'a [u8]) -> Self {
        let checked = true;
        Self { bytes, checked }
    }
    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    fn read(&mut self) -> Result<Section<'a>, StateError> {
        let mut from = StateReader::new(self.bytes);
        let head = Head::read(&mut from)?;
        let length = usize::try_from(head.length).map_err(|_| StateError::Truncated)?;
        let path = from.slice(head.path_bytes.into())?;
        let kind = from.slice(head.kind_bytes.into())?;
        let content = from.slice(length)?;
        let len = self.bytes.len().wrapping_sub(from.rest().len());
        let summed = self.bytes.get(SUMMED_FROM..len).unwrap_or_default();
        if self.checked && checksum(summed) != head.checksum {
            return Err(StateError::Value("section.checksum"));
        }
        self.bytes = from.rest();
        Ok(Section {
            path: text(path)?,
            kind: text(kind)?,
            must_know: head.flags & MUST_KNOW != 0,
            content,
        })
    }
}

impl<'a> Iterator for Sections<'a> {
    type Item = Result<Section<'a>, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.bytes = &[];
        }
        Some(read)
    }
}

fn text(bytes: &[u8]) -> Result<&str, StateError> {
    let printable = bytes.iter().all(u8::is_ascii_graphic) && bytes.len() <= MOST_NAME;
    let text = core::str::from_utf8(bytes).ok().filter(|_| printable);
    text.ok_or(StateError::Value("section.name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn two() -> Vec<u8> {
        let mut bytes = Vec::new();
        write_section(
            &mut bytes,
            &SectionName::new(format_args!("vcpu/{}", 1)),
            "cpu",
            |to| to.u32(7),
        )
        .unwrap();
        write_section(
            &mut bytes,
            &SectionName::new(format_args!("empty")),
            "nothing",
            |_| Ok(()),
        )
        .unwrap();
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = two();
        let all: Result<Vec<_>, _> = Sections::new(&bytes).collect();
        let section = |path, kind, content| Section {
            path,
            kind,
            must_know: true,
            content,
        };
        let expected = vec![
            section("vcpu/1", "cpu", &[7, 0, 0, 0][..]),
            section("empty", "nothing", &[]),
        ];
        assert_eq!(all, Ok(expected));
    }

    #[test]
    fn a_section_that_fails_leaves_nothing() {
        let mut bytes = two();
        let fails = |to: &mut StateWriter<'_>| to.u64(1).and(Err(StateError::NoMemory));
        let failed = write_section(&mut bytes, &SectionName::new(format_args!("x")), "y", fails);
        assert_eq!(failed, Err(StateError::NoMemory));
        assert_eq!(bytes, two());
    }

    #[test]
    fn every_cut_is_found() {
        let bytes = two();
        let second = bytes.len() - HEAD_BYTES - "emptynothing".len();
        for cut in 1..bytes.len() {
            let all: Result<Vec<_>, _> = Sections::new(&bytes[..cut]).collect();
            assert_eq!(all.is_ok(), cut == second, "{cut}");
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = two();
        assert!(Sections::checked(&good).all(|section| section.is_ok()));
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Sections::checked(&bytes).any(|section| section.is_err()),
                "{bit}"
            );
        }
        let first: &[u8; HEAD_BYTES] = good[..HEAD_BYTES].try_into().unwrap();
        let len = section_bytes(first).unwrap() as usize;
        assert_eq!(good.len() - len, HEAD_BYTES + "emptynothing".len());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), flips in 0..two().len()) {
            for section in Sections::new(&bytes) {
                let _ = section;
            }
            let mut flipped = two();
            flipped[flips] ^= 0x40;
            prop_assert!(Sections::new(&flipped).count() <= 3);
        }
    }
}
