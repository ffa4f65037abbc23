// SPDX-License-Identifier: MIT OR Apache-2.0
//! A vCPU as the models have it: the core's pending word and presence, and a host's thread around them.

use crate::atomic::{AtomicU32, Ordering};
use crate::pending::{Events, Pending};
use crate::presence::{Call, Presence};
use loom::sync::Notify;

/// What a vCPU has taken so far.
#[derive(Default)]
pub struct Taken {
    pub vectors: Vec<(u8, bool)>,
    pub events: u32,
}

pub struct Vcpu {
    pub pending: Pending,
    pub presence: Presence,
    /// The interrupt that a kick is, and the permission to go on that an unpark is: 1 when given. They may come long after
    /// they were called for.
    interrupt: AtomicU32,
    interrupted: Notify,
    unparked: AtomicU32,
    /// How often others kicked and unparked. Not part of the model.
    pub kicks: std::sync::atomic::AtomicU32,
    pub unparks: std::sync::atomic::AtomicU32,
}

impl Vcpu {
    pub fn new() -> Self {
        Self {
            pending: Pending::new(),
            presence: Presence::new(),
            interrupt: AtomicU32::new(0),
            interrupted: Notify::new(),
            unparked: AtomicU32::new(0),
            kicks: Default::default(),
            unparks: Default::default(),
        }
    }

    // As others do it.

    pub fn call(&self) {
        match self.presence.call() {
            Call::Kick => {
                self.kicks.fetch_add(1, Ordering::SeqCst);
                self.raise_interrupt();
            }
            Call::Unpark => {
                self.unparks.fetch_add(1, Ordering::SeqCst);
                self.unpark();
            }
            Call::Nothing => {}
        }
    }
    pub fn raise_interrupt(&self) {
        self.interrupt.swap(1, Ordering::AcqRel);
        self.interrupted.notify();
    }
    pub fn unpark(&self) {
        self.unparked.swap(1, Ordering::AcqRel);
    }
    pub fn post_vector(&self, vector: u8, level: bool) {
        if self.pending.post_vector(vector, level) {
            self.call();
        }
    }
    pub fn post(&self, events: Events) {
        if self.pending.post(events) {
            self.call();
        }
    }

    // As its own thread does it.

    pub fn has_work(&self) -> bool {
        self.pending.has_events() || self.pending.has_vectors()
    }

    /// Takes what waits.
    pub fn take(&self, taken: &mut Taken) {
        taken.events |= self.pending.take_events().bits();
        self.take_vectors(taken);
    }

    fn take_vectors(&self, taken: &mut Taken) {
        let mut accept = |vector, level| taken.vectors.push((vector, level));
        self.pending.drain(&mut accept);
    }

    /// The window opens: what came before was taken with interrupts on, and kicks nobody any more.
    pub fn open_window(&self) {
        self.interrupt.swap(0, Ordering::AcqRel);
    }
    /// Runs in the guest until an interrupt comes. Loom fails the model in which none does.
    pub fn stay(&self) {
        while !self.is_interrupted() {
            self.interrupted.wait();
        }
    }
    pub fn is_interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Acquire) == 1
    }
    /// Whether it may go on; not any more, then.
    pub fn take_unpark(&self) -> bool {
        self.unparked.swap(0, Ordering::AcqRel) == 1
    }

    /// The last steps before an entry. `true`: it is in the guest, with nothing that it knows of to do there.
    pub fn enter(&self, taken: &mut Taken) -> bool {
        self.open_window();
        self.presence.enter(|| 0);
        let before = taken.vectors.len();
        let stays = !self.pending.has_events();
        if stays {
            self.take_vectors(taken);
        }
        stays && taken.vectors.len() == before
    }
}
