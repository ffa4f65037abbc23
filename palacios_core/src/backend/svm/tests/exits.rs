// SPDX-License-Identifier: MIT OR Apache-2.0
//! From the VMCB to the core's words.

use super::*;
use crate::addr::{Gpa, Hpa};
use crate::backend::svm::check;
use crate::backend::svm::events::ExitOutcome;
use crate::backend::svm::exit::{self, code};
use crate::backend::svm::vmcb::{Clean, Intercepts4};
use crate::backend::{BackendVcpu, Exit, NestedFault, PortAccess};
use crate::host::CpuId;
use crate::state::{CpuState, Exception, Seg};

fn translated(vcpu: &Vcpu<FakeHost>, caps: &Caps) -> Exit {
    exit::translate(vcpu.vmcb.get(), caps)
}

#[test]
fn exits_are_translated() {
    let svm = svm_with(NRIP | DECODE_ASSISTS, 16);
    let mut vcpu = vcpu_of(&svm);
    let mut exit = |code: u64, info1: u64, info2: u64| {
        let control = &mut vcpu.vmcb.uncached().control;
        (control.exit_code, control.exit_info1, control.exit_info2) = (code, info1, info2);
        translated(&vcpu, &svm.caps)
    };
    // OUT DX, AX to port 0x3f8; REP INSD.
    assert_eq!(
        exit(0x7b, 0x03f8_0020, 0x1002),
        Exit::Port(PortAccess {
            port: 0x3f8,
            size: 2,
            write: true,
            string: false
        })
    );
    assert_eq!(
        exit(0x7b, 0x0cf8_004d, 0x1002),
        Exit::Port(PortAccess {
            port: 0xcf8,
            size: 4,
            write: false,
            string: true
        })
    );
    // A write to the final address; a fetch; a walk, which counts as a write.
    let fault = |write, fetch, table_walk| {
        let gpa = Gpa(0xfee0_0300);
        Exit::NestedFault(NestedFault {
            gpa,
            write,
            fetch,
            table_walk,
        })
    };
    assert_eq!(
        exit(0x400, 1 << 32 | 6, 0xfee0_0300),
        fault(true, false, false)
    );
    assert_eq!(
        exit(0x400, 1 << 32 | 0x14, 0xfee0_0300),
        fault(false, true, false)
    );
    assert_eq!(
        exit(0x400, 1 << 33 | 6, 0xfee0_0300),
        fault(true, false, true)
    );
    assert_eq!(exit(0x7c, 0, 0), Exit::ReadMsr);
    assert_eq!(exit(0x7c, 1, 0), Exit::WriteMsr);
    assert_eq!(exit(0x14, 0, 0), Exit::Emulate);
    assert_eq!(exit(0x51, 0, 0), Exit::Exception(Exception::alignment()));
    assert_eq!(exit(0x41, 0, 0), Exit::Exception(Exception::DEBUG));
    for (code, expected) in [
        (0x60, Exit::HostInterrupt),
        (0x61, Exit::HostInterrupt),
        (0x62, Exit::HostInit),
        (0x63, Exit::HostInit),
        (0x64, Exit::InterruptWindow),
        (0x6f, Exit::ReadPmc),
        (0x72, Exit::Cpuid),
        (0x73, Exit::Undefined),
        (0x76, Exit::CacheControl),
        (0x77, Exit::Pause),
        (0x78, Exit::Halt),
        (0x7a, Exit::Undefined),
        (0x7d, Exit::TaskSwitch),
        (0x7e, Exit::Exception(Exception::X87)),
        (0x7f, Exit::TripleFault),
        (0x80, Exit::Undefined),
        (0x81, Exit::Hypercall),
        (0x82, Exit::Undefined),
        (0x86, Exit::Undefined),
        (0x89, Exit::CacheControl),
        (0x8a, Exit::Monitor),
        (0x8b, Exit::Monitor),
        (0x88, Exit::Icebp),
        (0x8d, Exit::SetXcr),
        (0x8e, Exit::Undefined),
    ] {
        assert_eq!(exit(code, 0, 0), expected, "{code:#x}");
    }
    assert_eq!(
        exit(0x9f, 5, 6),
        Exit::Unknown {
            code: 0x9f,
            info: [5, 6]
        }
    );
    assert!(matches!(exit(u64::MAX, 0, 0), Exit::BadState(_)));
    // −1 in 32 bits.
    vcpu.vmcb.uncached().control.exit_code = 0xffff_ffff;
    assert_eq!(vcpu.after_exit(), ExitOutcome::Untouched);
    assert!(matches!(translated(&vcpu, &svm.caps), Exit::BadState(_)));
}

#[test]
fn no_exit_code_goes_unanswered() {
    let svm = svm_with(0, 16);
    let mut vcpu = vcpu_of(&svm);
    for code in (0..0x500).chain([u64::MAX - 1, u64::MAX - 2]) {
        vcpu.vmcb.uncached().control.exit_code = code;
        translated(&vcpu, &svm.caps);
    }
}

