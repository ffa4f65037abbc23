// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whole VMs: the core on a test host, with guests that execute.

use palacios_core::addr::{Gpa, PAGE_SIZE};
use palacios_core::backend::svm::Svm;
use palacios_core::backend::vendor_msrs::Content;
use palacios_core::backend::vmx::Vmx;
use palacios_core::backend::Event;
use palacios_core::features::{self, GuestFeatures};
use palacios_core::host::{CpuId, Host};
use palacios_core::interfaces::GuestMemory;
use palacios_core::state::Exception;
use palacios_core::stats::Counter;
use palacios_core::vm::{CreateError, LifeError, MoveError, State, StopReason, Vm, DEAD};
use palacios_testing::backend::MSRS;
use palacios_testing::host::{LargePages, Record, Usage};
use palacios_testing::vm::{usual_config, Hypervisor, Spec, TestBackend, TestVm};
use palacios_testing::{guests, heap, on_all_backends, processor, Config, TestHost};

/// The status of `exit 0`.
const GOOD: StopReason = StopReason::Exit(1);
/// In how many pages a guest works that is paused.
const PAUSED_PAGES: u64 = 20;

/// Hosts and processors of several kinds.
fn configs<B: TestBackend>() -> [Config; 3] {
    let with = |cpus, next_rip, format| Config {
        cpus,
        processor: B::adapt(processor::Config {
            next_rip,
            format,
            flush_by_tag: next_rip,
            ..Default::default()
        }),
        ..Default::default()
    };
    use palacios_testing::formats::{ept, no_large_code, npt, ODD};
    [
        with(1, true, npt(4)),
        with(2, false, no_large_code(ept(5))),
        with(3, true, ODD),
    ]
}

fn on_each<B: TestBackend>(test: impl Fn(&TestHost, &Hypervisor<B>)) {
    for config in configs::<B>() {
        TestHost::run(config, |host| test(host, &Hypervisor::new(host)));
    }
}

/// On one host: for what hangs on no host's ways.
fn on_one<B: TestBackend>(test: impl Fn(&Hypervisor<B>)) {
    TestHost::run(usual_config::<B>(), |host| test(&Hypervisor::new(host)));
}

/// On hosts whose time a test moves.
fn on_virtual_time<B: TestBackend>(test: impl Fn(&TestHost, &Hypervisor<B>)) {
    for config in configs::<B>() {
        let config = Config {
            virtual_time: true,
            ..config
        };
        TestHost::run(config, |host| test(host, &Hypervisor::new(host)));
    }
}

fn smp(kernel: Vec<u8>, vcpus: usize) -> Spec {
    Spec::new(kernel).with_vcpus(vcpus)
}

fn exits_are_counted_one_by_one<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let [cpuids, outs] = [1234 / B::SLOWNESS, 567 / B::SLOWNESS];
        let vm = hypervisor.launch(&Spec::new(guests::cpuid_and_out(&[cpuids, outs])));
        assert_eq!(vm.wait(), GOOD);
        assert_eq!(vm.count(Counter::Cpuid), cpuids.into());
        let written = guests::SETUP_OUTS + u64::from(outs) + 1;
        assert_eq!(vm.count(Counter::PortOut), written);
        assert_eq!(vm.output(), vec![b'.'; outs as usize]);
    });
}

fn hlt_parks_and_its_time_is_counted<B: TestBackend>() {
    const TICK_NS: u64 = 1_000_000;
    on_virtual_time::<B>(|host, hypervisor| {
        let kernel = guests::halt_for_ticks(&[10, TICK_NS as u32]);
        let vm = hypervisor.launch(&Spec::new(kernel));
        for tick in 1..=10 {
            vm.wait_until(|| vm.thread(0).unwrap().parks() == tick);
            host.advance(TICK_NS);
        }
        assert_eq!(vm.wait(), GOOD);
        assert_eq!(vm.count(Counter::IdleNs), 10 * TICK_NS);
        assert_eq!(vm.count(Counter::InjectedInterrupt), 10);
        assert_eq!(vm.count(Counter::Halt), 10);
    });
}

/// What a guest tries: kind, register, value.
type Probe = (u32, u32, u64);

/// What came of it: the vector of the fault, if it faulted, and the value.
type Outcome = (Option<u32>, u64);

