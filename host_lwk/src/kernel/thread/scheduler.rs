// SPDX-License-Identifier: MIT OR Apache-2.0
//! The scheduler of each CPU: its ready threads, the thread that runs, and the step from one to the next.
//!
//! The lock of the ready threads is held from the choice of the next thread until that thread runs, which then frees it. What is
//! left to do for the thread before it, to move to another CPU or to be freed, is done by the next one, on its own stack.

use super::control_block::{Thread, ASLEEP, READY, RUNNING};
use super::cpu_timer::{self, NEVER};
use super::policy::{Policy, RoundRobin};
use super::switch::switch_stacks;
use crate::kernel::per_cpu::PerCpu;
use crate::kernel::shared::Shared;
use crate::kernel::sync::{IrqsOff, SpinGuard, SpinLock};
use crate::kernel::trap::{self, vectors};
use crate::kernel::{apic, cpu, time};
use alloc::boxed::Box;
use core::cell::Cell;
use core::sync::atomic::{AtomicBool, Ordering};
use palacios_core::alloc_ext::{try_box, NoMemory};
use x86_64::instructions::interrupts;

/// The policy of all CPUs.
type Ready = RoundRobin;

/// What a CPU keeps for its threads.
pub(super) struct Scheduler {
    ready: SpinLock<Ready>,
    /// The thread that runs; changed by the CPU itself, under the lock of `ready`.
    current: Cell<*const Thread>,
    /// What the CPU does when nobody is ready.
    idle: Box<Thread>,
    /// What is left to do for the thread before, once another runs; for the CPU itself, with interrupts off.
    unfinished: Cell<Unfinished>,
    /// Another thread is to run.
    reschedule: AtomicBool,
    /// An interrupt does not take the CPU from the thread that runs.
    preemption_is_off: AtomicBool,
}

// SAFETY: what is in a `Cell` is reached as said above.
unsafe impl Sync for Scheduler {}
// SAFETY: a scheduler belongs to a CPU, not to a thread.
unsafe impl Send for Scheduler {}

static SCHEDULERS: PerCpu<Scheduler> = PerCpu::new();

/// What a thread that was put down still needs.
#[derive(Clone, Copy)]
enum Unfinished {
    Nothing,
    /// To be ready on another CPU.
    Move(*const Thread),
    /// It has ended: to be freed.
    Free(*const Thread),
}

/// Why the running thread is put down.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Yields,
    Sleeps,
    Ends,
}

/// Makes the schedulers of all CPUs, and registers what interrupts have them do.
///
/// # Safety
/// Once, while only the first CPU runs.
pub(super) unsafe fn init(cpus: u32) -> Result<(), NoMemory> {
    let scheduler = |cpu| {
        let idle = try_box(Thread::with_stack(None, cpu))?;
        idle.state.store(RUNNING, Ordering::Relaxed);
        Ok(Scheduler {
            ready: SpinLock::new(Ready::EMPTY),
            current: Cell::new(&raw const *idle),
            idle,
            unfinished: Cell::new(Unfinished::Nothing),
            reschedule: AtomicBool::new(false),
            preemption_is_off: AtomicBool::new(false),
        })
    };
    // SAFETY: the same contract.
    unsafe { SCHEDULERS.fill(cpus, scheduler)? };
    trap::register(vectors::RESCHEDULE, begin_slice);
    trap::register_preempt(preempt);
    Ok(())
}

/// The thread that runs.
pub fn current() -> &'static Thread {
    let _irqs = IrqsOff::new();
    // SAFETY: it runs, so it exists; its own code does not outlive it.
    unsafe { &*SCHEDULERS.current().current.get() }
}

/// Lets others run that want this CPU.
pub fn yield_now() {
    {
        let _irqs = IrqsOff::new();
        schedule(Reason::Yields, || false);
    }
    core::hint::spin_loop();
}

/// Runs `f` with interrupts off. No other thread takes the CPU from this one until it returns, even if interrupts come on.
pub fn without_preemption<R>(f: impl FnOnce(u32) -> R) -> R {
    let irqs = IrqsOff::new();
    if must_yield() {
        schedule(Reason::Yields, || false);
    }
    let scheduler = SCHEDULERS.current();
    scheduler.preemption_is_off.store(true, Ordering::Relaxed);
    let result = f(cpu::current());
    scheduler.preemption_is_off.store(false, Ordering::Relaxed);
    drop(irqs);
    // An interrupt that waited was taken just now. One that was taken inside of `f` may have asked for the CPU.
    preempt();
    result
}

/// Another thread is to have this CPU. With interrupts off.
pub fn must_yield() -> bool {
    SCHEDULERS.current().reschedule.load(Ordering::Acquire)
}

