// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a test program cannot ask its own processor: strings and ports, system registers, other modes, faults.

use crate::machine::{device_byte, Event, TestCpu};
use palacios_core::emulator::{self, Behaviour, Fault, Step};
use palacios_core::state::*;
use proptest::prelude::*;

const RAM: u64 = 0x10_0000;
const DEVICE: u64 = 0xfee0_0000;
const DONE: Result<Step, Fault> = Ok(Step {
    complete: true,
    single_step: false,
});
const MORE: Result<Step, Fault> = Ok(Step {
    complete: false,
    single_step: false,
});

fn gp() -> Result<Step, Fault> {
    Err(Exception::general_protection(0).into())
}

fn ud() -> Result<Step, Fault> {
    Err(Exception::INVALID_OPCODE.into())
}

#[test]
fn strings_move_through_ports() {
    let mut cpu = TestCpu::long(RAM, 0x1000);
    cpu.at(RAM, 4).copy_from_slice(b"boot");
    *cpu.reg(Reg::Rsi) = RAM;
    *cpu.reg(Reg::Rdx) = 0xffff_0402;
    *cpu.reg(Reg::Rcx) = 4;
    // rep outsb
    assert_eq!(cpu.run(&[0xf3, 0x6e]), DONE);
    let expected: Vec<_> = b"boot"
        .iter()
        .map(|&b| Event::Out(0x402, 1, b.into()))
        .collect();
    assert_eq!(cpu.log, expected);
    assert_eq!((*cpu.reg(Reg::Rsi), *cpu.reg(Reg::Rcx)), (RAM + 4, 0));
    // insw, downwards
    cpu.log.clear();
    cpu.rflags |= rflags::DF;
    *cpu.reg(Reg::Rdi) = RAM + 0x10;
    assert_eq!(cpu.run(&[0x66, 0x6d]), DONE);
    assert_eq!(cpu.log, [Event::In(0x402, 2)]);
    assert_eq!(cpu.at(RAM + 0x10, 2), [0xd4, 0xc3]);
    assert_eq!(*cpu.reg(Reg::Rdi), RAM + 0xe);
    // insd: REX.W does not make a quadword of it.
    cpu.log.clear();
    assert_eq!(cpu.run(&[0x48, 0x6d]), DONE);
    assert_eq!(cpu.log, [Event::In(0x402, 4)]);
}

#[test]
fn repetition_is_done_in_parts() {
    let mut cpu = TestCpu::long(RAM, 0x4000);
    *cpu.reg(Reg::Rdi) = RAM;
    *cpu.reg(Reg::Rcx) = 0x2800;
    *cpu.reg(Reg::Rax) = 0xee;
    // rep stosb
    let code = [0xf3, 0xaa];
    assert_eq!(cpu.run(&code), MORE);
    assert_eq!(
        (*cpu.reg(Reg::Rdi), *cpu.reg(Reg::Rcx), cpu.rip),
        (RAM + 0x1000, 0x1800, 0)
    );
    assert_eq!(cpu.run(&code), MORE);
    assert_eq!(cpu.run(&code), DONE);
    assert_eq!(
        (*cpu.reg(Reg::Rdi), *cpu.reg(Reg::Rcx), cpu.rip),
        (RAM + 0x2800, 0, 2)
    );
    assert!(cpu.at(RAM, 0x2800).iter().all(|&b| b == 0xee));
    assert_eq!(cpu.at(RAM + 0x2800, 1), [0]);
    // Nothing to do is one step.
    cpu.rip = 0;
    assert_eq!(cpu.run(&code), DONE);
    assert_eq!(cpu.rip, 2);
}

#[test]
fn each_iteration_traps_under_tf() {
    let mut cpu = TestCpu::long(RAM, 0x1000);
    cpu.rflags |= rflags::TF | rflags::RF;
    *cpu.reg(Reg::Rdi) = RAM;
    *cpu.reg(Reg::Rcx) = 2;
    let step = |complete| {
        Ok(Step {
            complete,
            single_step: true,
        })
    };
    assert_eq!(cpu.run(&[0xf3, 0xaa]), step(false));
    assert_eq!(cpu.rflags & rflags::RF, rflags::RF);
    assert_eq!(cpu.run(&[0xf3, 0xaa]), step(true));
    assert_eq!(cpu.rflags & rflags::RF, 0);
    assert_eq!(*cpu.reg(Reg::Rcx), 0);
}

