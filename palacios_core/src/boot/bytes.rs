// SPDX-License-Identifier: MIT OR Apache-2.0
//! Little-endian numbers in a kernel's file, which may end too early; and sizes that are rounded up.

/// The next multiple of `unit`, a power of two; the last one there is where there is none.
pub(super) fn align_up(value: u64, unit: u64) -> u64 {
    let mask = unit.wrapping_sub(1);
    value.saturating_add(mask) & !mask
}

/// `bytes[at..at + 2]` as a little-endian number, if it is there.
pub(super) fn le16(bytes: &[u8], at: u64) -> Option<u16> {
    let raw = bytes.get(usize::try_from(at).ok()?..)?;
    raw.first_chunk().copied().map(u16::from_le_bytes)
}

pub(super) fn le32(bytes: &[u8], at: u64) -> Option<u32> {
    let raw = bytes.get(usize::try_from(at).ok()?..)?;
    raw.first_chunk().copied().map(u32::from_le_bytes)
}

pub(super) fn le64(bytes: &[u8], at: u64) -> Option<u64> {
    let raw = bytes.get(usize::try_from(at).ok()?..)?;
    raw.first_chunk().copied().map(u64::from_le_bytes)
}
