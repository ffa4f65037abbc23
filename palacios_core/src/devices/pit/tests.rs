// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the timer promises.

use super::*;
use crate::devices::testing::{assert_restores, assert_survives, saved, TestMachine};
use proptest::prelude::*;

struct Bench {
    machine: TestMachine,
    pit: Pit,
}

impl Bench {
    fn new() -> Self {
        let machine = TestMachine::new();
        let pit = Pit::new(&machine).unwrap();
        Self { machine, pit }
    }
    /// Moves the clock to a tick of the crystal.
    fn to(&self, tick: u64) {
        self.machine.now_ns.set(CRYSTAL.ns_of(tick));
    }
    fn inb(&mut self, port: u16) -> u8 {
        self.machine.inb(&mut self.pit, port)
    }
    fn outb(&mut self, port: u16, value: u8) {
        self.machine.outb(&mut self.pit, port, value);
    }
    /// Programs a counter with low and high byte at tick 0.
    fn program(&mut self, counter: u8, mode: u8, count: u16) {
        self.outb(0x43, counter << 6 | 0x30 | mode << 1);
        let [low, high] = count.to_le_bytes();
        self.outb(0x40 + u16::from(counter), low);
        self.outb(0x40 + u16::from(counter), high);
    }
    fn count(&mut self, counter: u8) -> u16 {
        self.outb(0x43, counter << 6);
        let port = 0x40 + u16::from(counter);
        u16::from_le_bytes([self.inb(port), self.inb(port)])
    }
    /// OUT of counter 2.
    fn out_2(&mut self) -> bool {
        self.inb(0x61) & 0x20 != 0
    }
    /// Interrupts from tick 0 to the tick given, with a host that is never late.
    fn irqs_until(&mut self, tick: u64) -> usize {
        let until = CRYSTAL.ns_of(tick);
        self.machine.run_until(&mut self.pit, until);
        self.machine.edges(0)
    }
}

/// 65,536 ticks are 55 ms, from when the machine runs.
#[test]
fn firmware_leaves_it_ticking_slowly() {
    let mut bench = Bench::new();
    bench.to(5_000_000);
    bench
        .machine
        .run_until(&mut bench.pit, CRYSTAL.ns_of(5_000_001));
    assert_eq!(bench.irqs_until(5_000_000 + 65_536 * 3 + 1000), 3);
    bench.pit.reset();
    bench.to(90_000_000);
    assert_eq!(bench.count(0), 0, "it starts anew, and owes nothing");
    assert_eq!(bench.irqs_until(90_000_000 + 65_536 * 2 + 1000), 5);
}

/// 8254 datasheet: read-back command, status byte: "exactly as written".
#[test]
fn the_status_shows_the_mode_as_it_was_written() {
    let mut bench = Bench::new();
    for mode in 0..8 {
        bench.program(2, mode, 1000);
        bench.outb(0x43, 0xe8);
        assert_eq!(bench.inb(0x42) & 0x3f, 0x30 | mode << 1);
    }
    bench.program(0, 6, 1000);
    assert_eq!(bench.irqs_until(10_500), 10, "mode 6 is mode 2");
}

#[test]
fn mode_0_counts_down_and_interrupts_once() {
    let mut bench = Bench::new();
    bench.program(0, 0, 1000);
    bench.to(400);
    assert_eq!(bench.count(0), 600);
    assert_eq!(bench.irqs_until(999), 0);
    assert_eq!(bench.irqs_until(1000), 1);
    assert_eq!(bench.irqs_until(200_000), 1);
    bench.to(1001);
    assert_eq!(bench.count(0), 0xffff, "it goes on around");
}

#[test]
fn mode_2_interrupts_each_period() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1000);
    assert_eq!(bench.irqs_until(10_500), 10);
    bench.to(10_999);
    assert_eq!(bench.count(0), 1);
    bench.to(11_000);
    assert_eq!(bench.count(0), 1000);
}

