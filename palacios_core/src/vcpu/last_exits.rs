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
    ring: [Option<PastExit>; KEPT_EXITS],
    /// The index of the next one, times 16. So it wraps by itself after the last, and scaling it to an offset takes no instruction.
    next: u8,
}

impl LastExits {
    pub(super) const fn new() -> Self {
        Self {
            ring: [None; KEPT_EXITS],
            next: 0,
        }
    }

    /// Notes an exit.
    #[inline(always)]
    pub(super) fn note(&mut self, rip: u64, kind: Counter) {
        self.ring[index(self.next)] = Some(PastExit { rip, kind });
        self.next = self.next.wrapping_add(16);
    }

    /// Says of the last one what it was, now that it is known.
    pub(super) fn name_last(&mut self, kind: Counter) {
        if let Some(last) = &mut self.ring[index(self.next.wrapping_sub(16))] {
            last.kind = kind;
        }
    }

    /// All that are kept, the oldest first.
    pub(super) fn all(&self) -> impl Iterator<Item = PastExit> + '_ {
        let (newer, older) = self.ring.split_at(index(self.next));
        older.iter().chain(newer).flatten().copied()
    }
}

/// Less than KEPT_EXITS, as the compiler sees.
fn index(next: u8) -> usize {
    usize::from(next >> 4)
}

const _: () = assert!(KEPT_EXITS == 16);

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
