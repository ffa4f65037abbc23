// SPDX-License-Identifier: MIT OR Apache-2.0
//! The SVM backend on a processor that forgives nothing, one window at a time.

use palacios_core::addr::Gpa;
use palacios_core::backend::svm::{Svm, Vcpu};
use palacios_core::backend::{Backend, BackendVcpu, Exit};
use palacios_core::host::{CpuId, Host};
use palacios_core::memory::Memory;
use palacios_core::ram::RamLayout;
use palacios_core::state::{cr4, CpuState, Reg};
use palacios_testing::host::LargePages;
use palacios_testing::vm::{features_of, Hypervisor};
use palacios_testing::{put, Config, TestHost};

type Backing = Svm<TestHost>;

const CODE: u64 = 0x1000;

/// A vCPU with memory.
struct Bench {
    host: TestHost,
    hypervisor: Hypervisor<Backing>,
    /// Holds the guest's code.
    _memory: Memory<TestHost>,
    vcpu: Vcpu<TestHost>,
}

impl Bench {
    fn new(host: &TestHost, code: &[u8]) -> Self {
        let hypervisor = Hypervisor::<Backing>::new(host);
        let backend = hypervisor.backend();
        let ram = host.ram(LargePages::Never);
        let memory =
            Memory::new(host, ram, RamLayout::new(16 << 20), backend.table_format()).unwrap();
        put(&memory, Gpa(CODE), code);
        let mut vcpu = backend.vcpu(host, &features_of(backend)).unwrap();
        vcpu.set_state(&flat());
        vcpu.set_table_root(memory.root());
        Self {
            host: host.clone(),
            hypervisor,
            _memory: memory,
            vcpu,
        }
    }
    /// One entry, in a window of its own.
    fn enter(&mut self) -> Exit {
        let (host, vcpu) = (&self.host, &mut self.vcpu);
        let backend = self.hypervisor.backend();
        host.window(|cpu| {
            vcpu.load(host, backend, cpu);
            let exit = vcpu.enter(host);
            vcpu.unload(host, backend);
            exit
        })
    }
}

/// 32-bit protected mode without paging.
fn flat() -> CpuState {
    let mut state = CpuState {
        rip: CODE,
        ..CpuState::reset()
    };
    state.control.cr0 = 1;
    for segment in &mut state.segments[..6] {
        (segment.base, segment.limit) = (0, u32::MAX);
        segment.attributes.0 |= 0xc00;
    }
    state
}

/// A vCPU on a host with one CPU. The processor sees what is wrong, and so does the host when it ends.
fn alone(code: &[u8], test: impl Fn(&mut Bench)) {
    let config = Config {
        cpus: 1,
        ..Config::default()
    };
    TestHost::run(config, |host| test(&mut Bench::new(host, code)));
}

#[test]
fn nothing_of_the_host_is_left_in_the_guest() {
    alone(&[0xf4], |bench| {
        for _ in 0..3 {
            bench.vcpu.set_rip(CODE);
            assert_eq!(bench.enter(), Exit::Halt);
        }
    });
}

#[test]
fn machine_checks_are_the_hosts_to_switch() {
    // mov eax, cr4; mov cr4, eax; hlt
    alone(&[0x0f, 0x20, 0xe0, 0x0f, 0x22, 0xe0, 0xf4], |bench| {
        // Off to the guest, and on in the processor: it must not see that.
        assert_eq!(bench.enter(), Exit::Emulate);
        assert_eq!(bench.vcpu.rip(), CODE);
        assert_eq!(bench.vcpu.control().cr4, 0);
        // On to both: it may look, and not write.
        let mut control = bench.vcpu.control();
        control.cr4 = cr4::MCE | cr4::PGE;
        bench.vcpu.set_control(control);
        assert_eq!(bench.enter(), Exit::Emulate);
        assert_eq!(bench.vcpu.rip(), CODE + 3);
        assert_eq!(bench.vcpu.gprs()[Reg::Rax], cr4::MCE | cr4::PGE);
        assert_eq!(bench.vcpu.control(), control);
        bench.vcpu.set_state(&flat());
        assert_eq!(bench.enter(), Exit::Emulate);
        assert_eq!(bench.vcpu.state(), flat());
    });
}

/// What is there after somebody else came, and after we went.
fn taken(area: u64) -> (u64, bool) {
    let left = std::cell::Cell::default();
    alone(&[0xf4], |bench| {
        assert_eq!(bench.enter(), Exit::Halt);
        bench.host.take_svm(area);
        assert_eq!(bench.enter(), Exit::Busy);
        assert_eq!(bench.enter(), Exit::Busy);
        bench.hypervisor.backend().disable_cpu(CpuId(0));
        left.set(bench.host.svm(CpuId(0)));
        assert_eq!(bench.enter(), Exit::Gone);
    });
    left.get()
}

#[test]
fn svm_is_left_to_whoever_took_it() {
    assert_eq!(taken(0xabc000), (0xabc000, true));
    // Nobody's: what was ours is switched off.
    assert_eq!(taken(0), (0, false));
}
