// SPDX-License-Identifier: MIT OR Apache-2.0
//! Looks into VMs: what is true is said, nothing changes, and no argument does any harm.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Where `image` puts the code.
const CODE: u64 = 0x10_0020;

fn json(of: &impl serde::Serialize) -> String {
    serde_json::to_string(of).unwrap()
}

/// What is seen of a VM with one virtual CPU.
fn look(vm: &Vm) -> [String; 3] {
    [
        json(&vm.vcpu_report(0).unwrap()),
        json(&vm.interrupts(0).unwrap()),
        json(&vm.chipset().unwrap()),
    ]
}

fn taken(vm: &Vm) -> Vec<(String, u64)> {
    let stats = vm.stats().unwrap().into_iter();
    let pages = stats.filter(|s| s.name.contains("pages") || s.name.contains("bytes"));
    pages.map(|s| (s.name, s.value)).collect()
}

#[test]
#[ignore = "needs v3vee.ko"]
fn nothing_of_a_paused_vm_changes() {
    let vm = Owned::launch("looked-at", SPIN);
    vm.pause().unwrap();
    let before = (look(&vm), taken(&vm));
    for address in [0, CODE, 8 << 20, 0xfee0_0000, 1 << 40, u64::MAX] {
        vm.walk(0, address).unwrap();
        vm.walk_physical(address).unwrap();
        vm.dump(Some(0), address, 5000).unwrap();
        vm.dump(None, address, 5000).unwrap();
    }
    assert_eq!((look(&vm), taken(&vm)), before);
    vm.resume().unwrap();
    vm.stop().unwrap();
    assert_eq!(look(&vm), look(&vm), "of one that has stopped");
}

#[test]
#[ignore = "needs v3vee.ko"]
fn a_guest_without_paging_is_walked_and_read() {
    let vm = Owned::launch("unpaged", SPIN);
    while vm.walk(0, CODE).unwrap().nested_page.is_none() {
        std::thread::yield_now();
    }
    let walk = vm.walk(0, CODE).unwrap();
    assert_eq!((walk.mode, walk.entries.len()), (Some("no paging"), 0));
    assert_eq!(walk.gpa.map(|gpa| gpa.0), Some(CODE));
    assert_eq!(walk.place, Some(v3_ctl::Place::Memory));
    assert!(walk.nested.len() >= 2 && walk.hpa.is_some());
    let page = walk.nested_page.unwrap();
    assert!(page.execute);
    let dump = vm.dump(Some(0), CODE, 3).unwrap();
    assert_eq!(dump.pieces[0].bytes, SPIN);
    let untouched = vm.dump(None, 12 << 20, 64).unwrap();
    assert!(untouched.pieces[0].is_untouched && untouched.failure().is_none());
    let hole = vm.dump(None, MEMORY, 64).unwrap();
    assert!(hole.failure().is_some());
}

#[test]
#[ignore = "needs v3vee.ko"]
fn memory_is_read_to_the_end_of_its_page_and_no_further() {
    let vm = Owned::create("read", SPIN);
    let node = vm.node();
    let mut buffer = vec![0xee_u8; 3 * 4096];
    let mut read = |gpa: u64, len: u32| {
        buffer.fill(0xee);
        let mut arg = v3_memory_read {
            gpa,
            buffer: buffer.as_mut_ptr().expose_provenance() as u64,
            len,
            place: 77,
        };
        call(&node, V3_VM_MEMORY_READ, &mut arg).unwrap();
        let written = buffer.iter().rposition(|byte| *byte != 0xee);
        (arg.place, arg.len, written.map_or(0, |last| last + 1))
    };
    let (place, len, written) = read(CODE, u32::MAX);
    assert_eq!((place, len), (V3_PLACE_MEMORY, 4096 - 0x20));
    assert!((3..=4096 - 0x20).contains(&written));
    assert_eq!(read(CODE, 2), (V3_PLACE_MEMORY, 2, 2));
    assert_eq!(read(CODE, 0), (V3_PLACE_MEMORY, 0, 0));
    for nowhere in [MEMORY, 0xfee0_0000, 0xfec0_0000, 1 << 52] {
        assert_eq!(read(nowhere, 4096), (V3_PLACE_NONE, 4096, 0));
    }
    assert_eq!(read(u64::MAX, 4096), (V3_PLACE_NONE, 1, 0));
    assert_eq!(read(12 << 20, 8192), (V3_PLACE_UNTOUCHED, 4096, 0));
}

