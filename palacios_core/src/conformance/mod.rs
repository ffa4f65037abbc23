// SPDX-License-Identifier: MIT OR Apache-2.0
//! The promises of the host contract, as checks that any host runs on itself.
//!
//! [`run`] takes a host and nothing else. A [`Suite`] also takes what some checks need besides: a provider of guest RAM, and
//! something that stands for guest mode. A check that fails does not stop the suite: it goes on with those that can still
//! come to their end, and names the others as not run. Each failure names the [`Method`] at fault.
//!
//! Checks wait for events, not for times. Where a broken promise would make a check wait for ever, it gives up after
//! [`PATIENCE_NS`]; so time must pass by itself ([`Host::now_ns`]), which is checked first. Call it all in an ordinary
//! thread. A method that does not return when the checks call it directly (`window`, `on_each_cpu`, `alloc_pages`, a lock
//! that is free) hangs the suite; it is in the check that follows the last one reported.

mod check;
mod cpus;
mod crew;
pub mod kicks;
mod locks;
mod memory;
mod method;
pub mod ram;
mod suite;
mod threads;
mod time;
mod timers;

pub use check::{Check, Failure, Outcome};
pub use method::Method;
pub use suite::{Report, Suite, Summary, Verdict};

use crate::host::Host;
use check::{broken, ensure, healthy};
use Method::{Arm, NowNs, OnEachCpu, Park, Start};

/// How long a check waits for something that was promised.
pub const PATIENCE_NS: u64 = 20_000_000_000;

/// What checks need that wait for other threads.
const THREADS: &[Method] = &[NowNs, Start];
/// What checks need whose threads sleep.
const SLEEP: &[Method] = &[NowNs, Start, Park];
/// What checks need whose threads sleep until a time.
const ALARM: &[Method] = &[NowNs, Start, Park, Arm];
/// What checks need that start threads on each CPU.
const CPUS: &[Method] = &[NowNs, Start, OnEachCpu];

/// All checks that need nothing but a host. What a check needs comes before it.
pub fn checks<H: Host>() -> [Check<H>; 32] {
    [
        Check::new("time: passes", time::passes).proves(NowNs),
        Check::new("time: the wall clock and TSC rate are sane", time::sane),
        Check::new("pages: aligned, zeroed, contiguous", memory::runs),
        Check::new("pages: below 4 GiB", memory::below_4g),
        Check::new("pages: apart from each other", memory::apart),
        Check::new("pages: zeroed again after reuse", memory::reused),
        Check::new("pages: freed ones come back", memory::freed),
        Check::new("pages: too many is an error", memory::too_many),
        Check::new("cpus: each called once", cpus::each_once).proves(OnEachCpu),
        Check::new("cpus: each called there", cpus::each_there),
        Check::new("window: returns the value", cpus::window_value),
        Check::new("threads: start, run once, end", threads::start)
            .needs(&[NowNs])
            .proves(Start),
        Check::new("threads: join waits for the end", threads::join).needs(THREADS),
        Check::new("threads: join without start", threads::join_unstarted).needs(THREADS),
        Check::new("threads: start again after join", threads::start_again).needs(THREADS),
        Check::new(
            "threads: the last handle dropped by itself",
            threads::drops_itself,
        )
        .needs(THREADS),
        Check::new("threads: late calls are harmless", threads::late_calls).needs(THREADS),
        Check::new("threads: early wake-up not lost", threads::early_unpark)
            .needs(THREADS)
            .proves(Park),
        Check::new("threads: park sleeps", threads::park_sleeps).needs(SLEEP),
        Check::new("threads: ping-pong", threads::ping_pong).needs(SLEEP),
        Check::new("threads: a storm of wake-ups", threads::storm).needs(SLEEP),
        Check::new("timers: an armed time comes", timers::comes)
            .needs(SLEEP)
            .proves(Arm),
        Check::new("timers: not early, once, again", timers::fires_once).needs(ALARM),
        Check::new("timers: re-arm, disarm, past", timers::rearm_and_disarm).needs(ALARM),
        Check::new("timers: in order", timers::in_order).needs(ALARM),
        Check::new("time: monotonic across CPUs", time::monotonic).needs(CPUS),
        Check::new("window: one CPU, and the pinned one", cpus::window_cpu).needs(CPUS),
        Check::new("window: alone on its CPU", cpus::window_alone).needs(CPUS),
        Check::new("threads: move", threads::moves).needs(&[NowNs, Start, Park, OnEachCpu]),
        Check::new("threads: waiting for a CPU counts", threads::waiting)
            .needs(&[NowNs, Start, Park, Arm, OnEachCpu]),
        Check::new("locks: a mutex excludes", locks::mutex).needs(CPUS),
        Check::new("locks: a spin lock excludes", locks::spin_lock).needs(CPUS),
    ]
}

/// Runs [`checks`], and tells `report` of each.
pub fn run<H: Host>(host: &H, report: impl FnMut(Report)) -> Summary {
    let mut suite = Suite::new(host, report);
    suite.contract();
    suite.summary()
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
