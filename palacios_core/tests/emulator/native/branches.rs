// SPDX-License-Identifier: MIT OR Apache-2.0
//! Branches that lead to the next instruction, as user mode can take them: near and far, and returns.

use super::{Hex, Native, Noise, State, DATA_BYTES, STATUS};
use crate::machine::TestCpu;
use core::arch::asm;
use palacios_core::state::{rflags, Reg, Seg, SegmentAttributes, TableRegister};

/// Code and data at CPL 3 that everything can be reached through: 64-bit code, and a flat data segment.
const USER_CODE: u64 = 0x00af_fb00_0000_ffff;
const USER_DATA: u64 = 0x00cf_f300_0000_ffff;
/// Where the emulated processor has its descriptors.
const DESCRIPTORS: u64 = 0x10_0000;

/// Selectors of this process.
fn selectors() -> (u64, u64) {
    let (code, stack): (u16, u16);
    // SAFETY: reads two registers.
    unsafe { asm!("mov {:x}, cs", "mov {:x}, ss", out(reg) code, out(reg) stack) };
    (code.into(), stack.into())
}

/// What an instruction finds at rSP or where RBX points: `None` is the address of the next instruction.
type Frame<'a> = &'a [(usize, Option<u64>)];

#[test]
fn branches_agree_with_the_processor() {
    let (code, stack) = selectors();
    let flags = rflags::IF | rflags::CF | rflags::SF;
    let rsp = |native: &Native| native.data_at() + 0x800;
    let mut native = Native::new();
    let back = Some(rsp(&native));
    // The instruction, and what it finds at rSP, which is 0x10 above RBX.
    let cases: &[(&[u8], Frame)] = &[
        // call +0; call [rbx + 0x10]; jmp [rbx + 0x10]
        (&[0xe8, 0, 0, 0, 0], &[]),
        (&[0xff, 0x53, 0x10], &[(8, None)]),
        (&[0xff, 0x63, 0x10], &[(8, None)]),
        // ret; ret 0x20; rex.w ret
        (&[0xc3], &[(8, None)]),
        (&[0xc2, 0x20, 0], &[(8, None)]),
        (&[0x48, 0xc3], &[(8, None)]),
        // call far [rbx + 0x10]; jmp far [rbx + 0x10]
        (&[0xff, 0x5b, 0x10], &[(4, None), (2, Some(code))]),
        (&[0xff, 0x6b, 0x10], &[(4, None), (2, Some(code))]),
        // retf; retf 0x10; rex.w retf
        (&[0xcb], &[(4, None), (4, Some(code))]),
        (&[0xca, 0x10, 0], &[(4, None), (4, Some(code))]),
        (&[0x48, 0xcb], &[(8, None), (8, Some(code))]),
        // iretq, iretd
        (
            &[0x48, 0xcf],
            &[
                (8, None),
                (8, Some(code)),
                (8, Some(flags)),
                (8, back),
                (8, Some(stack)),
            ],
        ),
        (
            &[0xcf],
            &[
                (4, None),
                (4, Some(code)),
                (4, Some(flags)),
                (4, back),
                (4, Some(stack)),
            ],
        ),
        // mov ss, [rbx + 0x10]
        (&[0x8e, 0x53, 0x10], &[(2, Some(stack))]),
    ];
    let mut noise = Noise(0x2545_f491_4f6c_dd1d);
    for (instruction, frame) in cases {
        let at = native.instruction_at();
        let next = at + instruction.len() as u64;
        let mut before = State {
            gprs: [0; 16].map(|_: u64| noise.next()),
            flags: noise.next() & STATUS | rflags::FIXED | rflags::IF,
            data: noise.bytes(DATA_BYTES),
            fpu: Vec::new(),
        };
        before.gprs[Reg::Rsp as usize] = rsp(&native);
        before.gprs[Reg::Rbx as usize] = rsp(&native) - 0x10;
        let mut place = 0x800;
        for (bytes, value) in *frame {
            let value = value.unwrap_or(next).to_le_bytes();
            before.data[place..place + bytes].copy_from_slice(&value[..*bytes]);
            place += bytes;
        }
        let mut theirs = before.clone();
        native.run(instruction, &mut theirs);

        let mut cpu = TestCpu::long(native.data_at(), DATA_BYTES);
        as_user(&mut cpu, code, stack);
        cpu.gprs.0 = before.gprs;
        cpu.rflags = before.flags;
        cpu.ram = before.data;
        cpu.rip = at;
        let step = cpu.run(instruction);
        let show = format!("{instruction:02x?}");
        assert!(step.is_ok_and(|step| step.complete), "{show}: {step:?}");
        assert_eq!(cpu.rip, next, "{show}");
        assert_eq!(cpu.gprs.0.map(Hex), theirs.gprs.map(Hex), "{show}");
        assert_eq!(Hex(cpu.rflags), Hex(theirs.flags), "{show}");
        assert!(cpu.ram == theirs.data, "memory after {show}");
        assert_eq!(
            (cpu.cpl, cpu.segments[Seg::Cs as usize].selector),
            (3, code as u16)
        );
    }
}

/// CPL 3 with these selectors, and descriptors for them.
fn as_user(cpu: &mut TestCpu, code: u64, stack: u64) {
    cpu.gdtr = TableRegister {
        base: DESCRIPTORS,
        limit: 0xff,
    };
    for (selector, descriptor) in [(code, USER_CODE), (stack, USER_DATA)] {
        let at = DESCRIPTORS + (selector & !7);
        cpu.device.extend((at..).zip(descriptor.to_le_bytes()));
    }
    cpu.cpl = 3;
    let segment = cpu.segment_mut(Seg::Cs);
    segment.selector = code as u16;
    segment.attributes = SegmentAttributes(0x0afb);
    let segment = cpu.segment_mut(Seg::Ss);
    segment.selector = stack as u16;
    segment.attributes = SegmentAttributes(0x0cf3);
}
