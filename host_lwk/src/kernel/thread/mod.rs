// SPDX-License-Identifier: MIT OR Apache-2.0
//! Threads: each at home on one CPU, where it runs until it sleeps, or until others there want their turn.
//!
//! There is no tick. A CPU's timer is set for the earliest time that one of its threads armed, and for the end of a slice only
//! while more than one thread wants to run.
//!
//! Locks, in this order: a wait list, a CPU's alarms, a CPU's ready threads.
//!
//! ```text
//! life       a thread from its begin to its end     mutex   a lock whose waiters sleep
//! alarms     the times that threads armed, and the timer's interrupt
//! wait       sleeping and waking
//! scheduler  the step from one thread to the next
//! policy     which thread is next        cpu_timer   a CPU's one timer        switch   stacks
//! control_block                          what is kept of a thread
//! ```

mod alarms;
mod control_block;
mod cpu_timer;
mod life;
mod mutex;
mod policy;
mod scheduler;
mod switch;

mod wait;

pub use control_block::Thread;
pub use mutex::{Mutex, MutexGuard};
pub use scheduler::{current, idle, must_yield, without_preemption, yield_now};
pub use wait::park;

use palacios_core::alloc_ext::NoMemory;

/// Makes what each CPU needs to run threads.
///
/// # Safety
/// Once, while only the first CPU runs.
pub unsafe fn init(cpus: u32) -> Result<(), NoMemory> {
    // SAFETY: the same contract.
    unsafe {
        cpu_timer::init(cpus)?;
        alarms::init(cpus)?;
        scheduler::init(cpus)
    }
}
