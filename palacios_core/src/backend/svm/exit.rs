// SPDX-License-Identifier: MIT OR Apache-2.0
//! From exit codes (APM 2: appendix C) and event fields to the words of the core, and back.

use super::super::{Event, Exit, NestedFault, PortAccess};
use super::caps::Caps;
use super::check;
use super::vmcb::{event, Control, Vmcb};
use crate::addr::Gpa;
use crate::state::{cr0, Exception};

/// Exit codes.
pub(super) mod code {
    pub const CR_FIRST: u64 = 0x00;
    pub const DR_FIRST: u64 = 0x20;
    pub const DR_LAST: u64 = 0x3f;
    pub const EXCEPTION_FIRST: u64 = 0x40;
    pub const DB: u64 = 0x41;
    pub const MC: u64 = 0x52;
    pub const EXCEPTION_LAST: u64 = 0x5f;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const SMI: u64 = 0x62;
    pub const INIT: u64 = 0x63;
    pub const VINTR: u64 = 0x64;
    pub const RDPMC: u64 = 0x6f;
    pub const CPUID: u64 = 0x72;
    pub const RSM: u64 = 0x73;
    pub const IRET: u64 = 0x74;
    pub const INVD: u64 = 0x76;
    pub const PAUSE: u64 = 0x77;
    pub const HLT: u64 = 0x78;
    pub const INVLPG: u64 = 0x79;
    pub const INVLPGA: u64 = 0x7a;
    pub const IOIO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const TASK_SWITCH: u64 = 0x7d;
    pub const FERR_FREEZE: u64 = 0x7e;
    pub const SHUTDOWN: u64 = 0x7f;
    pub const VMRUN: u64 = 0x80;
    pub const VMMCALL: u64 = 0x81;
    pub const RDTSCP: u64 = 0x87;
    pub const ICEBP: u64 = 0x88;
    pub const WBINVD: u64 = 0x89;
    pub const MONITOR: u64 = 0x8a;
    pub const MWAIT_CONDITIONAL: u64 = 0x8c;
    pub const XSETBV: u64 = 0x8d;
    pub const RDPRU: u64 = 0x8e;
    pub const NPF: u64 = 0x400;
    /// VMEXIT_INVALID, −1.
    pub const INVALID: u64 = u64::MAX;
}

/// What an exit means to the core. Those that [`super::vcpu`] deals with itself are not among them.
pub(super) fn translate(vmcb: &Vmcb, caps: &Caps) -> Exit {
    let control = &vmcb.control;
    let (info1, info2) = (control.exit_info1, control.exit_info2);
    match control.exit_code {
        code::CR_FIRST..=code::DR_LAST | code::INVLPG => Exit::Emulate,
        code::DB => Exit::Exception(Exception::DEBUG),
        code::EXCEPTION_FIRST..=code::EXCEPTION_LAST => {
            let vector = (control.exit_code - code::EXCEPTION_FIRST) as u8;
            Exit::Exception(Exception::of_vector(vector, info1 as u32, info2))
        }
        // A guest without CR0.NE waits for the interrupt that a chipset makes of FERR#. That is the host's, so it gets the #MF
        // that it would get with NE, as under VT-x, where each guest has it set (APM 2: 8.2.16).
        code::FERR_FREEZE => Exit::Exception(Exception::X87),
        code::INTR | code::NMI => Exit::HostInterrupt,
        code::SMI | code::INIT => Exit::HostInit,
        code::VINTR => Exit::InterruptWindow,
        code::RDPMC => Exit::ReadPmc,
        code::CPUID => Exit::Cpuid,
        code::INVD | code::WBINVD => Exit::CacheControl,
        code::PAUSE => Exit::Pause,
        code::HLT => Exit::Halt,
        code::IOIO => Exit::Port(port_access(info1)),
        code::MSR if info1 == 0 => Exit::ReadMsr,
        code::MSR => Exit::WriteMsr,
        code::TASK_SWITCH => Exit::TaskSwitch,
        code::SHUTDOWN => Exit::TripleFault,
        code::VMMCALL => Exit::Hypercall,
        code::RSM | code::INVLPGA | code::RDPRU | code::VMRUN..=code::RDTSCP => Exit::Undefined,
        code::MONITOR..=code::MWAIT_CONDITIONAL => Exit::Monitor,
        code::XSETBV => Exit::SetXcr,
        code::ICEBP => Exit::Icebp,
        code::NPF => Exit::NestedFault(nested_fault(info1, info2)),
        code::INVALID => Exit::BadState(check::fault(vmcb, caps)),
        code => Exit::Unknown {
            code,
            info: [info1, info2],
        },
    }
}

