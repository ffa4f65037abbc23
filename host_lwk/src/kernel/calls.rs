// SPDX-License-Identifier: MIT OR Apache-2.0
//! Calls of a function on every CPU.

use super::per_cpu::PerCpu;
use super::sync::IrqsOff;
use super::trap::{self, vectors};
use super::{apic, cpu, thread};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use palacios_core::alloc_ext::NoMemory;

/// Each CPU is to call [`FUNCTION`].
static CALLED: PerCpu<AtomicBool> = PerCpu::new();
/// What [`on_each_cpu`] calls: the address of a reference to it.
static FUNCTION: AtomicU64 = AtomicU64::new(0);
/// How many have yet to return.
static PENDING: AtomicU32 = AtomicU32::new(0);
/// Somebody is calling.
static BUSY: AtomicBool = AtomicBool::new(false);

/// Makes room for the calls of each CPU, and registers the interrupt that brings one.
///
/// # Safety
/// Once, while only the first CPU runs.
pub unsafe fn init(cpus: u32) -> Result<(), NoMemory> {
    // SAFETY: the same contract.
    unsafe { CALLED.fill(cpus, |_| Ok(AtomicBool::new(false)))? };
    trap::register(vectors::CALL, take);
    Ok(())
}

/// Calls `f` once on each CPU, with interrupts off there, and returns when all have returned. In a thread.
pub fn on_each_cpu(f: &(dyn Fn(u32) + Sync)) {
    // Not a sleeping lock: whoever waits here still takes the calls of others.
    while BUSY.swap(true, Ordering::Acquire) {
        thread::yield_now();
    }
    FUNCTION.store(&raw const f as u64, Ordering::Relaxed);
    {
        let _irqs = IrqsOff::new();
        let me = cpu::current();
        for other in (0..cpu::count()).filter(|other| *other != me) {
            if let Some(called) = CALLED.get(other) {
                PENDING.fetch_add(1, Ordering::Relaxed);
                called.store(true, Ordering::Release);
                apic::interrupt(other, vectors::CALL);
            }
        }
        f(me);
    }
    while PENDING.load(Ordering::Acquire) > 0 {
        core::hint::spin_loop();
    }
    BUSY.store(false, Ordering::Release);
}

/// In the interrupt: does what [`on_each_cpu`] asks of this CPU.
fn take() {
    if CALLED.current().swap(false, Ordering::Acquire) {
        let f = FUNCTION.load(Ordering::Relaxed) as *const &(dyn Fn(u32) + Sync);
        // SAFETY: the caller waits until this has returned.
        unsafe { (*f)(cpu::current()) };
        PENDING.fetch_sub(1, Ordering::Release);
    }
}
