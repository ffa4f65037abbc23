// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `v3vee.h` promises, asked of a loaded module. Ignored elsewhere: the test bed runs them with `--include-ignored`.
//!
//! Each test names its VMs after itself, so that they can run side by side.

#[path = "module/debug.rs"]
mod debug;
#[path = "module/devices.rs"]
mod devices;
#[path = "module/disks.rs"]
mod disks;
#[path = "module/saved.rs"]
mod saved;

use rustix::event::{poll, PollFd, PollFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{fcntl_setfl, open, Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::pty::{grantpt, openpt, ptsname, unlockpt, OpenptFlags};
use std::ffi::c_void;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;
use v3_abi::*;
use v3_ctl::{node_of, Call as Asked, Control, Error, Guest, Reason, State, Vm};

/// `mov eax, 42; mov dx, 0xf4; out dx, eax; 1: hlt; jmp 1b`: ends with status 85.
const EXIT: &[u8] = b"\xb8\x2a\0\0\0\x66\xba\xf4\0\xef\xf4\xeb\xfd";
/// `cli; 1: jmp 1b`.
const SPIN: &[u8] = b"\xfa\xeb\xfe";
/// `cli; 1: hlt; jmp 1b`.
const HALT: &[u8] = b"\xfa\xf4\xeb\xfd";
/// `lidt [0x100028]; int3`, then six zeroes at 0x100028: an empty IDT.
const TRIPLE_FAULT: &[u8] = b"\x0f\x01\x1d\x28\0\x10\0\xcc\0\0\0\0\0\0";
/// Sends back what it receives at com1; a `q` ends it with status 7.
const ECHO: &[u8] = b"\x66\xba\xfd\x03\xec\xa8\x01\x74\xf7\x66\xba\xf8\x03\xec\xee\x3c\x71\x75\xed\
    \xb8\x03\0\0\0\x66\xba\xf4\0\xef\xf4\xeb\xfd";
/// Sends two lines at com1, one ended by `\n` and one by `\r\n`, and spins.
const TWO_LINES: &[u8] =
    b"\x66\xba\xf8\x03\xb0\x31\xee\xb0\x0a\xee\xb0\x32\xee\xb0\x0d\xee\xb0\x0a\xee\xfa\xeb\xfe";
/// RAM of every guest here.
const MEMORY: u64 = 16 << 20;

/// An image of a Multiboot kernel that is loaded at 1 MiB, behind whose header the code stands.
fn image(code: &[u8]) -> Vec<u8> {
    let (magic, flags, load) = (0x1bad_b002u32, 1 << 16, 0x10_0000);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let header = [magic, flags, checksum, load, load, 0, 0, load + 32];
    let mut kernel: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    kernel.extend(code);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), kernel).unwrap();
    let guest = Guest {
        memory_bytes: MEMORY,
        ..Guest::new(file.path().into())
    };
    guest.build(&mut |_, _| {}).unwrap()
}

/// A VM that ends with its test.
struct Owned(Vm);

impl Owned {
    fn create(name: &str, code: &[u8]) -> Self {
        Self(Control::open().unwrap().create(&image(code), name).unwrap())
    }
    fn launch(name: &str, code: &[u8]) -> Self {
        let vm = Self::create(name, code);
        vm.launch().unwrap();
        vm
    }
    fn node(&self) -> OwnedFd {
        node(&node_of(self.number()))
    }
    fn end(&self) -> (Reason, u32) {
        let end = self
            .wait(Some(Duration::from_secs(600)))
            .unwrap()
            .expect("it ends by itself");
        (end.reason, end.exit_status)
    }
}

impl std::ops::Deref for Owned {
    type Target = Vm;
    fn deref(&self) -> &Vm {
        &self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.stop();
        let _ = Control::open().unwrap().free(self.0.number());
    }
}

