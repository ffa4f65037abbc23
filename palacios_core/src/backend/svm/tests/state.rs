// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers, features, pages.

use super::*;
use crate::addr::Hpa;
use crate::backend::fake_host::CPUS;
use crate::backend::svm::exit::code;
use crate::backend::svm::permission::SWITCHED;
use crate::backend::svm::vmcb::tlb_control;
use crate::backend::{BackendVcpu, Unsupported};
use crate::host::CpuId;
use crate::state::{rflags, CpuState, Reg, Seg};
use std::sync::atomic::Ordering;

#[test]
fn all_pages_go_back() {
    let host = FakeHost::default();
    let caps = Caps::new(cpuid_of(NPT, 16), Paging::default()).unwrap();
    let svm = Svm::new(&host, caps, Layout::probe()).unwrap();
    let vcpu = Vcpu::new(&host, &svm, &all_but(&[])).unwrap();
    assert!(host.pages.load(Ordering::Relaxed) >= 2 * CPUS as usize + 5 + 2);
    drop((vcpu, svm));
    assert_eq!(host.pages.load(Ordering::Relaxed), 0);
}

#[test]
fn what_vmrun_uses_does_not_begin_a_large_page() {
    let host = FakeHost {
        on_boundaries: true,
        ..FakeHost::default()
    };
    let caps = Caps::new(cpuid_of(NPT, 16), Paging::default()).unwrap();
    let svm = Svm::new(&host, caps, Layout::probe()).unwrap();
    let vcpu = Vcpu::new(&host, &svm, &all_but(&[])).unwrap();
    let here = &svm.cpus[0];
    for at in [vcpu.vmcb.at(), here.host_save.at(), here.host_vmcb.at()] {
        assert_eq!(at.0 % (2 << 20), 4096);
    }
    assert_eq!(vcpu.state(), CpuState::reset());
    drop((vcpu, svm));
    assert_eq!(host.pages.load(Ordering::Relaxed), 0);
}

#[test]
fn caps_are_read_from_the_right_bits() {
    let caps = |svm, paging| Caps::new(cpuid_of(svm, 16), paging);
    let none = caps(NPT, Paging::default()).unwrap();
    assert!(!none.next_rip && !none.flush_by_asid && !none.decode_assists && none.mce == 0);
    assert_eq!((none.levels, none.physical_bits, none.c_bit), (4, 48, 0));
    assert!(none.ibpb && none.tsc_aux);
    let la57 = Paging {
        cr4: 1 << 12 | 1 << 6,
        ..Paging::default()
    };
    let some = caps(NPT | NRIP | FLUSH_BY_ASID | DECODE_ASSISTS, la57).unwrap();
    assert!(some.next_rip && some.flush_by_asid && some.decode_assists);
    assert_eq!((some.levels, some.mce), (5, 1 << 6));
    use Unsupported::*;
    assert_eq!(caps(0, la57), Err(Missing("nested paging (NPT)")));
    assert_eq!(Caps::new(|_, _| [0; 4], la57), Err(NoCpu));
    let model = |eax| {
        let cpuid = move |leaf, sub| match leaf {
            1 => [eax, 0, 0, 0],
            _ => cpuid_of(NPT, 16)(leaf, sub),
        };
        Caps::new(cpuid, la57).err()
    };
    // Families 10h, 12h, 15h, 17h.
    assert!(matches!(model(0x0010_0f42), Some(Missing(what)) if what.contains("383")));
    for good in [0x0030_0f10, 0x0060_0f12, 0x0080_0f11] {
        assert_eq!(model(good), None);
    }
}

#[test]
fn encryption_is_on_where_the_hosts_own_tables_say_so() {
    // C-bit 47, five physical bits lost.
    let cpuid = |leaf, sub| match leaf {
        0x8000_001f => [1, 47 | 5 << 6, 0, 0],
        _ => cpuid_of(NPT, 16)(leaf, sub),
    };
    let caps = |cr3, syscfg| {
        Caps::new(
            cpuid,
            Paging {
                cr3,
                cr4: 0,
                syscfg,
            },
        )
        .unwrap()
    };
    let c = 1 << 47;
    let on = caps(c | 0x1000, Some(1 << 23));
    assert_eq!((on.c_bit, on.physical_bits), (c, 43));
    let format = on.table_format();
    assert_eq!(format.leaf, c | 7);
    assert_eq!(format.table, c | 7);
    assert_eq!(format.address & c, 0);
    assert_eq!(on.address(Hpa(0x5000)), c | 0x5000);
    for off in [
        caps(0x1000, Some(1 << 23)),
        caps(c | 0x1000, Some(0)),
        caps(c | 0x1000, None),
    ] {
        assert_eq!((off.c_bit, off.physical_bits), (0, 48));
    }
}

