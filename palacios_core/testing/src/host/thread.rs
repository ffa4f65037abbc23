// SPDX-License-Identifier: MIT OR Apache-2.0
//! Threads: those of the machine beneath, with a CPU of the test host's each.

use super::{here, Broken, Inner, TestHost};
use crate::heap;
use palacios_core::host::{CpuId, NoMemory, NoSuchCpu, Thread};
use std::any::Any;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A thread of the test host.
pub struct TestThread(Arc<ThreadState>);

/// What the thread itself and its handle share.
pub struct ThreadState {
    host: Arc<Inner>,
    name: String,
    /// The CPU it is to run on.
    cpu: AtomicU32,
    pinned: AtomicBool,
    /// The CPU of the window it is in, plus one; 0 outside.
    window: AtomicU32,
    wake: Mutex<bool>,
    woken: Condvar,
    /// It gets no CPU when its sleep ends.
    held: AtomicBool,
    sleeps: AtomicBool,
    run: Mutex<Run>,
    ended: Condvar,
    /// It waits for a turn on its CPU.
    waits: AtomicBool,
    /// Nanoseconds spent so.
    waited_ns: AtomicU64,
    /// How often it was kicked.
    kicks: AtomicU64,
    /// How often it slept in `park`.
    parks: AtomicU64,
}

#[derive(Default)]
struct Run {
    starts: u32,
    running: bool,
    handle: Option<std::thread::JoinHandle<()>>,
    panic: Option<Box<dyn Any + Send>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TestThread {
    pub(super) fn new(host: Arc<Inner>, name: String, pin: Option<CpuId>) -> Self {
        host.objects.threads.fetch_add(1, SeqCst);
        let cpu = pin.unwrap_or_else(|| host.any_cpu());
        Self(Arc::new(ThreadState {
            host,
            name,
            cpu: AtomicU32::new(cpu.0),
            pinned: AtomicBool::new(pin.is_some()),
            window: AtomicU32::new(0),
            wake: Mutex::new(false),
            woken: Condvar::new(),
            held: AtomicBool::new(false),
            sleeps: AtomicBool::new(false),
            run: Mutex::default(),
            ended: Condvar::new(),
            waits: AtomicBool::new(false),
            waited_ns: AtomicU64::new(0),
            kicks: AtomicU64::new(0),
            parks: AtomicU64::new(0),
        }))
    }
    /// How often it was kicked.
    pub fn kicks(&self) -> u64 {
        self.0.kicks.load(SeqCst)
    }
    /// Until `hold(false)` it does not come out of [`Thread::park`]: others always have its CPU.
    pub fn hold(&self, held: bool) {
        let wake = lock(&self.0.wake);
        self.0.held.store(held, SeqCst);
        drop(wake);
        self.0.woken.notify_all();
    }
    /// Has the calling thread be this one while `f` runs: on a host without threads, one plays all.
    pub fn played<R>(&self, f: impl FnOnce() -> R) -> R {
        let before = heap::exempt(|| here::set_thread(Some(self.0.clone())));
        let result = f();
        heap::exempt(|| here::set_thread(before));
        result
    }
    /// Whether it was unparked since it was last asked.
    pub fn take_unpark(&self) -> bool {
        std::mem::take(&mut *lock(&self.0.wake))
    }
    /// How often it slept in [`Thread::park`], rather than finding that it was unparked already.
    pub fn parks(&self) -> u64 {
        self.0.parks.load(SeqCst)
    }
}

/// The calling thread does not go on any more.
pub(super) fn sleep_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

impl Drop for TestThread {
    fn drop(&mut self) {
        if self.0.host.breaks(Broken::DropSleeps) && self.0.is_current() {
            sleep_for_ever();
        }
    }
}

impl Drop for ThreadState {
    fn drop(&mut self) {
        self.host.objects.threads.fetch_sub(1, SeqCst);
    }
}

impl ThreadState {
    /// The CPU it is to run on.
    pub fn cpu(&self) -> CpuId {
        CpuId(self.cpu.load(SeqCst))
    }
    /// Whether it is pinned there.
    pub fn pinned(&self) -> bool {
        self.pinned.load(SeqCst)
    }
    /// Sends a thread that is not pinned elsewhere, as a scheduler does.
    pub fn migrate(&self, cpu: CpuId) {
        self.cpu.store(cpu.0, SeqCst);
    }
    /// It waits for a CPU, as long as `wait` takes.
    pub fn waiting<R>(&self, wait: impl FnOnce() -> R) -> R {
        let begin_ns = self.host.clock.now_ns();
        self.waits.store(true, SeqCst);
        let result = wait();
        self.waits.store(false, SeqCst);
        self.add_wait(self.host.clock.now_ns() - begin_ns);
        result
    }
    fn add_wait(&self, ns: u64) {
        if !self.host.breaks(Broken::WaitNotCounted) {
            self.waited_ns.fetch_add(ns, SeqCst);
        }
    }
    /// Says that it is in a window on `cpu`, unless it was moved meanwhile.
    pub fn open_window(&self, cpu: CpuId) -> bool {
        self.window.store(cpu.0 + 1, SeqCst);
        let stays = self.cpu() == cpu;
        if !stays {
            self.close_window();
        }
        stays
    }
    pub fn close_window(&self) {
        self.window.store(0, SeqCst);
    }
    /// The time that it armed is there: ends its sleep and its stay in guest mode.
    pub fn time_has_come(&self) {
        self.unpark();
        if !self.host.breaks(Broken::TimerDoesNotKick) {
            self.kick();
        }
    }
    fn unpark(&self) {
        let mut wake = lock(&self.wake);
        let lost = self.host.often_breaks(Broken::UnparkOftenLost)
            || self.host.breaks(Broken::UnparkLostBeforePark) && !self.sleeps.load(SeqCst);
        if !lost {
            *wake = true;
        }
        drop(wake);
        self.woken.notify_all();
    }
    fn kick(&self) {
        self.kicks.fetch_add(1, SeqCst);
        if self.host.often_breaks(Broken::KickOftenLost) {
            return;
        }
        if let Some(cpu) = self.window.load(SeqCst).checked_sub(1) {
            self.host.cpus[cpu as usize].interrupt();
        }
    }
    /// It sleeps, is in a window, or has ended.
    pub fn is_settled(&self) -> bool {
        let woken = *lock(&self.wake);
        let sleeps = self.sleeps.load(SeqCst) && !woken;
        sleeps || self.window.load(SeqCst) != 0 || !lock(&self.run).running
    }
    pub fn is_current(self: &Arc<Self>) -> bool {
        here::thread().is_some_and(|thread| Arc::ptr_eq(&thread, self))
    }

