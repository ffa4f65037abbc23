// SPDX-License-Identifier: MIT OR Apache-2.0
//! The test host's processors see what a VMM does wrong: here it does, one thing at a time.

use palacios_core::addr::{Gpa, PAGE_SIZE};
use palacios_core::backend::{Backend, BackendVcpu, Event, Exit};
use palacios_core::host::{CpuId, Host};
use palacios_core::memory::Memory;
use palacios_core::ram::RamLayout;
use palacios_core::state::{CpuState, Seg};
use palacios_testing::backend::AdversarialVcpu;
use palacios_testing::host::LargePages;
use palacios_testing::processor::Violation;
use palacios_testing::vm::features_of;
use palacios_testing::{map_page, put, AdversarialBackend, Config, TestHost};

/// A vCPU with memory, at a loop of `mov eax, [0x5000]; hlt` at 0x1000.
struct Bench {
    host: TestHost,
    backend: AdversarialBackend,
    memory: Memory<TestHost>,
    vcpu: AdversarialVcpu,
}

const CODE: [u8; 8] = [0xa1, 0x00, 0x50, 0x00, 0x00, 0xf4, 0xeb, 0xf8];

impl Bench {
    fn new(host: &TestHost) -> Self {
        let backend = AdversarialBackend::probe(host).unwrap();
        host.on_each_cpu(&|cpu| backend.enable_cpu(cpu).unwrap());
        let ram = host.ram(LargePages::Never);
        let memory =
            Memory::new(host, ram, RamLayout::new(16 << 20), backend.table_format()).unwrap();
        put(&memory, Gpa(0x1000), &CODE);
        map_page(&memory, Gpa(0x5000)).unwrap();
        let mut vcpu = backend.vcpu(host, &features_of(&backend)).unwrap();
        vcpu.set_state(&flat(0x1000));
        vcpu.set_table_root(memory.root());
        Self {
            host: host.clone(),
            backend,
            memory,
            vcpu,
        }
    }
    /// One window on whichever CPU, done right.
    fn enter(&mut self) -> Exit {
        let Self {
            host,
            backend,
            vcpu,
            ..
        } = self;
        host.window(|cpu| {
            vcpu.load(host, backend, cpu);
            let exit = vcpu.enter(host);
            vcpu.unload(host, backend);
            exit
        })
    }
    /// As [`Bench::enter`], past the HLT that it ends with.
    fn round(&mut self) {
        assert_eq!(self.enter(), Exit::Halt);
        self.vcpu.set_rip(0x1000);
    }
}

/// 32-bit protected mode without paging.
fn flat(rip: u64) -> CpuState {
    let mut state = CpuState {
        rip,
        ..CpuState::reset()
    };
    state.control.cr0 = 1;
    for segment in &mut state.segments[..6] {
        (segment.base, segment.limit) = (0, u32::MAX);
        segment.attributes.0 |= 0xc00;
    }
    assert_eq!(state.segments[Seg::Cs as usize].base, 0);
    state
}

/// Does something wrong and says what was seen of it; one CPU, so that the vCPU stays where it is.
fn seen(wrong: impl FnOnce(&mut Bench)) -> Vec<Violation> {
    let config = Config {
        cpus: 1,
        ..Config::default()
    };
    TestHost::run(config, |host| {
        wrong(&mut Bench::new(host));
        host.take_violations()
    })
}

#[test]
fn nothing_is_seen_of_what_is_right() {
    let right = seen(|bench| {
        bench.round();
        bench.memory.revoke(Gpa(0), 1 << 20, &|| ());
        bench.vcpu.flush_tlb();
        assert!(matches!(bench.enter(), Exit::NestedFault(fault) if fault.fetch));
        map_page(&bench.memory, Gpa(0x1000)).unwrap();
        assert!(matches!(bench.enter(), Exit::NestedFault(fault) if !fault.fetch));
        map_page(&bench.memory, Gpa(0x5000)).unwrap();
        bench.round();
    });
    assert_eq!(right, []);
}

#[test]
fn windows_and_loads() {
    use Violation::{LeftLoaded, LoadedTwice, NotEnabled, NotLoaded, OutsideWindow};
    let cpu = CpuId(0);
    let outside = seen(|bench| bench.vcpu.load(&bench.host, &bench.backend, cpu));
    assert_eq!(outside, [OutsideWindow("load")]);
    let unloaded = seen(|bench| {
        bench.host.window(|_| bench.vcpu.enter(&bench.host));
    });
    assert_eq!(unloaded, [NotLoaded("enter")]);
    let left = seen(|bench| {
        let load = |cpu| bench.vcpu.load(&bench.host, &bench.backend, cpu);
        bench.host.window(load);
    });
    assert_eq!(left, [LeftLoaded(cpu)]);
    let twice = seen(|bench| {
        let Bench {
            host,
            backend,
            vcpu,
            ..
        } = bench;
        host.window(|cpu| {
            vcpu.load(host, backend, cpu);
            vcpu.load(host, backend, cpu);
            vcpu.unload(host, backend);
        });
    });
    assert_eq!(twice, [LoadedTwice(cpu)]);
    let off = seen(|bench| {
        bench
            .host
            .on_each_cpu(&|cpu| bench.backend.disable_cpu(cpu));
        bench.round();
    });
    assert_eq!(off, [NotEnabled(cpu)]);
}

#[test]
fn translations() {
    let rootless = seen(|bench| {
        bench.vcpu = bench
            .backend
            .vcpu(&bench.host, &features_of(&bench.backend))
            .unwrap();
        bench.enter();
    });
    assert_eq!(rootless, [Violation::NoTables]);
    // The page that the guest reads has gone, and nobody told its vCPU.
    let unflushed = seen(|bench| {
        bench.round();
        bench.memory.revoke(Gpa(0x5000), PAGE_SIZE, &|| ());
        bench.enter();
    });
    let gpa = Gpa(0x5000);
    assert_eq!(unflushed, [Violation::StaleTranslation { gpa }]);
}

#[test]
fn events() {
    let shut = Event::Interrupt(0x40);
    let refused = seen(|bench| {
        bench.vcpu.inject(shut);
        bench.enter();
    });
    assert_eq!(refused, [Violation::NotTaken(shut)]);
    // Delivery needs the descriptor table, which has no frame; the exit cuts it short, and nobody takes it back.
    let lost = seen(|bench| {
        let mut state = flat(0x1000);
        (state.idtr.base, state.idtr.limit) = (0x9000, 0x7ff);
        state.rflags |= palacios_core::state::rflags::IF;
        bench.vcpu.set_state(&state);
        bench.vcpu.inject(shut);
        assert!(matches!(bench.enter(), Exit::NestedFault(_)));
        bench.enter();
    });
    assert_eq!(lost, [Violation::EventLost(shut)]);
}