#[test]
fn state_comes_back_as_it_was_set() {
    let svm = svm_with(0, 16);
    let mut vcpu = vcpu_of(&svm);
    assert_eq!(vcpu.state(), CpuState::reset());
    let mut state = CpuState::reset();
    state.gprs.0 = std::array::from_fn(|i| i as u64 * 0x1111);
    state.control.cr3 = 0x5000;
    state.control.efer = 0xd01;
    state.control.cr0 = 0x8005_0033;
    state.dr = [1, 2, 3, 4];
    for (i, segment) in state.segments.iter_mut().enumerate() {
        segment.selector = i as u16 * 8;
        segment.base = i as u64 * 0x10000;
    }
    state.segments[Seg::Ss as usize].attributes.0 = 0xf3;
    vcpu.set_state(&state);
    assert_eq!(vcpu.state(), state);
    assert_eq!(vcpu.cpl(), 3);
    assert_eq!(vcpu.vmcb.get().save.efer & 1 << 12, 1 << 12);
    assert_eq!(vcpu.debug_register(2), 3);
    assert_eq!(vcpu.segment(Seg::Tr).selector, 56);
}

#[test]
fn privilege_follows_the_mode() {
    let svm = svm_with(0, 16);
    let mut vcpu = vcpu_of(&svm);
    let mut state = CpuState::reset();
    state.segments[Seg::Ss as usize].attributes.0 = 0xf3;
    vcpu.set_state(&state);
    assert_eq!(vcpu.cpl(), 0);
    state.control.cr0 |= 1;
    state.rflags |= rflags::VM;
    state.segments[Seg::Ss as usize].attributes.0 = 0x93;
    vcpu.set_state(&state);
    assert_eq!(vcpu.cpl(), 3);
}

#[test]
fn model_specific_registers_are_told_apart() {
    let svm = svm_with(0, 16);
    let mut vcpu = vcpu_of(&svm);
    assert_eq!(vcpu.msr(0x277), Some(0x0007_0406_0007_0406));
    for (n, index) in SWITCHED.into_iter().enumerate() {
        assert!(vcpu.set_msr(index, n as u64 + 1));
    }
    for (n, index) in SWITCHED.into_iter().enumerate() {
        assert_eq!(vcpu.msr(index), Some(n as u64 + 1));
    }
    assert!(vcpu.set_msr(0xc000_0103, 7));
    assert!(!vcpu.set_msr(0xc000_0103, 1 << 32));
    assert_eq!(vcpu.msr(0xc000_0103), Some(7));
    vcpu.power_on();
    for index in SWITCHED.into_iter().chain([0xc000_0103]) {
        let initial = if index == 0x277 {
            0x0007_0406_0007_0406
        } else {
            0
        };
        assert_eq!(vcpu.msr(index), Some(initial), "{index:#x}");
    }
    // No SPEC_CTRL without a second one in the processor.
    for index in [0x48, 0x10, 0xc000_0080, 0x1b] {
        assert_eq!(vcpu.msr(index), None);
        assert!(!vcpu.set_msr(index, 0));
    }
}

#[test]
fn only_changes_of_the_paging_mode_flush() {
    let svm = svm_with(FLUSH_BY_ASID, 16);
    let mut vcpu = vcpu_of(&svm);
    vcpu.take_slot(CpuId(0), &svm.cpus[0]);
    enter(&mut vcpu, exits(code::CPUID));
    let mut flush_after = |change: &dyn Fn(&mut crate::state::Control)| {
        let mut control = vcpu.control();
        change(&mut control);
        vcpu.set_control(control);
        vcpu.before_entry();
        let flush = vcpu.vmcb.get().control.tlb_control;
        vcpu.after_exit();
        flush
    };
    assert_eq!(flush_after(&|_| {}), tlb_control::NOTHING);
    assert_eq!(flush_after(&|c| c.cr0 ^= 1 << 3), tlb_control::NOTHING);
    assert_eq!(flush_after(&|c| c.cr2 ^= 1), tlb_control::NOTHING);
    assert_eq!(flush_after(&|c| c.cr3 ^= 0x1000), tlb_control::THIS_ASID);
    assert_eq!(flush_after(&|c| c.cr0 ^= 1 << 31), tlb_control::THIS_ASID);
    assert_eq!(flush_after(&|c| c.cr4 ^= 1 << 7), tlb_control::THIS_ASID);
    assert_eq!(flush_after(&|c| c.efer ^= 1 << 11), tlb_control::THIS_ASID);
    assert_eq!(flush_after(&|c| c.efer ^= 1), tlb_control::NOTHING);
}

#[test]
fn general_registers_travel() {
    let svm = svm_with(0, 16);
    let mut vcpu = vcpu_of(&svm);
    vcpu.gprs_mut()[Reg::Rax] = 7;
    vcpu.gprs_mut()[Reg::Rsp] = 8;
    vcpu.before_entry();
    let save = &mut vcpu.vmcb.uncached().save;
    assert_eq!((save.rax, save.rsp), (7, 8));
    (save.rax, save.rsp) = (9, 10);
    vcpu.after_exit();
    assert_eq!((vcpu.gprs()[Reg::Rax], vcpu.gprs()[Reg::Rsp]), (9, 10));
}
