// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clocks agree with each other.

use crate::io::{inb, inl, outb, rdtsc};
use crate::{check, tests, Outcome};

tests!(pm_timer_runs, tsc_agrees_with_pm_timer, pit_agrees_with_pm_timer, rtc_reads_a_date; only by name: rtc_second);

const PM_TIMER: u16 = 0x608;
const PM_HZ: u64 = 3_579_545;
const PIT_HZ: u64 = 1_193_182;

fn pm_timer() -> u32 {
    inl(PM_TIMER) & 0xff_ffff
}

fn pm_ticks_since(begin: u32) -> u64 {
    u64::from(pm_timer().wrapping_sub(begin) & 0xff_ffff)
}

fn pm_timer_runs() -> Outcome {
    let mut last = pm_timer();
    for _ in 0..1000 {
        let now = pm_timer();
        check!(
            (now.wrapping_sub(last) & 0xff_ffff) < 0x80_0000,
            "never backwards"
        );
        last = now;
    }
    let begin = pm_timer();
    while pm_ticks_since(begin) < 1000 {}
    Ok(())
}

/// The TSC's rate, measured twice against the PM timer over different spans, comes out the same.
fn tsc_agrees_with_pm_timer() -> Outcome {
    let rate = |ticks: u64| {
        let (begin, tsc) = (pm_timer(), rdtsc());
        while pm_ticks_since(begin) < ticks {}
        (rdtsc() - tsc) * PM_HZ / pm_ticks_since(begin) / 1000
    };
    let (short, long) = (rate(PM_HZ / 50), rate(PM_HZ / 10));
    check!(short.abs_diff(long) < long / 20, "within 5 percent");
    Ok(())
}

fn pit_agrees_with_pm_timer() -> Outcome {
    // Channel 2, gate on, speaker off: one shot of 50 ms, its output seen in port 0x61.
    let ticks = PIT_HZ / 20;
    outb(0x61, inb(0x61) & !2 | 1);
    outb(0x43, 0xb0);
    outb(0x42, ticks as u8);
    let begin = pm_timer();
    outb(0x42, (ticks >> 8) as u8);
    while inb(0x61) & 0x20 == 0 {}
    let took = pm_ticks_since(begin);
    let expected = PM_HZ / 20;
    check!(took >= expected - expected / 50, "not early");
    check!(took < expected * 3, "not late beyond measure");
    Ok(())
}

fn cmos(register: u8) -> u8 {
    outb(0x70, register);
    inb(0x71)
}

fn rtc_reads_a_date() -> Outcome {
    while cmos(0x0a) & 0x80 != 0 {}
    let binary = cmos(0x0b) & 4 != 0;
    let value = |raw: u8| {
        if binary {
            raw
        } else {
            (raw >> 4) * 10 + (raw & 15)
        }
    };
    let (second, minute, month, year) = (
        value(cmos(0)),
        value(cmos(2)),
        value(cmos(8)),
        value(cmos(9)),
    );
    check!(second < 60 && minute < 60 && (1..=12).contains(&month) && year >= 20);
    check!(cmos(0x0d) & 0x80 != 0, "valid");
    Ok(())
}

/// A second of the RTC is a second of the PM timer.
fn rtc_second() -> Outcome {
    let edge = || {
        let before = cmos(0);
        while cmos(0) == before {}
    };
    edge();
    let mut ticks = 0u64;
    let (mut last, before) = (pm_timer(), cmos(0));
    while cmos(0) == before {
        let now = pm_timer();
        ticks += u64::from(now.wrapping_sub(last) & 0xff_ffff);
        last = now;
    }
    check!(ticks.abs_diff(PM_HZ) < PM_HZ / 10, "within 10 percent");
    Ok(())
}
