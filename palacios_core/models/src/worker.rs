// SPDX-License-Identifier: MIT OR Apache-2.0
//! The model of a worker: a doorbell that rings while it is brought to rest, and goes on.

use crate::atomic::{AtomicU32, Ordering};
use crate::doorbell::Doorbells;
use crate::models;
use crate::models::ALL;
use loom::cell::UnsafeCell;
use loom::sync::Mutex;
use loom::thread;
use std::sync::Arc;

const RESTING: u32 = 0;
const RUNNING: u32 = 1;

/// A worker as `worker.rs` has it, with the doorbells of its device.
struct Worker {
    bells: Doorbells,
    mode: AtomicU32,
    /// Held over each step.
    work: Mutex<()>,
    /// The permission to go on that an unpark is: 1 when given.
    unparked: AtomicU32,
    /// What the guest wrote before it rang.
    queue: UnsafeCell<u32>,
    /// Not part of the model.
    done: std::sync::atomic::AtomicU32,
}

// SAFETY: the queue is written before the bell rings and read behind it, which is what is proved.
unsafe impl Sync for Worker {}
// SAFETY: as above.
unsafe impl Send for Worker {}

impl Worker {
    fn wake(&self) {
        self.unparked.swap(1, Ordering::AcqRel);
    }

    /// As `Bus::ring`, behind a write to the queue.
    fn ring(&self) {
        // SAFETY: the only write, before the bell rings.
        self.queue.with_mut(|queue| unsafe { *queue = 7 });
        if self.bells.ring(1) {
            self.wake();
        }
    }

    /// As `Worker::rest`, and then `Worker::run`.
    fn rest_and_run(&self, wakes: bool) {
        self.mode.store(RESTING, Ordering::SeqCst);
        drop(self.work.lock().unwrap());
        self.mode.store(RUNNING, Ordering::SeqCst);
        if wakes {
            self.wake();
        }
    }

    /// As the worker's thread: it steps as long as it is woken.
    fn serve(&self) {
        while self.unparked.swap(0, Ordering::AcqRel) == 1 {
            let _locked = self.work.lock().unwrap();
            if self.mode.load(Ordering::SeqCst) == RUNNING && self.bells.take() != 0 {
                // SAFETY: the bell rang, so the write is past.
                let found = self.queue.with(|queue| unsafe { *queue });
                self.done
                    .fetch_add(found, std::sync::atomic::Ordering::SeqCst);
            }
        }
    }
}

impl Worker {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            bells: Doorbells::new(),
            mode: AtomicU32::new(RUNNING),
            work: Mutex::new(()),
            unparked: AtomicU32::new(1),
            queue: UnsafeCell::new(0),
            done: Default::default(),
        })
    }
}

/// Who finds that a bell rang finds what was written before.
fn doorbell_against_look() {
    let worker = Worker::new();
    let of_guest = worker.clone();
    let guest = thread::spawn(move || of_guest.ring());
    worker.serve();
    guest.join().unwrap();
}

/// `wakes`: who has it run again wakes it.
fn doorbell_against_rest(wakes: bool) {
    let worker = Worker::new();
    let (of_guest, of_thread) = (worker.clone(), worker.clone());
    let guest = thread::spawn(move || of_guest.ring());
    let thread = thread::spawn(move || of_thread.serve());
    worker.rest_and_run(wakes);
    guest.join().unwrap();
    thread.join().unwrap();
    // It sleeps. If it was woken meanwhile, it looks again.
    worker.serve();
    let done = worker.done.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(done, 7, "a ring was lost");
}

models! {
    doorbell_against_rest: ALL, doorbell_against_rest(true);
        fails: AsWritten, doorbell_against_rest(false), "a ring was lost";
    doorbell_against_look: ALL, doorbell_against_look();
        fails: Relaxed, doorbell_against_look(), "Causality violation";
}
