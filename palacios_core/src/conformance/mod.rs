// SPDX-License-Identifier: MIT OR Apache-2.0
//! The promises of the host contract, as checks that any host runs on itself.
//!
//! [`run`] takes a host and nothing else; [`guest_ram`] also needs a provider, and [`kicks`] something that stands for
//! guest mode. Checks wait for events; where a host that breaks its promise would make them wait for ever, they give up
//! after [`PATIENCE_NS`]. Time must pass by itself ([`Host::now_ns`]). Call it all in an ordinary thread.

mod cpus;
mod crew;
mod kicks;
mod locks;
mod memory;
mod ram;
mod threads;
mod time;
mod timers;

pub use kicks::kicks;
pub use ram::guest_ram;

use crate::host::{Host, NoMemory};
use core::fmt;

/// How long a check waits for something that was promised.
pub const PATIENCE_NS: u64 = 20_000_000_000;

/// A promise that the host did not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure(pub &'static str);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broken promise: {}", self.0)
    }
}

impl From<NoMemory> for Failure {
    fn from(_: NoMemory) -> Self {
        Self("a healthy host has the little memory that a check needs")
    }
}

/// What a check found.
pub type Outcome = Result<(), Failure>;

/// A check of promises that need nothing but a host.
pub struct Check<H> {
    /// What it checks, for reports.
    pub name: &'static str,
    /// The check; it leaves the host as it was.
    pub run: fn(&H) -> Outcome,
}

/// All checks that need nothing but a host.
pub fn checks<H: Host>() -> [Check<H>; 29] {
    let check = |name, run| Check { name, run };
    [
        check("time: passes", time::passes),
        check("time: monotonic across CPUs", time::monotonic),
        check("time: the wall clock and TSC rate are sane", time::sane),
        check("pages: aligned, zeroed, contiguous", memory::runs),
        check("pages: below 4 GiB", memory::below_4g),
        check("pages: apart from each other", memory::apart),
        check("pages: zeroed again after reuse", memory::reused),
        check("pages: freed ones come back", memory::freed),
        check("pages: too many is an error", memory::too_many),
        check("cpus: each called once, there", cpus::each_once),
        check("window: returns the value", cpus::window_value),
        check("window: one CPU, and the pinned one", cpus::window_cpu),
        check("window: alone on its CPU", cpus::window_alone),
        check("threads: start, run once, join", threads::start_and_join),
        check("threads: join without start", threads::join_unstarted),
        check("threads: start again after join", threads::start_again),
        check(
            "threads: the last handle dropped by itself",
            threads::drops_itself,
        ),
        check("threads: early wake-up not lost", threads::early_unpark),
        check("threads: park sleeps", threads::park_sleeps),
        check("threads: ping-pong", threads::ping_pong),
        check("threads: a storm of wake-ups", threads::storm),
        check("threads: late calls are harmless", threads::late_calls),
        check("threads: move", threads::moves),
        check("threads: waiting for a CPU counts", threads::waiting),
        check("timers: not early, once, again", timers::fires_once),
        check("timers: re-arm, disarm, past", timers::rearm_and_disarm),
        check("timers: in order", timers::in_order),
        check("locks: a mutex excludes", locks::mutex),
        check("locks: a spin lock excludes", locks::spin_lock),
    ]
}

/// Runs [`checks`] up to the first that fails: those after it may hang on what it found. Tells `report` of each.
pub fn run<H: Host>(host: &H, mut report: impl FnMut(&'static str, Outcome)) -> Outcome {
    for check in checks::<H>() {
        let outcome = (check.run)(host);
        report(check.name, outcome);
        outcome?;
    }
    Ok(())
}

fn ensure(kept: bool, promise: &'static str) -> Outcome {
    kept.then_some(()).ok_or(Failure(promise))
}

/// Waits until `done`, yielding the CPU; `false` if it is not by the time patience ends.
fn eventually<H: Host>(host: &H, done: impl Fn() -> bool) -> bool {
    let end_ns = host.now_ns().saturating_add(PATIENCE_NS);
    while !done() {
        if host.now_ns() > end_ns {
            return done();
        }
        host.yield_now();
    }
    true
}
