// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VM's clock: nanoseconds and time stamp counter as the guest lives them. Both stand still while the VM is paused.
#![forbid(unsafe_code)]

use crate::host::Host;
use crate::interfaces::Clock;
use core::sync::atomic::{AtomicU64, Ordering};

/// Nanoseconds in a second.
pub const NS_PER_S: u64 = 1_000_000_000;
/// Not paused.
const RUNNING: u64 = u64::MAX;
/// The guest's counter is the host's, less a constant.
const HOST_COUNTER: u64 = 1 << 63;

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
///
/// Guests take time from the counter: at [`VmClock::tsc_khz`] it counts nanoseconds since the VM first ran. Where the host
/// vouches for its counters ([`Host::tsc_stable`]), the guest's is the host's, less a constant; it drifts against the host's
/// clock as that is steered. Elsewhere CPUs' counts cannot be compared, and the guest's follows the host's clock.
pub struct VmClock<H: Host> {
    host: H,
    tsc_of_ns: Ratio,
    ns_of_tsc: Ratio,
    tsc_khz: u32,
    /// How far the VM's clock is behind the host's.
    behind_ns: AtomicU64,
    /// How far the guest's counter is behind the host's.
    behind_tsc: AtomicU64,
    /// How far the guest's counter is behind this clock, counted in ticks; or [`HOST_COUNTER`].
    behind_clock: AtomicU64,
    /// The VM's time at which it was paused, or [`RUNNING`].
    paused_ns: AtomicU64,
    /// The guest's counter then.
    paused_tsc: AtomicU64,
    /// A count of the guest's counter, and the time that it had counted by then: both zero, unless the VM was loaded.
    base_tsc: AtomicU64,
    base_ns: AtomicU64,
}

impl<H: Host> VmClock<H> {
    /// A clock that stands at zero; [`VmClock::resume`] starts it.
    pub fn new(host: &H) -> Self {
        let tsc_khz = u32::try_from(host.tsc_hz() / 1000).unwrap_or(u32::MAX);
        let hz = u64::from(tsc_khz).wrapping_mul(1000);
        // A counter of no known rate is passed on as it is.
        let behind_clock = match host.tsc_stable() || hz == 0 {
            true => HOST_COUNTER,
            false => 0,
        };
        Self {
            tsc_of_ns: Ratio::new(NS_PER_S, hz),
            ns_of_tsc: Ratio::new(hz, NS_PER_S),
            tsc_khz,
            behind_ns: AtomicU64::new(0),
            behind_tsc: AtomicU64::new(0),
            behind_clock: AtomicU64::new(behind_clock),
            paused_ns: AtomicU64::new(0),
            paused_tsc: AtomicU64::new(0),
            base_tsc: AtomicU64::new(0),
            base_ns: AtomicU64::new(0),
            host: host.clone(),
        }
    }
    /// Stops the clock. No vCPU may be in the guest, whose counter would go on. `host_tsc` is the host's counter now.
    pub fn pause(&self, host_tsc: u64) {
        if self.paused_ns.load(Ordering::SeqCst) == RUNNING {
            self.paused_tsc.store(self.tsc(host_tsc), Ordering::SeqCst);
            self.paused_ns.store(self.now_ns(), Ordering::SeqCst);
        }
    }
    /// Starts the clock from where it stands. `host_tsc` is the host's counter now.
    pub fn resume(&self, host_tsc: u64) {
        let paused_ns = self.paused_ns.load(Ordering::SeqCst);
        if paused_ns == RUNNING {
            return;
        }
        let behind_ns = self.host.now_ns().wrapping_sub(paused_ns);
        self.behind_ns.store(behind_ns, Ordering::SeqCst);
        let paused_tsc = self.paused_tsc.load(Ordering::SeqCst);
        let (behind, ahead) = match self.follows_clock() {
            true => (&self.behind_clock, self.tsc_of_ns.of(paused_ns)),
            false => (&self.behind_tsc, host_tsc),
        };
        behind.store(ahead.wrapping_sub(paused_tsc), Ordering::SeqCst);
        self.paused_ns.store(RUNNING, Ordering::SeqCst);
    }

