// SPDX-License-Identifier: MIT OR Apache-2.0
//! Injection, windows, and what was cut short.

use super::*;
use crate::backend::vmx::controls::{blocking, event, primary};
use crate::backend::vmx::events::{Events, ExitOutcome};
use crate::backend::vmx::exit::{reason, Exited};
use crate::backend::vmx::field::*;
use crate::backend::Event;
use crate::state::{rflags, Exception};

/// In protected mode at 0x1000, or in real mode.
fn guest(protected: bool) -> Vmcs<FakeHost> {
    let mut vmcs = vmcs();
    vmcs.set(CR0, Natural(protected.into()));
    vmcs.set(RIP, Natural(0x1000));
    vmcs
}

/// About to deliver an event.
fn delivering(pending: Option<Event>) -> Events {
    let mut events = Events::default();
    events.pending = pending;
    events
}

/// Waiting for windows.
fn waiting(interrupt_window: Option<u8>, nmi_window: bool) -> Events {
    let mut events = Events::default();
    (events.interrupt_window, events.nmi_window) = (interrupt_window, nmi_window);
    events
}

/// What an entry is told: the event, its error code and its length.
fn injected(protected: bool, what: Event) -> (u32, u32, u32) {
    let (mut vmcs, mut cr2) = (guest(protected), 0);
    let mut events = delivering(Some(what));
    assert!(!events.interruptible(&vmcs) && !events.nmi_allowed(&vmcs));
    events.before(&mut vmcs, &mut cr2, 0);
    assert_eq!(events.pending, None);
    let told = (
        vmcs.get(ENTRY_EVENT),
        vmcs.get(ENTRY_ERROR_CODE),
        vmcs.get(ENTRY_LENGTH),
    );
    // Once only.
    events.after(&mut vmcs, &exited(reason::CPUID), 0);
    events.before(&mut vmcs, &mut cr2, 0);
    assert_eq!(vmcs.get(ENTRY_EVENT), 0);
    told
}

fn exited(reason: u16) -> Exited {
    Exited {
        reason,
        ..Exited::default()
    }
}

#[test]
fn each_event_is_injected_in_its_own_form() {
    let software = |vector| Event::Software {
        vector,
        next_rip: 0x1002,
    };
    assert_eq!(injected(true, Event::Interrupt(0x31)).0, 0x8000_0031);
    assert_eq!(injected(true, Event::Nmi).0, 0x8000_0202);
    let undefined = Event::Exception(Exception::INVALID_OPCODE);
    assert_eq!(injected(true, undefined), (0x8000_0306, 0, 0));
    let protection = Event::Exception(Exception::general_protection(0x18));
    assert_eq!(injected(true, protection), (0x8000_0b0d, 0x18, 0));
    assert_eq!(injected(true, software(0x80)), (0x8000_0480, 0, 2));
    assert_eq!(injected(true, software(3)), (0x8000_0603, 0, 2));
    assert_eq!(injected(true, software(4)), (0x8000_0604, 0, 2));
    assert_eq!(injected(true, software(1)), (0x8000_0501, 0, 2));
    // Real mode has no error codes (SDM 3C: 26.2.1.3).
    assert_eq!(injected(false, protection), (0x8000_030d, 0, 0));
}

#[test]
fn a_page_fault_brings_its_address() {
    let (mut vmcs, mut cr2) = (guest(true), 0);
    let mut events = delivering(Some(Event::Exception(Exception::page_fault(
        6,
        0xdead_b000,
    ))));
    events.before(&mut vmcs, &mut cr2, 0);
    assert_eq!(cr2, 0xdead_b000);
    assert_eq!(vmcs.get(ENTRY_ERROR_CODE), 6);
}

/// What is given back after an exit that cut this short.
fn cut(injected: Option<Event>, info: u32) -> (Option<Event>, Vmcs<FakeHost>) {
    let (mut vmcs, mut cr2) = (guest(true), 0);
    vmcs.set(INTERRUPTIBILITY, blocking::NMI);
    let mut events = delivering(injected);
    events.before(&mut vmcs, &mut cr2, 0);
    let exit = Exited {
        vectoring: info,
        ..exited(reason::EPT_VIOLATION)
    };
    assert_eq!(
        events.after(&mut vmcs, &exit, 0x7000),
        ExitOutcome::Untouched
    );
    (events.interrupted, vmcs)
}