/// Has a guest try `probes`, all on one VM; the VM must outlive them.
fn probe<B: TestBackend>(
    hypervisor: &Hypervisor<B>,
    without: &[&'static str],
    probes: impl FnOnce(&GuestFeatures) -> Vec<Probe>,
) -> (GuestFeatures, Vec<(Probe, Outcome)>) {
    let spec = Spec {
        without: without.to_vec(),
        ..Spec::new(guests::probe_registers(&[]))
    };
    let vm = hypervisor.launch(&spec);
    let features = vm.judge_features(|judge| judge.features());
    let probes = heap::exempt(|| probes(&features));
    let place = |n: usize| Gpa(guests::PROBES + 16 * n as u64);
    for (n, (kind, index, value)) in probes.iter().enumerate() {
        let words = [*kind, *index, *value as u32, (*value >> 32) as u32];
        for (at, word) in (0..).zip(words) {
            let at = Gpa(place(n).0 + 4 * at);
            vm.memory().write(at, &word.to_le_bytes()).unwrap();
        }
    }
    let end = guests::PROBE_END.to_le_bytes();
    vm.memory().write(place(probes.len()), &end).unwrap();
    vm.memory().write(Gpa(guests::GO), &[1]).unwrap();
    assert_eq!(vm.wait(), GOOD, "without {without:?}");
    let read = |n: usize| {
        let mut bytes = [0; 16];
        vm.memory().read(place(n), &mut bytes).unwrap();
        let kind = u32::from_le_bytes(*bytes.first_chunk().unwrap());
        let vector = kind / guests::PROBE_VECTOR;
        let value = u64::from_le_bytes(*bytes.last_chunk().unwrap());
        ((vector != 0).then_some(vector), value)
    };
    let outcomes = heap::exempt(|| probes.iter().copied().zip((0..).map(read)).collect());
    (features, outcomes)
}

const UD: u32 = 6;
const GP: u32 = 13;

/// Each bit of CR4 can be set if the guest has its feature, and is a #GP if not: with all features, and without each one.
fn cr4_takes_what_cpuid_shows<B: TestBackend>() {
    /// It cannot be set outside of long mode, of which real processors take care themselves.
    const PCIDE: u32 = 17;
    on_one::<B>(|hypervisor| {
        let with_bits = features::TABLE.iter().filter(|row| row.cr4 != 0);
        let gone = with_bits.map(|row| vec![row.name]);
        for without in std::iter::once(vec![]).chain(gone) {
            let (features, outcomes) = probe(hypervisor, &without, |_| {
                let bits = (0..32).filter(|bit| *bit != PCIDE);
                bits.map(|bit| (guests::PROBE_CR4, bit, 1 << bit)).collect()
            });
            for ((_, bit, value), outcome) in outcomes {
                let expected = match features.cr4() & value {
                    0 => (Some(GP), value),
                    _ => (None, value),
                };
                assert_eq!(outcome, expected, "bit {bit} without {without:?}");
            }
        }
    });
}

/// Registers that a guest can write to without losing the ground under its feet, of both vendors and of none.
fn registers() -> impl Iterator<Item = u32> {
    let families = [0..0x60, 0x79..0xa0, 0xc0..0x200, 0x200..0x300, 0x345..0x400];
    let more = [
        0x400..0x402,
        0x480..0x484,
        0x560..0x580,
        0x600..0x700,
        0xc80..0xdb0,
        0x4000_0000..0x4000_0030,
        0x4b56_4d00..0x4b56_4d08,
        0xc000_0080..0xc000_0110,
        0xc001_0000..0xc001_0160,
        0xc001_0200..0xc001_0210,
        0xc001_1000..0xc001_1040,
    ];
    families.into_iter().chain(more).flatten()
}

/// Each register by values of each class: nothing that is written makes an entry fail, one that faults in a read does so for ever,
/// and CPUID decides which are there, with all features and without those that guard registers.
fn registers_take_values_or_fault<B: TestBackend>() {
    const VALUES: [u64; 8] = [
        0,
        1,
        0x0606_0606_0606_0606,
        0xffff_ffff,
        0x7fff_ffff_f000,
        0xffff_8000_0000_0000,
        1 << 47,
        u64::MAX,
    ];
    const GUARDING: [&str; 12] = [
        "tsc_adjust",
        "mtrr",
        "sep",
        "mca",
        "pat",
        "tsc_deadline_timer",
        "x2apic",
        "hypervisor",
        "syscall",
        "lm",
        "rdtscp",
        "rdpid",
    ];
    on_one::<B>(|hypervisor| {
        let gone = GUARDING.map(|name| vec![name]);
        let both = vec!["rdtscp", "rdpid"];
        let mut there_with_all = std::collections::BTreeSet::new();
        for (n, without) in (0..).zip([vec![], both].into_iter().chain(gone)) {
            // A thorough look with all features; a short one without some: at what was there, and one in eight of the others.
            let thorough = without.is_empty();
            let step = if thorough { 1 } else { VALUES.len() - 1 };
            let (features, outcomes) = probe(hypervisor, &without, |features| {
                let has = |index: &u32| features.has_msr(*index);
                // A guest that has all of these reaches them without an exit, and its processor checks what they take.
                let open = MSRS.iter().all(has);
                registers()
                    .filter(|index| !open || !MSRS.contains(index))
                    .filter(|index| {
                        thorough || there_with_all.contains(index) || (index + n) % 8 == 0
                    })
                    .flat_map(|index| {
                        let writes = VALUES.iter().step_by(step);
                        let writes = writes.map(move |value| (guests::PROBE_WRMSR, index, *value));
                        let read = (guests::PROBE_RDMSR, index, 0);
                        std::iter::once(read).chain(writes).chain([read])
                    })
                    .collect()
            });
            let mut readable = std::collections::BTreeMap::new();
            for ((kind, index, _), (fault, _)) in outcomes {
                assert!(fault.is_none_or(|vector| vector == GP), "{index:#x}");
                if !features.has_msr(index) {
                    assert_eq!(fault, Some(GP), "{index:#x} without {without:?}");
                }
                if kind == guests::PROBE_RDMSR {
                    let first = *readable.entry(index).or_insert(fault);
                    assert_eq!(first, fault, "{index:#x} without {without:?}");
                }
            }
            let there = |index: u32| readable.get(&index) == Some(&None);
            if thorough {
                let good = readable.keys().filter(|index| there(**index));
                there_with_all.extend(good.copied());
            }
            assert!(there(0x1b) && there(0x8b) && there(0xc000_0080));
            assert!(!there(0x40) && !there(0x345) && !there(0x4000_0000) && !there(0xc001_0200));
            for row in B::VENDOR_MSRS
                .iter()
                .filter(|row| readable.contains_key(&row.first))
            {
                let write_only = row.content == Content::WriteOnly;
                assert_eq!(there(row.first), !write_only, "{row:x?}");
            }
        }
    });
}

/// What was written is read again, in registers that are kept; read-only bits stay. Without SYSENTER, PAT exits too.
fn registers_that_are_kept<B: TestBackend>() {
    on_one::<B>(|hypervisor| {
        let write = |index, value| (guests::PROBE_WRMSR, index, value);
        let read = |index| (guests::PROBE_RDMSR, index, 0);
        let (_, outcomes) = probe(hypervisor, &["sep"], |_| {
            vec![
                read(0x1a0),
                write(0x1a0, 0x4_0085_0089),
                read(0x1a0),
                write(0x17a, 5),
                read(0x17a),
                read(0x179),
                write(0x3b, 1 << 60),
                read(0x3b),
                read(0x10),
                write(0x277, 0x0606_0606_0606_0606),
                read(0x277),
                write(0x277, 2),
                read(0x277),
            ]
        });
        let values: Vec<u64> = heap::exempt(|| {
            let reads = outcomes
                .iter()
                .filter(|((kind, ..), _)| *kind == guests::PROBE_RDMSR);
            reads.map(|(_, (_, value))| *value).collect()
        });
        assert_eq!(values[..5], [0x1801, 0x4_0085_1889, 5, 0, 1 << 60]);
        assert!(
            values[5] >> 60 != 0,
            "the counter went along: {:#x}",
            values[5]
        );
        assert_eq!(values[6..], [0x0606_0606_0606_0606; 2]);
        let refused = outcomes.iter().filter(|(_, (fault, _))| fault.is_some());
        assert_eq!(refused.count(), 1, "a memory type that there is not");
    });
}

/// XSETBV is undefined until CR4.OSXSAVE is set, whatever it is given.
fn xsetbv_needs_osxsave<B: TestBackend>() {
    on_one::<B>(|hypervisor| {
        let (_, outcomes) = probe(hypervisor, &[], |_| {
            let values = [0, 1, 3, u64::MAX];
            let all = [0u32, 1, 7]
                .into_iter()
                .flat_map(|index| values.map(|value| (index, value)));
            all.map(|(index, value)| (guests::PROBE_XSETBV, index, value))
                .collect()
        });
        assert!(outcomes.iter().all(|(_, (fault, _))| *fault == Some(UD)));
    });
}

/// By an event that meets a task gate, where the instruction at RIP has nothing to do with it, or by a jump.
fn task_switches_stop_the_guest<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        for how in 0..3 {
            let vm = hypervisor.launch(&Spec::new(guests::switches_tasks(&[how])));
            let why = vm.wait();
            assert!(
                matches!(why, StopReason::TaskSwitch { rip } if rip >> 12 == 0x100),
                "{why}"
            );
            assert!(why.is_guest_error());
        }
    });
}