    /// The life of the thread beneath.
    fn live(self: Arc<Self>, body: impl FnOnce()) {
        let _ = here::set_thread(Some(self.clone()));
        here::set_host(Some(TestHost(self.host.clone())));
        let result = catch_unwind(AssertUnwindSafe(body));
        heap::exempt(|| {
            let _ = here::set_thread(None);
            here::set_host(None);
        });
        self.host.disarm(&self);
        let mut run = lock(&self.run);
        run.panic = result.err();
        run.running = false;
        drop(run);
        self.ended.notify_all();
    }
}

impl Thread for TestThread {
    fn start(&self, body: impl FnOnce() + Send + 'static) -> Result<(), NoMemory> {
        here::may_sleep("start");
        if !heap::allocate() {
            return Err(NoMemory);
        }
        heap::exempt(|| {
            let mut run = lock(&self.0.run);
            assert!(
                run.handle.is_none(),
                "{} is started again before it was joined",
                self.0.name
            );
            run.starts += 1;
            run.running = true;
            let ignored = self.0.host.breaks(Broken::NeverStarts)
                || self.0.host.breaks(Broken::StartsOnce) && run.starts > 1;
            if ignored {
                run.running = run.starts == 1;
                return Ok(());
            }
            let state = self.0.clone();
            let spawned = std::thread::Builder::new()
                .name(self.0.name.clone())
                .spawn(move || state.live(body));
            run.handle = Some(spawned.expect("a thread of the machine beneath"));
            Ok(())
        })
    }

