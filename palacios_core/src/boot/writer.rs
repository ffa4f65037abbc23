// SPDX-License-Identifier: MIT OR Apache-2.0
//! What loaders write to guest memory: one thing after the other, and zeros.

use crate::addr::{Gpa, NotRam, PAGE_SIZE};
use crate::bytes::align_up;
use crate::interfaces::GuestMemory;

/// Writes one thing after the other.
pub(super) struct Writer<'a> {
    pub memory: &'a dyn GuestMemory,
    pub at: Gpa,
}

impl Writer<'_> {
    /// Writes `data`; returns where.
    pub fn bytes(&mut self, data: &[u8]) -> Result<Gpa, NotRam> {
        let at = self.at;
        self.memory.write(at, data)?;
        self.at = at.checked_add(data.len() as u64).ok_or(NotRam(at))?;
        Ok(at)
    }
    pub fn u32(&mut self, value: u32) -> Result<(), NotRam> {
        self.bytes(&value.to_le_bytes()).map(|_| ())
    }
    pub fn u64(&mut self, value: u64) -> Result<(), NotRam> {
        self.bytes(&value.to_le_bytes()).map(|_| ())
    }
    /// Writes zeros up to the next multiple of `unit`, which is at most 8.
    pub fn align(&mut self, unit: u64) -> Result<(), NotRam> {
        let bytes = align_up(self.at.0, unit).saturating_sub(self.at.0);
        let zeros = [0; 8];
        self.bytes(zeros.get(..bytes as usize).unwrap_or(&zeros))
            .map(|_| ())
    }
    /// Writes `text` and a zero; returns where.
    pub fn string(&mut self, text: &str) -> Result<Gpa, NotRam> {
        let at = self.bytes(text.as_bytes())?;
        self.bytes(&[0])?;
        Ok(at)
    }
}

/// `bytes` zeros.
pub(super) fn write_zeros(memory: &dyn GuestMemory, at: Gpa, bytes: u64) -> Result<(), NotRam> {
    static ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
    let mut done = 0u64;
    while done < bytes {
        let step = bytes.saturating_sub(done).min(PAGE_SIZE);
        let zeros = ZEROS.get(..step as usize).unwrap_or(&ZEROS);
        memory.write(at.checked_add(done).ok_or(NotRam(at))?, zeros)?;
        done = done.saturating_add(step);
    }
    Ok(())
}
