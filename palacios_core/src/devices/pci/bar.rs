// SPDX-License-Identifier: MIT OR Apache-2.0
//! Base address registers (PCI 3.0: 6.2.5). The guest finds the size of one by writing ones: the low bits of an address take no writes. So it is
//! moved, and switched off by the command register.
#![forbid(unsafe_code)]

use super::config::{command, register, Config};
use core::ops::Range;

/// Registers for base addresses, and the one of the expansion ROM behind them.
pub const COUNT: usize = 7;
/// The number of the expansion ROM.
pub const ROM: usize = 6;
/// Of the ROM's register: it answers.
const ROM_ON: u32 = 1 << 0;
/// The ROM's address has at least so many bytes (PCI 3.0: 6.2.5.2).
const ROM_LEAST_BYTES: u64 = 1 << 11;

/// What addresses a register is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    None,
    Ports,
    Memory,
    /// Memory anywhere; the register behind it has the higher half.
    Memory64,
    Rom,
}

/// What a register is for, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    kind: Kind,
    bytes: u64,
    prefetchable: bool,
    /// Parts of it that are doorbells, in ascending order: where, and how many bytes. A write there only wakes the device's worker.
    doorbells: &'static [(u64, u64)],
}

impl Bar {
    /// No register, or the higher half of the one before.
    pub const NONE: Self = Self {
        kind: Kind::None,
        bytes: 0,
        prefetchable: false,
        doorbells: &[],
    };

    const fn new(kind: Kind, bytes: u64, least: u64) -> Self {
        let bytes = if bytes < least { least } else { bytes };
        let bytes = match bytes.checked_next_power_of_two() {
            Some(bytes) => bytes,
            None => 1 << 63,
        };
        Self {
            kind,
            bytes,
            ..Self::NONE
        }
    }
    /// So many ports, rounded up to a power of two; at most 256.
    pub const fn ports(count: u16) -> Self {
        let count = if count > 256 { 256 } else { count };
        Self::new(Kind::Ports, count as u64, 4)
    }
    /// So much memory below 4 GiB, rounded up to a power of two.
    pub const fn memory(bytes: u32) -> Self {
        let bytes = if bytes > 1 << 31 { 1 << 31 } else { bytes };
        Self::new(Kind::Memory, bytes as u64, 16)
    }
    /// So much memory, also above 4 GiB. The next register must be [`Bar::NONE`].
    pub const fn memory64(bytes: u64) -> Self {
        Self::new(Kind::Memory64, bytes, 16)
    }
    /// An expansion ROM of so many bytes.
    pub(super) const fn rom(bytes: u32) -> Self {
        Self::new(Kind::Rom, bytes as u64, ROM_LEAST_BYTES)
    }
    /// Reads of it change nothing, and writes may be merged.
    pub const fn prefetchable(self) -> Self {
        Self {
            prefetchable: true,
            ..self
        }
    }
    /// Parts of it are doorbells, in ascending order: where, and how many bytes.
    pub const fn with_doorbells(self, doorbells: &'static [(u64, u64)]) -> Self {
        Self { doorbells, ..self }
    }

