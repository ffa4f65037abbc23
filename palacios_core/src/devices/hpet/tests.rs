// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the timers promise.

use super::*;
use crate::devices::device::Space;
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
    /// As after power-on.
    fn off() -> Self {
        let machine = TestMachine::new();
        let hpet = Hpet::new(&machine).unwrap();
        Self { machine, hpet }
    }
    /// With the counter on.
    fn new() -> Self {
        let mut bench = Self::off();
        bench.write(0x10, 1);
        bench
    }
    /// With a level-triggered interrupt of the first timer, which has its legacy line.
    fn with_legacy_level() -> Self {
        let mut bench = Self::new();
        bench.write(0x10, 3);
        bench.write(0x100, INTERRUPTS | timer::LEVEL);
        bench.write(0x108, 100);
        bench.edges_until(200, LEGACY_LINES[0]);
        assert!(bench.machine.line(LEGACY_LINES[0]));
        bench
    }
    fn read_piece(&mut self, offset: u64, size: u8) -> u64 {
        let at = BASE_GPA + offset;
        self.machine.read(&mut self.hpet, Space::Memory, at, size)
    }
    fn write_piece(&mut self, offset: u64, size: u8, value: u64) {
        let at = BASE_GPA + offset;
        self.machine
            .write(&mut self.hpet, Space::Memory, at, size, value);
    }
    fn read(&mut self, offset: u64) -> u64 {
        self.read_piece(offset, 8)
    }
    fn write(&mut self, offset: u64, value: u64) {
        self.write_piece(offset, 8, value);
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
    assert_eq!(bench.read_piece(4, 4), 10_000_000);
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
    bench.write_piece(0xf4, 4, 3);
    assert_eq!(bench.read_piece(0xf4, 4), 3);
    assert_eq!(bench.read_piece(0xf0, 4), 100);
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
    bench.hpet.tick();
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
    let [first, second] = LEGACY_LINES;
    assert_eq!(bench.edges_until(6_000, first), 1);
    let others = [second, 20].map(|line| bench.machine.edges(line));
    assert_eq!(others, [1, 1], "the third one has its own route");
    bench.write(0x10, 1);
    assert_eq!(*bench.machine.legacy_replacement.borrow(), [true, false]);
}

#[test]
fn two_timers_share_a_level() {
    let mut bench = Bench::new();
    for timer in [0x100, 0x120] {
        bench.write(timer, INTERRUPTS | timer::LEVEL | AT_20);
        bench.write(timer + 8, 100);
    }
    bench.edges_until(200, 20);
    assert_eq!(bench.read(0x20), 3);
    for waits in [1, 2] {
        bench.write(0x20, waits);
        assert_eq!(bench.machine.line(20), bench.read(0x20) != 0);
    }
}

#[test]
fn a_level_moves_with_its_route() {
    let mut bench = Bench::with_legacy_level();
    bench.write(0x100, INTERRUPTS | timer::LEVEL | AT_20);
    assert!(bench.machine.line(LEGACY_LINES[0]), "this one goes first");
    bench.write(0x10, 1);
    let levels = [LEGACY_LINES[0], 20].map(|line| bench.machine.line(line));
    assert_eq!(levels, [false, true]);
    bench.write(0x100, INTERRUPTS | timer::LEVEL | 21 << 9);
    let levels = [20, 21].map(|line| bench.machine.line(line));
    assert_eq!(levels, [false, true]);
}

#[test]
fn a_reset_one_lets_go_of_its_lines() {
    let mut bench = Bench::with_legacy_level();
    bench.hpet.reset();
    assert!(!bench.machine.line(LEGACY_LINES[0]));
    assert_eq!(*bench.machine.legacy_replacement.borrow(), [true, false]);
    let fresh = saved(|w| Bench::off().hpet.save(w));
    assert_eq!(saved(|w| bench.hpet.save(w)), fresh);
    bench.hpet.reset();
    assert_eq!(bench.machine.legacy_replacement.borrow().len(), 2);
}

#[test]
fn a_restored_one_drives_its_lines() {
    let bench = Bench::with_legacy_level();
    let mut twin = Bench::off();
    for _ in 0..2 {
        assert_restores(&saved(|w| bench.hpet.save(w)), &mut twin.hpet);
        assert_eq!(*twin.machine.legacy_replacement.borrow(), [true]);
        assert_eq!(*twin.machine.irqs.borrow(), [(LEGACY_LINES[0], true)]);
    }
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
            let offset = offset % (0x400 - u64::from(size));
            bench.write_piece(offset, size, value);
            bench.read_piece(offset, size);
            bench.machine.advance_ns(pass);
            bench.hpet.tick();
            let now = bench.machine.now_ns.get();
            prop_assert!(bench.hpet.deadline_ns().is_none_or(|due| due > now));
        }
        let mut twin = Bench::off();
        assert_restores(&saved(|w| bench.hpet.save(w)), &mut twin.hpet);
        for line in INPUTS.into_iter().chain(LEGACY_LINES) {
            prop_assert_eq!(twin.machine.line(line), bench.machine.line(line));
        }
        assert_survives(&record, &mut bench.hpet);
    }
}
