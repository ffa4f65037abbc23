// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one dispatch of exits: what the guest did, and who sees to it. And the end of an instruction that exited.
#![forbid(unsafe_code)]

use super::context::{AnyContext, RunContext};
use super::owned::Vcpu;
use crate::backend::{Backend, BackendVcpu, Exit, NestedFault, PortAccess};
use crate::host::Host;
use crate::memory::walk::AccessKind;
use crate::memory::{FaultError, Resolved};
use crate::state::{rflags, Exception, Reg};
use crate::stats::Counter;
use crate::vm::stop_reason::StopReason;

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// What the guest did, and what follows from it.
    #[inline(never)] // A function of its own in every build: debuggers stop here.
    pub(super) fn dispatch(&mut self, context: &RunContext<'_, H, B>, exit: Exit) {
        match exit {
            Exit::Pending | Exit::HostInit => {}
            Exit::HostInterrupt => self.host_interrupt(context),
            Exit::InterruptWindow => self.tick_may_end(context),
            Exit::NmiWindow => {}
            Exit::Cpuid => self.cpuid(context),
            Exit::ReadMsr => self.read_msr(context),
            Exit::WriteMsr => self.write_msr(context),
            Exit::Halt => self.halt(context),
            Exit::Pause => self.pause(context),
            Exit::Hypercall => self.hypercall(context),
            Exit::Port(access) if access.string => self.emulate(context),
            Exit::Port(access) => self.port(context, access),
            Exit::NestedFault(fault) => self.nested_fault(context, fault),
            Exit::Emulate => self.emulate(context),
            Exit::CacheControl => self.advance(context),
            Exit::SetXcr => self.set_xcr(context),
            Exit::Icebp => self.icebp(context),
            Exit::Monitor | Exit::Undefined => self.fault(Exception::INVALID_OPCODE),
            Exit::ReadPmc => self.fault(Exception::general_protection(0)),
            Exit::Exception(exception) => self.fault(exception),
            Exit::TaskSwitch => self.task_switch(),
            Exit::TripleFault => self.triple_fault(),
            Exit::BadState(_) if self.replay.is_some() => self.replayed(None),
            Exit::BadState(what) => self.stop(StopReason::BadState(what)),
            Exit::MachineCheck => self.stop(StopReason::MachineCheck),
            Exit::Gone => self.stop(StopReason::HostGone),
            Exit::Busy => self.stop(StopReason::HostTaken),
            Exit::Unknown { code, info } => {
                let rip = self.arch.rip();
                self.stop(StopReason::UnknownExit { rip, code, info });
            }
        }
    }

    pub(super) fn stop(&mut self, reason: StopReason) {
        self.stopping.get_or_insert(reason);
    }

    /// A task switch. An instruction asked for it, or an event met a task gate; then the instruction at RIP has nothing to do with it, and
    /// emulating it would be wrong.
    pub(super) fn task_switch(&mut self) {
        let rip = self.arch.rip();
        self.stop(StopReason::TaskSwitch { rip });
    }

    /// Memory without a frame or a translation gets one; all else is a device's, or nobody's.
    fn nested_fault(&mut self, context: &RunContext<'_, H, B>, fault: NestedFault) {
        let stats = &context.shared.stats;
        let access = match fault {
            NestedFault { write: true, .. } => AccessKind::Write,
            NestedFault { fetch: true, .. } => AccessKind::Execute,
            _ => AccessKind::Read,
        };
        match context.board.fault(fault.gpa, access) {
            Ok(resolved) => {
                if resolved == Resolved::Changed {
                    self.arch.flush_tlb();
                }
                stats.add(Counter::RamFault, 1);
                self.last_exits.name_last(Counter::RamFault);
            }
            Err(FaultError::NoMemory) => self.stop(StopReason::OutOfMemory),
            Err(FaultError::NotMemory) if fault.fetch => {
                let (rip, gpa) = (self.arch.rip(), fault.gpa.0);
                self.stop(StopReason::NoMemoryAt { rip, gpa });
            }
            Err(FaultError::NotMemory | FaultError::NotWritable) => {
                stats.add(Counter::Mmio, 1);
                match self.interrupted {
                    Some(event) => self.deliver_by_hand(context, event),
                    None => self.emulate(context),
                }
            }
        }
    }

    /// An `IN` or `OUT`.
    fn port(&mut self, context: &RunContext<'_, H, B>, access: PortAccess) {
        let (io, index, at) = (context.vm.io(), self.index, access.address());
        if access.write {
            let value = self.port_output(access);
            io.write(index, &mut self.last_found, at, value);
        } else {
            let value = io.read(index, &mut self.last_found, at);
            self.take_port_input(access, value);
        }
        self.advance(context);
    }

    /// What an `OUT` sends.
    pub(super) fn port_output(&self, access: PortAccess) -> u64 {
        self.arch.gprs()[Reg::Rax] & port_mask(access)
    }

    /// What an `IN` was answered. A 32-bit result clears the upper half; smaller ones leave the rest.
    pub(super) fn take_port_input(&mut self, access: PortAccess, value: u64) {
        let mask = port_mask(access);
        let rax = &mut self.arch.gprs_mut()[Reg::Rax];
        let kept = if access.size == 4 { 0 } else { *rax & !mask };
        *rax = kept | value & mask;
    }

    /// The instruction that exited is done.
    pub(super) fn advance(&mut self, context: &impl AnyContext<H, B>) {
        if let Some(flags) = self.move_past(context) {
            self.trace(flags);
        }
    }

    /// Moves RIP past the instruction that exited; the only place that does, but for the emulator's own. Gives the RFLAGS that it
    /// was executed with. `None`: its bytes changed or went, so that the guest runs it again.
    #[inline]
    pub(super) fn move_past(&mut self, context: &impl AnyContext<H, B>) -> Option<u64> {
        let next = match self.arch.next_rip() {
            Some(next) => next,
            None if self.find_length(context) => {
                let length = u64::from(self.length.unwrap_or(0));
                self.wrap_rip(self.arch.rip().wrapping_add(length))
            }
            None => return None,
        };
        Some(self.move_to(next))
    }

    /// As [`Vcpu::advance`], for an instruction whose length is known otherwise.
    pub(super) fn advance_by(&mut self, length: u8) {
        let next = self.wrap_rip(self.arch.rip().wrapping_add(length.into()));
        let flags = self.move_to(next);
        self.trace(flags);
    }

    /// The instruction that was executed with these RFLAGS is done.
    #[inline]
    fn trace(&mut self, flags: u64) {
        if flags & rflags::TF != 0 {
            self.single_step();
        }
    }

    #[inline]
    fn move_to(&mut self, next: u64) -> u64 {
        self.arch.set_rip(next);
        let flags = self.arch.rflags();
        if flags & rflags::RF != 0 {
            // It covered this instruction alone (APM 2: 13.1.1.5).
            self.arch.set_rflags(flags & !rflags::RF);
        }
        flags
    }

    fn wrap_rip(&self, rip: u64) -> u64 {
        if self.in_64_bit_code() {
            rip
        } else {
            rip & 0xffff_ffff
        }
    }
}

/// The bits that a port access has.
const fn port_mask(access: PortAccess) -> u64 {
    match access.size {
        1 => 0xff,
        2 => 0xffff,
        _ => 0xffff_ffff,
    }
}
