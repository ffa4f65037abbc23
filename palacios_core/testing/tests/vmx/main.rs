// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VT-x backend on a processor that forgives nothing, one window at a time.

mod events;
mod state;
mod translation;

use palacios_core::addr::{Gpa, Hpa, PAGE_SIZE};
use palacios_core::backend::vmx::{Vcpu, Vmx};
use palacios_core::backend::{Backend, BackendVcpu, Event, Exit};
use palacios_core::host::{CpuId, Host};
use palacios_core::interfaces::GuestMemory;
use palacios_core::memory::Memory;
use palacios_core::ram::RamLayout;
use palacios_core::state::{cr0, rflags, CpuState, Exception, Reg, Seg};
use palacios_testing::host::LargePages;
use palacios_testing::vm::{features_of, Hypervisor, TestBackend};
use palacios_testing::{map_page, processor, put, Config, TestHost};

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
        let memory =
            Memory::new(host, ram, RamLayout::new(16 << 20), backend.table_format()).unwrap();
        put(&memory, Gpa(CODE), code);
        for page in [CODE, HANDLERS, DATA, TABLE, STACK - 8] {
            map_page(&memory, Gpa(page)).unwrap();
        }
        let vcpu = |_| {
            let mut vcpu = backend.vcpu(host, &features_of(backend)).unwrap();
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
        put(&self.memory, entry, &gate.to_le_bytes());
        put(&self.memory, Gpa(at), code);
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
        let config = config(new, cpus, tags);
        TestHost::run(config, |host| test(&mut Bench::new(host, vcpus, code)));
    }
}

/// A host whose processors have all that is used, or what they must have.
fn config(new: bool, cpus: u32, tags: u32) -> Config {
    let processor = Backing::adapt(processor::Config {
        next_rip: new,
        tags,
        ..processor::Config::default()
    });
    Config {
        cpus,
        processor,
        ..Config::default()
    }
}

fn alone(code: &[u8], test: impl Fn(&mut Bench)) {
    on(1, 16, 1, code, test);
}
