// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a CPU keeps for its threads: the queue of those that are ready, the times that they armed, and the step from one to
//! the next.

use super::{switch_stacks, Thread, ASLEEP, READY, RUNNING};
use crate::kernel::cpu::{self, Cpu};
use crate::kernel::shared::Shared;
use crate::kernel::sync::{IrqsOff, SpinLock};
use crate::kernel::{apic, time};
use alloc::boxed::Box;
use core::cell::Cell;
use core::ptr::null;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How long a thread runs while others want its CPU.
const SLICE_NS: u64 = 4_000_000;
/// No time.
pub(super) const NEVER: u64 = u64::MAX;

/// A CPU's threads.
pub struct Scheduler {
    pub(super) queue: SpinLock<Queue>,
    /// The thread that runs, with interrupts off there.
    pub(super) current: Cell<*const Thread>,
    /// What the CPU does when nobody is ready.
    idle: Box<Thread>,
    /// What is left to do for the thread before, once another runs.
    leftover: Cell<Leftover>,
    /// Another thread is to run.
    pub(super) reschedule: AtomicBool,
    /// In a window: interrupts change no thread.
    pub(super) pinned: AtomicBool,
    pub(super) timers: SpinLock<Timers>,
    /// The earliest time in `timers`.
    first_armed_ns: AtomicU64,
    /// When the running thread's turn ends, if others are ready.
    slice_end_ns: AtomicU64,
    /// What the timer is set for.
    timer_ns: Cell<u64>,
}

/// Threads that are ready.
pub(super) struct Queue {
    pub(super) first: *const Thread,
    pub(super) last: *const Thread,
}

/// Threads that armed a time here, in no order.
pub(super) struct Timers(pub(super) *const Thread);

// SAFETY: threads in a list are there: they leave it before they end.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Send for Timers {}

#[derive(Clone, Copy)]
enum Leftover {
    Nothing,
    /// It goes to another CPU.
    Send(*const Thread),
    /// It has ended.
    Bury(*const Thread),
}

/// Why the running thread lets others run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Yields,
    Sleeps,
    Ends,
}

impl Queue {
    fn push(&mut self, thread: &Thread) {
        thread.next.set(null());
        // SAFETY: a thread in the queue is there.
        match unsafe { self.last.as_ref() } {
            None => self.first = thread,
            Some(last) => last.next.set(thread),
        }
        self.last = thread;
    }

    fn pop(&mut self) -> Option<&'static Thread> {
        // SAFETY: as above; it stays until it has run to its end.
        let first = unsafe { self.first.as_ref() }?;
        self.first = first.next.get();
        if self.first.is_null() {
            self.last = null();
        }
        Some(first)
    }

    /// Takes `thread` out; `false` if it is not in it.
    pub(super) fn remove(&mut self, thread: &Thread) -> bool {
        let mut found = false;
        let mut rest = core::mem::replace(self, Self::EMPTY);
        while let Some(other) = rest.pop() {
            match core::ptr::eq(other, thread) {
                true => found = true,
                false => self.push(other),
            }
        }
        found
    }

    const EMPTY: Self = Self {
        first: null(),
        last: null(),
    };
}

impl Scheduler {
    /// With nothing to do.
    pub fn new(idle: Box<Thread>) -> Self {
        Self {
            queue: SpinLock::new(Queue::EMPTY),
            current: Cell::new(&raw const *idle),
            idle,
            leftover: Cell::new(Leftover::Nothing),
            reschedule: AtomicBool::new(false),
            pinned: AtomicBool::new(false),
            timers: SpinLock::new(Timers(null())),
            first_armed_ns: AtomicU64::new(NEVER),
            slice_end_ns: AtomicU64::new(NEVER),
            timer_ns: Cell::new(NEVER),
        }
    }

    pub(super) fn idles(&self) -> bool {
        core::ptr::eq(self.current.get(), &raw const *self.idle)
    }

