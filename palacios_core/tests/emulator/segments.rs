// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loads of segment registers and of the registers that name tables, with the selector or the pointer on a device
//! (SDM 2: MOV, LDS, LTR, LGDT…).

use crate::system::*;
use palacios_core::emulator::{Behaviour, Fault, Step};
use palacios_core::state::*;

const DEVICE: u64 = 0xfee0_0000;

/// `mov ds, [rbx]` or `mov ss, [rbx]` with this selector on the device.
fn load(system: &mut System, seg: Seg, selector: u16) -> Result<Step, Fault> {
    *system.cpu.reg(Reg::Rbx) = DEVICE;
    system.store(DEVICE, 2, &[selector.into()]);
    system.cpu.run(&[0x8e, 0x03 | (seg as u8) << 3])
}

#[test]
fn data_and_stack_segments_are_checked() {
    const SEL: u32 = FREE as u32;
    let null = 0;
    // The descriptor at FREE; CPL and the selector's RPL; what DS gets, and what SS.
    let cases = [
        (flat(DATA, false), 0, 0, DONE, DONE),
        (flat(0x90, false), 0, 0, DONE, gp(SEL)),
        (flat(CODE, false), 0, 0, DONE, gp(SEL)),
        (flat(0x98, false), 0, 0, gp(SEL), gp(SEL)),
        (flat(0x9e, false), 3, 3, DONE, gp(SEL)),
        (flat(DATA, false), 3, 3, gp(SEL), gp(SEL)),
        (flat(DATA | dpl(3), false), 3, 3, DONE, DONE),
        (flat(DATA | dpl(3), false), 0, 0, DONE, gp(SEL)),
        (flat(DATA, false), 0, 3, gp(SEL), gp(SEL)),
        (flat(DATA | dpl(3), false), 0, 3, DONE, gp(SEL)),
        (flat(DATA & !0x80, false), 0, 0, np(SEL), ss(SEL)),
        (flat(TSS_32, false), 0, 0, gp(SEL), gp(SEL)),
        (null, 0, 0, gp(SEL), gp(SEL)),
    ];
    for (descriptor, cpl, rpl, data, stack) in cases {
        for long in [false, true] {
            for (seg, expected) in [(Seg::Ds, data), (Seg::Fs, data), (Seg::Ss, stack)] {
                let mut system = match long {
                    true => System::long(cpl),
                    false => System::protected(cpl),
                };
                system.describe(FREE, descriptor);
                let before = system.cpu.segments;
                let what = format!("{descriptor:x} at {cpl}, {seg:?}, long {long}");
                assert_eq!(load(&mut system, seg, FREE | rpl), expected, "{what}");
                let segment = system.cpu.segments[seg as usize];
                if expected != DONE {
                    assert_eq!(system.cpu.segments, before, "{what}");
                    assert_eq!(system.described(FREE), descriptor, "{what}");
                    continue;
                }
                assert_eq!(segment.selector, FREE | rpl, "{what}");
                assert_eq!((segment.base, segment.limit), (0, u32::MAX), "{what}");
                assert_eq!(
                    system.described(FREE),
                    descriptor | 1 << 40,
                    "accessed: {what}"
                );
                assert_eq!(system.cpu.shadow, seg == Seg::Ss, "{what}");
            }
        }
    }
}

