// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is delivered to the guest, what was cut short, and the moments it waits for (SDM 3C: 24.8.3, 25.2, 26.6).
//!
//! The processor itself keeps NMIs out while one is handled (virtual NMIs), and says when the guest would take an interrupt or
//! an NMI. It does not look at the task priority for that; where this alone holds the interrupt back, the TPR threshold says
//! when it is lowered.

use super::super::Event;
use super::controls::{blocking, event, primary};
use super::exit::{reason, Exited};
use super::field::*;
use super::vmcs::Vmcs;
use crate::host::Host;
use crate::state::{cr0, rflags, Exception};

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
    /// The interrupt window is there for an NMI: see [`Events::watch`].
    for_nmi: bool,
}

/// What the events make of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExitOutcome {
    /// The events have no part in it: translate it for the core.
    Untouched,
    /// It was for the events alone: enter the guest again.
    EnterAgain,
    /// The guest would take an interrupt now.
    InterruptWindow,
    /// The guest would take an NMI now.
    NmiWindow,
}

impl Events {
    /// The guest would take an interrupt now.
    pub(super) fn interruptible<H: Host>(&self, vmcs: &Vmcs<H>) -> bool {
        vmcs.get(RFLAGS).0 & rflags::IF != 0
            && vmcs.get(INTERRUPTIBILITY) & blocking::SHADOW == 0
            && self.pending.is_none()
    }
    /// The guest would take an NMI now. Whether the shadow of STI holds one back is the processor's choice: here it does.
    pub(super) fn nmi_allowed<H: Host>(&self, vmcs: &Vmcs<H>) -> bool {
        vmcs.get(INTERRUPTIBILITY) & (blocking::SHADOW | blocking::NMI) == 0
            && self.pending.is_none()
    }

    /// Fills in what the next entry is to deliver and to watch for.
    pub(super) fn before<H: Host>(&mut self, vmcs: &mut Vmcs<H>, cr2: &mut u64, cr8: u8) {
        self.injected = self.pending.take();
        match self.injected {
            Some(event) => {
                if let Event::Exception(Exception { cr2: Some(at), .. }) = event {
                    *cr2 = at;
                }
                inject(event, vmcs);
                end_shadow(vmcs);
            }
            None => {
                // An entry that failed leaves its event in the field, and the guest may have been given another state since.
                vmcs.set(ENTRY_EVENT, 0);
                settle_shadow(vmcs);
            }
        }
        self.watch(vmcs, cr8);
    }

    /// The windows and the threshold that the waiting events need.
    fn watch<H: Host>(&mut self, vmcs: &mut Vmcs<H>, cr8: u8) {
        // In the shadow of STI a processor may open the NMI window or not. The interrupt window is sure to open behind it.
        self.for_nmi = self.nmi_window && vmcs.get(INTERRUPTIBILITY) & blocking::STI != 0;
        let open = self.interrupt_window.is_some_and(|priority| priority > cr8);
        let held = self.interrupt_window.filter(|_| !open);
        let mut controls = vmcs.get(PRIMARY_CONTROLS);
        for (bit, on) in [
            (primary::INTERRUPT_WINDOW, open || self.for_nmi),
            (primary::NMI_WINDOW, self.nmi_window && !self.for_nmi),
        ] {
            controls = if on { controls | bit } else { controls & !bit };
        }
        vmcs.set(PRIMARY_CONTROLS, controls);
        vmcs.set(TPR_THRESHOLD, held.unwrap_or(0).into());
    }

    /// The entry failed: what it was to deliver is still to be delivered (SDM 3C: 26.8).
    pub(super) fn not_entered(&mut self) {
        self.pending = self.injected.take();
    }

    /// The exit was none of the guest's: it goes on with what the exit cut short.
    pub(super) fn go_on(&mut self) {
        self.pending = self.interrupted.take();
    }

    /// Takes in what an exit says of events.
    pub(super) fn after<H: Host>(
        &mut self,
        vmcs: &mut Vmcs<H>,
        exit: &Exited,
        cr2: u64,
    ) -> ExitOutcome {
        // An exit clears the valid bit (SDM 3C: 24.8.3).
        vmcs.assume(ENTRY_EVENT, 0);
        self.interrupted = self.cut_short(vmcs, exit, cr2);
        if self.interrupted == Some(Event::Nmi) {
            set_blocking(vmcs, blocking::NMI, false);
        } else if exit.unblocked_nmi() {
            set_blocking(vmcs, blocking::NMI, true);
        }
        match exit.reason {
            reason::INTERRUPT_WINDOW if self.for_nmi => {
                self.nmi_window = false;
                ExitOutcome::NmiWindow
            }
            reason::INTERRUPT_WINDOW => {
                self.interrupt_window = None;
                ExitOutcome::InterruptWindow
            }
            reason::NMI_WINDOW => {
                self.nmi_window = false;
                ExitOutcome::NmiWindow
            }
            reason::TPR_BELOW_THRESHOLD if self.interruptible(vmcs) => {
                self.interrupt_window = None;
                ExitOutcome::InterruptWindow
            }
            // The priority no longer holds the interrupt back; RFLAGS.IF does, so that the window is watched for now.
            reason::TPR_BELOW_THRESHOLD => ExitOutcome::EnterAgain,
            _ => ExitOutcome::Untouched,
        }
    }