#[test]
fn a_fault_keeps_the_iterations_before_it() {
    let mut cpu = TestCpu::protected(0, 0x1000);
    cpu.segment_mut(Seg::Es).limit = 0xf09;
    *cpu.reg(Reg::Rdi) = 0xf00;
    *cpu.reg(Reg::Rcx) = 8;
    // rep stosd: two fit.
    assert_eq!(cpu.run(&[0xf3, 0xab]), gp());
    assert_eq!(
        (*cpu.reg(Reg::Rdi), *cpu.reg(Reg::Rcx), cpu.rip),
        (0xf08, 6, 0)
    );
}

#[test]
fn device_memory_moves_in_elements() {
    let mut cpu = TestCpu::long(RAM, 0x1000);
    *cpu.reg(Reg::Rsi) = DEVICE;
    *cpu.reg(Reg::Rdi) = RAM;
    *cpu.reg(Reg::Rcx) = 3;
    // rep movsw
    assert_eq!(cpu.run(&[0xf3, 0x66, 0xa5]), DONE);
    assert_eq!(cpu.log, [0, 2, 4].map(|i| Event::Read(DEVICE + i, 2)));
    let expected: Vec<_> = (DEVICE..DEVICE + 6).map(device_byte).collect();
    assert_eq!(cpu.at(RAM, 6), expected);
}

#[test]
fn string_addresses_have_the_address_size() {
    let mut cpu = TestCpu::real(0x1_0000);
    *cpu.reg(Reg::Rdi) = 0xabcd_ffff;
    *cpu.reg(Reg::Rcx) = 0x1234_0002;
    *cpu.reg(Reg::Rax) = 0x99;
    // rep stosb, 16-bit: DI wraps, the upper halves stay.
    assert_eq!(cpu.run(&[0xf3, 0xaa]), DONE);
    assert_eq!(
        (*cpu.reg(Reg::Rdi), *cpu.reg(Reg::Rcx)),
        (0xabcd_0001, 0x1234_0000)
    );
    assert_eq!((cpu.at(0xffff, 1)[0], cpu.at(0, 1)[0]), (0x99, 0x99));
    // fs lodsb: the source's segment can be overridden, the destination's not.
    cpu.segment_mut(Seg::Fs).base = 0x100;
    cpu.at(0x105, 1)[0] = 0x42;
    *cpu.reg(Reg::Rsi) = 5;
    assert_eq!(cpu.run(&[0x64, 0xac]), DONE);
    assert_eq!(*cpu.reg(Reg::Rax), 0x42);
    *cpu.reg(Reg::Rdi) = 5;
    assert_eq!(cpu.run(&[0x64, 0xaa]), DONE);
    assert_eq!(cpu.at(5, 1), [0x42]);
}

/// A CPL-3 CPU with a TSS at `RAM` whose I/O map allows ports 0x3f8 and 0x3f9 only.
fn with_io_map() -> TestCpu {
    let mut cpu = TestCpu::protected(RAM, 0x4000);
    *cpu.segment_mut(Seg::Tr) = Segment {
        selector: 0x28,
        base: RAM,
        limit: 0x68 + 0x80,
        attributes: SegmentAttributes(0x8b),
    };
    cpu.at(RAM + 0x66, 2)
        .copy_from_slice(&0x68u16.to_le_bytes());
    cpu.at(RAM + 0x68, 0x81).fill(0xff);
    cpu.at(RAM + 0x68 + 0x7f, 1)[0] = 0xfc;
    cpu.cpl = 3;
    *cpu.reg(Reg::Rsi) = RAM + 0x2000;
    cpu
}