    /// How many bytes or ports.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
    /// There is one.
    pub fn exists(&self) -> bool {
        self.kind != Kind::None
    }
    /// Its addresses are ports.
    pub fn is_ports(&self) -> bool {
        self.kind == Kind::Ports
    }
    /// Pieces of it that are regions of their own, each a doorbell or not.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (Range<u64>, bool)> + '_ {
        let all = if self.exists() { self.bytes } else { 0 };
        let mut from = 0;
        let mut doorbells = self.doorbells.iter().peekable();
        core::iter::from_fn(move || {
            if from >= all {
                return None;
            }
            let next = doorbells.peek().map_or(all, |(at, _)| (*at).min(all));
            let (range, is_doorbell) = match from < next {
                true => (from..next, false),
                false => {
                    let (at, bytes) = doorbells.next()?;
                    let end = at.saturating_add(*bytes);
                    (from..end.clamp(from.saturating_add(1), all), true)
                }
            };
            from = range.end;
            Some((range, is_doorbell))
        })
    }

    /// Where register number `number` is in configuration space.
    const fn at(number: usize) -> u8 {
        match number {
            ROM => register::ROM,
            _ => register::BASE.wrapping_add((number as u8) << 2),
        }
    }

    /// Puts it into configuration space, as register number `number`.
    pub(super) fn put(&self, number: usize, config: &mut Config) {
        let at = Self::at(number);
        let prefetchable = u8::from(self.prefetchable) << 3;
        let (flags, extra) = match self.kind {
            Kind::None => return,
            Kind::Ports => (1, 0),
            Kind::Memory => (prefetchable, 0),
            Kind::Memory64 => (prefetchable | 0b100, 0),
            Kind::Rom => (0, ROM_ON),
        };
        config.put(at, &[flags]);
        let mask = !self.bytes.wrapping_sub(1);
        let low = mask as u32 | extra;
        // An x86 has 16 bits of port addresses, but all 32 take writes (PCI 3.0: 6.2.5.1).
        config.let_write(at, &low.to_le_bytes());
        if self.kind == Kind::Memory64 {
            let high = (mask >> 32) as u32;
            config.let_write(at.wrapping_add(4), &high.to_le_bytes());
        }
    }

    /// The address that the guest gave register number `number`, whether it answers there or not.
    pub(super) fn address(&self, number: usize, config: &Config) -> u64 {
        let at = Self::at(number);
        let low = u64::from(config.double_word(at));
        let high = match self.kind {
            Kind::Memory64 => u64::from(config.double_word(at.wrapping_add(4))) << 32,
            _ => 0,
        };
        (high | low) & !self.bytes.wrapping_sub(1)
    }

    /// It answers where it is. At 0 it is nowhere, and neither is it where the guest put it to find its size.
    pub(super) fn is_on(&self, number: usize, config: &Config) -> bool {
        let needed = if self.is_ports() {
            command::PORTS
        } else {
            command::MEMORY
        };
        let rom_is_on = config.double_word(register::ROM) & ROM_ON != 0;
        let address = self.address(number, config);
        let last = address.saturating_add(self.bytes.wrapping_sub(1));
        let limit = match self.kind {
            Kind::None => return false,
            Kind::Ports => 0xffff,
            Kind::Memory | Kind::Rom => 0xffff_ffff - 1,
            Kind::Memory64 => u64::MAX - 1,
        };
        let is_placed = address != 0 && last <= limit;
        let is_decoded = config.command() & needed != 0;
        is_placed && is_decoded && (self.kind != Kind::Rom || rom_is_on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(bars: &[(usize, Bar)]) -> Config {
        let mut config = Config::new().unwrap();
        config.let_write(register::COMMAND, &command::WRITABLE.to_le_bytes());
        for (number, bar) in bars {
            bar.put(*number, &mut config);
        }
        config
    }

    fn size(config: &mut Config, at: u64) -> u32 {
        config.write(at, 4, u32::MAX.into());
        config.read(at, 4) as u32
    }

    #[test]
    fn ones_give_the_size() {
        let (ports, memory) = (Bar::ports(20), Bar::memory(0x1800));
        let wide = Bar::memory64(1 << 33).prefetchable();
        let rom = Bar::rom(1);
        let mut config = config(&[(0, ports), (1, memory), (2, wide), (ROM, rom)]);
        assert_eq!(config.read(0x18, 8), 0xc, "64 bits wide, prefetchable");
        assert_eq!(size(&mut config, 0x10), 0xffff_ffe1);
        assert_eq!(size(&mut config, 0x14), 0xffff_e000);
        assert_eq!(size(&mut config, 0x18), 0xc);
        assert_eq!(size(&mut config, 0x1c), 0xffff_fffe);
        assert_eq!(size(&mut config, 0x20), 0, "there is none");
        assert_eq!(size(&mut config, 0x30), 0xffff_f801);
    }

    #[test]
    fn the_command_register_switches() {
        let all = [(0, Bar::ports(4)), (1, Bar::memory(16)), (ROM, Bar::rom(0))];
        let mut config = config(&all);
        config.write(0x10, 8, 0xe000_0000_0000_c001);
        config.write(0x30, 4, 0xd000_0000);
        let on = |config: &Config| all.map(|(number, bar)| bar.is_on(number, config));
        assert_eq!(on(&config), [false; 3]);
        config.write(4, 2, 1);
        assert_eq!(on(&config), [true, false, false]);
        config.write(4, 2, 3);
        assert_eq!(on(&config), [true, true, false]);
        config.write(0x30, 4, 0xd000_0001);
        assert_eq!(on(&config), [true; 3]);
        assert_eq!(all[2].1.address(ROM, &config), 0xd000_0000);
        config.write(0x14, 4, 0);
        assert_eq!(on(&config), [true, false, true], "at 0 it is nowhere");
    }

    #[test]
    fn doorbells_are_pieces() {
        let pieces = |bar: Bar| bar.pieces().collect::<Vec<_>>();
        assert_eq!(pieces(Bar::NONE), []);
        assert_eq!(pieces(Bar::memory(64)), [(0..64, false)]);
        const BELLS: &[(u64, u64)] = &[(0, 4), (16, 4), (20, 4), (60, 39)];
        let expected = [(0..4, true), (4..16, false), (16..20, true), (20..24, true)];
        let found = pieces(Bar::memory(64).with_doorbells(BELLS));
        assert_eq!(found[..4], expected);
        assert_eq!(found[4..], [(24..60, false), (60..64, true)]);
    }

    proptest! {
        /// Wherever a guest puts it, it is aligned and its end can be counted.
        #[test]
        fn it_is_aligned_wherever_it_is(
            bits in 0u32..40, kind in 0u8..4, low: u32, high: u32, command: u16,
        ) {
            let bytes = 1u64 << bits;
            let (number, bar) = match kind {
                0 => (0, Bar::ports(bytes as u16)),
                1 => (0, Bar::memory(bytes as u32)),
                2 => (0, Bar::memory64(bytes)),
                _ => (ROM, Bar::rom(bytes as u32)),
            };
            let mut config = config(&[(number, bar)]);
            config.write(Bar::at(number).into(), 4, low.into());
            config.write(0x14, 4, high.into());
            config.write(4, 2, command.into());
            let address = bar.address(number, &config);
            prop_assert_eq!(address % bar.bytes(), 0);
            if bar.is_on(number, &config) {
                prop_assert!(address.checked_add(bar.bytes()).is_some());
                prop_assert!(bar.is_ports() == (kind == 0));
            }
            let pieces: u64 = bar.pieces().map(|(range, _)| range.end - range.start).sum();
            prop_assert_eq!(pieces, bar.bytes());
        }
    }
}