    /// The event whose delivery the exit cut short (SDM 3C: 27.2.4).
    ///
    /// Software interrupts, INT1, INT3 and INTO that the guest executed itself are none: RIP still stands on the instruction,
    /// which has done nothing yet, so the guest repeats it.
    fn cut_short<H: Host>(&self, vmcs: &Vmcs<H>, exit: &Exited, cr2: u64) -> Option<Event> {
        let info = exit.vectoring;
        if info & event::VALID == 0 {
            return None;
        }
        let vector = info as u8;
        match info & event::TYPE {
            event::INTERRUPT => Some(Event::Interrupt(vector)),
            event::NMI => Some(Event::Nmi),
            event::EXCEPTION => Some(Event::Exception(Exception {
                vector,
                error_code: (info & event::ERROR_CODE_VALID != 0)
                    .then(|| vmcs.info(VECTORING_ERROR_CODE)),
                cr2: (vector == 14).then_some(cr2),
            })),
            _ => self
                .injected
                .filter(|event| matches!(event, Event::Software { vector: v, .. } if *v == vector)),
        }
    }
}

/// Fills in an event for the next entry.
fn inject<H: Host>(what: Event, vmcs: &mut Vmcs<H>) {
    let info = match what {
        Event::Interrupt(vector) => event::INTERRUPT | u32::from(vector),
        Event::Nmi => {
            // While NMIs are blocked until the guest's IRET, none is injected. With this one, the processor blocks the next.
            event::NMI | 2
        }
        Event::Exception(e) => {
            // Real mode pushes no error codes, and an entry with one is refused there (SDM 3C: 26.2.1.3).
            let protected = vmcs.get(CR0).0 & cr0::PE != 0;
            let code = e.error_code.filter(|_| protected);
            vmcs.set(ENTRY_ERROR_CODE, code.unwrap_or(0));
            let valid = code.map_or(0, |_| event::ERROR_CODE_VALID);
            event::EXCEPTION | valid | u32::from(e.vector)
        }
        Event::Software { vector, next_rip } => {
            let length = next_rip.wrapping_sub(vmcs.get(RIP).0);
            vmcs.set(ENTRY_LENGTH, length as u32 & 15);
            software(vector) | u32::from(vector)
        }
    };
    vmcs.set(ENTRY_EVENT, event::VALID | info);
}

/// INT3 and INTO are exceptions to the processor, INT 3 and INT 4 are not; by now nothing tells them apart.
fn software(vector: u8) -> u32 {
    match vector {
        1 => event::PRIVILEGED_SOFTWARE,
        3 | 4 => event::SOFTWARE_EXCEPTION,
        _ => event::SOFTWARE_INTERRUPT,
    }
}

/// DR6.BS, as the pending debug exceptions have it.
const BS: u64 = 1 << 14;

/// The delivery of an event ends the shadow, and the single-step trap that waits for its end does not come: the event's handler
/// runs without RFLAGS.TF.
fn end_shadow<H: Host>(vmcs: &mut Vmcs<H>) {
    if vmcs.get(INTERRUPTIBILITY) & blocking::SHADOW != 0 {
        set_blocking(vmcs, blocking::SHADOW, false);
        let pending = vmcs.get(PENDING_DEBUG).0;
        vmcs.set(PENDING_DEBUG, Natural(pending & !BS));
    }
}

/// Makes shadows and pending debug exceptions agree with RFLAGS, as an entry wants them (SDM 3C: 26.3.1.5).
fn settle_shadow<H: Host>(vmcs: &mut Vmcs<H>) {
    let shadow = vmcs.get(INTERRUPTIBILITY) & blocking::SHADOW;
    if shadow == 0 {
        return;
    }
    let flags = vmcs.get(RFLAGS).0;
    if flags & rflags::IF == 0 {
        set_blocking(vmcs, blocking::STI, false);
    }
    let pending = vmcs.get(PENDING_DEBUG).0 & !BS;
    let traced = if flags & rflags::TF != 0 { BS } else { 0 };
    vmcs.set(PENDING_DEBUG, Natural(pending | traced));
}

/// Sets or clears bits of the interruptibility state.
pub(super) fn set_blocking<H: Host>(vmcs: &mut Vmcs<H>, bits: u32, on: bool) {
    let now = vmcs.get(INTERRUPTIBILITY);
    vmcs.set(INTERRUPTIBILITY, if on { now | bits } else { now & !bits });
}