#[test]
fn ports_are_guarded() {
    let outsb = [0x6e];
    let outsw = [0x66, 0x6f];
    let mut cpu = with_io_map();
    for (port, byte, word) in [
        (0x3f8, DONE, DONE),
        (0x3f9, DONE, gp()),
        (0x3f7, gp(), gp()),
        (0x400, gp(), gp()),
    ] {
        *cpu.reg(Reg::Rdx) = port;
        assert_eq!(cpu.run(&outsb), byte, "{port:x}");
        assert_eq!(cpu.run(&outsw), word, "{port:x}");
    }
    // in al, dx; out dx, ax; in eax, 0x60, which come here if the map is a device's memory
    *cpu.reg(Reg::Rdx) = 0x3f8;
    cpu.log.clear();
    assert_eq!(cpu.run(&[0xec]), DONE);
    assert_eq!(*cpu.reg(Reg::Rax), 0xd4);
    assert_eq!(cpu.run(&[0x66, 0xef]), DONE);
    assert_eq!(cpu.run(&[0xe5, 0x60]), gp());
    assert_eq!(cpu.log, [Event::In(0x3f8, 1), Event::Out(0x3f8, 2, 0xd4)]);
    // IOPL 3 opens all, but not in virtual-8086 mode.
    cpu.rflags |= rflags::IOPL;
    assert_eq!(cpu.run(&outsb), DONE);
    let mut cpu = with_io_map();
    *cpu.reg(Reg::Rdx) = 0x60;
    cpu.rflags |= rflags::IOPL | rflags::VM;
    for seg in [Seg::Cs, Seg::Ds] {
        cpu.segment_mut(seg).limit = 0xffff;
        cpu.segment_mut(seg).attributes = SegmentAttributes(0xf3);
    }
    assert_eq!(cpu.run(&outsb), gp());
    // No TSS, or one too short, allows nothing.
    for limit in [0x66, 0xe7] {
        let mut cpu = with_io_map();
        cpu.segment_mut(Seg::Tr).limit = limit;
        *cpu.reg(Reg::Rdx) = 0x3f8;
        assert_eq!(cpu.run(&outsb), gp());
    }
}

#[test]
fn control_registers_move() {
    let mut cpu = TestCpu::long(RAM, 0x1000);
    *cpu.reg(Reg::R9) = 0xffff_0000_1234;
    // mov cr3, r9; mov cr8, r9
    assert_eq!(cpu.run(&[0x41, 0x0f, 0x22, 0xd9]), DONE);
    assert_eq!(cpu.run(&[0x45, 0x0f, 0x22, 0xc1]), DONE);
    let value = 0xffff_0000_1234;
    assert_eq!(cpu.log, [Event::SetCr(3, value), Event::SetCr(8, value)]);
    // mov rax, cr3
    assert_eq!(cpu.run(&[0x0f, 0x20, 0xd8]), DONE);
    assert_eq!(*cpu.reg(Reg::Rax), value);
    // There is no CR1, nor CR5; the processor says so before it hands anything back.
    for code in [[0x0f, 0x20, 0xc8], [0x0f, 0x22, 0xe8]] {
        assert!(cpu.run(&code).is_err());
    }
    cpu.cpl = 3;
    assert_eq!(cpu.run(&[0x0f, 0x20, 0xd8]), gp());
    assert_eq!(cpu.run(&[0x0f, 0x06]), gp());
    // 32 bits in protected mode, whatever the upper half holds.
    let mut cpu = TestCpu::protected(RAM, 0x1000);
    *cpu.reg(Reg::Rax) = 0xdead_beef_0000_5000;
    assert_eq!(cpu.run(&[0x0f, 0x22, 0xd8]), DONE);
    assert_eq!(cpu.log, [Event::SetCr(3, 0x5000)]);
}

/// In 32- and 16-bit code, and in 64-bit code too, where there is another way.
#[test]
fn lock_makes_cr0_cr8() {
    let long = TestCpu::long(RAM, 0x1000);
    for mut cpu in [long, TestCpu::protected(RAM, 0x1000), TestCpu::real(0x1000)] {
        *cpu.reg(Reg::Rcx) = 5;
        // lock mov cr0, ecx; lock mov edx, cr0, with further prefixes in between
        let step = cpu.run(&[0xf0, 0x0f, 0x22, 0xc1]).unwrap();
        assert!(step.complete);
        assert_eq!(cpu.log, [Event::SetCr(8, 5)]);
        assert_eq!(cpu.run(&[0xf0, 0x66, 0xf0, 0x0f, 0x20, 0xc2]), DONE);
        assert_eq!((*cpu.reg(Reg::Rdx), cpu.rip), (5, 10));
        // Of no other control register, nor of a debug register.
        for code in [[0xf0, 0x0f, 0x22, 0xd9], [0xf0, 0x0f, 0x23, 0xc1]] {
            assert_eq!(cpu.run(&code), Err(Exception::INVALID_OPCODE.into()));
        }
        cpu.cpl = 3;
        assert!(cpu.run(&[0xf0, 0x0f, 0x22, 0xc1]).is_err());
        cpu.cpl = 0;
        cpu.lacks.push(Behaviour::AltMovCr8);
        let unknown = Err(Exception::INVALID_OPCODE.into());
        assert_eq!(cpu.run(&[0xf0, 0x0f, 0x22, 0xc1]), unknown);
        assert_eq!((cpu.cr[8], cpu.rip), (5, 10));
    }
}

