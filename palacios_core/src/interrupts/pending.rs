// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pending word: what others leave for a vCPU. They post from any context, hard interrupts included, and then kick.
//!
//! Its first 64 bytes are laid out like a posted-interrupt descriptor (SDM 3C: 30.6), so that hardware can one day post
//! there too.
#![forbid(unsafe_code)]

use bitflags::bitflags;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

bitflags! {
    /// What a vCPU is to look at, other than vectors.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Events: u32 {
        /// A non-maskable interrupt.
        const NMI = 1 << 0;
        /// INIT.
        const INIT = 1 << 1;
        /// A start-up message; its page is in bits 8 to 15.
        const STARTUP = 1 << 2;
        /// The output of the PIC pair rose.
        const EXT_INT = 1 << 3;
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
    requests: [AtomicU64; 4],
    control: AtomicU64,
    reserved: [u64; 3],
    /// Which of the requests are level-triggered; written before the request itself.
    level: [AtomicU64; 4],
    events: AtomicU32,
}

const _: () = assert!(core::mem::offset_of!(Pending, control) == 32);

impl Pending {
    /// Nothing pending.
    pub const fn new() -> Self {
        Self {
            requests: [const { AtomicU64::new(0) }; 4],
            control: AtomicU64::new(0),
            reserved: [0; 3],
            level: [const { AtomicU64::new(0) }; 4],
            events: AtomicU32::new(0),
        }
    }

    /// Posts an interrupt. `true`: the vCPU has not been told of one yet, so kick it.
    pub fn post_vector(&self, vector: u8, level: bool) -> bool {
        let (word, bit) = (usize::from(vector >> 6), 1 << (vector & 63));
        let (Some(levels), Some(requests)) = (self.level.get(word), self.requests.get(word)) else {
            return false;
        };
        if level {
            levels.fetch_or(bit, Ordering::Relaxed);
        } else {
            levels.fetch_and(!bit, Ordering::Relaxed);
        }
        requests.fetch_or(bit, Ordering::Release);
        self.control.fetch_or(ON, Ordering::SeqCst) & ON == 0
    }

    /// Posts events. `true`: some of them are new, so kick it.
    pub fn post(&self, events: Events) -> bool {
        let before = self.events.fetch_or(events.bits(), Ordering::SeqCst);
        before & events.bits() != events.bits()
    }

    /// Posts a start-up message; of several that were not taken yet the last one counts.
    pub fn post_startup(&self, page: u8) -> bool {
        let bits = Events::STARTUP.bits() | u32::from(page) << 8;
        let change = |now: u32| Some(now & !Events::STARTUP_PAGE.bits() | bits);
        let _ = self
            .events
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
        true
    }

    /// Whether events wait.
    pub fn has_events(&self) -> bool {
        self.events.load(Ordering::SeqCst) != 0
    }
    /// Whether interrupts wait.
    pub fn has_vectors(&self) -> bool {
        self.control.load(Ordering::SeqCst) & ON != 0
    }

    /// Takes the events.
    pub fn take_events(&self) -> Events {
        Events::from_bits_retain(self.events.swap(0, Ordering::SeqCst))
    }

    /// Takes only these events, and leaves the others.
    pub fn take(&self, which: Events) {
        self.events.fetch_and(!which.bits(), Ordering::SeqCst);
    }

    /// Forgets everything, before its vCPU runs.
    pub fn clear(&self) {
        self.take_events();
        self.drain(|_, _| {});
    }

    /// Takes the interrupts, each with whether it is level-triggered. Only the vCPU's own thread drains.
    pub fn drain(&self, mut accept: impl FnMut(u8, bool)) {
        if !self.has_vectors() {
            return;
        }
        self.control.fetch_and(!ON, Ordering::SeqCst);
        let words = self.requests.iter().zip(&self.level);
        for (base, (requests, level)) in [0u8, 64, 128, 192].into_iter().zip(words) {
            let mut waiting = requests.swap(0, Ordering::Acquire);
            let level = level.load(Ordering::Relaxed);
            while waiting != 0 {
                let bit = waiting.trailing_zeros() as u8;
                accept(base.wrapping_add(bit), level >> bit & 1 != 0);
                waiting &= waiting - 1;
            }
        }
    }
}

impl Default for Pending {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vector_arrives_once_with_its_trigger_mode() {
        let pending = Pending::new();
        assert!(pending.post_vector(0x31, false));
        assert!(!pending.post_vector(0xff, true), "already told");
        assert!(!pending.post_vector(0xff, true));
        let mut seen = Vec::new();
        pending.drain(|v, l| seen.push((v, l)));
        assert_eq!(seen, [(0x31, false), (0xff, true)]);
        pending.drain(|_, _| panic!("nothing is left"));
        assert!(pending.post_vector(0x31, false), "told again");
    }

    #[test]
    fn events_are_new_once_and_the_last_startup_page_counts() {
        let pending = Pending::new();
        assert!(pending.post(Events::NMI));
        assert!(!pending.post(Events::NMI));
        pending.post_startup(0x12);
        pending.post_startup(0x9f);
        let events = pending.take_events();
        assert!(events.contains(Events::NMI | Events::STARTUP));
        assert_eq!((events & Events::STARTUP_PAGE).bits() >> 8, 0x9f);
        assert!(!pending.has_events());
    }
}
