// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest's access to a port or to device memory reaches: an interrupt controller, or a device on the buses.
//!
//! Any call into a device may bring the time nearer at which it is to be called again. The first vCPU keeps the devices' time, and
//! is told.
#![forbid(unsafe_code)]

use super::shared::VmShared;
use crate::addr::Gpa;
use crate::host::Host;
use crate::interrupts::chipset::Chipset;
use crate::interrupts::pending::Events;

impl<H: Host> VmShared<H> {
    /// A read by vCPU `from` of `size` (1, 2 or 4) bytes at a port.
    pub(crate) fn port_read(&self, from: u32, port: u16, size: u8) -> u32 {
        if Chipset::has_port(port) {
            return self.with_chipset(|chipset, _| chipset.port_read(port, size));
        }
        let (value, nearer) = self.bus.port_read(&self.cx(), port, size);
        self.tell_of_deadline(Some(from), nearer);
        value
    }

    /// A write by vCPU `from` of `size` (1, 2 or 4) bytes at a port.
    pub(crate) fn port_write(&self, from: u32, port: u16, size: u8, value: u32) {
        if Chipset::has_port(port) {
            self.with_chipset(|chipset, _| chipset.port_write(port, size, value));
        } else {
            let nearer = self.bus.port_write(&self.cx(), port, size, value);
            self.tell_of_deadline(Some(from), nearer);
        }
    }

    /// A read by vCPU `from` of `size` (1, 2, 4 or 8) bytes of device memory.
    pub(crate) fn mmio_read(&self, from: u32, at: Gpa, size: u8) -> u64 {
        if Chipset::has_address(at) {
            return self.with_chipset(|chipset, _| chipset.mmio_read(at, size));
        }
        let (value, nearer) = self.bus.mmio_read(&self.cx(), at, size);
        self.tell_of_deadline(Some(from), nearer);
        value
    }

    /// A write by vCPU `from` of `size` (1, 2, 4 or 8) bytes of device memory.
    pub(crate) fn mmio_write(&self, from: u32, at: Gpa, size: u8, value: u64) {
        if Chipset::has_address(at) {
            self.with_chipset(|chipset, sink| chipset.mmio_write(at, size, value, sink));
        } else {
            let nearer = self.bus.mmio_write(&self.cx(), at, size, value);
            self.tell_of_deadline(Some(from), nearer);
        }
    }

    /// Tells the first vCPU, which keeps the devices' time, that a device's deadline came nearer. `from` is the vCPU that
    /// called the device, or `None` for the host. The first vCPU itself looks before each entry, and need not be told.
    pub(super) fn tell_of_deadline(&self, from: Option<u32>, nearer: bool) {
        if let (true, Some(first)) = (nearer && from != Some(0), self.vcpu(0)) {
            first.post(Events::DEADLINE);
        }
    }

    /// Delays the timers of all devices until `until_ns`, because vCPU `from` still handles their last interrupt.
    pub(crate) fn hold_devices(&self, from: u32, until_ns: u64) {
        let nearer = self.bus.hold(until_ns);
        self.tell_of_deadline(Some(from), nearer);
    }

    /// Has the devices look for new input in their streams.
    pub(super) fn input_ready(&self) {
        let nearer = self.bus.input_ready(&self.cx());
        self.tell_of_deadline(None, nearer);
    }
}
