// SPDX-License-Identifier: MIT OR Apache-2.0
//! Threads that work on one check together, and end with it.

use super::check::{broken, eventually, healthy, Failure, Outcome};
use super::method::Method::{NewThread, Share, Start, Unpark};
use crate::alloc_ext::{try_vec, TryPush};
use crate::host::{CpuId, Host, NoMemory, Thread};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};

/// What the threads of a check share.
pub struct Crew<H: Host, S> {
    pub host: H,
    pub threads: Vec<H::Thread>,
    pub state: S,
    stop: AtomicBool,
    ready: AtomicUsize,
    ended: AtomicUsize,
}

impl<H: Host, S> Crew<H, S> {
    /// The check is over, well or not: the threads should end.
    pub fn stopped(&self) -> bool {
        self.stop.load(SeqCst)
    }
    pub fn is_last(&self, me: usize) -> bool {
        me + 1 == self.threads.len()
    }
    /// On each thread once: waits for the others, so that they work at the same time.
    pub fn meet(&self) {
        self.ready.fetch_add(1, SeqCst);
        while self.ready.load(SeqCst) < self.threads.len() && !self.stopped() {
            self.host.yield_now();
        }
    }
    /// On thread `me`: sleeps until `done` or the check is over. Whoever makes it true unparks.
    pub fn park_until(&self, me: usize, done: impl Fn() -> bool) {
        while !done() && !self.stopped() {
            if let Some(thread) = self.threads.get(me) {
                thread.park();
            }
        }
    }
    pub fn unpark(&self, whom: usize) {
        if let Some(thread) = self.threads.get(whom) {
            thread.unpark();
        }
    }
    /// Waits until all threads have come to the end of their work; `false` if they do not.
    pub fn finished(&self) -> bool {
        eventually(&self.host, || self.have_ended())
    }
    fn have_ended(&self) -> bool {
        self.ended.load(SeqCst) == self.threads.len()
    }
}

/// Starts `body(crew, its index)` on a thread for each of `cpus`, pinned where one is named, and has `watch` look on. Then the
/// threads are told to stop.
pub fn with_crew<H: Host, S: Send + Sync + 'static>(
    host: &H,
    cpus: &[Option<CpuId>],
    state: S,
    body: impl Fn(&Crew<H, S>, usize) + Copy + Send + Sync + 'static,
    watch: impl FnOnce(&Crew<H, S>) -> Outcome,
) -> Outcome {
    let team = Team::new(host, cpus, state)?;
    let outcome = team.start(body).and_then(|()| watch(&team.0));
    match (outcome, team.end()) {
        (outcome, true) => outcome,
        (Err(failure), false) => Err(Failure {
            threads_left: true,
            ..failure
        }),
        (Ok(()), false) => Err(Failure {
            threads_left: true,
            ..broken(Unpark, "a thread that is unparked and kicked goes on")
        }),
    }
}

/// A crew whose threads are ended when this is dropped.
struct Team<H: Host, S: Send + Sync + 'static>(H::Shared<Crew<H, S>>);

impl<H: Host, S: Send + Sync + 'static> Team<H, S> {
    fn new(host: &H, cpus: &[Option<CpuId>], state: S) -> Result<Self, Failure> {
        let mut threads = Vec::new();
        for (i, cpu) in cpus.iter().enumerate() {
            let thread = host.thread(format_args!("check/{i}"), *cpu);
            threads.try_push(healthy(NewThread, thread)?)?;
        }
        let crew = Crew {
            host: host.clone(),
            threads,
            state,
            stop: AtomicBool::new(false),
            ready: AtomicUsize::new(0),
            ended: AtomicUsize::new(cpus.len()),
        };
        Ok(Self(healthy(Share, host.share(crew))?))
    }

    fn start(&self, body: impl Fn(&Crew<H, S>, usize) + Copy + Send + Sync + 'static) -> Outcome {
        for (i, thread) in self.0.threads.iter().enumerate() {
            let crew = self.0.clone();
            self.0.ended.fetch_sub(1, SeqCst);
            let started = thread.start(move || {
                let _end = End(&crew.ended);
                body(&crew, i);
            });
            if started.is_err() {
                self.0.ended.fetch_add(1, SeqCst);
            }
            healthy(Start, started)?;
        }
        Ok(())
    }

    /// Tells the threads to stop, and waits until they have; `false` if they do not. Over and over, as the host may be one that
    /// loses some calls.
    fn stop(&self) -> bool {
        self.0.stop.store(true, SeqCst);
        eventually(&self.0.host, || {
            for thread in &self.0.threads {
                thread.unpark();
                thread.kick();
            }
            self.0.have_ended()
        })
    }

    /// Ends the threads; `false` if they do not end. Then they keep all that they refer to, for ever.
    fn end(self) -> bool {
        let ended = self.stop();
        match ended {
            true => drop(self),
            false => core::mem::forget(self),
        }
        ended
    }
}

/// Counts a body's end, also where it panics.
struct End<'a>(&'a AtomicUsize);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

impl<H: Host, S: Send + Sync + 'static> Drop for Team<H, S> {
    fn drop(&mut self) {
        match self.stop() {
            true => self.0.threads.iter().for_each(Thread::join),
            false => core::mem::forget(self.0.clone()),
        }
    }
}

/// How often each CPU was called, in the order of their ids.
pub fn calls<H: Host>(host: &H, f: impl Fn(CpuId) + Sync) -> Result<Vec<u32>, NoMemory> {
    let mut counts = Vec::new();
    for _ in 0..host.cpu_limit() {
        counts.try_push(AtomicU32::new(0))?;
    }
    let stray = AtomicU32::new(0);
    host.on_each_cpu(&|cpu| {
        let count = counts.get(cpu.0 as usize).unwrap_or(&stray);
        count.fetch_add(1, SeqCst);
        f(cpu);
    });
    let mut seen = try_vec(0, counts.len())?;
    for (seen, count) in seen.iter_mut().zip(&counts) {
        *seen = count.load(SeqCst);
    }
    match stray.load(SeqCst) {
        0 => {}
        n => seen.try_push(n)?,
    }
    Ok(seen)
}

/// The CPUs that are online.
pub fn online<H: Host>(host: &H) -> Result<Vec<CpuId>, NoMemory> {
    let mut cpus = Vec::new();
    for (cpu, calls) in (0..).zip(calls(host, |_| {})?) {
        if calls > 0 {
            cpus.try_push(CpuId(cpu))?;
        }
    }
    Ok(cpus)
}

/// `each` threads for each CPU that is online.
pub fn pins<H: Host>(host: &H, each: usize) -> Result<Vec<Option<CpuId>>, NoMemory> {
    let mut pins = Vec::new();
    for cpu in online(host)? {
        for _ in 0..each {
            pins.try_push(Some(cpu))?;
        }
    }
    Ok(pins)
}
