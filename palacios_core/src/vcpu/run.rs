// SPDX-License-Identifier: MIT OR Apache-2.0
//! A step of a vCPU: what is due outside of the guest, then a window of entries. Whoever has its thread steps it, again and again.
#![forbid(unsafe_code)]

use super::context::{AnyContext, RunContext, WindowContext};
use super::owned::{Activity, Vcpu, WaitsFor};
use super::times::TimeClass;
use crate::backend::{Backend, BackendVcpu, Exit};
use crate::host::{CpuId, Host, Thread};
use crate::interfaces::Clock;
use crate::interrupts::pending::Events;
use crate::state::rflags;
use crate::stats::Counter;
use crate::vm::run_word::RunState;

/// The most entries of one window. The host's interrupts end a guest's run, and the window with it; but Bochs takes none while
/// the guest has interrupts off, so one that polls there a port that is answered in the window would keep the CPU.
const MOST_ENTRIES: u32 = 1024;

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum VcpuStep {
    /// There is more to do.
    Again,
    /// Nothing to do until its thread is unparked.
    Idle,
    /// It waits for the machine's reset from now on, and is to be counted.
    Gathers,
    /// The VM stops. The next launch begins with a reset.
    Ended,
}

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// Does what is next: most of the time that is a window of entries, and what the exit needs that ended it.
    pub(crate) fn step(&mut self, context: &RunContext<'_, H, B>) -> VcpuStep {
        let vm = context.vm;
        if core::mem::take(&mut self.resting) {
            context.shared.rise(context.board.host());
        }
        self.follow_resets(context);
        self.take_events(context);
        if let Some(reason) = self.stopping.take() {
            vm.vcpu_failed(reason);
        }
        if context.shared.is_asked_for() {
            let shared = context.shared;
            return self.rest_until(context, || !shared.is_asked_for());
        }
        match vm.state_and_resets() {
            // The machine was reset just now, before this vCPU.
            (_, resets) if resets != self.resets => VcpuStep::Again,
            (RunState::Running, _) => self.run(context),
            (RunState::Paused, _) => self.stand_still(context),
            (RunState::Resetting, _) => self.gather(context),
            (RunState::New | RunState::Stopping | RunState::Stopped, _) => self.end(context),
        }
    }

    /// Out of the guest, takes in what others have left for it: a reset, events, vectors. So whoever looks at it sees all that has come.
    pub(crate) fn catch_up(&mut self, context: &RunContext<'_, H, B>) {
        self.follow_resets(context);
        self.take_events(context);
        self.accept_vectors(context);
    }

    /// Begins anew if the machine was reset since.
    fn follow_resets(&mut self, context: &RunContext<'_, H, B>) {
        let (_, resets) = context.vm.state_and_resets();
        if self.resets != resets {
            (self.resets, self.gathered) = (resets, false);
            self.reset(context);
        }
    }

    fn run(&mut self, context: &RunContext<'_, H, B>) -> VcpuStep {
        if context.vm.honour_power_request() {
            return VcpuStep::Again;
        }
        self.tick(context);
        if !self.runnable(context) {
            return self.idle(context);
        }
        if !self.publish_clock(context) {
            return VcpuStep::Again;
        }
        if let Some(exit) = self.enter(context) {
            self.dispatch(context, exit);
        }
        VcpuStep::Again
    }

    /// The VM is paused.
    fn stand_still(&mut self, context: &RunContext<'_, H, B>) -> VcpuStep {
        // No timer wakes it meanwhile. It is armed anew afterwards.
        context.shared.thread().arm(None);
        self.armed_ns = None;
        self.rest_in(context, RunState::Paused)
    }

    /// The machine is to be reset, once all vCPUs have gathered.
    fn gather(&mut self, context: &RunContext<'_, H, B>) -> VcpuStep {
        match core::mem::replace(&mut self.gathered, true) {
            false => VcpuStep::Gathers,
            true => self.rest_in(context, RunState::Resetting),
        }
    }

    /// The VM stops.
    fn end(&mut self, context: &RunContext<'_, H, B>) -> VcpuStep {
        let shared = context.shared;
        self.unstick(context);
        shared.thread().arm(None);
        shared.turn_to(context.board.host(), TimeClass::NotRunning, 0);
        self.resting = true;
        VcpuStep::Ended
    }

    /// Rests until the machine is in another state, or was reset.
    fn rest_in(&mut self, context: &RunContext<'_, H, B>, state: RunState) -> VcpuStep {
        let (vm, here) = (context.vm, (state, self.resets));
        self.rest_until(context, || vm.state_and_resets() != here)
    }

    /// Rests until that holds. Who makes it hold posts an event behind that, and calls the thread only if the event was not posted yet: so an
    /// event that is there counts as well.
    fn rest_until(
        &mut self,
        context: &RunContext<'_, H, B>,
        holds: impl FnOnce() -> bool,
    ) -> VcpuStep {
        let pending = &context.shared.pending;
        self.rest_unless(context, || holds() || pending.has(Events::STATE))
    }

    /// Rests, unless something is there to do by now.
    fn rest_unless(
        &mut self,
        context: &RunContext<'_, H, B>,
        awake: impl FnOnce() -> bool,
    ) -> VcpuStep {
        self.resting = context.shared.rest_unless(context.board.host(), awake);
        match self.resting {
            true => VcpuStep::Idle,
            false => VcpuStep::Again,
        }
    }

    /// One window: enters the guest, and again after each exit that needs nothing from outside of the window. `None`: there is no
    /// exit left to dispatch.
    fn enter(&mut self, context: &RunContext<'_, H, B>) -> Option<Exit> {
        let (host, shared) = (context.board.host(), context.shared);
        shared.turn_to(host, TimeClass::Guest, 0);
        let (exit, ticks) = context.window(|window, cpu| self.in_window(window, cpu));
        let guest_ns = context.board.clock().ns_of_tsc(ticks);
        shared.turn_to(host, TimeClass::Handling, guest_ns);
        exit
    }

    /// What is left to dispatch, and the ticks of the host's counter that the entries took.
    fn in_window(
        &mut self,
        window: &WindowContext<'_, '_, H, B>,
        cpu: CpuId,
    ) -> (Option<Exit>, u64) {
        if self.cpu.replace(cpu).is_some_and(|last| last != cpu) {
            window.shared().stats.add(Counter::CpuChanges, 1);
        }
        window.load(&mut self.arch, cpu);
        self.load_tsc(window);
        let entered = match self.timer_came(window) {
            true => (None, 0),
            false => self.timed_entries(window),
        };
        self.unload_tsc(window);
        window.unload(&mut self.arch);
        entered
    }

    /// Enters, and sees how long that takes. To look at the counter for each exit would cost about as much as to answer it.
    fn timed_entries(&mut self, window: &WindowContext<'_, '_, H, B>) -> (Option<Exit>, u64) {
        let backend = window.backend();
        let begin = backend.tsc();
        let exit = self.entries(window);
        (exit, backend.tsc().wrapping_sub(begin))
    }

    /// Enters until an exit needs more than a window, or the host wants the CPU.
    #[inline(never)] // The fast path has a frame of its own, and what is around it takes no registers from it.
    fn entries(&mut self, window: &WindowContext<'_, '_, H, B>) -> Option<Exit> {
        let stats = &window.shared().stats;
        for _ in 0..MOST_ENTRIES {
            if !self.before_entry(window) {
                stats.add(Counter::Pending, 1);
                return None;
            }
            stats.add(Counter::Entries, 1);
            let exit = window.enter(&mut self.arch);
            self.after_exit(window, &exit);
            if !self.settle(window, exit) {
                return Some(exit);
            }
            stats.add(Counter::Settled, 1);
            if self.rearm {
                self.rearm_in_window(window);
            }
            if self.must_leave() || window.must_end() {
                return None;
            }
        }
        None
    }

    /// There is something to do before the next entry that needs more than a window.
    fn must_leave(&self) -> bool {
        self.rearm || self.pvclock.is_due() || self.stopping.is_some()
    }

    /// The armed time has come. If it came before the window opened, the timer's kick was lost, since no vCPU was in the guest.
    fn timer_came(&self, window: &WindowContext<'_, '_, H, B>) -> bool {
        self.armed_ns
            .is_some_and(|at| at <= window.board().clock().now_ns())
    }

    fn after_exit(&mut self, window: &WindowContext<'_, '_, H, B>, exit: &Exit) {
        let shared = window.shared();
        shared.left_guest();
        let kind = Counter::of_exit(exit);
        if kind != Counter::Mmio {
            shared.stats.add(kind, 1);
        }
        self.last_exits.note(self.arch.rip(), kind);
        if let Some(event) = self.arch.take_interrupted() {
            self.interrupted = Some(event);
        }
        if self.apic.cr8() != self.arch.cr8() {
            self.apic.set_cr8(self.arch.cr8());
        }
        self.length = None;
    }

    /// Rests until something is pending.
    fn idle(&mut self, context: &RunContext<'_, H, B>) -> VcpuStep {
        if self.waits_for.contains(WaitsFor::TICK_END) {
            // Its timers change, and are to be armed anew.
            self.tick_ends(context);
            return VcpuStep::Again;
        }
        self.tell_priority(context);
        if !self.stuck && self.only_events_wake() {
            self.stuck = true;
            context.vm.vcpu_is_stuck();
        }
        let pending = &context.shared.pending;
        self.rest_unless(context, || pending.has_events() || pending.has_vectors())
    }

    /// Whether only an NMI, an INIT or a start-up message can wake the vCPU: it is halted with interrupts off, or was never
    /// started. A PIC pair that is wired as an NMI can wake it as well, and then this is `false`.
    fn only_events_wake(&self) -> bool {
        match self.activity {
            Activity::Active => false,
            Activity::WaitForStartup => true,
            Activity::Halted => {
                self.arch.rflags() & rflags::IF == 0 && !self.apic.takes_pic_as_nmi()
            }
        }
    }

    pub(super) fn unstick(&mut self, context: &RunContext<'_, H, B>) {
        if core::mem::take(&mut self.stuck) {
            context.vm.vcpu_moves();
        }
    }
}
