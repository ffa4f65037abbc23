// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is delivered, cut short and waited for.

use super::*;
use palacios_core::host::MachineCheck;

#[test]
fn an_nmi_that_was_cut_short_comes_again_and_blocks_the_next() {
    // The handler: inc dword [0x5000]; iretd.
    alone(HALTS, |bench| {
        bench.gate(2, &[0xff, 0x05, 0, 0x50, 0, 0, 0xcf]);
        bench.memory.revoke(Gpa(TABLE), PAGE_SIZE, &|| ());
        bench.vcpus[0].flush_tlb();
        bench.vcpus[0].inject(Event::Nmi);
        assert!(matches!(bench.enter(), Exit::NestedFault(f) if f.gpa.0 >> 12 == TABLE >> 12));
        let vcpu = &mut bench.vcpus[0];
        assert_eq!(vcpu.take_interrupted(), Some(Event::Nmi));
        assert!(vcpu.nmi_allowed());
        vcpu.inject(Event::Nmi);
        map_page(&bench.memory, Gpa(TABLE)).unwrap();
        assert_eq!(bench.enter(), Exit::Halt);
        let vcpu = &bench.vcpus[0];
        assert!(vcpu.nmi_allowed(), "IRET has let the next in");
        let mut count = [0];
        bench.memory.read(Gpa(DATA), &mut count).unwrap();
        assert_eq!(count, [1]);
    });
}

#[test]
fn an_iret_that_faults_leaves_nmis_blocked() {
    // The handler puts its stack where there is no frame: mov esp, 0xd000; iretd.
    alone(HALTS, |bench| {
        bench.gate(2, &[0xbc, 0, 0xd0, 0, 0, 0xcf]);
        bench.vcpus[0].inject(Event::Nmi);
        assert!(matches!(bench.enter(), Exit::NestedFault(f) if f.gpa == Gpa(0xd000)));
        let vcpu = &mut bench.vcpus[0];
        assert_eq!(vcpu.take_interrupted(), None);
        assert!(!vcpu.nmi_allowed(), "IRET is yet to be executed");
        let frame = [CODE as u32, 0xf000, 2].map(u32::to_le_bytes).concat();
        put(&bench.memory, Gpa(0xd000), &frame);
        map_page(&bench.memory, Gpa(0xd000)).unwrap();
        assert_eq!(bench.enter(), Exit::Halt);
        assert!(bench.vcpus[0].nmi_allowed());
    });
}

#[test]
fn windows_open_when_they_should() {
    // cli; sti; nop; hlt
    alone(&[0xfa, 0xfb, 0x90, 0xf4], |bench| {
        bench.vcpus[0].request_interrupt_window(Some(16));
        assert_eq!(bench.enter(), Exit::InterruptWindow);
        // Behind the NOP: STI holds off for one instruction.
        assert_eq!(bench.vcpus[0].rip(), CODE + 3);
        assert!(bench.vcpus[0].interruptible());
        assert_eq!(bench.enter(), Exit::Halt);
        bench.vcpus[0].set_rip(CODE);
        bench.vcpus[0].request_nmi_window(true);
        assert_eq!(bench.enter(), Exit::NmiWindow);
        assert_eq!(bench.vcpus[0].rip(), CODE);
        // In the shadow of STI, an NMI waits for its end.
        let vcpu = &mut bench.vcpus[0];
        vcpu.set_rip(CODE + 2);
        vcpu.set_rflags(rflags::FIXED | rflags::IF);
        vcpu.set_interrupt_shadow(true);
        vcpu.request_nmi_window(true);
        assert!(!vcpu.nmi_allowed());
        assert_eq!(bench.enter(), Exit::NmiWindow);
        assert_eq!(bench.vcpus[0].rip(), CODE + 3);
    });
}

#[test]
fn a_lower_task_priority_lets_an_interrupt_in() {
    // mov eax, 5; mov cr8, eax; mov eax, 3; mov cr8, eax; sti; nop; hlt. (CR8 as AMD writes it in 32-bit code.)
    let code = [
        0xb8, 5, 0, 0, 0, 0xf0, 0x0f, 0x22, 0xc0, 0xb8, 3, 0, 0, 0, 0xf0, 0x0f, 0x22, 0xc0, 0xfb,
        0x90, 0xf4,
    ];
    alone(&code, |bench| {
        let vcpu = &mut bench.vcpus[0];
        vcpu.set_cr8(6);
        vcpu.set_rflags(rflags::FIXED | rflags::IF);
        vcpu.request_interrupt_window(Some(5));
        // 5 is not low enough for 5, 3 is.
        assert_eq!(bench.enter(), Exit::InterruptWindow);
        assert_eq!(bench.vcpus[0].rip(), CODE + 18);
        assert_eq!(bench.vcpus[0].cr8(), 3);
        // With RFLAGS.IF clear the window waits for that as well.
        let vcpu = &mut bench.vcpus[0];
        vcpu.set_rip(CODE);
        vcpu.set_rflags(rflags::FIXED);
        vcpu.set_cr8(6);
        vcpu.request_interrupt_window(Some(5));
        assert_eq!(bench.enter(), Exit::InterruptWindow);
        assert_eq!(bench.vcpus[0].rip(), CODE + 20);
    });
}

