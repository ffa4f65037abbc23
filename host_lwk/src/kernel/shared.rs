// SPDX-License-Identifier: MIT OR Apache-2.0
//! A counted pointer. `alloc`'s own cannot say that there is no memory.

use alloc::boxed::Box;
use core::ops::Deref;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use palacios_core::alloc_ext::{try_box, NoMemory};

/// Refers to a value on the heap, which is dropped with the last reference.
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
