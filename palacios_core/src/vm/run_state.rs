// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of a VM as its vCPUs see it and change it: what they are to do, how the VM ends, and whether it is dead.
//!
//! The state is in the [`RunWord`](super::run_word). Whoever changes it then calls every vCPU ([`VmShared::call_all`]).
#![forbid(unsafe_code)]

use super::run_word::{Resets, RunState};
use super::shared::VmShared;
use super::states::State;
use super::stop_reason::StopReason;
use crate::host::{Host, Level, Lock};
use crate::image::OnTripleFault;
use crate::interfaces::{PowerRequest, PowerSink};
use crate::interrupts::pending::Events;
use crate::vcpu::VcpuShared;
use core::sync::atomic::Ordering;

/// The words for a dead VM: see [`Vm::is_dead`](super::Vm::is_dead).
pub const DEAD: &str = "dead: every CPU is halted with interrupts off, or was never started";

impl<H: Host> VmShared<H> {
    /// What vCPUs are to do.
    pub(crate) fn run_state(&self) -> RunState {
        self.run.state()
    }
    /// The same, and how often the machine was reset.
    pub(crate) fn state_and_resets(&self) -> (RunState, Resets) {
        self.run.state_and_resets()
    }

    /// The state, as the owner sees it. *Thread.*
    pub(crate) fn state(&self) -> State {
        match self.run_state() {
            RunState::New => State::Created,
            RunState::Running | RunState::Resetting => State::Running,
            RunState::Paused => State::Paused,
            RunState::Stopping => State::Stopping,
            RunState::Stopped => {
                let reason = self.life.lock().reason;
                State::Stopped(reason.unwrap_or(StopReason::Requested))
            }
        }
    }

    /// Whether nothing can wake the guest any more: it runs, but each vCPU halts with interrupts off, or waits for another to
    /// start it, and nothing is on its way to any. It can still be stopped. *Thread.*
    pub(crate) fn is_dead(&self) -> bool {
        let nothing_waits = || {
            let posted = |vcpu: &VcpuShared<H>| vcpu.pending.has_events();
            self.run_state() == RunState::Running
                && !self.board().vcpus.iter().any(posted)
                && !self.board().chipset.lock().sends_events()
        };
        self.stuck.all(self.vcpu_count(), nothing_waits)
    }

    /// A vCPU is stuck from now on; the last one finds that the VM is dead.
    pub(crate) fn vcpu_is_stuck(&self) {
        self.stuck.enter();
        if self.is_dead() && !self.told_dead.swap(true, Ordering::SeqCst) {
            self.log(Level::Warning, format_args!("{DEAD}"));
            self.observer.state_changed();
        }
    }
    /// A vCPU that was stuck no longer is. It takes what woke it only after this call.
    pub(crate) fn vcpu_moves(&self) {
        self.stuck.leave();
    }

    /// A vCPU cannot go on. This ends the VM; or, after a triple fault, resets it if the image says so.
    pub(crate) fn vcpu_failed(&self, reason: StopReason) {
        match (reason, self.on_triple_fault) {
            (StopReason::TripleFault { .. }, OnTripleFault::Reset) => {
                self.board().power.request(PowerRequest::Reset);
            }
            (reason, _) => _ = self.request_stop(reason),
        }
    }

    /// Ends the VM for `reason`; the first reason given is kept. `false`: the VM is not running.
    pub(crate) fn request_stop(&self, reason: StopReason) -> bool {
        {
            let mut life = self.life.lock();
            if !self.run.stop() {
                return false;
            }
            life.reason = Some(reason);
        }
        self.call_all();
        self.observer.state_changed();
        true
    }

    /// Brings the workers of all devices to rest. If one does not, the VM ends for that reason.
    pub(super) fn rest_workers(&self) -> Result<(), ()> {
        self.bus().rest_workers().map_err(|device| {
            self.request_stop(StopReason::NeverRests(device));
        })
    }

    /// Does what the guest asked of its power supply; `false` if it asked nothing. A request for a reset stays posted until the
    /// reset: if the VM has just been paused, the reset waits until it is resumed.
    pub(crate) fn honour_power_request(&self) -> bool {
        let request = self.board().power.waiting();
        match request {
            None => {}
            Some(PowerRequest::Off) => {
                self.request_stop(StopReason::PoweredOff);
            }
            Some(PowerRequest::Exit(status)) => {
                self.request_stop(StopReason::Exit(status));
            }
            Some(PowerRequest::Reset) => self.begin_reset(),
        }
        request.is_some()
    }

    fn begin_reset(&self) {
        if self.run.begin_reset() {
            self.call_all();
        }
    }

    /// Has every vCPU look at the run state.
    pub(super) fn call_all(&self) {
        for vcpu in &self.board().vcpus {
            vcpu.post(Events::STATE);
        }
    }
}
