// SPDX-License-Identifier: MIT OR Apache-2.0
//! Time: the time stamp counter, measured once against the 8254, and the wall clock, read once.

use super::cpuid::leaf;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use x86_64::instructions::port::Port;
use x86_64::registers::model_specific::Msr;

const NS_PER_S: u64 = 1_000_000_000;
/// The 8254's rate.
const PIT_HZ: u64 = 1_193_182;
/// How long the time stamp counter is measured.
const MEASURE_MS: u64 = 50;
/// IA32_TSC_ADJUST (SDM 4: 2).
const TSC_ADJUST: u32 = 0x3b;
/// How often two CPUs compare their counters.
pub const COMPARE_ROUNDS: u32 = 1000;

static TSC_HZ: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds for each count of the time stamp counter, in units of 2⁻³².
static NS_PER_TSC_COUNT: AtomicU64 = AtomicU64::new(0);
/// The counter when the kernel began, and the wall clock then.
static BEGIN: AtomicU64 = AtomicU64::new(0);
static BEGIN_WALL_NS: AtomicU64 = AtomicU64::new(0);
/// The counters of all CPUs agree.
static STABLE: AtomicBool = AtomicBool::new(false);
/// The latest time that was told; used only if counters differ.
static LATEST_NS: AtomicU64 = AtomicU64::new(0);
/// The offset of the first CPU's counter.
static OFFSET: AtomicU64 = AtomicU64::new(0);
/// The latest counter that was read in a comparison.
static LATEST_TSC: AtomicU64 = AtomicU64::new(0);

/// The time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: no effect.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// Its rate.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Ordering::Relaxed)
}

/// All CPUs' counters agree, at one rate.
pub fn tsc_stable() -> bool {
    STABLE.load(Ordering::Relaxed)
}

/// Nanoseconds since the kernel began. Never goes back, also between CPUs.
pub fn now_ns() -> u64 {
    let now = tsc();
    let counts = now.saturating_sub(BEGIN.load(Ordering::Relaxed));
    let ns = u128::from(counts) * u128::from(NS_PER_TSC_COUNT.load(Ordering::Relaxed));
    let ns = (ns >> 32) as u64;
    match tsc_stable() {
        true => ns,
        false => LATEST_NS.fetch_max(ns, Ordering::Relaxed).max(ns),
    }
}

/// Nanoseconds since 1970-01-01 UTC.
pub fn wall_ns() -> u64 {
    BEGIN_WALL_NS.load(Ordering::Relaxed) + now_ns()
}

/// Spins.
pub fn spin_ns(ns: u64) {
    let end_ns = now_ns() + ns;
    while now_ns() < end_ns {
        core::hint::spin_loop();
    }
}

/// Measures the counter and reads the wall clock. `trusted` says that the counters of all CPUs agree though the processor does not
/// promise it.
pub fn init(trusted: bool) {
    const INVARIANT: u32 = 1 << 8;
    let hz = rate_from_cpuid().unwrap_or_else(measure_rate);
    TSC_HZ.store(hz, Ordering::Relaxed);
    NS_PER_TSC_COUNT.store((NS_PER_S << 32) / hz.max(1), Ordering::Relaxed);
    BEGIN.store(tsc(), Ordering::Relaxed);
    BEGIN_WALL_NS.store(read_wall_ns(), Ordering::Relaxed);
    let invariant = leaf(0x8000_0007)[3] & INVARIANT != 0;
    STABLE.store(invariant || trusted, Ordering::Relaxed);
    OFFSET.store(counter_offset().unwrap_or(0), Ordering::Relaxed);
}

/// What this CPU's time stamp counter is off by, if the processor tells (SDM 3B: 18.17.3).
fn counter_offset() -> Option<u64> {
    const HAS_TSC_ADJUST: u32 = 1 << 1;
    // SAFETY: the CPU has it.
    (leaf(7)[1] & HAS_TSC_ADJUST != 0).then(|| unsafe { Msr::new(TSC_ADJUST).read() })
}

