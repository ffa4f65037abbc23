// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the loader leaves in memory (Multiboot 0.6.96: 3.3): as far as we read it.

use core::ffi::CStr;

const LOADER_MAGIC: u32 = 0x2bad_b002;
const HAS_COMMAND_LINE: u32 = 1 << 2;

#[repr(C)]
struct LoaderInfo {
    flags: u32,
    memory_below_1m_kib: u32,
    memory_above_1m_kib: u32,
    boot_device: u32,
    command_line: u32,
}

/// The command line; nothing if no Multiboot loader started us.
pub fn command_line(magic: u32, info: u32) -> Option<&'static str> {
    if magic != LOADER_MAGIC {
        return None;
    }
    // SAFETY: the loader says that its information lies there.
    let info = unsafe { &*(info as usize as *const LoaderInfo) };
    if info.flags & HAS_COMMAND_LINE == 0 {
        return Some("");
    }
    // SAFETY: the loader says that a string lies there, and ends.
    let line = unsafe { CStr::from_ptr(info.command_line as usize as *const _) };
    line.to_str().ok()
}
