// SPDX-License-Identifier: MIT OR Apache-2.0
//! A spin lock that holds off interrupts, a sleeping lock, a counted pointer, and a cell that is set once at boot.

use super::thread::{self, Thread};
use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::{null, NonNull};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use palacios_core::alloc_ext::{try_box, NoMemory};
use x86_64::instructions::interrupts;

/// Interrupts are off until this is dropped; then they are as they were.
pub struct IrqsOff {
    were_on: bool,
    _here: PhantomData<*mut ()>,
}

impl IrqsOff {
    /// Switches them off.
    pub fn new() -> Self {
        let were_on = interrupts::are_enabled();
        interrupts::disable();
        Self {
            were_on,
            _here: PhantomData,
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
        let me = thread::current();
        me.waiting.store(true, Ordering::Relaxed);
        me.next_waiter.set(self.0);
        self.0 = me;
    }

    /// Sleeps until somebody called [`Waiters::wake_all`].
    pub fn sleep() {
        let me = thread::current();
        thread::sleep_until(|| !me.waiting.load(Ordering::Acquire));
    }

    /// Wakes all who wait.
    pub fn wake_all(&mut self) {
        while !self.0.is_null() {
            // SAFETY: it waits, so it is there; see above.
            let first = unsafe { &*self.0 };
            self.0 = first.next_waiter.get();
            first.waiting.store(false, Ordering::Release);
            thread::wake(first);
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
                    _here: PhantomData,
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
    _here: PhantomData<*mut ()>,
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

/// A counted pointer. `alloc`'s own cannot say that there is no memory.
pub struct Shared<T>(NonNull<Counted<T>>);

struct Counted<T> {
    count: AtomicUsize,
    value: T,
}

// SAFETY: as `Arc`: the value is shared, and dropped on whatever thread comes last.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Moves `value` to where several may refer to it.
    pub fn new(value: T) -> Result<Self, NoMemory> {
        let count = AtomicUsize::new(1);
        let counted = try_box(Counted { count, value })?;
        Ok(Self(NonNull::from(Box::leak(counted))))
    }

    /// Takes a reference that was forgotten.
    ///
    /// # Safety
    /// `value` is in a [`Shared`], of which one clone was forgotten and not taken back yet.
    pub unsafe fn from_value(value: *const T) -> Self {
        let counted = value.wrapping_byte_sub(core::mem::offset_of!(Counted<T>, value));
        // SAFETY: by the contract above it is the `value` of one.
        Self(unsafe { NonNull::new_unchecked(counted.cast_mut().cast()) })
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        // SAFETY: counted, so it is there.
        unsafe { self.0.as_ref() }
            .count
            .fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: counted, so it is there.
        &unsafe { self.0.as_ref() }.value
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: counted, so it is there.
        if unsafe { self.0.as_ref() }
            .count
            .fetch_sub(1, Ordering::AcqRel)
            == 1
        {
            // SAFETY: boxed in `new`; this was the last reference.
            drop(unsafe { Box::from_raw(self.0.as_ptr()) });
        }
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
