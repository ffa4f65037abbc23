// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the timers promise.

use super::*;
use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
use proptest::prelude::*;

/// Bits of a timer's configuration.
const INTERRUPTS: u64 = 4;
const PERIODIC: u64 = 8;
const SET_VALUE: u64 = 0x40;
const NARROW: u64 = 0x100;
/// Input 20 of the I/O APIC.
const AT_20: u64 = 20 << 9;

struct Bench {
    machine: TestMachine,
    hpet: Hpet,
}

impl Bench {
    /// With the counter on.
    fn new() -> Self {
        let mut bench = Self {
            machine: TestMachine::new(),
            hpet: Hpet::new(),
        };
        bench.write(0x10, 1);
        bench
    }
    fn read(&mut self, offset: u64) -> u64 {
        let at = Gpa(BASE_GPA + offset);
        self.hpet.mmio_read(&self.machine.cx(), at, 8)
    }
    fn write(&mut self, offset: u64, value: u64) {
        let at = Gpa(BASE_GPA + offset);
        self.hpet.mmio_write(&self.machine.cx(), at, 8, value);
    }
    /// Moves the clock to a tick of the counter's rate.
    fn to(&self, tick: u64) {
        self.machine.now_ns.set(tick * 10);
    }
    /// Runs to a tick, with a host that is never late; how often a line rose so far.
    fn edges_until(&mut self, tick: u64, line: u32) -> usize {
        self.machine.run_until(&mut self.hpet, tick * 10);
        self.machine.edges(line)
    }
}

#[test]
fn names_itself() {
    let mut bench = Bench::new();
    let capabilities = bench.read(0);
    assert_eq!(capabilities >> 32, 10_000_000, "femtoseconds a tick");
    assert_eq!(
        capabilities & 0xffff,
        0xa201,
        "64 bits, legacy routes, three timers, revision 1"
    );
    for timer in 0..3 {
        assert_eq!(bench.read(0x100 + timer * 0x20), 0x00f0_0000_0000_0030);
    }
    let half = bench
        .hpet
        .mmio_read(&bench.machine.cx(), Gpa(BASE_GPA + 4), 4);
    assert_eq!(half, 10_000_000);
    bench.write(0, 0);
    assert_eq!(bench.read(0), capabilities);
}

#[test]
fn the_counter_counts_while_it_is_on_and_can_be_set() {
    let mut bench = Bench::new();
    bench.to(1000);
    assert_eq!(bench.read(0xf0), 1000);
    bench.write(0x10, 0);
    bench.to(5000);
    assert_eq!(bench.read(0xf0), 1000);
    bench.write(0xf0, 70);
    bench.write(0x10, 1);
    bench.to(5030);
    assert_eq!(bench.read(0xf0), 100);
    // Half by half.
    let cx = bench.machine.cx();
    bench.hpet.mmio_write(&cx, Gpa(BASE_GPA + 0xf4), 4, 3);
    assert_eq!(bench.hpet.mmio_read(&cx, Gpa(BASE_GPA + 0xf4), 4), 3);
    assert_eq!(bench.hpet.mmio_read(&cx, Gpa(BASE_GPA + 0xf0), 4), 100);
}

#[test]
fn a_timer_fires_once_at_its_comparator() {
    let mut bench = Bench::new();
    bench.write(0x100, INTERRUPTS | AT_20);
    bench.write(0x108, 10_000);
    assert_eq!(bench.edges_until(9_999, 20), 0);
    assert_eq!(bench.edges_until(10_000, 20), 1);
    assert_eq!(bench.edges_until(1 << 40, 20), 1);
    bench.write(0x108, (1 << 40) + 5);
    assert_eq!(bench.edges_until(1 << 41, 20), 2);
    assert!(!bench.machine.line(20), "it was a pulse");
}

#[test]
fn a_comparator_just_passed_fires_at_once() {
    let mut bench = Bench::new();
    bench.to(1 << 33);
    bench.write(0x100, INTERRUPTS | AT_20 | NARROW);
    bench.write(0x108, (1u64 << 32).wrapping_sub(3));
    assert_eq!(bench.edges_until(1 << 33, 20), 1);
    bench.write(0x108, 5000);
    assert_eq!(bench.edges_until((1 << 33) + 4999, 20), 1);
    assert_eq!(bench.edges_until((1 << 33) + 5000, 20), 2);
}

