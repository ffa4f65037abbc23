// SPDX-License-Identifier: MIT OR Apache-2.0
//! From exit reasons (SDM 3D: appendix C) and qualifications (SDM 3C: 27.2.1) to the words of the core.

use super::super::{Exit, NestedFault, PortAccess};
use super::controls::event;
use super::field::*;
use super::vmcs::Vmcs;
use crate::addr::Gpa;
use crate::host::Host;
use crate::state::Exception;

/// Basic exit reasons.
pub(super) mod reason {
    pub const EXCEPTION_OR_NMI: u16 = 0;
    pub const EXTERNAL_INTERRUPT: u16 = 1;
    pub const TRIPLE_FAULT: u16 = 2;
    pub const INIT: u16 = 3;
    /// 4 and 5 are a start-up message and an SMI in an I/O instruction, which cannot come here.
    pub const OTHER_SMI: u16 = 6;
    pub const INTERRUPT_WINDOW: u16 = 7;
    pub const NMI_WINDOW: u16 = 8;
    pub const TASK_SWITCH: u16 = 9;
    pub const CPUID: u16 = 10;
    pub const GETSEC: u16 = 11;
    pub const HLT: u16 = 12;
    pub const INVD: u16 = 13;
    pub const INVLPG: u16 = 14;
    pub const RDPMC: u16 = 15;
    pub const RSM: u16 = 17;
    pub const VMCALL: u16 = 18;
    pub const VMCLEAR: u16 = 19;
    pub const VMXON: u16 = 27;
    pub const CONTROL_REGISTER: u16 = 28;
    pub const DEBUG_REGISTER: u16 = 29;
    pub const PORT: u16 = 30;
    pub const RDMSR: u16 = 31;
    pub const WRMSR: u16 = 32;
    pub const BAD_STATE: u16 = 33;
    pub const BAD_MSR: u16 = 34;
    pub const MWAIT: u16 = 36;
    pub const MONITOR: u16 = 39;
    pub const PAUSE: u16 = 40;
    pub const MACHINE_CHECK: u16 = 41;
    pub const TPR_BELOW_THRESHOLD: u16 = 43;
    pub const EPT_VIOLATION: u16 = 48;
    pub const INVEPT: u16 = 50;
    pub const RDTSCP: u16 = 51;
    pub const PREEMPTION_TIMER: u16 = 52;
    pub const INVVPID: u16 = 53;
    pub const WBINVD: u16 = 54;
    pub const XSETBV: u16 = 55;
    pub const VMFUNC: u16 = 59;
    /// Not the processor's: the entry failed, with the error that stands in the qualification.
    pub const FAILED: u16 = u16::MAX;
}

/// The exit reason says that it is of an entry that failed.
const ENTRY_FAILED: u32 = 1 << 31;
/// Vectors of exceptions.
const NMI: u8 = 2;
const DEBUG: u8 = 1;
const ALIGNMENT: u8 = 17;
const MACHINE_CHECK: u8 = 18;

/// What the VMCS says of the last exit.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Exited {
    pub reason: u16,
    /// It was of an entry that failed.
    pub entry_failed: bool,
    pub qualification: u64,
    /// The exception or NMI that exited, if one did.
    pub event: u32,
    /// The error code of that exception, if it has one.
    pub error_code: u32,
    /// What was being delivered.
    pub vectoring: u32,
    /// The length of the instruction that exited, if one did.
    pub length: u8,
    pub gpa: u64,
}

impl Exited {
    /// Reads it.
    pub(super) fn read<H: Host>(vmcs: &Vmcs<H>) -> Self {
        let reason = vmcs.info(EXIT_REASON);
        let mut exit = Self {
            reason: reason as u16,
            entry_failed: reason & ENTRY_FAILED != 0,
            vectoring: vmcs.info(VECTORING_EVENT),
            ..Self::default()
        };
        match exit.reason {
            reason::EXTERNAL_INTERRUPT | reason::PREEMPTION_TIMER => return exit,
            reason::EXCEPTION_OR_NMI => {
                exit.event = vmcs.info(EXIT_EVENT);
                if exit.event & event::ERROR_CODE_VALID != 0 {
                    exit.error_code = vmcs.info(EXIT_ERROR_CODE);
                }
            }
            reason::EPT_VIOLATION => exit.gpa = vmcs.info(GUEST_PHYSICAL),
            _ => {}
        }
        exit.qualification = vmcs.info(QUALIFICATION).0;
        exit.length = vmcs.info(EXIT_LENGTH) as u8 & 15;
        exit
    }
    /// An entry that did not even begin, with the number of a VM-instruction error.
    pub(super) fn failed(error: u32) -> Self {
        Self {
            reason: reason::FAILED,
            entry_failed: true,
            qualification: error.into(),
            ..Self::default()
        }
    }

