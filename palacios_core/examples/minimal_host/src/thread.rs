// SPDX-License-Identifier: MIT OR Apache-2.0
//! Threads, one for each virtual CPU.

use crate::cpu::Turn;
use crate::MinimalHost;
use palacios_core::host::{CpuId, Host, NoMemory, NoSuchCpu, Thread};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

// ANCHOR: thread
/// A thread. It exists before it runs and after it ended.
pub struct MinimalThread(Arc<State>);

/// What the thread itself and its handle share.
pub struct State {
    host: MinimalHost,
    name: String,
    /// The CPU that it runs on.
    home: AtomicU32,
    pinned: AtomicBool,
    wake: Mutex<Wake>,
    changed: Condvar,
    running: Mutex<Option<JoinHandle<()>>>,
}

/// What ends a sleep.
#[derive(Default)]
struct Wake {
    unparked: bool,
    armed_ns: Option<u64>,
}

thread_local! {
    static CURRENT_THREAD: RefCell<Option<Arc<State>>> = const { RefCell::new(None) };
}

/// The calling thread, if it is one of the host's.
pub fn current_thread() -> Option<Arc<State>> {
    CURRENT_THREAD.with_borrow(Clone::clone)
}
// ANCHOR_END: thread

impl MinimalThread {
    /// A thread that is not started yet.
    pub fn new(host: &MinimalHost, name: String, pin: Option<CpuId>) -> Self {
        Self(Arc::new(State {
            host: host.clone(),
            name,
            home: AtomicU32::new(pin.map_or(0, |cpu| cpu.0)),
            pinned: AtomicBool::new(pin.is_some()),
            wake: Mutex::default(),
            changed: Condvar::new(),
            running: Mutex::new(None),
        }))
    }
}

// ANCHOR: ring
impl State {
    pub fn home(&self) -> CpuId {
        CpuId(self.home.load(SeqCst))
    }

    /// If the armed time has come: unparks and kicks, once. A kernel does that in the interrupt of its timer; here it is
    /// whoever sleeps or is in guest mode that looks at the clock.
    pub fn ring(&self) {
        let mut wake = self.wake();
        if wake.armed_ns.is_some_and(|at| at <= self.host.now_ns()) {
            wake.armed_ns = None;
            wake.unparked = true;
            self.kick();
        }
    }

    fn kick(&self) {
        if let Some(cpu) = self.host.cpu(self.home()) {
            cpu.interrupt();
        }
    }

    fn wake(&self) -> MutexGuard<'_, Wake> {
        self.wake.lock().expect("no holder has panicked")
    }
}
// ANCHOR_END: ring

impl Thread for MinimalThread {
    // ANCHOR: start_and_join
    fn start(&self, body: impl FnOnce() + Send + 'static) -> Result<(), NoMemory> {
        let state = self.0.clone();
        let builder = std::thread::Builder::new().name(state.name.clone());
        let thread = builder.spawn(move || {
            CURRENT_THREAD.set(Some(state));
            body();
        });
        *self.0.running.lock().expect("no joiner has panicked") =
            Some(thread.map_err(|_| NoMemory)?);
        Ok(())
    }
    fn join(&self) {
        // Whoever comes second waits for the lock until the first has joined it.
        let mut running = self.0.running.lock().expect("no joiner has panicked");
        if let Some(thread) = running.take() {
            thread.join().expect("its body has not panicked");
        }
    }
    // ANCHOR_END: start_and_join

    // ANCHOR: park
    fn park(&self) {
        loop {
            self.0.ring();
            let mut wake = self.0.wake();
            if std::mem::take(&mut wake.unparked) {
                return;
            }
            let sleep_ns = wake
                .armed_ns
                .map_or(u64::MAX, |at| at.saturating_sub(self.0.host.now_ns()));
            let _ = self
                .0
                .changed
                .wait_timeout(wake, Duration::from_nanos(sleep_ns));
        }
    }
    fn unpark(&self) {
        self.0.wake().unparked = true;
        self.0.changed.notify_one();
    }
    fn kick(&self) {
        self.0.kick();
    }
    fn arm(&self, at_ns: Option<u64>) {
        self.0.wake().armed_ns = at_ns;
    }
    // ANCHOR_END: park

    // ANCHOR: move_to
    fn move_to(&self, cpu: Option<CpuId>) -> Result<(), NoSuchCpu> {
        let host = &self.0.host;
        if let Some(id) = cpu {
            host.cpu(id).ok_or(NoSuchCpu(id))?;
            let from = CpuId(self.0.home.swap(id.0, SeqCst));
            // A window in which it was there has closed when we get the CPU.
            let old = host.cpu(from).expect("it was on a CPU that is there");
            old.interrupt();
            drop(Turn::take(old, from));
        }
        self.0.pinned.store(cpu.is_some(), SeqCst);
        Ok(())
    }
    fn pin(&self) -> Option<CpuId> {
        self.0.pinned.load(SeqCst).then(|| self.0.home())
    }
    // ANCHOR_END: move_to
}
