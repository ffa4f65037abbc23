// SPDX-License-Identifier: MIT OR Apache-2.0
//! From exit reasons and qualifications to the core's words.

use crate::addr::Gpa;
use crate::backend::vmx::controls::event;
use crate::backend::vmx::exit::{reason, Exited};
use crate::backend::{Exit, NestedFault, PortAccess};
use crate::state::Exception;

fn exited(reason: u16) -> Exited {
    Exited {
        reason,
        ..Exited::default()
    }
}

/// Of an exception or NMI, of this type and vector.
fn event_of(info: u32) -> Exited {
    Exited {
        event: event::VALID | info,
        ..exited(reason::EXCEPTION_OR_NMI)
    }
}

#[test]
fn exits_are_translated() {
    for (reason, expected) in [
        (1, Exit::HostInterrupt),
        (2, Exit::TripleFault),
        (3, Exit::HostInit),
        (4, Exit::HostInit),
        (5, Exit::HostInit),
        (6, Exit::HostInit),
        (7, Exit::InterruptWindow),
        (8, Exit::NmiWindow),
        (9, Exit::TaskSwitch),
        (10, Exit::Cpuid),
        (11, Exit::Undefined),
        (12, Exit::Halt),
        (13, Exit::CacheControl),
        (14, Exit::Emulate),
        (15, Exit::ReadPmc),
        (17, Exit::Undefined),
        (18, Exit::Hypercall),
        (19, Exit::Undefined),
        (20, Exit::Undefined),
        (23, Exit::Undefined),
        (27, Exit::Undefined),
        (28, Exit::Emulate),
        (29, Exit::Emulate),
        (31, Exit::ReadMsr),
        (32, Exit::WriteMsr),
        (36, Exit::Monitor),
        (39, Exit::Monitor),
        (40, Exit::Pause),
        (43, Exit::InterruptWindow),
        (50, Exit::Undefined),
        (51, Exit::Undefined),
        (52, Exit::HostInterrupt),
        (53, Exit::Undefined),
        (54, Exit::CacheControl),
        (55, Exit::SetXcr),
        (59, Exit::Undefined),
    ] {
        assert_eq!(exited(reason).translate(), expected, "{reason}");
    }
    // An EPT misconfiguration: tables that we made wrong.
    let unknown = Exited {
        qualification: 5,
        ..exited(49)
    };
    let info = [5, 0];
    assert_eq!(unknown.translate(), Exit::Unknown { code: 49, info });
}

#[test]
fn exceptions_are_told_apart() {
    assert_eq!(event_of(2 << 8 | 2).translate(), Exit::HostInterrupt);
    assert!(event_of(2 << 8 | 2).is_nmi());
    let debug = Exit::Exception(Exception::DEBUG);
    assert_eq!(event_of(3 << 8 | 1).translate(), debug);
    assert_eq!(event_of(5 << 8 | 1).translate(), Exit::Icebp);
    let alignment = Exit::Exception(Exception::alignment());
    assert_eq!(event_of(3 << 8 | 1 << 11 | 17).translate(), alignment);
    assert!(event_of(3 << 8 | 18).is_machine_check());
    assert!(exited(reason::MACHINE_CHECK).is_machine_check());
    // All others, while they are asked for; and one that is not valid.
    let undefined = Exit::Exception(Exception::INVALID_OPCODE);
    assert_eq!(event_of(3 << 8 | 6).translate(), undefined);
    let page_fault = Exited {
        error_code: 2,
        qualification: 0xdead_f000,
        ..event_of(3 << 8 | 1 << 11 | 14)
    };
    let expected = Exit::Exception(Exception::page_fault(2, 0xdead_f000));
    assert_eq!(page_fault.translate(), expected);
    let invalid = Exited {
        event: 2 << 8 | 2,
        ..exited(0)
    };
    assert!(!invalid.is_nmi() && invalid.vector().is_none());
}

#[test]
fn no_reason_goes_unanswered() {
    for reason in 0..=u16::MAX {
        exited(reason).translate();
        exited(reason).next_rip(0, true);
    }
}

