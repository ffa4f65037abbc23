// SPDX-License-Identifier: MIT OR Apache-2.0
//! What devices see, and what segments and pages refuse.

use crate::machine::{device_byte, Event, TestCpu};
use palacios_core::emulator::{self, Fault, Step};
use palacios_core::state::*;

const RAM: u64 = 0x10_0000;
const DEVICE: u64 = 0xfee0_0000;
const DONE: Result<Step, Fault> = Ok(Step {
    complete: true,
    single_step: false,
});

fn device_value(at: u64, len: u64) -> u64 {
    (0..len)
        .rev()
        .fold(0, |value, i| value << 8 | u64::from(device_byte(at + i)))
}

fn gp() -> Result<Step, Fault> {
    Err(Exception::general_protection(0).into())
}

fn ss() -> Result<Step, Fault> {
    Err(Exception::stack(0).into())
}

#[test]
fn a_device_sees_each_access_once_and_whole() {
    // The instruction, then each access: whether it writes, and its bytes.
    type Case<'a> = (&'a str, &'a [u8], &'a [(bool, usize)]);
    let cases: &[Case] = &[
        ("mov al, [rbx]", &[0x8a, 0x03], &[(false, 1)]),
        ("mov eax, [rbx]", &[0x8b, 0x03], &[(false, 4)]),
        ("mov [rbx], ax", &[0x66, 0x89, 0x03], &[(true, 2)]),
        (
            "mov qword [rbx], -2",
            &[0x48, 0xc7, 0x03, 0xfe, 0xff, 0xff, 0xff],
            &[(true, 8)],
        ),
        ("movzx eax, byte [rbx]", &[0x0f, 0xb6, 0x03], &[(false, 1)]),
        (
            "or dword [rbx], 0x10",
            &[0x83, 0x0b, 0x10],
            &[(false, 4), (true, 4)],
        ),
        (
            "lock inc byte [rbx]",
            &[0xf0, 0xfe, 0x03],
            &[(false, 1), (true, 1)],
        ),
        ("xchg [rbx], eax", &[0x87, 0x03], &[(false, 4), (true, 4)]),
        (
            "test dword [rbx], 1",
            &[0xf7, 0x03, 1, 0, 0, 0],
            &[(false, 4)],
        ),
        ("cmp [rbx], rax", &[0x48, 0x39, 0x03], &[(false, 8)]),
        (
            "cmpxchg [rbx], ecx",
            &[0x0f, 0xb1, 0x0b],
            &[(false, 4), (true, 4)],
        ),
        (
            "lock cmpxchg16b [rbx]",
            &[0xf0, 0x48, 0x0f, 0xc7, 0x0b],
            &[(false, 16), (true, 16)],
        ),
        ("bt dword [rbx], 3", &[0x0f, 0xba, 0x23, 3], &[(false, 4)]),
        ("setz [rbx]", &[0x0f, 0x94, 0x03], &[(true, 1)]),
        ("cmovb eax, [rbx]", &[0x0f, 0x42, 0x03], &[(false, 4)]),
        ("prefetcht0 [rbx]", &[0x0f, 0x18, 0x0b], &[]),
    ];
    for (name, code, accesses) in cases {
        let mut cpu = TestCpu::long(RAM, 0x1000);
        *cpu.reg(Reg::Rbx) = DEVICE + 0x20;
        *cpu.reg(Reg::Rax) = 0x1122_3344;
        assert_eq!(cpu.run(code), DONE, "{name}");
        let seen: Vec<_> = cpu
            .log
            .iter()
            .map(|event| match event {
                Event::Read(at, len) if *at == DEVICE + 0x20 => (false, *len),
                Event::Write(at, data) if *at == DEVICE + 0x20 => (true, data.len()),
                other => panic!("{name}: {other:x?}"),
            })
            .collect();
        assert_eq!(&seen, accesses, "{name}");
    }
}

