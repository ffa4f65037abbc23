// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the clock promises.

use super::*;
use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
use proptest::prelude::*;

const S: u64 = 1_000_000_000;
/// 2024-02-29 23:59:58 UTC, a Thursday, and a quarter of a second.
const LEAP_DAY_NS: u64 = 1_709_251_198 * S + S / 4;

struct Bench {
    machine: TestMachine,
    rtc: Rtc,
}

impl Bench {
    fn new() -> Self {
        let machine = TestMachine::new();
        machine.wall_at_zero_ns.set(LEAP_DAY_NS);
        let rtc = Rtc::new(&machine, RamLayout::new(4 << 30)).unwrap();
        Self { machine, rtc }
    }
    fn read(&mut self, index: u8) -> u8 {
        self.machine.outb(&mut self.rtc, INDEX_PORT, index);
        self.machine.inb(&mut self.rtc, DATA_PORT)
    }
    fn write(&mut self, index: u8, value: u8) {
        self.machine.outb(&mut self.rtc, INDEX_PORT, index);
        self.machine.outb(&mut self.rtc, DATA_PORT, value);
    }
    fn time(&mut self) -> TimeBytes {
        TIME.map(|at| self.read(at))
    }
    fn run_for(&mut self, ns: u64) {
        let until = self.machine.now_ns.get() + ns;
        self.machine.run_until(&mut self.rtc, until);
    }
    fn line(&self) -> bool {
        self.machine.line(8)
    }
}

/// Firmware tables and old kernels count on the place of the century.
#[test]
fn the_century_is_where_a_pc_has_it() {
    assert_eq!(CENTURY, 0x32);
}

#[test]
fn shows_the_wall_clock_in_the_guests_digits() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.time(),
        [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]
    );
    bench.write(register::B, reg_b::HOURS_24 | reg_b::BINARY);
    assert_eq!(bench.time(), [58, 59, 23, 5, 29, 2, 24, 20]);
    bench.write(register::B, 0);
    assert_eq!(bench.time()[2], PM | 0x11);
    bench.machine.advance_ns(2 * S);
    assert_eq!(
        bench.time(),
        [0, 0, 0x12, 0x06, 0x01, 0x03, 0x24, 0x20],
        "midnight is 12 AM"
    );
}

#[test]
fn an_update_is_announced() {
    let mut bench = Bench::new();
    assert_eq!(bench.read(register::A), 0x26);
    bench.machine.advance_ns(S * 3 / 4 - 3_000_000);
    assert_eq!(bench.read(register::A), 0x26);
    bench.machine.advance_ns(1_000_000);
    assert_eq!(bench.read(register::A), 0xa6);
    assert_eq!(bench.read(0), 0x58);
    bench.machine.advance_ns(2_000_000);
    assert_eq!(bench.read(register::A), 0x26);
    assert_eq!(bench.read(0), 0x59);
}

#[test]
fn a_time_set_is_kept_as_an_offset() {
    let mut bench = Bench::new();
    bench.write(register::B, reg_b::HOURS_24 | reg_b::SET);
    let time = [0x30, 0x15, 0x08, 0x01, 0x31, 0x12, 0x99, 0x19];
    for (at, byte) in TIME.into_iter().zip(time) {
        bench.write(at, byte);
    }
    bench.machine.advance_ns(5 * S);
    assert_eq!(bench.time(), time, "it stands");
    bench.write(register::B, reg_b::HOURS_24);
    bench.machine.advance_ns(S);
    // 31 December 1999 was a Friday, whatever was written.
    assert_eq!(
        bench.time(),
        [0x31, 0x15, 0x08, 0x06, 0x31, 0x12, 0x99, 0x19]
    );
    bench.machine.advance_ns(86_400 * S);
    assert_eq!(
        bench.time(),
        [0x31, 0x15, 0x08, 0x07, 0x01, 0x01, 0x00, 0x20]
    );
}

#[test]
fn one_byte_can_be_set_while_it_runs() {
    let mut bench = Bench::new();
    bench.write(2, 0x10);
    assert_eq!(bench.time()[..3], [0x58, 0x10, 0x23]);
}