#[test]
fn what_was_cut_short_is_given_back() {
    let valid = event::VALID;
    assert_eq!(cut(None, 0x31).0, None);
    assert_eq!(cut(None, valid | 0x31).0, Some(Event::Interrupt(0x31)));
    let undefined = Event::Exception(Exception::INVALID_OPCODE);
    assert_eq!(cut(None, valid | 0x306).0, Some(undefined));
    let fault = Event::Exception(Exception::page_fault(0, 0x7000));
    assert_eq!(cut(None, valid | 0xb0e).0, Some(fault));
    // The guest's own INT n, INT1 and INT3 it repeats itself.
    for info in [0x480, 0x501, 0x603] {
        assert_eq!(cut(None, valid | info).0, None);
    }
    // Ours are given back, if it was they.
    let software = Event::Software {
        vector: 0x80,
        next_rip: 0x1002,
    };
    assert_eq!(cut(Some(software), valid | 0x480).0, Some(software));
    assert_eq!(cut(Some(software), valid | 0x481).0, None);
}

#[test]
fn an_nmi_that_was_cut_short_blocks_none() {
    let (event, vmcs) = cut(None, event::VALID | 0x202);
    assert_eq!(event, Some(Event::Nmi));
    assert_eq!(vmcs.get(INTERRUPTIBILITY), 0);
    let (_, vmcs) = cut(None, event::VALID | 0x31);
    assert_eq!(vmcs.get(INTERRUPTIBILITY), blocking::NMI);
}

#[test]
fn an_iret_that_is_to_be_repeated_lets_no_nmi_in() {
    let mut vmcs = guest(true);
    let exit = Exited {
        qualification: event::NMI_UNBLOCKED.into(),
        ..exited(reason::EPT_VIOLATION)
    };
    Events::default().after(&mut vmcs, &exit, 0);
    assert_eq!(vmcs.get(INTERRUPTIBILITY), blocking::NMI);
}

#[test]
fn an_event_whose_entry_failed_is_still_to_come() {
    let (mut vmcs, mut cr2) = (guest(true), 0);
    let mut events = delivering(Some(Event::Nmi));
    events.before(&mut vmcs, &mut cr2, 0);
    events.not_entered();
    assert_eq!(events.pending, Some(Event::Nmi));
    // Of another guest nothing is left.
    Events::default().before(&mut vmcs, &mut cr2, 0);
    assert_eq!(vmcs.get(ENTRY_EVENT), 0);
}

/// The windows and the threshold that an entry gets.
fn watched(events: &mut Events, vmcs: &mut Vmcs<FakeHost>, cr8: u8) -> (bool, bool, u32) {
    events.before(vmcs, &mut 0, cr8);
    let controls = vmcs.get(PRIMARY_CONTROLS);
    (
        controls & primary::INTERRUPT_WINDOW != 0,
        controls & primary::NMI_WINDOW != 0,
        vmcs.get(TPR_THRESHOLD),
    )
}

#[test]
fn an_interrupt_window_opens_only_under_the_task_priority() {
    let mut vmcs = guest(true);
    let events = &mut Events::default();
    assert_eq!(watched(events, &mut vmcs, 0), (false, false, 0));
    events.interrupt_window = Some(5);
    assert_eq!(watched(events, &mut vmcs, 5), (false, false, 5));
    assert_eq!(watched(events, &mut vmcs, 4), (true, false, 0));
    events.interrupt_window = Some(16);
    assert_eq!(watched(events, &mut vmcs, 15), (true, false, 0));
    let seen = events.after(&mut vmcs, &exited(reason::INTERRUPT_WINDOW), 0);
    assert_eq!(seen, ExitOutcome::InterruptWindow);
    assert_eq!(watched(events, &mut vmcs, 0), (false, false, 0));
}

#[test]
fn a_task_priority_below_the_threshold_is_a_window_or_asks_for_one() {
    let mut vmcs = guest(true);
    let events = &mut waiting(Some(5), false);
    let exit = exited(reason::TPR_BELOW_THRESHOLD);
    assert_eq!(events.after(&mut vmcs, &exit, 0), ExitOutcome::EnterAgain);
    assert_eq!(events.interrupt_window, Some(5));
    vmcs.set(RFLAGS, Natural(rflags::IF));
    assert_eq!(
        events.after(&mut vmcs, &exit, 0),
        ExitOutcome::InterruptWindow
    );
    assert_eq!(events.interrupt_window, None);
}

