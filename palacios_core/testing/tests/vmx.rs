// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VT-x backend on a processor that forgives nothing, one window at a time.

use palacios_core::addr::{Gpa, PAGE_SIZE};
use palacios_core::backend::vmx::{Vcpu, Vmx};
use palacios_core::backend::{Backend, BackendVcpu, Event, Exit};
use palacios_core::devices::GuestMemory;
use palacios_core::host::{CpuId, Host};
use palacios_core::memory::Memory;
use palacios_core::state::{rflags, CpuState, Exception, Reg, Seg};
use palacios_testing::host::LargePages;
use palacios_testing::vm::{Hypervisor, TestBackend};
use palacios_testing::{processor, Config, TestHost};

type Backing = Vmx<TestHost>;

const CODE: u64 = 0x1000;
const HANDLERS: u64 = 0x2000;
const DATA: u64 = 0x5000;
const TABLE: u64 = 0x9000;
const STACK: u64 = 0xb000;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// vCPUs with memory.
struct Bench {
    host: TestHost,
    hypervisor: Hypervisor<Backing>,
    memory: Memory<TestHost>,
    vcpus: Vec<Vcpu<TestHost>>,
}

/// `mov eax, [0x5000]; hlt`.
const READS: &[u8] = &[0xa1, 0x00, 0x50, 0x00, 0x00, 0xf4];
/// `hlt`.
const HALTS: &[u8] = &[0xf4];

impl Bench {
    fn new(host: &TestHost, vcpus: usize, code: &[u8]) -> Self {
        let hypervisor = Hypervisor::<Backing>::new(host);
        let backend = hypervisor.backend();
        let ram = host.ram(LargePages::Never);
        let memory = Memory::new(host, ram, 16 << 20, backend.table_format()).unwrap();
        memory.write(Gpa(CODE), code).unwrap();
        for page in [CODE, HANDLERS, DATA, TABLE, STACK - 8] {
            memory.fill(Gpa(page)).unwrap();
        }
        let vcpu = |_| {
            let mut vcpu = backend.vcpu(host).unwrap();
            vcpu.set_state(&flat());
            vcpu.set_table_root(memory.root());
            vcpu
        };
        let vcpus = (0..vcpus).map(vcpu).collect();
        Self {
            host: host.clone(),
            hypervisor,
            memory,
            vcpus,
        }
    }
    /// An interrupt gate of a vector, to code of its own.
    fn gate(&self, vector: u8, code: &[u8]) {
        let at = HANDLERS + u64::from(vector) * 16;
        let gate = at & 0xffff | 0xf000 << 16 | 0x8e00 << 32 | at >> 16 << 48;
        let entry = Gpa(TABLE + u64::from(vector) * 8);
        self.memory.write(entry, &gate.to_le_bytes()).unwrap();
        self.memory.write(Gpa(at), code).unwrap();
    }
    /// Some entries in one window on a CPU; what the last one ended with.
    fn window(&mut self, cpu: u32, vcpu: usize, entries: usize) -> Exit {
        let Self {
            host,
            hypervisor,
            vcpus,
            ..
        } = self;
        let (vcpu, backend) = (&mut vcpus[vcpu], hypervisor.backend());
        loop {
            let exit = host.window(|here| {
                if here != CpuId(cpu) {
                    return None;
                }
                vcpu.load(host, backend, here);
                let mut exit = Exit::Pending;
                for _ in 0..entries {
                    vcpu.set_rip(CODE);
                    exit = vcpu.enter(host);
                }
                vcpu.unload(host, backend);
                Some(exit)
            });
            if let Some(exit) = exit {
                return exit;
            }
        }
    }
    /// One entry where the vCPU stands.
    fn enter(&mut self) -> Exit {
        let Self {
            host,
            hypervisor,
            vcpus,
            ..
        } = self;
        let backend = hypervisor.backend();
        host.window(|cpu| {
            vcpus[0].load(host, backend, cpu);
            let exit = vcpus[0].enter(host);
            vcpus[0].unload(host, backend);
            exit
        })
    }
    fn halts_on(&mut self, cpu: u32, vcpu: usize) {
        assert_eq!(self.window(cpu, vcpu, 2), Exit::Halt);
    }
    fn flushes(&self) -> u64 {
        self.host
            .records()
            .iter()
            .map(|record| record.flushes)
            .sum()
    }
}

/// 32-bit protected mode without paging.
fn flat() -> CpuState {
    let mut state = CpuState {
        rip: CODE,
        ..CpuState::reset()
    };
    state.control.cr0 = 1;
    state.gprs[Reg::Rsp] = STACK;
    (state.idtr.base, state.idtr.limit) = (TABLE, 0x7ff);
    for segment in &mut state.segments[..6] {
        (segment.base, segment.limit) = (0, u32::MAX);
        segment.attributes.0 |= 0xc00;
    }
    state
}

