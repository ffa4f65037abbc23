// SPDX-License-Identifier: MIT OR Apache-2.0
//! Configuration space as data (PCI 3.0: 6.1): what each byte shows, which of its bits take writes, and the list of capabilities.
//!
//! A function has 256 bytes. What lies behind them in its 4 KiB of the ECAM window reads as ones, as of a function that is not of PCI Express.
#![forbid(unsafe_code)]

use crate::alloc_ext::{try_vec, NoMemory};
use crate::devices::{read_bytewise, write_bytewise};
use crate::state_io::{StateError, StateReader, StateWriter};
use alloc::vec::Vec;

/// Bytes of a function that is not of PCI Express.
pub const BYTES: usize = 256;

/// Registers of the header (PCI 3.0: 6.2), by their offsets.
pub mod register {
    /// Vendor, device.
    pub const ID: u8 = 0x00;
    /// What the function may do.
    pub const COMMAND: u8 = 0x04;
    /// What it has.
    pub const STATUS: u8 = 0x06;
    /// Revision and class.
    pub const CLASS: u8 = 0x08;
    /// Layout of the header, and whether the device has several functions.
    pub const HEADER_TYPE: u8 = 0x0e;
    /// The first base address.
    pub const BASE: u8 = 0x10;
    /// Vendor and device once more, by the maker of the card.
    pub const SUBSYSTEM: u8 = 0x2c;
    /// The base address of the expansion ROM.
    pub const ROM: u8 = 0x30;
    /// The first capability.
    pub const CAPABILITIES: u8 = 0x34;
    /// What firmware notes: to which interrupt the pin leads.
    pub const INTERRUPT_LINE: u8 = 0x3c;
    /// The pin: 1 is INTA; 0 is none.
    pub const INTERRUPT_PIN: u8 = 0x3d;
    /// What is behind the header.
    pub const BEHIND: u8 = 0x40;
}

/// The command register (PCI 3.0: 6.2.2).
pub mod command {
    /// It answers at its ports.
    pub const PORTS: u16 = 1 << 0;
    /// It answers at its memory.
    pub const MEMORY: u16 = 1 << 1;
    /// It may master the bus: transfer, and send messages.
    pub const MASTER: u16 = 1 << 2;
    /// It may not assert its pin.
    pub const NO_INTX: u16 = 1 << 10;
    /// Those that take writes. Parity and system errors are enabled and never happen.
    pub const WRITABLE: u16 = PORTS | MEMORY | MASTER | 1 << 6 | 1 << 8 | NO_INTX;
}

/// The status register (PCI 3.0: 6.2.3).
pub mod status {
    /// Its pin would be asserted, if it may.
    pub const INTX: u8 = 1 << 3;
    /// It has capabilities.
    pub const CAPABILITIES: u8 = 1 << 4;
}

/// A byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Byte {
    now: u8,
    /// After a reset.
    first: u8,
    /// Bits that take writes.
    writable: u8,
}

/// The 256 bytes.
pub struct Config {
    bytes: Vec<Byte>,
    /// Where the next capability finds room.
    free: u8,
    /// Where its number is to be noted.
    link: u8,
}

impl Config {
    /// All zeroes, and nothing takes writes.
    pub fn new() -> Result<Self, NoMemory> {
        let zero = Byte {
            now: 0,
            first: 0,
            writable: 0,
        };
        Ok(Self {
            bytes: try_vec(zero, BYTES)?,
            free: register::BEHIND,
            link: register::CAPABILITIES,
        })
    }

