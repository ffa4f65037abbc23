// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a triple fault began with.
//!
//! The processor reports a triple fault, and not what the guest could not deliver. But RIP stands on the instruction yet. So the
//! guest is entered once more, with every exception intercepted and RFLAGS.TF set: either the instruction raises its exception
//! again, which exits, or it is done, and a #DB comes. Then an interrupt was to be delivered there. All of that goes through the
//! same loop as any exit, and the way out is [`Vcpu::fault`]. A processor may leave nothing usable of a guest that shut down
//! (APM 2: 15.14.3), and refuses it; then nothing is found.
#![forbid(unsafe_code)]

use super::exceptions::DOUBLE_FAULT;
use super::owned::{Replay, Vcpu};
use crate::backend::{Backend, BackendVcpu, Event, Intercepts};
use crate::host::Host;
use crate::state::{rflags, Exception};
use crate::vm::stop_reason::StopReason;

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// After a triple fault: looks for what it began with.
    pub(super) fn triple_fault(&mut self) {
        if self.replay.is_some() {
            return self.replayed(None);
        }
        let (rip, flags) = (self.arch.rip(), self.arch.rflags());
        self.replay = Some(Replay {
            rip,
            rflags: flags,
            event: self.interrupted.take(),
            exits: self.last_exits.clone(),
        });
        self.arch.set_rflags(flags | rflags::TF);
        self.arch.set_intercepts(Intercepts::EXCEPTIONS);
    }

    /// The last instruction was executed again, and raised this.
    pub(super) fn replayed(&mut self, exception: Option<Exception>) {
        let Some(replay) = self.replay.take() else {
            return;
        };
        self.arch.set_intercepts(Intercepts::empty());
        self.arch.set_rip(replay.rip);
        self.arch.set_rflags(replay.rflags);
        self.last_exits = replay.exits;
        let raised = exception.filter(|exception| *exception != Exception::DEBUG);
        let cut_short = replay
            .event
            .filter(|event| !matches!(event, Event::Exception(e) if e.vector == DOUBLE_FAULT));
        self.stop_by_triple_fault(raised.map(Event::Exception).or(cut_short));
    }

    pub(super) fn stop_by_triple_fault(&mut self, cause: Option<Event>) {
        self.cause_of_death = cause;
        let rip = self.arch.rip();
        self.stop(StopReason::TripleFault { rip });
    }
}
