// SPDX-License-Identifier: MIT OR Apache-2.0
//! The devices' time: when the first of them is to be called, and the call.
#![forbid(unsafe_code)]

use super::{Bus, Slot, NEVER};
use crate::devices::device::Device;
use crate::host::Host;
use core::sync::atomic::Ordering;

impl<H: Host> Bus<H> {
    /// When [`Bus::tick`] is to be called: at the earliest deadline of any device, or at the end of a [`Bus::hold`].
    pub fn deadline_ns(&self) -> Option<u64> {
        let earliest_ns = self.earliest_ns.load(Ordering::Relaxed);
        let held_until_ns = self.held_until_ns.load(Ordering::Relaxed);
        (earliest_ns != NEVER).then(|| earliest_ns.max(held_until_ns))
    }

    /// Delays all devices: they meet their deadlines at `until_ns` at the earliest. `true`: the time that
    /// was given before was later.
    pub fn hold(&self, until_ns: u64) -> bool {
        self.held_until_ns.swap(until_ns, Ordering::Relaxed) > until_ns
    }

    /// Has all devices whose deadline is past at `now_ns` do their work. `false`: there was none.
    pub fn tick(&self, now_ns: u64) -> bool {
        self.tick_those(|deadline_ns| deadline_ns <= now_ns)
    }

    /// Has all devices look at the clocks, whatever their deadlines.
    pub fn tick_all(&self) {
        self.tick_those(|_| true);
    }

    fn tick_those(&self, is_due: impl Fn(u64) -> bool) -> bool {
        let mut any = false;
        for slot in self.used() {
            if is_due(slot.deadline_ns.load(Ordering::Relaxed)) {
                self.call(slot, tick);
                any = true;
            }
        }
        any
    }

    /// Looks at a device's deadline behind a call. `true`: the vCPU that keeps the devices' time is to look at it.
    pub(super) fn look_at_deadline(&self, slot: &Slot<H>, device: &mut dyn Device) -> bool {
        let deadline_ns = device.timed().and_then(|timed| timed.deadline_ns());
        let new_ns = deadline_ns.unwrap_or(NEVER);
        let old_ns = slot.deadline_ns.swap(new_ns, Ordering::Relaxed);
        if new_ns < old_ns {
            self.earliest_ns.fetch_min(new_ns, Ordering::AcqRel);
            return true;
        }
        let put_off = new_ns > old_ns && old_ns <= self.earliest_ns.load(Ordering::Relaxed);
        if put_off {
            self.find_earliest();
        }
        put_off
    }

    pub(super) fn find_earliest(&self) {
        // Who sets a deadline notes it in the slot first, and then here. If it was here before this line, it is found in the slot.
        self.earliest_ns.swap(NEVER, Ordering::AcqRel);
        for slot in self.used() {
            let deadline_ns = slot.deadline_ns.load(Ordering::Relaxed);
            self.earliest_ns.fetch_min(deadline_ns, Ordering::AcqRel);
        }
    }
}

fn tick(device: &mut dyn Device) {
    if let Some(timed) = device.timed() {
        timed.tick();
    }
}
