// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the kernel lies in memory, and how much of the address space its entry code maps.

use core::ops::Range;

/// The entry code in `boot.rs` maps the addresses from 0 to here, each to itself.
pub const MAPPED_BYTES: u64 = 4 << 30;

extern "C" {
    /// The first byte of the kernel, and the first behind it; from the linker script.
    static kernel_begin: u8;
    static kernel_end: u8;
}

/// The addresses of the kernel's code and data.
pub fn kernel() -> Range<u64> {
    &raw const kernel_begin as u64..&raw const kernel_end as u64
}
