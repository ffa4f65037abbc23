// SPDX-License-Identifier: GPL-2.0
//! Locks and shared pointers for the core: the kernel's, boxed, with one lock class for each of the core's.

use crate::counters::OBJECTS;
use crate::ffi;
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use kernel::{
    bindings,
    prelude::*,
    static_lock_class,
    sync::{self, Arc, LockClassKey},
    types::Opaque,
};
use palacios_core::host::{Lock, LockClass, NoMemory};

/// The name and the key by which lockdep knows a class.
fn class(of: LockClass) -> (&'static CStr, Pin<&'static LockClassKey>) {
    match of {
        LockClass::VmControl => (c"v3vee_vm_control", static_lock_class!()),
        LockClass::VcpuSlot => (c"v3vee_vcpu_slot", static_lock_class!()),
        LockClass::VmState => (c"v3vee_vm_state", static_lock_class!()),
        LockClass::Worker => (c"v3vee_worker", static_lock_class!()),
        LockClass::BusMap => (c"v3vee_bus_map", static_lock_class!()),
        LockClass::BusSlot => (c"v3vee_bus_slot", static_lock_class!()),
        LockClass::GuestRam => (c"v3vee_guest_ram", static_lock_class!()),
        LockClass::SlotWorker => (c"v3vee_slot_worker", static_lock_class!()),
        LockClass::Stream => (c"v3vee_stream_ring", static_lock_class!()),
        LockClass::StreamWorker => (c"v3vee_stream_worker", static_lock_class!()),
        LockClass::Chipset => (c"v3vee_chipset", static_lock_class!()),
    }
}

/// One of [`OBJECTS`], for as long as it lives.
struct Counted;

impl Counted {
    fn new() -> Self {
        OBJECTS.add(1);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        OBJECTS.sub(1);
    }
}

/// A value behind a lock. It is never pinned itself, so a guard may hand out `&mut` to it.
struct Guarded<T> {
    value: T,
    _counted: Counted,
}

impl<T> Unpin for Guarded<T> {}

/// A sleeping lock.
pub(crate) struct Mutex<T>(Pin<KBox<sync::Mutex<Guarded<T>>>>);

impl<T: Send> Mutex<T> {
    pub(crate) fn new(of: LockClass, value: T) -> Result<Self, NoMemory> {
        let (name, key) = class(of);
        let guarded = Guarded {
            value,
            _counted: Counted::new(),
        };
        let lock = sync::Mutex::new(guarded, name, key);
        Ok(Self(
            KBox::pin_init(lock, GFP_KERNEL_ACCOUNT).map_err(|_| NoMemory)?,
        ))
    }
}

impl<T: Send> Lock<T> for Mutex<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        Self: 'a;

    fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(self.0.lock())
    }
    fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().map(MutexGuard)
    }
}

/// Holds a [`Mutex`].
pub(crate) struct MutexGuard<'a, T>(sync::MutexGuard<'a, Guarded<T>>);

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0.value
    }
}

/// A spin lock that holds off interrupts, and may be taken by them. The kernel crate's does neither.
pub(crate) struct SpinLock<T>(Pin<KBox<Spin<T>>>);

struct Spin<T> {
    lock: Opaque<bindings::raw_spinlock_t>,
    value: UnsafeCell<T>,
    _counted: Counted,
}

// SAFETY: The value is reached only by the holder of the lock, and may be handed from thread to thread.
unsafe impl<T: Send> Send for Spin<T> {}
// SAFETY: As above.
unsafe impl<T: Send> Sync for Spin<T> {}

impl<T: Send> SpinLock<T> {
    pub(crate) fn new(of: LockClass, value: T) -> Result<Self, NoMemory> {
        let (name, key) = class(of);
        let spin = Spin {
            lock: Opaque::uninit(),
            value: UnsafeCell::new(value),
            _counted: Counted::new(),
        };
        let spin = KBox::pin(spin, GFP_KERNEL_ACCOUNT).map_err(|_| NoMemory)?;
        // SAFETY: Memory for a spin lock, which stays where it is from now on; name and key are static.
        unsafe {
            ffi::v3vee_spin_init(spin.lock.get(), name.as_char_ptr(), key.as_ptr());
        }
        Ok(Self(spin))
    }
}

impl<T: Send> Lock<T> for SpinLock<T> {
    type Guard<'a>
        = SpinGuard<'a, T>
    where
        Self: 'a;

    fn lock(&self) -> SpinGuard<'_, T> {
        // SAFETY: The lock was initialised.
        let flags = unsafe { ffi::v3vee_spin_lock(self.0.lock.get()) };
        SpinGuard {
            spin: &self.0,
            flags,
            _here: core::marker::PhantomData,
        }
    }
}

/// Holds a [`SpinLock`]; belongs to the CPU that took it.
pub(crate) struct SpinGuard<'a, T> {
    spin: &'a Spin<T>,
    flags: usize,
    _here: core::marker::PhantomData<*mut ()>,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: The lock is held.
        unsafe { &*self.spin.value.get() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: The lock is held, and this is the only guard.
        unsafe { &mut *self.spin.value.get() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: The lock is held, and these are the flags from before.
        unsafe { ffi::v3vee_spin_unlock(self.spin.lock.get(), self.flags) };
    }
}

/// A reference-counted pointer.
pub(crate) struct Shared<T>(Arc<(T, Counted)>);

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Result<Self, NoMemory> {
        let arc = Arc::new((value, Counted::new()), GFP_KERNEL_ACCOUNT);
        Ok(Self(arc.map_err(|_| NoMemory)?))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0 .0
    }
}
