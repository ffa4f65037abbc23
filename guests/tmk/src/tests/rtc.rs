// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real-time clock and its three interrupts (MC146818A).

use super::interrupts::{halt_until, pic_mask_all, pic_on};
use super::time::{cmos, pm_ticks_since, pm_timer, set_cmos, PM_HZ};
use crate::io::outb;
use crate::{check, check_eq, tests, trap, Outcome};

tests!(
    rtc_reads_a_date,
    rtc_keeps_memory,
    rtc_periodic,
    rtc_update_is_a_second,
    rtc_alarm
);

const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const UPDATE: u8 = 1 << 4;
const ALARM: u8 = 1 << 5;
const PERIODIC: u8 = 1 << 6;
/// IRQ 8 at the PIC pair that [`pic_on`] programs.
const VECTOR: u8 = 0x28;

fn rtc_reads_a_date() -> Outcome {
    while cmos(A) & 0x80 != 0 {}
    let binary = cmos(B) & 4 != 0;
    let value = |register: u8| {
        let raw = cmos(register);
        if binary {
            raw
        } else {
            (raw >> 4) * 10 + (raw & 15)
        }
    };
    let (second, minute, month, year) = (value(0), value(2), value(8), value(9));
    check!(second < 60 && minute < 60 && (1..=12).contains(&month) && year >= 20);
    check_eq!(cmos(0x0d) & 0x80, 0x80, "valid");
    Ok(())
}

fn rtc_keeps_memory() -> Outcome {
    let before = cmos(0x50);
    for value in [0x00, 0xff, 0x5a] {
        set_cmos(0x50, value);
        check_eq!(cmos(0x50), value);
    }
    set_cmos(0x50, before);
    Ok(())
}

/// Runs `wait` with one interrupt enabled and IRQ 8 open; it comes again once register C is read.
fn with_interrupt(enable: u8, wait: impl Fn() -> Outcome) -> Outcome {
    pic_on(0x20);
    outb(0x21, 0xfb);
    outb(0xa1, 0xfe);
    let b = cmos(B);
    cmos(C);
    trap::on_interrupt(|_| {
        LAST_C.store(cmos(C), Relaxed);
        outb(0xa0, 0x20);
        outb(0x20, 0x20);
    });
    set_cmos(B, b & !(UPDATE | ALARM | PERIODIC) | enable);
    let outcome = wait();
    set_cmos(B, b & !(UPDATE | ALARM | PERIODIC));
    cmos(C);
    pic_mask_all();
    outcome?;
    check_eq!(
        LAST_C.load(Relaxed) & (0x80 | enable),
        0x80 | enable,
        "register C says which"
    );
    Ok(())
}
use core::sync::atomic::{AtomicU8, Ordering::Relaxed};
static LAST_C: AtomicU8 = AtomicU8::new(0);

/// How long `times` interrupts take, from before the first one; a host that lets us wait only makes it longer.
fn ticks_of(times: u32) -> u64 {
    let begin = pm_timer();
    let before = trap::count(VECTOR);
    halt_until(VECTOR, before + times);
    pm_ticks_since(begin)
}

/// 1,024 interrupts a second: 257 take at least a quarter of one.
fn rtc_periodic() -> Outcome {
    let a = cmos(A);
    set_cmos(A, 0x26);
    let outcome = with_interrupt(PERIODIC, || {
        let took = [ticks_of(257), ticks_of(257)];
        check!(
            took.iter().all(|took| *took > PM_HZ / 4 - PM_HZ / 100),
            "not early"
        );
        check!(
            took.iter().any(|took| *took < PM_HZ * 2),
            "not late beyond measure"
        );
        Ok(())
    });
    set_cmos(A, a);
    outcome
}

/// Two updates take one to two seconds.
fn rtc_update_is_a_second() -> Outcome {
    with_interrupt(UPDATE, || {
        let second = cmos(0);
        let took = ticks_of(2);
        check!(cmos(0) != second);
        check!(took > PM_HZ / 10 * 9, "not early");
        check!(took < PM_HZ * 4, "not late beyond measure");
        Ok(())
    })
}

/// An alarm that does not care for hour and minute, in two seconds.
fn rtc_alarm() -> Outcome {
    while cmos(A) & 0x80 != 0 {}
    let now = cmos(0);
    let binary = cmos(B) & 4 != 0;
    let value = if binary {
        now
    } else {
        (now >> 4) * 10 + (now & 15)
    };
    let wanted = (value + 2) % 60;
    let raw = if binary {
        wanted
    } else {
        ((wanted / 10) << 4) | (wanted % 10)
    };
    set_cmos(1, raw);
    set_cmos(3, 0xc0);
    set_cmos(5, 0xc0);
    with_interrupt(ALARM, || {
        halt_until(VECTOR, 1);
        check_eq!(cmos(0), raw);
        Ok(())
    })
}