#[test]
fn the_update_interrupts_each_second_once_acknowledged() {
    let mut bench = Bench::new();
    bench.read(register::C);
    bench.write(register::B, reg_b::HOURS_24 | reg_b::UPDATE_INTERRUPT);
    bench.run_for(S * 3 / 4 - 1);
    assert!(!bench.line());
    bench.run_for(1);
    assert!(bench.line());
    assert_eq!(bench.read(0), 0x59, "the new second shows");
    bench.run_for(10 * S);
    assert_eq!(bench.machine.edges(8), 1);
    assert_eq!(
        bench.read(register::C) & 0x90,
        reg_c::INTERRUPT | reg_c::UPDATE
    );
    assert!(!bench.line());
    bench.run_for(S);
    assert_eq!(bench.machine.edges(8), 2);
}

#[test]
fn periodic_interrupts_have_their_rates() {
    for (rate, hz) in [(3u8, 8192u64), (6, 1024), (15, 2), (1, 256), (2, 128)] {
        let mut bench = Bench::new();
        bench.write(register::A, 0x20 | rate);
        bench.write(register::B, reg_b::HOURS_24 | reg_c::PERIODIC);
        for _ in 0..hz {
            let due = bench.rtc.deadline_ns().unwrap();
            bench.machine.run_until(&mut bench.rtc, due);
            let flags = bench.read(register::C);
            assert_ne!(flags & reg_c::PERIODIC, 0);
        }
        assert_eq!(bench.machine.now_ns.get(), S);
        assert_eq!(bench.machine.edges(8), hz as usize);
    }
}

#[test]
fn periods_missed_make_one_interrupt_and_the_phase_stays() {
    let mut bench = Bench::new();
    bench.write(register::A, 0x20 | 6);
    bench.write(register::B, reg_b::HOURS_24 | reg_c::PERIODIC);
    let period = S / 1024;
    // The host comes ten periods and a half late.
    bench.machine.now_ns.set(10 * period + period / 2);
    bench.rtc.timed().unwrap().tick();
    assert_eq!(bench.machine.edges(8), 1);
    assert_ne!(bench.read(register::C) & reg_c::PERIODIC, 0);
    assert_eq!(bench.read(register::C), 0, "no debt");
    let due = bench.rtc.deadline_ns().unwrap();
    assert!(due.abs_diff(11 * S / 1024) <= 1, "{due}");
}

/// Whoever holds timers back does so by a late tick.
#[test]
fn the_end_of_a_period_interrupts_by_a_tick_alone() {
    let mut bench = Bench::new();
    bench.write(register::B, reg_b::HOURS_24 | reg_c::PERIODIC);
    bench.read(register::C);
    let due = bench.rtc.deadline_ns().unwrap();
    bench.machine.advance_ns(due - bench.machine.now_ns.get());
    bench.read(register::B);
    assert_eq!((bench.line(), bench.rtc.deadline_ns()), (false, Some(due)));
    bench.rtc.tick();
    assert!(bench.line());
    bench.read(register::C);
    bench.machine.advance_ns(S);
    assert_ne!(
        bench.read(register::C) & reg_c::PERIODIC,
        0,
        "a poll sees it"
    );
    assert!(!bench.line());
}

/// A period may end while register C is read. It counts before or after: the line falls, so that there is a next edge.
#[test]
fn each_read_of_its_flags_lets_the_next_edge_come() {
    for look_ns in (1_000..150_000).step_by(7_001) {
        let mut bench = Bench::new();
        bench.write(register::A, 0x20 | 3);
        bench.write(register::B, reg_b::HOURS_24 | reg_c::PERIODIC);
        bench.machine.look_ns.set(look_ns);
        for edge in 1..200 {
            let due = bench.rtc.deadline_ns().expect("waits for the next one");
            bench
                .machine
                .advance_ns(due.saturating_sub(bench.machine.now_ns.get()));
            bench.rtc.tick();
            assert_eq!(bench.machine.edges(8), edge);
            assert_ne!(bench.read(register::C) & reg_c::PERIODIC, 0);
        }
    }
}

#[test]
fn a_held_divider_makes_no_events() {
    let mut bench = Bench::new();
    bench.write(register::A, 0x66);
    bench.read(register::C);
    bench.write(register::B, reg_b::HOURS_24 | reg_c::ALL);
    bench.run_for(3 * S);
    assert_eq!(bench.rtc.deadline_ns(), None);
    assert_eq!(bench.read(register::C), 0);
}

