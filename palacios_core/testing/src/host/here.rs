// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the test host knows of the thread that calls it: whether it may sleep, where it is, which locks it holds.

use super::thread::ThreadState;
use super::TestHost;
use crate::heap;
use palacios_core::host::{CpuId, LockClass};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

thread_local! {
    static ATOMIC: Cell<u32> = const { Cell::new(0) };
    static CPU: Cell<Option<CpuId>> = const { Cell::new(None) };
    static HELD: RefCell<Vec<(LockClass, u64)>> = const { RefCell::new(Vec::new()) };
    static TAKEN: RefCell<BTreeMap<u64, u64>> = const { RefCell::new(BTreeMap::new()) };
    static HOST: RefCell<Option<TestHost>> = const { RefCell::new(None) };
    static THREAD: RefCell<Option<Arc<ThreadState>>> = const { RefCell::new(None) };
}

/// Panics unless this is a place that the contract calls *thread*.
pub fn may_sleep(what: &str) {
    assert!(
        ATOMIC.get() == 0,
        "{what} in atomic context: in a window, in a cross-call or under a spin lock"
    );
}

/// Atomic context, until dropped.
pub struct Atomic(());

impl Atomic {
    pub fn enter() -> Self {
        ATOMIC.set(ATOMIC.get() + 1);
        Self(())
    }
}

impl Drop for Atomic {
    fn drop(&mut self) {
        ATOMIC.set(ATOMIC.get() - 1);
    }
}

/// Being on a CPU, until dropped.
pub struct OnCpu(());

impl OnCpu {
    pub fn enter(cpu: CpuId) -> Self {
        CPU.set(Some(cpu));
        Self(())
    }
}

impl Drop for OnCpu {
    fn drop(&mut self) {
        CPU.set(None);
    }
}

/// The CPU on which this is atomic, if it is.
pub fn cpu() -> Option<CpuId> {
    CPU.get()
}

/// Says on which host this thread is; gives the one that was said before.
pub fn set_host(host: Option<TestHost>) -> Option<TestHost> {
    HOST.replace(host)
}

/// The host that this thread is on, if any.
pub fn host() -> Option<TestHost> {
    HOST.with_borrow(Clone::clone)
}

/// Makes this thread known as `thread`, or forgets it; gives what it was known as.
pub fn set_thread(thread: Option<Arc<ThreadState>>) -> Option<Arc<ThreadState>> {
    THREAD.replace(thread)
}

/// The host's thread that this is, if it is one.
pub fn thread() -> Option<Arc<ThreadState>> {
    THREAD.with_borrow(Clone::clone)
}

/// Notes that a lock is about to be taken; panics if the order forbids it.
pub fn take_lock(class: LockClass, id: u64) {
    heap::exempt(|| {
        HELD.with_borrow_mut(|held| {
            if let Some((last, _)) = held.last() {
                assert!(*last < class, "{class:?} is taken while {last:?} is held");
            }
            held.push((class, id));
        });
        TAKEN.with_borrow_mut(|taken| *taken.entry(id).or_default() += 1);
    });
}

/// Notes that a lock was released.
pub fn release_lock(id: u64) {
    HELD.with_borrow_mut(|held| held.retain(|(_, other)| *other != id));
}

/// Panics if this thread holds a lock.
pub fn holds_nothing(what: &str) {
    HELD.with_borrow(|held| assert!(held.is_empty(), "{what} with locks held: {held:?}"));
}

/// What a thread has used so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How often it allocated, of the heap or of the host.
    pub allocations: u64,
    /// How often it took each lock, by the lock's number.
    pub locks: BTreeMap<u64, u64>,
    /// How often a vCPU had its translations flushed.
    pub flushes: u64,
}

impl Usage {
    /// That of the calling thread.
    pub fn here() -> Self {
        heap::exempt(|| Self {
            allocations: heap::allocations(),
            locks: TAKEN.with_borrow(Clone::clone),
            flushes: 0,
        })
    }
    /// What came on top since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let more = |(id, n): (&u64, &u64)| {
            let n = n - earlier.locks.get(id).copied().unwrap_or(0);
            (n > 0).then_some((*id, n))
        };
        Self {
            allocations: self.allocations - earlier.allocations,
            locks: self.locks.iter().filter_map(more).collect(),
            flushes: self.flushes - earlier.flushes,
        }
    }
}