#[test]
fn a_page_fault_brings_its_address() {
    // The handler: mov eax, cr2; hlt.
    alone(HALTS, |bench| {
        bench.gate(14, &[0x0f, 0x20, 0xd0, 0xf4]);
        let fault = Event::Exception(Exception::page_fault(2, 0x7000));
        bench.vcpus[0].inject(fault);
        assert_eq!(bench.enter(), Exit::Halt);
        assert_eq!(bench.vcpus[0].gprs()[Reg::Rax], 0x7000);
        assert_eq!(bench.vcpus[0].control().cr2, 0x7000);
        // Cut short, it comes back with all that belongs to it.
        bench.memory.revoke(Gpa(TABLE), PAGE_SIZE, &|| ());
        bench.vcpus[0].flush_tlb();
        bench.vcpus[0].inject(fault);
        assert!(matches!(bench.enter(), Exit::NestedFault(_)));
        assert_eq!(bench.vcpus[0].take_interrupted(), Some(fault));
    });
}

#[test]
fn software_interrupts_are_the_guests_or_ours() {
    // int 0x40; hlt. The handler: hlt.
    alone(&[0xcd, 0x40, 0xf4], |bench| {
        bench.gate(0x40, HALTS);
        let gone = |bench: &mut Bench| {
            bench.memory.revoke(Gpa(TABLE), PAGE_SIZE, &|| ());
            bench.vcpus[0].flush_tlb();
            assert!(matches!(bench.enter(), Exit::NestedFault(_)));
            bench.vcpus[0].take_interrupted()
        };
        // The guest repeats its own.
        assert_eq!(gone(bench), None);
        assert_eq!(bench.vcpus[0].rip(), CODE);
        // Ours it cannot.
        let event = Event::Software {
            vector: 0x40,
            next_rip: CODE + 2,
        };
        bench.vcpus[0].inject(event);
        assert_eq!(gone(bench), Some(event));
        map_page(&bench.memory, Gpa(TABLE)).unwrap();
        bench.vcpus[0].inject(event);
        assert_eq!(bench.enter(), Exit::Halt);
        assert_eq!(bench.vcpus[0].rip(), HANDLERS + 0x40 * 16);
        let mut pushed = [0; 4];
        bench.memory.read(Gpa(STACK - 12), &mut pushed).unwrap();
        assert_eq!(u64::from(u32::from_le_bytes(pushed)), CODE + 2);
    });
}

#[test]
fn in_real_mode_no_exception_has_an_error_code() {
    alone(HALTS, |bench| {
        let mut state = CpuState::reset();
        state.rip = CODE;
        state.segments[Seg::Cs as usize].base = 0;
        state.gprs[Reg::Rsp] = STACK;
        (state.idtr.base, state.idtr.limit) = (TABLE, 0x3ff);
        bench.vcpus[0].set_state(&state);
        let vector = Gpa(TABLE + 13 * 4);
        put(&bench.memory, vector, &[0, 0x10, 0, 0]);
        let fault = Event::Exception(Exception::general_protection(0));
        bench.vcpus[0].inject(fault);
        assert_eq!(bench.enter(), Exit::Halt);
    });
}

/// One entry while an interrupt of the host waits, on a processor on which a machine check strikes then.
fn enter_into_machine_check(bench: &mut Bench) -> Exit {
    let Bench {
        host,
        hypervisor,
        vcpus,
        ..
    } = bench;
    let backend = hypervisor.backend();
    std::thread::scope(|scope| {
        host.window(|cpu| {
            scope.spawn(|| host.on_each_cpu(&|_| ()));
            while !host.interrupted() {
                std::thread::yield_now();
            }
            vcpus[0].load(host, backend, cpu);
            let exit = vcpus[0].enter(host);
            vcpus[0].unload(host, backend);
            exit
        })
    })
}

/// A host on which a machine check strikes whenever something of the host ends a guest.
fn with_machine_checks(machine_checks: MachineCheck) -> Config {
    let mut processor = Backing::adapt(processor::Config::default());
    processor.vmx.as_mut().unwrap().machine_check_one_in = 1;
    Config {
        cpus: 1,
        processor,
        machine_checks,
        ..Config::default()
    }
}

#[test]
fn a_machine_check_is_told_to_the_host() {
    for (makes, exit) in [
        (MachineCheck::Raise, Exit::HostInterrupt),
        (MachineCheck::Spared, Exit::HostInterrupt),
        (MachineCheck::Hit, Exit::MachineCheck),
    ] {
        TestHost::run(with_machine_checks(makes), |host| {
            let bench = &mut Bench::new(host, 1, HALTS);
            assert_eq!(enter_into_machine_check(bench), exit, "{makes:?}");
        });
    }
}

#[test]
fn an_event_outlives_a_machine_check_on_the_way_in() {
    TestHost::run(with_machine_checks(MachineCheck::Raise), |host| {
        let bench = &mut Bench::new(host, 1, HALTS);
        bench.gate(0x40, HALTS);
        let interrupt = Event::Interrupt(0x40);
        bench.vcpus[0].set_rflags(rflags::FIXED | rflags::IF);
        bench.vcpus[0].inject(interrupt);
        assert_eq!(enter_into_machine_check(bench), Exit::HostInterrupt);
        // It is still on its way, so that nothing may take its place.
        assert!(!bench.vcpus[0].interruptible() && !bench.vcpus[0].nmi_allowed());
        assert_eq!(bench.enter(), Exit::Halt);
        assert_eq!(bench.vcpus[0].rip(), HANDLERS + 0x40 * 16);
        // A reset takes it along.
        bench.vcpus[0].set_state(&flat());
        bench.vcpus[0].set_rflags(rflags::FIXED | rflags::IF);
        bench.vcpus[0].inject(interrupt);
        assert_eq!(enter_into_machine_check(bench), Exit::HostInterrupt);
        bench.vcpus[0].set_state(&flat());
        assert_eq!(bench.enter(), Exit::Halt);
        assert_eq!(bench.vcpus[0].rip(), CODE);
    });
}