fn node(path: &str) -> OwnedFd {
    open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// A call with any number and any argument.
struct Call(u32, *mut c_void);

// SAFETY: The calls that tests make with this write to their argument at most what `v3vee.h` says.
unsafe impl Ioctl for Call {
    type Output = ();
    const IS_MUTATING: bool = true;
    fn opcode(&self) -> Opcode {
        self.0 as Opcode
    }
    fn as_ptr(&mut self) -> *mut c_void {
        self.1
    }
    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

fn call<T: Abi>(fd: impl AsFd, number: u32, arg: &mut T) -> Result<(), Errno> {
    // SAFETY: The argument is as long as the number says, or the number is refused.
    unsafe { rustix::ioctl::ioctl(fd, Call(number, std::ptr::from_mut(arg).cast())) }
}

fn call_at(fd: impl AsFd, number: u32, address: usize) -> Result<(), Errno> {
    // SAFETY: Nothing is mapped there.
    unsafe { rustix::ioctl::ioctl(fd, Call(number, address as *mut c_void)) }
}

/// The number of the error, whatever call it was.
fn errno<T: std::fmt::Debug>(result: Result<T, Error>) -> Errno {
    match result.unwrap_err() {
        Error::Call { errno, .. } | Error::Open { errno, .. } | Error::Refused { errno, .. } => {
            errno
        }
        Error::WrongState {
            call: Asked::Free, ..
        } => Errno::BUSY,
        Error::WrongState { .. } => Errno::BADFD,
        Error::NoSuchStream { .. } => Errno::NOENT,
        error => panic!("{error:?}"),
    }
}

#[test]
#[ignore = "needs v3vee.ko"]
fn says_what_it_is() {
    let version = Control::open().unwrap().version().unwrap();
    assert_eq!(version.abi, V3_ABI);
    assert!(version.max_vms >= 2 && version.max_vcpus >= 1);
    assert!(["svm", "vmx"].contains(&version.backend.as_str()));
    assert!(!version.module.is_empty());
    let names = version.feature_names();
    assert!(names.contains(&"nested-paging") && names.contains(&"tlb-tags"));
    // Every VT-x has it; of SVM those of a certain age.
    assert!(names.contains(&"next-rip") || version.backend == "svm");
}

#[test]
#[ignore = "needs v3vee.ko"]
fn a_life_in_order() {
    let vm = Owned::create("life", SPIN);
    let info = vm.info().unwrap();
    assert_eq!(
        (info.state, info.reason, info.name.as_str()),
        (State::Created, Reason::None, "life")
    );
    assert_eq!((info.vcpus, info.memory_bytes), (1, MEMORY));
    assert_eq!(errno(vm.pause()), Errno::BADFD);
    assert_eq!(errno(vm.resume()), Errno::BADFD);
    assert_eq!(vm.wait(Some(Duration::ZERO)), Ok(None));
    vm.launch().unwrap();
    assert_eq!(vm.info().unwrap().state, State::Running);
    assert_eq!(errno(vm.launch()), Errno::BADFD);
    for _ in 0..2 {
        vm.pause().unwrap();
        assert_eq!(vm.info().unwrap().state, State::Paused);
    }
    for _ in 0..2 {
        vm.resume().unwrap();
        assert_eq!(vm.info().unwrap().state, State::Running);
    }
    assert_eq!(vm.wait(Some(Duration::from_millis(20))), Ok(None));
    for _ in 0..2 {
        vm.stop().unwrap();
        assert_eq!(vm.end(), (Reason::Request, 0));
    }
    let info = vm.info().unwrap();
    assert_eq!((info.state, info.reason), (State::Stopped, Reason::Request));
    assert_eq!(errno(vm.launch()), Errno::BADFD);
    assert_eq!(errno(vm.pause()), Errno::BADFD);
    assert_eq!(errno(vm.resume()), Errno::BADFD);
    assert_eq!(errno(vm.relocate(0, 4096)), Errno::BADFD);
    assert_eq!(errno(vm.move_vcpu(0, Some(0))), Errno::BADFD);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn a_paused_vm_makes_no_progress() {
    let vm = Owned::launch("paused", SPIN);
    vm.pause().unwrap();
    // Only the time in which it stands still goes on being counted.
    let stats = || {
        let stats = vm.stats().unwrap().into_iter();
        let others =
            stats.filter(|s| !["idle_ns", "waiting_ns", "read_at_ns"].contains(&s.name.as_str()));
        others.collect::<Vec<_>>()
    };
    // It stands, but its thread may not have gone to sleep yet.
    let idle_ns = || {
        let stats = vm.stats().unwrap();
        stats.iter().find(|s| s.name == "idle_ns").unwrap().value
    };
    let idle_before_ns = idle_ns();
    while idle_ns() == idle_before_ns {
        std::thread::sleep(Duration::from_millis(1));
    }
    let before = stats();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(stats(), before);
    vm.resume().unwrap();
    let entries =
        |stats: &[v3_ctl::Stat]| stats.iter().find(|s| s.name == "entries").unwrap().value;
    while entries(&vm.stats().unwrap()) == entries(&before) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
#[ignore = "needs v3vee.ko"]
fn a_vm_can_stop_before_it_was_launched() {
    let vm = Owned::create("unborn", SPIN);
    vm.stop().unwrap();
    assert_eq!(vm.end().0, Reason::Request);
    assert_eq!(errno(vm.launch()), Errno::BADFD);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn a_guest_that_halts_for_good_is_dead_and_can_be_stopped() {
    let alive = Owned::launch("alive", SPIN);
    let vm = Owned::launch("dead", HALT);
    // When it has got there nothing tells.
    while !vm.info().unwrap().dead {
        std::thread::yield_now();
    }
    let info = vm.info().unwrap();
    assert_eq!((info.state, info.reason), (State::Running, Reason::None));
    assert!(info.message.starts_with("dead: "), "{}", info.message);
    assert!(!alive.info().unwrap().dead);
    vm.stop().unwrap();
    assert_eq!(vm.end().0, Reason::Request);
    assert!(!vm.info().unwrap().dead);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn the_guest_decides_how_it_ends() {
    let exit = Owned::launch("exit", EXIT);
    assert_eq!(exit.end(), (Reason::TestExit, 85));
    assert_eq!(exit.info().unwrap().exit_status, Some(85));
    let fault = Owned::launch("fault", TRIPLE_FAULT);
    assert_eq!(fault.end(), (Reason::TripleFault, 0));
    let info = fault.info().unwrap();
    assert!(!info.message.is_empty());
    // It keeps its reason.
    fault.stop().unwrap();
    assert_eq!(fault.info(), Ok(info));
}

#[test]
#[ignore = "needs v3vee.ko"]
fn descriptors_of_a_freed_vm_answer_enodev() {
    let control = Control::open().unwrap();
    let vm = control.create(&image(ECHO), "freed").unwrap();
    let fd = node(&node_of(vm.number()));
    let mut stream = vm.stream("").unwrap();
    vm.launch().unwrap();
    assert_eq!(errno(control.free(vm.number())), Errno::BUSY);
    vm.pause().unwrap();
    assert_eq!(errno(control.free(vm.number())), Errno::BUSY);
    vm.stop().unwrap();
    control.free(vm.number()).unwrap();
    for result in [
        vm.launch(),
        vm.stop(),
        vm.pause(),
        vm.resume(),
        vm.relocate(0, 4096),
        vm.move_vcpu(0, None),
    ] {
        assert_eq!(errno(result), Errno::NODEV);
    }
    assert_eq!(errno(vm.info()), Errno::NODEV);
    assert_eq!(errno(vm.stats()), Errno::NODEV);
    assert_eq!(errno(vm.streams()), Errno::NODEV);
    assert_eq!(errno(vm.pin(0)), Errno::NODEV);
    assert_eq!(errno(vm.wait(None)), Errno::NODEV);
    assert_eq!(
        call(&fd, V3_VM_STREAM, &mut v3_stream::zeroed()),
        Err(Errno::NODEV)
    );
    assert!(stream.write(b"x").is_err());
    let gone = v3_free {
        vm: vm.number(),
        pad: 0,
    };
    assert_eq!(
        call(node("/dev/v3vee"), V3_FREE, &mut { gone }),
        Err(Errno::NOENT)
    );
}

#[test]
#[ignore = "needs v3vee.ko"]
fn a_wait_ends_when_the_vm_is_freed_or_stopped_by_another() {
    let vm = Owned::launch("waited", SPIN);
    let number = vm.number();
    let waiter = std::thread::spawn(move || Vm::open(number).unwrap().wait(None));
    std::thread::sleep(Duration::from_millis(50));
    vm.stop().unwrap();
    assert_eq!(
        waiter.join().unwrap().unwrap().unwrap().reason,
        Reason::Request
    );
}

#[test]
#[ignore = "needs v3vee.ko"]
fn bytes_go_both_ways() {
    let vm = Owned::create("bytes", ECHO);
    let mut stream = vm.stream("com1").unwrap();
    assert_eq!(errno(vm.stream("com1")), Errno::BUSY);
    assert_eq!(errno(vm.stream("")), Errno::BUSY);
    assert_eq!(errno(vm.stream("com2")), Errno::NOENT);
    vm.launch().unwrap();
    let sent: Vec<u8> = (0..2000u32).map(|i| b'A' + (i % 26) as u8).collect();
    let mut got = vec![0; sent.len()];
    for (to, from) in got.chunks_mut(100).zip(sent.chunks(100)) {
        stream.write_all(from).unwrap();
        stream.read_exact(to).unwrap();
    }
    assert_eq!(got, sent);
    drop(stream);
    // What comes while nobody is attached is kept.
    vm.stream("com1").unwrap().write_all(b"xyq").unwrap();
    assert_eq!(vm.end(), (Reason::TestExit, 7));
    let mut stream = vm.stream("").unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"xyq");
    let error = stream.write(b"x").unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::PIPE));
}

#[test]
#[ignore = "needs v3vee.ko"]
fn a_stream_can_be_polled_and_need_not_block() {
    let vm = Owned::launch("polled", ECHO);
    let mut stream = vm.stream("").unwrap();
    let ready = |stream: &v3_ctl::Stream, wanted: PollFlags| {
        let mut fds = [PollFd::new(stream, wanted)];
        poll(&mut fds, None).unwrap();
        fds[0].revents()
    };
    assert_eq!(
        ready(&stream, PollFlags::IN | PollFlags::OUT),
        PollFlags::OUT
    );
    fcntl_setfl(&stream, OFlags::NONBLOCK).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::AGAIN));
    assert_eq!(stream.write(b"a").unwrap(), 1);
    assert_eq!(ready(&stream, PollFlags::IN), PollFlags::IN);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 1);
    vm.pause().unwrap();
    // A guest that stands still takes a bounded amount.
    let mut taken = 0;
    while let Ok(len) = stream.write(&[b'z'; 1000]) {
        taken += len;
        assert!(taken < 1 << 20);
    }
    vm.stop().unwrap();
    assert!(ready(&stream, PollFlags::IN).contains(PollFlags::HUP));
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn a_stream_takes_no_calls() {
    let vm = Owned::create("nocalls", SPIN);
    let fd = vm.node();
    assert_eq!(rustix::io::read(&fd, &mut [0u8; 8]), Err(Errno::INVAL));
    call(&fd, V3_VM_STREAM, &mut v3_stream::zeroed()).unwrap();
    assert_eq!(
        call(&fd, V3_VM_STREAM, &mut v3_stream::zeroed()),
        Err(Errno::NOTTY)
    );
    assert_eq!(
        call(&fd, V3_VM_INFO, &mut v3_info::zeroed()),
        Err(Errno::NOTTY)
    );
    let endless = &mut v3_stream { name: [b'x'; 32] };
    assert_eq!(call(vm.node(), V3_VM_STREAM, endless), Err(Errno::INVAL));
}

#[test]
#[ignore = "needs v3vee.ko"]
fn counters_count_exactly() {
    let vm = Owned::launch("counted", EXIT);
    vm.end();
    let stats = vm.stats().unwrap();
    let value = |name: &str| {
        stats
            .iter()
            .find(|s| s.vcpu == Some(0) && s.name == name)
            .unwrap()
            .value
    };
    assert_eq!(
        (
            value("exit_port_out"),
            value("exit_port_in"),
            value("exit_cpuid")
        ),
        (1, 0, 0)
    );
    let mut arg = v3_stats::zeroed();
    call(vm.node(), V3_VM_STATS, &mut arg).unwrap();
    assert_eq!(arg.count as usize, stats.len());
    let mut two = [v3_stat::zeroed(); 3];
    let mut arg = v3_stats {
        entries: two.as_mut_ptr().expose_provenance() as u64,
        count: 2,
        pad: 0,
    };
    call(vm.node(), V3_VM_STATS, &mut arg).unwrap();
    assert_eq!(arg.count as usize, stats.len());
    assert_eq!(two[1].value, stats[1].value);
    assert!(two[1].name[0] != 0 && two[2].name[0] == 0);
}

/// The host's CPUs that are online.
fn online() -> Vec<u32> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    let ends = |range: &str| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        [from, to].map(|end| end.trim().parse::<u32>().unwrap())
    };
    let ranges = list.split(',').map(ends);
    ranges.flat_map(|[from, to]| from..=to).collect()
}