#[test]
fn selectors_lead_to_two_tables() {
    let mut system = System::protected(0);
    let last = Segment {
        selector: 0x70,
        base: LDT,
        limit: 0x17,
        attributes: SegmentAttributes(0x82),
    };
    system.put(
        LDT + 0x10,
        &descriptor(DATA | 1, 0xabcd_e000, 0x1fff).to_le_bytes(),
    );
    *system.cpu.segment_mut(Seg::Ldtr) = last;
    assert_eq!(load(&mut system, Seg::Es, 0x14), DONE);
    let es = system.cpu.segments[Seg::Es as usize];
    assert_eq!((es.base, es.limit), (0xabcd_e000, 0x1fff));
    // Beyond the limits; and no local table.
    assert_eq!(load(&mut system, Seg::Es, 0x1c), gp(0x1c));
    assert_eq!(load(&mut system, Seg::Es, 0x400), gp(0x400));
    system.cpu.segment_mut(Seg::Ldtr).attributes = SegmentAttributes(0);
    assert_eq!(load(&mut system, Seg::Es, 0x14), gp(0x14));
    // A descriptor on the device.
    system.cpu.gdtr.base = 0xfed0_0000;
    system.store(0xfed0_0000 + u64::from(FREE), 8, &[flat(DATA, false)]);
    assert_eq!(load(&mut system, Seg::Es, FREE), DONE);
    let marked = (0xfed0_0000 + u64::from(FREE), flat(DATA | 1, false));
    assert_eq!(system.written(), [marked]);
}

#[test]
fn null_selectors() {
    for long in [false, true] {
        for cpl in [0, 3] {
            let new = || match long {
                true => System::long(cpl),
                false => System::protected(cpl),
            };
            for selector in 0..4 {
                let mut system = new();
                assert_eq!(load(&mut system, Seg::Ds, selector), DONE);
                let ds = system.cpu.segments[Seg::Ds as usize];
                assert!(ds.selector == selector && !ds.attributes.has(SegmentAttributes::P));
                let mut system = new();
                let allowed = long && cpl == 0 && selector == 0;
                let expected = if allowed { DONE } else { gp(0) };
                assert_eq!(
                    load(&mut system, Seg::Ss, selector),
                    expected,
                    "{long} {cpl} {selector}"
                );
                assert_eq!(system.cpu.cpl, cpl);
            }
        }
    }
    // mov cs, [rbx] is none.
    let mut system = System::protected(0);
    assert!(load(&mut system, Seg::Cs, 8).is_err());
}

#[test]
fn segments_of_small_modes_are_addresses() {
    let mut cpu = crate::machine::TestCpu::real(0x1000);
    cpu.segment_mut(Seg::Ds).limit = u32::MAX;
    *cpu.reg(Reg::Rbx) = 0x8000;
    cpu.device.extend([(0x8000, 0x34), (0x8001, 0x12)]);
    // mov ds, [bx]: big limits stay.
    assert_eq!(cpu.run(&[0x8e, 0x1f]), DONE);
    let ds = cpu.segments[Seg::Ds as usize];
    assert_eq!(
        (ds.selector, ds.base, ds.limit),
        (0x1234, 0x12340, u32::MAX)
    );
    let mut system = System::protected(3);
    system.cpu.rflags |= rflags::VM;
    for segment in &mut system.cpu.segments[..6] {
        *segment = Segment::of_8086(0xf000);
    }
    system.store(0xf_8000, 2, &[0x1234]);
    *system.cpu.reg(Reg::Rbx) = 0x8000;
    system.cpu.segment_mut(Seg::Cs).attributes.0 &= !SegmentAttributes::DB;
    assert_eq!(system.cpu.run(&[0x8e, 0x1f]), DONE);
    assert_eq!(
        system.cpu.segments[Seg::Ds as usize],
        Segment::of_8086(0x1234)
    );
}

