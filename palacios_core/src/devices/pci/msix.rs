// SPDX-License-Identifier: MIT OR Apache-2.0
//! Message-signalled interrupts by the capability MSI-X (PCI 3.0: 6.8.2): a table of messages in memory, with a mask bit for each and one for all, and an array of
//! pending bits behind it. Both have a base address register for themselves.
#![forbid(unsafe_code)]

use super::bar::Bar;
use super::config::Config;
use crate::alloc_ext::{try_vec, NoMemory};
use crate::interfaces::Msi as Message;
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::vec::Vec;

/// The id of the capability.
const ID: u8 = 0x11;
/// The most vectors.
pub const MAX_VECTORS: u16 = 2048;
/// Bytes of an entry.
const ENTRY_BYTES: u64 = 16;
/// Bits of the control register.
const ENABLED: u16 = 1 << 15;
const ALL_MASKED: u16 = 1 << 14;

/// An entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    address: u64,
    data: u32,
    masked: bool,
    /// It is to be sent once nothing masks it.
    pending: bool,
}

impl Entry {
    /// As after a reset.
    const NEW: Self = Self {
        address: 0,
        data: 0,
        masked: true,
        pending: false,
    };

    const fn double_word(&self, number: u64) -> u32 {
        match number {
            0 => self.address as u32,
            1 => (self.address >> 32) as u32,
            2 => self.data,
            _ => self.masked as u32,
        }
    }
    fn set_double_word(&mut self, number: u64, value: u32) {
        match number {
            0 => self.address = self.address >> 32 << 32 | u64::from(value & !3),
            1 => self.address = self.address & 0xffff_ffff | u64::from(value) << 32,
            2 => self.data = value,
            _ => self.masked = value & 1 != 0,
        }
    }
    const fn message(&self) -> Message {
        Message {
            address: self.address,
            data: self.data,
        }
    }
}

/// The capability of a function, with its table.
pub struct MsiX {
    /// Where the capability is in configuration space.
    at: u8,
    table: Vec<Entry>,
}

impl MsiX {
    /// Adds the capability to configuration space, for a table that has the base address register `bar`. `None`: there is no room.
    pub fn new(config: &mut Config, vectors: u16, bar: u8) -> Result<Option<Self>, NoMemory> {
        let vectors = vectors.clamp(1, MAX_VECTORS);
        let table = try_vec(Entry::NEW, vectors.into())?;
        let [low, high] = vectors.wrapping_sub(1).to_le_bytes();
        let [t0, t1, t2, t3] = u32::from(bar & 7).to_le_bytes();
        let pending = pending_at(vectors) as u32 | u32::from(bar & 7);
        let [p0, p1, p2, p3] = pending.to_le_bytes();
        let body = [low, high, t0, t1, t2, t3, p0, p1, p2, p3];
        let [_, writable] = (ENABLED | ALL_MASKED).to_le_bytes();
        let at = config.add_capability(ID, &body, &[0, writable]);
        Ok(at.map(|at| Self { at, table }))
    }

    /// The base address register for so many vectors.
    pub const fn bar(vectors: u16) -> Bar {
        // The least that a guest maps for itself is a page.
        let bytes = pending_at(vectors).saturating_add(vectors as u64 / 8 + 8);
        Bar::memory(if bytes < 0x1000 { 0x1000 } else { bytes as u32 })
    }

    fn control(&self, config: &Config) -> u16 {
        config.word(self.at.wrapping_add(2))
    }
    /// The guest uses it.
    pub fn is_enabled(&self, config: &Config) -> bool {
        self.control(config) & ENABLED != 0
    }
    fn masks_all(&self, config: &Config) -> bool {
        self.control(config) & (ENABLED | ALL_MASKED) != ENABLED
    }

    /// The function has an interrupt of a vector. `None`: it is masked, and pending from now on; or there is no such vector.
    pub fn raise(&mut self, config: &Config, vector: u16) -> Option<Message> {
        let all_masked = self.masks_all(config);
        let entry = self.table.get_mut(usize::from(vector))?;
        if all_masked || entry.masked {
            entry.pending = true;
            return None;
        }
        Some(entry.message())
    }

    /// Takes a message that was pending and is masked no longer.
    pub fn take_due(&mut self, config: &Config) -> Option<Message> {
        if self.masks_all(config) {
            return None;
        }
        let is_due = |entry: &&mut Entry| entry.pending && !entry.masked;
        let entry = self.table.iter_mut().find(is_due)?;
        entry.pending = false;
        Some(entry.message())
    }

