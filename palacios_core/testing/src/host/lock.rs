// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks that check their order and are counted.

use super::thread::sleep_for_ever;
use super::{here, Broken, Inner};
use palacios_core::host::{Lock, LockClass};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

/// A mutex, or a spin lock if `SPINS`.
pub struct TestLock<T, const SPINS: bool> {
    host: Arc<Inner>,
    class: LockClass,
    id: u64,
    value: Mutex<T>,
}

impl<T, const SPINS: bool> TestLock<T, SPINS> {
    pub(super) fn new(host: Arc<Inner>, class: LockClass, value: T) -> Self {
        host.objects.locks.fetch_add(1, SeqCst);
        Self {
            id: host.next_lock.fetch_add(1, SeqCst),
            host,
            class,
            value: Mutex::new(value),
        }
    }
}

impl<T, const SPINS: bool> Drop for TestLock<T, SPINS> {
    fn drop(&mut self) {
        self.host.objects.locks.fetch_sub(1, SeqCst);
    }
}

/// Holds a lock until dropped.
pub struct Guard<'a, T> {
    // Dropped in this order: the lock is free before its holder may sleep again.
    value: MutexGuard<'a, T>,
    _held: Held,
    _atomic: Option<here::Atomic>,
}

struct Held(u64);

impl Drop for Held {
    fn drop(&mut self) {
        here::release_lock(self.0);
    }
}

impl<T: Send, const SPINS: bool> Lock<T> for TestLock<T, SPINS> {
    type Guard<'a>
        = Guard<'a, T>
    where
        Self: 'a;

    fn lock(&self) -> Guard<'_, T> {
        if !SPINS {
            here::may_sleep("a mutex");
        }
        if self.host.often_breaks(Broken::LockOftenStuck) && here::thread().is_some() {
            sleep_for_ever();
        }
        here::take_lock(self.class, self.id);
        let held = Held(self.id);
        let atomic = SPINS.then(here::Atomic::enter);
        Guard {
            value: self.value.lock().unwrap_or_else(PoisonError::into_inner),
            _held: held,
            _atomic: atomic,
        }
    }

    fn try_lock(&self) -> Option<Guard<'_, T>> {
        let value = match self.value.try_lock() {
            Ok(value) => value,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        here::take_lock(self.class, self.id);
        Some(Guard {
            value,
            _held: Held(self.id),
            _atomic: SPINS.then(here::Atomic::enter),
        })
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}