#[test]
fn the_alarm_rings_at_its_time() {
    let cases: [([u8; 3], u64); 6] = [
        ([0x00, 0x00, 0x00], 2),
        ([0x59, 0xff, 0xff], 1),
        ([0xff, 0xff, 0xff], 1),
        ([0x30, 0x01, 0xc0], 2 + 90),
        ([0x58, 0x59, 0x23], 86_400),
        ([0x15, 0x30, 0x12], 2 + 12 * 3600 + 30 * 60 + 15),
    ];
    for ([second, minute, hour], after_s) in cases {
        let mut bench = Bench::new();
        bench.write(register::SECONDS_ALARM, second);
        bench.write(register::MINUTES_ALARM, minute);
        bench.write(register::HOURS_ALARM, hour);
        bench.read(register::C);
        bench.write(register::B, reg_b::HOURS_24 | reg_c::ALARM);
        bench.run_for(after_s * S - S / 4 - 1);
        assert!(!bench.line());
        bench.run_for(1);
        assert!(bench.line());
        assert_ne!(bench.read(register::C) & reg_c::ALARM, 0);
    }
}

#[test]
fn the_alarm_knows_afternoons() {
    let mut bench = Bench::new();
    bench.write(register::B, 0);
    for (at, byte) in [(1, 0), (3, 0), (5, PM | 0x01)] {
        bench.write(at, byte);
    }
    bench.read(register::C);
    bench.write(register::B, reg_c::ALARM);
    bench.run_for((2 + 13 * 3600) * S - S / 4 - 1);
    assert!(!bench.line());
    bench.run_for(1);
    assert!(bench.line());
}

/// Nobody says so, but the alarm is noticed.
#[test]
fn a_wall_clock_that_is_set_past_the_alarm_rings_within_a_minute() {
    let mut bench = Bench::new();
    for (at, byte) in [(1, 0), (3, 0), (5, 0x12)] {
        bench.write(at, byte);
    }
    bench.read(register::C);
    bench.write(register::B, reg_b::HOURS_24 | reg_c::ALARM);
    bench.run_for(S);
    bench
        .machine
        .wall_at_zero_ns
        .set(LEAP_DAY_NS + 13 * 3600 * S);
    bench.run_for(60 * S);
    assert!(bench.line());
}

#[test]
fn an_impossible_alarm_never_rings() {
    let mut bench = Bench::new();
    bench.write(register::SECONDS_ALARM, 0x75);
    bench.write(register::MINUTES_ALARM, 0xff);
    bench.write(register::HOURS_ALARM, 0xff);
    bench.write(register::B, reg_b::HOURS_24 | reg_c::ALARM);
    assert_eq!(bench.rtc.deadline_ns(), None);
}

#[test]
fn cmos_tells_the_memory_size() {
    let mut bench = Bench::new();
    let mut word = |at: u8| u16::from_le_bytes([bench.read(at), bench.read(at + 1)]);
    assert_eq!(word(0x15), 640);
    assert_eq!(word(0x17), 0xffff);
    assert_eq!(word(0x34), (((3 << 30) - (16 << 20)) >> 16) as u16);
    assert_eq!((word(0x5b), word(0x5c)), (0x4000, 0x0040));
    let sum: u16 = (0x10..0x2e).map(|at| u16::from(bench.read(at))).sum();
    assert_eq!(
        u16::from_be_bytes([bench.read(0x2e), bench.read(0x2f)]),
        sum
    );
    let small = State::new(RamLayout::new(8 << 20));
    assert_eq!(small.memory[0x17..0x19], (7u16 << 10).to_le_bytes());
    assert_eq!(small.memory[0x34..0x36], [0, 0]);
}

#[test]
fn cmos_remembers_and_a_reset_leaves_it() {
    let mut bench = Bench::new();
    bench.write(0x50, 0x5a);
    bench.write(2, 0x10);
    bench.write(register::B, reg_b::HOURS_24 | reg_c::ALL);
    bench.rtc.reset();
    assert_eq!(bench.read(0x50), 0x5a);
    assert_eq!(bench.read(2), 0x10);
    assert_eq!(bench.read(register::B), reg_b::HOURS_24);
    assert_eq!(bench.read(register::D), 0x80);
    bench.machine.outb(&mut bench.rtc, INDEX_PORT, 0x80 | 0x50);
    assert_eq!(
        bench.machine.inb(&mut bench.rtc, DATA_PORT),
        0x5a,
        "bit 7 is not the index's"
    );
}

