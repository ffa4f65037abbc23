// SPDX-License-Identifier: MIT OR Apache-2.0
//! Slows a guest's timers down when a tick takes the guest longer than the timer's period, so that its main loop runs too. Here are
//! the rule and the measure; `timers.rs` applies them.
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

/// The measure of a vCPU's ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TickCost {
    pub(super) measured: Option<Tick>,
    /// The end of the pause behind the last one that was measured.
    pub(super) pause_ends_ns: u64,
    /// Until when timers are held while a tick waits or is measured, and for how long they were.
    pub(super) held_until_ns: u64,
    pub(super) held_for_ns: u64,
}

/// A tick that is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tick {
    pub(super) source: Source,
    pub(super) begin_ns: u64,
    /// How long the thread had waited for a CPU by then.
    pub(super) waited_ns: u64,
}

/// Which timer a tick comes from. Of both, a device's is the greater concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    LocalApic,
    Device,
}
