// SPDX-License-Identifier: MIT OR Apache-2.0
//! Work off the vCPUs' threads. A worker has a thread of its own, made in the VM's name, and does its work in short steps.
//!
//! ```text
//!   new ──▶ at rest ◀──── rest ─────┐
//!              │                    │
//!              └────── run ────▶ running ──▶ step, step, … and sleep until it is woken
//!   end, from both: no step any more, and the thread has ended
//! ```
//!
//! This file alone knows that steps are made by a thread: a host without threads would make them in its loop of events.
#![forbid(unsafe_code)]

use crate::alloc_ext::{try_box, NoMemory};
use crate::devices::Step;
use crate::host::{Host, Lock, LockClass, Thread};
use crate::interfaces::{Wake, Wakers};
use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

/// How long a worker may take to come to rest.
pub const REST_NS: u64 = 5_000_000_000;

/// How many steps that get on it may make, even if they take longer.
const REST_STEPS: u32 = 4096;

/// Work that is done in short steps.
pub trait Work<H: Host>: Send {
    /// `worker` does it from now on, and can be woken. Called once, before the first step. *Thread.*
    fn begin(&mut self, _worker: &Worker<H>) -> Result<(), NoMemory> {
        Ok(())
    }
    /// A short piece of it. *Thread.*
    fn step(&mut self) -> Step;
    /// A step in which it is brought to rest: what is under way goes on, and nothing else begins. *Thread.*
    fn finish(&mut self) -> Step {
        self.step()
    }
    /// Nothing of it is under way between steps, so it can stand still.
    fn is_at_rest(&mut self) -> bool;
}

/// It did not come to rest in time: see [`REST_NS`]. Its steps have ended all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeverRests;

const RESTING: u8 = 0;
const RUNNING: u8 = 1;
const ENDED: u8 = 2;

/// A worker. A clone is the same one.
pub struct Worker<H: Host>(H::Shared<Inner<H>>);

struct Inner<H: Host> {
    host: H,
    thread: H::Thread,
    mode: AtomicU8,
    /// Locked over each step. `None` before it was given and when it has ended.
    work: H::Mutex<Option<Box<dyn Work<H>>>>,
}

impl<H: Host> Wake for Worker<H> {
    fn wake(&self) {
        Worker::wake(self);
    }
}

impl<H: Host> Wakers for Worker<H> {
    fn waker(&self) -> Result<Box<dyn Wake>, NoMemory> {
        Ok(try_box(self.clone())?)
    }
}

impl<H: Host> Clone for Worker<H> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<H: Host> Worker<H> {
    /// Makes a worker, at rest, with a thread of that name. Whoever makes it ends it. *Thread.*
    pub fn new(host: &H, name: fmt::Arguments<'_>) -> Result<Self, NoMemory> {
        let inner = host.share(Inner {
            host: host.clone(),
            thread: host.thread(name, None)?,
            mode: AtomicU8::new(RESTING),
            work: host.mutex(LockClass::Worker, None)?,
        })?;
        let of_thread = inner.clone();
        inner.thread.start(move || of_thread.serve())?;
        Ok(Self(inner))
    }

    /// Gives it its work. *Thread.*
    pub fn give(&self, mut work: Box<dyn Work<H>>) -> Result<(), NoMemory> {
        work.begin(self)?;
        *self.0.work.lock() = Some(work);
        Ok(())
    }

    /// Has it look for work, if it runs. *Any.*
    pub fn wake(&self) {
        self.0.thread.unpark();
    }

    /// It does its work from now on. *Any.*
    pub fn run(&self) {
        self.0.change(RESTING, RUNNING);
        self.0.thread.unpark();
    }

    /// It begins no further step. One may still be under way: [`Worker::rest`] waits for that. *Any.*
    pub fn halt(&self) {
        self.0.change(RUNNING, RESTING);
    }

    /// Brings it to rest: nothing of its work is under way any more, and no step is made until [`Worker::run`]. *Thread.*
    ///
    /// # Errors
    /// If that takes too long.
    pub fn rest(&self) -> Result<(), NeverRests> {
        self.halt();
        let host = &self.0.host;
        let (begin_ns, mut steps) = (host.now_ns(), 0u32);
        while let Some(step) = self.0.step_if_busy() {
            steps = steps.saturating_add(1);
            let is_late = host.now_ns().saturating_sub(begin_ns) > REST_NS;
            // A host that is slow is no fault of the work's, as long as that gets on.
            if is_late && (step == Step::Idle || steps > REST_STEPS) {
                return Err(NeverRests);
            }
            // It waits for somebody else. While it gets on, nobody is waited for: how long it takes is not to depend on what else
            // the host does.
            if step == Step::Idle {
                host.yield_now();
            }
        }
        Ok(())
    }

    /// Ends it: no step is made any more, its work is dropped and its thread has ended. *Thread*, but not its own.
    pub fn end(&self) {
        self.0.mode.store(ENDED, Ordering::SeqCst);
        self.0.thread.unpark();
        self.0.thread.join();
        let work = self.0.work.lock().take();
        drop(work);
    }
}

impl<H: Host> Inner<H> {
    fn mode(&self) -> u8 {
        self.mode.load(Ordering::SeqCst)
    }

    fn change(&self, from: u8, to: u8) {
        // If it is in another mode, it has ended, or is there already.
        let _ = self
            .mode
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// The thread's life.
    fn serve(&self) {
        loop {
            match self.mode() {
                ENDED => return,
                RUNNING if self.step() == Step::Again => self.host.yield_now(),
                _ => self.thread.park(),
            }
        }
    }

    fn step(&self) -> Step {
        let mut work = self.work.lock();
        match work.as_mut() {
            // Whoever brings it to rest changes the mode first, and then takes the lock.
            Some(work) if self.mode() == RUNNING => work.step(),
            _ => Step::Idle,
        }
    }

    /// Makes a step in its place, unless it is at rest.
    fn step_if_busy(&self) -> Option<Step> {
        let mut work = self.work.lock();
        let work = work.as_mut()?;
        (!work.is_at_rest()).then(|| work.finish())
    }
}
