// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pushes and pops whose stack is a device's memory (SDM 1: 6.2), and what they refuse.

use crate::machine::TestCpu;
use crate::system::*;
use palacios_core::emulator::Behaviour;
use palacios_core::state::*;

const RBP: u64 = 0xfee0_0700;

/// What an instruction writes to the stack, from the top down, and how far RSP comes.
#[test]
fn pushes_write_each_element() {
    // In 64-bit code.
    type Case<'a> = (&'a str, &'a [u8], u64, &'a [u64]);
    let cases: &[Case] = &[
        ("push -2", &[0x6a, 0xfe], 8, &[-2i64 as u64]),
        (
            "push 0x12345678",
            &[0x68, 0x78, 0x56, 0x34, 0x12],
            8,
            &[0x1234_5678],
        ),
        ("push word 0x1234", &[0x66, 0x68, 0x34, 0x12], 2, &[0x1234]),
        ("push fs", &[0x0f, 0xa0], 8, &[0x10]),
        ("push r9", &[0x41, 0x51], 8, &[0x9999]),
        ("push rsp", &[0x54], 8, &[STACK]),
        ("push qword [rbx]", &[0xff, 0x33], 8, &[0xbbbb]),
        ("pushfq", &[0x9c], 8, &[rflags::FIXED | rflags::IF]),
        ("call +0x10", &[0xe8, 0x10, 0, 0, 0], 8, &[0x5005]),
        ("call [rbx]", &[0xff, 0x13], 8, &[0x5002]),
        ("enter 0x20, 0", &[0xc8, 0x20, 0, 0], 0x28, &[RBP]),
        (
            "enter 0, 3",
            &[0xc8, 0, 0, 3],
            0x20,
            &[RBP, 1, 2, STACK - 8],
        ),
    ];
    for (name, code, bytes, values) in cases {
        let mut system = System::long(0);
        system.cpu.rflags = rflags::FIXED | rflags::IF | rflags::RF;
        *system.cpu.reg(Reg::R9) = 0x9999;
        *system.cpu.reg(Reg::Rbp) = RBP;
        *system.cpu.reg(Reg::Rbx) = 0xfee0_0000;
        system.cpu.segment_mut(Seg::Fs).selector = 0x10;
        system.store(0xfee0_0000, 8, &[0xbbbb]);
        // The frame pointers of the levels above, the nearest with the highest address.
        system.store(RBP - 16, 8, &[2, 1]);
        assert_eq!(system.cpu.run(code), DONE, "{name}");
        let width = if code[0] == 0x66 { 2 } else { 8 };
        let expected: Vec<_> = (1..)
            .zip(*values)
            .map(|(n, value)| (STACK - width * n, *value))
            .collect();
        assert_eq!(
            (system.written(), system.rsp()),
            (expected, STACK - bytes),
            "{name}"
        );
    }
}

/// An operand-size prefix before a near branch in 64-bit code makes AMD's processors carry out one of 16 bits, as one of them
/// showed; Intel's ignore it (SDM 2A: CALL, JMP, RET; APM 3: the same).
#[test]
fn near_branches_with_an_operand_size_prefix_go_by_the_vendor() {
    // What is on the stack; RIP and RSP behind it, and what was written, on AMD's and on Intel's. The code is at 0x5000.
    type Outcome = (u64, i64, Option<(u64, u64)>);
    let cases: [(&str, &[u8], Outcome, Outcome); 4] = [
        (
            "call +0x12_0010",
            &[0x66, 0xe8, 0x10, 0, 0x12, 0],
            (0x5014, -2, Some((2, 0x5004))),
            (0x12_5016, -8, Some((8, 0x5006))),
        ),
        (
            "call [rbx]",
            &[0x66, 0xff, 0x13],
            (0xbbbb, -2, Some((2, 0x5003))),
            (0x12_bbbb, -8, Some((8, 0x5003))),
        ),
        (
            "jmp [rbx]",
            &[0x66, 0xff, 0x23],
            (0xbbbb, 0, None),
            (0x12_bbbb, 0, None),
        ),
        (
            "ret 4",
            &[0x66, 0xc2, 4, 0],
            (0xbbbb, 6, None),
            (0x12_bbbb, 12, None),
        ),
    ];
    for (name, code, amd, intel) in cases {
        for (is_intel, (rip, moved, pushed)) in [(false, amd), (true, intel)] {
            let mut system = System::long(0);
            if is_intel {
                system.cpu.lacks.push(Behaviour::ShortNearBranches);
            }
            *system.cpu.reg(Reg::Rbx) = 0xfee0_0000;
            system.store(0xfee0_0000, 8, &[0x12_bbbb]);
            system.store(STACK, 8, &[0x12_bbbb]);
            assert_eq!(system.cpu.run(code), DONE, "{name}");
            let pushed: Vec<_> = pushed
                .into_iter()
                .map(|(width, value)| (STACK - width, value))
                .collect();
            assert_eq!(
                (system.cpu.rip, system.rsp(), system.written()),
                (rip, STACK.wrapping_add_signed(moved), pushed),
                "{name}, intel: {is_intel}"
            );
        }
    }
}

