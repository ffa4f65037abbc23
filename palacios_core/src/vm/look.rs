// SPDX-License-Identifier: MIT OR Apache-2.0
//! A look into a VM, for a debugger: a vCPU's page tables and interrupts, the interrupt controllers, memory. It changes nothing: no entry is marked, no
//! page gets a frame, no device is called.
//!
//! A vCPU that runs is called out of the guest for as long as it is looked at. The others run on: what they share may be another thing in the next moment.
#![forbid(unsafe_code)]

use super::Vm;
use crate::addr::{Gpa, Gva};
use crate::host::{Host, Lock};
use crate::interrupts::chipset::ChipsetRegisters;
use crate::memory::look::Place;
use crate::memory::nested::trace::NestedTrace;
use crate::memory::walk::trace::Trace;
use crate::vcpu::interrupts_look::VcpuInterrupts;

impl<H: Host> Vm<H> {
    /// Follows the page tables of a vCPU to `gva`. `None`: there is no such vCPU. *Thread.*
    pub fn walk(&self, vcpu: u32, gva: Gva) -> Option<Trace> {
        self.ask(vcpu, |vcpu| self.memory().trace(&vcpu.paging(), gva))
    }

    /// Follows the nested tables to `gpa`, and says what is there. *Thread.*
    pub fn walk_nested(&self, gpa: Gpa) -> (NestedTrace, Place) {
        let (place, _) = self.memory().look(gpa, &mut []);
        (self.memory().trace_nested(gpa), place)
    }

    /// What is on its way to a vCPU. `None`: there is no such vCPU. *Thread.*
    pub fn interrupts(&self, vcpu: u32) -> Option<VcpuInterrupts> {
        self.ask(vcpu, |vcpu| vcpu.interrupts(&self.shared))?
    }

    /// The registers of the I/O APIC and the PIC pair. *Thread.*
    pub fn chipset(&self) -> ChipsetRegisters {
        self.shared.board().chipset().lock().registers()
    }
}