/// What a VM's only vCPU has spent, and between which times it was so.
fn time_spent(host: &TestHost, vm: &TestVm) -> ([u64; 4], [u64; 2]) {
    use Counter::*;
    let from_ns = host.now_ns();
    let all = vm.counters(0);
    let spent = [GuestNs, HandlingNs, IdleNs, WaitingNs].map(|which| all.get(which));
    (spent, [from_ns, host.now_ns()])
}

/// Two vCPUs share the host's CPUs: one halts most of the time, one never.
fn all_of_a_vcpus_time_is_counted<B: TestBackend>() {
    on_each::<B>(|host, hypervisor| {
        let halts = hypervisor.launch(&Spec::new(guests::halt_for_ticks(&[u32::MAX, 2_000_000])));
        let spins = hypervisor.launch(&Spec::new(guests::spin_for_ticks(&[u32::MAX, 500_000])));
        for vm in [&halts, &spins] {
            vm.wait_until(|| vm.count(Counter::Entries) > 0);
            let (first, [begin, begun]) = time_spent(host, vm);
            vm.wait_until(|| vm.count(Counter::InjectedInterrupt) >= 15);
            let (last, [end, ended]) = time_spent(host, vm);
            let sum = |spent: [u64; 4]| spent.into_iter().sum::<u64>();
            let passed_ns = sum(last) - sum(first);
            // Whatever it was at, and also while it was at it.
            assert!(
                passed_ns >= end.saturating_sub(begun) && passed_ns <= ended - begin,
                "{first:?} {last:?} {begin} {begun} {end} {ended}"
            );
        }
        // On a busy machine its next interrupt may be due when it halts.
        halts.wait_until(|| time_spent(host, &halts).0[2] > 0);
        for vm in [&halts, &spins] {
            vm.stop().unwrap();
            assert_eq!(vm.wait(), StopReason::Requested);
        }
        let [guest_ns, handling_ns, idle_ns, _] = time_spent(host, &spins).0;
        assert!(guest_ns > 0 && handling_ns > 0 && idle_ns == 0);
    });
}

