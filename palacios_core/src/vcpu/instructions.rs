// SPDX-License-Identifier: MIT OR Apache-2.0
//! The instructions that always exit, but for memory and ports.
#![forbid(unsafe_code)]

use super::context::{AnyContext, RunContext};
use super::cpuid;
use super::owned::{Activity, Vcpu};
use super::pvclock::{FEATURES_LEAF, SIGNATURE_LEAF};
use crate::backend::{Backend, BackendVcpu};
use crate::features::Feature;
use crate::host::{Host, Thread};
use crate::interrupts::destination::ApicMode;
use crate::state::{cr4, Exception, Reg};
use crate::stats::Counter;

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    pub(super) fn cpuid(&mut self, context: &impl AnyContext<H, B>) {
        let gprs = self.arch.gprs();
        let (leaf, subleaf) = (gprs[Reg::Rax] as u32, gprs[Reg::Rcx] as u32);
        let native = |leaf, subleaf| context.backend().cpuid(leaf, subleaf);
        let answer = match cpuid::of_the_host(leaf, native) {
            Some(answer) => answer,
            None => self.answer_cpuid(context, leaf, subleaf),
        };
        let gprs = self.arch.gprs_mut();
        for (reg, value) in [Reg::Rax, Reg::Rbx, Reg::Rcx, Reg::Rdx]
            .into_iter()
            .zip(answer)
        {
            gprs[reg] = u64::from(value);
        }
        self.advance(context);
    }

    /// What the guest is told of its own CPU.
    fn answer_cpuid(&self, context: &impl AnyContext<H, B>, leaf: u32, subleaf: u32) -> [u32; 4] {
        let features = self.msrs.guest();
        match leaf {
            SIGNATURE_LEAF | FEATURES_LEAF if features.has(Feature::Hypervisor) => {
                return self.pvclock.cpuid(leaf, context.board().clock().tsc_khz());
            }
            _ => {}
        }
        let cpu = cpuid::Cpu {
            index: self.index,
            count: self.count,
            cr4: self.arch.control().cr4,
            xcr0: self.arch.xcr0(),
            apic_enabled: self.apic.mode() != ApicMode::Disabled,
            tsc_stable: self.pvclock.is_stable(),
            physical_bits: self.msrs.backend().physical_bits,
            extended_topology: B::EXTENDED_TOPOLOGY,
            features,
        };
        let native = |leaf, subleaf| context.backend().cpuid(leaf, subleaf);
        cpuid::answer(&cpu, leaf, subleaf, native)
    }

    pub(super) fn read_msr(&mut self, context: &impl AnyContext<H, B>) {
        let index = self.arch.gprs()[Reg::Rcx] as u32;
        match self.msr(context, index) {
            Ok(value) => {
                let gprs = self.arch.gprs_mut();
                gprs[Reg::Rax] = value & 0xffff_ffff;
                gprs[Reg::Rdx] = value >> 32;
                self.advance(context);
            }
            Err(exception) => self.fault(exception),
        }
    }

    pub(super) fn write_msr(&mut self, context: &impl AnyContext<H, B>) {
        let (index, value) = (self.arch.gprs()[Reg::Rcx] as u32, self.edx_eax());
        match self.set_msr(context, index, value) {
            Ok(()) => self.advance(context),
            Err(exception) => self.fault(exception),
        }
    }

    pub(super) fn halt(&mut self, context: &RunContext<'_, H, B>) {
        self.advance(context);
        self.activity = Activity::Halted;
    }

    /// The guest spins, most likely for a lock whose holder has no CPU: another vCPU runs that could but does not, each in
    /// its turn; or else whoever wants the CPU.
    pub(super) fn pause(&mut self, context: &RunContext<'_, H, B>) {
        self.advance(context);
        let last = self.yielded_to;
        let others = (last.saturating_add(1)..self.count).chain(0..=last);
        for other in others.filter(|other| *other != self.index) {
            let other_thread = context.vm.thread(other);
            if other_thread.is_some_and(|thread| thread.yield_to()) {
                context.shared.stats.add(Counter::DirectedYields, 1);
                self.yielded_to = other;
                return;
            }
        }
        context.board.host().yield_now();
    }

    /// No hypercall is offered: all answer "unknown", as Palacios' do.
    pub(super) fn hypercall(&mut self, context: &impl AnyContext<H, B>) {
        if self.arch.cpl() != 0 {
            return self.fault(Exception::INVALID_OPCODE);
        }
        self.arch.gprs_mut()[Reg::Rax] = u64::MAX;
        self.advance(context);
    }

    /// `XSETBV` (SDM 2D; APM 2: 11.5.2). The intercept comes before the check of CR4.
    pub(super) fn set_xcr(&mut self, context: &RunContext<'_, H, B>) {
        if self.arch.control().cr4 & cr4::OSXSAVE == 0 {
            return self.fault(Exception::INVALID_OPCODE);
        }
        let (index, value) = (self.arch.gprs()[Reg::Rcx] as u32, self.edx_eax());
        let allowed = self.msrs.guest().xcr0();
        if self.arch.cpl() != 0 || index != 0 || !cpuid::valid_xcr0(value, allowed) {
            return self.fault(Exception::general_protection(0));
        }
        self.arch.set_xcr0(value);
        self.advance(context);
    }

    fn edx_eax(&self) -> u64 {
        let gprs = self.arch.gprs();
        gprs[Reg::Rdx] << 32 | gprs[Reg::Rax] & 0xffff_ffff
    }
}
