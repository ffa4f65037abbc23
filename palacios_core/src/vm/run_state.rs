// SPDX-License-Identifier: MIT OR Apache-2.0
//! The run state of a VM: who changes it, and what its vCPUs do then.
//!
//! It is one atomic byte. Whoever changes it then calls every vCPU ([`VmShared::call_all`]); a vCPU looks at it before each
//! entry.
#![forbid(unsafe_code)]

use super::shared::VmShared;
use super::states::{RunDecision, RunState, State};
use super::stop_reason::StopReason;
use crate::host::{Host, Level, Lock, Thread};
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
        RunState::from_byte(self.run_state.load(Ordering::SeqCst))
    }

    /// The state, as the owner sees it. *Thread.*
    pub(crate) fn state(&self) -> State {
        match self.run_state() {
            RunState::Running | RunState::Resetting => State::Running,
            RunState::Paused => State::Paused,
            RunState::Stopping => State::Stopping,
            RunState::Stopped => {
                let life = self.life.lock();
                match (life.is_new, life.reason) {
                    (true, _) => State::Created,
                    (false, reason) => State::Stopped(reason.unwrap_or(StopReason::Requested)),
                }
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
            let running = [RunState::Running, RunState::Paused, RunState::Resetting];
            if !running
                .into_iter()
                .any(|from| self.change(from, RunState::Stopping))
            {
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
        if self.change(RunState::Running, RunState::Resetting) {
            self.call_all();
        }
    }

    /// What a vCPU does next. While the VM is paused, it waits here.
    pub(crate) fn wait_to_run(&self, index: u32) -> RunDecision {
        match self.run_state() {
            RunState::Running => RunDecision::Run,
            RunState::Stopping | RunState::Stopped => RunDecision::End,
            RunState::Paused => {
                // No timer wakes it meanwhile. It is armed anew afterwards.
                if let Some(thread) = self.thread(index) {
                    thread.arm(None);
                }
                self.wait_while(index, RunState::Paused);
                RunDecision::LookAgain
            }
            RunState::Resetting => RunDecision::Reset,
        }
    }

    /// A vCPU's thread sleeps while the VM is in that state.
    pub(super) fn wait_while(&self, index: u32, state: RunState) {
        let Some(shared) = self.vcpu(index) else {
            return;
        };
        while self.run_state() == state {
            // The next change posts this event and calls the thread only if the event is not posted yet. So it is taken here.
            // The event of the change that led here may arrive late; it is taken in the next round.
            shared.pending.take(Events::STATE);
            shared.park_unless(self.host(), || {
                self.run_state() != state || shared.pending.has(Events::STATE)
            });
        }
    }

    pub(super) fn change(&self, from: RunState, to: RunState) -> bool {
        self.run_state
            .compare_exchange(from as u8, to as u8, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// Has every vCPU look at the run state.
    pub(super) fn call_all(&self) {
        for vcpu in &self.board().vcpus {
            vcpu.post(Events::STATE);
        }
    }
}
