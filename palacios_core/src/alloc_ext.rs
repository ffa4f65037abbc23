// SPDX-License-Identifier: MIT OR Apache-2.0
//! Fallible allocation. A host may have no memory to give, and then it says so; the infallible calls of `alloc` would
//! abort, so the core uses none of them and the kernel module is built without them.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// The host had no memory to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// Fallible growth of a vector.
pub trait TryPush<T> {
    /// Appends `value`; on failure the vector is as it was and `value` is dropped.
    fn try_push(&mut self, value: T) -> Result<(), NoMemory>;
}

impl<T> TryPush<T> for Vec<T> {
    // Apart from its callers, so that `scripts/panics` finds the library's arithmetic here.
    #[inline(never)]
    fn try_push(&mut self, value: T) -> Result<(), NoMemory> {
        self.try_reserve(1).map_err(|_| NoMemory)?;
        // Room was reserved; `extend` on a vector with room does not allocate, but `push` would not exist in the kernel.
        if let Some(slot) = self.spare_capacity_mut().first_mut() {
            slot.write(value);
        }
        // SAFETY: one element past the old length was written just above.
        unsafe { self.set_len(self.len().wrapping_add(1)) };
        Ok(())
    }
}

/// Appends `len` zeroes; gives them, to be written to. On failure the vector is as it was.
#[inline(never)] // As `try_push`.
pub fn try_append_zeroes(to: &mut Vec<u8>, len: usize) -> Result<&mut [u8], NoMemory> {
    let begin = to.len();
    to.try_reserve(len).map_err(|_| NoMemory)?;
    for slot in to.spare_capacity_mut().iter_mut().take(len) {
        slot.write(0);
    }
    // SAFETY: room for so many was reserved, and all of it was written just above.
    unsafe { to.set_len(begin.wrapping_add(len)) };
    Ok(to.get_mut(begin..).unwrap_or_default())
}

/// Appends bytes. On failure the vector is as it was.
pub fn try_append(to: &mut Vec<u8>, bytes: &[u8]) -> Result<(), NoMemory> {
    let room = try_append_zeroes(to, bytes.len())?;
    for (to, from) in room.iter_mut().zip(bytes) {
        *to = *from;
    }
    Ok(())
}

/// Moves `value` to the heap.
pub fn try_box<T>(value: T) -> Result<Box<T>, NoMemory> {
    let layout = core::alloc::Layout::new::<T>();
    let at = if layout.size() == 0 {
        core::ptr::NonNull::<T>::dangling().as_ptr()
    } else {
        // SAFETY: the layout has a size.
        unsafe { alloc::alloc::alloc(layout) }.cast::<T>()
    };
    if at.is_null() {
        return Err(NoMemory);
    }
    // SAFETY: fresh memory with the layout of `T`, from the allocator that `Box` frees to.
    Ok(unsafe {
        at.write(value);
        Box::from_raw(at)
    })
}

/// A vector of `len` clones of `value`.
pub fn try_vec<T: Clone>(value: T, len: usize) -> Result<Vec<T>, NoMemory> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| NoMemory)?;
    for _ in 0..len {
        vec.try_push(value.clone())?;
    }
    Ok(vec)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn pushes_and_boxes() {
        let mut v = Vec::new();
        for i in 0..100u32 {
            v.try_push(i).unwrap();
        }
        assert_eq!(v.iter().sum::<u32>(), 4950);
        assert_eq!(*try_box(7u64).unwrap(), 7);
        assert_eq!(*try_box(()).unwrap(), ());
        assert_eq!(try_vec(3u8, 4).unwrap(), [3, 3, 3, 3]);
        let mut bytes = vec![1, 2];
        try_append(&mut bytes, &[3, 4]).unwrap();
        try_append_zeroes(&mut bytes, 2).unwrap()[1] = 9;
        assert_eq!(bytes, [1, 2, 3, 4, 0, 9]);
        assert_eq!(try_append(&mut bytes, &[]), Ok(()));
    }
}