#[test]
#[ignore = "needs v3vee.ko"]
fn wrong_arguments_are_refused() {
    let vm = Owned::create("refused", SPIN);
    let node = vm.node();
    for address in [0, 1, 0xdead_0000, usize::MAX - 8] {
        for number in [
            V3_VM_MEMORY_READ,
            V3_VM_WALK,
            V3_VM_INTERRUPTS,
            V3_VM_CHIPSET,
        ] {
            assert_eq!(call_at(&node, number, address), Err(Errno::FAULT));
        }
    }
    for buffer in [0, 1 << 60, u64::MAX] {
        let mut arg = v3_memory_read {
            gpa: CODE,
            buffer,
            len: 8,
            place: 0,
        };
        assert_eq!(call(&node, V3_VM_MEMORY_READ, &mut arg), Err(Errno::FAULT));
        assert_eq!((arg.len, arg.place), (8, 0), "nothing was written");
    }
    let walk = |change: fn(&mut v3_walk)| {
        let mut arg = v3_walk::zeroed();
        change(&mut arg);
        call(&node, V3_VM_WALK, &mut arg).err()
    };
    assert_eq!(walk(|_| {}), None);
    assert_eq!(walk(|arg| arg.pad = 1), Some(Errno::INVAL));
    assert_eq!(walk(|arg| arg.flags = 2), Some(Errno::INVAL));
    assert_eq!(walk(|arg| arg.vcpu = 1), Some(Errno::NOENT));
    assert_eq!(walk(|arg| arg.vcpu = u32::MAX), Some(Errno::NOENT));
    let interrupts = |change: fn(&mut v3_interrupts)| {
        let mut arg = v3_interrupts::zeroed();
        change(&mut arg);
        call(&node, V3_VM_INTERRUPTS, &mut arg).err()
    };
    assert_eq!(interrupts(|_| {}), None);
    assert_eq!(interrupts(|arg| arg.flags = 1), Some(Errno::INVAL));
    assert_eq!(interrupts(|arg| arg.apic.pad = 1), Some(Errno::INVAL));
    assert_eq!(interrupts(|arg| arg.vcpu = 64), Some(Errno::NOENT));
    drop(vm);
    let mut arg = v3_walk::zeroed();
    assert_eq!(call(&node, V3_VM_WALK, &mut arg), Err(Errno::NODEV));
}

/// Any address, to any kind of call, while the guest runs: an answer, or a refusal that the header names.
#[test]
#[ignore = "needs v3vee.ko"]
fn any_address_is_answered() {
    let vm = Owned::launch("any", SPIN);
    let node = vm.node();
    let address = prop_oneof![any::<u64>(), 0..2 * MEMORY, Just(u64::MAX), Just(1 << 47)];
    let config = Config {
        cases: 500,
        failure_persistence: None,
        ..Config::default()
    };
    // A machine that has just started may have no random numbers yet, and waits for them.
    let numbers = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, numbers);
    let any_call = (address, 0..3u32, 0..3u32, 0..9000u32);
    let result = runner.run(&any_call, |(address, vcpu, flags, len)| {
        let mut walk = v3_walk {
            address,
            vcpu,
            flags,
            ..v3_walk::zeroed()
        };
        match call(&node, V3_VM_WALK, &mut walk) {
            Ok(()) => {
                prop_assert!(walk.count <= V3_WALK_LEVELS && walk.nested_count <= V3_WALK_LEVELS);
            }
            Err(errno) => prop_assert!([Errno::INVAL, Errno::NOENT].contains(&errno)),
        }
        let mut buffer = vec![0; len as usize];
        let mut read = v3_memory_read {
            gpa: address,
            buffer: buffer.as_mut_ptr().expose_provenance() as u64,
            len,
            place: flags,
        };
        prop_assert_eq!(call(&node, V3_VM_MEMORY_READ, &mut read), Ok(()));
        prop_assert!(read.len <= len.min(4096) && (1..=3).contains(&read.place));
        Ok(())
    });
    result.unwrap();
    assert_eq!(vm.info().unwrap().state, State::Running);
}
