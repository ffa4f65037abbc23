// SPDX-License-Identifier: MIT OR Apache-2.0
//! What others see of a vCPU: its pending word, its thread, its counters, and whether it is in the guest. `interrupts/pending.rs` says
//! what to post, call, kick and unpark mean.
#![forbid(unsafe_code)]

use super::presence::{Call, Presence};
use super::times::{Reading, TimeClass, Times};
use crate::host::{Host, Thread};
use crate::interrupts::destination::DestinationFilter;
use crate::interrupts::pending::{Events, Pending};
use crate::stats::{Counter, Snapshot, Stats};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The part of a vCPU that everybody may touch.
pub struct VcpuShared<H: Host> {
    index: u32,
    thread: H::Thread,
    presence: Presence,
    /// How many wait for the vCPU, or have it.
    askers: AtomicU32,
    filter: AtomicU64,
    pub(crate) pending: Pending,
    pub(crate) stats: Stats,
    times: Times,
}

impl<H: Host> VcpuShared<H> {
    pub(crate) fn new(index: u32, thread: H::Thread) -> Self {
        Self {
            index,
            thread,
            presence: Presence::new(),
            askers: AtomicU32::new(0),
            filter: AtomicU64::new(DestinationFilter::default().to_bits()),
            pending: Pending::new(),
            stats: Stats::new(),
            times: Times::new(),
        }
    }
    pub(crate) fn index(&self) -> u32 {
        self.index
    }
    pub(crate) fn thread(&self) -> &H::Thread {
        &self.thread
    }
    /// Which destinations its local APIC answers to.
    pub(crate) fn filter(&self) -> DestinationFilter {
        DestinationFilter::from_bits(self.filter.load(Ordering::Acquire))
    }
    pub(crate) fn set_filter(&self, filter: DestinationFilter) {
        self.filter.store(filter.to_bits(), Ordering::Release);
    }

    /// Posts events, and calls the vCPU if they are news. Any context.
    pub(crate) fn post(&self, events: Events) {
        if self.pending.post(events) {
            self.call();
        }
    }

    /// Has the vCPU look at its pending word, which the caller has just written: kicks it, unparks it or does nothing, as it takes.
    /// Any context.
    pub(crate) fn call(&self) {
        match self.presence.call() {
            Call::Kick => {
                self.stats.add_shared(Counter::Kicks);
                self.thread.kick();
            }
            Call::Unpark => self.thread.unpark(),
            Call::Nothing => {}
        }
    }

    /// The vCPU is about to enter; what is posted from now on comes with a kick. Returns the memory generation.
    pub(crate) fn entering_guest(&self, generation: impl FnOnce() -> u64) -> u64 {
        self.presence.enter(generation)
    }
    /// The vCPU is out again.
    pub(crate) fn left_guest(&self) {
        self.presence.leave();
    }

    /// The vCPU rests from now on, unless `awake` holds: whoever leaves work for it unparks its thread. `false`: it does not.
    pub(crate) fn rest_unless(&self, host: &H, awake: impl FnOnce() -> bool) -> bool {
        self.presence.park();
        let rests = !awake();
        match rests {
            true => self.turn_to(host, TimeClass::Idle, 0),
            false => self.presence.leave(),
        }
        rests
    }
    /// It rests no more.
    pub(crate) fn rise(&self, host: &H) {
        self.presence.leave();
        self.turn_to(host, TimeClass::Handling, 0);
    }

    /// Somebody wants the vCPU, and waits until it rests. While there is anybody, it does.
    pub(crate) fn ask(&self) {
        self.askers.fetch_add(1, Ordering::SeqCst);
        self.post(Events::STATE);
    }
    /// Who asked has had it.
    pub(crate) fn answered(&self) {
        self.askers.fetch_sub(1, Ordering::SeqCst);
        self.post(Events::STATE);
    }
    /// Whether anybody asks for it.
    pub(crate) fn is_asked_for(&self) -> bool {
        self.askers.load(Ordering::SeqCst) != 0
    }

    /// The vCPU's own thread turns to something else; of a window, `guest_ns` were the guest's.
    pub(crate) fn turn_to(&self, host: &H, next: TimeClass, guest_ns: u64) {
        let reading = self.reading(host);
        self.times.turn_to(next, reading, guest_ns, &self.stats);
    }
    /// How long its thread has waited for a CPU; 0 on a host that does not count it.
    pub(crate) fn waited_ns(&self) -> u64 {
        self.thread.waited_ns().unwrap_or(0)
    }
    fn reading(&self, host: &H) -> Reading {
        Reading {
            now_ns: host.now_ns(),
            waited_ns: self.waited_ns(),
        }
    }
    /// Its counters now. *Thread.*
    pub(crate) fn counters(&self, host: &H) -> Snapshot {
        loop {
            match self.times.snapshot(&self.stats, || self.reading(host)) {
                Some(all) => return all,
                None => host.yield_now(),
            }
        }
    }

    /// Returns once the vCPU is out of the guest, or in it since it saw `generation`.
    pub(crate) fn leave_guest(&self, host: &H, generation: u64) {
        if self.presence.is_stale(generation) {
            self.call();
        }
        while self.presence.is_stale(generation) {
            host.yield_now();
        }
    }
}
