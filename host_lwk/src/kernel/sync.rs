// SPDX-License-Identifier: MIT OR Apache-2.0
//! What needs no thread: a spin lock that holds off interrupts, a value that is set once at boot, and a function that a layer
//! above registers with one below.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use x86_64::instructions::interrupts;

/// Interrupts are off until this is dropped. Then they are as they were before.
pub struct IrqsOff {
    were_on: bool,
    _not_send: PhantomData<*mut ()>,
}

impl IrqsOff {
    /// Switches them off.
    pub fn new() -> Self {
        let were_on = interrupts::are_enabled();
        interrupts::disable();
        Self {
            were_on,
            _not_send: PhantomData,
        }
    }
}

impl Drop for IrqsOff {
    fn drop(&mut self) {
        if self.were_on {
            interrupts::enable();
        }
    }
}

/// A lock that spins, with interrupts off.
pub struct SpinLock<T> {
    held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by the holder only, and may be handed from thread to thread.
unsafe impl<T: Send> Send for SpinLock<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A free lock around `value`.
    pub const fn new(value: T) -> Self {
        Self {
            held: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    /// Takes the lock.
    pub fn lock(&self) -> SpinGuard<'_, T> {
        let irqs = IrqsOff::new();
        while self
            .held
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            core::hint::spin_loop();
        }
        SpinGuard {
            lock: self,
            _irqs: irqs,
        }
    }

    /// Frees a lock whose guard was forgotten.
    ///
    /// # Safety
    /// This CPU holds it, and nothing refers to the value any more.
    pub unsafe fn unlock(&self) {
        self.held.store(false, Ordering::Release);
    }
}

/// Holds a [`SpinLock`].
pub struct SpinGuard<'a, T> {
    lock: &'a SpinLock<T>,
    _irqs: IrqsOff,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, and this is the only guard.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: it is held by this guard. Interrupts come back after this, when the field is dropped.
        unsafe { self.lock.unlock() };
    }
}

/// A value that is set once, before others look.
pub struct Once<T>(UnsafeCell<Option<T>>);

// SAFETY: written once, at boot, by the only CPU that runs.
unsafe impl<T: Send + Sync> Sync for Once<T> {}

impl<T> Once<T> {
    /// Not set yet.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(None))
    }

    /// Sets it.
    ///
    /// # Safety
    /// Once, while only one CPU and thread runs.
    pub unsafe fn set(&self, value: T) {
        // SAFETY: by the contract above.
        unsafe { *self.0.get() = Some(value) };
    }

    /// The value, once it is set.
    pub fn get(&self) -> Option<&T> {
        // SAFETY: not written any more when others run.
        unsafe { (*self.0.get()).as_ref() }
    }
}

/// A function that a layer above registers with one below, which calls it without knowing it.
pub struct Hook(AtomicPtr<()>);

impl Hook {
    /// Nobody's yet.
    pub const fn new() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }

    /// Has it be `f`. In any context.
    pub fn set(&self, f: fn()) {
        self.0.store(f as *mut (), Ordering::Release);
    }

    /// Calls the function; `false` if there is none yet.
    pub fn call(&self) -> bool {
        let f = self.0.load(Ordering::Acquire);
        if f.is_null() {
            return false;
        }
        // SAFETY: what is not null was stored in `set`, and was a function of this type there.
        let f = unsafe { core::mem::transmute::<*mut (), fn()>(f) };
        f();
        true
    }
}