#[test]
fn machine_status_words() {
    let mut cpu = TestCpu::long(RAM, 0x1000);
    cpu.cr[0] = cr0::PE | cr0::NE | cr0::TS | cr0::ET;
    *cpu.reg(Reg::Rbx) = DEVICE;
    // clts
    assert_eq!(cpu.run(&[0x0f, 0x06]), DONE);
    assert_eq!(cpu.cr[0], cr0::PE | cr0::NE | cr0::ET);
    // lmsw ax sets the low four bits, but clears no PE.
    *cpu.reg(Reg::Rax) = 0xfff8;
    assert_eq!(cpu.run(&[0x0f, 0x01, 0xf0]), DONE);
    assert_eq!(cpu.cr[0], cr0::PE | cr0::NE | cr0::ET | cr0::TS);
    // smsw [rbx] writes two bytes; smsw rcx all of it.
    assert_eq!(cpu.run(&[0x0f, 0x01, 0x23]), DONE);
    assert_eq!(cpu.log.last(), Some(&Event::Write(DEVICE, vec![0x39, 0])));
    assert_eq!(cpu.run(&[0x48, 0x0f, 0x01, 0xe1]), DONE);
    let cr0 = cpu.cr[0];
    assert_eq!(*cpu.reg(Reg::Rcx), cr0);
    // UMIP keeps it from CPL 3.
    cpu.cpl = 3;
    assert_eq!(cpu.run(&[0x0f, 0x01, 0x23]), DONE);
    cpu.cr[4] |= cr4::UMIP;
    assert_eq!(cpu.run(&[0x0f, 0x01, 0x23]), gp());
    // invlpg [rbx], even where it is not canonical.
    cpu.cpl = 0;
    *cpu.reg(Reg::Rbx) = 0x8000_0000_0000_0000;
    assert_eq!(cpu.run(&[0x0f, 0x01, 0x3b]), DONE);
    assert_eq!(
        cpu.log.last(),
        Some(&Event::Invalidate(0x8000_0000_0000_0000))
    );
}

#[test]
fn debug_registers_move() {
    let mut cpu = TestCpu::long(RAM, 0x1000);
    *cpu.reg(Reg::Rax) = 0x401;
    // mov dr7, rax; mov dr5, rax is the same.
    assert_eq!(cpu.run(&[0x0f, 0x23, 0xf8]), DONE);
    assert_eq!(cpu.run(&[0x0f, 0x23, 0xe8]), DONE);
    assert_eq!(cpu.log, [Event::SetDr(7, 0x401), Event::SetDr(7, 0x401)]);
    cpu.cr[4] |= cr4::DE;
    assert_eq!(cpu.run(&[0x0f, 0x23, 0xe8]), ud());
    // General detect.
    cpu.dr[7] |= 1 << 13;
    assert_eq!(cpu.run(&[0x0f, 0x21, 0xc3]), Err(Exception::DEBUG.into()));
    assert_eq!(
        (cpu.dr[6] >> 13 & 1, cpu.dr[7] >> 13 & 1, cpu.rip),
        (1, 0, 6)
    );
    assert_eq!(cpu.run(&[0x0f, 0x21, 0xc3]), DONE);
    cpu.cpl = 1;
    assert_eq!(cpu.run(&[0x0f, 0x21, 0xc3]), gp());
}

