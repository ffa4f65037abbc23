// SPDX-License-Identifier: MIT OR Apache-2.0
//! PCI devices of a VM: what firmware does with them, how they come and go while a guest runs, and where they are behind a load.

use palacios_core::addr::Gpa;
use palacios_core::devices::bus::{DetachError, SavedDevice};
use palacios_core::devices::layout::AttachError;
use palacios_core::devices::pci::{Bdf, ECAM};
use palacios_core::devices::{IoAddress, Request};
use palacios_core::interfaces::GuestMemory;
use palacios_core::names::DeviceId;
use palacios_core::sections::Sections;
use palacios_core::vm::{Attachment, HoldReason, State, TscRate};
use palacios_testing::vm::{usual_config, Hypervisor, Spec, TestBackend, TestVm};
use palacios_testing::{guests, on_all_backends, Config, TestHost};

const RAM_BYTES: u64 = 4 << 20;
const RNG: u32 = 0x7633_1234;

fn on_host<B: TestBackend>(test: impl Fn(&TestHost, &Hypervisor<B>)) {
    let config = Config {
        virtual_time: true,
        ..usual_config::<B>()
    };
    TestHost::run(config, |host| test(host, &Hypervisor::new(host)));
}

fn spec(kernel: Vec<u8>) -> Spec {
    Spec {
        memory_bytes: RAM_BYTES,
        ..Spec::new(kernel)
    }
}

fn attach(vm: &TestVm, slot: Option<u8>) -> Result<DeviceId, AttachError> {
    vm.attach(Attachment {
        kind: "example-rng",
        name: None,
        port: None,
        slot,
        ends: None,
        disk: None,
    })
}

/// An access as a vCPU makes it.
fn read(vm: &TestVm, at: IoAddress) -> u32 {
    vm.bus().read(&mut None, at).value as u32
}
fn write(vm: &TestVm, at: IoAddress, value: u32) {
    let answer = vm.bus().write(&mut None, at, value.into());
    match answer.request {
        Some((slot, Request::Regions)) => vm.bus().update_regions(slot),
        Some((_, other)) => panic!("{other:?}"),
        None => {}
    }
}

fn config(slot: u8, register: u16) -> IoAddress {
    IoAddress::memory(ECAM.start + Bdf::new(slot, 0).register(register), 4)
}
fn select(vm: &TestVm, slot: u8, register: u16) {
    let address = 1 << 31 | Bdf::new(slot, 0).register(register) as u32 >> 4 & !0xff;
    write(vm, IoAddress::port(0xcf8, 4), address | u32::from(register));
}

/// What is there at power-on, and at each reset, has addresses; who comes later is the guest's to place.
fn firmware_places_what_is_there<B: TestBackend>() {
    on_host::<B>(|host, hypervisor| {
        let vm = hypervisor.create(&spec(guests::spin(&[]))).expect("a VM");
        let rng = attach(&vm, None).unwrap();
        assert_eq!(rng.to_string(), "example-rng");
        assert_eq!(read(&vm, config(2, 0x10)), 0);
        vm.begin().unwrap();
        assert_eq!(read(&vm, config(2, 0)), RNG);
        assert_eq!(read(&vm, config(2, 0x10)), 0xc000_0000);
        assert_eq!(
            read(&vm, config(2, 4)),
            0x0010_0002,
            "it answers, and is no master"
        );
        assert_eq!(read(&vm, config(2, 0x3c)), 0x10b);
        assert_ne!(read(&vm, IoAddress::memory(0xc000_0000, 4)), u32::MAX);
        // By ports it is the same.
        select(&vm, 2, 0x10);
        assert_eq!(read(&vm, IoAddress::port(0xcfc, 4)), 0xc000_0000);
        let other = attach(&vm, None).unwrap();
        assert_eq!(other.to_string(), "example-rng-2");
        assert_eq!(
            [0, 4, 0x10].map(|register| read(&vm, config(3, register))),
            [RNG, 0x10_0000, 0]
        );
        assert_eq!(
            read(&vm, IoAddress::port(0xae00, 4)),
            1 << 3,
            "the guest is told"
        );
        let _ = vm.stop();
        vm.step_rounds(host, 10);
        vm.begin().unwrap();
        assert_eq!(read(&vm, config(3, 0x10)), 0xc000_2000);
        assert_eq!(read(&vm, IoAddress::port(0xae00, 4)), 0);
        assert_eq!(
            read(&vm, IoAddress::port(0xcf8, 4)),
            0,
            "the address register is as new"
        );
        let _ = vm.stop();
        vm.step_rounds(host, 10);
    });
}

