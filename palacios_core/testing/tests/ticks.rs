// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guest is owed whose timers interrupt it more often than it can bear. Time passes by entries alone here, so that the
//! number of entries is a measure of time, and each run is the same.

use palacios_core::addr::Gpa;
use palacios_core::devices::pit;
use palacios_core::interfaces::GuestMemory;
use palacios_core::stats::Counter;
use palacios_core::vm::{State, StopReason, Vm};
use palacios_testing::guests::{ticks::*, GO};
use palacios_testing::vm::{usual_config, Hypervisor, Spec, TestBackend, TestVm};
use palacios_testing::{on_all_backends, Config, TestHost};

/// The status of `exit 0`.
const GOOD: StopReason = StopReason::Exit(1);
/// What an entry takes here.
const ENTRY_NS: u64 = 1_000_000;
/// The period of ticks that a guest can bear.
const PERIOD_NS: u64 = 1_000_000;

/// Entries of timers' LVT for vector 0x40.
mod lvt {
    pub const ONE_SHOT: u32 = 0x00040;
    pub const PERIODIC: u32 = 0x20040;
    pub const TSC_DEADLINE: u32 = 0x40040;
}

/// How many bytes a guest writes.
const fn work<B: TestBackend>() -> u32 {
    480 / B::SLOWNESS
}

/// Runs a guest on a host where an entry takes `entry_ns`, until it stops or was entered more often than can be right. One
/// with more vCPUs than one begins when the first sleeps.
fn run<B: TestBackend>(entry_ns: u64, kernel: Vec<u8>, vcpus: usize, test: impl FnOnce(&TestVm)) {
    let config = Config {
        virtual_time: true,
        entry_ns,
        ..usual_config::<B>()
    };
    TestHost::run(config, |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let vm = hypervisor.launch(&Spec {
            pins: (0..vcpus).map(|cpu| Some(cpu as u32)).collect(),
            ..Spec::new(kernel)
        });
        if vcpus > 1 {
            vm.wait_until(|| vm.thread(0).unwrap().parks() > 0);
            vm.memory().write(Gpa(GO), &[1]).unwrap();
        }
        let stopped = || matches!(vm.state(), State::Stopped(_));
        // A vCPU that works while another's thread is to come to its CPU may need many more.
        let most = if vcpus > 1 { 20_000 } else { 20 } * u64::from(work::<B>());
        while !stopped() && vm.count(Counter::Entries) < most {
            std::thread::yield_now();
        }
        let _ = Vm::stop(&vm);
        assert_eq!(vm.wait(), GOOD, "its main loop does not get on");
        test(&vm);
    });
}

fn word(vm: &TestVm, at: u64) -> u64 {
    let mut bytes = [0; 4];
    vm.memory().read(Gpa(at), &mut bytes).unwrap();
    u32::from_le_bytes(bytes).into()
}

/// It gets through its work, of which each byte takes an entry: one in five at least. And it is ticked.
fn keeps_its_part<B: TestBackend>(kernel: Vec<u8>, vcpus: usize) {
    run::<B>(ENTRY_NS, kernel, vcpus, |vm| {
        let (ticks, entries) = (word(vm, TICKS), vm.count(Counter::Entries));
        assert!(
            entries < 5 * u64::from(work::<B>()),
            "{entries} for {ticks} ticks"
        );
        assert!(ticks > entries / 40, "{ticks} in {entries}");
    });
}

/// All the ticks that its time holds.
fn loses_none(ticks: u64, entries: u64, entry_ns: u64) {
    let due = entries * entry_ns / PERIOD_NS;
    assert!(due > 5 && due.abs_diff(ticks) <= 1, "{ticks} of {due}");
}