#[test]
fn stacks() {
    let mut cpu = TestCpu::protected(RAM, 0x1000);
    *cpu.reg(Reg::Rsp) = RAM + 0x100;
    cpu.at(RAM + 0x100, 4)
        .copy_from_slice(&0x1234_5678u32.to_le_bytes());
    // pop [esp+4]: counts from the new top.
    assert_eq!(cpu.run(&[0x8f, 0x44, 0x24, 4]), DONE);
    assert_eq!(*cpu.reg(Reg::Rsp), RAM + 0x104);
    assert_eq!(cpu.at(RAM + 0x108, 4), 0x1234_5678u32.to_le_bytes());
    // A 16-bit stack in 32-bit code: SP wraps.
    cpu.segment_mut(Seg::Ss).attributes.0 &= !SegmentAttributes::DB;
    cpu.segment_mut(Seg::Ss).base = RAM;
    *cpu.reg(Reg::Rsp) = 0x5555_0004;
    *cpu.reg(Reg::Rax) = 0xaabb_ccdd;
    assert_eq!(cpu.run(&[0x50]), DONE);
    assert_eq!(*cpu.reg(Reg::Rsp), 0x5555_0000);
    assert_eq!(cpu.at(RAM, 4), [0xdd, 0xcc, 0xbb, 0xaa]);
    // push [device] reads it once; a stack that faults leaves rSP.
    cpu.segment_mut(Seg::Ss).limit = 0x10;
    *cpu.reg(Reg::Rbx) = DEVICE;
    assert_eq!(cpu.run(&[0xff, 0x33]), Err(Exception::stack(0).into()));
    assert_eq!((*cpu.reg(Reg::Rsp), cpu.log.len()), (0x5555_0000, 0));
    // pop to a place that faults leaves rSP.
    cpu.segment_mut(Seg::Ds).limit = 0;
    assert_eq!(cpu.run(&[0x8f, 0x03]), gp());
    assert_eq!(*cpu.reg(Reg::Rsp), 0x5555_0000);
}

#[test]
fn rip_stays_in_its_width() {
    let mut cpu = TestCpu::protected(RAM, 0x1000);
    cpu.rip = 0xffff_fffe;
    *cpu.reg(Reg::Rbx) = RAM;
    assert_eq!(cpu.run(&[0x8b, 0x03]), DONE);
    assert_eq!(cpu.rip, 0);
    let mut cpu = TestCpu::long(RAM, 0x1000);
    cpu.rip = 0x1_0000_0000 - 2;
    *cpu.reg(Reg::Rbx) = RAM;
    assert_eq!(cpu.run(&[0x8b, 0x03]), DONE);
    assert_eq!(cpu.rip, 0x1_0000_0000);
}

proptest! {
    /// 128 by 64 bits, where the processor would raise #DE as well as where not.
    #[test]
    fn divisions(high: u64, low: u64, shift in 0..64u32, divisor: u64) {
        let (high, divisor) = (high >> shift, divisor >> (63 - shift));
        let mut cpu = TestCpu::long(RAM, 0x1000);
        cpu.at(RAM, 8).copy_from_slice(&divisor.to_le_bytes());
        *cpu.reg(Reg::Rbx) = RAM;
        for signed in [false, true] {
            *cpu.reg(Reg::Rax) = low;
            *cpu.reg(Reg::Rdx) = high;
            let dividend = u128::from(high) << 64 | u128::from(low);
            let result = if signed {
                let (a, b) = (dividend as i128, i128::from(divisor as i64));
                a.checked_div(b).and_then(|q| Some((i64::try_from(q).ok()? as u64, (a % b) as u64)))
            } else {
                let b = u128::from(divisor);
                dividend.checked_div(b).and_then(|q| Some((u64::try_from(q).ok()?, (dividend % b) as u64)))
            };
            // div qword [rbx], idiv qword [rbx]
            let step = cpu.run(&[0x48, 0xf7, if signed { 0x3b } else { 0x33 }]);
            match result {
                None => {
                    prop_assert_eq!(step, Err(Exception::DIVIDE.into()));
                    prop_assert_eq!((*cpu.reg(Reg::Rax), *cpu.reg(Reg::Rdx)), (low, high));
                }
                Some(quotient_and_rest) => {
                    prop_assert_eq!(step, DONE);
                    prop_assert_eq!((*cpu.reg(Reg::Rax), *cpu.reg(Reg::Rdx)), quotient_and_rest);
                }
            }
        }
    }

    /// Whatever the bytes, mode and registers: an answer, and never a panic.
    #[test]
    fn any_bytes_have_an_answer(code: [u8; 15], gprs: [u64; 16], mode in 0..3u8, flags: u64, cpl in 0..4u8) {
        let mut cpu = match mode {
            0 => TestCpu::long(RAM, 0x1000),
            1 => TestCpu::protected(RAM, 0x1000),
            _ => TestCpu::real(0x1000),
        };
        cpu.gprs.0 = gprs;
        cpu.rflags = flags & 0x3f_7fd5 | rflags::FIXED;
        cpu.cpl = cpl;
        let before = cpu.clone();
        let result = cpu.run(&code);
        if result.is_err() && cpu.log.is_empty() && before.gprs == cpu.gprs {
            prop_assert_eq!(before.rip, cpu.rip);
        }
        let _ = emulator::length_at(&mut cpu);
    }
}
