// SPDX-License-Identifier: MIT OR Apache-2.0
//! Linux' paravirtual clock (Linux: Documentation/virt/kvm/x86/msr.rst), and writes of the counter that it is made of.

use crate::io::{cpuid, rdmsr, rdtsc, wrmsr};
use crate::{check, check_eq, fault, tests, Outcome};
use core::cell::UnsafeCell;
use core::sync::atomic::{fence, Ordering};

// QEMU takes no writes of the counter.
tests!(
    ; ours: tsc_can_be_written, clock_is_offered, clock_runs_with_the_tsc, clock_follows_a_written_tsc, wall_clock_is_written,
    steal_time_is_written,
    bad_clock_addresses_fault, clock_msrs_not_offered_fault
);

const TSC: u32 = 0x10;
const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;
const STEAL_TIME: u32 = 0x4b56_4d03;
const FAR: u64 = 1 << 40;

/// Memory that the host writes.
#[repr(align(64))]
struct Page(UnsafeCell<[u32; 16]>);

// SAFETY: one CPU, and the host.
unsafe impl Sync for Page {}

static PAGE: Page = Page(UnsafeCell::new([0; 16]));

fn word(n: usize) -> u32 {
    // SAFETY: inside the array; the host may write it.
    unsafe { PAGE.0.get().cast::<u32>().add(n).read_volatile() }
}

fn page_at() -> u64 {
    PAGE.0.get() as u64
}

/// The page's time now, read as the protocol demands.
fn system_ns() -> u64 {
    loop {
        let version = word(0);
        fence(Ordering::SeqCst);
        let since = rdtsc().wrapping_sub(u64::from(word(2)) | u64::from(word(3)) << 32);
        let shifted = match (word(7) & 0xff) as u8 as i8 {
            shift @ 0.. => since << shift,
            shift => since >> -shift,
        };
        let ns = (u128::from(shifted) * u128::from(word(6))) >> 32;
        let ns = (u64::from(word(4)) | u64::from(word(5)) << 32).wrapping_add(ns as u64);
        fence(Ordering::SeqCst);
        if version & 1 == 0 && version == word(0) {
            return ns;
        }
    }
}

fn wrmsr_faults(index: u32, value: u64) -> Option<u64> {
    let (low, high) = (value as u32, (value >> 32) as u32);
    fault!("wrmsr", in("ecx") index, in("eax") low, in("edx") high).map(|fault| fault.vector)
}

fn tsc_can_be_written() -> Outcome {
    let before = rdtsc();
    wrmsr(TSC, before + FAR);
    let after = rdtsc();
    wrmsr(TSC, rdtsc() - FAR);
    check!(after >= before + FAR && after < before + 2 * FAR);
    let back = rdtsc();
    check!(back > before && back < before + FAR);
    let msr = rdmsr(TSC);
    check!(
        msr >= back && rdtsc() >= msr,
        "RDMSR reads the same counter"
    );
    Ok(())
}

fn clock_is_offered() -> Outcome {
    let [last, b, c, d] = cpuid(0x4000_0100, 0);
    check_eq!((b, c, d), (0x4b4d_564b, 0x564b_4d56, 0x4d));
    check_eq!(last, 0x4000_0101);
    let [features, b, c, d] = cpuid(0x4000_0101, 0);
    check_eq!(features & 1 << 3, 1 << 3, "the clock at its new MSRs");
    let known = 1 << 3 | 1 << 5 | 1 << 24;
    check_eq!((features & !known, b, c, d), (0, 0, 0, 0), "nothing else");
    Ok(())
}

fn clock_runs_with_the_tsc() -> Outcome {
    wrmsr(SYSTEM_TIME, page_at() | 1);
    check_eq!(rdmsr(SYSTEM_TIME), page_at() | 1);
    check!(
        word(0) != 0 && word(0) & 1 == 0,
        "written before WRMSR is over"
    );
    let stable = cpuid(0x4000_0101, 0)[0] >> 24 & 1;
    check_eq!(word(7) >> 8 & 1, stable, "the page says what CPUID says");
    let mut last = system_ns();
    for n in 0..2000 {
        if n % 2 == 0 {
            cpuid(0, 0);
        }
        let now = system_ns();
        check!(now >= last, "never backwards");
        last = now;
    }
    let (begin_ns, begin) = (system_ns(), super::time::pm_timer());
    let ticks = super::time::PM_HZ / 10;
    while super::time::pm_ticks_since(begin) < ticks {}
    check!(system_ns() - begin_ns >= 90_000_000, "a nanosecond is one");
    wrmsr(SYSTEM_TIME, 0);
    Ok(())
}

fn clock_follows_a_written_tsc() -> Outcome {
    wrmsr(SYSTEM_TIME, page_at() | 1);
    let version = word(0);
    let before_ns = system_ns();
    wrmsr(TSC, rdtsc() + FAR);
    let after_ns = system_ns();
    wrmsr(TSC, rdtsc() - FAR);
    check!(word(0) != version, "the page is written again");
    check!(after_ns >= before_ns && after_ns - before_ns < 60_000_000_000);
    check!(system_ns() >= after_ns);
    wrmsr(SYSTEM_TIME, 0);
    let version = word(0);
    wrmsr(TSC, rdtsc());
    check_eq!(word(0), version, "a disabled page is left alone");
    Ok(())
}

fn wall_clock_is_written() -> Outcome {
    wrmsr(WALL_CLOCK, page_at());
    check!(word(0) != 0 && word(0) & 1 == 0);
    // 2024 to 2100, and less than a second.
    check!(word(1) > 1_704_067_200 && word(1) < 4_102_444_800);
    check!(word(2) < 1_000_000_000);
    Ok(())
}

fn steal_time_is_written() -> Outcome {
    wrmsr(STEAL_TIME, page_at() | 1);
    check!(word(2) != 0 && word(2) & 1 == 0);
    let stolen_ns = || u64::from(word(0)) | u64::from(word(1)) << 32;
    let (first, begin) = (stolen_ns(), super::time::pm_timer());
    let ticks = super::time::PM_HZ / 10;
    while super::time::pm_ticks_since(begin) < ticks {}
    let more_ns = stolen_ns() - first;
    check!(
        more_ns <= super::time::pm_ticks_since(begin) * 280,
        "no more than all of it"
    );
    wrmsr(STEAL_TIME, 0);
    Ok(())
}

fn bad_clock_addresses_fault() -> Outcome {
    for value in [0x1002 | 1, 0xfee0_0000 | 1, u64::MAX, 1 << 52 | 1] {
        check_eq!(wrmsr_faults(SYSTEM_TIME, value), Some(13));
    }
    for value in [0x1020 | 1, 0xfee0_0000 | 1, u64::MAX] {
        check_eq!(wrmsr_faults(STEAL_TIME, value), Some(13));
    }
    for value in [0x1001, 0xfee0_0000, !3] {
        check_eq!(wrmsr_faults(WALL_CLOCK, value), Some(13));
    }
    Ok(())
}

/// The clock's old registers, and those of what is not offered at all.
fn clock_msrs_not_offered_fault() -> Outcome {
    for index in [
        0x11,
        0x12,
        0x4b56_4d02,
        0x4b56_4d04,
        0x4b56_4d05,
        0x4b56_4d06,
    ] {
        let read = fault!("rdmsr", in("ecx") index, out("eax") _, out("edx") _);
        check_eq!(read.map(|fault| fault.vector), Some(13));
        check_eq!(wrmsr_faults(index, 0), Some(13));
    }
    Ok(())
}