#[test]
fn device_values_arrive() {
    let mut cpu = TestCpu::long(RAM, 0x1000);
    *cpu.reg(Reg::Rbx) = DEVICE;
    *cpu.reg(Reg::Rax) = u64::MAX;
    // mov eax, [rbx+4]
    assert_eq!(cpu.run(&[0x8b, 0x43, 4]), DONE);
    assert_eq!(*cpu.reg(Reg::Rax), device_value(DEVICE + 4, 4));
    // mov ah, [rbx+9]
    assert_eq!(cpu.run(&[0x8a, 0x63, 9]), DONE);
    let low = device_value(DEVICE + 4, 4) & !0xff00 | device_value(DEVICE + 9, 1) << 8;
    assert_eq!(*cpu.reg(Reg::Rax), low);
    // mov [rbx+0x10], rax
    assert_eq!(cpu.run(&[0x48, 0x89, 0x43, 0x10]), DONE);
    let written = Event::Write(DEVICE + 0x10, low.to_le_bytes().to_vec());
    assert_eq!(cpu.log.last(), Some(&written));
    // mov eax, [abs 0xfffffffffee00000], as kernels reach a fixed mapping: the displacement is sign-extended.
    assert_eq!(cpu.run(&[0x8b, 0x04, 0x25, 0, 0, 0xe0, 0xfe]), DONE);
    assert_eq!(cpu.log.last(), Some(&Event::Read(0xffff_ffff_fee0_0000, 4)));
    // mov eax, [rip+0x10]
    cpu.rip = DEVICE - 0x10 - 6;
    assert_eq!(cpu.run(&[0x8b, 0x05, 0x10, 0, 0, 0]), DONE);
    assert_eq!(cpu.log.last(), Some(&Event::Read(DEVICE, 4)));
    assert_eq!(cpu.rip, DEVICE - 0x10);
    // mov eax, gs:[0x20]
    cpu.segment_mut(Seg::Gs).base = DEVICE;
    assert_eq!(cpu.run(&[0x65, 0x8b, 0x04, 0x25, 0x20, 0, 0, 0]), DONE);
    assert_eq!(cpu.log.last(), Some(&Event::Read(DEVICE + 0x20, 4)));
    // mov eax, [moffs64]
    let code = [&[0xa1][..], &(DEVICE + 0x30).to_le_bytes()].concat();
    assert_eq!(cpu.run(&code), DONE);
    assert_eq!(cpu.log.last(), Some(&Event::Read(DEVICE + 0x30, 4)));
}

#[test]
fn an_access_across_pages_is_split() {
    let mut cpu = TestCpu::long(RAM, 0x1000);
    // The last 3 bytes of RAM, then the device behind it.
    *cpu.reg(Reg::Rbx) = RAM + 0xffd;
    *cpu.reg(Reg::Rax) = 0x8877_6655_4433_2211;
    assert_eq!(cpu.run(&[0x48, 0x89, 0x03]), DONE);
    assert_eq!(cpu.at(RAM + 0xffd, 3), [0x11, 0x22, 0x33]);
    assert_eq!(
        cpu.log,
        [Event::Write(
            RAM + 0x1000,
            vec![0x44, 0x55, 0x66, 0x77, 0x88]
        )]
    );
    assert_eq!(cpu.run(&[0x48, 0x8b, 0x0b]), DONE);
    assert_eq!(*cpu.reg(Reg::Rcx), 0x8877_6655_4433_2211);
}

/// A page-table entry for `RAM + offset`.
fn frame(offset: u32, flags: u32) -> u32 {
    (RAM as u32 + offset) | flags
}

/// 32-bit paging with 4 KiB pages: the directory at `RAM`, one table after it; linear 0x400000 + n pages lead to frames.
fn paged(frames: &[u32]) -> TestCpu {
    let mut cpu = TestCpu::protected(RAM, 0x8000);
    cpu.cr[0] |= cr0::PG | cr0::WP;
    cpu.cr[3] = RAM;
    let table = RAM as u32 + 0x1000;
    cpu.at(RAM + 4, 4)
        .copy_from_slice(&(table | 7).to_le_bytes());
    for (i, frame) in frames.iter().enumerate() {
        cpu.at(RAM + 0x1000 + 4 * i as u64, 4)
            .copy_from_slice(&frame.to_le_bytes());
    }
    cpu
}