    /// Sets the timer, if what it is to be set for changed. On this CPU, with interrupts off.
    pub(super) fn set_timer(&self) {
        let slice = self.slice_end_ns.load(Ordering::Relaxed);
        let at_ns = slice.min(self.first_armed_ns.load(Ordering::Relaxed));
        if self.timer_ns.replace(at_ns) != at_ns {
            let after_ns = (at_ns != NEVER).then(|| at_ns.saturating_sub(time::now_ns()));
            apic::local(|apic| apic.set_timer(after_ns));
        }
    }
}

impl Timers {
    pub(super) fn keep(&mut self, wanted: impl Fn(&'static Thread) -> bool) {
        let mut rest = core::mem::replace(&mut self.0, null());
        // SAFETY: a thread in the list is there: it disarms before it ends.
        while let Some(thread) = unsafe { rest.as_ref() } {
            rest = thread.next_armed.get();
            if wanted(thread) {
                thread.next_armed.set(self.0);
                self.0 = thread;
            }
        }
    }

    pub(super) fn note_first(&self, scheduler: &Scheduler) {
        let (mut at, mut first_ns) = (self.0, NEVER);
        // SAFETY: as above.
        while let Some(thread) = unsafe { at.as_ref() } {
            first_ns = first_ns.min(thread.armed_ns.load(Ordering::Relaxed));
            at = thread.next_armed.get();
        }
        scheduler.first_armed_ns.store(first_ns, Ordering::Relaxed);
    }
}

/// Runs `f` on the queue of a thread's home, locked.
pub(super) fn with_home<R>(thread: &Thread, f: impl FnOnce(&'static Cpu, &mut Queue) -> R) -> R {
    loop {
        let Some(cpu) = cpu::get(thread.home.load(Ordering::Acquire)) else {
            panic!("a thread's home is no CPU");
        };
        let mut queue = cpu.scheduler.queue.lock();
        if thread.home.load(Ordering::Acquire) == cpu.id {
            return f(cpu, &mut queue);
        }
    }
}

/// Puts a thread that is ready into the queue of the CPU where it is to be.
pub(super) fn enqueue(thread: &Thread) {
    let _irqs = IrqsOff::new();
    let to = thread.wanted.load(Ordering::Acquire);
    let Some(cpu) = cpu::get(to) else {
        panic!("a thread is to run on no CPU");
    };
    let scheduler = &cpu.scheduler;
    let mut queue = scheduler.queue.lock();
    thread.home.store(to, Ordering::Release);
    thread
        .ready_since_ns
        .store(time::now_ns(), Ordering::Relaxed);
    queue.push(thread);
    let idles = scheduler.idles();
    if idles {
        scheduler.reschedule.store(true, Ordering::Release);
    }
    let first = scheduler.slice_end_ns.load(Ordering::Relaxed) == NEVER;
    drop(queue);
    // A CPU that counts a slice already will come to it by itself.
    if cpu.id == cpu::current().id {
        begin_slice(scheduler);
    } else if idles || first {
        cpu.interrupt();
    }
}

/// On this CPU, with interrupts off: others want to run, so the running thread's time is limited from now on.
fn begin_slice(scheduler: &Scheduler) {
    let wanted = !scheduler.queue.lock().first.is_null() && !scheduler.idles();
    if wanted && scheduler.slice_end_ns.load(Ordering::Relaxed) == NEVER {
        let end_ns = time::now_ns() + SLICE_NS;
        scheduler.slice_end_ns.store(end_ns, Ordering::Relaxed);
        scheduler.set_timer();
    }
}

/// In an interrupt from another CPU.
pub fn interrupted(cpu: &Cpu) {
    begin_slice(&cpu.scheduler);
}

/// In the timer's interrupt.
pub fn timer_fired(cpu: &Cpu) {
    let scheduler = &cpu.scheduler;
    scheduler.timer_ns.set(NEVER);
    let now_ns = time::now_ns();
    {
        let mut timers = scheduler.timers.lock();
        timers.keep(|thread| {
            let due = thread.armed_ns.load(Ordering::Relaxed) <= now_ns;
            if due {
                thread.armed_ns.store(NEVER, Ordering::Relaxed);
                thread.unpark();
                thread.kick();
            }
            !due
        });
        timers.note_first(scheduler);
    }
    if scheduler.slice_end_ns.load(Ordering::Relaxed) <= now_ns {
        scheduler.slice_end_ns.store(NEVER, Ordering::Relaxed);
        scheduler.reschedule.store(true, Ordering::Release);
    }
    scheduler.set_timer();
}

/// Lets the next thread run, with interrupts off; comes back when the turn is the caller's again. One that sleeps looks once
/// more whether it must.
pub(super) fn schedule(why: Why, ready: impl Fn() -> bool) {
    let cpu = cpu::current();
    let scheduler = &cpu.scheduler;
    let mut queue = scheduler.queue.lock();
    // SAFETY: it runs, so it is there.
    let before = unsafe { &*scheduler.current.get() };
    let goes = !scheduler.idles() && before.wanted.load(Ordering::Relaxed) != cpu.id;
    if why == Why::Sleeps && ready() {
        return;
    }
    if why == Why::Yields && queue.first.is_null() && !goes {
        scheduler.reschedule.store(false, Ordering::Relaxed);
        return;
    }
    let mut leftover = Leftover::Nothing;
    match why {
        Why::Sleeps => before.state.store(ASLEEP, Ordering::Relaxed),
        Why::Ends => leftover = Leftover::Bury(before),
        Why::Yields if scheduler.idles() => {}
        Why::Yields => {
            before.state.store(READY, Ordering::Relaxed);
            if goes {
                leftover = Leftover::Send(before);
            } else {
                before
                    .ready_since_ns
                    .store(time::now_ns(), Ordering::Relaxed);
                queue.push(before);
            }
        }
    }
    let next = queue.pop().unwrap_or(&scheduler.idle);
    let now_ns = time::now_ns();
    if !core::ptr::eq(next, &*scheduler.idle) {
        let since_ns = next.ready_since_ns.load(Ordering::Relaxed);
        next.waited_ns
            .fetch_add(now_ns.saturating_sub(since_ns), Ordering::Relaxed);
    }
    next.state.store(RUNNING, Ordering::Release);
    scheduler.current.set(next);
    scheduler.reschedule.store(false, Ordering::Relaxed);
    let shared = !queue.first.is_null();
    let end_ns = if shared { now_ns + SLICE_NS } else { NEVER };
    scheduler.slice_end_ns.store(end_ns, Ordering::Relaxed);
    scheduler.set_timer();
    scheduler.leftover.set(leftover);
    // Freed by whoever runs next; interrupts stay off, by the caller's guard.
    core::mem::forget(queue);
    if !core::ptr::eq(before, next) {
        // SAFETY: `next` is ready, so its context is whole; this one is saved before anybody can choose it.
        unsafe { switch_stacks(before.context.as_ptr(), next.context.get()) };
    }
    settle();
}

/// On the stack of the thread that was chosen, perhaps on another CPU than it last ran.
pub(super) fn settle() {
    let scheduler = &cpu::current().scheduler;
    let leftover = scheduler.leftover.replace(Leftover::Nothing);
    // SAFETY: taken in `schedule`, on this CPU.
    unsafe { scheduler.queue.unlock() };
    match leftover {
        Leftover::Nothing => {}
        // SAFETY: it is ready and in no queue, so nobody ran it to its end meanwhile.
        Leftover::Send(thread) => enqueue(unsafe { &*thread }),
        // SAFETY: the reference that the thread took to itself when it was first started; it is off its stack now.
        Leftover::Bury(thread) => drop(unsafe { Shared::from_value(thread) }),
    }
}