/// As Linux programs it: when it fires first, then the period.
#[test]
fn a_periodic_timer_keeps_its_phase() {
    let mut bench = Bench::new();
    bench.write(0x120, INTERRUPTS | PERIODIC | SET_VALUE | NARROW | 21 << 9);
    bench.write(0x128, 50_000);
    assert_eq!(bench.read(0x120) & SET_VALUE, 0);
    bench.write(0x128, 10_000);
    assert_eq!(bench.edges_until(49_999, 21), 0);
    assert_eq!(bench.edges_until(90_000, 21), 5);
    assert_eq!(bench.read(0x128), 100_000, "the next time");
    // The host is late by three periods and a half.
    bench.to(134_999);
    bench.hpet.tick(&bench.machine.cx());
    assert_eq!(bench.machine.edges(21), 6, "one for all");
    assert_eq!(bench.edges_until(140_000, 21), 7);
}

#[test]
fn no_timer_keeps_its_host_busy() {
    let mut bench = Bench::new();
    bench.write(0x100, INTERRUPTS | PERIODIC | SET_VALUE | AT_20);
    bench.write(0x108, 1);
    let edges = bench.edges_until(1_000_000, 20) as u64;
    assert!(
        (400..=1_000_000 / MIN_SPACING_TICKS + 1).contains(&edges),
        "{edges}"
    );
}

#[test]
fn a_level_stays_until_it_is_cleared() {
    let mut bench = Bench::new();
    bench.write(0x100, INTERRUPTS | timer::LEVEL | AT_20);
    bench.write(0x108, 100);
    bench.edges_until(200, 20);
    assert!(bench.machine.line(20));
    assert_eq!(bench.read(0x20), 1);
    bench.write(0x20, 2);
    assert!(bench.machine.line(20), "another timer's bit");
    bench.write(0x20, 1);
    assert!(!bench.machine.line(20));
    assert_eq!(bench.read(0x20), 0);
}

#[test]
fn legacy_replacement_moves_the_first_two_timers() {
    let mut bench = Bench::new();
    for timer in [0x100, 0x120, 0x140] {
        bench.write(timer, INTERRUPTS | AT_20);
        bench.write(timer + 8, 5_000);
    }
    bench.write(0x10, 3);
    assert_eq!(*bench.machine.legacy_replacement.borrow(), [true]);
    let [first, second] = LEGACY_LINES.map(|line| line.0);
    assert_eq!(bench.edges_until(6_000, first), 1);
    let others = [second, 20].map(|line| bench.machine.edges(line));
    assert_eq!(others, [1, 1], "the third one has its own route");
    bench.write(0x10, 1);
    assert_eq!(*bench.machine.legacy_replacement.borrow(), [true, false]);
}

#[test]
fn a_timer_without_its_interrupt_asks_for_no_time() {
    let mut bench = Bench::new();
    bench.write(0x100, PERIODIC | SET_VALUE | AT_20);
    bench.write(0x108, 10_000);
    assert_eq!(bench.hpet.deadline_ns(), None);
    bench.to(45_000);
    assert_eq!(bench.read(0x108), 50_000, "but goes on");
    bench.write(0x100, INTERRUPTS | PERIODIC | AT_20);
    assert_eq!(bench.hpet.deadline_ns(), Some(500_000));
}

#[test]
fn a_route_that_is_not_there_is_not_taken() {
    let mut bench = Bench::new();
    bench.write(0x100, AT_20 | 1);
    bench.write(0x100, 9 << 9);
    assert_eq!(bench.read(0x100) & timer::ROUTE, AT_20);
}

proptest! {
    /// Whatever is written: a deadline lies ahead, and all state comes back.
    #[test]
    fn hostile_writes(steps in prop::collection::vec((0u64..0x400, prop::sample::select(vec![1u8, 2, 4, 8]), any::<u64>(), 0u64..1 << 40), 0..40), record in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bench = Bench::new();
        for (offset, size, value, pass) in steps {
            let at = Gpa(BASE_GPA + offset % (0x400 - u64::from(size)));
            bench.hpet.mmio_write(&bench.machine.cx(), at, size, value);
            let cx = bench.machine.cx();
            bench.hpet.mmio_read(&cx, at, size);
            bench.machine.advance_ns(pass);
            bench.hpet.tick(&bench.machine.cx());
            let now = bench.machine.now_ns.get();
            prop_assert!(bench.hpet.deadline_ns().is_none_or(|due| due > now));
        }
        assert_restores(&saved(|w| bench.hpet.save(w)), &mut Hpet::new());
        assert_survives(&record, &mut bench.hpet);
    }
}