    /// Has a clock that stands still, stand at this time and counter, which had counted so many nanoseconds by then, at whatever rate.
    pub fn restore(&self, now_ns: u64, tsc: u64, counted_ns: u64) {
        if self.paused_ns.load(Ordering::SeqCst) != RUNNING {
            self.paused_tsc.store(tsc, Ordering::SeqCst);
            self.paused_ns.store(now_ns, Ordering::SeqCst);
            self.base_tsc.store(tsc, Ordering::SeqCst);
            self.base_ns.store(counted_ns, Ordering::SeqCst);
        }
    }
    /// A count of the guest's counter, and how many nanoseconds it had counted by then: from there on it counts at the host's rate.
    pub fn counted_from(&self) -> (u64, u64) {
        let [tsc, ns] = [&self.base_tsc, &self.base_ns];
        (tsc.load(Ordering::SeqCst), ns.load(Ordering::SeqCst))
    }
    /// How many nanoseconds the guest's counter has counted when it stands at `tsc`.
    pub fn counted_ns(&self, tsc: u64) -> u64 {
        let (base_tsc, base_ns) = self.counted_from();
        let since = self.ns_of_tsc(tsc.saturating_sub(base_tsc));
        base_ns.wrapping_add(since)
    }

    /// The guest's counter on a CPU where the host's stands at `host_tsc`.
    pub fn tsc(&self, host_tsc: u64) -> u64 {
        if self.paused_ns.load(Ordering::SeqCst) != RUNNING {
            return self.paused_tsc.load(Ordering::SeqCst);
        }
        match self.behind_clock.load(Ordering::SeqCst) {
            HOST_COUNTER => host_tsc.wrapping_sub(self.behind_tsc.load(Ordering::SeqCst)),
            behind => self.tsc_of_ns.of(self.now_ns()).wrapping_sub(behind),
        }
    }
    /// It is stopped: the VM is paused, or about to be.
    pub fn stands_still(&self) -> bool {
        self.paused_ns.load(Ordering::SeqCst) != RUNNING
    }
    /// The counter must be set anew whenever a vCPU is loaded, for its CPU.
    pub fn follows_clock(&self) -> bool {
        self.behind_clock.load(Ordering::SeqCst) != HOST_COUNTER
    }
    /// All vCPUs' counters show the same at any time, and count at one rate. Once `false`, never `true` again. `host_tsc` is
    /// the host's counter now: where the host has just ceased to vouch for it, the guest's goes on from there by the clock.
    pub fn tsc_stable(&self, host_tsc: u64) -> bool {
        let stable = self.host.tsc_stable();
        if !stable && self.tsc_khz != 0 && !self.follows_clock() {
            let by_clock = self.tsc_of_ns.of(self.now_ns());
            let behind = by_clock.wrapping_sub(self.tsc(host_tsc));
            // Whoever comes first says it for all.
            let (from, order) = (HOST_COUNTER, Ordering::SeqCst);
            let _ = self
                .behind_clock
                .compare_exchange(from, behind, order, order);
        }
        stable && self.tsc_khz != 0 && !self.follows_clock()
    }
    /// The counter's rate; 0 where the host knows none.
    pub fn tsc_khz(&self) -> u32 {
        self.tsc_khz
    }
    /// Nanoseconds that the counter takes for `ticks`.
    pub fn ns_of_tsc(&self, ticks: u64) -> u64 {
        self.ns_of_tsc.of(ticks)
    }
    /// What the host's clock is ahead of this one. It changes when the clock was stopped and goes on: what was computed
    /// with it before, a time on the host's scale, is then no longer right.
    pub fn behind_ns(&self) -> u64 {
        self.behind_ns.load(Ordering::SeqCst)
    }
    /// A time of this clock on the host's scale.
    pub fn host_ns(&self, at_ns: u64) -> u64 {
        at_ns.saturating_add(self.behind_ns())
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
