// SPDX-License-Identifier: MIT OR Apache-2.0
//! Far branches and returns with their frames on a device (SDM 2: CALL, JMP, RET, IRET).

use crate::system::*;
use palacios_core::emulator::{Fault, Step};
use palacios_core::state::*;

/// Where branches lead.
const TARGET: u64 = 0x12_3456;
const FLAGS: u64 = rflags::FIXED | rflags::IF | rflags::CF;
const TASK_SWITCH: Result<Step, Fault> = Err(Fault::TaskSwitch);

/// `call far [rbx]` or `jmp far [rbx]`, with `offset:selector` on the device.
fn branch(system: &mut System, call: bool, selector: u16, offset: u64) -> Result<Step, Fault> {
    *system.cpu.reg(Reg::Rbx) = 0xfee0_0000;
    system.store(0xfee0_0000, 4, &[offset]);
    system.store(0xfee0_0004, 2, &[selector.into()]);
    system.cpu.run(&[0xff, if call { 0x1b } else { 0x2b }])
}

#[test]
fn far_branches_check_what_they_lead_to() {
    const SEL: u32 = FREE as u32;
    let no_limit = |access| descriptor(access, 0, 0xfff);
    // The descriptor at FREE; CPL and RPL; the outcome in 32-bit code.
    let cases = [
        (flat(CODE, false), 0, 0, DONE),
        (flat(CODE, false), 0, 3, gp(SEL)),
        (flat(CODE, false), 3, 3, gp(SEL)),
        (flat(CODE | dpl(3), false), 0, 0, gp(SEL)),
        (flat(CODE | dpl(3), false), 3, 0, DONE),
        (flat(CONFORMING, false), 3, 3, DONE),
        (flat(CONFORMING | dpl(3), false), 0, 0, gp(SEL)),
        (flat(DATA, false), 0, 0, gp(SEL)),
        (flat(CODE & !0x80, false), 0, 0, np(SEL)),
        (no_limit(CODE), 0, 0, gp(0)),
        (descriptor(TSS_32, 0, 0x67), 0, 0, TASK_SWITCH),
        (gate(0x85, TASK, 0, 0), 0, 0, TASK_SWITCH),
        (gate(0x85, TASK, 0, 0), 3, 3, gp(SEL)),
        (descriptor(TSS_32 & !0x80, 0, 0x67), 0, 0, np(SEL)),
        (descriptor(LDT_TYPE, 0, 0x67), 0, 0, gp(SEL)),
    ];
    for (descriptor, cpl, rpl, expected) in cases {
        for call in [false, true] {
            let mut system = System::protected(cpl);
            system.describe(FREE, descriptor);
            let before = system.cpu.clone();
            let what = format!("{descriptor:x} at {cpl}, {rpl}");
            assert_eq!(
                branch(&mut system, call, FREE | rpl, TARGET),
                expected,
                "{what}"
            );
            if expected != DONE {
                assert_eq!(
                    (system.rsp(), system.cpu.rip),
                    (STACK, before.rip),
                    "{what}"
                );
                assert_eq!(
                    (system.written(), system.described(FREE)),
                    (vec![], descriptor),
                    "{what}"
                );
                continue;
            }
            assert_eq!((system.cpu.rip, system.cpu.cpl), (TARGET, cpl), "{what}");
            assert_eq!(system.selector(Seg::Cs), FREE | u16::from(cpl), "{what}");
            let back = [
                (STACK - 4, before.segments[1].selector.into()),
                (STACK - 8, 0x5002),
            ];
            let pushed = if call { &back[..] } else { &[] };
            assert_eq!(system.written(), pushed, "{what}");
            assert_eq!(system.described(FREE), descriptor | 1 << 40, "{what}");
        }
    }
    let mut system = System::protected(0);
    assert_eq!(branch(&mut system, true, 3, TARGET), gp(0));
}

#[test]
fn long_mode_knows_two_kinds_of_code() {
    for (descriptor, expected) in [
        (flat(CODE, true), DONE),
        (flat(CODE, false), DONE),
        (flat(CODE, true) | 1 << 54, gp(FREE.into())),
        (self::descriptor(TSS_32, 0, 0x67), gp(FREE.into())),
    ] {
        let mut system = System::long(0);
        system.describe(FREE, descriptor);
        assert_eq!(
            branch(&mut system, true, FREE, TARGET),
            expected,
            "{descriptor:x}"
        );
    }
    // A frame of 4-byte elements, as the operand says.
    let mut system = System::long(0);
    assert_eq!(branch(&mut system, true, CODE_32, TARGET), DONE);
    assert_eq!(
        system.written(),
        [(STACK - 4, CODE_0.into()), (STACK - 8, 0x5002)]
    );
    assert!(!system.cpu.segments[1].attributes.has(SegmentAttributes::L));
}

