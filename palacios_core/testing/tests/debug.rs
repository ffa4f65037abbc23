// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looks into VMs: what a debugger asks is answered whatever the VM is at, and changes nothing.

use palacios_core::addr::{Gpa, Gva, PAGE_SIZE};
use palacios_core::interfaces::GuestMemory;
use palacios_core::memory::look::Place;
use palacios_core::memory::walk::trace::{EntryBits, PagingMode, TraceEnd};
use palacios_core::memory::walk::Paging;
use palacios_core::regions::{Change, Region, Writes};
use palacios_core::state::{cr0, cr4, efer};
use palacios_core::stats::Counter;
use palacios_core::vm::{HoldReason, State, Step, StopReason};
use palacios_testing::host::LargePages;
use palacios_testing::vm::{usual_config, Hypervisor, Spec, TestBackend, TestVm};
use palacios_testing::{guests, heap, on_all_backends, Config, TestHost};

/// The status of `exit 0`.
const GOOD: StopReason = StopReason::Exit(1);

fn smp(kernel: Vec<u8>, vcpus: usize) -> Spec {
    Spec {
        large_pages: LargePages::Never,
        ..Spec::new(kernel).with_vcpus(vcpus)
    }
}

/// All that can be asked of a VM, in words.
fn everything(vm: &TestVm) -> String {
    heap::exempt(|| {
        let mut words = format!("{:?}", vm.chipset());
        for vcpu in 0..vm.vcpus() {
            let report = vm.report(vcpu).expect("there is such a vCPU");
            let interrupts = vm.interrupts(vcpu).expect("there is such a vCPU");
            words += &format!("{report:?}{interrupts:?}");
            for gva in [0, report.state.rip, 0x8000_0000, u64::MAX] {
                let walk = vm.walk(vcpu, Gva(gva)).expect("there is such a vCPU");
                words += &format!("{walk:?}");
            }
        }
        for gpa in [0, 0x10_0000, 12 << 20, 0xfee0_0000, u64::MAX] {
            let mut bytes = [0; 64];
            let looked = vm.memory().look(Gpa(gpa), &mut bytes);
            words += &format!("{:?}{looked:?}{bytes:?}", vm.walk_nested(Gpa(gpa)));
        }
        words
    })
}

/// What a VM takes: frames, tables.
fn taken(vm: &TestVm) -> (u64, u64) {
    (vm.memory().resident_bytes(), vm.memory().table_bytes())
}

fn nothing_of_a_paused_vm_changes<B: TestBackend>() {
    TestHost::run(usual_config::<B>(), |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let ticks = guests::spin_for_ticks(&[u32::MAX, 500]);
        let vm = hypervisor.launch(&smp(ticks, 2));
        vm.wait_until(|| vm.count(Counter::InjectedInterrupt) > 2);
        vm.hold(HoldReason::Debugger).unwrap();
        let before = (everything(&vm), taken(&vm), vm.count(Counter::Entries));
        for _ in 0..3 {
            let again = (everything(&vm), taken(&vm), vm.count(Counter::Entries));
            assert_eq!(again, before);
        }
        assert_eq!(vm.walk(2, Gva(0)), None);
        assert_eq!(vm.interrupts(2), None);
        vm.release(HoldReason::Debugger).unwrap();
        let ticked = vm.count(Counter::InjectedInterrupt);
        vm.wait_until(|| vm.count(Counter::InjectedInterrupt) > ticked);
        let _ = vm.stop();
        assert_eq!(vm.wait(), StopReason::Requested);
        assert_eq!(everything(&vm), everything(&vm), "of one that has stopped");
    });
}

