// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is delivered to the guest, what was cut short, and the moments it waits for (APM 2: 15.20, 15.21).
//!
//! An interrupt window is a virtual interrupt that is intercepted. Its priority is not left to the processor: while a
//! window is wanted, writes of CR8 exit, and the virtual interrupt is armed only if the task priority lets it through. The
//! core must learn of a lowered priority anyway.
//!
//! An injected NMI does not keep further ones out (APM 2: 15.20), so IRET is intercepted until it is executed. The
//! intercept strikes before; NMIs are let in again when the instruction is complete. If one waits, the guest is stepped
//! over the IRET: RFLAGS.TF is set for that one instruction. Should it fault, the fault's stack frame has TF in it.

use super::super::Event;
use super::caps::Caps;
use super::exit::{code, encode, interrupted};
use super::vmcb::{event, Clean, Intercepts3, VirtualInterrupt, Vmcb, VmcbPage};
use crate::host::Host;
use crate::state::{rflags, Exception};

/// DR6: a single step; and the four breakpoints.
const DR6_BS: u64 = 1 << 14;
const DR6_HITS: u64 = 0xf;

/// Whether the guest takes NMIs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Nmi {
    #[default]
    Open,
    /// One is being handled.
    Blocked,
    /// The IRET at this RIP, which ends that, is about to be executed.
    Returning(u64),
}

/// One instruction is executed with RFLAGS.TF set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    /// The guest had set it itself.
    guests_own: bool,
    rip: u64,
    dr6: u64,
}

/// What [`Events::after`] made of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExitOutcome {
    /// The events have no part in it: translate it for the core.
    Untouched,
    /// It was for the events alone: enter the guest again.
    EnterAgain,
    /// The guest would take an NMI now.
    NmiWindow,
}

/// The state of a vCPU's events.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// To be delivered by the next entry.
    pub pending: Option<Event>,
    /// Delivered by the last one.
    injected: Option<Event>,
    /// Cut short by the last exit.
    pub interrupted: Option<Event>,
    /// The priority of an interrupt that waits; above 15 it ignores the task priority.
    pub interrupt_window: Option<u8>,
    pub nmi_window: bool,
    nmi: Nmi,
    step: Option<Step>,
    /// The VMCB delivers nothing and watches for nothing, as it was for the last entry.
    is_quiet: bool,
}

impl Events {
    /// The guest would take an interrupt now.
    pub(super) fn interruptible(&self, vmcb: &Vmcb) -> bool {
        vmcb.save.rflags & rflags::IF != 0 && !in_shadow(vmcb) && self.pending.is_none()
    }
    /// The guest would take an NMI now (APM 2: 15.13.2).
    pub(super) fn nmi_allowed(&self, vmcb: &Vmcb) -> bool {
        self.nmi == Nmi::Open && !in_shadow(vmcb) && self.pending.is_none()
    }

    /// One is being handled.
    pub(super) fn nmi_blocked(&self) -> bool {
        self.nmi != Nmi::Open
    }

    /// The core delivered an NMI, or executed an IRET.
    pub(super) fn set_nmi_blocked(&mut self, blocked: bool) {
        self.nmi = if blocked { Nmi::Blocked } else { Nmi::Open };
    }

    /// Fills in what the next entry is to deliver and to watch for.
    pub(super) fn before<H: Host>(&mut self, vmcb: &mut VmcbPage<H>, caps: &Caps) {
        let nothing = self.has_nothing();
        if core::mem::replace(&mut self.is_quiet, nothing) && nothing {
            return;
        }
        self.injected = self.pending.take();
        let field = self.injected.map_or(0, |event| encode(event, vmcb.get()));
        vmcb.uncached().control.event_inj = field;
        match self.injected {
            Some(Event::Nmi) => self.nmi = Nmi::Blocked,
            Some(Event::Exception(Exception { cr2: Some(cr2), .. })) => {
                vmcb.change(Clean::CR2).save.cr2 = cr2;
            }
            // With nRIP the processor pushes that, without it RIP (APM 2: 15.20).
            Some(Event::Software { next_rip, .. }) if caps.next_rip => {
                vmcb.uncached().control.next_rip = next_rip;
            }
            Some(Event::Software { next_rip, .. }) => vmcb.uncached().save.rip = next_rip,
            _ => {}
        }
        self.watch(vmcb);
        self.begin_step(vmcb);
    }

    /// There is nothing to deliver, to wait for, or to see the end of.
    #[inline]
    fn has_nothing(&self) -> bool {
        let waits = self.interrupt_window.is_some() || self.nmi_window;
        !waits && self.pending.is_none() && self.nmi == Nmi::Open && self.step.is_none()
    }

