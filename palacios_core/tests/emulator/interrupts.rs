// SPDX-License-Identifier: MIT OR Apache-2.0
//! Interrupts and exceptions with their frames on a device, and the returns from them (SDM 3A: 6.12, 6.14; SDM 3B: 20).

use crate::machine::TestCpu;
use crate::system::*;
use palacios_core::emulator::{self, Fault, Interruption, Source, Step};
use palacios_core::state::*;

/// Where handlers are, and where they return to.
const TARGET: u64 = 0x12_3456;
const FLAGS: u64 = rflags::FIXED | rflags::IF | rflags::CF;
const TASK_SWITCH: Result<Step, Fault> = Err(Fault::TaskSwitch);

/// An event on its way, with RIP as it is.
fn event(system: &System, vector: u8, error_code: Option<u32>, source: Source) -> Interruption {
    Interruption {
        vector,
        error_code,
        source,
        rip: system.cpu.rip,
    }
}

#[test]
fn interrupts_push_their_frame_on_a_device() {
    // In 32-bit code, of the same level, through an interrupt gate and through a trap gate; RF is set for what is executed again.
    for (access, kept) in [
        (INTERRUPT_GATE, rflags::CF),
        (TRAP_GATE, rflags::CF | rflags::IF),
    ] {
        let mut system = System::protected(0);
        system.cpu.rflags = FLAGS | rflags::TF | rflags::NT;
        system.set_gate(14, gate(access, CODE_0, TARGET, 0));
        let what = event(&system, 14, Some(0x15), Source::Exception);
        assert_eq!(emulator::deliver(&mut system.cpu, &what), Ok(()));
        let flags = FLAGS | rflags::TF | rflags::NT | rflags::RF;
        let pushed = [
            (STACK - 4, flags),
            (STACK - 8, CODE_0.into()),
            (STACK - 12, 0x5000),
            (STACK - 16, 0x15),
        ];
        assert_eq!(system.written(), pushed);
        assert_eq!((system.cpu.rip, system.rsp()), (TARGET, STACK - 16));
        assert_eq!(system.cpu.rflags, rflags::FIXED | kept);
    }
    // In 64-bit code, to an inner level: five elements on a stack of the task's; an interrupt sets no RF.
    let mut system = System::long(3);
    system.cpu.rflags = FLAGS;
    *system.cpu.reg(Reg::Rsp) = STACK + 3;
    system.set_gate(0x31, gate(INTERRUPT_GATE, CODE_0, TARGET, 0));
    let what = event(&system, 0x31, None, Source::Interrupt);
    assert_eq!(emulator::deliver(&mut system.cpu, &what), Ok(()));
    let top = INNER[0];
    let frame = |top: u64, cs: u16, ss: u16, rsp: u64| {
        [
            (top - 8, ss.into()),
            (top - 16, rsp),
            (top - 24, FLAGS),
            (top - 32, u64::from(cs)),
            (top - 40, 0x5000),
        ]
    };
    assert_eq!(
        system.written(),
        frame(top, CODE_3 | 3, DATA_3 | 3, STACK + 3)
    );
    assert_eq!(
        (system.cpu.cpl, system.selector(Seg::Ss), system.rsp()),
        (0, 0, top - 40)
    );
    // Of the same level the stack is aligned, and SS stays.
    let mut system = System::long(0);
    system.cpu.rflags = FLAGS;
    *system.cpu.reg(Reg::Rsp) = STACK + 3;
    system.set_gate(0x31, gate(INTERRUPT_GATE, CODE_0, TARGET, 0));
    assert_eq!(emulator::deliver(&mut system.cpu, &what), Ok(()));
    assert_eq!(system.written(), frame(STACK, CODE_0, DATA_0, STACK + 3));
    assert_eq!(system.selector(Seg::Ss), DATA_0);
    // With an interrupt stack it is that one, aligned too.
    let mut system = System::long(0);
    system.cpu.rflags = FLAGS;
    system.set_gate(0x31, gate(INTERRUPT_GATE, CODE_0, TARGET, 1));
    assert_eq!(emulator::deliver(&mut system.cpu, &what), Ok(()));
    assert_eq!(
        system.written(),
        frame(INTERRUPT_STACK & !15, CODE_0, DATA_0, STACK)
    );
    assert_eq!(system.rsp(), (INTERRUPT_STACK & !15) - 40);
}