/// Asks that another thread runs on this CPU soon. With interrupts off.
pub(super) fn ask_to_yield() {
    let scheduler = SCHEDULERS.current();
    scheduler.reschedule.store(true, Ordering::Release);
}

/// At the end of an interrupt, or where one may have asked for the CPU.
fn preempt() {
    let _irqs = IrqsOff::new();
    let scheduler = SCHEDULERS.current();
    let off = scheduler.preemption_is_off.load(Ordering::Relaxed);
    if must_yield() && !off && !scheduler.is_idle() {
        schedule(Reason::Yields, || false);
    }
}

/// What a CPU does when nobody is ready: it halts until an interrupt. On the stack that the CPU began on.
pub fn idle() -> ! {
    loop {
        interrupts::disable();
        if SCHEDULERS.current().ready.lock().is_empty() {
            interrupts::enable_and_hlt();
        } else {
            schedule(Reason::Yields, || false);
        }
    }
}

impl Thread {
    /// Interrupts its CPU, if it runs on another.
    pub fn kick(&self) {
        let _irqs = IrqsOff::new();
        let home = self.home.load(Ordering::Acquire);
        if self.state.load(Ordering::Acquire) == RUNNING && home != cpu::current() {
            apic::interrupt(home, vectors::RESCHEDULE);
        }
    }

    /// Moves it to a CPU, which must run: it is there, or not running, when this returns.
    pub fn move_to(&self, to: u32) {
        self.target.store(to, Ordering::Release);
        loop {
            let (was_ready, runs_elsewhere) = with_home(self, |home, scheduler, ready| {
                let state = self.state.load(Ordering::Relaxed);
                let runs_elsewhere = state == RUNNING && home != to;
                if runs_elsewhere {
                    scheduler.reschedule.store(true, Ordering::Release);
                    apic::interrupt(home, vectors::RESCHEDULE);
                }
                (state == READY && ready.remove(self), runs_elsewhere)
            });
            if was_ready {
                make_ready(self);
            }
            if !runs_elsewhere {
                return;
            }
            yield_now();
        }
    }

    /// Has it run in place of the caller; `false` if it is not ready on this CPU.
    pub fn yield_to(&self) -> bool {
        let _irqs = IrqsOff::new();
        {
            let mut ready = SCHEDULERS.current().ready.lock();
            if !ready.remove(self) {
                return false;
            }
            ready.add_as_next(self);
        }
        schedule(Reason::Yields, || false);
        true
    }
}

/// Lets a thread run that sleeps; what it sleeps for was made true before. In any context.
pub(super) fn wake(thread: &Thread) {
    let slept = with_home(thread, |_, _, _| {
        let sleeps = thread.state.load(Ordering::Relaxed) == ASLEEP;
        if sleeps {
            thread.state.store(READY, Ordering::Relaxed);
        }
        sleeps
    });
    if slept {
        make_ready(thread);
    }
}

/// Runs `f` on the scheduler of a thread's home, its ready threads locked.
fn with_home<R>(thread: &Thread, f: impl FnOnce(u32, &Scheduler, &mut Ready) -> R) -> R {
    loop {
        let home = thread.home.load(Ordering::Acquire);
        let Some(scheduler) = SCHEDULERS.get(home) else {
            panic!("a thread's home is no CPU");
        };
        let mut ready = scheduler.ready.lock();
        if thread.home.load(Ordering::Acquire) == home {
            return f(home, scheduler, &mut ready);
        }
    }
}

/// Adds a thread, whose state says that it is ready, to the ready threads of the CPU where it is to be.
fn make_ready(thread: &Thread) {
    let _irqs = IrqsOff::new();
    let to = thread.target.load(Ordering::Acquire);
    let (Some(scheduler), Some(timer)) = (SCHEDULERS.get(to), cpu_timer::of(to)) else {
        panic!("a thread is to run on no CPU");
    };
    let mut ready = scheduler.ready.lock();
    thread.home.store(to, Ordering::Release);
    add_since_now(&mut ready, thread);
    let is_idle = scheduler.is_idle();
    if is_idle {
        scheduler.reschedule.store(true, Ordering::Release);
    }
    let slice_ends = timer.slice_ends();
    drop(ready);
    if to == cpu::current() {
        begin_slice();
    } else if is_idle || !slice_ends {
        // A CPU whose slice ends comes to the thread by itself.
        apic::interrupt(to, vectors::RESCHEDULE);
    }
}

