// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest is owed whose timers interrupt it more often than it can bear.
//!
//! A *tick* is an interrupt of a timer: of the local APIC's, in any mode, of the 8254, of the real-time clock, or of the HPET.
//! If it takes the guest longer than the timer's period, the next one is due before the guest is done, and the guest's main
//! loop never runs. A processor promises nothing then. But most of what a tick takes may be the VMM's time, inside another hypervisor
//! above all, so the guest cannot know which period is too short.
//!
//! ```text
//!  timer  due         due, waits     held …                              due
//!  guest   [ a tick    ][ the next     ][ main loop: twice as long        ][ a tick …
//!                       '-- measured --'
//! ```
//!
//! A tick that had to wait for the guest to take interrupts is measured: from when the guest takes it until the guest takes
//! interrupts again. Meanwhile the timers are held, and then for twice as long again: they count on, but make no interrupt. A
//! guest that is done with each tick before the next one is due meets nothing of this. Any other keeps a third to a half of
//! its time.
//!
//! It may be worse: a timer that is faster than an entry ends each before the guest has executed anything. So when an
//! interrupt of the host ends guest mode while a tick waits, the timers are held as well, longer each time.
//!
//! All this costs an exit at the end of a tick that had to wait. Other ticks, and other entries, do not look at it.
#![forbid(unsafe_code)]

use super::deliver::WaitsFor;
use super::{Here, Vcpu};
use crate::backend::Backend;
use crate::devices::{hpet, pit, rtc, IrqLine};
use crate::host::{Host, Lock, Thread};
use crate::interfaces::Clock;
use crate::interrupts::chipset::Chipset;

/// No tick is taken to be longer. When a guest or its host was away for once, its timers are soon back.
const LONGEST_NS: u64 = 100_000_000;
/// How long timers are held first that left the guest no time to execute anything.
const FIRST_HOLD_NS: u64 = 1_000_000;
/// The lines of the devices that tick.
fn timer_lines() -> impl Iterator<Item = IrqLine> {
    [pit::IRQ, rtc::IRQ].into_iter().chain(hpet::INPUTS)
}

/// The measure of a vCPU's ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TickCost {
    measured: Option<Tick>,
    /// The end of the pause behind the last one that was measured.
    pause_ends_ns: u64,
    /// Until when timers are held while a tick waits or is measured, and for how long they were.
    held_until_ns: u64,
    held_for_ns: u64,
}

/// A tick that is measured.
#[derive(Clone, Copy, Debug)]
struct Tick {
    source: Source,
    begin_ns: u64,
    /// How long the thread had waited for a CPU by then.
    waited_ns: u64,
}