#[test]
fn pops_read_each_element() {
    let mut system = System::long(0);
    system.describe(FREE, flat(DATA, false));
    system.store(STACK, 8, &[0x1111, FREE.into(), 0x5455, 0x6000, 0x7777]);
    // pop rax; pop fs; popfq; ret; pop qword [rbx]
    assert_eq!(system.cpu.run(&[0x58]), DONE);
    assert_eq!(*system.cpu.reg(Reg::Rax), 0x1111);
    assert_eq!(system.cpu.run(&[0x0f, 0xa1]), DONE);
    assert_eq!(system.selector(Seg::Fs), FREE);
    assert_eq!(system.cpu.run(&[0x9d]), DONE);
    assert_eq!(system.cpu.rflags, rflags::FIXED | 0x5455 & !(1 << 1));
    assert_eq!(system.cpu.run(&[0xc3]), DONE);
    assert_eq!(system.cpu.rip, 0x6000);
    *system.cpu.reg(Reg::Rbx) = 0xfee0_0000;
    assert_eq!(system.cpu.run(&[0x8f, 0x03]), DONE);
    assert_eq!(
        (system.written(), system.rsp()),
        (vec![(0xfee0_0000, 0x7777)], STACK + 0x28)
    );
    // leave
    *system.cpu.reg(Reg::Rbp) = STACK;
    assert_eq!(system.cpu.run(&[0xc9]), DONE);
    assert_eq!(
        (system.rsp(), *system.cpu.reg(Reg::Rbp)),
        (STACK + 8, 0x1111)
    );
    // A selector that is bad leaves RSP; pop ss holds interrupts off.
    let mut system = System::protected(0);
    system.store(STACK, 4, &[u64::from(CODE_0), u64::from(DATA_0)]);
    assert_eq!(system.cpu.run(&[0x17]), gp(CODE_0.into()));
    assert_eq!(system.rsp(), STACK);
    *system.cpu.reg(Reg::Rsp) = STACK + 4;
    assert_eq!(system.cpu.run(&[0x17]), DONE);
    assert!(system.cpu.shadow && system.rsp() == STACK + 8);
}

#[test]
fn all_registers_at_once() {
    for (width, pusha, popa) in [
        (4, &[0x60][..], &[0x61][..]),
        (2, &[0x66, 0x60], &[0x66, 0x61]),
    ] {
        let mut system = System::protected(0);
        for (reg, value) in Reg::ALL.into_iter().take(8).zip(1..) {
            if reg != Reg::Rsp {
                *system.cpu.reg(reg) = 0x11_1111 * value;
            }
        }
        let before = system.cpu.gprs;
        assert_eq!(system.cpu.run(pusha), DONE);
        let mask = if width == 4 { 0xffff_ffff } else { 0xffff };
        let expected = (1..)
            .zip(&before.0[..8])
            .map(|(n, value)| (STACK - width * n, value & mask));
        assert_eq!(system.written(), expected.collect::<Vec<_>>());
        for reg in [Reg::Rax, Reg::Rdi, Reg::Rbp] {
            *system.cpu.reg(reg) &= !0xffff;
        }
        assert_eq!(system.cpu.run(popa), DONE);
        assert_eq!(system.cpu.gprs, before);
    }
}

