// SPDX-License-Identifier: MIT OR Apache-2.0
//! The smallest host that keeps the contract of `palacios_core`: an ordinary program.
//!
//! It stands for a kernel. Its physical memory is an array of pages, its CPUs are taken in turns, its threads and locks are
//! those of Rust's standard library. Everything that the contract lets a host leave for later is left out.
//! `Documentation/embedding.md` walks through it.

mod cpu;
mod lock;
mod memory;
mod ram;
mod thread;
pub mod vm;

pub use ram::MinimalRam;
pub use thread::MinimalThread;

pub use cpu::current_cpu;

use cpu::{Cpu, Turn};
use lock::StdLock;
use memory::Memory;
use palacios_core::addr::Hpa;
use palacios_core::host::{CpuId, Host, Level, LockClass, NoMemory, PageRequest, Scope};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use thread::current_thread;

// ANCHOR: host
/// A handle to the host.
#[derive(Clone)]
pub struct MinimalHost(Arc<Kernel>);

struct Kernel {
    memory: Memory,
    cpus: Vec<Cpu>,
    started: Instant,
}
// ANCHOR_END: host

impl MinimalHost {
    /// Makes a host with so many CPUs and so much memory.
    pub fn new(cpus: u32, memory_pages: usize) -> Self {
        Self(Arc::new(Kernel {
            memory: Memory::new(memory_pages),
            cpus: (0..cpus).map(|_| Cpu::default()).collect(),
            started: Instant::now(),
        }))
    }

    fn cpu(&self, cpu: CpuId) -> Option<&Cpu> {
        self.0.cpus.get(cpu.0 as usize)
    }

    // ANCHOR: interrupted
    /// In a window: an interrupt waits, which ends guest mode.
    pub fn interrupted(&self) -> bool {
        if let Some(thread) = current_thread() {
            thread.ring();
        }
        self.window_must_end()
    }
    // ANCHOR_END: interrupted
}

// ANCHOR: types
impl Host for MinimalHost {
    type Thread = MinimalThread;
    type Ram = MinimalRam;
    type Shared<T: Send + Sync + 'static> = Arc<T>;
    type Mutex<T: Send> = StdLock<T>;
    type SpinLock<T: Send> = StdLock<T>;
    // ANCHOR_END: types

    // ANCHOR: log_and_time
    fn log(&self, _: Level, scope: Scope<'_>, line: fmt::Arguments<'_>) {
        match scope {
            Scope::Vmm => eprintln!("vmm: {line}"),
            Scope::Vm(name) => eprintln!("{name}: {line}"),
            Scope::Vcpu(name, n) => eprintln!("{name}, vCPU {n}: {line}"),
        }
    }
    fn now_ns(&self) -> u64 {
        self.0.started.elapsed().as_nanos() as u64
    }
    fn wall_ns(&self) -> u64 {
        let since_1970 = SystemTime::UNIX_EPOCH.elapsed();
        since_1970.map_or(0, |time| time.as_nanos() as u64)
    }
    // ANCHOR_END: log_and_time

    // ANCHOR: pages
    fn alloc_pages(&self, want: PageRequest) -> Result<Hpa, NoMemory> {
        self.0.memory.take(want).ok_or(NoMemory)
    }
    unsafe fn free_pages(&self, at: Hpa, want: PageRequest) {
        self.0.memory.give_back(at, want.pages as usize);
    }
    fn phys_to_virt(&self, at: Hpa) -> NonNull<u8> {
        self.0.memory.address(at)
    }
    // ANCHOR_END: pages

    // ANCHOR: locks
    fn share<T: Send + Sync + 'static>(&self, value: T) -> Result<Arc<T>, NoMemory> {
        Ok(Arc::new(value))
    }
    fn mutex<T: Send>(&self, _: LockClass, value: T) -> Result<StdLock<T>, NoMemory> {
        Ok(StdLock::new(value))
    }
    fn spin_lock<T: Send>(&self, _: LockClass, value: T) -> Result<StdLock<T>, NoMemory> {
        Ok(StdLock::new(value))
    }
    // ANCHOR_END: locks

    // ANCHOR: cpus
    fn cpu_limit(&self) -> u32 {
        self.0.cpus.len() as u32
    }
    fn current_cpu(&self) -> CpuId {
        current_cpu().unwrap_or(CpuId(0))
    }
    fn on_each_cpu(&self, f: &(dyn Fn(CpuId) + Sync)) {
        for (id, cpu) in (0..).map(CpuId).zip(&self.0.cpus) {
            let _turn = Turn::take(cpu, id);
            f(id);
        }
    }
    fn yield_now(&self) {
        std::thread::yield_now();
    }
    // ANCHOR_END: cpus

    // ANCHOR: window
    fn window<R>(&self, f: impl FnOnce(CpuId) -> R) -> R {
        loop {
            let home = || current_thread().map_or(CpuId(0), |thread| thread.home());
            let id = home();
            let cpu = self.cpu(id).expect("threads are on CPUs that are there");
            let _turn = Turn::take(cpu, id);
            // The thread may have been moved while it waited.
            if home() == id {
                return f(id);
            }
        }
    }
    fn window_must_end(&self) -> bool {
        let cpu = current_cpu().and_then(|id| self.cpu(id));
        cpu.is_some_and(Cpu::is_interrupted)
    }
    // ANCHOR_END: window

    // ANCHOR: new_thread
    fn thread(
        &self,
        name: fmt::Arguments<'_>,
        cpu: Option<CpuId>,
    ) -> Result<MinimalThread, NoMemory> {
        Ok(MinimalThread::new(self, name.to_string(), cpu))
    }
    // ANCHOR_END: new_thread
}