fn a_slot_is_chosen_or_refused<B: TestBackend>() {
    on_host::<B>(|_, hypervisor| {
        let vm = hypervisor.create(&spec(guests::spin(&[]))).expect("a VM");
        attach(&vm, Some(31)).unwrap();
        assert_eq!(read(&vm, config(31, 0)), RNG);
        for slot in [0, 1, 32, 255] {
            assert_eq!(attach(&vm, Some(slot)), Err(AttachError::NoSuchSlot(slot)));
        }
        assert!(matches!(
            attach(&vm, Some(31)),
            Err(AttachError::Overlap { .. })
        ));
        for _ in 2..31 {
            attach(&vm, None).unwrap();
        }
        assert_eq!(attach(&vm, None), Err(AttachError::NoPlaceLeft));
        vm.detach(&DeviceId::of_kind("example-rng-9")).unwrap();
        attach(&vm, None).unwrap();
    });
}

/// The device goes when the guest says so, and with force at once.
fn the_guest_ejects<B: TestBackend>() {
    on_host::<B>(|host, hypervisor| {
        let vm = hypervisor.create(&spec(guests::ejects(&[]))).expect("a VM");
        let rng = attach(&vm, Some(5)).unwrap();
        assert_eq!(
            vm.ask_to_eject(&rng),
            Err(DetachError::NobodyToAsk),
            "it does not run"
        );
        vm.begin().unwrap();
        vm.step_rounds(host, 20);
        assert_eq!(read(&vm, config(5, 0)), RNG, "nobody asked");
        vm.ask_to_eject(&rng).unwrap();
        let is_there = || vm.bus().find(&rng).is_some();
        let mut rounds = 0;
        while is_there() {
            assert!(rounds < 10_000, "the guest does not eject it");
            vm.step_rounds(host, 1);
            rounds += 1;
        }
        assert_eq!(read(&vm, config(5, 0)), u32::MAX);
        assert_eq!(vm.ask_to_eject(&rng), Err(DetachError::NoSuchDevice));
        let pm = DeviceId::of_kind("acpi");
        assert_eq!(vm.ask_to_eject(&pm), Err(DetachError::NotRemovable));
        // With force, and what was asked before is forgotten.
        attach(&vm, Some(5)).unwrap();
        vm.hold(HoldReason::User).unwrap();
        vm.ask_to_eject(&rng).unwrap();
        vm.detach(&rng).unwrap();
        assert_eq!(read(&vm, IoAddress::port(0xae04, 4)), 0);
        vm.release(HoldReason::User).unwrap();
        let _ = vm.stop();
        vm.step_rounds(host, 10);
    });
}

/// It is where it was, and so is all that the guest told it.
fn a_device_is_at_its_place_behind_a_load<B: TestBackend>() {
    on_host::<B>(|host, hypervisor| {
        let spec = spec(guests::spin(&[]));
        let vm = hypervisor.create(&spec).expect("a VM");
        vm.begin().unwrap();
        attach(&vm, Some(9)).unwrap();
        write(&vm, config(9, 0x10), 0xd123_4000);
        write(&vm, config(9, 4), 6);
        write(&vm, IoAddress::memory(0xd123_4010, 4), 77);
        write(&vm, config(1, 0x60), 0x8080_0505);
        select(&vm, 9, 0x3c);
        vm.hold(HoldReason::Saving).unwrap();
        while vm.state() != State::Paused {
            vm.step_rounds(host, 1);
        }
        let mut state = Vec::new();
        vm.save(&mut state).unwrap();
        let mut ram = vec![0; RAM_BYTES as usize];
        vm.memory().read(Gpa(0), &mut ram).unwrap();

        let sections = Sections::new(&state).map(|section| section.unwrap());
        let devices = sections.filter_map(|section| SavedDevice::of(&section).unwrap());
        let mut ours = devices.filter(|device| device.kind == "example-rng");
        let saved = ours.next().expect("it was saved");
        assert_eq!((saved.slot, saved.port), (Some(9), None));
        let twin = hypervisor.create(&spec).expect("a VM");
        attach(&twin, Some(8)).unwrap();
        twin.load_ram(0, &ram).unwrap();
        assert!(
            twin.load(&state, TscRate::Same).is_err(),
            "it is in another slot"
        );
        twin.detach(&DeviceId::of_kind("example-rng")).unwrap();
        attach(&twin, saved.slot).unwrap();
        twin.load_ram(0, &ram).unwrap();
        twin.load(&state, TscRate::Same).unwrap();
        twin.begin().unwrap();
        assert_eq!(read(&twin, config(9, 0x10)), 0xd123_4000);
        assert_eq!(read(&twin, IoAddress::memory(0xd123_4010, 4)), 77);
        assert_eq!(read(&twin, config(1, 0x60)), 0x8080_0505);
        assert_eq!(
            read(&twin, IoAddress::port(0xcfd, 1)) & 0xff,
            1,
            "the pin: the address was kept"
        );
        for vm in [vm, twin] {
            let _ = vm.stop();
            vm.step_rounds(host, 10);
        }
    });
}

on_all_backends! {
    firmware_places_what_is_there,
    a_slot_is_chosen_or_refused,
    the_guest_ejects,
    a_device_is_at_its_place_behind_a_load,
}
