// SPDX-License-Identifier: MIT OR Apache-2.0
//! VMs that are saved and loaded by the module's own calls: what cannot be is refused, and leaves nothing.

use super::*;
use std::os::fd::AsRawFd;
use v3_ctl::{SavedReader, SavedState};

/// `1: inc dword ptr [0x200000]; cmp dword ptr [0x200000], 0x4000000; jb 1b`, then as [`EXIT`].
const COUNT: &[u8] = b"\xff\x05\0\0\x20\0\x81\x3d\0\0\x20\0\0\0\0\x04\x72\xee\
    \xb8\x2a\0\0\0\x66\xba\xf4\0\xef\xf4\xeb\xfd";
const COUNT_AT: u64 = 0x20_0000;

fn file_of(vm: &Vm) -> Vec<u8> {
    let mut file = Vec::new();
    vm.save().unwrap().read_to_end(&mut file).unwrap();
    file
}

fn load_ram(vm: &Vm, file: &[u8]) {
    let mut reader = SavedReader::new(file).unwrap();
    while let Some((_, part, _)) = reader.next_section().unwrap() {
        if let palacios_core::saved_file::Part::Ram { page, bytes } = part {
            vm.load_ram(page, bytes).unwrap();
        }
    }
}

fn count(vm: &Vm) -> u32 {
    let (_, _, bytes) = vm.read_memory(COUNT_AT, 4).unwrap();
    bytes
        .first_chunk()
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[test]
#[ignore = "needs v3vee.ko"]
fn one_that_counts_counts_on_in_another() {
    let vm = Owned::launch("counts", COUNT);
    while count(&vm) == 0 {
        std::thread::yield_now();
    }
    vm.pause().unwrap();
    // What the host took back is saved as well, and what is not zero alone.
    vm.relocate(0, MEMORY).unwrap();
    let file = file_of(&vm);
    assert!(file.len() < MEMORY as usize / 4, "{}", file.len());
    assert_eq!(file_of(&vm), file);
    let counted = count(&vm);
    vm.stop().unwrap();
    let saved = SavedState::read(&file[..], |_| {}).unwrap();
    let control = Control::open().unwrap();
    let next = Owned(control.create(&saved.image, "counts-on").unwrap());
    load_ram(&next, &file);
    next.load_state(&saved.state, false).unwrap();
    assert_eq!(count(&next), counted);
    next.launch().unwrap();
    assert_eq!(next.end(), (Reason::TestExit, 85));
    assert_eq!(count(&next), 0x400_0000);
}

#[test]
#[ignore = "needs v3vee.ko"]
fn it_stands_still_as_long_as_it_is_saved() {
    let vm = Owned::launch("stands", SPIN);
    let mut saving = vm.save().unwrap();
    let other = vm.save().unwrap();
    assert_eq!(vm.info().unwrap().state, State::Paused);
    assert!(matches!(vm.resume(), Err(Error::WrongState { .. })));
    let mut piece = [0; 10];
    saving.read_exact(&mut piece).unwrap();
    assert_eq!(piece[1..7], *b"v3save");
    // One who cannot take what he asks for has lost nothing.
    let fd = saving.as_fd().as_raw_fd();
    // SAFETY: The call refuses the address.
    let read = unsafe { libc_read(fd, 16 as *mut c_void, 100) };
    assert_eq!(read, -1);
    let mut rest = Vec::new();
    saving.read_to_end(&mut rest).unwrap();
    let file = [&piece[..], &rest[..]].concat();
    SavedState::read(&file[..], |_| {}).unwrap();
    assert_eq!(saving.read(&mut piece).unwrap(), 0);
    assert_eq!(
        call(&saving, V3_VM_INFO, &mut v3_info::zeroed()),
        Err(Errno::NOTTY)
    );
    drop(saving);
    assert_eq!(vm.info().unwrap().state, State::Paused);
    drop(other);
    assert_eq!(vm.info().unwrap().state, State::Running);
    // One that is freed under it is gone; the file says so.
    let mut saving = vm.save().unwrap();
    vm.stop().unwrap();
    assert!(saving.read_to_end(&mut rest).is_err());
    assert!(matches!(vm.save(), Err(Error::WrongState { .. })));
}

extern "C" {
    #[link_name = "read"]
    fn libc_read(fd: i32, to: *mut c_void, len: usize) -> isize;
}

#[test]
#[ignore = "needs v3vee.ko"]
fn what_cannot_be_loaded_is_refused() {
    let vm = Owned::create("refuses", SPIN);
    let node = vm.node();
    let bytes = vec![7u8; 2 << 20];
    let ram = |page: u64, len: u64| {
        let arg = &mut v3_load_ram {
            page,
            buffer: bytes.as_ptr().expose_provenance() as u64,
            len,
        };
        call(&node, V3_VM_LOAD_RAM, arg)
    };
    assert_eq!(ram(0, 0), Ok(()));
    assert_eq!(ram(0, 4095), Err(Errno::INVAL));
    assert_eq!(ram(0, (1 << 20) + 4096), Err(Errno::TOOBIG));
    assert_eq!(ram(MEMORY / 4096, 4096), Err(Errno::RANGE));
    assert_eq!(ram(MEMORY / 4096 - 1, 8192), Err(Errno::RANGE));
    assert_eq!(ram(u64::MAX, 8192), Err(Errno::RANGE));
    assert_eq!(ram(MEMORY / 4096 - 1, 4096), Ok(()));
    let state = |len: u64, flags: u32| {
        let mut message = [0u8; 100];
        let arg = &mut v3_load {
            state: bytes.as_ptr().expose_provenance() as u64,
            state_len: len,
            message: message.as_mut_ptr().expose_provenance() as u64,
            message_len: message.len() as u32,
            flags,
        };
        let result = call(&node, V3_VM_LOAD, arg);
        (
            result,
            String::from_utf8_lossy(until_nul(&message).unwrap()).into_owned(),
        )
    };
    let (result, told) = state(1 << 20, 0);
    assert_eq!(result, Err(Errno::INVAL));
    assert!(told.contains("section"), "{told}");
    assert_eq!(state(0, 0).0, Err(Errno::INVAL));
    assert_eq!(state((16 << 20) + 1, 0).0, Err(Errno::TOOBIG));
    assert_eq!(state(100, 2).0, Err(Errno::INVAL));
    vm.launch().unwrap();
    assert_eq!(ram(0, 4096), Err(Errno::BADFD));
    assert_eq!(state(1 << 20, 0).0, Err(Errno::BADFD));
}

#[test]
#[ignore = "needs v3vee.ko"]
fn another_machine_is_refused_by_name() {
    let vm = Owned::launch("machine", SPIN);
    let file = file_of(&vm);
    let saved = SavedState::read(&file[..], |_| {}).unwrap();
    let control = Control::open().unwrap();
    // Its device is one that this machine does not have.
    vm.attach(&v3_ctl::Request {
        kind: "serial",
        id: Some("extra"),
        port: None,
        slot: None,
        disk: None,
        descriptors: &[],
    })
    .unwrap();
    let more = SavedState::read(&file_of(&vm)[..], |_| {}).unwrap();
    let next = Owned(control.create(&saved.image, "other-machine").unwrap());
    let refused = next.load_state(&more.state, false).unwrap_err().to_string();
    assert!(
        refused.contains("section device/extra: this VMM does not know it"),
        "{refused}"
    );
    next.detach("com1").unwrap();
    let refused = next
        .load_state(&saved.state, false)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("device/com1"), "{refused}");
    assert_eq!(next.info().unwrap().state, State::Created);
}