#[test]
fn ports_are_read_off_the_qualification() {
    let port = |qualification| {
        let exit = Exited {
            qualification,
            ..exited(reason::PORT)
        };
        match exit.translate() {
            Exit::Port(access) => access,
            other => panic!("{other:?}"),
        }
    };
    let access = |port, size, write, string| PortAccess {
        port,
        size,
        write,
        string,
    };
    // OUT DX, AX; IN AL, 0x60 with an immediate; REP INSD.
    assert_eq!(port(0x03f8_0001), access(0x3f8, 2, true, false));
    assert_eq!(port(0x0060_0048), access(0x60, 1, false, false));
    assert_eq!(port(0x0cf8_003b), access(0xcf8, 4, false, true));
}

#[test]
fn nested_faults_are_read_off_the_qualification() {
    let fault = |qualification| {
        let exit = Exited {
            qualification,
            gpa: 0xfee0_0300,
            ..exited(reason::EPT_VIOLATION)
        };
        match exit.translate() {
            Exit::NestedFault(fault) => fault,
            other => panic!("{other:?}"),
        }
    };
    let of = |write, fetch, table_walk| NestedFault {
        gpa: Gpa(0xfee0_0300),
        write,
        fetch,
        table_walk,
    };
    const FINAL: u64 = 0b11 << 7;
    const WALK: u64 = 1 << 7;
    assert_eq!(fault(1 | FINAL), of(false, false, false));
    assert_eq!(fault(1 << 1 | FINAL), of(true, false, false));
    assert_eq!(fault(1 << 2 | FINAL), of(false, true, false));
    // A walk that sets an accessed bit reads and writes.
    assert_eq!(fault(0b11 | WALK), of(true, false, true));
    // PDPTEs are loaded for no linear address.
    assert_eq!(fault(1), of(false, false, false));
}

#[test]
fn only_instructions_end_somewhere() {
    let next = |exit: Exited| Exited { length: 2, ..exit }.next_rip(0x1000, false);
    for of_instruction in [
        10, 12, 13, 14, 15, 18, 28, 29, 30, 31, 32, 36, 39, 40, 54, 55,
    ] {
        let next = next(exited(of_instruction));
        assert_eq!(next, Some(0x1002), "{of_instruction}");
    }
    for other in [1, 2, 7, 8, 41, 43, 48, 49, 52, 33] {
        assert_eq!(next(exited(other)), None, "{other}");
    }
    // INT1 exits behind itself; a #DB, an #AC or an NMI is no instruction.
    assert_eq!(next(event_of(5 << 8 | 1)), Some(0x1002));
    for info in [3 << 8 | 1, 3 << 8 | 17, 2 << 8 | 2] {
        assert_eq!(next(event_of(info)), None);
    }
    // No length, no end. Outside of 64-bit code the upper half stays clear.
    assert_eq!(exited(10).next_rip(0x1000, false), None);
    let cpuid = Exited {
        length: 2,
        ..exited(10)
    };
    assert_eq!(cpuid.next_rip(0xffff_fffe, false), Some(0));
    assert_eq!(cpuid.next_rip(0xffff_fffe, true), Some(1 << 32));
}

#[test]
fn an_iret_that_let_nmis_in_is_seen() {
    const UNBLOCKED: u32 = 1 << 12;
    let violation = Exited {
        qualification: UNBLOCKED.into(),
        ..exited(reason::EPT_VIOLATION)
    };
    assert!(violation.unblocked_nmi());
    assert!(event_of(3 << 8 | UNBLOCKED | 17).unblocked_nmi());
    // Not when a delivery was cut short, in a double fault, or where the bit is another's (SDM 3C: 27.2.3).
    let cut = Exited {
        vectoring: event::VALID,
        ..violation
    };
    assert!(!cut.unblocked_nmi());
    assert!(!event_of(3 << 8 | UNBLOCKED | 8).unblocked_nmi());
    let port = Exited {
        qualification: UNBLOCKED.into(),
        ..exited(reason::PORT)
    };
    assert!(!port.unblocked_nmi());
}
