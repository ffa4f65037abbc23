// SPDX-License-Identifier: MIT OR Apache-2.0
//! What runs between the parts of a machine: interrupt lines, interrupt messages, power requests.

use super::{VcpuSlot, Vm};
use crate::addr::{Gpa, PAGE_SIZE};
use crate::backend::Backend;
use crate::host::{Host, Lock};
use crate::interfaces::{Clock, IrqSink, PowerRequest, PowerSink, Translations};
use crate::interrupts::apic_timer::Now;
use crate::interrupts::chipset::Chipset;
use crate::interrupts::destination::targets;
use crate::interrupts::pending::Events;
use crate::interrupts::{Delivery, Message, MessageSink};
use core::sync::atomic::{AtomicU64, Ordering};

impl<H: Host, B: Backend<H>> IrqSink for Vm<H, B> {
    fn set_irq(&self, irq: u32, level: bool) {
        let mut chipset = self.chipset.lock();
        chipset.set_line(irq, level, self);
    }

    fn set_legacy_replacement(&self, on: bool) {
        let mut chipset = self.chipset.lock();
        chipset.set_legacy_replacement(on, self);
    }
}

impl<H: Host, B: Backend<H>> Translations for Vm<H, B> {
    fn forget(&self, at: Gpa) {
        self.revoke(at.page(), PAGE_SIZE);
    }
}

impl<H: Host, B: Backend<H>> Vm<H, B> {
    /// Runs `f` on the interrupt controllers, and passes on what the PIC pair makes of it.
    pub(crate) fn with_chipset<R>(&self, f: impl FnOnce(&mut Chipset, &Self) -> R) -> R {
        let mut chipset = self.chipset.lock();
        let answer = f(&mut chipset, self);
        chipset.tell_output(self);
        answer
    }

    /// The instant, on the clocks that local APICs count.
    pub(crate) fn now(&self) -> Now {
        Now {
            ns: self.clock.now_ns(),
            tsc: self.clock.tsc(self.backend.tsc()),
            tsc_khz: self.clock.tsc_khz(),
        }
    }

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
            self.with_chipset(|chipset, vm| chipset.mmio_write(at, size, value, vm));
        } else {
            let nearer = self.bus.mmio_write(&self.cx(), at, size, value);
            self.tell_of_deadline(Some(from), nearer);
        }
    }

    /// The first vCPU keeps the devices' time; it looks before each entry, but others must tell it: another vCPU, or the
    /// host, which is `None`.
    pub(super) fn tell_of_deadline(&self, from: Option<u32>, nearer: bool) {
        if let (true, Some(first)) = (nearer && from != Some(0), self.shared(0)) {
            if first.pending.post(Events::DEADLINE) {
                first.kick();
            }
        }
    }

    /// Has all devices be late, because vCPU `from` is not done with what their timers sent it.
    pub(crate) fn hold_devices(&self, from: u32, until_ns: u64) {
        let nearer = self.bus.hold(until_ns);
        self.tell_of_deadline(Some(from), nearer);
    }

    fn post(slot: &VcpuSlot<H, B>, message: Message) {
        let pending = &slot.shared.pending;
        let news = match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                pending.post_vector(message.vector, message.level)
            }
            Delivery::Nmi => pending.post_nmi(),
            Delivery::Init(true) => pending.post_init(),
            Delivery::Startup => pending.post_startup(message.vector),
            // The PIC pair's vector comes by its own wire alone: it has none to an input of the I/O APIC.
            Delivery::ExtInt | Delivery::Smi | Delivery::Init(false) => false,
        };
        if news {
            slot.shared.kick();
        }
    }
}

impl<H: Host, B: Backend<H>> MessageSink for Vm<H, B> {
    fn send(&self, from: Option<u32>, message: Message) {
        let filters = self.vcpus.iter().map(|slot| slot.shared.filter());
        let mut targets = targets(filters, from, &message);
        while targets != 0 {
            if let Some(slot) = self.vcpus.get(targets.trailing_zeros() as usize) {
                Self::post(slot, message);
            }
            targets &= targets.wrapping_sub(1);
        }
    }

    fn pic_output(&self) {
        if let Some(first) = self.shared(0) {
            if first.pending.post(Events::PIC_OUTPUT) {
                first.kick();
            }
        }
    }
}

/// Holds the guest's power request until a vCPU honours it.
pub(super) struct PowerSwitch(AtomicU64);

const NONE: u64 = 0;
const OFF: u64 = 1;
const RESET: u64 = 2;
const EXIT: u64 = 3;

impl PowerSwitch {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(NONE))
    }
    pub(super) fn waiting(&self) -> Option<PowerRequest> {
        decode(self.0.load(Ordering::SeqCst))
    }
    pub(super) fn clear(&self) {
        self.0.store(NONE, Ordering::SeqCst);
    }
}

impl PowerSink for PowerSwitch {
    fn request(&self, what: PowerRequest) {
        let word = match what {
            PowerRequest::Off => OFF,
            PowerRequest::Reset => RESET,
            PowerRequest::Exit(status) => EXIT | u64::from(status) << 32,
        };
        let _ = self
            .0
            .compare_exchange(NONE, word, Ordering::SeqCst, Ordering::SeqCst);
    }
}

fn decode(word: u64) -> Option<PowerRequest> {
    match word & 3 {
        OFF => Some(PowerRequest::Off),
        RESET => Some(PowerRequest::Reset),
        EXIT => Some(PowerRequest::Exit((word >> 32) as u32)),
        _ => None,
    }
}