/// Gives this CPU's counter the offset that the first CPU's has: firmware may have left another.
///
/// # Safety
/// Before anything goes by the counter.
pub unsafe fn align_counter() {
    let wanted = OFFSET.load(Ordering::Relaxed);
    if counter_offset().is_some_and(|offset| offset != wanted) {
        // SAFETY: the CPU has it; by the contract above.
        unsafe { Msr::new(TSC_ADJUST).write(wanted) };
    }
}

/// The rate as the processor states it (SDM 2A: CPUID 15H).
fn rate_from_cpuid() -> Option<u64> {
    let [denominator, numerator, crystal_hz, _] = leaf(0x15);
    let product = u64::from(crystal_hz) * u64::from(numerator);
    product
        .checked_div(denominator.into())
        .filter(|hz| *hz != 0)
}

/// The rate by the 8254: counts while its counter 2 runs down once.
fn measure_rate() -> u64 {
    let count = PIT_HZ * MEASURE_MS / 1000;
    // SAFETY: counter 2 and its gate belong to the speaker, which nobody uses.
    unsafe {
        let (mut gate, mut control, mut counter) = (
            Port::<u8>::new(0x61),
            Port::<u8>::new(0x43),
            Port::<u8>::new(0x42),
        );
        let speaker = gate.read() & !3;
        gate.write(speaker);
        control.write(0xb0_u8); // Counter 2, both bytes, mode 0.
        counter.write(count as u8);
        counter.write((count >> 8) as u8);
        let begin = tsc();
        gate.write(speaker | 1);
        while gate.read() & 0x20 == 0 {
            core::hint::spin_loop();
        }
        let counts = tsc() - begin;
        gate.write(speaker);
        counts * PIT_HZ / count
    }
}

/// Compares the counters of two CPUs, that of the one that starts another and that of the other: both call this at once, and
/// read their counters in turn. If one reads less than the other read before, the counters do not agree.
pub fn compare_counters(rounds: u32) {
    for _ in 0..rounds {
        let latest = LATEST_TSC.load(Ordering::SeqCst);
        if tsc() < latest {
            STABLE.store(false, Ordering::Relaxed);
        }
        LATEST_TSC.fetch_max(tsc(), Ordering::SeqCst);
    }
}

/// The real-time clock (MC146818), which is taken to show UTC.
fn read_wall_ns() -> u64 {
    loop {
        let first = read_clock();
        if first == read_clock() {
            return seconds(first) * NS_PER_S;
        }
    }
}

/// Second, minute, hour, day, month, year, as numbers.
fn read_clock() -> [u64; 6] {
    let status = read_cmos(0x0b);
    [0, 2, 4, 7, 8, 9].map(|register| {
        while read_cmos(0x0a) & 0x80 != 0 {
            core::hint::spin_loop();
        }
        let raw = read_cmos(register);
        let (value, pm) = match register {
            4 => (raw & 0x7f, raw & 0x80 != 0),
            _ => (raw, false),
        };
        let binary = status & 4 != 0;
        let value = if binary {
            value
        } else {
            (value >> 4) * 10 + (value & 0xf)
        };
        let hours_12 = register == 4 && status & 2 == 0;
        u64::from(match (hours_12, pm) {
            (true, true) => value % 12 + 12,
            (true, false) => value % 12,
            _ => value,
        })
    })
}

fn read_cmos(register: u8) -> u8 {
    // SAFETY: reading has no effect but for register C, which is not read here.
    unsafe {
        Port::<u8>::new(0x70).write(register);
        Port::<u8>::new(0x71).read()
    }
}

/// Seconds since 1970, for the years from 2000 to 2099.
fn seconds([second, minute, hour, day, month, year]: [u64; 6]) -> u64 {
    const BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    const DAYS_TO_2000: u64 = 10_957;
    let before = BEFORE_MONTH
        .get((month as usize).wrapping_sub(1))
        .copied()
        .unwrap_or(0);
    let leap_day = u64::from(year % 4 == 0 && month > 2);
    let days =
        DAYS_TO_2000 + year * 365 + year.div_ceil(4) + before + leap_day + day.saturating_sub(1);
    ((days * 24 + hour) * 60 + minute) * 60 + second
}
