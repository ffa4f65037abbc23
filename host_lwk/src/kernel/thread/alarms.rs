// SPDX-License-Identifier: MIT OR Apache-2.0
//! The alarms: the times that threads armed. Each is kept by the CPU on which its thread armed it.
//!
//! The interrupt of the CPU's timer comes here (`fired`). When that timer is set, and for what: `cpu_timer.rs`.

use super::control_block::Thread;
use super::cpu_timer::{self, NEVER};
use super::scheduler::ask_to_yield;
use crate::kernel::per_cpu::PerCpu;
use crate::kernel::sync::{IrqsOff, SpinLock};
use crate::kernel::trap::{self, vectors};
use crate::kernel::{cpu, time};
use core::ptr::null;
use core::sync::atomic::Ordering;
use palacios_core::alloc_ext::NoMemory;

/// Threads that armed a time, in no order. A thread in it exists: it disarms before it ends.
struct Alarms(*const Thread);

// SAFETY: the threads in it exist.
unsafe impl Send for Alarms {}

static ALARMS: PerCpu<SpinLock<Alarms>> = PerCpu::new();

/// Makes the lists of all CPUs, and registers the handler of the timer's interrupt.
///
/// # Safety
/// Once, while only the first CPU runs.
pub(super) unsafe fn init(cpus: u32) -> Result<(), NoMemory> {
    // SAFETY: the same contract.
    unsafe { ALARMS.fill(cpus, |_| Ok(SpinLock::new(Alarms(null()))))? };
    trap::register(vectors::TIMER, fired);
    Ok(())
}

impl Alarms {
    fn add(&mut self, thread: &Thread) {
        thread.next_armed.set(self.0);
        self.0 = thread;
    }

    fn keep(&mut self, wanted: impl Fn(&'static Thread) -> bool) {
        let mut rest = core::mem::replace(&mut self.0, null());
        // SAFETY: a thread in the list exists.
        while let Some(thread) = unsafe { rest.as_ref() } {
            rest = thread.next_armed.get();
            if wanted(thread) {
                self.add(thread);
            }
        }
    }

    fn first_ns(&self) -> u64 {
        let (mut at, mut first_ns) = (self.0, NEVER);
        // SAFETY: as above.
        while let Some(thread) = unsafe { at.as_ref() } {
            first_ns = first_ns.min(thread.armed_ns.load(Ordering::Relaxed));
            at = thread.next_armed.get();
        }
        first_ns
    }
}

impl Thread {
    /// From `at_ns` on it is unparked and kicked, once; replaces the time before. By itself.
    pub fn arm(&self, at_ns: Option<u64>) {
        let _irqs = IrqsOff::new();
        self.disarm();
        let timer = cpu_timer::current();
        if let Some(at_ns) = at_ns {
            let mut alarms = ALARMS.current().lock();
            self.armed_ns.store(at_ns.min(NEVER - 1), Ordering::Relaxed);
            self.armed_on.store(cpu::current(), Ordering::Relaxed);
            alarms.add(self);
            timer.set_first_armed(alarms.first_ns());
        }
        timer.set_timer();
    }

    fn disarm(&self) {
        let on = self.armed_on.load(Ordering::Relaxed);
        let (Some(alarms), Some(timer)) = (ALARMS.get(on), cpu_timer::of(on)) else {
            return;
        };
        let mut alarms = alarms.lock();
        if self.armed_ns.swap(NEVER, Ordering::Relaxed) != NEVER {
            alarms.keep(|other| !core::ptr::eq(other, self));
            timer.set_first_armed(alarms.first_ns());
        }
    }
}

/// In the timer's interrupt: what is due wakes, and a slice that is over ends the running thread's turn.
fn fired() {
    let timer = cpu_timer::current();
    timer.fired();
    let now_ns = time::now_ns();
    {
        let mut alarms = ALARMS.current().lock();
        alarms.keep(|thread| {
            let due = thread.armed_ns.load(Ordering::Relaxed) <= now_ns;
            if due {
                thread.armed_ns.store(NEVER, Ordering::Relaxed);
                thread.unpark();
                thread.kick();
            }
            !due
        });
        timer.set_first_armed(alarms.first_ns());
    }
    if timer.take_slice_end(now_ns) {
        ask_to_yield();
    }
    timer.set_timer();
}