/// Which timer a tick comes from. Of both, a device's is the greater concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    LocalApic,
    Device,
}

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// In the window, when the guest takes interrupts: begins the measure if a tick waited for that. `false`: one is measured,
    /// and may be over, which is for outside.
    pub(super) fn interrupt_window(&mut self, here: &Here<'_, H, B>) -> bool {
        if self.tick_cost.measured.is_some() {
            return false;
        }
        if let Some(source) = self.waiting_tick(here) {
            let begin_ns = here.vm.clock().now_ns();
            self.tick_cost.measured = Some(Tick {
                source,
                begin_ns,
                waited_ns: waited_ns(here),
            });
            self.waits_for |= WaitsFor::TICK_END;
            self.hold_meanwhile(here, source, begin_ns, LONGEST_NS);
        }
        true
    }

    /// Out of the window, when the guest takes interrupts again: a tick that is measured is over, unless another waits.
    pub(super) fn tick_may_end(&mut self, here: &Here<'_, H, B>) {
        let waiting = self.waiting_tick(here);
        match (&mut self.tick_cost.measured, waiting) {
            (Some(tick), Some(source)) => {
                tick.source = source.max(tick.source);
                let source = tick.source;
                let now_ns = here.vm.clock().now_ns();
                self.hold_meanwhile(here, source, now_ns, LONGEST_NS);
            }
            _ => self.tick_ends(here),
        }
    }

    /// Neither the tick that is measured nor another keeps the guest from its main loop.
    pub(super) fn tick_ends(&mut self, here: &Here<'_, H, B>) {
        let Some(tick) = self.tick_cost.measured else {
            return;
        };
        let pause_ends_ns = self.tick_cost.pause_ends_ns;
        self.forget_tick();
        let now_ns = here.vm.clock().now_ns();
        let cost_ns = now_ns
            .saturating_sub(tick.begin_ns)
            .saturating_sub(waited_ns(here).saturating_sub(tick.waited_ns))
            .min(LONGEST_NS);
        self.tick_cost.pause_ends_ns =
            pause_ends_ns.max(now_ns.saturating_add(cost_ns.saturating_mul(2)));
        self.hold_timers(here, tick.source, 0);
    }

    /// No tick is measured any more.
    pub(super) fn forget_tick(&mut self) {
        self.waits_for -= WaitsFor::TICK_END;
        self.tick_cost = TickCost::default();
    }

    /// An interrupt of the host ended guest mode.
    pub(super) fn host_interrupt(&mut self, here: &Here<'_, H, B>) {
        let measured = self.tick_cost.measured.map(|tick| tick.source);
        let waits = self.apic.highest_request().is_some() || self.takes_ext_int();
        let waiting = waits.then(|| self.waiting_tick(here)).flatten();
        if let Some(source) = waiting.max(measured) {
            self.hold_longer(here, source);
        }
    }

    /// Devices' timers were served. The PIC pair may keep their interrupts back, until the guest ends the one before.
    pub(super) fn devices_ticked(&mut self, here: &Here<'_, H, B>) {
        let chipset = here.vm.chipset().lock();
        let waits = timer_lines().any(|line| chipset.pic_holds_back(line.0));
        drop(chipset);
        if waits {
            self.hold_longer(here, Source::Device);
        }
    }

    /// Holds timers that the guest is not ready for: longer than the last time, if that was not long ago.
    fn hold_longer(&mut self, here: &Here<'_, H, B>, source: Source) {
        let (now_ns, cost) = (here.vm.clock().now_ns(), self.tick_cost);
        let Some(since_ns) = now_ns.checked_sub(cost.held_until_ns) else {
            return;
        };
        let for_ns = match since_ns < cost.held_for_ns {
            true => cost.held_for_ns.saturating_mul(2).min(LONGEST_NS),
            false => FIRST_HOLD_NS,
        };
        self.hold_meanwhile(here, source, now_ns, for_ns);
    }

    fn hold_meanwhile(&mut self, here: &Here<'_, H, B>, source: Source, now_ns: u64, for_ns: u64) {
        self.tick_cost.held_for_ns = for_ns;
        self.tick_cost.held_until_ns = now_ns.saturating_add(for_ns);
        self.hold_timers(here, source, self.tick_cost.held_until_ns);
    }

    /// Has the timers be late, beyond the pause if it is not over: this vCPU's, and those of devices if one of their ticks
    /// waited.
    fn hold_timers(&mut self, here: &Here<'_, H, B>, source: Source, until_ns: u64) {
        let until_ns = until_ns.max(self.tick_cost.pause_ends_ns);
        self.apic.hold_timer(until_ns);
        if source == Source::Device {
            here.vm.hold_devices(self.index, until_ns);
        }
    }

    /// The source of the ticks that wait for the guest to take interrupts, if any do.
    fn waiting_tick(&self, here: &Here<'_, H, B>) -> Option<Source> {
        let of_apic = self.apic.is_requested(self.apic.timer_vector());
        let chipset = here.vm.chipset().lock();
        let by_pic = chipset.waiting_vector().filter(|_| self.takes_ext_int());
        let waits = |vector| by_pic == Some(vector) || self.apic.is_requested(vector);
        match () {
            () if device_vectors(&chipset).any(waits) => Some(Source::Device),
            () => of_apic.then_some(Source::LocalApic),
        }
    }
}

/// How long the vCPU's thread has waited for a CPU, where the host counts that.
fn waited_ns<H: Host, B: Backend<H>>(here: &Here<'_, H, B>) -> u64 {
    here.shared.thread().waited_ns().unwrap_or(0)
}

/// The vectors of devices' ticks.
fn device_vectors(chipset: &Chipset) -> impl Iterator<Item = u8> + '_ {
    let vectors = timer_lines().map(|line| chipset.vectors(line.0));
    vectors.flatten().flatten()
}
