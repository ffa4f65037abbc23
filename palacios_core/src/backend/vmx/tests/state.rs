// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers and pages.

use super::*;
use crate::backend::fake_host::CPUS;
use crate::backend::vmx::controls::entry;
use crate::backend::vmx::field::*;
use crate::backend::vmx::registers::{self, from_rights, to_rights};
use crate::backend::{BackendVcpu, Exit, HostProcessor};
use crate::host::CpuId;
use crate::state::{cr0, cr4, efer, rflags, CpuState, Seg, SegmentAttributes as A};
use std::sync::atomic::Ordering;

#[test]
fn all_pages_go_back() {
    let host = FakeHost::default();
    let vmx = Vmx::new(&host, caps(), Layout::probe()).unwrap();
    let vcpu = Vcpu::new(&host, &vmx, &of_host()).unwrap();
    // The MSR bitmap; a VMCS, a virtual-APIC page, floating-point state.
    let pages = host.pages.load(Ordering::Relaxed);
    assert!(pages >= CPUS as usize + 1 + 3, "{pages}");
    drop((vcpu, vmx));
    assert_eq!(host.pages.load(Ordering::Relaxed), 0);
}

#[test]
fn a_cpu_that_was_not_enabled_runs_nothing() {
    let (host, vmx) = (FakeHost::default(), vmx());
    let mut vcpu = vcpu();
    for cpu in [0, CPUS] {
        vcpu.load(&host, &vmx, CpuId(cpu));
        assert_eq!(vcpu.enter(&host), Exit::Gone);
        vcpu.unload(&host, &vmx);
    }
    assert_eq!(vmx.features().address_space_tags, 1 << 16);
}

#[test]
fn alignment_is_checked_where_the_guest_asks_for_it() {
    let (mut vmcs, caps) = (vmcs(), caps());
    let mut check = |cpl: u16, am: u64, ac: u64| {
        let mut state = CpuState::reset();
        state.control.cr0 |= am;
        state.rflags |= ac;
        state.segments[Seg::Ss as usize].attributes.0 |= cpl << 5;
        registers::fill(&mut vmcs, &caps, &state);
        registers::checks_alignment(&vmcs, &caps)
    };
    assert!(check(3, cr0::AM, rflags::AC));
    assert!(!check(0, cr0::AM, rflags::AC));
    assert!(!check(3, 0, rflags::AC));
    assert!(!check(3, cr0::AM, 0));
}

#[test]
fn rights_hold_what_attributes_do() {
    // Code of 64 bits, a stack of 32 bits, real-mode data, a task in use, an LDT.
    for (seg, attributes, rights) in [
        (Seg::Cs, 0x29b, 0x209b),
        (Seg::Ss, 0xc93, 0xc093),
        (Seg::Ds, 0x093, 0x0093),
        (Seg::Tr, 0x08b, 0x008b),
        (Seg::Ldtr, 0x082, 0x0082),
    ] {
        assert_eq!(to_rights(seg, A(attributes)), rights);
        assert_eq!(from_rights(rights), A(attributes));
    }
    // What is not present is unusable, but for CS and TR; what is loaded has been accessed; a task is busy.
    assert_eq!(to_rights(Seg::Es, A(0)) & 1 << 16, 1 << 16);
    assert_eq!(from_rights(1 << 16 | 0x93), A(0x13));
    assert_eq!(to_rights(Seg::Ldtr, A(2)) & 1 << 16, 1 << 16);
    assert_eq!(to_rights(Seg::Cs, A(0x1b)) & 1 << 16, 0);
    assert_eq!(to_rights(Seg::Ds, A(0x92)), 0x93);
    assert_eq!(to_rights(Seg::Tr, A(0x89)), 0x8b);
    assert_eq!(to_rights(Seg::Tr, A(0)), 0x82);
}

#[test]
fn state_comes_back_as_it_was_set() {
    let mut vcpu = vcpu();
    assert_eq!(vcpu.state(), CpuState::reset());
    let mut state = CpuState::reset();
    state.gprs.0 = std::array::from_fn(|i| i as u64 * 0x1111);
    state.rip = 0x1234_5678;
    state.control.cr2 = 0x7000;
    state.control.cr3 = 0x5000;
    state.control.efer = 0xd01;
    state.control.cr0 = 0x8005_0033;
    state.control.cr4 = 0x20;
    state.dr = [1, 2, 3, 4];
    state.dr6 = 0xffff_0ff1;
    state.dr7 = 0x455;
    (state.gdtr.base, state.gdtr.limit) = (0x1000, 0x7f);
    (state.idtr.base, state.idtr.limit) = (0x2000, 0xfff);
    for (i, segment) in state.segments.iter_mut().enumerate() {
        segment.selector = i as u16 * 8;
        segment.base = i as u64 * 0x10000;
    }
    state.segments[Seg::Ss as usize].attributes.0 = 0xf3;
    vcpu.set_state(&state);
    assert_eq!(vcpu.state(), state);
    assert_eq!(vcpu.cpl(), 3);
    assert_eq!(vcpu.debug_register(2), 3);
    assert_eq!(vcpu.segment(Seg::Tr).selector, 56);
    vcpu.set_cr8(9);
    assert_eq!(vcpu.cr8(), 9);
}