#[test]
fn mode_3_counts_by_twos() {
    let mut bench = Bench::new();
    bench.outb(0x61, 1);
    for (count, reads) in [(6, [6, 4, 2, 6, 4, 2]), (5, [4, 2, 0, 4, 2, 4])] {
        let start = CRYSTAL.ticks_at(bench.machine.now_ns.get());
        bench.program(2, 3, count);
        let half = u64::from(count).div_ceil(2);
        for (tick, read) in (0..).zip(reads) {
            bench.to(start + tick);
            assert_eq!(bench.count(2), read, "{count} after {tick}");
            assert_eq!(bench.out_2(), tick % u64::from(count) < half);
        }
    }
    bench.program(0, 3, 1000);
    let before = bench.machine.edges(0);
    let start = CRYSTAL.ticks_at(bench.machine.now_ns.get());
    assert_eq!(bench.irqs_until(start + 5_000), before + 5);
}

#[test]
fn mode_1_waits_for_the_gate_and_starts_again_with_it() {
    let mut bench = Bench::new();
    bench.program(2, 1, 100);
    assert!(bench.out_2());
    bench.outb(0x61, 1);
    assert!(!bench.out_2());
    bench.to(99);
    bench.outb(0x61, 0);
    assert!(!bench.out_2(), "a falling gate changes nothing");
    bench.outb(0x61, 1);
    bench.to(198);
    assert!(!bench.out_2());
    bench.to(199);
    assert!(bench.out_2());
}

#[test]
fn mode_4_strobes_for_one_tick_and_mode_5_on_the_gate() {
    for mode in [4, 5] {
        let mut bench = Bench::new();
        if mode == 4 {
            bench.outb(0x61, 1);
        }
        bench.program(2, mode, 10);
        bench.outb(0x61, 1);
        for (tick, out) in [(9, true), (10, false), (11, true)] {
            bench.to(tick);
            assert_eq!(bench.out_2(), out, "mode {mode} at {tick}");
        }
    }
}

#[test]
fn the_gate_stops_and_resumes_mode_0() {
    let mut bench = Bench::new();
    bench.outb(0x61, 1);
    bench.program(2, 0, 100);
    bench.to(40);
    bench.outb(0x61, 0);
    bench.to(1000);
    assert_eq!(bench.count(2), 60);
    bench.outb(0x61, 1);
    bench.to(1059);
    assert!(!bench.out_2());
    bench.to(1060);
    assert!(bench.out_2());
}

#[test]
fn the_gate_restarts_the_periodic_modes() {
    let mut bench = Bench::new();
    bench.outb(0x61, 1);
    bench.program(2, 2, 100);
    bench.to(99);
    assert!(!bench.out_2());
    bench.outb(0x61, 0);
    assert!(bench.out_2(), "a low gate lifts OUT");
    bench.to(250);
    bench.outb(0x61, 1);
    assert_eq!(bench.count(2), 100);
}

#[test]
fn a_new_count_waits_for_the_end_of_the_period() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1000);
    bench.to(500);
    bench.outb(0x40, 100);
    bench.outb(0x40, 0);
    assert_eq!(bench.count(0), 500);
    assert_eq!(bench.irqs_until(1000), 1);
    assert_eq!(bench.irqs_until(1099), 1);
    assert_eq!(bench.irqs_until(1100), 2);
}

#[test]
fn a_latched_count_stays_until_it_is_read() {
    let mut bench = Bench::new();
    bench.program(0, 2, 0);
    bench.to(0x123);
    bench.outb(0x43, 0);
    bench.to(0x8000);
    bench.outb(0x43, 0);
    assert_eq!((bench.inb(0x40), bench.inb(0x40)), (0xdd, 0xfe));
    assert_eq!((bench.inb(0x40), bench.inb(0x40)), (0x00, 0x80));
}

