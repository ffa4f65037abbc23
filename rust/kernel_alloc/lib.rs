// SPDX-License-Identifier: GPL-2.0
//! The kernel's memory behind Rust's `alloc`: the five symbols that `alloc::alloc::Global` calls.
//!
//! All of it may sleep, as `GFP_KERNEL` does. Blocks too big for `kmalloc` come from `vmalloc`.
#![no_std]
#![feature(rustc_attrs)]
#![allow(internal_features, non_upper_case_globals)]

use core::ptr::null_mut;
use kernel::{bindings, ffi::c_void};

const NO_NODE: i32 = bindings::NUMA_NO_NODE;

/// `kvrealloc`: a new block when `block` is null. Null when there is no memory; then the old block stays.
///
/// # Safety
///
/// `block` is null or came from here, and is not used after a success.
unsafe fn reallocate(block: *mut u8, size: usize, align: usize, flags: bindings::gfp_t) -> *mut u8 {
    // SAFETY: as promised by the caller; alignments are powers of two, as the function asks.
    unsafe { bindings::kvrealloc_node_align(block.cast::<c_void>(), size, align, flags, NO_NODE) }
        .cast()
}

/// # Safety
///
/// `size` is not zero.
#[rustc_std_internal_symbol]
unsafe fn __rust_alloc(size: usize, align: usize) -> *mut u8 {
    // SAFETY: there is no old block.
    unsafe { reallocate(null_mut(), size, align, bindings::GFP_KERNEL) }
}

/// # Safety
///
/// `size` is not zero.
#[rustc_std_internal_symbol]
unsafe fn __rust_alloc_zeroed(size: usize, align: usize) -> *mut u8 {
    // SAFETY: there is no old block.
    unsafe {
        reallocate(
            null_mut(),
            size,
            align,
            bindings::GFP_KERNEL | bindings::__GFP_ZERO,
        )
    }
}

/// # Safety
///
/// `block` came from here with alignment `align`; `new_size` is not zero.
#[rustc_std_internal_symbol]
unsafe fn __rust_realloc(
    block: *mut u8,
    _old_size: usize,
    align: usize,
    new_size: usize,
) -> *mut u8 {
    // SAFETY: as promised by the caller.
    unsafe { reallocate(block, new_size, align, bindings::GFP_KERNEL) }
}

/// # Safety
///
/// `block` came from here and is not used again.
#[rustc_std_internal_symbol]
unsafe fn __rust_dealloc(block: *mut u8, _size: usize, _align: usize) {
    // SAFETY: as promised by the caller.
    unsafe { bindings::kvfree(block.cast::<c_void>()) }
}

/// `alloc` calls it so that a link without an allocator fails.
#[rustc_std_internal_symbol]
fn __rust_no_alloc_shim_is_unstable_v2() {}

/// The same for compilers before 1.90, which read a byte instead.
#[rustc_std_internal_symbol]
static __rust_no_alloc_shim_is_unstable: u8 = 0;
