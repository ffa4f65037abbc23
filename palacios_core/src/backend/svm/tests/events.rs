// SPDX-License-Identifier: MIT OR Apache-2.0
//! Injection, windows, and what was cut short.

use super::*;
use crate::backend::svm::exit::code;
use crate::backend::svm::vmcb::{event, Clean, Intercepts3, VirtualInterrupt};
use crate::backend::{BackendVcpu, Event};
use crate::state::{cr0, rflags, Exception};

#[test]
fn each_event_is_injected_once_and_in_its_own_form() {
    let svm = svm_with(NRIP, 16);
    let mut vcpu = vcpu_of(&svm);
    let mut injected = |event| {
        vcpu.inject(event);
        assert!(!vcpu.interruptible());
        vcpu.before_entry();
        let field = vcpu.vmcb.get().control.event_inj;
        vcpu.vmcb.uncached().control.exit_code = code::CPUID;
        vcpu.after_exit();
        assert_eq!(vcpu.vmcb.get().control.event_inj, 0);
        vcpu.before_entry();
        assert_eq!(vcpu.vmcb.get().control.event_inj, 0);
        field
    };
    let software = |vector| Event::Software {
        vector,
        next_rip: 0x1002,
    };
    assert_eq!(injected(Event::Interrupt(0x31)), 0x8000_0031);
    assert_eq!(injected(Event::Nmi), 0x8000_0202);
    assert_eq!(
        injected(Event::Exception(Exception::INVALID_OPCODE)),
        0x8000_0306
    );
    assert_eq!(injected(software(0x80)), 0x8000_0480);
    assert_eq!(injected(software(3)), 0x8000_0303);
    assert_eq!(injected(software(4)), 0x8000_0304);
}

#[test]
fn error_codes_are_of_protected_mode() {
    let svm = svm_with(NRIP, 16);
    let mut vcpu = vcpu_of(&svm);
    for (cr0, field) in [(0, 0x8000_030d), (cr0::PE, 0x18_8000_0b0d)] {
        let mut control = vcpu.control();
        control.cr0 = cr0::ET | cr0;
        vcpu.set_control(control);
        let gp = Exception::general_protection(0x18);
        vcpu.inject(Event::Exception(gp));
        vcpu.before_entry();
        assert_eq!(vcpu.vmcb.get().control.event_inj, field);
    }
}

#[test]
fn a_page_fault_brings_its_address() {
    let svm = svm_with(0, 16);
    let mut vcpu = vcpu_of(&svm);
    enter(&mut vcpu, exits(code::CPUID));
    vcpu.inject(Event::Exception(Exception::page_fault(6, 0xdead_b000)));
    vcpu.before_entry();
    assert_eq!(vcpu.vmcb.get().save.cr2, 0xdead_b000);
    assert!(!vcpu.vmcb.get().control.clean.contains(Clean::CR2));
}

#[test]
fn the_end_of_a_software_interrupt_goes_where_the_processor_looks() {
    let event = Event::Software {
        vector: 0x80,
        next_rip: 0x1002,
    };
    for (features, rip) in [(NRIP, 0x1000), (0, 0x1002)] {
        let svm = svm_with(features, 16);
        let mut vcpu = vcpu_of(&svm);
        vcpu.set_rip(0x1000);
        vcpu.inject(event);
        vcpu.before_entry();
        assert_eq!(vcpu.rip(), rip);
        if features == NRIP {
            assert_eq!(vcpu.vmcb.get().control.next_rip, 0x1002);
        }
    }
}

