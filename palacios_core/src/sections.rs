// SPDX-License-Identifier: MIT OR Apache-2.0
//! A saved machine: a row of sections, each with the state of one part.
//!
//! ```text
//! +-------+------------+------------+-------+--------+------+------+---------+
//! | magic | path bytes | kind bytes | flags | length | path | kind | content |    one section
//! +-------+------------+------------+-------+--------+------+------+---------+
//!    u32       u8           u8         u16     u64                  a record of `state_io`, which begins with its version
//! ```
//!
//! All numbers are little-endian. The path says whose state it is (`vcpu/0`, `device/com1`), the kind what it is of (`cpu`, `ns16550a`). Whoever reads
//! sections skips one that it does not know, unless that *must be known*: then it refuses the whole by its name.
#![forbid(unsafe_code)]

use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::vec::Vec;
use core::fmt;

const MAGIC: u32 = u32::from_le_bytes(*b"sect");
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
    if written.is_err() {
        to.truncate(begin);
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
    let mut head = StateWriter::new(to);
    head.u32(MAGIC)?;
    head.bytes(&[path.len() as u8, kind.len])?;
    head.u16(MUST_KNOW)?;
    head.u64(0)?;
    head.bytes(path.as_bytes())?;
    head.bytes(kind.as_str().as_bytes())?;
    let begin = to.len();
    write(&mut StateWriter::new(to))?;
    let length = to.len().wrapping_sub(begin) as u64;
    // The length stands before both names.
    let names = path.len().wrapping_add(kind.len.into());
    let at = begin.wrapping_sub(names).wrapping_sub(8);
    for (slot, byte) in to.iter_mut().skip(at).zip(length.to_le_bytes()) {
        *slot = byte;
    }
    Ok(())
}

/// All sections in a row of bytes, up to the first that cannot be read.
#[derive(Clone)]
pub struct Sections<'a>(&'a [u8]);

impl<'a> Sections<'a> {
    /// Those in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn read(&mut self) -> Result<Section<'a>, StateError> {
        let mut from = StateReader::new(self.0);
        if from.u32()? != MAGIC {
            return Err(StateError::Value("section.magic"));
        }
        let [path_len, kind_len] = from.bytes()?;
        let flags = from.u16()?;
        let length = usize::try_from(from.u64()?).map_err(|_| StateError::Truncated)?;
        let path = text(from.slice(path_len.into())?)?;
        let kind = text(from.slice(kind_len.into())?)?;
        let content = from.slice(length)?;
        self.0 = from.rest();
        Ok(Section {
            path,
            kind,
            must_know: flags & MUST_KNOW != 0,
            content,
        })
    }
}

impl<'a> Iterator for Sections<'a> {
    type Item = Result<Section<'a>, StateError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.0 = &[];
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
        let second = bytes.len() - 16 - "emptynothing".len();
        for cut in 1..bytes.len() {
            let all: Result<Vec<_>, _> = Sections::new(&bytes[..cut]).collect();
            assert_eq!(all.is_ok(), cut == second, "{cut}");
        }
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
