// SPDX-License-Identifier: MIT OR Apache-2.0
//! Disks: what is refused, who may share a file, and another size. No guest is needed for it: those that use disks are in tests/bed.

use super::devices::held;
use super::{call, call_at, Owned, SPIN};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{open, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::pipe;
use std::path::Path;
use v3_abi::*;
use v3_ctl::{DiskRequest, Error, Request, Role, Vm};

const MIB: u64 = 1 << 20;

fn file_of(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn opened(path: &Path, flags: OFlags) -> OwnedFd {
    open(path, flags, Mode::empty()).unwrap()
}

/// Attaches a disk; on failure gives the error number and what the module says.
fn attach(vm: &Vm, fd: OwnedFd, role: Role, how: DiskRequest) -> Result<String, (Errno, String)> {
    let descriptors = [(fd, role)];
    let wanted = Request {
        kind: "disk",
        id: None,
        port: None,
        slot: None,
        disk: Some(how),
        descriptors: &descriptors,
    };
    vm.attach(&wanted).map_err(|error| match error {
        Error::NotAttached { errno, message, .. } => (errno, message),
        other => panic!("{other:?}"),
    })
}

fn writable(vm: &Vm, path: &Path, how: DiskRequest) -> Result<String, (Errno, String)> {
    attach(vm, opened(path, OFlags::RDWR), Role::Disk, how)
}

fn refused(result: Result<String, (Errno, String)>, errno: Errno, words: &str) {
    let (got, said) = result.unwrap_err();
    assert_eq!(
        (got, said.contains(words)),
        (errno, true),
        "{words}: {said}"
    );
}

#[test]
#[ignore = "needs v3vee.ko"]
fn files_that_are_no_disks_are_refused_each_with_its_reason() {
    let vm = Owned::create("no-disks", SPIN);
    let before = (held("objects"), held("threads"));
    let dir = tempfile::tempdir().unwrap();
    let (file, empty, cut) = (file_of(MIB), file_of(0), file_of(1000));
    let path = file.path();
    let (pipe, _other) = pipe().unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    let cases = [
        (
            opened("/dev/v3vee".as_ref(), OFlags::RDWR),
            Role::Disk,
            "node of v3vee",
        ),
        (vm.node(), Role::Disk, "node of v3vee"),
        (
            opened(dir.path(), OFlags::RDONLY),
            Role::ReadOnlyDisk,
            "no regular file",
        ),
        (
            opened("/dev/null".as_ref(), OFlags::RDWR),
            Role::Disk,
            "no regular file",
        ),
        (
            opened("/dev/zero".as_ref(), OFlags::RDONLY),
            Role::ReadOnlyDisk,
            "no regular file",
        ),
        (pipe, Role::ReadOnlyDisk, "no regular file"),
        (event, Role::Disk, "no regular file"),
        (
            opened(path, OFlags::RDONLY),
            Role::Disk,
            "not opened for writing",
        ),
        (
            opened(path, OFlags::WRONLY),
            Role::Disk,
            "not opened for reading",
        ),
        (
            opened(path, OFlags::RDWR | OFlags::APPEND),
            Role::Disk,
            "O_APPEND",
        ),
        (opened(empty.path(), OFlags::RDWR), Role::Disk, "is empty"),
        (opened(cut.path(), OFlags::RDWR), Role::Disk, "512"),
        // A far end of a stream is no disk.
        (opened(path, OFlags::RDWR), Role::Output, "no stream"),
    ];
    for (fd, role, words) in cases {
        refused(
            attach(&vm, fd, role, DiskRequest::default()),
            Errno::INVAL,
            words,
        );
    }
    let by_path = opened(path, OFlags::PATH);
    let (errno, _) = attach(&vm, by_path, Role::Disk, DiskRequest::default()).unwrap_err();
    assert_eq!(errno, Errno::BADF);
    assert_eq!(held("files"), 0);
    assert_eq!((held("objects"), held("threads")), before);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn a_file_is_the_disk_of_one_unless_all_share_it() {
    let (one, other) = (
        Owned::create("one-disk", SPIN),
        Owned::create("other-disk", SPIN),
    );
    let file = file_of(MIB);
    let path = file.path();
    let read_only =
        |vm: &Vm, how| attach(vm, opened(path, OFlags::RDONLY), Role::ReadOnlyDisk, how);
    let alone = DiskRequest::default();
    let shared = DiskRequest {
        is_shared: true,
        ..alone
    };
    let snapshot = DiskRequest {
        is_snapshot: true,
        ..alone
    };
    // Readers do not disturb each other.
    assert_eq!(read_only(&one, alone).unwrap(), "disk");
    assert_eq!(read_only(&one, alone).unwrap(), "disk-2");
    assert_eq!(read_only(&other, snapshot).unwrap(), "disk");
    refused(writable(&other, path, alone), Errno::BUSY, "shared");
    refused(writable(&other, path, shared), Errno::BUSY, "shared");
    one.detach("disk").unwrap();
    one.detach("disk-2").unwrap();
    other.detach("disk").unwrap();
    // One writes: both have to say so. It is the same file by another path, too.
    let link = path.with_extension("link");
    std::fs::hard_link(path, &link).unwrap();
    writable(&one, path, shared).unwrap();
    refused(writable(&other, &link, alone), Errno::BUSY, "shared");
    refused(read_only(&other, alone), Errno::BUSY, "shared");
    writable(&other, &link, shared).unwrap();
    std::fs::remove_file(link).unwrap();
    // The file is held, whatever becomes of its name.
    drop(file);
    assert_eq!(held("files"), 2);
    drop((one, other));
    assert_eq!(held("files"), 0);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn a_disk_gets_another_size_with_its_file() {
    let vm = Owned::launch("sizes", SPIN);
    let file = file_of(MIB);
    let path = file.path();
    writable(&vm, path, DiskRequest::default()).unwrap();
    let len = || std::fs::metadata(path).unwrap().len();
    let errno_of = |result: Result<u64, Error>| match result.unwrap_err() {
        Error::NotResized { errno, .. } => errno,
        Error::NoSuchDevice { .. } => Errno::NOENT,
        other => panic!("{other:?}"),
    };
    assert_eq!(vm.resize("disk", Some(4 * MIB), false), Ok(4 * MIB));
    assert_eq!(len(), 4 * MIB);
    assert_eq!(errno_of(vm.resize("disk", Some(MIB), false)), Errno::PERM);
    assert_eq!(
        errno_of(vm.resize("disk", Some(MIB + 1), false)),
        Errno::INVAL
    );
    assert_eq!(len(), 4 * MIB);
    assert_eq!(vm.resize("disk", Some(2 * MIB), true), Ok(2 * MIB));
    assert_eq!(len(), 2 * MIB);
    // Somebody else has made it larger.
    file.as_file().set_len(8 * MIB).unwrap();
    assert_eq!(vm.resize("disk", None, false), Ok(8 * MIB));
    // Longer than any file, and than there is room in numbers.
    for much in [1 << 63, !511] {
        assert_eq!(errno_of(vm.resize("disk", Some(much), false)), Errno::NOSPC);
    }
    assert_eq!(len(), 8 * MIB);
    assert_eq!(errno_of(vm.resize("com1", None, false)), Errno::NOTBLK);
    assert_eq!(errno_of(vm.resize("none", None, false)), Errno::NOENT);
    vm.detach("disk").unwrap();
    // The size of these is not to be chosen.
    let snapshot = DiskRequest {
        is_snapshot: true,
        ..DiskRequest::default()
    };
    writable(&vm, path, snapshot).unwrap();
    let read_only = opened(path, OFlags::RDONLY);
    attach(&vm, read_only, Role::ReadOnlyDisk, DiskRequest::default()).unwrap();
    for id in ["disk", "disk-2"] {
        assert_eq!(
            errno_of(vm.resize(id, Some(16 * MIB), false)),
            Errno::OPNOTSUPP
        );
    }
    assert_eq!(len(), 8 * MIB);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn bad_calls_about_disks_are_refused() {
    let vm = Owned::create("disk-calls", SPIN);
    let fd = vm.node();
    let file = file_of(MIB);
    let of_file = opened(file.path(), OFlags::RDWR);
    let options = v3_disk_options {
        size: size_of::<v3_disk_options>() as u32,
        version: V3_DISK_VERSION,
        ..v3_disk_options::zeroed()
    };
    let descriptor = v3_descriptor {
        fd: of_file.as_raw_fd(),
        role: V3_ROLE_BOTH,
        kind: V3_DESCRIPTOR_DISK,
        pad: 0,
    };
    let attach = |options: v3_disk_options, options_len, descriptors: &[v3_descriptor]| {
        let mut arg = v3_attach::zeroed();
        put_text(&mut arg.kind, b"disk");
        arg.options = (&raw const options).expose_provenance() as u64;
        arg.options_len = options_len;
        arg.descriptors = descriptors.as_ptr().expose_provenance() as u64;
        arg.descriptor_count = descriptors.len() as u32;
        call(&fd, V3_VM_ATTACH, &mut arg)
    };
    let whole = size_of::<v3_disk_options>() as u32;
    let with = |change: &dyn Fn(&mut v3_disk_options)| {
        let mut options = options;
        change(&mut options);
        attach(options, whole, &[descriptor])
    };
    assert_eq!(with(&|o| o.flags = 4), Err(Errno::INVAL));
    assert_eq!(with(&|o| o.pad = 1), Err(Errno::INVAL));
    assert_eq!(with(&|o| o.queues = 17), Err(Errno::INVAL));
    assert_eq!(with(&|o| o.queues = u32::MAX), Err(Errno::INVAL));
    assert_eq!(with(&|o| o.slot = 32), Err(Errno::INVAL));
    assert_eq!(with(&|o| o.slot = 1), Err(Errno::INVAL));
    assert_eq!(with(&|o| o.version = 2), Err(Errno::OPNOTSUPP));
    assert_eq!(with(&|o| o.size = 16), Err(Errno::INVAL));
    assert_eq!(attach(options, 16, &[descriptor]), Err(Errno::INVAL));
    // No file, two files, and a file that is none for what it is to be.
    assert_eq!(attach(options, whole, &[]), Err(Errno::INVAL));
    assert_eq!(attach(options, whole, &[descriptor; 2]), Err(Errno::INVAL));
    for role in [0, V3_ROLE_OUTPUT, 4] {
        let other = v3_descriptor { role, ..descriptor };
        assert_eq!(
            attach(options, whole, &[other]),
            Err(Errno::INVAL),
            "{role}"
        );
    }
    assert_eq!(held("files"), 0);
    assert_eq!(with(&|o| (o.queues, o.slot) = (16, 31)), Ok(()));
    // Resizing.
    for at in [16, usize::MAX, 1 << 63] {
        assert_eq!(call_at(&fd, V3_VM_RESIZE, at), Err(Errno::FAULT));
    }
    let resize = |bytes, flags, id: &[u8]| {
        let mut arg = v3_resize {
            bytes,
            flags,
            ..v3_resize::zeroed()
        };
        put_text(&mut arg.id, id);
        call(&fd, V3_VM_RESIZE, &mut arg)
    };
    assert_eq!(resize(MIB, 4, b"disk"), Err(Errno::INVAL));
    assert_eq!(resize(MIB, V3_RESIZE_FOLLOW, b"disk"), Err(Errno::INVAL));
    assert_eq!(resize(MIB, 0, b""), Err(Errno::INVAL));
    assert_eq!(resize(MIB, 0, b"a/b"), Err(Errno::INVAL));
    assert_eq!(resize(0, V3_RESIZE_FOLLOW, b"disk"), Ok(()));
    drop(vm);
    assert_eq!(held("files"), 0);
}
