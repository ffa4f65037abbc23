// SPDX-License-Identifier: MIT OR Apache-2.0
//! Threads: each at home on one CPU, where it runs until it sleeps, or until others there want their turn.
//!
//! There is no tick. A CPU's timer is set for the earliest time that one of its threads armed, and, only while more than one
//! wants to run, for the end of a slice. A thread that is moved goes over when its old CPU has put it down.
//!
//! Locks, in this order: a waiting list, a CPU's timers, a CPU's queue. The queue's is held from the choice of the next thread
//! until that runs, which then frees it.

mod mutex;
mod schedule;

use super::cpu;
use super::memory::Stack;
use super::shared::Shared;
use super::sync::{IrqsOff, SpinLock};
use alloc::boxed::Box;
use core::arch::global_asm;
use core::cell::Cell;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};
use mutex::Waiters;
pub use mutex::{Mutex, MutexGuard};
use palacios_core::alloc_ext::{try_box, NoMemory};
use schedule::{enqueue, schedule, settle, with_home, Why, NEVER};
pub use schedule::{interrupted, timer_fired, Scheduler};

/// Has nothing to do yet.
const NEW: u8 = 3;
/// Sleeps.
const ASLEEP: u8 = 0;
/// In the queue of its home, or on its way there.
const READY: u8 = 1;
/// Runs, at its home.
const RUNNING: u8 = 2;

/// What a thread does.
pub type Job = Box<dyn FnOnce() + Send>;

/// A thread.
pub struct Thread {
    /// Its stack pointer while it does not run.
    context: Cell<*mut u8>,
    _stack: Option<Stack>,
    /// The CPU in whose queue it is, or on which it runs.
    home: AtomicU32,
    /// The CPU where it is to be.
    wanted: AtomicU32,
    state: AtomicU8,
    /// It was unparked since it last returned from a park.
    unparked: AtomicBool,
    /// Of a queue.
    next: Cell<*const Thread>,
    /// In a [`Waiters`].
    pub waiting: AtomicBool,
    /// Of a [`Waiters`].
    pub next_waiter: Cell<*const Thread>,
    /// What it is to do next.
    job: SpinLock<Option<Job>>,
    has_job: AtomicBool,
    /// It is to end when it has nothing to do.
    ends: AtomicBool,
    /// Whether its job is not done, and who waits for that.
    busy: SpinLock<(bool, Waiters)>,
    ready_since_ns: AtomicU64,
    waited_ns: AtomicU64,
    /// The time that it armed, the CPU that keeps it, and the next in that CPU's list.
    armed_ns: AtomicU64,
    armed_on: AtomicU32,
    next_armed: Cell<*const Thread>,
}

// SAFETY: a `Cell` in it belongs to the list in which the thread is, or to the thread while it is in none; lists are locked.
unsafe impl Sync for Thread {}
// SAFETY: as above.
unsafe impl Send for Thread {}

impl Thread {
    fn with(stack: Option<Stack>, cpu: u32) -> Self {
        Self {
            context: Cell::new(null_mut()),
            _stack: stack,
            home: AtomicU32::new(cpu),
            wanted: AtomicU32::new(cpu),
            state: AtomicU8::new(NEW),
            unparked: AtomicBool::new(false),
            next: Cell::new(null()),
            waiting: AtomicBool::new(false),
            next_waiter: Cell::new(null()),
            job: SpinLock::new(None),
            has_job: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            busy: SpinLock::new((false, Waiters::new())),
            ready_since_ns: AtomicU64::new(0),
            waited_ns: AtomicU64::new(0),
            armed_ns: AtomicU64::new(NEVER),
            armed_on: AtomicU32::new(0),
            next_armed: Cell::new(null()),
        }
    }

    /// What a CPU does when there is nothing to do; it has the stack that the CPU began on.
    pub fn idle(cpu: u32) -> Result<Box<Self>, NoMemory> {
        let idle = try_box(Self::with(None, cpu))?;
        idle.state.store(RUNNING, Ordering::Relaxed);
        Ok(idle)
    }

    /// A thread at home on `cpu`, which must run; it does nothing yet.
    pub fn new(cpu: u32) -> Result<Shared<Self>, NoMemory> {
        let stack = Stack::new()?;
        let top = stack.top() as *mut usize;
        let thread = Shared::new(Self::with(Some(stack), cpu))?;
        // What `switch_stacks` takes off: six registers, and where to go on; then the stack is as before a call.
        let context = top.wrapping_sub(9);
        for word in 0..9 {
            // SAFETY: the topmost words of a stack of its own.
            unsafe { context.add(word).write(0) };
        }
        // SAFETY: as above.
        unsafe { context.add(6).write(thread_begin as *const () as usize) };
        thread.context.set(context.cast());
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
    pub fn let_go(&self) {
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
            Waiters::sleep();
        }
    }

    /// Ends its sleep in [`park`], or its next one. In any context.
    pub fn unpark(&self) {
        if !self.unparked.swap(true, Ordering::AcqRel) {
            wake(self);
        }
    }

    /// Interrupts its CPU, if it runs on another.
    pub fn kick(&self) {
        let _irqs = IrqsOff::new();
        let home = self.home.load(Ordering::Acquire);
        if self.state.load(Ordering::Acquire) == RUNNING && home != cpu::current().id {
            if let Some(cpu) = cpu::get(home) {
                cpu.interrupt();
            }
        }
    }

    /// How long it was ready without running.
    pub fn waited_ns(&self) -> u64 {
        self.waited_ns.load(Ordering::Relaxed)
    }

