// SPDX-License-Identifier: MIT OR Apache-2.0
//! Threads: each at home on one CPU, where it runs until it sleeps, or until others there want their turn.
//!
//! There is no tick. A CPU's timer is set for the earliest time that one of its threads armed, and, only while more than one
//! wants to run, for the end of a slice. A thread that is moved goes over when its old CPU has put it down.
//!
//! Locks, in this order: a waiting list, a CPU's timers, a CPU's queue. The queue's is held from the choice of the next thread
//! until that runs, which then frees it.

use super::cpu::{self, Cpu};
use super::memory::{try_box, NoMemory, Stack};
use super::sync::{IrqsOff, Shared, SpinLock, Waiters};
use super::{apic, time};
use alloc::boxed::Box;
use core::arch::global_asm;
use core::cell::Cell;
use core::ptr::{null, null_mut};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};

/// How long a thread runs while others want its CPU.
const SLICE_NS: u64 = 4_000_000;
/// No time.
const NEVER: u64 = u64::MAX;

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

/// A CPU's threads.
pub struct Scheduler {
    queue: SpinLock<Queue>,
    /// The thread that runs, with interrupts off there.
    current: Cell<*const Thread>,
    /// What the CPU does when nobody is ready.
    idle: Box<Thread>,
    /// What is left to do for the thread before, once another runs.
    leftover: Cell<Leftover>,
    /// Another thread is to run.
    reschedule: AtomicBool,
    /// In a window: interrupts change no thread.
    pinned: AtomicBool,
    timers: SpinLock<Timers>,
    /// The earliest time in `timers`.
    first_armed_ns: AtomicU64,
    /// When the running thread's turn ends, if others are ready.
    slice_end_ns: AtomicU64,
    /// What the timer is set for.
    timer_ns: Cell<u64>,
}

/// Threads that are ready.
struct Queue {
    first: *const Thread,
    last: *const Thread,
}

/// Threads that armed a time here, in no order.
struct Timers(*const Thread);

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
enum Why {
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
    fn remove(&mut self, thread: &Thread) -> bool {
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

    fn idles(&self) -> bool {
        core::ptr::eq(self.current.get(), &raw const *self.idle)
    }

    /// Sets the timer, if what it is to be set for changed. On this CPU, with interrupts off.
    fn set_timer(&self) {
        let slice = self.slice_end_ns.load(Ordering::Relaxed);
        let at_ns = slice.min(self.first_armed_ns.load(Ordering::Relaxed));
        if self.timer_ns.replace(at_ns) != at_ns {
            let after_ns = (at_ns != NEVER).then(|| at_ns.saturating_sub(time::now_ns()));
            apic::local(|apic| apic.set_timer(after_ns));
        }
    }
}

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

impl Timers {
    fn keep(&mut self, wanted: impl Fn(&'static Thread) -> bool) {
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

    fn note_first(&self, scheduler: &Scheduler) {
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
fn with_home<R>(thread: &Thread, f: impl FnOnce(&'static Cpu, &mut Queue) -> R) -> R {
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
fn enqueue(thread: &Thread) {
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
fn schedule(why: Why, ready: impl Fn() -> bool) {
    let cpu = cpu::current();
    let scheduler = &cpu.scheduler;
    let mut queue = scheduler.queue.lock();
    // SAFETY: it runs, so it is there.
    let before = unsafe { &*scheduler.current.get() };
    let goes = !scheduler.idles() && before.wanted.load(Ordering::Relaxed) != cpu.id;
    if why == Why::Sleeps && ready() || why == Why::Yields && queue.first.is_null() && !goes {
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
fn settle() {
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