/// EXITINFO1 of an I/O intercept (APM 2: 15.10.2).
fn port_access(info: u64) -> PortAccess {
    PortAccess {
        port: (info >> 16) as u16,
        size: match (info >> 4) & 7 {
            4 => 4,
            2 => 2,
            _ => 1,
        },
        write: info & 1 == 0,
        string: info & 1 << 2 != 0,
    }
}

/// EXITINFO1 and EXITINFO2 of a nested page fault (APM 2: 15.25.6).
fn nested_fault(info1: u64, info2: u64) -> NestedFault {
    NestedFault {
        gpa: Gpa(info2),
        write: info1 & 1 << 1 != 0,
        fetch: info1 & 1 << 4 != 0,
        table_walk: info1 & 1 << 33 != 0,
    }
}

/// Where the instruction that exited ends, if the hardware said so: for port I/O always, for other instructions if the
/// processor has nRIP (APM 2: 15.7.1, 15.10.2).
pub(super) fn next_rip(control: &Control, caps: &Caps) -> Option<u64> {
    match (control.exit_code, control.next_rip) {
        (code::IOIO, _) => Some(control.exit_info2),
        (_, 0) => None,
        (_, rip) if caps.next_rip => Some(rip),
        _ => None,
    }
}

/// The instruction bytes that came with a nested page fault (APM 2: 15.8.4).
pub(super) fn fetched<'a>(control: &'a Control, caps: &Caps) -> &'a [u8] {
    if !caps.decode_assists || control.exit_code != code::NPF {
        return &[];
    }
    let len = usize::from(control.fetched_len & 15);
    control.fetched.get(..len).unwrap_or(&[])
}

/// EVENTINJ for an event (APM 2: 15.20).
pub(super) fn encode(event: Event, vmcb: &Vmcb) -> u64 {
    event::VALID
        | match event {
            Event::Interrupt(vector) => event::INTERRUPT | u64::from(vector),
            Event::Nmi => event::NMI | 2,
            Event::Exception(e) => {
                // Real mode pushes no error codes; what an injection says would be pushed there all the same.
                let code = e
                    .error_code
                    .filter(|_| vmcb.save.cr0 & cr0::PE != 0)
                    .map_or(0, |code| event::ERROR_CODE_VALID | u64::from(code) << 32);
                event::EXCEPTION | u64::from(e.vector) | code
            }
            // INT3 and INTO are exceptions to the processor, INT 3 and INT 4 are not; by now nothing tells them apart but
            // that 64-bit code has no INTO.
            Event::Software { vector: 3, .. } => event::EXCEPTION | 3,
            Event::Software { vector: 4, .. } if !vmcb.in_64_bit_code() => event::EXCEPTION | 4,
            Event::Software { vector, .. } => event::SOFTWARE | u64::from(vector),
        }
}

/// The event whose delivery the exit cut short (APM 2: 15.7.2). `injected` is what the entry before it injected.
///
/// Software interrupts, INT1, INT3 and INTO that the guest executed itself are none: RIP still stands on the instruction,
/// which has done nothing yet, so the guest repeats it.
#[inline]
pub(super) fn interrupted(vmcb: &Vmcb, injected: Option<Event>) -> Option<Event> {
    match vmcb.control.exit_int_info {
        info if info & event::VALID == 0 => None,
        info => decode(info, vmcb, injected),
    }
}

fn decode(info: u64, vmcb: &Vmcb, injected: Option<Event>) -> Option<Event> {
    let vector = info as u8;
    match info & event::TYPE {
        event::INTERRUPT => Some(Event::Interrupt(vector)),
        event::NMI => Some(Event::Nmi),
        event::EXCEPTION if !matches!(vector, 1 | 3 | 4) => Some(Event::Exception(Exception {
            vector,
            error_code: (info & event::ERROR_CODE_VALID != 0).then_some((info >> 32) as u32),
            cr2: (vector == 14).then_some(vmcb.save.cr2),
        })),
        _ => injected.filter(|event| match event {
            Event::Software { vector: v, .. } => *v == vector,
            Event::Exception(e) => e.vector == vector,
            _ => false,
        }),
    }
}
