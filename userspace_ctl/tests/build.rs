// SPDX-License-Identifier: MIT OR Apache-2.0
//! An image that was built describes the guest that it was built of.

use palacios_core::devices::uart::ComPort;
use palacios_core::image::{self, BootKind, Image};
use proptest::prelude::*;
use std::path::Path;
use v3_ctl::{Boot, BuildError, Contents, Guest, ModuleFile, OnTripleFault, RamDisk, SerialPort};

/// The least Multiboot 1 kernel: a header that says where the file itself goes (Multiboot 0.6.96: 3.1), and HLT.
fn kernel() -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const FLAGS: u32 = 1 << 16;
    const LOAD: u32 = 0x10_0000;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS);
    let header = [MAGIC, FLAGS, checksum, LOAD, LOAD, 0, 0, LOAD + 32];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.push(0xf4);
    bytes
}

/// A guest in a folder with its kernel.
fn guest(dir: &Path) -> Guest {
    let file = dir.join("kernel");
    std::fs::write(&file, kernel()).unwrap();
    Guest::new(file)
}

fn build(guest: &Guest) -> Result<Vec<u8>, String> {
    guest.build(&mut |_, _| {}).map_err(|e| e.to_string())
}

/// Files of these contents.
fn files(dir: &Path, prefix: &str, contents: &[Vec<u8>]) -> Vec<Contents> {
    let write = |(at, data): (usize, &Vec<u8>)| {
        let file = dir.join(format!("{prefix}{at}"));
        std::fs::write(&file, data).unwrap();
        Contents::File(file)
    };
    contents.iter().enumerate().map(write).collect()
}

fn blobs() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9000), 0..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_was_built_is_read_back(
        name in prop::option::of("[a-z][a-z0-9._-]{0,62}"),
        mib in 4u64..4096,
        (vcpus, pins) in (1u32..=64).prop_flat_map(|n| {
            (Just(n), prop::collection::vec(any::<Option<u32>>(), 0..=n as usize))
        }),
        cmdline in "[ -~äß]{0,200}",
        initrds in blobs(),
        modules in blobs(),
        reset in any::<bool>(),
        test_device in any::<bool>(),
        disks in blobs(),
        more_sectors in 0u64..3,
        ports in prop::sample::subsequence(ComPort::ALL.to_vec(), 0..=4),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let modules = files(dir.path(), "module", &modules).into_iter().zip(modules);
        let modules: Vec<_> = modules
            .map(|(contents, data)| (ModuleFile { cmdline: format!("{contents} {cmdline}"), contents }, data))
            .collect();
        let with_contents = files(dir.path(), "disk", &disks).into_iter().zip(&disks);
        let with_contents = with_contents.filter(|(_, data)| !data.is_empty());
        let mut ram_disks: Vec<_> = with_contents
            .map(|(contents, data)| RamDisk {
                contents: Some(contents),
                bytes: (more_sectors > 0).then(|| (data.len() as u64).next_multiple_of(512) + more_sectors * 512),
                is_read_only: data.len() % 2 == 0,
            })
            .collect();
        ram_disks.push(RamDisk { contents: None, bytes: Some(mib << 20), is_read_only: false });
        let guest = Guest {
            name,
            memory_bytes: mib << 20,
            vcpus,
            pins,
            cmdline,
            initrds: files(dir.path(), "initrd", &initrds),
            modules: modules.iter().map(|(module, _)| module.clone()).collect(),
            console: ports.last().map(|port| SerialPort::new(*port).stream),
            on_triple_fault: if reset { OnTripleFault::Reset } else { OnTripleFault::Stop },
            test_device,
            disks: ram_disks.clone(),
            serials: ports.iter().map(|port| SerialPort::new(*port)).collect(),
            ..guest(dir.path())
        };
        let bytes = build(&guest).unwrap();
        let image = Image::parse(&bytes).unwrap();
        let machine = image.machine().unwrap();
        prop_assert_eq!(machine.name, guest.name.as_deref());
        prop_assert_eq!(machine.ram.bytes(), guest.memory_bytes);
        prop_assert_eq!(machine.vcpus, guest.vcpus);
        for vcpu in 0..vcpus {
            prop_assert_eq!(machine.pin(vcpu), guest.pins.get(vcpu as usize).copied().flatten());
        }
        prop_assert_eq!(machine.bootargs, &guest.cmdline);
        prop_assert_eq!(machine.boot, BootKind::Auto);
        prop_assert_eq!(machine.on_triple_fault == image::OnTripleFault::Reset, reset);
        prop_assert_eq!(machine.has(&palacios_core::devices::test_device::KIND), test_device);
        prop_assert_eq!(machine.kernel, kernel());
        prop_assert!(machine.initrds().eq(initrds.iter().map(Vec::as_slice)));
        let read: Vec<_> = machine.modules().map(|m| (m.bootargs, m.data)).collect();
        let written: Vec<_> = modules.iter().map(|(m, d)| (m.cmdline.as_str(), d.as_slice())).collect();
        prop_assert_eq!(read, written);
        let read: Vec<_> = machine.devices().filter_map(|device| device.disk).collect();
        prop_assert_eq!(read.len(), ram_disks.len());
        let contents = disks.iter().filter(|data| !data.is_empty());
        prop_assert!(read.iter().map(|disk| disk.contents).filter(|data| !data.is_empty()).eq(contents));
        for (read, written) in read.iter().zip(&ram_disks) {
            let usual = (read.contents.len() as u64).next_multiple_of(512);
            prop_assert_eq!(read.bytes, written.bytes.unwrap_or(usual));
            prop_assert_eq!(read.is_read_only, written.is_read_only);
        }
        prop_assert_eq!(machine.console, guest.console.as_deref());
        let mut streams: Vec<_> = machine.serials().map(|s| s.stream.to_string()).collect();
        streams.sort();
        prop_assert_eq!(streams, ports.iter().map(|port| SerialPort::new(*port).stream).collect::<Vec<_>>());
        let again = Guest::of_image(&bytes, Path::new("guest.img")).unwrap();
        prop_assert_eq!(build(&again), Ok(bytes));
    }
}