#[test]
fn nothing_happens_before_both_pages_are_checked() {
    let present = DEVICE as u32 | 7;
    let mut cpu = paged(&[present, 0, frame(0x2000, 5)]);
    let before = (cpu.gprs, cpu.rflags);
    *cpu.reg(Reg::Rbx) = 0x40_0ffe;
    let fault = |code, at| Err(Exception::page_fault(code, at).into());
    // add [ebx], eax: the second page is not present.
    assert_eq!(cpu.run(&[0x01, 0x03]), fault(2, 0x40_1000));
    // mov [ebx], eax
    assert_eq!(cpu.run(&[0x89, 0x03]), fault(2, 0x40_1000));
    // mov eax, [ebx]
    assert_eq!(cpu.run(&[0x8b, 0x03]), fault(0, 0x40_1000));
    // push dword [ebx], whose stack would be writable
    assert_eq!(cpu.run(&[0xff, 0x33]), fault(0, 0x40_1000));
    // movsd from the device to a page that is read-only: the device is not read.
    *cpu.reg(Reg::Rsi) = 0x40_0000;
    *cpu.reg(Reg::Rdi) = 0x40_2000;
    assert_eq!(cpu.run(&[0xa5]), fault(3, 0x40_2000));
    // insd to the same: the port is not read.
    assert_eq!(cpu.run(&[0x6d]), fault(3, 0x40_2000));
    assert_eq!(cpu.log, []);
    *cpu.reg(Reg::Rbx) = 0;
    *cpu.reg(Reg::Rsi) = 0;
    *cpu.reg(Reg::Rdi) = 0;
    assert_eq!((cpu.gprs, cpu.rflags, cpu.rip), (before.0, before.1, 0));
}

#[test]
fn a_lost_race_changes_nothing() {
    let mut cpu = TestCpu::long(RAM, 0x1000);
    *cpu.reg(Reg::Rbx) = RAM;
    *cpu.reg(Reg::Rax) = 5;
    let before = cpu.clone();
    // lock xadd [rbx], eax; xchg [rbx], eax; lock bts [rbx], eax; lock cmpxchg16b [rbx]
    let codes: [&[u8]; 4] = [
        &[0xf0, 0x0f, 0xc1, 0x03],
        &[0x87, 0x03],
        &[0xf0, 0x0f, 0xab, 0x03],
        &[0xf0, 0x48, 0x0f, 0xc7, 0x0b],
    ];
    for code in codes {
        cpu.race = true;
        assert_eq!(cpu.run(code), Err(Fault::Retry), "{code:02x?}");
        assert_eq!(
            (cpu.gprs, cpu.rflags, cpu.rip),
            (before.gprs, before.rflags, before.rip)
        );
        assert_eq!(cpu.ram, before.ram);
        assert_eq!(cpu.run(code), DONE, "{code:02x?}");
        assert!(cpu.ram != before.ram || code.len() == 5);
        cpu = before.clone();
    }
}

#[test]
fn lock_is_refused_where_it_is_not_allowed() {
    let mut cpu = TestCpu::long(RAM, 0x1000);
    *cpu.reg(Reg::Rbx) = RAM;
    // On mov [rbx], eax; add eax, [rbx]; add ebx, eax; bt [rbx], eax; cmp [rbx], eax; shl [rbx], 1.
    for code in [
        &[0xf0, 0x89, 0x03][..],
        &[0xf0, 0x03, 0x03],
        &[0xf0, 0x01, 0xc3],
        &[0xf0, 0x0f, 0xa3, 0x03],
        &[0xf0, 0x39, 0x03],
        &[0xf0, 0xd1, 0x23],
    ] {
        assert_eq!(
            cpu.run(code),
            Err(Exception::INVALID_OPCODE.into()),
            "{code:02x?}"
        );
    }
}