#[test]
fn far_pointers_load_two_registers() {
    let mut system = System::protected(0);
    system.describe(FREE, flat(DATA, false));
    *system.cpu.reg(Reg::Rbx) = DEVICE;
    system.store(DEVICE, 4, &[0x1122_3344, FREE.into()]);
    // les ecx, [ebx]; lss esp, [ebx]
    assert_eq!(system.cpu.run(&[0xc4, 0x0b]), DONE);
    assert_eq!(
        (*system.cpu.reg(Reg::Rcx), system.selector(Seg::Es)),
        (0x1122_3344, FREE)
    );
    assert_eq!(system.cpu.run(&[0x0f, 0xb2, 0x23]), DONE);
    assert_eq!(
        (system.rsp(), system.selector(Seg::Ss)),
        (0x1122_3344, FREE)
    );
    assert!(!system.cpu.shadow);
    // lds cx, [ebx]: the selector is behind two bytes, and bad. No register changes.
    *system.cpu.reg(Reg::Rcx) = 7;
    assert_eq!(system.cpu.run(&[0x66, 0xc5, 0x0b]), gp(0x1120));
    assert_eq!(*system.cpu.reg(Reg::Rcx), 7);
    // rex.w lfs rcx, [rbx]: 10 bytes on Intel's, 6 on AMD's.
    for (wide, offset) in [(true, 0x1234_5678_9abc_def0), (false, 0x9abc_def0)] {
        let mut system = System::long(0);
        system.describe(FREE, flat(DATA, false));
        *system.cpu.reg(Reg::Rbx) = DEVICE;
        system.store(DEVICE, 8, &[0x1234_5678_9abc_def0, FREE.into()]);
        if !wide {
            system.cpu.lacks.push(Behaviour::WideFarPointers);
            system.store(DEVICE + 4, 2, &[FREE.into()]);
        }
        assert_eq!(system.cpu.run(&[0x48, 0x0f, 0xb4, 0x0b]), DONE);
        assert_eq!(
            (*system.cpu.reg(Reg::Rcx), system.selector(Seg::Fs)),
            (offset, FREE)
        );
    }
}

/// `lldt [rbx]` or `ltr [rbx]` with this selector on the device.
fn load_system(system: &mut System, tr: bool, selector: u16) -> Result<Step, Fault> {
    *system.cpu.reg(Reg::Rbx) = DEVICE;
    system.store(DEVICE, 2, &[selector.into()]);
    system.cpu.run(&[0x0f, 0x00, if tr { 0x1b } else { 0x13 }])
}

#[test]
fn system_segments_are_checked() {
    const SEL: u32 = FREE as u32;
    // The type; what LLDT gets, and what LTR, in protected mode and in long mode.
    let cases = [
        (LDT_TYPE, [DONE, DONE], [gp(SEL), gp(SEL)]),
        (TSS_32, [gp(SEL), gp(SEL)], [DONE, DONE]),
        (0x81, [gp(SEL), gp(SEL)], [DONE, gp(SEL)]),
        (0x8b, [gp(SEL), gp(SEL)], [gp(SEL), gp(SEL)]),
        (LDT_TYPE & !0x80, [np(SEL), np(SEL)], [gp(SEL), gp(SEL)]),
        (TSS_32 & !0x80, [gp(SEL), gp(SEL)], [np(SEL), np(SEL)]),
        (DATA, [gp(SEL), gp(SEL)], [gp(SEL), gp(SEL)]),
    ];
    for (access, ldt, task) in cases {
        for (long, tr) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut system = match long {
                true => System::long(0),
                false => System::protected(0),
            };
            system.describe(FREE, descriptor(access, 0x8765_4321, 0x123));
            system.describe(FREE + 8, if long { 0xffff_ffff } else { 0 });
            let expected = if tr { task } else { ldt }[usize::from(long)];
            let what = format!("{access:x}, long {long}, TR {tr}");
            assert_eq!(load_system(&mut system, tr, FREE), expected, "{what}");
            if expected == DONE {
                let seg = if tr { Seg::Tr } else { Seg::Ldtr };
                let base = if long {
                    0xffff_ffff_8765_4321
                } else {
                    0x8765_4321
                };
                let found = system.cpu.segments[seg as usize];
                assert_eq!(
                    (found.selector, found.base, found.limit),
                    (FREE, base, 0x123),
                    "{what}"
                );
                let busy = if tr { 2 << 40 } else { 0 };
                assert_eq!(
                    system.described(FREE),
                    descriptor(access, 0x8765_4321, 0x123) | busy
                );
                assert_eq!(found.attributes.kind() & 2, 2, "{what}");
            }
        }
    }
    let mut system = System::protected(0);
    assert_eq!(load_system(&mut system, true, 0), gp(0));
    assert_eq!(load_system(&mut system, false, 0), DONE);
    assert_eq!(system.cpu.segments[Seg::Ldtr as usize].attributes.0, 0);
    assert_eq!(load_system(&mut system, true, FREE | 4), gp(SEL | 4));
    system.set_level(3, false);
    assert_eq!(load_system(&mut system, true, 0), gp(0));
    let mut cpu = crate::machine::TestCpu::real(0x1000);
    assert_eq!(cpu.run(&[0x0f, 0x00, 0x1f]), ud());
}

