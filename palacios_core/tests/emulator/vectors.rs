// SPDX-License-Identifier: MIT OR Apache-2.0
//! Moves of vector registers from and to a device: what it sees, and when they fault (SDM 2A: 2.4; SDM 3A: 12.1).

use crate::machine::{device_byte, Event, TestCpu};
use crate::system::*;
use palacios_core::emulator::{Fault, Step};
use palacios_core::state::*;

const DEVICE: u64 = 0xfee0_0000;

/// A CPU whose system lets programs use all registers, RBX on the device.
fn cpu() -> TestCpu {
    let mut cpu = TestCpu::long(RAM, 0x2000);
    cpu.cr[4] = cr4::OSFXSR | cr4::OSXSAVE;
    *cpu.reg(Reg::Rbx) = DEVICE;
    cpu
}

fn device_bytes(from: u64, count: usize) -> Vec<u8> {
    (from..).take(count).map(device_byte).collect()
}

#[test]
fn a_move_is_one_access() {
    // The instruction, whether it writes, and how many bytes.
    let cases: &[(&str, &[u8], bool, usize)] = &[
        ("movq mm1, [rbx]", &[0x0f, 0x6f, 0x0b], false, 8),
        ("movd [rbx], mm1", &[0x0f, 0x7e, 0x0b], true, 4),
        ("movntq [rbx], mm1", &[0x0f, 0xe7, 0x0b], true, 8),
        ("movups xmm1, [rbx]", &[0x0f, 0x10, 0x0b], false, 16),
        ("movd xmm1, [rbx]", &[0x66, 0x0f, 0x6e, 0x0b], false, 4),
        ("movss [rbx], xmm1", &[0xf3, 0x0f, 0x11, 0x0b], true, 4),
        ("movhps xmm1, [rbx]", &[0x0f, 0x16, 0x0b], false, 8),
        ("movntdq [rbx], xmm1", &[0x66, 0x0f, 0xe7, 0x0b], true, 16),
        ("vmovdqu ymm1, [rbx]", &[0xc5, 0xfe, 0x6f, 0x0b], false, 32),
        ("vmovntps [rbx], ymm1", &[0xc5, 0xfc, 0x2b, 0x0b], true, 32),
        (
            "vbroadcastss ymm1, [rbx]",
            &[0xc4, 0xe2, 0x7d, 0x18, 0x0b],
            false,
            4,
        ),
        ("stmxcsr [rbx]", &[0x0f, 0xae, 0x1b], true, 4),
        ("fnstcw [rbx]", &[0xd9, 0x3b], true, 2),
    ];
    for (name, code, write, bytes) in cases {
        let mut cpu = cpu();
        assert_eq!(cpu.run(code), DONE, "{name}");
        match &cpu.log[..] {
            [Event::Read(DEVICE, len)] => assert_eq!((false, *len), (*write, *bytes), "{name}"),
            [Event::Write(DEVICE, data)] => {
                assert_eq!((true, data.len()), (*write, *bytes), "{name}");
            }
            other => panic!("{name}: {other:x?}"),
        }
    }
}