#[test]
fn segments_refuse() {
    use SegmentAttributes as A;
    let read = [0x8b, 0x03]; // mov eax, [ebx]
    let write = [0x89, 0x03]; // mov [ebx], eax
    let data = A::P | A::S | A::WRITE_OR_READ | A::DB;
    let down = data | A::DOWN_OR_CONFORMING;
    let read_only = A::P | A::S | A::DB;
    let code = A::P | A::S | A::CODE | A::DB;
    // Attributes and limit; an offset; whether 4 bytes can be read there, and written.
    let cases = [
        (data, 0xfff, 0xffc, true, true),
        (data, 0xfff, 0xffd, false, false),
        (data, 0xffff_ffff, 0xffff_fffd, false, false),
        (down, 0xfff, 0x1000, true, true),
        (down, 0xfff, 0xfff, false, false),
        (down & !A::DB, 0xfff, 0xfffc, true, true),
        (down & !A::DB, 0xfff, 0xfffd, false, false),
        (read_only, 0xfff, 0, true, false),
        (code, 0xfff, 0, false, false),
        (code | A::WRITE_OR_READ, 0xfff, 0, true, false),
        (data & !A::P, 0xfff, 0, false, false),
    ];
    for (attributes, limit, offset, readable, writable) in cases {
        let mut cpu = TestCpu::protected(0, 0x2_0000);
        let segment = Segment {
            selector: 8,
            base: 0,
            limit,
            attributes: A(attributes),
        };
        *cpu.segment_mut(Seg::Ds) = segment;
        *cpu.segment_mut(Seg::Ss) = segment;
        *cpu.reg(Reg::Rbx) = offset;
        *cpu.reg(Reg::Rbp) = offset;
        let what = format!("{attributes:#x} {limit:#x} {offset:#x}");
        assert_eq!(
            cpu.run(&read),
            if readable { DONE } else { gp() },
            "read {what}"
        );
        assert_eq!(
            cpu.run(&write),
            if writable { DONE } else { gp() },
            "write {what}"
        );
        // mov eax, [ebp]: the stack segment. With a DS override: not.
        let stack = if readable { DONE } else { ss() };
        assert_eq!(cpu.run(&[0x8b, 0x45, 0]), stack, "stack {what}");
        let other = if readable { DONE } else { gp() };
        assert_eq!(cpu.run(&[0x3e, 0x8b, 0x45, 0]), other, "override {what}");
    }
}

#[test]
fn real_mode_faults_have_no_error_code() {
    let mut cpu = TestCpu::real(0x2_0000);
    *cpu.reg(Reg::Rbx) = 0xffff;
    *cpu.reg(Reg::Rbp) = 0xffff;
    let plain = |vector| Err(Exception::plain(vector).into());
    // mov ax, [bx]; mov ax, [bp+0]
    assert_eq!(cpu.run(&[0x8b, 0x07]), plain(13));
    assert_eq!(cpu.run(&[0x8b, 0x46, 0]), plain(12));
    // A byte fits, and the segment's base counts.
    cpu.segment_mut(Seg::Es).base = 0x1_0000;
    cpu.at(0x1_ffff, 1)[0] = 0x5a;
    assert_eq!(cpu.run(&[0x26, 0x8a, 0x07]), DONE);
    assert_eq!(*cpu.reg(Reg::Rax), 0x5a);
    // mov al, [bx+si]: 16-bit addresses wrap.
    *cpu.reg(Reg::Rsi) = 2;
    cpu.at(1, 1)[0] = 0x77;
    assert_eq!(cpu.run(&[0x8a, 0x00]), DONE);
    assert_eq!(*cpu.reg(Reg::Rax), 0x77);
    // Real mode does not look at types: cs: mov [bx], al
    cpu.segment_mut(Seg::Cs).attributes = SegmentAttributes(0x9b);
    assert_eq!(cpu.run(&[0x2e, 0x88, 0x07]), DONE);
}

#[test]
fn long_mode_wants_canonical_addresses() {
    let mut cpu = TestCpu::long(RAM, 0x1000);
    for (at, canonical) in [
        (0x7fff_ffff_fff8, true),
        (0x7fff_ffff_fff9, false),
        (0x8000_0000_0000, false),
        (0xffff_7fff_ffff_ffff, false),
        (0xffff_8000_0000_0000, true),
    ] {
        *cpu.reg(Reg::Rbx) = at;
        *cpu.reg(Reg::Rbp) = at;
        // mov rax, [rbx]; mov rax, [rbp]
        assert_eq!(
            cpu.run(&[0x48, 0x8b, 0x03]),
            if canonical { DONE } else { gp() },
            "{at:x}"
        );
        let stack = if canonical { DONE } else { ss() };
        assert_eq!(cpu.run(&[0x48, 0x8b, 0x45, 0]), stack, "{at:x}");
    }
    cpu.cr[4] |= cr4::LA57;
    *cpu.reg(Reg::Rbx) = 0x8000_0000_0000;
    assert_eq!(cpu.run(&[0x48, 0x8b, 0x03]), DONE);
    // A limit means nothing here.
    cpu.segment_mut(Seg::Ds).limit = 0;
    assert_eq!(cpu.run(&[0x48, 0x8b, 0x03]), DONE);
}

