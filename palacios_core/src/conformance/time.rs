// SPDX-License-Identifier: MIT OR Apache-2.0
//! Promises about clocks.

use super::check::{ensure, Outcome};
use super::crew::{pins, with_crew, Crew};
use super::method::Method::{NowNs, Start, TscHz, TscStable, WallNs};
use crate::host::Host;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// 2024-01-01 and 2200-01-01.
const SANE_WALL_NS: core::ops::Range<u64> = 1_704_067_200_000_000_000..7_258_118_400_000_000_000;
const MINUTE_NS: u64 = 60_000_000_000;
const SLOWEST_TSC_HZ: u64 = 1_000_000;
const FASTEST_TSC_HZ: u64 = 20_000_000_000;

/// No CPU reads a time before one that any CPU has read already.
pub fn monotonic<H: Host>(host: &H) -> Outcome {
    #[derive(Default)]
    struct Latest {
        ns: AtomicU64,
        broken: AtomicBool,
    }
    let run = |crew: &Crew<H, Latest>, _| {
        crew.meet();
        for round in 0..2000u32 {
            let before = crew.state.ns.load(SeqCst);
            let now = crew.host.now_ns();
            crew.state.broken.fetch_or(now < before, SeqCst);
            crew.state.ns.fetch_max(now, SeqCst);
            if round % 64 == 0 {
                crew.host.yield_now();
            }
        }
    };
    with_crew(host, &pins(host, 2)?, Latest::default(), run, |crew| {
        ensure(crew.finished(), Start, "threads run on every CPU")?;
        ensure(
            !crew.state.broken.load(SeqCst),
            NowNs,
            "it never goes back, also between CPUs",
        )
    })
}

pub fn passes<H: Host>(host: &H) -> Outcome {
    let start = host.now_ns();
    // Bounded by effort, as the clock may stand still.
    let moved = (0..1_000_000u64).any(|_| host.now_ns() > start);
    ensure(moved, NowNs, "it goes on by itself")
}

pub fn sane<H: Host>(host: &H) -> Outcome {
    let first = host.wall_ns();
    ensure(
        SANE_WALL_NS.contains(&first),
        WallNs,
        "it counts nanoseconds from 1970",
    )?;
    ensure(
        host.wall_ns().abs_diff(first) < MINUTE_NS,
        WallNs,
        "it does not leap",
    )?;
    let hz = host.tsc_hz();
    ensure(
        hz == 0 || (SLOWEST_TSC_HZ..FASTEST_TSC_HZ).contains(&hz),
        TscHz,
        "it is in Hz, or 0 where it is not known",
    )?;
    ensure(hz == host.tsc_hz(), TscHz, "it does not change")?;
    ensure(
        hz != 0 || !host.tsc_stable(),
        TscStable,
        "a stable counter has a known rate",
    )
}