#[test]
fn what_the_system_switched_off_faults() {
    const NM: Result<Step, Fault> = Err(Fault::Exception(Exception::NO_FPU));
    const MF: Result<Step, Fault> = Err(Fault::Exception(Exception::X87));
    let instructions: [&[u8]; 6] = [
        &[0x0f, 0x6f, 0x0b],
        &[0x0f, 0x10, 0x0b],
        &[0xc5, 0xf8, 0x10, 0x0b],
        &[0x0f, 0xae, 0x03],
        &[0xd9, 0x3b],
        &[0x0f, 0xae, 0x1b],
    ];
    // What is done to the CPU; what movq mm1, movups, vmovups, fxsave, fnstcw and stmxcsr come to.
    type Case = (&'static str, fn(&mut TestCpu), [Result<Step, Fault>; 6]);
    let cases: [Case; 8] = [
        ("nothing", |_| {}, [DONE; 6]),
        ("CR0.TS", |cpu| cpu.cr[0] |= cr0::TS, [NM; 6]),
        (
            "CR0.EM",
            |cpu| cpu.cr[0] |= cr0::EM,
            [ud(), ud(), DONE, NM, NM, ud()],
        ),
        (
            "CR0.EM and TS",
            |cpu| cpu.cr[0] |= cr0::EM | cr0::TS,
            [ud(), ud(), NM, NM, NM, ud()],
        ),
        (
            "no CR4.OSFXSR",
            |cpu| cpu.cr[4] &= !cr4::OSFXSR,
            [DONE, ud(), DONE, DONE, DONE, ud()],
        ),
        (
            "no CR4.OSXSAVE",
            |cpu| cpu.cr[4] &= !cr4::OSXSAVE,
            [DONE, DONE, ud(), DONE, DONE, DONE],
        ),
        (
            "XCR0 without AVX",
            |cpu| cpu.xcr0 = 3,
            [DONE, DONE, ud(), DONE, DONE, DONE],
        ),
        (
            "an x87 exception",
            |cpu| {
                cpu.area()
                    .set_legacy(0, &[0x7e, 3, 0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            },
            [MF, DONE, DONE, DONE, DONE, DONE],
        ),
    ];
    for (what, prepare, expected) in cases {
        for (code, expected) in instructions.iter().zip(expected) {
            let mut cpu = cpu();
            prepare(&mut cpu);
            let before = cpu.clone();
            assert_eq!(cpu.run(code), expected, "{code:02x?} under {what}");
            if expected != DONE {
                assert!(
                    cpu.log.is_empty() && cpu.fpu == before.fpu,
                    "{code:02x?} under {what}"
                );
            }
        }
    }
    // AVX is none of real mode's.
    let mut cpu = TestCpu::real(0x1000);
    cpu.cr[4] = cr4::OSFXSR | cr4::OSXSAVE;
    *cpu.reg(Reg::Rbx) = 0x8000;
    assert_eq!(cpu.run(&[0xc5, 0xf8, 0x10, 0x0f]), ud());
    assert_eq!(cpu.run(&[0x0f, 0x10, 0x0f]), DONE);
}

#[test]
fn some_want_alignment() {
    // movaps, movdqa, movntdqa, movntps, vmovaps ymm, vmovdqa xmm; then movups, lddqu, movlps, vmovdqu ymm.
    let aligned: [(&[u8], u64); 6] = [
        (&[0x0f, 0x28, 0x0b], 16),
        (&[0x66, 0x0f, 0x7f, 0x0b], 16),
        (&[0x66, 0x0f, 0x38, 0x2a, 0x0b], 16),
        (&[0x0f, 0x2b, 0x0b], 16),
        (&[0xc5, 0xfc, 0x28, 0x0b], 32),
        (&[0xc5, 0xf9, 0x6f, 0x0b], 16),
    ];
    for (code, alignment) in aligned {
        for offset in [1, 4, 8, 16, 32] {
            let mut cpu = cpu();
            *cpu.reg(Reg::Rbx) = DEVICE + offset;
            let fits = offset % alignment == 0;
            assert_eq!(
                cpu.run(code),
                if fits { DONE } else { gp(0) },
                "{code:02x?} at {offset}"
            );
            assert_eq!(cpu.log.is_empty(), !fits);
        }
    }
    let free: [&[u8]; 4] = [
        &[0x0f, 0x10, 0x0b],
        &[0xf2, 0x0f, 0xf0, 0x0b],
        &[0x0f, 0x12, 0x0b],
        &[0xc5, 0xfe, 0x6f, 0x0b],
    ];
    for code in free {
        let mut cpu = cpu();
        cpu.cpl = 3;
        cpu.cr[0] |= cr0::AM;
        cpu.rflags |= rflags::AC;
        *cpu.reg(Reg::Rbx) = DEVICE + 16;
        assert_eq!(cpu.run(code), DONE, "{code:02x?}");
        *cpu.reg(Reg::Rbx) = DEVICE + 1;
        // Of operands of 8 bytes alignment is checked where the program asks for it.
        let expected = match code[1] {
            0x12 => Err(Exception::alignment().into()),
            _ => DONE,
        };
        assert_eq!(cpu.run(code), expected, "{code:02x?}");
    }
}

#[test]
fn a_form_with_vex_clears_what_is_above() {
    let noise: [u8; 32] = std::array::from_fn(|i| i as u8 + 1);
    let loaded = device_bytes(DEVICE, 16);
    for (code, above) in [
        (&[0x0f, 0x10, 0x0b][..], &noise[16..]),
        (&[0xc5, 0xf8, 0x10, 0x0b], &[0; 16]),
    ] {
        let mut cpu = cpu();
        cpu.area().set_ymm(1, &noise);
        // The upper halves of ZMM registers are in use.
        cpu.fpu[512] |= 1 << 6;
        cpu.fpu[1152 + 32..][..32].fill(0xaa);
        assert_eq!(cpu.run(code), DONE);
        let ymm = cpu.area().ymm(1);
        assert_eq!((&ymm[..16], &ymm[16..]), (&loaded[..], above));
        let kept = code.len() == 3;
        assert_eq!(
            cpu.fpu[1152 + 32..][..32],
            [if kept { 0xaa } else { 0 }; 32]
        );
    }
}

#[test]
fn components_that_are_not_in_use_are_initial() {
    // The bytes of a component that is not in use mean nothing, and do not come back with one register.
    let mut cpu = cpu();
    cpu.fpu[160..1000].fill(0x55);
    cpu.fpu[512..576].fill(0);
    assert_eq!(cpu.run(&[0x0f, 0x11, 0x1b]), DONE);
    assert_eq!(cpu.log, [Event::Write(DEVICE, vec![0; 16])]);
    assert_eq!(cpu.run(&[0xc5, 0xfe, 0x6f, 0x4b, 0x40]), DONE);
    assert_eq!(cpu.fpu[512] & 7, 0b110);
    assert_eq!(cpu.area().ymm(1)[..], device_bytes(DEVICE + 0x40, 32));
    assert_eq!(cpu.area().ymm(2), [0; 32]);
    // Without a header all are in use.
    cpu.layout.header = false;
    cpu.fpu[160 + 32..][..16].fill(0x77);
    assert_eq!(cpu.area().ymm(2)[..16], [0x77; 16]);
}

#[test]
fn mmx_takes_over_the_stack_of_x87() {
    let mut cpu = cpu();
    // The stack's top is register 5, so that ST(0) is MM5.
    cpu.area().set_legacy(
        0,
        &[0x7f, 3, 0, 5 << 3, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    for n in 0..8 {
        cpu.area().set_legacy(2 + n, &[n; 16]);
    }
    // movq [rbx], mm5; then all registers are in use, and the top is register 0.
    assert_eq!(cpu.run(&[0x0f, 0x7f, 0x2b]), DONE);
    assert_eq!(cpu.log, [Event::Write(DEVICE, vec![0; 8])]);
    assert_eq!(
        (cpu.area().status_word(), cpu.area().legacy(0)[4]),
        (0, 0xff)
    );
    assert_eq!(cpu.area().mmx(6), 0x0101_0101_0101_0101);
    // movq mm6, [rbx + 8]: the rest of the register becomes ones.
    assert_eq!(cpu.run(&[0x0f, 0x6f, 0x73, 8]), DONE);
    let register = cpu.area().legacy(2 + 6);
    assert_eq!(register[..8], device_bytes(DEVICE + 8, 8));
    assert_eq!(register[8..10], [0xff; 2]);
}

#[test]
fn moves_across_pages_are_checked_before_they_begin() {
    let mut cpu = cpu();
    // The last 8 bytes of RAM, then the device behind it.
    *cpu.reg(Reg::Rbx) = RAM + 0x1ff8;
    cpu.area().set_xmm(1, &std::array::from_fn(|i| i as u8));
    assert_eq!(cpu.run(&[0x0f, 0x11, 0x0b]), DONE);
    assert_eq!(cpu.at(RAM + 0x1ff8, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(cpu.log, [Event::Write(RAM + 0x2000, (8..16).collect())]);
    // An address whose end is not canonical.
    let before = cpu.clone();
    *cpu.reg(Reg::Rbx) = 0x7fff_ffff_fff8;
    assert_eq!(cpu.run(&[0x0f, 0x11, 0x0b]), gp(0));
    *cpu.reg(Reg::Rbp) = 0x7fff_ffff_fff8;
    assert_eq!(cpu.run(&[0x0f, 0x10, 0x4d, 0]), ss(0));
    assert!(cpu.log == before.log && cpu.fpu == before.fpu);
}

#[test]
fn masked_elements_are_not_touched() {
    let mut cpu = cpu();
    let mut mask = [0; 32];
    (mask[3], mask[31]) = (0x80, 0x80);
    cpu.area().set_ymm(2, &mask);
    cpu.area().set_ymm(3, &std::array::from_fn(|i| i as u8));
    // vmaskmovps [rbx], ymm2, ymm3; vmaskmovps ymm1, ymm2, [rbx + 0x100]
    assert_eq!(cpu.run(&[0xc4, 0xe2, 0x6d, 0x2e, 0x1b]), DONE);
    let written = [(0, vec![0, 1, 2, 3]), (28, vec![28, 29, 30, 31])];
    assert_eq!(
        cpu.log,
        written.map(|(at, data)| Event::Write(DEVICE + at, data))
    );
    cpu.log.clear();
    assert_eq!(cpu.run(&[0xc4, 0xe2, 0x6d, 0x2c, 0x8b, 0, 1, 0, 0]), DONE);
    assert_eq!(
        cpu.log,
        [0x100, 0x11c].map(|at| Event::Read(DEVICE + at, 4))
    );
    let ymm = cpu.area().ymm(1);
    assert_eq!(
        (&ymm[..4], &ymm[4..28]),
        (&device_bytes(DEVICE + 0x100, 4)[..], &[0; 24][..])
    );
    // What is not selected may lie anywhere; the first element alone is canonical.
    *cpu.reg(Reg::Rbx) = 0x7fff_ffff_fffc;
    assert_eq!(cpu.run(&[0xc4, 0xe2, 0x6d, 0x2e, 0x1b]), gp(0));
    mask[31] = 0;
    cpu.area().set_ymm(2, &mask);
    assert_eq!(cpu.run(&[0xc4, 0xe2, 0x6d, 0x2e, 0x1b]), DONE);
    // maskmovdqu xmm3, xmm2: bytes, where rDI points in DS or the segment that overrides it; none need no memory.
    *cpu.reg(Reg::Rdi) = DEVICE;
    cpu.segment_mut(Seg::Fs).base = 0x1000;
    cpu.log.clear();
    assert_eq!(cpu.run(&[0x64, 0x66, 0x0f, 0xf7, 0xda]), DONE);
    assert_eq!(cpu.log, [Event::Write(DEVICE + 0x1003, vec![3])]);
    cpu.area().set_ymm(2, &[0; 32]);
    *cpu.reg(Reg::Rdi) = 1 << 63;
    assert_eq!(cpu.run(&[0x66, 0x0f, 0xf7, 0xda]), DONE);
}

#[test]
fn mxcsr_has_bits_that_must_not_be_set() {
    let mut cpu = cpu();
    cpu.device.extend((DEVICE..).zip(0x1_0000u32.to_le_bytes()));
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x13]), gp(0));
    assert_eq!(cpu.area().mxcsr(), 0x1f80);
    cpu.device.extend((DEVICE..).zip(0x9fbfu32.to_le_bytes()));
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x13]), DONE);
    assert_eq!(cpu.area().mxcsr(), 0x9fbf);
    // fxrstor refuses the same, and nothing is loaded.
    cpu.device.extend((DEVICE..).zip([0; 512]));
    cpu.device
        .extend((DEVICE + 24..).zip(0x40u32.to_le_bytes()));
    let before = cpu.fpu.clone();
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x0b]), gp(0));
    assert_eq!(cpu.fpu, before);
}

#[test]
fn fxsave_is_as_long_as_the_mode_has_registers() {
    let last = |cpu: &TestCpu| match cpu.log.last() {
        Some(Event::Write(at, data)) => at + data.len() as u64 - DEVICE,
        other => panic!("{other:?}"),
    };
    let mut cpu = cpu();
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x03]), DONE);
    assert_eq!((last(&cpu), cpu.log.len()), (416, 26));
    // With EFER.FFXSR not the XMM registers, at level 0 in 64-bit mode.
    cpu.efer |= efer::FFXSR;
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x03]), DONE);
    assert_eq!(last(&cpu), 160);
    cpu.cpl = 3;
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x03]), DONE);
    assert_eq!(last(&cpu), 416);
    let mut cpu = TestCpu::protected(RAM, 0x1000);
    cpu.cr[4] = cr4::OSFXSR;
    *cpu.reg(Reg::Rbx) = DEVICE;
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x03]), DONE);
    assert_eq!(last(&cpu), 288);
    *cpu.reg(Reg::Rbx) = DEVICE + 8;
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x03]), gp(0));
}