#[test]
fn what_goes_wrong_on_the_way_says_so() {
    let entry = |vector: u32| vector << 3 | 2;
    // The gate of vector 0x31; what an interrupt gets, and what INT 0x31 at level 3.
    let other = |access| gate(access, CODE_0, TARGET, 0);
    let cases = [
        (0, gp(entry(0x31) | 1), gp(entry(0x31))),
        (other(INTERRUPT_GATE), DONE, gp(entry(0x31))),
        (
            other(INTERRUPT_GATE & !0x80 | dpl(3)),
            np(entry(0x31) | 1),
            np(entry(0x31)),
        ),
        (
            other(CALL_GATE | dpl(3)),
            gp(entry(0x31) | 1),
            gp(entry(0x31)),
        ),
        (gate(INTERRUPT_GATE | dpl(3), 0, TARGET, 0), gp(1), gp(0)),
        (
            gate(INTERRUPT_GATE | dpl(3), DATA_0, TARGET, 0),
            gp(u32::from(DATA_0) | 1),
            gp(DATA_0.into()),
        ),
        (gate(0x85 | dpl(3), TASK, 0, 0), TASK_SWITCH, TASK_SWITCH),
        (gate(INTERRUPT_GATE | dpl(3), CODE_1, TARGET, 0), DONE, DONE),
    ];
    for (gate, interrupt, software) in cases {
        for (is_software, expected) in [(false, interrupt), (true, software)] {
            let mut system = System::protected(3);
            system.set_gate(0x31, gate);
            let result = match is_software {
                true => system.cpu.run(&[0xcd, 0x31]),
                false => {
                    let what = event(&system, 0x31, None, Source::Interrupt);
                    emulator::deliver(&mut system.cpu, &what).map(|()| DONE.unwrap())
                }
            };
            let what = format!("{gate:x}, INT {is_software}");
            assert_eq!(result, expected, "{what}");
            if expected != DONE {
                assert_eq!(
                    (system.written(), system.cpu.rip, system.cpu.cpl),
                    (vec![], 0x5000, 3),
                    "{what}"
                );
            }
        }
    }
    // The table ends before; a stack of the task's is bad; long mode wants 64-bit code.
    let mut system = System::protected(0);
    system.cpu.idtr.limit = 0x31 * 8 + 6;
    let what = event(&system, 0x31, None, Source::Interrupt);
    assert_eq!(
        emulator::deliver(&mut system.cpu, &what),
        gp(entry(0x31) | 1).map(|_| ())
    );
    let mut system = System::protected(3);
    system.set_gate(0x31, other(INTERRUPT_GATE));
    system.put(TSS + 8, &[0, 0]);
    assert_eq!(emulator::deliver(&mut system.cpu, &what), ts(1).map(|_| ()));
    let mut system = System::long(0);
    system.set_gate(0x31, gate(INTERRUPT_GATE, CODE_32, TARGET, 0));
    assert_eq!(
        emulator::deliver(&mut system.cpu, &what),
        gp(u32::from(CODE_32) | 1).map(|_| ())
    );
}

#[test]
fn software_interrupts_return_behind_themselves() {
    for (code, vector, length) in [
        (&[0xcd, 0x80][..], 0x80, 2),
        (&[0xcc], 3, 1),
        (&[0xce], 4, 1),
    ] {
        let mut system = System::protected(0);
        system.cpu.rflags = FLAGS | rflags::OF | rflags::TF | rflags::RF;
        system.set_gate(vector, gate(INTERRUPT_GATE, CODE_0, TARGET, 0));
        // No trap follows, since TF is clear by then.
        assert_eq!(system.cpu.run(code), DONE, "{code:02x?}");
        assert_eq!(
            system.written()[2],
            (STACK - 12, 0x5000 + length),
            "{code:02x?}"
        );
        assert_eq!(system.cpu.rip, TARGET);
        assert_eq!(
            system.cpu.rflags & (rflags::RF | rflags::TF | rflags::IF),
            0
        );
    }
    // into without OF does nothing.
    let mut system = System::protected(0);
    assert_eq!(system.cpu.run(&[0xce]), DONE);
    assert_eq!((system.cpu.rip, system.written()), (0x5001, vec![]));
}

