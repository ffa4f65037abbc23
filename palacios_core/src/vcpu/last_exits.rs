// SPDX-License-Identifier: MIT OR Apache-2.0
//! The last exits of a vCPU, kept for whoever asks why its guest died. Noting one is on the path of every exit.
#![forbid(unsafe_code)]

use crate::stats::Counter;

/// How many are kept.
pub const KEPT_EXITS: usize = 16;

/// An exit that is past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastExit {
    /// RIP at the exit: of an instruction that exited, that instruction.
    pub rip: u64,
    /// The counter of exits of its kind.
    pub kind: Counter,
}

/// A ring of them.
#[derive(Clone)]
pub(super) struct LastExits {
    ring: [PastExit; KEPT_EXITS],
    /// How many were noted, modulo 2^32.
    noted: u32,
}

impl LastExits {
    pub(super) const fn new() -> Self {
        const NONE: PastExit = PastExit {
            rip: 0,
            kind: Counter::Other,
        };
        Self {
            ring: [NONE; KEPT_EXITS],
            noted: 0,
        }
    }

    /// Notes an exit.
    #[inline(always)]
    pub(super) fn note(&mut self, rip: u64, kind: Counter) {
        self.ring[self.noted as usize % KEPT_EXITS] = PastExit { rip, kind };
        self.noted = self.noted.wrapping_add(1);
    }

    /// Says of the last one what it was, now that it is known.
    pub(super) fn name_last(&mut self, kind: Counter) {
        self.ring[self.noted.wrapping_sub(1) as usize % KEPT_EXITS].kind = kind;
    }

    /// All that are kept, the oldest first.
    pub(super) fn all(&self) -> impl Iterator<Item = PastExit> + '_ {
        let kept = (self.noted as usize).min(KEPT_EXITS);
        let first = self.noted.wrapping_sub(kept as u32) as usize;
        (first..first.wrapping_add(kept)).map(|n| self.ring[n % KEPT_EXITS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_ones_in_their_order() {
        let mut exits = LastExits::new();
        assert_eq!(exits.all().count(), 0);
        for rip in 0..20 {
            exits.note(rip, Counter::Cpuid);
            exits.name_last(Counter::Mmio);
            let kept: Vec<u64> = exits.all().map(|exit| exit.rip).collect();
            let first = (rip + 1).saturating_sub(KEPT_EXITS as u64);
            assert_eq!(kept, (first..=rip).collect::<Vec<_>>());
        }
        assert!(exits.all().all(|exit| exit.kind == Counter::Mmio));
    }
}
