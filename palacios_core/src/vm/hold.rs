// SPDX-License-Identifier: MIT OR Apache-2.0
//! Holds: a VM stands still, its clock and its devices with it, as long as anybody holds it. What order that has is in `life.rs`.
#![forbid(unsafe_code)]

use super::run_word::{HoldReason, RunState};
use super::states::{LifeError, State};
use super::Vm;
use crate::host::{Host, Lock};
use core::sync::atomic::Ordering;

impl<H: Host> Vm<H> {
    /// Holds the VM: no vCPU is in the guest and all devices are at rest when this returns, until [`Vm::release`] was called as often. One that
    /// was not launched, or has stopped, stands still from its launch on. Where no threads step its vCPUs and a reset is under way, it stands still only
    /// when [`Vm::state`] says that it is paused: the reset wants more steps. *Thread.*
    ///
    /// # Errors
    /// `TooManyHolds`, and nothing has changed then. `WrongState` if a device does not come to rest: that stops the VM, and the hold counts
    /// nevertheless.
    pub fn hold(&self, why: HoldReason) -> Result<(), LifeError> {
        let _control = self.control.lock();
        self.hold_locked(why)
    }

    fn hold_locked(&self, why: HoldReason) -> Result<(), LifeError> {
        let was_running = self.shared.run.hold(why)?;
        if was_running {
            self.shared.call_all();
        } else if self.shared.run_state() != RunState::Resetting {
            return Ok(());
        }
        // Who resets the machine finds the hold at its end.
        while self.shared.run_state() == RunState::Resetting {
            if !self.has_threads.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.shared.host().yield_now();
        }
        for vcpu in self.shared.board().vcpus() {
            vcpu.leave_guest(self.shared.host(), u64::MAX);
        }
        let at_rest = self.bring_to_rest();
        self.shared.observer.state_changed();
        at_rest.map_err(|()| LifeError::WrongState(self.state()))
    }

    /// Ends a hold. If it was the last one, the VM goes on. *Thread.*
    ///
    /// # Errors
    /// `WrongState` if nobody holds the VM for this reason.
    pub fn release(&self, why: HoldReason) -> Result<(), LifeError> {
        let _control = self.control.lock();
        if !self.shared.run.release(why) {
            return Err(LifeError::WrongState(self.state()));
        }
        if self.shared.run_state() != RunState::Paused || self.shared.run.is_held() {
            return Ok(());
        }
        self.set_going();
        if !self.shared.run.go_on() {
            // It was stopped just now. If its last vCPU has ended already, nobody else brings it to rest again.
            let _ = self.bring_to_rest();
        }
        self.shared.call_all();
        // Input that came meanwhile.
        self.shared.io().input_ready();
        self.shared.observer.state_changed();
        Ok(())
    }

    /// Has a VM that runs stand still for its user: [`Vm::hold`], but there is one such hold however often it is asked for. *Thread.*
    ///
    /// # Errors
    /// `WrongState` unless it runs or is paused, or if a device does not come to rest: that stops the VM.
    pub fn pause(&self) -> Result<(), LifeError> {
        let _control = self.control.lock();
        match self.state() {
            State::Running | State::Paused => self.hold_locked(HoldReason::User),
            state => Err(LifeError::WrongState(state)),
        }
    }

    /// Ends what [`Vm::pause`] began. *Thread.*
    ///
    /// # Errors
    /// `WrongState` unless the user has paused it.
    pub fn resume(&self) -> Result<(), LifeError> {
        self.release(HoldReason::User)
    }
}
