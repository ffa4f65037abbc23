// SPDX-License-Identifier: MIT OR Apache-2.0
//! Devices that are attached to VMs and detached from them, with all kinds of far ends.

use super::{call, call_at, ran, v3, Owned, HALT, SPIN};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{fcntl_getfl, fcntl_setfl, open, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{pipe_with, PipeFlags};
use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
use rustix::termios::{tcgetattr, tcsetattr, OptionalActions};
use std::ffi::CString;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::time::{Duration, Instant};
use v3_abi::*;
use v3_ctl::{Error, Request, Role, State, Vm};

/// Sends the alphabet at com3 for ever, and between its letters what it receives there.
const TALK: &[u8] = b"\xb1\x61\x66\xba\xed\x03\xec\x3c\xff\x74\x0a\xa8\x01\x74\x06\x66\xba\xe8\x03\
    \xec\xee\x66\xba\xe8\x03\x88\xc8\xee\xfe\xc1\x80\xf9\x7b\x75\xdf\xeb\xdb";
/// How long what must come may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn attach(vm: &Vm, descriptors: &[(OwnedFd, Role)]) -> Result<String, Error> {
    vm.attach(&Request {
        kind: "serial",
        id: None,
        port: Some(0x3e8),
        slot: None,
        disk: None,
        descriptors,
    })
}

/// Reads until it has found the text.
fn read_until(fd: impl AsFd, text: &str) -> Vec<u8> {
    let begin = Instant::now();
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains(text) {
        assert!(
            begin.elapsed() < PATIENCE,
            "no {text} in {} bytes",
            all.len()
        );
        let mut piece = [0; 4096];
        let wait = Timespec::try_from(Duration::from_millis(100)).unwrap();
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)).unwrap();
        match rustix::io::read(&fd, &mut piece) {
            Ok(len) => all.extend_from_slice(&piece[..len]),
            Err(Errno::AGAIN) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
    all
}

/// No letter is missing between the first and the last.
fn assert_whole(sent: &[u8]) {
    let letters: Vec<u8> = sent
        .iter()
        .copied()
        .filter(u8::is_ascii_lowercase)
        .collect();
    assert!(letters.len() > 100, "{}", letters.len());
    for (at, pair) in letters.windows(2).enumerate() {
        let next = if pair[0] == b'z' { b'a' } else { pair[0] + 1 };
        assert_eq!(pair[1], next, "at {at} of {}", letters.len());
    }
}

