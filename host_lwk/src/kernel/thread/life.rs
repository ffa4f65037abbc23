// SPDX-License-Identifier: MIT OR Apache-2.0
//! A thread from its begin to its end: it is made, does one job after the other, and ends when it is released.

use super::control_block::{Job, Thread, WaitList, ASLEEP, NEW};
use super::scheduler::{current, finish_switch, schedule, wake, Reason};
use super::switch::first_stack_pointer;
use super::wait::sleep_until;
use crate::kernel::memory::Stack;
use crate::kernel::shared::Shared;
use core::sync::atomic::Ordering;
use palacios_core::alloc_ext::NoMemory;
use x86_64::instructions::interrupts;

impl Thread {
    /// A thread at home on `cpu`, which must run; it does nothing yet.
    pub fn new(cpu: u32) -> Result<Shared<Self>, NoMemory> {
        let stack = Stack::new()?;
        let top = stack.top();
        let thread = Shared::new(Self::with_stack(Some(stack), cpu))?;
        // SAFETY: the thread's own stack, on which nothing runs yet.
        let stack_pointer = unsafe { first_stack_pointer(top, thread_main) };
        thread.stack_pointer.set(stack_pointer);
        Ok(thread)
    }

    /// Gives it something to do. Again only after [`Thread::join`].
    pub fn start(this: &Shared<Self>, job: Job) {
        this.busy.lock().0 = true;
        *this.job.lock() = Some(job);
        this.has_job.store(true, Ordering::Release);
        // The first time it takes a reference to itself, which it gives back when it ends.
        if this.state.load(Ordering::Relaxed) == NEW {
            core::mem::forget(this.clone());
            this.state.store(ASLEEP, Ordering::Release);
        }
        wake(this);
    }

    /// It is wanted no more: it ends when its job is done.
    pub fn release(&self) {
        self.ends.store(true, Ordering::Release);
        wake(self);
    }

    /// Sleeps until its job is done.
    pub fn join(&self) {
        loop {
            let mut busy = self.busy.lock();
            if !busy.0 {
                return;
            }
            busy.1.add_current();
            drop(busy);
            WaitList::sleep();
        }
    }
}

/// Where a thread begins.
extern "C" fn thread_main() -> ! {
    finish_switch();
    interrupts::enable();
    let me = current();
    loop {
        sleep_until(|| me.has_job.load(Ordering::Acquire) || me.ends.load(Ordering::Acquire));
        let job = me.job.lock().take();
        me.has_job.store(false, Ordering::Relaxed);
        let Some(job) = job else { break };
        job();
        let mut busy = me.busy.lock();
        busy.0 = false;
        busy.1.wake_all();
    }
    me.arm(None);
    interrupts::disable();
    schedule(Reason::Ends, || false);
    unreachable!("a thread that ended runs");
}