fn on(cpus: u32, tags: u32, vcpus: usize, code: &[u8], test: impl Fn(&mut Bench)) {
    for new in [true, false] {
        let processor = Backing::adapt(processor::Config {
            next_rip: new,
            tags,
            ..processor::Config::default()
        });
        let config = Config {
            cpus,
            processor,
            ..Config::default()
        };
        TestHost::run(config, |host| test(&mut Bench::new(host, vcpus, code)));
    }
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

#[test]
fn an_event_outlives_a_machine_check_on_the_way_in() {
    let mut processor = Backing::adapt(processor::Config::default());
    processor.vmx.as_mut().unwrap().machine_check_one_in = 1;
    let config = Config {
        cpus: 1,
        processor,
        ..Config::default()
    };
    TestHost::run(config, |host| {
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

fn alone(code: &[u8], test: impl Fn(&mut Bench)) {
    on(1, 16, 1, code, test);
}

#[test]
fn who_stays_forgets_nothing_and_who_moves_does() {
    on(2, 16, 2, READS, |bench| {
        // The first on each CPU forgets what was there before.
        for (cpu, vcpu) in [(0, 0), (1, 1), (1, 0), (0, 1)] {
            bench.halts_on(cpu, vcpu);
        }
        // It moves back: what its tables were then it does not know.
        let before = bench.flushes();
        bench.halts_on(0, 0);
        assert_eq!(bench.flushes(), before + 1);
        bench.halts_on(1, 1);
        assert_eq!(bench.flushes(), before + 2);
        for _ in 0..10 {
            bench.halts_on(0, 0);
            bench.halts_on(1, 1);
        }
        assert_eq!(bench.flushes(), before + 2);
    });
}

#[test]
fn a_cpu_that_heard_nothing_of_a_revocation_has_nothing_stale() {
    on(2, 16, 1, READS, |bench| {
        bench.halts_on(0, 0);
        bench.memory.revoke(Gpa(DATA), PAGE_SIZE, || ());
        bench.vcpus[0].flush_tlb();
        assert!(matches!(bench.window(1, 0, 1), Exit::NestedFault(_)));
        // Somebody else's in between, so that the page does not get its old frame.
        bench.memory.fill(Gpa(DATA + PAGE_SIZE)).unwrap();
        bench.memory.fill(Gpa(DATA)).unwrap();
        bench.halts_on(1, 0);
        bench.halts_on(0, 0);
    });
}

#[test]
fn tags_that_are_used_again_are_flushed() {
    // Two tags, three vCPUs of one VM: nested tables and the linear addresses alone do not tell them apart.
    on(1, 3, 3, READS, |bench| {
        for _ in 0..5 {
            (0..3).for_each(|vcpu| bench.halts_on(0, vcpu));
        }
    });
    // With tags enough nobody flushes anything.
    on(1, 16, 3, READS, |bench| {
        (0..3).for_each(|vcpu| bench.halts_on(0, vcpu));
        let before = bench.flushes();
        for _ in 0..5 {
            (0..3).for_each(|vcpu| bench.halts_on(0, vcpu));
        }
        assert_eq!(bench.flushes(), before);
    });
}

#[test]
fn what_changes_translation_is_flushed_and_nothing_else() {
    alone(READS, |bench| {
        bench.halts_on(0, 0);
        let flushes_after = |bench: &mut Bench, change: &dyn Fn(&mut Vcpu<TestHost>)| {
            let before = bench.flushes();
            change(&mut bench.vcpus[0]);
            bench.halts_on(0, 0);
            bench.flushes() - before
        };
        let control = |change: fn(&mut palacios_core::state::Control)| {
            move |vcpu: &mut Vcpu<TestHost>| {
                let mut control = vcpu.control();
                change(&mut control);
                vcpu.set_control(control);
            }
        };
        assert_eq!(flushes_after(bench, &control(|c| c.cr3 ^= 0x3000)), 1);
        assert_eq!(flushes_after(bench, &control(|c| c.cr4 ^= 1 << 4)), 1);
        assert_eq!(flushes_after(bench, &control(|c| c.cr0 ^= 1 << 16)), 1);
        assert_eq!(flushes_after(bench, &control(|c| c.cr0 ^= 1 << 3)), 0);
        assert_eq!(flushes_after(bench, &control(|c| c.cr2 ^= 1)), 0);
        assert_eq!(flushes_after(bench, &|vcpu| vcpu.flush_tlb()), 1);
    });
}

#[test]
fn an_nmi_that_was_cut_short_comes_again_and_blocks_the_next() {
    // The handler: inc dword [0x5000]; iretd.
    alone(HALTS, |bench| {
        bench.gate(2, &[0xff, 0x05, 0, 0x50, 0, 0, 0xcf]);
        bench.memory.revoke(Gpa(TABLE), PAGE_SIZE, || ());
        bench.vcpus[0].flush_tlb();
        bench.vcpus[0].inject(Event::Nmi);
        assert!(matches!(bench.enter(), Exit::NestedFault(f) if f.gpa.0 >> 12 == TABLE >> 12));
        let vcpu = &mut bench.vcpus[0];
        assert_eq!(vcpu.take_interrupted(), Some(Event::Nmi));
        assert!(vcpu.nmi_allowed());
        vcpu.inject(Event::Nmi);
        bench.memory.fill(Gpa(TABLE)).unwrap();
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
        bench.memory.write(Gpa(0xd000), &frame).unwrap();
        bench.memory.fill(Gpa(0xd000)).unwrap();
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
        for _ in 0..6 {
            bench.vcpus[0].set_rip(CODE);
            assert_eq!(bench.enter(), Exit::Halt);
        }
        assert_eq!(bench.vcpus[0].debug_register(7), 0x401);
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
        bench.memory.write(Gpa(CODE + 1), &[0x03]).unwrap();
        bench.vcpus[0].set_rip(CODE);
        assert_eq!(bench.enter(), Exit::ReadMsr);
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
        bench.memory.revoke(Gpa(TABLE), PAGE_SIZE, || ());
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
            bench.memory.revoke(Gpa(TABLE), PAGE_SIZE, || ());
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
        bench.memory.fill(Gpa(TABLE)).unwrap();
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
        bench.memory.write(vector, &[0, 0x10, 0, 0]).unwrap();
        let fault = Event::Exception(Exception::general_protection(0));
        bench.vcpus[0].inject(fault);
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
