// SPDX-License-Identifier: MIT OR Apache-2.0
//! Time and timers.

use super::thread::ThreadState;
use super::{Broken, Inner};
use crate::heap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// 2027-01-15.
const VIRTUAL_WALL_NS: u64 = 1_800_000_000_000_000_000;

pub enum Clock {
    /// That of the machine beneath, this many times as fast.
    Real(Instant, f64),
    /// It moves when a test moves it.
    Virtual(AtomicU64),
}

impl Clock {
    pub fn now_ns(&self) -> u64 {
        match self {
            // Not from 0, so that nobody takes a time for a duration.
            Self::Real(start, hurry) => {
                1_000_000_000 + (start.elapsed().as_nanos() as f64 * hurry) as u64
            }
            Self::Virtual(now) => now.load(SeqCst),
        }
    }
    pub fn wall_ns(&self) -> u64 {
        match self {
            Self::Real(..) => SystemTime::UNIX_EPOCH
                .elapsed()
                .map_or(0, |since| since.as_nanos() as u64),
            Self::Virtual(now) => VIRTUAL_WALL_NS + now.load(SeqCst),
        }
    }
}

/// The timers that are armed.
#[derive(Default)]
pub struct Timers {
    armed: Mutex<Armed>,
    changed: Condvar,
}

#[derive(Default)]
struct Armed {
    timers: Vec<Timer>,
    stop: bool,
}

struct Timer {
    at_ns: u64,
    thread: Arc<ThreadState>,
}

impl Armed {
    fn earliest(&self) -> Option<usize> {
        (0..self.timers.len()).min_by_key(|i| self.timers[*i].at_ns)
    }
    /// Fires the earliest timer if it is due; whose it is.
    fn fire(&mut self, now_ns: u64) -> Option<Arc<ThreadState>> {
        let due = self.earliest().filter(|i| self.timers[*i].at_ns <= now_ns);
        let thread = self.timers.swap_remove(due?).thread;
        thread.time_has_come();
        Some(thread)
    }
    /// The timer that was to come first comes last.
    fn postpone_earliest(&mut self) {
        let latest_ns = self.timers.iter().map(|timer| timer.at_ns).max();
        if let (Some(i), Some(latest_ns)) = (self.earliest(), latest_ns) {
            let timer = &mut self.timers[i];
            timer.at_ns = latest_ns.saturating_add(latest_ns - timer.at_ns);
        }
    }
    /// For a host that breaks its promises: armed otherwise than asked for.
    fn break_promises(&mut self, host: &Inner) {
        let Some(Timer { at_ns, thread }) = self.timers.pop() else {
            return;
        };
        let mut push = |at_ns| {
            let thread = thread.clone();
            self.timers.push(Timer { at_ns, thread });
        };
        let now_ns = host.clock.now_ns();
        let wait_ns = at_ns.saturating_sub(now_ns);
        match host.config.broken {
            Some(Broken::TimerEarly) => push(at_ns - wait_ns / 4),
            Some(Broken::TimersOutOfOrder) => {
                push(at_ns);
                self.postpone_earliest();
            }
            Some(Broken::TimerNeverComes) => {}
            Some(Broken::TimerTwice) => {
                push(at_ns);
                push(at_ns.saturating_add(1_000_000));
            }
            _ => push(at_ns),
        }
    }
}

impl Inner {
    fn armed(&self) -> MutexGuard<'_, Armed> {
        let armed = self.timers.armed.lock();
        armed.unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the thread's timer.
    pub fn arm(&self, thread: &Arc<ThreadState>, at_ns: Option<u64>) {
        heap::exempt(|| {
            let mut armed = self.armed();
            if !self.breaks(Broken::TimerNotReplaced) {
                armed.timers.retain(|t| !Arc::ptr_eq(&t.thread, thread));
            }
            if let Some(at_ns) = at_ns {
                let thread = thread.clone();
                armed.timers.push(Timer { at_ns, thread });
                armed.break_promises(self);
            }
            if let Clock::Virtual(now) = &self.clock {
                while armed.fire(now.load(SeqCst)).is_some() {}
            }
        });
        self.timers.changed.notify_all();
    }

    pub fn disarm(&self, thread: &Arc<ThreadState>) {
        self.arm(thread, None);
    }

    /// Moves a virtual clock on, and fires what comes due on the way, each at its time. Returns whom that woke.
    pub fn advance(&self, by_ns: u64) -> Vec<Arc<ThreadState>> {
        let Clock::Virtual(now) = &self.clock else {
            panic!("real time cannot be moved");
        };
        let mut armed = self.armed();
        let (end, mut woken) = (now.load(SeqCst) + by_ns, Vec::new());
        while let Some(i) = armed.earliest() {
            let at_ns = armed.timers[i].at_ns;
            if at_ns > end {
                break;
            }
            now.fetch_max(at_ns, SeqCst);
            woken.extend(armed.fire(at_ns));
        }
        now.store(end, SeqCst);
        woken
    }

    /// The calling thread's entry into a guest takes so long in virtual time. A thread that a timer wakes meanwhile is not
    /// late: the guest goes on when that sleeps again, or has a guest of its own.
    pub fn pass_entry(&self, ns: u64) {
        if ns == 0 {
            return;
        }
        heap::exempt(|| {
            for thread in self.advance(ns) {
                while !thread.is_current() && !thread.is_settled() {
                    std::thread::yield_now();
                }
            }
        });
    }

    /// The earliest time that any thread has armed.
    pub fn next_timer_ns(&self) -> Option<u64> {
        let armed = self.armed();
        armed.earliest().map(|i| armed.timers[i].at_ns)
    }

    /// Fires timers in real time, until stopped.
    pub fn run_timers(&self) {
        let mut armed = self.armed();
        while !armed.stop {
            let now_ns = self.clock.now_ns();
            if armed.fire(now_ns).is_some() {
                continue;
            }
            let next = armed.earliest().map(|i| armed.timers[i].at_ns - now_ns);
            let wait_ns = next.unwrap_or(u64::MAX).min(1_000_000_000);
            let wait = Duration::from_nanos((wait_ns as f64 / self.config.hurry) as u64);
            let (guard, _) = self
                .timers
                .changed
                .wait_timeout(armed, wait)
                .unwrap_or_else(PoisonError::into_inner);
            armed = guard;
        }
    }

    pub fn stop_timers(&self) {
        self.armed().stop = true;
        self.timers.changed.notify_all();
    }
}