#[test]
fn call_gates_lead_inwards() {
    // From level 3 through a gate with two parameters to level 0, whose stack the task has.
    let mut system = System::protected(3);
    system.describe(FREE, gate(CALL_GATE | dpl(3), CODE_0, TARGET, 2));
    system.store(STACK, 4, &[0xaaaa, 0xbbbb]);
    assert_eq!(branch(&mut system, true, FREE | 3, 0xdead), DONE);
    let top = INNER[0];
    let pushed = [
        (top - 4, u64::from(DATA_3 | 3)),
        (top - 8, STACK),
        (top - 12, 0xbbbb),
        (top - 16, 0xaaaa),
        (top - 20, u64::from(CODE_3 | 3)),
        (top - 24, 0x5002),
    ];
    assert_eq!(system.written(), pushed);
    assert_eq!(
        (system.cpu.rip, system.cpu.cpl, system.rsp()),
        (TARGET, 0, top - 24)
    );
    assert_eq!(
        (system.selector(Seg::Cs), system.selector(Seg::Ss)),
        (CODE_0, DATA_0)
    );
    // And back, by retf 8.
    assert_eq!(system.cpu.run(&[0xca, 8, 0]), DONE);
    assert_eq!((system.cpu.rip, system.cpu.cpl), (0x5002, 3));
    assert_eq!(
        (system.selector(Seg::Cs), system.selector(Seg::Ss)),
        (CODE_3 | 3, DATA_3 | 3)
    );
    assert_eq!(system.rsp(), STACK + 8);
}

#[test]
fn call_gates_are_checked() {
    const SEL: u32 = FREE as u32;
    let target = |selector| gate(CALL_GATE | dpl(3), selector, TARGET, 0);
    let other = |access| gate(access, CODE_0, TARGET, 0);
    // The gate at FREE; CPL; what CALL gets, and what JMP.
    let cases = [
        (target(CODE_0), 0, DONE, DONE),
        (target(CODE_0), 3, DONE, gp(CODE_0.into())),
        (target(CODE_3), 3, DONE, DONE),
        (target(CODE_3), 0, gp(CODE_3.into()), gp(CODE_3.into())),
        (target(DATA_0), 0, gp(DATA_0.into()), gp(DATA_0.into())),
        (target(0), 0, gp(0), gp(0)),
        (target(0x3f8 | 4), 0, gp(0x3fc), gp(0x3fc)),
        (other(CALL_GATE), 3, gp(SEL), gp(SEL)),
        (other(CALL_GATE & !0x80 | dpl(3)), 3, np(SEL), np(SEL)),
        (other(INTERRUPT_GATE | dpl(3)), 3, gp(SEL), gp(SEL)),
    ];
    for (gate, cpl, call, jump) in cases {
        for (is_call, expected) in [(true, call), (false, jump)] {
            let mut system = System::protected(cpl);
            system.describe(FREE, gate);
            let what = format!("{gate:x} at {cpl}, call {is_call}");
            assert_eq!(branch(&mut system, is_call, FREE, 0), expected, "{what}");
            if expected != DONE {
                assert_eq!((system.written(), system.rsp()), (vec![], STACK), "{what}");
            }
        }
    }
    // A 16-bit gate pushes words, and takes 16 bits of the offset.
    let mut system = System::protected(0);
    system.describe(FREE, gate(0x84, CODE_0, TARGET, 0));
    assert_eq!(branch(&mut system, true, FREE, 0), DONE);
    assert_eq!(
        system.written(),
        [(STACK - 2, CODE_0.into()), (STACK - 4, 0x5002)]
    );
    assert_eq!(system.cpu.rip, TARGET & 0xffff);
}

#[test]
fn long_call_gates_have_sixteen_bytes() {
    let mut system = System::long(3);
    system.describe(FREE, gate(CALL_GATE | dpl(3), CODE_0, TARGET, 0));
    system.describe(FREE + 8, 0xffff_8000);
    assert_eq!(branch(&mut system, true, FREE, 0), DONE);
    let top = INNER[0];
    let pushed = [
        (top - 8, u64::from(DATA_3 | 3)),
        (top - 16, STACK),
        (top - 24, u64::from(CODE_3 | 3)),
        (top - 32, 0x5002),
    ];
    assert_eq!(system.written(), pushed);
    assert_eq!((system.cpu.rip, system.cpu.cpl), (0xffff_8000_0012_3456, 0));
    assert_eq!((system.selector(Seg::Ss), system.rsp()), (0, top - 32));
    // Only to 64-bit code; and not where the upper half has a type.
    for (selector, high, code) in [(CODE_32, 0, CODE_32), (CODE_0, 0x80c << 37, FREE)] {
        let mut system = System::long(3);
        system.describe(FREE, gate(CALL_GATE | dpl(3), selector, TARGET, 0));
        system.describe(FREE + 8, high);
        assert_eq!(branch(&mut system, true, FREE, 0), gp(code.into()));
    }
}

