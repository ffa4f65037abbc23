// SPDX-License-Identifier: MIT OR Apache-2.0
//! The times that threads armed: each is kept by the CPU on which its thread armed it.

use super::alarm::{self, NEVER};
use super::control_block::Thread;
use super::scheduler::ask_to_yield;
use crate::kernel::per_cpu::PerCpu;
use crate::kernel::sync::{IrqsOff, SpinLock};
use crate::kernel::trap::{self, vectors};
use crate::kernel::{cpu, time};
use core::ptr::null;
use core::sync::atomic::Ordering;
use palacios_core::alloc_ext::NoMemory;

/// Threads that armed a time, in no order. A thread in it exists: it disarms before it ends.
struct Timers(*const Thread);

// SAFETY: the threads in it exist.
unsafe impl Send for Timers {}

static TIMERS: PerCpu<SpinLock<Timers>> = PerCpu::new();

/// Makes the lists of all CPUs, and registers what their timers do.
///
/// # Safety
/// Once, while only the first CPU runs.
pub(super) unsafe fn init(cpus: u32) -> Result<(), NoMemory> {
    // SAFETY: the same contract.
    unsafe { TIMERS.fill(cpus, |_| Ok(SpinLock::new(Timers(null()))))? };
    trap::register(vectors::TIMER, fired);
    Ok(())
}

impl Timers {
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
        let alarm = alarm::current();
        if let Some(at_ns) = at_ns {
            let mut timers = TIMERS.current().lock();
            self.armed_ns.store(at_ns.min(NEVER - 1), Ordering::Relaxed);
            self.armed_on.store(cpu::current(), Ordering::Relaxed);
            timers.add(self);
            alarm.set_first_armed(timers.first_ns());
        }
        alarm.set_timer();
    }

    fn disarm(&self) {
        let on = self.armed_on.load(Ordering::Relaxed);
        let (Some(timers), Some(alarm)) = (TIMERS.get(on), alarm::of(on)) else {
            return;
        };
        let mut timers = timers.lock();
        if self.armed_ns.swap(NEVER, Ordering::Relaxed) != NEVER {
            timers.keep(|other| !core::ptr::eq(other, self));
            alarm.set_first_armed(timers.first_ns());
        }
    }
}

/// In the timer's interrupt: what is due wakes, and a slice that is over ends the running thread's turn.
fn fired() {
    let alarm = alarm::current();
    alarm.fired();
    let now_ns = time::now_ns();
    {
        let mut timers = TIMERS.current().lock();
        timers.keep(|thread| {
            let due = thread.armed_ns.load(Ordering::Relaxed) <= now_ns;
            if due {
                thread.armed_ns.store(NEVER, Ordering::Relaxed);
                thread.unpark();
                thread.kick();
            }
            !due
        });
        alarm.set_first_armed(timers.first_ns());
    }
    if alarm.take_slice_end(now_ns) {
        ask_to_yield();
    }
    alarm.set_timer();
}