#[test]
fn guarded_bits_are_shown_as_they_were_written() {
    let (mut vmcs, caps) = (vmcs(), caps().of_guest(&of_host()));
    let written = cr0::PE | cr0::CD | cr0::NW | cr0::WP;
    registers::set_cr0(&mut vmcs, &caps, written);
    assert_eq!(vmcs.get(CR0).0, cr0::PE | cr0::WP | cr0::NE);
    assert_eq!(registers::cr0(&vmcs, &caps), written);
    // What the guest changes by itself shows as well.
    vmcs.set(CR0, Natural(cr0::PE | cr0::NE | cr0::TS));
    let seen = cr0::PE | cr0::TS | cr0::CD | cr0::NW;
    assert_eq!(registers::cr0(&vmcs, &caps), seen);
    registers::set_cr4(&mut vmcs, &caps, cr4::PAE);
    assert_eq!(vmcs.get(CR4).0, cr4::PAE | cr4::MCE | 1 << 13);
    assert_eq!(registers::cr4(&vmcs, &caps), cr4::PAE);
    registers::set_cr4(&mut vmcs, &caps, cr4::MCE | cr4::LA57);
    assert_eq!(vmcs.get(CR4).0, cr4::MCE | 1 << 13);
    assert_eq!(registers::cr4(&vmcs, &caps), cr4::MCE | cr4::LA57);
}

#[test]
fn the_entry_controls_follow_efer() {
    let mut vmcs = vmcs();
    vmcs.set(ENTRY_CONTROLS, 0x11fb);
    let mut controls = |value| {
        registers::set_efer(&mut vmcs, value);
        assert_eq!(vmcs.get(EFER), value);
        vmcs.get(ENTRY_CONTROLS)
    };
    assert_eq!(controls(efer::LME), 0x11fb);
    assert_eq!(controls(efer::LME | efer::LMA), 0x11fb | entry::LONG_MODE);
    assert_eq!(controls(0), 0x11fb);
}

#[test]
fn sixty_four_bit_code_is_known() {
    let mut vmcs = vmcs();
    vmcs.set(EFER, efer::LMA);
    vmcs.set(CS_RIGHTS, 0xc09b);
    assert!(!registers::in_64_bit_code(&vmcs));
    vmcs.set(CS_RIGHTS, 0xa09b);
    assert!(registers::in_64_bit_code(&vmcs));
    vmcs.set(EFER, 0);
    assert!(!registers::in_64_bit_code(&vmcs));
}

#[test]
fn model_specific_registers_are_told_apart() {
    let mut vcpu = vcpu();
    assert_eq!(vcpu.msr(msr::PAT), Some(0x0007_0406_0007_0406));
    let all = [
        msr::SYSENTER_CS,
        msr::SYSENTER_ESP,
        msr::SYSENTER_EIP,
        msr::FS_BASE,
        msr::GS_BASE,
        msr::STAR,
        msr::LSTAR,
        msr::CSTAR,
        msr::SFMASK,
        msr::KERNEL_GS_BASE,
        0xc000_0103,
    ];
    for (value, index) in (1..).zip(all) {
        assert!(vcpu.set_msr(index, value));
    }
    for (value, index) in (1..).zip(all) {
        assert_eq!(vcpu.msr(index), Some(value));
    }
    assert!(vcpu.set_msr(msr::PAT, 0));
    vcpu.power_on();
    assert!(all.into_iter().all(|index| vcpu.msr(index) == Some(0)));
    assert_eq!(vcpu.msr(msr::PAT), Some(0x0007_0406_0007_0406));
    // What an entry, or WRMSR, would refuse.
    for index in [
        msr::SYSENTER_ESP,
        msr::SYSENTER_EIP,
        msr::FS_BASE,
        msr::GS_BASE,
        msr::LSTAR,
        msr::CSTAR,
        msr::KERNEL_GS_BASE,
    ] {
        assert!(!vcpu.set_msr(index, 1 << 47), "{index:#x}");
        assert!(vcpu.set_msr(index, !0 << 47), "{index:#x}");
    }
    assert!(!vcpu.set_msr(msr::PAT, 2));
    assert!(!vcpu.set_msr(0xc000_0103, 1 << 32));
    for index in [0x48, 0x10, 0xc000_0080, 0x1b, msr::DEBUGCTL] {
        assert_eq!(vcpu.msr(index), None);
        assert!(!vcpu.set_msr(index, 0));
    }
}

#[test]
fn an_instruction_that_was_completed_ends_the_shadow() {
    let mut vcpu = vcpu();
    vcpu.set_rflags(rflags::FIXED | rflags::IF);
    vcpu.set_interrupt_shadow(true);
    assert!(!vcpu.interruptible() && !vcpu.nmi_allowed());
    vcpu.set_rip(1);
    assert!(vcpu.interruptible() && vcpu.nmi_allowed());
}
