// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a change waits for those who still act on what was before it, without stopping anybody.
//!
//! Who acts enters, reads what is now so, acts on it, and leaves. Who changes something publishes the change and then waits for
//! all who entered before: whoever enters later reads the change. There are two counters of those inside, and each change turns
//! new ones to the other, so that a change waits for a few and is never kept waiting by newcomers.
//!
//! The two sides meet in one word: an entry adds to a counter and then looks for the turn; a change turns and then
//! reads the counter, by an atomic addition of nothing. One of the two comes first, so either the entry sees the turn, or the
//! change sees who entered. `palacios_core/models` proves it.
#![forbid(unsafe_code)]

use crate::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire},
};
use core::sync::atomic::Ordering::Relaxed;

/// How many turns a gate has, so that no two gates are ever in the same one.
const TURNS: u64 = 1 << 40;
static FIRST_TURN: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);

/// Counts who is inside.
pub(crate) struct Gate {
    turn: AtomicU64,
    inside: [AtomicU32; 2],
}

/// Somebody is inside, until it is dropped.
pub(crate) struct Inside<'a> {
    counter: &'a AtomicU32,
    turn: u64,
}

impl Inside<'_> {
    /// Which turn this is. What was seen in another one may have changed since; in the same one, each change that is made waits until this is
    /// dropped. It is never the same again.
    pub(crate) fn turn(&self) -> u64 {
        self.turn
    }
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            turn: AtomicU64::new(FIRST_TURN.fetch_add(TURNS, Relaxed)),
            inside: [AtomicU32::new(0), AtomicU32::new(0)],
        }
    }

    fn counter(&self, turn: u64) -> &AtomicU32 {
        let [even, odd] = &self.inside;
        if turn & 1 == 0 {
            even
        } else {
            odd
        }
    }

    /// Enters. What was published before the last [`Gate::turn`] that this does not delay is seen inside. Any context.
    pub(crate) fn enter(&self) -> Inside<'_> {
        loop {
            let turn = self.turn.load(Acquire);
            let counter = self.counter(turn);
            counter.fetch_add(1, AcqRel);
            let inside = Inside { counter, turn };
            if self.turn.load(Acquire) == turn {
                return inside;
            }
        }
    }

    /// Begins the wait for those inside, behind the publication of a change: calls `wait` until they have left. One change at
    /// a time.
    pub(crate) fn wait_for_those_inside(&self, wait: impl Fn()) {
        let before = self.turn.fetch_add(1, AcqRel);
        while self.counter(before).fetch_add(0, AcqRel) != 0 {
            wait();
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, AcqRel);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_change_waits_for_those_who_came_before_it_only() {
        let gate = Gate::new();
        gate.wait_for_those_inside(|| panic!("nobody is inside"));
        let early = Cell::new(Some(gate.enter()));
        let (waits, late) = (Cell::new(0), Cell::new(None));
        gate.wait_for_those_inside(|| {
            waits.set(waits.get() + 1);
            late.set(Some(gate.enter()));
            early.take();
        });
        assert_eq!(waits.get(), 1);
        late.take();
        gate.wait_for_those_inside(|| panic!("all have left"));
    }
}