/// Paused and resumed over and over, on hosts that vouch for their counters, do so no longer, and never did.
fn the_counter_never_goes_back<B: TestBackend>() {
    on_each::<B>(|host, hypervisor| {
        for round in 0..3 {
            let vm = hypervisor.launch(&Spec::new(guests::counter(&[4_000 / B::SLOWNESS])));
            let mut pauses = 0;
            while is_running(&vm) {
                if vm.pause().is_ok() {
                    let _ = vm.resume();
                    pauses += 1;
                }
                if round == 1 && pauses == 3 {
                    host.tsc_becomes_unstable();
                }
                // A guest that is always paused again comes to nothing.
                let cpuids = vm.count(Counter::Cpuid);
                vm.wait_until(|| vm.count(Counter::Cpuid) > cpuids + 3 || has_stopped(&vm));
            }
            assert_eq!(vm.wait(), GOOD, "in round {round}, after {pauses} pauses");
        }
    });
}

/// More vCPUs than CPUs, and all but one spin: whoever spins gives way, to another that waits for a CPU if there is one.
fn spinning_vcpus_give_way<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        // Whether another waits just then is chance.
        let gives_way = |_| {
            let vm = hypervisor.launch(&smp(guests::turns(&[4, 500 / B::SLOWNESS]), 4));
            assert_eq!(vm.wait(), GOOD);
            assert!(vm.count(Counter::Pause) > 0);
            vm.count(Counter::DirectedYields) > 0
        };
        assert!((0..200).any(gives_way));
    });
}

/// No exit of the guest's own brings it out: each tick must.
fn timers_end_guest_mode<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&Spec::new(guests::spin_for_ticks(&[
            300 / B::SLOWNESS,
            500,
        ])));
        assert_eq!(vm.wait(), GOOD);
    });
}

/// The timeout begins when the byte comes, which no vCPU has a part in.
fn input_arms_the_first_vcpus_timer<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&Spec {
            serial: true,
            ..Spec::new(guests::serial_timeout(&[]))
        });
        vm.wait_until(|| vm.output() == b"." && vm.thread(0).unwrap().parks() > 0);
        vm.type_in(b"x");
        assert_eq!(vm.wait(), GOOD);
    });
}

/// A read can start a timer, too, and by another vCPU than the one that keeps it.
fn a_read_arms_the_first_vcpus_timer<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&smp(guests::acknowledged_by_another(&[30]), 2));
        assert_eq!(vm.wait(), GOOD);
    });
}

/// Only a deadline that comes nearer is news to the vCPU that keeps the devices' time.
fn what_others_print_wakes_nobody<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&smp(guests::another_prints(&[500]), 2));
        assert_eq!(vm.wait(), GOOD);
        let parks = vm.thread(0).unwrap().parks();
        assert!(parks < 10, "{parks} times");
    });
}

fn vcpus_wake_each_other<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&smp(guests::ping_pong(&[1000 / B::SLOWNESS]), 2));
        assert_eq!(vm.wait(), GOOD);
    });
}

/// They are moved meanwhile, to a CPU that they then stay on, or to any.
fn vcpus_that_wake_each_other_are_moved<B: TestBackend>() {
    on_each::<B>(|host, hypervisor| {
        // A guest may be done before the host has come to it.
        let mut moves = 0;
        while moves < 20 {
            let vm = hypervisor.launch(&smp(guests::ping_pong(&[1000 / B::SLOWNESS]), 2));
            while is_running(&vm) {
                move_one(host, &vm);
                moves += 1;
            }
            assert_eq!(vm.wait(), GOOD);
            assert_eq!(vm.move_vcpu(0, None), Err(MoveError::Stopped));
            assert_eq!(vm.move_vcpu(2, None), Err(MoveError::NoSuchVcpu));
        }
        let nowhere = CpuId(host.cpu_limit());
        let again = hypervisor.create(&Spec::new(guests::spin(&[]))).unwrap();
        let refused = again.move_vcpu(0, Some(nowhere));
        assert_eq!(refused, Err(MoveError::NoSuchCpu(nowhere)));
        assert_eq!((again.pin(0), again.pin(1)), (None, None));
        again.move_vcpu(0, Some(CpuId(0))).unwrap();
        assert_eq!(again.pin(0), Some(CpuId(0)));
    });
}