#[test]
fn read_back_gives_status_before_count() {
    let mut bench = Bench::new();
    bench.outb(0x61, 1);
    bench.outb(0x43, 0xb4);
    bench.outb(0x43, 0xe8);
    assert_eq!(
        bench.inb(0x42),
        0xf4,
        "OUT high, no count yet, both bytes, mode 2"
    );
    bench.program(2, 2, 500);
    bench.to(100);
    bench.outb(0x43, 0xc8);
    assert_eq!(bench.inb(0x42), 0xb4);
    assert_eq!((bench.inb(0x42), bench.inb(0x42)), (0x90, 0x01));
}

#[test]
fn single_bytes_load_and_read_alone() {
    let mut bench = Bench::new();
    bench.outb(0x43, 0x10);
    bench.outb(0x40, 0x50);
    assert_eq!((bench.inb(0x40), bench.inb(0x40)), (0x50, 0x50));
    bench.outb(0x43, 0x20);
    bench.outb(0x40, 0x50);
    bench.to(1);
    assert_eq!((bench.inb(0x40), bench.inb(0x40)), (0x4f, 0x4f));
}

#[test]
fn decimal_counters_count_decimal() {
    let mut bench = Bench::new();
    bench.outb(0x43, 0x31);
    bench.outb(0x40, 0x00);
    bench.outb(0x40, 0x10);
    bench.to(1);
    assert_eq!(bench.count(0), 0x0999);
    bench.to(1001);
    assert_eq!(bench.count(0), 0x9999);
    bench.program(0, 0, 0);
    bench.outb(0x43, 0x31);
    bench.outb(0x40, 0);
    bench.outb(0x40, 0);
    assert_eq!(bench.count(0), 0, "ten thousand has no digits");
}

#[test]
fn the_first_byte_stops_mode_0() {
    let mut bench = Bench::new();
    bench.outb(0x61, 1);
    bench.program(2, 0, 10);
    bench.to(20);
    assert!(bench.out_2());
    bench.outb(0x42, 5);
    assert!(!bench.out_2());
    bench.to(100);
    assert!(!bench.out_2());
    bench.outb(0x42, 0);
    bench.to(105);
    assert!(bench.out_2());
}

/// How Linux finds the rate of its TSC without waiting: it starts counter 2 at 0xffff and watches the high byte fall,
/// timing each step. Each read of a port takes a microsecond here.
#[test]
fn linux_calibrates_by_the_high_byte() {
    let mut bench = Bench::new();
    let control = bench.inb(0x61) & !2 | 1;
    bench.outb(0x61, control);
    bench.outb(0x43, 0xb0);
    bench.outb(0x42, 0xff);
    bench.outb(0x42, 0xff);
    let mut fell_at_ns = Vec::new();
    for expected in (0xf0..=0xfeu8).rev() {
        loop {
            bench.machine.advance_ns(1_000);
            bench.inb(0x42);
            bench.machine.advance_ns(1_000);
            let high = bench.inb(0x42);
            if high == expected {
                fell_at_ns.push(bench.machine.now_ns.get());
                break;
            }
            assert_eq!(high, expected + 1, "no step is skipped");
        }
    }
    for pair in fell_at_ns.windows(2) {
        let step_ns = pair[1] - pair[0];
        assert!(step_ns.abs_diff(256 * 1_000_000_000 / 1_193_182) < 4_000);
    }
}

/// How it does so slowly: it waits 10 ms for OUT of counter 2.
#[test]
fn linux_calibrates_by_the_output() {
    let mut bench = Bench::new();
    bench.outb(0x61, 1);
    bench.program(2, 0, (1_193_182 / 100) as u16);
    while !bench.out_2() {
        bench.machine.advance_ns(1_000);
    }
    assert!(bench.machine.now_ns.get().abs_diff(10_000_000) < 2_000);
}

#[test]
fn refresh_toggles() {
    let mut bench = Bench::new();
    let first = bench.inb(0x61) & 0x10;
    bench.machine.advance_ns(16_384);
    assert_ne!(bench.inb(0x61) & 0x10, first);
}

