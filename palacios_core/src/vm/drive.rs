// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stepping a VM's vCPUs: the one loop for hosts that have threads, and the single step for those that have none.
//!
//! ```text
//!  seat of a vCPU:   the vCPU ----- take ----->  step, step, …    Idle: back to its seat, and the thread parks
//!                        ^                          |             Ended: back, and the thread is done
//!                        '----- put back -----------'
//! ```
//!
//! So a vCPU that rests is at its seat, where others reach it: [`Vm::ask`]. One that does not rest is called there.
#![forbid(unsafe_code)]

use super::states::Step;
use super::Vm;
use crate::host::{Host, Lock, Thread};
use crate::vcpu::{AnyVcpu, VcpuStep};

impl<H: Host> Vm<H> {
    /// Makes one step of a vCPU of a VM that [`Vm::begin`] has begun, for a host without threads, or one with a loop of its own. One caller at
    /// a time for each vCPU. *Thread.*
    pub fn step(&self, vcpu: u32) -> Step {
        self.turn(vcpu, false)
    }

    /// What a vCPU's thread does: steps it until it ends.
    pub(super) fn drive(&self, vcpu: u32) {
        while self.turn(vcpu, true) != Step::Ended {
            if let Some(thread) = self.thread(vcpu) {
                thread.park();
            }
        }
    }

    /// Takes a vCPU from its seat, and steps it: once, or until it has nothing to do.
    fn turn(&self, index: u32, goes_on: bool) -> Step {
        let Some(seat) = self.seats.get(index as usize) else {
            return Step::Ended;
        };
        let taken = {
            let mut seat = seat.lock();
            match seat.lives {
                true => seat.vcpu.take(),
                false => None,
            }
        };
        let Some(mut vcpu) = taken else {
            return Step::Ended;
        };
        let mut step = self.step_taken(&mut *vcpu);
        while goes_on && step == Step::Again {
            step = self.step_taken(&mut *vcpu);
        }
        {
            let mut seat = seat.lock();
            seat.vcpu = Some(vcpu);
            seat.lives = step != Step::Ended;
        }
        if step == Step::Ended {
            self.vcpu_ended();
        }
        step
    }

    fn step_taken(&self, vcpu: &mut dyn AnyVcpu<H>) -> Step {
        match vcpu.step(&self.shared) {
            VcpuStep::Again => Step::Again,
            VcpuStep::Idle => Step::Idle,
            VcpuStep::Ended => Step::Ended,
            VcpuStep::Gathers => {
                self.gather_for_reset();
                Step::Again
            }
        }
    }

    /// Has a vCPU out of the guest, where it takes in what others have left for it, and does something with it there, whatever the VM is at: the
    /// vCPU's own thread waits meanwhile.
    /// `None`: there is no such vCPU. *Thread*, but not one that steps a vCPU of this VM.
    pub(super) fn ask<R>(
        &self,
        index: u32,
        mut request: impl FnMut(&mut dyn AnyVcpu<H>) -> R,
    ) -> Option<R> {
        let (seat, shared) = (self.seats.get(index as usize)?, self.shared.vcpu(index)?);
        // Most that are asked rest.
        let mut at_seat = || {
            let mut seat = seat.lock();
            let vcpu = seat.vcpu.as_mut()?;
            vcpu.catch_up(&self.shared);
            Some(request(&mut **vcpu))
        };
        if let Some(answer) = at_seat() {
            return Some(answer);
        }
        shared.ask();
        let answer = loop {
            match at_seat() {
                Some(answer) => break answer,
                None => self.shared.host().yield_now(),
            }
        };
        shared.answered();
        Some(answer)
    }
}