fn periodic_apic_timer<B: TestBackend>() {
    // From shorter than an entry to longer than the handler.
    for period_us in [1, 300, 1_000, 2_500, 6_000] {
        let kernel =
            |own| works_beside_apic_timer(&[work::<B>(), lvt::PERIODIC, period_us * 1_000, 0, own]);
        keeps_its_part::<B>(kernel(0), 1);
        keeps_its_part::<B>(kernel(4), 1);
    }
}
fn one_shot_armed_in_its_handler<B: TestBackend>() {
    for after_us in [1, 1_000, 2_500] {
        let kernel = works_beside_apic_timer(&[work::<B>(), lvt::ONE_SHOT, after_us * 1_000, 1, 0]);
        keeps_its_part::<B>(kernel, 1);
    }
}
fn deadline_in_the_past_armed_in_its_handler<B: TestBackend>() {
    let kernel = works_beside_apic_timer(&[work::<B>(), lvt::TSC_DEADLINE, 0, 2, 0]);
    keeps_its_part::<B>(kernel, 1);
}
fn a_8254_by_pic_or_io_apic<B: TestBackend>() {
    for by_io_apic in [0, 1] {
        for count in [100, 1_000, 4_000] {
            keeps_its_part::<B>(works_beside_8254(&[work::<B>(), count, by_io_apic]), 1);
        }
    }
}
fn a_8254_that_interrupts_another_vcpu<B: TestBackend>() {
    let kernel = another_works_beside_8254(&[work::<B>(), 1_000]);
    run::<B>(ENTRY_NS, kernel, 2, |vm| {
        assert!(word(vm, TICKS) > 0);
    });
}
fn a_real_time_clock<B: TestBackend>() {
    for register_a in [0x23, 0x26] {
        keeps_its_part::<B>(works_beside_real_time_clock(&[work::<B>(), register_a]), 1);
    }
}
fn an_hpet_by_edges_or_by_level<B: TestBackend>() {
    // Periodic, of 32 bits, on input 20.
    for (entry, configuration) in [(0x48, 0x294c), (0x8048, 0x294e)] {
        for period_us in [20, 300, 1_000] {
            let kernel = works_beside_hpet(&[work::<B>(), period_us * 100, entry, configuration]);
            keeps_its_part::<B>(kernel, 1);
        }
    }
}

fn two_timers_that_are_served_at_once<B: TestBackend>() {
    let kernel = works_beside_two_timers(&[work::<B>(), 1_000_000, 1_000, 5]);
    keeps_its_part::<B>(kernel, 1);
}

/// Ticks that have to wait, and take little.
fn a_guest_that_seldom_takes_interrupts_loses_none<B: TestBackend>() {
    let entry_ns = PERIOD_NS / 40;
    let count = pit::CRYSTAL.ticks_at(PERIOD_NS) as u32;
    let kernel = seldom_takes_interrupts(&[4 * work::<B>(), PERIOD_NS as u32, count]);
    run::<B>(entry_ns, kernel, 1, |vm| {
        for at in [TICKS, TICKS + 4] {
            loses_none(word(vm, at), vm.count(Counter::Entries), entry_ns);
        }
    });
}

/// Ticks that take most of the time, and that it is done with before the next one.
fn a_guest_that_is_done_in_time_loses_none<B: TestBackend>() {
    let entry_ns = PERIOD_NS / 10;
    let kernel = works_beside_apic_timer(&[work::<B>(), lvt::PERIODIC, PERIOD_NS as u32, 0, 5]);
    run::<B>(entry_ns, kernel, 1, |vm| {
        loses_none(word(vm, TICKS), vm.count(Counter::Entries), entry_ns);
    });
}

on_all_backends! {
    periodic_apic_timer,
    one_shot_armed_in_its_handler,
    deadline_in_the_past_armed_in_its_handler,
    a_8254_by_pic_or_io_apic,
    a_8254_that_interrupts_another_vcpu,
    a_real_time_clock,
    an_hpet_by_edges_or_by_level,
    two_timers_that_are_served_at_once,
    a_guest_that_seldom_takes_interrupts_loses_none,
    a_guest_that_is_done_in_time_loses_none,
}