#[test]
fn in_the_shadow_of_sti_an_nmi_waits_for_the_interrupt_window() {
    let mut vmcs = guest(true);
    vmcs.set(RFLAGS, Natural(rflags::IF));
    let events = &mut waiting(None, true);
    assert_eq!(watched(events, &mut vmcs, 0), (false, true, 0));
    vmcs.set(INTERRUPTIBILITY, blocking::STI);
    assert_eq!(watched(events, &mut vmcs, 0), (true, false, 0));
    let seen = events.after(&mut vmcs, &exited(reason::INTERRUPT_WINDOW), 0);
    assert_eq!((seen, events.nmi_window), (ExitOutcome::NmiWindow, false));
}

#[test]
fn shadows_agree_with_the_flags() {
    const BS: u64 = 1 << 14;
    let settled = |flags: u64, shadow: u32, pending: u64| {
        let mut vmcs = guest(true);
        vmcs.set(RFLAGS, Natural(flags));
        vmcs.set(INTERRUPTIBILITY, shadow);
        vmcs.set(PENDING_DEBUG, Natural(pending));
        Events::default().before(&mut vmcs, &mut 0, 0);
        (vmcs.get(INTERRUPTIBILITY), vmcs.get(PENDING_DEBUG).0)
    };
    let (both, trap) = (rflags::IF | rflags::TF, rflags::TF);
    assert_eq!(settled(both, blocking::STI, 0), (blocking::STI, BS));
    assert_eq!(settled(rflags::IF, blocking::STI, BS), (blocking::STI, 0));
    assert_eq!(
        settled(trap, blocking::MOV_SS, 1),
        (blocking::MOV_SS, BS | 1)
    );
    // STI leaves a shadow only with RFLAGS.IF set.
    assert_eq!(settled(0, blocking::STI, 0), (0, 0));
    assert_eq!(settled(0, 0, 0), (0, 0));
}

#[test]
fn an_event_ends_the_shadow_that_it_comes_in() {
    const BS: u64 = 1 << 14;
    let (mut vmcs, mut cr2) = (guest(true), 0);
    vmcs.set(RFLAGS, Natural(rflags::TF));
    vmcs.set(INTERRUPTIBILITY, blocking::MOV_SS | blocking::NMI);
    vmcs.set(PENDING_DEBUG, Natural(BS | 1));
    delivering(Some(Event::Exception(Exception::DEBUG))).before(&mut vmcs, &mut cr2, 0);
    assert_eq!(vmcs.get(INTERRUPTIBILITY), blocking::NMI);
    assert_eq!(vmcs.get(PENDING_DEBUG).0, 1, "the step is void");
}

#[test]
fn interrupts_wait_for_the_flag_and_the_shadow() {
    let mut vmcs = guest(true);
    let events = Events::default();
    assert!(!events.interruptible(&vmcs) && events.nmi_allowed(&vmcs));
    vmcs.set(RFLAGS, Natural(rflags::IF));
    assert!(events.interruptible(&vmcs));
    for shadow in [blocking::STI, blocking::MOV_SS] {
        vmcs.set(INTERRUPTIBILITY, shadow);
        assert!(!events.interruptible(&vmcs) && !events.nmi_allowed(&vmcs));
    }
    vmcs.set(INTERRUPTIBILITY, blocking::NMI);
    assert!(events.interruptible(&vmcs) && !events.nmi_allowed(&vmcs));
}

#[test]
fn what_an_exit_of_the_hosts_cut_short_is_delivered_by_the_next_entry() {
    let (mut vmcs, mut cr2) = (guest(true), 0);
    let mut events = delivering(Some(Event::Interrupt(0x31)));
    events.before(&mut vmcs, &mut cr2, 0);
    let cut = Exited {
        vectoring: event::VALID | event::INTERRUPT | 0x31,
        ..exited(reason::EXCEPTION_OR_NMI)
    };
    assert_eq!(events.after(&mut vmcs, &cut, 0), ExitOutcome::Untouched);
    events.go_on();
    assert_eq!(events.interrupted, None);
    events.before(&mut vmcs, &mut cr2, 0);
    assert_eq!(vmcs.get(ENTRY_EVENT), 0x8000_0031);
}