/// Moves some vCPU somewhere, if the VM has not just stopped.
fn move_one(host: &TestHost, vm: &TestVm) {
    let cpus = u64::from(host.cpu_limit());
    let cpu = Some(host.random() % (cpus + 1)).filter(|cpu| *cpu < cpus);
    let vcpu = (host.random() % u64::from(vm.vcpus())) as u32;
    let moved = vm.move_vcpu(vcpu, cpu.map(|cpu| CpuId(cpu as u32)));
    assert!(
        moved.is_ok() || moved == Err(MoveError::Stopped),
        "{moved:?}"
    );
}

fn is_running(vm: &TestVm) -> bool {
    vm.state() == State::Running
}

/// The host takes pages away while several vCPUs use them, and moves their threads about.
fn revocation_under_running_vcpus<B: TestBackend>() {
    const VCPUS: u32 = 3;
    let sizes = [LargePages::Always, LargePages::Sometimes, LargePages::Never];
    for (config, large_pages) in configs::<B>().into_iter().zip(sizes) {
        TestHost::run(config, |host| {
            let hypervisor = Hypervisor::<B>::new(host);
            let spec = Spec {
                large_pages,
                ..smp(guests::workers(&[VCPUS, 50, 30, 0x1f000]), VCPUS as usize)
            };
            // A guest may be done before the host has come to it.
            let mut revoked = 0;
            while revoked < 20 {
                let vm = hypervisor.launch(&spec);
                while is_running(&vm) {
                    revoked += disturb(host, &vm);
                }
                assert_eq!(vm.wait(), GOOD);
            }
        });
    }
}

/// Takes some pages, and moves a thread. Returns how many frames went.
fn disturb(host: &TestHost, vm: &TestVm) -> u64 {
    let (from, bytes) = (host.random() % (16 << 20), host.random() % (1 << 20));
    move_one(host, vm);
    std::thread::yield_now();
    vm.revoke(Gpa(from), bytes)
}

/// CPUs go and come back under two VMs that change hands of pages meanwhile: no tag from before is good.
fn cpus_go_and_come_under_vms<B: TestBackend>() {
    on_each::<B>(|host, hypervisor| {
        let spec = smp(
            guests::workers(&[2, (10 / B::SLOWNESS).max(2), 30, 0x1f000]),
            2,
        );
        // Guests may be done before the host has come to it.
        let mut cycles = 0;
        while cycles < 20 {
            let vms = [hypervisor.launch(&spec), hypervisor.launch(&spec)];
            while vms.iter().any(is_running) {
                for vm in vms.iter().filter(|vm| is_running(vm)) {
                    disturb(host, vm);
                }
                hypervisor.cycle(CpuId((host.random() % u64::from(host.cpu_limit())) as u32));
                cycles += 1;
            }
            assert!(vms.iter().all(|vm| vm.wait() == GOOD));
        }
    });
}

/// The pages that go are also those that the VMM itself needs: code to decode, stacks, descriptor tables.
fn revocation_under_emulation<B: TestBackend>() {
    let rounds = 40 / B::SLOWNESS;
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&Spec {
            large_pages: LargePages::Never,
            ..Spec::new(guests::steady(&[rounds]))
        });
        while is_running(&vm) {
            vm.revoke(Gpa(0), 2 << 20);
            std::thread::yield_now();
        }
        assert_eq!(vm.wait(), GOOD);
        assert_eq!(vm.count(Counter::Cpuid), 2 * u64::from(rounds));
    });
}

/// An NMI that comes in an NMI's handler waits until that has returned.
fn nmis_come_one_by_one<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&Spec::new(guests::nmis(&[100])));
        assert_eq!(vm.wait(), GOOD);
        assert_eq!(vm.count(Counter::InjectedNmi), 100);
    });
}

/// All vCPUs halt with interrupts off or were never started: the VM is dead, which its log says once and its observer learns, and
/// can be stopped.
fn a_vm_that_nothing_wakes_is_dead<B: TestBackend>() {
    on_each::<B>(|host, hypervisor| {
        for vcpus in [1, 3] {
            let lines = || {
                let lines = host.log_lines();
                lines.iter().filter(|line| line.text == DEAD).count()
            };
            let before = lines();
            let vm = hypervisor.launch(&smp(guests::sleep(&[]), vcpus));
            vm.wait_until(|| vm.is_dead() && lines() > before);
            // Its observer learns of the launch, and of this.
            vm.wait_until(|| vm.news() >= 2);
            vm.pause().unwrap();
            assert!(!vm.is_dead(), "it is paused");
            vm.resume().unwrap();
            vm.wait_until(|| vm.is_dead());
            assert_eq!((vm.state(), lines()), (State::Running, before + 1));
            vm.stop().unwrap();
            assert_eq!(vm.wait(), StopReason::Requested);
            assert!(!vm.is_dead());
        }
    });
}

