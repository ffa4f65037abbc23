// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises about locks.

use super::crew::{pins, Team};
use super::{ensure, Outcome};
use crate::host::{Host, Lock, LockClass};
use core::hint::spin_loop;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

const ROUNDS: u64 = 500;

/// A lock and what tells whether two hold it at once.
struct Guarded<L> {
    lock: L,
    inside: AtomicBool,
    broken: AtomicBool,
}

impl<L: Lock<u64>> Guarded<L> {
    fn new(lock: L) -> Self {
        Self {
            lock,
            inside: AtomicBool::new(false),
            broken: AtomicBool::new(false),
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
    }
    fn kept(&self, additions: u64) -> bool {
        !self.broken.load(SeqCst) && *self.lock.lock() == additions
    }
}

pub fn mutex<H: Host>(host: &H) -> Outcome {
    let state = Guarded::new(host.mutex(LockClass::VmState, 0)?);
    let pins = pins(host, 2)?;
    let team = Team::<H, _>::start(host, &pins, state, |crew, _| {
        crew.meet();
        for round in 0..ROUNDS {
            // A mutex may be held over a sleep.
            let sleepy = round % 16 == 0;
            crew.state.add(|| match sleepy {
                true => crew.host.yield_now(),
                false => spin_loop(),
            });
        }
    })?;
    ensure(team.finished(), "a mutex that is free is had")?;
    ensure(
        team.state.kept(pins.len() as u64 * ROUNDS),
        "one thread at a time holds a mutex",
    )
}

/// Held by threads, in windows and in cross-calls, as an interrupt-safe lock may be.
pub fn spin_lock<H: Host>(host: &H) -> Outcome {
    let state = Guarded::new(host.spin_lock(LockClass::GuestMemory, 0)?);
    let pins = pins(host, 2)?;
    let team = Team::<H, _>::start(host, &pins, state, |crew, _| {
        crew.meet();
        for round in 0..ROUNDS {
            let add = || crew.state.add(|| (0..20).for_each(|_| spin_loop()));
            match round % 2 {
                0 => add(),
                _ => crew.host.window(|_| add()),
            }
        }
    })?;
    let calls = AtomicU32::new(0);
    for _ in 0..20 {
        host.on_each_cpu(&|_| {
            team.state.add(spin_loop);
            calls.fetch_add(1, SeqCst);
        });
    }
    ensure(team.finished(), "a spin lock that is free is had")?;
    ensure(
        team.state
            .kept(pins.len() as u64 * ROUNDS + u64::from(calls.load(SeqCst))),
        "one CPU at a time holds a spin lock",
    )
}