/// What is asked of a vCPU does not depend on whether it has found yet that the VM is held, or that it was reset.
fn a_vcpu_that_is_behind_catches_up<B: TestBackend>() {
    let config = Config {
        virtual_time: true,
        ..usual_config::<B>()
    };
    TestHost::run(config, |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let vm = hypervisor.create(&smp(guests::spin(&[]), 2)).unwrap();
        let stands_still = |what: &str| {
            let before = everything(&vm);
            for vcpu in 0..2 {
                while vm.thread(vcpu).unwrap().played(|| vm.step(vcpu)) == Step::Again {}
            }
            assert_eq!(everything(&vm), before, "{what}");
        };
        vm.hold(HoldReason::Debugger).unwrap();
        vm.begin().unwrap();
        assert_ne!(vm.report(0).unwrap().state.rip, 0, "the kernel's entry");
        stands_still("held before its first step");
        vm.release(HoldReason::Debugger).unwrap();
        while vm.thread(1).unwrap().played(|| vm.step(1)) == Step::Again {}
        vm.hold(HoldReason::Debugger).unwrap();
        stands_still("held while a vCPU waits to be started");
        let _ = vm.stop();
        assert_eq!(
            vm.step_rounds(host, usize::MAX),
            State::Stopped(StopReason::Requested)
        );
    });
}

fn a_vm_that_was_never_launched_is_looked_at<B: TestBackend>() {
    TestHost::run(usual_config::<B>(), |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let vm = hypervisor.create(&smp(guests::spin(&[]), 2)).unwrap();
        let before = taken(&vm);
        assert_eq!(everything(&vm), everything(&vm));
        assert_eq!(taken(&vm), before);
        assert_eq!(vm.count(Counter::Entries), 0);
    });
}

/// Two ask of a guest whose vCPUs wake each other: each answer is given, and the guest comes to its end.
fn a_running_vm_is_looked_at_and_comes_to_its_end<B: TestBackend>() {
    TestHost::run(usual_config::<B>(), |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let vm = hypervisor.launch(&smp(guests::ping_pong(&[2000 / B::SLOWNESS]), 2));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        assert!(everything(&vm).contains("LocalApicRegisters"));
                        // A guest that is always called comes to nothing.
                        let entries = vm.count(Counter::Entries);
                        vm.wait_until(|| {
                            vm.count(Counter::Entries) > entries + 3 || vm.state() != State::Running
                        });
                    }
                });
            }
        });
        assert_eq!(vm.wait(), GOOD);
    });
}

/// Long mode's registers, with the root of the tables at `cr3`.
fn long_mode(cr3: u64) -> Paging {
    Paging {
        cr0: cr0::PE | cr0::PG | cr0::WP,
        cr3,
        cr4: cr4::PAE,
        efer: efer::LMA | efer::LME | efer::NXE,
        physical_bits: 40,
        gigabyte_pages: true,
        ..Paging::default()
    }
}

/// Tables in guest memory: no entry is marked, and no page gets a frame, neither one of a table nor the page itself.
fn tables_in_memory_stay_as_they_are<B: TestBackend>() {
    const ROOT: u64 = 4 << 20;
    const NEXT: u64 = ROOT + PAGE_SIZE;
    const UNTOUCHED: u64 = 8 << 20;
    TestHost::run(usual_config::<B>(), |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let vm = hypervisor.create(&smp(guests::spin(&[]), 1)).unwrap();
        let memory = vm.memory();
        let entry = |at: u64, value: u64| memory.write(Gpa(at), &value.to_le_bytes()).unwrap();
        entry(ROOT, NEXT | 3);
        // 1 GiB; a table that was never touched; one in a hole.
        entry(NEXT, 0x83);
        entry(NEXT + 8, UNTOUCHED | 3);
        entry(NEXT + 16, 0xe000_0003);
        let tables = || {
            let mut bytes = [0; 2 * PAGE_SIZE as usize];
            memory.read(Gpa(ROOT), &mut bytes).unwrap();
            bytes
        };
        let (before, taken_before) = (tables(), taken(&vm));
        let walk = |gva: u64| memory.trace(&long_mode(ROOT), Gva(gva));

        let mapped = walk(0x12_3456);
        let TraceEnd::Mapped(page) = mapped.end else {
            panic!("{mapped:?}");
        };
        assert_eq!((page.gpa, page.page_shift), (Gpa(0x12_3456), 30));
        assert_eq!(mapped.mode, PagingMode::FourLevel);
        let last = mapped.entries().last().unwrap();
        assert_eq!((last.level, last.at, last.value), (3, NEXT, 0x83));
        assert!(!last
            .bits
            .intersects(EntryBits::ACCESSED | EntryBits::DIRTY | EntryBits::USER));

        let untouched = walk(1 << 30 | 0x123);
        assert_eq!(untouched.end, TraceEnd::NotPresent);
        assert_eq!(untouched.entries()[2].bits, EntryBits::UNTOUCHED);
        assert_eq!(
            walk(2 << 30).end,
            TraceEnd::NoTable(Gpa(0xe000_0000)),
            "no memory is there"
        );
        let (nested, place) = vm.walk_nested(Gpa(UNTOUCHED));
        assert_eq!((nested.leaf, place), (None, Place::NoFrame));
        assert_eq!(tables(), before);
        assert_eq!(taken(&vm), taken_before);
    });
}