/// Never while an NMI or a start-up message is on its way, however little else there is.
fn a_vm_with_an_nmi_under_way_is_not_dead<B: TestBackend>() {
    on_each::<B>(|host, hypervisor| {
        let vm = hypervisor.launch(&smp(guests::nmi_ping_pong(&[3000 / B::SLOWNESS]), 2));
        while vm.state() == State::Running {
            assert!(!vm.is_dead(), "it has something to do");
            std::thread::yield_now();
        }
        assert_eq!(vm.wait(), GOOD);
        assert!(!host.log_lines().iter().any(|line| line.text == DEAD));
    });
}

fn resets_start_all_vcpus_again<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&smp(guests::resets(&[30]), 2));
        assert_eq!(vm.wait(), GOOD);
    });
}

/// A pause comes between the guest's request and its being honoured.
fn a_reset_outlives_a_pause<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&smp(guests::init_to_the_first(&[]), 2));
        let first = vm.thread(0).unwrap();
        vm.wait_until(|| first.parks() > 0);
        first.hold(true);
        vm.memory().write(Gpa(guests::GO), &[1]).unwrap();
        vm.wait_until(|| vm.output() == b".");
        vm.pause().unwrap();
        first.hold(false);
        vm.wait_until(|| first.parks() > 1);
        vm.resume().unwrap();
        assert_eq!(vm.wait(), GOOD);
    });
}

/// A kernel need not switch on the caches of the vCPUs that it starts. What an INIT leaves alone, a reset does not; nor does
/// a new launch.
fn vcpus_start_as_firmware_leaves_them<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&smp(guests::restarts(&[B::OWN_MSR]), 2));
        assert_eq!(vm.wait(), GOOD);
        vm.launch();
        assert_eq!(vm.wait(), GOOD);
    });
}

/// What a guest does to itself stops its VM, with a reason; nothing is left over.
fn a_guest_stops_only_itself<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&Spec::new(guests::jumps_away(&[])));
        let StopReason::NoMemoryAt { gpa, .. } = vm.wait() else {
            panic!("{:?}", vm.state())
        };
        assert_eq!(gpa, 0x5000_0000);
        let vm = hypervisor.launch(&Spec::new(guests::triple_faults(&[])));
        let stopped = vm.wait();
        assert!(
            matches!(stopped, StopReason::TripleFault { .. }),
            "{stopped:?}"
        );
    });
}

/// Whoever asks why a guest died sees what its vCPU was at, and the exception that began a triple fault.
fn a_vcpu_is_described_whether_it_runs_or_not<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&Spec::new(guests::spin(&[])));
        vm.wait_until(|| vm.count(Counter::Entries) > 0);
        let running = vm.report(0).unwrap();
        assert!(vm.report(1).is_none() && is_running(&vm));
        let _ = Vm::stop(&vm);
        let StopReason::Requested = vm.wait() else {
            panic!("{:?}", vm.state())
        };
        let report = vm.report(0).unwrap();
        let mut code = [0; 16];
        vm.memory().read(Gpa(report.code.at), &mut code).unwrap();
        assert_eq!(report.code.bytes()[..16], code);
        assert_eq!(report.code.at, report.state.rip);
        assert_eq!(running.state.control, report.state.control);
        assert!(!report.exits().is_empty());
        assert!(vm.report(1).is_none());

        let vm = hypervisor.launch(&Spec::new(guests::triple_faults(&[])));
        let StopReason::TripleFault { rip } = vm.wait() else {
            panic!("{:?}", vm.state())
        };
        let report = vm.report(0).unwrap();
        let began = Some(Event::Exception(Exception::INVALID_OPCODE));
        let expected = if B::SHUTDOWN_LOSES_STATE { None } else { began };
        assert_eq!(report.cause, expected);
        let last = report.exits().last().unwrap();
        assert_eq!((last.rip, last.kind), (rip, Counter::TripleFault));
        if !B::SHUTDOWN_LOSES_STATE {
            assert_eq!(report.code.bytes()[..2], [0x0f, 0x0b], "UD2");
        }
    });
}

/// A host that runs out of memory stops the guest that wants it; another goes on.
fn a_full_host_stops_the_guest<B: TestBackend>() {
    let config = Config {
        low_pages: 64,
        high_pages: 1024,
        ..usual_config::<B>()
    };
    TestHost::run(config, |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let small = |kernel| Spec {
            large_pages: LargePages::Never,
            ..Spec::new(kernel)
        };
        let other = hypervisor.launch(&small(guests::halt_for_ticks(&[20, 1_000_000])));
        let greedy = hypervisor.launch(&small(guests::touches_all(&[])));
        assert_eq!(greedy.wait(), StopReason::OutOfMemory);
        assert_eq!(other.wait(), GOOD);
    });
}

fn has_stopped(vm: &TestVm) -> bool {
    matches!(vm.state(), State::Stopped(_))
}

/// What [`guests::workers`] have added up so far, on pages that lie side by side.
fn work_done(vm: &TestVm) -> u64 {
    let added = |page: u64| {
        let mut word = [0; 4];
        let counter = Gpa(0x20_0000 + page * PAGE_SIZE);
        vm.memory().read(counter, &mut word).unwrap();
        u64::from(u32::from_le_bytes(word))
    };
    (0..PAUSED_PAGES).map(added).sum()
}