#[test]
fn the_next_rip_is_given_where_the_hardware_gives_it() {
    for features in [0, NRIP] {
        let svm = svm_with(features, 16);
        let mut vcpu = vcpu_of(&svm);
        let control = &mut vcpu.vmcb.uncached().control;
        (control.exit_code, control.exit_info2, control.next_rip) = (code::IOIO, 0x1001, 0);
        assert_eq!(vcpu.next_rip(), Some(0x1001));
        let control = &mut vcpu.vmcb.uncached().control;
        (control.exit_code, control.next_rip) = (code::CPUID, 0x2002);
        assert_eq!(vcpu.next_rip(), (features == NRIP).then_some(0x2002));
        vcpu.vmcb.uncached().control.next_rip = 0;
        assert_eq!(vcpu.next_rip(), None);
    }
}

#[test]
fn fetched_bytes_come_with_nested_faults_only() {
    let svm = svm_with(DECODE_ASSISTS, 16);
    let mut vcpu = vcpu_of(&svm);
    let control = &mut vcpu.vmcb.uncached().control;
    control.fetched = std::array::from_fn(|i| i as u8);
    (control.exit_code, control.fetched_len) = (code::NPF, 15);
    assert_eq!(vcpu.fetched().len(), 15);
    vcpu.vmcb.uncached().control.fetched_len = 3;
    assert_eq!(vcpu.fetched(), [0, 1, 2]);
    vcpu.vmcb.uncached().control.exit_code = code::CPUID;
    assert_eq!(vcpu.fetched(), []);
    let plain = svm_with(0, 16);
    let mut vcpu = vcpu_of(&plain);
    let control = &mut vcpu.vmcb.uncached().control;
    (control.exit_code, control.fetched_len) = (code::NPF, 15);
    assert_eq!(vcpu.fetched(), []);
}

#[test]
fn after_a_shutdown_nothing_is_clean() {
    let svm = svm_with(0, 16);
    let mut vcpu = vcpu_of(&svm);
    vcpu.take_slot(CpuId(0), &svm.cpus[0]);
    for code in [code::SHUTDOWN, code::INVALID] {
        enter(&mut vcpu, exits(code::CPUID));
        assert_eq!(vcpu.vmcb.get().control.clean, Clean::all());
        enter(&mut vcpu, exits(code));
        assert_eq!(vcpu.vmcb.get().control.clean, Clean::empty());
    }
}

/// A VMCB that VMRUN takes.
fn good(svm: &Svm<FakeHost>) -> Vcpu<FakeHost> {
    let mut vcpu = vcpu_of(svm);
    vcpu.set_table_root(Hpa(0x1000));
    let mut state = CpuState::reset();
    state.control.cr0 = 0x8000_0011;
    state.control.cr4 = 0x20;
    state.control.efer = 0x500;
    state.segments[Seg::Cs as usize].attributes.0 = 0x29b;
    vcpu.set_state(&state);
    vcpu.take_slot(CpuId(0), &svm.cpus[0]);
    vcpu
}

#[test]
fn refusals_name_the_field() {
    let svm = svm_with(0, 16);
    let why = |spoil: &dyn Fn(&mut Vmcb)| {
        let mut vcpu = good(&svm);
        spoil(vcpu.vmcb.uncached());
        check::fault(vcpu.vmcb.get(), &svm.caps)
    };
    assert_eq!(why(&|_| {}), "none of the documented checks fails");
    type Spoil<'a> = &'a dyn Fn(&mut Vmcb);
    let spoilt: [(Spoil<'_>, &str); 18] = [
        (&|v| v.save.efer &= !(1 << 12), "EFER.SVME"),
        (&|v| v.save.cr0 |= 1 << 29, "CR0.NW"),
        (&|v| v.save.cr0 |= 1 << 32, "CR0 has upper"),
        (&|v| v.save.cr3 |= 1 << 60, "CR3"),
        (&|v| v.save.cr4 |= 1 << 60, "CR4 has upper"),
        (&|v| v.save.dr6 |= 1 << 32, "DR6"),
        (&|v| v.save.dr7 |= 1 << 32, "DR7"),
        (&|v| v.save.efer |= 1 << 1, "EFER has reserved"),
        (&|v| v.save.cr4 = 0, "CR4.PAE"),
        (&|v| v.save.cr0 &= !1, "CR0.PE"),
        (&|v| v.save.cs.attributes |= 1 << 10, "L and D"),
        (&|v| v.save.cr4 |= 1 << 23, "CR4.CET"),
        (
            &|v| v.control.intercepts4 = v.control.intercepts4.difference(Intercepts4::VMRUN),
            "VMRUN",
        ),
        (&|v| v.control.msrpm = (1 << 48) - 4096, "MSR permission"),
        (&|v| v.control.asid = 0, "ASID"),
        (&|v| v.control.event_inj = 1 << 31 | 5 << 8, "event"),
        (&|v| v.save.g_pat = 2, "PAT"),
        (&|v| v.control.n_cr3 = 0, "nested tables"),
    ];
    for (spoil, field) in spoilt {
        let why = why(spoil);
        assert!(why.contains(field), "{why} instead of {field}");
    }
    assert!(why(&|v| v.control.event_inj = 0x8000_0302).contains("event"));
    assert!(why(&|v| v.control.event_inj = 0x8000_0304).contains("event"));
    assert_eq!(why(&|v| v.control.event_inj = 0x8000_0303), why(&|_| {}));
}