    /// The vector of the exception or NMI that exited.
    pub(super) fn vector(&self) -> Option<u8> {
        let exits = self.reason == reason::EXCEPTION_OR_NMI && self.event & event::VALID != 0;
        exits.then_some(self.event as u8)
    }
    pub(super) fn is_nmi(&self) -> bool {
        self.vector() == Some(NMI)
    }
    pub(super) fn is_debug(&self) -> bool {
        self.vector() == Some(DEBUG)
    }
    pub(super) fn is_alignment(&self) -> bool {
        self.vector() == Some(ALIGNMENT)
    }
    pub(super) fn is_machine_check(&self) -> bool {
        self.reason == reason::MACHINE_CHECK || self.vector() == Some(MACHINE_CHECK)
    }
    /// The exit was of an IRET that had let NMIs in already, and is to be executed again (SDM 3C: 27.2.3).
    pub(super) fn unblocked_nmi(&self) -> bool {
        const DOUBLE_FAULT: u8 = 8;
        let says_so = match self.reason {
            reason::EXCEPTION_OR_NMI if self.vector() != Some(DOUBLE_FAULT) => self.event.into(),
            reason::EPT_VIOLATION => self.qualification,
            _ => 0,
        };
        says_so & u64::from(event::NMI_UNBLOCKED) != 0 && self.vectoring & event::VALID == 0
    }
    /// Where the instruction at `rip` ends, if it is one that exited. Exits in the middle of one have no length, or one that
    /// means nothing (SDM 3C: 27.2.5).
    pub(super) fn next_rip(&self, rip: u64, long: bool) -> Option<u64> {
        let whole = match self.reason {
            reason::EXCEPTION_OR_NMI => self.event & event::TYPE == event::PRIVILEGED_SOFTWARE,
            reason::CPUID..=reason::VMXON => true,
            reason::CONTROL_REGISTER..=reason::WRMSR => true,
            reason::MWAIT | reason::MONITOR | reason::PAUSE => true,
            reason::INVEPT | reason::RDTSCP | reason::INVVPID..=reason::VMFUNC => true,
            _ => false,
        };
        let next = rip.wrapping_add(self.length.into());
        let next = if long { next } else { next & 0xffff_ffff };
        (whole && self.length != 0).then_some(next)
    }

    /// What the exit means to the core. Those that [`super::vcpu`] deals with itself are not among them.
    pub(super) fn translate(&self) -> Exit {
        match self.reason {
            reason::EXCEPTION_OR_NMI => self.exception(),
            reason::EXTERNAL_INTERRUPT | reason::PREEMPTION_TIMER => Exit::HostInterrupt,
            reason::TRIPLE_FAULT => Exit::TripleFault,
            reason::INIT..=reason::OTHER_SMI => Exit::HostInit,
            reason::INTERRUPT_WINDOW | reason::TPR_BELOW_THRESHOLD => Exit::InterruptWindow,
            reason::NMI_WINDOW => Exit::NmiWindow,
            reason::TASK_SWITCH => Exit::TaskSwitch,
            reason::CPUID => Exit::Cpuid,
            reason::HLT => Exit::Halt,
            reason::INVD | reason::WBINVD => Exit::CacheControl,
            reason::INVLPG | reason::CONTROL_REGISTER | reason::DEBUG_REGISTER => Exit::Emulate,
            reason::RDPMC => Exit::ReadPmc,
            reason::VMCALL => Exit::Hypercall,
            reason::GETSEC | reason::RSM | reason::VMCLEAR..=reason::VMXON => Exit::Undefined,
            reason::INVEPT | reason::RDTSCP | reason::INVVPID | reason::VMFUNC => Exit::Undefined,
            reason::PORT => Exit::Port(self.port()),
            reason::RDMSR => Exit::ReadMsr,
            reason::WRMSR => Exit::WriteMsr,
            reason::MWAIT | reason::MONITOR => Exit::Monitor,
            reason::PAUSE => Exit::Pause,
            reason::EPT_VIOLATION => Exit::NestedFault(self.nested_fault()),
            reason::XSETBV => Exit::SetXcr,
            code => Exit::Unknown {
                code: code.into(),
                info: [self.qualification, self.event.into()],
            },
        }
    }

    fn exception(&self) -> Exit {
        match self.vector() {
            Some(NMI) => Exit::HostInterrupt,
            Some(DEBUG) if self.event & event::TYPE == event::PRIVILEGED_SOFTWARE => Exit::Icebp,
            // The qualification is the address of a page fault (SDM 3C: 27.2.1).
            Some(vector) if vector < 32 => {
                let (code, cr2) = (self.error_code, self.qualification);
                Exit::Exception(Exception::of_vector(vector, code, cr2))
            }
            _ => Exit::Unknown {
                code: self.reason.into(),
                info: [self.qualification, self.event.into()],
            },
        }
    }

    /// The qualification of an I/O instruction (SDM 3C: table 27-5).
    fn port(&self) -> PortAccess {
        let info = self.qualification;
        PortAccess {
            port: (info >> 16) as u16,
            size: match info & 7 {
                3 => 4,
                1 => 2,
                _ => 1,
            },
            write: info & 1 << 3 == 0,
            string: info & 1 << 4 != 0,
        }
    }

    /// The qualification of an EPT violation (SDM 3C: table 27-7).
    fn nested_fault(&self) -> NestedFault {
        let info = self.qualification;
        let linear = info & 1 << 7 != 0;
        NestedFault {
            gpa: Gpa(self.gpa),
            write: info & 1 << 1 != 0,
            fetch: info & 1 << 2 != 0,
            table_walk: linear && info & 1 << 8 == 0,
        }
    }
}
