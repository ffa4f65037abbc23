// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lightweight kernel as a host: the contract of [`palacios_core::host`], in terms of the kernel.

use super::ram::Ram;
use crate::kernel::shared::Shared;
use crate::kernel::sync::{SpinGuard, SpinLock};
use crate::kernel::thread::{Mutex, MutexGuard};
use crate::kernel::{calls, cpu, log, memory, predictions, thread, time};
use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use palacios_core::addr::Hpa;
use palacios_core::alloc_ext::try_box;
use palacios_core::host::{
    self, CpuId, Host, Level, Lock, LockClass, NoMemory, NoSuchCpu, PageRequest, Scope,
};

/// The one kernel that this runs in.
#[derive(Clone, Copy)]
pub struct Lwk;

/// The core that the last thread got for which no CPU was asked.
static LAST_HOME: AtomicU32 = AtomicU32::new(0);

impl Host for Lwk {
    type Thread = Thread;
    type Ram = Ram;
    type Shared<T: Send + Sync + 'static> = Shared<T>;
    type Mutex<T: Send> = Mutex<T>;
    type SpinLock<T: Send> = SpinLock<T>;

    fn alloc_pages(&self, want: PageRequest) -> Result<Hpa, NoMemory> {
        let (bytes, align) = sizes(want);
        let at = memory::take_run(bytes, align, want.below_4g)?;
        // SAFETY: just taken.
        unsafe { memory::zero(at, bytes) };
        Ok(Hpa(at))
    }

    unsafe fn free_pages(&self, at: Hpa, want: PageRequest) {
        let (bytes, align) = sizes(want);
        // SAFETY: the same contract.
        unsafe { memory::free_run(at.0, bytes, align) }
    }

    fn phys_to_virt(&self, at: Hpa) -> NonNull<u8> {
        // All memory is mapped where it is, and none is at 0.
        NonNull::new(at.0 as *mut u8).unwrap_or(NonNull::dangling())
    }

    fn cpu_limit(&self) -> u32 {
        cpu::count()
    }

    fn current_cpu(&self) -> CpuId {
        CpuId(cpu::current())
    }

    fn on_each_cpu(&self, f: &(dyn Fn(CpuId) + Sync)) {
        calls::on_each_cpu(&|cpu| f(CpuId(cpu)));
    }

    fn window<R>(&self, f: impl FnOnce(CpuId) -> R) -> R {
        thread::without_preemption(|cpu| f(CpuId(cpu)))
    }

    fn window_must_end(&self) -> bool {
        thread::must_yield()
    }

    #[inline(always)]
    fn guest_exit(&self) {
        predictions::fill_return_stack();
    }

    fn now_ns(&self) -> u64 {
        time::now_ns()
    }

    fn wall_ns(&self) -> u64 {
        time::wall_ns()
    }

    fn tsc_hz(&self) -> u64 {
        time::tsc_hz()
    }

    fn tsc_stable(&self) -> bool {
        time::tsc_stable()
    }

    fn thread(&self, _name: fmt::Arguments<'_>, cpu: Option<CpuId>) -> Result<Thread, NoMemory> {
        let home = cpu.map(|cpu| cpu.0).filter(|cpu| cpu::runs(*cpu));
        // Core 0 does the kernel's own work; a thread for which no CPU is asked gets one of the others in turn.
        let others = (cpu::count() - 1).max(1);
        let turn = || LAST_HOME.fetch_add(1, Ordering::Relaxed) % others + 1;
        let thread = thread::Thread::new(home.unwrap_or_else(|| turn().min(cpu::count() - 1)))?;
        Ok(Thread {
            thread,
            pin: SpinLock::new(cpu),
        })
    }

    fn yield_now(&self) {
        thread::yield_now();
    }

    fn share<T: Send + Sync + 'static>(&self, value: T) -> Result<Shared<T>, NoMemory> {
        Shared::new(value)
    }

    fn mutex<T: Send>(&self, _: LockClass, value: T) -> Result<Mutex<T>, NoMemory> {
        Ok(Mutex::new(value))
    }

    fn spin_lock<T: Send>(&self, _: LockClass, value: T) -> Result<SpinLock<T>, NoMemory> {
        Ok(SpinLock::new(value))
    }

    fn log(&self, _level: Level, scope: Scope<'_>, line: fmt::Arguments<'_>) {
        match scope {
            Scope::Vmm => log::log(line),
            Scope::Vm(vm) => log::log(format_args!("{vm}: {line}")),
            Scope::Vcpu(vm, n) => log::log(format_args!("{vm}: vcpu {n}: {line}")),
        }
    }
}

/// A request's length and alignment in bytes.
fn sizes(want: PageRequest) -> (u64, u64) {
    let bytes = |pages: u32| u64::from(pages) * memory::PAGE_BYTES;
    (bytes(want.pages), bytes(want.align_pages))
}

impl<T: Send> Lock<T> for Mutex<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        Self: 'a;
    fn lock(&self) -> MutexGuard<'_, T> {
        Mutex::lock(self)
    }
    fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        Mutex::try_lock(self)
    }
}

impl<T: Send> Lock<T> for SpinLock<T> {
    type Guard<'a>
        = SpinGuard<'a, T>
    where
        Self: 'a;
    fn lock(&self) -> SpinGuard<'_, T> {
        SpinLock::lock(self)
    }
}

/// A vCPU's thread.
pub struct Thread {
    thread: Shared<thread::Thread>,
    /// Its affinity: the CPU that it was given. One without affinity does not move either.
    pin: SpinLock<Option<CpuId>>,
}

impl host::Thread for Thread {
    fn start(&self, body: impl FnOnce() + Send + 'static) -> Result<(), NoMemory> {
        thread::Thread::start(&self.thread, try_box(body)?);
        Ok(())
    }

    fn park(&self) {
        thread::park();
    }

    fn unpark(&self) {
        self.thread.unpark();
    }

    fn kick(&self) {
        self.thread.kick();
    }

    fn arm(&self, at_ns: Option<u64>) {
        self.thread.arm(at_ns);
    }

    fn waited_ns(&self) -> Option<u64> {
        Some(self.thread.waited_ns())
    }

    fn yield_to(&self) -> bool {
        self.thread.yield_to()
    }

    fn move_to(&self, cpu: Option<CpuId>) -> Result<(), NoSuchCpu> {
        if let Some(cpu) = cpu {
            if !cpu::runs(cpu.0) {
                return Err(NoSuchCpu(cpu));
            }
            self.thread.move_to(cpu.0);
        }
        *self.pin.lock() = cpu;
        Ok(())
    }

    fn pin(&self) -> Option<CpuId> {
        *self.pin.lock()
    }

    fn join(&self) {
        self.thread.join();
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.thread.release();
    }
}
