// SPDX-License-Identifier: MIT OR Apache-2.0
//! All checks of the contract that need nothing but a host.

use super::check::Check;
use super::method::Method::{self, Arm, NowNs, OnEachCpu, Park, Start};
use super::{cpus, locks, memory, threads, time, timers};
use crate::host::Host;

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
