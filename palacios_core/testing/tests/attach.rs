// SPDX-License-Identifier: MIT OR Apache-2.0
//! Devices that come to a VM and go while it runs, with their workers: streams to descriptors, transfers, and how all of it rests.

use palacios_core::addr::Gpa;
use palacios_core::devices::bus::DetachError;
use palacios_core::devices::layout::AttachError;
use palacios_core::devices::{IoAddress, Request};
use palacios_core::interfaces::GuestMemory;
use palacios_core::names::DeviceId;
use palacios_core::pump::FarEnds;
use palacios_core::vm::{Attachment, LifeError, State, StopReason};
use palacios_testing::pipe::Pipe;
use palacios_testing::vm::{usual_config, Hypervisor, Spec, TestBackend, TestVm};
use palacios_testing::{guests, heap, on_all_backends, TestHost};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

const COM3: DeviceId = DeviceId::of_kind("com3");
const DMA: DeviceId = DeviceId::of_kind("dma");

fn on_vm<B: TestBackend>(kernel: Vec<u8>, test: impl Fn(&TestVm)) {
    TestHost::run(usual_config::<B>(), |host| {
        let hypervisor = Hypervisor::<B>::new(host);
        let vm = hypervisor.launch(&Spec::new(kernel.clone()));
        test(&vm);
        if vm.stop().is_ok() {
            vm.wait();
        }
    });
}

fn ends(output: &Pipe, input: &Pipe) -> Option<FarEnds> {
    Some(FarEnds {
        output: Some(output.end()),
        input: Some(input.end()),
    })
}

fn attach_com3(vm: &TestVm, ends: Option<FarEnds>) -> Result<(), AttachError> {
    let name = vm.attach(Attachment {
        kind: "serial",
        name: None,
        port: Some(0x3e8),
        slot: None,
        ends,
        disk: None,
    })?;
    assert_eq!(name, COM3);
    Ok(())
}

fn attach_dma(vm: &TestVm) -> Result<(), AttachError> {
    let name = vm.attach(Attachment {
        kind: "test-dma",
        name: Some(DMA),
        port: None,
        slot: None,
        ends: None,
        disk: None,
    })?;
    assert_eq!(name, DMA);
    Ok(())
}

/// A write to a port, as a vCPU makes it.
fn out(vm: &TestVm, port: u16, size: u8, value: u32) {
    let at = IoAddress::port(port, size);
    let answer = vm.bus().write(&mut None, at, value.into());
    if let Some((slot, Request::Regions)) = answer.request {
        vm.bus().update_regions(slot);
    }
}

fn inp(vm: &TestVm, port: u16, size: u8) -> u32 {
    vm.bus().read(&mut None, IoAddress::port(port, size)).value as u32
}

fn bytes_of(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n % 251) as u8).collect()
}

/// Each byte arrives once and in order, however little the other end takes at a time.
fn a_stream_carries_both_ways<B: TestBackend>() {
    on_vm::<B>(guests::spin(&[]), |vm| {
        let (output, input) = (Pipe::new(7), Pipe::new(0));
        attach_com3(vm, ends(&output, &input)).unwrap();
        let sent = bytes_of(5000);
        thread::scope(|scope| {
            let reader = scope.spawn(|| output.take_exactly(sent.len()));
            sent.iter()
                .for_each(|byte| out(vm, 0x3e8, 1, (*byte).into()));
            assert_eq!(reader.join().unwrap(), sent);
        });
        input.put(&sent);
        let received: Vec<u8> = (0..sent.len())
            .map(|_| {
                vm.wait_until(|| inp(vm, 0x3ed, 1) & 1 != 0);
                inp(vm, 0x3e8, 1) as u8
            })
            .collect();
        assert_eq!(received, sent);
        vm.detach(&COM3).unwrap();
        assert_eq!((output.watched(), input.watched()), (0, 0));
        assert_eq!(inp(vm, 0x3ed, 1), u32::MAX, "it is gone");
    });
}

/// What the device wrote before it goes, or before the VM stops, is at the other end then. And who closes the other end delays nobody.
fn output_is_not_lost_at_the_end<B: TestBackend>() {
    on_vm::<B>(guests::spin(&[]), |vm| {
        let (output, input) = (Pipe::new(0), Pipe::new(0));
        let sent = bytes_of(3000);
        let send = || {
            sent.iter()
                .for_each(|byte| out(vm, 0x3e8, 1, (*byte).into()))
        };
        attach_com3(vm, ends(&output, &input)).unwrap();
        send();
        vm.detach(&COM3).unwrap();
        assert_eq!(output.take(), sent);
        attach_com3(vm, ends(&output, &input)).unwrap();
        output.close(true);
        send();
        output.close(false);
        assert_eq!(output.take_exactly(sent.len()), sent);
        send();
        vm.stop().unwrap();
        vm.wait();
        assert_eq!(output.take(), sent);
    });
}

