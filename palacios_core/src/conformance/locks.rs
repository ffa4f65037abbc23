// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises about locks.

use super::check::{ensure, healthy, Outcome};
use super::crew::{pins, with_crew, Crew};
use super::method::Method::{Mutex, SpinLock};
use crate::alloc_ext::TryPush;
use crate::host::{Host, Lock, LockClass};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

const ROUNDS: u64 = 500;

/// A lock around a count, and what tells whether two hold it at once.
struct Guarded<L> {
    lock: L,
    inside: AtomicBool,
    broken: AtomicBool,
    additions: AtomicU64,
}

impl<L: Lock<u64>> Guarded<L> {
    fn new(lock: L) -> Self {
        Self {
            lock,
            inside: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            additions: AtomicU64::new(0),
        }
    }
    /// Adds one, slowly, in two steps that another holder would come between.
    fn add(&self, pause: impl FnOnce()) {
        let mut count = self.lock.lock();
        let alone = !self.inside.swap(true, SeqCst);
        let before = *count;
        pause();
        *count = before + 1;
        self.broken.fetch_or(!alone, SeqCst);
        self.inside.store(false, SeqCst);
        drop(count);
        self.additions.fetch_add(1, SeqCst);
    }
    fn kept(&self) -> bool {
        !self.broken.load(SeqCst) && *self.lock.lock() == self.additions.load(SeqCst)
    }
}

pub fn mutex<H: Host>(host: &H) -> Outcome {
    let lock = host.mutex(LockClass::VmState, 0);
    let state = Guarded::new(healthy(Mutex, lock)?);
    let run = |crew: &Crew<H, Guarded<H::Mutex<u64>>>, _| {
        crew.meet();
        for round in 0..ROUNDS {
            // A mutex may be held over a sleep.
            let sleepy = round % 16 == 0;
            crew.state.add(|| match sleepy {
                true => crew.host.yield_now(),
                false => spin_loop(),
            });
        }
    };
    with_crew(host, &pins(host, 2)?, state, run, |crew| {
        ensure(crew.finished(), Mutex, "a mutex that is free is had")?;
        ensure(
            crew.state.kept(),
            Mutex,
            "one thread at a time holds a mutex",
        )
    })
}

/// Held by threads, in windows and in cross-calls, as an interrupt-safe lock may be. The last thread makes the calls.
pub fn spin_lock<H: Host>(host: &H) -> Outcome {
    let lock = host.spin_lock(LockClass::Chipset, 0);
    let state = Guarded::new(healthy(SpinLock, lock)?);
    let mut pins = pins(host, 2)?;
    pins.try_push(None)?;
    let run = |crew: &Crew<H, Guarded<H::SpinLock<u64>>>, me| {
        crew.meet();
        if crew.is_last(me) {
            (0..20).for_each(|_| crew.host.on_each_cpu(&|_| crew.state.add(spin_loop)));
            return;
        }
        for round in 0..ROUNDS {
            let add = || crew.state.add(|| (0..20).for_each(|_| spin_loop()));
            match round % 2 {
                0 => add(),
                _ => crew.host.window(|_| add()),
            }
        }
    };
    with_crew(host, &pins, state, run, |crew| {
        ensure(crew.finished(), SpinLock, "a spin lock that is free is had")?;
        ensure(
            crew.state.kept(),
            SpinLock,
            "one CPU at a time holds a spin lock",
        )
    })
}
