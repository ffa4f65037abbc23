// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers, and states that are refused.

use super::*;

#[test]
fn debug_registers_are_lent_and_come_back() {
    // mov eax, 0x1234; mov dr0, eax; mov ebx, dr0; hlt
    let code = [
        0xb8, 0x34, 0x12, 0, 0, 0x0f, 0x23, 0xc0, 0x0f, 0x21, 0xc3, 0xf4,
    ];
    on(2, 16, 1, &code, |bench| {
        for _ in 0..6 {
            bench.vcpus[0].set_rip(CODE);
            assert_eq!(bench.enter(), Exit::Halt);
            assert_eq!(bench.vcpus[0].debug_register(0), 0x1234);
            assert_eq!(bench.vcpus[0].gprs()[Reg::Rbx], 0x1234);
        }
        // Armed ones are there from the start of a window.
        bench.vcpus[0].set_debug_register(7, 0x401);
        bench.vcpus[0].set_debug_register(6, 0xffff_0ff2);
        for _ in 0..6 {
            bench.vcpus[0].set_rip(CODE);
            assert_eq!(bench.enter(), Exit::Halt);
        }
        assert_eq!(bench.vcpus[0].debug_register(7), 0x401);
        assert_eq!(bench.vcpus[0].debug_register(6), 0xffff_0ff2);
    });
}

#[test]
fn a_single_step_exits_and_stands_in_dr6() {
    const STEP: u64 = 1 << 14;
    const DETECT: u64 = 1 << 13;
    alone(&[0x90, 0x90, 0xf4], |bench| {
        let vcpu = &mut bench.vcpus[0];
        vcpu.set_debug_register(6, 0xffff_0ff0 | 1);
        vcpu.set_debug_register(7, 0x400 | DETECT);
        vcpu.set_rflags(rflags::FIXED | rflags::TF);
        assert_eq!(bench.enter(), Exit::Exception(Exception::DEBUG));
        let vcpu = &mut bench.vcpus[0];
        assert_eq!(vcpu.rip(), CODE + 1);
        assert_eq!(vcpu.next_rip(), None);
        // The hit of before is gone; general detect is off, or the handler could not look (SDM 3B: 17.2.4).
        assert_eq!(vcpu.debug_register(6), 0xffff_0ff0 | STEP);
        assert_eq!(vcpu.debug_register(7), 0x400);
        // In a shadow, with the step still to come (SDM 3C: 26.3.1.5).
        vcpu.set_rflags(rflags::FIXED | rflags::TF | rflags::IF);
        vcpu.set_interrupt_shadow(true);
        assert_eq!(bench.enter(), Exit::Exception(Exception::DEBUG));
        assert_eq!(bench.vcpus[0].rip(), CODE + 2);
    });
}

#[test]
fn registers_that_nothing_switches_are_the_guests_in_windows_only() {
    // mov ecx, KERNEL_GS_BASE; rdmsr; inc eax; wrmsr; hlt
    let code = [
        0xb9, 0x02, 0x01, 0, 0xc0, 0x0f, 0x32, 0x40, 0x0f, 0x30, 0xf4,
    ];
    on(2, 16, 1, &code, |bench| {
        assert!(bench.vcpus[0].set_msr(KERNEL_GS_BASE, 7));
        for n in 0..8 {
            bench.vcpus[0].set_rip(CODE);
            assert_eq!(bench.enter(), Exit::Halt);
            assert_eq!(bench.vcpus[0].msr(KERNEL_GS_BASE), Some(8 + n));
        }
        // TSC_AUX exits, in case that there is one.
        put(&bench.memory, Gpa(CODE + 1), &[0x03]);
        bench.vcpus[0].set_rip(CODE);
        assert_eq!(bench.enter(), Exit::ReadMsr);
    });
}

#[test]
fn the_address_of_a_page_fault_stays_the_guests() {
    // mov eax, cr2; inc eax; mov cr2, eax; hlt
    let code = [0x0f, 0x20, 0xd0, 0x40, 0x0f, 0x22, 0xd0, 0xf4];
    on(2, 16, 1, &code, |bench| {
        let mut state = flat();
        state.control.cr2 = 0x1234;
        bench.vcpus[0].set_state(&state);
        for n in 1..=4 {
            bench.vcpus[0].set_rip(CODE);
            assert_eq!(bench.enter(), Exit::Halt);
            assert_eq!(bench.vcpus[0].control().cr2, 0x1234 + n);
        }
    });
}

#[test]
fn control_registers_exit_where_the_vmm_has_a_say() {
    // mov eax, cr0; or eax, 8 (TS); mov cr0, eax; or eax, 0x40000000 (CD); mov cr0, eax
    let code = [
        0x0f, 0x20, 0xc0, 0x83, 0xc8, 8, 0x0f, 0x22, 0xc0, 0x0d, 0, 0, 0, 0x40, 0x0f, 0x22, 0xc0,
    ];
    alone(&code, |bench| {
        assert_eq!(bench.enter(), Exit::Emulate);
        let vcpu = &bench.vcpus[0];
        assert_eq!(vcpu.rip(), CODE + 14);
        assert_eq!(vcpu.control().cr0, 9);
        assert_eq!(vcpu.next_rip(), Some(CODE + 17));
    });
}

