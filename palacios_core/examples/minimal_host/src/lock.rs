// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks.

use palacios_core::host::Lock;
use std::sync::{Mutex, MutexGuard};

// ANCHOR: lock
/// A lock of the standard library, for mutexes and spin locks alike. A kernel's spin lock also holds off interrupts.
pub struct StdLock<T>(Mutex<T>);

impl<T> StdLock<T> {
    /// A lock around `value`.
    pub fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }
}

impl<T: Send> Lock<T> for StdLock<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        Self: 'a;
    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("no holder has panicked")
    }
}
// ANCHOR_END: lock
