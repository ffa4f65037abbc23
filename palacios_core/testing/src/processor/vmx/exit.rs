// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an exit writes into the VMCS (SDM 3C: 27.2, 27.3; SDM 3D: appendix C).

use super::super::execute::Guest;
use super::super::svm::TASK;
use super::super::HostMachine;
use super::check;
use super::field;
use super::vmcs::Vmcs;
use palacios_core::addr::Hpa;
use palacios_core::backend::{Event, Exit, NestedFault, PortAccess};
use palacios_core::state::{Exception, Reg};

const VALID: u32 = 1 << 31;
const HAS_CODE: u32 = 1 << 11;
/// What fields hold that have no meaning after an exit.
const MEANINGLESS: u64 = 13;
const DEBUG: u8 = 1;

/// Why the guest is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Guest(Exit),
    Interrupt,
    Timer,
    Nmi,
    MachineCheck,
}

impl Reason {
    /// Something of the host ends the stay.
    pub fn of_host(random: u64, timer: bool) -> Self {
        match random % 8 {
            0 => Self::Nmi,
            1 | 2 if timer => Self::Timer,
            _ => Self::Interrupt,
        }
    }
}

/// An entry that failed when it had begun: nothing of the guest has changed, and the event is still to be injected (SDM 3C:
/// 26.8).
pub fn entry_failed(vmcs: &mut Vmcs, reason: u64, qualification: u64) {
    vmcs.set(field::EXIT_REASON, 1 << 31 | reason);
    vmcs.set(field::QUALIFICATION, qualification);
}

/// Saves the guest's state.
pub fn store(host: &dyn HostMachine, vmcs: &mut Vmcs, guest: &Guest) {
    vmcs.store(&guest.state);
    vmcs.set(field::RSP, guest.state.gprs[Reg::Rsp]);
    let shadow = match (guest.shadow, guest.shadow_of_stack) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => 2,
    };
    let blocked = shadow | u64::from(guest.nmi_blocked) << 3;
    vmcs.set(field::INTERRUPTIBILITY, blocked);
    vmcs.set(field::PENDING_DEBUG, 0);
    if guest.cr8 != check::virtual_tpr(host, vmcs) >> 4 {
        let page = host.phys_to_virt(Hpa(vmcs.get(field::VIRTUAL_APIC)));
        // SAFETY: as where it is read.
        unsafe { page.as_ptr().add(0x80).write_volatile(guest.cr8 << 4) };
    }
}

/// Says why. `dr6` is what the register holds, which a #DB that exits leaves as it is.
pub fn describe(vmcs: &mut Vmcs, guest: &Guest, why: Reason, dr6: u64) {
    let unblocked = u32::from(guest.nmi_unblocked) << 12;
    let mut event = 0;
    let (reason, qualification) = match why {
        Reason::Interrupt => (1, 0),
        Reason::Timer => (52, 0),
        Reason::Nmi => {
            event = VALID | 2 << 8 | 2;
            (0, 0)
        }
        Reason::MachineCheck => {
            event = VALID | 3 << 8 | 18;
            (0, 0)
        }
        Reason::Guest(Exit::Exception(e)) => {
            event = encode(Event::Exception(e)) | unblocked;
            let code = e.error_code.unwrap_or(MEANINGLESS as u32);
            vmcs.set(field::EXIT_ERROR_CODE, code.into());
            let hits = if e.vector == DEBUG {
                guest.state.dr6 & !dr6
            } else {
                0
            };
            (0, e.cr2.unwrap_or(hits))
        }
        Reason::Guest(Exit::NestedFault(fault)) => {
            vmcs.set(field::GUEST_PHYSICAL, fault.gpa.0);
            (48, encode_fault(fault) | u64::from(unblocked))
        }
        Reason::Guest(exit) => of_instruction(guest, exit),
    };
    vmcs.set(field::EXIT_REASON, reason);
    vmcs.set(field::QUALIFICATION, qualification);
    vmcs.set(field::EXIT_EVENT, event.into());
    let length = guest.next_rip.filter(|_| has_length(guest, why));
    let length = length.map_or(MEANINGLESS, |end| end.wrapping_sub(guest.state.rip));
    vmcs.set(field::EXIT_LENGTH, length);
    let cut_short = guest.interrupted.map_or(0, encode);
    vmcs.set(field::VECTORING_EVENT, cut_short.into());
    let code = match guest.interrupted {
        Some(Event::Exception(e)) => e.error_code.unwrap_or(MEANINGLESS as u32),
        _ => MEANINGLESS as u32,
    };
    vmcs.set(field::VECTORING_ERROR_CODE, code.into());
    // The event was delivered, or is in the other field now.
    let injected = vmcs.get(field::ENTRY_EVENT);
    vmcs.set(field::ENTRY_EVENT, injected & !u64::from(VALID));
}

