// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entries that a processor refuses, by the name of what is wrong.

use super::*;
use crate::backend::vmx::check;
use crate::backend::vmx::controls::entry;
use crate::backend::vmx::exit::{reason, Exited};
use crate::backend::vmx::field::*;
use crate::backend::vmx::registers;
use crate::state::{CpuState, Seg};

/// A guest in 64-bit mode that a processor takes.
fn good() -> Vmcs<FakeHost> {
    let (mut vmcs, mut state) = (vmcs(), CpuState::reset());
    state.control.cr0 = 0x8000_0011;
    state.control.cr4 = 0x20;
    state.control.efer = 0x500;
    state.segments[Seg::Cs as usize].attributes.0 = 0x29b;
    registers::fill(&mut vmcs, &caps(), &state);
    vmcs.set(PAT, 0x0007_0406_0007_0406);
    vmcs
}

fn why(spoil: &dyn Fn(&mut Vmcs<FakeHost>)) -> &'static str {
    let mut vmcs = good();
    spoil(&mut vmcs);
    let exit = Exited {
        reason: reason::BAD_STATE,
        entry_failed: true,
        ..Exited::default()
    };
    check::fault(&vmcs, &caps(), &exit)
}

type Spoil<'a> = &'a dyn Fn(&mut Vmcs<FakeHost>);