#[test]
fn interrupts_return_outwards() {
    // iretq to level 3: flags that level 0 may set, and no data segment of level 0 stays.
    let mut system = System::long(0);
    system.cpu.nmi_blocked = true;
    let flags = FLAGS | rflags::RF | rflags::TF | rflags::VM;
    let cs = u64::from(CODE_3 | 3);
    system.store(STACK, 8, &[TARGET, cs, flags, 0x7000, (DATA_3 | 3).into()]);
    assert_eq!(system.cpu.run(&[0x48, 0xcf]), DONE);
    assert_eq!(
        (system.cpu.rip, system.cpu.cpl, system.rsp()),
        (TARGET, 3, 0x7000)
    );
    assert_eq!(system.cpu.rflags, flags & !rflags::VM);
    assert_eq!(
        (system.selector(Seg::Ds), system.selector(Seg::Ss)),
        (0, DATA_3 | 3)
    );
    assert!(!system.cpu.nmi_blocked);
    // In 64-bit code the stack is popped even to the same level; a null selector is good there.
    let mut system = System::long(0);
    system.store(STACK, 8, &[TARGET, CODE_0.into(), FLAGS, 0x7000, 0]);
    assert_eq!(system.cpu.run(&[0x48, 0xcf]), DONE);
    assert_eq!(
        (system.rsp(), system.selector(Seg::Ss), system.cpu.cpl),
        (0x7000, 0, 0)
    );
    // 32-bit code of the same level pops three. Level 3 changes neither IF nor IOPL.
    let mut system = System::protected(3);
    system.cpu.rflags = FLAGS;
    system.store(STACK, 4, &[TARGET, cs, rflags::IOPL | rflags::ZF]);
    assert_eq!(system.cpu.run(&[0xcf]), DONE);
    assert_eq!((system.rsp(), system.cpu.rip), (STACK + 12, TARGET));
    assert_eq!(system.cpu.rflags, rflags::FIXED | rflags::IF | rflags::ZF);
    // A nested task, by NT.
    system.cpu.rflags |= rflags::NT;
    assert_eq!(system.cpu.run(&[0xcf]), TASK_SWITCH);
    let mut system = System::long(0);
    system.cpu.rflags |= rflags::NT;
    assert_eq!(system.cpu.run(&[0x48, 0xcf]), gp(0));
}

#[test]
fn virtual_8086_mode_comes_and_goes() {
    let mut system = System::protected(0);
    let flags = FLAGS | rflags::VM | rflags::IOPL;
    let frame = [
        0x1234, 0x2000, flags, 0xfff0, 0x3000, 0x4000, 0x5000, 0x6000, 0x7000,
    ];
    system.store(STACK, 4, &frame);
    assert_eq!(system.cpu.run(&[0xcf]), DONE);
    assert_eq!(
        (system.cpu.rip, system.cpu.rflags, system.rsp()),
        (0x1234, flags, 0xfff0)
    );
    assert_eq!(system.cpu.cpl, 3);
    let selectors = [0x4000, 0x2000, 0x3000, 0x5000, 0x6000, 0x7000];
    for (segment, selector) in system.cpu.segments.iter().zip(selectors) {
        assert_eq!(*segment, Segment::of_8086(selector));
    }
    // int 0x31, from there to level 0: data segments are pushed and emptied.
    system.set_gate(0x31, gate(INTERRUPT_GATE | dpl(3), CODE_0, TARGET, 0));
    assert_eq!(system.cpu.run(&[0xcd, 0x31]), DONE);
    let top = INNER[0];
    let pushed = [
        0x7000, 0x6000, 0x5000, 0x4000, 0x3000, 0xfff0, flags, 0x2000, 0x1236,
    ];
    let pushed: Vec<_> = (1..)
        .zip(pushed)
        .map(|(n, value)| (top - 4 * n, value))
        .collect();
    assert_eq!(system.written(), pushed);
    assert_eq!(system.cpu.rflags, rflags::FIXED | rflags::CF | rflags::IOPL);
    let empty = [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs].map(|seg| system.selector(seg));
    assert_eq!((empty, system.cpu.cpl), ([0; 4], 0));
    // Without IOPL 3 it faults, as do PUSHF, POPF and IRET; a handler of another level than 0 is none.
    let mut system = System::protected(3);
    system.cpu.rflags |= rflags::VM;
    for segment in &mut system.cpu.segments[..6] {
        *segment = Segment::of_8086(0xf000);
    }
    for code in [&[0xcd, 0x31][..], &[0x9c], &[0x9d], &[0xcf]] {
        assert_eq!(system.cpu.run(code), gp(0), "{code:02x?}");
    }
    system.cpu.rflags |= rflags::IOPL;
    system.set_gate(0x31, gate(INTERRUPT_GATE | dpl(3), CODE_1, TARGET, 0));
    assert_eq!(system.cpu.run(&[0xcd, 0x31]), gp(CODE_1.into()));
}