/// On this CPU, with interrupts off: if others are ready, the running thread's slice has an end from now on.
fn begin_slice() {
    let scheduler = SCHEDULERS.current();
    let timer = cpu_timer::current();
    let (others, slice_ns) = {
        let ready = scheduler.ready.lock();
        (!ready.is_empty(), ready.slice_ns())
    };
    if others && !scheduler.is_idle() && !timer.slice_ends() {
        timer.end_slice_at(time::now_ns() + slice_ns);
        timer.set_timer();
    }
}

/// Lets the next thread run, with interrupts off. It returns when the policy has chosen the caller again. A thread that wants to
/// sleep does not if it is `awake` after all: that is asked with the list locked, so nobody can wake it between the question and its sleep.
pub(super) fn schedule(why: Reason, awake: impl Fn() -> bool) {
    let scheduler = SCHEDULERS.current();
    let mut others = scheduler.ready.lock();
    // SAFETY: it runs, so it exists.
    let before = unsafe { &*scheduler.current.get() };
    let moves = !scheduler.is_idle() && before.target.load(Ordering::Relaxed) != cpu::current();
    if why == Reason::Sleeps && awake() {
        return;
    }
    if why == Reason::Yields && others.is_empty() && !moves {
        scheduler.reschedule.store(false, Ordering::Relaxed);
        return;
    }
    let unfinished = scheduler.put_down(before, why, moves, &mut others);
    let next = others.take_next().unwrap_or(&scheduler.idle);
    scheduler.begin_turn(next, &others);
    scheduler.unfinished.set(unfinished);
    switch(before, next, others);
}

impl Scheduler {
    fn is_idle(&self) -> bool {
        core::ptr::eq(self.current.get(), &raw const *self.idle)
    }

    /// The thread that runs runs no more; what it still needs.
    fn put_down(
        &self,
        thread: &'static Thread,
        why: Reason,
        moves: bool,
        ready: &mut Ready,
    ) -> Unfinished {
        match why {
            Reason::Sleeps => thread.state.store(ASLEEP, Ordering::Relaxed),
            Reason::Ends => return Unfinished::Free(thread),
            Reason::Yields if self.is_idle() => {}
            Reason::Yields => {
                thread.state.store(READY, Ordering::Relaxed);
                if moves {
                    return Unfinished::Move(thread);
                }
                add_since_now(ready, thread);
            }
        }
        Unfinished::Nothing
    }

    /// `next` was chosen: counts how long it waited, and begins its slice.
    fn begin_turn(&self, next: &'static Thread, others: &Ready) {
        let now_ns = time::now_ns();
        if !core::ptr::eq(next, &raw const *self.idle) {
            let since_ns = next.ready_since_ns.load(Ordering::Relaxed);
            let waited_ns = now_ns.saturating_sub(since_ns);
            next.waited_ns.fetch_add(waited_ns, Ordering::Relaxed);
        }
        next.state.store(RUNNING, Ordering::Release);
        self.current.set(next);
        self.reschedule.store(false, Ordering::Relaxed);
        let timer = cpu_timer::current();
        timer.end_slice_at(match others.is_empty() {
            true => NEVER,
            false => now_ns + others.slice_ns(),
        });
        timer.set_timer();
    }
}

/// Adds a thread, which waits for its turn from now on.
fn add_since_now(ready: &mut Ready, thread: &Thread) {
    let now_ns = time::now_ns();
    thread.ready_since_ns.store(now_ns, Ordering::Relaxed);
    ready.add(thread);
}

/// Goes on as `next`, which frees the lock that `held` holds. Returns when `before` was chosen again.
fn switch(before: &Thread, next: &Thread, held: SpinGuard<'_, Ready>) {
    // Freed in `finish_switch`, by whoever runs next; interrupts stay off, by the caller's guard.
    core::mem::forget(held);
    if !core::ptr::eq(before, next) {
        // SAFETY: `next` is ready, so its stack is whole; this one is saved before anybody can choose it.
        unsafe { switch_stacks(before.stack_pointer.as_ptr(), next.stack_pointer.get()) };
    }
    finish_switch();
}

/// On the stack of the thread that was chosen, perhaps on another CPU than it last ran.
pub(super) fn finish_switch() {
    let scheduler = SCHEDULERS.current();
    let unfinished = scheduler.unfinished.replace(Unfinished::Nothing);
    // SAFETY: taken in `schedule`, on this CPU, and forgotten in `switch`.
    unsafe { scheduler.ready.unlock() };
    match unfinished {
        Unfinished::Nothing => {}
        // SAFETY: it is ready and in no list, so nobody ran it to its end meanwhile.
        Unfinished::Move(thread) => make_ready(unsafe { &*thread }),
        // SAFETY: the reference that the thread took to itself when it was first started; it is off its stack now.
        Unfinished::Free(thread) => drop(unsafe { Shared::from_value(thread) }),
    }
}
