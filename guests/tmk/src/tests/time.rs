// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clocks agree with each other.

use super::interrupts::{halt_until, pic_mask_all, pic_on};
use crate::io::{cpuid, inb, inl, inw, outb, outw, rdtsc};
use crate::{check, check_eq, tests, trap, Outcome};

tests!(
    pm_timer_runs,
    pm_timer_interrupts,
    tsc_goes_up,
    tsc_agrees_with_pm_timer,
    apic_timer_agrees_with_pm_timer,
    pit_agrees_with_pm_timer,
    pit_counts,
);

const PM_TIMER: u16 = 0x608;
const PM_STATUS: u16 = 0x600;
const PM_ENABLE: u16 = 0x602;
pub const PM_HZ: u64 = 3_579_545;
const PIT_HZ: u64 = 1_193_182;

pub fn pm_timer() -> u32 {
    inl(PM_TIMER) & 0xff_ffff
}

/// Ticks since `begin`, up to 4.6 seconds.
pub fn pm_ticks_since(begin: u32) -> u64 {
    u64::from(pm_timer().wrapping_sub(begin) & 0xff_ffff)
}

pub fn cmos(register: u8) -> u8 {
    outb(0x70, register);
    inb(0x71)
}
pub fn set_cmos(register: u8, value: u8) {
    outb(0x70, register);
    outb(0x71, value);
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

/// Its highest bit changes every 2.3 seconds, which is an event, on IRQ 9 as a level (ACPI 6.5: 4.8.2.3).
fn pm_timer_interrupts() -> Outcome {
    const HALF: u64 = 0x80_0000;
    pic_on(0x20);
    outb(0x4d1, 1 << 1);
    outw(0x604, inw(0x604) | 1); // SCI_EN
    trap::on_interrupt(|_| {
        outw(PM_STATUS, 1);
        outb(0xa0, 0x20);
        outb(0x20, 0x20);
    });
    outb(0x21, 0xfb);
    outb(0xa1, 0xfd);
    // The status is clear, and the bit did not change since `begin`.
    let begin = loop {
        let begin = pm_timer();
        outw(PM_STATUS, 1);
        if u64::from(pm_timer() ^ begin) & HALF == 0 {
            break begin;
        }
    };
    outw(PM_ENABLE, 1);
    halt_until(0x29, 1);
    let passed = pm_ticks_since(begin);
    outw(PM_ENABLE, 0);
    pic_mask_all();
    outb(0x4d1, 0);
    check!(
        passed >= HALF - u64::from(begin) % HALF,
        "not before it changes"
    );
    check_eq!(inw(PM_STATUS) & 1, 0, "writing a one clears");
    Ok(())
}

fn tsc_goes_up() -> Outcome {
    let mut last = rdtsc();
    for n in 0..2000 {
        // With and without exits in between.
        if n % 2 == 0 {
            cpuid(0, 0);
        }
        let now = rdtsc();
        check!(now > last);
        last = now;
    }
    Ok(())
}

/// A rate measured twice against the PM timer over different spans comes out the same.
fn steady(counter: impl Fn() -> u64) -> Outcome {
    let rate = |ticks: u64| {
        let (begin, count) = (pm_timer(), counter());
        while pm_ticks_since(begin) < ticks {}
        counter().wrapping_sub(count) * 1000 / pm_ticks_since(begin)
    };
    // The best of several: a host that takes the CPU away between two reads spoils one.
    let agree = |_| {
        let (short, long) = (rate(PM_HZ / 50), rate(PM_HZ / 10));
        short.abs_diff(long) < long / 20
    };
    check!((0..5).any(agree), "within 5 percent");
    Ok(())
}

fn tsc_agrees_with_pm_timer() -> Outcome {
    steady(rdtsc)
}

fn apic_timer_agrees_with_pm_timer() -> Outcome {
    const LAPIC: u64 = 0xfee0_0000;
    use crate::io::{mmio_read, mmio_write};
    mmio_write(LAPIC + 0x320, 1 << 16);
    mmio_write(LAPIC + 0x3e0, 0b1010); // by 128
    mmio_write(LAPIC + 0x380, u32::MAX);
    let outcome = steady(|| u64::from(u32::MAX - mmio_read(LAPIC + 0x390)));
    mmio_write(LAPIC + 0x380, 0);
    outcome
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
    check!(took < PM_HZ * 3, "not late beyond measure");
    Ok(())
}

/// Channel 0 counts down, and a latched count stands still.
fn pit_counts() -> Outcome {
    outb(0x43, 0x34);
    outb(0x40, 0xff);
    outb(0x40, 0xff);
    let latched = || {
        outb(0x43, 0);
        u16::from(inb(0x40)) | u16::from(inb(0x40)) << 8
    };
    let first = latched();
    let begin = pm_timer();
    while pm_ticks_since(begin) < 30 {}
    let second = latched();
    check!(
        first.wrapping_sub(second) >= 8,
        "30 ticks of one are 10 of the other"
    );
    outb(0x43, 0x30);
    Ok(())
}