    /// A read in its memory: of 4 or 8 bytes, aligned; others are not defined, and read as zeroes (PCI 3.0: 6.8.2).
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        let (size, low) = (u64::from(size), u64::from(self.double_word(offset)));
        match size {
            4 if offset % 4 == 0 => low,
            8 if offset % 8 == 0 => u64::from(self.double_word(offset.wrapping_add(4))) << 32 | low,
            _ => 0,
        }
    }

    fn double_word(&self, offset: u64) -> u32 {
        let entry = self.table.get((offset / ENTRY_BYTES) as usize);
        if let Some(entry) = entry {
            return entry.double_word(offset % ENTRY_BYTES / 4);
        }
        let first = offset
            .wrapping_sub(pending_at(self.table.len() as u16))
            .wrapping_mul(8);
        let behind = self.table.get(first as usize..).unwrap_or_default();
        behind.iter().zip(0..32u32).fold(0, |bits, (entry, bit)| {
            bits | u32::from(entry.pending).wrapping_shl(bit)
        })
    }

    /// A write in its memory; as [`MsiX::read`]. Pending bits take none.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        match size {
            4 if offset % 4 == 0 => self.set_double_word(offset, value as u32),
            8 if offset % 8 == 0 => {
                self.set_double_word(offset, value as u32);
                self.set_double_word(offset.wrapping_add(4), (value >> 32) as u32);
            }
            _ => {}
        }
    }

    fn set_double_word(&mut self, offset: u64, value: u32) {
        if let Some(entry) = self.table.get_mut((offset / ENTRY_BYTES) as usize) {
            entry.set_double_word(offset % ENTRY_BYTES / 4, value);
        }
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        self.table.fill(Entry::NEW);
    }
    /// Writes the table.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        self.table.iter().try_for_each(|entry| {
            to.u64(entry.address)?;
            to.u32(entry.data)?;
            to.u8(u8::from(entry.masked) | u8::from(entry.pending) << 1)
        })
    }
    /// Reads what [`MsiX::save`] wrote.
    pub fn restored(&self, from: &mut StateReader<'_>) -> Result<Self, StateError> {
        let mut table = try_vec(Entry::NEW, self.table.len())?;
        for entry in &mut table {
            let (address, data, bits) = (from.u64()?, from.u32()?, from.u8()?);
            if address & 3 != 0 || bits > 3 {
                return Err(StateError::Value("pci.msix"));
            }
            *entry = Entry {
                address,
                data,
                masked: bits & 1 != 0,
                pending: bits & 2 != 0,
            };
        }
        Ok(Self { at: self.at, table })
    }
}

/// Where the pending bits are, behind a table of so many entries.
const fn pending_at(vectors: u16) -> u64 {
    (vectors as u64).saturating_mul(ENTRY_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::saved;
    use proptest::prelude::*;

    fn bench(vectors: u16) -> (Config, MsiX) {
        let mut config = Config::new().unwrap();
        let msix = MsiX::new(&mut config, vectors, 4).unwrap().unwrap();
        (config, msix)
    }

    #[test]
    fn the_capability_says_where_the_table_is() {
        let (mut config, _) = bench(40);
        config.write(0x42, 2, 0xffff);
        assert_eq!(config.read(0x40, 4), 0xc027_0011);
        assert_eq!(config.read(0x44, 8), 0x0284_0000_0004);
        for (vectors, bytes) in [(1, 4096), (248, 4096), (256, 8192), (2048, 65536)] {
            assert_eq!(MsiX::bar(vectors).bytes(), bytes);
        }
    }

    #[test]
    fn a_vector_waits_behind_both_masks() {
        let (mut config, mut msix) = bench(40);
        assert_eq!(msix.read(0xc, 4), 1, "masked after a reset");
        msix.write(39 * 16, 8, 0xfee0_2000);
        msix.write(39 * 16 + 8, 4, 0x55);
        config.write(0x42, 2, 0xc000);
        assert_eq!(
            (msix.raise(&config, 39), msix.raise(&config, 40)),
            (None, None)
        );
        assert_eq!(msix.read(40 * 16, 8), 1 << 39);
        assert_eq!(msix.read(40 * 16 + 4, 4), 1 << 7);
        msix.write(39 * 16 + 12, 4, 0);
        assert_eq!(msix.take_due(&config), None, "all are masked");
        config.write(0x42, 2, 0x8000);
        let message = Message {
            address: 0xfee0_2000,
            data: 0x55,
        };
        assert_eq!(
            (msix.take_due(&config), msix.take_due(&config)),
            (Some(message), None)
        );
        assert_eq!(msix.raise(&config, 39), Some(message));
        assert_eq!(msix.read(40 * 16, 8), 0);
    }

    proptest! {
        #[test]
        fn every_value_of_the_table_is_kept_or_ignored(
            vectors in 1u16..80,
            writes in prop::collection::vec((0u64..0x1000, 0u32..4, any::<u64>(), any::<u16>()), 0..60),
        ) {
            let (mut config, mut msix) = bench(vectors);
            config.write(0x42, 2, 0x8000);
            for (offset, size, value, raised) in writes {
                msix.write(offset, 1 << size, value);
                let _ = msix.read(offset, 1 << size);
                if let Some(message) = msix.raise(&config, raised % 90) {
                    prop_assert_eq!(message.address % 4, 0);
                }
            }
            while msix.take_due(&config).is_some() {}
            prop_assert!(msix.table.iter().all(|entry| entry.masked || !entry.pending));
            let record = saved(|w| msix.save(w));
            let twin = msix.restored(&mut StateReader::new(&record)).unwrap();
            prop_assert_eq!(&twin.table, &msix.table);
        }
    }
}
