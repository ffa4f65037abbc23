// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU's timers, and of the first vCPU those of devices: what is due, when the next is, and how they are held where a guest
//! cannot keep up ([`super::tick_cost`]).
#![forbid(unsafe_code)]

use super::context::{AnyContext, RunContext, WindowContext};
use super::owned::{Vcpu, WaitsFor};
use super::tick_cost::{Source, Tick, TickCost};
use crate::backend::Backend;
use crate::devices::{hpet, pit, rtc};
use crate::host::{Host, Lock, Thread};
use crate::interfaces::Clock;
use crate::interrupts::apic_timer::Now;
use crate::interrupts::chipset::Chipset;

/// No tick is taken to be longer. When a guest or its host was away for once, its timers are soon back.
const LONGEST_NS: u64 = 100_000_000;
/// How long timers are held first that left the guest no time to execute anything.
const FIRST_HOLD_NS: u64 = 1_000_000;
/// The lines of the devices that tick.
fn timer_lines() -> impl Iterator<Item = u32> {
    [pit::IRQ, rtc::IRQ].into_iter().chain(hpet::INPUTS)
}

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// Does what is due, and has the host call when the next is.
    pub(super) fn tick(&mut self, context: &RunContext<'_, H, B>) {
        let (bus, clock) = (context.vm.bus(), context.board.clock());
        // After a pause, host times that were armed before are wrong, whether this thread waited for its end or never saw it.
        // Read before the deadlines: a pause that begins after this line is found by the next tick.
        let behind_ns = clock.behind_ns();
        let paused = core::mem::replace(&mut self.behind_ns, behind_ns) != behind_ns;
        let now = context.now(&self.tsc);
        let now_ns = now.ns;
        if self.apic.deadline_ns(now).is_some_and(|at| at <= now_ns) {
            self.apic.tick(now);
        }
        let mut of_devices = None;
        if self.index == 0 {
            if paused {
                bus.tick_all();
            } else if bus.deadline_ns().is_some_and(|at| at <= now_ns) && bus.tick(now_ns) {
                self.devices_ticked(context);
            }
            of_devices = bus.deadline_ns();
        }
        let next_ns = self.next_ns(now, of_devices);
        let fired = self.armed_ns.is_some_and(|at| at <= now_ns);
        if self.armed_ns != next_ns || fired || paused {
            context
                .shared
                .thread()
                .arm(next_ns.map(|at| clock.host_ns(at)));
            self.armed_ns = next_ns;
        }
        self.rearm = false;
    }

    /// When its next timer is due, or the devices'.
    fn next_ns(&mut self, now: Now, of_devices: Option<u64>) -> Option<u64> {
        let all = [self.apic.deadline_ns(now), of_devices];
        all.into_iter().flatten().min()
    }

    /// In the window, when the guest has changed a timer of its own. A thread that is called too early looks again then, so a later deadline
    /// needs nothing. What is left to [`Vcpu::tick`] stays noted in `rearm`.
    pub(super) fn rearm_in_window(&mut self, window: &WindowContext<'_, '_, H, B>) {
        let (board, now) = (window.board(), window.now(&self.tsc));
        let clock = board.clock();
        if self.apic.deadline_ns(now).is_some_and(|at| at <= now.ns) {
            self.apic.tick(now);
        }
        let of_devices = match self.index {
            0 => window.devices_deadline_ns(),
            _ => None,
        };
        let next_ns = self.next_ns(now, of_devices);
        let stands = |armed_ns| armed_ns > now.ns && next_ns.is_none_or(|at| armed_ns <= at);
        if !self.armed_ns.is_some_and(stands) {
            let is_ahead = next_ns.is_some_and(|at| at > now.ns);
            if !is_ahead || clock.behind_ns() != self.behind_ns {
                return;
            }
            let host_ns = next_ns.map(|at| clock.host_ns(at));
            window.shared().thread().arm(host_ns);
            self.armed_ns = next_ns;
        }
        self.rearm = false;
    }

    /// In the window, when the guest takes interrupts: begins the measure if a tick waited for that. `false`: a measure is under
    /// way and may be over; to look needs locks that may sleep, so the vCPU leaves the window for it.
    pub(super) fn interrupt_window(&mut self, window: &WindowContext<'_, '_, H, B>) -> bool {
        if self.tick_cost.measured.is_some() {
            return false;
        }
        if let Some(source) = self.waiting_tick(window) {
            let begin_ns = window.board().clock().now_ns();
            self.tick_cost.measured = Some(Tick {
                source,
                begin_ns,
                waited_ns: window.shared().waited_ns(),
            });
            self.waits_for |= WaitsFor::TICK_END;
            self.hold_meanwhile(window, source, begin_ns, LONGEST_NS);
        }
        true
    }

    /// Out of the window, when the guest takes interrupts again: a tick that is measured is over, unless another waits.
    pub(super) fn tick_may_end(&mut self, context: &RunContext<'_, H, B>) {
        let waiting = self.waiting_tick(context);
        match (&mut self.tick_cost.measured, waiting) {
            (Some(tick), Some(source)) => {
                tick.source = source.max(tick.source);
                let source = tick.source;
                let now_ns = context.board.clock().now_ns();
                self.hold_meanwhile(context, source, now_ns, LONGEST_NS);
            }
            _ => self.tick_ends(context),
        }
    }

    /// Neither the tick that is measured nor another keeps the guest from its main loop.
    pub(super) fn tick_ends(&mut self, context: &RunContext<'_, H, B>) {
        let Some(tick) = self.tick_cost.measured else {
            return;
        };
        let pause_ends_ns = self.tick_cost.pause_ends_ns;
        self.forget_tick();
        let now_ns = context.board.clock().now_ns();
        let cost_ns = now_ns
            .saturating_sub(tick.begin_ns)
            .saturating_sub(context.shared.waited_ns().saturating_sub(tick.waited_ns))
            .min(LONGEST_NS);
        self.tick_cost.pause_ends_ns =
            pause_ends_ns.max(now_ns.saturating_add(cost_ns.saturating_mul(2)));
        self.hold_timers(context, tick.source, 0);
    }

    /// No tick is measured any more.
    pub(super) fn forget_tick(&mut self) {
        self.waits_for -= WaitsFor::TICK_END;
        self.tick_cost = TickCost::default();
    }

    /// An interrupt of the host ended guest mode.
    pub(super) fn host_interrupt(&mut self, context: &RunContext<'_, H, B>) {
        let measured = self.tick_cost.measured.map(|tick| tick.source);
        let waits = self.apic.highest_request().is_some() || self.takes_ext_int();
        let waiting = waits.then(|| self.waiting_tick(context)).flatten();
        if let Some(source) = waiting.max(measured) {
            self.hold_longer(context, source);
        }
    }

    /// Devices' timers were served. The PIC pair may keep their interrupts back, until the guest ends the one before.
    pub(super) fn devices_ticked(&mut self, context: &RunContext<'_, H, B>) {
        let chipset = context.board.chipset().lock();
        let waits = timer_lines().any(|line| chipset.pic_holds_back(line));
        drop(chipset);
        if waits {
            self.hold_longer(context, Source::Device);
        }
    }

    /// Holds timers that the guest is not ready for: longer than the last time, if that was not long ago.
    fn hold_longer(&mut self, context: &RunContext<'_, H, B>, source: Source) {
        let (now_ns, cost) = (context.board.clock().now_ns(), self.tick_cost);
        let Some(since_ns) = now_ns.checked_sub(cost.held_until_ns) else {
            return;
        };
        let for_ns = match since_ns < cost.held_for_ns {
            true => cost.held_for_ns.saturating_mul(2).min(LONGEST_NS),
            false => FIRST_HOLD_NS,
        };
        self.hold_meanwhile(context, source, now_ns, for_ns);
    }

    fn hold_meanwhile(
        &mut self,
        context: &impl AnyContext<H, B>,
        source: Source,
        now_ns: u64,
        for_ns: u64,
    ) {
        self.tick_cost.held_for_ns = for_ns;
        self.tick_cost.held_until_ns = now_ns.saturating_add(for_ns);
        self.hold_timers(context, source, self.tick_cost.held_until_ns);
    }

    /// Has the timers be late, beyond the pause if it is not over: this vCPU's, and those of devices if one of their ticks
    /// waited.
    fn hold_timers(&mut self, context: &impl AnyContext<H, B>, source: Source, until_ns: u64) {
        let until_ns = until_ns.max(self.tick_cost.pause_ends_ns);
        self.apic.hold_timer(until_ns);
        if source == Source::Device {
            context.hold_devices(self.index, until_ns);
        }
    }

    /// The source of the ticks that wait for the guest to take interrupts, if any do.
    fn waiting_tick(&self, context: &impl AnyContext<H, B>) -> Option<Source> {
        let of_apic = self.apic.is_requested(self.apic.timer_vector());
        let of_devices = context.board().with_chipset(|chipset, _| {
            let by_pic = chipset.waiting_vector().filter(|_| self.takes_ext_int());
            let waits = |vector| by_pic == Some(vector) || self.apic.is_requested(vector);
            device_vectors(chipset).any(waits)
        });
        match of_devices {
            true => Some(Source::Device),
            false => of_apic.then_some(Source::LocalApic),
        }
    }
}

/// The vectors of devices' ticks.
fn device_vectors(chipset: &Chipset) -> impl Iterator<Item = u8> + '_ {
    let vectors = timer_lines().map(|line| chipset.vectors(line));
    vectors.flatten().flatten()
}
