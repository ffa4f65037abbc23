// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pending word: what others leave for a vCPU, from any context, hard interrupts included.
//!
//! * To *post* is to write something into the pending word.
//! * To *call* a vCPU is to have it look there, wherever it is (`VcpuShared::call`, `vcpu/shared.rs`). That takes a kick, an unpark or
//!   nothing (`vcpu/presence.rs`).
//! * To *kick* is to have the host's CPU leave guest mode (`Thread::kick`).
//! * To *unpark* is to wake a thread that sleeps (`Thread::unpark`).
//!
//! Its first 64 bytes are laid out like a posted-interrupt descriptor (SDM 3C: 30.6), so that hardware can one day post
//! there too: 256 requests, then the control word with ON, SN, NV and NDST, of which software needs ON alone. Hardware
//! knows no level-triggered requests; those have a set of their own behind it.
//!
//! A post writes the request, then ON. A drain takes ON, then the requests. So what was posted before ON was taken is seen
//! by that drain, and what was posted after it finds ON clear and announces itself. `palacios_core/models` proves it.
#![forbid(unsafe_code)]

use crate::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use bitflags::bitflags;
use core::array::from_fn;

bitflags! {
    /// What a vCPU is to look at, other than vectors.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Events: u32 {
        /// A non-maskable interrupt.
        const NMI = 1 << 0;
        /// Another one, beside [`Events::NMI`].
        const SECOND_NMI = 1 << 6;
        /// INIT.
        const INIT = 1 << 1;
        /// A start-up message; its page is in bits 8 to 15.
        const STARTUP = 1 << 2;
        /// The output of the PIC pair rose.
        const PIC_OUTPUT = 1 << 3;
        /// The VM's run state changed.
        const STATE = 1 << 4;
        /// A device's deadline came nearer.
        const DEADLINE = 1 << 5;
        /// The start-up page.
        const STARTUP_PAGE = 0xff << 8;
    }
}

/// Outstanding: something was posted since the last drain.
const ON: u64 = 1;

/// One vCPU's pending word.
#[repr(C, align(64))]
pub struct Pending {
    /// PIR: the requests that are edges.
    edges: [AtomicU64; 4],
    control: AtomicU64,
    reserved: [u64; 3],
    /// The requests that are level-triggered.
    levels: [AtomicU64; 4],
    events: AtomicU32,
}

#[cfg(not(loom))]
const _: () = assert!(core::mem::offset_of!(Pending, control) == 32);

impl Pending {
    /// Nothing pending.
    pub fn new() -> Self {
        Self {
            edges: from_fn(|_| AtomicU64::new(0)),
            control: AtomicU64::new(0),
            reserved: [0; 3],
            levels: from_fn(|_| AtomicU64::new(0)),
            events: AtomicU32::new(0),
        }
    }

    /// Posts an interrupt. `true`: the vCPU has not been told of one yet, so call it.
    pub fn post_vector(&self, vector: u8, level: bool) -> bool {
        let requests = if level { &self.levels } else { &self.edges };
        let Some(word) = requests.get(usize::from(vector >> 6)) else {
            return false;
        };
        word.fetch_or(1 << (vector & 63), Relaxed);
        self.control.fetch_or(ON, AcqRel) & ON == 0
    }

    /// Posts events. `true`: some of them are new, so call it.
    pub fn post(&self, events: Events) -> bool {
        let before = self.events.fetch_or(events.bits(), AcqRel);
        before & events.bits() != events.bits()
    }

    /// Posts an NMI. Of those that the vCPU has not taken yet two count: a processor takes one, and keeps another meanwhile.
    pub fn post_nmi(&self) -> bool {
        let first = Events::NMI.bits();
        let second = |now: u32| {
            if now & first == 0 {
                0
            } else {
                Events::SECOND_NMI.bits()
            }
        };
        let before = self.change(|now| now | first | second(now));
        before & first == 0
    }

    /// Posts an INIT. What was not taken yet and came before it is void: a start-up message, NMIs.
    pub fn post_init(&self) -> bool {
        let nmis = Events::NMI | Events::SECOND_NMI;
        let void = Events::STARTUP | Events::STARTUP_PAGE | nmis;
        let before = self.change(|now| now & !void.bits() | Events::INIT.bits());
        before & Events::INIT.bits() == 0
    }

    /// Posts a start-up message. Of several the first counts: it starts the vCPU, which then heeds no other.
    pub fn post_startup(&self, page: u8) -> bool {
        let bits = Events::STARTUP.bits() | u32::from(page) << 8;
        let posted = |now: u32| now & Events::STARTUP.bits() != 0;
        let before = self.change(|now| if posted(now) { now } else { now | bits });
        !posted(before)
    }

    /// Changes the events in one step; what they were before.
    fn change(&self, change: impl Fn(u32) -> u32) -> u32 {
        let changed = |now| Some(change(now));
        let before = self.events.fetch_update(AcqRel, Acquire, changed);
        before.unwrap_or_else(|before| before)
    }