#[test]
fn a_base_that_is_not_canonical_is_refused() {
    let mut system = System::long(0);
    system.describe(FREE, descriptor(TSS_32, 0, 0x67));
    system.describe(FREE + 8, 0x8000);
    assert_eq!(load_system(&mut system, true, FREE), gp(FREE.into()));
    *system.cpu.reg(Reg::Rbx) = DEVICE;
    system.store(DEVICE, 2, &[0xff]);
    system.store(DEVICE + 2, 8, &[0x8000_0000_0000_0000]);
    assert_eq!(system.cpu.run(&[0x0f, 0x01, 0x13]), gp(0));
}

#[test]
fn tables_move() {
    let bytes = |system: &System| {
        let written: Vec<_> = system.written();
        written
    };
    let mut system = System::long(0);
    *system.cpu.reg(Reg::Rbx) = DEVICE;
    system.store(DEVICE, 2, &[0x1234]);
    system.store(DEVICE + 2, 8, &[0xffff_8000_1234_5678]);
    // lidt [rbx]; sidt [rbx + 0x10]; sgdt [rbx + 0x20]
    assert_eq!(system.cpu.run(&[0x0f, 0x01, 0x1b]), DONE);
    let idtr = TableRegister {
        base: 0xffff_8000_1234_5678,
        limit: 0x1234,
    };
    assert_eq!(system.cpu.idtr, idtr);
    assert_eq!(system.cpu.run(&[0x0f, 0x01, 0x4b, 0x10]), DONE);
    assert_eq!(system.cpu.run(&[0x0f, 0x01, 0x43, 0x20]), DONE);
    let expected = [
        (DEVICE + 0x10, 0x1234),
        (DEVICE + 0x12, idtr.base),
        (DEVICE + 0x20, 0x3ff),
        (DEVICE + 0x22, GDT),
    ];
    assert_eq!(bytes(&system), expected);
    // 32-bit code: with a 16-bit operand the base has 24 bits when it is loaded.
    let mut system = System::protected(0);
    *system.cpu.reg(Reg::Rbx) = DEVICE;
    system.store(DEVICE, 2, &[0x1234]);
    system.store(DEVICE + 2, 4, &[0x8765_4321]);
    for (code, base) in [
        (&[0x0f, 0x01, 0x13][..], 0x8765_4321),
        (&[0x66, 0x0f, 0x01, 0x13], 0x65_4321),
    ] {
        assert_eq!(system.cpu.run(code), DONE);
        assert_eq!(
            system.cpu.gdtr,
            TableRegister {
                base,
                limit: 0x1234
            }
        );
    }
    // str [ebx]; sldt [ebx]; UMIP keeps them from level 3, LGDT is kept from it in any case.
    system.cpu.log.clear();
    assert_eq!(system.cpu.run(&[0x0f, 0x00, 0x0b]), DONE);
    assert_eq!(bytes(&system), [(DEVICE, TASK.into())]);
    system.set_level(3, false);
    assert_eq!(system.cpu.run(&[0x0f, 0x00, 0x03]), DONE);
    assert_eq!(system.cpu.run(&[0x0f, 0x01, 0x13]), gp(0));
    system.cpu.cr[4] |= cr4::UMIP;
    for code in [
        [0x0f, 0x00, 0x03],
        [0x0f, 0x00, 0x0b],
        [0x0f, 0x01, 0x03],
        [0x0f, 0x01, 0x0b],
    ] {
        assert_eq!(system.cpu.run(&code), gp(0));
    }
}
