// SPDX-License-Identifier: MIT OR Apache-2.0
//! Images made by the writer and by `vm-fdt`, then spoiled.

use super::container::{header_checksum, HEADER_CRC_AT};
use super::fdt::Tree;
use super::machine::{MAX_VCPUS, MIN_MEMORY_BYTES};
use super::testing::Spec;
use super::*;
use crate::bytes::{le32, le64};
use crate::devices::test_device;
use proptest::prelude::*;
use vm_fdt::FdtWriter;

/// The error for a machine with one small kernel.
fn refused(spec: &Spec) -> ImageError {
    let bytes = spec.image(&[b"kernel"]);
    Image::parse(&bytes).unwrap().machine().unwrap_err()
}

/// A machine is never silently less than its description.
#[test]
fn more_ranges_of_ram_and_numa_nodes_are_refused_by_name() {
    let second_range = Spec {
        second_range: true,
        ..Spec::default()
    };
    let numa = |numa_node| Spec {
        numa_node,
        ..Spec::default()
    };
    assert_eq!(
        refused(&second_range).to_string(),
        "the machine's description is wrong at `memory@100000000`: its property `reg` is a second range of RAM: `memory@0` has all of it, and the VMM leaves the holes of a PC"
    );
    assert_eq!(
        refused(&numa(Some(1))).to_string(),
        "the machine's description is wrong at `cpu@0`: its property `numa-node-id` is not 0: the machine has one NUMA node"
    );
    let image = numa(Some(0)).image(&[b"kernel"]);
    assert!(Image::parse(&image).unwrap().machine().is_ok());
}

