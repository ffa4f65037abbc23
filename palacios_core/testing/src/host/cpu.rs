// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's CPUs: who is on each, and which interrupts wait.
//!
//! Threads share a CPU in turns. Outside of windows nobody needs one: ordinary code runs on the machine beneath.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// How long a window lasts before others' wish for the CPU shows.
const QUANTUM_NS: u64 = 30_000;
/// And how often the processor has looked for an interrupt in it, which it does at each instruction of a guest. To open a window may take
/// longer than the time above: without this, guests that share a CPU would never come to execute anything on a slow machine.
const LEAST_LOOKS: u64 = 50;

pub struct Cpu {
    turns: Mutex<Turns>,
    served: Condvar,
    waiting: AtomicU64,
    interrupt: AtomicBool,
    made: Instant,
    /// When the present turn began, since `made`.
    since_ns: AtomicU64,
    /// How often the processor has looked for an interrupt in it.
    looks: AtomicU64,
    /// So many looks later a tick of the host's comes; 0 is never.
    tick_looks: u64,
}

#[derive(Default)]
struct Turns {
    next: u64,
    serving: u64,
}

/// A turn on a CPU, until dropped.
pub struct Turn<'a>(&'a Cpu);

impl Cpu {
    pub fn new(tick_looks: u64) -> Self {
        Self {
            turns: Mutex::default(),
            served: Condvar::new(),
            waiting: AtomicU64::new(0),
            interrupt: AtomicBool::new(false),
            made: Instant::now(),
            since_ns: AtomicU64::new(0),
            looks: AtomicU64::new(0),
            tick_looks,
        }
    }
    /// Waits for a turn: first come, first served.
    pub fn take(&self) -> Turn<'_> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = turns.next;
        turns.next += 1;
        if turns.serving != mine {
            self.waiting.fetch_add(1, SeqCst);
            turns = self
                .served
                .wait_while(turns, |turns| turns.serving != mine)
                .unwrap_or_else(PoisonError::into_inner);
            self.waiting.fetch_sub(1, SeqCst);
        }
        drop(turns);
        self.since_ns.store(self.clock_ns(), SeqCst);
        self.looks.store(0, SeqCst);
        // What came before was taken before.
        self.interrupt.store(false, SeqCst);
        Turn(self)
    }
    /// Raises an interrupt; it waits while a turn lasts.
    pub fn interrupt(&self) {
        self.interrupt.store(true, SeqCst);
    }
    /// An interrupt waits, and would end guest mode.
    pub fn interrupted(&self) -> bool {
        let looks = self.looks.fetch_add(1, SeqCst);
        let ticks = self.tick_looks != 0 && looks >= self.tick_looks;
        ticks || self.interrupt.load(SeqCst) || self.must_end()
    }
    /// Others want the CPU, and the present turn was not too short.
    pub fn must_end(&self) -> bool {
        self.waiting.load(SeqCst) > 0
            && self.looks.load(SeqCst) >= LEAST_LOOKS
            && self.clock_ns() - self.since_ns.load(SeqCst) >= QUANTUM_NS
    }
    fn clock_ns(&self) -> u64 {
        self.made.elapsed().as_nanos() as u64
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.serving += 1;
        drop(turns);
        self.0.served.notify_all();
    }
}
