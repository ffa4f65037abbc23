// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which CPU this is, and how many run.
//!
//! CPUs have numbers from 0 on, in the order in which they are started. One that does not start is the last that is tried, so
//! the numbers of those that run have no gap.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};
use x86_64::registers::model_specific::GsBase;
use x86_64::VirtAddr;

/// The number of the first CPU, where its GS base points.
pub static FIRST: u32 = 0;
/// How many CPUs run.
static RUNNING: AtomicU32 = AtomicU32::new(0);

/// The number of the CPU that this runs on. With interrupts off, or in a thread that cannot move.
pub fn current() -> u32 {
    let number;
    // SAFETY: GS leads to this CPU's number, set before anything else runs on it; it stays.
    unsafe {
        asm!("mov {:e}, gs:[0]", out(reg) number, options(nostack, readonly, preserves_flags));
    }
    number
}

/// Gives the CPU that this runs on its number.
///
/// # Safety
/// Before anything else runs on this CPU. No other CPU has the number.
pub unsafe fn set_current(number: &'static u32) {
    GsBase::write(VirtAddr::from_ptr(number));
}

/// The CPU that this runs on is set up: from now on others see it.
pub fn count_in() {
    RUNNING.fetch_add(1, Ordering::AcqRel);
}

/// How many CPUs run.
pub fn count() -> u32 {
    RUNNING.load(Ordering::Acquire)
}

/// Whether there is a CPU of this number, and it runs.
pub fn runs(number: u32) -> bool {
    number < count()
}
