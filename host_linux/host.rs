// SPDX-License-Identifier: GPL-2.0
//! Linux as a host: the contract of [`palacios_core::host`], in terms of the other files here.

use crate::memory::{self, Ram};
use crate::sync::{Mutex, Shared, SpinLock};
use crate::threads::Thread;
use crate::window::{self, Window};
use crate::{cpus, ffi};
use core::fmt;
use core::ptr::NonNull;
use kernel::{bindings, prelude::*};
use palacios_core::addr::Hpa;
use palacios_core::host::{CpuId, Host, Level, LockClass, MachineCheck};
use palacios_core::host::{NoMemory, PageRequest, Scope};

/// The one Linux that this runs in.
#[derive(Clone, Copy)]
pub(crate) struct Linux;

impl Host for Linux {
    type Thread = Thread;
    type Ram = Ram;
    type Shared<T: Send + Sync + 'static> = Shared<T>;
    type Mutex<T: Send> = Mutex<T>;
    type SpinLock<T: Send> = SpinLock<T>;

    fn alloc_pages(&self, want: PageRequest) -> Result<Hpa, NoMemory> {
        memory::alloc_pages(want)
    }

    unsafe fn free_pages(&self, at: Hpa, want: PageRequest) {
        // SAFETY: The same contract.
        unsafe { memory::free_pages(at, want) }
    }

    fn phys_to_virt(&self, at: Hpa) -> NonNull<u8> {
        memory::phys_to_virt(at)
    }

    fn cpu_limit(&self) -> u32 {
        // SAFETY: Set at boot and constant from then on.
        unsafe { bindings::nr_cpu_ids }
    }

    fn current_cpu(&self) -> CpuId {
        cpus::current_cpu()
    }

    fn on_each_cpu(&self, f: &(dyn Fn(CpuId) + Sync)) {
        cpus::on_each_cpu(f);
    }

    fn window<R>(&self, f: impl FnOnce(CpuId) -> R) -> R {
        let window = Window::open();
        f(window.cpu)
    }

    fn window_must_end(&self) -> bool {
        window::cpu_wanted()
    }

    fn guest_enter(&self) {
        // SAFETY: In a window, so with interrupts off.
        unsafe { ffi::v3vee_guest_enter() }
    }

    fn guest_exit(&self) {
        // SAFETY: In a window, so with interrupts off; after `guest_enter`.
        unsafe { ffi::v3vee_guest_exit() }
    }

    fn machine_check(&self) -> MachineCheck {
        // SAFETY: In a window of a vCPU's thread; the check has not been looked at yet.
        match unsafe { ffi::v3vee_machine_check() } {
            true => MachineCheck::Hit,
            false => MachineCheck::Spared,
        }
    }

    fn task_segment_cut(&self) {
        // SAFETY: In a window, so with interrupts off.
        unsafe { ffi::v3vee_task_segment_cut() }
    }

    fn now_ns(&self) -> u64 {
        // SAFETY: Reads a clock.
        unsafe { bindings::ktime_get() as u64 }
    }

    fn wall_ns(&self) -> u64 {
        // SAFETY: Reads a clock.
        unsafe { bindings::ktime_get_with_offset(bindings::tk_offsets_TK_OFFS_REAL) as u64 }
    }

    fn tsc_hz(&self) -> u64 {
        // SAFETY: Set at boot, and by a recalibration soon after.
        u64::from(unsafe { bindings::tsc_khz }) * 1000
    }

    fn tsc_stable(&self) -> bool {
        // SAFETY: Any context.
        unsafe { ffi::v3vee_tsc_stable() }
    }

    fn thread(&self, name: fmt::Arguments<'_>, cpu: Option<CpuId>) -> Result<Thread, NoMemory> {
        Thread::new(name, cpu)
    }

    fn yield_now(&self) {
        // SAFETY: Thread context.
        unsafe { bindings::yield_() }
    }

    fn share<T: Send + Sync + 'static>(&self, value: T) -> Result<Shared<T>, NoMemory> {
        Shared::new(value)
    }

    fn mutex<T: Send>(&self, class: LockClass, value: T) -> Result<Mutex<T>, NoMemory> {
        Mutex::new(class, value)
    }

    fn spin_lock<T: Send>(&self, class: LockClass, value: T) -> Result<SpinLock<T>, NoMemory> {
        SpinLock::new(class, value)
    }

    fn random(&self, buf: &mut [u8]) -> bool {
        // SAFETY: As many bytes as there are; thread context.
        unsafe { ffi::v3vee_random(buf.as_mut_ptr().cast(), buf.len()) }
    }

    fn log(&self, level: Level, scope: Scope<'_>, line: fmt::Arguments<'_>) {
        match scope {
            Scope::Vmm => print(level, line),
            Scope::Vm(vm) => print(level, format_args!("{vm}: {line}")),
            Scope::Vcpu(vm, n) => print(level, format_args!("{vm}: vcpu {n}: {line}")),
        }
    }
}

fn print(level: Level, line: fmt::Arguments<'_>) {
    match level {
        Level::Error => pr_err!("{line}\n"),
        Level::Warning => pr_warn!("{line}\n"),
        Level::Info => pr_info!("{line}\n"),
    }
}
