// SPDX-License-Identifier: MIT OR Apache-2.0
//! A debugger's look at a vCPU's interrupts: its local APIC, and what the next entry is to bring. Looking takes none of it.
//! Delivery is in `deliver.rs`.
#![forbid(unsafe_code)]

use super::context::{AnyContext, RunContext};
use super::owned::{Vcpu, WaitsFor};
use crate::backend::{Backend, BackendVcpu, Event};
use crate::host::Host;
use crate::interrupts::lapic::LocalApicRegisters;

/// Interrupts of a vCPU that is out of the guest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VcpuInterrupts {
    /// Its local APIC.
    pub apic: LocalApicRegisters,
    /// An exception that the VMM raised, for the next entry.
    pub raised: Option<Event>,
    /// An event whose delivery an exit cut short, to be delivered again.
    pub cut_short: Option<Event>,
    /// An event that an exception cut short, to be delivered again once the guest takes it.
    pub held: Option<Event>,
    /// NMIs that it has taken in, and not delivered yet.
    pub waiting_nmis: u8,
    /// The vector that the local APIC would have the processor take now.
    pub next_vector: Option<u8>,
    /// The PIC pair has said that it has an interrupt for this vCPU.
    pub pic_waits: bool,
    /// The guest takes interrupts: RFLAGS.IF is set, and no shadow of an instruction holds them back.
    pub takes_interrupts: bool,
    /// The guest takes NMIs: it handles none.
    pub takes_nmis: bool,
}

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// What is on its way to it. It is out of the guest.
    pub(crate) fn interrupts(&self, context: &RunContext<'_, H, B>) -> VcpuInterrupts {
        VcpuInterrupts {
            apic: self.apic.registers(context.now(&self.tsc)),
            raised: self.fault.map(Event::Exception),
            cut_short: self.arch.pending_event().or(self.interrupted),
            held: self.held,
            waiting_nmis: self.waiting_nmis,
            next_vector: self.apic.next_interrupt(),
            pic_waits: self.waits_for.contains(WaitsFor::PIC),
            takes_interrupts: self.arch.interruptible(),
            takes_nmis: self.arch.nmi_allowed(),
        }
    }
}