#[test]
fn inner_stacks_are_checked() {
    const TR: u32 = TASK as u32;
    let call = |prepare: &dyn Fn(&mut System)| {
        let mut system = System::protected(3);
        system.describe(FREE, gate(CALL_GATE | dpl(3), CODE_0, TARGET, 0));
        prepare(&mut system);
        let result = branch(&mut system, true, FREE, 0);
        assert_eq!((system.written(), system.cpu.cpl), (vec![], 3));
        result
    };
    let with_ss = |selector: u16| call(&move |system| system.put(TSS + 8, &selector.to_le_bytes()));
    assert_eq!(with_ss(0), ts(0));
    assert_eq!(with_ss(DATA_3 | 3), ts(DATA_3.into()));
    assert_eq!(with_ss(DATA_1), ts(DATA_1.into()));
    assert_eq!(with_ss(CODE_0), ts(CODE_0.into()));
    assert_eq!(with_ss(0x3f8), ts(0x3f8));
    assert_eq!(
        call(&|system| system.describe(DATA_0, flat(DATA & !0x80, false))),
        ss(DATA_0.into())
    );
    assert_eq!(
        call(&|system| system.describe(DATA_0, descriptor(DATA, 0, 0xff))),
        ss(DATA_0.into())
    );
    assert_eq!(
        call(&|system| system.cpu.segment_mut(Seg::Tr).limit = 8),
        ts(TR)
    );
}

#[test]
fn returns_are_checked() {
    // CS and SS on the stack; the outcome of retf, in 32-bit code at level 1.
    let cases = [
        (CODE_1 | 1, 0, DONE),
        (CODE_3 | 3, DATA_3 | 3, DONE),
        (CODE_0, 0, gp(CODE_0.into())),
        (CODE_3 | 1, 0, gp(CODE_3.into())),
        (CODE_1 | 3, DATA_3 | 3, gp(CODE_1.into())),
        (DATA_1 | 1, 0, gp(DATA_1.into())),
        (0, 0, gp(0)),
        (CODE_3 | 3, 0, gp(0)),
        (CODE_3 | 3, DATA_1 | 3, gp(DATA_1.into())),
        (CODE_3 | 3, DATA_3 | 1, gp(DATA_3.into())),
        (0x3f8 | 1, 0, gp(0x3f8)),
    ];
    for (cs, ss, expected) in cases {
        for iret in [false, true] {
            let mut system = System::protected(1);
            let flags = iret.then_some(FLAGS);
            let frame = [
                Some(TARGET),
                Some(cs.into()),
                flags,
                Some(0x7000),
                Some(ss.into()),
            ];
            let frame: Vec<u64> = frame.into_iter().flatten().collect();
            system.store(STACK, 4, &frame);
            let before = system.cpu.segments;
            let what = format!("{cs:x} {ss:x}, IRET {iret}");
            assert_eq!(
                system.cpu.run(&[if iret { 0xcf } else { 0xcb }]),
                expected,
                "{what}"
            );
            match expected {
                DONE => assert_eq!(
                    (system.cpu.rip, system.cpu.cpl),
                    (TARGET, cs as u8 & 3),
                    "{what}"
                ),
                _ => assert_eq!(
                    (system.rsp(), system.cpu.segments),
                    (STACK, before),
                    "{what}"
                ),
            }
        }
    }
    // Absent segments; a limit; an address that is not canonical.
    let mut system = System::protected(0);
    system.describe(CODE_3, flat(CODE & !0x80 | dpl(3), false));
    system.store(
        STACK,
        4,
        &[TARGET, (CODE_3 | 3).into(), 0x7000, (DATA_3 | 3).into()],
    );
    assert_eq!(system.cpu.run(&[0xcb]), np(CODE_3.into()));
    system.describe(CODE_3, descriptor(CODE | dpl(3), 0, 0xfff));
    assert_eq!(system.cpu.run(&[0xcb]), gp(0));
    system.describe(CODE_3, flat(CODE | dpl(3), false));
    system.describe(DATA_3, flat(DATA & !0x80 | dpl(3), false));
    assert_eq!(system.cpu.run(&[0xcb]), ss(DATA_3.into()));
    let mut system = System::long(0);
    system.store(STACK, 8, &[1 << 47, CODE_0.into()]);
    assert_eq!(system.cpu.run(&[0x48, 0xcb]), gp(0));
}