/// Puts the header's checksum right after a change.
fn reseal(image: &mut [u8]) {
    let len = le32(image, 0xc).unwrap() as usize;
    let crc = header_checksum(&image[..len]);
    image[HEADER_CRC_AT..HEADER_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

fn error(bytes: &[u8]) -> ImageError {
    Image::parse(bytes).unwrap_err()
}

#[test]
fn reads_all_that_was_written() {
    let spec = Spec {
        cpus: vec![(0, Some(3)), (1, None), (2, Some(0))],
        boot: "linux",
        console: Some("com2"),
        blobs: vec![
            ("initrd", 2, None),
            ("kernel", 0, None),
            ("module", 3, Some("-v")),
            ("initrd", 1, None),
        ],
        devices: vec![
            ("ns16550a", 0x3f8, 4, "com1"),
            ("ns16550a", 0x2f8, 3, "com2"),
        ],
        ..Spec::default()
    };
    let bytes = spec.image(&[b"kernel", b"first", b"second", b""]);
    let image = Image::parse(&bytes).unwrap();
    let machine = image.machine().unwrap();
    assert_eq!(
        (machine.name, machine.ram.bytes(), machine.vcpus),
        (Some("guest"), 256 << 20, 3)
    );
    assert_eq!(
        [0, 1, 2, 63, 64].map(|vcpu| machine.pin(vcpu)),
        [Some(3), None, Some(0), None, None]
    );
    assert_eq!(
        (machine.boot, machine.bootargs, machine.console),
        (BootKind::Linux, "console=ttyS0", Some("com2"))
    );
    assert_eq!(machine.kernel, b"kernel");
    assert_eq!(
        machine.initrds().collect::<Vec<_>>(),
        [b"second".as_slice(), b"first"]
    );
    assert_eq!(
        machine.modules().collect::<Vec<_>>(),
        [Module {
            data: b"",
            bootargs: "-v"
        }]
    );
    let serials: Vec<_> = machine
        .serials()
        .map(|s| (s.port.base(), s.port.irq(), s.stream))
        .collect();
    assert_eq!(serials, [(0x3f8, 4, "com1"), (0x2f8, 3, "com2")]);
    assert_eq!(
        image.blob(0).unwrap().as_ptr() as usize - bytes.as_ptr() as usize,
        4096
    );
}

#[test]
fn a_triple_fault_stops_unless_the_image_says_otherwise() {
    let what = |on_triple_fault, requires| {
        let spec = Spec {
            on_triple_fault,
            requires,
            ..Spec::default()
        };
        let bytes = spec.image(&[b"kernel"]);
        let machine = Image::parse(&bytes).unwrap().machine();
        machine.map(|machine| machine.on_triple_fault)
    };
    assert_eq!(what(None, None), Ok(OnTripleFault::Stop));
    assert_eq!(what(Some("stop"), None), Ok(OnTripleFault::Stop));
    let feature = Some("on-triple-fault");
    assert_eq!(what(Some("reset"), feature), Ok(OnTripleFault::Reset));
    let wrong = what(Some("explode"), None).unwrap_err().to_string();
    assert!(wrong.contains("neither stop nor reset"), "{wrong}");
}

#[test]
fn the_test_device_is_there_when_it_is_listed() {
    for (devices, there) in [
        (vec![], false),
        (vec![("v3vee,test-device", 0xe0, 0, "")], true),
    ] {
        let spec = Spec {
            devices,
            ..Spec::default()
        };
        let bytes = spec.image(&[b"kernel"]);
        let machine = Image::parse(&bytes).unwrap().machine().unwrap();
        let listed = machine.has(&test_device::KIND);
        assert_eq!((listed, machine.serials().count()), (there, 0));
    }
}

#[test]
fn the_console_is_the_first_port_by_default() {
    let bytes = Spec::default().image(&[b"k"]);
    assert_eq!(
        Image::parse(&bytes).unwrap().machine().unwrap().console,
        Some("com1")
    );
    let none = Spec {
        devices: vec![],
        ..Spec::default()
    }
    .image(&[b"k"]);
    assert_eq!(
        Image::parse(&none).unwrap().machine().unwrap().console,
        None
    );
}

#[test]
fn every_truncation_is_refused_as_one() {
    let bytes = Spec::default().image(&[b"kernel", &[7; 5000]]);
    assert_eq!(
        error(b""),
        ImageError::NotAnImage {
            looks_like: "it is empty"
        }
    );
    for len in 1..bytes.len() {
        match error(&bytes[..len]) {
            ImageError::Truncated { need, have } => assert!(have == len as u64 && need > have),
            other => panic!("{len}: {other}"),
        }
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let bytes = Spec::default().image(&[b"kernel"]);
    let header_and_tree =
        le64(&bytes, 0x18).unwrap() as usize + le32(&bytes, 0x20).unwrap() as usize;
    let kernel = 4096..4096 + 6;
    for at in (0..header_and_tree).chain(kernel) {
        // The padding between header and tree is nobody's.
        if (le32(&bytes, 0xc).unwrap() as usize..le64(&bytes, 0x18).unwrap() as usize).contains(&at)
        {
            continue;
        }
        let mut spoiled = bytes.clone();
        spoiled[at] ^= 0x10;
        assert!(Image::parse(&spoiled).is_err(), "byte {at:#x}");
    }
}

#[test]
fn damage_is_named() {
    let bytes = Spec::default().image(&[b"kernel", b"other"]);
    for (at, part) in [
        (0x2c, Part::Header),
        (0x90, Part::Description),
        (4096, Part::Blob(0)),
        (8192, Part::Blob(1)),
    ] {
        let mut spoiled = bytes.clone();
        spoiled[at] ^= 1;
        assert_eq!(error(&spoiled), ImageError::BadChecksum(part));
    }
    let mut blob = bytes.clone();
    blob[8192] ^= 1;
    assert!(Image::parse_again(&blob).is_ok());
}

#[test]
fn other_files_are_recognised() {
    let mut bzimage = vec![0; 0x300];
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    for (bytes, hint) in [
        (b"v3vee\0\0\x01 and so on".as_slice(), "C Palacios"),
        (b"\x7fELF", "kernel"),
        (&bzimage, "kernel"),
        (b"\x1f\x8b\x08", "compressed"),
        (b"<vm>", "text"),
        (b"\0\0\0\0", "first bytes"),
    ] {
        assert!(error(bytes).to_string().contains(hint), "{}", error(bytes));
    }
}

#[test]
fn a_newer_version_is_refused_before_all_else() {
    let mut bytes = Spec::default().image(&[b"kernel"]);
    bytes[8] = 2;
    bytes[0xc..0x40].fill(0xff);
    assert_eq!(
        error(&bytes),
        ImageError::NewerVersion { found: 2, known: 1 }
    );
    assert!(error(&bytes).to_string().contains("newer VMM"));
}

#[test]
fn headers_that_contradict_themselves() {
    let bytes = Spec::default().image(&[b"kernel", b"other"]);
    let with = |at: usize, value: u64| {
        let mut bytes = bytes.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        reseal(&mut bytes);
        error(&bytes)
    };
    let second = 0x48;
    assert_eq!(with(second, 4096), ImageError::Overlap(Part::Blob(1)));
    assert_eq!(with(second, 1 << 40), ImageError::Overlap(Part::Blob(1)));
    assert_eq!(
        with(second + 8, u64::MAX),
        ImageError::Overlap(Part::Blob(1))
    );
    assert_eq!(
        with(second, 8200),
        ImageError::BadHeader("a blob does not start on a page boundary")
    );
    assert_eq!(with(0x18, 0), ImageError::Overlap(Part::Description));
    assert_eq!(
        with(0x18, u64::MAX - 7),
        ImageError::Overlap(Part::Description)
    );
    assert!(matches!(
        with(0x10, u64::MAX),
        ImageError::Truncated { need: u64::MAX, .. }
    ));
    assert!(matches!(
        with(0x28, 1 << 20),
        ImageError::TooBig {
            found: 0x10_0000,
            limit: 256,
            ..
        }
    ));
}

#[test]
fn features_are_taken_away_by_name() {
    let without = |names: &[&'static str]| {
        let spec = Spec {
            without: names.to_vec(),
            requires: (!names.is_empty()).then_some("cpu-without"),
            ..Spec::default()
        };
        let image = spec.image(&[b"kernel"]);
        let machine = Image::parse(&image).unwrap().machine().unwrap();
        machine.without.iter().collect::<Vec<_>>()
    };
    use crate::features::Feature::{Avx2, Hypervisor, La57};
    assert_eq!(without(&[]), []);
    assert_eq!(without(&["la57"]), [La57]);
    assert_eq!(
        without(&["la57", "hypervisor", "avx2", "la57"]),
        [Hypervisor, Avx2, La57]
    );
}

#[test]
fn disks_come_with_contents_or_a_size() {
    let spec = Spec {
        blobs: vec![("kernel", 0, None), ("disk", 1, None)],
        disks: vec![
            (Some(1), None, true),
            (Some(1), Some(4096), false),
            (None, Some(1 << 40), false),
        ],
        ..Spec::default()
    };
    let image = spec.image(&[b"kernel", &[7; 513]]);
    let machine = Image::parse(&image).unwrap().machine().unwrap();
    let disks = machine.devices().filter_map(|device| device.disk);
    let disks: Vec<_> = disks
        .map(|disk| (disk.contents.len(), disk.bytes, disk.is_read_only))
        .collect();
    assert_eq!(
        disks,
        [(513, 1024, true), (513, 4096, false), (0, 1 << 40, false)]
    );
}

#[test]
fn disks_that_are_none() {
    let refused = |disk| {
        let spec = Spec {
            blobs: vec![("kernel", 0, None), ("disk", 1, None)],
            disks: vec![disk],
            ..Spec::default()
        };
        let image = spec.image(&[b"kernel", &[7; 513]]);
        let machine = Image::parse(&image).unwrap().machine();
        machine.map(|_| ()).unwrap_err().to_string()
    };
    for (disk, words) in [
        ((None, None, false), "is missing"),
        ((Some(1), Some(512), false), "less than its contents need"),
        ((Some(1), Some(1025), false), "multiple of 512"),
        ((None, Some(0), false), "multiple of 512"),
        ((None, Some(u64::MAX), false), "multiple of 512"),
        ((None, Some((1 << 40) + 512), false), "to 1 TiB"),
        ((Some(2), None, false), "names blob 2"),
    ] {
        let told = refused(disk);
        assert!(told.contains(words), "{disk:?}: {told}");
    }
}

#[test]
fn machines_that_are_none() {
    let with = |change: &dyn Fn(&mut Spec)| {
        let mut spec = Spec::default();
        change(&mut spec);
        refused(&spec)
    };
    assert!(matches!(
        with(&|s| s.memory = 0),
        ImageError::TooLittleMemory { bytes: 0, .. }
    ));
    assert!(matches!(
        with(&|s| s.memory = 1 << 41),
        ImageError::TooMuchMemory { .. }
    ));
    assert!(with(&|s| s.memory += 1)
        .to_string()
        .contains("multiple of 4096"));
    assert_eq!(
        with(&|s| s.cpus.clear()),
        ImageError::BadCpuCount { found: 0, most: 64 }
    );
    assert_eq!(
        with(&|s| s.cpus = (0..65).map(|n| (n, None)).collect()),
        ImageError::BadCpuCount {
            found: 65,
            most: 64
        }
    );
    assert!(with(&|s| s.cpus = vec![(1, None)])
        .to_string()
        .contains("cpu@1"));
    assert_eq!(
        with(&|s| s.requires = Some("time-travel")).to_string(),
        "the image requires `time-travel`, which this VMM does not have; load a newer VMM"
    );
    for no_feature in ["la57,pcid", "", "vmx", "apic"] {
        let error = with(&|s| s.without = vec!["la57", no_feature]);
        assert_eq!(error, ImageError::UnknownCpuFeature(no_feature.into()));
        assert!(error.to_string().contains("`v3 info --cpuid` lists them"));
    }
    assert!(with(&|s| s.compatible = "acme,toaster")
        .to_string()
        .contains("another kind"));
    assert!(with(&|s| s.boot = "uefi")
        .to_string()
        .contains("v3vee,boot"));
    assert!(with(&|s| s.console = Some("com9"))
        .to_string()
        .contains("v3vee,console"));
    assert_eq!(with(&|s| s.blobs.clear()), ImageError::NoKernel);
    assert_eq!(
        with(&|s| s.blobs[0].1 = 9),
        ImageError::NoSuchBlob { index: 9, count: 1 }
    );
    assert!(with(&|s| s.blobs.push(("kernel", 0, None)))
        .to_string()
        .contains("second kernel"));
    assert!(with(&|s| s.blobs.push(("bios", 0, None)))
        .to_string()
        .contains("blob@1"));
    assert!(matches!(
        with(&|s| s.devices[0].0 = "acme,laser\x1b["),
        ImageError::UnknownDevice { .. }
    ));
    assert!(with(&|s| s.devices[0].0 = "acme,laser\x1b[")
        .to_string()
        .contains("laser\\x1b["));
    assert!(with(&|s| s.devices.push(s.devices[0]))
        .to_string()
        .contains("another device's stream"));
    assert!(with(&|s| s.devices.push(("ns16550a", 0x3f8, 4, "x")))
        .to_string()
        .contains("another device's"));
    assert!(with(&|s| s.devices[0].1 = 0x3f0)
        .to_string()
        .contains("0x2e8"));
    assert!(with(&|s| s.devices[0].2 = 5)
        .to_string()
        .contains("interrupts"));
    assert!(with(&|s| s.devices[0].3 = "")
        .to_string()
        .contains("v3vee,stream"));
}

/// Sealed garbage: all checksums right, the tree changed. Nothing may panic; what is accepted reads the same twice.
fn read_hostile(tree: &[u8]) {
    let bytes = write::image(tree, &[b"kernel", b"more"]).unwrap();
    let machine = Image::parse(&bytes).and_then(|image| image.machine());
    match machine {
        Ok(machine) => {
            assert!(
                (1..=MAX_VCPUS).contains(&machine.vcpus) && machine.ram.bytes() >= MIN_MEMORY_BYTES
            );
            assert_eq!(machine.initrds().count(), machine.initrds().count());
            assert!(machine.modules().count() + machine.initrds().count() < tree.len());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), head in 0usize..60) {
        let good = Spec::default().image(&[b"kernel"]);
        let head = head.min(bytes.len());
        bytes[..head].copy_from_slice(&good[..head]);
        let _ = Image::parse(&bytes).and_then(|image| image.machine().map(|_| ()));
    }

    #[test]
    fn spoiled_headers_never_panic(at in 8usize..0x78, value in any::<u32>()) {
        let mut bytes = Spec::default().image(&[b"kernel", b"more"]);
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        if le32(&bytes, 0xc).unwrap() as usize <= bytes.len() && le32(&bytes, 0xc).unwrap() >= 0x30 {
            reseal(&mut bytes);
        }
        let _ = Image::parse(&bytes).and_then(|image| image.machine().map(|_| ()));
    }

    #[test]
    fn spoiled_trees_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut tree = Spec { requires: Some("x"), ..Spec::default() }.tree();
        for (at, value) in changes {
            let at = at.index(tree.len());
            tree[at] = value;
        }
        read_hostile(&tree);
    }

    #[test]
    fn spoiled_cells_never_panic(at in any::<prop::sample::Index>(), value in 0u32..16) {
        let mut tree = Spec::default().tree();
        let at = at.index(tree.len() / 4) * 4;
        tree[at..at + 4].copy_from_slice(&value.to_be_bytes());
        read_hostile(&tree);
    }

    #[test]
    fn cut_trees_never_panic(len in any::<prop::sample::Index>()) {
        let tree = Spec::default().tree();
        read_hostile(&tree[..len.index(tree.len())]);
    }
}

#[test]
fn deep_trees_are_refused() {
    let mut fdt = FdtWriter::new().unwrap();
    let mut open = vec![fdt.begin_node("").unwrap()];
    for _ in 0..40 {
        open.push(fdt.begin_node("deeper").unwrap());
    }
    while let Some(node) = open.pop() {
        fdt.end_node(node).unwrap();
    }
    let tree = fdt.finish().unwrap();
    assert!(Tree::parse(&tree)
        .unwrap_err()
        .to_string()
        .contains("nested"));
}

#[test]
fn finds_properties_and_children() {
    let tree = Spec {
        cpus: vec![(0, None), (1, Some(7))],
        ..Spec::default()
    }
    .tree();
    let root = Tree::parse(&tree).unwrap().root();
    let names: Vec<_> = root.children().map(|node| node.name).collect();
    assert_eq!(names, ["memory@0", "cpus", "chosen", "blobs", "devices"]);
    let cpu = root.child("cpus").unwrap().child("cpu@1").unwrap();
    assert_eq!(
        (cpu.u32("v3vee,pin").unwrap(), cpu.u32("none").unwrap()),
        (Some(7), None)
    );
    assert!(root.child("memory@0").unwrap().u32("reg").is_err());
    assert!(root.strings("nothing").unwrap().next().is_none());
    assert_eq!(
        root.properties().map(|p| p.name).collect::<Vec<_>>(),
        ["compatible", "model", "something-new"]
    );
}
