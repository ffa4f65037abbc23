// SPDX-License-Identifier: MIT OR Apache-2.0
//! Copies from and to guest memory, which the guest changes meanwhile: volatile, in aligned words as far as they go.

use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicU8, Ordering};

/// Reads a word in one access.
///
/// # Safety
/// `at` is valid for reads of 8 bytes if `size` is that, else of 4, and aligned to them.
pub(super) unsafe fn read_word(at: *const u8, size: u8) -> u64 {
    // SAFETY: by the contract above.
    unsafe {
        match size {
            8 => at.cast::<u64>().read_volatile(),
            _ => at.cast::<u32>().read_volatile().into(),
        }
    }
}

/// Copies out of guest memory.
///
/// # Safety
/// `from` is valid for reads of `to.len()` bytes.
pub(super) unsafe fn copy_from_guest(to: &mut [u8], from: *const u8) {
    let (mut at, mut rest) = (from, to);
    // Most of what devices read are whole words.
    if at as usize % 8 == 0 {
        let mut words = rest.chunks_exact_mut(8);
        for word in &mut words {
            // SAFETY: 8 bytes inside the range that the caller vouches for, aligned to that.
            let read = unsafe { at.cast::<u64>().read_volatile() };
            word.copy_from_slice(&read.to_le_bytes());
            at = at.wrapping_add(8);
        }
        rest = words.into_remainder();
    }
    while !rest.is_empty() {
        let step = step(at as usize, rest.len());
        let Some((piece, more)) = rest.split_at_mut_checked(step) else {
            return;
        };
        // SAFETY: `step` bytes inside the range that the caller vouches for, aligned to their number.
        let word = unsafe {
            match step {
                8 => at.cast::<u64>().read_volatile(),
                4 => u64::from(at.cast::<u32>().read_volatile()),
                2 => u64::from(at.cast::<u16>().read_volatile()),
                _ => u64::from(at.read_volatile()),
            }
        };
        for (to, byte) in piece.iter_mut().zip(word.to_le_bytes()) {
            *to = byte;
        }
        at = at.wrapping_add(step);
        rest = more;
    }
}

/// Copies into guest memory; see [`copy_from_guest`].
///
/// # Safety
/// `to` is valid for writes of `from.len()` bytes.
pub(super) unsafe fn copy_to_guest(to: *mut u8, from: &[u8]) {
    let (mut at, mut rest) = (to, from);
    if at as usize % 8 == 0 {
        let words = rest.chunks_exact(8);
        rest = words.remainder();
        for word in words {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            // SAFETY: 8 bytes inside the range that the caller vouches for, aligned to that.
            unsafe { at.cast::<u64>().write_volatile(word) };
            at = at.wrapping_add(8);
        }
    }
    while !rest.is_empty() {
        let step = step(at as usize, rest.len());
        let Some((piece, more)) = rest.split_at_checked(step) else {
            return;
        };
        let mut word = [0; 8];
        for (to, byte) in word.iter_mut().zip(piece) {
            *to = *byte;
        }
        let word = u64::from_le_bytes(word);
        // SAFETY: `step` bytes inside the range that the caller vouches for, aligned to their number.
        unsafe {
            match step {
                8 => at.cast::<u64>().write_volatile(word),
                4 => at.cast::<u32>().write_volatile(word as u32),
                2 => at.cast::<u16>().write_volatile(word as u16),
                _ => at.write_volatile(word as u8),
            }
        }
        at = at.wrapping_add(step);
        rest = more;
    }
}

/// The widest access that is aligned at `at` and no longer than `left` bytes. An aligned 2, 4 or 8 bytes are thus copied in
/// one access, which is what guests expect of a device.
fn step(at: usize, left: usize) -> usize {
    [8, 4, 2]
        .into_iter()
        .find(|n| at % n == 0 && left >= *n)
        .unwrap_or(1)
}

/// # Safety
/// `at` is valid for reads and writes of `size` bytes, 1, 2, 4 or 8, and aligned to them.
pub(super) unsafe fn compare_exchange(at: *mut u8, size: u8, old: u64, new: u64) -> bool {
    const ORDER: Ordering = Ordering::SeqCst;
    // SAFETY: by the contract above; the guest's accesses are a processor's, atomic in the same way.
    unsafe {
        match size {
            8 => AtomicU64::from_ptr(at.cast())
                .compare_exchange(old, new, ORDER, ORDER)
                .is_ok(),
            4 => AtomicU32::from_ptr(at.cast())
                .compare_exchange(old as u32, new as u32, ORDER, ORDER)
                .is_ok(),
            2 => AtomicU16::from_ptr(at.cast())
                .compare_exchange(old as u16, new as u16, ORDER, ORDER)
                .is_ok(),
            _ => AtomicU8::from_ptr(at)
                .compare_exchange(old as u8, new as u8, ORDER, ORDER)
                .is_ok(),
        }
    }
}
