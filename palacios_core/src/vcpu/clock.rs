// SPDX-License-Identifier: MIT OR Apache-2.0
//! The clocks that a vCPU shows its guest: its time stamp counter, and the clock that Linux guests make of it.
#![forbid(unsafe_code)]

use super::context::{AnyContext, RunContext, WindowContext};
use super::owned::Vcpu;
use super::pvclock::Instant;
use crate::backend::{Backend, BackendVcpu};
use crate::host::Host;
use crate::interfaces::Clock;
use crate::vm::stop_reason::StopReason;

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// On the CPU where the vCPU was just loaded: sets its counter there.
    pub(super) fn load_tsc(&mut self, window: &WindowContext<'_, '_, H, B>) {
        let (board, host_tsc) = (window.board(), window.backend().tsc());
        let clock = board.clock();
        self.pvclock.set_stable(clock.tsc_stable(host_tsc));
        let mut tsc = clock.tsc(host_tsc);
        if clock.follows_clock() {
            tsc = tsc.max(self.tsc.last);
        }
        let offset = tsc.wrapping_add(self.tsc.ahead).wrapping_sub(host_tsc);
        if offset != self.tsc.offset {
            self.tsc.offset = offset;
            self.arch.set_tsc_offset(offset);
        }
    }

    /// Before the vCPU leaves its CPU.
    pub(super) fn unload_tsc(&mut self, window: &WindowContext<'_, '_, H, B>) {
        if window.board().clock().follows_clock() {
            self.tsc.last = window.counter(&self.tsc).wrapping_sub(self.tsc.ahead);
        }
    }

    /// The guest moves its counter, by writing it or what it put on top.
    pub(super) fn move_tsc(&mut self, change: u64) {
        self.tsc.ahead = self.tsc.ahead.wrapping_add(change);
        self.tsc.offset = self.tsc.offset.wrapping_add(change);
        self.arch.set_tsc_offset(self.tsc.offset);
        self.pvclock.counter_changed();
        // A deadline is reached sooner or later than was thought.
        self.rearm = true;
    }

    /// Writes the pages of Linux' clock and steal time, as far as they are due. `false`: there is no memory for them.
    pub(super) fn publish_clock(&mut self, context: &RunContext<'_, H, B>) -> bool {
        self.pvclock.set_waited(context.shared.waited_ns());
        if !self.pvclock.is_due() {
            return true;
        }
        let (vm, clock) = (context.board, context.board.clock());
        let (base_tsc, base_ns) = clock.counted_from();
        let now = Instant {
            wall_ns: clock.wall_ns(),
            system_ns: clock.counted_ns(context.vm_counter()),
            base_tsc: base_tsc.wrapping_add(self.tsc.ahead),
            base_ns,
            tsc_khz: clock.tsc_khz(),
        };
        // That it is RAM was seen to when the guest said where.
        let written = self.pvclock.publish(vm.memory(), now).is_ok();
        if !written {
            self.stop(StopReason::OutOfMemory);
        }
        written
    }
}