/// Ends somebody else's loop, also when a test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A port is attached and detached while the guest, here another thread, writes to it all the time: at most so many bytes for each
/// attachment, as a stream keeps without losing any, however late its worker gets a CPU. What arrives through one attachment is without a gap.
fn a_port_comes_and_goes_under_output<B: TestBackend>() {
    const MOST_BYTES: u32 = 24 << 10;
    on_vm::<B>(guests::spin(&[]), |vm| {
        let (ended, left) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            let _ends = Ends(&ended);
            scope.spawn(|| {
                let mut n = 0u32;
                while !ended.load(Ordering::SeqCst) {
                    let take = |left: u32| left.checked_sub(1);
                    match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
                        Ok(_) => out(vm, 0x3e8, 1, n & 0xff),
                        Err(_) => {
                            thread::yield_now();
                            continue;
                        }
                    }
                    n = n.wrapping_add(1);
                }
            });
            for _ in 0..200 {
                let output = Pipe::new(0);
                attach_com3(vm, ends(&output, &Pipe::new(0))).unwrap();
                left.store(MOST_BYTES, Ordering::SeqCst);
                let mut arrived = output.take_some();
                vm.detach(&COM3).unwrap();
                arrived.extend(output.take());
                let gap = arrived
                    .windows(2)
                    .find(|pair| pair[1] != pair[0].wrapping_add(1));
                assert_eq!(gap, None);
            }
        });
    });
}

/// Who is refused leaves nothing behind.
fn what_is_wrong_is_refused<B: TestBackend>() {
    on_vm::<B>(guests::sleep(&[]), |vm| {
        let (output, input) = (Pipe::new(0), Pipe::new(0));
        let attach = || attach_com3(vm, ends(&output, &input));
        attach().unwrap();
        assert_eq!(attach(), Err(AttachError::NameTaken(COM3)));
        let name = DeviceId::of_kind("another");
        let wanted = |kind, port, ends| Attachment {
            kind,
            name: Some(name),
            port,
            slot: None,
            ends,
            disk: None,
        };
        for (wanted, why) in [
            (
                wanted("serial", Some(0x3e8), ends(&output, &input)),
                "the device another cannot answer at ports 0x3e8 to 0x3ef: the device com3 does",
            ),
            (
                wanted("serial", Some(0x3e9), None),
                "port 0x3e9 is not 8 ports at 0x3f8, 0x2f8, 0x3e8 or 0x2e8",
            ),
            (
                wanted("test-dma", Some(0x2060), None),
                "port 0x2060 cannot be chosen for a device of this kind",
            ),
            (
                wanted("test-dma", None, ends(&output, &input)),
                "a device of this kind has no stream to connect",
            ),
            (
                wanted("floppy", None, None),
                "there is no such kind of device: `v3 attach --help` lists them",
            ),
        ] {
            assert_eq!(vm.attach(wanted).unwrap_err().to_string(), why);
        }
        // Each takes the first place that is free.
        for place in ["com1", "com2", "com4"] {
            let wanted = Attachment {
                name: None,
                ..wanted("serial", None, None)
            };
            assert_eq!(vm.attach(wanted).unwrap().as_str(), place);
        }
        let last = vm.attach(wanted("serial", None, None));
        assert_eq!(last, Err(AttachError::NoPlaceLeft));
        for place in ["com1", "com2", "com4"] {
            vm.detach(&DeviceId::new(place).unwrap()).unwrap();
        }
        assert_eq!(vm.detach(&name), Err(DetachError::NoSuchDevice));
        let rtc = DeviceId::of_kind("rtc");
        assert_eq!(vm.detach(&rtc), Err(DetachError::NotRemovable));
        let listed = vm.bus().devices().unwrap();
        let com3 = listed.last().unwrap();
        assert_eq!((com3.name, com3.kind), (COM3, "serial"));
        assert!(com3.is_removable && com3.regions.len() == 1);
        vm.detach(&COM3).unwrap();
        assert_eq!(vm.detach(&COM3), Err(DetachError::NoSuchDevice));
        assert_eq!((output.watched(), input.watched()), (0, 0));
    });
}

fn attaching_may_fail_anywhere<B: TestBackend>() {
    on_vm::<B>(guests::sleep(&[]), |vm| {
        let (output, input) = heap::exempt(|| (Pipe::new(0), Pipe::new(0)));
        let before = heap::exempt(|| vm.bus().devices().unwrap().len());
        let allocations = heap::fail_each(|_| {
            match attach_com3(vm, ends(&output, &input)) {
                Ok(()) => heap::exempt(|| vm.detach(&COM3).unwrap()),
                Err(error) => assert_eq!(error, AttachError::NoMemory),
            }
            let now = heap::exempt(|| vm.bus().devices().unwrap().len());
            assert_eq!((now, output.watched(), input.watched()), (before, 0, 0));
        });
        assert!(allocations > 10, "{allocations}");
    });
}

