// SPDX-License-Identifier: MIT OR Apache-2.0
//! Disks of a VM: what is refused, what a disk is by default, another size, counters, and which can be saved.

use palacios_core::block::ram::RamStore;
use palacios_core::block::recording::{Dice, RecordingStore};
use palacios_core::block::{BlockError, BlockInfo, BlockRequest, BlockStore, Done};
use palacios_core::devices::bus::{NewSize, ResizeError};
use palacios_core::devices::layout::AttachError;
use palacios_core::host::NoMemory;
use palacios_core::interfaces::Wake;
use palacios_core::names::DeviceId;
use palacios_core::state_io::StateError;
use palacios_core::vm::{Attachment, Disk, HoldReason, SaveError, Saver};
use palacios_testing::vm::{usual_config, Hypervisor, Spec, TestBackend, TestVm};
use palacios_testing::{guests, on_all_backends, TestHost};

const DISK: DeviceId = DeviceId::of_kind("disk");

fn on_vm<B: TestBackend>(vcpus: usize, test: impl Fn(&TestVm)) {
    TestHost::run(usual_config::<B>(), |host| {
        let spec = Spec::new(guests::sleep(&[])).with_vcpus(vcpus);
        let hypervisor = Hypervisor::<B>::new(host);
        let vm = hypervisor.launch(&spec);
        test(&vm);
        vm.stop().unwrap();
        vm.wait();
    });
}

/// A disk whose file can be made longer, as one of a host can.
struct Growing(RamStore);

impl BlockStore for Growing {
    fn info(&self) -> BlockInfo {
        self.0.info()
    }
    fn begin(&mut self, wake: Box<dyn Wake>) -> Result<(), NoMemory> {
        self.0.begin(wake)
    }
    fn submit(&mut self, request: BlockRequest) -> Result<(), BlockRequest> {
        self.0.submit(request)
    }
    fn next_done(&mut self) -> Option<Done> {
        self.0.next_done()
    }
    fn drain(&mut self) {
        self.0.drain();
    }
    fn resize(&mut self, bytes: u64) -> Result<(), BlockError> {
        if bytes > 1 << 20 {
            return Err(BlockError::NoSpace);
        }
        self.0 = RamStore::new(bytes / 512)?;
        Ok(())
    }
}

fn attach(
    vm: &TestVm,
    kind: &str,
    store: Option<Box<dyn BlockStore>>,
) -> Result<DeviceId, AttachError> {
    vm.attach(Attachment {
        kind,
        name: None,
        port: None,
        slot: None,
        ends: None,
        disk: store.map(|store| Disk {
            store,
            queues: None,
        }),
    })
}

fn ram() -> Option<Box<dyn BlockStore>> {
    Some(Box::new(RamStore::new(64).unwrap()))
}

fn doorbells_of(vm: &TestVm, name: DeviceId) -> usize {
    let all = vm.bus().devices().unwrap();
    let device = all.iter().find(|device| device.name == name).unwrap();
    let doorbells = device.regions.iter().filter(|region| region.doorbell);
    doorbells.count()
}

fn a_disk_has_a_store_and_others_have_none<B: TestBackend>() {
    on_vm::<B>(3, |vm| {
        assert_eq!(attach(vm, "disk", None), Err(AttachError::NeedsStore));
        assert_eq!(attach(vm, "rng", ram()), Err(AttachError::NoStore));
        assert_eq!(attach(vm, "disk", ram()), Ok(DISK));
        let second = attach(vm, "disk", ram()).unwrap();
        assert_eq!(second.as_str(), "disk-2");
        let one_queue = vm.attach(Attachment {
            kind: "disk",
            name: DeviceId::new("narrow"),
            port: None,
            slot: None,
            ends: None,
            disk: Some(Disk {
                store: ram().unwrap(),
                queues: Some(1),
            }),
        });
        // One of version 0.9, and one for each queue: by default there are as many as vCPUs.
        assert_eq!(doorbells_of(vm, DISK), 1 + 3);
        assert_eq!(doorbells_of(vm, one_queue.unwrap()), 1 + 1);
        vm.detach(&DISK).unwrap();
    });
}

fn a_disk_is_resized_and_nothing_else<B: TestBackend>() {
    on_vm::<B>(1, |vm| {
        let growing = RamStore::new(64).map(Growing).unwrap();
        attach(vm, "disk", Some(Box::new(growing))).unwrap();
        let fixed = attach(vm, "disk", ram()).unwrap();
        attach(vm, "rng", None).unwrap();
        let to = |bytes, may_shrink| NewSize { bytes, may_shrink };
        assert_eq!(vm.resize(&DISK, to(Some(65536), false)), Ok(65536));
        let shrinks = ResizeError::Shrinks { now_bytes: 65536 };
        assert_eq!(vm.resize(&DISK, to(Some(512), false)), Err(shrinks));
        assert_eq!(vm.resize(&DISK, to(Some(512), true)), Ok(512));
        let not_whole = ResizeError::NotWhole { block_bytes: 512 };
        assert_eq!(vm.resize(&DISK, to(Some(1000), true)), Err(not_whole));
        let full = ResizeError::Store(BlockError::NoSpace);
        assert_eq!(vm.resize(&DISK, to(Some(2 << 20), true)), Err(full));
        assert_eq!(vm.resize(&DISK, to(None, false)), Ok(512));
        assert_eq!(vm.resize(&fixed, to(None, false)), Ok(32768));
        let unsupported = ResizeError::Store(BlockError::Unsupported);
        assert_eq!(vm.resize(&fixed, to(Some(65536), false)), Err(unsupported));
        let rng = DeviceId::of_kind("rng");
        assert_eq!(vm.resize(&rng, to(None, false)), Err(ResizeError::NoDisk));
        let none = DeviceId::of_kind("none");
        assert_eq!(
            vm.resize(&none, to(None, false)),
            Err(ResizeError::NoSuchDevice)
        );
        let mut counters = Vec::new();
        vm.bus().counters(|device, name, value| {
            if *device == DISK {
                counters.push((name, value));
            }
        });
        assert_eq!(counters.len(), 6);
        assert!(counters.contains(&("reads", 0)), "{counters:?}");
    });
}

/// Saves a VM; the error, if there was one.
fn save(vm: &TestVm) -> Option<SaveError> {
    vm.hold(HoldReason::Saving).unwrap();
    let (mut saver, mut buf) = (Saver::new(), vec![0; 1 << 20]);
    let error = loop {
        match vm.read_saved(&mut saver, &mut buf) {
            Ok(0) => break None,
            Ok(_) => {}
            Err(error) => break Some(error),
        }
    };
    vm.release(HoldReason::Saving).unwrap();
    error
}

fn what_is_in_memory_alone_is_not_saved<B: TestBackend>() {
    on_vm::<B>(1, |vm| {
        attach(vm, "disk", ram()).unwrap();
        assert_eq!(save(vm), Some(SaveError::State(StateError::LostWithVm)));
        vm.detach(&DISK).unwrap();
        let (store, _) = RecordingStore::new(vec![0; 4096], Dice::new(1));
        attach(vm, "disk", Some(Box::new(store))).unwrap();
        assert_eq!(save(vm), None);
    });
}

on_all_backends! {
    a_disk_has_a_store_and_others_have_none,
    a_disk_is_resized_and_nothing_else,
    what_is_in_memory_alone_is_not_saved,
}
