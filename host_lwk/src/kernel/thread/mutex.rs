// SPDX-License-Identifier: MIT OR Apache-2.0
//! A lock whose waiters sleep, and the lists in which threads wait.

use super::{current, sleep_until, wake, Thread};
use crate::kernel::sync::SpinLock;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::null;
use core::sync::atomic::Ordering;

/// Threads that wait for something, linked through themselves: a thread waits for one thing at a time.
///
/// Whoever lets a thread go does so under the lock around this, and the thread takes that lock once more before it goes
/// on: until then it is there.
pub struct Waiters(*const Thread);

// SAFETY: the threads in it are there, by the contract above.
unsafe impl Send for Waiters {}

impl Waiters {
    /// Nobody.
    pub const fn new() -> Self {
        Self(null())
    }

    /// Adds the calling thread, which then calls [`Waiters::sleep`] with the lock released.
    pub fn add_current(&mut self) {
        let me = current();
        me.waiting.store(true, Ordering::Relaxed);
        me.next_waiter.set(self.0);
        self.0 = me;
    }

    /// Sleeps until somebody called [`Waiters::wake_all`].
    pub fn sleep() {
        let me = current();
        sleep_until(|| !me.waiting.load(Ordering::Acquire));
    }

    /// Wakes all who wait.
    pub fn wake_all(&mut self) {
        while !self.0.is_null() {
            // SAFETY: it waits, so it is there; see above.
            let first = unsafe { &*self.0 };
            self.0 = first.next_waiter.get();
            first.waiting.store(false, Ordering::Release);
            wake(first);
        }
    }
}

/// A lock whose waiters sleep.
pub struct Mutex<T> {
    /// Whether it is held, and who waits for it.
    state: SpinLock<(bool, Waiters)>,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by the holder only, and may be handed from thread to thread.
unsafe impl<T: Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Self {
        Self {
            state: SpinLock::new((false, Waiters::new())),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock; in a thread.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        loop {
            let mut state = self.state.lock();
            if !state.0 {
                state.0 = true;
                return MutexGuard {
                    lock: self,
                    _not_send: PhantomData,
                };
            }
            state.1.add_current();
            drop(state);
            Waiters::sleep();
        }
    }
}

/// Holds a [`Mutex`].
pub struct MutexGuard<'a, T> {
    lock: &'a Mutex<T>,
    _not_send: PhantomData<*mut ()>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, and this is the only guard.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        let mut state = self.lock.state.lock();
        state.0 = false;
        state.1.wake_all();
    }
}