    /// The intercepts and the virtual interrupt that the waiting events need.
    fn watch<H: Host>(&self, vmcb: &mut VmcbPage<H>) {
        const ARMED: VirtualInterrupt = VirtualInterrupt::V_IRQ
            .union(VirtualInterrupt::V_INTR_PRIO)
            .union(VirtualInterrupt::V_IGN_TPR);
        let control = &vmcb.get().control;
        let tpr = control.virtual_interrupt & VirtualInterrupt::V_TPR;
        let armed = self
            .interrupt_window
            .is_some_and(|priority| u64::from(priority) > tpr.bits());
        let mut interrupt = tpr | VirtualInterrupt::V_INTR_MASKING;
        interrupt.set(ARMED, armed);
        let mut intercepts = control.intercepts3;
        intercepts.set(Intercepts3::VINTR, armed);
        intercepts.set(Intercepts3::IRET, self.nmi == Nmi::Blocked);
        const CR8: u16 = 1 << 8;
        let cr8 = if self.interrupt_window.is_some() {
            CR8
        } else {
            0
        };
        let cr_writes = control.cr_writes & !CR8 | cr8;

        if (intercepts, cr_writes) != (control.intercepts3, control.cr_writes) {
            let control = &mut vmcb.change(Clean::I).control;
            (control.intercepts3, control.cr_writes) = (intercepts, cr_writes);
        }
        if interrupt != vmcb.get().control.virtual_interrupt {
            vmcb.change(Clean::TPR).control.virtual_interrupt = interrupt;
        }
    }

    /// Steps over the one instruction that an NMI has to wait for, if there is one.
    fn begin_step<H: Host>(&mut self, vmcb: &mut VmcbPage<H>) {
        let waits = match self.nmi {
            Nmi::Open => in_shadow(vmcb.get()),
            Nmi::Blocked => false,
            Nmi::Returning(_) => true,
        };
        // Delivery of an event would push the flag; the NMI then waits for the next exit.
        if self.nmi_window && waits && self.injected.is_none() {
            let save = &mut vmcb.uncached().save;
            self.step = Some(Step {
                guests_own: save.rflags & rflags::TF != 0,
                rip: save.rip,
                dr6: save.dr6,
            });
            save.rflags |= rflags::TF;
        }
    }

    /// Takes in what an exit says of events.
    #[inline]
    pub(super) fn after<H: Host>(&mut self, vmcb: &mut VmcbPage<H>) -> ExitOutcome {
        // Nothing was to be delivered, and nothing that the processor delivered itself was cut short.
        if self.is_quiet && vmcb.get().control.exit_int_info & event::VALID == 0 {
            self.interrupted = None;
            return ExitOutcome::Untouched;
        }
        self.is_quiet = false;
        self.after_events(vmcb)
    }

    fn after_events<H: Host>(&mut self, vmcb: &mut VmcbPage<H>) -> ExitOutcome {
        vmcb.uncached().control.event_inj = 0;
        self.interrupted = interrupted(vmcb.get(), self.injected);
        if self.interrupted == Some(Event::Nmi) {
            self.nmi = Nmi::Open;
        }
        let (rip, code) = (vmcb.get().save.rip, vmcb.get().control.exit_code);
        let returned = matches!(self.nmi, Nmi::Returning(iret) if iret != rip);
        if returned {
            self.nmi = Nmi::Open;
        }
        match code {
            code::VINTR => self.interrupt_window = None,
            code::IRET if self.nmi == Nmi::Blocked => {
                self.nmi = Nmi::Returning(rip);
                return ExitOutcome::EnterAgain;
            }
            _ => {}
        }
        match self.step.take() {
            Some(step) if self.end_step(step, returned, vmcb) => {
                self.nmi_window = false;
                ExitOutcome::NmiWindow
            }
            _ => ExitOutcome::Untouched,
        }
    }

    /// Undoes [`Events::begin_step`]. Whether the exit was the step's own, and nothing to the guest.
    fn end_step<H: Host>(&mut self, step: Step, returned: bool, vmcb: &mut VmcbPage<H>) -> bool {
        // An IRET that is complete has replaced the flags.
        if !step.guests_own && !returned {
            vmcb.uncached().save.rflags &= !rflags::TF;
        }
        let (dr6, rip) = (vmcb.get().save.dr6, vmcb.get().save.rip);
        // A trap has DR6.BS (Bochs 3.0 leaves it out) and the next instruction's RIP; a breakpoint before has neither.
        let trap = dr6 & DR6_BS != 0 || rip != step.rip;
        if vmcb.get().control.exit_code != code::DB || !trap {
            return false;
        }
        self.nmi = Nmi::Open;
        if step.guests_own {
            return false;
        }
        if dr6 & !step.dr6 & DR6_HITS != 0 {
            vmcb.change(Clean::DRX).save.dr6 = dr6 & !DR6_BS | step.dr6 & DR6_BS;
            return false;
        }
        vmcb.change(Clean::DRX).save.dr6 = step.dr6;
        true
    }
}

/// The guest is in an interrupt shadow (APM 2: 15.21.5).
fn in_shadow(vmcb: &Vmcb) -> bool {
    vmcb.control.interrupt_shadow & 1 != 0
}