#[test]
fn traps_wait_behind_a_new_stack() {
    let mut system = System::protected(0);
    system.cpu.rflags |= rflags::TF;
    *system.cpu.reg(Reg::Rbx) = 0xfee0_0000;
    system.store(0xfee0_0000, 2, &[DATA_0.into()]);
    // mov ss, [ebx]; mov ds, [ebx]
    assert_eq!(system.cpu.run(&[0x8e, 0x13]), DONE);
    assert!(system.cpu.run(&[0x8e, 0x1b]).unwrap().single_step);
}

#[test]
fn faults_leave_the_stack_as_it_was() {
    // A limit below the stack: #SS, and nothing was written.
    let codes: [&[u8]; 9] = [
        &[0x6a, 0],
        &[0x50],
        &[0x1e],
        &[0x60],
        &[0x9c],
        &[0xe8, 0, 0, 0, 0],
        &[0xff, 0x13],
        &[0xc8, 0, 0, 0],
        &[0x9a, 0, 0, 0, 0, CODE_0 as u8, 0],
    ];
    for code in codes {
        let mut system = System::protected(0);
        system.cpu.segment_mut(Seg::Ss).limit = STACK as u32 - 0x100;
        let before = system.cpu.clone();
        assert_eq!(system.cpu.run(code), ss(0), "{code:02x?}");
        assert_eq!(
            (system.cpu.gprs, system.cpu.rip),
            (before.gprs, before.rip),
            "{code:02x?}"
        );
        assert_eq!(system.written(), [], "{code:02x?}");
    }
    // A target outside of the code segment: #GP, and nothing was written.
    let mut system = System::protected(0);
    system.cpu.segment_mut(Seg::Cs).limit = 0x5fff;
    assert_eq!(system.cpu.run(&[0xe8, 0, 0x10, 0, 0]), gp(0));
    assert_eq!((system.written(), system.rsp()), (vec![], STACK));
    // ENTER looks whether its new top can be written.
    let mut system = System::protected(0);
    system.cpu.segment_mut(Seg::Ss).base = 0x1000;
    *system.cpu.reg(Reg::Rsp) = 0x10;
    assert_eq!(system.cpu.run(&[0xc8, 0, 0x20, 0]), DONE, "the stack wraps");
    let mut system = System::long(0);
    *system.cpu.reg(Reg::Rsp) = 0xffff_8000_0000_0100;
    assert_eq!(system.cpu.run(&[0xc8, 0, 0x20, 0]), ss(0));
    assert_eq!(system.written(), []);
}

#[test]
fn small_stacks_wrap() {
    let mut cpu = TestCpu::real(0x400);
    cpu.segment_mut(Seg::Ss).base = 0x2_0000;
    let mut system = System { cpu };
    // push ax at SP 0; pusha around the end; at an odd SP an element would cross it.
    *system.cpu.reg(Reg::Rsp) = 0;
    assert_eq!(system.cpu.run(&[0x50]), DONE);
    assert_eq!((system.rsp(), system.written()[0].0), (0xfffe, 0x2_fffe));
    *system.cpu.reg(Reg::Rsp) = 6;
    system.cpu.log.clear();
    assert_eq!(system.cpu.run(&[0x60]), DONE);
    let places: Vec<_> = system.written().iter().map(|(at, _)| *at).collect();
    let expected = [4, 2, 0, 0xfffe, 0xfffc, 0xfffa, 0xfff8, 0xfff6].map(|at| 0x2_0000 + at);
    assert_eq!(places, expected);
    assert_eq!(system.cpu.run(&[0x61]), DONE);
    assert_eq!(system.rsp(), 6);
    *system.cpu.reg(Reg::Rsp) = 1;
    assert_eq!(system.cpu.run(&[0x50]), Err(Exception::plain(12).into()));
}
