// SPDX-License-Identifier: MIT OR Apache-2.0
//! Message-signalled interrupts by the capability MSI (PCI 3.0: 6.8.1): up to 32 vectors, 64-bit addresses, with a mask and a pending bit for each.
#![forbid(unsafe_code)]

use super::config::Config;
use crate::interfaces::Msi as Message;

/// The id of the capability.
const ID: u8 = 5;
/// Its registers, from its begin on.
const CONTROL: u8 = 2;
const ADDRESS: u8 = 4;
const DATA: u8 = 12;
const MASK: u8 = 16;
/// The pending bits, of which this file knows and configuration space does not.
pub const PENDING: u8 = 20;

/// Bits of the control register.
mod control {
    pub const ENABLED: u16 = 1 << 0;
    /// How many vectors the guest uses, as a power of two.
    pub const USED_SHIFT: u32 = 4;
    pub const USED: u16 = 7 << USED_SHIFT;
    pub const WIDE: u16 = 1 << 7;
    pub const MASKABLE: u16 = 1 << 8;
}

/// The capability of a function.
#[derive(Clone, Copy, Debug)]
pub struct Msi {
    /// Where it is in configuration space.
    at: u8,
    /// A power of two, at most 32.
    vectors: u8,
    /// Vectors that are to be sent once their mask is clear.
    pub(super) pending: u32,
}

impl Msi {
    /// Adds the capability to configuration space. `vectors` is rounded up to a power of two, of at most 32. `None`: there is no room.
    pub fn new(config: &mut Config, vectors: u8) -> Option<Self> {
        let vectors = vectors.clamp(1, 32).next_power_of_two();
        let bits = u32::MAX >> 32u32.saturating_sub(vectors.into());
        let offered = (vectors.trailing_zeros() as u16) << 1;
        let control = offered | control::WIDE | control::MASKABLE;
        let (mut body, mut writable) = ([0; 22], [0; 22]);
        put(&mut body, 0, &control.to_le_bytes());
        put(
            &mut writable,
            0,
            &(control::ENABLED | control::USED).to_le_bytes(),
        );
        put(&mut writable, 2, &0xffff_ffff_ffff_fffcu64.to_le_bytes());
        put(&mut writable, 10, &[0xff; 2]);
        put(&mut writable, 14, &bits.to_le_bytes());
        let at = config.add_capability(ID, &body, &writable)?;
        Some(Self {
            at,
            vectors,
            pending: 0,
        })
    }

    /// Where its pending bits are in configuration space.
    pub const fn pending_at(&self) -> u8 {
        self.at.wrapping_add(PENDING)
    }
    const fn register(&self, offset: u8) -> u8 {
        self.at.wrapping_add(offset)
    }
    /// The guest uses it.
    pub fn is_enabled(&self, config: &Config) -> bool {
        config.word(self.register(CONTROL)) & control::ENABLED != 0
    }

    /// How many vectors the guest lets it use.
    fn used(&self, config: &Config) -> u32 {
        let exponent = (config.word(self.register(CONTROL)) & control::USED) >> control::USED_SHIFT;
        1u32.wrapping_shl(exponent.into()).min(self.vectors.into())
    }

    fn message(&self, config: &Config, vector: u32) -> Message {
        let half = |at: u8| u64::from(config.double_word(self.register(at)));
        let data = u32::from(config.word(self.register(DATA)));
        let low = self.used(config).wrapping_sub(1);
        Message {
            address: half(ADDRESS.wrapping_add(4)) << 32 | half(ADDRESS),
            data: data & !low | vector & low,
        }
    }

    /// The function has an interrupt of a vector; those that are not used are the others' as well. `None`: it is masked, and pending from now on.
    pub fn raise(&mut self, config: &Config, vector: u16) -> Option<Message> {
        let vector = u32::from(vector) & self.used(config).wrapping_sub(1);
        let bit = 1u32.wrapping_shl(vector);
        if config.double_word(self.register(MASK)) & bit != 0 {
            self.pending |= bit;
            return None;
        }
        Some(self.message(config, vector))
    }

    /// Takes a message that was pending and is masked no longer.
    pub fn take_due(&mut self, config: &Config) -> Option<Message> {
        let due = self.pending & !config.double_word(self.register(MASK));
        if due == 0 || !self.is_enabled(config) {
            return None;
        }
        self.pending &= !(due & due.wrapping_neg());
        Some(self.message(config, due.trailing_zeros()))
    }
}

/// Copies what fits.
fn put(to: &mut [u8], at: usize, from: &[u8]) {
    for (to, from) in to.get_mut(at..).unwrap_or_default().iter_mut().zip(from) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(vectors: u8) -> (Config, Msi) {
        let mut config = Config::new().unwrap();
        let msi = Msi::new(&mut config, vectors).unwrap();
        config.write(0x44, 8, 0xfee0_1000);
        config.write(0x4c, 2, 0x4f);
        (config, msi)
    }

    #[test]
    fn the_capability_says_what_there_is() {
        let (mut config, msi) = bench(3);
        assert_eq!(
            config.read(0x40, 4),
            0x0184_0005,
            "4 vectors, 64 bits, maskable"
        );
        assert!(!msi.is_enabled(&config));
        config.write(0x42, 2, 0xffff);
        assert_eq!(config.read(0x42, 2), 0x01f5);
        assert!(msi.is_enabled(&config));
        config.write(0x50, 4, u32::MAX.into());
        assert_eq!(config.read(0x50, 4), 0xf, "as many mask bits");
    }

    #[test]
    fn the_vector_is_in_the_low_bits_of_the_data() {
        let (mut config, mut msi) = bench(4);
        let message = |data| {
            Some(Message {
                address: 0xfee0_1000,
                data,
            })
        };
        assert_eq!(msi.raise(&config, 3), message(0x4f), "one is used");
        config.write(0x42, 2, 0x21);
        assert_eq!(msi.raise(&config, 1), message(0x4d));
        assert_eq!(
            msi.raise(&config, 6),
            message(0x4e),
            "one of those that there are"
        );
        config.write(0x42, 2, 0x71);
        assert_eq!(
            msi.raise(&config, 3),
            message(0x4f),
            "no more than there are"
        );
    }

    #[test]
    fn what_is_masked_is_pending_once() {
        let (mut config, mut msi) = bench(4);
        config.write(0x42, 2, 0x21);
        config.write(0x50, 4, 0b0101);
        for vector in [0, 2, 2] {
            assert_eq!(msi.raise(&config, vector), None);
        }
        assert_eq!((msi.pending, msi.take_due(&config)), (0b101, None));
        config.write(0x50, 4, 0b0001);
        assert_eq!(
            msi.take_due(&config).map(|message| message.data),
            Some(0x4e)
        );
        assert_eq!((msi.pending, msi.take_due(&config)), (0b001, None));
    }
}
