// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest is owed whose timers interrupt it more often than it can bear.
//!
//! A *tick* is an interrupt of a timer: of the local APIC's, in any mode, of the 8254, or of the real-time clock. If it takes
//! the guest longer than the timer's period, the next one is due before the guest is done, and the guest's main loop never
//! runs. A processor promises nothing then. But most of what a tick takes may be the VMM's time, inside another hypervisor
//! above all, so the guest cannot know which period is too short.
//!
//! ```text
//!  timer  due         due, waits     held …                              due
//!  guest   [ a tick    ][ the next     ][ main loop: twice as long        ][ a tick …
//!                       '-- measured --'
//! ```
//!
//! From when a tick has to wait for the guest to take interrupts, the timers are held: they count on, but make no interrupt.
//! The tick that waited is measured, until the guest takes interrupts again, and the timers are held for twice as long
//! again. A guest that is done with each tick before the next one is due meets nothing of this. Any other keeps a third to
//! a half of its time.
//!
//! This costs an exit at the end of a tick that had to wait, and nothing at others.
#![forbid(unsafe_code)]

use super::deliver::WaitsFor;
use super::{Here, Vcpu};
use crate::backend::Backend;
use crate::devices::{pit, rtc, Clock, IrqLine};
use crate::host::{Host, Lock, Thread};
use crate::interrupts::chipset::Chipset;

/// No tick is taken to be longer. When a guest or its host was away for once, its timers are soon back.
const LONGEST_NS: u64 = 100_000_000;
/// The lines of the devices that tick.
const TIMER_LINES: [IrqLine; 2] = [pit::IRQ, rtc::IRQ];

/// How a vCPU stands with its ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum TickCost {
    /// It takes them when they come.
    #[default]
    Borne,
    /// One waits for the guest to take interrupts.
    Waits(Source),
    /// One is measured.
    Measured {
        source: Source,
        begin_ns: u64,
        /// How long the thread had waited for a CPU by then.
        waited_ns: u64,
    },
}

/// Which timer a tick comes from. Of both, a device's is the greater concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    LocalApic,
    Device,
}

impl<H: Host, B: Backend<H>> Vcpu<H, B> {
    /// The guest is entered while an interrupt waits, or a tick is measured.
    pub(super) fn hold_timers_if_a_tick_waits(&mut self, here: &Here<'_, H, B>) {
        let source = match self.tick_cost {
            TickCost::Borne => None,
            TickCost::Waits(source) | TickCost::Measured { source, .. } => Some(source),
        };
        if let Some(source) = source.max(self.waiting_tick(here)) {
            self.tick_waits(here, source);
        }
    }

    /// Devices' timers were served. The PIC pair may keep their interrupts back, until the guest ends the one before.
    pub(super) fn hold_timers_if_the_pic_does(&mut self, here: &Here<'_, H, B>) {
        let chipset = here.vm.chipset().lock();
        let waits = TIMER_LINES
            .iter()
            .any(|line| chipset.pic_holds_back(line.0));
        drop(chipset);
        if waits {
            self.tick_waits(here, Source::Device);
        }
    }

    fn tick_waits(&mut self, here: &Here<'_, H, B>, new: Source) {
        match &mut self.tick_cost {
            TickCost::Borne => self.tick_cost = TickCost::Waits(new),
            TickCost::Waits(source) | TickCost::Measured { source, .. } => *source = new,
        }
        let now_ns = here.vm.clock().now_ns();
        self.hold_timers(here, new, now_ns.saturating_add(LONGEST_NS));
    }

    /// The guest is about to be given an interrupt. If that is a tick, and one had to wait, the measure begins; another that
    /// waited as well is measured with it.
    pub(super) fn measure_tick(&mut self, here: &Here<'_, H, B>, vector: u8) {
        if let TickCost::Waits(source) = self.tick_cost {
            if self.is_tick(here, vector) {
                self.waits_for |= WaitsFor::TICK_END;
                self.tick_cost = TickCost::Measured {
                    source,
                    begin_ns: here.vm.clock().now_ns(),
                    waited_ns: here.shared.thread().waited_ns().unwrap_or(0),
                };
            }
        }
    }

    /// The guest takes interrupts again. If no tick waits for that, the measure ends.
    pub(super) fn tick_may_end(&mut self, here: &Here<'_, H, B>) {
        if self.waiting_tick(here).is_none() {
            self.tick_ends(here);
        }
    }

    /// Neither the tick that is measured nor another keeps the guest from its main loop.
    pub(super) fn tick_ends(&mut self, here: &Here<'_, H, B>) {
        let TickCost::Measured {
            source,
            begin_ns,
            waited_ns: waited_before_ns,
        } = self.tick_cost
        else {
            return;
        };
        self.forget_tick();
        let waited_ns = here.shared.thread().waited_ns().unwrap_or(0);
        let waited_ns = waited_ns.saturating_sub(waited_before_ns);
        let now_ns = here.vm.clock().now_ns();
        let cost_ns = now_ns
            .saturating_sub(begin_ns)
            .saturating_sub(waited_ns)
            .min(LONGEST_NS);
        self.hold_timers(here, source, now_ns.saturating_add(2 * cost_ns));
    }

    /// No tick is measured any more.
    pub(super) fn forget_tick(&mut self) {
        self.waits_for -= WaitsFor::TICK_END;
        self.tick_cost = TickCost::Borne;
    }

    /// Has the timers be late: this vCPU's, and those of devices if one of their ticks waited.
    fn hold_timers(&mut self, here: &Here<'_, H, B>, source: Source, until_ns: u64) {
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

    fn is_tick(&self, here: &Here<'_, H, B>, vector: u8) -> bool {
        let of_device = || device_vectors(&here.vm.chipset().lock()).any(|tick| tick == vector);
        vector == self.apic.timer_vector() || of_device()
    }
}

/// The vectors of devices' ticks.
fn device_vectors(chipset: &Chipset) -> impl Iterator<Item = u8> + '_ {
    let vectors = TIMER_LINES.iter().map(|line| chipset.vectors(line.0));
    vectors.flatten().flatten()
}