/// Starts a copy of that many bytes from 1 MiB to 8 MiB.
fn copy(vm: &TestVm, bytes: u32) {
    for (register, value) in [(0, 1 << 20), (1, 8 << 20), (2, bytes), (5, 1)] {
        out(vm, 0x2060 + 4 * register, 4, value);
    }
    out(vm, 0x2080, 1, 0);
}

fn copies(vm: &TestVm) -> u32 {
    inp(vm, 0x207c, 4)
}

/// A worker works beside the guest; not while the VM is paused; and a bell that rings then is heard afterwards.
fn a_worker_rests_with_the_machine<B: TestBackend>() {
    on_vm::<B>(guests::spin(&[]), |vm| {
        attach_dma(vm).unwrap();
        let text = b"what is copied";
        vm.memory().write(Gpa(1 << 20), text).unwrap();
        copy(vm, 1 << 20);
        vm.wait_until(|| copies(vm) == 1);
        let mut arrived = [0; 14];
        vm.memory().read(Gpa(8 << 20), &mut arrived).unwrap();
        assert_eq!(&arrived, text);
        for _ in 0..20 {
            // What is under way is finished: the copy, or none yet. The bell is heard later then.
            let before = copies(vm);
            copy(vm, 1 << 18);
            vm.pause().unwrap();
            let at_rest = copies(vm);
            assert!((before..=before + 1).contains(&at_rest));
            out(vm, 0x2080, 1, 0);
            (0..100).for_each(|_| thread::yield_now());
            assert_eq!(copies(vm), at_rest);
            vm.resume().unwrap();
            vm.wait_until(|| copies(vm) > at_rest);
        }
        copy(vm, 7 << 20);
        vm.detach(&DMA).unwrap();
        assert_eq!(copies(vm), u32::MAX);
    });
}

/// Rings of four threads, while the device comes and goes. They leave the worker its turns, however few CPUs there are.
fn doorbells_in_a_storm<B: TestBackend>() {
    on_vm::<B>(guests::spin(&[]), |vm| {
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !ended.load(Ordering::SeqCst) {
                        out(vm, 0x2080, 1, 0);
                        thread::yield_now();
                    }
                });
            }
            let _ends = Ends(&ended);
            for _ in 0..50 {
                attach_dma(vm).unwrap();
                vm.wait_until(|| copies(vm) & 0xff_ffff > 3);
                vm.detach(&DMA).unwrap();
            }
        });
    });
}

/// The reset comes when no transfer is under way, and finds the device as any other.
fn a_reset_finds_the_worker_at_rest<B: TestBackend>() {
    on_vm::<B>(guests::spin(&[]), |vm| {
        attach_dma(vm).unwrap();
        for _ in 0..20 {
            copy(vm, 1 << 20);
            out(vm, 0x64, 1, 0xfe);
            // A vCPU honours it when it looks: it is called by the pause, if it has not begun already.
            let _ = vm.pause().and_then(|()| vm.resume());
            vm.wait_until(|| inp(vm, 0x2060, 4) == 0);
            assert_eq!(copies(vm), 0);
        }
    });
}

/// A device that does not come to rest ends the VM, by name.
fn a_worker_that_never_rests_ends_the_vm<B: TestBackend>() {
    on_vm::<B>(guests::spin(&[]), |vm| {
        attach_dma(vm).unwrap();
        out(vm, 0x2074, 4, 4);
        match vm.pause() {
            Err(LifeError::WrongState(State::Stopping | State::Stopped(_))) => {}
            other => panic!("{other:?}"),
        }
        let reason = vm.wait();
        assert_eq!(reason, StopReason::NeverRests("test-dma"));
        assert!(reason.is_host_error());
        assert!(reason.to_string().contains("test-dma"));
        // It can be taken away, and the VM starts again without it.
        vm.detach(&DMA).unwrap();
        vm.launch();
        vm.pause().unwrap();
    });
}

on_all_backends! {
    a_stream_carries_both_ways,
    output_is_not_lost_at_the_end,
    a_port_comes_and_goes_under_output,
    what_is_wrong_is_refused,
    attaching_may_fail_anywhere,
    a_worker_rests_with_the_machine,
    doorbells_in_a_storm,
    a_reset_finds_the_worker_at_rest,
    a_worker_that_never_rests_ends_the_vm,
}
