// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where a vCPU's time goes: guest, handling, idle, and waiting for a CPU of the host's, which together are all of it.
//!
//! The thread says when it turns to something else; the counters grow then, and in between whoever reads them adds what
//! has passed since. Readers and the thread share no lock: a sequence number tells a reader that it must read again.
#![forbid(unsafe_code)]

use crate::stats::{Counter, Snapshot, Stats};
use core::sync::atomic::{fence, AtomicU32, AtomicU64, AtomicU8, Ordering};

/// What a vCPU's thread spends its time on while it has a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum TimeClass {
    /// Does not run.
    NotRunning,
    /// The VMM's work.
    Handling,
    /// In a window.
    Guest,
    /// Parked.
    Idle,
}

impl TimeClass {
    fn counter(self) -> Option<Counter> {
        match self {
            Self::NotRunning => None,
            Self::Handling => Some(Counter::HandlingNs),
            Self::Guest => Some(Counter::GuestNs),
            Self::Idle => Some(Counter::IdleNs),
        }
    }
    fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Handling,
            2 => Self::Guest,
            3 => Self::Idle,
            _ => Self::NotRunning,
        }
    }
}

/// The host's clock, and how long the thread has waited for a CPU so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) now_ns: u64,
    pub(crate) waited_ns: u64,
}

/// What one vCPU's thread is at, and since when.
pub(crate) struct Times {
    /// Odd while the thread writes.
    sequence: AtomicU32,
    class: AtomicU8,
    since_ns: AtomicU64,
    waited_ns: AtomicU64,
}

impl Times {
    pub(crate) const fn new() -> Self {
        Self {
            sequence: AtomicU32::new(0),
            class: AtomicU8::new(TimeClass::NotRunning as u8),
            since_ns: AtomicU64::new(0),
            waited_ns: AtomicU64::new(0),
        }
    }

    /// What passed since the thread turned to what it is at: at that, and waiting.
    fn passed(&self, at: Reading) -> (TimeClass, u64, u64) {
        let class = TimeClass::from_byte(self.class.load(Ordering::Relaxed));
        let since_ns = self.since_ns.load(Ordering::Relaxed);
        let waited_ns = self.waited_ns.load(Ordering::Relaxed);
        let passed_ns = at.now_ns.saturating_sub(since_ns);
        let waited_ns = at.waited_ns.saturating_sub(waited_ns).min(passed_ns);
        (class, passed_ns - waited_ns, waited_ns)
    }

    /// On the thread: turns to something else. Of a window at most `guest_ns` counts as the guest's.
    pub(crate) fn turn_to(&self, next: TimeClass, at: Reading, guest_ns: u64, stats: &Stats) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        let (class, mut spent_ns, waited_ns) = self.passed(at);
        if class == TimeClass::Guest {
            let around_ns = spent_ns.saturating_sub(guest_ns);
            stats.add(Counter::HandlingNs, around_ns);
            spent_ns -= around_ns;
        }
        if let Some(counter) = class.counter() {
            stats.add(counter, spent_ns);
            stats.add(Counter::WaitingNs, waited_ns);
        }
        self.class.store(next as u8, Ordering::Relaxed);
        self.since_ns.store(at.now_ns, Ordering::Relaxed);
        self.waited_ns.store(at.waited_ns, Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// All counters, those of time up to now. `None`: the thread is just writing, ask again.
    pub(crate) fn snapshot(&self, stats: &Stats, at: impl FnOnce() -> Reading) -> Option<Snapshot> {
        let sequence = self.sequence.load(Ordering::Acquire);
        let mut all = stats.snapshot();
        let (class, spent_ns, waited_ns) = self.passed(at());
        fence(Ordering::Acquire);
        if sequence & 1 != 0 || sequence != self.sequence.load(Ordering::Relaxed) {
            return None;
        }
        if let Some(counter) = class.counter() {
            all.add(counter, spent_ns);
            all.add(Counter::WaitingNs, waited_ns);
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Counter; 4] = [
        Counter::GuestNs,
        Counter::HandlingNs,
        Counter::IdleNs,
        Counter::WaitingNs,
    ];

    fn at(now_ns: u64, waited_ns: u64) -> Reading {
        Reading { now_ns, waited_ns }
    }

    fn all(times: &Times, stats: &Stats, reading: Reading) -> [u64; 4] {
        let all = times.snapshot(stats, || reading).unwrap();
        ALL.map(|which| all.get(which))
    }

    #[test]
    fn all_time_is_counted_once_also_while_it_passes() {
        let (times, stats) = (Times::new(), Stats::new());
        assert_eq!(all(&times, &stats, at(90, 5)), [0; 4]);
        times.turn_to(TimeClass::Handling, at(100, 7), 0, &stats);
        assert_eq!(all(&times, &stats, at(130, 17)), [0, 20, 0, 10]);
        times.turn_to(TimeClass::Guest, at(140, 17), 0, &stats);
        assert_eq!(all(&times, &stats, at(180, 27)), [30, 30, 0, 20]);
        times.turn_to(TimeClass::Handling, at(200, 37), 25, &stats);
        assert_eq!(all(&times, &stats, at(200, 37)), [25, 45, 0, 30]);
        times.turn_to(TimeClass::Idle, at(201, 37), 0, &stats);
        assert_eq!(all(&times, &stats, at(1201, 37)), [25, 46, 1000, 30]);
        times.turn_to(TimeClass::NotRunning, at(1301, 47), 0, &stats);
        assert_eq!(all(&times, &stats, at(5000, 50)), [25, 46, 1090, 40]);
    }

    #[test]
    fn clocks_that_disagree_a_little_do_no_harm() {
        let (times, stats) = (Times::new(), Stats::new());
        times.turn_to(TimeClass::Idle, at(100, 50), 0, &stats);
        assert_eq!(all(&times, &stats, at(99, 49)), [0; 4]);
        times.turn_to(TimeClass::Guest, at(110, 70), 0, &stats);
        assert_eq!(all(&times, &stats, at(110, 70)), [0, 0, 0, 10]);
        times.turn_to(TimeClass::Handling, at(120, 70), u64::MAX, &stats);
        assert_eq!(all(&times, &stats, at(120, 70)), [10, 0, 0, 10]);
    }

    #[test]
    fn readers_never_see_time_twice_or_go_back() {
        use std::sync::atomic::AtomicBool;
        let (times, stats, done) = (Times::new(), Stats::new(), AtomicBool::new(false));
        let now = AtomicU64::new(0);
        let reading = || at(now.load(Ordering::SeqCst), 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..200_000u64 {
                    let next = if round % 2 == 0 {
                        TimeClass::Idle
                    } else {
                        TimeClass::Handling
                    };
                    times.turn_to(next, reading(), 0, &stats);
                    now.store(round * 10, Ordering::SeqCst);
                }
                done.store(true, Ordering::SeqCst);
            });
            let mut last = 0;
            while !done.load(Ordering::SeqCst) {
                let Some(all) = times.snapshot(&stats, reading) else {
                    continue;
                };
                let idle_ns = all.get(Counter::IdleNs);
                assert!(idle_ns >= last && idle_ns <= now.load(Ordering::SeqCst));
                last = idle_ns;
            }
        });
    }
}