#[test]
fn what_was_cut_short_is_given_back_once() {
    let svm = svm_with(NRIP, 16);
    let mut vcpu = vcpu_of(&svm);
    let mut cut = |injected: Option<Event>, info: u64| {
        injected.into_iter().for_each(|event| vcpu.inject(event));
        enter(&mut vcpu, |vmcb| {
            vmcb.control.exit_code = code::NPF;
            vmcb.control.exit_int_info = info;
            vmcb.save.cr2 = 0x7000;
        });
        let event = vcpu.take_interrupted();
        assert_eq!(vcpu.take_interrupted(), None);
        event
    };
    let valid = event::VALID;
    assert_eq!(cut(None, 0x31), None);
    assert_eq!(cut(None, valid | 0x31), Some(Event::Interrupt(0x31)));
    assert_eq!(cut(None, valid | 0x202), Some(Event::Nmi));
    assert_eq!(
        cut(None, 0x18 << 32 | valid | 0xb0d),
        Some(Event::Exception(Exception::general_protection(0x18)))
    );
    assert_eq!(
        cut(None, 2 << 32 | valid | 0xb0e),
        Some(Event::Exception(Exception::page_fault(2, 0x7000)))
    );
    // The guest's own INT n, INT3 and INT1 it repeats itself.
    for info in [0x480, 0x303, 0x301] {
        assert_eq!(cut(None, valid | info), None);
    }
    // Ours are given back.
    let software = Event::Software {
        vector: 0x80,
        next_rip: 2,
    };
    assert_eq!(cut(Some(software), valid | 0x480), Some(software));
    let debug = Event::Exception(Exception::DEBUG);
    assert_eq!(cut(Some(debug), valid | 0x301), Some(debug));
}

#[test]
fn an_interrupt_window_opens_only_under_the_task_priority() {
    let svm = svm_with(0, 16);
    let mut vcpu = vcpu_of(&svm);
    let armed = |vcpu: &mut Vcpu<FakeHost>| {
        vcpu.before_entry();
        let control = &vcpu.vmcb.get().control;
        let irq = control.virtual_interrupt.contains(VirtualInterrupt::V_IRQ);
        assert_eq!(irq, control.intercepts3.contains(Intercepts3::VINTR));
        assert!(control
            .virtual_interrupt
            .contains(VirtualInterrupt::V_INTR_MASKING));
        (irq, control.cr_writes & 1 << 8 != 0)
    };
    assert_eq!(armed(&mut vcpu), (false, false));
    vcpu.set_cr8(5);
    vcpu.request_interrupt_window(Some(5));
    assert_eq!(armed(&mut vcpu), (false, true));
    vcpu.request_interrupt_window(Some(6));
    assert_eq!(armed(&mut vcpu), (true, true));
    assert_eq!(vcpu.cr8(), 5);
    vcpu.set_cr8(15);
    assert_eq!(armed(&mut vcpu), (false, true));
    vcpu.request_interrupt_window(Some(16));
    assert_eq!(armed(&mut vcpu), (true, true));
    vcpu.vmcb.uncached().control.exit_code = code::VINTR;
    assert_eq!(vcpu.after_exit(), ExitOutcome::Untouched);
    assert_eq!(armed(&mut vcpu), (false, false));
    vcpu.request_interrupt_window(Some(16));
    vcpu.request_interrupt_window(None);
    assert_eq!(armed(&mut vcpu), (false, false));
}

#[test]
fn interrupts_wait_for_the_flag_and_the_shadow() {
    let svm = svm_with(0, 16);
    let mut vcpu = vcpu_of(&svm);
    assert!(!vcpu.interruptible() && vcpu.nmi_allowed());
    vcpu.set_rflags(rflags::IF);
    assert!(vcpu.interruptible());
    vcpu.set_interrupt_shadow(true);
    assert!(!vcpu.interruptible() && !vcpu.nmi_allowed());
    vcpu.set_rip(1);
    assert!(vcpu.interruptible() && vcpu.nmi_allowed());
}

/// A guest in its NMI handler.
fn in_nmi(svm: &Svm<FakeHost>) -> Vcpu<FakeHost> {
    let mut vcpu = vcpu_of(svm);
    vcpu.inject(Event::Nmi);
    enter(&mut vcpu, exits(code::CPUID));
    assert!(!vcpu.nmi_allowed());
    vcpu
}

fn flags_and_rip(vcpu: &Vcpu<FakeHost>) -> (bool, u64) {
    (vcpu.rflags() & rflags::TF != 0, vcpu.rip())
}

