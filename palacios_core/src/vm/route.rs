// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ways of interrupts: from a device's line to the interrupt controllers, and from a message to the vCPUs that it is for.
#![forbid(unsafe_code)]

use super::board::Board;
use crate::host::{Host, Lock};
use crate::interfaces::InterruptLines;
use crate::interrupts::chipset::Chipset;
use crate::interrupts::destination::targets;
use crate::interrupts::pending::Events;
use crate::interrupts::{Delivery, Message, MessageSink};
use crate::vcpu::VcpuShared;

impl<H: Host> InterruptLines for Board<H> {
    fn raise(&self, number: u32) {
        self.chipset.lock().raise(number, self);
    }
    fn lower(&self, number: u32) {
        self.chipset.lock().lower(number, self);
    }
    fn set_legacy_replacement(&self, on: bool) {
        self.chipset.lock().set_legacy_replacement(on, self);
    }
    fn route_wire(&self, wire: usize, irq: Option<u8>) {
        self.chipset.lock().route_wire(wire, irq, self);
    }
}

impl<H: Host> Board<H> {
    /// Runs `f` on the interrupt controllers, with where their messages go.
    pub(crate) fn with_chipset<R>(&self, f: impl FnOnce(&mut Chipset, &Self) -> R) -> R {
        f(&mut self.chipset.lock(), self)
    }

    fn post(vcpu: &VcpuShared<H>, message: Message) {
        let pending = &vcpu.pending;
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
            vcpu.call();
        }
    }
}

impl<H: Host> MessageSink for Board<H> {
    fn send(&self, from: Option<u32>, message: Message) {
        let filters = self.vcpus.iter().map(VcpuShared::filter);
        let mut targets = targets(filters, from, &message);
        while targets != 0 {
            if let Some(vcpu) = self.vcpus.get(targets.trailing_zeros() as usize) {
                Self::post(vcpu, message);
            }
            targets &= targets.wrapping_sub(1);
        }
    }

    fn pic_output(&self) {
        if let Some(first) = self.vcpus.first() {
            first.post(Events::PIC_OUTPUT);
        }
    }
}