fn named(spoilt: &[(Spoil<'_>, &str)]) {
    assert_eq!(why(&|_| {}), "none of the documented checks fails");
    for (spoil, what) in spoilt {
        let why = why(spoil);
        assert!(why.contains(what), "{why} instead of {what}");
    }
}

#[test]
fn control_registers() {
    named(&[
        (&|v| v.set(CR0, Natural(0x8000_0001)), "CR0 lacks"),
        (&|v| v.set(CR0, Natural(0x8000_0020)), "CR0.PE"),
        (&|v| v.set(CR4, Natural(0x20)), "CR4 lacks"),
        (&|v| v.set(CR4, Natural(0x2040)), "CR4.PAE"),
        (&|v| v.set(CR3, Natural(1 << 46)), "CR3"),
        (&|v| v.set(DR7, Natural(1 << 32)), "DR7"),
        (&|v| v.set(PAT, 2), "PAT"),
        (&|v| v.set(EFER, 0x100), "entry controls"),
        (&|v| v.set(EFER, 0x400), "EFER.LMA and EFER.LME"),
        (
            &|v| {
                registers::set_efer(v, 0);
                v.set(CR4, Natural(0x2_2060));
            },
            "PCIDE",
        ),
    ]);
}

#[test]
fn segments() {
    named(&[
        (&|v| v.set(TR_RIGHTS, 1 << 16 | 0x8b), "TR holds no segment"),
        (&|v| v.set(TR_RIGHTS, 0x89), "busy"),
        (&|v| v.set(TR_RIGHTS, 0x83), "busy"),
        (&|v| v.set(TR_SELECTOR, 4), "TR has a selector"),
        (&|v| v.set(LDTR_RIGHTS, 0x8b), "LDTR"),
        (&|v| v.set(CS_RIGHTS, 0x2092), "CS holds no code"),
        (&|v| v.set(CS_RIGHTS, 0x208b), "system segment"),
        (&|v| v.set(CS_RIGHTS, 0x201b), "not present"),
        (&|v| v.set(CS_RIGHTS, 0x609b), "L and D"),
        (&|v| v.set(SS_RIGHTS, 0x9b), "SS"),
        (&|v| v.set(FS_RIGHTS, 0x92), "never accessed"),
        (&|v| v.set(DS_LIMIT, 1 << 20), "granularity"),
        (
            &|v| {
                v.set(ES_RIGHTS, 0x8093);
                v.set(ES_LIMIT, 0x1_0000);
            },
            "granularity",
        ),
        (&|v| v.set(SS_RIGHTS, 0x83), "not present"),
        (&|v| v.set(GS_RIGHTS, 0x13), "not present"),
        (&|v| v.set(CS_BASE, Natural(1 << 32)), "base"),
        (&|v| v.set(ES_BASE, Natural(1 << 32)), "base"),
        (&|v| v.set(FS_BASE, Natural(1 << 60)), "base"),
        (&|v| v.set(TR_BASE, Natural(1 << 60)), "base"),
        (&|v| v.set(TR_RIGHTS, 0x0b), "TR holds no segment"),
        (&|v| v.set(TR_RIGHTS, 0x9b), "TR holds no segment"),
        (&|v| v.set(TR_LIMIT, 1 << 20), "granularity"),
    ]);
}

#[test]
fn flags_and_events() {
    const IF: u64 = 1 << 9;
    named(&[
        (&|v| v.set(RIP, Natural(1 << 60)), "canonical"),
        (
            &|v| {
                v.set(CS_RIGHTS, 0x9b);
                v.set(RIP, Natural(1 << 32));
            },
            "RIP has upper bits",
        ),
        (&|v| v.set(RFLAGS, Natural(0)), "RFLAGS has reserved"),
        (
            &|v| v.set(RFLAGS, Natural(1 << 3 | 2)),
            "RFLAGS has reserved",
        ),
        (
            &|v| {
                v.set(RFLAGS, Natural(1 << 17 | 2));
                v.set(SS_RIGHTS, 0xf3);
            },
            "RFLAGS.VM",
        ),
        (
            &|v| {
                v.set(ENTRY_EVENT, 0x8000_0202);
                v.set(INTERRUPTIBILITY, 1 << 3);
            },
            "NMI",
        ),
        (&|v| v.set(INTERRUPTIBILITY, 3), "both"),
        (&|v| v.set(INTERRUPTIBILITY, 1), "STI"),
        (&|v| v.set(ENTRY_EVENT, 0x8000_0031), "RFLAGS.IF clear"),
        (
            &|v| {
                v.set(RFLAGS, Natural(IF | 2));
                v.set(INTERRUPTIBILITY, 1);
                v.set(ENTRY_EVENT, 0x8000_0031);
            },
            "in a shadow",
        ),
        (
            &|v| {
                v.set(RFLAGS, Natural(IF | 1 << 8 | 2));
                v.set(INTERRUPTIBILITY, 1);
            },
            "single-step",
        ),
        (
            &|v| {
                let long = v.get(ENTRY_CONTROLS) & !entry::LONG_MODE;
                v.set(ENTRY_CONTROLS, long);
                v.set(EFER, 0x100);
                v.set(CS_RIGHTS, 0x9b);
            },
            "EFER.LMA and EFER.LME",
        ),
    ]);
}

#[test]
fn virtual_8086_mode() {
    named(&[(
        &|v| {
            registers::set_efer(v, 0);
            v.set(CS_RIGHTS, 0xf3);
            v.set(RFLAGS, Natural(1 << 17 | 2));
        },
        "virtual-8086",
    )]);
}

#[test]
fn what_the_processor_says_itself() {
    let vmcs = good();
    let of = |reason, qualification| {
        let exit = Exited {
            reason,
            qualification,
            entry_failed: true,
            ..Exited::default()
        };
        check::fault(&vmcs, &caps(), &exit)
    };
    assert!(of(reason::BAD_STATE, 2).contains("PDPTE"));
    assert!(of(reason::BAD_STATE, 3).contains("NMI"));
    assert!(of(reason::BAD_STATE, 4).contains("link pointer"));
    assert!(of(reason::BAD_MSR, 1).contains("model-specific"));
    let error = |number| {
        let exit = Exited::failed(number);
        assert!(exit.entry_failed);
        check::fault(&vmcs, &caps(), &exit)
    };
    assert!(error(7).contains("controls"));
    assert!(error(8).contains("host state"));
    assert!(error(4).contains("not clear"));
    assert!(error(5).contains("not launched"));
    assert!(error(0).contains("no VMCS"));
}
