// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the boot loader says (Multiboot 0.6.96: 3.3).

use core::ffi::CStr;
use core::sync::atomic::{AtomicU64, Ordering};

const MAGIC: u32 = 0x2bad_b002;
static INFO: AtomicU64 = AtomicU64::new(0);

#[repr(C)]
pub struct Info {
    pub flags: u32,
    pub mem_lower_kib: u32,
    pub mem_upper_kib: u32,
    boot_device: u32,
    cmdline: u32,
    mods_count: u32,
    mods_addr: u32,
    symbols: [u32; 4],
    mmap_length: u32,
    mmap_addr: u32,
}

#[repr(C)]
pub struct Module {
    pub start: u32,
    pub end: u32,
    string: u32,
    reserved: u32,
}

impl Info {
    pub fn new(magic: u32, at: u32) -> Option<&'static Info> {
        // SAFETY: the loader's word that it lies there.
        (magic == MAGIC).then(|| unsafe { &*(at as usize as *const Info) })
    }
    pub fn cmdline(&self) -> &'static str {
        if self.flags & 4 == 0 {
            return "";
        }
        text(self.cmdline)
    }
    pub fn modules(&self) -> &'static [Module] {
        if self.flags & 8 == 0 {
            return &[];
        }
        // SAFETY: the loader's word that they lie there.
        unsafe {
            core::slice::from_raw_parts(
                self.mods_addr as usize as *const Module,
                self.mods_count as usize,
            )
        }
    }
}

impl Info {
    /// The memory map: start, length in bytes, and kind, of which 1 is RAM.
    pub fn memory_map(&self) -> impl Iterator<Item = (u64, u64, u32)> {
        let present = self.flags & 1 << 6 != 0;
        let mut at = u64::from(self.mmap_addr);
        let end = at
            + if present {
                u64::from(self.mmap_length)
            } else {
                0
            };
        core::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            // SAFETY: the loader's word that entries lie there, each with its size in front.
            let (size, start, length, kind) = unsafe {
                let entry = at as *const u32;
                let region = entry.add(1).cast::<u64>();
                (
                    entry.read_unaligned(),
                    region.read_unaligned(),
                    region.add(1).read_unaligned(),
                    entry.add(5).read_unaligned(),
                )
            };
            at += u64::from(size) + 4;
            Some((start, length, kind))
        })
    }
}

impl Module {
    pub fn data(&self) -> &'static [u8] {
        // SAFETY: the loader's word that it lies there.
        unsafe {
            core::slice::from_raw_parts(
                self.start as usize as *const u8,
                (self.end - self.start) as usize,
            )
        }
    }
    pub fn cmdline(&self) -> &'static str {
        text(self.string)
    }
}

fn text(at: u32) -> &'static str {
    // SAFETY: the loader's word that a string ends there.
    unsafe { CStr::from_ptr(at as usize as *const _) }
        .to_str()
        .unwrap_or("")
}

pub fn remember(info: &'static Info) {
    INFO.store(info as *const Info as u64, Ordering::Relaxed);
}
pub fn info() -> &'static Info {
    // SAFETY: remembered before any test runs.
    unsafe { &*(INFO.load(Ordering::Relaxed) as *const Info) }
}
/// The value of `name=value` on the command line.
pub fn argument(name: &str) -> Option<&'static str> {
    info()
        .cmdline()
        .split(' ')
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}
/// A decimal number from the command line.
pub fn number(name: &str) -> Option<u64> {
    argument(name)?.parse().ok()
}
/// Whether another machine than this project's VMM is to judge the tests.
pub fn elsewhere() -> bool {
    argument("machine") == Some("other")
}
