// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ticks of a device's crystal, counted on the VM's clock.
#![forbid(unsafe_code)]

/// Nanoseconds in a second.
pub const NS_PER_S: u64 = 1_000_000_000;

/// A crystal's frequency in Hz.
#[derive(Clone, Copy, Debug)]
pub struct Frequency(pub u32);

impl Frequency {
    /// How many whole ticks have passed at `ns`.
    pub const fn ticks_at(self, ns: u64) -> u64 {
        let (seconds, rest) = (ns / NS_PER_S, ns % NS_PER_S);
        // The rest is below 2^30, so its product with 32 bits fits.
        let part = rest.wrapping_mul(self.0 as u64) / NS_PER_S;
        seconds.saturating_mul(self.0 as u64).saturating_add(part)
    }

    /// The first nanosecond at which `ticks` have passed; the end of time for a crystal that stands still.
    pub const fn ns_of(self, ticks: u64) -> u64 {
        let hz = self.0 as u64;
        if hz == 0 {
            return u64::MAX;
        }
        let part = (ticks % hz).wrapping_mul(NS_PER_S).div_ceil(hz);
        (ticks / hz).saturating_mul(NS_PER_S).saturating_add(part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tick_is_counted_from_its_first_nanosecond_on(hz in 1u32.., ticks in 0u64..1 << 40) {
            let crystal = Frequency(hz);
            let ns = crystal.ns_of(ticks);
            if ns < u64::MAX {
                prop_assert!(crystal.ticks_at(ns) >= ticks);
                prop_assert!(ns == 0 || crystal.ticks_at(ns - 1) <= ticks);
            }
        }

        #[test]
        fn agrees_with_wide_arithmetic(hz: u32, ns: u64) {
            let wide = u128::from(ns) * u128::from(hz) / 1_000_000_000;
            prop_assert_eq!(u128::from(Frequency(hz).ticks_at(ns)), wide.min(u64::MAX.into()));
        }
    }
}