/// Paused and resumed over and over, by two at once, a guest does all its work; nobody waits for ever.
fn pauses_under_running_vcpus<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let kernel = guests::workers(&[2, 60, PAUSED_PAGES as u32, PAGE_SIZE as u32]);
        let vm = hypervisor.launch(&smp(kernel, 2));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !has_stopped(&vm) {
                        let _ = vm.pause();
                        std::thread::yield_now();
                        // A guest that is always paused again comes to nothing.
                        let done = work_done(&vm);
                        let _ = vm.resume();
                        vm.wait_until(|| work_done(&vm) != done || has_stopped(&vm));
                    }
                });
            }
        });
        assert_eq!(vm.wait(), GOOD);
    });
}

/// A pause and its end come and go while a vCPU that sleeps has no CPU: its timer is still right.
fn a_pause_that_a_vcpu_does_not_see_moves_its_timer<B: TestBackend>() {
    const PAUSE: u64 = 1_000;
    on_virtual_time::<B>(|host, hypervisor| {
        let vm = hypervisor.launch(&Spec::new(guests::halt_for_ticks(&[1, 1_000_000])));
        let thread = vm.thread(0).unwrap();
        vm.wait_until(|| thread.parks() > 0);
        let armed_ns = host.next_timer_ns().expect("a timer");
        thread.hold(true);
        vm.pause().unwrap();
        host.advance(PAUSE);
        vm.resume().unwrap();
        thread.hold(false);
        vm.wait_until(|| host.next_timer_ns() == Some(armed_ns + PAUSE));
        host.advance(armed_ns + PAUSE - host.now_ns());
        assert_eq!(vm.wait(), GOOD);
    });
}

/// The wall clock goes on in a pause.
fn an_alarm_that_was_missed_in_a_pause_rings_at_its_end<B: TestBackend>() {
    on_virtual_time::<B>(|host, hypervisor| {
        let vm = hypervisor.launch(&Spec::new(guests::alarm(&[])));
        vm.wait_until(|| vm.thread(0).unwrap().parks() > 0);
        vm.pause().unwrap();
        host.advance(10_000_000_000);
        vm.resume().unwrap();
        assert_eq!(vm.wait(), GOOD);
    });
}

/// A stop finds a vCPU wherever it is: in the guest, asleep, on its way in or out, paused, not even started.
fn stops_are_never_lost<B: TestBackend>() {
    on_each::<B>(|host, hypervisor| {
        for round in 0..36 {
            let kernel = match round % 3 {
                0 => guests::spin(&[]),
                1 => guests::sleep(&[]),
                _ => guests::cpuid_and_out(&[u32::MAX, 1]),
            };
            let vm = hypervisor.launch(&smp(kernel, 1 + round % 2));
            for _ in 0..host.random() % 16 {
                std::thread::yield_now();
            }
            if round % 4 == 0 {
                vm.pause().unwrap();
            }
            vm.stop().unwrap();
            assert_eq!(vm.wait(), StopReason::Requested);
        }
    });
}

/// Between two marks the guest does all that a running guest does. Its thread allocates nothing meanwhile, asks for no
/// flush, and takes no lock that another VM's thread takes.
fn steady_state_allocates_nothing_and_shares_no_lock<B: TestBackend>() {
    let rounds = 100 / B::SLOWNESS;
    for mut config in configs::<B>() {
        config.processor.tags = 16;
        let usages = TestHost::run(config, |host| {
            let hypervisor = Hypervisor::<B>::new(host);
            let vms = ["a", "b"].map(|name| {
                hypervisor.launch(&Spec {
                    name,
                    pins: vec![Some(0)],
                    ..Spec::new(guests::steady(&[rounds]))
                })
            });
            for vm in &vms {
                assert_eq!(vm.wait(), GOOD);
                assert_eq!(vm.count(Counter::Cpuid), 2 * u64::from(rounds));
            }
            drop(vms);
            let records = host.records();
            assert_eq!(records.len(), 2);
            records.iter().map(between_marks).collect::<Vec<_>>()
        });
        let [a, b] = usages.as_slice() else {
            unreachable!("two VMs")
        };
        for usage in [a, b] {
            assert_eq!((usage.allocations, usage.flushes), (0, 0));
            assert!(!usage.locks.is_empty());
        }
        let shared: Vec<_> = a
            .locks
            .keys()
            .filter(|id| b.locks.contains_key(id))
            .collect();
        assert!(shared.is_empty(), "{shared:?} are taken by both");
    }
}

fn between_marks(record: &Record) -> Usage {
    match record.marks.as_slice() {
        [(1, begin), (2, end)] => end.since(begin),
        marks => panic!("{marks:?}"),
    }
}

/// Whichever allocation fails while a VM is made: an error, and nothing is left of it.
fn making_a_vm_may_fail_anywhere<B: TestBackend>() {
    TestHost::run(usual_config::<B>(), |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let spec = smp(guests::cpuid_and_out(&[1, 1]), 2);
        let before = host.pages_in_use();
        let allocations = heap::fail_each(|n| match hypervisor.create(&spec) {
            Ok(vm) => drop(vm),
            Err(CreateError::NoMemory) => {
                assert_eq!(host.pages_in_use(), before);
            }
            Err(other) => heap::exempt(|| panic!("allocation {n}: {other:?}")),
        });
        assert!(allocations > 20, "{allocations}");
        let vm = hypervisor.launch(&spec);
        assert_eq!(vm.wait(), GOOD);
    });
}