#[test]
fn real_mode_has_far_pointers() {
    // Nothing but the table is in RAM, so that the stack is the device.
    let mut cpu = TestCpu::real(0x400);
    cpu.idtr.limit = 0x3ff;
    cpu.segment_mut(Seg::Ss).base = 0x2_0000;
    *cpu.reg(Reg::Rsp) = 0x100;
    cpu.rip = 0x500;
    cpu.rflags = FLAGS | rflags::AC;
    cpu.at(0x31 * 4, 4)
        .copy_from_slice(&[0x78, 0x56, 0x34, 0x12]);
    let mut system = System { cpu };
    // int 0x31; iret; call 0x1111:0x2222; retf 2
    assert_eq!(system.cpu.run(&[0xcd, 0x31]), DONE);
    let pushed = [(0x2_00fe, FLAGS & 0xffff), (0x2_00fc, 0), (0x2_00fa, 0x502)];
    assert_eq!(system.written(), pushed);
    let cs = system.cpu.segments[1];
    assert_eq!(
        (cs.selector, cs.base, system.cpu.rip),
        (0x1234, 0x1_2340, 0x5678)
    );
    assert_eq!(system.cpu.rflags, rflags::FIXED | rflags::CF);
    assert_eq!(system.cpu.run(&[0xcf]), DONE);
    assert_eq!(
        (system.cpu.rip, system.rsp(), system.cpu.rflags),
        (0x502, 0x100, FLAGS)
    );
    assert_eq!(system.cpu.segments[1].base, 0);
    assert_eq!(system.cpu.run(&[0x9a, 0x22, 0x22, 0x11, 0x11]), DONE);
    assert_eq!(
        (system.cpu.rip, system.cpu.segments[1].base),
        (0x2222, 0x1_1110)
    );
    assert_eq!(system.cpu.run(&[0xca, 2, 0]), DONE);
    assert_eq!((system.cpu.rip, system.rsp()), (0x507, 0x102));
    // A table that is too short; a target beyond the limit. No error codes here.
    system.cpu.idtr.limit = 0xc6;
    assert_eq!(
        system.cpu.run(&[0xcd, 0x31]),
        Err(Exception::plain(13).into())
    );
    // jmp far dword [bx], with a 32-bit offset
    *system.cpu.reg(Reg::Rbx) = 0x800;
    system.store(0x800, 4, &[0x1_0000, 0]);
    assert_eq!(
        system.cpu.run(&[0x66, 0xff, 0x2f]),
        Err(Exception::plain(13).into())
    );
}

#[test]
fn events_are_delivered_in_real_mode_too() {
    let mut cpu = TestCpu::real(0x400);
    cpu.idtr.limit = 0x3ff;
    cpu.segment_mut(Seg::Ss).base = 0x2_0000;
    // The stack wraps inside of the frame.
    *cpu.reg(Reg::Rsp) = 0xabcd_0004;
    cpu.rip = 0x500;
    cpu.at(13 * 4, 4).copy_from_slice(&[0x78, 0x56, 0x34, 0x12]);
    let mut system = System { cpu };
    let what = event(&system, 13, Some(7), Source::Exception);
    assert_eq!(emulator::deliver(&mut system.cpu, &what), Ok(()));
    let flags = system.cpu.rflags & !rflags::RF;
    let pushed = [(0x2_0002, flags), (0x2_0000, 0), (0x2_fffe, 0x500)];
    assert_eq!(
        (system.written(), system.rsp()),
        (pushed.to_vec(), 0xabcd_fffe)
    );
}