#[test]
fn its_line_follows_a_reset_and_a_restore() {
    let mut bench = Bench::new();
    bench.write(register::B, reg_b::HOURS_24 | reg_b::UPDATE_INTERRUPT);
    bench.run_for(S);
    assert!(bench.line());
    let record = saved(|w| bench.rtc.save(w));
    bench.rtc.reset();
    assert!(!bench.line());
    assert_restores(&record, &mut bench.rtc);
    assert!(bench.line());
    assert_restores(&saved(|w| Bench::new().rtc.save(w)), &mut bench.rtc);
    assert!(!bench.line());
}

#[test]
fn a_wall_clock_that_steps_back_harms_nobody() {
    let mut bench = Bench::new();
    bench.time();
    bench.read(register::C);
    bench.machine.wall_at_zero_ns.set(LEAP_DAY_NS - 3600 * S);
    assert_eq!(bench.read(4), 0x22);
    assert_eq!(bench.read(register::C), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Read(u8),
    Write(u8, u8),
    Wide(u16, u8, u32),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let index = prop_oneof![4 => 0u8..0x0e, 1 => Just(CENTURY), 1 => any::<u8>()];
    let step = prop_oneof![
        index.clone().prop_map(Step::Read),
        (index, any::<u8>()).prop_map(|(index, value)| Step::Write(index, value)),
        (0x70u16..0x72, 1u8..5, any::<u32>()).prop_map(|(p, size, v)| Step::Wide(p, size, v)),
        (0u64..3 * S).prop_map(Step::Wait),
        (0u64..1 << 60).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..50)
}

fn run(bench: &mut Bench, steps: &[Step]) -> Vec<(u32, Option<u64>)> {
    let mut seen = Vec::new();
    for step in steps {
        let mut read = 0;
        match *step {
            Step::Read(index) => read = bench.read(index).into(),
            Step::Write(index, value) => bench.write(index, value),
            Step::Wide(port, size, value) => {
                bench.machine.port_write(&mut bench.rtc, port, size, value);
                read = bench.machine.port_read(&mut bench.rtc, port, size);
            }
            Step::Wait(ns) => {
                bench.machine.advance_ns(ns);
                bench.rtc.tick();
            }
        }
        seen.push((read, bench.rtc.deadline_ns()));
    }
    seen
}

proptest! {
    #[test]
    fn a_restored_one_goes_on_as_the_saved_one(before in steps(), after in steps()) {
        let mut bench = Bench::new();
        run(&mut bench, &before);
        let record = saved(|w| bench.rtc.save(w));
        let mut twin = Bench::new();
        twin.machine.now_ns.set(bench.machine.now_ns.get());
        assert_restores(&record, &mut twin.rtc);
        prop_assert_eq!(twin.line(), bench.line());
        prop_assert_eq!(run(&mut twin, &after), run(&mut bench, &after));
    }

    #[test]
    fn any_valid_time_reads_back(
        s in 0i64..253_402_300_800, mode in prop::sample::select(vec![0u8, 2, 4, 6]),
    ) {
        let mut bench = Bench::new();
        bench.write(register::B, mode);
        let state = &mut bench.rtc.state;
        state.offset_s = s - state.guest_s(LEAP_DAY_NS / S);
        let time = bench.time();
        let mut other = Bench::new();
        other.write(register::B, mode | reg_b::SET);
        for (at, byte) in TIME.into_iter().zip(time) {
            other.write(at, byte);
        }
        other.write(register::B, mode);
        prop_assert_eq!(other.rtc.state.offset_s, bench.rtc.state.offset_s);
        prop_assert_eq!(other.time(), time);
    }

    #[test]
    fn a_tick_moves_the_deadline_on(before in steps()) {
        let mut bench = Bench::new();
        run(&mut bench, &before);
        bench.rtc.tick();
        let now_ns = bench.machine.now_ns.get();
        prop_assert!(now_ns == u64::MAX || bench.rtc.deadline_ns().is_none_or(|due| due > now_ns));
    }

    #[test]
    fn a_damaged_record_is_restored_or_refused(
        before in steps(), at in 0usize..190, byte: u8, length in 0usize..200, after in steps(),
    ) {
        let mut bench = Bench::new();
        run(&mut bench, &before);
        let mut record = saved(|w| bench.rtc.save(w));
        if let Some(field) = record.get_mut(at) {
            *field = byte;
        }
        record.truncate(length);
        assert_survives(&record, &mut bench.rtc);
        run(&mut bench, &after);
    }
}