#[test]
fn the_host_takes_its_samples_in_the_host_alone() {
    on(2, 16, 1, READS, |bench| {
        for n in 0..24 {
            assert_eq!(bench.window(n % 2, 0, 8), Exit::Halt);
        }
    });
}

#[test]
fn the_host_has_its_samples_again_when_no_guest_was_entered() {
    alone(HALTS, |bench| {
        // No processor has an address so high: the entry does not even begin (SDM 3C: 26.2.1.1).
        bench.vcpus[0].set_table_root(Hpa(1 << 51));
        for _ in 0..6 {
            assert!(matches!(bench.enter(), Exit::BadState(why) if why.contains("controls")));
        }
    });
}

#[test]
fn split_locks_of_guests_that_were_promised_none_pass() {
    // lock inc dword [0x503e]; hlt
    let code = [0xf0, 0xff, 0x05, 0x3e, 0x50, 0, 0, 0xf4];
    on(2, 16, 1, &code, |bench| {
        for n in 1..=8 {
            bench.vcpus[0].set_rip(CODE);
            assert_eq!(bench.enter(), Exit::Halt);
            let mut count = [0];
            bench.memory.read(Gpa(DATA + 0x3e), &mut count).unwrap();
            assert_eq!(count, [n]);
        }
    });
}

#[test]
fn a_guest_that_asked_for_alignment_checks_gets_them() {
    let code = [0xf0, 0xff, 0x05, 0x3e, 0x50, 0, 0, 0xf4];
    TestHost::run(config(true, 1, 16), |host| {
        let mut bench = Bench::new(host, 1, &code);
        let mut state = flat();
        state.control.cr0 |= cr0::AM;
        state.rflags |= rflags::AC;
        state.segments[Seg::Ss as usize].attributes.0 |= 3 << 5;
        let ends = [(); 4].map(|()| {
            bench.vcpus[0].set_state(&state);
            bench.enter()
        });
        // In the windows in which the host asks for them too: the test processor knows no others.
        let asked = Exit::Exception(Exception::alignment());
        assert!(ends.contains(&asked), "{ends:?}");
    });
}

#[test]
fn a_task_is_busy_whatever_its_descriptor_said() {
    alone(HALTS, |bench| {
        let mut state = flat();
        state.segments[Seg::Tr as usize].attributes.0 = 0x89;
        bench.vcpus[0].set_state(&state);
        assert_eq!(bench.enter(), Exit::Halt);
    });
}

/// Says why an entry is refused.
fn refused(spoil: impl Fn(&mut CpuState)) -> &'static str {
    let why = std::cell::Cell::new("");
    alone(HALTS, |bench| {
        let mut state = flat();
        spoil(&mut state);
        bench.vcpus[0].set_state(&state);
        match bench.enter() {
            Exit::BadState(what) => why.set(what),
            other => panic!("{other:?} is no refusal"),
        }
        // It can be entered again with what is right.
        bench.vcpus[0].set_state(&flat());
        assert_eq!(bench.enter(), Exit::Halt);
    });
    why.get()
}

#[test]
fn refusals_are_named() {
    type Spoil<'a> = &'a dyn Fn(&mut CpuState);
    let cs = Seg::Cs as usize;
    let spoilt: [(Spoil<'_>, &str); 14] = [
        (&|s| s.control.cr0 = 1 << 31, "CR0.PG"),
        (&|s| s.control.cr3 = 1 << 55, "CR3"),
        (&|s| s.control.efer = 1 << 10, "long mode needs"),
        (
            &|s| (s.control.cr0, s.control.efer) = (0x8000_0001, 1 << 8),
            "EFER.LME",
        ),
        (&|s| s.dr7 = 1 << 32 | 0x400, "DR7"),
        (&|s| s.rflags = 1 << 15, "RFLAGS"),
        (&|s| s.rip = 1 << 32, "RIP"),
        (&|s| s.segments[7].selector = 4, "TR has a selector"),
        (&|s| s.segments[7].attributes.0 = 0x89 & !9, "busy"),
        (&|s| s.segments[6].attributes.0 = 0x8b, "LDTR"),
        (&|s| s.segments[cs].attributes.0 = 0xc91, "code segment"),
        (&|s| s.segments[2].attributes.0 = 0xc99, "stack segment"),
        (&|s| s.segments[3].limit = 0xf_ffff << 2, "granularity"),
        (&|s| s.control.cr4 = 1 << 17, "PCIDE"),
    ];
    for (spoil, what) in spoilt {
        let why = refused(spoil);
        assert!(why.contains(what), "{why} instead of {what}");
    }
}