#[test]
fn a_late_host_catches_up_and_no_faster_than_twice() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1000);
    bench.to(10_500);
    bench.pit.tick();
    assert_eq!(bench.machine.edges(0), 1, "ten are due");
    assert_eq!(bench.irqs_until(11_000), 2, "and spread out");
    assert_eq!(bench.irqs_until(40_250), 40);
}

#[test]
fn a_debt_is_bounded() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1000);
    bench.to(1_000_000_500);
    bench.pit.tick();
    assert_eq!(bench.irqs_until(1_000_500_500), 1 + 63 + 500);
}

#[test]
fn the_shortest_period_leaves_the_host_alone() {
    let mut bench = Bench::new();
    bench.program(0, 2, 1);
    let irqs = bench.irqs_until(240_000);
    assert!((9_000..=10_000).contains(&irqs), "{irqs}");
}

#[test]
fn a_reset_one_is_as_firmware_leaves_it() {
    let mut bench = Bench::new();
    let fresh = saved(|w| bench.pit.save(w));
    bench.program(0, 2, 1000);
    bench.pit.reset();
    assert_eq!(saved(|w| bench.pit.save(w)), fresh);
    assert_eq!(bench.pit.deadline_ns(), Some(20_115), "soon");
}

#[derive(Clone, Debug)]
enum Step {
    Read(u16, u8),
    Write(u16, u8, u32),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let port = prop::sample::select(vec![0x40u16, 0x41, 0x42, 0x43, 0x61]);
    let size = prop::sample::select(vec![1u8, 1, 1, 2, 4]);
    let step = prop_oneof![
        (port.clone(), size.clone()).prop_map(|(port, size)| Step::Read(port, size)),
        (port, size, any::<u32>()).prop_map(|(p, size, value)| Step::Write(p, size, value)),
        (0u64..1 << 24).prop_map(Step::Wait),
        prop_oneof![Just(u64::MAX), 0u64..1 << 60].prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..60)
}

fn run(machine: &TestMachine, pit: &mut Pit, steps: &[Step]) -> Vec<Option<u64>> {
    let one = |step: &Step| match *step {
        Step::Read(port, size) => Some(machine.port_read(pit, port, size).into()),
        Step::Write(port, size, value) => {
            machine.port_write(pit, port, size, value);
            pit.deadline_ns()
        }
        Step::Wait(ns) => {
            machine.advance_ns(ns);
            pit.tick();
            pit.deadline_ns()
        }
    };
    steps.iter().map(one).collect()
}

proptest! {
    #[test]
    fn a_restored_one_goes_on_as_the_saved_one(before in steps(), after in steps()) {
        let Bench { machine, mut pit } = Bench::new();
        run(&machine, &mut pit, &before);
        let (then, record) = (machine.now_ns.get(), saved(|w| pit.save(w)));
        let mut twin = Pit::new(&machine).unwrap();
        assert_restores(&record, &mut twin);
        let seen = run(&machine, &mut pit, &after);
        machine.now_ns.set(then);
        prop_assert_eq!(run(&machine, &mut twin, &after), seen);
    }

    #[test]
    fn a_tick_moves_the_deadline_on(before in steps()) {
        let Bench { machine, mut pit } = Bench::new();
        run(&machine, &mut pit, &before);
        pit.tick();
        let now = machine.now_ns.get();
        prop_assert!(now == u64::MAX || pit.deadline_ns().is_none_or(|due| due > now));
    }

    #[test]
    fn a_damaged_record_is_restored_or_refused(
        before in steps(), at in 0usize..130, byte: u8, length in 0usize..150, after in steps(),
    ) {
        let Bench { machine, mut pit } = Bench::new();
        run(&machine, &mut pit, &before);
        let mut record = saved(|w| pit.save(w));
        if let Some(field) = record.get_mut(at) {
            *field = byte;
        }
        record.truncate(length);
        assert_survives(&record, &mut pit);
        run(&machine, &mut pit, &after);
    }
}