/// Made, run, stopped and freed, over and over: nothing piles up.
fn vms_come_and_go<B: TestBackend>() {
    TestHost::run(usual_config::<B>(), |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let spec = smp(guests::cpuid_and_out(&[10, 10]), 2);
        let before = host.pages_in_use();
        for _ in 0..50 {
            let vm = hypervisor.launch(&spec);
            assert_eq!(vm.wait(), GOOD);
            drop(vm);
            assert_eq!(host.pages_in_use(), before);
        }
    });
}

/// A VM that has stopped can be launched again, and does the same again.
fn a_second_launch_starts_from_the_image<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor.launch(&smp(guests::cpuid_and_out(&[10, 10]), 2));
        for launches in 1..6 {
            assert_eq!(vm.wait(), GOOD);
            assert_eq!(vm.count(Counter::Cpuid), 10 * launches);
            vm.launch();
        }
        assert_eq!(vm.wait(), GOOD);
    });
}

/// It has stopped at once, which its observer learns of; nothing of it ever ran.
fn a_vm_can_be_stopped_before_its_launch<B: TestBackend>() {
    on_each::<B>(|_, hypervisor| {
        let vm = hypervisor
            .create(&Spec::new(guests::cpuid_and_out(&[10, 10])))
            .unwrap();
        assert_eq!(vm.state(), State::Created);
        vm.stop().unwrap();
        assert_eq!((vm.wait(), vm.news()), (StopReason::Requested, 1));
        let stopped = State::Stopped(StopReason::Requested);
        assert_eq!(vm.stop(), Err(LifeError::WrongState(stopped)));
        assert_eq!(vm.count(Counter::Entries), 0);
        vm.launch();
        assert_eq!(vm.wait(), GOOD);
    });
}

/// Whoever runs in the guest, or is about to, comes out with the news.
fn virtualization_may_be_switched_off_under_a_vm<B: TestBackend>() {
    for round in 0..10 {
        on_each::<B>(|host, hypervisor| {
            let kernel = match round % 2 {
                0 => guests::spin(&[]),
                _ => guests::cpuid_and_out(&[u32::MAX, 1]),
            };
            let vm = hypervisor.launch(&smp(kernel, 2));
            vm.wait_until(|| vm.count(Counter::Entries) >= 3);
            host.go_down();
            assert_eq!(vm.wait(), StopReason::HostGone);
        });
    }
}

#[test]
fn svm_may_be_switched_off_under_a_vm() {
    virtualization_may_be_switched_off_under_a_vm::<palacios_core::backend::svm::Svm<TestHost>>();
}

#[test]
fn vmx_may_be_switched_off_under_a_vm() {
    virtualization_may_be_switched_off_under_a_vm::<palacios_core::backend::vmx::Vmx<TestHost>>();
}

#[test]
fn registers_that_are_kept_on_svm() {
    registers_that_are_kept::<Svm<TestHost>>();
}

#[test]
fn registers_that_are_kept_on_vmx() {
    registers_that_are_kept::<Vmx<TestHost>>();
}

on_all_backends! {
    exits_are_counted_one_by_one,
    a_vcpu_is_described_whether_it_runs_or_not,
    hlt_parks_and_its_time_is_counted,
    cr4_takes_what_cpuid_shows,
    registers_take_values_or_fault,
    xsetbv_needs_osxsave,
    task_switches_stop_the_guest,
    all_of_a_vcpus_time_is_counted,
    spinning_vcpus_give_way,
    the_counter_never_goes_back,
    timers_end_guest_mode,
    input_arms_the_first_vcpus_timer,
    a_read_arms_the_first_vcpus_timer,
    what_others_print_wakes_nobody,
    vcpus_wake_each_other,
    vcpus_that_wake_each_other_are_moved,
    revocation_under_running_vcpus,
    pauses_under_running_vcpus,
    a_pause_that_a_vcpu_does_not_see_moves_its_timer,
    an_alarm_that_was_missed_in_a_pause_rings_at_its_end,
    stops_are_never_lost,
    revocation_under_emulation,
    cpus_go_and_come_under_vms,
    nmis_come_one_by_one,
    a_vm_that_nothing_wakes_is_dead,
    a_vm_with_an_nmi_under_way_is_not_dead,
    resets_start_all_vcpus_again,
    a_reset_outlives_a_pause,
    vcpus_start_as_firmware_leaves_them,
    a_guest_stops_only_itself,
    a_full_host_stops_the_guest,
    steady_state_allocates_nothing_and_shares_no_lock,
    making_a_vm_may_fail_anywhere,
    vms_come_and_go,
    a_second_launch_starts_from_the_image,
    a_vm_can_be_stopped_before_its_launch,
}
