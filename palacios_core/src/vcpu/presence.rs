// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a vCPU is, and who has called it: how work that was left for it is noticed, with no call too many.
//!
//! ```text
//!  poster                             vCPU
//!  1. leave the work                  1. say where it goes: in the guest, or to sleep
//!  2. call: set CALLED, see           2. look for work
//!     where the vCPU is                  some: come back
//! ```
//!
//! Both second steps read what the other's first step wrote, because step 2 of the one and step 1 of the other change the
//! same word, and one of them comes first. If the call does, the vCPU's look sees the work (its change of the word read the
//! call). If the vCPU does, the call sees where it went, and fetches it. Every change of the word is therefore one
//! read-modify-write; a plain store would cut that chain. `palacios_core/models` proves it.
//!
//! CALLED stays until the vCPU says again where it is, so a vCPU is fetched once, however many call.
#![forbid(unsafe_code)]

use crate::atomic::{
    AtomicU64, AtomicU8,
    Ordering::{AcqRel, Acquire, Release},
};

/// Looks for work before it enters or parks.
const OUTSIDE: u8 = 0;
/// In the guest, or past its last look.
const IN_GUEST: u8 = 1;
/// Parked, or past its last look.
const PARKED: u8 = 2;
/// Somebody left work since.
const CALLED: u8 = 1 << 7;

/// What a call takes to be heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Call {
    /// Nothing: it will look, or is fetched already.
    Nothing,
    /// Its CPU must leave the guest.
    Kick,
    /// Its thread must wake.
    Unpark,
}

/// A vCPU's whereabouts.
pub(crate) struct Presence {
    word: AtomicU8,
    /// The memory generation of its last entry.
    generation: AtomicU64,
}

impl Presence {
    /// Outside.
    pub(crate) fn new() -> Self {
        Self {
            word: AtomicU8::new(OUTSIDE),
            generation: AtomicU64::new(0),
        }
    }

    /// Work was left. Any context. Whoever is told to kick or unpark must do so: nobody else is.
    pub(crate) fn call(&self) -> Call {
        match self.word.fetch_or(CALLED, AcqRel) {
            IN_GUEST => Call::Kick,
            PARKED => Call::Unpark,
            _ => Call::Nothing,
        }
    }

    /// It is about to enter: what is left from now on comes with a kick. Returns the memory generation, which is read here
    /// so that a revocation sees a vCPU that may use older translations.
    pub(crate) fn enter(&self, generation: impl FnOnce() -> u64) -> u64 {
        self.word.swap(IN_GUEST, AcqRel);
        let generation = generation();
        self.generation.store(generation, Release);
        generation
    }
    /// It is about to park: what is left from now on unparks it.
    pub(crate) fn park(&self) {
        self.word.swap(PARKED, AcqRel);
    }
    /// It is back, and will look.
    pub(crate) fn leave(&self) {
        self.word.swap(OUTSIDE, AcqRel);
    }

    /// Whether it may be in the guest with translations older than `generation`. Once `false` for a generation that has
    /// begun, it stays so.
    pub(crate) fn is_stale(&self, generation: u64) -> bool {
        // A change of the word, though to the same: an entry after it sees the new generation.
        let place = self.word.fetch_or(0, AcqRel);
        place & !CALLED == IN_GUEST && self.generation.load(Acquire) < generation
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_call_fetches_once_from_where_the_vcpu_is() {
        let presence = Presence::new();
        assert_eq!(presence.call(), Call::Nothing, "outside it looks by itself");
        presence.enter(|| 0);
        assert_eq!(presence.call(), Call::Kick);
        assert_eq!(presence.call(), Call::Nothing, "it was kicked");
        presence.leave();
        assert_eq!(presence.call(), Call::Nothing);
        presence.park();
        assert_eq!(presence.call(), Call::Unpark);
        assert_eq!(presence.call(), Call::Nothing, "it was woken");
    }

    #[test]
    fn only_a_vcpu_in_the_guest_is_stale() {
        let presence = Presence::new();
        assert!(!presence.is_stale(1));
        presence.enter(|| 1);
        assert!(!presence.is_stale(1));
        assert!(presence.is_stale(2));
        let _ = presence.call();
        assert!(presence.is_stale(2), "called, but not out yet");
        presence.leave();
        assert!(!presence.is_stale(2));
        presence.park();
        assert!(!presence.is_stale(2));
    }
}