    /// Moves it to a CPU, which must run: it is there, or not running, when this returns.
    pub fn move_to(&self, to: u32) {
        self.wanted.store(to, Ordering::Release);
        loop {
            let (queued, runs) = with_home(self, |cpu, queue| {
                let state = self.state.load(Ordering::Relaxed);
                let runs = state == RUNNING && cpu.id != to;
                if runs {
                    cpu.scheduler.reschedule.store(true, Ordering::Release);
                    cpu.interrupt();
                }
                (state == READY && queue.remove(self), runs)
            });
            if queued {
                enqueue(self);
            }
            if !runs {
                return;
            }
            yield_now();
        }
    }

    /// Has it run in place of the caller, if it waits for this CPU.
    pub fn yield_to(&self) -> bool {
        let _irqs = IrqsOff::new();
        let scheduler = &cpu::current().scheduler;
        {
            let mut queue = scheduler.queue.lock();
            if !queue.remove(self) {
                return false;
            }
            self.next.set(queue.first);
            queue.first = self;
            if queue.last.is_null() {
                queue.last = self;
            }
        }
        schedule(Why::Yields, || false);
        true
    }

    /// From `at_ns` on it is unparked and kicked, once; replaces the time before. By itself.
    pub fn arm(&self, at_ns: Option<u64>) {
        let _irqs = IrqsOff::new();
        self.disarm();
        let here = cpu::current();
        if let Some(at_ns) = at_ns {
            let mut timers = here.scheduler.timers.lock();
            self.armed_ns.store(at_ns.min(NEVER - 1), Ordering::Relaxed);
            self.armed_on.store(here.id, Ordering::Relaxed);
            self.next_armed.set(timers.0);
            timers.0 = self;
            timers.note_first(&here.scheduler);
        }
        here.scheduler.set_timer();
    }

    fn disarm(&self) {
        let Some(cpu) = cpu::get(self.armed_on.load(Ordering::Relaxed)) else {
            return;
        };
        let mut timers = cpu.scheduler.timers.lock();
        if self.armed_ns.swap(NEVER, Ordering::Relaxed) != NEVER {
            timers.keep(|other| !core::ptr::eq(other, self));
            timers.note_first(&cpu.scheduler);
        }
    }
}

/// Lets a thread run that sleeps; what it sleeps for was made true before. In any context.
pub fn wake(thread: &Thread) {
    let slept = with_home(thread, |_, _| {
        let sleeps = thread.state.load(Ordering::Relaxed) == ASLEEP;
        if sleeps {
            thread.state.store(READY, Ordering::Relaxed);
        }
        sleeps
    });
    if slept {
        enqueue(thread);
    }
}

/// Sleeps until `ready`, which is looked at whenever somebody called [`wake`].
pub fn sleep_until(ready: impl Fn() -> bool) {
    while !ready() {
        let _irqs = IrqsOff::new();
        schedule(Why::Sleeps, &ready);
    }
}

/// Sleeps until the current thread was unparked since this last returned.
pub fn park() {
    let unparked = &current().unparked;
    sleep_until(|| unparked.load(Ordering::Acquire));
    unparked.store(false, Ordering::Release);
}

/// The thread that runs.
pub fn current() -> &'static Thread {
    let _irqs = IrqsOff::new();
    // SAFETY: it runs, so it is there; its own code does not outlive it.
    unsafe { &*cpu::current().scheduler.current.get() }
}

/// Lets others run that want this CPU.
pub fn yield_now() {
    {
        let _irqs = IrqsOff::new();
        schedule(Why::Yields, || false);
    }
    core::hint::spin_loop();
}

/// Runs `f` with interrupts off, in which no thread takes the place of this one, even if they come on.
pub fn pinned<R>(f: impl FnOnce(u32) -> R) -> R {
    let irqs = IrqsOff::new();
    if must_yield() {
        schedule(Why::Yields, || false);
    }
    let cpu = cpu::current();
    cpu.scheduler.pinned.store(true, Ordering::Relaxed);
    let result = f(cpu.id);
    cpu.scheduler.pinned.store(false, Ordering::Relaxed);
    drop(irqs);
    // What came meanwhile was taken just now; but not what came while interrupts were on inside.
    preempt();
    result
}

/// Another thread is to have this CPU. With interrupts off.
pub fn must_yield() -> bool {
    cpu::current().scheduler.reschedule.load(Ordering::Acquire)
}

/// At the end of an interrupt, or where one may have asked for it.
pub fn preempt() {
    let _irqs = IrqsOff::new();
    let scheduler = &cpu::current().scheduler;
    if must_yield() && !scheduler.pinned.load(Ordering::Relaxed) && !scheduler.idles() {
        schedule(Why::Yields, || false);
    }
}

/// What a CPU does when nobody is ready: it halts until an interrupt. On the stack that the CPU began on.
pub fn idle() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        if cpu::current().scheduler.queue.lock().first.is_null() {
            x86_64::instructions::interrupts::enable_and_hlt();
        } else {
            schedule(Why::Yields, || false);
        }
    }
}

/// Where a thread begins.
extern "C" fn thread_main() -> ! {
    settle();
    x86_64::instructions::interrupts::enable();
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
    x86_64::instructions::interrupts::disable();
    schedule(Why::Ends, || false);
    unreachable!("a thread that ended runs");
}

extern "C" {
    /// Puts the stack pointer away at `from`, and goes on with the stack of `to`.
    fn switch_stacks(from: *mut *mut u8, to: *mut u8);
    fn thread_begin();
}

global_asm!(
    ".globl switch_stacks, thread_begin",
    "switch_stacks:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rdi], rsp",
    "mov rsp, rsi",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    "thread_begin:",
    "call {main}",
    "ud2",
    main = sym thread_main,
);