#[test]
fn alignment_is_checked_where_the_guest_asks() {
    let mut cpu = TestCpu::long(RAM, 0x1000);
    *cpu.reg(Reg::Rbx) = RAM + 2;
    let read = [0x8b, 0x03];
    assert_eq!(cpu.run(&read), DONE);
    cpu.cr[0] |= cr0::AM;
    cpu.rflags |= rflags::AC;
    assert_eq!(cpu.run(&read), DONE);
    cpu.cpl = 3;
    assert_eq!(cpu.run(&read), Err(Exception::alignment().into()));
    assert_eq!(cpu.run(&[0x66, 0x8b, 0x03]), DONE);
    // cmpxchg16b is always aligned.
    cpu.cpl = 0;
    assert_eq!(cpu.run(&[0x48, 0x0f, 0xc7, 0x0b]), gp());
}

#[test]
fn code_is_fetched_as_far_as_needed() {
    let mut cpu = paged(&[frame(0x3000, 5), 0, frame(0x4000, 5)]);
    // mov eax, [ebx] in the last two bytes of a page; what follows is not there.
    cpu.at(RAM + 0x3ffe, 2).copy_from_slice(&[0x8b, 0x03]);
    cpu.rip = 0x40_0ffe;
    *cpu.reg(Reg::Rbx) = 0x40_0000;
    assert_eq!(emulator::length_at(&mut cpu), Ok(2));
    assert_eq!(emulator::step(&mut cpu), DONE);
    // One byte further, its end is in a page that is not present.
    cpu.at(RAM + 0x3fff, 1).copy_from_slice(&[0x8b]);
    cpu.rip = 0x40_0fff;
    assert_eq!(
        emulator::step(&mut cpu),
        Err(Exception::page_fault(0, 0x40_1000).into())
    );
    // With the pages reversed it is whole.
    cpu.at(RAM + 0x1004, 4)
        .copy_from_slice(&(frame(0x4000, 5)).to_le_bytes());
    cpu.at(RAM + 0x4000, 1).copy_from_slice(&[0x03]);
    assert_eq!(emulator::step(&mut cpu), DONE);
    assert_eq!(cpu.rip, 0x40_1001);
    // The code segment ends within it.
    cpu.rip = 0x40_0fff;
    cpu.segment_mut(Seg::Cs).limit = 0x40_0fff;
    assert_eq!(emulator::step(&mut cpu), gp());
    cpu.segment_mut(Seg::Cs).limit = 0x40_0004;
    cpu.rip = 0x40_0002;
    cpu.at(RAM + 0x3002, 5).copy_from_slice(&[0xb8, 1, 2, 3, 4]);
    assert_eq!(emulator::step(&mut cpu), gp());
    assert_eq!(emulator::length_at(&mut cpu).map_err(Err), Err(gp()));
    // Sixteen bytes are none.
    cpu.segment_mut(Seg::Cs).limit = u32::MAX;
    cpu.at(RAM + 0x3000, 16).fill(0x66);
    cpu.rip = 0x40_0000;
    assert_eq!(emulator::step(&mut cpu), gp());
    // cpuid is not for the emulator, but has a length.
    cpu.at(RAM + 0x3000, 2).copy_from_slice(&[0x0f, 0xa2]);
    assert_eq!(emulator::length_at(&mut cpu), Ok(2));
    let Err(Fault::Unsupported(report)) = emulator::step(&mut cpu) else {
        panic!()
    };
    assert_eq!(report.bytes[..2], [0x0f, 0xa2]);
}

#[test]
fn the_user_bit_goes_with_the_access() {
    let mut cpu = paged(&[frame(0x3000, 3)]);
    *cpu.reg(Reg::Rbx) = 0x40_0000;
    assert_eq!(cpu.run(&[0x8b, 0x03]), DONE);
    cpu.cpl = 3;
    assert_eq!(
        cpu.run(&[0x8b, 0x03]),
        Err(Exception::page_fault(5, 0x40_0000).into())
    );
}
