// SPDX-License-Identifier: MIT OR Apache-2.0
//! The noise of a machine, as a computation feels it: a loop does nothing but read the time stamp counter, and each time that it
//! takes much longer than the shortest time, something else had the processor. (As `selfish` in the netgauge of Hoefler and
//! others, SC 2010, does it.)

use crate::io::rdtsc;
use crate::{boot_info, check, println, tests, Outcome};

tests!(; named: noise);

/// How long it looks, if `ticks=` does not say.
const TICKS: u64 = 1_000_000_000;
/// Rounds that take more than so many times the shortest are detours.
const DETOUR: u64 = 9;
/// The shortest round is among these.
const WARM_UP: u32 = 100_000;

fn noise() -> Outcome {
    let wanted = boot_info::number("ticks").unwrap_or(TICKS);
    // Firmware left the timer running.
    super::interrupts::pit_quiet();
    let mut last = rdtsc();
    let mut round = || {
        let now = rdtsc();
        let took = now - core::mem::replace(&mut last, now);
        (now, took)
    };
    let shortest = (0..WARM_UP).map(|_| round().1).min().unwrap_or(0);
    let (begin, _) = round();
    let (mut detours, mut longest, mut lost, mut now) = (0u64, 0u64, 0u64, begin);
    while now - begin < wanted {
        let took;
        (now, took) = round();
        if took > DETOUR * shortest {
            detours += 1;
            longest = longest.max(took);
            lost += took - shortest;
        }
    }
    let ticks = now - begin;
    println!(
        "noise: {detours} detours in {ticks} ticks, the longest {longest}; {lost} lost, {} in a million",
        lost * 1_000_000 / ticks
    );
    check!(shortest > 0 && ticks >= wanted);
    Ok(())
}
