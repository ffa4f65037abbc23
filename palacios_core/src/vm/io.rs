// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest's accesses to ports and to device memory, and the devices' time.
//!
//! Any call into a device may change the time at which one is to be called next. The first vCPU keeps the devices' time, and
//! is told.
#![forbid(unsafe_code)]

use super::shared::VmShared;
use crate::devices::bus::{Found, SlotNumber};
use crate::devices::{IoAddress, Request};
use crate::host::Host;
use crate::interrupts::pending::Events;

impl<H: Host> VmShared<H> {
    /// A read by vCPU `from`, which found `last` when it looked last. All ones where nobody answers.
    pub(crate) fn io_read(&self, from: u32, last: &mut Option<Found>, at: IoAddress) -> u64 {
        let answer = self.bus.read(last, at);
        self.tell_of_deadline(Some(from), answer.new_deadline);
        answer.value
    }

    /// A write by vCPU `from` of the low bytes of `value`. Lost where nobody answers.
    pub(crate) fn io_write(&self, from: u32, last: &mut Option<Found>, at: IoAddress, value: u64) {
        let answer = self.bus.write(last, at, value);
        self.tell_of_deadline(Some(from), answer.new_deadline);
        if let Some((device, request)) = answer.request {
            self.grant(Some(from), device, request);
        }
    }

    /// Changes the machine as a device asks. `from` is the vCPU that called it.
    #[cold]
    fn grant(&self, from: Option<u32>, device: SlotNumber, request: Request) {
        match request {
            Request::Regions => self.bus.update_regions(device),
            Request::Memory { changes, tag } => {
                let changed = self.board.change(&changes);
                let new_deadline = self.bus.memory_changed(device, tag, changed);
                self.tell_of_deadline(from, new_deadline);
            }
        }
    }

    /// Tells the first vCPU, which keeps the devices' time, that the earliest deadline may have changed. `from` is the vCPU that
    /// called the device, or `None` for the host. The first vCPU itself looks before each entry, and need not be told.
    pub(super) fn tell_of_deadline(&self, from: Option<u32>, new_deadline: bool) {
        if let (true, Some(first)) = (new_deadline && from != Some(0), self.vcpu(0)) {
            first.post(Events::DEADLINE);
        }
    }

    /// Delays the timers of all devices until `until_ns`, because vCPU `from` still handles their last interrupt.
    pub(crate) fn hold_devices(&self, from: u32, until_ns: u64) {
        let new_deadline = self.bus.hold(until_ns);
        self.tell_of_deadline(Some(from), new_deadline);
    }

    /// Has the devices look for new input in their streams.
    pub(super) fn input_ready(&self) {
        let new_deadline = self.bus.input_ready();
        self.tell_of_deadline(None, new_deadline);
    }
}