#[test]
#[ignore = "needs v3vee.ko"]
fn virtual_cpus_are_moved() {
    let vm = Owned::create("wanderer", SPIN);
    let counter = |name| {
        let stats = vm.stats().unwrap();
        stats.iter().find(|s| s.name == name).unwrap().value
    };
    assert_eq!(vm.pin(0), Ok(None));
    let cpus = online();
    vm.move_vcpu(0, cpus.last().copied()).unwrap();
    assert_eq!(vm.pin(0), Ok(cpus.last().copied()));
    let wait_for = |name, least| {
        while counter(name) < least {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    vm.launch().unwrap();
    wait_for("entries", 1);
    let mut changes = 0;
    for cpu in cpus.iter().cycle().take(2 * cpus.len()) {
        vm.move_vcpu(0, Some(*cpu)).unwrap();
        assert_eq!(vm.pin(0), Ok(Some(*cpu)));
        changes += u64::from(cpus.len() > 1);
        wait_for("cpu_changes", changes);
    }
    assert_eq!(counter("cpu_changes"), changes);
    for nowhere in [cpus.last().unwrap() + 1, 1 << 20, V3_CPU_ANY - 1] {
        assert_eq!(errno(vm.move_vcpu(0, Some(nowhere))), Errno::NXIO);
        assert_eq!(vm.pin(0), Ok(cpus.last().copied()), "stays where it was");
    }
    for nobody in [1, u32::MAX] {
        assert_eq!(errno(vm.move_vcpu(nobody, Some(0))), Errno::NOENT);
        assert_eq!(errno(vm.pin(nobody)), Errno::NOENT);
    }
    vm.pause().unwrap();
    vm.move_vcpu(0, None).unwrap();
    assert_eq!(vm.pin(0), Ok(None));
}

#[test]
#[ignore = "needs v3vee.ko"]
fn memory_is_exchanged_under_a_running_guest() {
    let vm = Owned::launch("moved", ECHO);
    let mut stream = vm.stream("").unwrap();
    for byte in b'a'..=b'h' {
        vm.relocate(0, MEMORY).unwrap();
        stream.write_all(&[byte]).unwrap();
        let mut got = [0];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, [byte]);
    }
    assert_eq!(errno(vm.relocate(1, 4096)), Errno::INVAL);
    assert_eq!(errno(vm.relocate(0, 4095)), Errno::INVAL);
    assert_eq!(errno(vm.relocate(0, 0)), Errno::INVAL);
    for (gpa, len) in [
        (0, MEMORY + 4096),
        (MEMORY, 4096),
        (!0xfff, 4096),
        (4096, !0xfff),
    ] {
        assert_eq!(
            errno(vm.relocate(gpa, len)),
            Errno::RANGE,
            "{gpa:#x} {len:#x}"
        );
    }
}

#[test]
#[ignore = "needs v3vee.ko"]
fn the_list_tells_how_many_there_are() {
    let (first, second) = (
        Owned::create("listed-1", SPIN),
        Owned::create("listed-2", SPIN),
    );
    let control = Control::open().unwrap();
    let all = control.list().unwrap();
    assert!(all.windows(2).all(|w| w[0].vm < w[1].vm));
    assert!(all.contains(&first.info().unwrap()) && all.contains(&second.info().unwrap()));
    assert_eq!(control.find("listed-2").unwrap(), second.number());
    let fd = node("/dev/v3vee");
    let mut arg = v3_list::zeroed();
    call(&fd, V3_LIST, &mut arg).unwrap();
    assert!(arg.count >= 2);
    let mut entries = [v3_info::zeroed(); 2];
    let mut arg = v3_list {
        entries: entries.as_mut_ptr().expose_provenance() as u64,
        count: 1,
        pad: 0,
    };
    call(&fd, V3_LIST, &mut arg).unwrap();
    assert!(arg.count >= 2 && entries[0].vcpus == 1 && entries[1].vcpus == 0);
}

/// A request to create; its pointers are good as long as the arguments are.
fn request(image: &[u8], name: &[u8], message: &mut [u8]) -> v3_create {
    let mut arg = v3_create {
        image: image.as_ptr().expose_provenance() as u64,
        image_len: image.len() as u64,
        message: message.as_mut_ptr().expose_provenance() as u64,
        message_len: message.len() as u32,
        ..v3_create::zeroed()
    };
    put_text(&mut arg.name, name);
    arg
}

#[test]
#[ignore = "needs v3vee.ko"]
fn bad_images_are_refused_each_with_its_reason() {
    let control = Control::open().unwrap();
    let good = image(SPIN);
    let spoil = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        bad
    };
    let random: Vec<u8> = (0..5000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let cases = [
        ("empty", Vec::new()),
        ("random", random),
        ("truncated", good[..good.len() - 1].to_vec()),
        ("newer", spoil(8, 2)),
        ("header", spoil(0x20, 1)),
        ("blob", spoil(good.len() - 1, 0xff)),
    ];
    let mut messages = std::collections::BTreeSet::new();
    for (what, bad) in &cases {
        match control.create(bad, &format!("bad-{what}")).unwrap_err() {
            Error::Refused {
                errno: Errno::NOEXEC,
                message,
            } => assert!(messages.insert(message)),
            error => panic!("{what}: {error:?}"),
        }
    }
    assert!(control
        .list()
        .unwrap()
        .iter()
        .all(|vm| !vm.name.starts_with("bad-")));
}

#[test]
#[ignore = "needs v3vee.ko"]
fn bad_requests_are_refused() {
    let vm = Owned::create("taken", SPIN);
    let good = image(SPIN);
    let control = Control::open().unwrap();
    assert_eq!(
        errno(control.create(&good, "taken").map(|_| ())),
        Errno::EXIST
    );
    let fd = node("/dev/v3vee");
    let mut message = [0xff; 8];
    let mut short = request(&good, b"taken", &mut message);
    assert_eq!(call(&fd, V3_CREATE, &mut short), Err(Errno::EXIST));
    assert!(message[..7].iter().all(u8::is_ascii) && message[7] == 0);
    for name in [&b""[..], b"7", b"a b", b"a/b", b"\xff"] {
        let mut arg = request(&good, name, &mut []);
        assert_eq!(
            call(&fd, V3_CREATE, &mut arg),
            Err(Errno::INVAL),
            "{name:?}"
        );
    }
    let mut arg = request(&good, b"", &mut []);
    arg.name = [b'x'; 64];
    assert_eq!(call(&fd, V3_CREATE, &mut arg), Err(Errno::INVAL));
    let refused = |change: fn(&mut v3_create)| {
        let mut arg = request(&good, b"refused", &mut []);
        change(&mut arg);
        call(&fd, V3_CREATE, &mut arg).unwrap_err()
    };
    assert_eq!(refused(|arg| arg.flags = 1), Errno::INVAL);
    assert_eq!(refused(|arg| arg.pad = 1), Errno::INVAL);
    assert_eq!(refused(|arg| arg.image = 16), Errno::FAULT);
    assert_eq!(refused(|arg| arg.image = u64::MAX), Errno::FAULT);
    assert_eq!(refused(|arg| arg.image_len = u64::MAX), Errno::TOOBIG);
    assert_eq!(vm.info().unwrap().name, "taken");
    assert_eq!(
        control.find("refused"),
        Err(Error::NoSuchVm("refused".into()))
    );
}

#[test]
#[ignore = "needs v3vee.ko"]
fn padding_must_be_zero() {
    let vm = Owned::create("padding", SPIN);
    let control = node("/dev/v3vee");
    let list = &mut v3_list {
        pad: 1,
        ..v3_list::zeroed()
    };
    assert_eq!(call(&control, V3_LIST, list), Err(Errno::INVAL));
    let free = &mut v3_free {
        vm: vm.number(),
        pad: 1,
    };
    assert_eq!(call(&control, V3_FREE, free), Err(Errno::INVAL));
    let wait = &mut v3_wait {
        pad: 1,
        ..v3_wait::zeroed()
    };
    assert_eq!(call(vm.node(), V3_VM_WAIT, wait), Err(Errno::INVAL));
    let stats = &mut v3_stats {
        pad: 1,
        ..v3_stats::zeroed()
    };
    assert_eq!(call(vm.node(), V3_VM_STATS, stats), Err(Errno::INVAL));
    let streams = &mut v3_streams {
        pad: 1,
        ..v3_streams::zeroed()
    };
    assert_eq!(call(vm.node(), V3_VM_STREAMS, streams), Err(Errno::INVAL));
}

#[test]
#[ignore = "needs v3vee.ko"]
fn unknown_calls_and_other_sizes_are_enotty() {
    let vm = Owned::create("unknown", SPIN);
    let (control, node) = (node("/dev/v3vee"), vm.node());
    let mut room = [v3_info::zeroed(); 64];
    for number in 0..=0xff {
        for size in [0, 8, 24, 104, 352] {
            for direction in 0..4u32 {
                let number = direction << 30 | size << 16 | u32::from(b'V') << 8 | number;
                let known = [V3_VERSION, V3_CREATE, V3_LIST, V3_FREE];
                if !known.contains(&number) {
                    assert_eq!(
                        call(&control, number, &mut room[0]),
                        Err(Errno::NOTTY),
                        "{number:#x}"
                    );
                }
                if !(0x20..=V3_VM_LOAD & 0xff).contains(&(number & 0xff)) {
                    assert_eq!(
                        call(&node, number, &mut room[0]),
                        Err(Errno::NOTTY),
                        "{number:#x}"
                    );
                }
            }
        }
    }
    assert_eq!(call(&control, V3_VM_STOP, &mut room[0]), Err(Errno::NOTTY));
    assert_eq!(call(&node, V3_LIST, &mut room[0]), Err(Errno::NOTTY));
    assert_eq!(vm.info().unwrap().state, State::Created);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn bad_pointers_are_efault() {
    let vm = Owned::create("pointers", SPIN);
    let (control, node) = (node("/dev/v3vee"), vm.node());
    for at in [16, usize::MAX, 1 << 63, 0x7fff_ffff_f000] {
        for number in [V3_VERSION, V3_CREATE, V3_LIST, V3_FREE] {
            assert_eq!(
                call_at(&control, number, at),
                Err(Errno::FAULT),
                "{number:#x} {at:#x}"
            );
        }
        for number in [
            V3_VM_WAIT,
            V3_VM_INFO,
            V3_VM_STATS,
            V3_VM_STREAM,
            V3_VM_RELOCATE,
            V3_VM_STREAMS,
            V3_VM_LOAD_RAM,
            V3_VM_LOAD,
        ] {
            assert_eq!(
                call_at(&node, number, at),
                Err(Errno::FAULT),
                "{number:#x} {at:#x}"
            );
        }
        let list = &mut v3_list {
            entries: at as u64,
            count: 1,
            pad: 0,
        };
        assert_eq!(call(&control, V3_LIST, list), Err(Errno::FAULT));
        let stats = &mut v3_stats {
            entries: at as u64,
            count: 1,
            pad: 0,
        };
        assert_eq!(call(&node, V3_VM_STATS, stats), Err(Errno::FAULT));
        let streams = &mut v3_streams {
            entries: at as u64,
            count: 1,
            pad: 0,
        };
        assert_eq!(call(&node, V3_VM_STREAMS, streams), Err(Errno::FAULT));
    }
    assert_eq!(vm.info().unwrap().state, State::Created);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn streams_have_names() {
    let vm = Owned::create("streams", SPIN);
    assert_eq!(vm.streams().unwrap(), ["com1", "debug"]);
    let mut two = [v3_stream::zeroed(); 2];
    let mut arg = v3_streams {
        entries: two.as_mut_ptr().expose_provenance() as u64,
        count: 1,
        pad: 0,
    };
    call(vm.node(), V3_VM_STREAMS, &mut arg).unwrap();
    assert_eq!(arg.count, 2);
    assert!(two[0].name.starts_with(b"com1\0") && two[1].name[0] == 0);
}

// From here on: the `v3` command.

/// `v3` as cargo built it, or the one that is installed.
fn v3(line: &str) -> Command {
    let built = env!("CARGO_BIN_EXE_v3");
    let exists = std::path::Path::new(built).exists();
    let mut command = Command::new(if exists { built } else { "v3" });
    command.args(line.split_whitespace()).stdin(Stdio::null());
    command
}

/// Status, standard output and standard error.
fn ran(line: &str) -> (i32, String, String) {
    let done = v3(line).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        done.status.code().unwrap(),
        text(&done.stdout),
        text(&done.stderr),
    )
}

/// A file with an image.
fn image_file(code: &[u8]) -> tempfile::TempPath {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image(code)).unwrap();
    file.into_temp_path()
}

#[test]
#[ignore = "needs v3vee.ko"]
fn v3_tells_vm_state_and_cure_for_every_command() {
    let vm = Owned::create("told", SPIN);
    let (debian, number) = ("told", vm.number());
    let refused = |line: &str, message: &str, cure: &str| {
        let (code, out, error) = ran(line);
        assert_eq!((code, out.as_str()), (125, ""), "{line}: {error}");
        let mut lines = error.lines();
        assert_eq!(lines.next().unwrap(), format!("v3: {message}"), "{line}");
        let hint = lines.next().unwrap();
        assert!(hint.starts_with("hint: ") && hint.contains(cure), "{hint}");
        assert_eq!(lines.next(), None);
    };
    let launch = "v3 launch told";
    refused(
        "pause told",
        "cannot pause told: it was never launched",
        launch,
    );
    refused(
        "continue told",
        "cannot continue told: it was never launched",
        launch,
    );
    refused(
        "wait told",
        "cannot wait for told: it was never launched",
        launch,
    );
    vm.launch().unwrap();
    refused(
        &format!("launch {number}"),
        "cannot launch told: it is running",
        "v3 console told",
    );
    refused(
        "free told",
        "cannot free told: it is running",
        "v3 free -f told",
    );
    vm.pause().unwrap();
    refused(
        "launch told",
        "cannot launch told: it is paused",
        "v3 continue told",
    );
    refused(
        &format!("free /dev/v3-vm{number}"),
        "cannot free told: it is paused",
        "v3 stop told",
    );
    vm.stop().unwrap();
    let again = "v3 free told";
    refused("launch told", "cannot launch told: it has stopped", again);
    refused("pause told", "cannot pause told: it has stopped", again);
    refused(
        "continue told",
        "cannot continue told: it has stopped",
        again,
    );
    refused(
        "relocate told 0 4K",
        "cannot relocate memory of told: it has stopped",
        again,
    );
    refused(
        "core-move told 0 any",
        "cannot move a virtual CPU of told: it has stopped",
        again,
    );
    // What is possible in any state.
    for line in ["stop told", "info told", "stats told", "console told"] {
        assert_eq!(ran(line).0, 0, "{line}");
    }
    assert_eq!(ran(&format!("wait {debian}")).0, 130);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn v3_lists_the_streams_that_there_are() {
    let vm = Owned::create("listed", SPIN);
    let (code, _, error) = ran("stream listed com9");
    let first = error.lines().next().unwrap();
    assert_eq!(
        (code, first),
        (
            125,
            "v3: listed has no stream `com9`; its streams are com1, debug"
        )
    );
    assert!(ran("info listed").1.contains("\nstreams: com1, debug\n"));
    drop(vm);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn v3_wait_can_wait_for_the_launch_too() {
    let vm = Owned::create("expected", EXIT);
    let mut waiter = v3("wait --for-launch expected --expect 85 --json")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    vm.launch().unwrap();
    assert_eq!(waiter.wait().unwrap().code(), Some(0));
    let mut json = String::new();
    waiter.stdout.unwrap().read_to_string(&mut json).unwrap();
    assert!(
        json.starts_with(r#"{"exit":0,"reason":"test-exit","exit_status":85,"#),
        "{json}"
    );
    let (code, _, error) = ran("wait expected");
    assert_eq!(code, 85);
    assert!(error.starts_with("[expected: test-exit 85"), "{error}");
    let late = Owned::launch("late", SPIN);
    let (code, _, error) = ran("wait late --timeout 0");
    assert_eq!(
        (code, error.as_str()),
        (
            124,
            "v3: late: timeout: it has not stopped: it is running\n"
        )
    );
    drop(late);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn v3_run_judges_the_end() {
    let (exit, triple_fault) = (image_file(EXIT), image_file(TRIPLE_FAULT));
    let run =
        |image: &std::path::Path, options: &str| ran(&format!("run {} {options}", image.display()));
    assert_eq!(run(&exit, "--name judged-1").0, 85);
    assert_eq!(
        run(&exit, "--name judged-1 --expect 85"),
        (0, String::new(), String::new())
    );
    let (code, _, error) = run(&exit, "--name judged-1 --expect 1");
    assert_eq!(code, 1);
    assert!(error.starts_with("v3: judged-1: test-exit 85"), "{error}");
    assert!(error.ends_with("(expected test-exit 1)\n"), "{error}");
    assert_eq!(run(&triple_fault, "--name judged-2").0, 127);
    let (code, json, _) = run(&triple_fault, "--name judged-2 --expect 127 --json");
    assert_eq!(code, 1);
    assert!(
        json.starts_with(r#"{"exit":1,"reason":"triple-fault","exit_status":null,"#),
        "{json}"
    );
}

#[test]
#[ignore = "needs v3vee.ko"]
fn v3_changes_an_image_for_one_vm() {
    let file = image_file(SPIN);
    let line = format!(
        "create {} changed --mem 24M --cpus 3 --pins any,0 --json",
        file.display()
    );
    let (code, json, error) = ran(&line);
    assert_eq!(code, 0, "{error}");
    let number = Control::open().unwrap().find("changed").unwrap();
    let vm = Owned(Vm::open(number).unwrap());
    let expected =
        format!("{{\"vm\":{number},\"name\":\"changed\",\"node\":\"/dev/v3-vm{number}\"}}\n");
    assert_eq!(json, expected);
    let info = vm.info().unwrap();
    assert_eq!((info.vcpus, info.memory_bytes), (3, 24 << 20));
    let pins: Vec<_> = (0..3).map(|vcpu| vm.pin(vcpu).unwrap()).collect();
    assert_eq!(pins, [None, Some(0), None]);
    // The image itself stays as it is.
    assert_eq!(std::fs::read(&file).unwrap(), image(SPIN));
}

#[test]
#[ignore = "needs v3vee.ko"]
fn v3_completes_vms_and_their_streams() {
    let vm = Owned::create("completed", SPIN);
    let complete = |line: &str| {
        let words = line.split(' ').count() - 1;
        let mut command = v3("--");
        command.args(line.split(' ')).env("V3_COMPLETE", "bash");
        command.env("_CLAP_COMPLETE_INDEX", words.to_string());
        let done = command.output().unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    for line in [
        "v3 launch",
        "v3 info",
        "v3 wait --for-launch",
        "v3_cons",
        "v3_core_move",
    ] {
        assert_eq!(complete(&format!("{line} compl")), "completed", "{line}");
    }
    assert_eq!(complete("v3_stream completed com"), "com1");
    assert_eq!(complete("v3 stream -i completed d"), "debug");
    drop(vm);
}

/// `v3` on a terminal: what it shows from start to end, and its status. `keys` are typed once it shows `prompt`.
fn on_a_terminal(line: &str, prompt: &str, keys: &[u8]) -> (Option<i32>, String) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal = open(ptsname(&master, Vec::new()).unwrap(), flags, Mode::empty()).unwrap();
    let mut command = v3(line);
    let end = || Stdio::from(terminal.try_clone().unwrap());
    command.stdin(end()).stdout(end()).stderr(end());
    let mut child = command.spawn().unwrap();
    drop((command, terminal)); // The child alone has the terminal open.
    let mut shown = Vec::new();
    let mut typed = false;
    let mut piece = [0; 256];
    // When nobody has the terminal open any more, reading it is an error.
    while let Ok(len) = rustix::io::read(&master, &mut piece) {
        shown.extend_from_slice(&piece[..len]);
        if !typed && String::from_utf8_lossy(&shown).contains(prompt) {
            rustix::io::write(&master, keys).unwrap();
            typed = true;
        }
    }
    let status = child.wait().unwrap().code();
    (status, String::from_utf8(shown).unwrap())
}

#[test]
#[ignore = "needs v3vee.ko"]
fn v3_console_keeps_lines_apart_and_says_what_became_of_the_vm() {
    let vm = Owned::launch("lines", TWO_LINES);
    let (status, shown) = on_a_terminal("console lines", "2\r\n", b"\x1dq");
    assert_eq!(status, Some(0));
    let expected = "[lines: Ctrl-] q leaves]\r\n1\r\n2\r\n\r\n\
                    [left the console; lines goes on running: `v3 console lines` comes back]\r\n";
    assert_eq!(shown, expected);
    vm.pause().unwrap();
    let (_, shown) = on_a_terminal("stream -i lines com1", "leaves]", b"\x1dq");
    assert!(
        shown.starts_with("[lines is paused: `v3 continue lines` lets it go on]\r\n"),
        "{shown}"
    );
    assert!(
        shown.ends_with(
            "[left the stream com1; lines is paused: `v3 continue lines` lets it go on]\r\n"
        ),
        "{shown}"
    );
    drop(vm);
    // What is no terminal gets the bytes as they are.
    let vm = Owned::launch("lines", TWO_LINES);
    let mut stream = v3("stream lines com1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut got = [0; 5];
    stream
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut got)
        .unwrap();
    assert_eq!(&got, b"1\n2\r\n");
    vm.stop().unwrap();
    assert_eq!(stream.wait().unwrap().code(), Some(0));
}

#[test]
#[ignore = "needs v3vee.ko"]
fn v3_run_left_by_the_escape_says_that_the_vm_is_gone() {
    let file = image_file(TWO_LINES);
    let line = format!("run {} --name left", file.display());
    let (status, shown) = on_a_terminal(&line, "2\r\n", b"\x1dq");
    assert_eq!(status, Some(130));
    assert!(shown.contains("\r\n1\r\n2\r\n"), "{shown}");
    assert!(
        shown.ends_with("[left was stopped and freed]\r\n"),
        "{shown}"
    );
    let gone = Error::NoSuchVm("left".into());
    assert_eq!(Control::open().unwrap().find("left"), Err(gone));
}
