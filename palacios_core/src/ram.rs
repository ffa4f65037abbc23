// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which guest-physical addresses are RAM: one description for image, boot, memory, tool and hosts.
//!
//! ```text
//! 0             RAM, up to 3 GiB of it
//! LOW_RAM_END   devices
//! HIGH_RAM      the rest of the RAM
//! ```
//!
//! The provider of frames may keep the RAM in one piece: [`RamLayout::offset`] and [`RamLayout::gpa`] lead from one to the other.
#![forbid(unsafe_code)]

use crate::addr::Gpa;
use core::ops::Range;

/// RAM below 4 GiB ends here at the latest: from here on there are devices.
///
/// The same number stands in `V3_LOW_RAM_PAGES` of `v3vee.h` (the Linux host does not compile if it is another), and in the maps for
/// readers: above, in `boot/layout.rs`, and in `Documentation/image.md`.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where the RAM begins that has no room below the devices.
pub const HIGH_RAM: u64 = 1 << 32;

/// The RAM of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamLayout {
    bytes: u64,
}

impl RamLayout {
    /// A machine with `bytes` of RAM.
    pub const fn new(bytes: u64) -> Self {
        Self { bytes }
    }
    /// How much RAM there is.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// The RAM below 4 GiB, from address 0 on.
    pub fn low(self) -> Range<u64> {
        0..self.bytes.min(LOW_RAM_END)
    }
    /// The RAM from 4 GiB on; empty, if all has room below.
    pub fn high(self) -> Range<u64> {
        let bytes = self.bytes.saturating_sub(LOW_RAM_END);
        HIGH_RAM..HIGH_RAM.saturating_add(bytes)
    }
    /// Both, in ascending order; a machine with little RAM has an empty second one.
    pub fn ranges(self) -> [Range<u64>; 2] {
        [self.low(), self.high()]
    }
    /// The first address behind all RAM.
    pub fn end(self) -> Gpa {
        let [low, high] = self.ranges();
        Gpa(if high.is_empty() { low.end } else { high.end })
    }

    /// Whether `gpa` is RAM.
    pub fn contains(self, gpa: Gpa) -> bool {
        self.ranges().iter().any(|range| range.contains(&gpa.0))
    }
    /// Whether all `bytes` from `gpa` on are RAM, without a hole. No bytes are, wherever they begin in RAM or behind it.
    pub fn contains_all(self, gpa: Gpa, bytes: u64) -> bool {
        let fits = |range: &Range<u64>, end| range.start <= gpa.0 && end <= range.end;
        let end = gpa.0.checked_add(bytes);
        end.is_some_and(|end| self.ranges().iter().any(|range| fits(range, end)))
    }

    /// How many bytes of RAM lie before `gpa`; `None` if it is no RAM.
    pub fn offset(self, gpa: Gpa) -> Option<u64> {
        let [low, high] = self.ranges();
        if low.contains(&gpa.0) {
            return Some(gpa.0);
        }
        let offset = high
            .contains(&gpa.0)
            .then_some(gpa.0.wrapping_sub(high.start))?;
        Some(low.end.saturating_add(offset))
    }
    /// The address of the RAM's byte number `offset`, if it has so many.
    pub fn gpa(self, offset: u64) -> Option<Gpa> {
        let [low, high] = self.ranges();
        if offset >= self.bytes {
            return None;
        }
        match offset.checked_sub(low.end) {
            None => Some(Gpa(offset)),
            Some(offset) => Some(Gpa(high.start.saturating_add(offset))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_that_does_not_fit_below_the_devices_lies_above_4_gib() {
        for (bytes, low_end, high_end) in [
            (2 << 20, 2 << 20, HIGH_RAM),
            (3 * GIB, 3 * GIB, HIGH_RAM),
            (3 * GIB + 4096, 3 * GIB, HIGH_RAM + 4096),
            (1 << 40, 3 * GIB, (1 << 40) + GIB),
            (u64::MAX, 3 * GIB, u64::MAX),
        ] {
            let ram = RamLayout::new(bytes);
            assert_eq!((ram.low(), ram.high()), (0..low_end, HIGH_RAM..high_end));
        }
        assert_eq!(RamLayout::new(2 << 20).end(), Gpa(2 << 20));
        assert_eq!(RamLayout::new(4 * GIB).end(), Gpa(5 * GIB));
    }

    #[test]
    fn a_range_over_a_hole_is_no_ram() {
        let ram = RamLayout::new(4 * GIB);
        for (gpa, bytes, all) in [
            (0, 3 * GIB, true),
            (0, 3 * GIB + 1, false),
            (3 * GIB - 1, 1, true),
            (3 * GIB - 1, 2, false),
            (3 * GIB - 1, GIB + 2, false),
            (3 * GIB, 1, false),
            (HIGH_RAM, GIB, true),
            (HIGH_RAM, GIB + 1, false),
            (HIGH_RAM - 1, 2, false),
            (HIGH_RAM, u64::MAX, false),
            (u64::MAX, 1, false),
        ] {
            assert_eq!(
                ram.contains_all(Gpa(gpa), bytes),
                all,
                "{gpa:#x} {bytes:#x}"
            );
        }
    }

    proptest! {
        #[test]
        fn offsets_and_addresses_are_each_others_inverse(bytes in 1..8 * GIB, at in 0..8 * GIB) {
            let ram = RamLayout::new(bytes);
            prop_assert_eq!(ram.gpa(at).and_then(|gpa| ram.offset(gpa)), (at < bytes).then_some(at));
            let gpa = Gpa(at);
            prop_assert_eq!(ram.offset(gpa).is_some(), ram.contains(gpa));
            prop_assert_eq!(ram.contains_all(gpa, 1), ram.contains(gpa));
            if let Some(offset) = ram.offset(gpa) {
                prop_assert_eq!(ram.gpa(offset), Some(gpa));
            }
        }
    }
}