#[test]
fn an_nmi_waits_until_iret_is_complete() {
    let svm = svm_with(0, 16);
    let mut vcpu = in_nmi(&svm);
    vcpu.before_entry();
    assert!(vcpu
        .vmcb
        .get()
        .control
        .intercepts3
        .contains(Intercepts3::IRET));
    vcpu.set_rip(0x800);
    vcpu.vmcb.uncached().control.exit_code = code::IRET;
    assert_eq!(vcpu.after_exit(), ExitOutcome::EnterAgain);
    assert!(!vcpu.nmi_allowed());
    // Nobody waits: no step. A host interrupt before the IRET changes nothing, one after it does.
    vcpu.before_entry();
    assert_eq!(flags_and_rip(&vcpu), (false, 0x800));
    assert!(!vcpu
        .vmcb
        .get()
        .control
        .intercepts3
        .contains(Intercepts3::IRET));
    vcpu.vmcb.uncached().control.exit_code = code::INTR;
    assert_eq!(vcpu.after_exit(), ExitOutcome::Untouched);
    assert!(!vcpu.nmi_allowed());
    enter(&mut vcpu, |vmcb| {
        vmcb.control.exit_code = code::INTR;
        vmcb.save.rip = 0x1234;
    });
    assert!(vcpu.nmi_allowed());
}

#[test]
fn a_waiting_nmi_steps_over_iret() {
    let svm = svm_with(0, 16);
    let mut vcpu = in_nmi(&svm);
    vcpu.request_nmi_window(true);
    let seen = enter(&mut vcpu, |vmcb| {
        vmcb.control.exit_code = code::IRET;
        vmcb.save.rip = 0x800;
    });
    assert_eq!(seen, ExitOutcome::EnterAgain);
    // The IRET faults in a nested table first: TF must not show.
    vcpu.before_entry();
    assert_eq!(flags_and_rip(&vcpu), (true, 0x800));
    vcpu.vmcb.uncached().control.exit_code = code::NPF;
    assert_eq!(vcpu.after_exit(), ExitOutcome::Untouched);
    assert_eq!(flags_and_rip(&vcpu), (false, 0x800));
    assert!(!vcpu.nmi_allowed());
    // Then it is executed, and returns to code that is being stepped itself.
    let seen = enter(&mut vcpu, |vmcb| {
        vmcb.control.exit_code = code::DB;
        vmcb.save.rip = 0x1234;
        vmcb.save.rflags |= rflags::TF;
        vmcb.save.dr6 |= 1 << 14;
    });
    assert_eq!(seen, ExitOutcome::NmiWindow);
    assert!(vcpu.nmi_allowed());
    assert_eq!(flags_and_rip(&vcpu), (true, 0x1234));
    assert_eq!(vcpu.debug_register(6), 0xffff_0ff0);
}

#[test]
fn a_waiting_nmi_steps_out_of_a_shadow() {
    let svm = svm_with(0, 16);
    let mut vcpu = vcpu_of(&svm);
    vcpu.set_interrupt_shadow(true);
    vcpu.request_nmi_window(true);
    vcpu.before_entry();
    assert!(flags_and_rip(&vcpu).0);
    let vmcb = vcpu.vmcb.uncached();
    vmcb.control.interrupt_shadow = 0;
    vmcb.control.exit_code = code::DB;
    vmcb.save.dr6 |= 1 << 14;
    assert_eq!(vcpu.after_exit(), ExitOutcome::NmiWindow);
    assert!(!flags_and_rip(&vcpu).0 && vcpu.nmi_allowed());
}

#[test]
fn a_breakpoint_hit_while_stepping_is_the_guests() {
    let svm = svm_with(0, 16);
    let mut vcpu = vcpu_of(&svm);
    vcpu.set_interrupt_shadow(true);
    vcpu.request_nmi_window(true);
    let seen = enter(&mut vcpu, |vmcb| {
        vmcb.control.interrupt_shadow = 0;
        vmcb.control.exit_code = code::DB;
        vmcb.save.dr6 |= 1 << 14 | 1;
    });
    assert_eq!(seen, ExitOutcome::Untouched);
    assert_eq!(vcpu.debug_register(6), 0xffff_0ff1);
}

#[test]
fn an_nmi_that_was_cut_short_can_be_injected_again() {
    let svm = svm_with(0, 16);
    let mut vcpu = vcpu_of(&svm);
    vcpu.inject(Event::Nmi);
    enter(&mut vcpu, |vmcb| {
        vmcb.control.exit_code = code::NPF;
        vmcb.control.exit_int_info = event::VALID | event::NMI | 2;
    });
    assert_eq!(vcpu.take_interrupted(), Some(Event::Nmi));
    assert!(vcpu.nmi_allowed());
}
