// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VM's clock: nanoseconds and time stamp counter as the guest lives them. Both stand still while the VM is paused.
#![forbid(unsafe_code)]

use crate::devices::Clock;
use crate::host::Host;
use core::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds in a second.
pub const NS_PER_S: u64 = 1_000_000_000;
/// Not paused.
const RUNNING: u64 = u64::MAX;

/// A factor between two rates: `ticks * factor >> shift`, without a wide division on each use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    factor: u64,
    shift: u32,
}

impl Ratio {
    /// `to / from`, exact to about one part in 2^32. Rates of zero are taken as one.
    pub fn new(from: u64, to: u64) -> Self {
        let (from, mut rest) = (from.max(1), to.max(1));
        // Long division, bit by bit, until the factor has 63 bits: kernels have no 128-bit division.
        let mut factor = rest / from;
        rest %= from;
        let mut shift = 0;
        while factor >> 62 == 0 && shift < 63 {
            let twice = u128::from(rest) << 1;
            let bit = twice >= u128::from(from);
            rest = if bit {
                (twice - u128::from(from)) as u64
            } else {
                twice as u64
            };
            factor = factor << 1 | u64::from(bit);
            shift += 1;
        }
        Self { factor, shift }
    }
    /// `ticks` in the other rate, saturating.
    pub fn of(self, ticks: u64) -> u64 {
        let product = u128::from(ticks).wrapping_mul(u128::from(self.factor));
        let product = product.wrapping_shr(self.shift);
        u64::try_from(product).unwrap_or(u64::MAX)
    }
}

/// A VM's clock.
pub struct VmClock<H: Host> {
    host: H,
    tsc_per_ns: Ratio,
    tsc_khz: u32,
    /// What the host's clock is ahead of the VM's.
    behind_ns: AtomicU64,
    /// What the host's counter is ahead of the guest's.
    behind_tsc: AtomicU64,
    /// The VM's time at which it was paused, or [`RUNNING`].
    paused_ns: AtomicU64,
}

impl<H: Host> VmClock<H> {
    /// A clock that stands at zero; [`VmClock::resume`] starts it.
    pub fn new(host: &H, host_tsc: u64) -> Self {
        let hz = host.tsc_hz().max(1);
        Self {
            tsc_per_ns: Ratio::new(NS_PER_S, hz),
            tsc_khz: u32::try_from(hz / 1000).unwrap_or(u32::MAX),
            behind_ns: AtomicU64::new(host.now_ns()),
            behind_tsc: AtomicU64::new(host_tsc),
            paused_ns: AtomicU64::new(0),
            host: host.clone(),
        }
    }
    /// Stops the clock.
    pub fn pause(&self) {
        self.paused_ns.store(self.now_ns(), Ordering::SeqCst);
    }
    /// Starts the clock from where it stands. `host_tsc` is the host's counter now.
    pub fn resume(&self, host_tsc: u64) {
        let paused_ns = self.paused_ns.swap(RUNNING, Ordering::SeqCst);
        if paused_ns != RUNNING {
            self.behind_ns
                .store(self.host.now_ns().wrapping_sub(paused_ns), Ordering::SeqCst);
            let guest_tsc = self.tsc_per_ns.of(paused_ns);
            self.behind_tsc
                .store(host_tsc.wrapping_sub(guest_tsc), Ordering::SeqCst);
        }
    }
    /// What the guest's counter is ahead of the host's, modulo 2^64.
    pub fn tsc_offset(&self) -> u64 {
        self.behind_tsc.load(Ordering::SeqCst).wrapping_neg()
    }
    /// The counter's rate.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }
    /// A time of this clock on the host's scale.
    pub fn host_ns(&self, at_ns: u64) -> u64 {
        at_ns.saturating_add(self.behind_ns.load(Ordering::SeqCst))
    }
}

impl<H: Host> Clock for VmClock<H> {
    fn now_ns(&self) -> u64 {
        match self.paused_ns.load(Ordering::SeqCst) {
            RUNNING => self
                .host
                .now_ns()
                .wrapping_sub(self.behind_ns.load(Ordering::SeqCst)),
            paused_ns => paused_ns,
        }
    }
    fn wall_ns(&self) -> u64 {
        self.host.wall_ns()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ratios_are_what_wide_division_says(from in 1u64..20_000_000_000, to in 1u64..20_000_000_000, n in any::<u64>()) {
            let exact = u128::from(n) * u128::from(to) / u128::from(from);
            let exact = u64::try_from(exact).unwrap_or(u64::MAX);
            let ours = Ratio::new(from, to).of(n);
            prop_assert!(ours.abs_diff(exact) <= (exact >> 28).max(1), "{ours} {exact}");
        }
    }
}
