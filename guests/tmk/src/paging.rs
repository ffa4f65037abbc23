// SPDX-License-Identifier: MIT OR Apache-2.0
//! Mappings beyond the first 4 GiB, which are mapped one to one: windows of fresh addresses, and frames that nothing has
//! touched since power-on, so that the first access is the VMM's first sight of them.

use crate::boot_info;
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

pub const PAGE: u64 = 4096;
/// Bits of a page-table entry (APM 2: 5.3.3).
pub const PRESENT: u64 = 1;
pub const WRITE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const NO_CACHE: u64 = 1 << 4;
pub const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Frames for a test's own use are handed out from here up, above the kernel.
const FRAMES: u64 = 8 << 20;
/// Windows are handed out from here up.
const WINDOWS: u64 = 0x80_0000_0000;
/// Frames that nothing touches but who asked: one in each 2 MiB, so that a VMM that fills large pages sees each as new.
pub const UNTOUCHED: core::ops::Range<u64> = 16 << 20..160 << 20;
const STRIDE: u64 = 2 << 20;

static NEXT_WINDOW: AtomicU64 = AtomicU64::new(WINDOWS);
static NEXT_FRAME: AtomicU64 = AtomicU64::new(FRAMES);
static NEXT_UNTOUCHED: AtomicU64 = AtomicU64::new(UNTOUCHED.start);
static NEXT_TABLE: AtomicU64 = AtomicU64::new(0);

const TABLES: usize = 64;
#[repr(C, align(4096))]
struct Tables([[u64; 512]; TABLES]);
static mut POOL: Tables = Tables([[0; 512]; TABLES]);

extern "C" {
    static mut boot_pml4: [u64; 512];
}

/// The end of the RAM below 4 GiB.
pub fn ram_end() -> u64 {
    boot_info::info().low_ram_end()
}

/// The address of `pages` fresh pages, not mapped, with a page behind them that never is.
pub fn window(pages: u64) -> u64 {
    NEXT_WINDOW.fetch_add((pages + 1) * PAGE, Ordering::Relaxed)
}

/// A frame of RAM, of which nothing is said; it is mapped one to one, too.
pub fn frame() -> Result<u64, &'static str> {
    frames(1)
}

/// Several in a row.
pub fn frames(count: u64) -> Result<u64, &'static str> {
    let frame = NEXT_FRAME.fetch_add(count * PAGE, Ordering::Relaxed);
    if frame + count * PAGE > UNTOUCHED.start.min(ram_end()) {
        return Err("no memory is left: give the machine 160 MiB");
    }
    Ok(frame)
}

/// A frame of RAM that was never touched.
pub fn untouched() -> Result<u64, &'static str> {
    let frame = NEXT_UNTOUCHED.fetch_add(STRIDE, Ordering::Relaxed);
    if frame + PAGE > UNTOUCHED.end.min(ram_end()) {
        return Err("no untouched memory is left: give the machine 160 MiB");
    }
    Ok(frame)
}

/// A window of one untouched page, writable; gives its address.
pub fn untouched_page() -> Result<u64, &'static str> {
    let at = window(1);
    map(at, untouched()?, PRESENT | WRITE)?;
    Ok(at)
}

/// A page with `code` at its beginning, for user mode to execute.
pub fn user_code(code: &[u8]) -> Result<u64, &'static str> {
    let frame = frame()?;
    // SAFETY: RAM that is ours, mapped one to one.
    unsafe { core::ptr::copy_nonoverlapping(code.as_ptr(), frame as *mut u8, code.len()) };
    let at = window(1);
    map(at, frame, PRESENT | USER)?;
    Ok(at)
}

/// A page for user mode to push to; gives its upper end.
pub fn user_stack() -> Result<u64, &'static str> {
    let at = window(1);
    map(at, frame()?, PRESENT | WRITE | USER)?;
    Ok(at + PAGE)
}

/// Maps one page, or with `flags` zero unmaps it.
pub fn map(at: u64, frame: u64, flags: u64) -> Result<(), &'static str> {
    let entry = entry(at)?;
    // SAFETY: our own tables.
    unsafe {
        entry.write_volatile(frame | flags);
        asm!("invlpg [{}]", in(reg) at);
    }
    Ok(())
}

/// The entry of the last level that maps `at`, outside the first 4 GiB.
pub fn entry(at: u64) -> Result<*mut u64, &'static str> {
    let mut table = (&raw mut boot_pml4).cast::<u64>();
    for shift in [39, 30, 21] {
        // SAFETY: our own tables, mapped one to one; an index has nine bits.
        unsafe {
            let slot = table.add((at >> shift) as usize & 511);
            if *slot & PRESENT == 0 {
                *slot = new_table()?;
            }
            *slot |= WRITE | USER;
            table = (*slot & ADDRESS) as *mut u64;
        }
    }
    // SAFETY: as above.
    Ok(unsafe { table.add((at >> 12) as usize & 511) })
}

fn new_table() -> Result<u64, &'static str> {
    let n = NEXT_TABLE.fetch_add(1, Ordering::Relaxed) as usize;
    if n >= TABLES {
        return Err("no page table is left");
    }
    // SAFETY: only the address is taken.
    Ok(unsafe { (&raw const POOL.0[n]) as u64 } | PRESENT)
}
