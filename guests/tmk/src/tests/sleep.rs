// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest sees of a host that sleeps: the world's clock moved on, its own clocks did not.

use super::interrupts::{halt_until, pic_mask_all, pic_on};
use super::time::{cmos, pm_ticks_since, pm_timer, PM_HZ};
use crate::io::{outb, rdtsc};
use crate::{check, println, tests, trap, Outcome};

tests!(; named: sleep_is_not_counted);

const DAY_S: u64 = 86_400;
/// The world's clock counts whole seconds: less may be chance.
const SLEPT_S: u64 = 2;

/// The time of day by the real-time clock, in seconds.
fn world_s() -> u64 {
    let binary = cmos(0x0b) & 4 != 0;
    let value = |register: u8| {
        let raw = u64::from(cmos(register));
        if binary {
            raw
        } else {
            (raw >> 4) * 10 + (raw & 15)
        }
    };
    loop {
        while cmos(0x0a) & 0x80 != 0 {}
        let time = [4, 2, 0].map(value);
        if time == [4, 2, 0].map(value) {
            return time[0] * 3600 + time[1] * 60 + time[2];
        }
    }
}

/// Time stamps in a second, by the PM timer. A host that takes the CPU away between two reads spoils a measurement: two in a
/// row must agree.
fn tsc_hz() -> u64 {
    let measure = || {
        let (begin, tsc) = (pm_timer(), rdtsc());
        while pm_ticks_since(begin) < PM_HZ / 10 {}
        (rdtsc() - tsc) * PM_HZ / pm_ticks_since(begin)
    };
    let mut last = measure();
    loop {
        let hz = measure();
        if hz.abs_diff(last) < hz / 50 {
            return hz;
        }
        last = hz;
    }
}

/// Halts between ticks until the world's clock leaps ahead of the guest's.
fn sleep_is_not_counted() -> Outcome {
    let hz = tsc_hz();
    pic_on(0x20);
    trap::on_interrupt(|_| outb(0x20, 0x20));
    outb(0x21, 0xfe);
    // The PIT, 100 times a second.
    for (port, value) in [(0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        outb(port, value);
    }
    println!("ticking");
    let (mut world, mut tsc) = (world_s(), rdtsc());
    loop {
        halt_until(0x20, trap::count(0x20) + 1);
        let now = (world_s(), rdtsc());
        check!(now.1 > tsc, "the time stamp counter went back");
        let (passed_s, lived_s) = ((now.0 + DAY_S - world) % DAY_S, (now.1 - tsc) / hz);
        (world, tsc) = now;
        if (lived_s + SLEPT_S..DAY_S / 2).contains(&passed_s) {
            break;
        }
    }
    pic_mask_all();
    let same_rate = tsc_hz().abs_diff(hz) < hz / 20;
    check!(same_rate, "the counter has another rate");
    Ok(())
}