    fn park(&self) {
        here::may_sleep("park");
        assert!(self.0.is_current(), "{} is parked by another", self.0.name);
        here::holds_nothing("park");
        let mut wake = lock(&self.0.wake);
        if !*wake {
            self.0.parks.fetch_add(1, SeqCst);
        }
        self.0.sleeps.store(true, SeqCst);
        let begin_ns = self.0.host.clock.now_ns();
        let sleeps = |wake: bool| self.0.held.load(SeqCst) || !wake;
        while sleeps(*wake) && !self.0.host.breaks(Broken::ParkReturns) {
            wake = self
                .0
                .woken
                .wait(wake)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *wake = false;
        self.0.sleeps.store(false, SeqCst);
        if self.0.host.breaks(Broken::SleepIsWaiting) {
            self.0.add_wait(self.0.host.clock.now_ns() - begin_ns);
        }
    }

    fn unpark(&self) {
        self.0.unpark();
    }

    fn kick(&self) {
        self.0.kick();
    }

    fn arm(&self, at_ns: Option<u64>) {
        if at_ns.is_none() {
            here::may_sleep("arm");
        }
        assert!(self.0.is_current(), "{} is armed by another", self.0.name);
        self.0.host.arm(&self.0, at_ns);
    }

    fn waited_ns(&self) -> Option<u64> {
        Some(self.0.waited_ns.load(SeqCst))
    }

    /// Turns on a CPU are taken in order: whoever waits gets one as soon as the caller, who has none now, stays out of its way.
    fn yield_to(&self) -> bool {
        here::may_sleep("yield_to");
        here::holds_nothing("yield_to");
        let waits = self.0.waits.load(SeqCst) || self.0.host.breaks(Broken::YieldsToNobody);
        if waits {
            std::thread::yield_now();
        }
        waits
    }

    fn move_to(&self, cpu: Option<CpuId>) -> Result<(), NoSuchCpu> {
        here::may_sleep("move_to");
        let Some(cpu) = cpu else {
            self.0.pinned.store(false, SeqCst);
            return Ok(());
        };
        if cpu.0 as usize >= self.0.host.cpus.len() {
            return match self.0.host.breaks(Broken::MoveToNowhere) {
                true => Ok(()),
                false => Err(NoSuchCpu(cpu)),
            };
        }
        if self.0.host.breaks(Broken::MoveIgnored) {
            return Ok(());
        }
        self.0.pinned.store(true, SeqCst);
        self.0.cpu.store(cpu.0, SeqCst);
        // Out of a window elsewhere, as the move of a running thread takes.
        let elsewhere = |window: u32| window != 0 && window != cpu.0 + 1;
        while elsewhere(self.0.window.load(SeqCst)) {
            self.0.kick();
            std::thread::yield_now();
        }
        Ok(())
    }

    fn pin(&self) -> Option<CpuId> {
        here::may_sleep("pin");
        let pinned = self.0.pinned() && !self.0.host.breaks(Broken::PinForgotten);
        pinned.then(|| self.0.cpu())
    }

    fn join(&self) {
        here::may_sleep("join");
        assert!(!self.0.is_current(), "{} joins itself", self.0.name);
        let mut run = lock(&self.0.run);
        if self.0.host.breaks(Broken::JoinTooEarly) {
            run.handle = None;
            return;
        }
        if self.0.host.breaks(Broken::JoinNeverReturns) && run.starts > 0
            || self.0.host.breaks(Broken::JoinWaitsForStart) && run.starts == 0
        {
            drop(run);
            sleep_for_ever();
        }
        while run.running {
            run = self
                .0
                .ended
                .wait(run)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let (handle, panic) = (run.handle.take(), run.panic.take());
        drop(run);
        if let Some(handle) = handle {
            let _ = handle.join();
        }
        match panic {
            Some(panic) if !std::thread::panicking() => resume_unwind(panic),
            _ => {}
        }
    }
}