    /// Whether events wait.
    pub fn has_events(&self) -> bool {
        self.events.load(Acquire) != 0
    }
    /// Whether any of these events waits.
    pub fn has(&self, which: Events) -> bool {
        self.events.load(Acquire) & which.bits() != 0
    }
    /// Whether interrupts wait.
    pub fn has_vectors(&self) -> bool {
        self.control.load(Acquire) & ON != 0
    }

    /// Takes the events.
    pub fn take_events(&self) -> Events {
        Events::from_bits_retain(self.events.swap(0, AcqRel))
    }

    /// Takes only these events, and leaves the others.
    pub fn take(&self, which: Events) {
        self.events.fetch_and(!which.bits(), AcqRel);
    }

    /// Forgets everything, before its vCPU runs.
    pub fn clear(&self) {
        self.take_events();
        self.drain(|_, _| {});
    }

    /// Takes the interrupts, each with whether it is level-triggered. Only who has the vCPU drains.
    ///
    /// A vector that was posted both ways comes twice, as a level last: its end is told to the I/O APICs, so that none
    /// waits for it for ever.
    pub fn drain(&self, mut accept: impl FnMut(u8, bool)) {
        if !self.has_vectors() {
            return;
        }
        self.control.fetch_and(!ON, AcqRel);
        take_all(&self.edges, |vector| accept(vector, false));
        take_all(&self.levels, |vector| accept(vector, true));
    }
}

/// Takes every request of a set.
fn take_all(requests: &[AtomicU64; 4], mut accept: impl FnMut(u8)) {
    for (base, word) in [0u8, 64, 128, 192].into_iter().zip(requests) {
        // Most words are empty, and a read costs less than an exchange.
        let mut waiting = match word.load(Relaxed) {
            0 => 0,
            _ => word.swap(0, Relaxed),
        };
        while waiting != 0 {
            accept(base.wrapping_add(waiting.trailing_zeros() as u8));
            waiting &= waiting.wrapping_sub(1);
        }
    }
}

impl Default for Pending {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn drained(pending: &Pending) -> Vec<(u8, bool)> {
        let mut seen = Vec::new();
        pending.drain(|vector, level| seen.push((vector, level)));
        seen
    }

    fn page(events: Events) -> u32 {
        (events & Events::STARTUP_PAGE).bits() >> 8
    }

    #[test]
    fn each_vector_arrives_once_with_its_trigger_mode() {
        let pending = Pending::new();
        assert!(pending.post_vector(0x31, false));
        assert!(!pending.post_vector(0xff, true), "already told");
        assert!(!pending.post_vector(0xff, true));
        assert_eq!(drained(&pending), [(0x31, false), (0xff, true)]);
        assert_eq!(drained(&pending), []);
        assert!(pending.post_vector(0x31, false), "told again");
    }

    #[test]
    fn every_vector_has_a_place_in_both_sets() {
        let pending = Pending::new();
        for vector in 0..=255 {
            for level in [false, true] {
                assert!(pending.post_vector(vector, level));
                assert_eq!(drained(&pending), [(vector, level)]);
            }
        }
    }

    #[test]
    fn a_vector_posted_both_ways_ends_as_a_level() {
        let pending = Pending::new();
        pending.post_vector(0x41, true);
        pending.post_vector(0x41, false);
        assert_eq!(drained(&pending), [(0x41, false), (0x41, true)]);
    }

    #[test]
    fn events_are_new_once() {
        let pending = Pending::new();
        assert!(pending.post(Events::NMI));
        assert!(!pending.post(Events::NMI));
        assert!(pending.post(Events::STATE));
        pending.take(Events::STATE);
        assert!(pending.post(Events::STATE), "new again");
        assert_eq!(pending.take_events(), Events::NMI | Events::STATE);
        assert!(!pending.has_events());
    }

    #[test]
    fn two_nmis_count() {
        let pending = Pending::new();
        assert!(pending.post_nmi());
        assert!(!pending.post_nmi(), "already told");
        assert!(!pending.post_nmi());
        assert_eq!(pending.take_events(), Events::NMI | Events::SECOND_NMI);
        assert!(pending.post_nmi(), "told again");
        assert_eq!(pending.take_events(), Events::NMI);
    }

    #[test]
    fn the_first_startup_after_an_init_counts() {
        let pending = Pending::new();
        assert!(pending.post_startup(0x77), "to a vCPU that runs");
        pending.post_nmi();
        pending.post_nmi();
        assert!(pending.post_init());
        assert!(!pending.post_init());
        assert_eq!(pending.take_events(), Events::INIT);

        pending.post_init();
        assert!(pending.post_startup(0x12));
        assert!(!pending.post_startup(0x9f));
        let events = pending.take_events();
        assert!(events.contains(Events::INIT | Events::STARTUP));
        assert_eq!(page(events), 0x12);
    }
}