    /// What is at `at` from power-on on.
    pub fn put(&mut self, at: u8, data: &[u8]) {
        for (byte, value) in self.from(at).zip(data) {
            (byte.now, byte.first) = (*value, *value);
        }
    }
    /// Has the bits that are set in `bits` take writes.
    pub fn let_write(&mut self, at: u8, bits: &[u8]) {
        for (byte, bits) in self.from(at).zip(bits) {
            byte.writable |= *bits;
        }
    }
    /// Keeps what is before `at` free of capabilities: the device has registers of its own there. To be called before any is added.
    pub fn keep_before(&mut self, at: u8) {
        self.free = self.free.max(at);
    }
    /// Adds a capability (PCI 3.0: 6.7): its id, and what is behind the id and the link, with the bits of that which take writes. Returns where it is;
    /// `None` if there is no room left.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u8> {
        let at = self.free;
        let end = usize::from(at).checked_add(2)?.checked_add(body.len())?;
        if at & 3 != 0 || end > BYTES {
            return None;
        }
        self.put(self.link, &[at]);
        self.put(at, &[id, 0]);
        let behind = at.wrapping_add(2);
        self.put(behind, body);
        self.let_write(behind, writable);
        let bits = self.byte(register::STATUS) | status::CAPABILITIES;
        self.put(register::STATUS, &[bits]);
        self.link = at.wrapping_add(1);
        // Behind the last byte there is no room: what is not a multiple of 4 says so.
        self.free = u8::try_from(end.wrapping_add(3) & !3).unwrap_or(1);
        Some(at)
    }

    fn from(&mut self, at: u8) -> impl Iterator<Item = &mut Byte> {
        let behind = self.bytes.get_mut(usize::from(at)..);
        behind.unwrap_or_default().iter_mut()
    }

    /// The byte at `at`.
    pub fn byte(&self, at: u8) -> u8 {
        self.bytes
            .get(usize::from(at))
            .map_or(0xff, |byte| byte.now)
    }
    /// The word at `at`.
    pub fn word(&self, at: u8) -> u16 {
        u16::from_le_bytes([0, 1].map(|n| self.byte(at.wrapping_add(n))))
    }
    /// The double word at `at`.
    pub fn double_word(&self, at: u8) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|n| self.byte(at.wrapping_add(n))))
    }
    /// The bits that are set in the command register.
    pub fn command(&self) -> u16 {
        self.word(register::COMMAND)
    }

    /// A read of `size` bytes.
    pub fn read(&self, offset: u64, size: u8) -> u64 {
        read_bytewise(offset, size, |at| {
            u8::try_from(at).map_or(0xff, |at| self.byte(at))
        })
    }
    /// A write of the `size` low bytes of `value`.
    pub fn write(&mut self, offset: u64, size: u8, value: u64) {
        write_bytewise(offset, size, value, |at, value| {
            let byte = usize::try_from(at)
                .ok()
                .and_then(|at| self.bytes.get_mut(at));
            if let Some(byte) = byte {
                byte.now = byte.now & !byte.writable | value & byte.writable;
            }
        });
    }
    /// As after power-on.
    pub fn reset(&mut self) {
        for byte in &mut self.bytes {
            byte.now = byte.first;
        }
    }

    /// Writes all bytes.
    pub fn save(&self, to: &mut StateWriter<'_>) -> Result<(), StateError> {
        self.bytes.iter().try_for_each(|byte| to.u8(byte.now))
    }
    /// Reads what [`Config::save`] wrote, and changes nothing. Bits that take no writes must be as they always are.
    pub fn check<'a>(&self, from: &mut StateReader<'a>) -> Result<&'a [u8], StateError> {
        let saved = from.slice(BYTES)?;
        let is_possible = |(byte, saved): (&Byte, &u8)| (byte.first ^ *saved) & !byte.writable == 0;
        match self.bytes.iter().zip(saved).all(is_possible) {
            true => Ok(saved),
            false => Err(StateError::Value("pci.config")),
        }
    }
    /// Takes what [`Config::check`] gave.
    pub fn take(&mut self, saved: &[u8]) {
        for (byte, saved) in self.bytes.iter_mut().zip(saved) {
            byte.now = *saved;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testing::saved;
    use proptest::prelude::*;

    fn config() -> Config {
        let mut config = Config::new().unwrap();
        config.put(register::ID, &[0x86, 0x80, 0x37, 0x12]);
        config.let_write(register::COMMAND, &command::WRITABLE.to_le_bytes());
        config
    }

    #[test]
    fn only_writable_bits_change() {
        let mut config = config();
        config.write(0, 8, u64::MAX);
        assert_eq!(config.read(0, 4), 0x1237_8086);
        assert_eq!(config.command(), command::WRITABLE);
        config.reset();
        assert_eq!(config.command(), 0);
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut config = config();
        config.keep_before(0x50);
        assert_eq!(config.add_capability(5, &[1, 2, 3], &[0, 0xff]), Some(0x50));
        assert_eq!(config.add_capability(9, &[7; 6], &[]), Some(0x58));
        assert_eq!(config.byte(register::CAPABILITIES), 0x50);
        assert_eq!(config.read(0x50, 4), 0x0201_5805);
        assert_eq!(config.read(0x58, 4), 0x0707_0009);
        assert_eq!(config.byte(register::STATUS) & status::CAPABILITIES, 0x10);
        config.write(0x52, 2, 0xaaaa);
        assert_eq!(config.read(0x52, 2), 0xaa01);
        assert_eq!(config.add_capability(9, &[0; 158], &[]), Some(0x60));
        assert_eq!(config.add_capability(9, &[0], &[]), None, "it is full");
    }

    #[test]
    fn what_lies_behind_reads_as_ones() {
        let config = config();
        assert_eq!(config.read(0x100, 4), 0xffff_ffff);
        assert_eq!(config.read(0xfc, 8), 0xffff_ffff_0000_0000);
        assert_eq!(config.read(0xff8, 8), u64::MAX);
    }

    #[test]
    fn a_record_with_other_fixed_bits_is_refused() {
        let mut one = config();
        one.write(4, 2, 7);
        let record = saved(|w| one.save(w));
        let mut other = config();
        let taken = other.check(&mut StateReader::new(&record)).unwrap();
        other.take(taken);
        assert_eq!(other.command(), 7);
        let mut damaged = record.clone();
        damaged[0] ^= 1;
        assert!(other.check(&mut StateReader::new(&damaged)).is_err());
        assert!(other.check(&mut StateReader::new(&record[1..])).is_err());
    }

    proptest! {
        #[test]
        fn fixed_bits_stay(
            accesses in prop::collection::vec((0u64..0x1010, 0u32..4, any::<u64>()), 0..40),
        ) {
            let mut config = config();
            let fixed = |config: &Config| -> Vec<u8> {
                config.bytes.iter().map(|byte| byte.now & !byte.writable).collect()
            };
            let before = fixed(&config);
            for (offset, size, value) in accesses {
                let size = 1u8 << size;
                config.write(offset, size, value);
                let read = config.read(offset, size);
                prop_assert!(size == 8 || read >> (8 * u32::from(size)) == 0);
            }
            prop_assert_eq!(fixed(&config), before);
        }
    }
}