/// Each kind of place, and where one ends.
fn memory_is_seen_as_it_is<B: TestBackend>() {
    const RAM: u64 = 5 << 20;
    const ROM: u64 = 0xf000_0000;
    TestHost::run(usual_config::<B>(), |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let vm = hypervisor.create(&smp(guests::spin(&[]), 1)).unwrap();
        vm.memory().write(Gpa(RAM + 4090), b"across").unwrap();
        let look = |gpa: u64, len: usize| {
            let mut bytes = vec![0xee; len];
            let looked = vm.memory().look(Gpa(gpa), &mut bytes);
            (looked, bytes)
        };
        heap::exempt(|| {
            let (looked, bytes) = look(RAM + 4090, 16);
            assert_eq!(looked, (Place::Resident, 6), "to the end of the page");
            assert_eq!(&bytes[..8], b"across\xee\xee");
            let (looked, bytes) = look(RAM + 4096, 4096);
            assert_eq!((looked, bytes[0]), ((Place::NoFrame, 4096), 0xee));
            assert_eq!(look(0xfee0_0010, 8).0, (Place::Nothing, 8));
            assert_eq!(look(u64::MAX, 8).0, (Place::Nothing, 1));
            assert_eq!(look(RAM, 0).0, (Place::Resident, 0));
        });
        let rom = Region {
            writes: Writes::Dropped,
            ..Region::ram(Gpa(ROM), PAGE_SIZE, RAM / PAGE_SIZE)
        };
        vm.with_memory(|memory, flush| memory.change(&[Change::Add(rom)], flush))
            .unwrap();
        heap::exempt(|| {
            let (looked, bytes) = look(ROM + 4090, 6);
            assert_eq!((looked, &bytes[..]), ((Place::Resident, 6), &b"across"[..]));
        });
    });
}

/// The nested tables show what the guest has touched.
fn nested_tables_show_what_the_guest_touched<B: TestBackend>() {
    TestHost::run(usual_config::<B>(), |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let vm = hypervisor.launch(&smp(guests::spin(&[]), 1));
        vm.wait_until(|| vm.count(Counter::RamFault) > 0);
        let code = vm.report(0).unwrap().code.at;
        vm.wait_until(|| vm.walk_nested(Gpa(code)).0.leaf.is_some());
        let (nested, place) = vm.walk_nested(Gpa(code));
        let leaf = nested.leaf.unwrap();
        assert!(leaf.execute && place == Place::Resident);
        let last = nested.entries().last().unwrap();
        assert!(last.bits.contains(EntryBits::LEAF | EntryBits::EXECUTABLE));
        assert_eq!(nested.entries()[0].at & !0xfff, vm.memory().root().0);
        let _ = vm.stop();
        assert_eq!(vm.wait(), StopReason::Requested);
    });
}

on_all_backends! {
    nothing_of_a_paused_vm_changes,
    a_vcpu_that_is_behind_catches_up,
    a_vm_that_was_never_launched_is_looked_at,
    a_running_vm_is_looked_at_and_comes_to_its_end,
    tables_in_memory_stay_as_they_are,
    memory_is_seen_as_it_is,
    nested_tables_show_what_the_guest_touched,
}