#[test]
fn a_file_that_is_no_kernel_is_refused_when_built() {
    let dir = tempfile::tempdir().unwrap();
    let good = guest(dir.path());
    std::fs::write(dir.path().join("kernel"), "hello").unwrap();
    let error = build(&good).unwrap_err();
    assert!(
        error.contains("kernel: the kernel is neither a Linux bzImage nor"),
        "{error}"
    );
    let linux = Guest {
        boot: Boot::Linux,
        ..good
    };
    assert!(build(&linux).unwrap_err().contains("not a Linux bzImage"));
}

#[test]
fn files_that_do_not_fit_the_memory_are_refused_when_built() {
    let dir = tempfile::tempdir().unwrap();
    let modules = files(dir.path(), "module", &[vec![0; 8 << 20]]);
    let modules = modules.into_iter().map(|contents| ModuleFile {
        contents,
        cmdline: String::new(),
    });
    let small = Guest {
        memory_bytes: 4 << 20,
        modules: modules.collect(),
        ..guest(dir.path())
    };
    assert!(build(&small).unwrap_err().contains("memory"));
    assert!(build(&Guest {
        memory_bytes: 64 << 20,
        ..small
    })
    .is_ok());
}

#[test]
fn a_missing_file_is_named() {
    let error = Guest::new("/nowhere/kernel".into())
        .build(&mut |_, _| {})
        .unwrap_err();
    let expected = "/nowhere/kernel: no such file or directory";
    assert_eq!(error.to_string(), expected);
    assert!(matches!(error, BuildError::File { .. }));
}

#[test]
fn a_damaged_image_describes_no_guest() {
    let dir = tempfile::tempdir().unwrap();
    let mut image = build(&guest(dir.path())).unwrap();
    *image.last_mut().unwrap() ^= 1;
    let error = Guest::of_image(&image, Path::new("guest.img")).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("guest.img: the image is damaged"),
        "{error}"
    );
}

#[test]
fn progress_ends_at_the_total() {
    let dir = tempfile::tempdir().unwrap();
    let initrds = files(dir.path(), "initrd", &[vec![1; 10 << 20], vec![2; 3]]);
    let guest = Guest {
        initrds,
        ..guest(dir.path())
    };
    let mut seen = Vec::new();
    guest
        .build(&mut |done, total| seen.push((done, total)))
        .unwrap();
    let all = (10 << 20) + 3 + kernel().len() as u64;
    assert_eq!(seen.last(), Some(&(all, all)));
    assert!(seen.len() > 4 && seen.windows(2).all(|w| w[0].0 <= w[1].0));
    let mut seen = Vec::new();
    let file = dir.path().join("initrd0");
    let data = v3_ctl::read_file(&file, &mut |done, total| seen.push((done, total))).unwrap();
    assert_eq!(data, vec![1; 10 << 20]);
    assert_eq!(seen.last(), Some(&(10 << 20, 10 << 20)));
    assert!(seen.len() > 2);
}
