// SPDX-License-Identifier: MIT OR Apache-2.0
//! The high-precision event timer (IA-PC HPET Specification 1.0a), as the ACPI table names it.
//!
//! QEMU fires from another thread than the processor's, later than the counter shows: it does not judge how often a timer fires.

use super::interrupts::{halt_until, pic_mask_all, pic_on, pit_periodic, pit_quiet};
use super::ioapic::set_pin;
use crate::acpi;
use crate::apic::{self, MASKED};
use crate::io::{mmio_read, mmio_write, outb};
use crate::smp::wait_ms;
use crate::{check, check_eq, tests, trap, Outcome};

tests!(
    hpet_counts,
    hpet_replaces_the_timer;
    ours: hpet_one_shot, hpet_periodic, hpet_level
);

const VECTOR: u8 = 0x5a;
const CONFIGURATION: u64 = 0x10;
const STATUS: u64 = 0x20;
const COUNTER: u64 = 0xf0;
const TIMER_0: u64 = 0x100;
const COMPARATOR_0: u64 = 0x108;
/// Bits of a timer's configuration.
const LEVEL: u32 = 1 << 1;
const INTERRUPTS: u32 = 1 << 2;
const PERIODIC: u32 = 1 << 3;
const SET_VALUE: u32 = 1 << 6;
const NARROW: u32 = 1 << 8;

struct Hpet {
    base: u64,
    /// Ticks of a millisecond.
    ms: u32,
}

impl Hpet {
    /// With the counter at zero and on, all timers off, as `configuration` says.
    fn start(configuration: u32) -> Result<Self, &'static str> {
        let base = acpi::hpet().ok_or("no HPET")?;
        let femtoseconds = u64::from(mmio_read(base + 4));
        check_range(femtoseconds)?;
        let hpet = Hpet {
            base,
            ms: (1_000_000_000_000 / femtoseconds) as u32,
        };
        hpet.write(CONFIGURATION, 0);
        hpet.write(TIMER_0, 0);
        hpet.write(COUNTER, 0);
        hpet.write(COUNTER + 4, 0);
        hpet.write(CONFIGURATION, configuration | 1);
        Ok(hpet)
    }
    fn read(&self, register: u64) -> u32 {
        mmio_read(self.base + register)
    }
    fn write(&self, register: u64, value: u32) {
        mmio_write(self.base + register, value);
    }
    /// Has the first timer fire in some milliseconds, and each time that they have passed if it is periodic. Gives when it fires first.
    /// On a busy machine the counter may have passed that before it was written, and then it is written anew.
    fn arm(&self, configuration: u32, ms: u32) -> u32 {
        let mut ticks = ms * self.ms;
        loop {
            let until = self.read(COUNTER).wrapping_add(ticks);
            self.write(TIMER_0, INTERRUPTS | NARROW | configuration);
            self.write(COMPARATOR_0, until);
            if configuration & PERIODIC != 0 {
                self.write(COMPARATOR_0, ms * self.ms);
            }
            if (until.wrapping_sub(self.read(COUNTER)) as i32) > 0 {
                return until;
            }
            // What fired meanwhile does not count.
            self.write(TIMER_0, 0);
            apic::let_in();
            trap::reset_counts();
            ticks *= 2;
        }
    }
    /// Off, with what it left behind taken.
    fn stop(&self) {
        self.write(TIMER_0, 0);
        self.write(CONFIGURATION, 0);
        apic::let_in();
    }
    /// The lowest input of the I/O APIC that the first timer reaches: its number, and its bits in the configuration.
    fn route(&self) -> (u32, u32) {
        let pin = self.read(TIMER_0 + 4).trailing_zeros();
        (pin, pin << 9)
    }
    fn pin_on(&self, pin: u32, low: u32) {
        pic_on(0x20);
        pic_mask_all();
        // It may have the same input.
        pit_quiet();
        apic::on();
        set_pin(pin, low);
        trap::reset_counts();
    }
}

/// A period of at most 100 ns (2.3.4).
fn check_range(femtoseconds: u64) -> Outcome {
    check!(femtoseconds > 0 && femtoseconds <= 100_000_000);
    Ok(())
}

fn hpet_counts() -> Outcome {
    let hpet = Hpet::start(0)?;
    let begin = hpet.read(COUNTER);
    while hpet.read(COUNTER).wrapping_sub(begin) < hpet.ms {}
    hpet.write(CONFIGURATION, 0);
    let stopped = hpet.read(COUNTER);
    check_eq!(hpet.read(COUNTER), stopped);
    hpet.write(COUNTER, 5);
    check_eq!(hpet.read(COUNTER), 5);
    check!(mmio_read(hpet.base) >> 8 & 0x1f >= 2, "three timers");
    Ok(())
}

fn hpet_one_shot() -> Outcome {
    let hpet = Hpet::start(0)?;
    let (pin, route) = hpet.route();
    hpet.pin_on(pin, VECTOR.into());
    let until = hpet.arm(route, 5);
    halt_until(VECTOR, 1);
    while (hpet.read(COUNTER).wrapping_sub(until) as i32) < 0 {}
    apic::let_in();
    trap::reset_counts();
    wait_ms(2);
    apic::let_in();
    check_eq!(trap::count(VECTOR), 0, "it fired for good");
    hpet.stop();
    set_pin(pin, MASKED);
    Ok(())
}

fn hpet_periodic() -> Outcome {
    let hpet = Hpet::start(0)?;
    let (pin, route) = hpet.route();
    hpet.pin_on(pin, VECTOR.into());
    let first = hpet.arm(PERIODIC | SET_VALUE | route, 2);
    halt_until(VECTOR, 5);
    check!(hpet.read(COUNTER).wrapping_sub(first) >= 8 * hpet.ms);
    hpet.stop();
    set_pin(pin, MASKED);
    Ok(())
}

/// The status bit, and with it the line, stays until it is cleared.
fn hpet_level() -> Outcome {
    let hpet = Hpet::start(0)?;
    let (pin, route) = hpet.route();
    hpet.pin_on(pin, MASKED);
    hpet.arm(LEVEL | route, 1);
    while hpet.read(STATUS) & 1 == 0 {}
    set_pin(pin, apic::LEVEL | u32::from(VECTOR));
    halt_until(VECTOR, 3);
    hpet.write(STATUS, 1);
    check_eq!(hpet.read(STATUS) & 1, 0);
    apic::let_in();
    let count = trap::count(VECTOR);
    apic::let_in();
    check_eq!(trap::count(VECTOR), count);
    hpet.stop();
    set_pin(pin, MASKED);
    Ok(())
}

/// Legacy replacement: the first timer has the 8254's line (2.3.5).
fn hpet_replaces_the_timer() -> Outcome {
    let hpet = Hpet::start(2)?;
    pic_on(0x20);
    pit_periodic(1193);
    outb(0x21, 0xfe);
    interrupted_by_nobody()?;
    hpet.arm(PERIODIC | SET_VALUE, 1);
    halt_until(0x20, 5);
    hpet.stop();
    // And now the 8254 again.
    trap::reset_counts();
    halt_until(0x20, 5);
    pic_mask_all();
    pit_quiet();
    Ok(())
}

/// The 8254 runs out several times, and nothing is heard of it.
fn interrupted_by_nobody() -> Outcome {
    wait_ms(5);
    apic::let_in();
    check_eq!(trap::count(0x20), 0);
    Ok(())
}
