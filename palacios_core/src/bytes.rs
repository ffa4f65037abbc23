// SPDX-License-Identifier: MIT OR Apache-2.0
//! Numbers and parts of a file, which may end too early; and sizes that are rounded up.
#![forbid(unsafe_code)]

/// The next multiple of `unit`, a power of two; the last one there is where there is none.
pub(crate) fn align_up(value: u64, unit: u64) -> u64 {
    let mask = unit.wrapping_sub(1);
    value.saturating_add(mask) & !mask
}

/// `bytes[at..at + len]`, if it is there.
pub(crate) fn slice(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    let len = usize::try_from(len).ok()?;
    bytes.get(at..)?.get(..len)
}

/// `bytes[at..at + 2]` as a little-endian number, if it is there.
pub(crate) fn le16(bytes: &[u8], at: u64) -> Option<u16> {
    let raw = bytes.get(usize::try_from(at).ok()?..)?;
    raw.first_chunk().copied().map(u16::from_le_bytes)
}

pub(crate) fn le32(bytes: &[u8], at: u64) -> Option<u32> {
    let raw = bytes.get(usize::try_from(at).ok()?..)?;
    raw.first_chunk().copied().map(u32::from_le_bytes)
}

pub(crate) fn le64(bytes: &[u8], at: u64) -> Option<u64> {
    let raw = bytes.get(usize::try_from(at).ok()?..)?;
    raw.first_chunk().copied().map(u64::from_le_bytes)
}