/// The exit is by an instruction, or by one that delivers an event (SDM 3C: 27.2.5).
fn has_length(guest: &Guest, why: Reason) -> bool {
    match why {
        _ if matches!(guest.interrupted, Some(Event::Software { .. })) => true,
        Reason::Guest(exit) => !matches!(
            exit,
            Exit::Exception(_) | Exit::NestedFault(_) | Exit::InterruptWindow | Exit::NmiWindow
        ),
        _ => false,
    }
}

/// The basic reason and the qualification.
fn of_instruction(guest: &Guest, exit: Exit) -> (u64, u64) {
    match exit {
        Exit::TripleFault => (2, 0),
        Exit::TaskSwitch => (9, encode_task_switch(guest)),
        Exit::InterruptWindow if guest.below_threshold => (43, 0),
        Exit::InterruptWindow => (7, 0),
        Exit::NmiWindow => (8, 0),
        Exit::Cpuid => (10, 0),
        Exit::Halt => (12, 0),
        Exit::CacheControl => (54, 0),
        Exit::ReadPmc => (15, 0),
        Exit::Hypercall => (18, 0),
        Exit::Emulate if guest.moved >= 32 => (29, encode_move(guest)),
        Exit::Emulate => (28, encode_move(guest)),
        Exit::Port(access) => (30, encode_port(access)),
        Exit::ReadMsr => (31, 0),
        Exit::WriteMsr => (32, 0),
        Exit::Monitor => (39, 0),
        Exit::Pause => (40, 0),
        Exit::SetXcr => (55, 0),
        other => panic!("{other:?} under VT-x"),
    }
}

/// SDM 3C: tables 27-3 and 27-4.
fn encode_move(guest: &Guest) -> u64 {
    let write = guest.moved & 16 != 0;
    let register = guest.moved & 15;
    let general = guest.moved_with as u64 & 15;
    register | u64::from(!write) << 4 | general << 8
}

/// SDM 3C: table 27-2: by a far jump, or by a gate.
fn encode_task_switch(guest: &Guest) -> u64 {
    let source = if guest.interrupted.is_some() { 3 } else { 2 };
    TASK | source << 30
}

/// SDM 3C: table 27-5.
fn encode_port(access: PortAccess) -> u64 {
    let bits = u64::from(!access.write) << 3 | u64::from(access.string) << 4;
    u64::from(access.size - 1) | bits | u64::from(access.port) << 16
}

/// SDM 3C: table 27-7: of a page that the tables do not have, in the translation of a linear address.
fn encode_fault(fault: NestedFault) -> u64 {
    let read = !fault.write && !fault.fetch;
    u64::from(read) | u64::from(fault.write) << 1 | u64::from(fault.fetch) << 2 | 0b11 << 7
}

/// What the entry is to inject (SDM 3C: 24.8.3).
pub fn decode(vmcs: &Vmcs) -> Option<Event> {
    let field = vmcs.get_32(field::ENTRY_EVENT);
    let vector = field as u8;
    let error_code = (field & HAS_CODE != 0).then(|| vmcs.get_32(field::ENTRY_ERROR_CODE));
    (field & VALID != 0).then(|| match field >> 8 & 7 {
        0 => Event::Interrupt(vector),
        2 => Event::Nmi,
        3 => Event::Exception(Exception {
            vector,
            error_code,
            cr2: None,
        }),
        _ => Event::Software {
            vector,
            next_rip: vmcs.get(field::RIP) + vmcs.get(field::ENTRY_LENGTH),
        },
    })
}

/// An event that exited or was cut short (SDM 3C: 24.9.2, 24.9.3).
fn encode(event: Event) -> u32 {
    let info = match event {
        Event::Interrupt(vector) => u32::from(vector),
        Event::Nmi => 2 << 8 | 2,
        Event::Exception(e) => {
            let code = e.error_code.map_or(0, |_| HAS_CODE);
            3 << 8 | u32::from(e.vector) | code
        }
        Event::Software { vector, .. } => match vector {
            1 => 5 << 8 | 1,
            3 | 4 => 6 << 8 | u32::from(vector),
            _ => 4 << 8 | u32::from(vector),
        },
    };
    VALID | info
}
