// SPDX-License-Identifier: MIT OR Apache-2.0
//! A lock whose waiters sleep.

use super::control_block::WaitList;
use crate::kernel::sync::SpinLock;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

/// A value that one thread at a time reaches; the others sleep.
pub struct Mutex<T> {
    /// Whether it is held, and who waits for it.
    state: SpinLock<(bool, WaitList)>,
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
            state: SpinLock::new((false, WaitList::new())),
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
            WaitList::sleep();
        }
    }

    /// Takes the lock if it is free; in a thread, also with interrupts off.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let is_held = core::mem::replace(&mut self.state.lock().0, true);
        (!is_held).then(|| MutexGuard {
            lock: self,
            _not_send: PhantomData,
        })
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
