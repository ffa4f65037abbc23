// SPDX-License-Identifier: MIT OR Apache-2.0
//! CPUs. Whoever has a CPU's turn is on it, with interrupts off.

use palacios_core::host::CpuId;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

// ANCHOR: cpu
/// How long one waits for a CPU before whoever is on it is interrupted.
const TICK: Duration = Duration::from_millis(1);

thread_local! {
    static CURRENT_CPU: Cell<Option<CpuId>> = const { Cell::new(None) };
}

/// The CPU that the calling thread is on.
pub fn current_cpu() -> Option<CpuId> {
    CURRENT_CPU.get()
}

/// A CPU: a queue of those who want it, first come, first served.
#[derive(Default)]
pub struct Cpu {
    queue: Mutex<Queue>,
    left: Condvar,
    interrupt: AtomicBool,
}

#[derive(Default)]
struct Queue {
    next_ticket: u64,
    serving: u64,
}

impl Cpu {
    /// Sends it an interrupt. Whoever is on the CPU takes it when the turn ends; a guest that runs there exits at once.
    pub fn interrupt(&self) {
        self.interrupt.store(true, SeqCst);
    }
    pub fn is_interrupted(&self) -> bool {
        self.interrupt.load(SeqCst)
    }
}

/// A turn on a CPU, until dropped.
pub struct Turn<'a>(&'a Cpu);

impl<'a> Turn<'a> {
    pub fn take(cpu: &'a Cpu, id: CpuId) -> Self {
        let mut queue = cpu.queue.lock().expect("no holder has panicked");
        let ticket = queue.next_ticket;
        queue.next_ticket += 1;
        while queue.serving != ticket {
            let (guard, wait) = cpu.left.wait_timeout(queue, TICK).expect("as above");
            queue = guard;
            if wait.timed_out() {
                cpu.interrupt();
            }
        }
        drop(queue);
        cpu.interrupt.store(false, SeqCst);
        CURRENT_CPU.set(Some(id));
        Self(cpu)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        CURRENT_CPU.set(None);
        self.0.queue.lock().expect("as above").serving += 1;
        self.0.left.notify_all();
    }
}
// ANCHOR_END: cpu