pub fn held(what: &str) -> u64 {
    let path = format!("/sys/kernel/debug/v3vee/{what}");
    std::fs::read_to_string(path)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// What the module holds. A thread that ended is counted off in its last step.
fn wait_for(what: &str, count: u64) {
    let begin = Instant::now();
    while held(what) != count {
        assert!(begin.elapsed() < PATIENCE, "{what}: {}", held(what));
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn nonblocking_pair() -> (UnixStream, OwnedFd) {
    let (own, of_vm) = UnixStream::pair().unwrap();
    of_vm.set_nonblocking(true).unwrap();
    (own, of_vm.into())
}

/// A terminal in raw mode: the VM's end, and the path of the other.
fn terminal() -> (OwnedFd, CString) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let mut modes = tcgetattr(&master).unwrap();
    modes.make_raw();
    tcsetattr(&master, OptionalActions::Now, &modes).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap();
    fcntl_setfl(&master, fcntl_getfl(&master).unwrap() | OFlags::NONBLOCK).unwrap();
    (master, path)
}

fn open_terminal(path: &CString) -> OwnedFd {
    open(
        path,
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap()
}

/// Attaches, sees the guest's output, has it send something back, and detaches.
fn over_a_terminal(vm: &Vm) {
    let (master, path) = terminal();
    attach(vm, &[(master, Role::Both)]).unwrap();
    // Who closes it may open it again.
    for text in ["ONE", "TWO"] {
        let slave = open_terminal(&path);
        read_until(&slave, "xyz");
        rustix::io::write(&slave, text.as_bytes()).unwrap();
        let letters = |bytes: &[u8]| bytes.iter().filter(|b| b.is_ascii_uppercase()).count();
        let mut got = 0;
        while got < 3 {
            got += letters(&read_until(&slave, "a"));
        }
    }
    vm.detach("com3").unwrap();
}

fn over_a_file(vm: &Vm) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC;
    let file = open(&path, flags, Mode::from_raw_mode(0o600)).unwrap();
    attach(vm, &[(file, Role::Output)]).unwrap();
    let begin = Instant::now();
    while std::fs::metadata(&path).unwrap().len() < 500 {
        assert!(begin.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(1));
    }
    vm.detach("com3").unwrap();
    let sent = std::fs::read(&path).unwrap();
    assert_whole(&sent);
}

fn over_pipes(vm: &Vm) {
    let flags = PipeFlags::NONBLOCK | PipeFlags::CLOEXEC;
    let (output, to_output) = pipe_with(flags).unwrap();
    let (input, to_input) = pipe_with(flags).unwrap();
    attach(vm, &[(to_output, Role::Output), (input, Role::Input)]).unwrap();
    rustix::io::write(&to_input, b"Q").unwrap();
    read_until(&output, "Q");
    vm.detach("com3").unwrap();
    // The VM held the last writer.
    let mut rest = [0; 4096];
    while rustix::io::read(&output, &mut rest).unwrap() > 0 {}
}

fn over_a_socket(vm: &Vm) {
    let (mut own, of_vm) = nonblocking_pair();
    attach(vm, &[(of_vm, Role::Both)]).unwrap();
    own.write_all(b"Q").unwrap();
    let mut sent = read_until(&own, "Q");
    vm.detach("com3").unwrap();
    own.read_to_end(&mut sent).unwrap();
}

fn over_standard_streams(vm: &Vm, name: &str) {
    let mut child = v3(&format!("attach {name} serial --port 0x3e8 --stdio"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(b"Q").unwrap();
    let output = child.stdout.take().unwrap();
    read_until(&output, "Q");
    vm.detach("com3").unwrap();
    std::io::copy(&mut { output }, &mut std::io::sink()).unwrap();
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(said, "[com3 was detached]\n");
    assert_eq!(done.status.code(), Some(0));
}

#[test]
#[ignore = "needs v3vee.ko"]
fn a_serial_port_comes_and_goes_two_hundred_times() {
    let vm = Owned::launch("comes", TALK);
    let before = (vm.devices().unwrap(), held("objects"), held("threads"));
    for _ in 0..40 {
        over_a_terminal(&vm);
        over_a_file(&vm);
        over_pipes(&vm);
        over_a_socket(&vm);
        over_standard_streams(&vm, "comes");
    }
    assert_eq!(vm.info().unwrap().state, State::Running);
    assert_eq!(vm.devices().unwrap(), before.0);
    wait_for("files", 0);
    wait_for("threads", before.2);
    wait_for("objects", before.1);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn devices_are_attached_and_listed_in_every_state() {
    let vm = Owned::create("states", TALK);
    let ids = |vm: &Vm| -> Vec<String> {
        let all = vm.devices().unwrap().into_iter();
        all.filter(|device| device.removable)
            .map(|device| device.id)
            .collect()
    };
    let before = ids(&vm);
    let round = |vm: &Vm| {
        let (own, of_vm) = nonblocking_pair();
        assert_eq!(attach(vm, &[(of_vm, Role::Both)]).unwrap(), "com3");
        assert_eq!(ids(vm).len(), before.len() + 1);
        let listed = vm.devices().unwrap().pop().unwrap();
        assert_eq!(
            (listed.id.as_str(), listed.kind.as_str()),
            ("com3", "serial")
        );
        assert_eq!((listed.regions[0].at, listed.regions[0].bytes), (0x3e8, 8));
        vm.detach("com3").unwrap();
        assert_eq!(ids(vm), before);
        drop(own);
    };
    round(&vm);
    vm.launch().unwrap();
    round(&vm);
    vm.pause().unwrap();
    round(&vm);
    // One that is attached while the machine stands still works when it goes on.
    let (mut own, of_vm) = nonblocking_pair();
    attach(&vm, &[(of_vm, Role::Both)]).unwrap();
    vm.resume().unwrap();
    own.write_all(b"Q").unwrap();
    read_until(&own, "Q");
    vm.stop().unwrap();
    vm.detach("com3").unwrap();
    round(&vm);
    // A VM lets go of what it holds when it is freed.
    let (mut own, of_vm) = nonblocking_pair();
    attach(&vm, &[(of_vm, Role::Both)]).unwrap();
    assert_eq!(held("files"), 2);
    drop(vm);
    assert_eq!(own.read(&mut [0]).unwrap(), 0);
    assert_eq!(held("files"), 0);
}

/// Who has the file may take O_NONBLOCK away. That holds up nobody.
#[test]
#[ignore = "needs v3vee.ko"]
fn a_descriptor_that_begins_to_block_holds_up_nobody() {
    let vm = Owned::launch("blocks", TALK);
    let (master, path) = terminal();
    let slave = open_terminal(&path);
    let (own, socket) = nonblocking_pair();
    let (output, pipe) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
    for end in [master, socket, pipe] {
        let same = end.try_clone().unwrap();
        attach(&vm, &[(end, Role::Output)]).unwrap();
        fcntl_setfl(&same, OFlags::empty()).unwrap();
        // Nobody reads: it fills up.
        std::thread::sleep(Duration::from_millis(500));
        let begin = Instant::now();
        vm.pause().unwrap();
        vm.resume().unwrap();
        vm.detach("com3").unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
    drop((slave, own, output));
    assert_eq!(held("files"), 0);
}

/// What is sent to nobody ends no program: neither the VM's, nor that of who detaches.
#[test]
#[ignore = "needs v3vee.ko"]
fn a_far_end_that_went_away_is_no_harm() {
    let vm = Owned::launch("away", TALK);
    let (output, pipe) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
    attach(&vm, &[(pipe, Role::Output)]).unwrap();
    read_until(&output, "a");
    drop(output);
    std::thread::sleep(Duration::from_millis(300));
    let detached = v3("detach away com3").output().unwrap();
    assert_eq!(detached.status.code(), Some(0), "{detached:?}");
    let (own, socket) = nonblocking_pair();
    attach(&vm, &[(socket, Role::Both)]).unwrap();
    drop(own);
    std::thread::sleep(Duration::from_millis(300));
    vm.detach("com3").unwrap();
    assert_eq!(vm.info().unwrap().state, State::Running);
}

/// A request for a serial port with one descriptor.
struct Raw {
    attach: v3_attach,
    options: v3_serial_options,
    longer: [u8; 8],
    descriptors: [v3_descriptor; 17],
    message: [u8; 256],
}

impl Raw {
    fn new(fd: i32, role: u32) -> Self {
        let mut raw = Self {
            attach: v3_attach::zeroed(),
            options: v3_serial_options {
                size: 16,
                version: 1,
                port: 0x3e8,
                pad: 0,
            },
            longer: [0; 8],
            descriptors: [v3_descriptor::zeroed(); 17],
            message: [0; 256],
        };
        raw.descriptors[0] = v3_descriptor {
            fd,
            role,
            kind: V3_DESCRIPTOR_STREAM,
            pad: 0,
        };
        raw.attach.descriptor_count = 1;
        raw.attach.options_len = 16;
        put_text(&mut raw.attach.kind, b"serial");
        raw
    }
    /// The error, and what the module says of it.
    fn refused(mut self, vm: &Vm) -> (Errno, String) {
        let mut options = self.options.as_bytes().to_vec();
        options.extend(self.longer);
        let address = |at: *const u8| at.expose_provenance() as u64;
        self.attach.options = address(options.as_ptr());
        self.attach.descriptors = address(self.descriptors.as_ptr().cast());
        self.attach.message = address(self.message.as_ptr());
        self.attach.message_len = 256;
        let errno = call(vm, V3_VM_ATTACH, &mut self.attach).unwrap_err();
        let words = until_nul(&self.message).unwrap();
        (errno, String::from_utf8(words.to_vec()).unwrap())
    }
}

#[test]
#[ignore = "needs v3vee.ko"]
fn bad_devices_are_refused_each_with_its_reason() {
    let vm = Owned::create("refusing", SPIN);
    let before = (vm.devices().unwrap(), held("objects"), held("threads"));
    let null = open("/dev/null", OFlags::RDWR | OFlags::NONBLOCK, Mode::empty()).unwrap();
    let good = null.as_raw_fd();
    let changed = |change: &dyn Fn(&mut Raw)| {
        let mut raw = Raw::new(good, V3_ROLE_BOTH);
        change(&mut raw);
        raw.refused(&vm)
    };
    type Case<'a> = (&'a dyn Fn(&mut Raw), Errno, &'a str);
    let cases: &[Case<'_>] = &[
        (&|raw| raw.attach.flags = 1, Errno::INVAL, "must be zero"),
        (&|raw| raw.options.pad = 1, Errno::INVAL, "must be zero"),
        (
            &|raw| raw.descriptors[0].pad = 1,
            Errno::INVAL,
            "must be zero",
        ),
        (
            &|raw| put_text(&mut raw.attach.kind, b"floppy"),
            Errno::NOENT,
            "no such kind",
        ),
        (
            &|raw| put_text(&mut raw.attach.kind, b"test-dma"),
            Errno::INVAL,
            "no options",
        ),
        (
            &|raw| put_text(&mut raw.attach.id, b"a b"),
            Errno::INVAL,
            "1 to 31",
        ),
        (&|raw| raw.attach.id = [b'x'; 32], Errno::INVAL, "1 to 31"),
        (&|raw| raw.attach.options_len = 12, Errno::INVAL, "long"),
        (&|raw| raw.options.size = 24, Errno::INVAL, "long"),
        (&|raw| raw.options.version = 0, Errno::INVAL, "long"),
        (
            &|raw| raw.options.version = 2,
            Errno::OPNOTSUPP,
            "version 2",
        ),
        (
            &|raw| raw.attach.options_len = 1 << 20,
            Errno::TOOBIG,
            "newer",
        ),
        (
            &|raw| {
                (raw.attach.options_len, raw.options.size) = (24, 24);
                raw.longer[7] = 1;
            },
            Errno::TOOBIG,
            "newer",
        ),
        (&|raw| raw.options.port = 0x10000, Errno::INVAL, "0x10000"),
        (&|raw| raw.options.port = 0x3e9, Errno::INVAL, "0x3e9"),
        (&|raw| raw.options.port = 0x3f8, Errno::EXIST, "com1"),
        (&|raw| raw.attach.descriptor_count = 17, Errno::TOOBIG, "17"),
        (
            &|raw| raw.attach.descriptor_count = u32::MAX,
            Errno::TOOBIG,
            "16",
        ),
        (&|raw| raw.descriptors[0].fd = 1000, Errno::BADF, "1000"),
        (&|raw| raw.descriptors[0].fd = -1, Errno::BADF, "-1"),
        (&|raw| raw.descriptors[0].role = 0, Errno::INVAL, "role"),
        (&|raw| raw.descriptors[0].role = 4, Errno::INVAL, "role"),
        (&|raw| raw.descriptors[0].kind = 2, Errno::INVAL, "role"),
        (
            &|raw| {
                raw.attach.descriptor_count = 2;
                raw.descriptors[1] = raw.descriptors[0];
            },
            Errno::INVAL,
            "one input",
        ),
    ];
    for (change, errno, words) in cases {
        let (got, said) = changed(change);
        assert_eq!(
            (got, said.contains(words)),
            (*errno, true),
            "{words}: {said}"
        );
    }
    assert_eq!(vm.devices().unwrap(), before.0);
    assert_eq!(
        (held("files"), held("objects"), held("threads")),
        (0, before.1, before.2)
    );
}

#[test]
#[ignore = "needs v3vee.ko"]
fn bad_descriptors_are_refused_each_with_its_reason() {
    let vm = Owned::create("descriptors", SPIN);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "text").unwrap();
    let (_own, blocking) = UnixStream::pair().unwrap();
    let flags = OFlags::RDWR | OFlags::NONBLOCK;
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let open = |path: &std::path::Path, flags| open(path, flags, Mode::empty()).unwrap();
    let stream = vm.stream("com1").unwrap();
    let cases: &[(OwnedFd, u32, &str)] = &[
        (
            open("/dev/v3vee".as_ref(), flags),
            V3_ROLE_BOTH,
            "node of v3vee",
        ),
        (vm.node(), V3_ROLE_BOTH, "node of v3vee"),
        (
            stream.as_fd().try_clone_to_owned().unwrap(),
            V3_ROLE_BOTH,
            "node of v3vee",
        ),
        (
            open(dir.path(), OFlags::RDONLY),
            V3_ROLE_INPUT,
            "is no file",
        ),
        (event, V3_ROLE_BOTH, "is no file"),
        (
            open(&file, OFlags::RDONLY),
            V3_ROLE_OUTPUT,
            "not opened for writing",
        ),
        (
            open(&file, OFlags::WRONLY),
            V3_ROLE_INPUT,
            "not opened for reading",
        ),
        (
            open(&file, OFlags::RDONLY),
            V3_ROLE_BOTH,
            "not opened for writing",
        ),
        (blocking.into(), V3_ROLE_BOTH, "O_NONBLOCK"),
    ];
    for (fd, role, words) in cases {
        let (errno, said) = Raw::new(fd.as_raw_fd(), *role).refused(&vm);
        assert_eq!(
            (errno, said.contains(words)),
            (Errno::INVAL, true),
            "{words}: {said}"
        );
    }
    let path = open(&file, OFlags::PATH);
    let (errno, _) = Raw::new(path.as_raw_fd(), V3_ROLE_INPUT).refused(&vm);
    assert_eq!(errno, Errno::BADF);
    assert_eq!(held("files"), 0);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn bad_calls_about_devices_are_refused() {
    let vm = Owned::create("calls", HALT);
    let fd = vm.node();
    for at in [16, usize::MAX, 1 << 63] {
        for number in [V3_VM_ATTACH, V3_VM_DETACH, V3_VM_DEVICES] {
            assert_eq!(call_at(&fd, number, at), Err(Errno::FAULT));
        }
        let mut devices = v3_devices {
            entries: at as u64,
            count: 1,
            pad: 0,
        };
        assert_eq!(call(&fd, V3_VM_DEVICES, &mut devices), Err(Errno::FAULT));
        for change in [
            (|arg, at| arg.options = at) as fn(&mut v3_attach, u64),
            |arg, at| arg.descriptors = at,
            |arg, at| (arg.message, arg.flags) = (at, 1),
        ] {
            let mut arg = v3_attach::zeroed();
            put_text(&mut arg.kind, b"serial");
            (arg.options_len, arg.descriptor_count, arg.message_len) = (16, 1, 16);
            let (mut options, descriptor) = ([16u32, 1, 0, 0], v3_descriptor::zeroed());
            arg.options = options.as_mut_ptr().expose_provenance() as u64;
            arg.descriptors = (&raw const descriptor).expose_provenance() as u64;
            change(&mut arg, at as u64);
            assert_eq!(call(&fd, V3_VM_ATTACH, &mut arg), Err(Errno::FAULT));
        }
    }
    let devices = &mut v3_devices {
        pad: 1,
        ..v3_devices::zeroed()
    };
    assert_eq!(call(&fd, V3_VM_DEVICES, devices), Err(Errno::INVAL));
    let detach = |id: &[u8]| {
        let mut arg = v3_detach::zeroed();
        put_text(&mut arg.id, id);
        call(&fd, V3_VM_DETACH, &mut arg)
    };
    assert_eq!(detach(b""), Err(Errno::INVAL));
    assert_eq!(detach(b"a/b"), Err(Errno::INVAL));
    assert_eq!(detach(b"nothing"), Err(Errno::NOENT));
    assert_eq!(detach(b"rtc"), Err(Errno::PERM));
    let endless = &mut v3_detach { id: [b'x'; 32] };
    assert_eq!(call(&fd, V3_VM_DETACH, endless), Err(Errno::INVAL));
    // One that is given an id has it once, and goes once.
    let (_own, of_vm) = nonblocking_pair();
    let (_other, again) = nonblocking_pair();
    attach(&vm, &[(of_vm, Role::Both)]).unwrap();
    let wanted = Request {
        kind: "serial",
        id: Some("com3"),
        port: None,
        slot: None,
        disk: None,
        descriptors: &[(again, Role::Both)],
    };
    match vm.attach(&wanted) {
        Err(Error::NotAttached { errno, message, .. }) => {
            assert_eq!(
                (errno, message.as_str()),
                (Errno::EXIST, "there is a device com3 already")
            );
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(detach(b"com3"), Ok(()));
    assert_eq!(detach(b"com3"), Err(Errno::NOENT));
    // All places, and one more.
    let mut ends = Vec::new();
    for place in ["com2", "com3", "com4"] {
        let (own, of_vm) = nonblocking_pair();
        ends.push(own);
        let wanted = Request {
            id: None,
            descriptors: &[(of_vm, Role::Both)],
            ..wanted
        };
        assert_eq!(vm.attach(&wanted).unwrap(), place);
    }
    match vm.attach(&Request { id: None, ..wanted }) {
        Err(Error::NotAttached { errno, .. }) => assert_eq!(errno, Errno::NOSPC),
        other => panic!("{other:?}"),
    }
    drop(vm);
    assert_eq!(held("files"), 0);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn v3_attaches_and_says_what_is_wrong() {
    let vm = Owned::create("attached", SPIN);
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let log = log.to_str().unwrap();
    let told = |line: &str, code: i32, out: &str, err: &str| {
        let got = ran(line);
        assert_eq!(got, (code, out.into(), err.into()), "{line}");
    };
    let serial = format!("attach attached serial --file {log}");
    // A file that was not there is not left behind.
    told(
        &format!("{serial} --port 0x3f8"),
        125,
        "",
        "v3: cannot attach a device to attached: there is a device com1 already\n\
         hint: `v3 devices attached` shows what is there; `v3 detach attached ID` takes one away\n",
    );
    assert!(!std::path::Path::new(log).exists());
    told(&format!("{serial} --port 0x3e8"), 0, "com3\n", "");
    told("detach attached com3", 0, "", "");
    told(
        "detach attached com3",
        125,
        "",
        "v3: attached has no device `com3`; those that can be detached are com1\n\
         hint: `v3 devices attached` shows which can be detached\n",
    );
    told(
        "detach attached rtc",
        125,
        "",
        "v3: cannot detach rtc of attached: it stays with the machine\n\
         hint: `v3 devices attached` shows which can be detached\n",
    );
    let (code, out, _) = ran(&format!("{serial} --id mine --json"));
    assert_eq!(
        (code, out.as_str()),
        (0, "{\"id\":\"mine\",\"terminal\":null}\n")
    );
    let (code, out, _) = ran("devices attached");
    assert_eq!(code, 0);
    assert!(
        out.ends_with("\nmine         serial       yes        ports 0x2f8-0x2ff\n"),
        "{out}"
    );
    drop(vm);
}

/// For tests/bed/attach.sh, whose tools have no Unix sockets: listens at the path in `V3_LISTEN`, hears a line, answers, and stays until the
/// other end goes.
#[test]
#[ignore = "needs v3vee.ko"]
fn a_listener_hears_and_answers() {
    let Some(path) = std::env::var_os("V3_LISTEN") else {
        return;
    };
    let listener = UnixListener::bind(path).unwrap();
    let mut socket = BufReader::new(listener.accept().unwrap().0);
    let mut line = String::new();
    socket.read_line(&mut line).unwrap();
    println!("heard {line}");
    socket.get_mut().write_all(b"answer socket\n").unwrap();
    socket.read_to_end(&mut Vec::new()).unwrap();
}
